"""Strategies of one's own, as typed for PaddleSlim, or by scores."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from paddle import nn
from pruned_nets import DTYPES, masks_of, net_of, stepped, values_of

from unstructured_pruner import UnstructuredPruner


class Assigning(UnstructuredPruner):
    def mask_parameters(self, param, mask):
        param_tmp = param * mask
        param_tmp.stop_gradient = True
        paddle.assign(param_tmp, output=param)


class Halving(UnstructuredPruner):
    """Masked weights are halved in place of zeroed: seen to be what step() uses."""

    def mask_parameters(self, param, mask):
        paddle.assign(param * (mask + 1) / 2, output=param)


class CallingSuper(UnstructuredPruner):
    def mask_parameters(self, param, mask):
        super().mask_parameters(param, mask)


class MedianThreshold(UnstructuredPruner):
    def update_threshold(self):
        weights = [p.numpy().flatten() for p in self.model.parameters() if len(p.shape) > 1]
        self.threshold = np.sort(np.abs(np.concatenate(weights)))[len(weights[0]) // 2]


@pytest.mark.parametrize("strategy", [Assigning, CallingSuper])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_custom_mask_parameters(strategy, dtype):
    net = net_of([[1, -2, 3, -4]], dtype=dtype)
    pruner = stepped(net, "ratio", strategy, ratio=0.5)
    assert net.w0.numpy().tolist() == [[0, 0, 3, -4]]
    assert net.w0.numpy().dtype == dtype
    assert pruner.masks["w0"].dtype == paddle.bool
    assert not net.w0.stop_gradient
    (net.w0**2).sum().backward()
    assert net.w0.grad.numpy().tolist() == [[0, 0, 6, -8]]


def test_custom_mask_parameters_decides_what_becomes_of_a_masked_weight():
    net = net_of([[1, -2, 3, -4]])
    stepped(net, "ratio", Halving, ratio=0.5)
    assert net.w0.numpy().tolist() == [[0.5, -1, 3, -4]]


def test_custom_update_threshold_decides_alone():
    net = net_of([[1, -2, 2, 2, 3, 0]])
    pruner = stepped(net, "ratio", MedianThreshold, ratio=0.9)
    assert pruner.threshold == 2
    assert masks_of(pruner) == [[[0, 1, 1, 1, 1, 0]]]  # ties are kept


def test_a_hook_of_an_object_or_put_into_the_class_is_asked_too(monkeypatch):
    pruner = UnstructuredPruner(net_of([[1, 2, 3, 4]]), "ratio", ratio=0.5)
    pruner.update_threshold = lambda: setattr(pruner, "threshold", 1.5)
    pruner.step()
    assert masks_of(pruner) == [[[0, 1, 1, 1]]]
    monkeypatch.setattr(
        UnstructuredPruner, "update_threshold", lambda self: setattr(self, "threshold", 3.5)
    )
    pruner = stepped(net_of([[1, 2, 3, 4]]), "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 0, 0, 1]]]


def test_custom_update_threshold_is_not_asked_in_threshold_mode():
    pruner = stepped(net_of([[1, 2, 3]]), "threshold", MedianThreshold, threshold=2.5)
    assert masks_of(pruner) == [[[0, 0, 1]]]


def test_a_custom_threshold_that_starts_from_the_exact_one():
    class AtLeastTwo(UnstructuredPruner):
        def update_threshold(self):
            super().update_threshold()
            self.threshold = max(self.threshold, 2)

    # The exact one is 1, with two of its three ties to go; that says nothing of the ties at 2.
    pruner = stepped(net_of([[1, 1, 1, 2, 2, 3]]), "ratio", AtLeastTwo, ratio=1 / 3)
    assert masks_of(pruner) == [[[0, 0, 0, 1, 1, 1]]]


def test_update_params_by_itself_records_no_gradients():
    class InPlace(UnstructuredPruner):
        def mask_parameters(self, param, mask):
            param.multiply_(mask)  # of a leaf: an error but for no_grad

    net = net_of([[1, -2, 3, -4]])
    pruner = stepped(net, "ratio", InPlace, ratio=0.5)
    net.w0.set_value(np.float32([[5, 5, 5, 5]]))
    pruner.update_params()
    assert net.w0.numpy().tolist() == [[0, 0, 5, 5]]
    assert net.w0.is_leaf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", ["bool", "float32"])
def test_mask_parameters_takes_bool_and_float_masks(dtype, mask):
    net = net_of([[1, -2, math.inf]], dtype=dtype)
    pruner = UnstructuredPruner(net, "ratio")
    pruner.mask_parameters(net.w0, paddle.to_tensor([[1, 0, 0]]).astype(mask))
    assert values_of(net.w0).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    "threshold",
    [
        0.7,
        np.float32(0.7),
        np.float64(0.7),  # numpy 2 would compare float32 weights with it in float64
        "tensor",
    ],
    ids=["float", "float32", "float64", "tensor"],
)
def test_a_custom_threshold_may_be_any_kind_of_number(threshold):
    class Fixed(UnstructuredPruner):
        def update_threshold(self):
            self.threshold = paddle.to_tensor(0.7) if threshold == "tensor" else threshold

    assert masks_of(stepped(net_of([[0.7, 0.6]]), "ratio", Fixed)) == [[[1, 0]]]


def test_a_threshold_of_ones_own_cannot_be_local():
    class Own(UnstructuredPruner):
        def update_threshold(self):
            self.threshold = 0.5

    for options in ({"local_sparsity": True}, {"distribution": "erk"}):
        with pytest.raises(ValueError, match="sets one threshold for all"):
            Own(nn.Linear(2, 2), "ratio", **options)


class TaylorPruner(UnstructuredPruner):
    def scores(self, name, param):
        if param.grad is None or not param.grad.astype("bool").any():
            raise ValueError(f"{name} has no gradient; call step() before clear_grad()")
        return (param * param.grad).abs()


def test_taylor_saliency():
    net = net_of([[1, 2, 3, 4]])
    pruner = TaylorPruner(net, "ratio", ratio=0.5)
    with pytest.raises(ValueError, match="w0 has no gradient"):
        pruner.step()
    (net.w0 * paddle.to_tensor([[4.0, 3.0, 0.1, -1.0]])).sum().backward()
    pruner.step()  # |w * grad| = 4, 6, 0.3, 4: among equals the first goes
    assert masks_of(pruner) == [[[0, 1, 0, 1]]]
    net.clear_gradients()
    with pytest.raises(ValueError, match="w0 has no gradient"):
        pruner.step()


def test_random_scores_and_scores_of_a_wrong_shape():
    class RandomPruner(UnstructuredPruner):
        def scores(self, name, param):
            return paddle.rand(param.shape)

    net = nn.Linear(40, 40)
    paddle.seed(0)
    pruner = RandomPruner(net, "ratio", ratio=0.3)
    pruner.step()
    assert pruner.prunable_sparsity() == 0.3
    magnitude = np.abs(net.weight.numpy()[net.weight.numpy() != 0])
    assert magnitude.min() < 0.02  # a small one that stayed

    class WrongPruner(UnstructuredPruner):
        def scores(self, name, param):
            return param.abs().sum(axis=0)

    with pytest.raises(ValueError, match="the scores of weight are"):
        WrongPruner(net, "ratio").step()


def test_scores_may_be_whole_numbers():
    class Ranks(UnstructuredPruner):
        def scores(self, name, param):
            return paddle.arange(4).reshape([1, 4])

    pruner = Ranks(net_of([[9, 8, 7, 6]]), "ratio", ratio=0.5)
    pruner.step()
    assert masks_of(pruner) == [[[0, 0, 1, 1]]]
