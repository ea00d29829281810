"""Classification: its data sets, models, loss and metrics."""

from __future__ import annotations

import inspect
import math

import numpy as np
import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle.vision import models

from readers.small_images import Cifar10, Digits, FashionMNIST
from tasks.lines import warn
from tasks.measure import build, class_name, class_names, summarize

# The number of classes of each data set.
DATA = {"cifar10": 10, "imagenet": 1000, "fashion_mnist": 10, "digits": 10}
SMALL = {"cifar10": Cifar10, "fashion_mnist": FashionMNIST, "digits": Digits}
MODELS = [name for name in models.__all__ if name[0].islower()]
COUNTED = ("loss", "top1", "top5")  # while training, as means over the samples
MEASURED = ("top1", "top5", "loss")  # by the metric; the first one tells which weights are best


def num_classes(options) -> int:
    return DATA[options.data]


def input_shape(options) -> tuple[int, int, int]:
    side = options.image_size or (224 if options.data == "imagenet" else 32)
    return (3, side, side)


def make_dataset(options, mode: str):
    """A data set by its name; mode is 'train' or 'val'. Setting its `epoch` varies augmentation."""
    name, data_dir = options.data, options.data_dir
    if name == "imagenet":
        return make_imagenet(options, mode)
    if options.num_classes < DATA[name]:
        raise ValueError(f"{name} has {DATA[name]} classes, --num_classes {options.num_classes}")
    size = input_shape(options)[1]
    return SMALL[name](data_dir, mode, seed=options.seed, image_size=size)


def make_imagenet(options, mode: str):
    """What imagenet_reader.py reads, which may be a user's own; a line if classes are missing.

    Raises:
        ValueError: --image_size is given, and it reads one size only.
    """
    from imagenet_reader import ImageNetDataset  # not before: a user may be rewriting it

    takes = inspect.signature(ImageNetDataset).parameters
    more = {}
    if options.image_size:
        if "image_size" not in takes:
            raise ValueError(
                "--image_size: the ImageNetDataset of imagenet_reader.py has no argument image_size"
            )
        more["image_size"] = options.image_size
    if options.classes and "classes" in takes:
        more["classes"] = options.classes
    folder, outputs = options.data_dir or "data/ILSVRC2012", options.num_classes
    dataset = ImageNetDataset(folder, mode, num_classes=outputs, seed=options.seed, **more)
    labels = getattr(dataset, "labels", None)
    found = len(np.unique(labels)) if isinstance(labels, np.ndarray) else outputs
    if mode == "train" and found != outputs:
        warn(
            f"{folder}: {found} classes in the training data, {outputs} outputs of the network "
            "(--num_classes)"
        )
    return dataset


def to_input(options, pixels: np.ndarray) -> np.ndarray:
    """
    Raises:
        ValueError: the picture is too long.
        NotImplementedError: a user's own imagenet_reader.py does not tell how.
    """
    side = input_shape(options)[1]
    if options.data in SMALL:
        return SMALL[options.data].to_input(pixels, side)
    import imagenet_reader

    if not hasattr(imagenet_reader, "to_input"):
        raise NotImplementedError("--predict: imagenet_reader.py has no function to_input")
    return imagenet_reader.to_input(pixels, side)


def make_model(options, pretrained: bool = False):
    """A network of paddle.vision.models, tried on one blank picture of the data set's size.

    Raises:
        ValueError: it has no such width or no pretrained weights, they cannot be downloaded, or it
            does not take pictures of this size.
    """
    name, scale = options.model, options.scale
    constructor = getattr(models, name)
    width = {} if scale == 1 else {"scale": scale}
    if width and "scale" not in inspect.signature(constructor).parameters:
        raise ValueError(f"{name} has one width only; leave --scale out")
    arguments = {"pretrained": pretrained, "num_classes": options.num_classes, **width}
    model = build(lambda: constructor(**arguments), name, scale, pretrained)
    shape = input_shape(options)
    model.eval()
    try:
        with paddle.no_grad():
            outputs = model(paddle.zeros([1, *shape]))
        logits = main_output(outputs)
        fits = math.isfinite(float(logits.sum()))  # Inception averages over nothing and gives NaN
    except Exception:
        fits = False
    if not fits:
        raise ValueError(f"{name} does not take pictures of {shape[1]}x{shape[2]}")
    return model


def loss(outputs, targets: list[paddle.Tensor], label_smoothing: float = 0.0) -> paddle.Tensor:
    """Mean cross entropy; GoogLeNet's two auxiliary outputs count 0.3 each, as in its paper.

    Args:
        label_smoothing: the part of a label that is spread over all classes, its own included
            (Szegedy et al., 2016).
    """

    def cross_entropy(logits: paddle.Tensor) -> paddle.Tensor:
        if label_smoothing:  # Paddle rounds smoothed labels to the logits' dtype, --amp's float16
            logits = logits.astype("float32")
        (labels,) = targets
        return F.cross_entropy(logits, labels.flatten(), label_smoothing=label_smoothing)

    main, *auxiliary = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    total = cross_entropy(main)
    for output in auxiliary:
        total = total + 0.3 * cross_entropy(output)
    return total


def counts(outputs, targets: list[paddle.Tensor], mean_loss: paddle.Tensor) -> paddle.Tensor:
    """float64 [4] on the device: sum of the loss, hits of top-1, hits of top-5, samples."""
    return counts_of(hits(outputs, targets), mean_loss)


def counts_of(found: paddle.Tensor, mean_loss: paddle.Tensor) -> paddle.Tensor:
    """counts() of hits()."""
    samples = paddle.full([], found.shape[0], "float64")
    loss_sum = mean_loss.detach().astype("float64") * samples
    sums = [loss_sum, found[:, 0].sum(), found.sum(), samples]
    return paddle.stack([s.reshape([]) for s in sums])


def hits(outputs, targets: list[paddle.Tensor]) -> paddle.Tensor:
    """float64 [N, 5]: 1 where the label is the likeliest class, the second likeliest, ..."""
    logits, (labels,) = main_output(outputs), targets
    likeliest = paddle.topk(logits, min(5, logits.shape[1]))[1]
    return (likeliest == labels.reshape([-1, 1])).astype("float64")


def predictions(outputs, pixels: np.ndarray, names: list[str] | None) -> list[dict]:
    """The five likeliest classes."""
    logits = main_output(outputs)[0].astype("float32")
    values, labels = paddle.topk(F.softmax(logits), min(5, len(logits)))
    return [
        {"probability": probability, "label": label, "class": class_name(names, label)}
        for probability, label in zip(values.tolist(), labels.tolist())
    ]


def main_output(outputs) -> paddle.Tensor:
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs


class Metric:
    """Accuracies and loss over a test set, exact for unequal batches."""

    def __init__(self, dataset):
        self.names = class_names(dataset)
        self.totals = paddle.zeros([len(COUNTED) + 1], "float64")
        self.tested = []  # of each batch: labels and whether they were found, [N] each

    def add(self, outputs, targets: list[paddle.Tensor]) -> None:
        found = hits(outputs, targets)
        self.tested.append((targets[0].flatten(), found[:, 0]))
        self.totals += counts_of(found, F.cross_entropy(main_output(outputs), *targets))

    def result(self) -> dict:
        """loss, top1, top5 (fractions) and samples, of all ranks together."""
        if dist.get_world_size() > 1:
            dist.all_reduce(self.totals)
        return summarize(self.totals, COUNTED)

    def per_class(self) -> list[dict]:
        labels, right = (paddle.concat(column).numpy() for column in zip(*self.tested))
        count = max(labels.max() + 1, len(self.names or []))
        samples = np.bincount(labels, minlength=count).tolist()
        found = np.bincount(labels, right, minlength=count).tolist()
        return [
            {
                "class": class_name(self.names, label),
                "samples": samples[label],
                "top1": found[label] / samples[label] if samples[label] else None,
            }
            for label in range(count)
        ]
