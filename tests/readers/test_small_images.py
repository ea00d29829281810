"""What CIFAR-10, Fashion-MNIST and the digits share: augmentation, downloads, folders."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import re
from pathlib import Path

import numpy as np
import paddle
import pytest
from small_archives import ARCHIVE, NAMES, write_archive, write_idx

from readers import small_images as cifar_reader
from readers.small_images import Cifar10, Digits, FashionMNIST, pad_crop_flip

pytestmark = pytest.mark.usefixtures("no_network")


class Chosen:
    """Stands for a random generator: the crop's corner and the flip are given."""

    def __init__(self, top, left, flip):
        self.corner, self.flip = (top, left), flip

    def integers(self, stop, size):
        assert (stop, size) == (3, 2)
        return self.corner

    def random(self):
        return 0.49 if self.flip else 0.5


@pytest.mark.parametrize(
    ("top", "left", "flip", "wanted"),
    [
        (1, 1, False, [[1, 2, 3], [4, 5, 6]]),
        (0, 0, False, [[0, 0, 0], [0, 1, 2]]),
        (2, 2, False, [[5, 6, 0], [0, 0, 0]]),
        (1, 1, True, [[3, 2, 1], [6, 5, 4]]),
        (2, 0, True, [[5, 4, 0], [0, 0, 0]]),
    ],
)
def test_pad_crop_flip(top, left, flip, wanted):
    image = np.array([[[1, 2, 3], [4, 5, 6]]] * 3)
    moved = pad_crop_flip(image, 1, True, Chosen(top, left, flip))
    assert moved.tolist() == [wanted] * 3
    unmirrored = pad_crop_flip(image, 1, False, Chosen(top, left, flip))
    assert unmirrored.tolist() == [[row[::-1] if flip else row for row in wanted]] * 3


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_what_is_as_published_is_not_downloaded_again(tmp_path, monkeypatch):
    path = write_archive(tmp_path, {NAMES[5]: None})
    again = re.escape(f"not as published, by its MD5 ({ARCHIVE}), and it is downloaded again")
    with pytest.raises(ValueError, match=f"it has no {NAMES[5]}; move away what is {again}$"):
        Cifar10(tmp_path, "val")
    monkeypatch.setattr(Cifar10, "val_files", ((cifar_reader.cifar.CIFAR10_URL, md5(path)),))
    with pytest.raises(ValueError, match=f"no {NAMES[5]}; its MD5 is that of the") as info:
        Cifar10(tmp_path, "val")
    assert "download" not in str(info.value)
    images, labels = write_idx(tmp_path)
    labels.write_bytes(gzip.compress(b"no labels"))
    (images_url, _), of_labels = FashionMNIST.train_files
    monkeypatch.setattr(FashionMNIST, "train_files", ((images_url, md5(images)), of_labels))
    with pytest.raises(ValueError, match=rf"by its MD5 \({labels.name}\), and it is downloaded"):
        FashionMNIST(tmp_path, "train")


def test_augmentation_depends_on_seed_epoch_and_sample_only(tmp_path):
    rng = np.random.default_rng(0)
    content = {b"data": rng.integers(0, 256, (2, 3072), dtype=np.uint8), b"labels": [1, 2]}
    write_archive(tmp_path, dict.fromkeys(NAMES, pickle.dumps(content, protocol=2)))

    def pictures(seed=0, epoch=0, mode="train"):
        dataset = Cifar10(tmp_path, mode, seed)
        dataset.epoch = epoch
        return [dataset[i][0].tobytes() for i in range(len(dataset))]

    first = pictures()
    assert pictures() == first
    assert first[0] not in first[2::2]  # the same picture, five times
    assert not set(first) & set(pictures(epoch=1))
    assert not set(first) & set(pictures(seed=1))
    assert pictures(mode="val") == pictures(1, 1, "val")


def test_a_training_picture_is_moved_by_four_pixels_over_black_and_may_be_mirrored(tmp_path):
    pixels = np.random.default_rng(0).integers(1, 256, (2, 3072), dtype=np.uint8)
    content = pickle.dumps({b"data": pixels, b"labels": [1, 2]}, protocol=2)
    write_archive(tmp_path, {NAMES[0]: content})
    dataset = Cifar10(tmp_path, "train")
    boxes, pictures = [], set()
    for dataset.epoch in range(300):
        image = dataset[0][0]
        blue = image[2] * 0.2616 + 0.4465  # 0 where not covered by the picture
        inside = np.argwhere(blue > 0.001)
        boxes.append((*inside.min(axis=0), *inside.max(axis=0)))
        pictures.add(image.tobytes())
    top, left, bottom, right = np.array(boxes).T
    assert (top.max(), left.max(), bottom.min(), right.min()) == (4, 4, 27, 27)
    assert (top.min(), left.min(), bottom.max(), right.max()) == (0, 0, 31, 31)
    assert 81 < len(pictures) <= 162  # 9 * 9 places, and the same mirrored


@pytest.mark.parametrize("make", [Digits, Cifar10, FashionMNIST])
def test_a_loader_gives_the_same_with_and_without_workers(make, tmp_path):
    write_archive(tmp_path)
    write_idx(tmp_path)
    runs = []
    for workers in (0, 2):
        dataset = make(tmp_path, "train", seed=1)
        if make is Digits:
            dataset = paddle.io.Subset(dataset, range(20))
        loader = paddle.io.DataLoader(dataset, batch_size=5, num_workers=workers)
        runs.append([])
        for epoch in (0, 1):
            getattr(dataset, "dataset", dataset).epoch = epoch
            runs[-1].append(np.concatenate([images.numpy() for images, _ in loader]))
    labels = next(iter(loader))[1]
    assert (labels.shape, labels.dtype) == ([5], paddle.int64)
    assert np.array_equal(runs[0], runs[1])
    if make is not Digits:
        assert not np.array_equal(runs[0][0], runs[0][1])


def test_a_missing_archive_is_fetched_by_paddle_into_the_folder(tmp_path, monkeypatch):
    calls = []

    def download(url, folder, md5, **kwargs):
        calls.append((url.split("/")[-1], folder, md5, kwargs))
        write_archive(Path(folder))

    monkeypatch.setattr(cifar_reader, "get_path_from_url", download)
    monkeypatch.setattr(cifar_reader.socket, "create_connection", lambda *a, **k: io.BytesIO())
    assert len(Cifar10(tmp_path, "val")) == 2
    assert len(Cifar10(tmp_path, "val")) == 2
    md5 = "c58f30108f718f92721af3b95e74349a"  # that of the University of Toronto's page
    assert calls == [(ARCHIVE, str(tmp_path), md5, {"decompress": False})]


@pytest.mark.parametrize(
    ("make", "name"), [(Cifar10, ARCHIVE), (FashionMNIST, "train-images-idx3-ubyte.gz")]
)
@pytest.mark.parametrize("error", [RuntimeError("Retry limit reached"), OSError("unreachable")])
def test_a_failed_download_says_what_to_put_where(make, name, error, tmp_path, monkeypatch):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(cifar_reader, "get_path_from_url", download)
    monkeypatch.setattr(cifar_reader.socket, "create_connection", lambda *a, **k: io.BytesIO())
    with pytest.raises(FileNotFoundError, match=f"{name} is missing .*{error}.* put") as info:
        make(tmp_path / "none", "train")
    assert str(tmp_path / "none" / name) in str(info.value)
    assert "digits, which needs no download" in str(info.value)
    assert "\n" not in str(info.value)


def test_an_unreachable_server_is_noticed_before_paddle_waits_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_reader, "get_path_from_url", lambda *a, **k: write_archive(tmp_path))
    monkeypatch.setattr(cifar_reader, "getproxies", dict)
    with pytest.raises(FileNotFoundError, match="no network in tests"):
        Cifar10(tmp_path, "train")
    monkeypatch.setattr(cifar_reader, "getproxies", lambda: {"https": "http://proxy"})
    assert len(Cifar10(tmp_path, "train")) == 10  # through a proxy only


def test_default_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "fashion-mnist").mkdir(parents=True)
    write_archive(tmp_path / "data")
    write_idx(tmp_path / "data" / "fashion-mnist")
    assert len(Cifar10(None, "train")) == 10
    assert len(FashionMNIST(None, "train")) == 100


@pytest.mark.parametrize("make", [Cifar10, FashionMNIST, Digits])
def test_an_unknown_mode(make, tmp_path):
    with pytest.raises(ValueError, match="mode must be train or val, got 'test'"):
        make(tmp_path, "test")
