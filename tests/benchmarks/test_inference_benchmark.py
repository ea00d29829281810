"""benchmarks/inference/: on a small network, and its table."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from conftest import ROOT, error_line

from benchmarks.inference import compare as inference
from benchmarks.inference.tables import NOTE, about, read_records, tables
from sparse_runtime import build
from sparse_runtime.model_file import Model, Operator

RESULTS = ROOT / "benchmarks" / "inference"
SMALL = ["--scale", "0.25", "--image_size", "32", "--rounds", "1", "--sparsities", "0.9",
         "--threads", "1", "--peers", "sparse", "onnxruntime", "paddle"]  # fmt: skip


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_every_runtime_computes_the_same_and_gets_a_row(tmp_path, capfd):
    for module in ("onnx", "onnxruntime", "paddle2onnx"):
        pytest.importorskip(module)
    out = tmp_path / "medians.jsonl"
    inference.main([*SMALL, "--out", str(out)])
    printed, errors = capfd.readouterr()
    assert "left out" not in errors
    records = [json.loads(line) for line in out.read_text().splitlines()]
    sets = build.instruction_sets()
    sets = sets[:-1] or sets
    assert {(r["runtime"], r["instructions"]) for r in records} == {
        ("onnxruntime", sets[0]),
        *((name, each) for name in ("paddle", "sparse", "limit") for each in sets),
    }
    for record in (r for r in records if r["runtime"] != "limit"):
        assert record["difference"] <= inference.MAX_DIFFERENCE
        assert record["ms"] > 0
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + len(records)  # of one sparsity, with no dense network to compare
    assert {row.count("|") for row in rows[:2]} == {6}
    assert {row.count("|") for row in rows[2:]} == {7}
    inference.main(["--table", str(out)])
    assert capfd.readouterr().out == printed


def record(runtime: str, ms: float, **more) -> dict:
    return {"runtime": runtime, "instructions": "avx512", "sparsity": 0.9, "threads": 1,
            "batch": 1, "ms": ms, **more}  # fmt: skip


RECORDS = [
    record("sparse", 4, instructions="avx2"),
    record("sparse", 2.5),
    record("sparse", 8, sparsity=0.55),
    record("sparse", 16, batch=8),
    record("sparse", 2, threads=2),
    record("limit", 1.25),
    record("deepsparse", 5, sparsity=0),  # no yardstick: it looks for zeros
    record("openvino", 12, sparsity=0),
    record("onnxruntime", 10, sparsity=0),
    record("onnxruntime", 9),
]


def test_the_table_compares_with_the_fastest_dense_runtime_of_the_same_instructions():
    short, full = map(cells, tables(RECORDS))
    head, alignment, row = short
    assert head == ["instructions", "pictures", "threads", "fastest dense runtime", "55%", "90%"]
    assert [cell[-1] for cell in alignment] == ["-", *":::::"]  # numbers to the right
    assert row == ["AVX-512", "1", "1", "10.00 (ONNX Runtime)", "8.00 (1.25)", "2.50 (4.00)"]
    head, _, *rows = full
    assert head == ["runtime", "instructions", "pictures", "threads", "dense", "55%", "90%"]
    assert rows == [
        ["ONNX Runtime", "AVX-512", "1", "1", "10.00 (1.00)", "", "9.00 (1.11)"],
        ["OpenVINO", "AVX-512", "1", "1", "12.00 (0.83)", "", ""],
        ["DeepSparse", "AVX-512", "1", "1", "5.00 (2.00)", "", ""],
        ["sparse runtime", "AVX-512", "1", "1", "", "8.00 (1.25)", "2.50 (4.00)"],
        ["the limit", "AVX-512", "1", "1", "", "", "1.25 (8.00)"],
        ["sparse runtime", "AVX-512", "1", "2", "", "", "2.00"],
        ["sparse runtime", "AVX2", "1", "1", "", "", "4.00"],
        ["sparse runtime", "AVX-512", "8", "1", "", "", "16.00"],
    ]


def test_the_readme_shows_the_tables_of_the_results():
    records = read_records([RESULTS / "inference.jsonl"])
    text = (ROOT / "benchmarks" / "README.md").read_text()
    for table in tables(records):
        assert f"\n\n{table}\n\n" in text
    assert NOTE in text
    assert "DeepSparse 1.8.0" in about(records)
    again = cells(tables(read_records([RESULTS / "inference-again.jsonl"]))[0])
    paragraph = text.split("inference-again.jsonl")[1].partition("\n\n")[0]
    said = re.findall(r"\d\.\d\d", paragraph)
    assert said == [
        re.search(r"\((.*)\)", cell)[1]
        for row in again if row[1:3] == ["1", "2"] for cell in row[4:]
    ]  # fmt: skip


def test_the_limit_counts_what_is_left_and_no_depthwise_results():
    sparse = np.float32([[0, 0], [1, 1], [1, 1], [1, 1]])
    ones = np.ones(4, np.float32)
    model = Model((3, 8, 8), [
        Operator("convolution", [0], np.ones((2, 3)), ones[:2]),
        Operator("depthwise", [1], np.ones((2, 9)), ones[:2], kernel=3, stride=2, padding=1),
        Operator("convolution", [2], sparse, ones),
        Operator("pool", [3]),
    ])  # fmt: skip
    rates = {"multiply_adds": 1, "copied_bytes": float("inf")}
    assert inference.limit(model, 5, rates) == 5 * (6 * 64 + 18 * 16 + 6 * 16)
    rates = {"multiply_adds": float("inf"), "copied_bytes": 1}
    assert inference.limit(model, 5, rates) == 5 * 8 * (3 * 64 + 2 * 64 + 4 * 16 + 4)


def test_a_peer_that_fails_or_differs_says_why(tmp_path, monkeypatch):
    def start(name, program):
        path = tmp_path / "peer.py"
        path.write_text(program)
        monkeypatch.setattr(inference, "RUNTIME", [str(path)])
        widest = build.instruction_sets()[0]
        return inference.RuntimePeer(
            name,
            instruction_set=widest,
            threads=1,
            folder=tmp_path,
            networks=["0.9"],
            python=sys.executable,
        )

    def says(**hello):
        return f"print({json.dumps(hello)!r}, flush=True); input()"

    for program, message in (
        ("import no_such_module", "ended: ModuleNotFoundError: No module named 'no_such_module'"),
        (says(error="RuntimeError: no"), "^RuntimeError: no$"),
    ):
        with pytest.raises(ChildProcessError, match=message):
            start("openvino", program)
    reference = start("onnxruntime", says(version="1", outputs={"0.9": [[1, 2]]}))
    for value in (2.1, float("nan")):
        other = start("openvino", says(version="1", outputs={"0.9": [[1, value]]}))
        with pytest.raises(ChildProcessError, match="at 90% it differs from onnxruntime by"):
            other.compare(reference)
        other.end()
    reference.end()


def test_refusals(tmp_path, capfd):
    (tmp_path / "other.jsonl").write_text('{"row": "dense"}\n')
    for options, message in (
        (["--peers", "sparse"], "--peers needs onnxruntime: the outputs of others are compared"),
        (["--openvino_python", "no-python"], "--openvino_python is no program: no-python"),
        (["--out", tmp_path / "nowhere" / "a.jsonl"], "No such file or directory"),
        (["--table", tmp_path / "other.jsonl"], "--table takes what --out wrote, not "),
        (["--sparsities", "1"], "must be a number in [0, 0.99]"),
    ):
        assert message in error_line(capfd, inference.main, *options)
