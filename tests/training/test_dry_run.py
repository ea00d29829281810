"""--dry_run: what it says, against numbers found by hand, and that nothing is written."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import assert_same_end, error_line
from launcher import tiny
from paddle import nn

import train
from readers import loader
from tasks import classification
from training import checkpoint, dry_run
from training.run import Run
from unstructured_pruner import UnstructuredPruner

WEIGHTS = {"0.weight": 216, "2.weight": 1152, "5.weight": 1440}  # of tiny()
PLACES = {"0.weight": 64, "2.weight": 9, "5.weight": 1}  # pixels of the results: 8x8, 3x3, 1


@pytest.fixture
def options(small, monkeypatch) -> list[str]:
    """Of three epochs of two steps."""
    monkeypatch.setattr(classification, "make_model", tiny)
    return [*small, "--num_epochs", "3", "--model_period", "1", "--lr", "0.01"]


def files(folder: Path) -> dict:
    found = {path: path.lstat() for path in [folder, *folder.rglob("*")]}
    return {path: (stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in found.items()}


@pytest.fixture
def told(tmp_path, capsys, monkeypatch):
    """What a dry run says by the first word of its lines; it must write nothing."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def tell(*words, **more) -> dict[str, str]:
        capsys.readouterr()
        before = files(tmp_path)
        train.main([*map(str, words), "--dry_run"], **more)
        assert files(tmp_path) == before
        lines = capsys.readouterr().out.splitlines()
        return {line[:9].rstrip() if line[9:10] == " " else line.split()[0]: line
                for line in lines if line}  # fmt: skip

    return tell


def zeros(lines: dict[str, str]) -> dict[str, int]:
    """By layer, from the table."""
    rows = {name: re.findall(r"[\d,]+(?=\s+\d+\.\d\d%)", lines[name]) for name in WEIGHTS}
    return {name: int(found[0].replace(",", "")) for name, found in rows.items()}


def pruned(mode="ratio", **more) -> dict[str, int]:
    """The same of the pruner alone, on the weights of seed 0."""
    paddle.seed(0)
    model = tiny(SimpleNamespace(num_classes=10))
    UnstructuredPruner(model, mode, **more).step()
    return {n: int((p.numpy() == 0).sum()) for n, p in model.named_parameters() if n in WEIGHTS}


def test_a_training_from_the_start(options, told):
    lines = told(*options, "--ratio", 0.75, "--save_steps", 1, "--log_period", 1)
    assert lines["model"].endswith(" 2,842 parameters")
    assert lines["saved in"] == "saved in  no file, as this is a dry run"
    found = zeros(lines)
    assert found == pruned(ratio=0.75)
    assert sum(found.values()) == 2106  # 75% of 2808
    kept = sum((WEIGHTS[name] - found[name]) * PLACES[name] for name in WEIGHTS)
    assert lines["a picture"] == (
        f"a picture 25,632 multiply-adds, {kept:,} ({kept / 25632:.1%}) with weights that stay"
    )
    assert 100 < int(re.search(r"([\d,]+) MB", lines["memory"])[1].replace(",", "")) < 100_000
    number = r"\d+(\.\d+)?(e-\d+)?"
    assert re.fullmatch(rf"time      {number} s a step, {number} s an epoch, {number} s a test",
                        lines["time"])  # fmt: skip
    assert re.fullmatch(rf"in all    {number} s: 6 steps in 3 epochs, and 1 tests", lines["in all"])
    assert not any(line.startswith("epoch ") for line in lines.values())


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--pruning_mode", "threshold", "--threshold", "0.05"],
         {"mode": "threshold", "threshold": 0.05}),
        (["--pruning_strategy", "gmp", "--ratio", "0.6", "--pruning_epochs", "2",
          "--pruning_steps", "2"],
         {"ratio": 0.6, "min_layer_density": 0.01, "min_channel_density": 0.001}),
        (["--distribution", "erk", "--ratio", "0.6"], {"ratio": 0.6, "distribution": "erk"}),
        (["--freeze_masks_epoch", "1"], {"ratio": 0.55}),
        (["--ema", "0.9", "--recalibrate_bn", "1", "--max_steps", "1"], {"ratio": 0.55}),
    ],
)  # fmt: skip
def test_what_would_be_pruned(words, wanted, options, told):
    assert zeros(told(*options, *words)) == pruned(**wanted)


def test_gmp_that_is_ended_early(options, told):
    words = ["--pruning_strategy", "gmp", "--pruning_epochs", 2, "--pruning_steps", 2]
    whole, half = (sum(zeros(told(*options, *words, *more)).values())
                   for more in ([], ["--max_steps", 3]))  # fmt: skip
    assert 0.15 * 2808 < half < whole == round(0.55 * 2808)


def test_masks_that_are_not_due_at_the_step_that_is_reached(options, told, tmp_path):
    saved = ["--model_path", tmp_path / "models"]
    train.main([*map(str, [*options, *saved]), "--max_steps", "3", "--pruning_mode", "none"])
    again = ["--resume_epoch", "latest", "--force", "--ratio", 0.75, "--prune_period", 4]
    assert sum(zeros(told(*options, *saved, *again)).values()) == 2106


def test_a_rank_may_have_no_batch_to_measure():
    watch = dry_run.Stopwatch(SimpleNamespace(workers=0))
    assert watch.seconds == 0
    watch.times = [0.0, 8.0, 9.0, 11.0]
    assert watch.seconds == 1.5  # without the first


def test_without_pruning_there_is_no_table(options, told):
    lines = told(*options, "--pruning_mode", "none")
    assert lines["a picture"] == "a picture 25,632 multiply-adds"
    assert "layer" not in lines


def test_a_pruner_that_ranks_by_gradients(options, told):
    class Saliency(UnstructuredPruner):
        def scores(self, name, param):
            return (param * param.grad).abs()

    found = zeros(told(*options, pruner_class=Saliency))
    assert sum(found.values()) == round(0.55 * 2808)
    assert found != pruned(ratio=0.55)


def test_a_resumed_training(options, told, tmp_path):
    """Also where nothing is left of the epoch; a new one would move what is there."""
    folder = tmp_path / "models"
    options += ["--model_path", folder, "--log_to", "visualdl", "--test_period", "2"]
    train.main([*map(str, options), "--save_steps", "1", "--max_steps", "4"])
    arrays = checkpoint.read_arrays(folder / "epoch-1" / "model-pruned.pdparams")
    saved = {name: int((arrays[name] == 0).sum()) for name in WEIGHTS}
    lines = told(*options, "--resume_epoch", "latest")
    assert lines["weights"].endswith("models/epoch-1")
    assert zeros(lines) == saved
    assert lines["in all"].endswith(": 2 steps in 1 epochs, and 1 tests")
    lines = told(*options, "--pretrained_model", folder, "--resume_epoch", 0)
    assert lines["in all"].endswith(": 4 steps in 2 epochs, and 2 tests")
    assert told(*options)["in all"].endswith(": 6 steps in 3 epochs, and 2 tests")
    for name in ("epoch-1", "epoch-1-step-4"):
        (folder / name).rename(tmp_path / name)
        lines = told(*options, "--resume_epoch", "latest")
    assert lines["weights"].endswith("models/epoch-1-step-3")
    (tmp_path / "epoch-1-step-4").rename(folder / "epoch-1-step-4")
    lines = told(*options, "--resume_epoch", "latest")
    assert lines["in all"].endswith(": 2 steps in 2 epochs, and 2 tests")


def test_masks_that_are_frozen_by_now(options, told, tmp_path):
    """(Weights below the threshold that are kept: decay has made them smaller since.)"""
    folder = tmp_path / "models"
    options += ["--pruning_mode", "threshold", "--threshold", "0.05", "--l2_decay", "5",
                "--freeze_masks_epoch", "1", "--model_path", folder]  # fmt: skip
    train.main([*map(str, options), "--max_steps", "4"])
    arrays = checkpoint.read_arrays(folder / "epoch-1" / "model-pruned.pdparams")
    kept = {name: int((arrays[name] == 0).sum()) for name in WEIGHTS}
    assert any(0 < abs(value) < 0.05 for name in WEIGHTS for value in arrays[name].flat)
    assert zeros(told(*options, "--resume_epoch", "latest")) == kept


def test_processes_read_for_the_measurements_alone(options, told, monkeypatch):
    made, start = [], loader.DataLoader
    monkeypatch.setattr(loader, "DataLoader", lambda *a, **k: made.append(k) or start(*a, **k))
    assert zeros(told(*options, "--num_workers", 1)) == pruned(ratio=0.55)
    assert [more["num_workers"] for more in made] == [1, 1]  # steps, test


def test_a_training_that_is_complete(options, told, tmp_path):
    options += ["--model_path", tmp_path / "models"]
    train.main([*map(str, options)])
    (tmp_path / "models" / "train-state.json").unlink()  # a link that would be made again
    lines = told(*options, "--resume_epoch", "latest")
    assert " ".join(lines.values()).endswith("nothing is left to do")


def test_a_detector(voc_dir, told):
    lines = told("--data", "voc", "--data_dir", voc_dir, "--scale", 0.05, "--batch_size", 3,
                 "--use_pretrained", "false", "--num_workers", 0, "--use_gpu", "false",
                 "--train_sizes", 32, 64, "--image_size", 64, "--num_epochs", 2)  # fmt: skip
    found = re.search(r"([\d,]+) multiply-adds, ([\d,]+) \(", lines["a picture"])
    dense, kept = (int(number.replace(",", "")) for number in found.groups())
    assert 0 < kept < dense
    assert lines["in all"].endswith(": 6 steps in 2 epochs, and 1 tests")


def test_a_later_training_is_the_same(options, told, tmp_path):
    train.main([*options, "--model_path", str(tmp_path / "a")])
    told(*options)
    train.main([*options, "--model_path", str(tmp_path / "b")])
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "words",
    [
        ["--ratio", "2"],
        ["--data_dir", "nowhere/cifar-10-batches-py"],
        ["--model", "resnet"],
        ["--batch_size", "64"],
        ["--pretrained_model", "nowhere"],
        ["--pretrained_model", "nowhere", "--resume_epoch", "3"],
        ["--model_path", "file"],
        ["--model_path", "models/epoch-3"],
        ["--log_to", "paper"],
        ["--static_masks"],
    ],
)
def test_what_a_training_refuses(words, small, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "cifar-10-batches-py").mkdir()
    (tmp_path / "nowhere" / "cifar-10-batches-py" / "test_batch").touch()
    before = files(tmp_path)
    refused = error_line(capfd, train.main, *small, *words, "--dry_run")
    assert files(tmp_path) == before
    assert "error: " in refused
    assert error_line(capfd, train.main, *small, *words) == refused


@pytest.mark.parametrize(
    ("make", "shape", "wanted"),
    [
        (lambda: nn.Conv2D(4, 6, 3, padding=1, groups=2), (4, 5, 7), 6 * 2 * 9 * 35),
        (lambda: nn.Conv2D(4, 6, (3, 1), stride=2), (4, 5, 7), 6 * 4 * 3 * 2 * 4),
        (lambda: nn.Conv2DTranspose(4, 6, 3, stride=2), (4, 5, 7), 4 * 6 * 9 * 35),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), 60),
        (lambda: nn.Linear(2, 5), (3, 4, 2), 2 * 5 * 12),
        (lambda: nn.Sequential(*[nn.Linear(3, 3)] * 2), (1, 2, 3), 9 * 2 * 2),
        (nn.ReLU, (1, 2, 3), 0),
    ],
)
def test_multiply_adds(make, shape, wanted):
    model = make()
    assert dry_run.multiply_adds(model, shape) == (wanted, wanted)
    for weight in {id(w): w for n, w in model.named_parameters() if "weight" in n}.values():
        half = np.arange(weight.numpy().size).reshape(weight.shape) % 2
        weight.set_value(half.astype("float32"))
    total, kept = dry_run.multiply_adds(model, shape)
    assert total == wanted
    assert kept == pytest.approx(wanted / 2, rel=0.2)


@pytest.mark.parametrize(
    ("epoch", "epochs", "most", "period", "wanted"),
    [
        (0, 10, None, 5, (10, 2)),
        (0, 10, None, 3, (10, 4)),
        (4, 10, None, 5, (6, 2)),
        (0, 10, 41, 2, (5, 3)),
        (0, 10, 40, 3, (4, 2)),
        (9, 10, None, 100, (1, 1)),
    ],
)
def test_epochs_and_tests_that_are_left(epoch, epochs, most, period, wanted):
    args = SimpleNamespace(num_epochs=epochs, max_steps=most, test_period=period)
    run = SimpleNamespace(args=args, epoch=epoch, train_loader=range(10))
    run.last_step = Run.last_step.fget(run)
    assert dry_run.epochs_left(run) == wanted


def test_only_the_later_half_of_the_batches_counts(monkeypatch):
    times = iter([0.0, 9.0, 9.5, 11.5, 13.5])
    monkeypatch.setattr(dry_run.time, "perf_counter", lambda: next(times))
    watch = dry_run.Stopwatch(SimpleNamespace(workers=0))
    watch.lap()
    assert watch.seconds == 9
    for _ in range(3):
        watch.lap()
    assert watch.seconds == 2


def test_durations():
    assert [dry_run.duration(seconds) for seconds in (0.04, 59.94, 3661.4, 90061)] == [
        "0.0 s", "59.9 s", "1:01:01", "1 day, 1:01:01"]  # fmt: skip
