"""Lines that the programs print."""

from __future__ import annotations

import os
import sys

import paddle.distributed as dist
from tabulate import tabulate
from tqdm import tqdm

from readers.printable import printable


def say(text: str, file=None) -> None:
    """A line of rank 0, above the progress bars."""
    if dist.get_rank() == 0:
        tqdm.write(text, file=file)
        (file or sys.stdout).flush()


def warn(text: str) -> None:
    say(f"{os.path.basename(sys.argv[0])}: warning: {text}", sys.stderr)


def listed(values: dict, names: tuple[str, ...]) -> str:
    """`loss 0.123 top1 0.5000 `: those of `names` that are not None."""
    digits = {"loss": 3}
    there = [name for name in names if values[name] is not None]
    return "".join(f"{name} {values[name]:.{digits.get(name, 4)}f} " for name in there)


def table(rows: list[dict]) -> str:
    """Of a metric's per_class(): a line for each class, fractions with four digits."""
    rows = [{**row, "class": printable(row["class"])} for row in rows]
    return tabulate(rows, "keys", "plain", floatfmt=".4f", disable_numparse=[0])


def not_loaded(what: str, names: list[str]) -> str:
    return f"{what} is for another number of classes: {', '.join(names)} not loaded, but random"


def shortened(names: list[str] | None) -> str:
    """Names of classes, the first 20 of them, for a message."""
    if names is None:
        return "numbers as classes"
    more = ", ...]" if len(names) > 20 else "]"
    return f"the classes {str(names[:20])[:-1]}{more}"
