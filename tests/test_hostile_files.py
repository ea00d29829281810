"""Files made to do harm, and real ones with wrong bytes: refused by the loader that reads them.

Checksums are no defence, as who writes the file writes them too: here they are right or absent.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import time
import types
import zipfile
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import error_line
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from test_imagenet_reader import jpeg_header, png_header
from test_safe_pickle import ARRAY, FLOAT, Reduced

import evaluate
import train
from imagenet_reader import ImageNetDataset
from readers import safe_pickle
from readers.small_images import Cifar10, FashionMNIST
from training import checkpoint
from training.checkpoint import MASKS, OPTIMIZER, STATE, WEIGHTS
from unstructured_pruner import UnstructuredPruner

ARCHIVE, BATCH = "cifar-10-python.tar.gz", "cifar-10-batches-py/test_batch"
SECONDS, MEGABYTES = 10, 500  # what a file may take at most


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def calling(function, *args):
    """A pickle that calls the function when it is loaded."""
    return pickle.dumps({"conv1.0.weight": Reduced(function, args)}, protocol=4)


def call(module: str, name: str, *args: bytes) -> bytes:
    """The opcodes of such a call; those of the arguments are given."""
    return f"c{module}\n{name}\n(".encode() + b"".join(args) + b"tR"


def dotted(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def named(value: bytes) -> bytes:
    """A state dict with these opcodes as a weight."""
    return b"\x80\x04}" + text("conv1.0.weight") + value + b"s."


LAUGHS = b"(]q\x00" + (b"](" + b"h\x00" * 9 + b"eq\x00") * 100 + b"t"  # 9**100 lists


def pickles(canary: str) -> dict[str, bytes]:
    """Pickles that create the file `canary` if anything in them runs, or that ask too much."""
    touch, path = text(f"touch {canary}"), text(canary)
    os_module = call("builtins", "__import__", text("os"))
    os_system = call("builtins", "getattr", os_module, text("system")) + b"(" + touch + b"tR"
    return {
        "os.system": calling(os.system, f"touch {canary}"),
        "subprocess": calling(subprocess.call, ["touch", canary]),
        "subprocess.Popen": calling(subprocess.Popen, ["touch", canary]),
        "eval": calling(eval, f"open({canary!r}, 'w')"),
        "exec": calling(exec, f"open({canary!r}, 'w')"),
        "open": calling(open, canary, "w"),
        "getattr": named(os_system),
        "__import__": named(os_module),
        "Path.touch": calling(Path.touch, Path(canary)),
        "numpy.load": named(call("numpy", "load", path)),
        "numpy.fromfile": named(call("numpy", "fromfile", path)),
        "numpy.memmap": named(call("numpy", "memmap", path, text("u1"), text("w+"), b"K\x00K\x01")),
        "numpy.save": named(call("numpy", "save", path, b"K\x01")),
        "ndarray.tofile": named(dotted("numpy", "ndarray.tofile") + b"(" + path + b"tR"),
        "numpy testing": named(call("numpy.testing._private.utils", "runstring", touch, b"}")),
        "paddle.load": named(call("paddle", "load", path)),
        "nested": pickle.dumps({"a": [({"b": Reduced(tuple, ([Reduced(os.system, ("x",))],))},)]}),
        "nested reduces": named(call("builtins", "tuple", os_system + b"\x85")),
        "objects": pickle.dumps({"w": np.array([Reduced(os.system, (f"touch {canary}",))])}),
        "object dtype": named(FLOAT.replace(b"f4", b"O8")),
        "BUILD of objects": named(ARRAY + b"(K\x01K\x01\x85" + FLOAT + b"\x89]" + touch + b"atb"),
        "BUILD on a class": named(b"cnumpy\nndarray\n}" + text("__reduce__") + touch + b"sb"),
        "BUILD on a function": named(
            b"cbuiltins\ntuple\nN}" + text("__call__") + touch + b"s\x86b"
        ),
        "BUILD with slots": named(b"ccollections\nOrderedDict\n)RN}" + path + b"K\x01s\x86b"),
        "persistent id": named(b"P" + canary.encode() + b"\n"),
        "persistent id on the stack": named(path + b"Q"),
        "STACK_GLOBAL": named(dotted("posix", "system") + b"(" + touch + b"tR"),
        "STACK_GLOBAL with dots": named(dotted("numpy", "f2py.os.system") + b"(" + touch + b"tR"),
        "STACK_GLOBAL of an admitted": named(dotted("builtins", "tuple.__class__.mro")),
        "STACK_GLOBAL of numbers": named(b"K\x01K\x02\x93"),
        "EXT1": named(b"\x82\x01"),
        "EXT2": named(b"\x83\x01\x00"),
        "EXT4": named(b"\x84\x01\x00\x00\x00"),
        "INST": named(b"(" + touch + b"iposix\nsystem\n"),
        "OBJ": named(b"(cposix\nsystem\n" + touch + b"o"),
        "NEWOBJ": named(b"csubprocess\nPopen\n" + touch + b"\x85\x81"),
        "NEWOBJ_EX": named(b"csubprocess\nPopen\n)}\x92"),
        "copyreg": pickle.dumps({"w": Path(canary)}, protocol=0),
        "an encoding": named(call("_codecs", "encode", touch, text("rot13"))),
        "bytes as a name": b"\x80\x04}C\x06_mask\xffK\x01s.",
        "claimed shape": named(ARRAY + b"(K\x01J\xff\xff\xff\x7f\x85" + FLOAT + b"\x89C\x01atb"),
        "claimed bytes": named(b"\x8e" + struct.pack("<Q", 1 << 40) + b"abc"),
        "claimed text": named(b"X\xff\xff\xff\xffabc"),
        "claimed frame": b"\x80\x04\x95" + struct.pack("<Q", 1 << 33) + b"}.",
        "claimed buffer": named(b"\x96" + struct.pack("<Q", 1 << 40)),
        "claimed memo": named(b"Nr\xff\xff\xff\xff"),
        "deep lists": named(b"]" * 100_000 + b"a" * 99_999),
        "deep tuples as a key": b"\x80\x04})" + b"\x85" * 100_000 + b"K\x01s.",
        "billion laughs": named(LAUGHS),
        "in itself": b"\x80\x04}q\x00" + text("conv1.0.weight") + b"h\x00s.",
    }


PICKLES = list(pickles("canary"))
PLAIN = ["claimed frame", "claimed memo", "deep lists", "billion laughs", "in itself"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with weights, optimizer and masks as train.py saves them."""
    folder, data = tmp_path_factory.mktemp("trained"), tmp_path_factory.mktemp("data")
    write_archive(data, batch(16))
    train.main([*options(data), "--num_epochs", "1", "--model_path", str(folder)])
    return folder / "epoch-0"


def options(data) -> list[str]:
    return ["--data_dir", str(data), "--scale", "0.25", "--batch_size", "16",
            "--num_workers", "0", "--use_gpu", "false"]  # fmt: skip


def batch(count: int = 2) -> bytes:
    content = {b"data": np.zeros((count, 3072), np.uint8), b"labels": [1] * count}
    return pickle.dumps(content, protocol=2)


def member(name: str, content: bytes = b"", kind=tarfile.REGTYPE, **fields) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def tar(content: bytes) -> bytes:
    """A CIFAR-10 archive with the same in every batch."""
    names = [BATCH.replace("test_batch", f"data_batch_{i}") for i in range(1, 6)]
    return b"".join(member(name, content) for name in [*names, BATCH]) + bytes(1024)


def write_archive(folder: Path, content: bytes) -> Path:
    return write_gzip(folder, tar(content))


def write_gzip(folder: Path, content: bytes) -> Path:
    (folder / ARCHIVE).write_bytes(gzip.compress(content, 1))
    return folder / ARCHIVE


class Refused:
    """Runs a program that has to refuse a file, by one short line that names it, and in time."""

    def __init__(self, capfd, folder: Path, trained: Path):
        self.capfd, self.trained = capfd, trained
        self.folder, self.canary = folder / "files", folder / "canary"
        self.folder.mkdir()

    def __call__(self, name: str, main, *options) -> str:
        before = {path: path.lstat().st_mtime_ns for path in self.folder.rglob("*")}
        started = time.process_time()
        message = error_line(self.capfd, main, *options)
        assert time.process_time() - started < SECONDS
        assert name in message
        assert len(message) < 9000
        assert message.isprintable()
        assert not self.canary.exists()
        assert {path: path.lstat().st_mtime_ns for path in self.folder.rglob("*")} == before
        return message

    def evaluate(self, name: str, data="digits") -> str:
        data_dir = [] if data == "digits" else ["--data_dir", self.folder]
        return self(name, evaluate.main, "--pruned_model", self.folder, "--scale", 0.25,
                    "--data", data, *data_dir,
                    "--use_gpu", "false", "--num_workers", 0)  # fmt: skip

    def resume(self, name: str, content: bytes | None) -> str:
        """Of a checkpoint with this file, whose checksums are right."""
        for path in self.trained.iterdir():
            (self.folder / path.name).write_bytes(path.read_bytes())
        if content is not None:
            (self.folder / name).write_bytes(content)
            checkpoint.write_state(self.folder, json.loads((self.trained / STATE).read_text()))
        return self(name, train.main, *options(self.data), "--num_epochs", 2,
                    "--pretrained_model", self.folder, "--resume_epoch", 0,
                    "--model_path", self.folder.parent / "new")  # fmt: skip

    @property
    def data(self) -> Path:
        folder = self.folder.parent / "data"
        folder.mkdir()
        write_archive(folder, batch(16))
        return folder


@pytest.fixture
def refused(capfd, tmp_path, trained):
    return Refused(capfd, tmp_path, trained)


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_runs_nothing_wherever_it_lies(name, refused):
    content = pickles(str(refused.canary))[name]
    (refused.folder / WEIGHTS).write_bytes(content)
    refused.evaluate(WEIGHTS)
    (refused.folder / WEIGHTS).unlink()
    (refused.folder / WEIGHTS).write_bytes((refused.trained / WEIGHTS).read_bytes())
    write_archive(refused.folder, content)
    refused.evaluate(ARCHIVE, "cifar10")
    if name not in PLAIN:  # data, if odd
        refused.resume(OPTIMIZER, content)


@pytest.mark.parametrize("opcodes", [b"(", b"X\x02\x00\x00\x00ab"])
def test_a_pickle_of_opcodes_without_end(opcodes, tmp_path):
    path = tmp_path / WEIGHTS
    path.write_bytes(b"\x80\x04" + opcodes * 3_000_000)
    assert "more than 2,000,000 opcodes" in bounded(lambda: safe_pickle.load_paddle_state(path))


def test_a_pickle_of_arrays_without_end(tmp_path):
    path = tmp_path / WEIGHTS
    head = ARRAY[:-1] + b"q\x00" + FLOAT + b"q\x01C\xfc" + bytes(252) + b"q\x02"
    state = b"(K\x01K\x3fh\x01\x89h\x02tq\x03" + ARRAY[: ARRAY.index(b"cnumpy\nnd")] + b"q\x04"
    path.write_bytes(b"\x80\x04" + head + state + b"h\x04h\x00Rh\x03b" * 500_000)
    assert WEIGHTS in bounded(lambda: safe_pickle.load_paddle_state(path))


@pytest.mark.parametrize(
    "name",
    ["os.system", "subprocess", "eval", "exec", "open", "getattr", "numpy.memmap", "nested reduces",
     "objects", "STACK_GLOBAL", "INST", "OBJ"],
)  # fmt: skip
def test_the_pickles_would_do_harm(name, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", io.StringIO())
        try:
            pickle.loads(pickles(str(tmp_path / "canary"))[name])
        except TypeError:
            assert name == "nested reduces"
    deadline = time.monotonic() + 5  # Popen does not wait
    while not (tmp_path / "canary").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


PAX, LONG = tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME
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


def bounded(load) -> str:
    """What `load` raises in a process of its own, which may not take long nor much memory."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)  # a machine may be busy: what counts is the processor's time
            before = Path("/proc/self/statm").read_text().split()[1]  # pages
            os.write(writing, before.encode() + b"\n")
            try:
                load()
                message = "nothing"
            except (ValueError, OSError) as error:
                message = str(error)
            os.write(writing, message.encode(errors="replace")[:4000])
        finally:
            os._exit(0)
    status, usage = os.wait4(child, 0)[1:]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        before, message = pipe.read().decode().split("\n", 1)
    assert status == 0, signal.strsignal(status)
    assert message
    assert usage.ru_utime + usage.ru_stime < SECONDS
    assert usage.ru_maxrss * 1024 - int(before) * os.sysconf("SC_PAGE_SIZE") < MEGABYTES << 20
    return message


if sys.platform != "linux":  # only there is a process measured so

    def bounded(load):
        pytest.skip("measured on Linux")


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


def safetensors(header, data: bytes = b"", length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(dtype: str, shape: list, *offsets: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


SAFETENSORS = {
    "empty": b"",
    "claimed header": safetensors(b"{}", length=1 << 60),
    "claimed header of 90 MB": safetensors(b"{}", length=90 << 20),
    "no JSON": safetensors(b"\x80\x04."),
    "no text": safetensors(b'{"\xff": 1}'),
    "deep": safetensors(b'{"a":' * 100_000),
    "overlapping": safetensors(
        {"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, bytes(12)
    ),
    "out of range": safetensors({"a": tensor("F32", [2], 0, 8)}, bytes(4)),
    "far out of range": safetensors({"a": tensor("F32", [2], 1 << 62, (1 << 62) + 8)}, bytes(8)),
    "backwards": safetensors({"a": tensor("F32", [2], 8, 0)}, bytes(8)),
    "negative": safetensors({"a": tensor("F32", [2], -8, 0)}, bytes(8)),
    "large shape": safetensors({"a": tensor("F32", [1 << 40, 1 << 40], 0, 8)}, bytes(8)),
    "shape of nothing": safetensors({"a": tensor("F32", [0, 1 << 60], 0, 0)}),
    "bfloat16": safetensors({"a": tensor("BF16", [2], 0, 4)}, bytes(4)),
    "float8": safetensors({"a": tensor("F8_E4M3", [2], 0, 2)}, bytes(2)),
    "unknown dtype": safetensors({"a": tensor("O", [1], 0, 8)}, bytes(8)),
    "more after the end": safetensors({"a": tensor("F32", [1], 0, 4)}, bytes(99)),
    "pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("name", list(SAFETENSORS))
def test_safetensors(name, refused):
    path = refused.folder / checkpoint.SAFETENSORS[WEIGHTS]
    path.write_bytes(SAFETENSORS[name])
    refused.evaluate(path.name)
    bounded(lambda: checkpoint.read_arrays(path))


@pytest.mark.parametrize("kind", ["int64", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("suffix", ["pdparams", "safetensors"])
def test_weights_of_a_wrong_dtype(kind, suffix, refused):
    state = safe_pickle.load_paddle_state(refused.trained / WEIGHTS)
    state["fc.weight"] = state["fc.weight"].astype(kind)
    path = refused.folder / f"model-pruned.{suffix}"
    save_file(state, path) if suffix == "safetensors" else path.write_bytes(pickle.dumps(state))
    assert "fc.weight is not an array of floats" in refused.evaluate(path.name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_told(bad, refused, capfd):
    state = safe_pickle.load_paddle_state(refused.trained / WEIGHTS)
    state["fc.weight"][0, 0] = bad
    path = refused.folder / WEIGHTS
    path.write_bytes(pickle.dumps(state))
    evaluate.main(["--pruned_model", str(path), "--scale", "0.25", "--data", "digits",
                   "--use_gpu", "false", "--num_workers", "0"])  # fmt: skip
    assert f"{path}: fc.weight: there are NaN or infinite weights" in capfd.readouterr().err


def accumulators(trained: Path, value: bytes) -> bytes:
    """The optimizer's file, in which an accumulator is these opcodes."""
    state = checkpoint.read_arrays(trained / OPTIMIZER)
    name = next(key for key in state if key.startswith("fc.weight_"))
    whole = pickle.dumps({**state, name: None}, protocol=2)
    at = whole.index(text(name)) + len(text(name))
    at = whole.index(b"N", at)
    return whole[:at] + value + whole[at + 1 :]


OPTIMIZERS = {
    "nothing": lambda t: b"\x80\x04}.",
    "a text": lambda t: accumulators(t, text("x")),
    "none": lambda t: accumulators(t, b"N"),
    "a dict": lambda t: accumulators(t, b"}"),
    "integers": lambda t: accumulators(t, pickle.dumps(np.zeros((256, 10), int), 2)[2:-1]),
    "of another shape": lambda t: accumulators(t, pickle.dumps(np.zeros(7, "f4"), 2)[2:-1]),
    "deep lists": lambda t: accumulators(t, b"]" * 100_000 + b"a" * 99_999),
    "billion laughs": lambda t: accumulators(t, LAUGHS[:-1].replace(b"(]", b"]", 1)),
    "an array as the scale": lambda t: pickle.dumps({"GradScaler": np.zeros(3)}),
}


@pytest.mark.parametrize(
    "name",
    list(OPTIMIZERS),
)
def test_an_optimizer(name, refused):
    content = OPTIMIZERS[name](refused.trained)
    refused.resume(OPTIMIZER, content)


def npz(content: bytes, name: str = "conv1.0.weight") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(shape, data: bytes = b"", dtype: str = "|u1") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def masks_of(content) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


MASKED = {
    "empty": lambda t, c: b"",
    "pickle": lambda t, c: pickles(c)["os.system"],
    "objects": lambda t, c: masks_of({"conv1.0.weight": np.array([Reduced(os.system, ("x",))])}),
    "objects in an array": lambda t, c: npz(npy("(1,)", pickles(c)["os.system"], "|O")),
    "code in the header": lambda t, c: npz(npy(f"(open({c!r}, 'w'),)")),
    "deep header": lambda t, c: npz(npy("(" * 9000 + ")" * 9000)),
    "records": lambda t, c: npz(npy("(1,)", bytes(8), "|V8")),
    "claimed shape": lambda t, c: npz(npy(f"({1 << 45},)")),
    "claimed shape of 8 GB": lambda t, c: npz(npy(f"({8 << 30},)")),
    "shape beyond all": lambda t, c: npz(npy(f"({1 << 70},)")),
    "negative shape": lambda t, c: npz(npy("(-1,)")),
    "zeros": lambda t, c: npz(npy(f"({600 << 20},)", bytes(600 << 20))),
    "name out of the folder": lambda t, c: npz(npy("(1,)", b"a"), "../canary"),
    "encrypted": lambda t, c: (
        npz(npy("(1,)", b"a")).replace(b"\x14\x03\x14\0\0", b"\x14\x03\x14\0\1")
    ),
    "another compression": lambda t, c: npz(npy("(1,)", b"a")).replace(b"\x08\x00", b"\x09\x00"),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    list(MASKED),
)
def test_masks(name, refused):
    content = MASKED[name](refused.trained, str(refused.canary))
    path = refused.folder / MASKS
    path.write_bytes(content)
    like = {"conv1.0.weight": types.SimpleNamespace(shape=[8, 3, 3, 3])}
    bounded(lambda: checkpoint._read_masks(path, like))
    refused.resume(MASKS, content)


def damaged_state(trained: Path, **changes) -> str:
    """A train-state.json whose own checksum is right; options, too, may be changed by name."""
    state = json.loads((trained / STATE).read_text())
    for key, value in changes.items():
        (state["options"] if key in state["options"] else state)[key] = value
    if isinstance(state["checksums"], dict):
        state["checksums"][STATE] = checkpoint._state_checksum(state)
    return json.dumps(state)


def state_with_threshold(trained: Path, threshold) -> str:
    """(Not the option of the same name.)"""
    state = json.loads((trained / STATE).read_text())
    state["threshold"] = threshold
    state["checksums"][STATE] = checkpoint._state_checksum(state)
    return json.dumps(state)


STATES = {
    "threshold": lambda t: state_with_threshold(t, [1]),
    "deep": lambda t: "[" * 100_000,
    "deep inside": lambda t: '{"options": ' + '{"a":' * 5000 + "1" + "}" * 5001,
    "not a dict": lambda t: "[]",
    "no text": lambda t: b"\xff\xfe",
    "many digits": lambda t: '{"epoch": ' + "9" * 5000 + "}",
    "cut": lambda t: (t / STATE).read_text()[:-9],
    **{
        f"{key} {value}": lambda t, key=key, value=value: damaged_state(t, **{key: value})
        for key, values in {
            "epoch": [-1, True, None, 0.5, "0"],
            "step": [-1, True, None, 2.5],
            "finished": [1, None],
            "options": [[], None],
            "checksums": [
                {"../../etc/passwd": "0"}, {"/etc/passwd": "0"}, {"a/b": "0"}, {"..": "0"},
                {"\0": "0"}, {"gone": "0"}, [], None,
            ],
            "model": ["__init__", [], {}, None, 1],
            "data": [[], {}, 1],
            "scale": ["1", [], 1e9, -1, float("nan"), None],
            "num_classes": [1 << 40, -1, "10", True, 0.5],
            "image_size": ["96", 96.5, [96], 0, 4097],
            "classes": ["ab", [1], {"a": 1}],
            "initial_ratio": ["0.5", [1], 1.5, True],
            "started_from": [1, [], {"a": [1]}],
            "totals": ["abc", [1], [["x"]], [[1.0], [1.0, 2.0]]],
            "epoch_lr": ["x"], "masks_ratio": ["x"],
            "batch_size": ["x", [], None],
            "ranks": ["x", [], None],
        }.items()
        for value in values
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(STATES))
def test_a_state(name, refused):
    content = STATES[name](refused.trained)
    for path in refused.trained.iterdir():
        (refused.folder / path.name).write_bytes(path.read_bytes())
    content = content if isinstance(content, bytes) else content.encode()
    (refused.folder / STATE).write_bytes(content)
    refused(str(refused.folder), train.main, *options(refused.data), "--num_epochs", 2,
            "--pretrained_model", refused.folder, "--resume_epoch", 0,
            "--model_path", refused.folder.parent / "new")  # fmt: skip


OPTIONS = {
    f"{key} {value!r}": (key, value)
    for key, values in {
        "model": ["__init__", [], {}, None, 1],
        "data": [[], {}, 1, "/etc"],
        "scale": ["1", [], -1, float("nan"), None],
        "num_classes": [1 << 40, -1, "10", 0.5],
        "image_size": ["96", 96.5, [96]],
    }.items()
    for value in values
}


@pytest.mark.parametrize(
    "name",
    list(OPTIONS),
)
def test_options_in_a_state(name, refused):
    (refused.folder / WEIGHTS).write_bytes((refused.trained / WEIGHTS).read_bytes())
    key, value = OPTIONS[name]
    (refused.folder / STATE).write_text(
        damaged_state(refused.trained, checksums={}, **{key: value})
    )
    # (the message names the file, or the value and the option to give instead)
    message = refused("", evaluate.main, "--pruned_model", refused.folder, "--num_workers", 0,
            "--data_dir", refused.folder, "--use_gpu", "false")  # fmt: skip
    assert str(refused.folder) in message or repr(value) in message


# Real files with some wrong bytes

properties = settings(max_examples=100, deadline=None, derandomize=True, database=None)
changes = st.lists(
    st.tuples(st.sampled_from("xid/"), st.integers(0, 1 << 16), st.binary(min_size=1, max_size=9)),
    min_size=1,
    max_size=4,
)


def changed(data: bytes, changes: list) -> bytes:
    """Bytes overwritten, inserted, deleted, or the rest cut off, at places modulo the length."""
    for kind, at, piece in changes:
        at %= len(data) + 1
        if kind == "x":
            data = data[:at] + piece + data[at + len(piece) :]
        elif kind == "i":
            data = data[:at] + piece + data[at:]
        elif kind == "d":
            data = data[:at] + data[at + piece[0] :]
        elif piece[0] < 32:
            data = data[:at]
    return data


def loaded_or_refused(path: Path, load):
    """What is loaded, or None if that was refused in one line with the file's name."""
    try:
        return load()
    except (ValueError, OSError) as error:
        message = str(error)
    assert path.name in message
    assert "\n" not in message
    return None


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A small training, its checkpoint as a dict of files, and a folder to put it into."""
    model = paddle.nn.Sequential(paddle.nn.Conv2D(1, 2, 3), paddle.nn.BatchNorm2D(2))
    opt = paddle.optimizer.Momentum(0.1, 0.9, parameters=model.parameters())
    pruner = UnstructuredPruner(model, "ratio", ratio=0.5, skip_params_func=lambda model: [])
    model(paddle.ones([1, 1, 5, 5])).sum().backward()
    opt.step()
    pruner.step()
    folder = tmp_path_factory.mktemp("tiny")
    args = types.SimpleNamespace(model_path=folder, format="pdparams", amp=False, keep=None)
    run = types.SimpleNamespace(args=args, model=model, opt=opt, pruner=pruner)
    state = {"epoch": 0, "step": 1, "finished": True, "options": {"pruning_mode": "ratio"}}
    checkpoint.save(run, state)
    save_file({k: v.numpy() for k, v in model.state_dict().items()}, folder / "a.safetensors")
    files = {path.name: path.read_bytes() for path in (folder / "epoch-0").iterdir()}
    files["a.safetensors"] = (folder / "a.safetensors").read_bytes()
    return run, files, tmp_path_factory.mktemp("changed")


@properties
@given(changes)
def test_changed_weights(tiny, changes):
    run, files, folder = tiny
    shapes = [p.shape for p in run.model.parameters()]
    for path in (folder / WEIGHTS, folder / "a.safetensors"):
        path.write_bytes(changed(files[path.name], changes))
        loaded_or_refused(path, lambda path=path: checkpoint.load_weights(run.model, path))
        assert [p.shape for p in run.model.parameters()] == shapes


@properties
@given(changes)
def test_a_changed_optimizer(tiny, changes):
    _, files, folder = tiny
    path = folder / OPTIMIZER
    path.write_bytes(changed(files[OPTIMIZER], changes))
    state = loaded_or_refused(path, lambda: checkpoint.read_arrays(path))
    assert state is None or all(type(name) is str for name in state)


@properties
@given(changes)
def test_changed_masks(tiny, changes):
    run, files, folder = tiny
    path = folder / MASKS
    path.write_bytes(changed(files[MASKS], changes))
    masks = loaded_or_refused(path, lambda: checkpoint._read_masks(path, run.pruner.masks))
    assert masks is None or masks.keys() == run.pruner.masks.keys()


@properties
@given(changes, st.booleans())
def test_a_changed_state(tiny, changes, sign):
    _, files, folder = tiny
    path = folder / STATE
    content = changed(files[STATE], changes)
    try:
        state = json.loads(content)
        state["checksums"] = {**state["checksums"], STATE: checkpoint._state_checksum(state)}
        content = json.dumps(state).encode() if sign else content
    except (ValueError, TypeError, KeyError):  # no JSON, or not what is signed
        pass
    path.write_bytes(content)
    state = loaded_or_refused(path, lambda: checkpoint.read_state(folder))
    assert state is None or (state["epoch"] >= 0 and state["step"] >= 0)


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
