"""export.py, runtimes/ and evaluate.py --runtime: a trained network through the three formats."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import paddle
import pytest
from conftest import error_line

import evaluate
import export
import runtimes
import train
from demos import deploy
from training import checkpoint, folders, train_state

pytest.importorskip("paddle2onnx")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """MobileNetV1 of width 0.25 on digits, pruned by 55%."""
    folder = tmp_path_factory.mktemp("trained")
    options = ["--data", "digits", "--scale", "0.25", "--num_epochs", "3", "--num_workers", "0"]
    train.main([*options, "--batch_size", "32", "--lr", "0.05", "--model_path", str(folder)])
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """The folder with its three exports."""
    folder = tmp_path_factory.mktemp("exported")
    for name in runtimes.NAMES:
        export.main(["--pruned_model", str(trained), "--format", name, "--out", str(folder)])
    return folder


def measured(capsys, folder, *more) -> dict:
    capsys.readouterr()
    evaluate.main(["--pruned_model", str(folder), "--num_workers", "0", "--json", *more])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", runtimes.NAMES)
@pytest.mark.parametrize("batch", ["64", "7"])  # 360 pictures: the last batch is smaller
def test_an_export_is_as_accurate_as_the_checkpoint(name, batch, trained, exported, capsys):
    whole = measured(capsys, trained)
    other = measured(capsys, exported, "--runtime", name, "--batch_size", batch, "--threads", "2")
    assert whole["top1"] > 0.2
    for key in ("top1", "top5", "samples"):
        assert other[key] == whole[key]
    assert other["loss"] == pytest.approx(whole["loss"], rel=1e-4)


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_logits_agree(name, trained, exported):
    model = paddle.vision.models.mobilenet_v1(scale=0.25, num_classes=10)
    checkpoint.load_weights(model, folders.find_weights(trained))
    model.eval()
    images = paddle.randn([3, 3, 32, 32])
    network = runtimes.load(name, exported, batch=3, threads=1)
    assert np.abs((network(images) - model(images)).numpy()).max() < 1e-3


@pytest.mark.parametrize(
    ("theirs", "apart"),
    [
        ([[2.0, 0.0], [4e-9]], 0.0),
        ([[2.0, 0.1], [4e-9]], 0.05),
        ([[2.0, 0.0], [3e-9]], 0.25),  # of a small output, too
        ([[2.0, 0.0], [float("nan")]], float("nan")),
        ([[2.0, 0.0]], float("nan")),
        ([[2.0, 0.0], [[4e-9]]], float("nan")),
    ],
)
def test_the_difference_of_outputs(theirs, apart):
    ours = [np.float32([2, 0]), np.float32([4e-9])]
    found = export.relative_error(ours, [np.float32(output) for output in theirs])
    assert found == pytest.approx(apart, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_it_tells_what_it_wrote_and_how_to_measure_that(name, trained, tmp_path, capsys):
    out = tmp_path / "the export"
    export.main(["--pruned_model", str(trained), "--format", name, "--out", str(out)])
    printed, errors = capsys.readouterr()
    wrote, size, *speed, apart, command = printed.splitlines()
    assert name == "sparse" or (errors, speed) == ("", [])
    assert wrote == f"wrote {' '.join(str(out / file) for file in runtimes.files(name, out))}"
    files = sum((out / file).stat().st_size for file in runtimes.files(name, out))
    assert size.startswith(f"{files:,} bytes, ")
    assert apart.startswith("difference from the model on random pictures ")
    done = subprocess.run(f"{command} --json", shell=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["samples"] == 360


@pytest.mark.parametrize(("ratio", "warned"), [("0.02", True), ("0.04", False)])
def test_a_dense_network_gains_nothing_from_sparse(ratio, warned, tmp_path, capsys):
    train.main(["--data", "digits", "--scale", "0.1", "--num_workers", "0", "--max_steps", "1",
                "--ratio", ratio, "--model_path", str(tmp_path / "m")])  # fmt: skip
    for name in ("sparse", "paddle"):
        capsys.readouterr()
        export.main(["--pruned_model", str(tmp_path / "m"), "--format", name,
                     "--out", str(tmp_path / "out")])  # fmt: skip
        line = "warning: sparse gains nothing on a dense network: 2.00% of its weights are 0\n"
        errors = capsys.readouterr().err
        assert errors.count("gains nothing") == errors.count(line) == (warned and name == "sparse")


@pytest.mark.parametrize("dense", ["onnx", "paddle"])
@pytest.mark.parametrize(("sparse_ms", "slower"), [(2, False), (4, True)])
def test_it_warns_where_sparse_is_slower(
    dense, sparse_ms, slower, trained, tmp_path, capsys, monkeypatch
):
    def medians(networks, images, seconds):
        with paddle.no_grad():
            ours, theirs = (network(images).numpy() for network in networks.values())
        assert np.abs(ours - theirs).max() < 1e-3
        return dict(zip(networks, (sparse_ms / 1000, 0.003)))

    monkeypatch.setattr(export.cost, "medians", medians)
    if dense == "paddle":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    export.main(["--pruned_model", str(trained), "--format", "sparse", "--out", str(tmp_path)])
    printed, errors = capsys.readouterr()
    assert f": sparse {sparse_ms} ms, {dense} 3 ms\n" in printed
    assert (f"sparse is slower here than {dense}; --format {dense} suits" in errors) is slower
    assert bool(errors) is slower


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_what_is_exported_stays_where_the_comparison_fails(
    error, trained, tmp_path, capsys, monkeypatch
):
    def save(model, shape, folder):
        raise error("it has no such operator")

    monkeypatch.setitem(export.SAVE, "onnx", save)
    export.main(["--pruned_model", str(trained), "--format", "sparse", "--out", str(tmp_path)])
    warning = "sparse is not compared with onnx: it has no such operator"
    assert warning in capsys.readouterr().err
    assert runtimes.load("sparse", tmp_path, 1, 1)(paddle.zeros([1, 3, 32, 32])).shape == [1, 10]


def what_if(capsys, *options) -> tuple[list[str], dict[tuple[str, str], list[str]]]:
    """The lines that are no rows, and the others' cells by ratio, sparsity and runtime."""
    capsys.readouterr()
    export.main(["--what_if", *map(str, options)])
    lines = capsys.readouterr().out.splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    others = [line for line in lines if line and line[0] != "|"]
    return others, {tuple(row[:3]): row[3:] for row in rows[2:]}


def test_what_pruning_would_give(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = folders.find_weights(trained).read_bytes()
    lines, rows = what_if(capsys, 0.9, 0.75, 0.2, 0.75, "--pruned_model", trained)
    ratios, zeros, names = zip(*rows)
    assert ratios == ("", "", "0.2", "0.75", "0.9")
    assert names == ("onnx", "paddle", "sparse", "sparse", "sparse")
    # As the checkpoint is; and a few of its layers were sparser than 75% before.
    shares = [float(share.rstrip("%")) for share in zeros]
    assert shares == pytest.approx([55, 55, 55, 75, 90], abs=0.5)
    dense, _, _, at_75, at_90 = (float(cells[0]) for cells in rows.values())
    assert at_90 < at_75 < 0.5 * dense
    for cells in rows.values():
        memory, ms, times = map(float, cells[1:])
        assert memory > 0
        assert ms > 0
        assert times > 0
    assert max(float(cells[3]) for cells in list(rows.values())[:2]) == 1
    assert lines[0].startswith(f"mobilenet_v1, {trained}/{folders.WEIGHTS}, pictures of 3x32x32, ")
    assert lines[-1].startswith("accuracy was not looked at")
    assert folders.find_weights(trained).read_bytes() == before
    assert not list(tmp_path.iterdir())


def test_what_pruning_would_give_a_network_that_is_not_trained(capsys, monkeypatch):
    """And a runtime that is not there."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    lines, rows = what_if(capsys, 0.5, "--data", "digits", "--scale", 0.25)
    assert lines[0].startswith("mobilenet_v1, random weights, pictures of 3x32x32, 10 classes; ")
    dense, others, pruned = rows
    assert (dense, others) == (("", "0.00%", "onnx"), ("", "0.00%", "paddle"))
    assert pruned == ("0.5", "50.00%", "sparse")
    assert rows[dense] == ["left out", "", "", ""]
    assert rows[others][3] == "1.00"
    assert lines[1].startswith("onnx is left out: ")
    assert lines[1].endswith('; pip install ".[export]"')


def test_without_onnxruntime(exported, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    message = error_line(
        capsys, evaluate.main, "--pruned_model", exported, "--runtime", "onnx", "--data", "digits"
    )
    assert 'pip install ".[export]"' in message


def test_a_damaged_onnx_file_without_checksums(tmp_path):
    (tmp_path / runtimes.ONNX).write_bytes(b"no model")
    with pytest.raises(ValueError, match="ONNX Runtime does not take"):
        runtimes.load("onnx", tmp_path, 1, 1)


def test_a_sparse_file_is_half_as_large(trained, exported):
    weights = checkpoint.read_arrays(trained / folders.WEIGHTS)
    dense = sum(4 * value.size for value in weights.values())
    assert (exported / runtimes.SPARSE).stat().st_size < 0.5 * dense


def test_what_an_export_tells_of_itself(trained, exported, capsys):
    saved = train_state.read(exported)
    assert saved.options["model"] == "mobilenet_v1"
    assert saved.options["data"] == "digits"
    assert saved.epoch is None  # it is no training
    names = [name for form in runtimes.NAMES for name in runtimes.files(form, exported)]
    assert sorted(path.name for path in exported.iterdir()) == sorted([*names, folders.STATE])
    assert set(saved.checksums) == {*names, folders.STATE}


def test_an_export_of_an_earlier_version(exported, tmp_path, capfd):
    """Its train-state.json had an epoch, as that of a training."""
    shutil.copytree(exported, tmp_path / "before")
    state = json.loads((exported / folders.STATE).read_text())
    train_state.seal({**state, "epoch": 0, "step": 0, "finished": True}, tmp_path / "before")
    assert train_state.read(tmp_path / "before") == dataclasses.replace(
        train_state.read(exported),
        folder=tmp_path / "before",
        checksums=train_state.read(tmp_path / "before").checksums,
    )
    evaluate.main(["--pruned_model", str(tmp_path / "before"), "--runtime", "onnx"])
    assert "samples 360" in capfd.readouterr().out
    resume = ["--pretrained_model", tmp_path / "before", "--resume_epoch", 0]
    new = ["--data", "digits", "--model_path", tmp_path / "new"]
    message = error_line(capfd, train.main, *new, *resume)
    assert "has no checkpoint of epoch 0" in message


def test_deploy_demo(trained, tmp_path, capfd):
    deploy.main(["--pruned_model", str(trained), "--out", str(tmp_path)])
    lines = [line for line in capfd.readouterr().out.splitlines() if line[:1] == "|"]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert {row[0] for row in rows[2:]} == {"mobilenet_v1, 55%"}
    assert [row[1] for row in rows[2:]] == ["checkpoint", *runtimes.NAMES]
    kilobytes, accuracies = [float(row[2]) for row in rows[2:]], {row[3] for row in rows[2:]}
    assert kilobytes[3] < 0.5 * min(kilobytes[:3])
    assert len(accuracies) == 1


def test_weights_from_elsewhere(tmp_path, capsys):
    model = paddle.vision.models.mobilenet_v1(scale=0.1, num_classes=20)
    paddle.save(model.state_dict(), str(tmp_path / "theirs.pdparams"))
    options = ["--data", "imagenet", "--scale", "0.1", "--num_classes", "20"]
    export.main(["--pruned_model", str(tmp_path / "theirs.pdparams"), "--format", "sparse",
                 "--out", str(tmp_path / "out"), *options])  # fmt: skip
    assert "difference from the model" in capsys.readouterr().out
    network = runtimes.load("sparse", tmp_path / "out", 1, 1)
    assert network(paddle.zeros([1, 3, 224, 224])).shape == [1, 20]


def test_a_detector_is_exported_up_to_its_heads(voc_dir, tmp_path, capsys):
    small = ["--data", "voc", "--data_dir", str(voc_dir), "--scale", "0.1", "--image_size", "64"]
    model = tmp_path / "model"
    train.main([*small, "--train_sizes", "64", "64", "--max_steps", "1", "--batch_size", "2",
                "--num_workers", "0", "--model_path", str(model)])  # fmt: skip
    out = ["--out", str(tmp_path / "out")]
    data = ["--data_dir", str(voc_dir)]
    export.main(["--pruned_model", str(model), "--format", "onnx", *out])
    assert f"--runtime onnx --data_dir {voc_dir}\n" in capsys.readouterr().out
    network = runtimes.load("onnx", tmp_path / "out", 1, 1)
    heads = network(paddle.zeros([1, 3, 64, 64]))
    assert [head.shape for head in heads] == [[1, 24, n, n] for n in (2, 4, 8)]
    whole = measured(capsys, model, *data)
    for name in runtimes.NAMES:
        export.main(["--pruned_model", str(model), "--format", name, *out, *data])
        same = measured(capsys, tmp_path / "out", "--runtime", name, *data)
        assert same["map_11point"] == whole["map_11point"]


def test_what_another_paddle_exported_does_not_stay(trained, tmp_path):
    arguments = ["--pruned_model", str(trained), "--format", "paddle", "--out", str(tmp_path)]
    export.main(arguments)
    program = runtimes.files("paddle", tmp_path)[0]
    other = {"inference.json": "inference.pdmodel", "inference.pdmodel": "inference.json"}[program]
    (tmp_path / other).write_text("of another Paddle")
    export.main(arguments)
    assert (tmp_path / program).is_file()
    assert not (tmp_path / other).exists()


def test_too_little_memory_is_told_in_one_line(trained, tmp_path, capsys, monkeypatch):
    def save(model, shape, folder):
        raise MemoryError("Unable to allocate 9 TiB")

    monkeypatch.setitem(export.SAVE, "sparse", save)
    message = error_line(capsys, export.main, "--pruned_model", trained, "--format", "sparse",
                         "--out", tmp_path / "out")  # fmt: skip
    assert message.endswith("error: not enough memory: Unable to allocate 9 TiB")


def test_an_export_that_differs_is_not_kept(trained, tmp_path, capsys, monkeypatch):
    def save_other(model, shape, folder):
        with paddle.no_grad():
            model.fc.bias.set_value(model.fc.bias + 0.01)
        export.save_onnx(model, shape, folder)
        with paddle.no_grad():
            model.fc.bias.set_value(model.fc.bias - 0.01)

    monkeypatch.setitem(export.SAVE, "onnx", save_other)
    message = error_line(capsys, export.main, "--pruned_model", trained, "--format", "onnx",
                         "--out", tmp_path / "out")  # fmt: skip
    assert "differs from the model by" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_refusals(trained, exported, tmp_path, capsys, monkeypatch):
    def refused(program, *options):
        return error_line(capsys, program.main, *options)

    arguments = ["--pruned_model", trained, "--format", "onnx", "--out"]
    assert "holds a training; give another folder" in refused(export, *arguments, trained)
    other = tmp_path / "other.pdparams"
    weights = paddle.vision.models.mobilenet_v1(scale=0.25, num_classes=10).state_dict()
    paddle.save(weights, str(other))
    options = ["--pruned_model", other, "--format", "onnx", "--data", "digits", "--scale", "0.25"]
    assert "exports of another checkpoint" in refused(export, *options, "--out", exported)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / runtimes.SPARSE).touch()
    message = refused(export, *arguments, tmp_path / "foreign")
    assert f"holds {runtimes.SPARSE} of an unknown network; remove it or give another" in message
    message = refused(evaluate, "--pruned_model", trained, "--runtime", "sparse")
    assert f"holds no {runtimes.SPARSE}; give the --out folder of" in message
    message = refused(evaluate, "--pruned_model", exported, "--runtime", "onnx", "--per_layer")
    assert "leave --runtime out" in message
    assert "--threads is of --runtime" in refused(evaluate, "--threads", 2)
    empty = ["--pruned_model", ""]  # and not the default: random weights, or models
    monkeypatch.chdir(tmp_path)
    for options in (["--what_if", 0.5], ["--format", "onnx", "--out", tmp_path / "out"]):
        assert ". holds no model-pruned.pdparams" in refused(export, *empty, *options)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    message = refused(export, *arguments, tmp_path / "out")
    assert message.endswith('error: paddle2onnx is not there; pip install ".[export]"')


@pytest.mark.parametrize("name", runtimes.NAMES)
def test_a_damaged_export_is_refused(name, exported, capsys):
    path = exported / runtimes.files(name, exported)[-1]
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
        message = error_line(
            capsys, evaluate.main, "--pruned_model", exported, "--runtime", name, "--data", "digits"
        )
        assert path.name in message
        assert "damaged or replaced" in message
    finally:
        path.write_bytes(content)


def test_a_network_that_has_diverged_is_called_so(trained, tmp_path, capfd):
    state = paddle.load(str(folders.find_weights(trained)))
    state["fc.bias"][0] = float("nan")
    paddle.save(state, str(tmp_path / "broken.pdparams"))
    message = error_line(capfd, export.main, "--pruned_model", tmp_path / "broken", "--data",
                         "digits", "--scale", 0.25, "--format", "paddle",
                         "--out", tmp_path / "out")  # fmt: skip
    assert message.endswith("its training has diverged; give another checkpoint")
    message = error_line(capfd, export.main, "--pruned_model", tmp_path / "broken", "--data",
                         "digits", "--scale", 0.25, "--what_if", 0.5)  # fmt: skip
    assert message.endswith("its training has diverged; give another checkpoint")
