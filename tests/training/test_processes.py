"""Several processes under Paddle's launcher: one training, stopped, killed and taken up again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, error_line, metrics, weights
from launcher import ended, launched, log_of, ranks, spy_on_samples, tiny, wait_for

import evaluate
import train
from readers import small_images as cifar_reader
from tasks import classification
from training import folders
from training.folders import MASKS, STATE, WEIGHTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


def only_checkpoint(folder: Path) -> Path:
    (found,) = folder.glob("epoch-*")
    folders.verified(found)
    assert not list(folder.glob(".epoch-*"))
    return found


EPOCHS = 3


@pytest.fixture(scope="module")
def common(cifar_dir) -> list[str]:
    """Options of 5 steps an epoch, together with --batch_size 8 over all ranks."""
    return ["--data_dir", str(cifar_dir), "--use_pretrained", "false", "--num_workers", "0",
            "--use_gpu", "false", "--num_epochs", str(EPOCHS), "--model_period", "1",
            "--test_period", "1", "--batch_size_for_validation", "3",
            "--ratio", "0.6"]  # fmt: skip


def alone(options, batch: int = 8) -> list:
    """A training in this process; the samples it saw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "make_model", tiny)
        patch.setattr(cifar_reader.Cifar10, "__getitem__", cifar_reader.Cifar10.__getitem__)
        seen = spy_on_samples()
        train.main([*map(str, options), "--batch_size", str(batch)])
    return seen


@pytest.fixture(scope="module")
def single(common, tmp_path_factory):
    """A whole training by one process, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("one")
    seen = alone([*common, "--save_steps", "1", "--model_path", folder])
    return folder, seen


@pytest.fixture(scope="module")
def two(common, tmp_path_factory):
    """The same training by two processes."""
    folder = tmp_path_factory.mktemp("two")
    options = [*common, "--save_steps", "1", "--batch_size", "4", "--model_path", folder / "models"]
    with launched(folder, options) as launcher:
        assert ended(launcher) == 0, log_of(folder)
    return folder


def masks(folder: Path) -> np.ndarray:
    with np.load(folder / MASKS) as packed:
        return np.concatenate([np.unpackbits(packed[name]) for name in packed.files])


def difference(a: Path, b: Path) -> tuple[float, int]:
    """The largest between the weights of two checkpoints, and in how many masks' entries."""
    single, other = weights(a / WEIGHTS), weights(b / WEIGHTS)
    assert sorted(single) == sorted(other)
    largest = max(float(np.abs(single[name] - other[name]).max()) for name in single)
    return largest, int(np.count_nonzero(masks(a) != masks(b)))


def assert_close(a: Path, b: Path) -> None:
    """Up to the order of summation."""
    largest, entries = difference(a, b)
    assert largest <= 2e-6
    assert entries == 0


def steps(seen: list, batch: int, mode: str = "train") -> list[list]:
    """The samples of each step of a rank."""
    seen = [sample for sample in seen if sample[0] == mode]
    return [seen[start : start + batch] for start in range(0, len(seen), batch)]


def together(folder: Path, batch: int) -> list[list]:
    """The samples of each step of both ranks."""
    a, b = (steps(rank["seen"], batch) for rank in ranks(folder))
    assert len(a) == len(b)
    return [sorted(of_a + of_b) for of_a, of_b in zip(a, b)]


def counted(folder: Path) -> int:
    """How many samples the sums in a checkpoint are of."""
    totals = folders.verified(folder).totals
    return sum(total[3] for total in totals)


def test_two_processes_train_what_one_does(single, two):
    folder, seen = single
    expected = [sorted(step) for step in steps(seen, 8)]
    assert together(two, 4) == expected
    assert len(expected) == 5 * EPOCHS
    assert len({tuple(sample) for step in expected for sample in step}) == 40 * EPOCHS
    for saved in folder.glob("epoch-*"):
        assert counted(saved) == counted(two / "models" / saved.name) > 0
        assert_close(saved, two / "models" / saved.name)
    for a, b in zip(metrics(folder), metrics(two / "models")):
        assert a["images_per_sec"] * a["seconds"] == pytest.approx(40)
        assert b["images_per_sec"] * b["seconds"] == pytest.approx(40)
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-6)
        assert a["lr"] == b["lr"]
    assert ranks(two)[1]["saved"] == []


def test_two_processes_measure_what_one_does(single, two, cifar_dir, capsys, monkeypatch):
    tested = [s for rank in ranks(two) for s in rank["seen"] if s[0] == "val"]
    assert sorted(tested) == sorted(s for s in single[1] if s[0] == "val")
    assert len(tested) == 10 * EPOCHS
    monkeypatch.setattr(classification, "make_model", tiny)
    options = ["--data_dir", str(cifar_dir), "--num_workers", "0", "--json"]
    for epoch, record in enumerate(metrics(two / "models")):
        capsys.readouterr()
        evaluate.main([*options, "--pruned_model", str(two / "models" / f"epoch-{epoch}")])
        measured = json.loads(capsys.readouterr().out)
        assert (measured["top1"], measured["top5"]) == (record["top1"], record["top5"])
        assert measured["loss"] == pytest.approx(record["loss"], rel=1e-6)
        assert measured["samples"] == 10


def test_two_machines(common, two, tmp_path):
    """Two launchers that meet at --master; the folder is one that both see."""

    def train_both(*options) -> list[list]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = [*common, *options, "--batch_size", 4, "--model_path", tmp_path / "models"]
        with contextlib.ExitStack() as stack:
            launchers = [
                stack.enter_context(launched(tmp_path / f"node{rank}", options, nproc=1, nodes=[
                    "--master", f"127.0.0.1:{port}", "--nnodes", "2", "--rank", str(rank)]))
                for rank in (0, 1)
            ]  # fmt: skip
            assert [ended(launcher) for launcher in launchers] == [0, 0]
        return [ranks(tmp_path / f"node{rank}")[0]["saved"] for rank in (0, 1)]

    assert train_both("--max_steps", 7, "--model_period", 10) == [[[1, 7]], []]
    saved = only_checkpoint(tmp_path / "models")
    assert saved.name == "epoch-1-step-7"
    assert folders.verified(saved).ranks == 2
    assert train_both("--resume_epoch", "latest") == [[[1, 10], [2, 15]], []]
    assert difference(tmp_path / "models" / "epoch-2", two / "models" / "epoch-2") == (0, 0)
    assert [record["epoch"] for record in metrics(tmp_path / "models")] == [0, 1, 2]


@pytest.mark.parametrize(("name", "done"), [("epoch-0", 5), ("epoch-1-step-7", 7)])
def test_one_process_goes_on_for_two(name, done, common, single, two, tmp_path):
    shutil.copytree(two / "models" / name, tmp_path / name)
    seen = alone([*common, "--model_path", tmp_path, "--resume_epoch", "latest"])
    assert steps(seen, 8) == steps(single[1], 8)[done:]
    assert counted(tmp_path / "epoch-1") == counted(tmp_path / "epoch-2") == 40
    assert_close(tmp_path / "epoch-2", single[0] / "epoch-2")


def test_two_processes_go_on_for_one(common, single, two, tmp_path):
    models, name = tmp_path / "models", "epoch-1-step-7"
    shutil.copytree(single[0] / name, models / name)
    options = [*common, "--batch_size", 4, "--model_path", models, "--resume_epoch", "latest"]
    with launched(tmp_path, options) as launcher:
        assert ended(launcher) == 0, log_of(tmp_path)
    assert together(tmp_path, 4) == together(two, 4)[7:]
    assert counted(models / "epoch-1") == counted(models / "epoch-2") == 40
    assert_close(models / "epoch-2", single[0] / "epoch-2")
    loss = metrics(single[0])[1]["train_loss"]  # of the whole epoch, also if it began elsewhere
    assert metrics(models)[0]["train_loss"] == pytest.approx(loss, rel=1e-6)


def test_another_global_batch_is_refused(common, single, two, tmp_path, capfd):
    for folder, batch in ((two / "models", 4), (single[0], 4), (single[0], 16)):
        message = error_line(capfd, train.main, *common, "--batch_size", batch,
                             "--model_path", folder, "--resume_epoch", "latest",
                             "--num_epochs", EPOCHS + 1)  # fmt: skip
        assert message.endswith("was trained with a global batch of 8; give the same, or --force")
    options = [*common, "--batch_size", 8, "--model_path", single[0], "--resume_epoch", "latest",
               "--num_epochs", EPOCHS + 1]  # fmt: skip
    with launched(tmp_path, options) as launcher:
        assert ended(launcher) == 2
    assert "was trained with a global batch of 8; give the same" in log_of(tmp_path)
    assert "Traceback" not in log_of(tmp_path)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_ends_the_run_which_can_be_started_again(killed, common, two, tmp_path):
    models = tmp_path / "models"
    options = [*common, "--batch_size", 4, "--save_steps", 1, "--model_path", models,
               "--resume_epoch", "latest"]  # fmt: skip
    with launched(tmp_path, options, "slow step") as launcher:
        wait_for(launcher, lambda: list(models.glob("epoch-0-step-3")))
        os.kill(int((tmp_path / f"pid{killed}").read_text()), signal.SIGKILL)
        assert ended(launcher) != 0
    reached = folders.find_latest(models).step
    assert 3 <= reached < 15
    if killed == 0:  # the machine is gone
        alone(options)
        assert_close(models / "epoch-2", two / "models" / "epoch-2")
        return
    with launched(tmp_path, options) as launcher:
        assert ended(launcher) == 0, log_of(tmp_path)
    assert ranks(tmp_path)[0]["saved"][0] == [reached // 5, reached + 1]
    assert difference(models / "epoch-2", two / "models" / "epoch-2") == (0, 0)


@pytest.mark.parametrize(
    ("to", "workers"), [("rank 0", 0), ("rank 1", 1), ("launcher", 0), ("launcher", 1)]
)
def test_a_signal_to_stop_saves_one_checkpoint(to, workers, common, single, tmp_path):
    """Of one step on which the ranks agree, also where a step, and a save, take their time."""
    options = [*common, "--batch_size", 4, "--num_workers", workers, "--model_period", 10,
               "--model_path", tmp_path / "models"]  # fmt: skip
    with launched(tmp_path, options, "slow") as launcher:
        wait_for(launcher, lambda: len(list(tmp_path.glob("under way *"))) == 2)
        pid = launcher.pid if to == "launcher" else (tmp_path / f"pid{to[-1]}").read_text()
        os.kill(int(pid), signal.SIGTERM)
        status = ended(launcher)
    saved = only_checkpoint(tmp_path / "models")
    step = folders.verified(saved).step
    assert 3 <= step <= 6
    for rank in (0, 1):
        log = (tmp_path / "log" / f"workerlog.{rank}").read_text()
        assert f"train.py: stopped by SIGTERM after step {step}, which is saved" in log
    assert status == (signal.SIGTERM if to == "launcher" else 128 + signal.SIGTERM)
    assert [rank["saved"] for rank in ranks(tmp_path)] == [[[0, step]], []]
    # The launcher kills a rank that still saves once another has left.
    left = (tmp_path / "rank1.json").stat().st_mtime
    assert left >= (saved / STATE).stat().st_mtime
    alone([*common, "--model_path", tmp_path / "models", "--resume_epoch", "latest"])
    assert_close(tmp_path / "models" / "epoch-2", single[0] / "epoch-2")


def test_a_rank_that_leaves_keeps_its_status_when_the_launcher_ends_it(tmp_path):
    """As happens where all ranks meet the same fault and one is quicker."""
    script = tmp_path / "leaving.py"
    script.write_text(
        "import atexit, os, signal, sys\n"
        "from training import command_line\n"
        "@command_line.one_line_errors\n"
        "def main(argv=None):\n"
        "    raise ValueError('no')\n"
        "atexit.register(os.kill, os.getpid(), signal.SIGTERM)\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    statuses = [
        subprocess.run([sys.executable, script], env=env, capture_output=True).returncode
        for env in ({**environment, "PADDLE_TRAINER_ID": "0"}, environment)
    ]
    assert statuses == [2, -signal.SIGTERM]


def test_ranks_whose_masks_differ_are_stopped(common, tmp_path):
    options = [*common, "--batch_size", 4, "--model_path", tmp_path / "models"]
    with launched(tmp_path, options, "flip") as launcher:
        assert ended(launcher) == 2
    assert "train.py: error: the ranks' masks differ after step 5: " in log_of(tmp_path)
    assert not list((tmp_path / "models").glob("epoch-*"))


@pytest.mark.parametrize("name", ["epoch-1-step-7", "epoch-2"])
def test_ranks_that_find_different_checkpoints_are_stopped(name, common, two, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(two / "models" / name, models / name)
    options = [*common, "--batch_size", 4, "--model_path", models, "--resume_epoch", "latest"]
    with launched(tmp_path, options, "apart") as launcher:
        assert ended(launcher) == 2, log_of(tmp_path)
    assert "train.py: error: the ranks would go on from steps [" in log_of(tmp_path)
    assert [path.name for path in models.glob("epoch-*")] == [name]
    assert not list((tmp_path / "apart").glob("epoch-*"))
