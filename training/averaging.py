"""An average of the weights over the steps of a training, which is often better than the last."""

from __future__ import annotations

import copy

import paddle

from unstructured_pruning import masking


class Average:
    """The exponential moving average of weights and batch norm's statistics.

    `network` holds it: a copy of the model, in float32 whatever the model's dtype is.

    Args:
        model: with whose weights it begins.
        decay: how much of it is kept at a step; in [0, 1).
    """

    def __init__(self, model: paddle.nn.Layer, decay: float):
        self.decay = decay
        self.network = copy.deepcopy(model).float()
        self.newest, self.tensors = tensors_of(model), tensors_of(self.network)

    @paddle.no_grad()
    def update(self, step: int, masks: dict[str, paddle.Tensor]) -> None:
        """Takes in the model's weights; to be called after each step.

        Args:
            step: how many were taken before this one. The first ones keep (1 + step) / (10 + step)
                at most: else the weights of the start would stay for 1 / (1 - decay) steps.
            masks: the pruner's, bool, by name: where one is False now, the average is 0, too.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, average in self.tensors.items():
            newest = self.newest[name]
            if not newest.is_floating_point():  # a counter
                paddle.assign(newest, output=average)
                continue
            change = newest.astype("float32") - average
            paddle.assign(average + (1 - decay) * change, output=average)
            if name in masks:
                masking.place_of(average).zero_masked(average, masks[name])


def tensors_of(model: paddle.nn.Layer) -> dict[str, paddle.Tensor]:
    """Parameters and buffers by structured name, each once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
