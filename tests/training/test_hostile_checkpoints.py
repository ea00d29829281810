"""Checkpoints made to do harm: refused by the loader that reads them.

Checksums are no defence, as who writes the file writes them too: here they are right or absent.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from hostile import (
    ARCHIVE,
    ARRAY,
    FLOAT,
    LAUGHS,
    Reduced,
    bounded,
    npy,
    npz,
    options,
    pickles,
    text,
    write_archive,
)
from safetensors.numpy import save_file

import evaluate
import train
from readers import safe_pickle
from training import checkpoint, folders, train_state
from training.folders import MASKS, OPTIMIZER, STATE, WEIGHTS

PICKLES = list(pickles("canary"))
PLAIN = ["claimed frame", "claimed memo", "deep lists", "billion laughs", "in itself"]


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
    path = refused.folder / folders.SAFETENSORS[WEIGHTS]
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
    bounded(lambda: checkpoint.read_masks(path, like))
    refused.resume(MASKS, content)


def damaged_state(trained: Path, **changes) -> str:
    """A train-state.json whose own checksum is right; options, too, may be changed by name."""
    state = json.loads((trained / STATE).read_text())
    for key, value in changes.items():
        (state["options"] if key in state["options"] else state)[key] = value
    if isinstance(state["checksums"], dict):
        state["checksums"][STATE] = train_state._own_checksum(state)
    return json.dumps(state)


def state_with_threshold(trained: Path, threshold) -> str:
    """(Not the option of the same name.)"""
    state = json.loads((trained / STATE).read_text())
    state["threshold"] = threshold
    state["checksums"][STATE] = train_state._own_checksum(state)
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
            "step": [-1, True, None, 2.5, 1 << 63],
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
            "min_layer_density": ["x", [1], 2], "min_channel_density": ["x", [1], -1],
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
