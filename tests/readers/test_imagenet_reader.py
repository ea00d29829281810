"""The ImageNet reader's promises: geometry, the same pixels everywhere, no bad sample let by."""

from __future__ import annotations

import importlib.util
import pickle

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image
from small_pictures import NORMALIZED, dataset_of, encoded, photograph, pixels_of, plain

import imagenet_reader
from imagenet_reader import ImageNetDataset
from readers import pictures

# Transforms


def test_val_item_of_a_plain_color(tmp_path):
    dataset = dataset_of(tmp_path, {"a.png": encoded(plain()), "b.png": encoded(plain())})
    assert (len(dataset), dataset.num_classes, dataset.image_size, dataset.epoch) == (
        2,
        1000,
        224,
        0,
    )
    image, label = dataset[1]
    assert image.dtype == np.float32
    assert image.shape == (3, 224, 224)
    assert image.flags["C_CONTIGUOUS"]
    expected = np.broadcast_to(np.float32(NORMALIZED)[:, None, None], image.shape)
    np.testing.assert_allclose(image, expected, atol=1e-5)
    assert isinstance(label, np.int64)
    assert label == 1


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 300), (300, 1), (33, 500), (300, 301)])
def test_any_size_gives_the_wanted_size(tmp_path, mode, size):
    dataset = dataset_of(tmp_path, {"a.png": encoded(plain(*size))}, mode, image_size=48)
    assert dataset.image_size == 48
    image, _ = dataset[0]
    assert image.shape == (3, 48, 48)
    np.testing.assert_allclose(image.mean((1, 2)), NORMALIZED, atol=1e-5)


def test_enlarging_is_bilinear():
    pixels = np.repeat(np.uint8([[0, 100]])[:, :, None], 3, axis=2)
    assert pictures.resize(pixels, 1, 4)[0, :, 0].tolist() == [0, 25, 75, 100]


def test_shrinking_takes_means():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[:2, :2] = [[[0], [4]], [[8], [12]]]
    pixels[2:, 2:] = 200
    assert pictures.resize(pixels, 2, 2)[:, :, 1].tolist() == [[6, 0], [0, 200]]
    checkerboard = np.uint8(np.indices((300, 300)).sum(0) % 2 * 255)
    shrunk = pictures.resize(np.dstack([checkerboard] * 3), 100, 100)
    assert np.abs(shrunk.astype(int) - 127).max() <= 30  # one sample in nine would give 0 and 255


def test_resizing_to_the_same_size_changes_nothing():
    pixels = photograph(224, 224)
    np.testing.assert_array_equal(pictures.resize(pixels, 224, 224), pixels)


@pytest.mark.parametrize("box", [(0, 0, 375, 500), (20, 50, 320, 350), (75, 100, 150, 140)])
def test_resizing_is_as_pillow_does_it(box):
    top, left, height, width = box
    part = photograph()[top : top + height, left : left + width]
    ours = pictures.resize(part, 224, 224).astype(int)
    pillows = np.asarray(Image.fromarray(part).resize((224, 224), Image.BILINEAR)).astype(int)
    assert np.abs(ours - pillows).mean() < 1
    assert np.abs(ours[1:] - pillows[:-1]).mean() > 1.5  # so much is one line


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(375, 500, (256, 341)), (500, 375, (341, 256)), (64, 64, (256, 256)), (1, 60000, (256, 512))],
)
def test_short_side_is_resized(height, width, expected):
    pixels = np.zeros((height, width, 3), np.uint8)
    assert pictures.resize_short(pixels, 256).shape == (*expected, 3)


def test_middle_of_a_long_strip_is_kept():
    strip = np.repeat(np.uint8([range(0, 100, 10)])[:, :, None], 3, axis=2)  # 1 x 10
    assert pictures.resize_short(strip, 1)[0, :, 0].tolist() == [40, 50]
    assert pictures.resize_short(strip.transpose(1, 0, 2), 1)[:, 0, 0].tolist() == [40, 50]


def test_center_crop():
    pixels = np.arange(24).reshape(4, 6, 1)
    assert pictures.center_crop(pixels, 2)[:, :, 0].tolist() == [[8, 9], [14, 15]]


def test_val_takes_the_middle(tmp_path):
    """Red holds the column and green the line: what arrives says where it came from."""
    picture = np.zeros((96, 128, 3))
    picture[:, :, 0], picture[:, :, 1] = np.arange(128), np.arange(96)[:, None]
    dataset = dataset_of(tmp_path, {"a.png": encoded(picture)}, image_size=42)
    pixels = pixels_of(dataset[0][0])
    # Halved to 48 x 64, where a pixel is the mean of two (0.5, 2.5, ...), then columns from 11 and
    # lines from 3.
    np.testing.assert_allclose(pixels[7, :, 0], 22.5 + 2 * np.arange(42), atol=0.51)
    np.testing.assert_allclose(pixels[:, 7, 1], 6.5 + 2 * np.arange(42), atol=0.51)


def test_train_takes_its_random_box(tmp_path):
    picture = np.zeros((250, 250, 3))
    picture[:, :, 0], picture[:, :, 1] = np.arange(250), np.arange(250)[:, None]
    dataset = dataset_of(tmp_path, {"a.png": encoded(picture)}, "train", seed=3)
    flips = 0
    for dataset.epoch in range(20):
        rng = np.random.default_rng((3, dataset.epoch, 0))
        top, left, height, width = pictures.random_box(250, 250, rng)
        pixels = pixels_of(dataset[0][0])
        columns = pixels[:, :, 0].mean(0)
        flipped = columns[0] > columns[-1]
        flips += flipped
        # OpenCV rounds to within 0.76. At its border a picture is stretched flat.
        inner = slice(2, -2)
        middles = (np.arange(224) + 0.5) / 224
        expected = (left + middles * width - 0.5)[:: -1 if flipped else 1]
        np.testing.assert_allclose(columns[inner], expected[inner], atol=0.8)
        lines = pixels[:, :, 1].mean(1)
        np.testing.assert_allclose(lines[inner], (top + middles * height - 0.5)[inner], atol=0.8)
    assert 4 <= flips <= 16


def test_half_of_the_pictures_are_mirrored():
    pixels = np.uint8([[[255, 0, 0], [0, 0, 255]]])  # red, blue
    flipped = 0
    for seed in range(200):
        ours = pictures.random_flip(pixels, np.random.default_rng(seed)).tolist()
        assert ours in ([[[255, 0, 0], [0, 0, 255]]], [[[0, 0, 255], [255, 0, 0]]])
        flipped += ours[0][0] == [0, 0, 255]
    assert 70 < flipped < 130


def test_random_boxes_have_every_area_and_ratio_that_is_allowed():
    areas, ratios = [], []
    for seed in range(300):
        box = pictures.random_box(375, 500, np.random.default_rng(seed))
        top, left, height, width = box
        assert 0 <= top <= 375 - height
        assert 0 <= left <= 500 - width
        areas.append(height * width / (375 * 500))
        ratios.append(width / height)
    assert 0.079 < min(areas) < 0.12
    assert 0.85 < max(areas) <= 1
    assert 0.745 < min(ratios) < 0.78
    assert 1.28 < max(ratios) < 1.345


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (1, 1, (0, 0, 1, 1))],
)
def test_a_strip_is_cropped_in_the_middle(height, width, expected):
    assert pictures.random_box(height, width, np.random.default_rng(0)) == expected


# The same sample in the same epoch is the same pixels


def test_pixels_depend_on_seed_epoch_and_index_only(tmp_path):
    data = encoded(photograph(120, 90))
    files = {"a.png": data, "b.png": data}  # the same picture twice
    dataset = dataset_of(tmp_path, files, "train", image_size=32)
    first = dataset[0][0]
    assert not np.array_equal(dataset[1][0], first)
    dataset.epoch = 1
    assert not np.array_equal(dataset[0][0], first)
    dataset.epoch = 0
    np.testing.assert_array_equal(dataset[0][0], first)
    again = ImageNetDataset(tmp_path, "train", image_size=32)
    last = again[-1][0]
    np.testing.assert_array_equal(again[1][0], last)
    np.testing.assert_array_equal(again[0][0], first)
    other_seed = ImageNetDataset(tmp_path, "train", image_size=32, seed=1)
    assert not np.array_equal(other_seed[0][0], first)
    with pytest.raises(IndexError):
        dataset[2]


def test_workers_give_the_same_pixels(tmp_path):
    files = {f"{i}.png": encoded(photograph(60 + i, 50)) for i in range(7)}
    dataset = dataset_of(tmp_path, files, "train", image_size=32)
    dataset.epoch = 5
    batches = {}
    for workers in (0, 2):
        loader = paddle.io.DataLoader(
            dataset, batch_size=3, num_workers=workers, use_shared_memory=False
        )
        batches[workers] = [(images.numpy(), labels.numpy()) for images, labels in loader]
    assert [labels.tolist() for _, labels in batches[0]] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches[0][0][0].dtype == np.float32
    assert batches[0][0][1].dtype == np.int64
    for (images, labels), (images_2, labels_2) in zip(batches[0], batches[2]):
        np.testing.assert_array_equal(images, images_2)
        np.testing.assert_array_equal(labels, labels_2)
    np.testing.assert_array_equal(batches[0][2][0][0], dataset[6][0])


def test_neither_import_nor_items_touch_the_global_random_numbers(tmp_path):
    dataset = dataset_of(tmp_path, {"a.png": encoded(plain())}, "train", image_size=8)
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    spec = importlib.util.spec_from_file_location("once_more", imagenet_reader.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    dataset[0]
    assert np.random.rand() == expected


def test_opencv_runs_in_one_thread(tmp_path):
    dataset = dataset_of(tmp_path, {"a.png": encoded(plain())}, image_size=8)
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        dataset[0]
        assert cv2.getNumThreads() == 1
    finally:
        cv2.setNumThreads(before)


# Lists


def test_paths_with_blanks_blank_lines_and_any_line_end(tmp_path):
    files = {"n01/my photo 1.JPEG": encoded(plain()), "b.JPEG": encoded(plain())}
    text = "\n  \nn01/my photo 1.JPEG 7\r\n\n b.JPEG\t999"
    dataset = dataset_of(tmp_path, files, text=text, image_size=8)
    assert [int(dataset[i][1]) for i in range(len(dataset))] == [7, 999]
    assert dataset.lines.tolist() == [3, 5]


def test_names_in_any_encoding(tmp_path):
    latin = "caf\udce9.JPEG"  # b"caf\xe9.JPEG"
    try:
        (tmp_path / latin).write_bytes(encoded(plain()))
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no such name")
    text = b"caf\xe9.JPEG 0\nb\xc3\xa4r.JPEG 1\n"
    dataset = dataset_of(tmp_path, {"bär.JPEG": encoded(plain())}, text=text, image_size=8)
    assert dataset[0][0].shape == dataset[1][0].shape == (3, 8, 8)


def test_links_inside_the_data_folder_may_lead_out(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a..JPEG").write_bytes(encoded(plain()))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere")
    dataset = dataset_of(tmp_path / "data", {}, text="train/a..JPEG 0\n", image_size=8)
    assert dataset[0][0].shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "val_list.txt: no samples"),
        (" \n\n", "val_list.txt: no samples"),
        ("a.png 0\n\na.png\n", "line 3: .*label in 0..9, got 'a.png'"),
        ("a.png 0\nmy photo.png\n", "line 2: .*label in 0..9, got 'my photo.png'"),
        ("a.png cat\n", "line 1: .*label in 0..9, got 'a.png cat'"),
        ("a.png 1.0\n", "line 1: .*label in 0..9, got 'a.png 1.0'"),
        ("a.png 10\n", "line 1: .*label in 0..9, got 'a.png 10'"),
        ("a.png -1\n", "line 1: .*label in 0..9, got 'a.png -1'"),
        ("a.png 1_0\n", "line 1: .*label in 0..9"),
        ("a.png ²\n", "line 1: .*label in 0..9"),
        ("a.png 0\n/etc/a.png 0\n", "line 2: '/etc/a.png' is not inside the data folder"),
        ("../a.png 0\n", "line 1: '../a.png' is not inside the data folder"),
        ("n/../../a.png 0\n", "line 1: 'n/../../a.png' is not inside"),
        ("n\\..\\a.png 0\n", "line 1: .* is not inside"),
    ],
)
def test_bad_lists_are_refused(tmp_path, text, message):
    files = {"a.png": encoded(plain())}
    with pytest.raises(ValueError, match=message) as caught:
        dataset_of(tmp_path, files, text=text, num_classes=10)
    assert str(tmp_path / "val_list.txt") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no data folder .*nowhere"):
        ImageNetDataset(tmp_path / "nowhere", "train")
    with pytest.raises(FileNotFoundError, match=r"has no train_list.txt or .* and no train/"):
        ImageNetDataset(tmp_path, "train")
    with pytest.raises(ValueError, match="mode must be 'train' or 'val', got 'test'"):
        ImageNetDataset(tmp_path, "test")
    with pytest.raises(ValueError, match=r"image_size must be in 1\.\.4096, got 0"):
        ImageNetDataset(tmp_path, "val", image_size=0)


def test_the_folder_may_be_a_string_and_the_data_set_may_be_pickled(tmp_path):
    dataset_of(tmp_path, {"a.png": encoded(photograph(60, 50))}, "train", image_size=8)
    dataset = ImageNetDataset(str(tmp_path), "train", image_size=8)
    dataset.epoch = 2
    copy = pickle.loads(pickle.dumps(dataset))  # as worker processes that are not forks get it
    np.testing.assert_array_equal(copy[0][0], dataset[0][0])
