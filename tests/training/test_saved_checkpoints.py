"""Checkpoints that are damaged, not finished or in the way."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import error_line, metrics, weights

import train
from training import checkpoint, folders, train_state
from training.folders import AVERAGE, BEST, MASKS, METRICS, OPTIMIZER, STATE, WEIGHTS


def test_latest_starts_where_there_is_nothing(small, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train.main([*small, "--num_epochs", "1", "--model_path", str(first)])
    before = weights(first / WEIGHTS)
    train.main([*small, "--num_epochs", "1", "--lr", "0", "--model_path", str(second),
                "--pretrained_model", str(first), "--resume_epoch", "latest"])  # fmt: skip
    after = weights(second / WEIGHTS)
    assert all(np.array_equal(before[k], after[k]) for k in before if before[k].ndim > 1)


def test_latest_passes_over_damaged_checkpoints(small, tmp_path, capsys):
    common = [*small, "--model_period", "1", "--model_path", str(tmp_path)]
    train.main([*common, "--num_epochs", "3"])
    whole = weights(tmp_path / WEIGHTS)
    damage(tmp_path / "epoch-2" / WEIGHTS, lambda data: data[:-1])
    damage(tmp_path / "epoch-1" / MASKS, lambda data: flipped(data, 7))
    capsys.readouterr()
    train.main([*common, "--num_epochs", "3", "--resume_epoch", "latest"])
    passed = [line for line in capsys.readouterr().err.splitlines() if "passed over" in line]
    assert str(tmp_path / "epoch-2" / WEIGHTS) in passed[0]
    assert str(tmp_path / "epoch-1" / MASKS) in passed[1]
    after = weights(tmp_path / WEIGHTS)
    assert all(np.array_equal(whole[key], after[key]) for key in whole)
    (aside,) = tmp_path.glob("earlier-*")
    assert {path.name for path in aside.iterdir()} >= {"epoch-1", "epoch-2"}


def damage(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1 << bit
    return bytes(changed)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with the checkpoints of three epochs."""
    folder = tmp_path_factory.mktemp("saved")
    data = ["--data", "digits", "--num_workers", "0", "--use_gpu", "false"]
    train.main([*data, "--scale", "0.25", "--batch_size", "700", "--num_epochs", "2",
                "--ema", "0.9", "--model_period", "1", "--model_path", str(folder)])  # fmt: skip
    return folder


@pytest.mark.parametrize("name", [WEIGHTS, AVERAGE, OPTIMIZER, MASKS, STATE])
def test_every_damage_to_a_file_is_found_and_named(name, saved):
    path = saved / "epoch-1" / name
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    try:
        changes = [data[:length] for length in (0, 1, len(data) // 2, len(data) - 1)]
        changes += [data[: rng.integers(len(data))] for _ in range(10)]
        for _ in range(20):
            changed = bytearray(data)
            changed[rng.integers(len(data))] ^= 1 << rng.integers(8)
            changes.append(bytes(changed))
        for changed in changes:
            path.write_bytes(changed)
            with pytest.raises(ValueError, match="epoch-1/" + name):
                folders.verified(saved / "epoch-1")
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"epoch-1/{name} is missing"):
            folders.verified(saved / "epoch-1")
        assert folders.find_latest(saved).folder == saved / "epoch-0"
    finally:
        path.write_bytes(data)
    assert folders.find_latest(saved).folder == saved / "epoch-1"


def test_damaged_weights_are_refused_by_evaluate_too(small, tmp_path, capfd):
    import evaluate

    train.main([*small, "--num_epochs", "1", "--model_path", str(tmp_path)])
    damage(tmp_path / "epoch-0" / WEIGHTS, lambda data: flipped(data, 3))
    message = error_line(capfd, evaluate.main, *small[:2], "--pruned_model", tmp_path)
    assert "damaged or replaced" in message
    assert f"epoch-0/{WEIGHTS}" in message


@pytest.mark.parametrize("full", ["weights", "optimizer", "masks", "state", "rename"])
def test_a_save_that_fails_leaves_the_older_one(full, small, tmp_path, capfd, monkeypatch):
    common = [*small, "--model_period", "1", "--model_path", str(tmp_path)]
    train.main([*common, "--num_epochs", "1"])

    write_text = Path.write_text

    def no_space(*args, **kwargs):
        if isinstance(args[0], Path) and full == "state" and args[0].name != STATE:
            return write_text(*args)
        raise OSError(errno.ENOSPC, "No space left on device")

    if full == "weights":
        monkeypatch.setattr(checkpoint, "_write_weights", no_space)
    elif full == "optimizer":
        monkeypatch.setattr(checkpoint.paddle, "save", no_space)
    elif full == "masks":
        monkeypatch.setattr(checkpoint.np, "savez", no_space)
    elif full == "state":
        monkeypatch.setattr(Path, "write_text", no_space)
    else:
        monkeypatch.setattr(checkpoint.os, "rename", no_space)
    message = error_line(capfd, train.main, *common, "--num_epochs", 2, "--test_period", 5,
                         "--resume_epoch", "latest")  # fmt: skip
    assert "could not save" in message
    assert "No space left on device" in message
    monkeypatch.undo()
    assert [path.name for path in tmp_path.glob("*epoch-*")] == ["epoch-0"]
    folders.verified(tmp_path / "epoch-0")
    assert os.readlink(tmp_path / WEIGHTS) == f"epoch-0/{WEIGHTS}"


def test_keep_removes_the_oldest(small, tmp_path):
    train.main([*small, "--model_path", str(tmp_path), "--num_epochs", "3", "--model_period", "1",
                "--save_steps", "1", "--keep", "2"])  # fmt: skip
    kept = {path.name for path in tmp_path.glob("*epoch-*")}
    assert kept == {"epoch-2", "epoch-2-step-5", "epoch-2-step-6"}


def test_one_unfinished_save_of_a_killed_run_is_no_checkpoint(small, tmp_path):
    left = tmp_path / ".epoch-0.part"
    left.mkdir()
    (left / WEIGHTS).write_bytes(b"half")
    assert folders.find_latest(tmp_path) is None
    train.main([*small, "--num_epochs", "1", "--model_path", str(tmp_path)])
    assert not left.exists()
    json.loads((tmp_path / STATE).read_text())


def test_the_best_weights_are_of_a_whole_epoch(small, tmp_path):
    train.main([*small, "--num_epochs", "2", "--max_steps", "1", "--model_path", str(tmp_path)])
    assert not (tmp_path / folders.BEST).exists()


def test_the_best_weights_in_the_other_format_go(small, tmp_path):
    train.main([*small, "--num_epochs", "1", "--model_path", str(tmp_path)])
    run = SimpleNamespace(
        args=SimpleNamespace(model_path=tmp_path, format="safetensors"),
        model=paddle.nn.Linear(2, 2),
    )
    checkpoint.save_best(run)
    assert [path.name for path in tmp_path.glob("model-best*")] == ["model-best.safetensors"]
    assert folders.find_weights(tmp_path / "model-best").suffix == ".safetensors"


def test_files_of_another_program_are_set_aside(small, tmp_path, capfd):
    for name in (WEIGHTS, folders.BEST):
        (tmp_path / name).write_text("mine")
    common = [*small, "--num_epochs", "1", "--resume_epoch", "latest"]
    train.main([*common, "--model_path", str(tmp_path)])
    (aside,) = tmp_path.glob("earlier-*")
    assert [(aside / name).read_text() for name in (WEIGHTS, folders.BEST)] == ["mine", "mine"]
    message = error_line(capfd, train.main, *common, "--model_path", tmp_path / "epoch-0")
    assert "is the name of a checkpoint" in message


def test_nothing_that_was_measured_is_lost(small, tmp_path):
    """Lines of metrics.jsonl go with the checkpoint that they are of, and with the best weights."""
    options = [*small, "--num_epochs", "2", "--model_period", "1", "--test_period", "1"]
    train.main([*options, "--model_path", str(tmp_path / "a")])
    lines = (tmp_path / "a" / METRICS).read_text()
    for case in ("b", "c"):
        shutil.copytree(tmp_path / "a", tmp_path / case, symlinks=True)
    # Checkpoints that somebody removed: what is trained again may be another training.
    for epoch in ("epoch-0", "epoch-1"):
        shutil.rmtree(tmp_path / "b" / epoch)
    folders.set_aside(tmp_path / "b", None, again=True)
    (aside,) = (tmp_path / "b").glob("earlier-*")
    assert (aside / METRICS).read_text() == lines
    assert (aside / BEST).is_file()
    assert not (tmp_path / "b" / METRICS).exists()
    # The newest one is damaged, and the best weights are of its epoch.
    records = [{**json.loads(line), "best": True} for line in lines.splitlines()]
    folders.write_metrics(tmp_path / "c", records)
    damage(tmp_path / "c" / "epoch-1" / WEIGHTS, lambda data: flipped(data, 3))
    saved = folders.find_latest(tmp_path / "c")
    assert saved.folder == tmp_path / "c" / "epoch-0"
    folders.set_aside(tmp_path / "c", saved, again=True)
    (aside,) = (tmp_path / "c").glob("earlier-*")
    assert {path.name for path in aside.iterdir()} == {"epoch-1", BEST, METRICS}
    assert not (tmp_path / "c" / BEST).exists()
    assert [record["epoch"] for record in metrics(tmp_path / "c")] == [0]
    assert os.readlink(tmp_path / "c" / WEIGHTS) == f"epoch-0/{WEIGHTS}"


def test_an_export_is_no_checkpoint(small, tmp_path):
    train.main([*small, "--num_epochs", "1", "--model_path", str(tmp_path)])
    folder = tmp_path / "epoch-0"
    train_state.seal({"exported_from": "0" * 64, "options": {}}, folder)
    with pytest.raises(ValueError, match="epoch-0 is an export, no checkpoint"):
        folders.verified(folder)
    assert folders.find_latest(tmp_path) is None
