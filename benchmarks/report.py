"""What every benchmark prints: Markdown tables, and the machine that it ran on."""

from __future__ import annotations

import os
import platform

import psutil

from training.tables import cpu_name, fast_products, markdown

__all__ = ["cpu_name", "fast_products", "machine", "markdown"]


def machine(**versions: str) -> str:
    """A line with the processor, its load (which a timing depends on) and versions."""
    versions = {"Python": platform.python_version(), **versions}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{cpu_name()}, {os.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f}; {listed}"
