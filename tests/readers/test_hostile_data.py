"""Archives, pictures and lists made to do harm, and real ones with wrong bytes: refused."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
from pathlib import Path

import pytest
from hostile import (
    ARCHIVE,
    BATCH,
    LONG,
    PAX,
    batch,
    bounded,
    changed,
    changes,
    loaded_or_refused,
    member,
    pickles,
    properties,
    write_gzip,
)
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_pictures import jpeg_header, png_header

import evaluate
from imagenet_reader import ImageNetDataset
from readers.small_images import Cifar10, FashionMNIST
from training.folders import WEIGHTS

SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
ARCHIVES = {
    "out by ..": lambda out: member(f"../{out.name}", batch()),
    "out by a long name": lambda out: member("x", f"{out}\0".encode(), LONG) + member("y", batch()),
    "absolute": lambda out: member(str(out), batch()),
    "inside and out": lambda out: member(f"cifar-10-batches-py/../{BATCH}", batch()),
    "link": lambda out: member(BATCH, kind=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "link, then a file through it": lambda out: (
        member("cifar-10-batches-py", kind=tarfile.SYMTYPE, linkname=str(out.parent))
        + member(f"cifar-10-batches-py/{out.name}", batch())
    ),
    "hard link": lambda out: member(BATCH, kind=tarfile.LNKTYPE, linkname="/etc/passwd"),
    "device": lambda out: member(BATCH, kind=tarfile.CHRTYPE, devmajor=1, devminor=5),
    "block device": lambda out: member(BATCH, kind=tarfile.BLKTYPE, devmajor=8),
    "pipe": lambda out: member(BATCH, kind=tarfile.FIFOTYPE),
    "folder": lambda out: member(BATCH, kind=tarfile.DIRTYPE),
    "twice": lambda out: member(BATCH, batch()) * 2,
    "headers in headers": lambda out: member("x", kind=LONG) * 2000,
    "many members": lambda out: member("x") * 400_000,
    "sparse without end": lambda out: (
        member("x", SPARSE, PAX) + member(BATCH, b"9\n" + b"1" * (64 << 20))
    ),
    "sparse lines": lambda out: (
        member("x", SPARSE, PAX) + member(BATCH, b"99999999\n" + b"1\n" * (20 << 20))
    ),
    "long name": lambda out: member("x", b"a" * (200 << 20), LONG) + member("y"),
    "long attribute": lambda out: (
        member("x", b"209715212 path=" + b"a" * (200 << 20), PAX) + member("y")
    ),
    "zeros": lambda out: member("x", bytes(300 << 20)),
    "a large batch": lambda out: member(BATCH, bytes(65 << 20)),
    "a batch of zeros": lambda out: member(BATCH, bytes(64 << 20)),
    "a batch of text": lambda out: member(
        BATCH, b"X" + struct.pack("<I", 60 << 20) + "€".encode() + b"a" * ((60 << 20) - 3) + b"."
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive(name, refused):
    write_gzip(refused.folder, ARCHIVES[name](refused.canary) + bytes(1024))
    (refused.folder / WEIGHTS).write_bytes((refused.trained / WEIGHTS).read_bytes())
    refused.evaluate(ARCHIVE, "cifar10")
    bounded(lambda: Cifar10(refused.folder, "val"))


FASHION = {  # the headers and how many zeros follow, of the pictures and of the labels
    "zeros": ((2051, 100, 28, 28), 700 << 20, (2049, 100), 100),
    "labels without images": ((2051, 1 << 31, 0, 0), 0, (2049, 1 << 31), 32 << 20),
    "claimed size": ((2051, 100, 1 << 31, 1 << 31), 0, (2049, 100), 100),
    "small images": ((2051, 1 << 31, 1, 1), 60 << 20, (2049, 1 << 31), 120 << 10),
}


@pytest.mark.parametrize("name", FASHION)
def test_fashion_mnist(name, tmp_path):
    images, pixels, labels, count = FASHION[name]
    content = struct.pack(">4I", *images) + bytes(pixels)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(content, 1))
    content = struct.pack(">2I", *labels) + bytes(count)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(content, 1))
    assert "t10k-images-idx3-ubyte.gz" in bounded(lambda: FashionMNIST(tmp_path, "val"))


def progressive() -> bytes:
    """A JPEG of 9000x9000 whose last scan comes a thousand times, each as long as a picture."""
    file = io.BytesIO()
    Image.new("L", (9000, 9000), 100).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 1000 + b"\xff\xd9"


def write_list(folder: Path, lines: bytes) -> None:
    (folder / "val_list.txt").write_bytes(lines)


def write_picture(folder: Path, data: bytes) -> None:
    (folder / "a.JPEG").write_bytes(data)
    write_list(folder, b"a.JPEG 0\n")


def write_sparse(path: Path, size: int) -> None:
    with open(path, "wb") as file:
        file.truncate(size)


def linked(folder: Path, target) -> None:
    write_list(folder, b"a.JPEG 0\n")
    (folder / "a.JPEG").symlink_to(target)


def outside(folder: Path) -> Path:
    """A good picture that is not in the folder."""
    path = folder.parent / "outside.png"
    Image.new("RGB", (9, 9)).save(path)
    return path


LIST, PICTURE, OUTSIDE = "val_list.txt", "a.JPEG", "is not inside the data folder"
PICTURES = {
    "jpeg bomb": (PICTURE, lambda f: write_picture(f, jpeg_header(60000, 60000))),
    "png bomb": (PICTURE, lambda f: write_picture(f, png_header(60000, 60000))),
    "png of all numbers": (PICTURE, lambda f: write_picture(f, png_header(2**31 - 1, 2**31 - 1))),
    "scans": (PICTURE, lambda f: write_picture(f, progressive())),
    "pickle": (PICTURE, lambda f: write_picture(f, pickles(str(f.parent / "canary"))["os.system"])),
    "postscript": (PICTURE, lambda f: write_picture(f, b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF")),
    "large file": (PICTURE, lambda f: (write_picture(f, b""), write_sparse(f / PICTURE, 1 << 40))),
    "link to a text": (PICTURE, lambda f: linked(f, __file__)),
    "link to zeros": (PICTURE, lambda f: linked(f, "/dev/zero")),
    "link to itself": (PICTURE, lambda f: linked(f, "a.JPEG")),
    "pipe": (PICTURE, lambda f: (write_list(f, b"a.JPEG 0\n"), os.mkfifo(f / PICTURE))),
    "escape code": ("\\x1b[2Ja.JPEG", lambda f: write_list(f, b"\x1b[2Ja.JPEG 0\n")),
    "name that is no text": ("\\udcff.JPEG", lambda f: write_list(f, b"\xff.JPEG 0\n")),
    "absolute": (OUTSIDE, lambda f: write_list(f, bytes(outside(f)) + b" 0\n")),
    "out by ..": (OUTSIDE, lambda f: write_list(f, b"../" + outside(f).name.encode() + b" 0\n")),
    "in and out": (OUTSIDE, lambda f: write_list(f, b"./../" + outside(f).name.encode() + b" 0\n")),
    "no text": (LIST, lambda f: write_list(f, bytes(range(256)) * 9)),
    "one line": (LIST, lambda f: write_list(f, b"a" * (64 << 20))),
    "large list": (LIST, lambda f: write_sparse(f / LIST, 1 << 40)),
    "list as a pipe": (LIST, lambda f: os.mkfifo(f / LIST)),
    "label": (LIST, lambda f: write_list(f, b"a.JPEG 4294967296\n")),
    "label of digits": (LIST, lambda f: write_list(f, b"a.JPEG " + b"9" * 5000)),
    "more digits": (LIST, lambda f: write_list(f, b"a.JPEG " + b"9" * (32 << 20))),
    "one long path": (
        "/aaaa",
        lambda f: write_list(f, b"/".join([b"a" * 90] * 80) + b" 0\n" + b"a 0\n" * 300_000),
    ),
}


@pytest.mark.skipif(os.name == "nt", reason="has no pipes and devices as files")
@pytest.mark.parametrize("name", PICTURES)
def test_pictures_and_lists(name, refused, trained):
    file, write = PICTURES[name]
    write(refused.folder)

    def load():
        return ImageNetDataset(refused.folder, "val", num_classes=10)[0]

    message = bounded(load)
    assert file in message or len(message) == 4000
    (refused.folder / WEIGHTS).write_bytes((trained / WEIGHTS).read_bytes())
    for workers in (0, 2) if file.startswith("\\") else (0,):
        refused(file, evaluate.main, "--pruned_model", refused.folder, "--scale", 0.25,
                "--num_classes", 10, "--data", "imagenet", "--data_dir", refused.folder,
                "--use_gpu", "false", "--num_workers", workers)  # fmt: skip


@properties
@given(changes, st.sampled_from(["gzip", "tar", "batch"]))
def test_a_changed_archive(tmp_path_factory, changes, layer):
    content = batch() if layer != "batch" else changed(batch(), changes)
    content = member(BATCH, content) + bytes(1024)
    if layer == "tar":
        at = [(kind, at % 600, piece) for kind, at, piece in changes]  # most of it is pixels
        content = changed(content, at)
    path = write_gzip(tmp_path_factory.getbasetemp(), content)
    if layer == "gzip":
        path.write_bytes(changed(path.read_bytes(), changes))
    data = loaded_or_refused(path, lambda: Cifar10(path.parent, "val"))
    assert data is None or data.images.shape == (len(data.labels), 3, 32, 32)


@properties
@given(changes)
def test_a_changed_list(imagenet_dir, changes):
    path = imagenet_dir / "train_list.txt"
    whole = path.read_bytes()
    try:
        path.write_bytes(changed(whole, changes))
        data = loaded_or_refused(path, lambda: ImageNetDataset(imagenet_dir, "train", 8, 9))
        for i in range(len(data) if data else 0):
            item = loaded_or_refused(path, lambda i=i: data[i])  # which names the list, too
            assert item is None or item[0].shape == (3, 8, 8)
    finally:
        path.write_bytes(whole)
