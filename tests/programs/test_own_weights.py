"""A user's own weights: of another number of classes, and as the start of another training."""

from __future__ import annotations

import json
import shutil
import warnings
from itertools import chain
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import paddle
import pytest
from conftest import weights

import train
from readers import loader
from tasks import classification, detection, measure
from training import checkpoint, folders, train_state
from training.folders import WEIGHTS

# Weights for another number of classes


def names_left_out(model, path, make_other) -> list[str]:
    before = {name: value.numpy() for name, value in model.state_dict().items()}
    left_out = checkpoint.load_weights(model, path, make_other=make_other)
    saved = checkpoint.read_arrays(path)
    for name, value in model.state_dict().items():
        expected = before if name in left_out else saved
        assert np.array_equal(value.numpy(), expected[name]), name
    return left_out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mobilenet_v1", ["fc.weight", "fc.bias"]),
        ("squeezenet1_1", ["_conv9.weight", "_conv9.bias"]),
        ("alexnet", ["_fc8.weight", "_fc8.bias"]),
        ("googlenet", ["_fc_out.weight", "_fc_out.bias", "_out1.weight", "_out1.bias",
                       "_out2.weight", "_out2.bias"]),
        ("yolov3", [f"heads.{i}.{kind}" for i in range(3) for kind in ("weight", "bias")]),
    ],
)  # fmt: skip
def test_all_but_the_output_layers_is_loaded(name, expected, tmp_path):
    task = detection if name == "yolov3" else classification

    def network(classes: int):
        options = SimpleNamespace(model=name, data=task.__name__, scale=1, num_classes=classes,
                                  image_size=224)  # fmt: skip
        return task.make_model(options)

    path = tmp_path / "weights.pdparams"
    paddle.save(network(20).state_dict(), str(path))
    assert sorted(names_left_out(network(3), path, lambda: network(4))) == sorted(expected)
    assert names_left_out(network(20), path, lambda: network(21)) == []


def test_only_the_number_of_classes_may_differ(tmp_path):
    def network(classes: int, scale: float = 0.25):
        return paddle.vision.models.mobilenet_v1(scale=scale, num_classes=classes)

    path, other = tmp_path / "weights.safetensors", lambda: network(4)
    for change, message in (
        ({"conv1.0.weight": np.zeros([9, 3, 3, 3], "f4")}, r"conv1.0.weight is \[9, 3, 3, 3\]"),
        ({"fc.weight": np.zeros([99, 1000], "f4")}, r"fc.weight is \[99, 1000\]"),
        ({"fc.weight": np.zeros([256], "f4")}, r"fc.weight is \[256\]"),
        ({"fc.bias": np.zeros([3], "f4")}, r"fc.weight is \[256, 1000\]"),  # of 3 classes already
        ({"more": np.zeros([3], "f4")}, "more is unknown"),
        ({"fc.bias": None}, "fc.bias is missing"),
        ({}, None),
    ):
        state = {k: v.numpy() for k, v in network(1000).state_dict().items()}
        state = {k: v for k, v in {**state, **change}.items() if v is not None}
        path.write_bytes(checkpoint.safetensors_bytes(state))
        if message is None:
            assert checkpoint.load_weights(network(3), path, make_other=other) == [
                "fc.weight",
                "fc.bias",
            ]
        else:
            with pytest.raises(ValueError, match=message):
                checkpoint.load_weights(network(3), path, make_other=other)
    with pytest.raises(ValueError, match=r"fc.weight is \[256, 1000\], the model's \[256, 3\]"):
        checkpoint.load_weights(network(3), path)  # evaluate.py, and a resume


def test_weights_of_paddle_for_another_number_of_classes(tmp_path, capfd, monkeypatch):
    """As a download would give them."""
    path = str(tmp_path / "weights.pdparams")
    published = paddle.vision.models.mobilenet_v1(num_classes=1000).state_dict()
    paddle.save(published, path)
    monkeypatch.setattr(
        "paddle.vision.models.mobilenetv1.get_weights_path_from_url", lambda *_: path
    )
    train.main(["--data", "digits", "--num_workers", "0", "--max_steps", "1", "--use_pretrained",
                "--lr", "0", "--pruning_mode", "none", "--model_path", str(tmp_path)])  # fmt: skip
    err = capfd.readouterr().err
    assert (
        err.count("Paddle's mobilenet_v1 is for another number of classes: fc.weight, fc.bias") == 1
    )
    assert "Skip loading" not in err
    after = weights(tmp_path / WEIGHTS)
    assert np.array_equal(after["conv1.0.weight"], published["conv1.0.weight"].numpy())
    assert after["fc.weight"].shape == (1024, 10)
    with pytest.warns(UserWarning, match="of another kind"):
        measure.build(lambda: warnings.warn("of another kind", stacklevel=1), "x", 1, True)


# What a training draws


@pytest.fixture
def drawn(monkeypatch):
    """Of a training: the labels and the pictures of its batches, and the seeds of its steps."""
    batches, seeds, iterate, seed_paddle = [], [], loader.Loader.__iter__, paddle.seed

    def spy(self):
        for images, labels in iterate(self):
            if self.dataset.mode == "train":
                batches.append((labels.numpy(), [image.tobytes() for image in images.numpy()]))
            yield images, labels

    monkeypatch.setattr(loader.Loader, "__iter__", spy)
    monkeypatch.setattr(paddle, "seed", lambda seed: [seeds.append(seed), seed_paddle(seed)][1])

    def of(*options) -> Drawn:
        batches.clear(), seeds.clear()
        train.main([str(option) for option in options])
        labels, pictures = zip(*batches)
        return Drawn(np.stack(labels).tolist(), list(pictures), seeds[1:])

    return of


class Drawn(NamedTuple):
    labels: list
    pictures: list
    seeds: list

    def rest(self, steps: int) -> Drawn:
        return Drawn(*(each[steps:] for each in self))

    def shares_nothing_with(self, other) -> bool:
        """(Of 64 pictures of 40, shifted and mirrored in 162 ways, some are the same by chance.)"""
        both = set(chain(*self.pictures)) & set(chain(*other.pictures))
        seeds, labels = set(self.seeds) & set(other.seeds), self.labels[0] == other.labels[0]
        return len(both) < 16 and not seeds and not labels


def test_a_training_from_weights_does_not_replay_the_one_before_it(drawn, small, tmp_path):
    common = [*small, "--num_epochs", 2, "--save_steps", 1]
    scratch = drawn(*common, "--model_path", tmp_path / "a")
    dataset = classification.Cifar10(small[1], "train", seed=0)  # from scratch: --seed itself
    order = np.random.default_rng((0, 0)).permutation(40)[:16]
    assert scratch.pictures[0] == [dataset[i][0].tobytes() for i in order]
    assert scratch == drawn(*common, "--model_path", tmp_path / "b", "--ratio", 0.7)

    start = ["--pretrained_model", tmp_path / "a"]
    tuned = drawn(*common, *start, "--model_path", tmp_path / "c")
    assert tuned.shares_nothing_with(scratch)
    assert tuned == drawn(*common, *start, "--model_path", tmp_path / "d")
    assert tuned.shares_nothing_with(
        drawn(*common, *start, "--seed", 1, "--model_path", tmp_path / "h")
    )
    start = ["--pretrained_model", tmp_path / "b"]
    assert tuned.shares_nothing_with(drawn(*common, *start, "--model_path", tmp_path / "e"))
    # A resume, also inside an epoch, sees what is left, and ends with the same bits.
    for folder, whole, expected in (("a", "f", scratch), ("c", "g", tuned)):
        shutil.copytree(tmp_path / folder / "epoch-1-step-3", tmp_path / whole / "epoch-1-step-3")
        rest = drawn(*common, "--model_path", tmp_path / whole, "--resume_epoch", "latest")
        assert rest == expected.rest(3)
        a, b = (weights(tmp_path / name / WEIGHTS) for name in (folder, whole))
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_a_training_begun_before_goes_on_with_its_own_seed(drawn, small, tmp_path):
    """A state without `started_from` is of a time when a training from weights replayed them."""
    common = [*small, "--num_epochs", 2, "--model_period", 1]
    scratch = drawn(*common, "--model_path", tmp_path / "a")
    start = ["--pretrained_model", tmp_path / "a"]
    drawn(*common, *start, "--model_path", tmp_path / "b")
    state = json.loads((tmp_path / "b" / "epoch-0" / folders.STATE).read_text())
    assert len(state.pop("started_from")) == 64
    shutil.copytree(tmp_path / "b" / "epoch-0", tmp_path / "c" / "epoch-0")
    train_state.seal(state, tmp_path / "c" / "epoch-0")
    rest = drawn(*common, *start, "--model_path", tmp_path / "c", "--resume_epoch", "latest")
    assert rest == scratch.rest(2)
