"""Trainings that are stopped by a signal, a kill or a loss that is not finite, and go on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import paddle
import pytest
from conftest import ROOT, assert_same_end, error_line, metrics

import train
from tasks import classification
from training import folders, report
from training.folders import STATE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("testing", [False, True])
def test_a_signal_saves_the_step_and_the_run_goes_on(
    number, testing, small, tmp_path, capfd, monkeypatch, terminal
):  # fmt: skip
    common = [*small, "--num_epochs", "3", "--model_period", "1", "--test_period", "1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main([*common, "--model_path", str(whole)])
    original, calls = classification.hits, []

    def counting(*args):
        calls.append(args)
        if paddle.is_grad_enabled() != testing and len(calls) > 2:
            signal.raise_signal(number)
        return original(*args)

    monkeypatch.setattr(classification, "hits", counting)
    with pytest.raises(SystemExit) as ended:
        train.main([*common, "--model_path", str(stopped)])
    monkeypatch.undo()
    assert ended.value.code == 128 + number
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith(f"train.py: stopped by {signal.Signals(number).name} after")
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
    train.main([*common, "--model_path", str(stopped), "--resume_epoch", "latest"])
    assert_same_end(whole, stopped)


def test_a_training_stopped_in_its_last_test_ends_with_its_momentum(
    small, tmp_path, monkeypatch, terminal
):
    """It takes no step after it is resumed."""
    common = [*small, "--num_epochs", "1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main([*common, "--model_path", str(whole)])

    def interrupted(*args, evaluate=train.evaluate):
        signal.raise_signal(signal.SIGINT)
        return evaluate(*args)

    monkeypatch.setattr(train, "evaluate", interrupted)
    with pytest.raises(SystemExit):
        train.main([*common, "--model_path", str(stopped)])
    monkeypatch.undo()
    train.main([*common, "--model_path", str(stopped), "--resume_epoch", "latest"])
    assert_same_end(whole, stopped)


def started(folder, *options) -> subprocess.Popen:
    """A training in a process group of its own, once it has printed the line of two steps."""
    run = subprocess.Popen(
        [sys.executable, ROOT / "train.py", "--data", "digits", "--scale", "0.25", *options,
         "--use_gpu", "false", "--log_period", "1", "--model_path", folder],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    lines = (line for line in run.stdout if line.startswith("epoch "))
    next(lines), next(lines)
    return run


def ended(run: subprocess.Popen) -> tuple[int, str]:
    """Its status and the last line of its stderr, within a minute."""
    try:
        errors = run.communicate(timeout=60)[1].rstrip().splitlines()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    return run.returncode, errors[-1] if errors else ""


def test_a_second_signal_ends_at_once(tmp_path):
    run = started(tmp_path, "--batch_size", "800", "--num_workers", "0")  # a step takes seconds
    run.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    run.send_signal(signal.SIGTERM)
    assert ended(run)[0] == -signal.SIGTERM
    assert folders.find_latest(tmp_path) is None


def test_a_signal_to_the_whole_group_is_one_to_the_readers_too(tmp_path):
    run = started(tmp_path, "--batch_size", "64", "--num_workers", "2")
    os.killpg(run.pid, signal.SIGTERM)
    status, line = ended(run)
    assert status == 143
    assert line.startswith("train.py: stopped by SIGTERM after step ")
    assert folders.find_latest(tmp_path) is not None


def test_a_signal_that_ended_the_reading_processes(small, tmp_path, capfd, monkeypatch, terminal):
    """They may be gone before the step is over that the signal came in."""
    original, calls = classification.loss, []

    def loss(outputs, targets):
        calls.append(0)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
            raise ValueError("a process that reads data died")
        return original(outputs, targets)

    monkeypatch.setattr(classification, "loss", loss)
    with pytest.raises(SystemExit) as ended:
        train.main([*small, "--num_epochs", "3", "--model_path", str(tmp_path)])
    assert ended.value.code == 143
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith("train.py: stopped by SIGTERM after step 3, which is saved")
    assert folders.find_latest(tmp_path).folder.name == "epoch-1-step-3"


@pytest.mark.parametrize("error", [ValueError("no result"), OSError(5, "I/O error")])
@pytest.mark.parametrize("where", ["__init__", "add", "result"])
def test_a_fault_of_a_test_loses_no_training(where, error, small, tmp_path, capfd, monkeypatch):
    def broken(self, *args):
        raise error

    monkeypatch.setattr(classification.Metric, where, broken)
    message = error_line(capfd, train.main, *small, "--model_path", tmp_path, "--num_epochs", 3,
                         "--test_period", 1)  # fmt: skip
    assert str(error) in message
    assert folders.find_latest(tmp_path).folder.name == "epoch-0-step-2"


def test_a_reading_process_that_is_killed_ends_the_run(tmp_path):
    run = started(tmp_path, "--batch_size", "64", "--num_workers", "2")
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    status, line = ended(run)
    assert status == 2
    assert "a process that reads data died" in line


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_its_step(bad, small, tmp_path, capfd, monkeypatch):
    original, calls = classification.loss, []

    def loss(outputs, targets):
        calls.append(0)
        return original(outputs, targets) * (bad if len(calls) == 4 else 1)

    monkeypatch.setattr(classification, "loss", loss)
    message = error_line(capfd, train.main, *small, "--model_path", tmp_path, "--num_epochs", 3,
                         "--model_period", 1, "--save_steps", 1)  # fmt: skip
    assert "the loss is not finite at step 4, in epoch 1" in message
    assert folders.find_latest(tmp_path).folder.name == "epoch-1-step-3"
    assert [record["epoch"] for record in metrics(tmp_path)] == [0]


class Killed(BaseException):
    """In place of a kill -9: nothing of the program runs after it."""


def killed(*args):
    raise Killed


@pytest.mark.parametrize("moment", ["evaluate", "link", "epoch"])
@pytest.mark.parametrize("cut", [[], ["--max_steps", "3"]])
def test_a_kill_at_the_very_end(moment, cut, small, tmp_path, monkeypatch):
    common = [*small, "--num_epochs", "2", "--model_period", "1", "--save_steps", "3", *cut]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*common, "--model_path", str(whole)])
    module, calls = {"evaluate": train, "link": folders, "epoch": report}[moment], []
    original = getattr(module, moment)
    last = {"evaluate": 1, "link": 3 if cut else 4, "epoch": 2}[moment]

    def at_last(*args):
        calls.append(args)
        return original(*args) if len(calls) < last else killed()

    monkeypatch.setattr(module, moment, at_last)
    with pytest.raises(Killed):
        train.main([*common, "--model_path", str(parts)])
    monkeypatch.undo()
    train.main([*common, "--model_path", str(parts), "--resume_epoch", "latest"])
    assert_same_end(whole, parts)
    assert os.readlink(whole / STATE) == os.readlink(parts / STATE)
    train.main([*common, "--model_path", str(parts), "--resume_epoch", "latest"])
    assert_same_end(whole, parts)


def test_an_ignored_ctrl_c_stays_ignored(tmp_path):
    """As of what a script starts with `&`: Ctrl-C is then meant for another program."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = started(tmp_path, "--batch_size", "64", "--num_workers", "0")
    finally:
        signal.signal(signal.SIGINT, before)
    run.send_signal(signal.SIGINT)
    for _ in range(3):
        assert run.stdout.readline()
    run.send_signal(signal.SIGTERM)
    status, line = ended(run)
    assert status == 143
    assert line.startswith("train.py: stopped by SIGTERM after step ")
