"""Pascal VOC, or pictures of yours in its layout, as a paddle.io.Dataset.

    data_dir/VOC2007/, data_dir/VOC2012/      either or both; or data_dir itself holds
        JPEGImages/000001.jpg                 (or .jpeg, .png)
        Annotations/000001.xml
        ImageSets/Main/trainval.txt, test.txt     names a line; where no year has a test.txt,
        ImageSets/Main/train.txt, val.txt         these
    data_dir/label_list.txt                   names of the classes, in order; else VOC's twenty

At the start all annotations are read and checked, and it is seen that every picture has a file.
"""

from __future__ import annotations

import os
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import paddle

from readers.pictures import (
    check_edges,
    decode,
    normalize,
    open_file,
    read_file,
    resize,
    squeeze,
)
from readers.voc_augment import AUGMENTATIONS, Sample, mixup, target

CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
]
YEARS = ("VOC2007", "VOC2012")
MAX_XML = 1 << 20  # bytes; VOC's largest annotation has 16,000
MAX_LIST = 64 << 20  # bytes; a million names of VOC's have 12 million
MAX_LABELS = 128 << 10  # bytes; the 9,418 names of YOLO9000 have 99,137
ENDS = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
MAX_TRAIN_EDGE = 1024  # pixels before expand(), which makes up to 4 times as many; VOC has 500


class Objects(NamedTuple):
    """What an annotation says of its picture."""

    boxes: np.ndarray  # float32 [N, 4]: x1, y1, x2, y2 in pixels, as in a Sample
    labels: np.ndarray  # int32 [N]
    difficult: np.ndarray  # bool [N]
    size: tuple[int, int] | None  # height and width of the picture, None where it does not say


class VOCDataset(paddle.io.Dataset):
    """Objects in pictures.

    'train': item i, or (i, size), is the image, float32 [3, size, size], and 50 boxes, float32
    [50, 4] (middle, width, height in 0..1, zeros behind the last), their labels, int32 [50], and
    weights, float32 [50]; augmented as a function of (seed, epoch, i). Set `epoch` before the
    loader is iterated.
    'val': the image, resized without keeping its ratio, int32 [2], its height and width before,
    and i; `objects[i]` is what there is to be found.

    Raises ValueError or FileNotFoundError: here if anything is wrong in a list or an annotation,
    from an item if its picture is.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike,
        mode: str,
        image_size: int = 416,
        augmentation: str = "full",
        mixup_epochs: int = 0,
        seed: int = 0,
    ):
        if mode not in ("train", "val"):
            raise ValueError(f"mode must be 'train' or 'val', got {mode!r}")
        if not 32 <= image_size <= 4096 or image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32 up to 4096, got {image_size}")
        self.mode, self.image_size, self.seed, self.epoch = mode, image_size, seed, 0
        if augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation must be one of {AUGMENTATIONS}, got {augmentation!r}")
        self.transforms = AUGMENTATIONS[augmentation]
        self.mixup_epochs = mixup_epochs if augmentation == "full" else 0
        self.classes = read_classes(data_dir)
        self.names = list_names(os.fspath(data_dir), mode)
        self.paths = [find_picture(folder, name) for folder, name in self.names]
        self.objects = [
            read_annotation(os.path.join(folder, "Annotations", f"{name}.xml"), self.classes)
            for folder, name in self.names
        ]
        if mode == "val" and not any((~o.difficult).any() for o in self.objects):
            raise ValueError(f"{data_dir}: no object in the test pictures: nothing to measure")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple:
        index, size = key if isinstance(key, tuple) else (key, self.image_size)
        if self.mode == "val":
            pixels = self.pixels(index)
            shape = np.array(pixels.shape[:2], np.int32)
            return to_input(pixels, size), shape, np.int64(index)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        sample = self.sample(index)
        if self.epoch < self.mixup_epochs:
            other = self.sample(int(rng.integers(len(self))))
            sample = mixup(sample, other, rng.beta(1.5, 1.5))
        for transform in self.transforms:
            sample = transform(sample, rng)
        return target(sample, size)

    def pixels(self, index: int) -> np.ndarray:
        """The picture as it is, uint8 [H, W, 3]."""
        path = self.paths[index]
        try:
            pixels = decode(read_file(path), fast=self.mode == "train")
            shape, objects = pixels.shape[:2], self.objects[index]
            check_edges(*shape)
            if objects.size is None:  # its annotation does not tell
                self.objects[index] = objects._replace(
                    boxes=inside(objects.boxes, shape), size=shape
                )
            elif objects.size != shape:
                found = "{1} x {0} pixels, its annotation says {3} x {2}"
                raise ValueError(found.format(*shape, *objects.size))
        except (FileNotFoundError, ValueError) as error:
            name = self.names[index][1]
            raise type(error)(f"{path}: {error}; replace it or take {name} off the list") from None
        return pixels

    def sample(self, index: int) -> Sample:
        pixels, objects = self.pixels(index), self.objects[index]
        shrink = min(1.0, MAX_TRAIN_EDGE / max(pixels.shape[:2]))
        if shrink < 1:
            pixels = resize(pixels, *(max(1, round(side * shrink)) for side in pixels.shape[:2]))
        weights = np.ones(len(objects.boxes), np.float32)
        return Sample(pixels, objects.boxes * np.float32(shrink), objects.labels, weights)


def to_input(pixels: np.ndarray, size: int) -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3], as a test picture: float32 [3, size, size].

    Raises:
        ValueError: the picture is too long.
    """
    return normalize(squeeze(pixels, size))


def read_classes(data_dir: str | os.PathLike) -> list[str]:
    """The names of the classes, from label_list.txt or VOC's.

    Raises:
        ValueError: it names none, or one twice, is too large or not in UTF-8.
    """
    path = os.path.join(data_dir, "label_list.txt")
    if not os.path.exists(path):
        return CLASSES
    classes = [line.strip() for line in read_text(path, MAX_LABELS).splitlines() if line.strip()]
    twice = len(set(classes)) < len(classes)
    if twice or not classes:
        why = "a name stands there twice" if twice else "it names no class"
        raise ValueError(f"{path}: {why}; one name a line")
    return classes


def read_text(path: str, max_bytes: int) -> str:
    """
    Raises:
        FileNotFoundError, ValueError: naming the file, which is missing, larger or not in UTF-8.
    """
    try:
        with open_file(path) as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from None
    if len(data) > max_bytes:
        raise ValueError(f"{path} has more than {max_bytes:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8: {error.reason}") from None


def list_names(data_dir: str, mode: str) -> list[tuple[str, str]]:
    """Folder and name of every picture of 'train' or 'val'.

    Raises:
        FileNotFoundError: there is no list, or an empty one.
        ValueError: a line names no picture.
    """
    if not os.path.isdir(data_dir):
        raise FileNotFoundError(f"there is no data folder {data_dir}; give another --data_dir")
    years = [os.path.join(data_dir, year) for year in YEARS]
    folders = [folder for folder in years if os.path.isdir(folder)] or [data_dir]

    def lists(which: str) -> list[tuple[str, str]]:
        paths = ((f, os.path.join(f, "ImageSets", "Main", f"{which}.txt")) for f in folders)
        return [(folder, path) for folder, path in paths if os.path.exists(path)]

    splits = ("trainval", "test") if lists("test") else ("train", "val")
    which = splits[mode == "val"]
    chosen = lists(which)[:1] if which == "test" else lists(which)  # 2012's test has no boxes
    names = []
    for folder, path in chosen:
        for number, line in enumerate(read_text(path, MAX_LIST).splitlines(), 1):
            name = line.split()[0] if line.split() else ""  # lists of one class have a flag behind
            if "/" in name or "\\" in name or "\0" in name:
                raise ValueError(f"{path}, line {number}: {name[:200]!r} is no name of a picture")
            if name:
                names.append((folder, name))
    if not names:
        path = os.path.join(folders[0], "ImageSets", "Main", f"{which}.txt")
        raise FileNotFoundError(
            f"{path} is missing or empty; --data_dir must hold VOC2007 or VOC2012, or "
            "JPEGImages, Annotations and ImageSets/Main of your own"
        )
    return names


def find_picture(folder: str, name: str) -> str:
    """The path of the picture of this name; FileNotFoundError if there is none."""
    paths = [os.path.join(folder, "JPEGImages", name + end) for end in ENDS]
    for path in paths:
        if os.path.exists(path):
            return path
    raise FileNotFoundError(f"{paths[0]} is missing; put it there or take {name} off the list")


def read_annotation(path: str, classes: list[str]) -> Objects:
    """The objects of a picture; there may be none.

    VOC counts pixels from 1 and means the last one included: x1 and y1 become smaller by 1.

    Raises:
        ValueError, FileNotFoundError: naming the file, and what is wrong.
    """
    text = read_text(path, MAX_XML)
    try:
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise ValueError("it declares a document type or entities, which no annotation needs")
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(f"it is no XML ({error})") from None
        if root.tag != "annotation":
            raise ValueError(f"it is no annotation, but {root.tag[:100]!r}")
        size = root.find("size")
        size = None if size is None else (round(value(size, "height")), round(value(size, "width")))
        size = None if size is None or 0 in size else size
        boxes, labels, difficult = [], [], []
        for number, entry in enumerate(root.findall("object"), 1):
            name = (entry.findtext("name") or "").strip()
            box = entry.find("bndbox")
            if box is None or name not in classes:
                what = "has no bndbox" if box is None else f"is of unknown class {name[:100]!r}"
                raise ValueError(f"object {number} {what}")
            x1, y1, x2, y2 = (value(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
            flag = (entry.findtext("difficult") or "0").strip()
            if flag not in ("0", "1"):
                raise ValueError(f"object {number}: difficult is {flag[:100]!r}, not 0 or 1")
            boxes.append([x1 - 1, y1 - 1, x2, y2])
            labels.append(classes.index(name))
            difficult.append(flag == "1")
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        boxes = inside(boxes, (np.inf, np.inf) if size is None else size)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Objects(boxes, np.array(labels, np.int32), np.array(difficult, bool), size)


def inside(boxes: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """The boxes, float32 [N, 4], clipped to a picture of this height and width.

    Raises:
        ValueError: an edge lies more than a pixel outside, or a box has no area.
    """
    edges = np.float32([size[1], size[0], size[1], size[0]])
    clipped = np.minimum(boxes.clip(0), edges)
    for number, (box, cut) in enumerate(zip(boxes, clipped), 1):
        if np.abs(cut - box).max() > 1:
            raise ValueError(f"object {number}: its box leaves the picture")
        if not (cut[:2] < cut[2:]).all():
            raise ValueError(f"object {number}: its box has no area")
    return clipped


def value(element: ElementTree.Element, key: str) -> float:
    """A number below 10 million, as some of VOC's have a fraction."""
    text = (element.findtext(key) or "").strip()
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1e7:
        raise ValueError(f"{element.tag} has no {key} that is a number, but {text[:100]!r}")
    return number
