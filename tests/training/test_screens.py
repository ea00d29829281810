"""What the programs show: at the start, meanwhile, at the end, on a terminal and in a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, metrics, weights

import evaluate
import export
import train
from readers import loader
from tasks import classification, detection
from training import report

WEIGHTS = "model-pruned.pdparams"


def test_a_training_in_a_pipe(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "fast_products", dict)  # whatever the processor
    folder = tmp_path / "it's here"
    train.main([*small, "--num_epochs", "2", "--model_period", "1", "--test_period", "2",
                "--log_period", "1", "--model_path", str(folder)])  # fmt: skip
    out, errors = capsys.readouterr()
    assert errors == ""
    lines = [line for line in out.splitlines() if not line.startswith("no weight is left in ")]
    cores = loader.available_cores()
    assert lines[:7] == [
        f"device    CPU, {cores} cores",
        "data      cifar10, 40 pictures to train on, 10 to test, 3x32x32, 10 classes",
        "steps     2 an epoch, 16 pictures each, 2 epochs",
        "model     mobilenet_v1 of width 0.25, 221,114 parameters",
        "weights   random",
        "pruned    55.00% of 210,160 weights in 28 layers (95.0% of the parameters)",
        f"saved in  {folder}",
    ]
    batch = r"epoch 0 batch 1/2 train loss \d\.\d{3} top1 0\.\d{4} lr 0\.05 sparsity 0\.5228 \d+ images/s"  # noqa: E501
    assert re.fullmatch(batch, lines[7])
    assert re.fullmatch(r"epoch 0 train loss \d\.\d{3} sparsity 0\.5228/0\.5500 \d+ s", lines[9])
    epoch = r"epoch 1 train loss \d\.\d{3} test top1 0\.\d{4} top5 [01]\.\d{4} loss \d+\.\d{3} sparsity 0\.5228/0\.5500 \d+ s"  # noqa: E501
    assert re.fullmatch(epoch, lines[12])
    assert lines[13] == f"saved {folder}/epoch-1; to measure it:"
    _, path, *options = shlex.split(lines[14])
    assert Path(path).resolve() == ROOT / "evaluate.py"
    assert options == ["--pruned_model", str(folder), "--data_dir", small[1]]
    done = subprocess.run(lines[14], shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    top1 = metrics(folder)[-1]["top1"]
    assert done.stdout.startswith(f"top1 {top1:.4f} ")
    assert done.stderr == ""


def test_what_makes_a_processor_fast_is_told(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "fast_products", lambda: {"MKL_DEBUG_CPU_TYPE": "5"})
    common = [*small, "--num_epochs", "1", "--max_steps", "1", "--model_path"]
    for value in (None, "7"):
        monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
        if value:
            monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", value)
        train.main([*common, str(tmp_path / str(value))])
        device = capsys.readouterr().out.splitlines()[0]
        assert device.endswith("; `MKL_DEBUG_CPU_TYPE=5 python ...` is faster on it") != bool(value)


def test_the_start_tells_what_is_pruned_and_where_it_begins(small, tmp_path, capsys):
    def start_lines(*options) -> dict:
        capsys.readouterr()
        train.main([*small, *map(str, options), "--max_steps", "1"])
        return {line[:9].rstrip(): line[10:] for line in capsys.readouterr().out.splitlines()[:7]}

    first, share = tmp_path / "a", "of 210,160 weights in 28 layers (95.0% of the parameters)"
    lines = start_lines("--model_path", first, "--pruning_mode", "none", "--num_epochs", 3)
    assert lines["pruned"] == "nothing"
    assert lines["steps"].endswith("3 epochs, ends at 1")
    new = ["--model_path", tmp_path / "b", "--pretrained_model", first]
    lines = start_lines(*new, "--pruning_mode", "threshold", "--threshold", 0.02)
    assert lines["weights"] == str(first)
    assert lines["pruned"] == f"what is smaller than 0.02, {share}"
    lines = start_lines(*new, "--distribution", "erk", "--ratio", "0.8")
    assert lines["pruned"] == f"80.00% {share}, erk"
    lines = start_lines(*new, "--static_masks", "--pretrained_model", tmp_path / "b")
    assert lines["pruned"] == f"what is 0, 80.00% {share}"
    lines = start_lines(*new, "--distribution", "conv*=0.5,fc.weight=0.9")
    assert re.fullmatch(r"5\d.\d\d% of .*\(95.0% of the parameters\), by pattern", lines["pruned"])
    gmp = ["--pruning_strategy", "gmp", "--num_epochs", 4, "--pruning_epochs", 2]
    lines = start_lines(*new, *gmp, "--pruning_steps", 2, "--prune_params_type", "conv1x1_only")
    assert re.fullmatch(
        r"15.00% rising to 55.00% of [\d,]+ weights in 13 layers \(\d\d.\d% of the parameters\); "
        r"at least 1.00% of a layer and 0.10% of a channel stay",
        lines["pruned"],
    )


def test_where_a_resumed_training_begins(small, tmp_path, capsys):
    common = [*small, "--num_epochs", "3", "--model_path", str(tmp_path)]
    for steps, start in (("3", "random"), ("4", f"{tmp_path}/epoch-1-step-3"),
                         ("5", f"{tmp_path}/epoch-1")):  # fmt: skip
        capsys.readouterr()
        train.main([*common, "--max_steps", steps, "--resume_epoch", "latest"])
        assert f"weights   {start}\n" in capsys.readouterr().out


def test_lines_fit_100_columns(capsys, tmp_path):
    """Those of ImageNet's training, with long numbers."""
    for task in (classification, detection):
        run = SimpleNamespace(
            args=SimpleNamespace(batch_size=256, model_path=tmp_path), task=task, epoch=119,
            batch=20018, train_loader=range(20018), opt=SimpleNamespace(get_lr=lambda: 0.0498763),
            model=paddle.nn.Linear(2, 2), totals=np.array([9.8765] * len(task.COUNTED) + [1]),
            warned_of_reading=True, first_losses=None, pruner=None, logger=None,
            step=20018, first_step=0,
            seconds_reading=0.0, started=time.perf_counter() - 20018 * 256 / 12345.6,
        )  # fmt: skip
        report.steps(run)
        measured = [f"{of}{name}" for of in ("", "average_") for name in task.MEASURED]
        tested = dict.fromkeys(measured, 0.98765)
        record = {"epoch": 119, "train_loss": 9.8765, "sparsity": 0.98765, "seconds": 12345.6,
                  "prunable_sparsity": 0.98765, **tested}  # fmt: skip
        report.epoch(run, record)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert max(map(len, lines)) <= 100
    for text in (train.parse, evaluate.parse, export.parse):
        with pytest.raises(SystemExit):
            text(["--help"])
    words = capsys.readouterr().out
    assert "the checkpoint's, else mobilenet_v1" in words


def test_on_a_terminal_the_bar_moves_within_an_epoch_and_gives_the_time_left(small, tmp_path):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    ours, terminal = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    run = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *small, "--batch_size", "1", "--num_epochs", "2",
         "--model_path", tmp_path],
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that it has ended
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    assert run.wait() == 0
    bars = re.findall(r"epoch (\d) of 2: +\d+%\|[^|]*\| (\d+)/80 \[\d\d:\d\d<(\?|\d\d:\d\d)",
                      shown.decode())  # fmt: skip
    steps = {int(step) for epoch, step, _ in bars if epoch == "0"}
    assert len(steps & set(range(1, 40))) > 1  # tqdm draws ten times a second at most
    assert bars[-1] == ("1", "80", "00:00")


def test_only_the_first_process_speaks_and_paddle_does_not_warn(small, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}
    subprocess.run(
        [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2",
         "--log_dir", tmp_path / "log", ROOT / "train.py", *small, "--batch_size", "8",
         "--num_workers", "1", "--num_epochs", "1", "--log_period", "1", "--lr", "0",
         "--model_path", tmp_path / "models"],
        check=True, env=environment, capture_output=True,
    )  # fmt: skip
    logs = [(tmp_path / "log" / f"workerlog.{rank}").read_text() for rank in (0, 1)]
    assert logs[0].count("epoch 0 batch 1/2 ") == 1
    assert ", 2 processes" in logs[0]
    assert "warning: --lr 0" in logs[0]
    assert not re.search("epoch|device|saved|warning", logs[1])
    for log in logs:
        assert "ccache" not in log
        assert "always track" not in log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--lr", "0"], "warning: --lr 0: the weights stay as they are, but for pruning"),
        (["--ratio", "1.0"], "warning: --ratio 1.0: all prunable weights become 0"),
        (["--lr", "1e-9", "--ratio", "0.99"], ""),
    ],
)
def test_what_is_hardly_meant_is_said(options, words, small, tmp_path, capsys):
    train.main([*small, *options, "--max_steps", "1", "--model_path", str(tmp_path)])
    errors = capsys.readouterr().err
    assert words in errors
    assert errors.count("\n") == bool(words)


# Measured on Imagenette, from MobileNetV1 x0.75 trained on ImageNet, batches of 16: with a
# classifier of 10 classes (--image_size 96), and with that of 1000 (at 224).
TEN = [3.66, 5.81, 8.36, 6.31, 8.35, 9.39, 8.67, 4.68, 13.46, 12.39, 11.89, 11.27]  # --lr 0.05
TEN_SOUND = [3.66, 4.24, 3.21, 4.02, 3.28, 3.74, 3.45, 4.65, 3.12, 3.06, 2.36, 3.62]  # --lr 0.0005
RUINED = [4.92, 3.05, 6.52, 2.92, 3.66, 14.77, 6.84, 8.76, 13.17, 13.27, 9.45, 10.51, 11.37, 5.37]
RUINED += [6.76, 13.78, 6.62, 10.46, 6.31, 10.72]  # --lr 0.05 --ratio 0.55
SOUND = [4.92, 3.57, 5.58, 4.04, 5.56, 4.49, 5.38, 4.17, 5.66, 3.24, 5.74, 4.78, 5.33, 4.82, 3.66]
SOUND += [4.14, 3.26, 3.16, 2.86, 4.91]  # --lr 0.0005 --ratio 0.55


@pytest.mark.parametrize(
    ("losses", "classes", "found"),
    [
        (TEN, 10, True),
        (TEN[:11], 10, False),  # too few to tell
        (TEN_SOUND, 10, False),
        (RUINED, 1000, True),
        (SOUND, 1000, False),
        ([0.1] * 20 + [2.2] * 80, 10, False),  # rises far, and is better than a guess: 2.303
        ([0.1] * 20 + [2.4] * 9, 10, False),
        ([0.1] * 20 + [2.4] * 10, 10, True),
        ([1.0, 3.0, *[3.9] * 80], 10, False),  # by the first masks
        ([1.0, 3.0, *[4.1] * 80], 10, True),
        ([], 10, False),
    ],
)
def test_when_trained_weights_are_ruined(losses, classes, found):
    assert report.is_ruined(losses, classes) is found


@pytest.mark.parametrize("losses", [RUINED, SOUND])
def test_too_high_a_learning_rate_is_said_once(losses, small, tmp_path, capsys, monkeypatch):
    first, common = str(tmp_path / "a"), [*small, "--lr", "0.04", "--log_period", "1"]
    passed, loss = [], classification.loss

    def measured(outputs, targets):
        passed.append(losses[len(passed) % len(losses)])
        return loss(outputs, targets) * 0 + passed[-1]

    def warned(*options) -> int:
        capsys.readouterr(), passed.clear()
        train.main([*common, *options])
        wording = (
            "warning: the loss rises: --lr 0.04 is likely too high for trained weights; try 0.0004"
        )
        return capsys.readouterr().err.count(wording)

    monkeypatch.setattr(classification, "loss", measured)
    epochs = ["--num_epochs", "9", "--test_period", "100"]
    assert warned("--model_path", first, *epochs) == 0  # from random weights
    new = ["--model_path", str(tmp_path / "b"), "--pretrained_model", first]
    assert warned(*new, *epochs) == (losses is RUINED)
    gmp = ["--pruning_strategy", "gmp", "--pruning_epochs", "2", "--pruning_steps", "2"]
    assert warned(*new, *epochs, *gmp) == 0  # its ratio rises, too
    assert warned(*new, *epochs, "--teacher", first) == 0  # what it adds is no cross entropy
    assert warned(*new, "--resume_epoch", "8", "--num_epochs", "18") == 0  # goes on


def test_slow_reading_is_said_once(small, tmp_path, capsys, monkeypatch):
    def slow(self, index, read=classification.Cifar10.__getitem__):
        time.sleep(0.1)
        return read(self, index)

    common = [*small, "--num_epochs", "1", "--log_period", "1", "--model_path", str(tmp_path)]
    train.main(common)
    assert "reading" not in capsys.readouterr().err
    monkeypatch.setattr(classification.Cifar10, "__getitem__", slow)
    train.main(common)
    err = capsys.readouterr().err
    assert err.count("% of the time is spent on reading pictures; see --num_workers") == 1


def test_static_masks_need_zeros(small, tmp_path, capfd):
    once = [*small, "--max_steps", "1"]
    train.main([*once, "--ratio", "0.002", "--model_path", str(tmp_path / "a")])
    common = [*once, "--static_masks", "--pretrained_model"]
    train.main([*common, str(tmp_path / "a"), "--model_path", str(tmp_path / "b")])
    state = weights(tmp_path / "a" / WEIGHTS)
    few = {key: np.where(value == 0, 1e-3, value) for key, value in state.items()}
    few["fc.weight"].flat[:200] = 0  # 0.095% of the weights
    paddle.save(few, str(tmp_path / "few.pdparams"))
    message = error_line(capfd, train.main, *common, tmp_path / "few.pdparams",
                         "--model_path", tmp_path / "c")  # fmt: skip
    assert f"of the weights of {tmp_path}/few.pdparams 0.10% are 0; give a pruned" in message
    assert not list((tmp_path / "c").iterdir())


def test_evaluate_in_json_is_json_alone_with_the_table_inside(small, tmp_path, capsys):
    train.main([*small, "--max_steps", "1", "--ratio", "0.6", "--model_path", str(tmp_path)])
    capsys.readouterr()
    evaluate.main(["--pruned_model", str(tmp_path), *small[:2], "--json", "--per_layer"])
    result = json.loads(capsys.readouterr().out)
    saved, layers = weights(tmp_path / WEIGHTS), result["layers"]
    assert len(layers) == 28
    for layer in layers:
        value = saved[layer["name"]]
        assert layer["shape"] == list(value.shape)
        assert layer["weights"] == value.size
        assert layer["sparsity"] == pytest.approx(np.mean(value == 0))
    zeros = sum(layer["weights"] * layer["sparsity"] for layer in layers)
    assert zeros == pytest.approx(0.6 * sum(layer["weights"] for layer in layers), abs=1)
    assert result["images_per_sec"] > 0


def test_options_that_the_checkpoint_decides(small, tmp_path, capfd):
    train.main([*small, "--max_steps", "1", "--model_path", str(tmp_path)])
    passed = ["--pruned_model", tmp_path]
    trained = {"--scale": 0.25, "--num_classes": 10, "--model": "mobilenet_v1"}
    export_options = ["--format", "onnx", "--out", tmp_path / "out"]
    for main, more in ((evaluate.main, small[:2]), (export.main, export_options)):
        for option, value in (("--scale", 0.5), ("--scale", 1.0), ("--num_classes", 20),
                              ("--model", "resnet18")):  # fmt: skip
            message = error_line(capfd, main, *passed, *more, option, value)
            wording = f"{tmp_path} was trained with {option} {trained[option]}; leave it out"
            assert message.endswith(f"error: {option} {value}: {wording}")
    same = ["--scale", "0.25", "--num_classes", "10", "--model", "mobilenet_v1"]
    evaluate.main([*map(str, passed), *small[:2], *same])


def test_weights_without_a_state_take_the_options(small, tmp_path, capsys):
    train.main([*small, "--max_steps", "1", "--model_path", str(tmp_path)])
    shutil.copy(tmp_path / WEIGHTS, tmp_path / "alone.pdparams")
    (tmp_path / "new").mkdir()
    shutil.move(tmp_path / "alone.pdparams", tmp_path / "new")
    alone = ["--pruned_model", str(tmp_path / "new" / "alone"), *small[:2]]
    evaluate.main([*alone, "--scale", "0.25"])
    with pytest.raises(SystemExit):
        evaluate.main(alone)
    assert "the model's" in capsys.readouterr().err


def test_a_folder_for_the_digits_is_refused_where_the_checkpoint_tells_that_it_is_digits(
    tmp_path, capfd
):
    train.main(["--data", "digits", "--scale", "0.1", "--num_workers", "0", "--max_steps", "1",
                "--model_path", str(tmp_path)])  # fmt: skip
    message = error_line(capfd, evaluate.main, "--pruned_model", tmp_path, "--data_dir", "x")
    assert message.endswith("--data_dir: --data digits needs no folder")
