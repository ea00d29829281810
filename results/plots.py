"""Draws a training or the experiments, as PNG and SVG.

    python -m results.plots models --out pictures          # of one run's folder
    python -m results.plots my_results --out pictures      # of results.experiments'

For a run: accuracy, loss, learning rate, sparsity and threshold over the epochs; the sparsity of
every layer, and a histogram of the weights. For experiments: accuracy against sparsity, and against
time and size in the sparse runtime; the sparsity of every layer by method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import numpy as np

try:
    import matplotlib
except ImportError:
    sys.exit("plots.py: error: this needs matplotlib; pip install matplotlib")

from results.experiments import read_runs
from results.rows import DATA, ROWS
from training import checkpoint, folders
from training.command_line import one_line_errors

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PERCENT = matplotlib.ticker.PercentFormatter(1, decimals=None)
# Rows whose sparsity by layer is drawn.
COMPARED = [f"imagenette-{name}" for name in ("gmp-95", "no-floor-95", "erk-95")]
METRICS = ("top1", "map_11point")  # what a task measures first


def save(figure, out: Path, name: str) -> None:
    for ending in ("png", "svg"):
        path = out / f"{name}.{ending}"
        figure.savefig(path, dpi=110, metadata={"Date": None} if ending == "svg" else None)
        print(path)
    plt.close(figure)


def draw_epochs(records: list[dict], out: Path) -> None:
    epochs = [record["epoch"] for record in records]
    metric = next(name for name in METRICS if name in records[-1])
    panels = {
        "accuracy" if metric == "top1" else "mAP": {
            "top1": "top-1",
            "map_11point": "11-point",
            "top5": "top-5",
        },
        "loss": {"train_loss": "training", "loss": "test"},
        "learning rate": {"lr": "learning rate"},
        "sparsity": {"prunable_sparsity": "prunable", "sparsity": "all"},
        "threshold": {"threshold": "threshold"},
    }
    figure, axes = plt.subplots(len(panels), 1, figsize=(7, 11), sharex=True, layout="constrained")
    for axis, (title, lines) in zip(axes, panels.items()):
        for key, label in lines.items():
            points = [(e, r[key]) for e, r in zip(epochs, records) if r.get(key) is not None]
            if points:
                axis.plot(*zip(*points), marker="o", markersize=3, label=label)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if len(axis.lines) > 1:
            axis.legend()
        if title == "sparsity":
            axis.set_ylim(0, 1)
        if title in ("accuracy", "mAP", "sparsity"):
            axis.yaxis.set_major_formatter(PERCENT)
    figure.align_ylabels()
    axes[-1].set_xlabel("epoch")
    axes[-1].xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    save(figure, out, "epochs")


def draw_layers(weights: dict[str, np.ndarray], out: Path) -> None:
    """Of the arrays of two or more dimensions: the prunable ones by default."""
    weights = {name: value for name, value in weights.items() if value.ndim > 1}
    sparsities = [float((value == 0).mean()) for value in weights.values()]
    figure, axis = plt.subplots(figsize=(8, 1.5 + 0.19 * len(weights)), layout="constrained")
    names = [f"{name}  ({value.size:,})" for name, value in weights.items()]
    axis.barh(names, sparsities)
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlim(0, 1)
    axis.set_xlabel("sparsity of the layer (number of its weights)")
    axis.xaxis.set_major_formatter(PERCENT)
    axis.grid(axis="x", alpha=0.3)
    save(figure, out, "layers")

    flat = np.concatenate([value.ravel() for value in weights.values()])
    kept = flat[flat != 0]
    limit = float(np.quantile(np.abs(kept), 0.995)) if len(kept) else 1.0
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    axis.hist(kept.clip(-limit, limit), bins=201)
    axis.set_xlabel("weight (the outermost 0.5% at the edges)")
    axis.set_ylabel("weights")
    axis.set_title(f"{len(kept):,} of {len(flat):,} weights, {1 - len(kept) / len(flat):.2%} are 0")
    axis.grid(alpha=0.3)
    save(figure, out, "weights")


def draw_results(runs: list[dict], out: Path) -> None:
    """Top-1 against measured sparsity, of the first two data sets: means and ranges of seeds."""
    shown = [data for data in DATA if methods(runs, data)][:2]
    if not shown:
        raise ValueError("there is no pruned run yet")
    size = (6.5 * len(shown), 5)
    figure, axes = plt.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False)
    for axis, data in zip(axes[0], shown):
        control = [run["top1"] for run in runs if run["row"] == f"{data}-control"]
        if control:
            label = "dense control"
            axis.axhspan(min(control), max(control), alpha=0.12, color="black", label=label)
            axis.axhline(statistics.mean(control), color="black", linewidth=1)
        for (method, points), marker in zip(methods(runs, data).items(), "osD^v<>Pp*Xh"):
            x, mean, low, high = np.array(sorted(points)).T
            error = np.stack([mean - low, high - mean])
            axis.errorbar(x, mean, error, marker=marker, capsize=3, label=method, linewidth=1)
        axis.set_title(DATA[data].title)
        axis.set_xlabel("measured sparsity of the prunable weights")
        axis.xaxis.set_major_formatter(PERCENT)
        axis.yaxis.set_major_formatter(PERCENT)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    axes[0][0].set_ylabel("top-1")
    save(figure, out, "results")


def methods(runs: list[dict], data: str) -> dict[str, list[tuple]]:
    """Of every method of pruning the points (sparsity, mean, lowest and highest top-1)."""
    points = {}
    for row in (row for row in ROWS if row.data == data and row.name not in ("dense", "control")):
        found = [run for run in runs if run["row"] == row.full_name and "diverged" not in run]
        if found:
            top1 = [run["top1"] for run in found]
            sparsity = statistics.mean(run["prunable_sparsity"] for run in found)
            # exact: equal numbers give a mean that is no less
            point = (sparsity, statistics.mean(top1), min(top1), max(top1))
            points.setdefault(row.method.partition(" 0.")[0], []).append(point)
    return points


def draw_deployed(runs: list[dict], deployed: list[dict], out: Path) -> None:
    """Top-1 of seed 0 against what it costs in the sparse runtime: time, and size."""
    top1 = {run["row"]: run["top1"] for run in runs if run["seed"] == 0 and "diverged" not in run}
    rows = {row.full_name: row for row in ROWS}
    deployed = [record for record in deployed if record["row"] in top1]
    data = rows[deployed[0]["row"]].data
    deployed = [record for record in deployed if rows[record["row"]].data == data]
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    names = {"ms": "milliseconds a picture, one thread", "bytes": "megabytes of the exported file"}
    for axis, (key, title) in zip(axes, names.items()):
        for record in deployed:
            row, value = rows[record["row"]], record[key] / (1e6 if key == "bytes" else 1)
            dense = record["runtime"] == "onnx"
            label = "dense, ONNX Runtime" if dense else f"{row.method} {row.target}".strip()
            axis.scatter(value, top1[record["row"]], marker="s" if dense else "o")
            place = {"xytext": (5, 3), "textcoords": "offset points", "fontsize": 8}
            axis.annotate(label, (value, top1[record["row"]]), **place)
        axis.set_xlabel(title)
        axis.set_xlim(left=0)
        axis.yaxis.set_major_formatter(PERCENT)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"top-1 on {DATA[data].title}")
    save(figure, out, "deployed")


def draw_distributions(runs: list[dict], names: list[str], out: Path) -> None:
    """The sparsity of every layer under several rows, those of seed 0."""
    runs = [run for run in runs if run["seed"] == 0 and run["row"] in names and "layers" in run]
    if not runs:
        return
    figure, axis = plt.subplots(figsize=(9, 6.5), layout="constrained")
    rows = {row.full_name: row for row in ROWS}
    for run, marker in zip(runs, "osD^"):
        row = rows[run["row"]]
        layers = list(run["layers"])
        label = f"{row.method}, {row.target}"
        axis.plot([1 - s for s in run["layers"].values()], layers, marker=marker, label=label)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlabel("part of the layer's weights that is kept")
    axis.xaxis.set_major_formatter(PERCENT)
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, out, "distributions")


@one_line_errors
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of a run, or of experiments")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="(%(default)s)")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.folder / "runs.jsonl").is_file():
        runs = read_runs(args.folder)
        draw_results(runs, args.out)
        draw_distributions(runs, COMPARED, args.out)
        deployed = args.folder / "deployed.jsonl"
        if deployed.is_file():
            lines = deployed.read_text().splitlines()
            draw_deployed(runs, [json.loads(line) for line in lines], args.out)
        return
    metrics = args.folder / folders.METRICS
    if not metrics.is_file():
        raise FileNotFoundError(f"{args.folder} has neither {folders.METRICS} nor runs.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    draw_epochs(records, args.out)
    path = folders.find_weights(args.folder)
    draw_layers(checkpoint.read_arrays(path), args.out)


if __name__ == "__main__":
    sys.exit(main())
