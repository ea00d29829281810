"""CIFAR-10 as its archive or unpacked, and damaged."""

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_archives import ARCHIVE, NAMES, batch, write_archive

from readers import small_images as cifar_reader
from readers.small_images import Cifar10

pytestmark = pytest.mark.usefixtures("no_network")


# The start and the end of a batch of two images as Python 2 and its numpy write it: between them
# lie 6,144 (0x1800) pixels. Its labels are 9 and 0.
PYTHON2 = (
    b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U\x06labelsq\x04]q\x05("
    b"K\x09K\x00eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08"
    b"K\x00\x85U\x01b\x87Rq\x09(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nq\x0aU\x02u1K\x00K\x01\x87R"
    b"q\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T\x00\x18\x00\x00",
    b"tbU\tfilenamesq\x0c]q\x0d(U\x05a.pngq\x0eU\x05b.pngq\x0feu.",
)


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
