"""Fashion-MNIST and the digits of scikit-learn."""

from __future__ import annotations

import gzip
import struct
import sys

import numpy as np
import pytest
from conftest import ROOT
from small_archives import write_idx

from readers.small_images import Digits, FashionMNIST

pytestmark = pytest.mark.usefixtures("no_network")


def test_fashion_mnist(tmp_path):
    write_idx(tmp_path, "train", 200)
    write_idx(tmp_path, "t10k", 100)
    train, val = FashionMNIST(tmp_path, "train"), FashionMNIST(tmp_path, "val")
    assert (len(train), len(val), val.num_classes) == (200, 100, 10)
    assert train.images.dtype == np.uint8  # a quarter of the memory of float32
    assert train.labels.tolist() == [i % 10 for i in range(200)]
    assert train.images[:, 0, 16, 16].tolist() == list(range(200))
    image, label = val[51]
    assert (image.shape, image.dtype, type(label), label) == ((3, 32, 32), np.float32, np.int64, 1)
    # (51 / 255 - 0.2860) / 0.3530
    assert image == pytest.approx(np.full((3, 32, 32), -0.243626), abs=1e-5)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"not gzip",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: whole[:-8] + bytes(8),
        lambda whole: whole[:12] + b"\xff" * 30 + whole[42:],
        lambda whole: gzip.compress(b""),
        lambda whole: gzip.compress(gzip.decompress(whole)[:-1]),
        lambda whole: gzip.compress(b"\xff" * 2000),
    ],
)
def test_damaged_fashion_mnist(which, damage, tmp_path):
    paths = write_idx(tmp_path)
    paths[which].write_bytes(damage(paths[which].read_bytes()))
    with pytest.raises(ValueError, match=f"^{paths[0]} and {paths[1]}: .+; move away") as info:
        FashionMNIST(tmp_path, "train")
    assert "\n" not in str(info.value)


def test_fashion_mnist_with_wrong_content(tmp_path):
    images, labels = write_idx(tmp_path)
    labels.write_bytes(gzip.compress(struct.pack(">2I", 2049, 100) + bytes([10] * 100)))
    with pytest.raises(ValueError, match="label 10 is above 9"):
        FashionMNIST(tmp_path, "train")
    write_idx(tmp_path)
    images.write_bytes(gzip.compress(struct.pack(">4I", 2051, 100, 14, 14) + bytes(19600)))
    with pytest.raises(ValueError, match="cannot reshape"):
        FashionMNIST(tmp_path, "train")
    write_idx(tmp_path, count=0)
    with pytest.raises(ValueError, match="need at least one array"):
        FashionMNIST(tmp_path, "train")


FASHION = ROOT / FashionMNIST.default_dir


@pytest.mark.skipif(
    not (FASHION / "t10k-labels-idx1-ubyte.gz").exists(), reason="Fashion-MNIST is not there"
)
def test_the_real_fashion_mnist():
    dataset = FashionMNIST(FASHION, "val")
    assert np.bincount(dataset.labels).tolist() == [1000] * 10
    pictures = np.stack([dataset[i][0] for i in range(1000)])
    assert pictures.mean() == pytest.approx(0, abs=0.05)
    assert pictures.std() == pytest.approx(1, abs=0.05)


def test_digits():
    from sklearn.datasets import load_digits

    train, val = Digits(None, "train"), Digits("ignored", "val", seed=9)
    assert (len(train), len(val), train.num_classes, train.image_size) == (1437, 360, 10, 32)
    assert np.bincount(val.labels).tolist() == [39, 37, 47, 28, 42, 32, 37, 27, 30, 41]
    assert np.array_equal(train.labels, Digits(None, "train", seed=9).labels)

    images = load_digits().images
    corners = sorted(map(tuple, images[:, ::7, ::7].reshape(-1, 4)))  # bilinear keeps a corner
    read = np.concatenate([train.images, val.images])[:, 0, ::31, ::31].reshape(-1, 4)
    assert sorted(map(tuple, read)) == corners
    sums = {image.tobytes() for image in val.images}
    assert len(sums & {image.tobytes() for image in train.images}) == 0

    image, label = val[0]
    assert (image.shape, image.dtype, type(label)) == ((3, 32, 32), np.float32, np.int64)
    # The first is number permutation[1437] of the set. The enlarged pixel 14 has its centre at
    # (14 + 0.5) / 4 - 0.5 = 3.125 of the small picture's pixels; 0 is left of the first centre.
    small = images[np.random.default_rng(0).permutation(1797)[1437]] / 16 * 2 - 1
    assert image[1, 0, 0] == pytest.approx(small[0, 0])
    between = 0.875 * small[3:5, 3] + 0.125 * small[3:5, 4]
    assert image[2, 14, 14] == pytest.approx(0.875 * between[0] + 0.125 * between[1])


def test_digits_are_not_augmented():
    dataset = Digits(None, "train")
    first = dataset[3][0]
    dataset.epoch = 7
    assert np.array_equal(dataset[3][0], first)


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match=r"^digits needs scikit-learn: pip install scikit-learn$"):
        Digits(None, "train")
