"""What the tasks share: making a network, means over samples, a test."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import paddle
import paddle.distributed as dist
from tqdm import tqdm

from readers.loader import Loader
from tasks.lines import not_loaded, say


def class_names(dataset) -> list[str] | None:
    """A data set's `classes`, in the order of the labels; None where classes are numbers."""
    names = getattr(dataset, "classes", None)
    return None if names is None else [str(name) for name in names]


def class_name(names: list[str] | None, label: int) -> str:
    """Of a label, or its number where it has none: a network may have more outputs than names."""
    return names[label] if names and label < len(names) else str(label)


def build(make, name: str, scale: float, pretrained: bool):
    """The network that `make()` builds with Paddle, whose errors become one line each.

    Raises:
        ValueError: it cannot be as narrow or as wide, or its ImageNet weights cannot be had.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = make()
    except (ZeroDivisionError, OverflowError, AssertionError, RuntimeError, OSError) as error:
        if isinstance(error, (ZeroDivisionError, OverflowError)) or (
            isinstance(error, AssertionError) and not pretrained  # Paddle 2.6
        ):
            raise ValueError(f"{name} cannot be {scale} times as wide") from None
        if not pretrained:
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"could not get ImageNet weights for {name} ({reason}); put Paddle's file into "
            "~/.cache/paddle/hapi/weights, give --pretrained_model FILE with weights of the whole "
            "network, or --use_pretrained false to start from random weights"
        ) from None
    skipped = [w for w in caught if str(w.message).startswith("Skip loading for ")]
    for warning in caught:
        if warning not in skipped:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if skipped:
        names = [str(w.message).split()[3].rstrip(".") for w in skipped]
        say(not_loaded(f"Paddle's {name}", names), sys.stderr)
    return model


def summarize(totals: paddle.Tensor | np.ndarray, names: tuple[str, ...]) -> dict:
    """Means over the samples, from sums under these names and, last, the number of samples."""
    *sums, samples = totals.tolist()
    means = {name: total / samples for name, total in zip(names, sums)}
    return {**means, "samples": int(samples)}


@paddle.no_grad()
def evaluate(model, loader: Loader, metric, after_batch=lambda: None) -> dict:
    """`metric.result()` over the test data of every rank, the model left in its eval mode.

    Args:
        after_batch: called after each batch; what it raises, other than ValueError and OSError,
            ends the test at once.

    Raises:
        ValueError, OSError: on every rank, if a picture of one of them could not be read.
    """
    model.eval()
    fault = None
    try:
        for images, *targets in tqdm(loader, desc="evaluate", disable=None, leave=False):
            metric.add(model(images), targets)
            after_batch()
    except (ValueError, OSError) as error:
        fault = error
    raise_on_all_ranks(fault)
    return metric.result()


def raise_on_all_ranks(fault: Exception | None) -> None:
    """What one rank met while it read. To be called by all, also after a fault: the others wait."""
    faults = paddle.to_tensor([int(fault is not None)], dtype="int64")
    if dist.get_world_size() > 1:
        dist.all_reduce(faults)
    if int(faults[0]):
        raise fault or ValueError("another process could not read its data: see its log")
