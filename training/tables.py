"""What stands around a measurement: a Markdown table, and the processor."""

from __future__ import annotations

import contextlib
import platform
import re
from pathlib import Path

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
