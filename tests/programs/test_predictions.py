"""evaluate.py --predict and --per_class, with names and pictures of strangers."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib

import numpy as np
import paddle
import pytest
from conftest import error_line
from PIL import Image
from sklearn.datasets import load_sample_image

import evaluate
import export
import runtimes
import train
from readers.pictures import decode
from readers.small_images import Cifar10
from readers.voc import VOCDataset
from tasks import TASKS, detection, yolov3
from tasks.lines import table
from tasks.predict import file_name
from training import train_state

NAMES = ["cat", "\x1b[31mred\n0.99 dog", "手写体"]  # in the order of the labels
FAST = ["--num_workers", "0", "--use_gpu", "false"]


# Classifiers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three classes with such names, a colour each."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for mode, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(sorted(NAMES)):
            (folder / mode / name).mkdir(parents=True)
            for i in range(count + label):
                pixels = rng.integers(0, 60, (40, 50, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(folder / mode / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def models(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    train.main(["--data", "imagenet", "--data_dir", str(data), "--num_classes", "7", *FAST,
                "--scale", "0.25", "--image_size", "32", "--batch_size", "9", "--num_epochs", "30",
                "--lr_strategy", "cosine_decay", "--model_path", str(folder)])  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    pytest.importorskip("paddle2onnx")
    folder = tmp_path_factory.mktemp("exported")
    for name in runtimes.NAMES:
        export.main(["--pruned_model", str(models), "--format", name, "--out", str(folder)])
    return folder


def predicted(capsys, folder, *words) -> list[dict]:
    capsys.readouterr()
    evaluate.main(["--pruned_model", str(folder), *FAST, "--json", *map(str, words)])
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return json.loads(out)


def test_the_five_likeliest_classes_by_name(data, models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no data set is there
    paths = [data / "val" / name / "1.png" for name in sorted(NAMES)]
    pictures = predicted(capsys, models, "--predict", *paths)
    assert [each["picture"] for each in pictures] == [str(path) for path in paths]
    for name, each in zip(sorted(NAMES), pictures):
        found = each["predictions"]
        assert found[0]["class"] == name
        assert found[0]["label"] == sorted(NAMES).index(name)
        shares = [one["probability"] for one in found]
        assert shares == sorted(shares, reverse=True)
        assert 0.9 < sum(shares) <= 1 + 1e-6
        assert len(found) == 5
        unnamed = [one for one in found if one["label"] >= 3]  # outputs without a class
        assert unnamed
        assert all(one["class"] == str(one["label"]) for one in unnamed)
    evaluate.main(["--pruned_model", str(models), *FAST, "--predict", *map(str, paths)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * 6
    assert all(line.isprintable() for line in lines)
    share = pictures[1]["predictions"][0]["probability"]
    assert lines[6:8] == [
        f"{data}/val/cat/1.png",
        f"  {share:.4f} cat",
    ]
    assert lines[0].endswith(r"/\x1b[31mred\n0.99 dog/1.png")
    assert lines[1].endswith(r" \x1b[31mred\n0.99 dog")
    assert lines[13].endswith(" 手写体")


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_a_runtime_says_the_same(name, data, models, exported, capsys):
    paths = [data / "val" / folder / "0.png" for folder in NAMES]
    ours = predicted(capsys, models, "--predict", *paths)
    theirs = predicted(capsys, exported, "--runtime", name, "--predict", *paths)
    for one, other in zip(ours, theirs):
        assert [x["class"] for x in one["predictions"][:2]] == [
            x["class"] for x in other["predictions"][:2]
        ]
        for x, y in zip(one["predictions"], other["predictions"]):
            assert y["probability"] == pytest.approx(x["probability"], abs=1e-4)


def test_a_table_of_the_classes(data, models, capsys):
    result = predicted(capsys, models, "--data_dir", data, "--per_class")
    rows = result["classes"]
    assert [row["class"] for row in rows] == sorted(NAMES)
    assert [row["samples"] for row in rows] == [3, 4, 5]
    right = sum(row["samples"] * row["top1"] for row in rows)
    assert right == pytest.approx(result["samples"] * result["top1"])
    evaluate.main(["--pruned_model", str(models), *FAST, "--data_dir", str(data), "--per_class"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[1].startswith(r"\x1b[31mred\n0.99 dog ")
    assert lines[3].split() == ["手写体", "5", f"{rows[2]['top1']:.4f}"]


def test_top1_of_each_class():
    metric = TASKS["digits"].Metric(None)  # without names
    logits = paddle.to_tensor([[9.0, 0, 1], [9, 0, 1], [0, 0, 9], [9, 0, 1]])
    metric.add(logits, [paddle.to_tensor([0, 2, 2, 0])])
    metric.add(logits[:1], [paddle.to_tensor([2])])
    assert metric.per_class() == [
        {"class": "0", "samples": 2, "top1": 1.0},
        {"class": "1", "samples": 0, "top1": None},
        {"class": "2", "samples": 3, "top1": 1 / 3},
    ]
    assert [line.split() for line in table(metric.per_class()).splitlines()] == [
        ["class", "samples", "top1"], ["0", "2", "1.0000"], ["1", "0"], ["2", "3", "0.3333"],
    ]  # fmt: skip


def test_an_early_checkpoint_of_cifar10(small, cifar_dir, tmp_path, capfd):
    """It was saved without the names of the classes."""
    models = tmp_path / "models"
    options = [*small, "--model_path", str(models), "--num_epochs", "2"]
    train.main([*options, "--max_steps", "1"])
    saved = models / "epoch-0-step-1"
    state = json.loads((saved / "train-state.json").read_text())
    assert state["options"]["classes"] == list(Cifar10.classes)
    state["options"]["classes"] = None
    train_state.seal(state, saved)
    Image.new("RGB", (9, 9)).save(tmp_path / "black.png")
    capfd.readouterr()
    evaluate.main(["--pruned_model", str(saved), *small[:2], *FAST])
    assert "may not mean the same" not in capfd.readouterr().err
    (picture,) = predicted(capfd, saved, "--predict", tmp_path / "black.png")
    assert {one["class"] for one in picture["predictions"]} < set(Cifar10.classes)
    train.main([*options, "--resume_epoch", "latest"])
    assert train_state.read(models).options["classes"] == list(Cifar10.classes)
    weights = tmp_path / "weights.pdparams"  # without a train-state.json
    weights.write_bytes((saved / "model-pruned.pdparams").read_bytes())
    (alone,) = predicted(
        capfd, weights, "--scale", 0.25, "--predict", tmp_path / "black.png")  # fmt: skip
    shares = [[one["probability"] for one in each["predictions"]] for each in (picture, alone)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-5)
    assert alone["predictions"][0]["class"] == picture["predictions"][0]["class"]


def diverged(options) -> paddle.nn.Layer:
    model = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * 32 * 32, 7))
    model[1].bias.set_value(np.full([7], np.nan, np.float32))
    return model


# Pictures that are none, and some that are odd


def jpeg() -> bytes:
    file = io.BytesIO()
    Image.fromarray(load_sample_image("flower.jpg")[:90, :120]).save(file, "JPEG")
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + end + b"\0\0\0\0IDAT"


BAD = {
    "text.jpg": (b"no picture", "not a picture in one of the formats"),
    "empty.png": (b"", "the file is empty"),
    "half.jpg": (jpeg()[:1000], "Premature end of JPEG"),
    "huge.png": (png_header(60_000, 60_000), "exceeds limit"),
    "large.png": (png_header(10_000, 9_000), "10000 x 9000 is too large"),
}


@pytest.mark.parametrize("name", [*BAD, "missing.png", "folder.png", "zero\0.png", "\x1b[2J\n.png"])
def test_what_is_no_picture_is_left_out(name, models, tmp_path, capfd):
    content, message = BAD.get(name, (None, ""))
    if content is not None:
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "good.jpg").write_bytes(jpeg())
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--pruned_model", str(models), *FAST, "--predict",
                       f"{tmp_path}/{name}", f"{tmp_path}/good.jpg"])  # fmt: skip
    assert ended.value.code == 2
    out, err = capfd.readouterr()
    assert re.match(rf"{tmp_path}/good\.jpg\n  [01]\.", out)  # the other one is shown
    shown = name.replace("\0", r"\x00").replace("\x1b", r"\x1b").replace("\n", r"\n")
    assert err.startswith(f"evaluate.py: error: {tmp_path}/{shown}: ")
    assert err.count("\n") == 1
    assert message in err
    assert err[:-1].isprintable()


def test_with_json_too(models, tmp_path, capfd):
    (tmp_path / "good.jpg").write_bytes(jpeg())
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        evaluate.main(["--pruned_model", str(models), *FAST, "--json", "--predict",
                       f"{tmp_path}/a", f"{tmp_path}/b", f"{tmp_path}/good.jpg"])  # fmt: skip
    assert ended.value.code == 2
    out, err = capfd.readouterr()
    assert [each["picture"] for each in json.loads(out)] == [f"{tmp_path}/good.jpg"]
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    ("mode", "size"),
    [("RGB", (1, 1)), ("L", (30, 40)), ("LA", (30, 40)), ("RGBA", (30, 40)), ("I;16", (30, 40)),
     ("1", (30, 40)), ("P", (30, 40)), ("RGB", (9000, 1))],
)  # fmt: skip
def test_odd_pictures_are_taken(mode, size, models, tmp_path, capfd):
    Image.new(mode, size).save(tmp_path / "odd.png")
    (picture,) = predicted(capfd, models, "--predict", tmp_path / "odd.png")
    assert len(picture["predictions"]) == 5
    assert capfd.readouterr().err == ""


def test_a_network_that_has_diverged(models, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(TASKS["imagenet"], "make_model", diverged)
    monkeypatch.setattr(evaluate.checkpoint, "load_weights", lambda *_: None)
    (tmp_path / "good.jpg").write_bytes(jpeg())
    message = error_line(capfd, evaluate.main, "--pruned_model", models, *FAST,
                         "--predict", tmp_path / "good.jpg")  # fmt: skip
    assert "NaN or infinite: its training has diverged" in message


def test_what_does_not_go_together(models, tmp_path, capfd):
    (tmp_path / "good.jpg").write_bytes(jpeg())
    words = ["--pruned_model", models, *FAST, "--predict", tmp_path / "good.jpg"]
    for more in ("--per_layer", "--per_class"):
        assert "--predict measures nothing" in error_line(capfd, evaluate.main, *words, more)
    message = error_line(capfd, evaluate.main, *words, "--show", tmp_path / "seen")
    assert message.endswith("--show draws what a detector finds: it needs --data voc")


# Detectors


@pytest.fixture(scope="module")
def detector(voc_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    train.main(["--data", "voc", "--data_dir", str(voc_dir), "--scale", "0.25", *FAST,
                "--image_size", "64", "--train_sizes", "64", "64", "--batch_size", "4",
                "--max_steps", "1", "--model_path", str(folder)])  # fmt: skip
    return folder


@pytest.fixture
def finding(monkeypatch):
    """Whatever the network computes, these are found."""
    boxes, scores = np.float32([[8, 4, 40, 20], [0, 0, 9, 9]]), np.float32([0.75, 0.29])
    sizes_seen = []

    def detections(outputs, sizes):
        sizes_seen.append(sizes.tolist())
        return [(boxes, scores, np.int64([2, 0]))]

    monkeypatch.setattr(yolov3, "detections", detections)
    return sizes_seen


@pytest.mark.parametrize("name", [None, *runtimes.NAMES])
def test_what_is_found_is_drawn(name, detector, finding, tmp_path, capsys):
    folder, more = detector, []
    if name:
        pytest.importorskip("paddle2onnx")
        folder, more = tmp_path / "exported", ["--runtime", name]
        export.main(["--pruned_model", str(detector), "--format", name, "--out", str(folder)])
    paths = [tmp_path / name for name in ("a/road.png", "b/road.png", "b/\x1b[2J\n路.png")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (80, 40), (9, 9, 9)).save(path)
    words = [*more, "--show", tmp_path / "seen", "--predict", *paths]
    pictures = predicted(capsys, folder, *words)
    assert [each["picture"] for each in pictures] == [str(path) for path in paths]
    expected = {"score": 0.75, "label": 2, "class": "triangle", "box": [8, 4, 40, 20]}
    assert [each["predictions"] for each in pictures] == 3 * [[expected]]
    assert finding == 3 * [[[40, 80]]]
    seen = {path.name: decode(path.read_bytes()) for path in (tmp_path / "seen").iterdir()}
    assert set(seen) == {"1-road.png", "2-road.png", r"3-\x1b[2J\n路.png"}
    for pixels in seen.values():
        assert pixels.shape == (256, 512, 3)
        assert pixels[100, 51].max() == 255  # an edge of the box, 6.4 times as large
        assert pixels[250, 10].tolist() == [9, 9, 9]
    evaluate.main(["--pruned_model", str(folder), *FAST, *map(str, words)])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        rf"{tmp_path}/b/\x1b[2J\n路.png", "  0.7500 triangle 8 4 40 20"
    ]  # fmt: skip


def test_nothing_is_found(detector, tmp_path, capsys):
    Image.new("RGB", (80, 40)).save(tmp_path / "a.png")
    capsys.readouterr()
    evaluate.main(["--pruned_model", str(detector), *FAST, "--predict", str(tmp_path / "a.png"),
                   "--show", str(tmp_path / "seen")])  # fmt: skip
    assert capsys.readouterr().out == f"{tmp_path}/a.png\n  nothing found\n"
    assert decode((tmp_path / "seen" / "1-a.png").read_bytes()).shape == (256, 512, 3)


@pytest.mark.parametrize(
    ("path", "name"),
    [("../../a.png", "7-a.png"), ("..", "7-...png"), ("/", "7-.png"),
     ("路" * 80, f"7-{'路' * 50}.png"),
     ("a\\b.png", "7-a\\b.png"), ("a\0.jpg", r"7-a\x00.png"), ("\udcff.jpg", r"7-\udcff.png"),
     ("x" * 255, f"7-{'x' * 50}.png")],
)  # fmt: skip
def test_a_drawing_stays_in_its_folder(path, name, tmp_path):
    assert file_name(7, path) == name
    (tmp_path / name).write_bytes(b"")
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_boxes_that_lay_outside_are_left_out(monkeypatch):
    boxes = np.float32([[1, 2, 3, 4], [0, 2, 0, 4], [1, 8, 3, 8]])
    found = [(boxes, np.ones(3, np.float32), np.zeros(3, np.int64))]
    monkeypatch.setattr(detection.yolov3, "detections", lambda outputs, sizes: found)
    (seen,) = detection.predictions(None, np.zeros([8, 8, 3], np.uint8), None)
    assert seen["box"] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["\x1b[2J\n", "\udcff", "a\0b", "手写体"])
def test_any_name_of_a_class_is_drawn(name, tmp_path):
    found = [{"score": 0.5, "label": 1, "class": name, "box": [1, 1, 9, 9]}]
    detection.draw(np.zeros([10, 10, 3], np.uint8), found, str(tmp_path / "a.png"))
    assert decode((tmp_path / "a.png").read_bytes()).any()


def test_the_table_of_a_detector(detector, voc_dir, capsys):
    result = predicted(capsys, detector, "--data_dir", voc_dir, "--per_class")
    assert [row["class"] for row in result["classes"]] == ["circle", "square", "triangle"]
    objects = VOCDataset(voc_dir, "val").objects
    assert sum(row["objects"] for row in result["classes"]) == sum(len(o.labels) for o in objects)
    for key in ("11point", "area"):
        parts = [row[f"ap_{key}"] for row in result["classes"] if row[f"ap_{key}"] is not None]
        assert np.mean(parts) == pytest.approx(result[f"map_{key}"])
