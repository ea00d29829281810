"""Two copies of one network, under PaddleSlim's pruner and ours, trained and compared.

Two habits of PaddleSlim matter throughout. It prunes one weight fewer than the ratio asks for, so
where ratios are compared, ours gets its count. And it applies masks in the forward pass (or in
update_params()), not in step(), so its weights are compared with its masks applied.
"""

from __future__ import annotations

import contextlib
import io

import numpy as np
import paddle
from paddle import nn

with contextlib.redirect_stdout(io.StringIO()):
    from paddleslim.dygraph.prune import unstructured_pruner as paddleslim

import unstructured_pruner as ours

STEPS = 40
LEARNING_RATES = ([15, 30], [0.5, 0.2, 0.05])  # boundaries in steps, values


def network() -> nn.Layer:
    """MobileNet in small: a 3x3, a depthwise and a 1x1 convolution, norms, a linear layer."""
    return nn.Sequential(
        *(nn.Conv2D(3, 16, 3, padding=1, bias_attr=False), nn.BatchNorm2D(16), nn.ReLU()),
        *(nn.Conv2D(16, 16, 3, padding=1, groups=16), nn.BatchNorm2D(16), nn.ReLU()),
        *(nn.Conv2D(16, 32, 1), nn.BatchNorm(32), nn.ReLU()),
        *(nn.AdaptiveAvgPool2D(2), nn.Flatten(), nn.Linear(128, 10)),
    )


def twins(make=network) -> tuple[nn.Layer, nn.Layer]:
    paddle.seed(0)
    theirs, mine = make(), make()
    mine.set_state_dict(theirs.state_dict())
    return theirs, mine


def slim(pruner, model, *args, **kwargs):
    """A pruner of PaddleSlim's, without the line that it prints for every parameter."""
    with contextlib.redirect_stdout(io.StringIO()):
        return pruner(model, *args, **kwargs)


def theirs_step(pruner) -> None:
    with contextlib.redirect_stdout(io.StringIO()):  # "block size might be too large"
        pruner.step()


def prunable(model, prune_params_type=None) -> dict[str, paddle.Tensor]:
    conv1x1 = prune_params_type == "conv1x1_only"
    return ours.prunable_parameters(model, ours.skip_all_but_conv1x1(model) if conv1x1 else None)


def one_fewer(ratio: float, count: int) -> float:
    """The ratio that has us prune as many of `count` weights as PaddleSlim does at `ratio`."""
    return max(0, round(ratio * count) - 1) / count


def masks_of(pruner, names) -> dict[str, np.ndarray]:
    """Bool masks by structured name; PaddleSlim's are float or bool and under Paddle's names."""
    if isinstance(pruner, ours.UnstructuredPruner):
        return {name: pruner.masks[name].numpy() for name in names}
    parameters = dict(pruner.model.named_parameters())
    return {name: pruner.masks[parameters[name].name].numpy().astype(bool) for name in names}


def kept(mask: np.ndarray) -> np.ndarray:
    """What a masked weight is multiplied with; the custom strategy below has its own."""
    return mask.astype("float32")


def train(theirs, mine, steps=STEPS, factor=kept, call_update_params=False) -> dict[str, int]:
    """Trains both, comparing after every step; how many masks went from 1 to 0 and back.

    theirs, mine: pruners, which hold their models.
    """
    rng = np.random.default_rng(0)
    pruners, optimizers, schedulers = (theirs, mine), [], []
    for pruner in pruners:
        scheduler = paddle.optimizer.lr.PiecewiseDecay(*LEARNING_RATES)
        optimizers.append(
            paddle.optimizer.Momentum(
                learning_rate=scheduler,
                momentum=0.9,
                parameters=pruner.model.parameters(),
                weight_decay=paddle.regularizer.L2Decay(3e-4),
            )
        )
        schedulers.append(scheduler)
    last, moves = None, {"pruned": 0, "came back": 0}
    for step in range(steps):
        images = paddle.to_tensor(rng.standard_normal((8, 3, 6, 6), "f4"))
        labels = paddle.to_tensor(rng.integers(0, 10, 8))
        losses = []
        for pruner, opt, scheduler in zip(pruners, optimizers, schedulers):
            loss = nn.functional.cross_entropy(pruner.model(images), labels)
            loss.backward()
            opt.step()
            scheduler.step()
            opt.clear_grad()
            theirs_step(pruner) if pruner is theirs else pruner.step()
            if call_update_params:
                pruner.update_params()
            losses.append(float(loss))
        assert losses[0] == losses[1], f"step {step}"
        masks = assert_same(theirs, mine, factor, f"step {step}")
        for name, mask in masks.items() if last else ():
            moves["pruned"] += np.count_nonzero(last[name] & ~mask)
            moves["came back"] += np.count_nonzero(mask & ~last[name])
        last = masks
    pruner_buffers = {k for k in theirs.model.state_dict() if k.endswith("_mask")}
    state = mine.model.state_dict()
    assert set(state) == set(theirs.model.state_dict()) - pruner_buffers
    for name, tensor in theirs.model.state_dict().items():  # also biases, norms, running means
        if name not in {*pruner_buffers, *mine.masks}:
            np.testing.assert_array_equal(tensor.numpy(), state[name].numpy(), name)
    return moves


def assert_same(theirs, mine, factor=kept, where="") -> dict[str, np.ndarray]:
    """All prunable weights (with masks applied) and masks are equal; returns the masks."""
    names = list(mine.masks)
    their_masks, my_masks = masks_of(theirs, names), masks_of(mine, names)
    their_weights = dict(theirs.model.named_parameters())
    my_weights = dict(mine.model.named_parameters())
    for name in names:
        np.testing.assert_array_equal(their_masks[name], my_masks[name], f"mask {name} {where}")
        weight = their_weights[name].numpy() * factor(their_masks[name])
        np.testing.assert_array_equal(weight, my_weights[name].numpy(), f"{name} {where}")
    return my_masks


class HalvesMasked:
    """A strategy that halves masked weights at every step in place of setting them to 0."""

    def mask_parameters(self, param, mask):
        halved = param.detach() * (mask.astype(param.dtype) * 0.5 + 0.5)
        paddle.assign(halved, output=param)


def with_strategy(strategy):
    bases = (paddleslim.UnstructuredPruner, ours.UnstructuredPruner)
    return [type(strategy.__name__, (strategy, base), {}) for base in bases]
