"""What pruning costs a training: images/s of MobileNetV1 dense and pruned, on the CPU.

    python -m benchmarks.train_overhead [--scale 1.0] [--rounds 15]

Three networks (dense, threshold mode, ratio mode) take their steps in turn, in the order of
train.py: forward, loss, backward, opt.step(), lr.step(), pruner.step(), clear_grad(). The loss of
speed is the median over the rounds of that within a round, and should be at most 2%. As two steps
of the same network differ by more than that on a machine that is not quiet, the share of
`pruner.step()` in its own training step, timed within it, stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import numpy as np
import paddle
from paddle.vision.models import mobilenet_v1

from benchmarks.report import machine, markdown
from training import convolutions
from training.command_line import number, one_line_errors
from unstructured_pruner import UnstructuredPruner

TARGET = 2  # percent of the images/s
PRUNERS = {  # PaddleSlim's defaults
    "dense": None,
    "threshold": {"mode": "threshold", "threshold": 0.01},
    "ratio": {"mode": "ratio", "ratio": 0.55},
}
WARM_UP = 2  # rounds before the timed ones


class Training:
    """A network with what trains it; all start from the same weights."""

    def __init__(self, scale: float, pruner: dict | None):
        paddle.seed(0)
        self.model = mobilenet_v1(scale=scale, num_classes=10)
        convolutions.use_fast(self.model)
        self.schedule = paddle.optimizer.lr.PiecewiseDecay([1000], [0.05, 0.005])
        self.opt = paddle.optimizer.Momentum(
            self.schedule,
            momentum=0.9,
            parameters=self.model.parameters(),
            weight_decay=paddle.regularizer.L2Decay(3e-5),
        )
        self.pruner = UnstructuredPruner(self.model, **pruner) if pruner else None

    def step(self, images: paddle.Tensor, labels: paddle.Tensor) -> tuple[float, float]:
        """One training step: its seconds, and those of them in pruner.step()."""
        started, pruning = time.perf_counter(), 0.0
        loss = paddle.nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.opt.step()
        self.schedule.step()
        if self.pruner is not None:
            before = time.perf_counter()
            self.pruner.step()
            pruning = time.perf_counter() - before
        self.opt.clear_grad()
        return time.perf_counter() - started, pruning


def measure(scale: float, batch_size: int, rounds: int) -> tuple[dict, dict]:
    """By pruner: the seconds of every step, and those in pruner.step()."""
    trainings = {name: Training(scale, pruner) for name, pruner in PRUNERS.items()}
    rng = np.random.default_rng(0)
    images = paddle.to_tensor(rng.normal(size=(batch_size, 3, 32, 32)).astype("float32"))
    labels = paddle.to_tensor(rng.integers(0, 10, batch_size))
    seconds: dict = {name: [] for name in PRUNERS}
    pruning: dict = {name: [] for name in PRUNERS}
    for i in range(WARM_UP + rounds):
        order = list(PRUNERS)
        for name in order[i % 3 :] + order[: i % 3]:  # none is always first
            whole, part = trainings[name].step(images, labels)
            seconds[name].append(whole)
            pruning[name].append(part)
    return tuple({n: v[WARM_UP:] for n, v in by.items()} for by in (seconds, pruning))


def table(seconds: dict, pruning: dict, batch_size: int) -> str:
    head = ["training", "images/s", "lost", "target", "ms a step", "pruner.step(), ms", "its share"]
    rows = []
    for name in PRUNERS:
        step = statistics.median(seconds[name])
        cells = [name, f"{batch_size / step:.1f}", "", "", f"{1000 * step:.1f}", "", ""]
        if PRUNERS[name]:
            dense = statistics.median(d / s for d, s in zip(seconds["dense"], seconds[name]))
            share = statistics.median(p / s for p, s in zip(pruning[name], seconds[name]))
            cells[2:4] = f"{1 - dense:.1%}", f"<= {TARGET}%"
            cells[5:] = f"{1000 * statistics.median(pruning[name]):.1f}", f"{share:.1%}"
        rows.append(cells)
    return markdown(head, rows)


@one_line_errors
def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--scale", type=number(float, 0.01), default=1.0, help="MobileNetV1's width")
    add("--batch_size", type=number(int, 2), default=64, help="pictures of 3x32x32 a step")
    add("--rounds", type=number(int, 1), default=15, help="timed steps of each network")
    args = parser.parse_args(argv)
    paddle.set_device("cpu")
    seconds, pruning = measure(args.scale, args.batch_size, args.rounds)
    print(
        f"MobileNetV1 x{args.scale}, 32x32 pictures, batch {args.batch_size}; medians of "
        f"{args.rounds} rounds\n{machine(Paddle=paddle.__version__)}\n"
    )
    print(table(seconds, pruning, args.batch_size))
    return 0


if __name__ == "__main__":
    sys.exit(main())
