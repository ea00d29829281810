"""The data sets that real users have, where they lie beside the project, in ../shared/data.

What takes longer than some seconds runs where the environment says CI.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from conftest import SHARED, long, real

from imagenet_reader import ImageNetDataset
from readers.small_images import Cifar10, FashionMNIST
from readers.voc import VOCDataset


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, SHARED / "unpack.py", folder], check=True)
    yield folder
    shutil.rmtree(folder)


@real
@long
def test_the_real_cifar10(unpacked, large_tmp_path):
    train, val = Cifar10(unpacked, "train"), Cifar10(unpacked, "val")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(val.labels).tolist() == [1000] * 10
    pictures = np.stack([val[i][0] for i in range(2000)])
    assert pictures.mean((0, 2, 3)) == pytest.approx([0, 0, 0], abs=0.05)
    assert pictures.std((0, 2, 3)) == pytest.approx([1, 1, 1], abs=0.05)
    with tarfile.open(unpacked / "cifar-10-python.tar.gz") as archive:
        archive.extractall(large_tmp_path)
    again = Cifar10(large_tmp_path / "cifar-10-batches-py", "train")
    np.testing.assert_array_equal(again.images, train.images)
    np.testing.assert_array_equal(again.labels, train.labels)


@real
@long
def test_real_pictures_of_imagenet(unpacked):
    for mode, count in (("train", 5000), ("val", 2000)):
        dataset = ImageNetDataset(unpacked / "imagenette", mode, num_classes=10)
        assert len(dataset) == count
        assert np.bincount(dataset.labels).min() > 0
        pictures = np.stack([dataset[i][0] for i in range(0, count, 5)])
        assert pictures.mean() == pytest.approx(0, abs=0.2)
        assert pictures.std() == pytest.approx(1.2, abs=0.2)


@real
@long
def test_real_annotations(unpacked):
    folder = unpacked / "VOCdevkit"
    (folder / "label_list.txt").write_text("RBC\nWBC\nPlatelets\n")
    sets = [VOCDataset(folder, mode) for mode in ("train", "val")]
    assert sum(map(len, sets)) == 364
    labels = np.concatenate([o.labels for dataset in sets for o in dataset.objects])
    assert len(labels) == 4888
    assert np.bincount(labels).argmax() == 0  # most are red blood cells
    for dataset in sets:
        for i in range(len(dataset)):
            assert dataset[i][0].shape == (3, 416, 416)
            assert dataset.objects[i].size == dataset.pixels(i).shape[:2]


@real
def test_the_real_fashion_mnist():
    for mode, count in (("train", 60_000), ("val", 10_000)):
        dataset = FashionMNIST(SHARED / "fashion-mnist", mode)
        assert np.bincount(dataset.labels).tolist() == [count // 10] * 10
        pictures = np.stack([dataset[i][0][0] for i in range(10_000)])
        assert pictures.mean() == pytest.approx(0, abs=0.05)
        assert pictures.std() == pytest.approx(1, abs=0.05)
