"""The tables of results/README.md, from the lines of runs.jsonl and deployed.jsonl."""

from __future__ import annotations

import math
import statistics

from benchmarks.report import markdown
from results.rows import ROWS

HEAD = ["method", "target", "sparsity, all / prunable / 1x1", "top-1", "top-5", "minus control",
        "seeds", "core seconds", "gzipped, KB", "`--only`"]  # fmt: skip
DEPLOYED = ["exported, KB", "ms"]
MEANS = ("sparsity", "prunable_sparsity", "sparsity_1x1", "top1", "top5", "gzip_bytes")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # of so many values: 97.5% of Student's t


def table(runs: list[dict], data: str, deployed: list[dict]) -> str:
    """Means over the seeds; behind top-1 the range, behind "minus control" the 95% interval.

    Args:
        runs: lines of runs.jsonl.
        deployed: lines of deployed.jsonl. Their columns are left out where the data set has none.
    """
    lines = []
    # Dense controls, which have no zeros, in ONNX Runtime.
    exported = {line["row"]: line for line in deployed if line["runtime"] == "sparse"}
    exported.update({line["row"]: line for line in deployed if line["runtime"] == "onnx"})
    head = HEAD + DEPLOYED * any(name.startswith(f"{data}-") for name in exported)
    for row in (row for row in ROWS if row.data == data):
        found = [run for run in runs if run["row"] == row.full_name]
        whole = finished(runs, row.full_name)
        if not found:
            continue
        remark = [f"{len(found) - len(whole)} diverged"] if len(found) > len(whole) else []
        cells = ["", *remark, "", ""] if not whole else []
        seconds = [run["cpu_seconds"] for run in whole if run["cpu_seconds"] is not None]
        size = ""
        if whole:
            means = {key: statistics.mean(run[key] for run in whole) for key in MEANS}
            cells = [
                "{sparsity:.2%} / {prunable_sparsity:.2%} / {sparsity_1x1:.2%}".format(**means),
                ", ".join([with_range([100 * run["top1"] for run in whole]), *remark]),
                f"{means['top5']:.2%}",
                with_interval(differences(runs, row)),
            ]
            size = f"{means['gzip_bytes'] / 1000:.0f}"
        cells += [str(len(found)), f"{statistics.mean(seconds):.0f}" if seconds else "", size]
        cells.append(f"`{row.full_name}`")
        if len(head) > len(HEAD):
            line = exported.get(row.full_name)
            cells += [f"{line['bytes'] / 1000:.0f}", f"{line['ms']:.2f}"] if line else ["", ""]
        lines.append([row.method, row.target, *cells])
    return markdown(head, lines)


def finished(runs: list[dict], name: str) -> list[dict]:
    """Those of a row that did not diverge."""
    return [run for run in runs if run["row"] == name and "diverged" not in run]


def differences(runs: list[dict], row) -> list[float]:
    """Of top-1 to that of its control of the same seed, in points; none where others start."""
    control = f"{row.data}-{row.control}"
    if row.is_start or row.full_name == control:
        return []
    dense = {run["seed"]: run["top1"] for run in finished(runs, control)}
    return [
        100 * (run["top1"] - dense[run["seed"]])
        for run in finished(runs, row.full_name)
        if run["seed"] in dense
    ]


def with_range(values: list[float]) -> str:
    low, mean, high = (f"{f(values):.2f}%" for f in (min, statistics.mean, max))
    return f"{mean} ({low}..{high})" if len(values) > 1 else mean


def with_interval(values: list[float]) -> str:
    """The mean, and half the width of the 95% interval of Student's paired t-test."""
    if len(values) < 2:
        return f"{values[0]:+.2f}" if values else ""
    half = STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return f"{statistics.mean(values):+.2f} ± {half:.2f}"
