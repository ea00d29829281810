"""The documents agree with the code, with the recorded figures and with each other."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys

import pytest
from documents import DOCS, DOCUMENTS, ROOT, TWINS, blocks, commands, inline_code, table_rows, text

FRONT_PAGES = ("README.md", "README_zh.md")
# Options that are not of this project's programs.
LAUNCHER = {"--gpus", "--log_dir", "--master", "--max_restart", "--nnodes", "--nproc_per_node"}
LAUNCHER |= {"--rank"}
TOOLS = {"--check", "--help", "--logdir"}  # of ruff; of every program; of tensorboard and visualdl
COMMAND = re.compile(r"\b(?:\S*python|bash run\.sh)\s.*")


def documented_commands() -> list[str]:
    """All commands of all documents but the CHANGELOG, which also tells of earlier ones."""
    found = []
    for document in sorted(set(DOCUMENTS) - {"CHANGELOG.md"}):
        found += [line.partition(" && ")[0] for line in commands(document)]
        found += inline_code(document)
    runs = (COMMAND.search(line.partition("  #")[0]) for line in found)
    return sorted({run.group() for run in runs if run})


def words_of(command: str) -> list[str]:
    """The program, as `train.py` or a module's name, and what follows it."""
    words = shlex.split(command)
    if words[:2] == ["bash", "run.sh"]:
        return ["run.sh", *words[2:]]
    if words[1:3] == ["-m", "paddle.distributed.launch"]:
        return words[words.index("train.py") :] if "train.py" in words else ["launcher"]
    return words[2:] if words[1] == "-m" else words[1:]


def program_of(name: str) -> str:
    """What a command of run.sh runs: `train.py`, or a module's name."""
    cases = text("run.sh").rpartition("case $command in")[2]
    lines = re.search(rf"^  {name}\)(.*?);;", cases, re.MULTILINE | re.DOTALL).group()
    found = re.search(r"(train|evaluate)\.py|(?<=run )[\w/]+(?=\.py)|pytest|install", lines)
    return found.group().replace("/", ".")


@functools.cache
def options_of(program: str) -> set[str]:
    """The long options in a program's --help."""
    start = [program] if program.endswith(".py") else ["-m", program]
    done = subprocess.run(
        [sys.executable, *start, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    entries = re.findall(r"^  (-.*)", done.stdout, re.MULTILINE)
    return set(re.findall(r"--\w+", " ".join(entries))) - {"--help"}


def options_in(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("--")} - {"--help"}


@pytest.mark.parametrize("document", ["README.md", "README_zh.md"])
def test_the_front_page_is_short(document):
    assert len(text(document).encode()) <= 10 * 1024


@pytest.mark.parametrize("document", DOCS)
def test_a_page_of_docs_is_neither_a_note_nor_a_book(document):
    assert 2000 <= len(text(document).encode()) <= 6 * 1024


@pytest.mark.parametrize("document", [*FRONT_PAGES, *DOCS])
def test_lines_fit_120_columns(document):
    """(On the front page tables, too; a table of docs/ may be wider.)"""
    for line in text(document).splitlines():
        fits = len(line) <= 120 or (document in DOCS and line.startswith("|"))
        assert fits, line


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    prose = re.sub(r"```.*?```", "", text(document), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose)
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), link
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]
            assert heading in slugs, link


def test_every_page_of_docs_is_reached_from_the_front_page():
    for front, pages in (
        ("README.md", [page for page in DOCS if "/zh/" not in page]),
        ("README_zh.md", [page for page in DOCS if "/zh/" in page]),
    ):
        for page in pages:
            assert f"]({page})" in text(front), (front, page)


@pytest.mark.parametrize("english", TWINS)
def test_both_languages_show_the_same_commands_and_code(english):
    assert commands(english) == commands(TWINS[english])
    shown = [*commands(english), *blocks(english, "python")]
    assert len(shown) >= {"README.md": 10, "docs/rigl.md": 1, "docs/options.md": 0}.get(english, 4)

    def code(document):  # without its comments and docstrings
        lines = "".join(blocks(document, "python")).splitlines()
        return [line.partition("  #")[0] for line in lines if '"""' not in line]

    assert code(english) == code(TWINS[english])


@pytest.mark.parametrize("english", TWINS)
def test_both_languages_have_the_same_figures(english):
    """Numbers of two or more characters, that is: small ones may be words in one of the two."""

    def figures(document):
        return set(re.findall(r"(?<![\w.])\d[\d.,]*\d(?!\w)", text(document)))

    assert figures(english) == figures(TWINS[english])


def test_both_languages_name_the_same_options():
    for english, chinese in TWINS.items():
        options = [set(re.findall(r"--\w+", text(page))) for page in (english, chinese)]
        assert options[0] == options[1], english


@pytest.mark.parametrize("command", documented_commands())
def test_a_command_names_a_program_and_options_that_exist(command):
    program, *rest = words_of(command)
    if program in ("launcher", "venv", "pytest", "pip"):
        return
    if program == "run.sh":
        name, *rest = rest
        program = program_of(name)
        if program in ("pytest", "install"):
            return
    if program == "my_train.py":
        assert any("train.main(" in block for block in blocks("docs/custom-pruners.md", "python"))
        program = "train.py"
    place = program if program.endswith(".py") else program.replace(".", "/")
    assert any(
        (ROOT / name).is_file() for name in (place, f"{place}.py", f"{place}/__main__.py")
    ), program
    assert options_in(rest) <= options_of(program)


def test_options_that_are_mentioned_exist():
    programs = {words_of(command)[0] for command in documented_commands()}
    programs = {name for name in programs if name != "my_train.py" and "." in name} - {"run.sh"}
    existing = set().union(LAUNCHER, TOOLS, *map(options_of, programs))
    for document in set(DOCUMENTS) - {"CHANGELOG.md"}:
        assert set(re.findall(r"--\w+", " ".join(inline_code(document)))) <= existing, document


def test_all_options_of_train_are_documented():
    for pages in (
        ("docs/options.md", "docs/detection.md"),
        ("docs/zh/options.md", "docs/detection.md"),
    ):
        shown = "".join(text(page) for page in pages)
        missing = {
            option for option in options_of("train.py") if not re.search(f"`{option}[` ]", shown)
        }
        assert not missing, pages


@pytest.mark.parametrize(
    ("document", "heading"), [("README.md", "Results"), ("README_zh.md", "结果")]
)
def test_results_of_the_front_page_are_rows_of_the_table(document, heading):
    section = text(document).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(lines) == 7
    table = table_rows("results/README.md")
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        figures = [cell for cell in cells[1:] if re.search(r"\d", cell)]
        assert any(all(any(f in cell for cell in row) for f in figures) for row in table), line


@pytest.mark.parametrize("document", FRONT_PAGES)
def test_speeds_of_the_front_page_are_rows_of_the_table(document):
    rows = [row for row in table_rows(document) if row[1:2] == ["Zen 5 (AVX-512)"]]
    assert len(rows) == 4
    table = [
        [row[0], row[4].partition(" ")[0], *row[5:8]]
        for row in table_rows("benchmarks/README.md")
        if row[1:4] == ["AVX-512", "1", "1"]
    ]
    for network, _, *cells in rows:
        assert [network, *cells] in table
