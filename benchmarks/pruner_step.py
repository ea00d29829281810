"""Times one `pruner.step()` on the CPU: on MobileNetV1's 3.2 million prunable weights, or with
`--scale` on linear layers of 1 to 500 million.

    python -m benchmarks.pruner_step [--rounds 20] [--paddleslim_python PATH]
    python -m benchmarks.pruner_step --scale [1M 10M 100M 500M]

The yardstick is a memcpy of the weights, timed in the same round. TARGETS says how many of them a
step should cost at most. `--paddleslim_python` names a Python with Paddle 2.6.2 and PaddleSlim
2.6.0; a second process of it then takes its turn in every round. PaddleSlim applies its masks in
update_params(), so its time is that of step() and update_params(); in ratio mode it should take at
least 60 times as long.

`--scale` also gives the peak extra memory, in percent of the weights: how far the process grows
(Linux's VmHWM) from before the pruner is made until after its second step. The masks, a bool a
weight, are 25% of it. 500M weights need 8 GB of memory and a few minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import math
import shutil
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import paddle
import psutil
from paddle import nn
from paddle.vision.models import mobilenet_v1

from benchmarks.peer import Peer, serve
from benchmarks.report import machine, markdown
from training.command_line import number, one_line_errors
from unstructured_pruner import (
    GMPUnstructuredPruner,
    UnstructuredPruner,
    prunable_parameters,
)
from unstructured_pruning import host

PROGRAM = ["-W", "ignore", "-m", "benchmarks.pruner_step"]  # this one, in another process
PRUNERS = {
    "threshold": {"mode": "threshold", "threshold": 0.01},  # PaddleSlim's defaults
    "ratio": {"mode": "ratio", "ratio": 0.55},
    "local": {"mode": "ratio", "ratio": 0.55, "local_sparsity": True},
    "block": {"mode": "ratio", "ratio": 0.55, "sparse_block": [4, 1]},
    "gmp": {"ratio": 0.55},
}
ROWS = {  # what is timed, in the order of a round -> the pruner that steps
    "threshold 0.01": "threshold",
    "ratio 0.55": "ratio",
    "ratio 0.55, local": "local",
    "ratio 0.55, block 4x1": "block",
    "GMP, ratio changes": "gmp",
    "GMP, between changes": "gmp",
}
TARGETS = {  # memcpys of the weights
    "threshold 0.01": 5,
    "ratio 0.55": 12,
    "ratio 0.55, local": 12,
    "ratio 0.55, block 4x1": 20,
    "GMP, ratio changes": 12,  # a step in ratio mode
    "GMP, between changes": 5,  # only applies masks
}
COMPARED = {"threshold 0.01": None, "ratio 0.55": 60}  # times as long as PaddleSlim should take
MEMORY_TARGET = 40  # percent of the weights
UPDATE = 1e-3  # how far a weight moves between two steps: lr 0.05 x a gradient of 0.02
WARM_UP = 2  # rounds before the timed ones
SCALES = {"1M": 10**6, "10M": 10**7, "100M": 10**8, "500M": 5 * 10**8}
WIDEST = 4096  # of the linear layers


class Trained:
    """A pruned model whose weights move before every step, as under an optimizer."""

    def __init__(self, make_pruner):
        paddle.seed(0)
        self.model = mobilenet_v1(num_classes=10)
        self.weights = list(prunable_parameters(self.model).values())
        self.updates = [paddle.randn(w.shape) * UPDATE for w in self.weights]
        self.pruner = make_pruner(self.model)
        self.applies_masks = isinstance(self.pruner, UnstructuredPruner)

    def step_ms(self) -> float:
        with paddle.no_grad():
            for weight, update in zip(self.weights, self.updates):
                weight.add_(update)
        self.updates = [-update for update in self.updates]  # there and back: no drift
        started = time.perf_counter()
        self.pruner.step()
        if not self.applies_masks:
            self.pruner.update_params()
        return 1000 * (time.perf_counter() - started)

    def sparsity(self) -> float:
        zeros = sum(np.count_nonzero(weight.numpy() == 0) for weight in self.weights)
        return zeros / sum(weight.size for weight in self.weights)


def make_pruner(name: str, model, steps: int) -> UnstructuredPruner:
    if name != "gmp":
        return UnstructuredPruner(model, **PRUNERS[name])
    configs = {  # a new ratio at every other step
        "stable_iterations": 0,
        "pruning_iterations": steps,
        "pruning_steps": steps // 2,
        "tunning_iterations": 0,
        "initial_ratio": 0.3,
    }
    return GMPUnstructuredPruner(model, **PRUNERS[name], configs=configs)


def start_paddleslim():
    """In the second process: its versions, and the function that takes a step with a pruner."""
    from paddleslim import UnstructuredPruner as PaddleSlimPruner

    trained = {
        name: Trained(lambda model, name=name: PaddleSlimPruner(model, **PRUNERS[name]))
        for name in (ROWS[row] for row in COMPARED)
    }

    def step(question: dict) -> dict:
        model = trained[question["pruner"]]
        return {"ms": model.step_ms(), "sparsity": model.sparsity()}

    versions = f"PaddleSlim {metadata.version('paddleslim')} on Paddle {paddle.__version__}"
    return {"versions": versions}, step


def measure(rounds: int, paddleslim: Peer | None) -> tuple[dict, dict]:
    """The ms of each round, and the last sparsity, of 'memcpy' and of (whose, row)."""
    steps = 2 * (WARM_UP + rounds)
    trained = {
        name: Trained(lambda model, name=name: make_pruner(name, model, steps)) for name in PRUNERS
    }
    source = np.concatenate([w.numpy().ravel() for w in trained["ratio"].weights])
    target = np.empty_like(source)
    times: dict = {"memcpy": [], **{("ours", row): [] for row in ROWS}}
    if paddleslim:
        times.update({("PaddleSlim", row): [] for row in COMPARED})
    sparsity = {}
    for _ in range(WARM_UP + rounds):
        started = time.perf_counter()
        np.copyto(target, source)
        times["memcpy"].append(1000 * (time.perf_counter() - started))
        for row, pruner in ROWS.items():
            times["ours", row].append(trained[pruner].step_ms())
            sparsity["ours", row] = trained[pruner].sparsity()
            if paddleslim and row in COMPARED:
                answer = paddleslim.ask({"pruner": pruner})
                times["PaddleSlim", row].append(answer["ms"])
                sparsity["PaddleSlim", row] = answer["sparsity"]
    return {what: ms[WARM_UP:] for what, ms in times.items()}, sparsity


def paired(above: list[float], below: list[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(above, below))


def table(times: dict, sparsity: dict) -> str:
    compared = any(("PaddleSlim", row) in times for row in COMPARED)
    memcpy = times["memcpy"]
    head = ["", "ms", "memcpys", "target", "zeros"]
    rows = [["memcpy of the weights", f"{statistics.median(memcpy):.2f}", "1.0", "", ""]]
    head += ["PaddleSlim, ms", "zeros", "times as long", "target"] if compared else []
    for name in ROWS:
        ours = times["ours", name]
        row = [
            f"step, {name}",
            f"{statistics.median(ours):.2f}",
            f"{paired(ours, memcpy):.1f}",
            f"<= {TARGETS[name]}",
            f"{sparsity['ours', name]:.2%}",
        ]
        if ("PaddleSlim", name) in times:
            theirs = times["PaddleSlim", name]
            row += [
                f"{statistics.median(theirs):.0f}",
                f"{sparsity['PaddleSlim', name]:.2%}",
                f"{paired(theirs, ours):.0f}",
                f">= {COMPARED[name]}" if COMPARED[name] else "",
            ]
        rows.append(row)
    return markdown(head, rows)


class Linears:
    """Square linear layers of `size` weights in all, and a copy of these to start a step from."""

    def __init__(self, size: int):
        paddle.seed(0)
        width = min(WIDEST, math.isqrt(size // 4))
        layers = [nn.Linear(width, width, bias_attr=False) for _ in range(round(size / width**2))]
        self.model = nn.Sequential(*layers)
        self.weights = [host.memory(layer.weight) for layer in layers]
        self.copies = [weight.copy() for weight in self.weights]
        self.size = sum(weight.size for weight in self.weights)

    def memcpy_ms(self) -> float:
        """Gives the weights the values they started with: the yardstick."""
        started = time.perf_counter()
        for weight, copy in zip(self.weights, self.copies):
            np.copyto(weight, copy)
        return 1000 * (time.perf_counter() - started)


def measure_scale(size: int, rounds: int) -> dict:
    """Of one size: the weights, the ms of each round, and by pruner the peak extra bytes."""
    for name in PRUNERS:  # the memory of the code itself is not a pruner's
        two_steps(make_pruner(name, Linears(1 << 16).model, 2))
    linears = Linears(size)
    memory = {}
    for name in PRUNERS:
        linears.memcpy_ms()
        memory[name] = grown_by(lambda name=name: two_steps(make_pruner(name, linears.model, 2)))
    pruners = {name: make_pruner(name, linears.model, 2 * (1 + rounds)) for name in PRUNERS}
    times: dict = {"memcpy": [], **{row: [] for row in ROWS}}
    for _ in range(1 + rounds):
        for row, pruner in ROWS.items():
            times["memcpy"].append(linears.memcpy_ms())
            started = time.perf_counter()
            pruners[pruner].step()
            times[row].append(1000 * (time.perf_counter() - started))
    times["memcpy"] = times["memcpy"][len(ROWS) :]
    times.update((row, times[row][1:]) for row in ROWS)
    return {"weights": linears.size, "memory": memory, "times": times}


def two_steps(pruner) -> None:
    pruner.step()
    pruner.step()


def grown_by(do) -> int:
    """The bytes by which this process grew at most while it did that. Linux only."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # gives free memory back, where it is glibc
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = psutil.Process().memory_info().rss
    do()
    return peak_memory() - before


def peak_memory() -> int:
    """Bytes of this process since its peak was reset; psutil has none for Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def scale_table(sizes: list[str], rounds: int) -> str:
    """Every size in a process of its own, whose memory is measured."""
    head = ["", "ms", "ns a weight", "memcpys", "target", "peak extra memory", "target"]
    rows = []
    for name in sizes:
        timed = min(rounds, max(2, SCALES["500M"] // SCALES[name]))  # a few minutes in all
        options = ["--rounds", str(timed), "--measure_scale", name]
        peer = Peer(name, [sys.executable, *PROGRAM, *options])
        measured = peer.hello
        peer.end()
        rows += scale_rows(name, measured)
        print(f"{name}: {timed} rounds", file=sys.stderr)
    return markdown(head, rows)


def scale_rows(name: str, measured: dict) -> list[list[str]]:
    weights, times = measured["weights"], measured["times"]
    copies = times["memcpy"]  # one before every step
    ms = statistics.median(copies)
    rows = [[f"{name}: memcpy", f"{ms:.2f}", f"{1e6 * ms / weights:.2f}", "1.0", "", "", ""]]
    for i, (row, pruner) in enumerate(ROWS.items()):
        ms = statistics.median(times[row])
        rows.append(
            [
                f"{name}: {row}",
                f"{ms:.2f}",
                f"{1e6 * ms / weights:.2f}",
                f"{paired(times[row], copies[i :: len(ROWS)]):.1f}",
                f"<= {TARGETS[row]}",
                f"{measured['memory'][pruner] / (4 * weights):.1%}",
                f"<= {MEMORY_TARGET}%",
            ]
        )
    return rows


@one_line_errors
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description="Times one pruner.step() on the CPU in memcpys of the weights.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=number(int, 1), default=20, help="timed rounds, fewer for large sizes")
    add("--paddleslim_python", help="a Python with Paddle 2.6.2 and PaddleSlim 2.6.0, to compare")
    add("--scale", nargs="*", choices=list(SCALES), help="so many weights; with no size, all four")
    add("--serve_paddleslim", action="store_true", help=argparse.SUPPRESS)
    add("--measure_scale", choices=list(SCALES), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.paddleslim_python and not shutil.which(args.paddleslim_python):
        raise FileNotFoundError(f"--paddleslim_python is no program: {args.paddleslim_python}")

    paddle.set_device("cpu")
    if args.serve_paddleslim:
        serve(start_paddleslim)
    elif args.measure_scale:
        serve(lambda: (measure_scale(SCALES[args.measure_scale], args.rounds), None))
    elif args.scale is not None:
        rows = scale_table(args.scale or list(SCALES), args.rounds)
        print(f"Square linear layers up to {WIDEST}x{WIDEST}, float32; medians")
        print(f"{versions()}\n\n{rows}")
    else:
        compare_on_mobilenet(args.rounds, args.paddleslim_python)
    return 0


def compare_on_mobilenet(rounds: int, paddleslim_python: str | None) -> None:
    paddleslim = None
    if paddleslim_python:
        paddleslim = Peer("PaddleSlim", [paddleslim_python, *PROGRAM, "--serve_paddleslim"])
    times, sparsity = measure(rounds, paddleslim)
    weights = prunable_parameters(mobilenet_v1(num_classes=10)).values()
    print(
        f"MobileNetV1, 10 classes: {sum(w.size for w in weights):,} prunable weights in "
        f"{len(weights)} tensors; medians of {rounds} rounds"
    )
    print(versions() + (f", {paddleslim.hello['versions']}" if paddleslim else "") + "\n")
    print(table(times, sparsity))
    if paddleslim:
        paddleslim.end()


def versions() -> str:
    return machine(numpy=np.__version__, Paddle=paddle.__version__)


if __name__ == "__main__":
    sys.exit(main())
