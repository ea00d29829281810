"""What train.py and evaluate.py refuse, in one line, and faults while they run."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line

import evaluate
import train
from training import train_state
from training.folders import WEIGHTS


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
        (["--distribution", "a=0.5,a=0.6"],
         "argument --distribution: 'a=0.5,a=0.6' names a pattern twice"),
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


def test_weights_are_looked_at_before_the_data(small, tmp_path, capfd):
    """Which may have to be downloaded, or be a list of a million pictures."""
    options = ["--data", "cifar10", "--data_dir", tmp_path / "nothing", *small[2:]]
    (tmp_path / "bad.pdparams").write_bytes(b"no pickle")
    message = error_line(capfd, train.main, *options, "--model_path", tmp_path / "models",
                         "--pretrained_model", tmp_path / "bad.pdparams")  # fmt: skip
    assert f"{tmp_path / 'bad.pdparams'}: " in message


def test_damaged_checkpoints(small, tmp_path, capfd):
    train.main([*small, "--num_epochs", "1", "--model_path", str(tmp_path)])
    folder = tmp_path / "epoch-0"
    resume = [*small, "--model_path", tmp_path / "new", "--pretrained_model", folder,
              "--resume_epoch", 0, "--num_epochs", 2]  # fmt: skip
    whole = {path: path.read_bytes() for path in folder.iterdir()}

    def refused(name, content):
        (folder / name).write_bytes(content)
        if name != "train-state.json":  # the loader itself refuses, not only the checksum
            train_state.seal(json.loads(whole[folder / "train-state.json"]), folder)
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
        train_state.seal(state, folder)
        message = error_line(capfd, evaluate.main, "--pruned_model", folder)
        assert repr(value) in message
        state["options"][key] = "mobilenet_v1"


def test_a_loss_that_is_no_number_ends_the_run(small, tmp_path, capfd):
    options = [*small, "--model_path", tmp_path, "--lr", "1e30", "--num_epochs", 3]
    assert "not finite" in error_line(capfd, train.main, *options, "--model_period", 1)


def test_pruning_options_without_pruning_are_refused(small, tmp_path, capfd):
    message = error_line(capfd, train.main, *small, "--model_path", tmp_path,
                         "--pruning_mode", "none", "--distribution", "erk")  # fmt: skip
    assert "--distribution: nothing is pruned with --pruning_mode none" in message
