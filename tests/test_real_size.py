"""Every bound of every reader: the largest input that somebody has is read, and one beyond refused.

What takes longer than some seconds runs where the environment says CI. The data sets that real
users have are read where they lie beside the project, in ../shared/data.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import types
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT
from PIL import Image
from safetensors.numpy import save_file
from test_hostile_files import LONG, bounded, member, npy, npz
from test_imagenet_reader import jpeg_header, png_header
from test_sparse_runtime import POOL, convolution, depthwise, expected, model, pictures
from test_voc_reader import entry

import imagenet_reader
from imagenet_reader import ImageNetDataset
from readers import safe_pickle
from readers import small_images as cifar_reader
from readers import voc as voc_reader
from readers.pictures import MAX_BYTES, MAX_PIXELS
from readers.small_images import Cifar10, FashionMNIST
from readers.voc import VOCDataset, read_annotation
from sparse_runtime import Network, model_file
from training import checkpoint
from training.checkpoint import MASKS, METRICS, STATE, WEIGHTS

long = pytest.mark.skipif(not os.environ.get("CI"), reason="takes long: runs with CI=true")
SHARED = ROOT.parent / "shared" / "data"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the real data are not beside the project")


@pytest.fixture
def tmp_path(tmp_path):
    """Removed at once: pytest would keep that of three sessions, gigabytes here."""
    yield tmp_path
    shutil.rmtree(tmp_path)


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
def test_cifar10(order, batches, tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, compresslevel=1) as archive:
        for name in ORDERS[order]:
            info = tarfile.TarInfo(f"{FOLDER}/{name}" if name != FOLDER else name)
            if order == "with attributes":  # as those of macOS
                info.pax_headers = {"SCHILY.xattr.com.apple.quarantine": "x" * 100_000}
            info.type = tarfile.DIRTYPE if name == FOLDER else tarfile.REGTYPE
            content = batches.get(name, b"")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    check_cifar10(tmp_path)
    assert bounded(lambda: Cifar10(tmp_path, "train")) == "nothing"


def test_cifar10_unpacked(batches, tmp_path):
    (tmp_path / FOLDER).mkdir()
    for name, content in batches.items():
        (tmp_path / FOLDER / name).write_bytes(content)
    check_cifar10(tmp_path)
    assert bounded(lambda: Cifar10(tmp_path, "train")) == "nothing"


@pytest.mark.parametrize("place", ["first", "behind a batch", "last"])
def test_a_header_in_cifar10(place, batches, tmp_path):
    """Close to the bound and beyond; tarfile reads 10 KiB at once."""
    batch = member(f"{FOLDER}/test_batch", batches["test_batch"])
    for size, message in ((-20_000, None), (1, "more than 1,048,576 bytes between two members")):
        header = member("x", b"a" * (cifar_reader.MAX_HEADER + size), LONG)
        other = member("other", bytes(2 << 20))
        parts = {"first": [header, other, batch], "last": [batch, other, header]}
        parts = parts.get(place, [batch, header, other])
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(
            gzip.compress(b"".join([*parts, bytes(1024)]), 1)
        )
        if message is None and place != "last":
            assert len(Cifar10(tmp_path, "val")) == 10_000
        elif message:
            with pytest.raises(ValueError, match=message):
                Cifar10(tmp_path, "val")


def test_members_of_cifar10(tmp_path):
    content = pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1]}, protocol=2)
    for count, message in ((999, None), (1000, "more than 1000 members")):
        parts = [member("x") * count, member(f"{FOLDER}/test_batch", content), bytes(1024)]
        (tmp_path / "cifar-10-python.tar.gz").write_bytes(gzip.compress(b"".join(parts), 1))
        if message is None:
            assert len(Cifar10(tmp_path, "val")) == 1
        else:
            with pytest.raises(ValueError, match=message):
                Cifar10(tmp_path, "val")


# Fashion-MNIST: 60,000 and 10,000 pictures


def write_idx(folder: Path, part: str, pixels: bytes, labels: bytes) -> None:
    images = struct.pack(">4I", 2051, len(labels), 28, 28) + pixels
    for name, content in (
        (f"{part}-images-idx3-ubyte.gz", images),
        (f"{part}-labels-idx1-ubyte.gz", struct.pack(">2I", 2049, len(labels)) + labels),
    ):
        (folder / name).write_bytes(gzip.compress(content, 1))


def test_fashion_mnist(tmp_path):
    for part, mode, count in (("train", "train", 60_000), ("t10k", "val", 10_000)):
        values = np.arange(count).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        write_idx(tmp_path, part, np.repeat(values, 784).tobytes(), labels.tobytes())
        dataset = FashionMNIST(tmp_path, mode)
        assert dataset.images.shape == (count, 1, 32, 32)
        np.testing.assert_array_equal(dataset.images[:, 0, 16, 16], values)
        np.testing.assert_array_equal(dataset.labels, labels)
    assert bounded(lambda: FashionMNIST(tmp_path, "train")) == "nothing"


@pytest.mark.parametrize(
    ("bound", "content"), [("MAX_IMAGES", "images-idx3"), ("MAX_LABELS", "labels-idx1")]
)
def test_fashion_mnist_that_is_too_large(bound, content, tmp_path):
    write_idx(tmp_path, "t10k", bytes(784), b"\1")
    most = getattr(cifar_reader, bound)
    (tmp_path / f"t10k-{content}-ubyte.gz").write_bytes(gzip.compress(bytes(most + 1), 1))
    with pytest.raises(ValueError, match=f"unpacks to more than {most:,} bytes"):
        FashionMNIST(tmp_path, "val")


# ImageNet: lists of 1,281,167 lines, and pictures of up to 89 million pixels


def test_the_list_of_imagenet(tmp_path):
    count = 1_281_167
    with open(tmp_path / "train_list.txt", "w") as file:
        file.writelines(
            f"train/n{i // 1282:08d}/n{i // 1282:08d}_{i % 1282}.JPEG {i // 1282}\n"
            for i in range(count)
        )
    dataset = ImageNetDataset(tmp_path, "train")
    assert len(dataset) == count
    assert dataset.paths[count - 1] == b"train/n00000999/n00000999_448.JPEG"
    assert np.bincount(dataset.labels).tolist() == [1282] * 999 + [449]
    assert bounded(lambda: ImageNetDataset(tmp_path, "train")) == "nothing"


def test_a_line_of_a_list(tmp_path):
    path = "/".join(["a" * 255] * 16)[:4095]  # Linux knows none that is longer
    most = imagenet_reader.MAX_LINE
    for line, count in ((path, 4095), ("a" * (most - 5), most - 5), ("a" * (most - 4), None)):
        (tmp_path / "val_list.txt").write_text(f"b 1\n{line} 99\n")
        if count:
            assert len(ImageNetDataset(tmp_path, "val").paths[1]) == count
        else:
            with pytest.raises(ValueError, match=f"line 2: has {most} bytes or more"):
                ImageNetDataset(tmp_path, "val")


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
def test_the_largest_picture(kind, tmp_path):
    data = large_picture(kind)
    if kind == "PROGRESSIVE":
        assert data.count(b"\xff\xda") == 10
    image, _ = write_picture(tmp_path, data)[0]
    brightness = image[0].mean(1)
    assert image.shape == (3, 224, 224)
    assert (np.diff(brightness) >= 0).all()
    assert brightness[-1] - brightness[0] == pytest.approx(223 / 256 / 0.229, abs=0.05)


@pytest.mark.parametrize("header", [jpeg_header, png_header])
def test_a_picture_of_a_line_more(header, tmp_path):
    assert SIDE**2 <= MAX_PIXELS < SIDE * (SIDE + 1)
    with pytest.raises(ValueError, match=f"{SIDE} x {SIDE + 1} is too large"):
        write_picture(tmp_path, header(SIDE, SIDE + 1))[0]


def test_scans_of_a_large_jpeg(tmp_path):
    data = large_picture("PROGRESSIVE")
    last = data[data.rindex(b"\xff\xda") : -2]
    with pytest.raises(ValueError, match=f"21 scans are too many for {SIDE} x {SIDE}"):
        write_picture(tmp_path, data[:-2] + last * 11 + b"\xff\xd9")[0]


def test_a_file_of_too_many_bytes(tmp_path):
    dataset = write_picture(tmp_path, b"")
    os.truncate(tmp_path / "a.JPEG", MAX_BYTES + 1)
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


def test_the_annotations_of_voc(tmp_path):
    write_voc(tmp_path / "VOC2007", [f"{i:06d}" for i in range(5011)])
    write_voc(tmp_path / "VOC2012", [f"2008_{i:06d}" for i in range(11_540)])
    test = tmp_path / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    test.write_text("".join(f"{i:06d}\n" for i in range(4952)))
    train, val = VOCDataset(tmp_path, "train"), VOCDataset(tmp_path, "val")
    assert (len(train), len(val)) == (16_551, 4952)
    assert [len(o.boxes) for o in train.objects[5011:]] == [1 + i % 4 for i in range(11_540)]
    assert train.objects[5010].boxes.tolist() == [[10, 0, 500, 375]] * 3
    assert bounded(lambda: VOCDataset(tmp_path, "train")) == "nothing"


def test_an_annotation_of_many_objects(tmp_path):
    path = tmp_path / "a.xml"
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


def test_lists_of_names(tmp_path):
    write_voc(tmp_path, ["a"])
    path = tmp_path / "label_list.txt"
    for count, length in ((1000, 31), (9418, 9)):  # ImageNet's; YOLO9000's
        names = [f"{i:0{length}d}" for i in range(count)]
        path.write_text("\n".join(names))
        assert voc_reader.read_classes(tmp_path) == names
    path.write_text("a" * ((128 << 10) + 1))
    with pytest.raises(ValueError, match="more than 131,072 bytes"):
        voc_reader.read_classes(tmp_path)
    path = tmp_path / "ImageSets" / "Main" / "trainval.txt"
    path.with_name("test.txt").write_text("a\n")
    path.write_text("".join(f"objects365_v2_{i:08d}\n" for i in range(1_742_289)))
    assert len(voc_reader.list_names(str(tmp_path), "train")) == 1_742_289
    os.truncate(path, voc_reader.MAX_LIST + 1)
    with pytest.raises(ValueError, match="more than 67,108,864 bytes"):
        voc_reader.list_names(str(tmp_path), "train")


@pytest.mark.parametrize("mode", ["train", "val"])
def test_the_largest_picture_of_objects(mode, tmp_path):
    write_voc(tmp_path, ["a"], size=(10_000, 8947))
    lists = tmp_path / "ImageSets" / "Main"
    (lists / "test.txt").write_text((lists / "trainval.txt").read_text())
    image, *_ = VOCDataset(tmp_path, mode, image_size=416)[0]
    assert image.shape == (3, 416, 416)


def test_objects_of_a_training_picture():
    """Beyond 50 they are dropped, as the loss takes no more."""
    for count, kept in ((50, 50), (51, 50)):
        boxes = np.float32([[i, 0, i + 1, 9] for i in range(count)])
        sample = voc_reader.Sample(
            np.zeros((9, 100, 3), np.uint8), boxes, np.arange(count), np.ones(count, np.float32)
        )
        _, boxes, labels, weights = voc_reader.target(sample, 32)
        assert (labels.tolist(), weights.sum()) == ([*range(50)], kept)
        assert boxes[:, 2] == pytest.approx(0.01, abs=1e-6)


# Checkpoints


def test_a_pickle_of_many_tensors(tmp_path):
    """Five times as many as Adam keeps of DenseNet-264, the network here with the most."""
    path = tmp_path / WEIGHTS
    state = {f"block.{i}.weight_moment1_0": np.float32([i]) for i in range(26_520)}
    paddle.save(state, str(path), protocol=4)
    read = safe_pickle.load_paddle_state(path)
    assert {name: float(value[0]) for name, value in read.items()} == {
        name: float(value[0]) for name, value in state.items()
    }
    for more, message in ((0, "not a state dict"), (1, "more than 2,000,000 opcodes")):
        path.write_bytes(b"\x80\x04(" + b"N" * (1_999_996 + more) + b"t.")
        with pytest.raises(ValueError, match=message):
            safe_pickle.load_paddle_state(path)


def test_a_tensor_in_the_form_of_those_beyond_4_gb(tmp_path):
    weight = np.random.default_rng(0).standard_normal((100, 100), np.float32)
    whole = pickle.dumps({"weight": weight}, protocol=4)
    size = len(weight.tobytes())
    at = whole.index(pickle.BINBYTES + struct.pack("<I", size))
    content = whole[at + 5 : at + 5 + size]
    framed = whole[:at] + pickle.BINBYTES8 + struct.pack("<Q", size) + content
    (tmp_path / WEIGHTS).write_bytes(framed + whole[at + 5 + size :])
    read = safe_pickle.load_paddle_state(tmp_path / WEIGHTS)
    np.testing.assert_array_equal(read["weight"], weight)


VGG16 = {  # its prunable weights
    **{f"features.{i}.weight": (*channels, 3, 3) for i, channels in enumerate([
        (64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256),
        *[(512, 512)] * 5,
    ])},
    "classifier.0.weight": (25088, 4096), "classifier.3.weight": (4096, 4096),
    "classifier.6.weight": (4096, 1000),
}  # fmt: skip


def test_the_masks_of_vgg16(tmp_path):
    like = {name: types.SimpleNamespace(shape=list(shape)) for name, shape in VGG16.items()}
    packed = {
        name: np.resize(np.uint8([0b10010000, 0b1]), -(-int(np.prod(shape)) // 8))
        for name, shape in VGG16.items()
    }
    path = tmp_path / MASKS
    np.savez(path, **packed)
    masks = checkpoint._read_masks(path, like)
    assert {name: mask.shape for name, mask in masks.items()} == VGG16
    assert sum(map(np.count_nonzero, masks.values())) == 138_344_128 * 3 // 16
    most = 25088 * 4096 + 4096
    path.write_bytes(npz(npy(f"({most},)", bytes(most - 70)), "classifier.0.weight"))
    with pytest.raises(ValueError, match="it claims to unpack to more"):
        checkpoint._read_masks(path, like)


def test_weights_of_resnet152_as_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    made = {f"layer4.{i}.weight": np.full((2048, 512, 1, 1), i, np.float32) for i in range(57)}
    save_file(made, path)  # 239 MB, as all of its weights
    read = checkpoint.read_arrays(path)
    assert {name: value.max() for name, value in read.items()} == {
        f"layer4.{i}.weight": i for i in range(57)
    }


def test_a_long_training_of_many(tmp_path):
    """1024 ranks, YOLO9000's classes, and 10,000 epochs in the table of metrics."""
    classes = [f"{i:09d}" for i in range(9418)]
    state = {
        "epoch": 9999, "step": 10**12, "finished": True,
        "ranks": 1024, "totals": [[0.1] * 4] * 1024,
        "options": {"classes": classes, "num_classes": len(classes), "batch_size": 64},
    }  # fmt: skip
    checkpoint.write_state(tmp_path, state)
    read = checkpoint.read_state(tmp_path)
    assert {key: read[key] for key in state} == state
    assert read["checksums"].keys() == {STATE}
    records = [{"epoch": i, "top1": i / 1e4, "best": True, "lr": 0.05} for i in range(10_000)]
    checkpoint._write_metrics(tmp_path, records)
    (tmp_path / checkpoint.BEST).touch()
    assert checkpoint.best(tmp_path, "top1") == 0.9999
    assert checkpoint.reported(tmp_path) == [*range(10_000)]
    checkpoint.set_aside(tmp_path, {**state, "epoch": 9000})
    assert len((tmp_path / METRICS).read_text().splitlines()) == 9001


# The sparse runtime


MOBILENET = [convolution(32, 3, 2, 1)]
for rows, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
                     (1024, 2), (1024, 1)]:  # fmt: skip
    MOBILENET += [depthwise(stride), convolution(rows)]


@pytest.mark.parametrize(("classes", "side"), [(1000, 224), pytest.param(21_841, 512, marks=long)])
def test_mobilenet_in_full(classes, side, tmp_path):
    """Also with all of ImageNet's 21,841 classes, and larger pictures."""
    steps = [*MOBILENET, POOL, convolution(classes, relu=False)]
    made = model((3, side, side), *steps, density=0.45)
    for op in made.operators:  # so that numbers do not grow from layer to layer
        if op.weight is not None:
            op.weight /= np.sqrt(op.weight.shape[1])
    path = tmp_path / "model-sparse.safetensors"
    model_file.write(made, path)
    read = model_file.read(path)
    for op, wanted in zip(read.operators, made.operators):
        np.testing.assert_array_equal(op.weight, wanted.weight)
    images = pictures(made, 1)
    right, _ = expected(made, images)
    assert right.shape == (1, classes)
    assert right.std() > 0.5
    np.testing.assert_allclose(Network(path, 1, 2, tune=False)(images), right, rtol=0, atol=1e-4)


def test_the_largest_layers():
    """Those that are too large are in test_sparse_file.py."""
    most = (1 << 16) - 1
    for shape, step in (
        ((most, 1, 1), convolution(16)),
        ((16, 1, 1), convolution(most)),
        ((8192, 3, 3), convolution(16, 3)),
        ((most, 3, 3), convolution(2, 3)),
    ):
        made = model(shape, step)
        images = pictures(made, 1)
        right, apart = expected(made, images)
        assert (abs(Network(made, tune=False)(images) - right) - apart).max() <= 0


# The programs with large networks, from the first step to the exports


def run(program: str, *options) -> str:
    """In a process of its own, so that what it took is given back."""
    done = subprocess.run(
        [sys.executable, ROOT / program, *map(str, options)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@long
@pytest.mark.parametrize(
    ("name", "form", "parameters", "formats"),
    [("vgg16", "pdparams", 138_357_544, ["onnx"]),  # the largest tensors
     ("resnet152", "safetensors", 60_344_232, ["paddle", "onnx"]),  # the most of them
     ("mobilenet_v1", "pdparams", 4_253_864, ["sparse"])],
)  # fmt: skip
def test_a_network_in_full(name, form, parameters, formats, imagenet_dir, tmp_path):
    if "onnx" in formats or "sparse" in formats:
        pytest.importorskip("paddle2onnx")
    models, exported = tmp_path / "models", tmp_path / "exported"
    data = ["--data_dir", imagenet_dir, "--num_workers", 0]
    options = ["--data", "imagenet", *data, "--model", name, "--use_pretrained", "false",
               "--use_gpu", "false", "--batch_size", 2, "--lr", 1e-5, "--format", form,
               "--model_path", models]  # fmt: skip
    run("train.py", *options, "--max_steps", 1)
    run("train.py", *options, "--max_steps", 2, "--resume_epoch", "latest")
    trained = run("evaluate.py", "--pruned_model", models, *data, "--use_gpu", "false", "--json")
    trained = json.loads(trained)
    assert trained["prunable_sparsity"] == pytest.approx(0.55, abs=1e-6)
    folder = models / "epoch-0"
    arrays = checkpoint.read_arrays(checkpoint.find_weights(folder))
    assert sum(array.size for array in arrays.values()) == parameters
    with np.load(folder / MASKS) as masks:
        kept = {key: int(np.unpackbits(masks[key]).sum()) for key in masks.files}
    assert kept == {key: np.count_nonzero(arrays[key]) for key in kept}
    assert checkpoint.read_state(folder)["step"] == 2
    for each in formats:
        run("export.py", "--pruned_model", models, "--format", each, "--out", exported)
        measured = run(
            "evaluate.py", "--pruned_model", exported, "--runtime", each, *data, "--json"
        )
        measured = json.loads(measured)
        assert measured["loss"] == pytest.approx(trained["loss"], rel=1e-3)
        assert measured["samples"] == 3


# The data that real users have


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, SHARED / "unpack.py", folder], check=True)
    yield folder
    shutil.rmtree(folder)


@real
@long
def test_the_real_cifar10(unpacked, tmp_path):
    train, val = Cifar10(unpacked, "train"), Cifar10(unpacked, "val")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    assert np.bincount(val.labels).tolist() == [1000] * 10
    pictures = np.stack([val[i][0] for i in range(2000)])
    assert pictures.mean((0, 2, 3)) == pytest.approx([0, 0, 0], abs=0.05)
    assert pictures.std((0, 2, 3)) == pytest.approx([1, 1, 1], abs=0.05)
    with tarfile.open(unpacked / "cifar-10-python.tar.gz") as archive:
        archive.extractall(tmp_path)
    again = Cifar10(tmp_path / FOLDER, "train")
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
