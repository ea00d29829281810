"""Does the GPU compute what the CPU computes, and what does pruning cost there?

    bash run.sh gpu_check       # or: python -m benchmarks.gpu_check [--batch_size 64]

Trains MobileNetV1 on the same random pictures from the same weights on the GPU and on the CPU and
compares losses and masks step by step; then times training steps on the GPU. Sums are rounded
differently on the two, so weights that lie at the threshold may fall to either side: up to 0.1% of
the mask may differ.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import numpy as np
import paddle
from paddle.vision.models import mobilenet_v1

from training.command_line import one_line_errors
from training.process import gpu_there, set_device
from unstructured_pruner import UnstructuredPruner


class Trial:
    """A network with its optimizer and pruner on one device, and the step of train.py."""

    def __init__(self, device: str, mode: str, weights: dict | None = None):
        paddle.set_device(device)
        paddle.seed(0)
        self.model = mobilenet_v1(num_classes=10)
        if weights is not None:
            self.model.set_state_dict(weights)
        self.opt = paddle.optimizer.Momentum(0.01, parameters=self.model.parameters())
        self.pruner = UnstructuredPruner(self.model, mode, threshold=0.01, ratio=0.55)

    def step(self, images, labels) -> float:
        loss = paddle.nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        self.opt.step()
        self.pruner.step()
        self.opt.clear_grad()
        return loss

    def masks(self) -> np.ndarray:
        return np.concatenate([mask.numpy().ravel() for mask in self.pruner.masks.values()])


def compare(mode: str, data, steps: int) -> bool:
    weights = {k: v.numpy() for k, v in Trial("cpu", mode).model.state_dict().items()}
    results = {}
    for device in ("cpu", "gpu"):
        trial = Trial(device, mode, weights)
        images, labels = (paddle.to_tensor(array) for array in data)
        results[device] = [(float(trial.step(images, labels)), trial.masks()) for _ in range(steps)]
    passed = True
    for step, (cpu, gpu) in enumerate(zip(results["cpu"], results["gpu"])):
        differing = np.mean(cpu[1] != gpu[1])
        close = abs(cpu[0] - gpu[0]) <= 0.01 * abs(cpu[0]) and differing <= 0.001
        passed &= bool(close)
        print(
            f"{mode} step {step}: loss cpu {cpu[0]:.6f} gpu {gpu[0]:.6f}, masks differ in "
            f"{differing:.4%}, pruned cpu {1 - cpu[1].mean():.4%} gpu {1 - gpu[1].mean():.4%}"
        )
    return passed


def time_steps(mode: str, data, rounds: int) -> None:
    trial = Trial("gpu", mode)
    images, labels = (paddle.to_tensor(array) for array in data)
    whole, pruning = [], []
    for _ in range(rounds):
        started = time.perf_counter()
        trial.step(images, labels)
        paddle.device.synchronize()
        whole.append(time.perf_counter() - started)
        started = time.perf_counter()
        trial.pruner.step()
        paddle.device.synchronize()
        pruning.append(time.perf_counter() - started)
    step, prune = np.median(whole[rounds // 5 :]), np.median(pruning[rounds // 5 :])
    print(
        f"{mode}: {len(labels) / step:.0f} images/s, step {step * 1e3:.2f} ms, of which "
        f"pruner.step() {prune * 1e3:.2f} ms = {prune / step:.1%}"
    )


@one_line_errors
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=5, help="compared steps")
    parser.add_argument("--rounds", type=int, default=50, help="timed steps")
    args = parser.parse_args(argv)
    if not gpu_there():
        raise ValueError("there is no GPU to check, or this Paddle was built without GPUs")
    set_device(use_gpu=True)
    rng = np.random.default_rng(0)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    data = rng.normal(size=shape).astype("float32"), rng.integers(0, 10, args.batch_size)
    print(f"Paddle {paddle.__version__}, {paddle.device.cuda.get_device_name()}")
    passed = [compare(mode, data, args.steps) for mode in ("threshold", "ratio")]
    for mode in ("threshold", "ratio"):
        time_steps(mode, data, args.rounds)
    if not all(passed):
        raise ValueError("GPU and CPU differ by more than rounding explains")
    print("GPU and CPU agree")


if __name__ == "__main__":
    sys.exit(main())
