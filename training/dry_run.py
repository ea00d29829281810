"""--dry_run: what a training would prune, and what it would cost. Nothing is written."""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace

import paddle
from paddle import nn

from readers.loader import Loader
from tasks.lines import say
from tasks.measure import evaluate
from training import ranks
from training.run import Run
from unstructured_pruning.parameters import TRANSPOSED, zeros

COUNTED = (nn.Conv1D, nn.Conv2D, nn.Conv3D, nn.Linear, *TRANSPOSED)
LEAST_BATCHES, SECONDS = 4, 30  # that are measured: so many, and then more for so long
MOST_BATCHES, MOST_A_WORKER = 20, 4  # but not more; a process that reads is two ahead


def tell(run: Run, train_epoch: Callable[[Run], None]) -> None:
    """Says it, after report.beginning(). To be called by all ranks, with a run that is not begun.

    Its weights are pruned, and moved by some steps: it cannot be trained any more.

    Args:
        train_epoch: of train.py.
    """
    end, (epochs, tests) = run.last_step, epochs_left(run)
    left = end - run.step
    # From the beginning of the epoch: of a resumed one nothing may be left.
    run.step, run.totals = run.epoch * len(run.train_loader), None
    never = {"max_steps": None, "save_steps": None, "log_period": sys.maxsize}
    run.args = argparse.Namespace(**{**vars(run.args), **never})
    if run.pruner is not None:
        prune(run, end)
        say(f"\nat the end, if the weights stayed as they are:\n{run.pruner}\n")
    dense, kept = multiply_adds(run.model, run.task.input_shape(run.args))
    step, test = seconds_a_step(run, train_epoch), seconds_a_test(run)
    lines = {
        "a picture": f"{dense:,} multiply-adds"
        + (f", {kept:,} ({kept / max(dense, 1):.1%}) with weights that stay" if run.pruner else ""),
        "memory": f"{memory() / 1e6:,.0f} MB at most, of "
        + ("a process" if paddle.get_device() == "cpu" else "a GPU"),
        "time": f"{step:.3g} s a step, {duration(step * len(run.train_loader))} an epoch, "
        f"{duration(test)} a test",
        "in all": f"{duration(step * left + test * tests)}: {left:,} steps in {epochs} epochs, and "
        f"{tests} tests",
    }
    say("\n".join(f"{name:9} {text}" for name, text in lines.items()))


def epochs_left(run: Run) -> tuple[int, int]:
    """How many, begun ones included, and the tests after them."""
    last = max(run.epoch, math.ceil(run.last_step / len(run.train_loader)) - 1)
    tested = [(epoch + 1) % run.args.test_period == 0 for epoch in range(run.epoch, last)]
    return len(tested) + 1, sum(tested) + 1


def prune(run: Run, end: int) -> None:
    """As after step `end` of the training."""
    args = run.args
    if args.freeze_masks_epoch is not None and run.epoch >= args.freeze_masks_epoch:
        run.pruner.freeze_masks()
    if args.pruning_strategy == "gmp":
        run.pruner.iteration = end - 1
    else:
        run.pruner.iteration -= run.pruner.iteration % run.pruner.prune_period  # masks are due
    # By no process: started for one batch and dropped, some die loudly.
    workers, run.train_loader.workers = run.train_loader.workers, 0
    images, *targets = next(run.batches())
    run.train_loader.workers = workers
    with paddle.amp.auto_cast(enable=args.amp, level="O1"):
        loss = run.objective(images, run.network(images), targets)
    loss.backward()  # a pruner of one's own may rank by gradients
    run.pruner.step()
    run.opt.clear_grad()


@paddle.no_grad()
def multiply_adds(model: nn.Layer, shape: tuple[int, ...]) -> tuple[int, int]:
    """Of one picture in all convolutions and linear layers: all, and those by weights but 0.

    Args:
        shape: of the picture, (C, H, W).
    """
    found = [0, 0]

    def count(layer, inputs, output) -> None:
        if isinstance(layer, TRANSPOSED):
            places, channels = inputs[0], layer.weight.shape[0]
        else:
            places, channels = output, layer.weight.shape[isinstance(layer, nn.Linear)]
        places = math.prod(places.shape) // channels  # at which each weight is used
        weights = math.prod(layer.weight.shape)
        found[0] += weights * places
        found[1] += (weights - zeros(layer.weight)) * places

    layers = [layer for layer in model.sublayers(include_self=True) if isinstance(layer, COUNTED)]
    hooks = [layer.register_forward_post_hook(count) for layer in layers]
    model.eval()
    model(paddle.zeros([1, *shape]))
    for hook in hooks:
        hook.remove()
    return found[0], found[1]


class Stopwatch:
    """Times of batches; the first half of them, with all that has to start, does not count."""

    def __init__(self, loader: Loader):
        self.most = MOST_BATCHES + MOST_A_WORKER * loader.workers
        self.times = [time.perf_counter()]

    def lap(self) -> None:
        if paddle.get_device() != "cpu":
            paddle.device.cuda.synchronize()
        self.times.append(time.perf_counter())

    @property
    def enough(self) -> bool:
        laps, seconds = len(self.times) - 1, self.times[-1] - self.times[0]
        return laps >= self.most or (laps >= LEAST_BATCHES and seconds > SECONDS)

    @property
    def seconds(self) -> float:
        """The mean of a batch; 0 of none, as a rank may have."""
        laps = [after - before for before, after in zip(self.times, self.times[1:])]
        return statistics.mean(laps[len(laps) // 2 :] or [0.0])


def seconds_a_step(run: Run, train_epoch: Callable[[Run], None]) -> float:
    """From the first steps of the epoch."""
    watch = Stopwatch(run.train_loader)

    def after_step() -> None:
        watch.lap()
        if any(ranks.numbers(watch.enough)):  # all ranks stop at the same step
            run.args.max_steps = run.step

    run.bar = SimpleNamespace(update=after_step)
    train_epoch(run)
    return watch.seconds


def seconds_a_test(run: Run) -> float:
    """From the first batches of the test data."""
    total = 0.0
    for network in run.networks.values():
        watch, metric = Stopwatch(run.val_loader), run.task.Metric(run.val_loader.dataset)
        some = itertools.takewhile(lambda _, watch=watch: not watch.enough, run.val_loader)
        evaluate(network, some, metric, watch.lap)
        total += watch.seconds * len(run.val_loader)
    return total


def memory() -> int:
    """Bytes: the most that was used so far."""
    if paddle.get_device() != "cpu":
        return paddle.device.cuda.max_memory_allocated()
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
