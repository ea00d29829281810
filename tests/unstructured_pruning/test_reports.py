"""Sparsities, the threshold of a ratio, the table of layers and lost channels."""

from __future__ import annotations

import copy
import math

import numpy as np
import paddle
import pytest
from paddle import nn
from pruned_nets import DTYPES, ConvNet, masks_of, net_of

from unstructured_pruner import UnstructuredPruner, default_skip_params


def half_zero_net() -> nn.Layer:
    """30 parameters besides the batch norm's 4: 9 of 18, 2 of 4 and 2 of 4 zeros, 4 zero biases."""
    net = nn.Layer()
    net.conv3 = nn.Conv2D(1, 2, 3)
    net.conv1 = nn.Conv2D(2, 2, 1)
    net.fc = nn.Linear(2, 2, bias_attr=False)
    net.norm = nn.LayerNorm(2)
    net.conv3.weight.set_value(np.float32([0, 1] * 9).reshape(2, 1, 3, 3))
    net.conv1.weight.set_value(np.float32([0, 1, 1, 1]).reshape(2, 2, 1, 1))
    net.fc.weight.set_value(np.float32([[0, 0], [-0.0, 2]]))
    net.conv3.bias.set_value(np.float32([0, 1]))
    return net


def test_total_sparse_counts_everything():
    # weights 9 + 1 + 3 of 26, biases 1 + 2 of 4, norm 0 of 2 (weight) and 2 of 2 (bias)
    assert UnstructuredPruner.total_sparse(half_zero_net()) == 18 / 34
    assert UnstructuredPruner.total_sparse(nn.ReLU()) == 0


def test_total_sparse_conv1x1_counts_1x1_convolutions_only():
    assert UnstructuredPruner.total_sparse_conv1x1(half_zero_net()) == 1 / 4
    for layer in (nn.Conv2D(2, 2, (1, 3)), nn.Conv2D(2, 2, (3, 1)), nn.Linear(2, 2), nn.ReLU()):
        for parameter in layer.parameters():
            parameter.set_value(paddle.zeros_like(parameter))
        assert UnstructuredPruner.total_sparse_conv1x1(layer) == 0


def test_prunable_sparsity_counts_what_the_pruner_prunes():
    net = half_zero_net()
    assert UnstructuredPruner(net, "ratio").prunable_sparsity() == 13 / 26

    def skip(net):
        return default_skip_params(net) | {"conv3", "fc"}

    assert UnstructuredPruner(net, "ratio", skip_params_func=skip).prunable_sparsity() == 1 / 4


@pytest.mark.parametrize("dtype", DTYPES)
def test_sparsity_in_every_dtype(dtype):
    assert UnstructuredPruner.total_sparse(net_of([[0, 1, -0.0, 2e-5, math.nan]], dtype=dtype)) == (
        2 / 5
    )


@pytest.mark.parametrize("tiny", [1e-7, 1e-12, 1e-20])
def test_a_tiny_weight_is_not_a_zero(tiny):  # though Paddle's == says so
    net = net_of([[tiny, 0, -tiny, 1]])
    pruner = UnstructuredPruner(net, "ratio")
    assert UnstructuredPruner.total_sparse(net) == pruner.prunable_sparsity() == 1 / 4
    pruner.set_static_masks()
    assert masks_of(pruner) == [[[1, 0, 1, 1]]]


@pytest.mark.parametrize(
    ("ratio", "threshold"), [(0, 0), (0.25, 2), (0.5, 3), (0.75, 4), (0.1, 0), (0.9, None)]
)
def test_summarize_weights_gives_the_threshold_of_a_ratio(ratio, threshold):
    net = nn.Linear(2, 2)
    net.weight.set_value(np.float32([[4, -3], [-1, 2]]))
    found = UnstructuredPruner(net, "ratio").summarize_weights(net, ratio)
    if threshold is None:  # all four go: anything above the largest
        assert found > 4
    else:
        assert found == threshold
    assert net.weight.numpy().tolist() == [[4, -3], [-1, 2]]


def test_summarize_weights_of_another_model():
    net = nn.Linear(2, 1)
    net.weight.set_value(np.float32([[4], [-3]]))
    net.bias.set_value(np.float32([1]))  # not prunable by default
    assert UnstructuredPruner(ConvNet(), "ratio").summarize_weights(net, 0.5) == 4


@pytest.mark.parametrize("ratio", [-0.5, 1.5])
def test_summarize_weights_refuses_a_ratio_out_of_range(ratio):
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"ratio must be in \[0, 1\]"):
        UnstructuredPruner(net, "ratio").summarize_weights(net, ratio)


def test_the_table_of_layers():
    rows = [line.split() for line in str(UnstructuredPruner(half_zero_net(), "ratio")).split("\n")]
    assert rows == [
        ["layer", "shape", "weights", "zeros", "sparsity", "channels"],
        ["conv3.weight", "[2,", "1,", "3,", "3]", "18", "9", "50.00%"],
        ["conv1.weight", "[2,", "2,", "1,", "1]", "4", "1", "25.00%"],
        ["fc.weight", "[2,", "2]", "4", "3", "75.00%", "1/2"],  # of its two outputs one is left
        ["prunable", "26", "13", "50.00%"],
        ["not", "pruned", "8", "5", "62.50%"],
        ["all", "34", "18", "52.94%"],
    ]


def test_the_table_where_everything_is_pruned():
    lines = str(UnstructuredPruner(nn.Linear(2, 2, bias_attr=False), "ratio")).split("\n")
    assert lines[-2].split() == ["not", "pruned", "0", "0", "-"]
    assert len({len(line) for line in lines}) == 1  # the columns line up


@pytest.mark.parametrize(
    ("layer", "alive", "channels"),  # `alive`: an index that is not zeroed, one weight of a channel
    [
        (nn.Linear(3, 4), (0, 2), 4),
        (nn.Embedding(3, 4), (0, 2), 4),
        (nn.Conv1D(3, 4, 2), (1, 2, 0), 4),
        (nn.Conv2D(4, 6, 3, groups=2), (5, 0, 1, 2), 6),
        (nn.Conv3D(2, 3, 1), (1, 1, 0, 0, 0), 3),
        (nn.Conv2DTranspose(4, 6, 3, groups=2), (1, 2, 0, 0), 6),
        (nn.SimpleRNNCell(3, 4), (2, 0), 4),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Layer) else "",
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_channels_without_a_weight(layer, alive, channels, dtype):
    net = nn.Sequential(copy.deepcopy(layer))
    net.to(dtype=dtype)
    pruner = UnstructuredPruner(net, "ratio")
    name, weight = next(iter(pruner._weights.items()))
    paddle.assign(paddle.ones_like(weight), output=weight)
    assert name not in pruner.lost_channels()
    values = np.zeros(weight.shape)
    paddle.assign(paddle.to_tensor(values).astype(dtype), output=weight)
    assert pruner.lost_channels()[name] == (channels, channels)
    values[alive] = 1e-30  # Paddle's == would take it for 0
    paddle.assign(paddle.to_tensor(values).astype(dtype), output=weight)
    assert pruner.lost_channels()[name] == (channels - 1, channels)


def test_what_has_less_than_two_dimensions_has_no_channels():
    net = nn.Layer()
    net.scale, net.weight = net.create_parameter([]), net.create_parameter([2, 2])
    net.bias = net.create_parameter([2], is_bias=True)  # zeros
    pruner = UnstructuredPruner(net, "ratio", skip_params_func=lambda model: set())
    assert pruner.lost_channels() == {}
    assert "scale" in str(pruner)
    assert (
        UnstructuredPruner(net, "ratio", skip_params_func=lambda m: {"weight"}).lost_channels()
        == {}
    )


def test_a_transposed_convolution_has_channels_in_every_group():
    layer = nn.Conv2DTranspose(4, 6, 1, groups=2)  # [4, 3, 1, 1]: inputs 0 and 1 make channels 0-2
    pruner = UnstructuredPruner(layer, "ratio")
    weights = np.float32([[0, 0, 1], [0, 1, 0], [0, 0, 0], [1, 0, 0]])
    layer.weight.set_value(weights[..., None, None])
    assert pruner.lost_channels() == {"weight": (3, 6)}
