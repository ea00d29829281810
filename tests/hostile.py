"""Files made to do harm, and what measures the loader that refuses them."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

ARCHIVE, BATCH = "cifar-10-python.tar.gz", "cifar-10-batches-py/test_batch"
SECONDS, MEGABYTES = 10, 500  # what a file may take at most
PAX, LONG = tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FLOAT = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R"


class Reduced:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


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


def npz(content: bytes, name: str = "conv1.0.weight") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(shape, data: bytes = b"", dtype: str = "|u1") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


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
