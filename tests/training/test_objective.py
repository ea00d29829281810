"""What a training minimises, against numpy: smoothed labels, and what a teacher adds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from conftest import assert_same_end, error_line, metrics, weights

import train
from readers.small_images import Cifar10
from tasks import classification, detection
from training import train_state
from training.folders import STATE, WEIGHTS
from training.objective import Objective, distillation, load_teacher

rng = np.random.default_rng(0)
LOGITS, LABELS = rng.normal(size=(5, 7)).astype("float32"), np.array([3, 0, 6, 6, 1])


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(1, keepdims=True))


def smoothed(logits: np.ndarray, part: float) -> float:
    """The cross entropy with labels of which `part` lies evenly on the 7 classes."""
    labels = np.eye(7)[LABELS] * (1 - part) + part / 7
    return -(labels * log_softmax(logits.astype("float64"))).sum(1).mean()


PLAIN = {"label_smoothing": 0.0, "distill_weight": 0.5, "distill_temperature": 4.0}


def objective(teacher=None, task=classification, **options) -> Objective:
    return Objective(task, SimpleNamespace(**{**PLAIN, **options}), teacher)


@pytest.mark.parametrize("part", [0.0, 0.1, 1.0])
def test_smoothed_labels(part):
    minimised, labels = objective(label_smoothing=part), [paddle.to_tensor(LABELS)]
    loss = minimised(None, paddle.to_tensor(LOGITS), labels)
    assert float(loss) == pytest.approx(smoothed(LOGITS, part), rel=1e-6)
    if part == 0:  # to the bit
        assert float(loss) == float(F.cross_entropy(paddle.to_tensor(LOGITS), *labels))
    outputs = [paddle.to_tensor(LOGITS * factor) for factor in (1, 2, 3)]  # as GoogLeNet's
    main, *auxiliary = (smoothed(LOGITS * factor, part) for factor in (1, 2, 3))
    expected = main + 0.3 * sum(auxiliary)
    assert float(minimised(None, outputs, labels)) == pytest.approx(expected, rel=1e-6)


def test_labels_that_are_smoothed_to_float16_lose_nothing():
    """With --amp logits are float16, in which 0.001 / 7 would be 0.0001428."""
    half = paddle.to_tensor(LOGITS.astype("float16"))
    loss = float(objective(label_smoothing=0.001)(None, half, [paddle.to_tensor(LABELS)]))
    assert loss == pytest.approx(smoothed(LOGITS.astype("float16"), 0.001), rel=1e-6)


@pytest.mark.parametrize("part", [0.0, 0.1])
def test_labels_may_be_a_column(part):
    logits, labels = paddle.to_tensor(LOGITS), [paddle.to_tensor(LABELS[:, None])]
    loss = float(objective(label_smoothing=part)(None, logits, labels))
    assert loss == pytest.approx(smoothed(LOGITS, part), rel=1e-6)


TAUGHT = rng.normal(size=(5, 7)).astype("float32")


class Teacher(paddle.nn.Layer):
    """Its outputs, and two more as GoogLeNet's, depend on the pictures alone in its eval mode."""

    def __init__(self):
        super().__init__()
        self.scale = self.create_parameter(
            [1], default_initializer=paddle.nn.initializer.Constant(1)
        )
        self.scale.set_value(np.ones(1, "float32"))
        self.eval()

    def forward(self, images):
        main = paddle.to_tensor(TAUGHT) * self.scale + images.mean()
        return [main, main * 9, main * 9] if not self.training else None


@pytest.mark.parametrize(("temperature", "weight"), [(2.0, 0.5), (1.0, 1.0), (5.0, 0.25)])
def test_what_a_teacher_adds(temperature, weight):
    student, teacher = paddle.to_tensor(LOGITS, stop_gradient=False), Teacher()
    p, q = (np.exp(log_softmax(x.astype("float64") / temperature)) for x in (TAUGHT + 3, LOGITS))
    divergence = np.mean([sum(p[i] * np.log(p[i] / q[i])) for i in range(5)])
    expected = (1 - weight) * smoothed(LOGITS, 0.1) + weight * temperature**2 * divergence
    options = {"distill_temperature": temperature, "distill_weight": weight}
    minimised = objective(teacher, label_smoothing=0.1, **options)
    loss = minimised(paddle.full([5, 3, 2, 2], 3.0), student, [paddle.to_tensor(LABELS)])
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert teacher.scale.grad is None
    labels = np.eye(7)[LABELS] * 0.9 + 0.1 / 7
    task = np.exp(log_softmax(LOGITS)) - labels
    gradient = ((1 - weight) * task + weight * temperature * (q - p)) / 5
    assert student.grad.numpy() == pytest.approx(gradient, abs=1e-6)


def test_outputs_of_two_bytes_are_compared_in_four():
    half = [paddle.to_tensor(x.astype("float16")) for x in (LOGITS, TAUGHT)]
    exact = [x.astype("float32") for x in half]
    assert float(distillation(*half, 3.0)) == float(distillation(*exact, 3.0))


@pytest.mark.parametrize("task", [classification, detection])
def test_without_such_options_it_is_the_loss_of_the_task(task, monkeypatch):
    monkeypatch.setattr(task, "loss", lambda outputs, targets: (outputs, targets))
    assert objective(task=task)("images", "outputs", "targets") == ("outputs", "targets")


def test_the_loss_of_a_test_has_no_smoothed_labels(small, tmp_path):
    common = [*small, "--num_epochs", "1", "--lr", "0", "--pruning_mode", "none"]
    for name, part in (("plain", "0"), ("smoothed", "0.5")):
        train.main([*common, "--label_smoothing", part, "--model_path", str(tmp_path / name)])
    (plain,), (smooth,) = metrics(tmp_path / "plain"), metrics(tmp_path / "smoothed")
    assert plain["loss"] == smooth["loss"]
    assert plain["train_loss"] != smooth["train_loss"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label_smoothing", "10"], "argument --label_smoothing: must be a number in [0, 1], got "
         "10; did you mean 0.1?"),
        (["--data", "voc", "--label_smoothing", "0.1"],
         "error: --label_smoothing: this is for classifiers, not for --data voc"),
        (["--data", "voc", "--teacher", "models"],
         "error: --teacher: this is for classifiers, not for --data voc"),
        (["--distill_weight", "0.7", "--distill_temperature", "3"],
         "error: --distill_temperature, --distill_weight: this needs --teacher"),
        (["--distill_temperature", "0"], "must be a number in [0.1, 100], got 0"),
        (["--teacher", "nowhere"], "error: there is no nowhere, nowhere.pdparams or"),
    ],
)  # fmt: skip
def test_refusals(options, words, tmp_path, capfd):
    assert words in error_line(capfd, train.main, *options, "--model_path", tmp_path)


@pytest.fixture(scope="module")
def dense(cifar_dir, tmp_path_factory) -> Path:
    """A trained network, which is another one than the students."""
    folder = tmp_path_factory.mktemp("dense")
    train.main([*options_of(cifar_dir), "--pruning_mode", "none", "--num_epochs", "1",
                "--model_path", str(folder)])  # fmt: skip
    return folder


def options_of(cifar_dir, scale="0.25") -> list[str]:
    return ["--data_dir", str(cifar_dir), "--scale", scale, "--batch_size", "16", "--lr", "0.01",
            "--num_workers", "0", "--use_gpu", "false", "--use_pretrained", "false"]  # fmt: skip


STUDENT = ["--model", "mobilenet_v2", "--num_epochs", "2", "--model_period", "1",
           "--test_period", "1"]  # fmt: skip


def test_a_teacher_is_the_network_of_its_state(dense):
    """Of its model and width, not of the training's, and as in a test."""
    args = SimpleNamespace(teacher=str(dense), data="cifar10", model="resnet18", scale=1.0,
                           num_classes=10, image_size=None, classes=None,
                           fast_convolutions=True)  # fmt: skip
    teacher = load_teacher(args)
    model = paddle.vision.models.mobilenet_v1(scale=0.25, num_classes=10)
    model.set_state_dict(paddle.load(str(dense / WEIGHTS)))
    model.eval()
    images = paddle.to_tensor(rng.normal(size=(4, 3, 32, 32)).astype("float32"))
    assert teacher(images).numpy() == pytest.approx(model(images).numpy(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("saved", "here", "taken"),
    [
        ({"data": "cifar10", "classes": None}, {"classes": ["airplane", "automobile"]}, False),
        (
            {"data": "cifar10", "classes": None},
            {"classes": list(Cifar10.classes)},
            True,
        ),  # an early one
        ({"data": "digits", "classes": None}, {"classes": list(Cifar10.classes)}, False),
        ({"data": "digits", "classes": None}, {"data": "imagenet", "classes": None}, False),
        ({"data": "imagenet", "classes": None}, {"data": "imagenet", "classes": None}, True),
        ({"data": "imagenet", "classes": None}, {"data": "imagenet", "classes": ["a"]}, True),
        ({"data": "imagenet", "classes": ["b"]}, {"data": "imagenet", "classes": ["a"]}, False),
        ({"data": "imagenet", "classes": ["a"]}, {"data": "cifar10", "classes": ["a"]}, True),
        ({"data": "imagenet", "classes": ["a"]}, {"data": "imagenet", "classes": None}, True),
        ({"data": "imagenet", "classes": ["a"]}, {"data": "digits", "classes": None}, False),
    ],
)
def test_a_teacher_of_other_classes(saved, here, taken, dense, tmp_path):
    shutil.copytree(dense, tmp_path / "teacher", symlinks=True)
    state = json.loads((dense / STATE).read_text())
    state["options"].update(saved)
    train_state.seal(state, tmp_path / "teacher")
    args = SimpleNamespace(**{"teacher": str(tmp_path / "teacher"), "data": "cifar10",
                              "num_classes": 10, "image_size": 32, "fast_convolutions": True,
                              **here})  # fmt: skip
    if taken:
        assert load_teacher(args) is not None
    else:
        with pytest.raises(ValueError, match=f"it was trained on {saved['data']} with .*, this"):
            load_teacher(args)


@pytest.mark.parametrize("teacher", ["", "epoch-0", "model-pruned.pdparams"])
def test_a_teacher_that_the_training_would_move_is_refused(teacher, dense, cifar_dir, capfd):
    options = [*options_of(cifar_dir), "--teacher", dense / teacher, "--model_path", dense]
    assert "is what an earlier run left in --model_path" in error_line(capfd, train.main, *options)


def test_a_teacher_may_lie_below(dense, cifar_dir, tmp_path):
    shutil.copytree(dense / "epoch-0", tmp_path / "teacher")
    train.main([*options_of(cifar_dir), "--teacher", str(tmp_path / "teacher"), "--max_steps", "1",
                "--model_path", str(tmp_path)])  # fmt: skip
    assert (tmp_path / "teacher" / WEIGHTS).is_file()


def test_a_taught_training_goes_on_also_with_a_teacher_elsewhere(dense, cifar_dir, tmp_path, capfd):
    common = [*options_of(cifar_dir, "0.35"), *STUDENT]
    whole, part, moved = (tmp_path / name for name in ("whole", "part", "moved"))
    before = (dense / WEIGHTS).read_bytes()
    train.main([*common, "--teacher", str(dense), "--model_path", str(whole)])
    assert f"teacher   {dense}\n" in capfd.readouterr().out
    assert (dense / WEIGHTS).read_bytes() == before
    shutil.copytree(dense / "epoch-0", moved)
    resume = [*common, "--model_path", str(part), "--resume_epoch", "latest"]
    for steps, teacher in (("1", dense), ("3", moved), ("4", moved / WEIGHTS)):
        train.main([*resume, "--teacher", str(teacher), "--max_steps", steps])
    assert_same_end(whole, part)
    # Another one is another training, whatever its name; so is none, and other words of the loss.
    other = tmp_path / "other" / WEIGHTS
    other.parent.mkdir()
    state = weights(moved / WEIGHTS)
    paddle.save({n: paddle.to_tensor(v + (n == "fc.bias")) for n, v in state.items()}, str(other))
    shutil.copy(other, moved / WEIGHTS)
    (moved / STATE).unlink()
    alone = ["--teacher", str(moved), "--num_epochs", "3"]
    known = train_state.sha256(dense / WEIGHTS)[:12]
    for words, was in (
        (alone, f"--teacher {moved / WEIGHTS}, whose SHA-256 was {known}..."),
        ([], f"--teacher {moved / WEIGHTS}, whose SHA-256 was {known}..."),
        (["--teacher", dense, "--distill_weight", "0.6"], "--distill_weight 0.5"),
    ):
        message = error_line(capfd, train.main, *resume, *words, "--num_epochs", "3")
        assert message.endswith(f"was trained with {was}; give the same, or --force")
    message = error_line(capfd, train.main, *resume, *alone, "--force")  # of the student's network
    assert f"--teacher {moved}: {moved / WEIGHTS} does not fit the model" in message
    shutil.copy(dense / STATE, moved / STATE)
    message = error_line(capfd, train.main, *resume, *alone, "--force")
    assert "is not what train-state.json says was saved" in message


def test_a_teacher_that_is_not_listened_to_changes_nothing(dense, cifar_dir, tmp_path):
    """Neither the first weights nor what dropout draws."""
    common = [*options_of(cifar_dir, "0.35"), *STUDENT]
    train.main([*common, "--model_path", str(tmp_path / "a")])
    taught = ["--teacher", str(dense), "--distill_weight", "0"]
    train.main([*common, *taught, "--model_path", str(tmp_path / "b")])
    assert_same_end(tmp_path / "a", tmp_path / "b")
    train.main([*common, *taught[:2], "--model_path", str(tmp_path / "c")])
    assert metrics(tmp_path / "b")[0]["train_loss"] != metrics(tmp_path / "c")[0]["train_loss"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_classes": 11}, "it tells 11 classes apart, this training 10"),
        ({"model": "yolov3"}, "there is no model 'yolov3' for cifar10"),
        ({"model": "googlenet", "scale": 1.0}, "googlenet does not take pictures of 32x32"),
        ({"scale": 0.5}, "conv1.0.weight is [8, 3, 3, 3], the model's [16, 3, 3, 3]"),
    ],
)
def test_a_teacher_that_does_not_fit(changed, words, dense, small, tmp_path, capfd):
    shutil.copytree(dense / "epoch-0", tmp_path / "teacher")
    state = json.loads((dense / STATE).read_text())
    state["options"].update(changed)
    train_state.seal(state, tmp_path / "teacher")
    message = error_line(capfd, train.main, *small, "--teacher", tmp_path / "teacher",
                         "--model_path", tmp_path / "models")  # fmt: skip
    assert f"error: --teacher {tmp_path / 'teacher'}: " in message
    assert words in message


@pytest.mark.parametrize("names", [["ant", "bee"], ["bee", "ant"], None])
def test_names_of_classes(names, dense, cifar_dir, tmp_path, capfd, monkeypatch):
    """They have to be the same where both have them."""
    monkeypatch.setattr(classification.Cifar10, "classes", ["ant", "bee"], raising=False)
    shutil.copytree(dense / "epoch-0", tmp_path / "teacher")
    state = json.loads((dense / STATE).read_text())
    state["options"]["classes"] = names
    train_state.seal(state, tmp_path / "teacher")
    options = [*options_of(cifar_dir), "--teacher", str(tmp_path / "teacher"), "--max_steps", "1",
               "--model_path", str(tmp_path / "models")]  # fmt: skip
    if names == ["bee", "ant"]:
        message = error_line(capfd, train.main, *options)
        assert message.endswith(
            "it was trained on cifar10 with the classes ['bee', 'ant'], this training is on "
            "cifar10 with the classes ['ant', 'bee']"
        )
    else:
        train.main(options)
