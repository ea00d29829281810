"""A teacher, smoothed labels, an average and batch norm measured anew, in two processes."""

from __future__ import annotations

import json
import sys
from itertools import product

import numpy as np
import paddle
import pytest
from conftest import metrics, weights
from launcher import ended, launched, log_of, normed, ranks

import evaluate
import train
from readers.small_images import Cifar10
from tasks import classification
from training import folders
from training.folders import AVERAGE, OPTIMIZER, WEIGHTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
FAULT = "batch norm"  # none: a network of one


@pytest.fixture(scope="module")
def common(cifar_dir, tmp_path_factory) -> list[str]:
    """Options of 5 steps an epoch, together with --batch_size 4 of two processes."""
    data = ["--data_dir", str(cifar_dir), "--use_pretrained", "false", "--num_workers", "0",
            "--use_gpu", "false", "--test_period", "1", "--model_period", "1",
            "--batch_size_for_validation", "3"]  # fmt: skip
    teacher = tmp_path_factory.mktemp("teacher")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "make_model", normed)
        train.main([*data, "--batch_size", "8", "--num_epochs", "1", "--pruning_mode", "none",
                    "--model_path", str(teacher)])  # fmt: skip
    return [*data, "--num_epochs", "2", "--batch_size", "4", "--teacher", str(teacher),
            "--label_smoothing", "0.1", "--ema", "0.5", "--recalibrate_bn", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def two(common, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with launched(folder, [*common, "--model_path", folder / "models"], FAULT) as launcher:
        assert ended(launcher) == 0, log_of(folder)
    return folder


def test_statistics_are_the_means_over_batches_and_ranks(two, cifar_dir):
    """Of the first two batches of 4 of each rank in the last epoch."""
    dataset = Cifar10(str(cifar_dir), "train", seed=0)
    dataset.epoch = 1
    of_ranks = [[s[2] for s in rank["seen"] if s[:2] == ["train", 1]] for rank in ranks(two)]
    for samples in of_ranks:  # 20 to train on, then 8 to measure
        assert samples[20:] == samples[:8]
    batches = [samples[start : start + 4] for samples in of_ranks for start in (0, 4)]
    assert len({sample for batch in batches for sample in batch}) == 16
    for name in (WEIGHTS, AVERAGE):
        saved = weights(two / "models" / name)
        kernel, bias = (paddle.to_tensor(saved[f"0.{kind}"]) for kind in ("weight", "bias"))
        means, variances = [], []
        for batch in batches:
            pictures = paddle.to_tensor(np.stack([dataset[i][0] for i in batch]))
            outputs = paddle.nn.functional.conv2d(pictures, kernel, bias, stride=4).numpy()
            means.append(outputs.mean((0, 2, 3)))
            variances.append(outputs.var((0, 2, 3)))
        assert saved["1._mean"] == pytest.approx(np.mean(means, 0), rel=1e-4, abs=1e-6)
        assert saved["1._variance"] == pytest.approx(np.mean(variances, 0), rel=1e-4)


def test_two_processes_measure_what_one_does(two, cifar_dir, capsys, monkeypatch):
    monkeypatch.setattr(classification, "make_model", normed)
    records = metrics(two / "models")
    for epoch, (name, of) in product((0, 1), ((WEIGHTS, ""), (AVERAGE, "average_"))):
        capsys.readouterr()
        path = two / "models" / f"epoch-{epoch}" / name
        evaluate.main(["--data_dir", str(cifar_dir), "--num_workers", "0", "--json",
                       "--pruned_model", str(path)])  # fmt: skip
        measured = json.loads(capsys.readouterr().out)
        assert measured["top1"] == records[epoch][f"{of}top1"]
        assert measured["loss"] == pytest.approx(records[epoch][f"{of}loss"], rel=1e-6)


def test_two_processes_go_on_inside_an_epoch(common, two, tmp_path):
    options = [*common, "--model_path", tmp_path / "models", "--resume_epoch", "latest"]
    for more in (["--max_steps", "3"], []):
        with launched(tmp_path, [*options, *more], FAULT) as launcher:
            assert ended(launcher) == 0, log_of(tmp_path)
    assert "epoch-0-step-3" in {path.name for path in (tmp_path / "models").iterdir()}
    for name in (WEIGHTS, AVERAGE, OPTIMIZER):
        whole, parts = (paddle.load(str(p / "models" / name), return_numpy=True)
                        for p in (two, tmp_path))  # fmt: skip
        np.testing.assert_equal(whole, parts, name)
    folders.verified(tmp_path / "models" / "epoch-1")
