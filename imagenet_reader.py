"""ImageNet, or any folder of pictures with a list of labels, as a paddle.io.Dataset.

    data_dir/train_list.txt     one picture a line: `relative/path label`; the path may hold blanks
    data_dir/val_list.txt       the same; labels are 0 .. num_classes - 1

    dataset = ImageNetDataset("data/ILSVRC2012", "train")
    for epoch in range(120):
        dataset.epoch = epoch  # another part of every picture in every epoch
        for images, labels in paddle.io.DataLoader(dataset, batch_size=64, num_workers=16):
            ...  # float32 [64, 3, 224, 224], int64 [64]

For a data set of yours write two such lists, or rewrite this file: what the programs use is
`ImageNetDataset(data_dir, mode, num_classes=, seed=)`, `len(dataset)`, `dataset[i]` and `epoch`.

`python benchmarks/reader.py` measures the speed.
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

MAX_LINE = 8192  # bytes of a list's line; a path of Linux has 4096


class ImageNetDataset(paddle.io.Dataset):
    """Item i is (image, label): normalised float32 [3, crop_size, crop_size], int64.

    'train': a random part of the picture, resized, and one in two mirrored, as a function of
    (seed, epoch, i) alone. Set `epoch` before the loader is iterated: its workers hold a copy.
    'val': the short side resized to `resize_size`, then the middle square.

    Raises ValueError or FileNotFoundError: here if anything is wrong in the list, from an item if
    its picture is missing, cut short, too large or not a picture.
    """

    def __init__(
        self,
        data_dir: str | os.PathLike,
        mode: str,
        crop_size: int = 224,
        resize_size: int = 256,
        num_classes: int = 1000,
        seed: int = 0,
    ):
        if mode not in ("train", "val"):
            raise ValueError(f"mode must be 'train' or 'val', got {mode!r}")
        if not 1 <= crop_size <= resize_size:
            raise ValueError(f"crop_size must be in 1..resize_size={resize_size}, got {crop_size}")
        if not os.path.isdir(data_dir):
            raise FileNotFoundError(f"there is no data folder {data_dir}; give another --data_dir")
        self.data_dir = os.fspath(data_dir)
        self.list_file = os.path.join(self.data_dir, f"{mode}_list.txt")
        self.mode = mode
        self.image_size = crop_size
        self.resize_size = resize_size
        self.num_classes = num_classes
        self.seed = seed
        self.epoch = 0
        self.paths, self.labels, self.lines = read_list(self.list_file, num_classes)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        path = os.path.join(self.data_dir, os.fsdecode(self.paths[index]))
        try:
            pixels = decode(read_file(path), fast=self.mode == "train")
        except (FileNotFoundError, ValueError) as error:
            hint = f"replace the picture or delete line {self.lines[index]} of {self.list_file}"
            shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in path)
            raise type(error)(f"{shown}: {error}; {hint}") from None
        if self.mode == "train":
            rng = np.random.default_rng((self.seed, self.epoch, index % len(self)))
            pixels = random_flip(random_crop(pixels, self.image_size, rng), rng)
        else:
            pixels = center_crop(resize_short(pixels, self.resize_size), self.image_size)
        return normalize(pixels), self.labels[index]


def read_list(list_file: str, num_classes: int) -> tuple[Names, np.ndarray, np.ndarray]:
    """Path (bytes), label (int64) and line number of every sample, all lines checked.

    Arrays, as workers would come to copy a million Python objects by counting references to them;
    bytes, as a file's name may be in any encoding.
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
