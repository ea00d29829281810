"""--ema: an average of the weights, against numpy, and as a part of a training."""

from __future__ import annotations

import json
import os

import numpy as np
import paddle
import pytest
from conftest import error_line, metrics, weights

import evaluate
import export
import train
from training import checkpoint, folders, train_state
from training.averaging import Average
from training.folders import AVERAGE, MASKS, WEIGHTS
from unstructured_pruner import UnstructuredPruner


@pytest.mark.parametrize(
    ("decay", "kept"),
    [(0.999, [1 / 10, 2 / 11, 3 / 12]), (0.15, [1 / 10, 0.15, 0.15]), (0, [0, 0, 0])],
)
def test_three_steps(decay, kept):
    model = paddle.nn.Sequential(paddle.nn.Conv2D(2, 3, 2), paddle.nn.BatchNorm2D(3))
    opt = paddle.optimizer.SGD(0.5, parameters=model.parameters())
    pruner = UnstructuredPruner(model, "ratio", ratio=0.5)
    average, rng = Average(model, decay), np.random.default_rng(0)
    expected, revived = {n: p.numpy().copy() for n, p in model.state_dict().items()}, 0
    for step, part in enumerate(kept):
        pictures = rng.normal(step, size=(4, 2, 5, 5)).astype("float32")
        model(paddle.to_tensor(pictures)).square().sum().backward()
        opt.step()
        opt.clear_grad()
        before = pruner.masks["0.weight"].numpy().copy()
        pruner.step()
        average.update(step, pruner.masks)
        mask = pruner.masks["0.weight"].numpy()
        revived += step and (mask & ~before).sum()
        for name, value in model.state_dict().items():
            expected[name] = part * expected[name] + (1 - part) * value.numpy()
        expected["0.weight"] *= mask
        found = average.network.state_dict()
        assert sorted(found) == sorted(expected)
        for name, value in expected.items():
            assert found[name].numpy() == pytest.approx(value, rel=1e-5, abs=1e-6), (step, name)
        assert not found["0.weight"].numpy()[~mask].any()
        assert found["0.weight"].numpy()[mask].all()
    assert revived  # a weight that comes back starts from 0 in both


def test_an_average_of_two_byte_weights_has_four():
    model = paddle.nn.Linear(3, 2)
    model.to(dtype="bfloat16")
    average, start = Average(model, 0.9), model.weight.astype("float32").numpy()
    assert (model.weight.dtype, average.network.weight.dtype) == (paddle.bfloat16, paddle.float32)
    paddle.assign(model.weight + 1, output=model.weight)
    average.update(1000, {})
    end = model.weight.astype("float32").numpy()
    assert average.network.weight.dtype == paddle.float32
    assert average.network.weight.numpy() == pytest.approx(0.9 * start + 0.1 * end, rel=1e-6)


def test_weights_that_stay_are_their_own_average():
    model = paddle.nn.Linear(50, 50)
    average = Average(model, 0.9)
    for step in range(100):
        average.update(step, {})
    assert np.array_equal(average.network.weight.numpy(), model.weight.numpy())


AVERAGED = ["--ema", "0.9", "--lr", "0.01", "--num_epochs", "3", "--model_period", "1",
            "--test_period", "2"]  # fmt: skip


@pytest.fixture(scope="module", params=["pdparams", "safetensors"])
def averaged(request, cifar_dir, tmp_path_factory):
    """A folder of a training with an average, saved at each step, and its weights' file."""
    folder = tmp_path_factory.mktemp("averaged")
    train.main(["--data_dir", str(cifar_dir), "--scale", "0.25", "--batch_size", "16", *AVERAGED,
                "--num_workers", "0", "--use_gpu", "false", "--save_steps", "1",
                "--format", request.param, "--model_path", str(folder)])  # fmt: skip
    return folder, AVERAGE.replace("pdparams", request.param)


def test_an_average_is_0_where_a_weight_is_pruned(averaged):
    folder, name = averaged
    saved = list(folders.checkpoints(folder).values())
    assert len(saved) == 9
    for path in saved:
        assert folders.verified(path).checksums[name] == train_state.sha256(path / name)
        values = checkpoint.read_arrays(path / name)
        masks = checkpoint.read_masks(path / MASKS, {n: v for n, v in values.items() if v.ndim > 1})
        assert sum((mask == 0).sum() for mask in masks.values()) > 100_000
        for key, mask in masks.items():
            assert not values[key][mask == 0].any(), (path.name, key)
        newest = checkpoint.read_arrays(folders.find_weights(path))
        assert any(not np.array_equal(values[key], newest[key]) for key in values)
        assert os.path.samefile(folder / name, folder / "epoch-2" / name)


def test_an_average_is_measured_beside_the_weights(averaged, cifar_dir, capsys):
    folder, name = averaged
    records = metrics(folder)
    tested = ("average_top1", "average_top5", "average_loss")
    assert [[record[key] is None for key in tested] for record in records] == [
        [True] * 3, [False] * 3, [False] * 3
    ]  # fmt: skip
    assert records[2]["average_loss"] != records[2]["loss"]
    for path in (folder / name, folder / "average-pruned", folder / "epoch-2" / name):
        capsys.readouterr()
        evaluate.main(["--pruned_model", str(path), "--data_dir", str(cifar_dir), "--json"])
        measured = json.loads(capsys.readouterr().out)
        assert measured["top1"] == records[2]["average_top1"]
        assert measured["loss"] == pytest.approx(records[2]["average_loss"], rel=1e-6)
        assert measured["prunable_sparsity"] >= records[2]["prunable_sparsity"]


def test_an_average_is_weights_as_others(averaged, small, tmp_path, capsys):
    """Where a training starts, and what is exported."""
    folder, name = averaged
    train.main([*small, "--pretrained_model", str(folder / name), "--lr", "0", "--max_steps", "1",
                "--pruning_mode", "none", "--model_path", str(tmp_path / "new")])  # fmt: skip
    average = checkpoint.read_arrays(folder / name)
    new = weights(tmp_path / "new" / WEIGHTS)
    assert all(np.array_equal(new[n], v) for n, v in average.items() if "._" not in n[-10:])
    export.main(["--pruned_model", str(folder / name), "--format", "paddle",
                 "--out", str(tmp_path / "exported")])  # fmt: skip
    capsys.readouterr()
    evaluate.main(["--pruned_model", str(tmp_path / "exported"), "--runtime", "paddle", "--json",
                   *small[:2]])  # fmt: skip
    exported = json.loads(capsys.readouterr().out)
    assert exported["top1"] == metrics(folder)[-1]["average_top1"]


def test_the_line_of_an_average(small, tmp_path, capsys):
    train.main([*small, *AVERAGED, "--num_epochs", "2", "--model_path", str(tmp_path)])
    record = metrics(tmp_path)[1]
    line = "epoch 1 average test top1 {average_top1:.4f} top5 {average_top5:.4f} loss "
    lines = [text for text in capsys.readouterr().out.splitlines() if " average test " in text]
    assert len(lines) == 1
    assert lines[0].startswith(line.format(**record))


def test_a_training_that_was_without_an_average_begins_one(small, tmp_path, capfd):
    common = [*small, "--model_path", str(tmp_path), "--resume_epoch", "latest"]
    train.main([*common, "--max_steps", "3"])
    start = weights(tmp_path / WEIGHTS)
    more = [*common, "--ema", "0.5", "--max_steps", "4"]
    assert "was trained with no --ema; give" in error_line(capfd, train.main, *more)
    train.main([*more, "--force"])
    end, average = weights(tmp_path / WEIGHTS), weights(tmp_path / AVERAGE)
    kept = 4 / 13  # (1 + 3) / (10 + 3)
    for name in ("fc.bias", "conv1.1._mean"):
        expected = kept * start[name] + (1 - kept) * end[name]
        assert average[name] == pytest.approx(expected, abs=1e-6)
    train.main([*common, "--max_steps", "5", "--force"])  # and without it again
    assert not (tmp_path / AVERAGE).exists()


def test_a_detector_has_an_average_too(voc_dir, tmp_path):
    train.main(["--data", "voc", "--data_dir", str(voc_dir), "--scale", "0.1", "--batch_size", "4",
                "--image_size", "64", "--train_sizes", "32", "64", "--num_workers", "0",
                "--use_pretrained", "false", "--use_gpu", "false", "--num_epochs", "1",
                "--warmup_steps", "0", "--ema", "0.5", "--model_path", str(tmp_path)])  # fmt: skip
    assert metrics(tmp_path)[0]["average_map_area"] is not None
    average, end = weights(tmp_path / AVERAGE), weights(tmp_path / WEIGHTS)
    assert not np.array_equal(average["heads.0.bias"], end["heads.0.bias"])


def test_a_counter_is_not_averaged():
    model = paddle.nn.Linear(3, 2)
    model.register_buffer("steps", paddle.to_tensor([5], dtype="int64"))
    average = Average(model, 0.9)
    paddle.assign(model.steps + 1, output=model.steps)
    average.update(1000, {})
    assert average.network.steps.tolist() == [6]
