"""Blocks, and a ratio for every parameter, on both paths."""

from __future__ import annotations

import math

import numpy as np
import paddle
import pytest
from pruned_nets import masks_of, net_of, stepped

from unstructured_pruner import UnstructuredPruner
from unstructured_pruning import masking
from unstructured_pruning.blocks import Blocks


@pytest.fixture(params=["cpu", "device"])
def path(request, monkeypatch):
    if request.param == "device":
        monkeypatch.setattr(masking, "on_cpu", lambda *tensors: False)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("options", [{"local_sparsity": True}, {"distribution": "uniform"}])
def test_local_sparsity_prunes_every_parameter_at_the_ratio(options):
    pruner = UnstructuredPruner(net_of([[1, 2, 3, 4]], [[50, 70, 60]]), "ratio", **options)
    pruner.step()
    assert masks_of(pruner) == [[[0, 0, 1, 1]], [[0, 1, 0]]]  # round(0.55 * 4), round(0.55 * 3)
    assert {name: float(t) for name, t in pruner.thresholds.items()} == {"w0": 3, "w1": 70}


@pytest.mark.usefixtures("path")
def test_blocks_go_by_their_mean_magnitude_signs_aside():
    # means of the 2x1 blocks: 5, 0.01, 4, 3; upstream averages 5 and -5 to 0
    net = net_of([[5, 0.01, 4, -3], [-5, -0.01, -4, 3]])
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, sparse_block=[2, 1])
    pruner.step()
    assert masks_of(pruner) == [[[1, 0, 1, 0], [1, 0, 1, 0]]]


@pytest.mark.usefixtures("path")
def test_blocks_at_the_edge_are_smaller_and_ratios_count_weights():
    # 3x3 in blocks of 2x2: means 1 (4 weights), 2 (2), 3 (2), 4 (1)
    weights = [[1, 1, 2], [1, 1, 2], [3, 3, 4]]
    for pruned, wanted in ((4, 4), (5, 4), (6, 6), (7, 6), (8, 8), (9, 9)):
        pruner = UnstructuredPruner(net_of(weights), "ratio", ratio=pruned / 9, sparse_block=[2, 2])
        pruner.step()
        assert int(np.sum(np.array(masks_of(pruner)) == 0)) == wanted


@pytest.mark.usefixtures("path")
def test_blocks_of_a_convolution_see_the_weight_as_a_matrix():
    net = net_of(np.arange(2 * 2 * 3 * 3).reshape(2, 2, 3, 3))
    pruner = UnstructuredPruner(net, "threshold", threshold=10, sparse_block=[1, 6])
    pruner.step()
    flat = np.array(masks_of(pruner)).reshape(2, 18)  # means 2.5, 8.5, 14.5 | 20.5, ...
    assert flat.tolist() == [[0] * 12 + [1] * 6, [1] * 18]


@pytest.mark.usefixtures("path")
def test_erk_and_patterns():
    net = net_of(np.arange(1, 17).reshape(2, 8), np.arange(1, 17).reshape(4, 4))
    pruner = UnstructuredPruner(net, "ratio", ratio=0.5, distribution="erk")
    pruner.step()
    zeros = [int((np.array(mask) == 0).sum()) for mask in masks_of(pruner)]
    assert zeros == [round(16 * (1 - 0.625 * 8 / 9)), round(16 * (1 - 0.5 * 8 / 9))]
    pruner = UnstructuredPruner(net, "ratio", distribution={"w1": 0.75})
    pruner.step()
    assert pruner.ratio == 0.375
    assert [int((np.array(mask) == 0).sum()) for mask in masks_of(pruner)] == [0, 12]


def test_blocks_of_nan_are_kept_where_blocks_differ_in_size():
    net = net_of([[1, 1, math.nan, math.nan, math.nan]])
    pruner = stepped(net, "ratio", ratio=0.8, sparse_block=[1, 2])
    assert masks_of(pruner) == [[[0, 0, 1, 1, 1]]]


@pytest.mark.parametrize("block", [[4096, 1], [1, 4096], [4096, 4096]])
def test_a_block_beyond_the_weight_is_the_weight(block, monkeypatch):
    monkeypatch.setattr(masking, "on_cpu", lambda *tensors: False)
    blocks = Blocks(paddle.ones([3, 2, 2]), *block)
    assert (blocks.rows, blocks.columns) == (min(block[0], 3), min(block[1], 4))
    net = net_of(np.ones((3, 4)), np.full((2, 5), 2.0))
    pruner = stepped(net, "ratio", ratio=0.55, sparse_block=[4096, 4096])
    assert [mask.any() for mask in map(np.array, masks_of(pruner))] == [False, True]
