"""ImageNet, or pictures of yours in classes, as a paddle.io.Dataset.

    data_dir/train_list.txt     one picture a line: `relative/path label`; the path may hold blanks
    data_dir/val_list.txt       the same; labels are 0 .. num_classes - 1

or, where there is no such list, a folder a class, labelled in the order of their sorted names:

    data_dir/train/<class>/*.jpg
    data_dir/val/<class>/*.jpg

    dataset = ImageNetDataset("data/ILSVRC2012", "train")
    for epoch in range(120):
        dataset.epoch = epoch  # another part of every picture in every epoch
        for images, labels in paddle.io.DataLoader(dataset, batch_size=64, num_workers=16):
            ...  # float32 [64, 3, 224, 224], int64 [64]

For anything else rewrite this file: nothing but `--data imagenet` imports it. What the programs use
is `ImageNetDataset(data_dir, mode, num_classes=, seed=)` with mode 'train' or 'val',
`len(dataset)`, `dataset[i]`, which is (float32 [3, 224, 224], label), `epoch`, which is set before
each, and `mode`, which may become 'val' later: training pictures are then given as in a test. Only
if they are there: the argument `image_size=` (without it there is no `--image_size`); the argument
and attribute `classes`, names that are kept with a checkpoint; and the function `to_input`, with
which evaluate.py --predict brings any picture to the network.

`python -m benchmarks.reader` measures the speed.
"""

from __future__ import annotations

import io
import os
import re
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import numpy as np
import paddle

from readers.pictures import (
    center_crop,
    decode,
    normalize,
    open_file,
    random_crop,
    random_flip,
    read_file,
    resize_short,
)
from readers.printable import printable

MAX_LINE = 8192  # bytes of a list's line; a path of Linux has 4096
MAX_IMAGE_SIZE = 4096
ENDS = tuple(b".jpg .jpeg .png .webp .bmp .gif .tif .tiff .ppm .pgm".split())  # of a picture


class ImageNetDataset(paddle.io.Dataset):
    """Item i is (image, label): normalised float32 [3, image_size, image_size], int64.

    'train': a random part of the picture, resized, and one in two mirrored, as a function of
    (seed, epoch, i) alone. Set `epoch` before the loader is iterated: its workers hold a copy.
    'val': the short side resized to image_size * 256 / 224, then the middle square.

    `classes` gives the order of the folders' names; without it they are sorted, those of train/
    where there is one. The attribute of this name is None where a list gives the labels.

    Raises ValueError or FileNotFoundError: here if anything is wrong in the list or the folders,
    from an item if its picture is missing, cut short, too large or not a picture.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike,
        mode: str,
        image_size: int = 224,
        num_classes: int = 1000,
        seed: int = 0,
        classes: list[str] | None = None,
    ):
        if mode not in ("train", "val"):
            raise ValueError(f"mode must be 'train' or 'val', got {mode!r}")
        if not 1 <= image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size must be in 1..{MAX_IMAGE_SIZE}, got {image_size}")
        if not os.path.isdir(data_dir):
            raise FileNotFoundError(f"there is no data folder {data_dir}; give another --data_dir")
        self.data_dir = os.fspath(data_dir)
        self.mode = mode
        self.image_size = image_size
        self.num_classes = num_classes
        self.seed = seed
        self.epoch = 0
        lists = [os.path.join(self.data_dir, f"{each}_list.txt") for each in ("train", "val")]
        self.list_file = lists[mode == "val"]
        if any(map(os.path.lexists, lists)):  # also a link to nowhere
            self.classes = None
            self.paths, self.labels, self.lines = read_list(self.list_file, num_classes)
        else:
            self.classes = classes or class_folders(self.data_dir)
            self.lines = None
            self.paths, self.labels = read_folders(self.data_dir, mode, self.classes, num_classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        path = os.path.join(self.data_dir, os.fsdecode(self.paths[index]))
        try:
            pixels = decode(read_file(path), fast=self.mode == "train")
        except (FileNotFoundError, ValueError) as error:
            hint = "replace or delete the picture"
            if self.lines is not None:
                line = self.lines[index]
                hint = f"replace the picture or delete line {line} of {self.list_file}"
            raise type(error)(f"{printable(path)}: {error}; {hint}") from None
        if self.mode == "train":
            rng = np.random.default_rng((self.seed, self.epoch, index % len(self)))
            image = normalize(random_flip(random_crop(pixels, self.image_size, rng), rng))
        else:
            image = to_input(pixels, self.image_size)
        return image, self.labels[index]


def to_input(pixels: np.ndarray, image_size: int = 224) -> np.ndarray:
    """RGB pixels, uint8 [H, W, 3], as a test picture: float32 [3, image_size, image_size]."""
    pixels = resize_short(pixels, round(image_size * 256 / 224))
    return normalize(center_crop(pixels, image_size))


def class_folders(data_dir: str) -> list[str]:
    """The classes that a data folder has, sorted: the folders in its train/, or else in its val/.

    Raises:
        FileNotFoundError: there is none.
    """
    for split in (os.path.join(data_dir, mode) for mode in ("train", "val")):
        if os.path.isdir(split):
            return folders_in(split)
    raise FileNotFoundError(
        f"{data_dir} has no train_list.txt or val_list.txt with lines of `relative/path label`, "
        "and no train/ or val/ with a folder a class"
    )


def folders_in(split: str) -> list[str]:
    """Names of the folders in train/ or val/, sorted; FileNotFoundError if there is none."""
    with os.scandir(split) as entries:  # hidden: .ipynb_checkpoints and the like
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"{split} has no folder a class")
    return names


def read_folders(
    data_dir: str, mode: str, classes: list[str], num_classes: int
) -> tuple[Names, np.ndarray]:
    """Path (bytes) and label (int64) of every picture in mode/<class>/ and the folders below.

    Raises:
        ValueError: there are too many classes, an unknown one, or no pictures.
        FileNotFoundError: a folder is missing.
    """
    if len(classes) > num_classes:
        raise ValueError(
            f"{data_dir} has {len(classes)} classes, more than {num_classes}; "
            f"give --num_classes {len(classes)}"
        )
    split = os.path.join(data_dir, mode)
    if not os.path.isdir(split):
        raise FileNotFoundError(f"there is no {split} with a folder a class")
    labels_of = {name: label for label, name in enumerate(classes)}
    paths, labels = [], []
    for name in folders_in(split):
        if name not in labels_of:
            there = ", ".join(classes[:5]) + ", ..." * (len(classes) > 5)
            raise ValueError(f"{split}/{name} is none of the {len(classes)} classes {there}")
        before = len(paths)
        for folder, below, files in os.walk(os.fsencode(os.path.join(split, name))):
            below[:] = sorted(each for each in below if not each.startswith(b"."))
            relative = os.path.relpath(folder, os.fsencode(data_dir))
            paths += [
                os.path.join(relative, file)
                for file in sorted(files)
                if file.lower().endswith(ENDS) and not file.startswith(b".")
            ]
        if len(paths) == before and mode == "train":
            raise ValueError(f"{split}/{name} holds no picture; put some there or remove it")
        labels += [labels_of[name]] * (len(paths) - before)
    if not paths:
        raise ValueError(f"the folders in {split} hold no picture")
    return Names(paths), np.array(labels, np.int64)


def read_list(list_file: str, num_classes: int) -> tuple[Names, np.ndarray, np.ndarray]:
    """Path (bytes), label (int64) and line number of every sample, all lines checked.

    In arrays, as a million Python objects would be copied into every worker, by the mere counting
    of references to them. In bytes, as the name of a file may be in any encoding.

    Raises:
        FileNotFoundError: there is no such list.
        ValueError: a line is wrong, which the message names, or there is none.
    """
    try:
        file = io.TextIOWrapper(open_file(list_file), "latin-1")  # gives every byte back
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{list_file}: {error}; it lists `relative/path label`") from None
    paths, labels, lines = [], [], []
    with file:
        for number, text in enumerate(iter(lambda: file.readline(MAX_LINE), ""), 1):
            if len(text) == MAX_LINE:
                raise ValueError(f"{list_file}, line {number}: has {MAX_LINE} bytes or more")
            line = text.encode("latin-1").strip()
            fields = line.rsplit(maxsplit=1)  # at the last blank
            if not fields:
                continue
            path, label = fields if len(fields) == 2 else (fields[0], b"")
            if not label.isdigit() or len(label) > 18 or int(label) >= num_classes:
                expected = f"`relative/path label` with a label in 0..{num_classes - 1}"
                found = os.fsdecode(line[:200])
                raise ValueError(f"{list_file}, line {number}: must be {expected}, got {found!r}")
            if os.path.isabs(path) or (b".." in path and b".." in re.split(rb"[/\\]", path)):
                found = f"{os.fsdecode(path[:200])!r} is not inside the data folder"
                raise ValueError(f"{list_file}, line {number}: {found}")
            paths.append(path)
            labels.append(int(label))
            lines.append(number)
    if not paths:
        raise ValueError(f"{list_file}: no samples; each line must be `relative/path label`")
    return Names(paths), np.array(labels, np.int64), np.array(lines)


class Names:
    """Byte strings in one piece. (In an array each would be as long as the longest.)"""

    def __init__(self, names: list[bytes]):
        self.text = b"".join(names)
        self.lengths = np.array([len(name) for name in names])
        self.ends = np.cumsum(self.lengths)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        return self.text[self.ends[index] - self.lengths[index] : self.ends[index]]
