"""The runtimes that are compared, and the tables of what was measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import markdown


@dataclass
class Runtime:
    label: str
    venv: str = ""  # the folder of its environment
    zeros: bool = False  # makes use of them
    avx2: dict[str, str] | None = None  # the environment in which it does without AVX-512
    # From Paddle's outputs, of the largest value of each. Deep random networks magnify what is
    # rounded: ONNX Runtime is 5e-4 off in ResNet152.
    max_difference: float = 2e-3


ONEDNN_AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2"}  # OpenVINO has a oneDNN of its own
RUNTIMES = {
    "paddle": Runtime("Paddle Inference", avx2=ONEDNN_AVX2),
    "onnxruntime": Runtime("ONNX Runtime"),
    "openvino": Runtime("OpenVINO", ".venv-peers", avx2=ONEDNN_AVX2),
    # Its 3x3 convolutions are by Winograd's method: 4e-3 off in ResNet50, more in deeper ones.
    "mnn": Runtime("MNN", ".venv-peers", zeros=True, avx2={}, max_difference=0.1),
    "deepsparse": Runtime("DeepSparse", ".venv-deepsparse", zeros=True),
    "sparse": Runtime("sparse runtime", zeros=True, avx2={}),
}
LABELS = {**{name: runtime.label for name, runtime in RUNTIMES.items()}, "limit": "the limit"}
DENSE = ("paddle", "onnxruntime", "openvino", "mnn")  # DeepSparse is developed no more
SETS = {"avx512": "AVX-512", "avx2": "AVX2", "plain": "C++"}
SETTING = ("network", "instructions", "pictures", "threads")
NEEDED = {"network", "image_size", "masks", "cpu", "date", "instructions", "runtime"}
NOTE = """Milliseconds a run (times as fast as dense; in the first table also: as MNN). Dense: the
fastest of Paddle Inference (with oneDNN), ONNX Runtime, OpenVINO and MNN on the dense network, with
the same instructions, pictures and threads. MNN: its sparse kernels, or its dense ones where these
are faster. It has none for AVX-512; ONNX Runtime and DeepSparse cannot be restricted to AVX2. The
limit: at each of these sparsities."""


def report(records: list[dict]) -> str:
    """Two tables for each processor."""
    parts = []
    for cpu in dict.fromkeys(r["cpu"] for r in records):
        own = [r for r in records if r["cpu"] == cpu]
        parts += [about(own), *tables(own)]
    return "\n\n".join([*parts, NOTE])


def tables(records: list[dict]) -> tuple[str, str]:
    """The sparse runtime beside the fastest dense one, and all medians; a column a sparsity."""
    networks = list(dict.fromkeys(map(network, records)))
    sparsities = sorted({round(r["sparsity"], 2) for r in records} - {0})
    runs: dict = {}  # setting -> runtime -> {sparsity: ms}
    for r in records:
        place = networks.index(network(r)), r["batch"], list(SETS).index(r["instructions"])
        found = runs.setdefault((*place, r["threads"]), {}).setdefault(r["runtime"], {})
        sparsity = round(r["sparsity"], 2)
        if sparsity in found:
            raise ValueError(f"two records of {r['runtime']} at {sparsity:.0%} on {r['cpu']}")
        found[sparsity] = r["ms"]
    short, full = [], []
    for (number, batch, instructions, threads), found in sorted(runs.items()):
        setting = [networks[number], list(SETS.values())[instructions], str(batch), str(threads)]
        dense = [(found[name][0], LABELS[name]) for name in DENSE if 0 in found.get(name, {})]
        fastest, label = min(dense, default=(None, ""))
        for name in sorted(found, key=list(LABELS).index):
            cells = [cell(found[name].get(sparsity), fastest) for sparsity in (0, *sparsities)]
            full.append([LABELS[name], *setting, *cells])
        if fastest and "sparse" in found:
            mnn = found.get("mnn", {})
            cells = []
            for sparsity in sparsities:
                theirs = min((mnn[s] for s in (0, sparsity) if s in mnn), default=None)
                cells.append(cell(found["sparse"].get(sparsity), fastest, theirs))
            limits = [f"{found['limit'][s]:.2f}" for s in sparsities if s in found.get("limit", ())]
            short.append([*setting, f"{fastest:.2f} ({label})", *cells, ", ".join(limits)])
    shares = [f"{sparsity:.0%}" for sparsity in sparsities]
    return (
        markdown([*SETTING, "fastest dense runtime", *shares, LABELS["limit"]], short),
        markdown(["runtime", *SETTING, "dense", *shares], full),
    )


def cell(ms: float | None, *others: float | None) -> str:
    """The time, and how many times as long the others take."""
    if ms is None:
        return ""
    times = ", ".join(f"{other / ms:.2f}" for other in others if other)
    return f"{ms:.2f} ({times})" if times else f"{ms:.2f}"


def network(record: dict) -> str:
    width = "" if record["scale"] == 1 else f" x{record['scale']:g}"
    masks = "" if record["masks"] == "uniform" else ", masks of a training"
    return f"{record['network']}{width}, {record['image_size']}{masks}"


def about(records: list[dict]) -> str:
    """The processor in the first line, all versions in the second."""
    dates = ", ".join(sorted({r["date"] for r in records}))
    rounds = "/".join(map(str, sorted({r["rounds"] for r in records})))
    versions = {f"{LABELS[r['runtime']]} {r['version']}" for r in records if r.get("version")}
    return (
        f"{records[0]['cpu']}; {dates}; float32, medians of {rounds} rounds\n"
        f"{', '.join(sorted(versions))}"
    )


def read_records(paths: list[Path]) -> list[dict]:
    try:
        records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    except ValueError:  # reported below
        records = []
    if not records or not all(isinstance(r, dict) and r.keys() >= NEEDED for r in records):
        raise ValueError(f"--table takes what --out wrote, not {', '.join(map(str, paths))}")
    return records
