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
    with contextlib.suppress(KeyError):
        return "{model name} (family {cpu family}, model {model})".format_map(_cpu())
    return platform.processor() or platform.machine()


def fast_products() -> dict[str, str]:
    """What in the environment makes Paddle's matrix products fast on this processor, too.

    The MKL in Paddle takes its slowest way on an AMD processor; with this it uses AVX2 or AVX-512,
    and is 2 to 5 times as fast. It is read when Paddle is imported. Last digits of results differ.
    """
    cpu = _cpu()
    flags = set(cpu.get("flags", "").split())
    if cpu.get("vendor_id") != "AuthenticAMD" or not flags >= {"avx2", "fma"}:
        return {}
    avx512 = flags >= {"avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"}
    return {"MKL_DEBUG_CPU_TYPE": "7" if avx512 else "5"}


def _cpu() -> dict[str, str]:
    """What Linux says of the first processor."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        return dict(re.findall(r"^(\S.*?)\s*: (.*)$", first, re.MULTILINE))
    return {}
