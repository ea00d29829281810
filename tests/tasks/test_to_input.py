"""A picture is brought to the network as one of the test set."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import train
from imagenet_reader import ImageNetDataset
from readers.pictures import decode
from readers.small_images import Cifar10, Digits, FashionMNIST
from readers.voc import VOCDataset
from tasks import TASKS


def options_of(data: str, **more):
    return train.parse(["--data", data, *(f"--{name}={value}" for name, value in more.items())])


def png(pixels: np.ndarray) -> np.ndarray:
    """The pixels as they come out of a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return decode(file.getvalue())


@pytest.mark.parametrize("size", [32, 48])
def test_a_picture_of_cifar10(size, cifar_dir):
    dataset = Cifar10(cifar_dir, "val", image_size=size)
    for index in range(3):
        pixels = png(dataset.images[index].transpose(1, 2, 0))
        image = TASKS["cifar10"].to_input(options_of("cifar10", image_size=size), pixels)
        np.testing.assert_array_equal(image, dataset[index][0])


def test_a_picture_of_fashion_mnist(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    for name, head in (("images-idx3", (2051, 100, 28, 28)), ("labels-idx1", (2049, 100))):
        content = 100 * (pixels.tobytes() if len(head) == 4 else b"\3")
        data = gzip.compress(struct.pack(f">{len(head)}I", *head) + content)
        (tmp_path / f"t10k-{name}-ubyte.gz").write_bytes(data)
    dataset = FashionMNIST(tmp_path, "val")
    for times in (1, 4):  # a larger one is brought to its 28 pixels first
        larger = png(pixels.repeat(times, 0).repeat(times, 1))
        image = TASKS["fashion_mnist"].to_input(options_of("fashion_mnist"), larger)
        np.testing.assert_array_equal(image, dataset[0][0])


def test_a_picture_of_the_digits():
    dataset, order = Digits(None, "val"), np.random.default_rng(0).permutation(1797)
    pixels = (load_digits().images[order[1437]] * 255 / 16).round().astype(np.uint8)
    for times in (1, 8):  # a larger one is brought to its 8 pixels first
        larger = png(pixels.repeat(times, 0).repeat(times, 1))
        image = TASKS["digits"].to_input(options_of("digits"), larger)
        np.testing.assert_allclose(image, dataset[0][0], atol=0.01)


def test_a_picture_of_imagenet_and_of_voc(imagenet_dir, voc_dir):
    dataset = ImageNetDataset(imagenet_dir, "val", image_size=64)
    pixels = decode((imagenet_dir / "val 1.JPEG").read_bytes())
    image = TASKS["imagenet"].to_input(options_of("imagenet", image_size=64), pixels)
    np.testing.assert_array_equal(image, dataset[1][0])
    dataset = VOCDataset(voc_dir, "val", image_size=96)
    image = TASKS["voc"].to_input(options_of("voc", image_size=96), dataset.pixels(2))
    np.testing.assert_array_equal(image, dataset[2][0])


@pytest.mark.parametrize("data", ["cifar10", "imagenet", "voc"])
def test_colours_and_sides_stay_what_they_are(data):
    pixels = np.zeros([64, 64, 3], np.uint8)
    pixels[:32, :32, 0] = 255  # red to the left above
    red, green, _ = TASKS[data].to_input(options_of(data, image_size=64), pixels)
    assert red[20, 20] > red[20, 44] == red[44, 20] == red[44, 44]
    assert (green == green[0, 0]).all()


def test_colours_become_grey_in_a_grey_data_set():
    pixels = np.full([40, 60, 3], (200, 100, 50), np.uint8)
    image = TASKS["digits"].to_input(options_of("digits"), pixels)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    np.testing.assert_allclose(image, np.full([3, 32, 32], (grey / 255 - 0.5) / 0.5), atol=0.01)


@pytest.mark.parametrize("data", ["cifar10", "digits", "fashion_mnist", "voc"])
def test_what_is_squeezed_may_not_be_too_long(data):
    with pytest.raises(ValueError, match="10,001 pixels are too long"):
        TASKS[data].to_input(options_of(data), np.zeros([1, 10_001, 3], np.uint8))
