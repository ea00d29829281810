"""All that touches single weights: masks, counts, and the threshold that a ratio needs.

Written twice where numpy and Paddle differ. On the CPU: numpy on the tensors' own memory, a piece
at a time, so that the temporaries stay in cache (a third of the time of Paddle's operators).
Elsewhere: Paddle's operators on whole tensors.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator

import numpy as np
import paddle

_PIECE = 1 << 16  # weights: 256 KB of float32
_BITS = {"bfloat16": "u2", "float16": "u2", "float32": "u4", "float64": "u8", "bool": "?"}


def size(tensor: paddle.Tensor | np.ndarray) -> int:
    return math.prod(tensor.shape)


def zeros(tensor: paddle.Tensor) -> int:
    # Paddle's == and != take numbers below 1e-8 (2.6) or 1e-15 (3.3) for 0; the cast does not.
    return size(tensor) - int(paddle.count_nonzero(tensor.astype("bool")))


def _dtype(tensor: paddle.Tensor) -> str:
    return str(tensor.dtype).split(".")[-1]


def _on_cpu(*tensors: paddle.Tensor) -> bool:
    return all(tensor.place.is_cpu_place() and tensor.is_contiguous() for tensor in tensors)


def _memory(tensor: paddle.Tensor) -> np.ndarray:
    """A CPU tensor's own memory as flat numpy bits (no copy; not to be kept beyond the tensor)."""
    kind = np.dtype(_BITS[_dtype(tensor)])
    memory = (ctypes.c_char * (size(tensor) * kind.itemsize)).from_address(tensor.data_ptr())
    return np.frombuffer(memory, kind)


def _bits_to_magnitude(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 (float64 for float64) magnitudes of the bit patterns; all conversions are exact."""
    if dtype == "bfloat16":
        return np.abs((bits.astype("u4") << 16).view("f4"))
    return np.abs(bits.view(dtype)).astype("f8" if dtype == "float64" else "f4", copy=False)


def _magnitudes(
    weight: paddle.Tensor | Blocks, stride: int = 1
) -> Iterator[np.ndarray | paddle.Tensor]:
    """The flat magnitudes of every stride-th weight, or the means of blocks, in pieces."""
    if isinstance(weight, Blocks):
        yield from weight.means(stride)
        return
    dtype = _dtype(weight)
    if _on_cpu(weight):
        bits = _memory(weight)[::stride]
        for start in range(0, bits.size, _PIECE):
            yield _bits_to_magnitude(bits[start : start + _PIECE], dtype)
    else:
        values = weight.detach().flatten()[::stride]
        yield (values if dtype == "float64" else values.astype("float32")).abs()


def update_mask(mask: paddle.Tensor, weight: paddle.Tensor | Blocks, threshold, ties):
    """mask = |weight| >= threshold, but for the first `ties` weights at it; returns ties left.

    (Written as "not smaller", so that a NaN is kept: a broken weight should be seen.) On a device
    the threshold and the ties may be, and the result then is, a tensor: nothing waits for it.
    """
    if _on_cpu(weight, mask):
        threshold, keep, start = float(threshold), _memory(mask), 0
        for magnitude in _magnitudes(weight):
            piece = keep[start : start + magnitude.size]
            np.less(magnitude, threshold, out=piece)
            np.logical_not(piece, out=piece)
            if ties:
                tied = np.flatnonzero(piece & (magnitude <= threshold))[:ties]
                piece[tied] = False
                ties -= tied.size
            start += magnitude.size
        return ties
    (magnitude,) = _magnitudes(weight)
    if isinstance(threshold, paddle.Tensor):
        threshold = threshold.astype(magnitude.dtype)
    else:  # beside a float64 tensor, Paddle 2.6 would round a number to float32
        threshold = paddle.full([], threshold, magnitude.dtype)
    keep = paddle.logical_not(magnitude < threshold)
    if isinstance(ties, paddle.Tensor) or ties:
        tied = keep & (magnitude <= threshold)  # Paddle's == is tolerant, see zeros
        order = tied.astype("int64").cumsum()
        keep = keep & paddle.logical_not(tied & (order <= ties))
        ties = ties - order[-1]
    paddle.assign(keep.reshape(weight.shape), output=mask)
    return ties


def zero_masked(weight: paddle.Tensor, mask: paddle.Tensor) -> None:
    """weight = 0, in place, where the mask is 0. (The pruner's own masks are bool and whole.)"""
    if _on_cpu(weight, mask) and _dtype(mask) == "bool" and size(mask) == size(weight):
        # The bit pattern times 0 or 1: +0.0 also for a weight that is negative, infinite or NaN.
        bits, keep = _memory(weight), _memory(mask)
        for start in range(0, bits.size, _PIECE):
            bits[start : start + _PIECE] *= keep[start : start + _PIECE]
    else:
        keep = mask.astype("bool")
        if not _on_cpu(weight):
            paddle.assign(paddle.where(keep, weight, paddle.zeros_like(weight)), output=weight)
        else:  # again with a mask that is whole; Paddle's CPU has no `where` in 16 bits
            keep = np.ascontiguousarray(np.broadcast_to(keep.numpy(), weight.shape))
            zero_masked(weight, paddle.to_tensor(keep, place=weight.place))


def smallest_kept(groups: list[list[paddle.Tensor | Blocks]], pruned: list[int]) -> list[tuple]:
    """What update_mask needs to prune the `pruned` smallest weights of a group: threshold and ties.

    The threshold is the smallest magnitude that is kept, with everything to prune the largest, with
    nothing at most the smallest; the ties are those at it that go all the same. Of blocks as many
    go as hold at most `pruned` weights. A device's answer is tensors, but for pruned = 0; the host
    waits for it once for all groups.
    """
    found = [_selected(group, n) for group, n in zip(groups, pruned)]
    unsure = [i for i, (_, _, missed) in enumerate(found) if isinstance(missed, paddle.Tensor)]
    if unsure:
        missed = paddle.stack([found[i][2] for i in unsure]).numpy()
        for i in np.array(unsure)[missed]:
            found[i] = _selected(groups[i], pruned[i], bracket=False)
    return [(threshold, ties) for threshold, ties, _ in found]


def _selected(weights: list[paddle.Tensor | Blocks], pruned: int, bracket: bool = True) -> tuple:
    """Threshold, ties, and whether the bracket missed (never on the CPU)."""
    on_cpu = _on_cpu(*weights)
    if isinstance(weights[0], Blocks):
        sizes = {int(n) for blocks in weights for n in blocks.different_sizes()}
        if len(sizes) > 1:
            choose = _smallest_kept_block if on_cpu else _smallest_kept_block_on_device
            return *choose(weights, pruned), False
        pruned //= sizes.pop()
    if pruned == 0:
        return 0.0, 0, False
    k, missed = min(pruned, sum(map(size, weights)) - 1), False
    if on_cpu:
        kth, smaller = _kth_magnitude(weights, k)
    elif bracket:
        kth, smaller, missed = _kth_on_device(weights, k)
    else:
        magnitude = _concatenated(weights)
        kth = magnitude.sort()[k]
        smaller = (magnitude < kth).astype("int64").sum()
    return kth, pruned - smaller, missed


def _kth_magnitude(weights: list[paddle.Tensor | Blocks], k: int) -> tuple[float, int]:
    """The k-th smallest magnitude (k from 0) and how many are smaller; exact, and without a sort.

    A sample gives two magnitudes that enclose the wanted one; one pass counts what is below them
    and collects the few between. In the rare case of a miss the bracket is widened.
    """
    total = sum(map(size, weights))
    stride = _sample_stride(total)
    sample = np.concatenate([piece for w in weights for piece in _magnitudes(w, stride)])
    sample[np.isnan(sample)] = math.inf  # NaN is kept
    for width in (4, 64, 1e18):
        first, last = _bracket(k, total, sample.size, width)
        enclosing = np.partition(sample, (first, last))
        lower = float(enclosing[first]) if first > 0 else 0.0
        upper = float(enclosing[last]) if last < sample.size - 1 else math.inf
        below, at_lower, between = 0, 0, []
        for weight in weights:
            for magnitude in _magnitudes(weight):
                smaller = magnitude < lower
                below += np.count_nonzero(smaller)
                inside = np.flatnonzero((magnitude < upper) ^ smaller)  # faster than as bools
                found = magnitude[inside]
                tied = found == lower
                ties = np.count_nonzero(tied)
                at_lower += ties
                between.append(found[~tied] if ties else found)
        up_to = below + at_lower
        if below <= k < up_to:
            return lower, below
        between = np.concatenate(between)
        if up_to <= k < up_to + between.size:
            kth = _ranked(between, k - up_to)
            return kth, up_to + np.count_nonzero(between < kth)
    return math.inf, up_to + between.size  # there are fewer finite weights than k


def _kth_on_device(weights: list[paddle.Tensor | Blocks], k: int) -> tuple[paddle.Tensor, ...]:
    """As above, in tensors, and whether the bracket missed: nothing waits for the device."""
    total = sum(map(size, weights))
    stride = _sample_stride(total)
    sample = _concatenated(weights, stride).sort()
    first, last = _bracket(k, total, size(sample), 4)
    lower = sample[first] if first > 0 else paddle.zeros([], sample.dtype)
    upper = sample[last] if last < size(sample) - 1 else paddle.full([], math.inf, sample.dtype)
    # What is between them is about as many as the sample. It goes into slots from 1 on; slot 0 is
    # for all else, so that every shape is known without waiting for a count.
    room = min(2 * size(sample) + 1000, total)
    between = paddle.full([room + 1], math.inf, sample.dtype)
    below, up_to, found = (paddle.zeros([], "int64") for _ in range(3))
    for weight in weights:
        for magnitude in _magnitudes(weight):
            magnitude = magnitude.astype(sample.dtype)
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
    """Device magnitudes to be sorted; NaN is kept, so it has to sort last."""
    pieces = [piece for weight in weights for piece in _magnitudes(weight, stride)]
    widest = "float64" if "float64" in map(_dtype, pieces) else "float32"
    magnitude = paddle.concat([piece.astype(widest) for piece in pieces])
    return paddle.where(paddle.isnan(magnitude), paddle.full_like(magnitude, math.inf), magnitude)


def _bracket(k: int, total: int, sampled: int, width: float) -> tuple[int, int]:
    """Ranks within the sample `width` standard deviations to either side of the k-th of all."""
    middle, deviation = k / total * sampled, math.sqrt(sampled * k * (total - k)) / total
    first = max(middle - width * deviation - 1, 0)
    last = min(middle + width * deviation + 1, sampled - 1)
    return int(first), int(last)


def _sample_stride(total: int) -> int:
    """Every so many weights make a sample of n = (4 total)^(2/3).

    A bracket of +-4 standard deviations around the middle then holds 4 total / sqrt(n) = n weights:
    the sample and what is between cost the same. Odd: in step with no power of two of the layout.
    """
    return round((total / 16) ** (1 / 3)) | 1


def _ranked(values: np.ndarray, rank: int) -> float:
    """The rank-th smallest value, from 0."""
    return float(np.partition(values, rank)[rank])


def _as_matrix(weight: paddle.Tensor) -> tuple[int, int]:
    height = weight.shape[0] if weight.shape else 1
    return height, size(weight) // height


class Blocks:
    """The rows x columns blocks of a weight seen as the matrix [shape[0], the rest].

    They are ranked by their mean magnitudes, which are computed anew in every pass over them and
    never all there at once. Blocks at the right and lower edge may be smaller.
    """

    dtype = "float32"

    def __init__(self, weight: paddle.Tensor, rows: int, columns: int):
        self.matrix = height, width = _as_matrix(weight)
        self.weight, self.rows, self.columns = weight, min(rows, height), min(columns, width)
        rows, columns = self.rows, self.columns
        self.heights = np.minimum(rows, height - np.arange(0, height, rows)).astype("i4")
        self.widths = np.minimum(columns, width - np.arange(0, width, columns)).astype("i4")
        self.shape = [len(self.heights), len(self.widths)]
        self.place, self.is_contiguous = weight.place, weight.is_contiguous

    def means(self, stride: int = 1) -> Iterator[np.ndarray | paddle.Tensor]:
        """Flat float32 means, of every stride-th block of a piece."""
        if not _on_cpu(self.weight):
            yield self._means_on_device()[::stride]
            return
        bits, dtype = _memory(self.weight).reshape(self.matrix), _dtype(self.weight)
        for blocks in self._pieces():
            rows = slice(blocks.start * self.rows, blocks.stop * self.rows)
            magnitude = _bits_to_magnitude(bits[rows], dtype).astype("f4", copy=False)
            sums = magnitude if self.rows == 1 else magnitude[:: self.rows].copy()
            for i in range(1, min(self.rows, len(magnitude))):
                row = magnitude[i :: self.rows]
                sums[: len(row)] += row
            sums = self._sums_of_columns(sums)
            sums /= self.heights[blocks, None] * self.widths
            yield sums.ravel()[::stride].copy()  # a view would keep all of them

    def _sums_of_columns(self, values: np.ndarray) -> np.ndarray:
        if self.columns > 8:  # below, numpy's own is the slower one
            return np.add.reduceat(values, np.arange(0, values.shape[1], self.columns), axis=1)
        sums = values[:, :: self.columns].copy()
        for j in range(1, min(self.columns, values.shape[1])):
            column = values[:, j :: self.columns]
            sums[:, : column.shape[1]] += column
        return sums

    def _means_on_device(self) -> paddle.Tensor:
        (magnitude,) = _magnitudes(self.weight)
        (height, width), (down, across) = self.matrix, self.shape
        padding = [0, down * self.rows - height, 0, across * self.columns - width]
        magnitude = paddle.nn.functional.pad(magnitude.reshape(self.matrix), padding)
        sums = magnitude.reshape([down, self.rows, across, self.columns]).sum([1, 3])
        sizes = paddle.to_tensor(self.heights[:, None] * self.widths, dtype=sums.dtype)
        return (sums / sizes).astype("float32").flatten()

    def different_sizes(self) -> np.ndarray:
        return np.unique(np.outer(np.unique(self.heights), np.unique(self.widths)))

    def sizes(self) -> Iterator[np.ndarray]:
        """How many weights the blocks of each piece hold."""
        for blocks in self._pieces():
            yield np.outer(self.heights[blocks], self.widths).ravel()

    def _pieces(self) -> Iterator[slice]:
        """Rows of blocks."""
        step = max(1, _PIECE // (self.rows * self.matrix[1]))
        for start in range(0, self.shape[0], step):
            yield slice(start, start + step)


def _smallest_kept_block(groups: list[Blocks], pruned: int) -> tuple[float, int]:
    """Threshold and ties where the blocks differ in size: the smallest have to fit into `pruned`.

    Weights by the upper bits of the mean tell where to stop; only there is it ordered.
    """
    held = np.zeros(1 << 14)
    for means, sizes in _means_and_sizes(groups):
        held += np.bincount(means.view("u4") >> 18, sizes, held.size)
    held = held.cumsum()
    stop = int(np.searchsorted(held, min(pruned, held[-1] - 1), side="right"))
    tied, tied_sizes = [], []
    for means, sizes in _means_and_sizes(groups):
        inside = np.flatnonzero(means.view("u4") >> 18 == stop)
        tied.append(means[inside])
        tied_sizes.append(sizes[inside])
    tied = np.concatenate(tied)
    tied[np.isnan(tied)] = math.inf  # is kept
    order = np.argsort(tied, kind="stable")
    filled = np.concatenate(tied_sizes)[order].cumsum() + (held[stop - 1] if stop else 0)
    fit = int(np.searchsorted(filled, pruned, side="right"))
    threshold = tied[order[min(fit, tied.size - 1)]]
    return float(threshold), fit - np.count_nonzero(tied < threshold)


def _means_and_sizes(groups: list[Blocks]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return (pair for blocks in groups for pair in zip(blocks.means(), blocks.sizes()))


def _smallest_kept_block_on_device(groups: list[Blocks], pruned: int) -> tuple[paddle.Tensor, ...]:
    means = _concatenated(groups)
    sizes = np.concatenate([piece for blocks in groups for piece in blocks.sizes()])
    sizes = paddle.to_tensor(sizes.astype("i8"), place=means.place)
    order = means.argsort()
    filled = paddle.gather(sizes, order).cumsum()
    stop = (filled <= pruned).astype("int64").sum().clip(0, size(means) - 1)
    threshold = paddle.gather(means, paddle.gather(order, stop.reshape([1])))[0]
    smaller = (means < threshold).astype("int64")
    tied = (means <= threshold).astype("int64") - smaller  # the first of these still fit
    filled = (sizes * smaller).sum() + (sizes * tied).cumsum()
    return threshold, (tied * (filled <= pruned).astype("int64")).sum()


def spread_blocks(keep: paddle.Tensor, mask: paddle.Tensor, rows: int, columns: int) -> None:
    """Writes a bool per block into the mask of its weights."""
    height, width = _as_matrix(mask)
    rows, columns = min(rows, height), min(columns, width)
    if _on_cpu(mask, keep):
        blocks, matrix = _memory(keep).reshape(keep.shape), _memory(mask).reshape(height, width)
        for j in range(min(columns, width)):
            first = matrix[::rows, j::columns]
            first[:] = blocks[:, : first.shape[1]]
        for i in range(1, min(rows, height)):
            row = matrix[i::rows]
            row[:] = matrix[::rows][: len(row)]
    else:
        shape = [keep.shape[0], rows, keep.shape[1], columns]
        wide = keep.reshape([shape[0], 1, shape[2], 1]).expand(shape)
        wide = wide.reshape([shape[0] * rows, shape[2] * columns])[:height, :width]
        paddle.assign(wide.reshape(mask.shape), output=mask)
