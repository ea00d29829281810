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

import difflib
import math
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import paddle
from paddle import nn

import masking

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
                ties = masking.update_mask(self.masks[name], weight, threshold, ties)
        self.update_params()

    @paddle.no_grad()
    def update_params(self) -> None:
        """Sets every masked weight to 0. Idempotent."""
        custom = type(self).mask_parameters is not UnstructuredPruner.mask_parameters
        for name, weight in self._weights.items():
            if custom:  # float * bool is an error on Paddle 3
                self.mask_parameters(weight, self.masks[name].astype(weight.dtype))
            else:
                masking.zero_masked(weight, self.masks[name])

    def update_threshold(self) -> None:
        """Ratio mode: sets `threshold` to the smallest magnitude to keep.

        An overriding method sets `self.threshold`, which then decides alone: every weight at it is
        kept. (This one also counts the weights at the threshold that have to go for the exact
        ratio.)
        """
        _check_ratio(self.ratio)
        weights = list(self._weights.values())
        pruned = round(self.ratio * sum(map(masking.size, weights)))
        self.threshold, smaller = masking.smallest_kept(weights, pruned)
        if type(self).update_threshold is UnstructuredPruner.update_threshold:
            self._ties = pruned - smaller

    @paddle.no_grad()
    def mask_parameters(self, param, mask) -> None:
        """Sets `param` to 0, in place, where `mask` (bool, or 0 and 1 in any dtype) is 0."""
        masking.zero_masked(param, mask.astype("bool"))

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
        return masking.smallest_kept(weights, round(ratio * sum(map(masking.size, weights))))[0]

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
        if id(p) not in skipped and p.is_floating_point() and masking.size(p)
    }
    if not weights:
        raise ValueError("there is nothing to prune: every parameter of the model is skipped")
    return weights


def sparsity(parameters: dict[str, paddle.Tensor]) -> float:
    """Zeros over all weights of the parameters, as a fraction; 0.0 where there are no weights."""
    total = sum(masking.size(p) for p in parameters.values())
    return sum(masking.zeros(p) for p in parameters.values()) / total if total else 0.0


def sparsity_table(model: nn.Layer, prunable: dict[str, paddle.Tensor]) -> str:
    """A line for each prunable parameter, then for all of those, the rest, and everything."""
    rows = [
        (name, str(list(p.shape)), masking.size(p), masking.zeros(p))
        for name, p in prunable.items()
    ]
    everything = dict(_unwrap(model).named_parameters()).values()
    weights, zeros = sum(row[2] for row in rows), sum(row[3] for row in rows)
    all_weights, all_zeros = sum(map(masking.size, everything)), sum(map(masking.zeros, everything))
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
