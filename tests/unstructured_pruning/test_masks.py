"""Which weights are masked in threshold and in ratio mode, in literals."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from pruned_nets import DTYPES, masks_of, net_of, stepped, values_of

from unstructured_pruner import UnstructuredPruner


def test_threshold_keeps_what_is_not_smaller():
    net = net_of([[0.5, -0.5, 0.49, -0.49], [0.51, -7.0, 0.0, -0.0]])
    pruner = stepped(net, "threshold", threshold=0.5)
    assert masks_of(pruner) == [[[1, 1, 0, 0], [1, 1, 0, 0]]]
    assert net.w0.numpy().tolist() == [[0.5, -0.5, 0, 0], [np.float32(0.51), -7.0, 0, 0]]
    assert pruner.threshold == 0.5


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_threshold_is_rounded_to_the_weights_dtype(dtype):
    # 0.7 is not a float32: the nearest one is smaller, and a weight set to 0.7 is still kept.
    assert masks_of(stepped(net_of([[0.7]], dtype=dtype), "threshold", threshold=0.7)) == [[[1]]]


def test_threshold_zero_keeps_everything():
    assert masks_of(stepped(net_of([[0.0, 1e-30]]), "threshold", threshold=0)) == [[[1, 1]]]


def test_threshold_is_the_same_for_all_parameters():
    pruner = stepped(net_of([[1, 2]], [[3], [1]]), "threshold", threshold=1.5)
    assert masks_of(pruner) == [[[0, 1]], [[1], [0]]]


@pytest.mark.parametrize(
    ("ratio", "n", "pruned"),
    [
        (0, 4, 0),
        (1, 4, 4),
        (1, 1, 1),
        (0.5, 100, 50),
        (0.25, 4, 1),
        (0.55, 7, 4),  # 3.85
        (0.49, 7, 3),  # 3.43
        (0.001, 100, 0),
        (0.999, 100, 100),
    ],
)
def test_ratio_prunes_exactly_the_rounded_number(ratio, n, pruned):
    net = net_of(np.arange(1, n + 1, dtype="float32").reshape(1, n))
    masks = masks_of(stepped(net, "ratio", ratio=ratio))
    assert masks == [[[0] * pruned + [1] * (n - pruned)]]
    assert np.count_nonzero(net.w0.numpy() == 0) == pruned


def test_ratio_is_of_all_parameters_together():
    net = net_of([[1, -2, 3], [-9, 8, 7]], [[-0.5], [6]])
    pruner = stepped(net, "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 0, 0], [1, 1, 1]], [[0], [1]]]
    assert pruner.threshold == 6


def test_of_equal_magnitudes_the_first_in_parameter_order_go():
    pruner = stepped(net_of([[2, -2, 1]], [[-2, 5, 2]]), "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 0, 0]], [[1, 1, 1]]]
    assert pruner.threshold == 2
    pruner = stepped(net_of([[2, 5, 1]], [[-2, 2, 2]]), "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 1, 0]], [[0, 1, 1]]]


@pytest.mark.parametrize("ratio", [0, 0.25, 0.5, 0.75, 1])
def test_all_equal_weights(ratio):
    pruned = int(8 * ratio)
    masks = masks_of(stepped(net_of([[3, -3, 3, 3]], [[3, 3, 3, 3]]), "ratio", ratio=ratio))
    assert masks[0][0] + masks[1][0] == [0] * pruned + [1] * (8 - pruned)


def test_weights_that_are_zero_already_count_as_pruned():
    net = net_of([[0, 5, 0, 0, 4, 0, 3, 2, 0, 0]])  # 60% zeros
    pruner = stepped(net, "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 1, 0, 0, 1, 0, 1, 1, 0, 1]]]  # the first 5 zeros
    assert net.w0.numpy().tolist() == [[0, 5, 0, 0, 4, 0, 3, 2, 0, 0]]
    assert pruner.threshold == 0


@pytest.mark.parametrize("ratio", [0.5, 1])
def test_all_zero_weights(ratio):
    pruned = int(4 * ratio)
    masks = masks_of(stepped(net_of(np.zeros((1, 4))), "ratio", ratio=ratio))
    assert masks == [[[0] * pruned + [1] * (4 - pruned)]]


def test_ratio_finds_a_new_threshold_at_every_step():
    net = net_of([[1, 2, 3, 4]])
    pruner = stepped(net, "ratio", ratio=0.5)
    assert pruner.threshold == 3
    net.w0.set_value(np.float32([[8, 7, 6, 5]]))
    pruner.step()
    assert pruner.threshold == 7
    assert masks_of(pruner) == [[[1, 1, 0, 0]]]
    pruner.ratio = 0.75  # a schedule just sets it
    pruner.step()
    assert masks_of(pruner) == [[[1, 0, 0, 0]]]


def test_the_mode_can_be_changed_between_steps():
    net = net_of([[2, 2, 2, 2]])
    pruner = stepped(net, "ratio", ratio=0.5)
    net.w0.set_value(np.float32([[2, 2, 2, 2]]))
    pruner.mode, pruner.threshold = "threshold", 2
    pruner.step()
    assert masks_of(pruner) == [[[1, 1, 1, 1]]]


def test_ratio_one_prunes_a_float64_that_no_float32_holds():
    for largest in (0.1, 0.3, 1 / 3, 1e-300, 1e30):
        net = net_of([[largest, -largest]], dtype="float64")
        assert masks_of(stepped(net, "ratio", ratio=1)) == [[[0, 0]]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_is_kept_and_a_masked_infinity_becomes_zero(dtype):
    net = net_of([[math.nan, 2, -math.inf, 1]], dtype=dtype)
    pruner = stepped(net, "threshold", threshold=1.5)
    assert masks_of(pruner) == [[[1, 1, 1, 0]]]
    paddle.assign(paddle.to_tensor([[True, True, False, False]]), output=pruner.masks["w0"])
    pruner.update_params()
    np.testing.assert_array_equal(values_of(net.w0), [[math.nan, 2, 0, 0]])


@pytest.mark.parametrize(
    ("weights", "ratio", "masks"),
    [
        ([math.nan, 1, 2, math.nan], 0.25, [1, 0, 1, 1]),
        ([math.nan, 1, 2, math.nan], 0.5, [1, 0, 0, 1]),
        ([math.nan, 1, 2, math.nan], 0.75, [1, 0, 0, 1]),  # no more than there are numbers
        ([math.nan, 0, 0, math.nan], 0.25, [1, 0, 1, 1]),
        ([math.inf, 1, 2, -math.inf], 0.5, [1, 0, 0, 1]),
        ([math.inf, 1, 2, -math.inf], 0.75, [0, 0, 0, 1]),
        ([math.nan, math.nan, math.nan, math.nan], 0.5, [1, 1, 1, 1]),
        ([math.inf, 1, math.nan, 2], 0.75, [0, 0, 1, 0]),
    ],
)
def test_nan_and_infinity_do_not_break_the_count(weights, ratio, masks):
    net = net_of([weights])
    assert masks_of(stepped(net, "ratio", ratio=ratio)) == [[masks]]
    np.testing.assert_array_equal(net.w0.numpy(), [np.where(masks, weights, 0)])


def test_ratio_one_prunes_infinity_too():
    net = net_of([[1, math.inf, -math.inf]])
    assert masks_of(stepped(net, "ratio", ratio=1)) == [[[0, 0, 0]]]
    net = net_of([[1, math.inf, math.nan]])
    assert masks_of(stepped(net, "ratio", ratio=1)) == [[[0, 0, 1]]]


def test_float16_and_float32_weights_in_one_model():
    net = net_of([[1, 4, 3]])
    half = net.create_parameter([1, 3], dtype="float16")
    paddle.assign(paddle.to_tensor([[2.0, 5, 3]]).astype("float16"), output=half)
    net.add_parameter("w1", half)
    pruner = stepped(net, "ratio", ratio=0.5)
    assert masks_of(pruner) == [[[0, 1, 0]], [[0, 1, 1]]]
    assert str(half.dtype).endswith("float16")


def test_float64_and_shorter_weights_cannot_share_a_threshold():
    net = net_of([[1.0]])
    net.add_parameter("w1", net_of([[1 + 1e-12, 2]], dtype="float64").w0)
    with pytest.raises(ValueError, match="cannot share a threshold"):
        UnstructuredPruner(net, "ratio")
    for options in ({"distribution": "uniform"}, {"sparse_block": [1, 2]}):
        UnstructuredPruner(net, "ratio", **options).step()
    UnstructuredPruner(net, "threshold").step()
