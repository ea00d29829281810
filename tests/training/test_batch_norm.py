"""--recalibrate_bn: batch norm's statistics, measured anew at the end of a training."""

from __future__ import annotations

import json
import signal

import numpy as np
import paddle
import pytest
from conftest import assert_same_end, error_line, metrics, weights

import evaluate
import train
from readers.sampler import EpochBatchSampler
from readers.small_images import Cifar10
from training import batch_norm, checkpoint, convolutions, folders, ranks, train_state
from training.averaging import Average
from training.folders import AVERAGE, OPTIMIZER, STATE, WEIGHTS

nn = paddle.nn


def network() -> nn.Layer:
    parts = [nn.Linear(3, 4), nn.BatchNorm1D(4), nn.Dropout(0.5), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(4, 2), nn.BatchNorm(2))


def expected(model: nn.Layer, batches: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Of each batch mean and variance where batch norm stands, then their means."""
    value = {name: p.numpy().astype("float64") for name, p in model.state_dict().items()}
    found: dict = {"1._mean": [], "1._variance": [], "5._mean": [], "5._variance": []}
    for x in batches:
        for linear, norm in (("0", "1"), ("4", "5")):
            x = x @ value[f"{linear}.weight"] + value[f"{linear}.bias"]
            found[f"{norm}._mean"].append(x.mean(0))
            found[f"{norm}._variance"].append(x.var(0))
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            x = np.maximum(x * value[f"{norm}.weight"] + value[f"{norm}.bias"], 0)
    return {name: np.mean(values, 0) for name, values in found.items()}


def test_statistics_are_the_means_of_those_of_the_batches():
    model, other, rng = network(), network(), np.random.default_rng(0)
    batches = [rng.normal(i, i + 1, size=(6, 3)).astype("float32") for i in range(3)]
    inputs = [[paddle.to_tensor(batch), "targets"] for batch in batches]
    model.train()
    model(inputs[0][0])  # statistics that are to be forgotten
    before = {n: p.numpy().copy() for n, p in model.state_dict().items()}
    batch_norm.measure([model, other], inputs)
    for each in (model, other):
        wanted = expected(each, batches)
        found = {n: p.numpy() for n, p in batch_norm.statistics_of(each).items()}
        assert sorted(found) == sorted(wanted)
        for name, value in wanted.items():
            assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    after = model.state_dict()
    assert all(np.array_equal(after[n].numpy(), v) for n, v in before.items() if n not in wanted)
    assert all(layer.training for layer in model.sublayers(include_self=True))
    assert [model[1]._momentum, model[5]._momentum] == [0.9, 0.9]


def test_a_fault_leaves_the_statistics_as_they_are():
    model = network()
    before = {n: p.numpy().copy() for n, p in model.state_dict().items()}

    def batches():
        yield [paddle.ones([4, 3])]
        raise ValueError("no picture")

    with pytest.raises(ValueError, match="no picture"):
        batch_norm.measure([model], batches())
    assert all(np.array_equal(p.numpy(), before[n]) for n, p in model.state_dict().items())


def test_the_mean_over_ranks(monkeypatch):
    """As if another one had measured 2 more."""
    model, alone = network(), network()
    alone.set_state_dict(model.state_dict())
    batch_norm.measure([alone], [[paddle.arange(12, dtype="float32").reshape([4, 3])]])
    monkeypatch.setattr(ranks, "tensors", lambda tensor: [tensor, tensor + 2])
    batch_norm.measure([model], [[paddle.arange(12, dtype="float32").reshape([4, 3])]])
    other = batch_norm.statistics_of(alone)
    for name, value in batch_norm.statistics_of(model).items():
        assert value.numpy() == pytest.approx(other[name].numpy() + 1, rel=1e-6), name


MEASURED = ["--recalibrate_bn", "2", "--ema", "0.9", "--lr", "0.01", "--model_period", "1",
            "--test_period", "1"]  # fmt: skip


def assert_statistics_of(folder, name: str, data: str, epoch: int, batches: int) -> None:
    """A file's statistics are those of the first batches of the epoch."""
    model = paddle.vision.models.mobilenet_v1(scale=0.25, num_classes=10)
    convolutions.use_fast(model)
    model.set_state_dict(paddle.load(str(folder / name)))
    saved = {n: v.numpy().copy() for n, v in batch_norm.statistics_of(model).items()}
    assert len(saved) == 54
    dataset, sampler = Cifar10(data, "train", seed=0), EpochBatchSampler(40, 16, 0)
    dataset.epoch = epoch
    sampler.set_epoch(epoch)
    pictures = [np.stack([dataset[i][0] for i in batch]) for batch in sampler][:batches]
    batch_norm.measure([model], [[paddle.to_tensor(batch)] for batch in pictures])
    for key, value in batch_norm.statistics_of(model).items():
        assert np.array_equal(value.numpy(), saved[key]), key


def test_a_training_ends_with_statistics_of_its_last_weights(small, tmp_path, capsys):
    plain, folder = tmp_path / "plain", tmp_path / "measured"
    common = [*small, *MEASURED[2:], "--num_epochs", "2"]
    train.main([*common, "--model_path", str(plain)])
    train.main([*common, *MEASURED[:2], "--model_path", str(folder)])
    assert "batch norm's statistics were measured anew over 2 batches\n" in capsys.readouterr().out
    for name in (WEIGHTS, AVERAGE):
        assert_statistics_of(folder, name, small[1], epoch=1, batches=2)
        before, after = weights(plain / name), weights(folder / name)
        moved = {n for n in before if not np.array_equal(before[n], after[n])}
        assert moved == {n for n in before if n.endswith(("._mean", "._variance"))}
        first = [weights(place / "epoch-0" / name) for place in (plain, folder)]
        assert all(np.array_equal(first[0][n], first[1][n]) for n in before)
    (earlier, last), (same, other) = metrics(folder), metrics(plain)
    assert (earlier["loss"], earlier["average_loss"]) == (same["loss"], same["average_loss"])
    assert last["loss"] != other["loss"]
    evaluate.main(["--pruned_model", str(folder), *small[:2], "--json"])
    measured = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert measured["loss"] == pytest.approx(last["loss"], rel=1e-6)


def test_a_longer_training_goes_on_with_the_statistics_of_before(small, tmp_path):
    common = [*small, *MEASURED]
    train.main([*common, "--num_epochs", "3", "--model_path", str(tmp_path / "whole")])
    part = [*common, "--model_path", str(tmp_path / "part"), "--resume_epoch", "latest"]
    train.main([*part, "--num_epochs", "2"])
    records = metrics(tmp_path / "part")
    assert "BatchNorm" in checkpoint.read_arrays(tmp_path / "part" / "epoch-1" / OPTIMIZER)
    train.main([*part, "--num_epochs", "3"])
    assert metrics(tmp_path / "part")[:2] == records
    # The one line that tells of the end that it was:
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    lines[1] = json.dumps(records[1])
    (tmp_path / "whole" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert_same_end(tmp_path / "whole", tmp_path / "part")


class Killed(BaseException):
    """In place of a kill -9: nothing of the program runs after it."""


@pytest.mark.parametrize("how", [signal.SIGINT, Killed])
@pytest.mark.parametrize(
    ("module", "name", "call"),
    [(batch_norm, "measure", 1), (train, "evaluate", 1), (train, "evaluate", 2)],
)
def test_a_stop_at_the_end(how, module, name, call, small, tmp_path, monkeypatch, terminal):
    common = [*small, *MEASURED, "--num_epochs", "2", "--test_period", "5", "--save_steps", "3"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train.main([*common, "--model_path", str(whole)])
    original, calls = getattr(module, name), []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == call:
            if how is Killed:
                raise Killed
            signal.raise_signal(how)
        return original(*args)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(Killed if how is Killed else SystemExit):
        train.main([*common, "--model_path", str(stopped)])
    monkeypatch.undo()
    saved = folders.find_latest(stopped).folder
    assert saved.name == f"epoch-1-step-{3 if how is Killed else 4}"
    kept = "BatchNorm" in checkpoint.read_arrays(saved / OPTIMIZER)
    assert kept == (how is not Killed and name == "evaluate")
    train.main([*common, "--model_path", str(stopped), "--resume_epoch", "latest"])
    assert_same_end(whole, stopped)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--model", "squeezenet1_1", "--scale", "1", "--use_pretrained", "false"],
         "--recalibrate_bn: squeezenet1_1 has no batch norm"),
        (["--num_epochs", "3", "--max_steps", "4"],
         "--recalibrate_bn is for the end of the last epoch, which --max_steps is before"),
        (["--max_steps", "1"],
         "--recalibrate_bn is for the end of the last epoch, which --max_steps is before"),
        (["--recalibrate_bn", "9"], "batch norm's statistics were measured anew over 2 batches"),
    ],
)  # fmt: skip
def test_what_is_said(options, line, small, tmp_path, capsys):
    train.main([*small, "--num_epochs", "1", "--recalibrate_bn", "1", *options,
                "--lr", "0.001", "--model_path", str(tmp_path)])  # fmt: skip
    out = capsys.readouterr().out.splitlines()
    assert [text for text in out if "recalibrate" in text or "anew" in text] == [line]
    assert ("BatchNorm" in checkpoint.read_arrays(tmp_path / OPTIMIZER)) == ("anew" in line)


@pytest.mark.parametrize(
    "wrong",
    [[], {}, {"conv1.1._mean": "text"}, {"conv1.1._mean": np.zeros(9, "f4")},
     {"conv1.1._mean": np.zeros(8, "i4")}],
)  # fmt: skip
def test_statistics_of_another_network_are_refused(wrong, small, tmp_path, capfd):
    common = [*small, "--model_path", tmp_path, "--resume_epoch", "latest"]
    train.main([str(word) for word in (*common, "--max_steps", 1)])
    (folder,) = tmp_path.glob("epoch-*")
    state = checkpoint.read_arrays(folder / OPTIMIZER)
    paddle.save({**state, "BatchNorm": {"": wrong}}, str(folder / OPTIMIZER))
    train_state.seal(json.loads((folder / STATE).read_text()), folder)
    message = error_line(capfd, train.main, *common, "--max_steps", 2)
    assert f"{folder / OPTIMIZER}: BatchNorm" in message
    assert "conv1.1._mean" in message


@pytest.mark.parametrize("wrong", [None, 5, "abc", [""], np.zeros(3, "f4")])
def test_statistics_that_are_no_dict_are_refused(wrong, small, tmp_path, capfd):
    common = [*small, "--model_path", tmp_path, "--resume_epoch", "latest"]
    train.main([str(word) for word in (*common, "--max_steps", 1)])
    (folder,) = tmp_path.glob("epoch-*")
    state = checkpoint.read_arrays(folder / OPTIMIZER)
    paddle.save({**state, "BatchNorm": wrong}, str(folder / OPTIMIZER))
    train_state.seal(json.loads((folder / STATE).read_text()), folder)
    message = error_line(capfd, train.main, *common, "--max_steps", 2)
    assert message.endswith(f"{folder / OPTIMIZER}: BatchNorm is no dict")


def test_a_picture_that_cannot_be_read_loses_nothing(small, tmp_path, capfd, monkeypatch):
    def fail(networks, batches, after_batch):
        raise ValueError("a picture is missing")

    monkeypatch.setattr(batch_norm, "measure", fail)
    options = [*small, "--num_epochs", "2", "--recalibrate_bn", "1", "--model_path", tmp_path]
    assert error_line(capfd, train.main, *options).endswith("a picture is missing")
    assert [folder.name for folder in tmp_path.glob("epoch-*")] == ["epoch-1-step-4"]


def test_an_average_is_measured_with_its_own_weights():
    model = network()
    average = Average(model, 0.9)
    paddle.assign(model[0].weight + 5, output=model[0].weight)
    batches = [np.random.default_rng(0).normal(size=(6, 3)).astype("float32")]
    batch_norm.measure([model, average.network], [[paddle.to_tensor(batches[0])]])
    found = batch_norm.statistics_of(average.network)["1._mean"].numpy()
    assert found == pytest.approx(expected(average.network, batches)["1._mean"], rel=1e-5, abs=1e-6)
    assert found != pytest.approx(batch_norm.statistics_of(model)["1._mean"].numpy(), rel=1e-2)
