"""The project's documents, and what stands in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOP = sorted(path.name for path in ROOT.glob("*.md"))
DOCS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/**/*.md"))
FOLDERS = [f"{name}/README.md" for name in ("benchmarks", "models", "results")]
DOCUMENTS = [*TOP, *DOCS, *FOLDERS]
TWINS = {"README.md": "README_zh.md"}
TWINS.update({path.replace("/zh/", "/"): path for path in DOCS if "/zh/" in path})


def text(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text(document), re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


def commands(document: str) -> list[str]:
    """The command lines, without comments; after a backslash one goes on in the next line."""
    shown = [*blocks(document, "bash"), *blocks(document, "")]
    joined = "".join(re.sub(r"\s*\\\n\s*", " ", block) for block in shown)
    lines = [line.partition(" #")[0].rstrip() for line in joined.splitlines()]
    return [line for line in lines if re.match(r"(python[\d.]*|bash|for|pip) ", line)]


def inline_code(document: str) -> list[str]:
    """What stands between backticks in the running text."""
    prose = re.sub(r"```.*?```", "", text(document), flags=re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def table_rows(document: str) -> list[list[str]]:
    lines = [line for line in text(document).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
