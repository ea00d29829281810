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

import math
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import numpy as np
import paddle
from paddle import nn

from unstructured_pruning import checks, masking, moments, schedules
from unstructured_pruning.blocks import Blocks, size
from unstructured_pruning.floors import Floors
from unstructured_pruning.parameters import (
    NORMS,  # noqa: F401
    Parts,
    default_skip_params,
    is_conv1x1,
    lost_channels,
    prunable_parameters,
    skip_all_but_conv1x1,
    sparsity,
    sparsity_table,
    unwrap,
)


class UnstructuredPruner:
    """Keeps one bool mask per prunable parameter, and its masked weights at 0.

    Args:
        model: any `paddle.nn.Layer`, also wrapped in `paddle.DataParallel`. Weights may be float16,
            bfloat16, float32 or float64; a weight that two layers share is pruned once. Frozen
            weights (stop_gradient) are pruned too, as by PaddleSlim; to skip them:
            skip_params_func=lambda model: default_skip_params(model)
            | {name for name, p in model.named_parameters() if p.stop_gradient}
        mode: 'threshold' keeps |w| >= `threshold`; 'ratio' prunes the `round(ratio * n)` smallest
            of all n prunable weights at every step (of equal magnitudes the first in parameter
            order), zeros included.
        threshold: a magnitude >= 0. In ratio mode it is overwritten at every step.
        ratio: the fraction of prunable weights to prune, in [0, 1].
        prune_params_type: 'conv1x1_only' prunes just the weights of 1x1 convolutions.
        skip_params_func: `f(model) -> names` not to prune, in place of the default (normalisation
            layers, and parameters of fewer than two dimensions) and of `prune_params_type`. A name
            is that of a parameter or a layer, structured ('conv1.weight', 'conv1') or Paddle's own
            ('conv2d_0.w_0', 'conv2d_0'); a layer's name stands for all parameters in it, a
            full_name() for all copies of a layer, which share it. A name that means other
            parameters as a structured name than as Paddle's own ('linear_1') is refused.
        local_sparsity: ratio mode prunes every parameter at `ratio`; the same as 'uniform' below.
        sparse_block: [m, n]: the m x n blocks of a weight, seen as a matrix [shape[0], the rest],
            are pruned or kept whole, by their mean magnitude. A ratio counts weights: as many
            blocks go as fit into it.
        distribution: of the ratio over the parameters: 'global' (one threshold for all), 'uniform'
            (every parameter at `ratio`), 'erk' (Erdos-Renyi-kernel, `schedules.erk_ratios`), or
            a dict from shell patterns of structured names to ratios ({'features.*': 0.6}), in
            which case `ratio` becomes the ratio of them all.
        prune_period: new masks at every so many steps; weights are masked at every step.
        min_layer_density, min_channel_density: the part of its weights, in [0, 1], that every
            parameter, and every output channel of it, keeps at least (the largest; their number is
            rounded up), so that none is pruned away whole. A ratio is met exactly all the same.
        optimizer: where given, its moments (momentum) of pruned weights are set to 0 as well, and
            its float32 originals of 16-bit weights (multi_precision). Step counters and learning
            rates stay, so that kept weights move as without it. `unstructured_pruning/moments.py`
            has what is cleared of which one; Lamb, LBFGS and other libraries' are refused.

    A strategy of one's own overrides `scores()`, or as in PaddleSlim `mask_parameters()` and/or,
    in ratio mode, `update_threshold()`.

    Layers replaced later, weight_norm() and the like need a new pruner: `step()` and `print()`
    raise a ValueError that says so. (A parameter added to a layer that had none goes unnoticed.)

    Raises:
        ValueError: an argument out of range, a ratio beyond what the least densities allow, a name
            that is not in the model or means two things, nothing to prune, static-graph mode, a
            model that is no `paddle.nn.Layer`.
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
        *,
        distribution: str | dict[str, float] = "global",
        prune_period: int = 1,
        min_layer_density: float = 0.0,
        min_channel_density: float = 0.0,
        optimizer: paddle.optimizer.Optimizer | None = None,
    ):
        checks.check_arguments(
            mode, threshold, ratio, prune_params_type, sparse_block, prune_period
        )
        own_threshold = self._overrides("update_threshold")
        checks.check_distribution(distribution, mode, local_sparsity, own_threshold)
        layers = unwrap(model)
        if skip_params_func is None:
            skip_params_func = skip_all_but_conv1x1 if prune_params_type else default_skip_params
        self.model, self.mode = model, mode
        self.threshold, self.ratio = threshold, ratio
        self.local_sparsity = local_sparsity
        self.sparse_block = [int(n) for n in sparse_block]
        self.distribution = "uniform" if local_sparsity else distribution
        self.prune_period, self.optimizer = prune_period, optimizer
        self._moments = () if optimizer is None else moments.moments_of(optimizer)
        self.thresholds: dict[str, float] = {}  # of each parameter, unless there is one for all
        self.iteration = 0  # steps taken
        self.skip_params = set(skip_params_func(layers))
        self._weights = prunable_parameters(layers, self.skip_params)
        self._shapes = {name: list(weight.shape) for name, weight in self._weights.items()}
        self._parts = Parts(layers, self._weights, skip_params_func)
        if mode == "ratio" and self.distribution == "global" and self.sparse_block == [1, 1]:
            checks.check_dtypes(self._weights)
        self.masks = {n: paddle.ones_like(w, dtype="bool") for n, w in self._weights.items()}
        if isinstance(distribution, dict):
            ratios = schedules.pattern_ratios(list(self.masks), distribution)
            self.ratio = schedules.mean_ratio(ratios, self._shapes)
        self._static, self._floors = False, None
        if min_layer_density or min_channel_density:
            checks.check_densities(min_layer_density, min_channel_density, self.sparse_block)
            self._floors = Floors(layers, self._weights, min_layer_density, min_channel_density)
            if mode == "ratio" and not own_threshold:
                self._pruned_counts()  # refuses a ratio that is too high

    @paddle.no_grad()
    def step(self) -> None:
        """New masks from the current weights, applied. To be called after every `opt.step()`."""
        self._parts.check()
        if not self._static and self._new_masks_due():
            self._update_masks()
        self.iteration += 1
        self.update_params()

    def _new_masks_due(self) -> bool:
        return self.iteration % self.prune_period == 0

    def _update_masks(self) -> None:
        scores = self._all_scores()
        self.thresholds = {}
        if self.mode == "ratio" and not self._overrides("update_threshold"):
            self._show(found := self._thresholds(scores))
        else:
            if self.mode == "ratio":
                self.update_threshold()
            found = {tuple(scores): (self.threshold, 0)}
        for names, (threshold, ties) in found.items():
            for name in names:
                score, mask = scores[name], self.masks[name]
                ties = masking.place_of(score, mask).update_mask(mask, score, threshold, ties)

    def _thresholds(self, scores: dict[str, paddle.Tensor | Blocks]) -> dict:
        """{names that share a threshold: (threshold, how many scores at it are pruned, too)}"""
        pruned, place = self._pruned_counts(), masking.place_of(*scores.values())
        ranked = [[scores[name] for name in names] for names in pruned]
        return dict(zip(pruned, place.smallest_kept(ranked, list(pruned.values()))))

    def _pruned_counts(self) -> dict[tuple[str, ...], int]:
        """{names that share a threshold: how many of their weights are pruned}"""
        checks.check_ratio(self.ratio)
        pruned = schedules.pruned_counts(self.distribution, self._shapes, self.layer_ratios())
        if self._floors is not None:
            self._floors.check(self.distribution, self.ratio, pruned)
        return pruned

    def _show(self, found: dict) -> None:
        if self.distribution == "global":
            ((self.threshold, _),) = found.values()
        else:
            self.thresholds = {name: threshold for (name,), (threshold, _) in found.items()}

    def _overrides(self, hook: str) -> bool:
        """Whether a strategy has this method of its own."""
        return getattr(getattr(self, hook), "__func__", None) is not OURS[hook]

    def _all_scores(self) -> dict[str, paddle.Tensor | Blocks]:
        """What is ranked, by name: scores of weights or blocks."""
        custom, result = self._overrides("scores"), {}
        for name, weight in self._weights.items():
            # A weight stands for its own magnitudes: masking ranks |x|, without a copy.
            score = self.scores(name, weight).detach() if custom else weight
            if list(score.shape) != self._shapes[name]:
                raise ValueError(f"the scores of {name} are {score.shape}, it is {weight.shape}")
            score = score if score.is_floating_point() else score.astype("float32")
            blocks = self.sparse_block != [1, 1]
            result[name] = Blocks(score, *self.sparse_block) if blocks else score
        return result if self._floors is None else self._floors.protect(result)

    def scores(self, name: str, param: paddle.Tensor) -> paddle.Tensor:
        """How much each weight matters, >= 0 and in the parameter's shape; the smallest go first.

        To be overridden: |w * grad| is Taylor saliency, random numbers are a control. It may be
        asked more than once a step, and then has to give the same.
        """
        return param.abs()

    def layer_ratios(self) -> dict[str, float]:
        """The ratio of every parameter under the distribution, for the current `ratio`."""
        return schedules.layer_ratios(self.distribution, self._shapes, self.ratio)

    @paddle.no_grad()
    def update_params(self) -> None:
        """Sets every masked weight to 0. Not to be called between forward and backward.

        Calling it again changes nothing, unless a mask_parameters() of one's own does.
        """
        custom = self._overrides("mask_parameters")
        for name, weight in self._weights.items():
            if custom:  # float * bool is an error on Paddle 3
                self.mask_parameters(weight, self.masks[name].astype(weight.dtype))
            else:
                masking.place_of(weight).zero_masked(weight, self.masks[name])
        if self.optimizer is not None:
            masks = {weight.name: self.masks[name] for name, weight in self._weights.items()}
            moments.clear(self.optimizer, self._moments, masks)

    @paddle.no_grad()
    def update_threshold(self) -> None:
        """Ratio mode: sets `threshold` (or `thresholds`) to the smallest score to keep.

        An overriding method sets `self.threshold`, which then decides: every weight at it is kept,
        also where that misses the ratio, and what the least densities keep.
        """
        self._show(self._thresholds(self._all_scores()))

    @paddle.no_grad()
    def mask_parameters(self, param, mask) -> None:
        """Sets `param` to 0, in place, where `mask` (bool, or 0 and 1 in any dtype) is 0."""
        masking.place_of(param).zero_masked(param, mask)

    @paddle.no_grad()
    def set_static_masks(self) -> None:
        """Freezes the zeros that the prunable weights hold now: `step()` then only applies them."""
        for name, weight in self._weights.items():
            paddle.assign(weight.astype("bool"), output=self.masks[name])
        self.freeze_masks()

    def freeze_masks(self) -> None:
        """Freezes the masks as they are: `step()` then only applies them, after a resume, too."""
        self._static = True

    def summarize_weights(self, model: nn.Layer, ratio: float = 0.1) -> float:
        """The threshold that prunes `ratio` of the model's weights that are prunable by default."""
        checks.check_ratio(ratio)
        weights = list(prunable_parameters(model).values())
        total = sum(map(size, weights))
        pruned = round(ratio * total)
        ((threshold, _),) = masking.place_of(*weights).smallest_kept([weights], [pruned])
        if pruned == total:  # it is the largest magnitude, which is to go as well
            return float(np.nextafter(np.float32(float(threshold)), np.float32(math.inf)))
        return float(threshold)

    @staticmethod
    def total_sparse(model: nn.Layer) -> float:
        """Zeros over all parameters, norms and biases included, as a fraction."""
        return sparsity(dict(unwrap(model).named_parameters()))

    @staticmethod
    def total_sparse_conv1x1(model: nn.Layer) -> float:
        """Zeros over the weights of all 1x1 convolutions; 0.0 where there are none."""
        return sparsity({n: p for n, p in unwrap(model).named_parameters() if is_conv1x1(p)})

    def target_reached(self) -> bool:
        """Whether the masks are at their final ratio, so that accuracies may be compared."""
        return True

    def prunable_sparsity(self) -> float:
        """Zeros over the prunable weights, as a fraction."""
        self._parts.check()
        return sparsity(self._weights)

    def state_dict(self) -> dict:
        """What a resumed run needs besides the weights: masks (bool tensors) and plain numbers."""
        return {
            "masks": dict(self.masks),
            "static": self._static,
            "threshold": float(self.threshold),
            "thresholds": {name: float(value) for name, value in self.thresholds.items()},
            "ratio": self.ratio,
            "iteration": self.iteration,
        }

    def set_state_dict(self, state: dict) -> None:
        """Takes a `state_dict()`, whose masks may also be numpy arrays, and applies its masks.

        Its threshold and ratio replace those that were given.

        Raises:
            ValueError: the masks are not those of this model.
        """
        checks.check_masks(state["masks"], self._shapes)
        values = {key: state[key] for key in ("threshold", "thresholds", "ratio", "iteration")}
        self._static = state["static"]
        for name, mask in self.masks.items():
            new = paddle.to_tensor(np.asarray(state["masks"][name]), place=mask.place)
            paddle.assign(new.astype("bool"), output=mask)
        for key, value in values.items():
            setattr(self, key, value)
        self.update_params()

    def lost_channels(self) -> dict[str, tuple[int, int]]:
        """Of each parameter with output channels whose weights are all 0: how many, of how many."""
        self._parts.check()
        return lost_channels(self.model, self._weights)

    def __str__(self) -> str:
        self._parts.check()
        return sparsity_table(self.model, self._weights)


OURS = dict(vars(UnstructuredPruner))  # see _overrides


class GMPUnstructuredPruner(UnstructuredPruner):
    """Gradual magnitude pruning: ratio mode whose ratio rises from 0 to `ratio` over the steps.

    The ratio is `schedules.gmp_ratio` of the number of steps taken, nothing else. New masks are
    computed when it changes; between, the weights stay masked.

    Args:
        ratio: the target, kept from the end of the pruning phase on.
        configs: stable_iterations, pruning_iterations, tunning_iterations (the spelling is
            PaddleSlim's; tuning_iterations is the same), pruning_steps, initial_ratio, and
            resume_iteration (0): the steps that were taken before. `ratio` is then that of the
            last of them. Further keys are ignored with a warning.
        prune_period: where given, new masks also at every so many steps.
        The others: as for `UnstructuredPruner`.

    Raises:
        ValueError: also for a missing or impossible entry of configs, by its name.
    """

    def __init__(
        self,
        model: nn.Layer,
        ratio: float = 0.55,
        prune_params_type: str | None = None,
        skip_params_func=None,
        local_sparsity: bool = False,
        sparse_block=(1, 1),
        configs: dict | None = None,
        *,
        prune_period: int | None = None,
        **others,
    ):
        which = prune_params_type, skip_params_func, local_sparsity, sparse_block
        period = 1 if prune_period is None else prune_period
        super().__init__(model, "ratio", 0.0, ratio, *which, prune_period=period, **others)
        self.prune_period = prune_period
        self.target_ratio = self.ratio
        self.configs = checks.gmp_configs(configs, self.target_ratio)
        self.iteration = self.configs.pop("resume_iteration")
        self.ratio = self.ratio_at(self.iteration - 1)
        self._masks_ratio = 0.0  # they are all True so far, also after a resume_iteration

    def ratio_at(self, iteration: int) -> float:
        """The ratio after the step with this number, from 0."""
        configs = {k: v for k, v in self.configs.items() if k != "tunning_iterations"}
        return schedules.gmp_ratio(iteration, target_ratio=self.target_ratio, **configs)

    def target_reached(self) -> bool:
        return self._masks_ratio == self.target_ratio

    def _new_masks_due(self) -> bool:
        """Sets the ratio of this step, too."""
        self.ratio = self.ratio_at(self.iteration)
        due = self.prune_period is not None and super()._new_masks_due()
        return due or self.ratio != self._masks_ratio

    def _update_masks(self) -> None:
        super()._update_masks()
        self._masks_ratio = self.ratio

    def state_dict(self) -> dict:
        return {**super().state_dict(), "ratio": self._masks_ratio}

    def set_state_dict(self, state: dict) -> None:
        super().set_state_dict(state)
        self._masks_ratio = self.ratio
