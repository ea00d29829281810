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
    return size(tensor) - int(_count(tensor.astype("bool")))


def _dtype(tensor: paddle.Tensor) -> str:
    return str(tensor.dtype).split(".")[-1]


def _on_cpu(tensor: paddle.Tensor) -> bool:
    return tensor.place.is_cpu_place() and tensor.is_contiguous()


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


def update_mask(mask: paddle.Tensor, weight: paddle.Tensor, threshold: float, ties: int) -> int:
    """mask = |weight| >= threshold, but for the first `ties` weights at it; returns ties left.

    (Written as "not smaller", so that a NaN is kept: a broken weight should be seen.)
    """
    if _on_cpu(weight):
        keep, start = _memory(mask), 0
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
    threshold = _bound(threshold, magnitude)
    keep = paddle.logical_not(magnitude < threshold)
    if ties:
        tied = keep & (magnitude <= threshold)
        order = tied.astype("int64").cumsum()
        keep = keep & paddle.logical_not(tied & (order <= ties))
        ties = max(0, ties - int(order[-1]))
    paddle.assign(keep.reshape(weight.shape), output=mask)
    return ties


def zero_masked(weight: paddle.Tensor, mask: paddle.Tensor) -> None:
    """weight = 0, in place, where the bool mask is False."""
    if _on_cpu(weight):
        # The bit pattern times 0 or 1: +0.0 also for a weight that is negative, infinite or NaN.
        bits, keep = _memory(weight), _memory(mask)
        for start in range(0, bits.size, _PIECE):
            bits[start : start + _PIECE] *= keep[start : start + _PIECE]
    else:
        paddle.assign(paddle.where(mask, weight, paddle.zeros_like(weight)), output=weight)


def smallest_kept(weights: list[paddle.Tensor], pruned: int) -> tuple[float, int]:
    """The smallest magnitude left when the `pruned` smallest go, and how many are below it.

    With nothing to prune it is 0; with everything to prune, just above the largest.
    """
    total = sum(map(size, weights))
    if pruned == 0:
        return 0.0, 0
    if pruned == total:
        largest, smaller = _kth_magnitude(weights, total - 1)
        if largest < math.inf:
            return float(np.nextafter(np.float32(largest), np.float32(np.inf))), total
        return largest, smaller
    return _kth_magnitude(weights, pruned)


def _kth_magnitude(weights: list[paddle.Tensor], k: int) -> tuple[float, int]:
    """The k-th smallest magnitude (k from 0) and how many are smaller; exact, and without a sort.

    A sample gives two magnitudes that enclose the wanted one; one pass counts what is below them
    and collects the few between. In the rare case of a miss the bracket is widened.
    """
    total = sum(map(size, weights))
    stride = _sample_stride(total)
    sample = _joined([values for weight in weights for values in _magnitudes(weight, stride)])
    seen = size(sample)
    middle, deviation = k / total * seen, math.sqrt(seen * k * (total - k)) / total
    for width in (4, 64, math.inf):  # standard deviations to either side
        first, last = middle - width * deviation - 1, middle + width * deviation + 1
        lower = _ranked(sample, int(first)) if first > 0 else 0.0
        upper = _ranked(sample, int(last)) if last < seen - 1 else math.inf
        below, up_to, between = 0, 0, []  # counts of < lower and <= lower; no ==, see zeros
        for weight in weights:
            for magnitude in _magnitudes(weight):
                low, high = _bound(lower, magnitude), _bound(upper, magnitude)
                below += _count(magnitude < low)
                up_to += _count(magnitude <= low)
                between.append(magnitude[(magnitude > low) & (magnitude < high)])
        below, up_to = int(below), int(up_to)
        if below <= k < up_to:
            return lower, below
        if up_to <= k < up_to + sum(map(size, between)):
            between = _joined(between)
            kth = _ranked(between, k - up_to)
            return kth, up_to + int(_count(between < _bound(kth, between)))
    return math.inf, up_to + sum(map(size, between))  # there are fewer finite weights than k


def _sample_stride(total: int) -> int:
    """Every so many weights make a sample of n = (4 total)^(2/3).

    A bracket of +-4 standard deviations around the middle then holds 4 total / sqrt(n) = n weights:
    the sample and what is between cost the same. Odd: in step with no power of two of the layout.
    """
    return round((total / 16) ** (1 / 3)) | 1


def _count(flags: np.ndarray | paddle.Tensor) -> int | paddle.Tensor:
    """How many are true; of a tensor without waiting for the device."""
    return np.count_nonzero(flags) if isinstance(flags, np.ndarray) else paddle.count_nonzero(flags)


def _bound(value: float, magnitudes: np.ndarray | paddle.Tensor) -> float | paddle.Tensor:
    """`value` to compare with: Paddle 2.6 rounds a number to float32 beside a float64 tensor."""
    if isinstance(magnitudes, np.ndarray):
        return value
    return paddle.full([], value, magnitudes.dtype)


def _joined(pieces: list[np.ndarray] | list[paddle.Tensor]) -> np.ndarray | paddle.Tensor:
    return np.concatenate(pieces) if isinstance(pieces[0], np.ndarray) else paddle.concat(pieces)


def _ranked(values: np.ndarray | paddle.Tensor, rank: int) -> float:
    """The rank-th smallest value, from 0."""
    if isinstance(values, np.ndarray):
        return float(np.partition(values, rank)[rank])
    return float(values.sort()[rank])


def block_means(weight: paddle.Tensor, rows: int, columns: int) -> paddle.Tensor:
    """Mean magnitude of every rows x columns block of the weight seen as [shape[0], the rest].

    Float32 [ceil(shape[0] / rows), ceil(rest / columns)]; blocks at the edge are smaller.
    """
    height, width = weight.shape[0], size(weight) // weight.shape[0]
    shape = [-(-height // rows), -(-width // columns)]
    if _on_cpu(weight):
        magnitude = np.concatenate(list(_magnitudes(weight))).reshape(height, width)
        sums = np.zeros(shape, "f4")
        for i in range(min(rows, height)):
            for j in range(min(columns, width)):
                part = magnitude[i::rows, j::columns]
                sums[: part.shape[0], : part.shape[1]] += part
        sums = paddle.to_tensor(sums, place=paddle.CPUPlace())
    else:
        (magnitude,) = _magnitudes(weight)
        padding = [0, shape[0] * rows - height, 0, shape[1] * columns - width]
        magnitude = paddle.nn.functional.pad(magnitude.reshape([height, width]), padding)
        sums = magnitude.reshape([shape[0], rows, shape[1], columns]).sum([1, 3])
    return sums / paddle.to_tensor(block_sizes(weight.shape, rows, columns), dtype=sums.dtype)


def block_sizes(shape: list[int], rows: int, columns: int) -> np.ndarray:
    """How many weights each of those blocks holds."""
    height, width = shape[0], math.prod(shape[1:])
    heights = np.minimum(rows, height - np.arange(0, height, rows))
    widths = np.minimum(columns, width - np.arange(0, width, columns))
    return np.outer(heights, widths)


def blocks_within(scores: list[paddle.Tensor], sizes: list[np.ndarray], pruned: int) -> int:
    """How many of the blocks with the smallest scores hold at most `pruned` weights together."""
    sizes = np.concatenate([s.ravel() for s in sizes])
    if sizes.min() == sizes.max():
        return pruned // int(sizes[0])
    order = paddle.argsort(_joined([s.flatten() for s in scores]), stable=True).numpy()
    return int(np.searchsorted(np.cumsum(sizes[order]), pruned, side="right"))


def spread_blocks(keep: paddle.Tensor, mask: paddle.Tensor, rows: int, columns: int) -> None:
    """Writes a bool per block into the mask of its weights."""
    height, width = mask.shape[0], size(mask) // mask.shape[0]
    if _on_cpu(mask):
        blocks = _memory(keep).reshape(keep.shape)
        wide = np.repeat(blocks, columns, axis=1)[:, :width]
        _memory(mask)[:] = np.repeat(wide, rows, axis=0)[:height].reshape(-1)
    else:
        shape = [keep.shape[0], rows, keep.shape[1], columns]
        wide = keep.reshape([shape[0], 1, shape[2], 1]).expand(shape)
        wide = wide.reshape([shape[0] * rows, shape[2] * columns])[:height, :width]
        paddle.assign(wide.reshape(mask.shape), output=mask)
