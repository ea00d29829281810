"""Draws a training or the experiments, as PNG and SVG.

    python -m results.plots models --out pictures          # of one run's folder
    python -m results.plots my_results --out pictures      # of results.experiments'

For a run: accuracy, loss, learning rate, sparsity and threshold over the epochs; the sparsity of
every layer, and a histogram of the weights. For experiments: accuracy against sparsity.
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
from results.rows import ROWS
from training import checkpoint, folders
from training.command_line import one_line_errors

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PERCENT = matplotlib.ticker.PercentFormatter(1, decimals=None)
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
    """Top-1 against measured sparsity: means and ranges of the seeds; all, and what is near."""
    rows = [row for row in ROWS if row.data == "fashion" and row.name != "dense"]
    runs = [run for run in runs if "diverged" not in run]
    control = [run["top1"] for run in runs if run["row"] == "fashion-control"]
    groups = {}
    for row in rows:
        top1 = [run["top1"] for run in runs if run["row"] == row.full_name]
        if top1 and row.name != "control":
            x = np.mean([r["prunable_sparsity"] for r in runs if r["row"] == row.full_name])
            group = row.method if row.method in ("GMP", "ratio") else row.name
            mean = statistics.mean(top1)  # exact: equal numbers give no less
            groups.setdefault(group, []).append((x, mean, min(top1), max(top1)))
    if not groups:
        raise ValueError("there is no pruned run on Fashion-MNIST yet")
    figure, axes = plt.subplots(1, 2, figsize=(12, 5.5), layout="constrained")
    for axis in axes:
        if control:
            label = "dense control"
            axis.axhspan(min(control), max(control), alpha=0.12, color="black", label=label)
            axis.axhline(np.mean(control), color="black", linewidth=1)
        for i, ((group, points), marker) in enumerate(zip(groups.items(), "osD^v<>Pp*Xh")):
            x, mean, low, high = np.array(sorted(points)).T
            x = x + 0.0025 * (i - len(groups) / 2)
            error = np.stack([mean - low, high - mean])
            axis.errorbar(x, mean, error, marker=marker, capsize=3, label=group, linewidth=1)
        axis.set_xlabel("measured sparsity of the prunable weights (marks up to a point aside)")
        axis.xaxis.set_major_formatter(PERCENT)
        axis.yaxis.set_major_formatter(PERCENT)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("top-1 on Fashion-MNIST")
    if control:
        axes[1].set_ylim(min(control) - 0.05, max(control) + 0.01)
        axes[1].set_title("the same, near the control", fontsize=10)
    axes[0].legend(loc="lower left", fontsize=9)
    save(figure, out, "results")


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
        draw_results(read_runs(args.folder), args.out)
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
