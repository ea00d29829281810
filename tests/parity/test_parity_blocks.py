"""Blocks: the same masks as PaddleSlim's, and where they differ on purpose.

PaddleSlim averages signed values; where a block has one sign that is the mean magnitude. Training
does not keep it so, hence new weights at each step. Matrices and 1x1 convolutions alone are
compared: it fails on biases (they have no columns) and cuts other kernels differently.
"""

from __future__ import annotations

import numpy as np
import pytest
from paddle import nn
from twins import assert_same, masks_of, one_fewer, paddleslim, prunable, slim, theirs_step, twins

import unstructured_pruner as ours


class Matrices(nn.Layer):
    """A linear layer [8, 12] and a 1x1 convolution [8, 4, 1, 1], blocks of 2 x 2 of one sign."""

    def __init__(self):
        super().__init__()
        self.linear, self.conv = nn.Linear(8, 12), nn.Conv2D(4, 8, 1)

    def redraw(self, rng) -> None:
        for weight in (self.linear.weight, self.conv.weight):
            rows, columns = weight.shape[0], weight.shape[1]
            # Whole numbers: every mean is exact, in whatever order it is added up.
            signs = np.kron(rng.choice([-1, 1], (rows // 2, columns // 2)), np.ones((2, 2)))
            values = signs * rng.integers(1, 100_000, (rows, columns))
            weight.set_value(values.reshape(weight.shape).astype("f4"))


def matrices_twice():
    """Pairs of equal models with new weights each time, for ever."""
    rng = np.random.default_rng(0)
    a, b = Matrices(), Matrices()
    while True:
        a.redraw(rng)
        b.set_state_dict({k: v for k, v in a.state_dict().items() if not k.endswith("_mask")})
        yield a, b


# PaddleSlim takes the mean of the empty slices behind a matrix's edge, which warns.
blocks = pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value")
BLOCK_SIZES = [[1, 2], [2, 1], [2, 2]]


@blocks
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_blocks_in_threshold_mode_give_the_same_masks(block):
    pairs = matrices_twice()
    a, b = next(pairs)
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 40_000.0, sparse_block=block)
    mine = ours.UnstructuredPruner(b, "threshold", 40_000.0, sparse_block=block)
    for _ in range(30):
        theirs_step(theirs)
        mine.step()
        masks = assert_same(theirs, mine)
        assert 0 < sum(map(np.count_nonzero, masks.values())) < 128
        next(pairs)


@blocks
@pytest.mark.parametrize("local_sparsity", [False, True])
@pytest.mark.parametrize("ratio", [0.25, 0.55, 0.9])
@pytest.mark.parametrize("block", BLOCK_SIZES)
def test_blocks_in_ratio_mode_give_the_same_masks_given_the_same_count(
    block, ratio, local_sparsity
):
    pairs = matrices_twice()
    a, b = next(pairs)
    theirs = slim(
        paddleslim.UnstructuredPruner,
        *(a, "ratio"),
        ratio=ratio,
        local_sparsity=local_sparsity,
        sparse_block=block,
    )
    sizes = {name: p.size for name, p in prunable(b).items()}
    fewer = {name: one_fewer(ratio, size) for name, size in sizes.items()}
    mine = ours.UnstructuredPruner(
        *(b, "ratio"),
        ratio=one_fewer(ratio, sum(sizes.values())),
        sparse_block=block,
        distribution=fewer if local_sparsity else "global",
    )
    for _ in range(30):
        theirs_step(theirs)
        mine.step()
        assert_same(theirs, mine)
        next(pairs)


@blocks
@pytest.mark.parametrize("block", [[2, 5], [3, 2], [3, 5]])
def test_blocks_cut_off_at_the_edge_give_the_same_masks(block):
    """[8, 12] is no multiple of these. The cut blocks are ranked by the mean of what they hold."""
    rng = np.random.default_rng(0)
    a, b = twins(lambda: nn.Sequential(nn.Linear(12, 8)))
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 50.0, sparse_block=block)
    mine = ours.UnstructuredPruner(b, "threshold", 50.0, sparse_block=block)
    for _ in range(10):
        # The magnitudes fall off by octaves: no mean is so near 50 that rounding could decide.
        values = (2.0 ** rng.integers(0, 10, (12, 8))).astype("f4")
        for model in (a, b):
            model[0].weight.set_value(values)
        theirs_step(theirs)
        mine.step()
        assert_same(theirs, mine)


@blocks
@pytest.mark.parametrize("block", [[2, 5], [3, 2], [3, 5]])
def test_blocks_cut_off_at_the_edge_give_the_same_masks_at_every_count(block):
    rng = np.random.default_rng(0)
    a, b = twins(lambda: nn.Sequential(nn.Linear(12, 8)))
    shape = -(-12 // block[0]), -(-8 // block[1])
    # A block is one number throughout, and no two are the same.
    means = rng.permutation(np.prod(shape)).reshape(shape) + 1
    signed = np.kron(means * rng.choice([-1, 1], shape), np.ones(block))[:12, :8]
    for count in range(1, 97):
        for model in (a, b):
            model[0].weight.set_value(signed.astype("f4"))
        ratio = count / 96
        theirs = slim(paddleslim.UnstructuredPruner, a, "ratio", ratio=ratio, sparse_block=block)
        mine = ours.UnstructuredPruner(b, "ratio", ratio=one_fewer(ratio, 96), sparse_block=block)
        theirs_step(theirs)
        mine.step()
        assert_same(theirs, mine, where=f"{count} of 96")


@blocks
def test_a_block_of_large_weights_of_both_signs_is_pruned_there_and_kept_here():
    def make():
        model = nn.Sequential(nn.Linear(1, 4, bias_attr=False))
        model[0].weight.set_value(np.array([[5, -5, 0.01, 0.01]], "f4"))
        return model

    # 0.75 for theirs: one fewer than 0.5 of 4 weights holds no block of 2.
    theirs = slim(paddleslim.UnstructuredPruner, make(), "ratio", ratio=0.75, sparse_block=[1, 2])
    mine = ours.UnstructuredPruner(make(), "ratio", ratio=0.5, sparse_block=[1, 2])
    theirs_step(theirs)
    mine.step()
    (their_mask,), (my_mask,) = (masks_of(p, mine.masks).values() for p in (theirs, mine))
    assert their_mask.tolist() == [[False, False, True, True]]
    assert my_mask.tolist() == [[True, True, False, False]]


@blocks
def test_blocks_of_a_3x3_convolution_span_whole_kernels_there_and_single_weights_here():
    """A weight [out, in, 3, 3] is cut along out and in there; here it is a matrix [out, in * 9].

    So PaddleSlim's [m, n] is our [m, 9 n] (blocks of one sign, as above).
    """
    rng = np.random.default_rng(0)
    signs = np.kron(rng.choice([-1, 1], (4, 2, 1, 1)), np.ones((2, 2, 3, 3)))
    # Far from the threshold: 36 numbers add up to something else in another order.
    scale = np.kron(rng.choice([1, 100], (4, 2, 1, 1)), np.ones((2, 2, 3, 3)))
    values = (signs * scale * rng.uniform(1, 2, (8, 4, 3, 3))).astype("f4")
    a, b = twins(lambda: nn.Sequential(nn.Conv2D(4, 8, 3)))
    for model in (a, b):
        model[0].weight.set_value(values)
    theirs = slim(paddleslim.UnstructuredPruner, a, "threshold", 10.0, sparse_block=[2, 2])
    theirs_step(theirs)
    same = ours.UnstructuredPruner(b, "threshold", 10.0, sparse_block=[2, 18])
    same.step()
    (mask,) = assert_same(theirs, same).values()
    assert 0 < np.count_nonzero(mask) < mask.size
