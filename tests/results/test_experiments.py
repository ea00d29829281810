"""results/experiments.py and plots.py, on a small network."""

from __future__ import annotations

import gzip
import inspect
import json
import struct
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, error_line
from scipy import stats

from imagenet_reader import ImageNetDataset
from readers.small_images import Cifar10, FashionMNIST
from results import deployed, experiments, folders, plots, rigl, tables
from results.rows import DATA, ROWS

SMALL = ["--data", "digits", "--scale", "0.1", "--batch_size", "256"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two rows on digits leave behind, at width 0.1 and of one epoch."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DATA["digits"], "options", SMALL)
        experiments.main(["--out", str(out), "--epochs", "1", "--jobs", "1", "--seeds", "1",
                          "--only", "digits-control", "digits-ratio-55"])  # fmt: skip
    return out


def test_a_row_is_trained_and_measured(results):
    runs = {run["row"]: run for run in experiments.read_runs(results)}
    assert list(runs) == ["digits-dense", "digits-control", "digits-ratio-55"]
    pruned = runs["digits-ratio-55"]
    assert pruned["prunable_sparsity"] == pytest.approx(0.55, abs=1e-4)
    assert 0.5 < pruned["sparsity_1x1"] < 0.6
    assert pruned["samples"] == 360
    assert (pruned["epochs"], pruned["global_batch"]) == (1, 256)
    assert pruned["gzip_bytes"] < runs["digits-control"]["gzip_bytes"] <= pruned["bytes"]
    assert pruned["cpu_seconds"] > 1
    assert set(pruned["versions"]) == {"paddle", "numpy", "python"}
    start = pruned["command"][pruned["command"].index("--pretrained_model") + 1]
    assert start == str(results / "models" / "digits-dense-seed0")


def test_it_goes_on_where_it_was(results, monkeypatch):
    calls = []
    monkeypatch.setattr(experiments, "program", lambda *words: calls.append(words) or [0, 0])
    monkeypatch.setattr(DATA["digits"], "options", SMALL)
    again = ["--out", str(results), "--jobs", "1", "--seeds", "1", "--epochs", "1"]
    again += ["--only", "digits-ratio-55"]
    experiments.main(again)
    assert [words[0] for words in calls] == ["train.py"]  # the start, which others may need
    assert str(results / "models" / "digits-dense-seed0") in calls.pop()
    with pytest.raises(TypeError):  # of the 0 that stands for what evaluate.py prints
        experiments.main([*again, "digits-gmp-75"])
    calls = [words for words in calls if "--pretrained_model" in words]
    assert [words[0] for words in calls] == ["train.py"]
    assert "--pruning_strategy" in calls[0]
    assert calls[0][-6:-4] == ("--resume_epoch", "latest")


@pytest.mark.parametrize(
    ("name", "measured"),
    [("ema-90", "average-pruned.pdparams"), ("gmp-90", "model-pruned.pdparams")],
)
def test_the_average_of_the_weights_is_what_its_row_measures(name, measured, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(experiments, "program", lambda *words: calls.append(words) or ["{}", 0])
    row = next(row for row in ROWS if row.full_name == f"fashion-{name}")
    with pytest.raises(KeyError):  # of what evaluate.py did not print
        experiments.Suite(tmp_path, Path()).run(row, 1)
    weights = calls[-1][calls[-1].index("--pruned_model") + 1]
    assert weights == str(tmp_path / "models" / f"fashion-{name}-seed1" / measured)


def test_a_row_by_another_command_is_refused(results, capfd):
    again = ["--out", results, "--seeds", "1", "--epochs", "2", "--only", "digits-ratio-55"]
    message = error_line(capfd, experiments.main, *again)
    assert message.endswith("has digits-dense by another command; give another --out")


def test_what_is_measured_on_what_is_left_out_says_so():
    row = next(row for row in ROWS if row.full_name == "cifar-control")
    data = [
        command[command.index("--data_dir") + 1]
        for left_out in (False, True)
        for command in [experiments.Suite(Path("out"), Path(), left_out=left_out).command(row, 0)]
    ]
    assert data == ["out/data/cifar", "out/data/cifar-left_out"]


def test_cifar_that_is_unpacked_alone(cifar_dir, tmp_path):
    with tarfile.open(cifar_dir / "cifar-10-python.tar.gz") as archive:
        archive.extractall(tmp_path / "unpacked")
    folders.make("cifar", tmp_path / "unpacked", tmp_path / "linked", left_out=False)
    assert len(Cifar10(tmp_path / "linked", "train")) == 40


@pytest.mark.parametrize("row", ["digits-control", "fashion-control"])
def test_only_some_data_have_a_part_that_is_left_out(row, tmp_path, capfd):
    message = error_line(capfd, experiments.main, "--left_out", "--out", tmp_path, "--only", row)
    assert "nothing is left out; choose other rows by --only" in message


def test_a_run_that_diverges_is_a_result(tmp_path, monkeypatch):
    def program(*words):
        raise ValueError(f"train.py ended with status 2: fc.bias is {why}")

    monkeypatch.setattr(experiments, "program", program)
    suite = experiments.Suite(tmp_path, tmp_path)
    dense = next(row for row in ROWS if row.full_name == "digits-dense")
    why = "missing"
    with pytest.raises(ValueError, match="missing"):
        suite.run(dense, 0)
    why = "not finite after step 468"
    for _ in range(2):  # other rows need it, and it is not there
        suite.run(dense, 0)
    [record] = experiments.read_runs(tmp_path)
    assert record["diverged"].endswith("fc.bias is not finite after step 468")
    assert record["seed"] == 0
    runs = [record, run("digits-dense", 1, 0.5), run("digits-dense", 2, 0.6)]
    assert cells(runs, "digits")[2][3] == "55.00% (50.00%..60.00%), 1 diverged"
    assert cells([record], "digits")[2][2:7] == ["", "1 diverged", "", "", "1"]


def cells(runs: list[dict], data: str, exported: tuple = ()) -> list[list[str]]:
    lines = tables.table(runs, data, exported).splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def run(row: str, seed: int, top1: float, **more) -> dict:
    return {"row": row, "seed": seed, "top1": top1, "top5": 1.0, "sparsity": 0.5, "epochs": 5,
            "prunable_sparsity": 0.55, "sparsity_1x1": 0.6, "cpu_seconds": 100.4,
            "global_batch": 64, "gzip_bytes": 9876, **more}  # fmt: skip


def test_the_table_has_means_ranges_and_intervals():
    runs = [run("fashion-control", 0, 0.9), run("fashion-control", 1, 0.88),
            run("fashion-ratio-55", 1, 0.87), run("fashion-ratio-55", 0, 0.91),
            run("fashion-ratio-90", 0, 0.85, cpu_seconds=None)]  # fmt: skip
    head, _, *rows = cells(runs, "fashion")
    assert "core seconds" in head
    assert rows[0][:4] == [
        "dense control", "", "50.00% / 55.00% / 60.00%", "89.00% (88.00%..90.00%)",
    ]  # fmt: skip
    # Differences of -1 and +1: a standard error of 1, times 12.706 at one degree of freedom.
    assert rows[1] == [
        "ratio", "55%", "50.00% / 55.00% / 60.00%", "89.00% (87.00%..91.00%)", "100.00%",
        "+0.00 ± 12.71", "2", "100", "10", "`fashion-ratio-55`",
    ]  # fmt: skip
    assert rows[2][3:8] == ["85.00%", "100.00%", "-5.00", "1", ""]
    assert len(cells(runs, "digits")) == 2


def test_a_longer_run_is_compared_with_a_control_as_long():
    runs = [run("imagenette-control", 0, 0.9), run("imagenette-long-control", 0, 0.92),
            run("imagenette-long-90", 0, 0.91), run("imagenette-gmp-90", 0, 0.85)]  # fmt: skip
    differences = {row[-1].strip("`"): row[5] for row in cells(runs, "imagenette")[2:]}
    assert differences == {
        "imagenette-control": "", "imagenette-gmp-90": "-5.00",
        "imagenette-long-control": "", "imagenette-long-90": "-1.00",
    }  # fmt: skip


def test_the_table_has_what_pruning_buys():
    runs = [run("fashion-control", 0, 0.9), run("fashion-gmp-75", 0, 0.8),
            run("fashion-gmp-90", 0, 0.8)]  # fmt: skip
    exported = (
        {"row": "fashion-control", "runtime": "onnx", "bytes": 7_000_000, "ms": 1.5},
        {"row": "fashion-control", "runtime": "sparse", "bytes": 8_000_000, "ms": 2.5},
        {"row": "fashion-gmp-90", "runtime": "sparse", "bytes": 1_234_567, "ms": 0.4567},
    )
    head, _, *rows = cells(runs, "fashion", exported)
    assert head[-2:] == ["exported, KB", "ms"]
    assert [row[-2:] for row in rows] == [["7000", "1.50"], ["", ""], ["1235", "0.46"]]
    assert cells(runs, "digits", exported)[0][-1] == "`--only`"


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_interval_is_that_of_students_paired_t_test(count):
    values = [0.5, -1.0, 0.25, 2.0, -3.0][:count]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    shown = f"{(low + high) / 2:+.2f} ± {(high - low) / 2:.2f}"
    assert tables.with_interval(values) == shown


def test_the_readme_shows_the_tables_of_the_results():
    runs = experiments.read_runs(ROOT / "results")
    text = (ROOT / "results" / "README.md").read_text()
    lines = experiments.read_lines(ROOT / "results" / "deployed.jsonl")
    for data in {run["row"].partition("-")[0] for run in runs}:
        assert f"\n\n{tables.table(runs, data, lines)}\n\n" in text


def test_what_the_results_say_of_themselves():
    for run in experiments.read_runs(ROOT / "results"):
        samples = {"digits": 360, "imagenette": 2000}.get(run["row"].partition("-")[0], 10_000)
        assert "diverged" in run or run["samples"] == samples
        assert not any(Path(word).is_absolute() for word in run["command"])
        assert "dirty" not in run["commit"]
        assert not run["commit"].startswith("unknown")


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">i{array.ndim}i", 0x800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


def test_the_subset_is_the_beginning(tmp_path, monkeypatch, capfd):
    rng, names = np.random.default_rng(0), [Path(url).name for url, _ in FashionMNIST.train_files]
    tests = [Path(url).name for url, _ in FashionMNIST.val_files]
    for images, labels, count in ((*names, 300), (*tests, 100)):
        write_idx(tmp_path / images, rng.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(tmp_path / labels, rng.integers(0, 10, count, dtype=np.uint8))
    monkeypatch.setattr(folders, "SUBSET", 200)
    folders.make("fashion", tmp_path, tmp_path / "part", left_out=False)
    for mode, count in (("train", 200), ("val", 100)):
        part, whole = FashionMNIST(tmp_path / "part", mode), FashionMNIST(tmp_path, mode)
        assert len(part) == count
        assert (part.images == whole.images[:count]).all()
        assert (part.labels == whole.labels[:count]).all()
    missing = ["--fashion", tmp_path / "nowhere", "--out", tmp_path / "out"]
    missing += ["--only", "fashion-dense"]
    assert "nowhere" in error_line(capfd, experiments.main, *missing)
    assert not (tmp_path / "out" / "data" / "fashion").exists()


def test_what_is_left_out_is_not_trained_on(cifar_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "LEFT_OUT", 10)
    for name, left_out in (("whole", False), ("part", True)):
        folders.make("cifar", cifar_dir, tmp_path / name, left_out)
    whole = {mode: Cifar10(tmp_path / "whole", mode) for mode in ("train", "val")}
    part = {mode: Cifar10(tmp_path / "part", mode) for mode in ("train", "val")}
    assert [len(whole[mode]) for mode in whole] == [40, 10]
    assert (part["train"].images == whole["train"].images[:30]).all()
    assert (part["val"].images == whole["train"].images[30:]).all()
    assert (part["val"].labels == whole["train"].labels[30:]).all()


def test_the_lists_of_imagenette(tmp_path):
    counts, seen = {"train": 4500, "left_out": 500, "test": 2000}, set()
    for name, count in counts.items():
        words = (folders.LISTS / f"{name}.txt").read_text().split()
        assert len(words) == 2 * count
        seen.update(words[::2])
        if name == "left_out":
            assert all(words[1::2].count(str(label)) == 50 for label in range(10))
    assert len(seen) == 7000  # none is in two of them
    for name in ("train", "val"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    for left_out, name in ((False, "test"), (True, "left_out")):
        folders.make("imagenette", tmp_path / "pictures", tmp_path / name, left_out)
        assert len(ImageNetDataset(tmp_path / name, "train", 128, 10)) == 4500
        assert len(ImageNetDataset(tmp_path / name, "val", 128, 10)) == counts[name]


def test_pictures_of_a_run(results, tmp_path, capfd):
    plots.main([str(results / "models" / "digits-ratio-55-seed0"), "--out", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{ending}" for name in ("epochs", "layers", "weights") for ending in ("png", "svg")
    }
    for path in tmp_path.glob("*.png"):
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 5
    message = error_line(capfd, plots.main, tmp_path, "--out", tmp_path)
    assert "neither metrics.jsonl nor runs.jsonl" in message
    (tmp_path / "runs.jsonl").write_text(json.dumps(run("digits-control", 0, 0.5)))
    message = error_line(capfd, plots.main, tmp_path, "--out", tmp_path)
    assert message.endswith("there is no pruned run yet")


def test_pictures_of_experiments(tmp_path, monkeypatch):
    layers = {"conv.weight": 0.5, "fc.weight": 0.9}
    runs = [run("cifar-control", 0, 0.9), run("cifar-control", 1, 0.88),
            run("cifar-ratio-55", 0, 0.87), run("cifar-ratio-55", 1, 0.91),
            *[run("cifar-gmp-90", seed, 0.1, layers=layers) for seed in range(3)]]  # fmt: skip
    figures = {}
    monkeypatch.setattr(plots, "save", lambda figure, out, name: figures.update({name: figure}))
    plots.draw_results(runs, tmp_path)
    [axis] = figures["results"].axes
    handles, labels = axis.get_legend_handles_labels()
    assert labels == ["dense control", "ratio", "GMP"]
    assert handles[1].lines[0].get_ydata() == pytest.approx([0.89])
    low, high = handles[1].lines[1]
    assert (low.get_ydata()[0], high.get_ydata()[0]) == pytest.approx((0.87, 0.91))
    plots.draw_distributions(runs, ["cifar-gmp-90"], tmp_path)
    [line] = figures["distributions"].axes[0].lines
    assert list(line.get_xdata()) == pytest.approx([0.5, 0.1])
    deployed = [{"row": "cifar-control", "runtime": "onnx", "ms": 5, "bytes": 4e6},
                {"row": "cifar-ratio-55", "runtime": "sparse", "ms": 3, "bytes": 2e6}]  # fmt: skip
    plots.draw_deployed(runs, deployed, tmp_path)
    points = [axis.lines[1].get_xydata().tolist() for axis in figures["deployed"].axes]
    assert points == [[[3.0, 0.89]], [[2.0, 0.89]]]
    assert figures["deployed"].axes[1].lines[0].get_label() == "dense control, ONNX Runtime"


def test_the_picture_has_the_control_of_longer_runs(tmp_path, monkeypatch):
    runs = [run("imagenette-control", 0, 0.9), run("imagenette-long-control", 0, 0.92),
            {"row": "imagenette-control", "seed": 1, "diverged": "at step 3"},
            run("imagenette-long-90", 0, 0.91)]  # fmt: skip
    monkeypatch.setattr(plots, "save", lambda *_: None)
    plots.draw_results(runs, tmp_path)
    drawn = plots.plt.gcf().axes[0].lines[:2]
    assert [(line.get_label(), line.get_linestyle(), *line.get_ydata()) for line in drawn] == [
        ("dense control", "-", 0.9, 0.9), ("dense control, 30 epochs", "--", 0.92, 0.92),
    ]  # fmt: skip


def test_the_picture_has_all_methods_however_many(tmp_path, monkeypatch):
    rows = [row for row in ROWS if row.data == "fashion"]
    runs = [run(row.full_name, 0, 0.5) for row in rows]
    monkeypatch.setattr(plots, "MARKERS", "os")
    monkeypatch.setattr(plots, "save", lambda *_: None)
    plots.draw_results(runs, tmp_path)
    _, labels = plots.plt.gcf().axes[0].get_legend_handles_labels()
    assert labels == ["dense control", *plots.methods(runs, "fashion")]
    assert {"GMP, no floor", "RigL"} <= set(labels)
    assert "GMP, held rate" not in labels


def test_what_pruning_buys(results, capsys):
    pytest.importorskip("paddle2onnx")
    pytest.importorskip("onnxruntime")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DATA["digits"], "options", SMALL)
        for _ in range(2):  # measured again, the lines take the places of the old ones
            deployed.main(["--out", str(results), "--data", "digits", "--seconds", "0"])
    lines = [json.loads(line) for line in (results / "deployed.jsonl").read_text().splitlines()]
    found = {(line["row"], line["runtime"]): line for line in lines}
    assert list(found) == [
        ("digits-dense", "sparse"), ("digits-control", "sparse"), ("digits-control", "onnx"),
        ("digits-ratio-55", "sparse"),
    ]  # fmt: skip
    assert all(line["ms"] > 0 for line in lines)
    sizes = {name: line["bytes"] for name, line in found.items()}
    assert sizes["digits-ratio-55", "sparse"] < 0.7 * sizes["digits-control", "sparse"]


def test_the_results_are_those_of_the_rows():
    runs = experiments.read_runs(ROOT / "results")
    rows = {row.full_name: row for row in ROWS}
    there = {run["row"] for run in runs}
    wanted = [(name, seed) for name in there for seed in range(rows[name].seeds)]
    assert sorted((run["row"], run["seed"]) for run in runs) == sorted(wanted)
    suite = experiments.Suite(Path("my_results"), Path("data/mobilenet_v1_x0.75.safetensors"))
    for run in runs:
        assert run["command"] == ["python", *suite.command(rows[run["row"]], run["seed"])]


def test_rigl_is_that_of_its_page():
    assert inspect.getsource(rigl.RigLPruner).strip() in (ROOT / "docs" / "rigl.md").read_text()


def test_a_folder_without_runs_has_no_table(tmp_path, capfd):
    message = error_line(capfd, experiments.main, "--out", tmp_path, "--table")
    assert "has no runs.jsonl, or no run in it" in message


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "runs.jsonl").write_text(
        json.dumps(run("fashion-control", 0, 0.5)) + '\n{"row": "con'
    )
    experiments.Suite(tmp_path, tmp_path).add(run("fashion-control", 1, 0.6))
    assert [r["seed"] for r in experiments.read_runs(tmp_path)] == [0, 1]
    assert (tmp_path / "runs.jsonl").read_text().count("\n") == 2


def test_after_an_error_no_run_begins(tmp_path, monkeypatch):
    begun = []

    def program(*words):
        begun.append(words)
        time.sleep(0.2)  # the others wait meanwhile
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "program", program)
    with pytest.raises(SystemExit):
        experiments.main(["--out", str(tmp_path), "--jobs", "1", "--only", "digits-dense"])
    assert len(begun) < 3  # one may just have begun
