"""Magnitudes, masks and thresholds on the CPU, by numpy on the tensors' own memory.

Everything goes a piece at a time, so that the temporaries stay in cache.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from itertools import repeat

import numpy as np
import paddle

from unstructured_pruning import sampling
from unstructured_pruning.blocks import Blocks, common_size, size

PIECE = 1 << 16  # weights: 256 KB of float32
BITS = {"bfloat16": "u2", "float16": "u2", "float32": "u4", "float64": "u8", "bool": "?"}


def memory(tensor: paddle.Tensor) -> np.ndarray:
    """A CPU tensor's own memory as flat numpy bits (no copy; not to be kept beyond the tensor)."""
    kind = np.dtype(BITS[dtype_of(tensor)])
    memory = (ctypes.c_char * (size(tensor) * kind.itemsize)).from_address(tensor.data_ptr())
    return np.frombuffer(memory, kind)


def dtype_of(tensor: paddle.Tensor) -> str:
    return str(tensor.dtype).split(".")[-1]


def magnitudes(weight: paddle.Tensor | Blocks, stride: int = 1) -> Iterator[np.ndarray]:
    """The flat magnitudes of every stride-th weight, or the means of blocks, in pieces."""
    if isinstance(weight, Blocks):
        yield from _block_means(weight, stride)
        return
    bits, dtype = memory(weight)[::stride], dtype_of(weight)
    for start in range(0, bits.size, PIECE):
        yield _bits_to_magnitude(bits[start : start + PIECE], dtype)


def _bits_to_magnitude(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 (float64 for float64) magnitudes of the bit patterns; all conversions are exact."""
    if dtype == "bfloat16":
        return np.abs((bits.astype("u4") << 16).view("f4"))
    return np.abs(bits.view(dtype)).astype("f8" if dtype == "float64" else "f4", copy=False)


def update_mask(mask: paddle.Tensor, weight: paddle.Tensor | Blocks, threshold, ties: int) -> int:
    """mask = |weight| >= threshold, but for the first `ties` weights at it; returns ties left.

    Of blocks: their means, and each tie is a block. (Written as "not smaller", so that a NaN is
    kept: a broken weight should be seen.)
    """
    blocks = isinstance(weight, Blocks)
    keep = np.empty(size(weight), bool) if blocks else memory(mask)
    threshold, start = float(threshold), 0
    for magnitude in magnitudes(weight):
        piece = keep[start : start + magnitude.size]
        np.less(magnitude, threshold, out=piece)
        np.logical_not(piece, out=piece)
        if ties:
            tied = np.flatnonzero(piece & (magnitude <= threshold))[:ties]
            piece[tied] = False
            ties -= tied.size
        start += magnitude.size
    if blocks:
        _spread_blocks(keep, memory(mask), weight)
    return ties


def zero_masked(weight: paddle.Tensor, mask: paddle.Tensor) -> None:
    """weight = 0, in place, where the mask (of any dtype and layout) is 0."""
    ours = mask.place.is_cpu_place() and mask.is_contiguous() and dtype_of(mask) == "bool"
    if ours and size(mask) == size(weight):
        keep = memory(mask)
    else:
        keep = np.broadcast_to(mask.astype("bool").numpy(), weight.shape).ravel()
    # The bit pattern times 0 or 1: +0.0 also for a weight that is negative, infinite or NaN.
    bits = memory(weight)
    for start in range(0, bits.size, PIECE):
        bits[start : start + PIECE] *= keep[start : start + PIECE]


def mark(score: paddle.Tensor, mask: paddle.Tensor) -> None:
    """score = NaN, in place, where the mask (of bools) is 1: that no threshold prunes."""
    memory(score).view(dtype_of(score))[memory(mask)] = math.nan


def mark_largest(score: paddle.Tensor, shape: list[int], count: int) -> None:
    """score = NaN, in place, for the `count` largest of every output channel.

    Args:
        score: float32 or float64 magnitudes; of equal ones the last are the larger, as where the
            smallest go.
        shape: as of parameters.by_channel().
    """
    values = memory(score).view(dtype_of(score)).reshape(shape).swapaxes(1, 2)
    step = max(1, PIECE // values[0, 0].size)
    for group in values:
        for start in range(0, len(group), step):
            piece = group[start : start + step]
            keep = _largest(piece.reshape(len(piece), -1), count)
            piece[keep.reshape(piece.shape)] = math.nan


def _largest(rows: np.ndarray, count: int) -> np.ndarray:
    """A mask of the `count` largest of each row, NaN among them."""
    kth = np.partition(rows, -count, axis=1)[:, -count, None]  # NaN comes last
    kth[np.isnan(kth)] = math.inf
    keep = ~(rows < kth)
    surplus = np.count_nonzero(keep, axis=1)[:, None] - count
    if surplus.any():
        tied = keep & (rows <= kth)
        keep &= ~(tied & (tied.cumsum(axis=1) <= surplus))
    return keep


def smallest_kept(
    groups: list[list[paddle.Tensor | Blocks]], pruned: list[int]
) -> list[tuple[float, int]]:
    """What update_mask needs to prune the `pruned` smallest weights of a group: threshold and ties.

    The threshold is the smallest magnitude that is kept, with everything to prune the largest, with
    nothing 0; the ties are those at it that go all the same. Of blocks as many go as hold at most
    `pruned` weights.
    """
    found = []
    for weights, count in zip(groups, pruned):
        # Values are counted; only where blocks differ in size, the weights that each of them holds.
        each = common_size(weights)
        if each:
            count, total = count // each, sum(map(size, weights))
        else:
            total = sum(size(blocks.weight) for blocks in weights)
        threshold, ties = 0.0, 0
        if count:
            k, differ = min(count, total - 1), each is None
            threshold, smaller, tied = _kth_magnitude(weights, k, total, differ)
            ties = count - smaller
            if differ and tied is None:
                pieces = _with_sizes(weights, differ)
                tied = np.concatenate([sizes[means == threshold] for means, sizes in pieces])
            if differ:
                ties = int(np.searchsorted(tied.cumsum(), ties, side="right"))
        found.append((threshold, ties))
    return found


def _kth_magnitude(
    weights: list[paddle.Tensor | Blocks], k: int, total: int, differ: bool
) -> tuple[float, int, np.ndarray | None]:
    """The k-th smallest magnitude (k from 0) and how many are smaller; exact, and without a sort.

    A sample gives two magnitudes that enclose the wanted one; one pass counts what is not above the
    lower one and collects the few between. In the rare case of a miss the bracket is widened. Where
    blocks `differ` in size, each counts as the weights that it holds; the last result is then how
    many each of the blocks at the k-th magnitude holds, where that came to light.
    """
    stride = sampling.stride(sum(map(size, weights)))
    sample = np.concatenate([piece for w in weights for piece in magnitudes(w, stride)])
    sample[np.isnan(sample)] = math.inf  # NaN is kept
    for width in (4, 64, 1e18):
        first, last = sampling.bracket(k, total, sample.size, width)
        enclosing = np.partition(sample, (first, last))
        lower = float(enclosing[first]) if first > 0 else 0.0
        upper = float(enclosing[last]) if last < sample.size - 1 else math.inf
        up_to, between, held = 0, [], []
        for magnitude, sizes in _with_sizes(weights, differ):
            low = magnitude <= lower
            up_to += _count(low, sizes)
            inside = np.flatnonzero((magnitude < upper) > low)  # faster than as bools
            between.append(magnitude[inside])
            held.append(sizes[inside] if differ else ())
        if k < up_to:  # it is lower itself, or below; nothing is below 0
            pieces = _with_sizes(weights, differ) if lower else ()
            below = sum(_count(magnitude < lower, sizes) for magnitude, sizes in pieces)
            if below <= k:
                return lower, below, None
            continue
        between, held = np.concatenate(between), np.concatenate(held) if differ else None
        found = up_to + (int(held.sum()) if differ else between.size)
        if k < found:
            kth = _ranked(between, held, k - up_to)
            tied = held[between == kth] if differ else None
            return kth, up_to + _count(between < kth, held), tied
    return math.inf, found, None  # there are fewer finite weights than k


def _with_sizes(
    weights: list[paddle.Tensor | Blocks], differ: bool
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Magnitudes in pieces, and where blocks differ how many weights each of them holds."""
    for weight in weights:
        yield from zip(magnitudes(weight), _block_sizes(weight) if differ else repeat(None))


def _count(chosen: np.ndarray, sizes: np.ndarray | None) -> int:
    return np.count_nonzero(chosen) if sizes is None else int(sizes @ chosen)


def _ranked(values: np.ndarray, sizes: np.ndarray | None, rank: int) -> float:
    """The rank-th smallest value, from 0."""
    if sizes is None:
        return float(np.partition(values, rank)[rank])
    order = np.argsort(values)
    return float(values[order[np.searchsorted(sizes[order].cumsum(), rank, side="right")]])


def _block_rows(blocks: Blocks) -> Iterator[slice]:
    """The rows of blocks that make a piece."""
    step = max(1, PIECE // (blocks.rows * blocks.matrix[1]))
    for start in range(0, blocks.shape[0], step):
        yield slice(start, start + step)


def _block_sizes(blocks: Blocks) -> Iterator[np.ndarray]:
    for rows in _block_rows(blocks):
        yield np.outer(blocks.heights[rows], blocks.widths).ravel()


def _block_means(blocks: Blocks, stride: int) -> Iterator[np.ndarray]:
    """Flat float32 means, of every stride-th block of a piece."""
    bits, dtype = memory(blocks.weight).reshape(blocks.matrix), dtype_of(blocks.weight)
    height = blocks.rows
    for rows in _block_rows(blocks):
        piece = bits[rows.start * height : rows.stop * height]
        magnitude = _bits_to_magnitude(piece, dtype).astype("f4", copy=False)
        sums = magnitude if height == 1 else magnitude[::height].copy()
        for i in range(1, min(height, len(magnitude))):
            row = magnitude[i::height]
            sums[: len(row)] += row
        sums = _sums_of_columns(sums, blocks.columns)
        sums /= blocks.heights[rows, None] * blocks.widths
        yield sums.ravel()[::stride].copy()  # a view would keep all of them


def _sums_of_columns(values: np.ndarray, columns: int) -> np.ndarray:
    if columns > 8:  # below, numpy's own is the slower one
        return np.add.reduceat(values, np.arange(0, values.shape[1], columns), axis=1)
    sums = values[:, ::columns].copy()
    for j in range(1, min(columns, values.shape[1])):
        column = values[:, j::columns]
        sums[:, : column.shape[1]] += column
    return sums


def _spread_blocks(keep: np.ndarray, mask: np.ndarray, blocks: Blocks) -> None:
    """Writes a bool per block into the mask of its weights."""
    keep, matrix = keep.reshape(blocks.shape), mask.reshape(blocks.matrix)
    rows, columns = blocks.rows, blocks.columns
    for j in range(columns):
        first = matrix[::rows, j::columns]
        first[:] = keep[:, : first.shape[1]]
    for i in range(1, rows):
        row = matrix[i::rows]
        row[:] = matrix[::rows][: len(row)]
