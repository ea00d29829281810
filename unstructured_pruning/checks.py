"""What the pruners refuse: arguments out of range, and those that do not go together."""

from __future__ import annotations

import math
import numbers
import warnings

import paddle


def check_arguments(mode, threshold, ratio, prune_params_type, sparse_block, prune_period) -> None:
    if mode not in ("ratio", "threshold"):
        raise ValueError(f"mode must be 'ratio' or 'threshold', got {mode!r}")
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be a finite number >= 0, got {threshold}")
    check_ratio(ratio)
    if prune_params_type not in (None, "conv1x1_only"):
        raise ValueError(
            f"prune_params_type must be None or 'conv1x1_only', got {prune_params_type!r}"
        )
    if len(list(sparse_block)) != 2 or not all(is_whole(n, 1) for n in sparse_block):
        raise ValueError(f"sparse_block must be two whole numbers > 0, got {sparse_block}")
    if not is_whole(prune_period, 1):
        raise ValueError(f"prune_period must be a whole number >= 1, got {prune_period}")


def check_distribution(distribution, mode, local_sparsity, own_threshold) -> None:
    if not isinstance(distribution, dict) and distribution not in ("global", "uniform", "erk"):
        raise ValueError(
            f"distribution must be 'global', 'uniform', 'erk' or a dict, got {distribution!r}"
        )
    if local_sparsity and distribution not in ("global", "uniform"):
        raise ValueError("local_sparsity=True is distribution='uniform'; give one of the two")
    one_threshold = not local_sparsity and distribution == "global"
    if mode == "threshold" and not one_threshold:
        raise ValueError("local_sparsity and distribution need mode 'ratio'")
    if own_threshold and not one_threshold:
        raise ValueError(
            "a strategy's own update_threshold() sets one threshold for all: it cannot have "
            "local_sparsity or a distribution"
        )


def check_dtypes(weights: dict[str, paddle.Tensor]) -> None:
    if len({str(weight.dtype).endswith("float64") for weight in weights.values()}) > 1:
        raise ValueError(
            "float64 weights and shorter ones cannot share a threshold: give another "
            "distribution, or cast the model"
        )


def check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")


def check_densities(of_layer: float, of_channel: float, sparse_block: list[int]) -> None:
    for name, density in (("min_layer_density", of_layer), ("min_channel_density", of_channel)):
        if not 0 <= density <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {density}")
    if sparse_block != [1, 1]:
        raise ValueError("min_layer_density and min_channel_density cannot have a sparse_block")


def check_masks(masks: dict, shapes: dict[str, list[int]]) -> None:
    given = {name: list(mask.shape) for name, mask in masks.items()}
    wrong = sorted(n for n in {**given, **shapes} if given.get(n) != shapes.get(n))
    if wrong:
        raise ValueError(f"these masks do not fit the model: {', '.join(wrong)}")


def gmp_configs(configs: dict | None, target: float) -> dict:
    """The `configs` of GMPUnstructuredPruner as whole numbers, with PaddleSlim's spellings.

    Raises:
        ValueError: for a missing or impossible entry, by its name.
    """
    configs = {"resume_iteration": 0, **(configs or {})}
    if "tuning_iterations" in configs:
        configs["tunning_iterations"] = configs.pop("tuning_iterations")
    counts = ("stable_iterations", "pruning_iterations", "tunning_iterations", "resume_iteration")
    expected = (*counts, "pruning_steps", "initial_ratio")
    missing = ", ".join(name for name in expected if name not in configs)
    further = ", ".join(str(name) for name in configs if name not in expected)
    if missing:
        odd = f"; of no use: {further}" if further else ""
        raise ValueError(
            f"configs must have the keys {', '.join(expected)}; missing: {missing}{odd}"
        )
    if further:
        warnings.warn(f"keys of configs that have no use here: {further}", stacklevel=3)
    configs = {name: configs[name] for name in expected}
    for name in (*counts, "pruning_steps"):
        minimum = 1 if name == "pruning_steps" else 0
        if not is_whole(configs[name], minimum):
            raise ValueError(f"{name} must be a whole number >= {minimum}, got {configs[name]!r}")
        configs[name] = int(configs[name])
    if configs["pruning_steps"] > max(1, configs["pruning_iterations"]):
        raise ValueError(
            f"pruning_steps must be at most pruning_iterations={configs['pruning_iterations']}, "
            f"got {configs['pruning_steps']}; lower it, or let the ratio rise for longer"
        )
    if not 0 <= configs["initial_ratio"] <= target:
        raise ValueError(
            f"initial_ratio must be in [0, ratio={target}], got {configs['initial_ratio']}"
        )
    return configs


def is_whole(value, minimum: int) -> bool:
    return isinstance(value, numbers.Integral) and value >= minimum
