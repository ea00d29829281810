"""The least that stays of every parameter and every output channel, so that none is lost whole."""

from __future__ import annotations

import math

import paddle
from paddle import nn

from unstructured_pruning import masking
from unstructured_pruning.blocks import size
from unstructured_pruning.parameters import by_channel
from unstructured_pruning.schedules import layer_ratios, pruned_counts


class Floors:
    """
    Args:
        weights: the prunable parameters of the model, by name.
        layer_density, channel_density: the least part of its weights that each of them, and each of
            its output channels, keeps: that many whole weights or more. (Parameters below two
            dimensions have no channels.)
    """

    def __init__(
        self,
        model: nn.Layer,
        weights: dict[str, paddle.Tensor],
        layer_density: float,
        channel_density: float,
    ):
        given = {"min_layer_density": layer_density, "min_channel_density": channel_density}
        self._given = " and ".join(f"{name}={part:g}" for name, part in given.items() if part)
        self._shapes = {name: list(weight.shape) for name, weight in weights.items()}
        self._by_channel = by_channel(model, weights)
        channels = {n: groups * outputs for n, (groups, _, outputs, _) in self._by_channel.items()}
        sizes = {name: size(weight) for name, weight in weights.items()}
        self._of_layer = {name: _least(layer_density, n) for name, n in sizes.items()}
        self._of_channel = {n: _least(channel_density, sizes[n] // c) for n, c in channels.items()}
        in_channels = {n: count * channels[n] for n, count in self._of_channel.items()}
        self._kept = {n: max(count, in_channels.get(n, 0)) for n, count in self._of_layer.items()}
        # Where the channels' weights are enough, the layer needs no more.
        self._to_fill = [n for n in sizes if self._of_layer[n] > in_channels.get(n, 0)]
        self._sizes = sizes

    def protect(self, scores: dict[str, paddle.Tensor]) -> dict[str, paddle.Tensor]:
        """The magnitudes of the scores, NaN for those that have to stay: no threshold prunes NaN.

        These are the largest of each output channel, and the largest of the rest that its parameter
        lacks then; of equal ones the last, as the first go.
        """
        marked = {
            name: (score if score.dtype == paddle.float64 else score.astype("float32")).abs()
            for name, score in scores.items()
        }
        place = masking.place_of(*marked.values())
        for name, count in self._of_channel.items():
            if count:
                place.mark_largest(marked[name], self._by_channel[name], count)
        pruned = [self._sizes[name] - self._of_layer[name] for name in self._to_fill]
        found = place.smallest_kept([[marked[name]] for name in self._to_fill], pruned)
        for name, (threshold, ties) in zip(self._to_fill, found):
            mask = paddle.ones_like(marked[name], dtype="bool")
            place.update_mask(mask, marked[name], threshold, ties)
            place.mark(marked[name], mask)
        return marked

    def check(self, distribution, ratio: float, pruned: dict[tuple[str, ...], int]) -> None:
        """
        Args:
            pruned: of schedules.pruned_counts(), under the distribution and the ratio.

        Raises:
            ValueError: so many cannot be pruned; it names the largest ratio that can be met.
        """
        if not (missed := self._missed(pruned)):
            return

        def fits(parts: int) -> bool:
            ratios = layer_ratios(distribution, self._shapes, parts / 10_000)
            return not self._missed(pruned_counts(distribution, self._shapes, ratios))

        low, high = 0, math.ceil(ratio * 10_000)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        where = f" in {missed[0]}" if len(missed) == 1 else ""
        raise ValueError(
            f"ratio {ratio:g} cannot be met{where}: with {self._given} it can be "
            f"{low / 10_000:g} at most; lower one of them"
        )

    def _missed(self, pruned: dict[tuple[str, ...], int]) -> tuple[str, ...]:
        """Names, of the first that share a threshold, that would keep too little; or none."""
        for names, count in pruned.items():
            if count > sum(self._sizes[name] - self._kept[name] for name in names):
                return names
        return ()


def _least(density: float, n: int) -> int:
    least = math.ceil(round(density * n, 6))  # 0.07 * 100 is 7.000000000000001
    return max(least, 1) if density and n else 0
