"""How sparse which parameter is to be, and when: functions of shapes and step numbers alone."""

from __future__ import annotations

import fnmatch
import math


def gmp_ratio(
    iteration: int,
    stable_iterations: int,
    pruning_iterations: int,
    pruning_steps: int,
    initial_ratio: float,
    target_ratio: float,
) -> float:
    """The ratio of gradual magnitude pruning (Zhu & Gupta, 2017) at an iteration, from 0.

    0 in the stable phase; then, in `pruning_steps` equal pieces, a cubic from the initial ratio
    towards the target; the target from the end of the pruning phase on.
    """
    pruned_for = iteration - stable_iterations
    if pruned_for < 0:
        return 0.0
    if pruned_for >= pruning_iterations:
        return target_ratio
    piece = pruned_for * pruning_steps // pruning_iterations
    rise = (piece / pruning_steps - 1) ** 3 + 1
    return initial_ratio + (target_ratio - initial_ratio) * rise


def erk_ratios(shapes: dict[str, list[int]], ratio: float) -> dict[str, float]:
    """Erdos-Renyi-kernel ratios (Evci et al., 2020): small and narrow parameters stay denser.

    The density of a parameter is proportional to the sum of its dimensions over their product, and
    at most 1; all together, `ratio` of the weights are pruned.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        left = (1 - ratio) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        rest = [name for name in shapes if name not in dense]
        scale = left / sum(raw[name] * sizes[name] for name in rest) if rest else 0.0
        full = [name for name in rest if scale * raw[name] > 1]
        if not full:
            return {name: 0.0 if name in dense else 1 - scale * raw[name] for name in shapes}
        dense.update(full)


def pattern_ratios(names: list[str], patterns: dict[str, float]) -> dict[str, float]:
    """The ratio of the first shell pattern that a name matches; 0 for a name that matches none.

    Raises:
        ValueError: no pattern, a ratio outside [0, 1], or a pattern that no name matches.
    """
    if not patterns:
        raise ValueError("distribution={} has no pattern; give one, like {'*': 0.5}")
    for pattern, ratio in patterns.items():
        if not 0 <= ratio <= 1:
            raise ValueError(f"the ratio of {pattern!r} must be in [0, 1], got {ratio}")
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no prunable parameter matches {pattern!r}; there are {names}")
    return {
        name: next((r for p, r in patterns.items() if fnmatch.fnmatchcase(name, p)), 0.0)
        for name in names
    }


def layer_ratios(
    distribution: str | dict[str, float], shapes: dict[str, list[int]], ratio: float
) -> dict[str, float]:
    """The ratio of every parameter where all together are pruned at `ratio`."""
    if distribution == "erk":
        return erk_ratios(shapes, ratio)
    if not isinstance(distribution, dict):
        return dict.fromkeys(shapes, ratio)
    ratios = pattern_ratios(list(shapes), distribution)
    whole = mean_ratio(ratios, shapes)  # a schedule moves `ratio` between 0 and this
    scale = ratio / whole if whole else 0.0
    if scale * max(ratios.values()) > 1:
        raise ValueError(f"ratio {ratio} is beyond what the distribution allows")
    return {name: scale * own for name, own in ratios.items()}


def pruned_counts(
    distribution: str | dict[str, float], shapes: dict[str, list[int]], ratios: dict[str, float]
) -> dict[tuple[str, ...], int]:
    """{names that share a threshold: how many of their weights are pruned}"""
    groups = [tuple(shapes)] if distribution == "global" else [(name,) for name in shapes]
    sizes = [sum(math.prod(shapes[name]) for name in names) for names in groups]
    return {names: round(ratios[names[0]] * n) for names, n in zip(groups, sizes)}


def mean_ratio(ratios: dict[str, float], shapes: dict[str, list[int]]) -> float:
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    return sum(ratios[name] * sizes[name] for name in sizes) / sum(sizes.values())
