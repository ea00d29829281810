"""Writes a page about one or several trainings: a single file, to be read without a network.

    python -m results.report models/ --out report.html
    python -m results.report models/ other/ --control dense/ --exported exported/ --out report.html

What was trained and how it went, side by side: accuracy, sparsity, curves, weights before and
after, the sparsity of every layer, the commands that repeat it, versions.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

import runtimes
from benchmarks.report import machine
from readers.printable import printable
from results import plots
from results.deployed import measure_exports
from results.repeat import evaluate_command, given_options, train_command
from results.words import translator
from tasks import TASKS
from training import folders, train_state
from training.command_line import Parser, WrongOption, one_line_errors
from training.train_state import Saved

COLORS = [plots.matplotlib.colors.to_hex(f"C{i}") for i in range(10)]
CONTROL = "#555555"
SECONDS = 3  # of timing, for each exported network
METRICS = {"top1": "top-1", "map_11point": "mAP, 11-point"}


@dataclass
class Run:
    name: str
    color: str
    saved: Saved
    records: list[dict]  # of metrics.jsonl: its finite numbers
    sha256: str  # of the weights
    bytes: int
    after: dict[str, np.ndarray]
    before: dict[str, np.ndarray] | None  # None: they are not at hand
    before_path: str

    @property
    def trained(self) -> str:
        """What it is, in a few words."""
        options = self.saved.options
        words = [options.get(name) for name in ("model", "data", "pruning_mode")]
        return ", ".join(str(word) for word in words if word is not None)

    @property
    def commands(self) -> list[list[str]]:
        """The words, as a shell takes them."""
        lines = train_command(self.saved), evaluate_command(self.saved)
        return [[shlex.quote(word) for word in line] for line in lines]

    def values(self, key: str) -> list[float]:
        return [record[key] for record in self.records if key in record]


def read_run(folder: Path, name: str, color: str, before: Path | None) -> Run:
    """
    Args:
        before: weights that it started from; None: of its --pretrained_model, where these are as
            they were.

    Raises:
        ValueError, FileNotFoundError: it is no training, or damaged.
    """
    saved = train_state.read(folder)
    if saved is None or saved.epoch is None:
        raise ValueError(f"{folder} holds no training's {train_state.STATE}; give a run's folder")
    weights = folders.find_weights(folder)
    train_state.verify_file(weights.resolve(), saved)
    records = folders.read_metrics(folder)
    if not all(has_epoch(record) for record in records):
        raise ValueError(f"{folder / folders.METRICS} is damaged: a line has no epoch")
    # Lines may be of epochs after the newest checkpoint.
    ended = saved.finished or saved.step == saved.options.get("max_steps")
    records = [record for record in records if record["epoch"] < saved.epoch + ended]
    if not records:
        raise ValueError(f"{folder} has no line in {folders.METRICS}: no epoch was finished")
    path = before or starting_weights(saved)
    after, start = plots.read_layers(weights), None
    if path:
        start = plots.read_layers(folders.find_weights(path))
        if {n: v.shape for n, v in start.items()} != {n: v.shape for n, v in after.items()}:
            if before:
                raise ValueError(f"--before {before} is not of the network in {folder}")
            start = None  # of another number of classes, say
    return Run(
        name=name,
        color=color,
        saved=saved,
        records=[finite(record) for record in records],
        sha256=train_state.sha256(weights),
        bytes=weights.stat().st_size,
        after=after,
        before=start,
        before_path=str(path),
    )


def has_epoch(record) -> bool:
    return (
        type(record) is dict and type(record.get("epoch")) is int and 0 <= record["epoch"] < 10**9
    )


def starting_weights(saved: Saved) -> Path | None:
    """The file of --pretrained_model, where it still is what the training started from."""
    start = saved.options.get("pretrained_model")
    if type(start) is not str:
        return None
    with contextlib.suppress(OSError, ValueError):
        path = folders.find_weights(start)
        return path if train_state.sha256(path) == saved.started_from else None
    return None


def finite(record: dict) -> dict[str, float]:
    numbers = {k: v for k, v in record.items() if type(v) in (int, float)}
    return {k: v for k, v in numbers.items() if abs(v) < 1e30}


def names_of(paths: list[Path]) -> list[str]:
    """Of folders the last part; the whole path where two have the same."""
    names = [path.resolve().name for path in paths]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths)]


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def result_rows(runs: list[Run], control: Run | None, t) -> list[list[str]]:
    """Rows of the first table, without those that no run has."""
    rows = []

    def add(title: str, cell) -> None:
        cells = [cell(run) for run in runs]
        if any(cells):
            rows.append([title, *cells])

    def last(key):
        return lambda run: percent((run.values(key) or [None])[-1])

    def minus_control(key):
        def cell(run: Run) -> str:
            if control is None or run is control or not (run.values(key) and control.values(key)):
                return ""
            return f"{100 * (run.values(key)[-1] - control.values(key)[-1]):+.2f}"

        return cell

    def higher_before(key):
        def cell(run: Run) -> str:
            values = run.values(key)
            return percent(max(values)) if values and max(values) > values[-1] else ""

        return cell

    for key, best in (("top1", t("top-1, best")), ("map_11point", t("mAP, 11-point, best"))):
        add(t(METRICS[key]), last(key))
        add(t("minus control, points"), minus_control(key))
        add(best, higher_before(key))
    add(t("top-5"), last("top5"))
    add(t("top-1 of the average"), last("average_top1"))
    add(t("sparsity, prunable"), lambda run: percent(run.saved.prunable_sparsity))
    add(t("sparsity, all"), lambda run: percent(run.saved.sparsity))
    add(t("bytes of the weights' file"), lambda run: f"{run.bytes:,}")
    add(t("epochs"), lambda run: f"{len(run.records):,}")
    add(t("training, hours"), lambda run: f"{sum(run.values('seconds')) / 3600:.2f}")
    return rows


def option_rows(runs: list[Run], only_given: bool) -> list[list[str]]:
    """A row an option.

    Args:
        only_given: those that a run has otherwise than a new training would; of the other runs
            the value is in parentheses.
    """
    every = [run.saved.options for run in runs]
    given = [given_options(run.saved) for run in runs] if only_given else every
    rows = []
    for name in dict.fromkeys(name for each in given for name in each):
        cells = ["" if o.get(name) is None else shown(o[name]) for o in every]
        cells = [c if name in own or not c else f"({c})" for c, own in zip(cells, given)]
        rows.append([name, *cells])
    return rows


def shown(value) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def layer_rows(runs: list[Run]) -> list[list[str]]:
    names = dict.fromkeys(name for run in runs for name in run.after)
    rows = []
    for name in names:
        there = [run.after.get(name) for run in runs]
        size = next(value.size for value in there if value is not None)
        cells = ("" if value is None else percent(plots.sparsity(value)) for value in there)
        rows.append([name, f"{size:,}", *cells])
    return rows


def curves(runs: list[Run], t) -> list[dict]:
    items = []
    epochs = [record["epoch"] for run in runs for record in run.records]
    for panel, lines in plots.PANELS.items():
        found = [plots.lines_of(panel, run.records) for run in runs]
        labels = [label for label in lines.values() if any(label in each for each in found)]
        if not labels:
            continue
        figure, axis = plots.plt.subplots(figsize=(4.4, 2.6), layout="constrained")
        for run, width in zip(runs, np.linspace(1.5, 4, len(runs))[::-1]):
            # Of equal curves the wider ones, which are drawn first, stay in sight.
            plots.draw_panel(axis, panel, run.records, run.color, width)
        axis.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        styles = dict(zip(lines.values(), (t("solid"), t("dashed"))))
        named = [styles[label] + t(": ") + t(label) for label in labels]
        last = [
            f"{run.name} {t(label)} {each[label][-1][1]:.4g}"
            for run, each in zip(runs, found)
            for label in labels
            if label in each
        ]
        caption = t("; ").join(named) if len(lines) > 1 else ""
        items.append(chart(figure, t(panel), caption, last))
    return items


def histograms(runs: list[Run], t) -> list[dict]:
    items = []
    for run in runs:
        before = run.before and plots.kept_weights(run.before)
        kept, count = plots.kept_weights(run.after), sum(v.size for v in run.after.values())
        figure, axis = plots.plt.subplots(figsize=(4.4, 2.6), layout="constrained")
        plots.draw_histogram(axis, kept, before, edges=0.02, color=run.color)
        caption = t(
            "{kept} of {all} weights are kept, {sparsity} are 0; the outermost 2% at the edges"
        ).format(kept=f"{len(kept):,}", all=f"{count:,}",
                 sparsity=percent(plots.sparsity(*run.after.values())))  # fmt: skip
        if before is not None:
            start = t("outline: before, from {path}").format(path=run.before_path)
        elif run.saved.started_from is None:
            start = t("the weights it started from were random")
        else:
            start = t("the weights it started from are not at hand")
        items.append(chart(figure, run.name, caption + t("; ") + start, []))
    return items


def chart(figure, title: str, caption: str, values: list[str]) -> dict:
    text = ": ".join([title, *(["; ".join(values)] if values else [])])  # for who does not see it
    return {"title": title, "caption": caption, "text": text, "svg": svg(figure, title)}


def svg(figure, name: str) -> str:
    """The element, whose fonts are the browser's; the name keeps its ids apart from others'."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    fonts = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": ["sans-serif"]}
    with plots.matplotlib.rc_context(fonts):
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    plots.plt.close(figure)
    element = buffer.getvalue().partition("<svg")[1:]
    return re.sub(r' id="[\w.]+_\d+"', "", "".join(element))  # figure_1, axes_1: every figure's


def export_rows(places: list[Path], runs: list[Run]) -> list[list[str]]:
    """A row an exported network, measured here.

    Raises:
        ValueError, FileNotFoundError: a folder is none of export.py's, or damaged.
    """
    forms = {}  # by the shape of a picture
    names = {}
    for place, name in zip(places, names_of(places)):
        saved = train_state.read(place)
        there = [
            runtime
            for runtime in runtimes.NAMES
            if all((place / file).is_file() for file in runtimes.files(runtime, place))
        ]
        data = saved.options.get("data") if saved and saved.exported_from else None
        if data not in TASKS or not there or not saved.options.get("image_size"):
            raise ValueError(f"--exported {place} holds no network of export.py; give its --out")
        names[place] = next((r.name for r in runs if r.sha256 == saved.exported_from), name)
        shape = TASKS[data].input_shape(argparse.Namespace(**saved.options))
        forms.setdefault(shape, []).extend((runtime, place) for runtime in there)
    found = {}
    for shape, networks in forms.items():
        found.update(measure_exports(networks, shape, SECONDS * len(networks)))
    return [
        [names[place], runtime, f"{cost['bytes']:,}", f"{cost['ms']:#.3g}"]
        for (runtime, place), cost in found.items()
    ]


def shown_text(value):
    """A text without what would hide, or turn around, a part of it; lines stay."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))


def render(runs: list[Run], control: Run | None, places: list[Path], language: str) -> str:
    try:
        import jinja2  # of the extra "plots"
        import markupsafe
    except ImportError as error:
        raise ValueError(f'{error}; pip install ".[plots]"') from None

    t = translator(language)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=shown_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    charts = {"curves": curves(runs, t), "histograms": histograms(runs, t)}
    for item in (*charts["curves"], *charts["histograms"]):
        item["svg"] = markupsafe.Markup(item["svg"])  # matplotlib has escaped it
    versions = dict.fromkeys(name for run in runs for name in run.saved.versions)
    return environment.get_template("report.html").render(
        t=t,
        language={"en": "en", "zh": "zh-CN"}[language],
        runs=runs,
        control=control,
        head=["", *(run.name for run in runs)],
        results=result_rows(runs, control, t),
        exported=export_rows(places, runs),
        options=option_rows(runs, only_given=True),
        all_options=option_rows(runs, only_given=False),
        layers=layer_rows(runs),
        versions=[
            *([name, *(shown(r.saved.versions.get(name, "")) for r in runs)] for name in versions),
            [t("processes"), *(str(run.saved.ranks) for run in runs)],
        ],
        machine=machine(Paddle=paddle.__version__),
        **charts,
    )


def write(text: str, out: Path) -> None:
    """The whole file or nothing."""
    try:
        folders.replace(out, text.encode())
    except OSError as error:
        raise OSError(f"could not write --out {out}: {error.strerror}; give another") from None


@one_line_errors
def main(argv=None) -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="RUN", help="folder of a training")
    add("--out", type=Path, required=True, metavar="FILE.html")
    add("--control", type=Path, metavar="RUN", help="training that the accuracy is compared with")
    add("--before", type=Path, metavar="PATH",
        help="weights that all of them started from (default: of --pretrained_model)")  # fmt: skip
    add("--exported", type=Path, nargs="+", default=[], metavar="DIR",
        help="--out of export.py: its size, and its speed on this machine")  # fmt: skip
    add("--language", choices=["en", "zh"], default="en", help="(%(default)s)")
    args = parser.parse_args(argv)
    if args.out.suffix != ".html":
        raise WrongOption(f"--out {args.out} must end with .html")
    if not args.out.parent.is_dir():
        raise WrongOption(f"--out {args.out}: there is no folder {args.out.parent}")
    paths = list({p.resolve(): p for p in (args.control, *args.folders) if p}.values())
    colors = [*([CONTROL] if args.control else []), *COLORS]
    if len(paths) > len(colors):
        raise WrongOption(f"{len(paths)} runs are too many for one page; give {len(colors)}")
    named = zip(paths, names_of(paths), colors)
    runs = [read_run(path, name, color, args.before) for path, name, color in named]
    control = runs[0] if args.control else None
    others = {str(run.saved.options.get("data")) for run in runs}
    if control and len(others) > 1:
        raise ValueError(f"--control: runs on {', '.join(sorted(others))} cannot be compared")
    write(render(runs, control, args.exported, args.language), args.out)
    print(args.out)


if __name__ == "__main__":
    sys.exit(main())
