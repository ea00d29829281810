"""The largest checkpoints that somebody has are read, and what is beyond is refused."""

from __future__ import annotations

import dataclasses
import pickle
import struct
import types

import numpy as np
import paddle
import pytest
from hostile import npy, npz
from safetensors.numpy import save_file

from readers import safe_pickle
from training import checkpoint, folders, train_state
from training.folders import MASKS, METRICS, STATE, WEIGHTS


def test_a_pickle_of_many_tensors(large_tmp_path):
    """Five times as many as Adam keeps of DenseNet-264, the network here with the most."""
    path = large_tmp_path / WEIGHTS
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


def test_a_tensor_in_the_form_of_those_beyond_4_gb(large_tmp_path):
    weight = np.random.default_rng(0).standard_normal((100, 100), np.float32)
    whole = pickle.dumps({"weight": weight}, protocol=4)
    size = len(weight.tobytes())
    at = whole.index(pickle.BINBYTES + struct.pack("<I", size))
    content = whole[at + 5 : at + 5 + size]
    framed = whole[:at] + pickle.BINBYTES8 + struct.pack("<Q", size) + content
    (large_tmp_path / WEIGHTS).write_bytes(framed + whole[at + 5 + size :])
    read = safe_pickle.load_paddle_state(large_tmp_path / WEIGHTS)
    np.testing.assert_array_equal(read["weight"], weight)


VGG16 = {  # its prunable weights
    **{f"features.{i}.weight": (*channels, 3, 3) for i, channels in enumerate([
        (64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256), (512, 256),
        *[(512, 512)] * 5,
    ])},
    "classifier.0.weight": (25088, 4096), "classifier.3.weight": (4096, 4096),
    "classifier.6.weight": (4096, 1000),
}  # fmt: skip


def test_the_masks_of_vgg16(large_tmp_path):
    like = {name: types.SimpleNamespace(shape=list(shape)) for name, shape in VGG16.items()}
    packed = {
        name: np.resize(np.uint8([0b10010000, 0b1]), -(-int(np.prod(shape)) // 8))
        for name, shape in VGG16.items()
    }
    path = large_tmp_path / MASKS
    np.savez(path, **packed)
    masks = checkpoint.read_masks(path, like)
    assert {name: mask.shape for name, mask in masks.items()} == VGG16
    assert sum(map(np.count_nonzero, masks.values())) == 138_344_128 * 3 // 16
    most = 25088 * 4096 + 4096
    path.write_bytes(npz(npy(f"({most},)", bytes(most - 70)), "classifier.0.weight"))
    with pytest.raises(ValueError, match="it claims to unpack to more"):
        checkpoint.read_masks(path, like)


def test_weights_of_resnet152_as_safetensors(large_tmp_path):
    path = large_tmp_path / "model.safetensors"
    made = {f"layer4.{i}.weight": np.full((2048, 512, 1, 1), i, np.float32) for i in range(57)}
    save_file(made, path)  # 239 MB, as all of its weights
    read = checkpoint.read_arrays(path)
    assert {name: value.max() for name, value in read.items()} == {
        f"layer4.{i}.weight": i for i in range(57)
    }


def test_a_long_training_of_many(large_tmp_path):
    """1024 ranks, YOLO9000's classes, and 10,000 epochs in the table of metrics."""
    classes = [f"{i:09d}" for i in range(9418)]
    state = {
        "epoch": 9999, "step": 10**12, "finished": True,
        "ranks": 1024, "totals": [[0.1] * 4] * 1024,
        "options": {"classes": classes, "num_classes": len(classes), "batch_size": 64},
    }  # fmt: skip
    train_state.seal(state, large_tmp_path)
    read = train_state.read(large_tmp_path)
    assert {key: getattr(read, key) for key in state} == state
    assert read.checksums.keys() == {STATE}
    records = [{"epoch": i, "top1": i / 1e4, "best": True, "lr": 0.05} for i in range(10_000)]
    folders.write_metrics(large_tmp_path, records)
    (large_tmp_path / folders.BEST).touch()
    assert folders.best_result(large_tmp_path, "top1") == 0.9999
    assert folders.reported(large_tmp_path) == [*range(10_000)]
    folders.set_aside(large_tmp_path, dataclasses.replace(read, epoch=9000))
    assert len((large_tmp_path / METRICS).read_text().splitlines()) == 9001
