from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import sys
import tarfile
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path

import numpy as np
import paddle
import pytest

from readers import small_images as cifar_reader
from readers.small_images import Cifar10, Digits, FashionMNIST, pad_crop_flip

ARCHIVE = "cifar-10-python.tar.gz"
NAMES = [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)]
NAMES.append("cifar-10-batches-py/test_batch")
# The start and the end of a batch of two images as Python 2 and its numpy write it: between them
# lie 6,144 (0x1800) pixels. Its labels are 9 and 0.
PYTHON2 = (
    b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05("
    b"K\x09K\x00eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
    b"K\x00\x85U\x01b\x87Rq\x09(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87R"
    b"q\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x18\x00\x00",
    b"tbU\tfilenamesq\x0c]q\x0d(U\x05a.pngq\x0eU\x05b.pngq\x0feu.",
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr(cifar_reader, "get_path_from_url", refuse)
    monkeypatch.setattr(cifar_reader.socket, "create_connection", refuse)


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


def test_python2_archive_and_normalisation(tmp_path):
    pixels = bytes([255]) * 1024 + bytes(2048) + bytes(range(256)) * 12  # red; a ramp
    write_archive(tmp_path, {NAMES[5]: pixels.join(PYTHON2)})
    dataset = Cifar10(tmp_path, "val")
    assert (len(dataset), dataset.num_classes, dataset.image_size) == (2, 10, 32)
    image, label = dataset[0]
    assert (image.shape, image.dtype, type(label), label) == ((3, 32, 32), np.float32, np.int64, 9)
    # (1 - 0.4914) / 0.2470, (0 - 0.4822) / 0.2435, (0 - 0.4465) / 0.2616
    for channel, value in enumerate((2.059109, -1.980287, -1.706804)):
        assert image[channel] == pytest.approx(np.full((32, 32), value), abs=1e-5)
    ramp, label = dataset[1]
    assert label == 0
    # red, second row, third pixel: 34 -> (34 / 255 - 0.4914) / 0.2470
    assert ramp[0, 1, 2] == pytest.approx(-1.449663, abs=1e-5)


def test_cifar10_is_read_in_order_whatever_the_order_in_the_archive(tmp_path):
    path = write_archive(
        tmp_path, {name: batch(2 * i) for i, name in reversed([*enumerate(NAMES[:5])])}
    )
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    train, val = Cifar10(tmp_path, "train"), Cifar10(tmp_path, "val")
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert val.labels.tolist() == [0, 1]
    assert before == (path.read_bytes(), path.stat().st_mtime_ns)
    assert os.listdir(tmp_path) == [ARCHIVE]


def unpack(folder: Path, **members) -> Path:
    """CIFAR-10 in little as its archive unpacks; None leaves a batch out."""
    (folder / "cifar-10-batches-py").mkdir()
    for i, name in enumerate(NAMES):
        content = members.get(name.split("/")[1], batch(2 * i if i < 5 else 0))
        if content is not None:
            (folder / name).write_bytes(content)
    return folder / "cifar-10-batches-py"


def test_what_was_unpacked_is_read_where_the_archive_is_not_there(tmp_path):
    folder = unpack(tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / folder.name).symlink_to(folder)
    (tmp_path / "one by one").mkdir()
    for path in folder.iterdir():
        (tmp_path / "one by one" / path.name).symlink_to(path)
    for place in (tmp_path, folder, tmp_path / "linked", str(tmp_path / "one by one")):
        train, val = Cifar10(place, "train"), Cifar10(place, "val")
        assert train.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert train.images[:, 2, 31, 31].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert val.labels.tolist() == [0, 1]


def test_the_archive_wins_over_what_was_unpacked(tmp_path):
    unpack(tmp_path, data_batch_1=batch(6))
    write_archive(tmp_path)
    assert Cifar10(tmp_path, "train").labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    (tmp_path / ARCHIVE).unlink()
    assert Cifar10(tmp_path, "train").labels.tolist() == [6, 7, 2, 3, 4, 5, 6, 7, 8, 9]


def test_a_folder_of_links_to_nowhere_is_damaged_and_not_missing(tmp_path):
    (tmp_path / "test_batch").symlink_to("gone")
    with pytest.raises(ValueError, match="it has no file test_batch"):
        Cifar10(tmp_path, "val")


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda path: path.unlink(), "it has no file data_batch_3"),
        (lambda path: (path.unlink(), path.mkdir()), "it has no file data_batch_3"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "it has no file data_batch_3"),
        (lambda path: (path.unlink(), path.symlink_to("/dev/zero")), "it has no file data_batch_3"),
        (lambda path: (path.unlink(), path.symlink_to("gone")), "it has no file data_batch_3"),
        (lambda path: path.write_bytes(batch(4)[:-9]), "data_batch_3: not a whole pickle"),
        (
            lambda path: path.write_bytes(pickle.dumps(print)),
            "data_batch_3: refused: the file asks",
        ),
        (lambda path: path.write_bytes(pickle.dumps({}, 2)), "data_batch_3 has no uint8 pixels"),
        (lambda path: os.truncate(path, (64 << 20) + 1), "data_batch_3 has 67,108,865 bytes"),
    ],
)
def test_a_wrong_unpacked_batch(change, match, inside, tmp_path):
    folder = unpack(tmp_path)
    change(folder / "data_batch_3")
    with pytest.raises(ValueError, match=f"^{folder}: {match}.*; unpack the archive again") as info:
        Cifar10(folder if inside else tmp_path, "train")
    assert "\n" not in str(info.value)
    assert len(Cifar10(tmp_path, "val")) == 2


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


def test_other_members_are_left_alone(tmp_path):
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    inside.mkdir()
    write_archive(
        inside,
        {
            "../outside": b"written",
            str(outside): b"written",
            "cifar-10-batches-py/../../outside": b"written",
            "cifar-10-batches-py/batches.meta": pickle.dumps(print),
            "data_batch_1": b"no pickle",
        },
    )
    assert len(Cifar10(inside, "train")) == 10
    assert not outside.exists()
    assert os.listdir(inside) == [ARCHIVE]


def test_code_in_a_batch_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    write_archive(tmp_path, {NAMES[2]: pickle.dumps({b"data": Evil()}, protocol=2)})
    with pytest.raises(ValueError, match=rf"{ARCHIVE}: {NAMES[2]}: refused: the file asks for "):
        Cifar10(tmp_path, "train")
    assert not (tmp_path / "ran").exists()


PIXELS = np.zeros((2, 3072), np.uint8)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "it has no cifar-10-batches-py/data_batch_3"),
        (b"", "not a whole pickle"),
        (batch(4)[:-9], "not a whole pickle"),
        ([1, 2], "pixels of shape"),
        ({}, "pixels of shape"),
        ({b"data": PIXELS}, "one label for each image"),
        ({b"data": PIXELS[:, :-1], b"labels": [1, 2]}, "pixels of shape"),
        ({b"data": PIXELS[0], b"labels": [1, 2]}, "pixels of shape"),
        ({b"data": PIXELS.astype(np.int16), b"labels": [1, 2]}, "pixels of shape"),
        ({b"data": PIXELS.tolist(), b"labels": [1, 2]}, "pixels of shape"),
        ({b"data": PIXELS, b"labels": [1]}, "one label for each image"),
        ({b"data": PIXELS, b"labels": (1, 2)}, "one label for each image"),
        ({b"data": PIXELS[:0], b"labels": []}, "one label for each image"),
        ({b"data": PIXELS, b"labels": [1, 10]}, "none of 0 to 9"),
        ({b"data": PIXELS, b"labels": [-1, 1]}, "none of 0 to 9"),
        ({b"data": PIXELS, b"labels": [1, 2.0]}, "none of 0 to 9"),
        ({b"data": PIXELS, b"fine_labels": [1, 2]}, "one label for each image"),
    ],
)
def test_a_wrong_batch(content, match, tmp_path):
    if content is not None and not isinstance(content, bytes):
        content = pickle.dumps(content, protocol=2)
    path = write_archive(tmp_path, {NAMES[2]: content})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"{ARCHIVE}: .*{match}.*; move away") as info:
        Cifar10(tmp_path, "train")
    assert "\n" not in str(info.value)
    assert path.read_bytes() == before
    assert len(Cifar10(tmp_path, "val")) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: b"<html>not found</html>",
        lambda whole: gzip.compress(b""),
        lambda whole: gzip.compress(b"no tar" * 1000),
        lambda whole: gzip.compress(gzip.decompress(whole)[:5000]),
        lambda whole: whole[:-8] + bytes(8),  # gzip's checksum and size
        lambda whole: whole[:30] + b"\xff" * 30 + whole[60:],
        *(lambda whole, part=part: whole[: len(whole) * part // 7] for part in range(1, 7)),
        lambda whole: whole[:-1],
    ],
)
def test_a_damaged_archive(damage, tmp_path):
    path = write_archive(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    for mode in ("train", "val"):
        with pytest.raises(ValueError, match=rf"^.*{ARCHIVE}: .+; move away") as info:
            Cifar10(tmp_path, mode)
        assert "\n" not in str(info.value)
        assert path.exists()


def test_a_link_in_place_of_a_batch_is_not_followed(tmp_path):
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as archive:
        member = tarfile.TarInfo(NAMES[5])
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    with pytest.raises(ValueError, match="it has no cifar-10-batches-py/test_batch"):
        Cifar10(tmp_path, "val")


@pytest.mark.parametrize("claim", [(64 << 20) + 1, 10**12])
def test_a_member_that_claims_too_much_is_not_read(claim, tmp_path):
    member = tarfile.TarInfo(NAMES[5])
    member.size = claim
    (tmp_path / ARCHIVE).write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT)))
    with pytest.raises(ValueError, match=f"test_batch has {claim:,} bytes"):
        Cifar10(tmp_path, "val")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_bomb_in_another_member(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar_reader, "MAX_ARCHIVE", 1 << 20)
    member = tarfile.TarInfo("zeros")
    member.type, member.size = kind, 2 << 20
    header = member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / ARCHIVE).write_bytes(gzip.compress(header + bytes(2 << 20)))
    with pytest.raises(ValueError, match="unpacks to more than 1,048,576 bytes"):
        Cifar10(tmp_path, "val")


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


FASHION = Path(__file__).parents[1] / FashionMNIST.default_dir


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
