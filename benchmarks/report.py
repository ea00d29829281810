"""What every benchmark prints: Markdown tables, and the machine that it ran on."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from pathlib import Path

import psutil
from tabulate import tabulate


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """The first column is text; the others hold numbers and are aligned to the right."""
    align = ("left", *["right"] * (len(head) - 1))
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True, colalign=align)


def cpu_name() -> str:
    """As the system calls it; on x86 with the numbers that tell generations apart."""
    with contextlib.suppress(OSError, KeyError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]  # Linux
        fields = dict(re.findall(r"^(\S.*?)\s*: (.*)$", first, re.MULTILINE))
        return "{model name} (family {cpu family}, model {model})".format_map(fields)
    return platform.processor() or platform.machine()


def machine(**versions: str) -> str:
    """A line with the processor, its load (which a timing depends on) and versions."""
    versions = {"Python": platform.python_version(), **versions}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{cpu_name()}, {os.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}; {listed}"
