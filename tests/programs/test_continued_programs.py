"""train.py with gmp, and trainings that are taken up again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import error_line, metrics, weights

import train
from training import checkpoint, folders, train_state
from training.folders import WEIGHTS

GMP = ["--pruning_strategy", "gmp", "--stable_epochs", "1", "--pruning_epochs", "2",
       "--tunning_epochs", "1", "--pruning_steps", "4", "--ratio", "0.75"]  # fmt: skip


def test_gmp_reaches_its_ratio_of_the_1x1_weights(small, tmp_path):
    train.main([*small, *GMP, "--prune_params_type", "conv1x1_only", "--num_epochs", "4",
                "--test_period", "1", "--model_path", str(tmp_path)])  # fmt: skip
    model = paddle.vision.models.mobilenet_v1(scale=0.25, num_classes=10)
    checkpoint.load_weights(model, tmp_path / WEIGHTS)
    ones = [w for w in weights(tmp_path / WEIGHTS).values() if w.shape[2:] == (1, 1)]
    total = sum(w.size for w in ones)
    assert sum(np.count_nonzero(w == 0) for w in ones) == round(0.75 * total)
    assert train.UnstructuredPruner.total_sparse_conv1x1(model) == round(0.75 * total) / total
    records = metrics(tmp_path)
    # After its last step an epoch is at: stable 0; pieces 0, 1 | 2, 3 of 4; the target.
    share = total / sum(w.size for w in weights(tmp_path / WEIGHTS).values() if w.ndim > 1)
    for record, ratio in zip(records, (0, 0.496875, 0.740625, 0.75)):
        assert record["prunable_sparsity"] == pytest.approx(ratio * share, abs=1e-4)
    assert [record["best"] for record in records] == [False, False, False, True]


@pytest.mark.parametrize(
    "options",
    [
        [*GMP, "--lr_strategy", "cosine_decay"],
        ["--ratio", "0.7", "--prune_period", "3", "--distribution", "erk"],
        ["--ratio", "0.7", "--sparse_block", "4", "1", "--local_sparsity", "true"],
    ],
    ids=["gmp", "period", "block"],
)
def test_every_kind_of_pruning_resumes_exactly(options, small, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = [*small, *options, "--num_epochs", "4", "--model_period", "1"]
    train.main([*common, "--model_path", str(whole)])
    train.main([*common, "--model_path", str(parts), "--pretrained_model", str(whole),
                "--resume_epoch", "1"])  # fmt: skip
    for name in (WEIGHTS, "opt-pruned.pdopt"):
        a, b = weights(whole / name), weights(parts / name)
        assert all(np.array_equal(a[key], b[key]) for key in a)
    a, b = (np.load(folder / "epoch-3" / "masks-pruned.npz") for folder in (whole, parts))
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert [record["lr"] for record in metrics(whole)[2:]] == [r["lr"] for r in metrics(parts)]


def test_options_that_differ_from_the_checkpoints_are_refused(small, tmp_path, capfd):
    first = [*small, "--model_path", tmp_path / "a"]
    train.main([*map(str, first), "--num_epochs", "1", "--threshold", "0.05", "--seed", "5",
                "--pruning_mode", "threshold"])  # fmt: skip
    resume = [*small, "--model_path", tmp_path / "b", "--pretrained_model", tmp_path / "a",
              "--resume_epoch", 0, "--num_epochs", 2, "--pruning_mode", "threshold"]  # fmt: skip
    message = error_line(capfd, train.main, *resume, "--batch_size", 8)
    assert message.endswith(
        "was trained with --seed 5, --threshold 0.05, a global batch of 16; give the same, or --force"  # noqa: E501
    )
    train.main([*map(str, resume), "--threshold", "0.2", "--force"])
    kept = [w[w != 0] for w in weights(tmp_path / "b" / WEIGHTS).values() if w.ndim > 1]
    assert min(np.abs(w).min() for w in kept if w.size) >= np.float32(0.2)


def test_a_resumed_static_run_stays_static(small, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    train.main([*small, "--num_epochs", "1", "--ratio", "0.6", "--model_path", str(folders[0])])
    common = [*small, "--static_masks", "--model_period", "1"]
    train.main([*common, "--num_epochs", "1", "--model_path", str(folders[1]),
                "--pretrained_model", str(folders[0])])  # fmt: skip
    train.main([*common, "--num_epochs", "2", "--model_path", str(folders[2]),
                "--pretrained_model", str(folders[1]), "--resume_epoch", "0"])  # fmt: skip
    before, after = weights(folders[0] / WEIGHTS), weights(folders[2] / WEIGHTS)
    for name in before:
        if before[name].ndim > 1:
            assert np.array_equal(before[name] == 0, after[name] == 0)


def test_the_best_weights_survive_a_resume_from_after_them(small, tmp_path):
    common = [*small, "--model_period", "1", "--test_period", "1", "--model_path", str(tmp_path)]
    train.main([*common, "--num_epochs", "2"])
    records = metrics(tmp_path)
    records[1]["best"], records[0]["best"] = False, True  # as if the first had been better
    records[0]["top1"] = 1.0
    lines = "".join(f"{json.dumps(record)}\n" for record in records)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"epoch": 2, "to')  # the next was cut short
    best = (tmp_path / "model-best.pdparams").read_bytes()
    train.main([*common, "--num_epochs", "2", "--pretrained_model", str(tmp_path),
                "--resume_epoch", "0"])  # fmt: skip
    assert (tmp_path / "model-best.pdparams").read_bytes() == best
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pruning_mode", "threshold", "--ratio", "0.55"], "--pruning_strategy gmp needs"),
        (["--num_epochs", "3"], "--stable_epochs 1 and --pruning_epochs 2 leave none of"),
        (["--initial_ratio", "0.9"], "initial_ratio must be in [0, ratio=0.75], got 0.9"),
        (["--pruning_steps", "5"], "pruning_steps must be at most pruning_iterations=4"),
        (["--distribution", "poly"], "must be global, uniform, erk or like"),
        (["--distribution", "conv=1=2"], "or like 'conv*=0.6,fc=0.9', got 'conv=1=2'"),
        (
            ["--distribution", "nothing=0.5", "--ratio", "0.55"],
            "no prunable parameter matches 'nothing'",
        ),
        (["--distribution", "erk", "--local_sparsity", "1"], "give one of the two"),
        (["--sparse_block", "0", "1"], "argument --sparse_block: must be a whole number >= 1"),
    ],
)
def test_gmp_refusals(options, words, small, tmp_path, capfd):
    path = ["--model_path", tmp_path, "--num_epochs", "4"]
    assert words in error_line(capfd, train.main, *small, *GMP, *path, *options)


def test_a_resume_that_is_forced_takes_the_new_options(small, tmp_path):
    a, b, c = (str(tmp_path / name) for name in "abc")
    common = [*small, "--model_period", "1"]
    train.main([*common, *GMP[:8], "--pruning_steps", "4", "--ratio", "0.5", "--num_epochs", "4",
                "--model_path", a])  # fmt: skip
    resume = ["--pretrained_model", a, "--resume_epoch", "3", "--force", "--num_epochs", "5"]
    train.main([*common, *GMP, *resume, "--model_path", b])  # to 0.75
    assert metrics(tmp_path / "b")[-1]["prunable_sparsity"] == pytest.approx(0.75, abs=1e-5)
    train.main([*common, *resume, "--static_masks", "--model_path", c])
    assert metrics(tmp_path / "c")[-1]["prunable_sparsity"] == pytest.approx(0.5, abs=1e-5)
    assert metrics(tmp_path / "c")[-1]["threshold"] is None


def test_a_dense_run_can_be_resumed_with_pruning(small, tmp_path):
    path = ["--model_path", str(tmp_path)]
    train.main([*small, *path, "--pruning_mode", "none", "--num_epochs", "1"])
    train.main([*small, *path, "--pretrained_model", str(tmp_path), "--resume_epoch", "0",
                "--num_epochs", "2", "--force", "--distribution", "erk"])  # fmt: skip
    assert metrics(tmp_path)[1]["prunable_sparsity"] == pytest.approx(0.55, abs=1e-3)
    assert metrics(tmp_path)[1]["threshold"] is None


def test_going_back_without_symbolic_links(small, tmp_path, monkeypatch):
    def no_links(self, target):
        raise OSError("no symbolic links here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    path = [*small, "--model_period", "1", "--model_path", str(tmp_path)]
    train.main([*path, "--num_epochs", "3"])
    folders.set_aside(tmp_path, train_state.read(tmp_path / "epoch-0"))
    first = (tmp_path / "epoch-0" / WEIGHTS).read_bytes()
    assert (tmp_path / WEIGHTS).read_bytes() == first
    folders.set_aside(tmp_path, None)
    assert not (tmp_path / WEIGHTS).exists()
