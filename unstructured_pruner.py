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

from unstructured_pruning import masking, moments, schedules
from unstructured_pruning.parameters import (
    NORMS,
    Parts,
    default_skip_params,
    is_conv1x1,
    listed,
    lost_channels,
    prunable_parameters,
    skip_all_but_conv1x1,
    sparsity,
    sparsity_table,
    unwrap,
)
from unstructured_pruning.schedules import is_whole

__all__ = [
    "NORMS",
    "GMPUnstructuredPruner",
    "UnstructuredPruner",
    "default_skip_params",
    "lost_channels",
    "prunable_parameters",
    "skip_all_but_conv1x1",
    "sparsity",
    "sparsity_table",
]


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
            parameters as a structured name than as Paddle's own ('linear_1') is refused: Paddle
            counts its names up in each process, so that a guess, or skipping both, would leave
            other layers dense from run to run.
        local_sparsity: ratio mode prunes every parameter at `ratio`; the same as 'uniform' below.
        sparse_block: [m, n]: the m x n blocks of a weight, seen as a matrix [shape[0], the rest],
            are pruned or kept whole, by their mean magnitude. A ratio counts weights: as many
            blocks go as fit into it.
        distribution: of the ratio over the parameters: 'global' (one threshold for all), 'uniform'
            (every parameter at `ratio`), 'erk' (Erdos-Renyi-kernel, `schedules.erk_ratios`), or
            a dict from shell patterns of structured names to ratios ({'features.*': 0.6}), in
            which case `ratio` becomes the ratio of them all.
        prune_period: new masks at every so many steps; weights are masked at every step.
        optimizer: where given, its moments (momentum) of pruned weights are set to 0 as well, and
            its float32 originals of 16-bit weights (multi_precision). Step counters and learning
            rates stay, so that kept weights move as without it. What is cleared of which optimizer
            stands in `unstructured_pruning/moments.py`; Lamb, LBFGS and those that are not Paddle's
            are refused.

    A strategy of one's own overrides `scores()`, or as in PaddleSlim `mask_parameters()` and/or,
    in ratio mode, `update_threshold()`.

    Layers replaced later, weight_norm() and the like need a new pruner: `step()` and `print()`
    raise a ValueError that says so. (A parameter added to a layer that had none goes unnoticed.)

    Raises:
        ValueError: an argument out of range, a name that is not in the model or means two things,
            nothing to prune, static-graph mode, a model that is no `paddle.nn.Layer`.
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
        optimizer: paddle.optimizer.Optimizer | None = None,
    ):
        if mode not in ("ratio", "threshold"):
            raise ValueError(f"mode must be 'ratio' or 'threshold', got {mode!r}")
        if not 0 <= threshold < math.inf:
            raise ValueError(f"threshold must be a finite number >= 0, got {threshold}")
        _check_ratio(ratio)
        if prune_params_type not in (None, "conv1x1_only"):
            raise ValueError(
                f"prune_params_type must be None or 'conv1x1_only', got {prune_params_type!r}"
            )
        block = list(sparse_block)
        if len(block) != 2 or not all(is_whole(n, 1) for n in block):
            raise ValueError(f"sparse_block must be two whole numbers > 0, got {sparse_block}")
        if not isinstance(distribution, dict) and distribution not in ("global", "uniform", "erk"):
            raise ValueError(
                f"distribution must be 'global', 'uniform', 'erk' or a dict, got {distribution!r}"
            )
        if local_sparsity and distribution not in ("global", "uniform"):
            raise ValueError("local_sparsity=True is distribution='uniform'; give one of the two")
        if mode == "threshold" and (local_sparsity or distribution != "global"):
            raise ValueError("local_sparsity and distribution need mode 'ratio'")
        if type(self).update_threshold is not _ours and (
            local_sparsity or distribution != "global"
        ):
            raise ValueError(
                "a strategy's own update_threshold() sets one threshold for all: it cannot have "
                "local_sparsity or a distribution"
            )
        if not is_whole(prune_period, 1):
            raise ValueError(f"prune_period must be a whole number >= 1, got {prune_period}")
        layers = unwrap(model)
        if skip_params_func is None:
            conv1x1_only = prune_params_type == "conv1x1_only"
            skip_params_func = skip_all_but_conv1x1 if conv1x1_only else default_skip_params
        self.model = model
        self.mode = mode
        self.threshold = threshold
        self.ratio = ratio
        self.local_sparsity = local_sparsity
        self.sparse_block = [int(n) for n in block]
        self.distribution = "uniform" if local_sparsity else distribution
        self.prune_period = prune_period
        self.optimizer = optimizer
        self._moments = () if optimizer is None else moments.moments_of(optimizer)
        self.thresholds: dict[str, float] = {}  # of each parameter, unless there is one for all
        self.iteration = 0  # steps taken
        self._skip_params_func = skip_params_func
        self.skip_params = set(skip_params_func(layers))
        self._weights = prunable_parameters(layers, self.skip_params)
        self._parts = Parts(layers, self._weights)
        doubles = {str(weight.dtype).endswith("float64") for weight in self._weights.values()}
        one_threshold = mode == "ratio" and self.distribution == "global" and block == [1, 1]
        if len(doubles) > 1 and one_threshold:
            raise ValueError(
                "float64 weights and shorter ones cannot share a threshold: give another "
                "distribution, or cast the model"
            )
        self.masks = {
            name: paddle.ones_like(weight, dtype="bool") for name, weight in self._weights.items()
        }
        if isinstance(distribution, dict):
            ratios = schedules.pattern_ratios(list(self.masks), distribution)
            self.ratio = schedules.mean_ratio(ratios, self._shapes())
        self._static = False
        self._scores: dict[
            str, paddle.Tensor | masking.Blocks
        ] = {}  # while a step looks for thresholds and masks
        self._ties: dict[str, int] = {}  # how many at a group's threshold to prune all the same

    @paddle.no_grad()
    def step(self) -> None:
        """New masks from the current weights, applied. To be called after every `opt.step()`.

        Raises:
            ValueError: the model has other prunable parameters than when the pruner was made.
        """
        self._check_parts()
        if not self._static and self._new_masks_due():
            self._update_masks()
        self.iteration += 1
        self.update_params()

    def _new_masks_due(self) -> bool:
        return self.iteration % self.prune_period == 0

    def _check_parts(self) -> None:
        """Only where a layer holds other objects than before, all names are looked up again."""
        if self._parts.unchanged():
            return
        model, before = unwrap(self.model), self._weights
        try:
            now = prunable_parameters(model, set(self._skip_params_func(model)))
            wrong = listed(n for n in {**before, **now} if before.get(n) is not now.get(n))
        except ValueError as error:  # a skipped name is gone
            wrong = str(error)
        if wrong:
            raise ValueError(
                f"the model has other weights than when the pruner was made ({wrong}): make a new "
                "pruner after replacing layers or parameters"
            )
        self._parts = Parts(model, before)

    def _update_masks(self) -> None:
        self.thresholds, self._ties, self._scores = {}, {}, self._all_scores()
        if self.mode == "ratio":
            self.update_threshold()
        for names in self._groups():
            threshold = self.thresholds.get(names[0], self.threshold)
            ties = self._ties.get(names[0], 0)
            for name in names:
                ties = self._update_mask(name, threshold, ties)
        self._scores = {}

    def _update_mask(self, name: str, threshold: float, ties: int) -> int:
        scores, mask = self._scores[name], self.masks[name]
        if self.sparse_block == [1, 1]:
            return masking.update_mask(mask, scores, threshold, ties)
        keep = paddle.to_tensor(np.ones(scores.shape, bool), place=mask.place)
        ties = masking.update_mask(keep, scores, threshold, ties)
        masking.spread_blocks(keep, mask, *self.sparse_block)
        return ties

    def _all_scores(self) -> dict[str, paddle.Tensor | masking.Blocks]:
        """What is ranked, by name: scores of weights or blocks."""
        custom = type(self).scores is not UnstructuredPruner.scores
        result = {}
        for name, weight in self._weights.items():
            # A weight stands for its own magnitudes: masking ranks |x|, without a copy.
            result[name] = self.scores(name, weight).detach() if custom else weight
            if not result[name].is_floating_point():
                result[name] = result[name].astype("float32")
            if list(result[name].shape) != list(weight.shape):
                raise ValueError(
                    f"the scores of {name} are {list(result[name].shape)}, it is {weight.shape}"
                )
            if self.sparse_block != [1, 1]:
                result[name] = masking.Blocks(result[name], *self.sparse_block)
        return result

    def scores(self, name: str, param: paddle.Tensor) -> paddle.Tensor:
        """How much each weight matters, >= 0 and in the parameter's shape; the smallest go first.

        To be overridden: |w * grad| is Taylor saliency, random numbers are a control.
        """
        return param.abs()

    def _groups(self) -> list[list[str]]:
        """Names that share a threshold."""
        if self.distribution == "global":
            return [list(self._weights)]
        return [[name] for name in self._weights]

    def layer_ratios(self) -> dict[str, float]:
        """The ratio of every parameter under the distribution, for the current `ratio`."""
        return schedules.layer_ratios(self.distribution, self._shapes(), self.ratio)

    def _shapes(self) -> dict[str, list[int]]:
        return {name: list(weight.shape) for name, weight in self._weights.items()}

    @paddle.no_grad()
    def update_params(self) -> None:
        """Sets every masked weight to 0. Not to be called between forward and backward.

        Calling it again changes nothing, unless a mask_parameters() of one's own does.
        """
        custom = type(self).mask_parameters is not UnstructuredPruner.mask_parameters
        for name, weight in self._weights.items():
            if custom:  # float * bool is an error on Paddle 3
                self.mask_parameters(weight, self.masks[name].astype(weight.dtype))
            else:
                masking.zero_masked(weight, self.masks[name])
        if self.optimizer is not None:
            masks = {weight.name: self.masks[name] for name, weight in self._weights.items()}
            moments.clear(self.optimizer, self._moments, masks)

    @paddle.no_grad()
    def update_threshold(self) -> None:
        """Ratio mode: sets `threshold` (or `thresholds`) to the smallest score to keep.

        An overriding method sets `self.threshold`, which then decides alone: every weight at it is
        kept. (This one also counts the weights at the threshold that have to go for the exact
        ratio.)
        """
        _check_ratio(self.ratio)
        scores, ratios = self._scores or self._all_scores(), self.layer_ratios()
        groups = self._groups()
        ranked = [[scores[name] for name in names] for names in groups]
        sizes = [sum(masking.size(self._weights[name]) for name in names) for names in groups]
        pruned = [round(ratios[names[0]] * size) for names, size in zip(groups, sizes)]
        for names, (threshold, ties) in zip(groups, masking.smallest_kept(ranked, pruned)):
            if self.distribution == "global":
                self.threshold = threshold
            else:
                self.thresholds[names[0]] = threshold
            if type(self).update_threshold is _ours:
                self._ties[names[0]] = ties

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
        total = sum(map(masking.size, weights))
        ((threshold, _),) = masking.smallest_kept([weights], [round(ratio * total)])
        threshold = float(threshold)
        if round(ratio * total) == total:  # it is the largest magnitude, which is to go as well
            threshold = float(np.nextafter(np.float32(threshold), np.float32(math.inf)))
        return threshold

    @staticmethod
    def total_sparse(model: nn.Layer) -> float:
        """Zeros over all parameters, norms and biases included, as a fraction."""
        return sparsity(dict(unwrap(model).named_parameters()))

    @staticmethod
    def total_sparse_conv1x1(model: nn.Layer) -> float:
        """Zeros over the weights of all 1x1 convolutions; 0.0 where there are none."""
        parameters = unwrap(model).named_parameters()
        return sparsity({name: weight for name, weight in parameters if is_conv1x1(weight)})

    def target_reached(self) -> bool:
        """Whether the masks are at their final ratio, so that accuracies may be compared."""
        return True

    def prunable_sparsity(self) -> float:
        """Zeros over the prunable weights, as a fraction."""
        self._check_parts()
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
        wanted = {name: list(mask.shape) for name, mask in self.masks.items()}
        given = {name: list(mask.shape) for name, mask in state["masks"].items()}
        if given != wanted:
            names = sorted(n for n in {*given, *wanted} if given.get(n) != wanted.get(n))
            raise ValueError(f"these masks do not fit the model: {', '.join(names)}")
        values = {key: state[key] for key in ("threshold", "thresholds", "ratio", "iteration")}
        static = state["static"]
        for name, mask in self.masks.items():
            given = paddle.to_tensor(np.asarray(state["masks"][name]), place=mask.place)
            paddle.assign(given.astype("bool"), output=mask)
        self._static = static
        for key, value in values.items():
            setattr(self, key, value)
        self.update_params()

    def lost_channels(self) -> dict[str, tuple[int, int]]:
        """Of each parameter with output channels whose weights are all 0: how many, of how many."""
        self._check_parts()
        return lost_channels(unwrap(self.model), self._weights)

    def __str__(self) -> str:
        self._check_parts()
        return sparsity_table(unwrap(self.model), self._weights)


_ours = UnstructuredPruner.update_threshold


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
        distribution: str | dict[str, float] = "global",
        prune_period: int | None = None,
        optimizer: paddle.optimizer.Optimizer | None = None,
    ):
        super().__init__(
            model,
            "ratio",
            0.0,
            ratio,
            prune_params_type,
            skip_params_func,
            local_sparsity,
            sparse_block,
            distribution=distribution,
            prune_period=1 if prune_period is None else prune_period,
            optimizer=optimizer,
        )
        self.prune_period = prune_period
        self.target_ratio = self.ratio
        self.configs = schedules.checked_gmp_configs(configs, self.target_ratio)
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


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")
