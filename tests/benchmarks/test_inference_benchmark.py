"""benchmarks/inference/: on small networks, and its tables."""

from __future__ import annotations

import argparse
import json

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line

from benchmarks.inference import compare as inference
from benchmarks.inference import networks, runtime
from benchmarks.inference.tables import NOTE, about, read_records, report, tables
from sparse_runtime import build
from sparse_runtime.model_file import Model
from sparse_runtime.operators import Add, Convolution, Depthwise, Mean
from tasks.classification import MODELS
from unstructured_pruner import sparsity

RESULTS = ROOT / "benchmarks" / "inference"
SMALL = ["--image_size", "32", "--rounds", "1", "--threads", "1", "--batch", "1",
         "--peers", "sparse", "onnxruntime", "paddle"]  # fmt: skip


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def needs_export() -> None:
    for module in ("onnx", "onnxruntime", "paddle2onnx"):
        pytest.importorskip(module)


def test_every_runtime_computes_the_same_and_gets_a_row(tmp_path, capfd):
    needs_export()
    out = tmp_path / "medians.jsonl"
    inference.main([*SMALL, "--scale", "0.25", "--sparsities", "0.9", "--out", str(out)])
    printed, errors = capfd.readouterr()
    assert "left out" not in errors
    records = [json.loads(line) for line in out.read_text().splitlines()]
    sets = build.instruction_sets()
    sets = sets[:-1] or sets
    assert {(r["runtime"], r["instructions"], r["sparsity"]) for r in records} == {
        ("onnxruntime", sets[0], 0),
        *(("paddle", each, 0) for each in sets),
        *((name, each, s) for name in ("sparse", "limit") for each in sets for s in (0, 0.9)),
    }
    for record in (r for r in records if r["runtime"] != "limit"):
        assert record["difference"] <= 1e-4
        assert record["ms"] > 0
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(sets) + 2 + 1 + 3 * len(sets)
    inference.main(["--table", str(out)])
    assert capfd.readouterr().out == printed


def test_a_checkpoint_is_timed_as_it_was_pruned(tmp_path, capfd):
    needs_export()
    found = networks.options(
        argparse.Namespace(pruned_model=None, scale=0.1, image_size=32), "mobilenet_v1"
    )
    model = networks.random_network(found, 0.7)
    paddle.save(model.state_dict(), str(tmp_path / "theirs.pdparams"))
    out = tmp_path / "medians.jsonl"
    inference.main([*SMALL, "--scale", "0.1", "--model", "mobilenet_v1", "--pruned_model",
                    str(tmp_path / "theirs.pdparams"), "--out", str(out)])  # fmt: skip
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {r["masks"] for r in records} == {"trained"}
    assert {r["sparsity"] for r in records if r["runtime"] == "sparse"} == {
        0,
        round(sparsity(networks.prunable_parameters(model)), 4),
    }
    assert "mobilenet_v1 x0.1, 32, masks of a training" in capfd.readouterr().out


def test_what_is_pruned():
    found = networks.options(
        argparse.Namespace(pruned_model=None, scale=None, image_size=32), "mobilenet_v2"
    )
    parameters = dict(networks.random_network(found, 0.75).named_parameters())
    weights = {name: p for name, p in parameters.items() if p.ndim > 1}
    dense = {name for name, p in weights.items() if sparsity({name: p}) == 0}
    first = next(iter(weights))
    assert dense == {first} | {name for name, p in weights.items() if p.shape[1] == 1}
    for name in weights.keys() - dense:
        assert sparsity({name: weights[name]}) == pytest.approx(0.75, abs=0.01)


def test_sizes_of_pictures():
    args = argparse.Namespace(pruned_model=None, scale=None, image_size=None)
    sizes = {n: networks.options(args, n).image_size for n in ("vgg11", "inception_v3", "yolov3")}
    assert sizes == {"vgg11": 224, "inception_v3": 299, "yolov3": 416}


def record(runtime: str, ms: float, **more) -> dict:
    return {"network": "vgg11", "scale": 1, "image_size": 224, "masks": "uniform", "cpu": "a",
            "date": "2026-01-01", "rounds": 5, "version": "1", "runtime": runtime,
            "instructions": "avx512", "sparsity": 0.9, "threads": 1, "batch": 1, "ms": ms,
            **more}  # fmt: skip


RECORDS = [
    record("sparse", 4, instructions="avx2"),
    record("sparse", 2.5),
    record("sparse", 8, sparsity=0.5512),
    record("sparse", 16, batch=8),
    record("sparse", 2, threads=2),
    record("sparse", 3, network="alexnet"),
    record("openvino", 6, network="alexnet", sparsity=0),
    record("limit", 5, sparsity=0),
    record("limit", 3.125, sparsity=0.55),
    record("limit", 1.25),
    record("limit", 1, network="alexnet"),
    record("deepsparse", 5, sparsity=0),  # no yardstick: it is developed no more
    record("openvino", 12, sparsity=0),
    record("onnxruntime", 10, sparsity=0),
    record("mnn", 16, sparsity=0),
    record("mnn", 20, sparsity=0.55),
    record("mnn", 7.5),
]


def test_the_tables_compare_with_the_fastest_dense_runtime_and_mnn_of_the_same_setting():
    short, full = map(cells, tables(RECORDS))
    head, alignment, *rows = short
    assert head == ["network", "instructions", "pictures", "threads", "fastest dense runtime",
                    "55%", "90%", "the limit"]  # fmt: skip
    assert [cell[-1] for cell in alignment] == ["-", *":::::::"]  # numbers to the right
    assert rows == [  # at 55% MNN's dense kernels are the faster ones
        ["vgg11, 224", "AVX-512", "1", "1", "10.00 (ONNX Runtime)", "8.00 (1.25, 2.00)",
         "2.50 (4.00, 3.00)", "3.12, 1.25"],
        ["alexnet, 224", "AVX-512", "1", "1", "6.00 (OpenVINO)", "", "3.00 (2.00)", "1.00"],
    ]  # fmt: skip
    head, _, *rows = full
    assert head[:2] == ["runtime", "network"]
    assert [[row[0], *row[2:]] for row in rows if row[1] == "vgg11, 224"] == [
        ["ONNX Runtime", "AVX-512", "1", "1", "10.00 (1.00)", "", ""],
        ["OpenVINO", "AVX-512", "1", "1", "12.00 (0.83)", "", ""],
        ["MNN", "AVX-512", "1", "1", "16.00 (0.62)", "20.00 (0.50)", "7.50 (1.33)"],
        ["DeepSparse", "AVX-512", "1", "1", "5.00 (2.00)", "", ""],
        ["sparse runtime", "AVX-512", "1", "1", "", "8.00 (1.25)", "2.50 (4.00)"],
        ["the limit", "AVX-512", "1", "1", "5.00 (2.00)", "3.12 (3.20)", "1.25 (8.00)"],
        ["sparse runtime", "AVX-512", "1", "2", "", "", "2.00"],
        ["sparse runtime", "AVX2", "1", "1", "", "", "4.00"],
        ["sparse runtime", "AVX-512", "8", "1", "", "", "16.00"],
    ]


def test_each_processor_has_tables_of_its_own_and_is_named_above_them():
    other = [record("sparse", 1, cpu="b", version="1.5"), record("limit", 1, cpu="b", version=None)]
    blocks = report([*RECORDS, *other]).split("\n\n")
    assert [block.splitlines()[0] for block in blocks if block[0] != "|"] == [
        "a; 2026-01-01; float32, medians of 5 rounds",
        "b; 2026-01-01; float32, medians of 5 rounds",
        NOTE.splitlines()[0],
    ]
    assert blocks[3].splitlines()[1] == "sparse runtime 1.5"


def test_the_readme_shows_the_tables_of_the_results():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for name in ("inference", "networks"):
        records = read_records([RESULTS / f"{name}.jsonl"])
        assert f"\n\n{tables(records)[0]}\n\n" in text
        assert about(records) in text
    assert NOTE in text
    assert {r["network"] for r in records if r["runtime"] == "sparse"} == set(MODELS)


def test_a_record_twice_is_refused():
    with pytest.raises(ValueError, match="two records of sparse at 90% on a"):
        tables([*RECORDS, RECORDS[1]])


def test_the_limit_counts_what_is_left_and_what_has_to_leave_the_cores():
    sparse = np.float32([[0, 0], [1, 1], [1, 1], [1, 1]])
    ones = np.ones(4, np.float32)
    model = Model((3, 8, 8), [
        Convolution([0], weight=np.ones((2, 3)), bias=ones[:2]),
        Depthwise([1], kernel=[3, 3], stride=[2, 2], padding=[1, 1, 1, 1],
                  weight=np.ones((2, 9)), bias=ones[:2]),
        Convolution([2], weight=sparse, bias=ones),
        Add([3, 3]),
        Mean([4]),
    ], [5])  # fmt: skip
    rates = {"multiply_adds": 1, "copied_bytes": float("inf")}
    assert inference.limit(model, 5, rates) == 5 * (6 * 64 + 18 * 16 + 6 * 16)
    rates = {"multiply_adds": float("inf"), "copied_bytes": 1}
    assert inference.limit(model, 5, rates) == 5 * 8 * (3 * 64 + 2 * 64 + 4 * 16)


def test_a_peer_that_fails_or_differs_says_why(tmp_path, monkeypatch):
    def start(program, name="sparse"):
        path = tmp_path / "peer.py"
        path.write_text(program)
        monkeypatch.setattr(inference, "RUNTIME", [str(path)])
        widest = build.instruction_sets()[0]
        return inference.RuntimePeer(
            name, instruction_set=widest, threads=1, folder=tmp_path, networks=["0.9"]
        )

    def says(**hello):
        return f"print({json.dumps(hello)!r}, flush=True); input()"

    for program, message in (
        ("import no_such_module", "ended: ModuleNotFoundError: No module named 'no_such_module'"),
        (says(error="RuntimeError: no"), "^RuntimeError: no$"),
        (says(version="1", differences={"0.9": 0.05}), "at 90% it is off by 5.0e-02 of the larg"),
        (says(version="1", differences={"0.9": float("nan")}), "at 90% it is off by nan"),
    ):
        with pytest.raises(ChildProcessError, match=message):
            start(program)
    start(says(version="1", differences={"0.9": 0.001})).end()
    start(says(version="1", differences={"0.9": 0.05}), "mnn").end()


def test_the_difference_from_the_network_is_relative_and_of_the_worst_output():
    expected = [np.float32([[8, 0]]), np.float32([[0.5]])]
    assert runtime.difference([np.float32([[8, 1]]), np.float32([[0.25]])], expected) == 0.5
    assert np.isnan(runtime.difference([np.float32([[8, np.nan]]), expected[1]], expected))
    for outputs in (expected[:1], [expected[0].T, expected[1]]):
        with pytest.raises(ValueError, match="its outputs are"):
            runtime.difference(outputs, expected)


def test_refusals(tmp_path, capfd):
    (tmp_path / "other.jsonl").write_text('{"row": "dense"}\n')
    for options, message in (
        (["--model", "resnet5"], "there is no model 'resnet5' for imagenet; did you mean resnet50"),
        (["--out", tmp_path / "nowhere" / "a.jsonl"], "No such file or directory"),
        (["--table", tmp_path / "other.jsonl"], "--table takes what --out wrote, not "),
        (["--sparsities", "1"], "must be a number in [0.01, 0.99]"),
    ):
        assert message in error_line(capfd, inference.main, *options)
    assert "invalid choice: 'x'" in error_line(capfd, runtime.main, "x")
    with pytest.raises(SystemExit) as ended:
        runtime.main(["--help"])
    assert ended.value.code == 0
    assert capfd.readouterr().out.startswith("usage: ")
