"""Detection: YOLOv3 on Pascal VOC, its loss, and mean average precision."""

from __future__ import annotations

import os

import cv2
import numpy as np
import paddle
import paddle.distributed as dist

from readers.voc import VOCDataset, read_classes
from tasks import yolov3
from tasks.mean_ap import average_precision, hits
from tasks.measure import build

DATA = ["voc"]
MODELS = ["yolov3"]
COUNTED = ("loss",)  # while training, as means over the samples
MEASURED = ("map_11point", "map_area")  # by the metric; the first one tells which weights are best
SHOWN_SCORE, SHOWN_PICTURES = 0.3, 100  # which detections are drawn, and how many pictures


def num_classes(options) -> int:
    return len(read_classes(folder(options)))


def input_shape(options) -> tuple[int, int, int]:
    return (3, options.image_size, options.image_size)


def folder(options) -> str:
    places = ("data/VOCdevkit", "VOCdevkit")
    return options.data_dir or next((p for p in places if os.path.isdir(p)), places[0])


def make_dataset(options, mode: str) -> VOCDataset:
    """'train' or 'val'. Setting its `epoch` varies augmentation."""
    dataset = VOCDataset(
        folder(options),
        mode,
        options.image_size,
        options.augmentation,
        options.mixup_epochs,
        options.seed,
    )
    if len(dataset.classes) != options.num_classes:
        raise ValueError(
            f"{folder(options)} has {len(dataset.classes)} classes, the model "
            f"{options.num_classes}; label_list.txt there names them"
        )
    return dataset


def make_model(options, pretrained: bool = False) -> yolov3.YOLOv3:
    """Raises ValueError: its ImageNet weights cannot be had."""
    arguments = options.num_classes, options.scale, pretrained
    return build(lambda: yolov3.YOLOv3(*arguments), options.model, options.scale, pretrained)


def loss(outputs, targets: list[paddle.Tensor]) -> paddle.Tensor:
    return yolov3.loss(outputs, *targets).mean()


def counts(outputs, targets: list[paddle.Tensor], mean_loss: paddle.Tensor) -> paddle.Tensor:
    """float64 [2] on the device: sum of the loss, samples."""
    samples = paddle.full([], outputs[0].shape[0], "float64")
    return paddle.stack([mean_loss.detach().astype("float64").reshape([]) * samples, samples])


class Metric:
    """Mean average precision at IoU 0.5 over a test set, ranked over all of it."""

    def __init__(self, dataset: VOCDataset):
        self.dataset = dataset
        self.rows = [np.zeros((0, 4))]  # class, score, 0 or 1, sample
        self.found = {}  # by sample, the first ones: boxes, scores, classes

    def add(self, outputs, targets: list[paddle.Tensor]) -> None:
        sizes, indices = targets
        for index, found in zip(indices.tolist(), yolov3.detections(outputs, sizes)):
            self.count(index, *found)

    def count(self, index: int, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """What was found in picture `index`, the highest score first."""
        if index < SHOWN_PICTURES:
            self.found[index] = boxes, scores, classes
        truth = self.dataset.objects[index]
        for label in np.unique(classes):
            mine, there = classes == label, truth.labels == label
            right = hits(boxes[mine], truth.boxes[there], truth.difficult[there])
            rows = np.full((len(right), 4), (label, 0, 0, index), np.float64)
            rows[:, 1], rows[:, 2] = scores[mine], right
            self.rows.append(rows[right >= 0])

    def result(self) -> dict:
        """map_11point, map_area (fractions) and samples, of all ranks together."""
        rows = gathered(np.concatenate(self.rows))
        rows = rows[np.lexsort((rows[:, 3], -rows[:, 1]))]  # also by sample, as scores may tie
        objects = self.dataset.objects
        self.by_class = {}
        for label, name in enumerate(self.dataset.classes):
            positives = sum(int((~o.difficult & (o.labels == label)).sum()) for o in objects)
            self.by_class[name] = average_precision(rows[rows[:, 0] == label, 2], positives)
        means = np.nanmean(list(self.by_class.values()), axis=0)  # NaN: not in the test set
        return {**dict(zip(MEASURED, means.tolist())), "samples": len(objects)}

    def table(self) -> str:
        """Average precision by class."""
        lines = [f"{'class':20} 11-point     area"]
        lines += [
            f"{name:20} {p11:8.4f} {area:8.4f}" for name, (p11, area) in self.by_class.items()
        ]
        return "\n".join(lines)

    def show(self, into: str) -> None:
        """Draws the first pictures with what was found and, to the right, what is there."""
        for index, (boxes, scores, classes) in self.found.items():
            pixels, truth = self.dataset.pixels(index), self.dataset.objects[index]
            names = [self.dataset.classes[label] for label in classes]
            marks = [f"{name} {score:.2f}" for name, score in zip(names, scores)]
            clear = scores >= SHOWN_SCORE
            found = drawn(
                pixels, boxes[clear], classes[clear], [m for m, c in zip(marks, clear) if c]
            )
            names = [self.dataset.classes[label] for label in truth.labels]
            names = [n + " (difficult)" * bool(d) for n, d in zip(names, truth.difficult)]
            there = drawn(pixels, truth.boxes, truth.labels, names)
            path = os.path.join(into, f"{self.dataset.names[index][1]}.png")
            both = np.concatenate([found, np.full_like(found[:, :4], 255), there], 1)
            data = cv2.imencode(".png", cv2.cvtColor(both, cv2.COLOR_RGB2BGR))[1]
            with open(path, "wb") as file:
                file.write(data)


def drawn(pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, names: list) -> np.ndarray:
    """The picture, its longer side 512 pixels, with boxes and names; a colour a class."""
    scale = 512 / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    for box, label, name in zip(boxes, labels, names):
        x1, y1, x2, y2 = (round(float(edge)) for edge in box * scale)
        hue = np.uint8([[[label * 67 % 180, 255, 255]]])
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        cv2.rectangle(pixels, (x1, y1), (x2 - 1, y2 - 1), colour, 2)
        at = (x1 + 3, y1 + 14)
        cv2.putText(pixels, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(
            pixels, name, at, cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA
        )
    return pixels


def gathered(rows: np.ndarray) -> np.ndarray:
    """The rows of all ranks; each has another number of them."""
    if dist.get_world_size() == 1:
        return rows
    lengths, parts = [], []
    dist.all_gather(lengths, paddle.to_tensor([len(rows)], dtype="int64"))
    lengths = [int(length[0]) for length in lengths]
    padded = np.zeros((max(*lengths, 1), 4))
    padded[: len(rows)] = rows
    dist.all_gather(parts, paddle.to_tensor(padded))
    return np.concatenate([part.numpy()[:length] for part, length in zip(parts, lengths)])
