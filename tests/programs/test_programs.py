"""train.py and evaluate.py as a user runs them, end to end on small data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, metrics, weights

import evaluate
import train
from tasks import classification
from training import folders, report

WEIGHTS = "model-pruned.pdparams"


@pytest.mark.parametrize(
    "options",
    [
        ["--pruning_mode", "ratio", "--ratio", "0.75"],
        ["--pruning_mode", "threshold", "--threshold", "0.05"],
        ["--pruning_mode", "none"],
    ],
)
def test_what_was_saved_is_what_was_measured(options, small, tmp_path, capsys):
    train.main([*small, *options, "--model_path", str(tmp_path), "--num_epochs", "1"])
    (record,) = metrics(tmp_path)
    capsys.readouterr()
    evaluate.main(["--pruned_model", str(tmp_path), "--data_dir", small[1], "--json"])
    measured = json.loads(capsys.readouterr().out)
    keys = ["top1", "top5", "loss", "sparsity", "prunable_sparsity", "samples", "images_per_sec"]
    assert list(measured) == keys
    assert measured["samples"] == 10
    for key in ("top1", "top5", "sparsity", "prunable_sparsity"):
        assert measured[key] == record[key]
    assert measured["loss"] == pytest.approx(record["loss"], rel=1e-6)
    assert record["epoch"] == 0
    assert record["lr"] == 0.05

    saved = weights(tmp_path / WEIGHTS)
    prunable = np.concatenate([v.ravel() for v in saved.values() if v.ndim > 1])
    assert np.mean(prunable == 0) == pytest.approx(record["prunable_sparsity"])
    if "ratio" in options:
        assert np.count_nonzero(prunable == 0) == round(0.75 * prunable.size)
    if "threshold" in options:
        assert 0.2 < record["prunable_sparsity"] < 0.9
        assert np.abs(prunable[prunable != 0]).min() >= np.float32(0.05)
    if "none" in options:
        assert record["prunable_sparsity"] == 0
        assert record["threshold"] is None


def test_layers_that_lose_channels_are_named_once(small, tmp_path, capsys, monkeypatch):
    looked_at = []  # which waits for the device
    original = train.UnstructuredPruner.lost_channels
    monkeypatch.setattr(
        train.UnstructuredPruner,
        "lost_channels",
        lambda pruner: looked_at.append(1) or original(pruner),
    )
    train.main([*small, "--num_epochs", "2", "--lr", "0", "--ratio", "0.995", "--log_period", "2",
                "--model_path", str(tmp_path)])  # fmt: skip
    assert len(looked_at) == 4  # two log lines, two ends of an epoch
    wanted = []
    for name, value in weights(tmp_path / WEIGHTS).items():
        if value.ndim > 1:
            kept = value.any(tuple(range(1, value.ndim)) if value.ndim == 4 else 0)
            where = f"{(~kept).sum()} of {kept.size} output channels of " if kept.any() else ""
            wanted += [] if kept.all() else [f"no weight is left in {where}{name}"]
    lines = [line for line in capsys.readouterr().out.splitlines() if "no weight" in line]
    assert lines == wanted
    channels = sum("output channels" in line for line in lines)
    assert min(channels, len(lines) - channels) > 3


def test_a_layer_with_a_long_name_that_loses_its_channels_by_and_by(capsys):
    lost = {}
    run = SimpleNamespace(reported_lost={}, pruner=SimpleNamespace(lost_channels=lambda: lost))
    name = "a_name_of_a_layer." * 9 + "weight"
    for now in ((1000, 2000), (1001, 2000), (2000, 2000), (1000, 2000), (2000, 2000)):
        lost[name] = now
        report._warn_of_lost_channels(run)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("no weight is left in 1000 of 2000 output channels of ...")
    assert second.startswith("no weight is left in ...")
    for line in (first, second):
        assert name.endswith(line.split("...")[1])
        assert len(line) <= 100
    run.pruner = None  # of a dense training
    report._warn_of_lost_channels(run)


@pytest.mark.parametrize("dtype_known", [False, True])
def test_a_bfloat16_checkpoint_is_refused(dtype_known, tmp_path, capfd):
    """Also where numpy knows the dtype, from ml_dtypes; it may do so from an earlier test."""
    if dtype_known:
        pytest.importorskip("ml_dtypes")
    model = paddle.vision.models.mobilenet_v1(scale=0.25, num_classes=10)
    model.to(dtype="bfloat16")
    paddle.save(model.state_dict(), str(tmp_path / "bf16.pdparams"))
    # A safetensors file as PyTorch writes it, here of one weight.
    header = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    data = len(header).to_bytes(8, "little") + header + b"\0\0"
    (tmp_path / "torch.safetensors").write_bytes(data)
    options = ["--data", "digits", "--scale", "0.25", "--num_classes", "10", "--pruned_model"]
    for name in ("bf16.pdparams", "torch.safetensors"):
        message = error_line(capfd, evaluate.main, *options, tmp_path / name)
        assert f"{name} holds bfloat16 weights; save them as float32: paddle.save({{" in message
    state = {name: p.astype("float32") for name, p in model.state_dict().items()}
    paddle.save(state, str(tmp_path / "float32.pdparams"))  # as it says
    evaluate.main([*options, str(tmp_path / "float32.pdparams")])


def test_the_folder_of_a_run(small, tmp_path):
    train.main([*small, "--model_path", str(tmp_path), "--num_epochs", "3", "--model_period", "2",
                "--test_period", "2"])  # fmt: skip
    names = {"model-pruned.pdparams", "opt-pruned.pdopt", "train-state.json"}
    assert {path.name for path in tmp_path.iterdir()} == names | {
        "epoch-1", "epoch-2", "model-best.pdparams", "metrics.jsonl"}  # fmt: skip
    for name in names:
        assert os.readlink(tmp_path / name) == f"epoch-2/{name}"
        assert (tmp_path / "epoch-1" / name).is_file()
    assert [record["top1"] is None for record in metrics(tmp_path)] == [True, False, False]
    state = json.loads((tmp_path / "train-state.json").read_text())
    assert (state["epoch"], state["step"], state["finished"]) == (2, 6, True)
    assert state["options"]["model"] == "mobilenet_v1"
    assert state["versions"]["paddle"] == paddle.__version__
    optimizer = paddle.load(str(tmp_path / "opt-pruned.pdopt"), return_numpy=True)
    assert "conv1.0.weight_velocity_0" in optimizer
    best = max(r["top1"] for r in metrics(tmp_path) if r["top1"] is not None)
    assert folders.best_result(tmp_path, "top1") == best


def test_going_back_sets_the_later_epochs_aside(small, tmp_path, capsys):
    common = [*small, "--model_period", "1", "--model_path", str(tmp_path)]
    train.main([*common, "--num_epochs", "3"])
    train.main([*common, "--num_epochs", "2", "--pretrained_model", str(tmp_path),
                "--resume_epoch", "0"])  # fmt: skip
    (aside,) = tmp_path.glob("earlier-*")
    assert {path.name for path in aside.glob("epoch-*")} == {"epoch-1", "epoch-2"}
    assert {path.name for path in tmp_path.glob("epoch-*")} == {"epoch-0", "epoch-1"}
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1]
    assert [record["epoch"] for record in metrics(aside)] == [0, 1, 2]
    assert os.readlink(tmp_path / WEIGHTS) == f"epoch-1/{WEIGHTS}"


def test_starting_from_pruned_weights_with_static_masks_keeps_just_their_zeros(small, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    train.main([*small, "--num_epochs", "1", "--ratio", "0.6", "--model_path", str(first)])
    train.main([*small, "--num_epochs", "2", "--static_masks", "--model_path", str(second),
                "--pretrained_model", str(first)])  # fmt: skip
    before, after = weights(first / WEIGHTS), weights(second / WEIGHTS)
    for name in before:
        if before[name].ndim > 1:
            assert np.array_equal(before[name] == 0, after[name] == 0)
            assert not np.array_equal(before[name], after[name])


def test_max_steps_ends_a_training_that_latest_takes_up(small, tmp_path, capsys):
    common = [*small, "--num_epochs", "3", "--model_path", str(tmp_path)]
    train.main([*common, "--max_steps", "3"])
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1]
    state = json.loads((tmp_path / "train-state.json").read_text())
    assert (state["epoch"], state["step"], state["finished"]) == (1, 3, False)
    capsys.readouterr()
    train.main([*common, "--max_steps", "3", "--resume_epoch", "latest"])
    assert "nothing is left to do" in capsys.readouterr().out
    train.main([*common, "--resume_epoch", "latest"])
    assert [record["epoch"] for record in metrics(tmp_path)] == [0, 1, 2]
    assert not list(tmp_path.glob("earlier-*"))


def test_learning_rate_schedules_count_the_steps_of_the_loader(small, tmp_path):
    def rates(*options):
        folder = tmp_path / "-".join(options)
        train.main([*small, "--num_epochs", "4", "--model_path", str(folder), "--lr", "0.1",
                    "--lr_strategy", *options[1:]])  # fmt: skip
        return [record["lr"] for record in metrics(folder)]

    piecewise = rates("", "piecewise_decay", "--step_epochs", "1", "3")
    assert piecewise == pytest.approx([0.1, 0.01, 0.01, 0.001])
    cosine = rates("", "cosine_decay")
    assert cosine == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447], rel=1e-4)
    held = rates("", "cosine_decay", "--lr_hold_epochs", "2")
    assert held == pytest.approx([0.1, 0.1, 0.1, 0.05])
    # Two steps an epoch: at the steps 0, 2, 4, 6 the rise to 5 stands at 1/5, 3/5, 1, 1.
    warm = [1 / 5, 3 / 5, 1, 1]
    for name, cold in (("cosine_decay", cosine), ("piecewise_decay", piecewise)):
        risen = rates("", name, "--step_epochs", "1", "3", "--warmup_steps", "5")
        assert risen == pytest.approx([w * c for w, c in zip(warm, cold)], rel=1e-6), name


def test_other_networks(small, tmp_path):
    for name in ("shufflenet_v2_x0_25", "squeezenet1_1"):
        options = [*small, "--scale", "1", "--use_pretrained", "false", "--model", name]
        train.main([*options, "--max_steps", "1", "--model_path", str(tmp_path / name)])
        assert metrics(tmp_path / name)[0]["prunable_sparsity"] == pytest.approx(0.55, abs=1e-5)


def test_the_auxiliary_outputs_of_googlenet_count_in_the_loss_and_not_in_the_accuracy():
    right, wrong = paddle.to_tensor([[1.0, 0.0]]), paddle.to_tensor([[0.0, 1.0]])
    labels = paddle.to_tensor([0])
    loss = classification.loss([right, wrong, wrong], [labels])
    assert float(loss) == pytest.approx(0.3132617 + 2 * 0.3 * 1.3132617)
    sums = classification.counts([right, wrong, wrong], [labels], loss)
    assert sums.tolist() == pytest.approx([float(loss), 1, 1, 1])


def test_imagenet(imagenet_dir, tmp_path, capsys):
    options = ["--data", "imagenet", "--data_dir", str(imagenet_dir), "--num_workers", "2"]
    train.main([*options, "--scale", "0.25", "--batch_size", "2", "--max_steps", "1",
                "--model_path", str(tmp_path)])  # fmt: skip
    assert metrics(tmp_path)[0]["prunable_sparsity"] == pytest.approx(0.55, abs=1e-5)
    evaluate.main([*options, "--pruned_model", str(tmp_path / "model-pruned"), "--per_layer"])
    printed = capsys.readouterr().out
    assert "samples 3" in printed
    assert "conv1.0.weight" in printed


def test_a_paddleslim_checkpoint_loses_its_masks(small, tmp_path, capsys):
    train.main([*small, "--max_steps", "1", "--model_path", str(tmp_path / "a")])
    state = paddle.load(str(tmp_path / "a" / WEIGHTS))
    state["conv1.0.conv2d_0_w_0_mask"] = paddle.ones([8, 3, 3, 3])
    paddle.save(state, str(tmp_path / "slim.pdparams"))
    train.main([*small, "--max_steps", "1", "--model_path", str(tmp_path / "b"),
                "--pretrained_model", str(tmp_path / "slim")])  # fmt: skip
    assert "dropped 1 masks" in capsys.readouterr().err


def test_help_also_by_its_short_form(capsys):
    for main in (train.main, evaluate.main):
        with pytest.raises(SystemExit) as ended:
            main(["--h"])
        assert ended.value.code == 0
        assert "--data" in capsys.readouterr().out


def test_two_processes_agree(small, tmp_path, capsys):
    """Under the launcher: equal masks on both ranks at every step, one writer, no sample twice."""
    script = tmp_path / "ranks.py"
    script.write_text(
        "import hashlib, json, sys, train\n"
        "import paddle.distributed as dist\n"
        "seen, step = [], train.UnstructuredPruner.step\n"
        "def spy(self):\n"
        "    step(self)\n"
        "    masks = b''.join(m.numpy().tobytes() for m in self.masks.values())\n"
        "    seen.append(hashlib.sha256(masks).hexdigest())\n"
        "train.UnstructuredPruner.step = spy\n"
        "tested, evaluate = [], train.evaluate\n"
        "def spy_on_evaluate(model, *others):\n"
        "    state = b''.join(v.numpy().tobytes() for v in model.state_dict().values())\n"
        "    tested.append([hashlib.sha256(state).hexdigest(), evaluate(model, *others)])\n"
        "    return tested[-1][1]\n"
        "train.evaluate = spy_on_evaluate\n"
        "train.main(sys.argv[2:])\n"
        "with open(f'{sys.argv[1]}/rank{dist.get_rank()}.json', 'w') as file:\n"
        "    json.dump([seen, tested], file)\n"
    )
    out = tmp_path / "models"
    subprocess.run(
        [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2",
         "--log_dir", tmp_path / "log", script, tmp_path, *small, "--batch_size", "8",
         "--batch_size_for_validation", "4", "--num_epochs", "2", "--model_path", out],
        check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    (masks, tested), other = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert [masks, tested] == other
    assert len(masks) == 4
    assert len(set(masks)) == 4
    ((_, result),) = tested  # of the same weights and batch statistics on both
    assert result["samples"] == 10
    first, last = metrics(out)
    assert json.loads((out / "train-state.json").read_text())["ranks"] == 2
    for record in (first, last):  # 2 steps of 8 pictures on either rank
        assert record["images_per_sec"] * record["seconds"] == pytest.approx(32)
    # What both ranks measured, each on its part, is what one process measures on the saved file.
    evaluate.main(["--pruned_model", str(out), "--data_dir", small[1], "--json"])
    alone = json.loads(capsys.readouterr().out)
    assert (alone["top1"], alone["top5"]) == (last["top1"], last["top5"])
    assert alone["loss"] == pytest.approx(last["loss"], rel=1e-5)
