"""Compiles the kernels for this machine at their first use, into a cache folder."""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
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


def l1_size() -> int:
    """Bytes of a core's first cache for data."""
    try:
        size = Path("/sys/devices/system/cpu/cpu0/cache/index0/size").read_text()
        return int(size.strip().removesuffix("K")) << 10
    except (OSError, ValueError):
        return 32 << 10


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
    command = [*compiler(chosen), "-fPIC", "-shared", *shlex.split(os.environ.get("CXXFLAGS", ""))]
    sources = sorted(KERNELS.iterdir())
    key = hashlib.sha256(repr(command).encode())
    for part in [*(s.read_bytes() for s in sources), run([*command, "--version"]).encode()]:
        key.update(part)
    path = cache() / f"kernels-{chosen}-{key.hexdigest()[:16]}.so"
    if not path.exists():
        message = f"compiling the sparse runtime for {chosen} (once, up to a minute)"
        print(message, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            built = Path(folder) / path.name
            run([*command, *[str(s) for s in sources if s.suffix == ".cpp"], "-o", str(built)])
            os.replace(built, path)  # whole or not at all, also where two programs do this
    return ctypes.CDLL(str(path))


def compiler(instruction_set: str) -> list[str]:
    """The command of a C++ compiler, and flags for these instructions."""
    found = next(filter(shutil.which, ("c++", "g++", "clang++")), "")
    command = os.environ.get("CXX", "").strip() or found
    if not command or shutil.which(shlex.split(command)[0]) is None:
        raise ValueError(
            f"the sparse runtime is compiled at first use, and there is no "
            f"{command or 'C++ compiler'}; install one (on Debian: apt-get install g++) or set CXX"
        )
    return [*shlex.split(command), "-std=c++17", "-O3", "-pthread", *FLAGS[instruction_set]]


def cache() -> Path:
    """A folder of this user's alone, for what is in it is run."""
    folder = None
    try:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(root) / "paddle-unstructured-pruning"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it belongs to another user")
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        why = getattr(error, "strerror", None) or error
        where = f" in {folder}" if folder else ""
        raise ValueError(
            f"cannot keep the compiled kernels{where}: {why}; set XDG_CACHE_HOME"
        ) from None
    return folder


def run(command: list[str]) -> str:
    """What the compiler prints on stdout.

    Raises:
        ValueError: it cannot be run, or fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ValueError(f"{command[0]} could not be run: {error.strerror}") from None
    if done.returncode:
        errors = (line for line in done.stderr.splitlines() if "error" in line)
        why = next(errors, f"status {done.returncode}")
        raise ValueError(f"{command[0]} could not compile the kernels: {why}")
    return done.stdout
