"""What an exported network costs on this machine: time, and memory.

python -m runtimes.cost NAME FOLDER C H W prints the bytes of memory; memory() calls it.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import paddle
import psutil

import runtimes

MIN_ROUNDS = 5


@paddle.no_grad()
def medians(networks: dict, images: paddle.Tensor, seconds: float) -> dict[str, float]:
    """Median seconds of a run, by name; the networks take turns.

    Args:
        networks: what takes the images, by name.
        seconds: how long to measure all of them; five rounds at least.
    """
    taken = {name: [] for name in networks}
    rounds, end = 0, time.perf_counter() + seconds
    while rounds < MIN_ROUNDS or time.perf_counter() < end:
        for name, network in networks.items():
            network(images)  # warms the caches up, which hold the other networks
            started = time.perf_counter()
            network(images)
            taken[name].append(time.perf_counter() - started)
        rounds += 1
    return {name: statistics.median(values) for name, values in taken.items()}


def memory(name: str, folder: Path, shape: tuple[int, ...]) -> int:
    """Bytes that an exported network takes: its weights, and all that a run of a picture needs.

    Args:
        name: one of runtimes.NAMES.
        folder: what was `--out` of export.py.
        shape: of a picture, (C, H, W).

    Raises:
        ValueError: it does not run.
    """
    # A process of its own, in which what is freed goes back at once: else a network may be put
    # where something else was, and nothing would grow.
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "runtimes.cost",
         name, str(Path(folder).resolve()), *map(str, shape)],
        cwd=Path(__file__).resolve().parents[1], capture_output=True, text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"},
    )  # fmt: skip
    if done.returncode:
        why = (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]
        raise ValueError(f"the network could not be run to measure its memory: {why}")
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    name, folder, *shape = sys.argv[1:]
    images = paddle.zeros([1, *map(int, shape)])
    kept = []
    for _ in range(2):  # the first one brings the runtime's code along
        before = psutil.Process().memory_info().rss
        network = runtimes.load(name, folder, batch=1, threads=1)
        network(images)
        kept.append(network)
        grown = psutil.Process().memory_info().rss - before
    print(grown)


if __name__ == "__main__":
    main()
