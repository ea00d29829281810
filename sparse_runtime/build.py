"""Compiles the kernels for this machine at their first use, into a cache folder."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

KERNELS = Path(__file__).resolve().parent / "kernels"
FLAGS = {"avx512": ["-mavx512f", "-mavx2", "-mfma"], "avx2": ["-mavx2", "-mfma"], "plain": []}
NEEDS = {"avx512": {"avx512f", "avx2", "fma"}, "avx2": {"avx2", "fma"}, "plain": set()}


def instruction_sets() -> list[str]:
    """Of avx512, avx2 and plain those that this machine has, the fastest first."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    has = set(next((line for line in lines if line.startswith("flags")), "").split())
    return [name for name, needs in NEEDS.items() if needs <= has]


@functools.cache
def library(instruction_set: str | None = None) -> ctypes.CDLL:
    """The compiled kernels; CXX names the compiler, CXXFLAGS adds to its flags.

    Raises:
        ValueError: the machine lacks these instructions, there is no compiler, or it fails.
    """
    there = instruction_sets()
    chosen = instruction_set or there[0]
    if chosen not in there:
        raise ValueError(f"this machine has no {chosen}; it has {', '.join(there)}")
    found = next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    compiler = os.environ.get("CXX", "").strip() or found
    if not compiler or shutil.which(shlex.split(compiler)[0]) is None:
        raise ValueError(
            f"the sparse runtime is compiled at first use, and there is no "
            f"{compiler or 'C++ compiler'}; install one (on Debian: apt-get install g++) or set CXX"
        )
    flags = ["-std=c++17", "-O3", "-fPIC", "-shared", "-pthread", *FLAGS[chosen]]
    flags += shlex.split(os.environ.get("CXXFLAGS", ""))
    command = [*shlex.split(compiler), *flags]
    sources = sorted(KERNELS.iterdir())
    key = hashlib.sha256(repr(command).encode())
    for part in [*(s.read_bytes() for s in sources), _run([*command, "--version"]).encode()]:
        key.update(part)
    path = cache() / f"kernels-{chosen}-{key.hexdigest()[:16]}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            _run([*command, *[str(s) for s in sources if s.suffix == ".cpp"], "-o", str(built)])
            os.replace(built, path)  # whole or not at all, also where two programs do this
    return ctypes.CDLL(str(path))


def cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(root) / "paddle-unstructured-pruning"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ValueError(
            f"cannot keep the compiled kernels in {folder}: {error.strerror}; set XDG_CACHE_HOME"
        ) from None
    return folder


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"{command[0]} could not be run: {error.strerror}") from None
    if done.returncode:
        errors = (line for line in done.stderr.splitlines() if "error" in line)
        why = next(errors, f"status {done.returncode}")
        raise ValueError(f"{command[0]} could not compile the kernels: {why}")
    return done.stdout
