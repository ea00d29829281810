"""Masked weights are exactly 0, and the model is left as it is but for that."""

from __future__ import annotations

import copy
import math

import numpy as np
import paddle
import pytest
from paddle import nn
from pruned_nets import DTYPES, ConvNet, masks_of, net_of, stepped, values_of

from unstructured_pruner import UnstructuredPruner


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_weights_are_plus_zero_and_the_others_untouched(dtype):
    values = [[-1.0, 0.25, -0.25, 3.0], [-0.0, -2.0, 0.125, -5.0]]
    net = net_of(values, dtype=dtype)
    pruner = stepped(net, "threshold", threshold=1)
    after = values_of(net.w0)
    assert after.tolist() == [[-1, 0, 0, 3], [0, -2, 0, -5]]
    assert not np.signbit(after[after == 0]).any()
    assert str(net.w0.dtype).endswith(dtype)
    assert pruner.masks["w0"].dtype == paddle.bool
    assert not net.w0.stop_gradient


def test_update_params_is_idempotent_and_leaves_the_masks():
    net = net_of([[1, 2, 3, 4]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    pruner.update_params()
    assert net.w0.numpy().tolist() == [[1, 2, 3, 4]]  # before the first step nothing is masked
    pruner.step()
    for _ in range(2):
        pruner.update_params()
        assert net.w0.numpy().tolist() == [[0, 0, 3, 4]]
    net.w0.set_value(np.float32([[9, 9, 0.5, 0.5]]))
    pruner.update_params()
    assert net.w0.numpy().tolist() == [[0, 0, 0.5, 0.5]]
    assert masks_of(pruner) == [[[0, 0, 1, 1]]]


@pytest.mark.parametrize("mode", ["ratio", "threshold"])
def test_masked_weights_stay_zero_under_momentum_and_weight_decay(mode):
    paddle.seed(0)
    net = ConvNet()
    opt = paddle.optimizer.Momentum(0.1, 0.9, parameters=net.parameters(), weight_decay=0.01)
    pruner = UnstructuredPruner(net, mode, threshold=0.1, ratio=0.55)
    moved = False
    for _ in range(5):
        nn.functional.cross_entropy(
            net(paddle.randn([8, 1, 6, 6])), paddle.randint(0, 5, [8])
        ).backward()
        opt.step()
        pruner.step()
        opt.clear_grad()
        for name, mask in pruner.masks.items():
            weight, mask = net.state_dict()[name].numpy(), mask.numpy()
            assert (weight[~mask] == 0).all()
            assert (weight[mask] != 0).all()
        moved = moved or pruner.threshold != 0.1
        if mode == "ratio":  # 36 + 8 + 10 weights
            assert sum(int((~m.numpy()).sum()) for m in pruner.masks.values()) == round(0.55 * 54)
    assert moved == (mode == "ratio")


def test_a_pruned_weight_can_come_back():
    net = net_of([[1, 2, 3, 4]])
    pruner = stepped(net, "ratio", ratio=0.5)
    net.w0.set_value(np.float32([[5, 0, 3, 4]]))
    pruner.step()
    assert masks_of(pruner) == [[[1, 0, 0, 1]]]
    assert net.w0.numpy().tolist() == [[5, 0, 0, 4]]


def test_static_masks_freeze_the_zeros_of_prunable_weights_only():
    net = nn.Linear(2, 2)  # its bias is all zeros
    net.weight.set_value(np.float32([[0, -0.0], [3, -1e-3]]))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.75)
    pruner.set_static_masks()
    assert list(pruner.masks) == ["weight"]
    assert masks_of(pruner) == [[[0, 0], [1, 1]]]
    net.weight.set_value(np.float32([[7, 8], [1e-3, 9]]))
    net.bias.set_value(np.float32([5, 6]))
    pruner.step()
    assert net.weight.numpy().tolist() == [[0, 0], [np.float32(1e-3), 9]]
    assert net.bias.numpy().tolist() == [5, 6]


@pytest.mark.parametrize("dtype", DTYPES)
def test_static_masks_in_every_dtype(dtype):
    net = net_of([[0, 2, -0.0, math.nan]], dtype=dtype)
    pruner = UnstructuredPruner(net, "ratio")
    pruner.set_static_masks()
    assert masks_of(pruner) == [[[0, 1, 0, 1]]]


def test_a_model_that_is_cast_after_the_pruner_was_made():
    net = nn.Linear(4, 4)
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    net.to(dtype="bfloat16")
    pruner.step()
    assert net.weight.dtype == paddle.bfloat16
    assert pruner.masks["weight"].dtype == paddle.bool
    assert int((values_of(net.weight) == 0).sum()) == 8


def test_the_model_gets_no_state_and_no_hooks():
    net = ConvNet()
    keys = list(net.state_dict())
    layers = [name for name, _ in net.named_sublayers()]
    pruner = stepped(net, "ratio")
    pruner.set_static_masks()
    pruner.step()
    assert list(net.state_dict()) == keys
    assert [name for name, _ in net.named_sublayers()] == layers
    assert list(pruner.masks) == ["features.0.weight", "features.2.weight", "fc.weight"]
    for layer in net.sublayers(include_self=True):
        assert not layer._forward_pre_hooks
        assert not layer._forward_post_hooks


def test_biases_and_norms_keep_their_values():
    net = ConvNet()
    before = {name: values_of(p) for name, p in net.state_dict().items()}
    pruner = stepped(net, "ratio", ratio=1)
    for name, p in net.state_dict().items():
        wanted = 0 * before[name] if name in pruner.masks else before[name]
        np.testing.assert_array_equal(values_of(p), wanted)
    assert (values_of(net.features[1]._variance) == 1).all()


def test_a_users_own_mask_need_be_neither_bool_nor_contiguous_nor_whole():
    net = net_of([[1, 2, 3], [4, 5, 6]])
    pruner = UnstructuredPruner(net, "ratio")
    keep = np.array([[1, 1, 0], [0, 1, 1]])
    for mask in (
        paddle.to_tensor(keep.astype("float32")),
        paddle.to_tensor(keep.T.astype("bool")).transpose([1, 0]),
    ):
        net.w0.set_value(np.float32([[1, 2, 3], [4, 5, 6]]))
        pruner.masks["w0"] = mask
        pruner.update_params()
        assert net.w0.numpy().tolist() == [[1, 2, 0], [0, 5, 6]]
    pruner.mask_parameters(net.w0, paddle.to_tensor([False, True, True]))
    assert net.w0.numpy().tolist() == [[0, 2, 0], [0, 5, 6]]


def test_prune_period():
    net = net_of([[1.0, 2, 3, 4]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, prune_period=2)
    seen = []
    for values in ([1, 2, 3, 4], [9, 9, 3, 1], [9, 8, 3, 1]):
        net.w0.set_value(np.float32([values]))
        pruner.step()
        seen.append(net.w0.numpy()[0].tolist())
    assert seen == [[0, 0, 3, 4], [0, 0, 3, 1], [9, 8, 0, 0]]


def test_a_model_being_pruned_can_be_copied_saved_and_compiled(tmp_path):
    net = nn.Sequential(nn.Conv2D(3, 4, 3), nn.BatchNorm2D(4), nn.ReLU(), nn.Flatten(),
                        nn.Linear(64, 2))  # fmt: skip
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5)
    opt = paddle.optimizer.SGD(0.01, parameters=net.parameters())
    images = paddle.randn([2, 3, 6, 6])
    compiled = paddle.jit.to_static(net)
    for _ in range(2):
        compiled(images).square().mean().backward()
        opt.step()
        pruner.step()
        opt.clear_grad()
    assert pruner.prunable_sparsity() == pytest.approx(0.5, abs=0.01)
    net.eval()
    wanted = net(images).numpy()
    assert np.array_equal(copy.deepcopy(net)(images).numpy(), wanted)
    paddle.jit.save(net, str(tmp_path / "net"),
                    input_spec=[paddle.static.InputSpec([None, 3, 6, 6], "float32")])  # fmt: skip
    loaded = paddle.jit.load(str(tmp_path / "net"))
    np.testing.assert_allclose(loaded(images).numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_frozen_masks_stay():
    net = net_of([[1, 2, 3, 4]])
    pruner = stepped(net, "ratio", ratio=0.5)
    pruner.freeze_masks()
    net.w0.set_value(np.float32([[9, 8, 0, 1]]))  # a zero that is no mask's
    pruner.step()
    assert masks_of(pruner) == [[[0, 0, 1, 1]]]
    assert net.w0.numpy().tolist() == [[0, 0, 0, 1]]
    other = UnstructuredPruner(net, "ratio", ratio=0.25)
    other.set_state_dict(pruner.state_dict())
    other.step()
    assert masks_of(other) == [[[0, 0, 1, 1]]]
