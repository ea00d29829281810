"""Times one `pruner.step()` on MobileNetV1's 3.2 million prunable weights, on the CPU.

    python benchmarks/pruner_step.py [--rounds 20] [--paddleslim_python PATH]

The yardstick is a memcpy of the weights, timed in the same round: a step in threshold mode should
cost no more than 6 of them, one in ratio mode no more than 15. `--paddleslim_python` names a Python
with Paddle 2.6.2 and PaddleSlim 2.6.0; a second process of it then takes its turn in every round.
PaddleSlim applies its masks in update_params(), so its time is that of step() and update_params().
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from importlib import metadata
from pathlib import Path

import numpy as np
import paddle
from paddle.vision.models import mobilenet_v1

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from program import number, one_line_errors
from unstructured_pruner import UnstructuredPruner, prunable_parameters

MODES = ("threshold", "ratio")
TARGETS = {"threshold": 6, "ratio": 15}  # memcpys of the weights
SETTINGS = {"threshold": 0.01, "ratio": 0.55}  # PaddleSlim's defaults
UPDATE = 1e-3  # how far a weight moves between two steps: lr 0.05 x a gradient of 0.02
WARM_UP = 2  # rounds before the timed ones


class Trained:
    """A pruned model whose weights move before every step, as under an optimizer."""

    def __init__(self, pruner_class, mode: str):
        paddle.seed(0)
        self.model = mobilenet_v1(num_classes=10)
        self.weights = list(prunable_parameters(self.model).values())
        self.updates = [paddle.randn(w.shape) * UPDATE for w in self.weights]
        self.pruner = pruner_class(self.model, mode, **SETTINGS)
        self.applies_masks = pruner_class is UnstructuredPruner

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


def serve_paddleslim() -> None:
    """The second process: for each mode read from stdin prints a step's ms and the sparsity."""
    answers = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):  # PaddleSlim prints a line a parameter
        from paddleslim import UnstructuredPruner as PaddleSlimPruner

        trained = {mode: Trained(PaddleSlimPruner, mode) for mode in MODES}
        print(metadata.version("paddleslim"), paddle.__version__, file=answers, flush=True)
        for line in sys.stdin:
            mode = trained[line.strip()]
            print(mode.step_ms(), mode.sparsity(), file=answers, flush=True)


class PaddleSlim:
    """Asks the second process for steps."""

    def __init__(self, python: str):
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (closed in close())
        self.process = subprocess.Popen(
            [python, str(Path(__file__).resolve()), "--serve_paddleslim"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        slim, paddles = self._answer()
        self.versions = f"PaddleSlim {slim} on Paddle {paddles}"

    def step(self, mode: str) -> tuple[float, float]:
        """Milliseconds, and the sparsity after it."""
        print(mode, file=self.process.stdin, flush=True)
        ms, sparsity = self._answer()
        return float(ms), float(sparsity)

    def _answer(self) -> list[str]:
        words = self.process.stdout.readline().split()
        if len(words) != 2:
            self.process.wait()
            self.log.seek(0)
            last = (self.log.read().strip().splitlines() or ["no message"])[-1]
            raise ChildProcessError(f"the process with PaddleSlim ended: {last}")
        return words

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.log.close()


def measure(rounds: int, paddleslim: PaddleSlim | None) -> tuple[dict, dict]:
    """The ms of each round, and the last sparsity, of 'memcpy' and of (whose, mode)."""
    trained = {mode: Trained(UnstructuredPruner, mode) for mode in MODES}
    source = np.concatenate([w.numpy().ravel() for w in trained["ratio"].weights])
    target = np.empty_like(source)
    times: dict = {"memcpy": [], **{("ours", mode): [] for mode in MODES}}
    if paddleslim:
        times.update({("PaddleSlim", mode): [] for mode in MODES})
    sparsity = {}
    for _ in range(WARM_UP + rounds):
        started = time.perf_counter()
        np.copyto(target, source)
        times["memcpy"].append(1000 * (time.perf_counter() - started))
        for mode in MODES:
            times["ours", mode].append(trained[mode].step_ms())
            sparsity["ours", mode] = trained[mode].sparsity()
            if paddleslim:
                ms, sparsity["PaddleSlim", mode] = paddleslim.step(mode)
                times["PaddleSlim", mode].append(ms)
    return {what: ms[WARM_UP:] for what, ms in times.items()}, sparsity


def paired(above: list[float], below: list[float]) -> float:
    """The median of the ratios within each round."""
    return statistics.median(a / b for a, b in zip(above, below))


def table(times: dict, sparsity: dict) -> str:
    compared = ("PaddleSlim", MODES[0]) in times
    memcpy = times["memcpy"]
    head = ["", "ms", "memcpys", "target", "zeros"]
    rows = [["memcpy of the weights", f"{statistics.median(memcpy):.2f}", "1.0", "", ""]]
    head += ["PaddleSlim, ms", "zeros", "times as long"] if compared else []
    rows[0] += ["", "", ""] if compared else []
    for mode in MODES:
        ours = times["ours", mode]
        row = [
            f"step, {mode} {SETTINGS[mode]}",
            f"{statistics.median(ours):.2f}",
            f"{paired(ours, memcpy):.1f}",
            f"<= {TARGETS[mode]}",
            f"{sparsity['ours', mode]:.2%}",
        ]
        if compared:
            theirs = times["PaddleSlim", mode]
            row += [
                f"{statistics.median(theirs):.0f}",
                f"{sparsity['PaddleSlim', mode]:.2%}",
                f"{paired(theirs, ours):.0f}",
            ]
        rows.append(row)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cpu_model() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:  # Linux
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@one_line_errors
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--rounds", type=number(int, 1), default=20, help="timed rounds")
    parser.add_argument(
        "--paddleslim_python", help="a Python with Paddle 2.6.2 and PaddleSlim 2.6.0, to compare"
    )
    parser.add_argument("--serve_paddleslim", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.paddleslim_python and not shutil.which(args.paddleslim_python):
        raise FileNotFoundError(f"--paddleslim_python is no program: {args.paddleslim_python}")

    paddle.set_device("cpu")
    if args.serve_paddleslim:
        serve_paddleslim()
        return 0
    paddleslim = PaddleSlim(args.paddleslim_python) if args.paddleslim_python else None
    times, sparsity = measure(args.rounds, paddleslim)
    versions = [f"Python {platform.python_version()}", f"numpy {np.__version__}"]
    versions += [f"Paddle {paddle.__version__}"]
    if paddleslim:
        versions.append(paddleslim.versions)
        paddleslim.close()
    weights = prunable_parameters(mobilenet_v1(num_classes=10)).values()
    print(
        f"MobileNetV1, 10 classes: {sum(w.size for w in weights):,} prunable weights in "
        f"{len(weights)} tensors; medians of {args.rounds} rounds"
    )
    load = os.getloadavg()[0]  # the rounds are only as good as the machine is quiet
    print(f"{cpu_model()}, {os.cpu_count()} cores, load {load:.1f}; {', '.join(versions)}\n")
    print(table(times, sparsity))
    return 0


if __name__ == "__main__":
    sys.exit(main())
