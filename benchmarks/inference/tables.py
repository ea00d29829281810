"""The runtimes that are compared, and the tables of what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import markdown


@dataclass
class Runtime:
    label: str
    install: str = ""
    avx2: dict[str, str] | None = None  # the environment in which it does without AVX-512


ONEDNN_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # OpenVINO has a oneDNN of its own
RUNTIMES = {
    "paddle": Runtime("Paddle Inference", "paddlepaddle", ONEDNN_AVX2),
    "onnxruntime": Runtime("ONNX Runtime", "onnxruntime"),
    "openvino": Runtime("OpenVINO", "openvino", ONEDNN_AVX2),
    "deepsparse": Runtime(
        "DeepSparse",
        'deepsparse==1.8.0 sparsezoo "numpy<2" "onnx<1.15", with Python 3.8 to 3.11',
    ),
    "sparse": Runtime("sparse runtime", avx2={}),
}
DENSE = ("paddle", "onnxruntime", "openvino")  # do not look for zeros
SETS = {"avx512": "AVX-512", "avx2": "AVX2", "plain": "C++"}
NOTE = """Milliseconds a run (times as fast as dense). Dense: the fastest of Paddle Inference (with
oneDNN), ONNX Runtime and OpenVINO on the dense network, with the same instructions, pictures and
threads. ONNX Runtime and DeepSparse cannot be restricted to AVX2."""


def tables(records: list[dict]) -> tuple[str, str]:
    """The sparse runtime beside the fastest dense one, and all medians; a column a sparsity."""
    labels = {**{name: runtime.label for name, runtime in RUNTIMES.items()}, "limit": "the limit"}
    names, sets = list(labels), list(SETS)
    sparsities = sorted({r["sparsity"] for r in records} - {0})
    rows: dict = {}  # (pictures, instructions, threads, runtime) -> {sparsity: ms}
    dense: dict = {}  # (pictures, instructions, threads) -> [(ms, runtime), ...]
    for r in records:
        setting = r["batch"], sets.index(r["instructions"]), r["threads"]
        rows.setdefault((*setting, names.index(r["runtime"])), {})[r["sparsity"]] = r["ms"]
        if r["runtime"] in DENSE and r["sparsity"] == 0:
            dense.setdefault(setting, []).append((r["ms"], labels[r["runtime"]]))
    short, full = [], []
    for (*setting, runtime), found in sorted(rows.items()):
        fastest, label = min(dense.get(tuple(setting), [(0, "")]))
        cells = []
        for sparsity in (0, *sparsities):
            ms = found.get(sparsity)
            times = f" ({fastest / ms:.2f})" if ms and fastest else ""
            cells.append(f"{ms:.2f}{times}" if ms else "")
        batch, instructions, threads = setting
        common = [SETS[sets[instructions]], str(batch), str(threads)]
        full.append([labels[names[runtime]], *common, *cells])
        if names[runtime] == "sparse" and fastest:
            short.append([*common, f"{fastest:.2f} ({label})", *cells[1:]])
    shares = [f"{sparsity:.0%}" for sparsity in sparsities]
    return (
        markdown(["instructions", "pictures", "threads", "fastest dense runtime", *shares], short),
        markdown(["runtime", "instructions", "pictures", "threads", "dense", *shares], full),
    )


def about(records: list[dict]) -> str:
    r = records[0]
    versions = {
        f"{RUNTIMES[r['runtime']].label} {r['version']}" for r in records if r.get("version")
    }
    return (
        f"MobileNetV1 x{r['scale']}, pictures of {r['image_size']}x{r['image_size']}, float32; "
        f"medians of {r['rounds']} rounds\n{r['cpu']}; {', '.join(sorted(versions))}"
    )


def read_records(paths: list[Path]) -> list[dict]:
    try:
        records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    except ValueError:  # reported below
        records = []
    if not records or not all(isinstance(r, dict) and "instructions" in r for r in records):
        raise ValueError(f"--table takes what --out wrote, not {', '.join(map(str, paths))}")
    return records
