"""Detection: YOLOv3 on Pascal VOC, its loss, and mean average precision."""

from __future__ import annotations

import math
import os

import numpy as np
import paddle
import paddle.distributed as dist

from readers import voc
from readers.printable import printable
from readers.voc import VOCDataset, read_classes
from tasks import yolov3
from tasks.drawing import draw_boxes, side_by_side, write_png
from tasks.mean_ap import average_precision, hits
from tasks.measure import build, class_name

DATA = ["voc"]
MODELS = ["yolov3"]
COUNTED = ("loss",)  # while training, as means over the samples
MEASURED = ("map_11point", "map_area")  # by the metric; the first one tells which weights are best
MIN_SHOWN_SCORE = 0.3  # of a detection that is drawn
MAX_SHOWN_PICTURES = 100


def num_classes(options) -> int:
    return len(read_classes(data_folder(options)))


def input_shape(options) -> tuple[int, int, int]:
    return (3, options.image_size, options.image_size)


def data_folder(options) -> str:
    places = ("data/VOCdevkit", "VOCdevkit")
    return options.data_dir or next((p for p in places if os.path.isdir(p)), places[0])


def make_dataset(options, mode: str) -> VOCDataset:
    """mode is 'train' or 'val'. Setting the data set's `epoch` varies augmentation.

    Raises:
        ValueError, FileNotFoundError: as VOCDataset; or it has another number of classes.
    """
    dataset = VOCDataset(
        data_folder(options),
        mode,
        image_size=options.image_size,
        augmentation=options.augmentation,
        mixup_epochs=options.mixup_epochs,
        seed=options.seed,
    )
    if len(dataset.classes) != options.num_classes:
        raise ValueError(
            f"{data_folder(options)} has {len(dataset.classes)} classes, the model "
            f"{options.num_classes}; label_list.txt there names them"
        )
    return dataset


def to_input(options, pixels: np.ndarray) -> np.ndarray:
    """
    Raises:
        ValueError: the picture is too long.
    """
    return voc.to_input(pixels, options.image_size)


def make_model(options, pretrained: bool = False) -> yolov3.YOLOv3:
    """
    Raises:
        ValueError: it cannot be as narrow or as wide, or its ImageNet weights cannot be had.
    """
    arguments = options.num_classes, options.scale, pretrained
    return build(lambda: yolov3.YOLOv3(*arguments), options.model, options.scale, pretrained)


def loss(outputs, targets: list[paddle.Tensor]) -> paddle.Tensor:
    return yolov3.loss(outputs, *targets).mean()


def counts(outputs, targets: list[paddle.Tensor], mean_loss: paddle.Tensor) -> paddle.Tensor:
    """float64 [2] on the device: sum of the loss, samples."""
    samples = paddle.full([], outputs[0].shape[0], "float64")
    return paddle.stack([mean_loss.detach().astype("float64").reshape([]) * samples, samples])


def predictions(outputs, pixels: np.ndarray, names: list[str] | None) -> list[dict]:
    """What is found in a picture with a score of at least 0.3; boxes as of yolov3.detections().

    Boxes that lay outside of the picture have no area, and are left out.
    """
    sizes = paddle.to_tensor([pixels.shape[:2]], "int32")
    ((boxes, scores, labels),) = yolov3.detections(outputs, sizes)
    return [
        {"score": score, "label": label, "class": class_name(names, label), "box": box}
        for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist())
        if score >= MIN_SHOWN_SCORE and box[0] < box[2] and box[1] < box[3]
    ]


def draw(pixels: np.ndarray, found: list[dict], path: str) -> None:
    """Writes a PNG of the picture with what predictions() found in it."""
    boxes = np.float32([each["box"] for each in found])
    texts = [f"{printable(each['class'])} {each['score']:.2f}" for each in found]
    write_png(path, draw_boxes(pixels, boxes, [each["label"] for each in found], texts))


class Metric:
    """Mean average precision at IoU 0.5 over a test set, ranked over all of it."""

    def __init__(self, dataset: VOCDataset):
        self.dataset = dataset
        self.rows = [np.zeros((0, 4))]  # class, score, 0 or 1, sample
        self.found = {}  # sample: (boxes, scores, classes), of the first ones

    def add(self, outputs, targets: list[paddle.Tensor]) -> None:
        sizes, indices = targets
        for index, found in zip(indices.tolist(), yolov3.detections(outputs, sizes)):
            self.count(index, *found)

    def count(self, index: int, boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray) -> None:
        """Takes what was found in picture `index`: a picture's part of yolov3.detections()."""
        if index < MAX_SHOWN_PICTURES:
            self.found[index] = boxes, scores, classes
        truth = self.dataset.objects[index]
        for label in np.unique(classes):
            detected, present = classes == label, truth.labels == label
            right = hits(boxes[detected], truth.boxes[present], truth.difficult[present])
            rows = np.full((len(right), 4), (label, 0, 0, index), np.float64)
            rows[:, 1], rows[:, 2] = scores[detected], right
            self.rows.append(rows[right >= 0])

    def result(self) -> dict:
        """map_11point, map_area (fractions) and samples, of all ranks together."""
        rows = gathered(np.concatenate(self.rows))
        rows = rows[np.lexsort((rows[:, 3], -rows[:, 1]))]  # also by sample, as scores may tie
        objects = self.dataset.objects
        self.by_class, self.positives = {}, {}
        for label, name in enumerate(self.dataset.classes):
            positives = sum(int((~o.difficult & (o.labels == label)).sum()) for o in objects)
            self.by_class[name] = average_precision(rows[rows[:, 0] == label, 2], positives)
            self.positives[name] = positives
        means = np.nanmean(list(self.by_class.values()), axis=0)  # NaN: not in the test set
        return {**dict(zip(MEASURED, means.tolist())), "samples": len(objects)}

    def per_class(self) -> list[dict]:
        """Objects, without difficult ones, and average precision in both forms."""
        return [
            {
                "class": name,
                "objects": self.positives[name],
                "ap_11point": None if math.isnan(p11) else p11,
                "ap_area": None if math.isnan(area) else area,
            }
            for name, (p11, area) in self.by_class.items()
        ]

    def show(self, folder: str) -> None:
        """Draws the first pictures as PNGs: on the left what was found, on the right the truth."""
        for index, (boxes, scores, classes) in self.found.items():
            shown = scores >= MIN_SHOWN_SCORE
            path = os.path.join(folder, f"{self.dataset.names[index][1]}.png")
            write_png(path, side_by_side(
                self.dataset.pixels(index), (boxes[shown], scores[shown], classes[shown]),
                self.dataset.objects[index], self.dataset.classes,
            ))  # fmt: skip


def gathered(rows: np.ndarray) -> np.ndarray:
    """The rows, float64 [N, 4], of all ranks, each with an N of its own."""
    if dist.get_world_size() == 1:
        return rows
    lengths, parts = [], []
    dist.all_gather(lengths, paddle.to_tensor([len(rows)], dtype="int64"))
    lengths = [int(length[0]) for length in lengths]
    padded = np.zeros((max(*lengths, 1), 4))
    padded[: len(rows)] = rows
    dist.all_gather(parts, paddle.to_tensor(padded))
    return np.concatenate([part.numpy()[:length] for part, length in zip(parts, lengths)])
