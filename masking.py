"""All that touches single weights: masks, counts, and the threshold that a ratio needs.

Written twice where numpy and Paddle differ. On the CPU: numpy on the tensors' own memory, a piece
at a time, so that the temporaries stay in cache (a third of the time of Paddle's operators).
Elsewhere: Paddle's operators on whole tensors.
"""

from __future__ import annotations

import ctypes
import math
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
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


def _magnitudes(weight: paddle.Tensor, stride: int = 1) -> Iterator[np.ndarray | paddle.Tensor]:
    """The flat magnitudes of every stride-th weight, in pieces."""
    dtype = _dtype(weight)
    if _on_cpu(weight):
        bits = _memory(weight)[::stride]
        for start in range(0, bits.size, _PIECE):
            yield _bits_to_magnitude(bits[start : start + _PIECE], dtype)
    else:
        values = weight.detach().flatten()[::stride]
        yield (values if dtype == "float64" else values.astype("float32")).abs()


def update_mask(mask: paddle.Tensor, weight: paddle.Tensor, threshold, ties):
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


def smallest_kept(weights: list[paddle.Tensor], pruned: int):
    """What update_mask needs to prune just the `pruned` smallest of all: threshold and ties.

    The threshold is the smallest magnitude that is kept, with nothing to prune 0, with everything
    the largest; the ties are those at it that go all the same. On a device both are tensors.
    """
    total = sum(map(size, weights))
    if pruned == 0:
        return 0.0, 0
    if _on_cpu(*weights):
        threshold, smaller = _kth_magnitude(weights, min(pruned, total - 1))
        return threshold, pruned - smaller
    # All at once: the bracket below would wait for the device once a weight tensor.
    pieces = [magnitude for weight in weights for magnitude in _magnitudes(weight)]
    widest = "float64" if "float64" in map(_dtype, pieces) else "float32"
    magnitude = paddle.concat([piece.astype(widest) for piece in pieces])
    infinity = paddle.full_like(magnitude, math.inf)  # NaN is kept: it has to sort last
    ordered = paddle.where(paddle.isnan(magnitude), infinity, magnitude).sort()
    threshold = ordered[min(pruned, total - 1)]
    return threshold, pruned - (magnitude < threshold).astype("int64").sum()


def _kth_magnitude(weights: list[paddle.Tensor], k: int) -> tuple[float, int]:
    """The k-th smallest magnitude (k from 0) and how many are smaller; exact, and without a sort.

    A sample gives two magnitudes that enclose the wanted one; one pass counts what is below them
    and collects the few between. In the rare case of a miss the bracket is widened.
    """
    total = sum(map(size, weights))
    stride = _sample_stride(total)
    sample = np.concatenate([piece for w in weights for piece in _magnitudes(w, stride)])
    middle, deviation = k / total * sample.size, math.sqrt(sample.size * k * (total - k)) / total
    for width in (4, 64, 1e18):  # standard deviations to either side
        first = max(middle - width * deviation - 1, 0)
        last = min(middle + width * deviation + 1, sample.size - 1)
        first, last = int(first), int(last)
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


def _sample_stride(total: int) -> int:
    """Every so many weights make a sample of n = (4 total)^(2/3).

    A bracket of +-4 standard deviations around the middle then holds 4 total / sqrt(n) = n weights:
    the sample and what is between cost the same. Odd: in step with no power of two of the layout.
    """
    return round((total / 16) ** (1 / 3)) | 1


def _ranked(values: np.ndarray, rank: int) -> float:
    """The rank-th smallest value, from 0."""
    return float(np.partition(values, rank)[rank])


def block_means(weight: paddle.Tensor, rows: int, columns: int) -> paddle.Tensor:
    """Mean magnitude of every rows x columns block of the weight seen as [shape[0], the rest].

    Float32 [ceil(shape[0] / rows), ceil(rest / columns)]; blocks at the edge are smaller.
    """
    height, width = weight.shape[0], size(weight) // weight.shape[0]
    shape = [-(-height // rows), -(-width // columns)]
    if _on_cpu(weight):
        means = paddle.empty(shape, "float32")  # of numpy's memory it would be a copy
        sums = _memory(means).view("f4").reshape(shape)
        sums[:] = 0
        bits = _memory(weight).reshape(height, width)
        step = rows * max(1, _PIECE // (rows * width))
        for top in range(0, height, step):
            magnitude = _bits_to_magnitude(bits[top : top + step], _dtype(weight))
            piece = sums[top // rows : (top + step) // rows]
            for i in range(min(rows, len(magnitude))):
                for j in range(min(columns, width)):
                    part = magnitude[i::rows, j::columns]
                    piece[: part.shape[0], : part.shape[1]] += part
        sums[:-1, :-1] /= rows * columns
        sums[-1, :-1] /= (height - 1) % rows * columns + columns
        sums[:-1, -1] /= (width - 1) % columns * rows + rows
        sums[-1, -1] /= ((height - 1) % rows + 1) * ((width - 1) % columns + 1)
        return means
    (magnitude,) = _magnitudes(weight)
    padding = [0, shape[0] * rows - height, 0, shape[1] * columns - width]
    magnitude = paddle.nn.functional.pad(magnitude.reshape([height, width]), padding)
    sums = magnitude.reshape([shape[0], rows, shape[1], columns]).sum([1, 3])
    return sums / paddle.to_tensor(block_sizes(weight.shape, rows, columns), dtype=sums.dtype)


def block_sizes(shape: list[int], rows: int, columns: int) -> np.ndarray:
    """How many weights each of those blocks holds."""
    height, width = shape[0], math.prod(shape[1:])
    if height % rows == 0 == width % columns:  # one number, seen as an array
        return np.broadcast_to(np.int32(rows * columns), (height // rows, width // columns))
    heights = np.minimum(rows, height - np.arange(0, height, rows)).astype("i4")
    widths = np.minimum(columns, width - np.arange(0, width, columns)).astype("i4")
    return np.outer(heights, widths)


def blocks_within(scores: list[paddle.Tensor], sizes: list[np.ndarray], pruned: int) -> int:
    """How many of the blocks with the smallest scores hold at most `pruned` weights together."""
    largest = max(s.max() for s in sizes)
    if largest == min(s.min() for s in sizes):
        return pruned // int(largest)
    # Weights by the upper half of the score's bits tell where to stop; only there is it ordered.
    upper = [s.astype("float32").abs().numpy().ravel().view("u4") >> 16 for s in scores]
    held = sum(np.bincount(u, s.ravel(), 1 << 16) for u, s in zip(upper, sizes)).cumsum()
    stop = int(np.searchsorted(held, pruned, side="right"))
    if stop == held.size:
        return sum(s.size for s in sizes)
    inside = [np.flatnonzero(u == stop) for u in upper]
    tied = np.concatenate([s.numpy().ravel()[i] for s, i in zip(scores, inside)])
    order = np.argsort(tied, kind="stable")
    counts = np.concatenate([s.ravel()[i] for s, i in zip(sizes, inside)])[order].cumsum()
    left = pruned - (held[stop - 1] if stop else 0)
    before = sum(np.count_nonzero(u < stop) for u in upper)
    return before + int(np.searchsorted(counts, left, side="right"))


def spread_blocks(keep: paddle.Tensor, mask: paddle.Tensor, rows: int, columns: int) -> None:
    """Writes a bool per block into the mask of its weights."""
    height, width = mask.shape[0], size(mask) // mask.shape[0]
    if _on_cpu(mask):
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
