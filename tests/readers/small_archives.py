"""CIFAR-10 and Fashion-MNIST in little, as their archives."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np

ARCHIVE = "cifar-10-python.tar.gz"
NAMES = [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)]
NAMES.append("cifar-10-batches-py/test_batch")


def batch(first: int, count: int = 2) -> bytes:
    """A pickled batch whose images are filled with first, first + 1, ... and labelled so."""
    data = np.repeat(np.arange(first, first + count, dtype=np.uint8)[:, None], 3072, axis=1)
    return pickle.dumps({b"data": data, b"labels": [*range(first, first + count)]}, protocol=2)


def write_archive(folder: Path, members: dict | None = None) -> Path:
    """CIFAR-10 in little: images 0..9 to train on, 0 and 1 to test; then the changes asked for."""
    contents = {name: batch(2 * i if i < 5 else 0) for i, name in enumerate(NAMES)}
    contents = {**(members or {}), **contents, **(members or {})}  # in the order of `members`
    with tarfile.open(folder / ARCHIVE, "w:gz") as archive:
        for name, content in contents.items():
            if content is not None:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return folder / ARCHIVE


def write_idx(folder: Path, part: str = "train", count: int = 100):
    """Fashion-MNIST in little: image i is filled with i and labelled i % 10."""
    pixels = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 784, axis=1)
    labels = (np.arange(count) % 10).astype(np.uint8)
    images, classes = (
        folder / f"{part}-images-idx3-ubyte.gz",
        folder / f"{part}-labels-idx1-ubyte.gz",
    )
    images.write_bytes(gzip.compress(struct.pack(">4I", 2051, count, 28, 28) + pixels.tobytes()))
    classes.write_bytes(gzip.compress(struct.pack(">2I", 2049, count) + labels.tobytes()))
    return images, classes
