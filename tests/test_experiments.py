"""benchmarks/experiments.py and plots.py, on a small network."""

from __future__ import annotations

import gzip
import json
import struct
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import ROOT, error_line

from benchmarks import experiments
from cifar_reader import FashionMNIST

pytest.importorskip("matplotlib")
from benchmarks import plots


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What two rows on digits leave behind, at width 0.1 and of one epoch."""
    out = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        small = ["--data", "digits", "--scale", "0.1", "--batch_size", "256"]
        patch.setitem(experiments.DATA, "digits", small)
        patch.setattr(experiments, "SEEDS", 1)
        experiments.main(["--out", str(out), "--epochs", "1", "--jobs", "1",
                          "--only", "digits-control", "digits-ratio-55"])  # fmt: skip
    return out


def test_a_row_is_trained_measured_and_told(results):
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
    monkeypatch.setattr(experiments, "program", lambda *words: calls.append(words))
    monkeypatch.setattr(experiments, "SEEDS", 1)
    again = ["--out", str(results), "--jobs", "1", "--only", "digits-ratio-55"]
    experiments.main(again)
    assert calls == []
    with pytest.raises(TypeError):  # of the None that stands for what a program prints
        experiments.main([*again, "digits-gmp-75"])
    assert [words[0] for words in calls] == ["train.py"]
    assert "--pruning_strategy" in calls[0]
    assert calls[0][-6:-4] == ("--resume_epoch", "latest")


def test_a_run_that_diverges_is_a_result(tmp_path, monkeypatch):
    def program(*words):
        raise ValueError(f"train.py ended with status 2: fc.bias is {why}")

    monkeypatch.setattr(experiments, "program", program)
    suite = experiments.Suite(tmp_path, tmp_path, None)
    dense = next(row for row in experiments.ROWS if row.full_name == "digits-dense")
    why = "missing"
    with pytest.raises(ValueError, match="missing"):
        suite.run(dense, 0)
    why = "not finite after step 468"
    suite.run(dense, 0)
    [record] = experiments.read_runs(tmp_path)
    assert record["diverged"].endswith("fc.bias is not finite after step 468")
    assert record["seed"] == 0
    table = experiments.table([record, run("digits-dense", 1, 0.5), run("digits-dense", 2, 0.6)],
                              "digits")  # fmt: skip
    assert " | 55.00% (50.00%..60.00%); 1 diverged | " in table


def run(row: str, seed: int, top1: float, **more) -> dict:
    return {"row": row, "seed": seed, "top1": top1, "top5": 1.0, "sparsity": 0.5, "epochs": 5,
            "prunable_sparsity": 0.55, "sparsity_1x1": 0.6, "cpu_seconds": 100.4,
            "global_batch": 64, "gzip_bytes": 9876, **more}  # fmt: skip


def test_the_table_has_means_ranges_and_differences():
    runs = [run("control", 0, 0.9), run("control", 1, 0.88), run("ratio-55", 1, 0.87),
            run("ratio-55", 0, 0.91), run("ratio-90", 0, 0.85, cpu_seconds=None)]  # fmt: skip
    head, _, *rows = experiments.table(runs, "fashion").splitlines()
    assert "core seconds" in head
    assert rows[0].startswith(
        "| dense control |  | 50.00% / 55.00% / 60.00% | 89.00% (88.00%..90.00%)"
    )
    assert rows[1] == (
        "| ratio | 55% | 50.00% / 55.00% / 60.00% | 89.00% (87.00%..91.00%) | 100.00% | +0.00 | "
        "5 | 100 | 64 x CPU | 10 | `ratio-55` |"
    )
    assert rows[2].split(" | ")[3:8] == ["85.00%", "100.00%", "-5.00", "5", ""]
    assert experiments.table(runs, "digits").count("\n") == 1
    assert "| 比例 | 55% |" in experiments.table(runs, "fashion", "zh")


@pytest.mark.parametrize(("readme", "language"), [("README.md", "en"), ("README_zh.md", "zh")])
def test_the_readmes_show_the_table_of_the_results(readme, language):
    runs = experiments.read_runs(ROOT / "results")
    if not runs:
        pytest.skip("no results yet")
    text = (ROOT / readme).read_text()
    for data in experiments.DATA:
        assert experiments.table(runs, data, language) in text


def test_what_the_results_tell_of_themselves():
    for run in experiments.read_runs(ROOT / "results"):
        samples = 360 if run["row"].startswith("digits") else 10_000
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
    monkeypatch.setattr(experiments, "SUBSET", 200)
    experiments.write_subset(tmp_path, tmp_path / "part")
    for mode, count in (("train", 200), ("val", 100)):
        part, whole = FashionMNIST(tmp_path / "part", mode), FashionMNIST(tmp_path, mode)
        assert len(part) == count
        assert (part.images == whole.images[:count]).all()
        assert (part.labels == whole.labels[:count]).all()
    missing = [
        "--fashion_mnist",
        tmp_path / "nowhere",
        "--out",
        tmp_path / "out",
        "--only",
        "dense",
    ]
    assert "nowhere" in error_line(capfd, experiments.main, *missing)


@pytest.mark.parametrize("of_a_run", [True, False])
def test_pictures(of_a_run, results, tmp_path, capfd):
    folder = results / "models" / "digits-ratio-55-seed0" if of_a_run else results
    plots.main([str(folder), "--out", str(tmp_path)])
    names = {"epochs", "layers", "weights"} if of_a_run else {"results"}
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{n}.{e}" for n in names for e in ("png", "svg")
    }
    for path in tmp_path.glob("*.png"):
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 300
        assert picture.std() > 5
    message = error_line(capfd, plots.main, tmp_path, "--out", tmp_path)
    assert "neither metrics.jsonl nor runs.jsonl" in message


def test_every_row_has_all_its_seeds_once():
    path = ROOT / "results" / "runs.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    keys = {(run["row"], run["seed"]) for run in map(json.loads, lines)}
    assert len(keys) == len(lines)
    rows = {row for row, _ in keys}
    assert keys == {(row, seed) for row in rows for seed in range(experiments.SEEDS)}
