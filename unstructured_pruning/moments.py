"""Moments that Paddle's optimizers keep of single weights: which accumulators, and clearing them.

An accumulator is cleared only where the others do not depend on it: step counters, learning rates
and what is shared by a whole tensor stay, so that kept weights move as without the clearing.
"""

from __future__ import annotations

import paddle

from unstructured_pruning import masking

MOMENTS = {  # class of paddle.optimizer -> its moments, by the names it gives its accumulators
    "Adadelta": ("_avg_squared_grad", "_avg_squared_update"),
    "Adagrad": ("moment",),
    "Adam": ("moment1", "moment2", "moment2_max"),
    "AdamW": ("moment1", "moment2", "moment2_max"),
    "Adamax": ("moment", "inf_norm"),
    # Its `d` is the sum of the gradients in `y`. With both cleared, a weight that comes back would
    # start at a batch_num-th of the learning rate.
    "ASGD": (),
    "Momentum": ("velocity",),
    "NAdam": ("moment1", "moment2"),
    "RAdam": ("moment1", "moment2"),
    "RMSProp": ("momentum", "mean_square", "mean_grad"),
    "Rprop": ("prevs",),  # else the learning rates of pruned weights would grow
    "SGD": (),
}
REFUSED = {
    "Lamb": "it scales the step of a weight by the moments of all weights of its tensor",
    "LBFGS": "it keeps no moment a weight",
}


def moments_of(optimizer: paddle.optimizer.Optimizer) -> tuple[str, ...]:
    """The names of its moments; of a class of one's own, those of the class it is derived from.

    Raises:
        ValueError: not one of Paddle's, or clearing a weight's moments moves other weights.
    """
    why = "it is not derived from one of these"
    for kind in type(optimizer).__mro__:
        name = kind.__name__
        if kind is getattr(paddle.optimizer, name, None):
            if name in MOMENTS:
                return MOMENTS[name]
            why = REFUSED.get(name, why)
            break
    raise ValueError(
        f"the moments of {type(optimizer).__name__} cannot be cleared: {why}; leave `optimizer` "
        f"out, or give one of {', '.join(MOMENTS)} from paddle.optimizer"
    )


def clear(optimizer, moments: tuple[str, ...], masks: dict[str, paddle.Tensor]) -> None:
    """Zeroes moments, and float32 originals of 16-bit weights, where the masks are 0.

    Args:
        moments: `moments_of(optimizer)`.
        masks: by Paddle's own names of the parameters.
    """
    masks = dict(masks)
    for name, original in getattr(optimizer, "_master_weights", {}).items():
        if name in masks:  # moments stand under the name of what the optimizer updates
            masks[original.name] = masks[name]
            masking.place_of(original).zero_masked(original, masks[name])
    for accumulator, values in optimizer._accumulators.items():
        if accumulator.endswith(moments):  # Optimizer(name="x") puts "x_" before it
            for name in values.keys() & masks.keys():
                masking.place_of(values[name]).zero_masked(values[name], masks[name])
