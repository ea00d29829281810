"""Batch norm's running statistics, measured anew for the weights that a training ends with.

While weights move, and masks cut some off, a running mean is one over networks that are no more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import paddle
from paddle import nn

from tasks.measure import raise_on_all_ranks
from training import ranks

KINDS = (nn.BatchNorm, nn.BatchNorm1D, nn.BatchNorm2D, nn.BatchNorm3D, nn.SyncBatchNorm)


def layers_of(network: nn.Layer) -> dict[str, nn.Layer]:
    layers = network.named_sublayers(include_self=True)
    return {name: layer for name, layer in layers if isinstance(layer, KINDS)}


def statistics_of(network: nn.Layer) -> dict[str, paddle.Tensor]:
    """Running means and variances by structured name."""
    return {
        f"{name}.{kind}": getattr(layer, kind)
        for name, layer in layers_of(network).items()
        for kind in ("_mean", "_variance")
    }


@paddle.no_grad()
def measure(
    networks: list[nn.Layer], batches: Iterable[list], after_batch: Callable = lambda: None
) -> None:
    """Sets the running statistics to the means of those of each batch, on all ranks together.

    Nothing else of the networks changes; where something is raised, nothing at all. Only batch norm
    is in its training mode: dropout is off, as in a test.

    Args:
        batches: lists that begin with images, float32 [N, C, H, W]; as many on every rank.
        after_batch: called after each; what it raises, other than ValueError and OSError, ends it.

    Raises:
        ValueError, OSError: on every rank, if a picture of one of them could not be read.
    """
    measured = [copy.deepcopy(network) for network in networks]
    for network in measured:
        network.eval()
    fault = None
    try:
        for done, (images, *_) in enumerate(batches):
            for network in measured:
                for layer in layers_of(network).values():
                    layer.training, layer._momentum = True, done / (done + 1)  # the mean so far
                network(images)
            after_batch()
    except (ValueError, OSError) as error:
        fault = error
    raise_on_all_ranks(fault)
    for network, copied in zip(networks, measured):
        found = statistics_of(copied)
        for name, value in statistics_of(network).items():
            paddle.assign(paddle.stack(ranks.tensors(found[name])).mean(0), output=value)


@paddle.no_grad()
def restore(network: nn.Layer, values) -> None:
    """
    Args:
        values: arrays under the names of statistics_of(), from a file.

    Raises:
        ValueError: they are not this network's.
    """
    for name, statistic in statistics_of(network).items():
        value = values.get(name) if type(values) is dict else None
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            raise ValueError(f"BatchNorm has no array of floats as {name}")
        if list(value.shape) != list(statistic.shape):
            raise ValueError(f"BatchNorm: {name} is {list(value.shape)}, not {statistic.shape}")
        paddle.assign(paddle.to_tensor(value).astype(statistic.dtype), output=statistic)
