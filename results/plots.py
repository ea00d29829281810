"""Draws a training or the experiments, as PNG and SVG.

    python -m results.plots models --out pictures          # of one run's folder
    python -m results.plots my_results --out pictures      # of results.experiments'

For a run: accuracy, loss, learning rate, sparsity and threshold over the epochs; the sparsity of
every layer, and a histogram of the weights. For experiments: accuracy against sparsity, and against
time and size in the sparse runtime; the sparsity of every layer by method.
"""

from __future__ import annotations

import statistics
import sys
from itertools import cycle
from pathlib import Path

import numpy as np

from training.command_line import Parser, last_words, one_line_errors

try:
    import matplotlib
except ImportError:
    last_words(Path(sys.argv[0]).name, 'error: this needs matplotlib; pip install ".[plots]"')
    sys.exit(2)

from results.experiments import read_lines, read_runs
from results.rows import DATA, DENSE, HELPED, ROWS
from results.tables import finished
from training import checkpoint, folders

matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.rcParams["text.parse_math"] = False  # names are no formulas

MARKERS = "osD^v<>Pp*Xh"
# Rows whose sparsity by layer is drawn.
COMPARED = [f"imagenette-{name}" for name in ("gmp-95", "no-floor-95", "erk-95")]
# Curves over the epochs: by panel the names of metrics.jsonl, and of their lines.
PANELS = {
    "accuracy": {"top1": "top-1", "top5": "top-5"},
    "mAP": {"map_11point": "11-point"},
    "loss": {"train_loss": "training", "loss": "test"},
    "learning rate": {"lr": "learning rate"},
    "sparsity": {"prunable_sparsity": "prunable", "sparsity": "all"},
    "threshold": {"threshold": "threshold"},
}
STYLES = ("-", "--")  # of lines of one colour
HOLLOW = {"markerfacecolor": "none", "markersize": 7, "linewidth": 1}  # so that none hides another


def percent() -> matplotlib.ticker.Formatter:
    """For one axis, whose range decides how many decimals are shown."""
    return matplotlib.ticker.PercentFormatter(1)


def save(figure, out: Path, name: str) -> None:
    for ending in ("png", "svg"):
        path = out / f"{name}.{ending}"
        figure.savefig(path, dpi=110, metadata={"Date": None} if ending == "svg" else None)
        print(path)
    plt.close(figure)


def lines_of(panel: str, records: list[dict]) -> dict[str, list[tuple]]:
    """By name the points (epoch, value) of the lines that have some."""
    lines = {
        label: [(r["epoch"], r[key]) for r in records if r.get(key) is not None]
        for key, label in PANELS[panel].items()
    }
    return {label: points for label, points in lines.items() if points}


def draw_panel(axis, panel: str, records: list[dict], color=None, width: float = 1.5) -> None:
    """
    Args:
        color: of all lines, which differ in style then; else each has its own.
        width: of the lines, in points; the dots are twice as wide.
    """
    styles = dict(zip(PANELS[panel].values(), STYLES))
    for label, points in lines_of(panel, records).items():
        style = {"color": color, "linestyle": styles[label]} if color else {}
        axis.plot(
            *zip(*points), marker="o", linewidth=width, markersize=2 * width, label=label, **style
        )
    axis.grid(alpha=0.3)
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    if panel == "sparsity":
        axis.set_ylim(0, 1)
    if panel in ("accuracy", "mAP", "sparsity"):
        axis.yaxis.set_major_formatter(percent())


def draw_epochs(records: list[dict], out: Path) -> None:
    panels = [panel for panel in PANELS if lines_of(panel, records)]
    size = (7, 2.2 * len(panels))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes[:, 0], panels):
        draw_panel(axis, panel, records)
        axis.set_ylabel(panel)
        if len(axis.lines) > 1:
            axis.legend()
    figure.align_ylabels()
    axes[-1, 0].set_xlabel("epoch")
    save(figure, out, "epochs")


def read_layers(path: Path) -> dict[str, np.ndarray]:
    """The weights in a file that have two or more dimensions: the prunable ones by default.

    Raises:
        ValueError, FileNotFoundError: it holds none, is damaged, or not there.
    """
    weights = {
        name: value
        for name, value in checkpoint.read_arrays(path).items()
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 1
    }
    weights = {name: value for name, value in weights.items() if value.size}
    if not weights:
        raise ValueError(f"{path} holds no layer's weights; give a run's folder")
    return weights


def sparsity(*values: np.ndarray) -> float:
    return sum(int((value == 0).sum()) for value in values) / sum(value.size for value in values)


def kept_weights(weights: dict[str, np.ndarray]) -> np.ndarray:
    """Float32, all that are finite and not 0."""
    flat = np.concatenate([value.ravel() for value in weights.values()])
    with np.errstate(over="ignore"):
        flat = flat.astype(np.float32)
    return flat[np.isfinite(flat) & (flat != 0)]


def draw_histogram(axis, kept: np.ndarray, before=None, edges: float = 0.005, **style) -> None:
    """
    Args:
        kept: weights, from kept_weights().
        before: those that the training started from, as an outline.
        edges: part of the weights that is drawn at the edges, whatever they are.
        style: of `kept`.
    """
    there = [weights for weights in (kept, before) if weights is not None and len(weights)]
    limit = max((float(np.quantile(np.abs(w), 1 - edges)) for w in there), default=1.0)
    bins = np.linspace(-limit, limit, 202)
    axis.hist(kept.clip(-limit, limit), bins, histtype="stepfilled", **style)
    if before is not None:
        axis.hist(before.clip(-limit, limit), bins, histtype="step", color="black")
    axis.grid(alpha=0.3)


def draw_layers(weights: dict[str, np.ndarray], out: Path) -> None:
    figure, axis = plt.subplots(figsize=(8, 1.5 + 0.19 * len(weights)), layout="constrained")
    names = [f"{name}  ({value.size:,})" for name, value in weights.items()]
    axis.barh(names, [sparsity(value) for value in weights.values()])
    axis.invert_yaxis()
    axis.margins(y=0.01)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlim(0, 1)
    axis.set_xlabel("sparsity of the layer (number of its weights)")
    axis.xaxis.set_major_formatter(percent())
    axis.grid(axis="x", alpha=0.3)
    save(figure, out, "layers")


def draw_weights(weights: dict[str, np.ndarray], out: Path) -> None:
    kept, count = kept_weights(weights), sum(value.size for value in weights.values())
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    draw_histogram(axis, kept)
    axis.set_xlabel("weight (the outermost 0.5% at the edges)")
    axis.set_ylabel("weights")
    axis.set_title(f"{len(kept):,} of {count:,} weights, {sparsity(*weights.values()):.2%} are 0")
    save(figure, out, "weights")


def draw_results(runs: list[dict], out: Path) -> None:
    """Top-1 against measured sparsity, of the first two data sets: means and ranges of seeds."""
    shown = [data for data in DATA if methods(runs, data)][:2]
    if not shown:
        raise ValueError("there is no pruned run yet")
    size = (6.5 * len(shown), 5)
    figure, axes = plt.subplots(1, len(shown), figsize=size, layout="constrained", squeeze=False)
    for axis, data in zip(axes[0], shown):
        controls = [row for row in ROWS if row.data == data and row.name == row.control]
        for row, style in zip(controls, cycle(STYLES)):
            if top1 := [run["top1"] for run in finished(runs, row.full_name)]:
                axis.axhspan(min(top1), max(top1), alpha=0.12, color="black")
                mean = statistics.mean(top1)
                axis.axhline(mean, color="black", linewidth=1, linestyle=style, label=row.method)
        for (method, points), marker in zip(methods(runs, data).items(), cycle(MARKERS)):
            x, mean, low, high = np.array(sorted(points)).T
            error = np.stack([mean - low, high - mean])
            axis.errorbar(x, mean, error, marker=marker, capsize=3, label=method, **HOLLOW)
        axis.set_title(DATA[data].title)
        axis.set_xlabel("measured sparsity of the prunable weights")
        axis.xaxis.set_major_formatter(percent())
        axis.yaxis.set_major_formatter(percent())
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9)
    axes[0][0].set_ylabel("top-1")
    save(figure, out, "results")


def methods(runs: list[dict], data: str) -> dict[str, list[tuple]]:
    """Of every method of pruning the points (sparsity, mean, lowest and highest top-1).

    Without HELPED, points of one sparsity that hide each other.
    """
    hidden = {f"fashion-{name}" for name, *_ in HELPED}
    points = {}
    for row in ROWS:
        if row.data != data or row.options[:2] == DENSE or row.full_name in hidden:
            continue
        if found := finished(runs, row.full_name):
            top1 = [run["top1"] for run in found]
            sparsity = statistics.mean(run["prunable_sparsity"] for run in found)
            # exact: equal numbers give a mean that is no less
            point = (sparsity, statistics.mean(top1), min(top1), max(top1))
            points.setdefault(row.method.partition(" 0.")[0], []).append(point)
    return points


def draw_deployed(runs: list[dict], deployed: list[dict], out: Path) -> None:
    """Top-1, mean of the seeds, against what seed 0 costs in the sparse runtime: time, and size."""
    rows = {row.full_name: row for row in ROWS}
    data = rows[deployed[0]["row"]].data
    figure, axes = plt.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    titles = {"ms": "milliseconds a picture, one thread", "bytes": "megabytes of the exported file"}
    for axis, (key, title) in zip(axes, titles.items()):
        lines = {}
        for record in deployed:
            row = rows[record["row"]]
            if row.data != data or row.is_start:
                continue
            top1 = [run["top1"] for run in finished(runs, row.full_name)]
            label = row.method.partition(" 0.")[0]
            if record["runtime"] == "onnx":
                label += ", ONNX Runtime"
            if top1:
                point = (record[key] / (1e6 if key == "bytes" else 1), statistics.mean(top1))
                lines.setdefault(label, []).append(point)
        for (label, points), marker in zip(lines.items(), cycle(MARKERS)):
            axis.plot(*zip(*sorted(points)), marker=marker, label=label, **HOLLOW)
        axis.set_xlabel(title)
        axis.set_xlim(left=0)
        axis.yaxis.set_major_formatter(percent())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(f"top-1 on {DATA[data].title}")
    axes[1].legend(fontsize=9)
    save(figure, out, "deployed")


def log_scale(axis, form) -> None:
    """Of x; the labels are made by `form`, as those of matplotlib's own are TeX."""
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(form)
    axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def draw_distributions(runs: list[dict], names: list[str], out: Path) -> None:
    """The sparsity of every layer under several rows, those of seed 0."""
    runs = [run for run in runs if run["seed"] == 0 and run["row"] in names and "layers" in run]
    if not runs:
        return
    figure, axis = plt.subplots(figsize=(9, 6.5), layout="constrained")
    rows = {row.full_name: row for row in ROWS}
    for run, marker in zip(runs, MARKERS):
        row = rows[run["row"]]
        label = f"{row.method}, {row.target}"
        kept = [1 - sparsity for sparsity in run["layers"].values()]
        axis.plot(kept, list(run["layers"]), marker=marker, label=label, **HOLLOW)
    axis.invert_yaxis()
    log_scale(axis, lambda part, _: f"{100 * part:g}%")
    axis.set_xlabel("part of the layer's weights that is kept")
    axis.tick_params(axis="y", labelsize=8)
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, out, "distributions")


@one_line_errors
def main(argv=None) -> None:
    parser = Parser(__doc__)
    parser.add_argument("folder", type=Path, help="of a run, or of experiments")
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="(%(default)s)")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if (args.folder / "runs.jsonl").is_file():
        runs = read_runs(args.folder)
        draw_results(runs, args.out)
        draw_distributions(runs, COMPARED, args.out)
        if deployed := read_lines(args.folder / "deployed.jsonl"):
            draw_deployed(runs, deployed, args.out)
        return
    metrics = args.folder / folders.METRICS
    if not metrics.is_file():
        raise FileNotFoundError(f"{args.folder} has neither {folders.METRICS} nor runs.jsonl")
    draw_epochs(folders.read_metrics(args.folder), args.out)
    weights = read_layers(folders.find_weights(args.folder))
    draw_layers(weights, args.out)
    draw_weights(weights, args.out)


if __name__ == "__main__":
    sys.exit(main())
