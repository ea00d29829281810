"""--log_to: what is written is read back with the packages' own readers."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, metrics, weights
from launcher import ended, launched, log_of, tiny

import train
from tasks import classification
from training import loggers
from training.folders import WEIGHTS

KINDS = list(loggers.PACKAGES)
TIMED = ("seconds", "images_per_sec")
PRUNABLE = ["0.weight", "2.weight", "5.weight"]


@pytest.fixture
def options(small, monkeypatch) -> list[str]:
    """Of two epochs of two steps."""
    monkeypatch.setattr(classification, "make_model", tiny)
    return [*small, "--num_epochs", "2", "--model_period", "1", "--test_period", "1",
            "--log_period", "1", "--lr", "0.01"]  # fmt: skip


def read(kind: str, folder: Path) -> dict[str, list]:
    """[(step, value)] by tag; of a histogram the value is how many weights it counts."""
    if kind == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
        found.Reload()
        return {
            **{t: [(e.step, e.value) for e in found.Scalars(t)] for t in found.Tags()["scalars"]},
            **{
                tag: [(e.step, e.histogram_value.num) for e in found.Histograms(tag)]
                for tag in found.Tags()["histograms"]
            },
        }
    from visualdl import LogReader

    found = LogReader(file_path=str(folder / "vdlrecords.log"))
    return {
        **{t.replace("%", "/"): [(e.id, e.value) for e in found.get_data("scalar", t)]
           for t in found.get_tags()["scalar"]},
        **{t.replace("%", "/"): [(e.id, sum(e.histogram.hist))
                                 for e in found.get_data("histogram", t)]
           for t in found.get_tags().get("histogram", [])},
    }  # fmt: skip


def told(kind: str, folder: Path) -> dict[str, dict]:
    """Of steps and epochs, without what a clock decides."""
    return {
        each: {t: v for t, v in read(kind, folder / kind / each).items() if t not in TIMED}
        for each in ("steps", "epochs")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_told(kind, options, tmp_path, capsys):
    train.main([*options, "--log_to", kind, "--model_path", str(tmp_path)])
    steps, epochs = (read(kind, tmp_path / kind / each) for each in ("steps", "epochs"))
    assert set(steps) == {"loss", "top1", "lr", "sparsity", "images_per_sec"}
    for values in steps.values():
        assert [step for step, _ in values] == [1, 2, 3, 4]
    printed = [line for line in capsys.readouterr().out.splitlines() if " batch " in line]
    assert [f"{loss:.3f}" for _, loss in steps["loss"]] == [x.split()[6] for x in printed]
    records = metrics(tmp_path)
    for name in set(records[0]) - {"epoch", "best"}:
        wanted = [(r["epoch"], pytest.approx(r[name])) for r in records if r[name] is not None]
        assert epochs.pop(name, []) == wanted, name
    assert set(epochs) == {f"{what}/{name}" for what in ("sparsity", "weights")
                           for name in PRUNABLE}  # fmt: skip
    for name in PRUNABLE:
        weight = weights(tmp_path / WEIGHTS)[name]
        left = np.count_nonzero(weight)
        assert 0 < left < weight.size
        assert epochs[f"sparsity/{name}"][1] == (1, pytest.approx(1 - left / weight.size))
        assert epochs[f"weights/{name}"][1] == (1, left)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("newest", ["epoch-1-step-4", "epoch-1-step-3", "epoch-0"])
def test_a_step_that_is_run_again_is_told_once(kind, newest, options, tmp_path):
    """Also where the epoch's own line is to follow a checkpoint of its last step."""
    options += ["--save_steps", "1", "--log_to", kind, "--model_path", str(tmp_path)]
    train.main(options)
    whole = told(kind, tmp_path)
    for folder in ("epoch-1", "epoch-1-step-4", "epoch-1-step-3"):
        if folder == newest:
            break
        shutil.rmtree(tmp_path / folder)
    train.main([*options, "--resume_epoch", "latest"])
    assert told(kind, tmp_path) == whole
    assert not list(tmp_path.glob("earlier-*"))


@pytest.mark.parametrize("kind", KINDS)
def test_an_earlier_epoch_and_a_new_training(kind, options, tmp_path):
    """What it goes on from stays, and all of it is kept aside."""
    options += ["--log_to", kind, "--model_path", str(tmp_path)]
    train.main([*options, "--max_steps", "3"])  # ends with a line of half an epoch
    half = told(kind, tmp_path)
    train.main([*options, "--pretrained_model", str(tmp_path), "--resume_epoch", "0"])
    whole = told(kind, tmp_path)
    assert [step for step, _ in whole["steps"]["loss"]] == [1, 2, 3, 4]
    assert [epoch for epoch, _ in whole["epochs"]["train_loss"]] == [0, 1]
    assert whole["epochs"]["train_loss"][1] != half["epochs"]["train_loss"][1]
    (aside,) = tmp_path.glob("earlier-*")
    assert told(kind, aside) == half
    train.main([*options, "--max_steps", "1"])
    assert [step for step, _ in told(kind, tmp_path)["steps"]["loss"]] == [1]
    (other,) = set(tmp_path.glob("earlier-*")) - {aside}
    assert told(kind, other) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_what_goes_on_without_a_log_leaves_none_that_is_not_so(kind, options, tmp_path):
    log = ["--log_to", kind]
    options += ["--model_path", str(tmp_path)]
    train.main([*options, *log])
    logged = told(kind, tmp_path)
    other = ["--pretrained_model", str(tmp_path), "--resume_epoch", "0", "--lr", "0.5", "--force"]
    train.main([*options, *other])
    assert not (tmp_path / kind).exists()
    (aside,) = tmp_path.glob("earlier-*")
    assert told(kind, aside) == logged


def test_points_that_are_dropped_are_in_no_file_of_tensorboard(tmp_path):
    """Its fast loader shows all that is there."""
    for step in (0, 1):
        logger = loggers.Logger("tensorboard", tmp_path, step, 0)
        logger.step(step + 1, {"loss": 0.25, f"of{step}": 1.0})
        logger.step(step + 2, {"late": 0.5})
    (file,) = (tmp_path / "tensorboard" / "steps").iterdir()
    assert b"of0" in file.read_bytes()
    assert read("tensorboard", file.parent)["late"] == [(3, 0.5)]
    file.write_bytes(file.read_bytes()[:-5])  # as after a kill
    loggers.Logger("tensorboard", tmp_path, 9, 0)
    assert set(read("tensorboard", file.parent)) == {"loss", "of0", "of1"}
    (file,) = file.parent.iterdir()
    file.write_bytes(b"\x04" + bytes(11) + b"\xff" * 8)
    with pytest.raises(ValueError, match=r"tfevents.* is damaged; move it away"):
        loggers.Logger("tensorboard", tmp_path, 9, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_two_processes_tell_once(options, tmp_path):
    options += ["--batch_size", "8", "--log_to", "tensorboard", "--model_path", tmp_path / "models"]
    with launched(tmp_path, options) as launcher:
        assert ended(launcher) == 0, log_of(tmp_path)
    folder = tmp_path / "models" / "tensorboard"
    assert len(list(folder.glob("*/*"))) == 2
    assert [step for step, _ in read("tensorboard", folder / "steps")["loss"]] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("tensorboard", "pip install 'tensorboardX>=2.6,<3'"),
        ("visualdl", "pip install 'visualdl>=2.5.3,<3'"),
    ],
)
def test_an_absent_package_is_told_before_all_else(kind, command, capfd, tmp_path, monkeypatch):
    assert command.split("'")[1] in (ROOT / "pyproject.toml").read_text()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = error_line(capfd, train.main, "--log_to", kind, "--model_path", tmp_path / "new",
                      "--data_dir", tmp_path / "nowhere")  # fmt: skip
    assert line.endswith(f": error: --log_to {kind} needs a package: {command}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "module"), [("tensorboard", "tensorboardX.event_file_writer"),
                         ("visualdl", "visualdl.proto.record_pb2")]
)  # fmt: skip
def test_a_package_that_is_broken(kind, module, options, capfd, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    line = error_line(capfd, train.main, *options, "--log_to", kind, "--model_path", tmp_path)
    assert f"error: --log_to {kind}: its package cannot be imported (" in line


def test_nothing_is_imported_that_is_not_asked_for():
    code = f"import sys, train; print(sorted({{*sys.modules}} & {{'tensorboardX', *{KINDS}}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_names_of_layers_lead_nowhere(kind, tmp_path):
    names = ["../../../up", "/tmp/root%weight", "a b\n\0", "é" * 300]
    weight = paddle.to_tensor([[0.0, 1.0], [2.0, 3.0]])
    logger = loggers.Logger(kind, tmp_path / "models", 0, 0)
    logger.epoch({"epoch": 0}, dict.fromkeys(names, weight))
    found = read(kind, tmp_path / "models" / kind / "epochs")
    assert [values for tag, values in found.items() if tag.startswith("s")] == [[(0, 0.25)]] * 4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {str(path.parent.relative_to(tmp_path)) for path in files} <= {
        f"models/{kind}/steps", f"models/{kind}/epochs"}  # fmt: skip
    assert len(files) == 2


def test_a_layer_without_weights_and_one_of_equal_ones(tmp_path):
    for kind in KINDS:
        logger = loggers.Logger(kind, tmp_path, 0, 0)
        logger.epoch({"epoch": 0}, {"a": paddle.zeros([2]), "b": paddle.ones([3])})
        found = read(kind, tmp_path / kind / "epochs")
        assert found["sparsity/a"] == [(0, 1.0)]
        assert found["weights/b"] == [(0, 3)]
        assert "weights/a" not in found


def test_a_file_of_visualdl_that_was_cut_short_or_is_none(tmp_path):
    logger = loggers.Logger("visualdl", tmp_path, 0, 0)
    for step in (1, 2):
        logger.step(step, {"loss": 0.5})
    path = tmp_path / "visualdl" / "steps" / "vdlrecords.log"
    path.write_bytes(path.read_bytes()[:-3])
    logger = loggers.Logger("visualdl", tmp_path, 2, 0)
    logger.step(3, {"loss": 0.5})
    assert read("visualdl", path.parent)["loss"] == [(1, 0.5), (3, 0.5)]
    path.write_bytes(b"\x04" + bytes(7) + b"\xff" * 4)
    with pytest.raises(ValueError, match=r"vdlrecords\.log is damaged; move it away"):
        loggers.Logger("visualdl", tmp_path, 2, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_an_error_and_no_standstill(kind, tmp_path):
    resource = pytest.importorskip("resource")
    logger = loggers.Logger(kind, tmp_path, 0, 0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            logger.step(1, {f"loss {number}": 0.5 for number in range(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
