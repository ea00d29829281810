"""Runs that are stopped, killed or fed damaged checkpoints, and go on."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, metrics, weights

import train
from tasks import classification
from training import checkpoint
from training.checkpoint import MASKS, OPTIMIZER, STATE, WEIGHTS

GMP = ["--pruning_strategy", "gmp", "--stable_epochs", "0", "--pruning_epochs", "2",
       "--tunning_epochs", "1", "--pruning_steps", "3", "--ratio", "0.75"]  # fmt: skip
RUNS = {
    "ratio": ["--pruning_mode", "ratio", "--step_epochs", "1", "2"],
    "threshold": ["--pruning_mode", "threshold", "--threshold", "0.05", "--num_workers", "2"],
    "gmp": [*GMP, "--lr_strategy", "cosine_decay"],
    "dropout": ["--model", "mobilenet_v2", "--prune_period", "2"],
    "safetensors": ["--format", "safetensors", "--distribution", "erk"],
}


def assert_same_end(a: Path, b: Path) -> None:
    """Weights, optimizer, masks and metrics (but timings) of two runs, bit for bit."""
    for name in (checkpoint.find_weights(a).name, OPTIMIZER):
        one, other = checkpoint.read_arrays(a / name), checkpoint.read_arrays(b / name)
        assert sorted(one) == sorted(other)
        for key in one:
            same = one[key] == other[key]
            assert same if isinstance(same, bool) else same.all(), (name, key)
    one, other = ((folder / STATE).resolve().parent / MASKS for folder in (a, b))
    assert one.read_bytes() == other.read_bytes() if one.exists() else not other.exists()
    timed = ("seconds", "images_per_sec")
    assert [{k: v for k, v in r.items() if k not in timed} for r in metrics(a)] == [
        {k: v for k, v in r.items() if k not in timed} for r in metrics(b)
    ]


@pytest.mark.parametrize("name", list(RUNS))
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(name, small, tmp_path):
    common = [*small, *RUNS[name], "--model_period", "1", "--test_period", "1", "--num_epochs", "3"]
    whole, epochs, inside = (tmp_path / folder for folder in ("whole", "epochs", "inside"))
    train.main([*common, "--model_path", str(whole)])
    # Three epochs of two steps, with a stop after the first epoch ...
    train.main([*common, "--model_path", str(epochs), "--max_steps", "2"])
    train.main([*common, "--model_path", str(epochs),
                "--pretrained_model", str(epochs), "--resume_epoch", "0"])  # fmt: skip
    assert_same_end(whole, epochs)
    # ... and with one inside an epoch, at its first and at its last step.
    for steps in ("1", "3", "4"):
        train.main([*common, "--model_path", str(inside), "--save_steps", "1", "--max_steps", steps,
                    "--resume_epoch", "latest"])  # fmt: skip
    train.main([*common, "--model_path", str(inside), "--resume_epoch", "latest"])
    assert_same_end(whole, inside)


@pytest.fixture(scope="module")
def pruned(cifar_dir, tmp_path_factory) -> Path:
    """A folder with weights that are pruned by half."""
    folder = tmp_path_factory.mktemp("pruned")
    train.main(["--data_dir", str(cifar_dir), "--scale", "0.25", "--batch_size", "16",
                "--num_workers", "0", "--use_gpu", "false", "--ratio", "0.5", "--num_epochs", "1",
                "--model_path", str(folder)])  # fmt: skip
    return folder


FROM_SPARSE = ["--pruning_strategy", "gmp", "--ratio", "0.75",
               "--pruning_epochs", "2", "--pruning_steps", "4", "--num_epochs", "4",
               "--model_period", "1", "--test_period", "1"]  # fmt: skip


def test_gmp_starts_from_the_sparsity_that_is_there(small, pruned, tmp_path, capsys):
    common = [*small, *FROM_SPARSE, "--pretrained_model", str(pruned)]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*common, "--model_path", str(whole)])
    line = "the weights are 50.00% sparse: gmp starts at 50.00%"
    assert line in capsys.readouterr().out.splitlines()
    sparsities = [record["prunable_sparsity"] for record in metrics(whole)]
    # Four rises in the four steps of two epochs: 0.5 + 0.25 * (1 - (3/4, 1/2, 1/4, 0 ...)^3)
    wanted = [0.5 + 0.25 * 37 / 64, 0.5 + 0.25 * 63 / 64, 0.75, 0.75]
    assert sparsities == pytest.approx(wanted, abs=1e-5)
    for steps in ("1", "2", "3", "8"):  # the same command again and again
        train.main([*common, "--model_path", str(parts), "--save_steps", "1", "--max_steps", steps,
                    "--resume_epoch", "latest"])  # fmt: skip
    assert_same_end(whole, parts)


def test_an_initial_ratio_that_is_given_stays(small, pruned, tmp_path, capfd):
    common = [*small, *FROM_SPARSE, "--model_path", str(tmp_path), "--resume_epoch", "latest"]
    common += ["--stable_epochs", "1"]
    first = ["--pretrained_model", str(pruned), "--initial_ratio", "0.15"]
    train.main([*common, *first, "--max_steps", "3"])
    assert "sparse: gmp starts" not in capfd.readouterr().out
    sparsities = [record["prunable_sparsity"] for record in metrics(tmp_path)]
    # A stable epoch, in which weights come back but for those that get no gradient; then 0.15.
    assert max(sparsities) < 0.2
    assert checkpoint.read_state(tmp_path)["masks_ratio"] == 0.15
    message = error_line(capfd, train.main, *common, "--initial_ratio", "0.25")
    assert "was trained with --initial_ratio 0.15;" in message
    train.main(common)  # without it: what was saved


def test_weights_that_are_sparser_than_the_target(small, pruned, tmp_path, capsys):
    train.main([*small, "--pruning_strategy", "gmp", "--ratio", "0.25", "--pruning_epochs", "1",
                "--pruning_steps", "2", "--num_epochs", "2", "--pretrained_model", str(pruned),
                "--model_path", str(tmp_path)])  # fmt: skip
    assert "are 50.00% sparse: gmp starts at 25.00%" in capsys.readouterr().out
    assert metrics(tmp_path)[0]["prunable_sparsity"] == pytest.approx(0.25, abs=1e-5)


def test_gmp_from_dense_weights(small, tmp_path, capsys):
    common = [*small, *FROM_SPARSE, "--stable_epochs", "1", "--model_path", str(tmp_path)]
    train.main([*common, "--max_steps", "2"])
    assert "sparse: gmp starts" not in capsys.readouterr().out
    assert metrics(tmp_path)[0]["prunable_sparsity"] == 0  # the stable epoch
    assert checkpoint.read_state(tmp_path)["options"]["initial_ratio"] == 0.15
    train.main([*common, "--resume_epoch", "latest", "--max_steps", "3"])
    assert metrics(tmp_path)[1]["prunable_sparsity"] == pytest.approx(0.15, abs=1e-5)


def test_stable_epochs_that_would_let_weights_come_back_are_refused(small, pruned, tmp_path, capfd):
    common = [*small, *FROM_SPARSE, "--model_path", str(tmp_path / "a"), "--stable_epochs", "1"]
    message = error_line(capfd, train.main, *common, "--pretrained_model", pruned)
    assert "the weights are 50.00% sparse, and --stable_epochs 1 would let them come" in message
    # Of the weights that are to be pruned, not of all:
    few = weights(pruned / WEIGHTS)
    few = {k: np.where(v == 0, 1e-3, v) if v.shape[2:] == (1, 1) else v for k, v in few.items()}
    paddle.save({k: v.astype("float32") for k, v in few.items()}, str(tmp_path / "few.pdparams"))
    start = ["--pretrained_model", str(tmp_path / "few.pdparams"), "--max_steps", "1"]
    train.main([*common, *start, "--prune_params_type", "conv1x1_only"])
    assert "sparse: gmp" not in capfd.readouterr().out
    error_line(capfd, train.main, *common, *start)


def test_gmp_that_goes_on_from_another_strategy_starts_at_its_sparsity(small, tmp_path, capfd):
    common = [*small, "--model_path", str(tmp_path), "--num_epochs", "4", "--ratio", "0.6"]
    train.main([*common, "--max_steps", "2"])
    gmp = ["--pruning_strategy", "gmp", "--pruning_epochs", "2", "--pruning_steps", "4",
           "--ratio", "0.8", "--resume_epoch", "latest", "--force", "--max_steps", "3"]  # fmt: skip
    train.main([*common, *gmp])
    assert "the weights are 60.00% sparse: gmp starts at 60.00%" in capfd.readouterr().out
    assert metrics(tmp_path)[1]["prunable_sparsity"] >= 0.6


def test_gmp_that_goes_on_from_dense_training_counts_all_steps(small, tmp_path):
    common = [*small, "--model_path", str(tmp_path), "--num_epochs", "4", "--max_steps"]
    train.main([*common, "2", "--pruning_mode", "none"])
    gmp = ["--pruning_strategy", "gmp", "--pruning_epochs", "2", "--pruning_steps", "4",
           "--ratio", "0.6", "--resume_epoch", "latest", "--force"]  # fmt: skip
    train.main([*common, "3", *gmp])
    # The third of four rises: 1 - (1/2)^3 of the way from 0.15 to 0.6
    assert checkpoint.read_state(tmp_path)["masks_ratio"] == pytest.approx(0.15 + 0.45 * 7 / 8)
    gmp[gmp.index("0.6")] = "0.1"
    train.main([*common, "4", *gmp])  # below the first ratio, which was not given


def test_zeros_in_other_layers_than_a_distribution_would_have_are_told(
    small, pruned, tmp_path, capfd
):
    common = [*small, *FROM_SPARSE, "--pretrained_model", str(pruned), "--max_steps", "1"]
    told = "warning: if other layers or blocks of them are zero than are to be pruned, some come"
    for more, said in (([], 0), (["--local_sparsity"], 1), (["--sparse_block", "2", "1"], 1)):
        train.main([*common, *more, "--model_path", str(tmp_path)])
        assert capfd.readouterr().err.count(told) == said


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
                "--model_period", "1", "--model_path", str(folder)])  # fmt: skip
    return folder


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, MASKS, STATE])
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
                checkpoint.verify(saved / "epoch-1")
        path.unlink()
        with pytest.raises(FileNotFoundError, match=f"epoch-1/{name} is missing"):
            checkpoint.verify(saved / "epoch-1")
        assert checkpoint.find_latest(saved) == saved / "epoch-0"
    finally:
        path.write_bytes(data)
    assert checkpoint.find_latest(saved) == saved / "epoch-1"


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
    checkpoint.verify(tmp_path / "epoch-0")
    assert os.readlink(tmp_path / WEIGHTS) == f"epoch-0/{WEIGHTS}"


def test_keep_removes_the_oldest(small, tmp_path):
    train.main([*small, "--model_path", str(tmp_path), "--num_epochs", "3", "--model_period", "1",
                "--save_steps", "1", "--keep", "2"])  # fmt: skip
    kept = {path.name for path in tmp_path.glob("*epoch-*")}
    assert kept == {"epoch-2", "epoch-2-step-5", "epoch-2-step-6"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("testing", [False, True])
def test_a_signal_saves_the_step_and_the_run_goes_on(
    number, testing, small, tmp_path, capfd, monkeypatch, terminal
):  # fmt: skip
    common = [*small, "--num_epochs", "3", "--model_period", "1", "--test_period", "1"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main([*common, "--model_path", str(whole)])
    where, calls = ("counts", []), []
    original = getattr(classification, where[0])

    def counting(*args):
        calls.append(args)
        if paddle.is_grad_enabled() != testing and len(calls) > 2:
            signal.raise_signal(number)
        return original(*args)

    monkeypatch.setattr(classification, where[0], counting)
    with pytest.raises(SystemExit) as ended:
        train.main([*common, "--model_path", str(stopped)])
    monkeypatch.undo()
    assert ended.value.code == 128 + number
    message = capfd.readouterr().err.splitlines()[-1]
    assert message.startswith(f"train.py: stopped by {signal.Signals(number).name} after")
    assert signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL)
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
    assert checkpoint.find_latest(tmp_path) is None


def test_a_signal_to_the_whole_group_is_one_to_the_readers_too(tmp_path):
    run = started(tmp_path, "--batch_size", "64", "--num_workers", "2")
    os.killpg(run.pid, signal.SIGTERM)
    status, line = ended(run)
    assert status == 143
    assert line.startswith("train.py: stopped by SIGTERM after step ")
    assert checkpoint.find_latest(tmp_path) is not None


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
    assert checkpoint.find_latest(tmp_path).name == "epoch-1-step-3"
    assert [record["epoch"] for record in metrics(tmp_path)] == [0]


def test_options_that_have_to_stay(small, tmp_path, capfd):
    common = [*small, "--model_path", tmp_path, "--resume_epoch", "latest"]
    cosine = [*common, "--lr_strategy", "cosine_decay"]
    train.main([str(word) for word in (*cosine, "--num_epochs", 2, "--max_steps", 3)])
    for options in (["--num_epochs", 3], ["--ratio", 0.4, "--num_epochs", 2]):
        message = error_line(capfd, train.main, *cosine, *options)
        assert f"{options[0]} " in message
        assert "or --force" in message
    message = error_line(capfd, train.main, *cosine, "--num_epochs", 2, "--force",
                         "--batch_size", 2)  # fmt: skip
    assert "inside an epoch the data set and the global batch size cannot change" in message


def test_one_unfinished_save_of_a_killed_run_is_no_checkpoint(small, tmp_path):
    left = tmp_path / ".epoch-0.part"
    left.mkdir()
    (left / WEIGHTS).write_bytes(b"half")
    assert checkpoint.find_latest(tmp_path) is None
    train.main([*small, "--num_epochs", "1", "--model_path", str(tmp_path)])
    assert not left.exists()
    json.loads((tmp_path / STATE).read_text())


class Killed(BaseException):
    """In place of a kill -9: nothing of the program runs after it."""


def killed(*args):
    raise Killed


@pytest.mark.parametrize("moment", ["evaluate", "link_all", "report"])
@pytest.mark.parametrize("cut", [[], ["--max_steps", "3"]])
def test_a_kill_at_the_very_end(moment, cut, small, tmp_path, monkeypatch):
    common = [*small, "--num_epochs", "2", "--model_period", "1", "--save_steps", "3", *cut]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*common, "--model_path", str(whole)])
    module, calls = (
        {"evaluate": train, "link_all": checkpoint, "report": train}[moment],
        [],
    )
    original = getattr(module, moment)
    last = {"evaluate": 1, "link_all": 2 if cut else 3, "report": 2}[moment]

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


def test_a_line_of_metrics_that_was_cut_short_is_taken_out(small, tmp_path):
    common = [*small, "--num_epochs", "2", "--model_period", "1", "--save_steps", "3"]
    folder = ["--model_path", str(tmp_path)]
    train.main([*common, *folder, "--max_steps", "3"])
    lines = (tmp_path / "metrics.jsonl").read_text()
    (tmp_path / "metrics.jsonl").write_text(lines[: len(lines) - 40])
    train.main([*common, *folder, "--pretrained_model", str(tmp_path), "--resume_epoch", "0"])
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1]


def test_the_best_weights_are_of_a_whole_epoch(small, tmp_path):
    train.main([*small, "--num_epochs", "2", "--max_steps", "1", "--model_path", str(tmp_path)])
    assert not (tmp_path / checkpoint.BEST).exists()


def test_more_steps_than_max_steps_are_the_end(small, tmp_path, capsys):
    common = [*small, "--num_epochs", "3", "--model_path", str(tmp_path)]
    train.main([*common, "--max_steps", "3"])
    capsys.readouterr()
    train.main([*common, "--max_steps", "2", "--resume_epoch", "latest"])
    assert "nothing is left to do" in capsys.readouterr().out


def test_the_order_of_patterns_has_to_stay(small, tmp_path, capfd):
    common = [*small, "--num_epochs", "2", "--model_path", str(tmp_path), "--max_steps", "1"]
    train.main([*common, "--distribution", "fc.weight=0.9,*weight=0.3"])
    message = error_line(capfd, train.main, *common[:-1], 2, "--resume_epoch", "latest",
                         "--distribution", "*weight=0.3,fc.weight=0.9")  # fmt: skip
    assert "--distribution" in message


def test_the_best_weights_in_the_other_format_go(small, tmp_path):
    train.main([*small, "--num_epochs", "1", "--model_path", str(tmp_path)])
    run = SimpleNamespace(
        args=SimpleNamespace(model_path=tmp_path, format="safetensors"),
        model=paddle.nn.Linear(2, 2),
    )
    checkpoint.save_best(run)
    assert [path.name for path in tmp_path.glob("model-best*")] == ["model-best.safetensors"]
    assert checkpoint.find_weights(tmp_path / "model-best").suffix == ".safetensors"


def test_files_of_another_program_are_set_aside(small, tmp_path, capfd):
    for name in (WEIGHTS, checkpoint.BEST):
        (tmp_path / name).write_text("mine")
    common = [*small, "--num_epochs", "1", "--resume_epoch", "latest"]
    train.main([*common, "--model_path", str(tmp_path)])
    (aside,) = tmp_path.glob("earlier-*")
    assert [(aside / name).read_text() for name in (WEIGHTS, checkpoint.BEST)] == ["mine", "mine"]
    message = error_line(capfd, train.main, *common, "--model_path", tmp_path / "epoch-0")
    assert "is the name of a checkpoint" in message


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
