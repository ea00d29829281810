"""Which part of the project imports which: from the programs down, without circles."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ANYTHING = {"train", "evaluate", "export", "tests", "demos", "benchmarks", "results"}
ALLOWED = {  # of what is ours
    "unstructured_pruning": set(),
    "readers": set(),
    "sparse_runtime": set(),
    "unstructured_pruner": {"unstructured_pruning"},
    "imagenet_reader": {"readers"},
    "tasks": {"readers", "imagenet_reader"},
    "runtimes": {"sparse_runtime", "training"},
}
ALLOWED["training"] = set(ALLOWED)
THIRD_PARTY = {
    "unstructured_pruning": {"numpy", "paddle"},  # to be copied, or installed, into other projects
    "unstructured_pruner": {"numpy", "paddle"},
    "sparse_runtime": {"numpy", "onnx", "safetensors"},  # to be deployed without Paddle
}


def imported(source: str) -> set[str]:
    """The top-level names that a module imports; `.` where an import is relative."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, "a relative import stays in its folder"
            names.add("." if node.level else node.module.split(".")[0])
    return names


def parts() -> dict[str, set[str]]:
    """What each top-level module or folder of the project imports, itself aside."""
    files = {path.stem: [path] for path in ROOT.glob("*.py")}
    for folder in ROOT.iterdir():
        if folder.is_dir() and any(folder.glob("*.py")):
            files[folder.name] = sorted(folder.rglob("*.py"))
    return {
        name: set().union(*(imported(path.read_text("utf-8")) for path in paths)) - {name, "."}
        for name, paths in files.items()
    }


def test_what_is_imported_is_seen():
    source = (
        "import numpy as np, os.path\n"
        "from . import build\n"
        "from .model_file import Model\n"
        "def late():\n"
        "    from readers.voc import CLASSES\n"
    )
    assert imported(source) == {"numpy", "os", ".", "readers"}


def test_every_part_has_its_rule():
    assert parts().keys() <= ANYTHING | ALLOWED.keys()


@pytest.mark.parametrize("name", ALLOWED)
def test_a_part_imports_what_it_may(name):
    there = parts()
    assert there.get(name, set()) & there.keys() <= ALLOWED[name]


def modules(folder: Path) -> dict[str, set[str]]:
    """What each module of a folder imports of the same folder."""
    found = {path.stem: set() for path in folder.glob("*.py")}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(folder.name):
                names = {alias.name for alias in node.names}
                names.update(node.module.split(".")[1:])
                found[path.stem] |= names & found.keys() - {path.stem}
    return found


def circle(uses: dict[str, set[str]]) -> set[str]:
    """Those that are left when what uses nothing that is left is taken away again and again."""
    left = set(uses)
    while free := {name for name in left if not uses[name] & left}:
        left -= free
    return left


@pytest.mark.parametrize("folder", ["unstructured_pruning", "readers", "tasks", "training"])
def test_there_is_no_circle_within_a_folder(folder):
    uses = modules(ROOT / folder)
    assert any(uses.values())
    assert not circle(uses)


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_there_is_no_circle():
    assert not circle({n: names & ALLOWED.keys() for n, names in parts().items() if n in ALLOWED})


@pytest.mark.skipif(sys.version_info < (3, 10), reason="no sys.stdlib_module_names")
@pytest.mark.parametrize("name", THIRD_PARTY)
def test_a_part_that_is_used_alone_needs_little(name):
    there = parts()
    ours = there.keys() | sys.stdlib_module_names
    assert there.get(name, set()) - ours <= THIRD_PARTY[name]
