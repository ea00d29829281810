"""Classification: its data sets, models, loss and metrics."""

from __future__ import annotations

import inspect
import math
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import numpy as np
import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle.vision import models
from tqdm import tqdm

from cifar_reader import Cifar10, Digits, FashionMNIST
from imagenet_reader import ImageNetDataset

NUM_CLASSES = {"cifar10": 10, "imagenet": 1000, "fashion_mnist": 10, "digits": 10}
MODELS = [name for name in models.__all__ if name[0].islower()]


def make_dataset(name: str, data_dir: str | None, mode: str, num_classes: int, seed: int = 0):
    """A data set by its name; mode is 'train' or 'val'. Setting its `epoch` varies augmentation."""
    if name == "imagenet":
        folder = data_dir or "data/ILSVRC2012"
        return ImageNetDataset(folder, mode, num_classes=num_classes, seed=seed)
    if num_classes < NUM_CLASSES[name]:
        raise ValueError(f"{name} has {NUM_CLASSES[name]} classes, --num_classes {num_classes}")
    small = {"cifar10": Cifar10, "fashion_mnist": FashionMNIST, "digits": Digits}
    return small[name](data_dir, mode, seed=seed)


def make_model(name: str, scale: float, num_classes: int, pretrained: bool, data: str):
    """A network of paddle.vision.models, tried on one blank picture of the data set's size.

    Raises:
        ValueError: it has no such width or no pretrained weights, they cannot be downloaded, or it
            does not take pictures of this size.
    """
    if name not in MODELS:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(MODELS)}")
    constructor = getattr(models, name)
    width = {} if scale == 1 else {"scale": scale}
    if width and "scale" not in inspect.signature(constructor).parameters:
        raise ValueError(f"{name} has one width only; leave --scale out")
    try:
        model = constructor(pretrained=pretrained, num_classes=num_classes, **width)
    except (RuntimeError, OSError, AssertionError) as error:
        if not pretrained:
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"could not get ImageNet weights for {name} ({reason}); give --pretrained_model FILE, "
            "or --use_pretrained false to start from random weights"
        ) from None
    size = 224 if data == "imagenet" else 32
    model.eval()
    try:
        with paddle.no_grad():
            outputs = model(paddle.zeros([1, 3, size, size]))
        logits = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
        fits = math.isfinite(float(logits.sum()))  # Inception averages over nothing and gives NaN
    except Exception:
        fits = False
    if not fits:
        raise ValueError(f"{name} does not take pictures of {size}x{size}")
    return model


def loss(outputs, labels: paddle.Tensor) -> paddle.Tensor:
    """Mean cross entropy; GoogLeNet's two auxiliary outputs count 0.3 each, as in its paper."""
    main, *auxiliary = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    total = F.cross_entropy(main, labels)
    for output in auxiliary:
        total = total + 0.3 * F.cross_entropy(output, labels)
    return total


def counts(outputs, labels: paddle.Tensor, mean_loss: paddle.Tensor) -> paddle.Tensor:
    """float64 [4] on the device: sum of the loss, right at first, right among five, samples."""
    logits = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
    best = paddle.topk(logits, min(5, logits.shape[1]))[1] == labels.reshape([-1, 1])
    samples = paddle.full([], labels.shape[0], "float64")
    sums = [mean_loss.detach().astype("float64") * samples, best[:, 0].astype("float64").sum()]
    return paddle.stack([s.reshape([]) for s in [*sums, best.astype("float64").sum(), samples]])


def summarize(totals: paddle.Tensor | np.ndarray) -> dict:
    """Loss and accuracies, as fractions, from the sum of `counts` over batches."""
    loss_sum, top1, top5, samples = totals.tolist()
    means = {"loss": loss_sum, "top1": top1, "top5": top5}
    return {**{key: value / samples for key, value in means.items()}, "samples": int(samples)}


@paddle.no_grad()
def evaluate(model, loader, after_batch=lambda: None) -> dict:
    """loss, top1, top5 and samples over the loader of every rank, exact for unequal batches."""
    model.eval()
    totals, fault = paddle.zeros([4], "float64"), None
    try:
        for images, labels in tqdm(loader, desc="evaluate", disable=None, leave=False):
            outputs = model(images)
            logits = outputs[0] if isinstance(outputs, (list, tuple)) else outputs
            totals += counts(logits, labels, F.cross_entropy(logits, labels))
            after_batch()
    except (ValueError, OSError) as error:
        fault = error
    faults = paddle.to_tensor([int(fault is not None)], dtype="int64")
    if dist.get_world_size() > 1:  # also after a fault: the other ranks wait
        dist.all_reduce(faults)
        dist.all_reduce(totals)
    if int(faults[0]):
        raise fault or ValueError("another process could not read its test data: see its log")
    return summarize(totals)
