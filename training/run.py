"""One training: all that takes part in it, and how far it is."""

from __future__ import annotations

import argparse
import itertools
import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.optimizer import lr
from tqdm import tqdm

from readers.loader import Loader
from tasks.lines import say
from tasks.measure import summarize
from training import batch_norm, ranks
from training.averaging import Average
from training.folders import checkpoint_name
from training.loggers import Logger
from training.objective import Objective
from training.stopping import StopSignals, check_stopped, evaluation_errors
from training.train_state import Saved
from unstructured_pruner import UnstructuredPruner, prunable_parameters, sparsity

FIRST_STEPS = 100  # in which a learning rate that is too high shows


@dataclass
class Run:
    """What takes part in a training, then how far it is."""

    args: argparse.Namespace
    task: ModuleType  # of tasks/
    objective: Objective
    model: paddle.nn.Layer
    network: paddle.nn.Layer  # the model, or its DataParallel wrapper
    opt: paddle.optimizer.Optimizer
    schedule: lr.LRScheduler  # steps once a batch
    scaler: paddle.amp.GradScaler
    pruner: UnstructuredPruner | None
    average: Average | None
    train_loader: Loader
    val_loader: Loader
    seed: int  # of order, augmentation and dropout
    started_from: str | None = None  # see initial.starting_weights()
    statistics: dict | None = None  # of batch norm before they were measured anew, by network
    stop: StopSignals = field(default_factory=StopSignals)
    bar: tqdm | None = None
    logger: Logger | None = None  # of the first rank
    first_losses: list | None = None  # of a training that starts from trained weights
    warned_of_reading: bool = False
    # Weights of which a lost output channel was reported; True: that all of them are lost.
    reported_lost: dict[str, bool] = field(default_factory=dict)

    epoch: int = 0  # the one under way
    step: int = 0  # steps of the whole training that are done
    best_result: float = -1.0  # of all weights so far
    epoch_lr: float | None = None  # the learning rate at the start of the epoch
    totals: paddle.Tensor | None = None  # sums of the task's counts over the epoch
    finite: paddle.Tensor | None = None  # batches of the epoch before the first loss that is not
    first_step: int = 0  # `step` when this process began with the epoch
    started: float = 0.0  # time.perf_counter() at that moment
    seconds_reading: float = 0.0  # since then, of waiting for pictures

    @property
    def networks(self) -> dict[str, paddle.nn.Layer]:
        """What is tested and saved, by what is put before the names of its results."""
        return {"": self.model, **({"average_": self.average.network} if self.average else {})}

    @property
    def batch(self) -> int:
        """Batches of the epoch under way that are done."""
        return self.step - self.epoch * len(self.train_loader)

    @property
    def epoch_finished(self) -> bool:
        return self.batch == len(self.train_loader)

    @property
    def last_step(self) -> int:
        """How many steps the whole training takes."""
        steps = self.args.num_epochs * len(self.train_loader)
        return min(steps, self.args.max_steps or steps)

    @property
    def ends(self) -> bool:
        """Whether the epoch under way is the last."""
        return self.step == self.args.max_steps or self.epoch == self.args.num_epochs - 1

    def batches(self) -> Iterator[list[paddle.Tensor]]:
        """The batches of the epoch that are left. `count()` is to be called for each.

        Raises:
            Stopped: after a batch, on a signal that all ranks have heard of.
        """
        done = self.batch
        if self.totals is None:
            self.epoch_lr = self.opt.get_lr()
            self.totals = paddle.zeros([len(self.task.COUNTED) + 1], "float64")
        self.finite = paddle.full([], done, "int64")
        self.first_step, self.seconds_reading = self.step, 0.0
        self.train_loader.dataset.epoch = self.epoch
        self.train_loader.batch_sampler.set_epoch(self.epoch, done)
        self.network.train()
        self.started = asked = time.perf_counter()
        if self.epoch_finished or self.step == self.args.max_steps:
            return
        for batch in self.train_loader:
            self.seconds_reading += time.perf_counter() - asked
            seed_step(self.seed, self.step)
            yield batch
            if number := self.stop.agreed():
                raise self.stop.stopped(number, self.step)
            if self.step == self.args.max_steps:
                break
            asked = time.perf_counter()

    def count(self, counts: paddle.Tensor, loss: paddle.Tensor) -> None:
        """A step is done.

        Args:
            counts: of `task.counts()`, whose first is the sum of the loss.
        """
        self.totals += counts
        self.finite += paddle.isfinite(self.totals[0]).astype("int64")  # once NaN, always NaN
        self.step += 1
        self.bar.update()
        if self.first_losses is not None and len(self.first_losses) < FIRST_STEPS:
            self.first_losses.append(loss.detach())

    def end_epoch(self) -> dict:
        """The epoch's record for metrics.jsonl, without test results; to be called by all ranks.

        Raises:
            ValueError: a loss or weight is not finite, or the ranks have different masks.
        """
        saved = self.state(finished=False)  # waits for the device
        seconds = time.perf_counter() - self.started
        if self.pruner is not None:
            ranks.check_same_masks(self.pruner, self.step)
        for network in self.networks.values():
            ranks.share_buffers(network)
        images = (self.step - self.first_step) * saved.global_batch
        return {
            "epoch": self.epoch,
            "lr": self.epoch_lr,
            "train_loss": summarize(np.sum(saved.totals, 0), self.task.COUNTED)["loss"],
            **dict.fromkeys(p + name for p in self.networks for name in self.task.MEASURED),
            "sparsity": saved.sparsity,
            "prunable_sparsity": saved.prunable_sparsity,
            "threshold": saved.threshold,
            "images_per_sec": images / seconds,
            "seconds": seconds,
        }

    def recalibrate(self) -> None:
        """After the last epoch batch norm's statistics are measured anew, with --recalibrate_bn.

        Those that a longer training would go on with are kept for the checkpoint. To be called by
        all ranks.

        Raises:
            Stopped: a signal came; nothing has changed.
        """
        batches = min(self.args.recalibrate_bn, len(self.train_loader))
        if batches == 0 or not self.ends:
            return
        if self.epoch < self.args.num_epochs - 1 or not self.epoch_finished:
            say("--recalibrate_bn is for the end of the last epoch, which --max_steps is before")
            return
        if not batch_norm.layers_of(self.model):
            say(f"--recalibrate_bn: {self.args.model} has no batch norm")
            return
        before = {
            prefix: {n: value.numpy() for n, value in batch_norm.statistics_of(network).items()}
            for prefix, network in self.networks.items()
        }
        self.train_loader.dataset.epoch = self.epoch
        self.train_loader.batch_sampler.set_epoch(self.epoch)
        first = itertools.islice(self.train_loader, batches)
        with evaluation_errors():
            networks = list(self.networks.values())
            batch_norm.measure(networks, first, lambda: check_stopped(self))
        self.statistics = before
        say(f"batch norm's statistics were measured anew over {batches} batches")

    def is_best(self, record: dict) -> bool:
        """Whether the weights are better than all before; remembers their result if so."""
        result = record[self.task.MEASURED[0]]
        comparable = self.epoch_finished and (self.pruner is None or self.pruner.target_reached())
        if result is None or not comparable or result <= self.best_result:
            return False
        self.best_result = result
        return True

    def state(self, finished: bool) -> Saved:
        """What train-state.json is to hold; to be called by all ranks.

        Raises:
            ValueError: a loss or weight is not finite.
        """
        self.check_finite()
        args, pruner = self.args, self.pruner
        one_threshold = pruner and not args.static_masks and pruner.distribution == "global"
        # Infinite where all goes but what has to stay: JSON has no such number.
        threshold = float(pruner.threshold) if one_threshold else math.inf
        return Saved(
            folder=Path(args.model_path) / checkpoint_name(self.epoch, self.step, finished),
            epoch=self.epoch,
            step=self.step,
            finished=finished,
            epoch_lr=self.epoch_lr,
            started_from=self.started_from,
            totals=[totals.tolist() for totals in ranks.tensors(self.totals)],
            sparsity=UnstructuredPruner.total_sparse(self.model),
            prunable_sparsity=sparsity(prunable_parameters(self.model)),
            threshold=None if math.isinf(threshold) else threshold,
            masks_ratio=pruner.ratio if pruner else None,
            ranks=dist.get_world_size(),
            options=vars(args),
            versions={
                "paddle": paddle.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        )

    def check_finite(self) -> None:
        """To be called by all ranks, before anything is saved."""
        finite = int(ranks.minimum(self.finite))
        if finite < self.batch:
            step = self.epoch * len(self.train_loader) + finite + 1
            raise ValueError(
                f"the loss is not finite at step {step}, in epoch {self.epoch}; lower --lr. Go on "
                f"from what was saved in {self.args.model_path}, but for a checkpoint of step "
                f"{step - 1}"
            )
        for name, weight in self.model.named_parameters():
            if not bool(paddle.isfinite(weight).all()):
                raise ValueError(
                    f"{name} is not finite after step {self.step}, in epoch {self.epoch}; lower "
                    f"--lr. What was saved before is kept in {self.args.model_path}"
                )


def seed_step(seed: int, step: int) -> None:
    """Dropout depends on seed, step and rank, not on what ran before."""
    mixed = np.random.SeedSequence((seed, step, dist.get_rank()))
    paddle.seed(int(mixed.generate_state(1)[0]))
