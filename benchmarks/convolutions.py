"""What --fast_convolutions gives: a training step with Paddle's own convolutions and with others.

    python -m benchmarks.convolutions [--rounds 7] [--networks mobilenet_v1:0.25]

Two copies of a network take the same steps in turn: forward, loss, backward, opt.step(),
clear_grad(). The ratio is the median over the rounds of that within a round; "losses" is how far
those of the first step are apart, relative.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time

import paddle
from paddle.vision import models

from benchmarks.report import machine, markdown
from tasks.classification import loss as loss_of
from training import convolutions
from training.command_line import number, one_line_errors

NETWORKS = ["mobilenet_v1:1", "mobilenet_v1:0.25", "mobilenet_v2:1", "mobilenet_v3_small:1",
            "shufflenet_v2_x1_0", "resnet18", "densenet121"]  # fmt: skip
PICTURES = [(32, 1), (32, 8), (32, 64), (64, 64), (128, 32), (224, 8)]  # side, pictures a step
WARM_UP = 2  # rounds before the timed ones


class Training:
    def __init__(self, model):
        self.model = model
        self.opt = paddle.optimizer.Momentum(0.001, parameters=model.parameters())

    def step(self, images: paddle.Tensor, labels: paddle.Tensor, seed: int) -> tuple[float, float]:
        """Seconds, and the loss."""
        paddle.seed(seed)  # of dropout
        started = time.perf_counter()
        loss = loss_of(self.model(images), [labels])
        loss.backward()
        self.opt.step()
        self.opt.clear_grad()
        return time.perf_counter() - started, float(loss)


def measure(network: str, side: int, pictures: int, rounds: int) -> list[str]:
    """A row of the table."""
    paddle.seed(0)
    name, _, scale = network.partition(":")
    own = getattr(models, name)(num_classes=10, **({"scale": float(scale)} if scale else {}))
    fast = copy.deepcopy(own)
    convolutions.use_fast(fast)
    trainings = {"own": Training(own), "fast": Training(fast)}
    images, labels = paddle.randn([pictures, 3, side, side]), paddle.randint(0, 10, [pictures])
    seconds, first = {"own": [], "fast": []}, {}
    for i in range(WARM_UP + rounds):
        for name in ("own", "fast") if i % 2 else ("fast", "own"):
            taken, loss = trainings[name].step(images, labels, i)
            first.setdefault(name, loss)
            if i >= WARM_UP:
                seconds[name].append(taken)
    ratio = statistics.median(a / b for a, b in zip(seconds["own"], seconds["fast"]))
    apart = abs(first["fast"] / first["own"] - 1)
    times = [f"{1000 * statistics.median(seconds[name]):.0f}" for name in ("own", "fast")]
    return [network, f"{pictures} of {side}x{side}", *times, f"{ratio:.2f}", f"{apart:.0e}"]


@one_line_errors
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=number(int, 1), default=7)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, metavar="NAME[:SCALE]")
    args = parser.parse_args(argv)
    paddle.set_device("cpu")
    rows = []
    for network in args.networks:
        for side, pictures in PICTURES:
            if not (network.startswith("densenet") and side > 64):  # takes long
                rows.append(measure(network, side, pictures, args.rounds))
    print(machine(Paddle=paddle.__version__), "\n")
    head = ["network", "pictures", "Paddle's own, ms", "fast, ms", "ratio", "losses"]
    print(markdown(head, rows))


if __name__ == "__main__":
    main()
