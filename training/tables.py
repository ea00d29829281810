"""What stands around a measurement: a Markdown table, and the processor."""

from __future__ import annotations

import contextlib
import platform

from tabulate import tabulate


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """The first column is text; the others hold numbers and are aligned to the right."""
    align = ("left", *["right"] * (len(head) - 1))
    return tabulate(rows, head, tablefmt="pipe", disable_numparse=True, colalign=align)


def cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:  # Linux
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
