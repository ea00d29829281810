"""YOLOv3 on a small data set in VOC's layout, through the programs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import cv2
import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line, metrics, weights

import evaluate
import train
from demos import detect, shapes
from readers.loader import Loader
from readers.sampler import EpochBatchSampler
from readers.voc import Objects, VOCDataset
from tasks import detection, yolov3
from tasks.measure import evaluate as measure
from training import folders, train_state
from training.folders import WEIGHTS

KEYS = ["map_11point", "map_area", "sparsity", "prunable_sparsity", "samples", "images_per_sec"]


@pytest.fixture
def voc(voc_dir):
    """Options for epochs of 2 steps, one of the 9 pictures dropped."""
    return ["--data", "voc", "--data_dir", str(voc_dir), "--scale", "0.25", "--image_size", "64",
            "--train_sizes", "64", "96", "--batch_size", "4", "--batch_size_for_validation", "2",
            "--num_workers", "0", "--use_gpu", "false"]  # fmt: skip


@pytest.mark.parametrize(
    "mode",
    [
        ["--pruning_mode", "threshold", "--threshold", "0.01"],
        ["--ratio", "0.565", "--num_workers", "2"],
        ["--ratio", "0.75", "--pruning_strategy", "gmp", "--stable_epochs", "1",
         "--pruning_epochs", "1", "--pruning_steps", "2"],
    ],
)  # fmt: skip
def test_train_prune_resume_evaluate(mode, voc, tmp_path, capsys):
    common = [*voc, *mode, "--num_epochs", "3", "--test_period", "1", "--model_period", "1"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main([*common, "--model_path", str(whole)])
    train.main([*common, "--model_path", str(parts), "--save_steps", "1", "--max_steps", "3"])
    train.main([*common, "--model_path", str(parts), "--resume_epoch", "latest"])
    ends = [weights(folder / WEIGHTS) for folder in (whole, parts)]
    assert all((ends[0][name] == ends[1][name]).all() for name in ends[0])
    last = metrics(whole)[-1]
    for key in ("train_loss", "map_11point", "map_area", "prunable_sparsity", "lr"):
        assert metrics(parts)[-1][key] == last[key], key
    assert "top1" not in last
    assert last["lr"] == pytest.approx(0.001 * 5 / 1000)  # warm-up
    if "--ratio" in mode:
        assert last["prunable_sparsity"] == pytest.approx(float(mode[1]), abs=1e-5)

    capsys.readouterr()
    alone = ["--pruned_model", str(whole), "--data_dir", voc[3], "--num_workers", "0"]
    evaluate.main([*alone, "--json"])  # data set, width and picture size stand in the checkpoint
    measured = json.loads(capsys.readouterr().out)
    assert list(measured) == KEYS
    assert measured["samples"] == 5
    for key in KEYS[:-2]:
        assert measured[key] == pytest.approx(last[key], abs=1e-12), key
    evaluate.main(alone)
    printed = capsys.readouterr().out
    assert all(name in printed for name in shapes.CLASSES)
    assert f"map_11point {measured['map_11point']:.4f}" in printed


def test_the_sizes_of_training_vary(voc, tmp_path, monkeypatch):
    sizes, forward = [], yolov3.YOLOv3.forward

    def spy(self, images):
        sizes.append((images.shape[2], images.shape[3], self.training))
        return forward(self, images)

    monkeypatch.setattr(yolov3.YOLOv3, "forward", spy)
    train.main(
        [*voc, "--train_sizes", "32", "96", "--num_epochs", "5", "--model_path", str(tmp_path)]
    )
    trained = [size[:2] for size in sizes if size[2]]
    assert set(trained) == {(32, 32), (64, 64), (96, 96)}
    assert {size[:2] for size in sizes if not size[2]} == {(64, 64)}


def test_eight_pictures_are_learnt_by_heart(tmp_path):
    shapes.make(tmp_path, train=8, test=1, side=64)
    lists = tmp_path / "VOC2007" / "ImageSets" / "Main"
    (lists / "test.txt").write_text((lists / "trainval.txt").read_text())
    tested = VOCDataset(tmp_path, "val", image_size=64)
    dataset = VOCDataset(tmp_path, "train", image_size=64)
    dataset.transforms = ()
    images, *targets = (paddle.to_tensor(np.stack(c)) for c in zip(*(dataset[i] for i in range(8))))
    paddle.seed(0)
    model = yolov3.YOLOv3(num_classes=3, scale=0.1)
    schedule = paddle.optimizer.lr.LambdaDecay(
        0.02, lambda step: min(1, (step + 1) / 20) * (1 if step < 72 else 0.2)
    )
    opt = paddle.optimizer.Momentum(schedule, parameters=model.parameters())
    for _ in range(120):
        detection.loss(model(images), targets).backward()
        opt.step()
        opt.clear_grad()
        schedule.step()
    loader = Loader(tested, EpochBatchSampler(8, 4, shuffle=False, drop_last=False), 0)
    result = measure(model, loader, detection.Metric(tested))
    assert result["map_11point"] > 0.95
    assert result["samples"] == 8


class Drawn:
    """Two pictures: three objects of the first class, one of them difficult, none of the other."""

    classes = ["a", "b"]  # noqa: RUF012
    objects = [  # noqa: RUF012
        Objects(np.float32([[0, 0, 10, 10], [20, 20, 30, 30]]), np.int32([0, 0]),
                np.array([False, True]), None),
        Objects(np.float32([[0, 0, 10, 10]]), np.int32([0]), np.array([False]), None),
    ]  # fmt: skip


def test_the_metric_ranks_over_the_whole_data_set():
    found = {
        0: (
            np.float32([[0, 0, 10, 10], [20, 20, 30, 30]]),
            np.float32([0.5, 0.9]),
            np.int64([0, 0]),
        ),
        1: (
            np.float32([[50, 50, 60, 60], [0, 0, 10, 10]]),
            np.float32([0.8, 0.4]),
            np.int64([0, 0]),
        ),
    }
    metric = detection.Metric(Drawn())
    for index in (1, 0):
        metric.count(index, *found[index])
    result = metric.result()
    # By score: difficult (not counted), wrong, right, right. Precision 0, 1/2, 2/3 of two objects.
    assert result["map_11point"] == pytest.approx(2 / 3)
    assert result["map_area"] == pytest.approx(2 / 3)
    assert result["samples"] == 2
    assert math.isnan(metric.by_class["b"][0])  # is not in the test set, and not in the mean


RANKS = """
import json, sys, zlib
import numpy as np, paddle
import paddle.distributed as dist
from tasks import detection
from readers.sampler import EpochBatchSampler
from readers.voc import VOCDataset

if dist.get_world_size() > 1:
    dist.init_parallel_env()
dataset = VOCDataset(sys.argv[1], "val")
metric, rank, ranks = detection.Metric(dataset), dist.get_rank(), dist.get_world_size()
for batch in EpochBatchSampler(len(dataset), 2, 0, rank, ranks, shuffle=False, drop_last=False):
    for index in batch:  # scores tie; what is found is right in one of two pictures
        truth = dataset.objects[index]
        boxes, scores = truth.boxes / (1 + index % 2 * 8), np.full(len(truth.boxes), 0.5)
        metric.count(index, boxes, scores, truth.labels)
with open(f"{sys.argv[2]}/{ranks}-{rank}.json", "w") as file:
    json.dump([metric.result(), metric.by_class], file)
"""


def test_several_ranks_measure_what_one_does(voc_dir, tmp_path):
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launcher = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"]
    for command in ([sys.executable], [*launcher, "--log_dir", tmp_path / "log"]):
        subprocess.run(
            [*command, script, voc_dir, tmp_path], check=True, stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PADDLE_DISTRI_BACKEND": "gloo"},
        )  # fmt: skip
    alone, *both = (json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json")))
    assert both == [alone, alone]
    assert 0.3 < alone[0]["map_11point"] < 1


def test_boxes_are_drawn_beside_the_truth(voc, tmp_path, monkeypatch):
    train.main([*voc, "--max_steps", "1", "--model_path", str(tmp_path / "models")])
    boxes, scores = np.float32([[8, 8, 40, 40], [2, 8, 60, 60]]), np.float32([0.9, 0.29])

    def detections(outputs, sizes):
        return [(boxes, scores, np.int64([0, 0])) for _ in range(len(sizes))]

    monkeypatch.setattr(yolov3, "detections", detections)
    evaluate.main(["--pruned_model", str(tmp_path / "models"), "--data_dir", voc[3],
                   "--num_workers", "0", "--show", str(tmp_path / "seen")])  # fmt: skip
    dataset = VOCDataset(voc[3], "val")
    assert {p.stem for p in (tmp_path / "seen").iterdir()} == {name for _, name in dataset.names}
    scale = 8  # 64 pixels become 512
    picture = cv2.cvtColor(cv2.imread(str(tmp_path / "seen" / "test00000.png")), cv2.COLOR_BGR2RGB)
    assert picture.shape == (512, 512 + 4 + 512, 3)
    red = [255, 0, 0]
    assert picture[30 * scale, 8 * scale].tolist() == red
    assert picture[30 * scale, 40 * scale - 1].tolist() == red
    assert picture[30 * scale, 2 * scale].tolist() != red  # not sure enough
    x1, y1, _, y2 = (dataset.objects[0].boxes[0] * scale).astype(int)
    edge = picture[(y1 + y2) // 2, 516 + x1]
    assert sorted(edge.tolist())[0] == 0  # a saturated colour
    assert sorted(edge.tolist())[2] == 255


def test_no_more_pictures_are_drawn_than_were_said(voc_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "MAX_SHOWN_PICTURES", 2)
    metric = detection.Metric(VOCDataset(voc_dir, "val"))
    for index in range(5):
        metric.count(index, np.zeros([0, 4]), np.zeros(0), np.zeros(0, np.int64))
    metric.show(str(tmp_path))
    assert len(list(tmp_path.iterdir())) == 2


def refused(capfd, *options) -> str:
    return error_line(capfd, train.main, *options)


def test_what_does_not_fit_is_refused(voc, small, tmp_path, capfd):
    more = ["--model_path", tmp_path]
    assert "needs --data voc" in refused(capfd, *small, "--model", "yolov3", *more)
    assert "--model mobilenet_v1 needs --data cifar10" in refused(
        capfd, *voc, "--model", "mobilenet_v1", *more)  # fmt: skip
    for option in (["--train_sizes", 64, 96], ["--mixup_epochs", 3], ["--augmentation", "flip"]):
        assert f"{option[0]}: this needs --data voc" in refused(capfd, *small, *option, *more)
    assert "--mixup_epochs: this needs --augmentation full" in refused(
        capfd, *voc, "--augmentation", "flip", "--mixup_epochs", 3, *more)  # fmt: skip
    assert "yolov3 cannot be 0.01 times as wide" in refused(capfd, *voc, "--scale", 0.01, *more)
    for sizes in (["--image_size", 100], ["--train_sizes", 64, 100]):
        assert "multiple of 32" in refused(capfd, *voc, *sizes, *more)
    assert "smallest first" in refused(capfd, *voc, "--train_sizes", 96, 64, *more)
    assert "has 3 classes" in refused(capfd, *voc, "--num_classes", 20, *more)
    assert "there is no data folder" in refused(
        capfd, "--data", "voc", "--data_dir", tmp_path / "x", *more
    )
    assert "ImageNet weights for yolov3" in refused(
        capfd, *voc, "--scale", 1, "--use_pretrained", *more)  # fmt: skip
    assert not list(tmp_path.glob("epoch-*"))
    train.main([*voc, "--max_steps", "1", "--model_path", str(tmp_path)])
    for option in (["--train_sizes", 64, 64], ["--mixup_epochs", 0], ["--augmentation", "flip"],
                   ["--warmup_steps", 0], ["--image_size", 96]):  # fmt: skip
        message = refused(capfd, *voc, *option, *more, "--resume_epoch", "latest")
        assert f"was trained with {option[0]}" in message


def test_evaluate_takes_what_was_trained_unless_it_is_told(
    voc, small, tmp_path, capfd, monkeypatch
):
    models, data = tmp_path / "models", ["--data_dir", voc[3], "--num_workers", "0"]
    train.main([*voc, "--max_steps", "1", "--model_path", str(models)])
    sides, forward = [], yolov3.YOLOv3.forward

    def spy(self, images):
        sides.append(images.shape[2])
        return forward(self, images)

    monkeypatch.setattr(yolov3.YOLOv3, "forward", spy)
    evaluate.main(["--pruned_model", str(models), *data])
    evaluate.main(["--pruned_model", str(models), *data, "--image_size", "96"])
    alone = tmp_path / "model.pdparams"  # without a train-state.json
    alone.write_bytes((models / WEIGHTS).read_bytes())
    evaluate.main(["--pruned_model", str(alone), *data, "--data", "voc", "--scale", "0.25"])
    assert sides == [64, 96, 416]
    models = models / "epoch-0-step-1"
    for name, value in {"image_size": None, "scale": math.inf, "scale ": 0.002}.items():
        state = json.loads((models / folders.STATE).read_text())
        state["options"][name.strip()] = value
        (models / folders.STATE).unlink()
        train_state.seal(state, models)
        if value is None:
            evaluate.main(["--pruned_model", str(models), *data])  # the default
        else:
            error_line(capfd, evaluate.main, "--pruned_model", models, *data)
    train.main([*small, "--max_steps", "1", "--model_path", str(tmp_path / "digits")])
    message = error_line(
        capfd, evaluate.main, "--pruned_model", tmp_path / "digits", "--show", tmp_path / "seen"
    )
    assert message.endswith("needs --data voc")
    message = error_line(capfd, evaluate.main, "--pruned_model", models, "--show", alone, *data)
    assert str(alone) in message
    assert "cannot draw into --show" in message


def test_the_names_of_the_classes_are_those_of_the_training(voc, tmp_path, capfd):
    shapes.make(tmp_path, train=4, test=1, side=64)
    models = tmp_path / "models"
    common = [*voc, "--data_dir", str(tmp_path), "--model_path", str(models), "--num_epochs", "2"]
    train.main([*common, "--max_steps", "1"])
    labels = tmp_path / "label_list.txt"
    labels.write_text("\n".join(reversed(labels.read_text().split())))
    message = refused(capfd, *common, "--resume_epoch", "latest")
    assert "was trained with the classes ['circle', 'square', 'triangle']" in message
    message = error_line(capfd, evaluate.main, "--pruned_model", models, "--data_dir", tmp_path)
    assert "trained on the classes ['circle', 'square', 'triangle']" in message


def test_a_broken_picture_or_annotation_ends_in_one_line(voc, tmp_path, capfd):
    shapes.make(tmp_path, train=4, test=1, side=64)
    options = [*voc, "--data_dir", tmp_path, "--model_path", tmp_path / "models"]
    picture = tmp_path / "VOC2007" / "JPEGImages" / "test00000.jpg"
    annotation = tmp_path / "VOC2007" / "Annotations" / "trainval00001.xml"
    picture.write_bytes(picture.read_bytes()[:300])
    assert str(picture) in refused(capfd, *options, "--max_steps", 1)
    assert (
        folders.find_latest(tmp_path / "models").folder.name == "epoch-0-step-1"
    )  # training is kept
    annotation.write_text(annotation.read_text().replace("<name>", "<name>un"))
    assert f"{annotation}: object 1 is of unknown class" in refused(capfd, *options)


def test_the_demo(tmp_path, capfd):
    detect.main(["--pictures", "8", "--dense_epochs", "1", "--epochs", "1", "--out", str(tmp_path)])
    lines = capfd.readouterr().out.splitlines()
    result = json.loads(lines[-1])
    assert list(result) == [
        "map_dense",
        "map_pruned",
        "map_control",
        "prunable_sparsity",
        "seconds",
    ]
    assert result["prunable_sparsity"] == pytest.approx(0.565, abs=1e-5)
    rows = [line for line in lines if line.startswith("|")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == ["dense", "pruned", "control"]
