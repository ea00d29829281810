"""The small data sets as paddle.io.Dataset: CIFAR-10, Fashion-MNIST and scikit-learn's digits.

    train_set = Digits(None, "train", seed=0)
    train_set.epoch = 3            # before each epoch: which crop is a function of (seed, epoch,
    image, label = train_set[0]    # sample) only. A float32 array [3, 32, 32] and an np.int64

The workers of a DataLoader see the `epoch` of when they start: do not make them persistent.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import struct
import tarfile
import zlib
from typing import BinaryIO
from urllib.parse import urlsplit
from urllib.request import getproxies

import cv2
import numpy as np
import paddle
from paddle.utils.download import get_path_from_url
from paddle.vision.datasets import cifar, mnist

from readers import pictures, safe_pickle

UNPACKED = "cifar-10-batches-py"
TRAIN, VAL = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
MAX_MEMBER = 64 << 20  # bytes; a batch of CIFAR-10 has 31 million
MAX_ARCHIVE = 256 << 20  # bytes unpacked; all of CIFAR-10 has 186 million
MAX_HEADER = 1 << 20  # bytes between two members: long names and the like, of which it has none
MAX_MEMBERS = 1000  # it has 9; tarfile keeps them all
MAX_IMAGES = 64 << 20  # bytes unpacked; Fashion-MNIST's have 47 million
MAX_LABELS = 128 << 10  # bytes unpacked; Fashion-MNIST's have 60,008
DAMAGE = (ValueError, EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, struct.error,
          RecursionError)  # fmt: skip


class _SmallImages(paddle.io.Dataset):
    """Images held in memory; augmented and normalised on access.

    Args:
        data_dir: folder of the data set's files; None for `default_dir`.
        mode: "train" (augmented) or "val".
        seed: of the augmentation, at least 0.
        image_size: side of the images, which are enlarged from 32.

    Item i is (image, label): float32 [3, image_size, image_size], normalised, and int64 [].

    Raises:
        ValueError: a file is damaged or holds something else; the message names it.
        FileNotFoundError: a file is missing and its download failed.
    """

    num_classes = 10
    classes: tuple | None = None  # names in the order of the labels, where these mean others
    published = 32  # side of the pictures as they are published
    default_dir: str | None = None
    train_files: tuple = ()  # a (URL, MD5) for each
    val_files: tuple = ()  # the same
    white = 255  # the brightest value in `images`
    mean: tuple = (0.5,)  # of values scaled to 0..1, by channel
    std: tuple = (0.5,)
    pad = 4  # pixels by which a training image is shifted, at most
    flip = True  # whether it may be mirrored

    def __init__(self, data_dir, mode: str, seed: int = 0, image_size: int = 32):
        super().__init__()
        if mode not in ("train", "val"):
            raise ValueError(f"mode must be train or val, got {mode!r}")
        self.mode, self.seed, self.image_size, self.epoch = mode, seed, image_size, 0
        files = self.train_files if mode == "train" else self.val_files
        paths = self._paths(data_dir or self.default_dir, files)
        try:
            images, labels = self._read(paths, mode)
        except DAMAGE as error:
            if not paths:
                raise
            hint = _advice(paths, [md5 for _, md5 in files])
            raise ValueError(f"{' and '.join(paths)}: {error}; {hint}") from None
        self.images, self.labels = images, np.asarray(labels, np.int64)  # [N, 1 or 3, 32, 32], [N]

    def _paths(self, folder, files) -> list[str]:
        return [_fetch(folder, *file) for file in files]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.int64]:
        image = self.images[index]
        if self.mode == "train":
            rng = np.random.default_rng((self.seed, self.epoch, index))
            image = pad_crop_flip(image, self.pad, self.flip, rng)
        image = self._normalized(image.astype(np.float32) / self.white, self.image_size)
        return image, self.labels[index]

    @classmethod
    def _normalized(cls, image: np.ndarray, side: int) -> np.ndarray:
        """Values in 0..1, float32 [1 or 3, 32, 32], as an item's image [3, side, side]."""
        mean, std = (np.array(v, np.float32).reshape(-1, 1, 1) for v in (cls.mean, cls.std))
        image = np.broadcast_to((image - mean) / std, (3, 32, 32))
        if side != 32:
            image = pictures.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), side, side)
            image = image.transpose(2, 0, 1)
        return np.ascontiguousarray(image)

    @classmethod
    def to_input(cls, pixels: np.ndarray, image_size: int) -> np.ndarray:
        """RGB pixels, uint8 [H, W, 3], as a test picture: float32 [3, image_size, image_size].

        They are squeezed into the data set's own size first, and become grey where it is.

        Raises:
            ValueError: the picture is too long.
        """
        pixels = pictures.squeeze(pixels, cls.published)
        if len(cls.mean) == 1:
            pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        pixels = cv2.resize(pixels, (32, 32), interpolation=cv2.INTER_LINEAR)
        image = np.atleast_3d(pixels).transpose(2, 0, 1)
        return cls._normalized(image.astype(np.float32) / 255, image_size)


class Cifar10(_SmallImages):
    """`data_dir/cifar-10-python.tar.gz`, or the same unpacked; 50,000 train, 10,000 val.

    Without the archive `data_dir/cifar-10-batches-py/` is read, or data_dir itself if that is this
    folder; with neither the archive is downloaded. It wins over a folder, as it has a checksum.
    To read the training pictures takes 1.3 s (unpacked 0.5 s) and 350 MB, of which 150 MB stay.
    """

    default_dir = "data"
    classes = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    train_files = val_files = ((cifar.CIFAR10_URL, cifar.CIFAR10_MD5),)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

    def _paths(self, folder, files):
        if not os.path.exists(os.path.join(folder, os.path.basename(cifar.CIFAR10_URL))):
            for place in (os.path.join(folder, UNPACKED), folder):
                if any(os.path.lexists(os.path.join(place, name)) for name in (*TRAIN, *VAL)):
                    return [os.fspath(place)]
        return super()._paths(folder, files)

    @staticmethod
    def _read(paths, mode):
        read = _read_folder if os.path.isdir(paths[0]) else _read_archive
        batches = read(paths[0], TRAIN if mode == "train" else VAL)
        images, labels = (np.concatenate(parts) for parts in zip(*batches))
        return images.reshape(-1, 3, 32, 32), labels


class FashionMNIST(_SmallImages):
    """Four `*-ubyte.gz` files in data_dir, downloaded where missing; 60,000 train, 10,000 val."""

    default_dir = "data/fashion-mnist"
    classes = (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    )
    published = 28
    train_files = (
        (mnist.FashionMNIST.TRAIN_IMAGE_URL, mnist.FashionMNIST.TRAIN_IMAGE_MD5),
        (mnist.FashionMNIST.TRAIN_LABEL_URL, mnist.FashionMNIST.TRAIN_LABEL_MD5),
    )
    val_files = (
        (mnist.FashionMNIST.TEST_IMAGE_URL, mnist.FashionMNIST.TEST_IMAGE_MD5),
        (mnist.FashionMNIST.TEST_LABEL_URL, mnist.FashionMNIST.TEST_LABEL_MD5),
    )
    mean, std = (0.2860,), (0.3530,)

    @staticmethod
    def _read(paths, mode):
        for path, limit in zip(paths, (MAX_IMAGES, MAX_LABELS)):  # Paddle reads whatever there is
            with gzip.open(path) as file:
                _read_to_end(_Bounded(file, limit))
        read = mnist.FashionMNIST(*paths, backend="cv2")
        labels = np.concatenate(read.labels)
        images = np.stack([pixels.astype(np.uint8) for pixels in read.images])
        images = images.reshape(len(labels), 28, 28)
        if labels.max() > 9:
            raise ValueError(f"label {labels.max()} is above 9")
        return _enlarge(images), labels


class Digits(_SmallImages):
    """The 1,797 handwritten digits inside scikit-learn, no download; 1,437 train, 360 val."""

    published = 8
    white = 16
    pad, flip = 0, False  # they are alike enough, and learnt faster, as they are

    @staticmethod
    def _read(paths, mode):
        try:
            from sklearn.datasets import load_digits
        except ImportError:
            raise ValueError("digits needs scikit-learn: pip install scikit-learn") from None
        digits = load_digits()
        order = np.random.default_rng(0).permutation(1797)  # one split, whatever the user's seed
        chosen = order[:1437] if mode == "train" else order[1437:]
        return _enlarge(digits.images[chosen].astype(np.float32)), digits.target[chosen]


def pad_crop_flip(image: np.ndarray, pad: int, flip: bool, rng: np.random.Generator) -> np.ndarray:
    """A [C, H, W] image moved by up to `pad` pixels each way over black, and maybe mirrored."""
    channels, height, width = image.shape
    top, left = rng.integers(2 * pad + 1, size=2)
    padded = np.zeros((channels, height + 2 * pad, width + 2 * pad), image.dtype)
    padded[:, pad : pad + height, pad : pad + width] = image
    image = padded[:, top : top + height, left : left + width]
    return image[:, :, ::-1] if flip and rng.random() < 0.5 else image


def _enlarge(images: np.ndarray) -> np.ndarray:
    """Grey [N, H, W] -> [N, 1, 32, 32], bilinear, same dtype."""
    images = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_LINEAR) for image in images]
    return np.stack(images)[:, None]


def _fetch(folder, url: str, md5: str) -> str:
    """The path in `folder` of the file that `url` ends with; downloaded if there is none."""
    path = os.path.join(folder, os.path.basename(url))
    if os.path.exists(path):  # Paddle's downloader replaces a file whose MD5 is another
        if not os.path.isfile(path):  # to open a pipe would wait for ever
            raise ValueError(f"{path} is not a file")
        return path
    try:
        if not getproxies():  # Paddle would wait for an answer for ever
            socket.create_connection((urlsplit(url).hostname, 443), timeout=10).close()
        get_path_from_url(url, str(folder), md5, decompress=False)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{path} is missing and downloading {url} failed ({error}); put the file there, or use "
            "digits, which needs no download"
        ) from None
    return path


def _advice(paths: list[str], md5s: list[str]) -> str:
    """What helps against damage. To download again what is as published would not."""
    if os.path.isdir(paths[0]):
        return "unpack the archive again, or move the folder away, and the archive is downloaded"
    others = [os.path.basename(p) for p, md5 in zip(paths, md5s) if _md5(p) != md5]
    if not others:
        return "its MD5 is that of the published file: keep it, and report this as a fault here"
    names = " and ".join(others)
    return f"move away what is not as published, by its MD5 ({names}), and it is downloaded again"


def _md5(path: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        for _ in range(MAX_ARCHIVE >> 20):
            digest.update(file.read(1 << 20))
    return digest.hexdigest()


def _read_folder(folder: str, names: list[str]) -> list[tuple[np.ndarray, list[int]]]:
    """The batches of these names, unpacked."""
    batches = []
    for name in names:
        path = os.path.join(folder, name)
        if not os.path.isfile(path):  # to open a pipe would wait for ever
            raise ValueError(f"it has no file {name}")
        with open(path, "rb") as file:
            batches.append(_read_batch(name, file, os.path.getsize(path)))
    return batches


def _read_archive(path: str, names: list[str]) -> list[tuple[np.ndarray, list[int]]]:
    """The batches of these names. Nothing is written to disk, whatever else the archive holds."""
    names = [f"{UNPACKED}/{name}" for name in names]
    batches = {}
    with gzip.open(path) as file:
        unpacked = _Bounded(file, MAX_ARCHIVE)
        unpacked.stop = MAX_HEADER
        with tarfile.open(fileobj=unpacked, mode="r|") as archive:
            for count, member in enumerate(archive, 1):
                if count > MAX_MEMBERS:
                    raise ValueError(f"it has more than {MAX_MEMBERS} members")
                # Before the content is read: it lies before this offset, where the next one begins.
                unpacked.stop = archive.offset + MAX_HEADER
                if member.name in names and member.isreg():
                    if member.name in batches:
                        raise ValueError(f"it has {member.name} twice")
                    content = archive.extractfile(member)
                    batches[member.name] = _read_batch(member.name, content, member.size)
        unpacked.stop = MAX_ARCHIVE
        _read_to_end(unpacked)
    for name in names:
        if name not in batches:
            raise ValueError(f"it has no {name}")
    return [batches[name] for name in names]


class _Bounded:
    """A file that ends in an error rather than grow without limit while it is unpacked."""

    def __init__(self, file, limit: int):
        self.file, self.limit, self.stop, self.done = file, limit, limit, 0

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        self.done += len(data)
        if self.done > self.limit:
            raise ValueError(f"it unpacks to more than {self.limit:,} bytes")
        if self.done > self.stop:
            raise ValueError(f"it has more than {MAX_HEADER:,} bytes between two members")
        return data


def _read_to_end(file: _Bounded) -> None:
    """So that gzip compares its checksum."""
    while file.read(1 << 20):
        pass


def _read_batch(name: str, file: BinaryIO, size: int) -> tuple[np.ndarray, list[int]]:
    """Pixels, uint8 [N, 3072], and N labels from a pickled batch."""
    if size > MAX_MEMBER:
        raise ValueError(f"{name} has {size:,} bytes")
    try:
        batch = safe_pickle.load(io.BytesIO(file.read()), encoding="bytes")
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    data, labels = (batch.get(key) if type(batch) is dict else None for key in (b"data", b"labels"))
    if type(data) is not np.ndarray or data.dtype != np.uint8 or data.shape[1:] != (3072,):
        raise ValueError(f"{name} has no uint8 pixels of shape [N, 3072]")
    if type(labels) is not list or len(labels) != len(data) or not labels:
        raise ValueError(f"{name} has not one label for each image")
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise ValueError(f"{name} has a label that is none of 0 to 9")
    return data, labels
