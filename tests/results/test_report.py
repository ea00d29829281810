"""results/report.py: what stands on the page, what it refuses, and how a browser shows it."""

from __future__ import annotations

import html.parser
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import paddle
import pytest
from conftest import ROOT, error_line
from hostile import batch, options, pickles, write_archive

import export
import train
from results import plots, report, words
from training import folders, train_state

HOSTILE = """</title></svg>]]>--><script>alert("1")</script><img src=x onerror='alert(2)'>"""
SVG = {"svg", "g", "defs", "style", "path", "rect", "use", "text", "clippath"}
PAGE = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ul", "li", "i", "b",
        "div", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details",
        "summary", "pre", "code", "span"}  # fmt: skip
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A dense network, one pruned from it, and a control, as models/ of train.py."""
    folder = tmp_path_factory.mktemp("runs")
    write_archive(folder, batch(16))
    short = [*options(folder), "--test_period", "1"]
    rest = ["--num_epochs", "2", "--lr", "0.001", "--pretrained_model", str(folder / "dense")]
    for name, more in {
        "dense": ["--num_epochs", "1", "--pruning_mode", "none"],
        "pruned": [*rest, "--ratio", "0.75"],
        "control": [*rest, "--pruning_mode", "none"],
    }.items():
        train.main([*short, *more, "--model_path", str(folder / name)])
    return folder


@pytest.fixture
def hostile(runs, tmp_path) -> Path:
    """A run whose options, versions and layers are called HOSTILE."""
    folder = tmp_path / "<img src=x onerror=alert(3)>"
    shutil.copytree(runs / "pruned" / "epoch-1", folder)
    shutil.copy(runs / "pruned" / folders.METRICS, folder)
    weights = {HOSTILE: paddle.ones([2, 3]), "a\u202e$\\x$": paddle.zeros([2, 2])}
    paddle.save(weights, str(folder / folders.WEIGHTS))
    state = json.loads((folder / train_state.STATE).read_text())
    state["options"].update(model=HOSTILE, data_dir=HOSTILE, classes=[HOSTILE])
    state["versions"][HOSTILE] = HOSTILE
    train_state.seal({**state, "epoch": 2}, folder)
    return folder


def page(out: Path, *words) -> str:
    report.main([*map(str, words), "--out", str(out / "report.html")])
    return (out / "report.html").read_text("utf-8")


class Elements(html.parser.HTMLParser):
    """Of a page: its elements with their attributes, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def cells(text: str, title: str) -> list[list[str]]:
    """The rows with this head; the text of their cells."""
    rows = re.findall(rf'<tr><th scope="row">{re.escape(title)}</th>(.*?)</tr>', text, re.DOTALL)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]


def test_what_the_page_says(runs, tmp_path):
    text = page(tmp_path, runs / "pruned", runs / "dense", "--control", runs / "control")
    metrics = {name: folders.read_metrics(runs / name) for name in ("control", "pruned", "dense")}
    top1 = [100 * records[-1]["top1"] for records in metrics.values()]
    assert cells(text, "top-1") == [[f"{value:.2f}%" for value in top1]]
    difference = ["", *(f"{value - top1[0]:+.2f}" for value in top1[1:])]
    assert cells(text, "minus control, points") == [difference]
    assert cells(text, "sparsity, prunable") == [["0.00%", "75.00%", "0.00%"]]
    given, saved = cells(text, "ratio")
    assert (given, saved) == (["(0.55)", "0.75", "(0.55)"], ["0.55", "0.75", "0.55"])
    assert cells(text, "paddle") == [[paddle.__version__] * 3]
    weights = plots.read_layers(runs / "pruned" / folders.WEIGHTS)
    for name, value in weights.items():
        assert cells(text, name) == [
            [f"{value.size:,}", "0.00%", f"{(value == 0).mean():.2%}", "0.00%"]
        ]
    assert text.count("<svg") == 5 + 3  # curves and histograms
    assert text.count("outline: before, from") == 2
    assert text.count("the weights it started from were random") == 1
    for name in metrics:
        assert f"--model_path {runs / name} " in Elements(text).text


def test_of_equal_curves_all_are_in_sight(runs, tmp_path):
    given = [runs / name for name in ("control", "pruned", "dense")]
    text = page(tmp_path, *given, "--control", runs / "control")  # which stands once
    svg = re.search(r'aria-label="learning rate.*?</svg>', text, re.DOTALL)[0]
    found = re.findall(r"fill: none; stroke: (#\w+); stroke-width: ([\d.]+)", svg)
    widths = [float(dict(found)[color]) for color in (report.CONTROL, *report.COLORS[:2])]
    assert widths == [4, 2.75, 1.5]


def test_the_best_and_the_average(hostile, tmp_path):
    records = [{"epoch": 0, "map_11point": 0.6}, {"epoch": 1, "map_11point": 0.5, "top1": 0.25},
               {"epoch": 2, "map_11point": None, "average_top1": 0.75}]  # fmt: skip
    folders.write_metrics(hostile, records)
    text = page(tmp_path, hostile)
    assert cells(text, "mAP, 11-point") == [["50.00%"]]
    assert cells(text, "mAP, 11-point, best") == [["60.00%"]]
    assert cells(text, "top-1, best") == []
    assert cells(text, "top-1 of the average") == [["75.00%"]]
    assert 'aria-label="mAP: &lt;img src=x onerror=alert(3)&gt; 11-point 0.5"' in text


def test_epochs_after_the_checkpoint_are_not_told(hostile, tmp_path):
    state = json.loads((hostile / train_state.STATE).read_text())
    for finished, most, shown in (
        (True, None, "30.00%"),
        (False, None, "20.00%"),
        (False, state["step"], "30.00%"),  # --max_steps ended it within the epoch
    ):
        state["options"]["max_steps"] = most
        train_state.seal({**state, "epoch": 1, "finished": finished}, hostile)
        folders.write_metrics(hostile, [{"epoch": e, "top1": (2 + e) / 10} for e in range(3)])
        assert cells(page(tmp_path, hostile), "top-1") == [[shown]]


def test_weights_before_that_are_of_another_network(runs, hostile, tmp_path, capfd):
    words = [runs / "pruned", "--before", hostile, "--out", tmp_path / "report.html"]
    line = error_line(capfd, report.main, *words)
    assert line.endswith(f"is not of the network in {runs / 'pruned'}")


@pytest.mark.parametrize("start", [{}, {"pretrained_model": 5}])
def test_a_start_that_is_no_path(start, hostile, tmp_path):
    state = json.loads((hostile / train_state.STATE).read_text())
    state["options"].pop("pretrained_model", None)
    state["options"].update(start)
    assert report.starting_weights(train_state.Saved(tmp_path, state["options"])) is None


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_weights_before(runs, tmp_path, language):
    """Those of --pretrained_model count as long as they are what the training started from."""
    run, start = tmp_path / "run", tmp_path / "start.pdparams"
    shutil.copytree(runs / "pruned" / "epoch-1", run)
    shutil.copy(runs / "pruned" / folders.METRICS, run)
    shutil.copy(runs / "dense" / folders.WEIGHTS, start)
    state = json.loads((run / train_state.STATE).read_text())
    state["options"]["pretrained_model"] = str(start)
    train_state.seal(state, run)
    t = words.translator(language)
    before, missing = (
        t("outline: before, from {path}"),
        t("the weights it started from are not at hand"),
    )
    options = [run, "--language", language]
    assert before.format(path=start) in page(tmp_path, *options)
    shutil.copy(run / folders.WEIGHTS, start)
    assert missing in page(tmp_path, *options)
    assert before.format(path=start) in page(tmp_path, *options, "--before", start)


def test_the_language(runs, tmp_path):
    """What train.py calls something keeps its name; nothing else is English."""
    text = page(tmp_path, runs / "pruned", "--language", "zh")
    assert '<html lang="zh-CN">' in text
    assert words.CHINESE["Pruning report"] in text
    translated = {english for english, chinese in words.CHINESE.items() if english != chinese}
    seen = {english for english in translated if f">{english}<" in text}
    assert seen == {"threshold"}  # the option


def test_the_dictionary_has_all_texts_and_no_more():
    source = (ROOT / "results" / "report.py").read_text() + (
        ROOT / "results" / "report.html"
    ).read_text("utf-8")
    texts = set(re.findall(r'\bt\(\s*"(.*?)"\s*\)', source))
    texts.update(report.METRICS.values(), plots.PANELS)
    texts.update(label for lines in plots.PANELS.values() for label in lines.values())
    assert texts == set(words.CHINESE)
    for english, chinese in words.CHINESE.items():
        assert sorted(re.findall(r"{\w*}", english)) == sorted(re.findall(r"{\w*}", chinese))


def test_what_strangers_wrote_is_text(hostile, tmp_path):
    seen = Elements(page(tmp_path, hostile, "--before", hostile))
    assert {tag for tag, _ in seen.found} <= PAGE | SVG
    names = {name for _, attributes in seen.found for name in attributes}
    assert not {name for name in names if name.startswith("on") or name == "src"}
    links = [value for _, a in seen.found for name, value in a.items() if name.endswith("href")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert seen.text.count(HOSTILE) >= 5
    assert "a\\u202e$\\x$" in seen.text
    assert "\u202e" not in seen.text


def test_what_strangers_wrote_is_text_in_a_picture(hostile):
    figure, axis = plots.plt.subplots()
    axis.set_title(HOSTILE)
    axis.barh(list(plots.read_layers(hostile / folders.WEIGHTS)), [0, 1])
    seen = Elements(report.svg(figure, HOSTILE))
    assert {tag for tag, _ in seen.found} <= SVG
    assert seen.text.count(HOSTILE) == 2


def change_state(folder: Path, **changes) -> None:
    state = json.loads((folder / train_state.STATE).read_text())
    state["options"].update(changes)
    train_state.seal(state, folder)


BROKEN = {
    "nothing": (shutil.rmtree, "holds no training's train-state.json"),
    "empty": (lambda f: [path.unlink() for path in f.iterdir()], "holds no training's"),
    "no metrics": (lambda f: (f / folders.METRICS).unlink(), "no epoch was finished"),
    "no weights": (lambda f: (f / folders.WEIGHTS).unlink(), "holds no model-pruned.pdparams"),
    "other weights": (lambda f: (f / folders.WEIGHTS).write_bytes(b"1"), "damaged or replaced"),
    "state": (lambda f: (f / train_state.STATE).write_text("{"), "is damaged"),
    "line": (lambda f: (f / folders.METRICS).write_text("{\n"), "metrics.jsonl is damaged"),
    "deep line": (lambda f: (f / folders.METRICS).write_text("[" * 10**5 + "\n"), "is damaged"),
    "list": (lambda f: (f / folders.METRICS).write_text("[1]\n"), "a line has no epoch"),
    "no epoch": (lambda f: (f / folders.METRICS).write_text('{"epoch": "1"}\n'), "has no epoch"),
    "late": (lambda f: (f / folders.METRICS).write_text(f'{{"epoch": {10**31}}}\n'), "no epoch"),
    "data": (lambda f: change_state(f, data="<b>"), "which is no data set of train.py"),
    "options": (lambda f: change_state(f, step_epochs=[1, "--force"]), "is no --step_epochs"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_refused(runs, tmp_path, capfd, name):
    folder, out = tmp_path / "run", tmp_path / "report.html"
    shutil.copytree(runs / "pruned" / "epoch-1", folder)
    shutil.copy(runs / "pruned" / folders.METRICS, folder)
    spoil, message = BROKEN[name]
    spoil(folder)
    out.write_text("old")
    line = error_line(capfd, report.main, folder, "--out", out)
    assert message in line
    assert str(folder) in line
    assert out.read_text() == "old"


@pytest.mark.parametrize("name", ["os.system", "numpy.load", "billion laughs"])
def test_a_pickle_is_not_run(runs, tmp_path, capfd, name):
    folder, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(runs / "pruned" / "epoch-1", folder)
    shutil.copy(runs / "pruned" / folders.METRICS, folder)
    (folder / folders.WEIGHTS).write_bytes(pickles(str(canary))[name])
    change_state(folder)
    error_line(capfd, report.main, folder, "--out", tmp_path / "report.html")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "report.txt"], "must end with .html"),
        (["--out", "nowhere/report.html"], "--out nowhere/report.html: there is no folder nowhere"),
        (["--out", "report.html", "--exported", "."], "--exported . holds no network of export.py"),
        ([*"0123456789", "--out", "report.html"], "11 runs are too many"),
    ],
)
def test_what_is_asked_for_wrongly(runs, tmp_path, monkeypatch, capfd, words, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_line(capfd, report.main, runs / "pruned", *words)
    assert not list(tmp_path.iterdir())


def test_a_control_on_other_data(runs, hostile, tmp_path, capfd):
    change_state(hostile, data="digits", data_dir=None)
    wanted = ["--control", hostile, "--out", tmp_path / "report.html"]
    line = error_line(capfd, report.main, runs / "pruned", *wanted)
    assert line.endswith("--control: runs on cifar10, digits cannot be compared")


def test_a_page_that_cannot_be_written_leaves_the_old_one(runs, tmp_path, monkeypatch, capfd):
    def full(*_):
        raise OSError(28, "No space left on device")

    out = tmp_path / "report.html"
    out.write_text("old")
    monkeypatch.setattr(os, "replace", full)
    assert "No space left" in error_line(capfd, report.main, runs / "pruned", "--out", out)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert out.read_text() == "old"


def test_numbers_that_cannot_be_drawn(hostile, tmp_path):
    weights = {
        "a": np.array([[np.nan, np.inf, 1e300]]),
        "b": np.array([[3e38, -3e38, 0]], np.float32),
        "c": np.zeros([0, 3], np.float32),
        "d": np.zeros([3], np.float32),
    }
    paddle.save(weights, str(hostile / folders.WEIGHTS))
    change_state(hostile)
    line = '{"epoch": %d, "lr": NaN, "loss": 1e400, "top1": 1%s, "top5": "x", "sparsity": null}\n'
    (hostile / folders.METRICS).write_text("".join(line % (n, "0" * 400 * n) for n in range(2)))
    text = page(tmp_path, hostile)
    assert cells(text, "top-1") == [["100.00%"]]
    assert [cells(text, name) for name in "abcd"] == [[["3", "0.00%"]], [["3", "33.33%"]], [], []]


def test_exported_networks(runs, tmp_path, monkeypatch):
    out = tmp_path / "exported"
    export.main(["--pruned_model", str(runs / "pruned"), "--format", "paddle", "--out", str(out)])
    monkeypatch.setattr(report, "SECONDS", 0)
    text = page(tmp_path, runs / "pruned", "--exported", out)
    (runtime, size, milliseconds), *_ = cells(text, "pruned")
    files = [path for path in out.iterdir() if path.name.startswith("inference.")]
    assert (runtime, size) == ("paddle", f"{sum(path.stat().st_size for path in files):,}")
    assert float(milliseconds) > 0
    (out / "inference.pdiparams").write_bytes(b"")
    with pytest.raises(SystemExit):
        page(tmp_path, runs / "pruned", "--exported", out)


# Put beside the page, which allows no script in itself.
HARNESS = """
<iframe src="report.html" style="width: 390px; height: 800px"></iframe><script>
onload = () => {
  const {contentWindow: window, contentDocument: page} = document.querySelector("iframe");
  const size = (svg) => Object.values(svg.getBoundingClientRect().toJSON());
  document.body.textContent = JSON.stringify({
    title: page.title,
    scripts: page.querySelectorAll("script, img, iframe, link").length,
    requests: window.performance.getEntriesByType("resource").length,
    width: [page.documentElement.scrollWidth, page.body.scrollWidth],
    svgs: [...page.querySelectorAll("svg")].map(svg => size(svg).slice(0, 4)),
    texts: [...page.querySelectorAll("svg text")].length,
    tables: [...page.querySelectorAll(".scroll")].map(e => e.scrollWidth > e.clientWidth),
  });
}
</script>
"""


def chromium(folder: Path, *options) -> tuple[bytes, list[str]]:
    """What it printed, and the messages of the console."""
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", *options],
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.decode().splitlines() if "CONSOLE" in line]


@browser
@pytest.mark.parametrize("language", ["en", "zh"])
def test_on_a_phone(runs, hostile, tmp_path, language):
    shown = [runs / "pruned", hostile, "--control", runs / "control", "--language", language]
    page(tmp_path, *shown)
    (tmp_path / "harness.html").write_text(HARNESS)
    out, console = chromium(tmp_path, "--dump-dom", (tmp_path / "harness.html").as_uri())
    seen = json.loads(re.search(r"{.*}", Elements(out.decode()).text).group())
    assert console == []
    assert (seen["scripts"], seen["requests"]) == (0, 0)
    assert seen["title"].endswith(f": control, pruned, {hostile.name}")
    assert max(seen["width"]) <= 390
    assert len(seen["svgs"]) == 5 + 3
    for x, y, width, height in seen["svgs"]:
        assert min(x, y) >= 0
        assert min(width, height) > 100
        assert x + width <= 390
    assert seen["texts"] > 50
    assert any(seen["tables"])  # which scroll


@browser
def test_on_paper(runs, tmp_path):
    page(tmp_path, runs / "pruned")
    paper = tmp_path / "report.pdf"
    uri = (tmp_path / "report.html").as_uri()
    _, console = chromium(tmp_path, "--no-pdf-header-footer", f"--print-to-pdf={paper}", uri)
    assert console == []
    content = paper.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) >= 2
