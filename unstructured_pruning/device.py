"""Magnitudes, masks and thresholds elsewhere than on the CPU: Paddle's operators on whole tensors.

Thresholds and ties are tensors, so that the host need not wait for the device.
"""

from __future__ import annotations

import math

import numpy as np
import paddle

from unstructured_pruning import sampling
from unstructured_pruning.blocks import Blocks, common_size, size


def magnitudes(weight: paddle.Tensor | Blocks, stride: int = 1) -> paddle.Tensor:
    """The flat magnitudes of every stride-th weight, or the means of blocks."""
    if isinstance(weight, Blocks):
        return _block_means(weight)[::stride]
    values = weight.detach().flatten()[::stride]
    return (values if values.dtype == paddle.float64 else values.astype("float32")).abs()


def update_mask(mask: paddle.Tensor, weight: paddle.Tensor | Blocks, threshold, ties):
    """As host.update_mask. The threshold and the ties may be, and the result then is, a tensor."""
    magnitude = magnitudes(weight)
    if isinstance(threshold, paddle.Tensor):
        threshold = threshold.astype(magnitude.dtype)
    else:  # beside a float64 tensor, Paddle 2.6 would round a number to float32
        threshold = paddle.full([], threshold, magnitude.dtype)
    keep = paddle.logical_not(magnitude < threshold)
    if isinstance(ties, paddle.Tensor) or ties:
        # Paddle's == takes numbers below 1e-8 (2.6) or 1e-15 (3.3) for 0; <= does not.
        tied = keep & (magnitude <= threshold)
        order = tied.astype("int64").cumsum()
        keep = keep & paddle.logical_not(tied & (order <= ties))
        ties = ties - order[-1]
    if isinstance(weight, Blocks):
        keep = _spread_blocks(keep, weight)
    paddle.assign(keep.reshape(mask.shape), output=mask)
    return ties


def zero_masked(weight: paddle.Tensor, mask: paddle.Tensor) -> None:
    """weight = 0, in place, where the mask (of any dtype and layout) is 0."""
    keep = mask.astype("bool")
    paddle.assign(paddle.where(keep, weight, paddle.zeros_like(weight)), output=weight)


def mark(score: paddle.Tensor, mask: paddle.Tensor) -> None:
    """As host.mark."""
    paddle.assign(paddle.where(mask, paddle.full_like(score, math.nan), score), output=score)


def mark_largest(score: paddle.Tensor, shape: list[int], count: int) -> None:
    """As host.mark_largest."""
    rows = score.reshape(shape).transpose([0, 2, 1, 3])
    channels, shape = rows.flatten(0, 1).flatten(1), rows.shape
    kth = _nan_as_infinity(channels).sort(axis=1)[:, -count].unsqueeze(1)
    keep = paddle.logical_not(channels < kth)
    tied = keep & (channels <= kth)
    surplus = keep.astype("int64").sum(axis=1, keepdim=True) - count
    keep = keep & paddle.logical_not(tied & (tied.astype("int64").cumsum(axis=1) <= surplus))
    mark(score, keep.reshape(shape).transpose([0, 2, 1, 3]).reshape(score.shape))


def smallest_kept(groups: list[list[paddle.Tensor | Blocks]], pruned: list[int]) -> list[tuple]:
    """As host.smallest_kept, in tensors but for pruned = 0; the host waits once for all groups."""
    found = [_threshold_and_ties(group, n) for group, n in zip(groups, pruned)]
    unsure = [i for i, (_, _, missed) in enumerate(found) if isinstance(missed, paddle.Tensor)]
    if unsure:
        missed = paddle.stack([found[i][2] for i in unsure]).numpy()
        for i in np.array(unsure)[missed]:
            found[i] = _threshold_and_ties(groups[i], pruned[i], bracket=False)
    return [(threshold, ties) for threshold, ties, _ in found]


def _threshold_and_ties(
    weights: list[paddle.Tensor | Blocks], pruned: int, bracket: bool = True
) -> tuple:
    """Also whether the bracket missed."""
    each = common_size(weights)
    if pruned // (each or 1) == 0:
        return 0.0, 0, False
    if not each:
        return *_of_unequal_blocks(weights, pruned), False
    pruned //= each
    k = min(pruned, sum(map(size, weights)) - 1)
    if bracket:
        kth, smaller, missed = _kth_magnitude(weights, k)
    else:
        magnitude, missed = _nan_as_infinity(_concatenated(weights)), False
        kth = magnitude.sort()[k]
        smaller = (magnitude < kth).astype("int64").sum()
    return kth, pruned - smaller, missed


def _kth_magnitude(weights: list[paddle.Tensor | Blocks], k: int) -> tuple[paddle.Tensor, ...]:
    """As host's, in tensors, and whether the bracket missed: nothing waits for the device."""
    total = sum(map(size, weights))
    sample = _nan_as_infinity(_concatenated(weights, sampling.stride(total))).sort()
    first, last = sampling.bracket(k, total, size(sample), 4)
    lower = sample[first] if first > 0 else paddle.zeros([], sample.dtype)
    upper = sample[last] if last < size(sample) - 1 else paddle.full([], math.inf, sample.dtype)
    # What is between them is about as many as the sample. It goes into slots from 1 on; slot 0 is
    # for all else, so that every shape is known without waiting for a count.
    room = min(2 * size(sample) + 1000, total)
    between = paddle.full([room + 1], math.inf, sample.dtype)
    below, up_to, found = (paddle.zeros([], "int64") for _ in range(3))
    for weight in weights:
        magnitude = magnitudes(weight).astype(sample.dtype)
        below += (magnitude < lower).astype("int64").sum()
        up_to += (magnitude <= lower).astype("int64").sum()
        inside = (magnitude > lower) & (magnitude < upper)
        slot = inside.astype("int64").cumsum() + found
        found = slot[-1]
        inside &= slot <= room
        slot = paddle.where(inside, slot, paddle.zeros_like(slot))
        between = paddle.scatter(between, slot, magnitude)
    between = between[1:].sort()
    in_between = paddle.gather(between, (k - up_to).clip(0, room - 1).reshape([1]))[0]
    at_lower = k < up_to
    kth = paddle.where(at_lower, lower, in_between)
    smaller = paddle.where(at_lower, below, up_to + (between < kth).astype("int64").sum())
    overflow = (found > room) | (k - up_to >= found)
    return kth, smaller, (k < below) | (overflow & paddle.logical_not(at_lower))


def _concatenated(weights: list[paddle.Tensor | Blocks], stride: int = 1) -> paddle.Tensor:
    pieces = [magnitudes(weight, stride) for weight in weights]
    doubles = any(piece.dtype == paddle.float64 for piece in pieces)
    return paddle.concat([p.astype("float64" if doubles else "float32") for p in pieces])


def _nan_as_infinity(magnitude: paddle.Tensor) -> paddle.Tensor:
    """To be sorted: NaN is kept, so it has to come last."""
    return paddle.where(paddle.isnan(magnitude), paddle.full_like(magnitude, math.inf), magnitude)


def _of_unequal_blocks(groups: list[Blocks], pruned: int) -> tuple[paddle.Tensor, ...]:
    """Threshold and ties."""
    magnitude = _concatenated(groups)
    sizes = paddle.concat([_sizes(blocks) for blocks in groups])
    ranked = _nan_as_infinity(magnitude)
    order = ranked.argsort()
    filled = paddle.gather(sizes, order).cumsum()
    stop = (filled <= pruned).astype("int64").sum().clip(0, size(ranked) - 1)
    threshold = paddle.gather(ranked, paddle.gather(order, stop.reshape([1])))[0]
    smaller = (magnitude < threshold).astype("int64")
    tied = (magnitude <= threshold).astype("int64") - smaller  # the first of these still fit
    filled = (sizes * smaller).sum() + (sizes * tied).cumsum()
    return threshold, (tied * (filled <= pruned).astype("int64")).sum()


def _sizes(blocks: Blocks) -> paddle.Tensor:
    """How many weights each block holds."""
    sizes = np.outer(blocks.heights, blocks.widths).ravel()
    return paddle.to_tensor(sizes.astype("i8"), place=blocks.place)


def _block_means(blocks: Blocks) -> paddle.Tensor:
    (height, width), (down, across) = blocks.matrix, blocks.shape
    padding = [0, down * blocks.rows - height, 0, across * blocks.columns - width]
    magnitude = magnitudes(blocks.weight).reshape(blocks.matrix)
    magnitude = paddle.nn.functional.pad(magnitude, padding)
    sums = magnitude.reshape([down, blocks.rows, across, blocks.columns]).sum([1, 3])
    sizes = paddle.to_tensor(blocks.heights[:, None] * blocks.widths, dtype=sums.dtype)
    return (sums / sizes).astype("float32").flatten()


def _spread_blocks(keep: paddle.Tensor, blocks: Blocks) -> paddle.Tensor:
    """A bool per weight from a bool per block."""
    (height, width), (down, across) = blocks.matrix, blocks.shape
    shape = [down, blocks.rows, across, blocks.columns]
    wide = keep.reshape([down, 1, across, 1]).expand(shape)
    return wide.reshape([down * blocks.rows, across * blocks.columns])[:height, :width]
