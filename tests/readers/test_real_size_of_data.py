"""Every bound of every reader: the largest input that somebody has is read, and one beyond refused.

What takes longer than some seconds runs where the environment says CI.
"""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import long
from hostile import LONG, bounded, member
from PIL import Image
from small_pictures import jpeg_header, png_header
from test_voc_reader import entry

import imagenet_reader
from imagenet_reader import ImageNetDataset
from readers import small_images as cifar_reader
from readers import voc as voc_reader
from readers import voc_augment
from readers.pictures import MAX_BYTES, MAX_PIXELS
from readers.small_images import Cifar10, FashionMNIST
from readers.voc import VOCDataset, read_annotation

# CIFAR-10: six batches of 10,000 pictures, 186 MB

FOLDER = "cifar-10-batches-py"
BATCHES = [*cifar_reader.TRAIN, *cifar_reader.VAL]


class Python2Pickler(pickle._Pickler):
    """Bytes become strings of Python 2, as in the official archive."""

    def save_bytes(self, data: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(data)) + data)
        self.memoize(data)


Python2Pickler.dispatch = {**pickle._Pickler.dispatch, bytes: Python2Pickler.save_bytes}


@pytest.fixture(scope="module")
def batches() -> dict[str, bytes]:
    """Picture i of batch b has the brightness (i + b) % 256 and the label i % 10."""
    made = {}
    for number, name in enumerate(BATCHES):
        pixels = (np.arange(10_000) + number).astype(np.uint8)
        file = io.BytesIO()
        Python2Pickler(file, protocol=2).dump({
            b"batch_label": b"training batch %d of 5" % number,
            b"labels": [i % 10 for i in range(10_000)],
            b"data": np.repeat(pixels[:, None], 3072, 1),
            b"filenames": [b"leptodactylus_pentadactylus_s_%06d.png" % i for i in range(10_000)],
        })  # fmt: skip
        made[name] = file.getvalue()
    return made


def check_cifar10(folder: Path) -> None:
    for mode, count, first in (("train", 50_000, range(5)), ("val", 10_000, [5])):
        dataset = Cifar10(folder, mode)
        assert dataset.images.shape == (count, 3, 32, 32)
        assert dataset.labels.tolist() == [i % 10 for i in range(count)]
        wanted = np.concatenate([np.arange(10_000) + number for number in first]).astype(np.uint8)
        np.testing.assert_array_equal(dataset.images[:, 2, 31, 31], wanted)


ORDERS = {
    "as published": [FOLDER, "data_batch_4", *BATCHES[:3], "batches.meta", *BATCHES[4:]],
    "backwards": [*BATCHES[::-1], FOLDER],
    "with attributes": BATCHES,
}


@pytest.mark.parametrize("order", ORDERS)
def test_cifar10(order, batches, large_tmp_path):
    path = large_tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as archive:
        for name in ORDERS[order]:
            info = tarfile.TarInfo(f"{FOLDER}/{name}" if name != FOLDER else name)
            if order == "with attributes":  # as those of macOS
                info.pax_headers = {"SCHILY.xattr.com.apple.quarantine": "x" * 100_000}
            info.type = tarfile.DIRTYPE if name == FOLDER else tarfile.REGTYPE
            content = batches.get(name, b"")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    check_cifar10(large_tmp_path)
    assert bounded(lambda: Cifar10(large_tmp_path, "train")) == "nothing"


def test_cifar10_unpacked(batches, large_tmp_path):
    (large_tmp_path / FOLDER).mkdir()
    for name, content in batches.items():
        (large_tmp_path / FOLDER / name).write_bytes(content)
    check_cifar10(large_tmp_path)
    assert bounded(lambda: Cifar10(large_tmp_path, "train")) == "nothing"


@pytest.mark.parametrize("place", ["first", "behind a batch", "last"])
def test_a_header_in_cifar10(place, batches, large_tmp_path):
    """Close to the bound and beyond; tarfile reads 10 KiB at once."""
    batch = member(f"{FOLDER}/test_batch", batches["test_batch"])
    for size, message in ((-20_000, None), (1, "more than 1,048,576 bytes between two members")):
        header = member("x", b"a" * (cifar_reader.MAX_HEADER + size), LONG)
        other = member("other", bytes(2 << 20))
        parts = {"first": [header, other, batch], "last": [batch, other, header]}
        parts = parts.get(place, [batch, header, other])
        (large_tmp_path / "cifar-10-python.tar.gz").write_bytes(
            gzip.compress(b"".join([*parts, bytes(1024)]), 1)
        )
        if message is None and place != "last":
            assert len(Cifar10(large_tmp_path, "val")) == 10_000
        elif message:
            with pytest.raises(ValueError, match=message):
                Cifar10(large_tmp_path, "val")


def test_members_of_cifar10(large_tmp_path):
    content = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}, protocol=2)
    for count, message in ((999, None), (1000, "more than 1000 members")):
        parts = [member("x") * count, member(f"{FOLDER}/test_batch", content), bytes(1024)]
        (large_tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b"".join(parts), 1))
        if message is None:
            assert len(Cifar10(large_tmp_path, "val")) == 1
        else:
            with pytest.raises(ValueError, match=message):
                Cifar10(large_tmp_path, "val")


# Fashion-MNIST: 60,000 and 10,000 pictures


def write_idx(folder: Path, part: str, pixels: bytes, labels: bytes) -> None:
    images = struct.pack(">4I", 2051, len(labels), 28, 28) + pixels
    for name, content in (
        (f"{part}-images-idx3-ubyte.gz", images),
        (f"{part}-labels-idx1-ubyte.gz", struct.pack(">2I", 2049, len(labels)) + labels),
    ):
        (folder / name).write_bytes(gzip.compress(content, 1))


def test_fashion_mnist(large_tmp_path):
    for part, mode, count in (("train", "train", 60_000), ("t10k", "val", 10_000)):
        values = np.arange(count).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(large_tmp_path, part, np.repeat(values, 784).tobytes(), labels.tobytes())
        dataset = FashionMNIST(large_tmp_path, mode)
        assert dataset.images.shape == (count, 1, 32, 32)
        np.testing.assert_array_equal(dataset.images[:, 0, 16, 16], values)
        np.testing.assert_array_equal(dataset.labels, labels)
    assert bounded(lambda: FashionMNIST(large_tmp_path, "train")) == "nothing"


@pytest.mark.parametrize(
    ("bound", "content"), [("MAX_IMAGES", "images-idx3"), ("MAX_LABELS", "labels-idx1")]
)
def test_fashion_mnist_that_is_too_large(bound, content, large_tmp_path):
    write_idx(large_tmp_path, "t10k", bytes(784), b"\1")
    most = getattr(cifar_reader, bound)
    (large_tmp_path / f"t10k-{content}-ubyte.gz").write_bytes(gzip.compress(bytes(most + 1), 1))
    with pytest.raises(ValueError, match=f"unpacks to more than {most:,} bytes"):
        FashionMNIST(large_tmp_path, "val")


# ImageNet: lists of 1,281,167 lines, and pictures of up to 89 million pixels


def test_the_list_of_imagenet(large_tmp_path):
    count = 1_281_167
    with open(large_tmp_path / "train_list.txt", "w") as file:
        file.writelines(
            f"train/n{i // 1282:08d}/n{i // 1282:08d}_{i % 1282}.JPEG {i // 1282}\n"
            for i in range(count)
        )
    dataset = ImageNetDataset(large_tmp_path, "train")
    assert len(dataset) == count
    assert dataset.paths[count - 1] == b"train/n00000999/n00000999_448.JPEG"
    assert np.bincount(dataset.labels).tolist() == [1282] * 999 + [449]
    assert bounded(lambda: ImageNetDataset(large_tmp_path, "train")) == "nothing"


def test_a_line_of_a_list(large_tmp_path):
    path = "/".join(["a" * 255] * 16)[:4095]  # Linux knows none that is longer
    most = imagenet_reader.MAX_LINE
    for line, count in ((path, 4095), ("a" * (most - 5), most - 5), ("a" * (most - 4), None)):
        (large_tmp_path / "val_list.txt").write_text(f"b 1\n{line} 99\n")
        if count:
            assert len(ImageNetDataset(large_tmp_path, "val").paths[1]) == count
        else:
            with pytest.raises(ValueError, match=f"line 2: has {most} bytes or more"):
                ImageNetDataset(large_tmp_path, "val")


SIDE = 9459  # one more each way is beyond MAX_PIXELS


def large_picture(kind: str) -> bytes:
    """9459 x 9459 pixels that get brighter from top to bottom."""
    picture = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    file = io.BytesIO()
    options = {"PROGRESSIVE": {"progressive": True}, "PNG": {"compress_level": 1}}.get(kind, {})
    picture.save(file, kind.replace("PROGRESSIVE", "JPEG"), **options)
    return file.getvalue()


def write_picture(folder: Path, data: bytes) -> ImageNetDataset:
    (folder / "a.JPEG").write_bytes(data)
    (folder / "val_list.txt").write_text("a.JPEG 0\n")
    return ImageNetDataset(folder, "val")


@pytest.mark.parametrize(
    "kind",
    ["JPEG", "PROGRESSIVE", *(pytest.param(k, marks=long) for k in ("PNG", "TIFF")),
     pytest.param("BMP", marks=long)],
)  # fmt: skip
def test_the_largest_picture(kind, large_tmp_path):
    data = large_picture(kind)
    if kind == "PROGRESSIVE":
        assert data.count(b"\xff\xda") == 10
    image, _ = write_picture(large_tmp_path, data)[0]
    brightness = image[0].mean(1)
    assert image.shape == (3, 224, 224)
    assert (np.diff(brightness) >= 0).all()
    assert brightness[-1] - brightness[0] == pytest.approx(223 / 256 / 0.229, abs=0.05)


@pytest.mark.parametrize("header", [jpeg_header, png_header])
def test_a_picture_of_a_line_more(header, large_tmp_path):
    assert SIDE**2 <= MAX_PIXELS < SIDE * (SIDE + 1)
    with pytest.raises(ValueError, match=f"{SIDE} x {SIDE + 1} is too large"):
        write_picture(large_tmp_path, header(SIDE, SIDE + 1))[0]


def test_scans_of_a_large_jpeg(large_tmp_path):
    data = large_picture("PROGRESSIVE")
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ValueError, match=f"21 scans are too many for {SIDE} x {SIDE}"):
        write_picture(large_tmp_path, data[:-2] + last * 11 + b"\xff\xd9")[0]


def test_a_file_of_too_many_bytes(large_tmp_path):
    dataset = write_picture(large_tmp_path, b"")
    os.truncate(large_tmp_path / "a.JPEG", MAX_BYTES + 1)
    with pytest.raises(ValueError, match="bytes are too much"):
        dataset[0]


# Pascal VOC: 16,551 annotations


def write_voc(folder: Path, names: list[str], size=(500, 375)) -> None:
    """The pictures are one file."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", size).save(folder / "picture.jpg")
    for i, name in enumerate(names):
        os.link(folder / "picture.jpg", folder / "JPEGImages" / f"{name}.jpg")
        objects = [
            entry(kind, 1 + i % 100, 1, size[0], size[1], "<difficult>0</difficult>")
            for kind in voc_reader.CLASSES[: 1 + i % 4]
        ]
        (folder / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><folder>{folder.name}</folder><size><width>{size[0]}</width>"
            f"<height>{size[1]}</height></size>{''.join(objects)}</annotation>"
        )
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(names) + "\n")


def test_the_annotations_of_voc(large_tmp_path):
    write_voc(large_tmp_path / "VOC2007", [f"{i:06d}" for i in range(5011)])
    write_voc(large_tmp_path / "VOC2012", [f"2008_{i:06d}" for i in range(11_540)])
    test = large_tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    test.write_text("".join(f"{i:06d}\n" for i in range(4952)))
    train, val = VOCDataset(large_tmp_path, "train"), VOCDataset(large_tmp_path, "val")
    assert (len(train), len(val)) == (16_551, 4952)
    assert [len(o.boxes) for o in train.objects[5011:]] == [1 + i % 4 for i in range(11_540)]
    assert train.objects[5010].boxes.tolist() == [[10, 0, 500, 375]] * 3
    assert bounded(lambda: VOCDataset(large_tmp_path, "train")) == "nothing"


def test_an_annotation_of_many_objects(large_tmp_path):
    path = large_tmp_path / "a.xml"
    head, tail = "<annotation><size><width>500</width><height>375</height></size>", "</annotation>"
    path.write_text(head + entry() * 5000 + tail)
    assert len(read_annotation(str(path), ["dog"]).boxes) == 5000
    for more, message in ((0, None), (1, "more than 1,048,576 bytes")):
        text = head + " " * (voc_reader.MAX_XML - len(head + tail) + more) + tail
        path.write_text(text)
        if message is None:
            assert len(read_annotation(str(path), ["dog"]).boxes) == 0
        else:
            with pytest.raises(ValueError, match=message):
                read_annotation(str(path), ["dog"])


def test_lists_of_names(large_tmp_path):
    write_voc(large_tmp_path, ["a"])
    path = large_tmp_path / "label_list.txt"
    for count, length in ((1000, 31), (9418, 9)):  # ImageNet's; YOLO9000's
        names = [f"{i:0{length}d}" for i in range(count)]
        path.write_text("\n".join(names))
        assert voc_reader.read_classes(large_tmp_path) == names
    path.write_text("a" * ((128 << 10) + 1))
    with pytest.raises(ValueError, match="more than 131,072 bytes"):
        voc_reader.read_classes(large_tmp_path)
    path = large_tmp_path / "ImageSets" / "Main" / "trainval.txt"
    path.with_name("test.txt").write_text("a\n")
    path.write_text("".join(f"objects365_v2_{i:08d}\n" for i in range(1_742_289)))
    assert len(voc_reader.list_names(str(large_tmp_path), "train")) == 1_742_289
    os.truncate(path, voc_reader.MAX_LIST + 1)
    with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
        voc_reader.list_names(str(large_tmp_path), "train")


@pytest.mark.parametrize("mode", ["train", "val"])
def test_the_largest_picture_of_objects(mode, large_tmp_path):
    write_voc(large_tmp_path, ["a"], size=(10_000, 8947))
    lists = large_tmp_path / "ImageSets" / "Main"
    (lists / "test.txt").write_text((lists / "trainval.txt").read_text())
    image, *_ = VOCDataset(large_tmp_path, mode, image_size=416)[0]
    assert image.shape == (3, 416, 416)


def test_objects_of_a_training_picture():
    """Beyond 50 they are dropped, as the loss takes no more."""
    for count, kept in ((50, 50), (51, 50)):
        boxes = np.float32([[i, 0, i + 1, 9] for i in range(count)])
        sample = voc_augment.Sample(
            np.zeros((9, 100, 3), np.uint8), boxes, np.arange(count), np.ones(count, np.float32)
        )
        _, boxes, labels, weights = voc_augment.target(sample, 32)
        assert (labels.tolist(), weights.sum()) == ([*range(50)], kept)
        assert boxes[:, 2] == pytest.approx(0.01, abs=1e-6)
