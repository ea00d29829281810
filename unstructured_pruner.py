"""Unstructured (weight-by-weight) pruning of a network while it trains.

    pruner = UnstructuredPruner(model, mode="ratio", ratio=0.55)
    for images, labels in loader:
        loss = loss_fn(model(images), labels)
        loss.backward()
        opt.step()
        pruner.step()       # new masks from the new weights; masked weights become 0
        opt.clear_grad()
    print(pruner)           # sparsity of every layer

One rule: keep a weight if |w| >= threshold. Threshold mode is given the threshold, ratio mode finds
the one that prunes exactly `round(ratio * weights)`. Names and meanings are those of
`paddleslim.UnstructuredPruner`. There are no hooks and the model's `state_dict()` holds nothing of
the pruner's: a pruned model is a plain model with zeros in it.
"""

from __future__ import annotations

import ctypes
import difflib
import math
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from collections.abc import Iterator

import numpy as np
import paddle
from paddle import nn

NORMS = (
    nn.BatchNorm,
    nn.BatchNorm1D,
    nn.BatchNorm2D,
    nn.BatchNorm3D,
    nn.SyncBatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.InstanceNorm1D,
    nn.InstanceNorm2D,
    nn.InstanceNorm3D,
    nn.LocalResponseNorm,
    nn.SpectralNorm,
)


class UnstructuredPruner:
    """Keeps one bool mask per prunable parameter, and its masked weights at 0.

    Args:
        model: any `paddle.nn.Layer`, also wrapped in `paddle.DataParallel`. Weights may be float16,
            bfloat16, float32 or float64; a weight that two layers share is pruned once.
        mode: 'threshold' keeps |w| >= `threshold`; 'ratio' prunes the `round(ratio * n)` smallest
            of all n prunable weights at every step (of equal magnitudes the first in parameter
            order), zeros included.
        threshold: a magnitude >= 0. In ratio mode it is overwritten at every step.
        ratio: the fraction of prunable weights to prune, in [0, 1].
        prune_params_type: only None so far.
        skip_params_func: `f(model) -> names` not to prune, in place of the default (normalisation
            layers, and parameters of fewer than two dimensions). A name is that of a parameter or a
            layer, structured ('conv1.weight', 'conv1') or Paddle's own ('conv2d_0.w_0',
            'conv2d_0'); a layer's name stands for all parameters in it.
        local_sparsity, sparse_block: only False and [1, 1] so far.

    A strategy of one's own overrides `mask_parameters()` and/or, in ratio mode,
    `update_threshold()`, as in PaddleSlim.

    Raises:
        ValueError: an argument out of range, a name that is not in the model, nothing to prune.
    """

    def __init__(
        self,
        model: nn.Layer,
        mode: str,
        threshold: float = 0.01,
        ratio: float = 0.55,
        prune_params_type: str | None = None,
        skip_params_func=None,
        local_sparsity: bool = False,
        sparse_block=(1, 1),
    ):
        if mode not in ("ratio", "threshold"):
            raise ValueError(f"mode must be 'ratio' or 'threshold', got {mode!r}")
        if not 0 <= threshold < math.inf:
            raise ValueError(f"threshold must be a finite number >= 0, got {threshold}")
        _check_ratio(ratio)
        if prune_params_type is not None:
            raise NotImplementedError(f"prune_params_type={prune_params_type!r}")
        if local_sparsity:
            raise NotImplementedError("local_sparsity=True")
        if list(sparse_block) != [1, 1]:
            raise NotImplementedError(f"sparse_block={sparse_block}")
        self.model = model
        self.mode = mode
        self.threshold = threshold
        self.ratio = ratio
        self.local_sparsity = local_sparsity
        self.sparse_block = list(sparse_block)
        self.thresholds: dict[str, float] = {}
        layers = _unwrap(model)
        self.skip_params = set((skip_params_func or default_skip_params)(layers))
        self._weights = prunable_parameters(layers, self.skip_params)
        self.masks = {
            name: paddle.ones_like(weight, dtype="bool") for name, weight in self._weights.items()
        }
        self._static = False
        self._ties = 0  # of the weights at the threshold, how many to prune all the same

    @paddle.no_grad()
    def step(self) -> None:
        """New masks from the current weights, applied. To be called after every `opt.step()`."""
        if not self._static:
            self._ties = 0
            if self.mode == "ratio":
                self.update_threshold()
            threshold, ties = float(self.threshold), self._ties  # a strategy's may be a tensor
            for name, weight in self._weights.items():
                ties = _update_mask(self.masks[name], weight, threshold, ties)
        self.update_params()

    @paddle.no_grad()
    def update_params(self) -> None:
        """Sets every masked weight to 0. Idempotent."""
        custom = type(self).mask_parameters is not UnstructuredPruner.mask_parameters
        for name, weight in self._weights.items():
            if custom:  # float * bool is an error on Paddle 3
                self.mask_parameters(weight, self.masks[name].astype(weight.dtype))
            else:
                _zero_masked(weight, self.masks[name])

    def update_threshold(self) -> None:
        """Ratio mode: sets `threshold` to the smallest magnitude to keep.

        An overriding method sets `self.threshold`, which then decides alone: every weight at it is
        kept. (This one also counts the weights at the threshold that have to go for the exact
        ratio.)
        """
        _check_ratio(self.ratio)
        weights = list(self._weights.values())
        pruned = round(self.ratio * sum(map(_size, weights)))
        self.threshold, smaller = _smallest_kept(weights, pruned)
        if type(self).update_threshold is UnstructuredPruner.update_threshold:
            self._ties = pruned - smaller

    @paddle.no_grad()
    def mask_parameters(self, param, mask) -> None:
        """Sets `param` to 0, in place, where `mask` (bool, or 0 and 1 in any dtype) is 0."""
        _zero_masked(param, mask.astype("bool"))

    @paddle.no_grad()
    def set_static_masks(self) -> None:
        """Freezes the zeros that the prunable weights hold now: `step()` then only applies them."""
        for name, weight in self._weights.items():
            paddle.assign(weight.astype("bool"), output=self.masks[name])
        self._static = True

    def summarize_weights(self, model: nn.Layer, ratio: float = 0.1) -> float:
        """The threshold that prunes `ratio` of the model's weights that are prunable by default."""
        _check_ratio(ratio)
        weights = list(prunable_parameters(model).values())
        return _smallest_kept(weights, round(ratio * sum(map(_size, weights))))[0]

    @staticmethod
    def total_sparse(model: nn.Layer) -> float:
        """Zeros over all parameters, norms and biases included, as a fraction."""
        return sparsity(dict(_unwrap(model).named_parameters()))

    @staticmethod
    def total_sparse_conv1x1(model: nn.Layer) -> float:
        """Zeros over the weights of all 1x1 convolutions; 0.0 where there are none."""
        return sparsity(
            {
                name: weight
                for name, weight in _unwrap(model).named_parameters()
                if len(weight.shape) == 4 and list(weight.shape[2:]) == [1, 1]
            }
        )

    def prunable_sparsity(self) -> float:
        """Zeros over the prunable weights, as a fraction."""
        return sparsity(self._weights)

    def state_dict(self) -> dict:
        """What a resumed run needs besides the weights: masks (bool tensors), threshold, static."""
        return {"masks": dict(self.masks), "threshold": self.threshold, "static": self._static}

    def set_state_dict(self, state: dict) -> None:
        """Takes a `state_dict()`, whose masks may also be numpy arrays, and applies its masks.

        Raises:
            ValueError: the masks are not those of this model.
        """
        wanted = {name: list(mask.shape) for name, mask in self.masks.items()}
        given = {name: list(mask.shape) for name, mask in state["masks"].items()}
        if given != wanted:
            names = sorted(n for n in {*given, *wanted} if given.get(n) != wanted.get(n))
            raise ValueError(f"these masks do not fit the model: {', '.join(names)}")
        for name, mask in self.masks.items():
            paddle.assign(paddle.to_tensor(state["masks"][name]).astype("bool"), output=mask)
        self.threshold, self._static = state["threshold"], state["static"]
        self.update_params()

    def __str__(self) -> str:
        return sparsity_table(_unwrap(self.model), self._weights)


def default_skip_params(model: nn.Layer) -> set[str]:
    """Structured names of what is not pruned: normalisation layers, parameters below two dims."""
    skipped = {name for name, p in model.named_parameters() if len(p.shape) < 2}
    for prefix, layer in model.named_sublayers(include_self=True):
        if isinstance(layer, NORMS):
            skipped.update(name for name, _ in layer.named_parameters(prefix=prefix))
    return skipped


def prunable_parameters(model: nn.Layer, skip_params=None) -> dict[str, paddle.Tensor]:
    """Structured name -> parameter, in the model's order, each once, without the skipped ones.

    Raises:
        ValueError: a skipped name is not in the model, or nothing is left to prune.
    """
    model = _unwrap(model)
    skip_params = default_skip_params(model) if skip_params is None else skip_params
    owned: dict[str, set[int]] = {}  # every name something goes by -> ids of the parameters meant
    for prefix, layer in model.named_sublayers(include_self=True):
        ids = {id(p) for p in layer.parameters()}
        for name in (prefix, layer.full_name()):
            owned.setdefault(name, set()).update(ids)
        for name, p in layer.named_parameters(prefix=prefix, include_sublayers=False):
            for alias in (name, p.name):
                owned.setdefault(alias, set()).add(id(p))
    skipped: set[int] = set()
    for name in skip_params:
        if name not in owned:
            close = difflib.get_close_matches(name, owned, n=3, cutoff=0.3)
            raise ValueError(f"no layer or parameter is named {name!r}; close: {', '.join(close)}")
        skipped |= owned[name]
    weights = {
        name: p
        for name, p in model.named_parameters()
        if id(p) not in skipped and p.is_floating_point() and _size(p)
    }
    if not weights:
        raise ValueError("there is nothing to prune: every parameter of the model is skipped")
    return weights


def sparsity(parameters: dict[str, paddle.Tensor]) -> float:
    """Zeros over all weights of the parameters, as a fraction; 0.0 where there are no weights."""
    total = sum(_size(p) for p in parameters.values())
    return sum(_zeros(p) for p in parameters.values()) / total if total else 0.0


def sparsity_table(model: nn.Layer, prunable: dict[str, paddle.Tensor]) -> str:
    """A line for each prunable parameter, then for all of those, the rest, and everything."""
    rows = [(name, str(list(p.shape)), _size(p), _zeros(p)) for name, p in prunable.items()]
    everything = dict(_unwrap(model).named_parameters()).values()
    weights, zeros = sum(row[2] for row in rows), sum(row[3] for row in rows)
    all_weights, all_zeros = sum(map(_size, everything)), sum(map(_zeros, everything))
    rows.append(("prunable", "", weights, zeros))
    rows.append(("not pruned", "", all_weights - weights, all_zeros - zeros))
    rows.append(("all", "", all_weights, all_zeros))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'layer':{width}} {'shape':>20} {'weights':>12} {'zeros':>12} {'sparsity':>8}"]
    for name, shape, size, zero in rows:
        fraction = f"{zero / size:8.2%}" if size else f"{'-':>8}"
        lines.append(f"{name:{width}} {shape:>20} {size:12,} {zero:12,} {fraction}")
    return "\n".join(lines)


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")


def _unwrap(model: nn.Layer) -> nn.Layer:
    return model._layers if isinstance(model, paddle.DataParallel) else model


def _size(tensor: paddle.Tensor | np.ndarray) -> int:
    return math.prod(tensor.shape)


def _zeros(tensor: paddle.Tensor) -> int:
    # Paddle's == and != take numbers below 1e-8 (2.6) or 1e-15 (3.3) for 0; the cast does not.
    return _size(tensor) - int(_count(tensor.astype("bool")))


# What follows is all that touches single weights, written twice where numpy and Paddle differ.
# On the CPU: numpy on the tensors' own memory, a piece at a time, so that the temporaries stay in
# cache (a third of the time of Paddle's operators). Elsewhere: Paddle's operators, whole tensors.

_PIECE = 1 << 16  # weights: 256 KB of float32
_SAMPLE = 1 << 16  # weights looked at to guess where a quantile lies
_BITS = {"bfloat16": "u2", "float16": "u2", "float32": "u4", "float64": "u8", "bool": "?"}


def _dtype(tensor: paddle.Tensor) -> str:
    return str(tensor.dtype).split(".")[-1]


def _on_cpu(tensor: paddle.Tensor) -> bool:
    return tensor.place.is_cpu_place() and tensor.is_contiguous()


def _memory(tensor: paddle.Tensor) -> np.ndarray:
    """A CPU tensor's own memory as flat numpy bits (no copy; not to be kept beyond the tensor)."""
    kind = np.dtype(_BITS[_dtype(tensor)])
    memory = (ctypes.c_char * (_size(tensor) * kind.itemsize)).from_address(tensor.data_ptr())
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


def _update_mask(mask: paddle.Tensor, weight: paddle.Tensor, threshold: float, ties: int) -> int:
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


def _zero_masked(weight: paddle.Tensor, mask: paddle.Tensor) -> None:
    """weight = 0, in place, where the bool mask is False."""
    if _on_cpu(weight):
        # The bit pattern times 0 or 1: +0.0 also for a weight that is negative, infinite or NaN.
        bits, keep = _memory(weight), _memory(mask)
        for start in range(0, bits.size, _PIECE):
            bits[start : start + _PIECE] *= keep[start : start + _PIECE]
    else:
        paddle.assign(paddle.where(mask, weight, paddle.zeros_like(weight)), output=weight)


def _smallest_kept(weights: list[paddle.Tensor], pruned: int) -> tuple[float, int]:
    """The smallest magnitude left when the `pruned` smallest go, and how many are below it.

    With nothing to prune it is 0; with everything to prune, just above the largest.
    """
    total = sum(map(_size, weights))
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
    total = sum(map(_size, weights))
    stride = total // _SAMPLE | 1  # odd: in step with no power of two of the layout
    sample = _joined([values for weight in weights for values in _magnitudes(weight, stride)])
    seen = _size(sample)
    middle, deviation = k / total * seen, math.sqrt(seen * k * (total - k)) / total
    for width in (4, 64, math.inf):  # standard deviations to either side
        first, last = middle - width * deviation - 1, middle + width * deviation + 1
        lower = _ranked(sample, int(first)) if first > 0 else 0.0
        upper = _ranked(sample, int(last)) if last < seen - 1 else math.inf
        below, up_to, between = 0, 0, []  # counts of < lower and <= lower; no ==, see _zeros
        for weight in weights:
            for magnitude in _magnitudes(weight):
                low, high = _bound(lower, magnitude), _bound(upper, magnitude)
                below += _count(magnitude < low)
                up_to += _count(magnitude <= low)
                between.append(magnitude[(magnitude > low) & (magnitude < high)])
        below, up_to = int(below), int(up_to)
        if below <= k < up_to:
            return lower, below
        if up_to <= k < up_to + sum(map(_size, between)):
            between = _joined(between)
            kth = _ranked(between, k - up_to)
            return kth, up_to + int(_count(between < _bound(kth, between)))
    return math.inf, up_to + sum(map(_size, between))  # there are fewer finite weights than k


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
