"""train.py and evaluate.py as a user runs them, end to end on small data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, metrics, weights

import evaluate
import train
from tasks import classification
from training import checkpoint

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
    run = SimpleNamespace(lost={}, pruner=SimpleNamespace(lost_channels=lambda: lost))
    name = "a_name_of_a_layer." * 9 + "weight"
    for now in ((1000, 2000), (1001, 2000), (2000, 2000), (1000, 2000), (2000, 2000)):
        lost[name] = now
        train.say_what_is_lost(run)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("no weight is left in 1000 of 2000 output channels of ...")
    assert second.startswith("no weight is left in ...")
    for line in (first, second):
        assert name.endswith(line.split("...")[1])
        assert len(line) <= 100
    run.pruner = None  # of a dense training
    train.say_what_is_lost(run)


def test_a_bfloat16_checkpoint_is_refused(tmp_path, capfd):
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
    assert checkpoint.best(tmp_path, "top1") == best


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ratio", "1.2"], "argument --ratio: must be a number in [0, 1], got 1.2"),
        (["--ratio", "nan"], "argument --ratio: must be a number in [0, 1], got nan"),
        (["--threshold", "-1"], "argument --threshold: must be a number >= 0, got -1"),
        (["--threshold", "nan"], "argument --threshold: must be a number >= 0, got nan"),
        (["--batch_size", "0"], "argument --batch_size: must be a whole number >= 1, got 0"),
        (["--batch_size", "41"], "41"),
        (["--lr_strategy", "poly"], "argument --lr_strategy: invalid choice: 'poly'"),
        (["--use_gpu", "maybe"], "argument --use_gpu: must be true or false, got 'maybe'"),
        (["--model", "resnet19"], "no model 'resnet19' for cifar10; did you mean resnet18?"),
        (["--step_epochs", "60", "30"], "argument --step_epochs: must increase, got [60, 30]"),
        (["--amp"], "--amp needs a GPU"),
        (["--resume_epoch", "3"], "--resume_epoch needs --pretrained_model"),
        (["--static_masks"], "--static_masks needs --pretrained_model"),
        (["--static_masks", "--pretrained_model", "x", "--sparse_block", "4", "1"],
         "--sparse_block: no new masks are made with --static_masks"),
        (["--threshold", "0.2"], "--threshold: this needs --pruning_mode threshold"),
        (["--pruning_mode", "threshold", "--ratio", "0.2"], "--ratio: this needs --pruning_mode"),
        (["--distribution", "conv*=0.5", "--ratio", "0.8"], "--ratio: it follows from"),
        (["--distribution", "a=0.5,a=0.6"], "argument --distribution: must be global"),
        (["--pruning_epochs", "4", "--tunning_epochs", "9"],
         "--pruning_epochs, --tunning_epochs: this needs --pruning_strategy gmp"),
        (["--model", "vgg16", "--scale", "0.5"], "vgg16 has one width only"),
        (["--model", "googlenet", "--scale", "1", "--use_pretrained", "false"],
         "googlenet does not take pictures of 32x32"),
        (["--num_classes", "9"], "cifar10 has 10 classes, --num_classes 9"),
        (["--data_dir", "README.md"], "README.md"),
        (["--model_path", "README.md"], "cannot write to --model_path README.md"),
        (["--pretrained_model", "nowhere"], "there is no nowhere"),
        (["--pretrained_model", "tests"], "tests holds no model-pruned.pdparams"),
        (["--pretrained_model", "README.md"], "README.md: "),
        (["--pretrained_model", "tests", "--resume_epoch", "3"],
         "tests has no checkpoint of epoch 3; there are no checkpoints"),
    ],
)  # fmt: skip
def test_refusals(options, words, small, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = [] if "--model_path" in options else ["--model_path", tmp_path]
    assert words in error_line(capfd, train.main, *small, *path, *options)


def test_a_gpu_that_is_not_there_is_refused(small, tmp_path, capfd):
    if paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count():
        pytest.skip("there is a GPU")
    for main in (train.main, evaluate.main):
        assert "--use_gpu true, but" in error_line(capfd, main, *small[:4], "--use_gpu", "true")


def test_refused_checkpoints(small, tmp_path, capfd):
    train.main([*small, "--num_epochs", "2", "--model_period", "1", "--model_path", str(tmp_path)])
    resume = [*small, "--model_path", tmp_path / "new", "--pretrained_model", tmp_path]
    message = error_line(capfd, train.main, *resume, "--resume_epoch", 7)
    assert message.endswith("no checkpoint of epoch 7; there are epoch-0, epoch-1")
    message = error_line(capfd, train.main, *resume, "--resume_epoch", 1, "--num_epochs", 2)
    assert "epoch 1 is the last of --num_epochs 2" in message
    message = error_line(capfd, train.main, *resume, "--scale", 0.5)
    assert "conv1.0.weight is [8, 3, 3, 3], the model's [16, 3, 3, 3]" in message
    message = error_line(capfd, train.main, *resume, "--scale", "1", "--model", "resnet18")
    assert "bn1.weight is missing" in message

    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / "cut.pdparams").write_bytes(whole[: len(whole) // 2])
    message = error_line(capfd, evaluate.main, *small[:4], "--pruned_model", tmp_path / "cut")
    assert "cut.pdparams" in message


def test_a_fault_in_a_worker_process_is_one_line_too(imagenet_dir, tmp_path, capfd):
    (tmp_path / "train_list.txt").write_text("a.JPEG 0\nb.JPEG 1\n")
    (tmp_path / "val_list.txt").write_text("a.JPEG 0\n")
    whole = (imagenet_dir / "train 0.JPEG").read_bytes()
    (tmp_path / "a.JPEG").write_bytes(whole)
    (tmp_path / "b.JPEG").write_bytes(whole[: len(whole) // 2])
    options = ["--data", "imagenet", "--data_dir", tmp_path, "--scale", "0.25", "--batch_size", 2]
    for workers in (0, 2):
        message = error_line(capfd, train.main, *options, "--num_workers", workers,
                             "--model_path", tmp_path / "models")  # fmt: skip
        assert message.startswith("train.py: error: ")
        assert "b.JPEG" in message


def test_a_bad_test_picture_does_not_lose_the_training(imagenet_dir, tmp_path, capfd):
    for path in imagenet_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "val 1.JPEG").write_text("no picture")
    options = ["--data", "imagenet", "--data_dir", tmp_path, "--scale", "0.25", "--batch_size", 2,
               "--num_workers", 0, "--num_epochs", 1, "--model_path", tmp_path / "m"]  # fmt: skip
    assert "val 1.JPEG" in error_line(capfd, train.main, *options, "--use_pretrained", "false")
    (saved,) = (tmp_path / "m").glob("epoch-0-step-*")  # goes on with the test
    assert (saved / WEIGHTS).is_file()


def test_readers_end_with_a_killed_training(tmp_path):
    options = ["--data", "digits", "--scale", "0.25", "--batch_size", "8", "--num_workers", "1",
               "--use_gpu", "false", "--log_period", "1", "--model_path", tmp_path]  # fmt: skip
    run = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *options], stdout=subprocess.PIPE, text=True
    )
    assert any(line.startswith("epoch 0 batch 1/179 ") for line in run.stdout)
    run.kill()
    run.communicate(timeout=20)  # ends when the last process that could write to it has


def test_weights_that_cannot_be_downloaded(small, tmp_path, capfd, monkeypatch):
    def no_network(*args, **kwargs):
        raise RuntimeError("Download from https://... failed. Retry limit reached")

    monkeypatch.setattr("paddle.vision.models.mobilenetv1.get_weights_path_from_url", no_network)
    options = [*small, "--scale", "1", "--model_path", tmp_path]
    message = error_line(capfd, train.main, *options)
    assert "could not get ImageNet weights for mobilenet_v1" in message
    assert "--use_pretrained false" in message


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


def test_damaged_checkpoints(small, tmp_path, capfd):
    train.main([*small, "--num_epochs", "1", "--model_path", str(tmp_path)])
    folder = tmp_path / "epoch-0"
    resume = [*small, "--model_path", tmp_path / "new", "--pretrained_model", folder,
              "--resume_epoch", 0, "--num_epochs", 2]  # fmt: skip
    whole = {path: path.read_bytes() for path in folder.iterdir()}

    def refused(name, content):
        (folder / name).write_bytes(content)
        if name != "train-state.json":  # the loader itself refuses, not only the checksum
            checkpoint.write_state(folder, json.loads(whole[folder / "train-state.json"]))
        message = error_line(capfd, train.main, *resume)
        for path, before in whole.items():
            path.write_bytes(before)
        assert name in message
        return message

    masks = dict(np.load(folder / "masks-pruned.npz"))
    short = {name: mask[:1] for name, mask in masks.items()}
    np.savez(tmp_path / "short.npz", **short)
    message = refused("masks-pruned.npz", (tmp_path / "short.npz").read_bytes())
    assert "packed bits" in message
    for name, content in whole.items():
        refused(name.name, content[: len(content) // 2])
    (folder / "masks-pruned.npz").unlink()
    assert "masks-pruned.npz is missing" in error_line(capfd, train.main, *resume)

    state = json.loads(whole[folder / "train-state.json"])
    for key, value in (("model", "MODELS"), ("model", "resnet"), ("data", "nope")):
        state["options"][key] = value
        checkpoint.write_state(folder, state)
        message = error_line(capfd, evaluate.main, "--pruned_model", folder)
        assert repr(value) in message
        state["options"][key] = "mobilenet_v1"


def test_a_loss_that_is_no_number_ends_the_run(small, tmp_path, capfd):
    options = [*small, "--model_path", tmp_path, "--lr", "1e30", "--num_epochs", 3]
    assert "not finite" in error_line(capfd, train.main, *options, "--model_period", 1)


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
    checkpoint.set_aside(tmp_path, checkpoint.read_state(tmp_path / "epoch-0"))
    first = (tmp_path / "epoch-0" / WEIGHTS).read_bytes()
    assert (tmp_path / WEIGHTS).read_bytes() == first
    checkpoint.set_aside(tmp_path, None)
    assert not (tmp_path / WEIGHTS).exists()


def test_pruning_options_without_pruning_are_refused(small, tmp_path, capfd):
    message = error_line(capfd, train.main, *small, "--model_path", tmp_path,
                         "--pruning_mode", "none", "--distribution", "erk")  # fmt: skip
    assert "--distribution: nothing is pruned with --pruning_mode none" in message
