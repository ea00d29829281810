"""Prunes a network while it trains.

    python train.py --data digits --scale 0.25 --num_epochs 8                     # laptop, a minute
    python train.py --data imagenet --lr 0.05 --pruning_mode threshold --threshold 0.01
    python train.py --data imagenet --lr 0.05 --pruning_mode ratio --ratio 0.55
    python -m paddle.distributed.launch --gpus="0,1,2,3" train.py --data imagenet --batch_size 256
    python train.py --data voc --data_dir VOCdevkit --lr 0.001 --pruning_mode threshold
    python train.py --data imagenet --pretrained_model models --resume_epoch 29   # after epoch 29
    python train.py --data imagenet --resume_epoch latest --save_steps 1000   # start and restart

Options, defaults and file names are those of PaddleSlim's demo; models/README.md tells what is
saved. Epochs count from 0, the batch size is per card, accuracies and sparsities are fractions.
"""

from __future__ import annotations

from functools import partial

from training.command_line import Stopped, WrongOption, one_line_errors, start
from training.options import different_options, parse_training

parse = partial(parse_training, __doc__)
if __name__ == "__main__":
    start(parse)

import argparse
import hashlib
import json
import math
import os
import platform
import re
import signal
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.optimizer import lr
from tqdm import tqdm

from readers.loader import Loader, available_cores
from readers.sampler import EpochBatchSampler
from tasks import TASKS
from tasks.lines import listed, not_loaded, say, shortened, warn
from tasks.measure import class_names, evaluate, summarize
from training import checkpoint
from training.process import StopSignals, command, set_device
from training.trained import check_model
from unstructured_pruner import (
    GMPUnstructuredPruner,
    UnstructuredPruner,
    prunable_parameters,
    sparsity,
)

LEAST_SPARSITY = 0.001  # of weights that were pruned; a dense network has hardly a zero
FIRST_STEPS = 100  # in which a learning rate that is too high shows


@dataclass
class Run:
    """All that takes part in one training."""

    args: argparse.Namespace
    task: ModuleType  # of tasks/
    model: paddle.nn.Layer
    network: paddle.nn.Layer  # the model, or its DataParallel wrapper
    opt: paddle.optimizer.Optimizer
    schedule: lr.LRScheduler  # steps once a batch
    scaler: paddle.amp.GradScaler
    pruner: UnstructuredPruner | None
    train_loader: Loader
    val_loader: Loader
    seed: int  # of order, augmentation and dropout
    started_from: str | None  # what weights the training began with; None: random ones
    stop: StopSignals = field(default_factory=StopSignals)
    bar: tqdm | None = None
    waits: bool = False  # for pictures, which was said
    first_losses: list | None = None  # of a training that starts from trained weights
    epoch: int = 0  # the one under way; its learning rate at the start, the sums of `counts` so
    epoch_lr: float | None = None  # far, and how many batches had a loss that is finite
    totals: paddle.Tensor | None = None
    finite: paddle.Tensor | None = None
    step: int = 0  # steps of the whole training that are done
    lost: dict[str, bool] = field(default_factory=dict)  # said of a weight -> of all its channels

    @property
    def batch(self) -> int:
        """Batches of the epoch under way that are done."""
        return self.step - self.epoch * len(self.train_loader)


@one_line_errors
def main(argv=None) -> None:
    args = parse(argv)
    check_model(args)
    args.num_classes = args.num_classes or TASKS[args.data].num_classes(args)
    set_device(args.use_gpu)
    if args.amp and paddle.get_device() == "cpu":
        raise WrongOption("--amp needs a GPU")
    if args.lr == 0:
        warn("--lr 0: the weights stay as they are, but for pruning")
    if args.pruning_mode == "ratio" and args.ratio == 1:
        warn(f"--ratio {args.ratio}: all prunable weights become 0")
    check_writable(args.model_path)
    if dist.get_world_size() > 1:
        if paddle.get_device() == "cpu":
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"  # also where Paddle was built for GPUs
        dist.init_parallel_env()
    run = set_up(args)
    if run is None:
        return
    with run.stop, progress(run) as run.bar:
        train(run)
    saved = (Path(args.model_path) / checkpoint.STATE).resolve().parent
    data_dir = ["--data_dir", args.data_dir] if args.data_dir else []
    measure = command("evaluate.py", "--pruned_model", args.model_path, *data_dir)
    say(f"saved {saved}; to measure it:\n{measure}")


def set_up(args) -> Run | None:
    """None: there is nothing left to do."""
    folder = checkpoint_to_resume(args)
    resumed = checkpoint.read_state(folder) if folder else None
    check_same_step(resumed)
    if resumed and args.resume_epoch == "latest" and is_complete(args, resumed):
        if dist.get_rank() == 0:
            checkpoint.link_all(folder, Path(args.model_path))  # a kill may have prevented it
        say(f"{folder} is the end of this training: nothing is left to do")
        return None
    task = TASKS[args.data]
    started_from = resumed.get("started_from") if resumed else start_of(args)
    seed = mixed_seed(args.seed, started_from)
    # What has to be downloaded comes after what can be checked here.
    loaders = make_loaders(args, seed) if args.use_pretrained else None
    paddle.seed(args.seed)  # the same initial weights on every rank
    model = task.make_model(args, args.use_pretrained and not folder)
    if folder:
        checkpoint.load_weights(model, checkpoint.find_weights(folder))
    elif args.pretrained_model:
        load_pretrained(model, args)
    train_loader, val_loader = loaders or make_loaders(args, seed)
    if resumed:
        check_same_classes(args, resumed, folder)
    if args.pruning_strategy == "gmp" and args.initial_ratio is None:
        start_gmp(args, model)
    pruner = make_pruner(args, model, len(train_loader))
    schedule = make_schedule(args, len(train_loader))
    opt = paddle.optimizer.Momentum(
        schedule,
        momentum=args.momentum_rate,
        parameters=model.parameters(),
        weight_decay=paddle.regularizer.L2Decay(args.l2_decay),
    )
    scaler = paddle.amp.GradScaler(enable=args.amp)
    run = Run(args, task, model, model, opt, schedule, scaler, pruner, train_loader, val_loader,
              seed, started_from)  # fmt: skip
    if resumed:
        go_on_from(run, resumed, folder)
        checkpoint.load_training(folder, run)
    else:
        if args.static_masks:
            pruner.set_static_masks()
        if started_from and args.lr > 0 and args.pruning_strategy != "gmp" and args.data != "voc":
            run.first_losses = []  # gmp's ratio raises the loss too, a detector's varies widely
    if args.static_masks and pruner.prunable_sparsity() < LEAST_SPARSITY:
        raise ValueError(
            f"--static_masks keeps zeros, but of the weights of {folder or args.pretrained_model} "
            f"{pruner.prunable_sparsity():.2%} are 0; give a pruned checkpoint, or leave it out"
        )
    if dist.get_world_size() > 1:
        run.network = paddle.DataParallel(model)
        dist.barrier()  # every rank has read what the first may move now
    if dist.get_rank() == 0:
        same_run = folder and folder.resolve().parent == Path(args.model_path).resolve()
        again = args.resume_epoch == "latest" and not args.force
        checkpoint.set_aside(args.model_path, resumed if same_run else None, again)
        if same_run:
            checkpoint.link_all(folder, Path(args.model_path))
        say(description(run, folder))
    return run


def description(run: Run, folder: Path | None) -> str:
    """What is about to be trained and pruned, where it starts and where it will be."""
    args, ranks = run.args, dist.get_world_size()
    gpu = paddle.get_device() != "cpu"
    device = paddle.device.cuda.get_device_name() if gpu else f"CPU, {available_cores()} cores"
    weights = "random" if not args.use_pretrained else "Paddle's for ImageNet"
    lines = {
        "device": f"{device}{f', {ranks} processes' if ranks > 1 else ''}",
        "data": f"{args.data}, {len(run.train_loader.dataset):,} pictures to train on, "
        f"{len(run.val_loader.dataset):,} to test, "
        f"{'x'.join(map(str, run.task.input_shape(args)))}, {args.num_classes} classes",
        "steps": f"{len(run.train_loader):,} an epoch, {args.batch_size * ranks} pictures each, "
        f"{args.num_epochs} epochs{f', ends at {args.max_steps:,}' if args.max_steps else ''}",
        "model": f"{args.model} of width {args.scale:g}, {parameters(run.model):,} parameters",
        "weights": str(folder or args.pretrained_model or weights),
        "pruned": pruned(run),
        "saved in": args.model_path,
    }
    return "\n".join(f"{name:9} {text}" for name, text in lines.items())


def parameters(model, names=None) -> int:
    """How many, of all tensors or of these."""
    tensors = dict(model.named_parameters())
    return sum(math.prod(tensors[name].shape) for name in (tensors if names is None else names))


def pruned(run: Run) -> str:
    args, pruner = run.args, run.pruner
    if pruner is None:
        return "nothing"
    weights = parameters(run.model, pruner.masks)
    of = (
        f"of {weights:,} weights in {len(pruner.masks)} layers "
        f"({weights / parameters(run.model):.1%} of the parameters)"
    )
    if args.static_masks:
        return f"what is 0, {pruner.prunable_sparsity():.2%} {of}"
    if args.pruning_mode == "threshold":
        return f"what is smaller than {args.threshold:g}, {of}"
    by_pattern = isinstance(pruner.distribution, dict)
    how = ", by pattern" if by_pattern else f", {pruner.distribution}".replace(", global", "")
    if args.pruning_strategy == "gmp":
        return f"{args.initial_ratio:.2%} rising to {pruner.target_ratio:.2%} {of}{how}"
    return f"{pruner.ratio:.2%} {of}{how}"


def start_of(args) -> str | None:
    """What a new training starts from: the SHA-256 of its weights, a name for Paddle's, or None."""
    if args.pretrained_model:
        return checkpoint.sha256(checkpoint.find_weights(args.pretrained_model))
    return f"Paddle's {args.model}" if args.use_pretrained else None


def mixed_seed(seed: int, started_from: str | None) -> int:
    """The seed of order, augmentation and dropout: from random weights the user's own.

    From trained weights another one: with the same one it would see the very batches again that
    these weights were trained on, and learn them by heart.
    """
    if started_from is None:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {started_from}".encode()).digest()[:4], "big")


def load_pretrained(model, args) -> None:
    """--pretrained_model, but for the output layers where it has another number of classes."""
    path = checkpoint.find_weights(args.pretrained_model)
    other = argparse.Namespace(**{**vars(args), "num_classes": args.num_classes + 1})
    left_out = checkpoint.load_weights(model, path, lambda: TASKS[args.data].make_model(other))
    if left_out:
        dense = " and dense" if args.static_masks else ""
        say(f"{not_loaded(path, left_out)}{dense}", sys.stderr)


def go_on_from(run: Run, saved: dict, folder: Path) -> None:
    """Where the checkpoint is: epoch, step, and what was counted in the epoch so far."""
    steps, args = len(run.train_loader), run.args
    if saved["finished"]:
        run.epoch, run.step = saved["epoch"] + 1, (saved["epoch"] + 1) * steps
    else:
        run.epoch, run.step, run.epoch_lr = saved["epoch"], saved["step"], saved.get("epoch_lr")
        if not 0 <= run.batch <= steps:
            raise ValueError(
                f"{folder} is at step {run.step}, which is not within epoch {run.epoch} of {steps} "
                "steps: inside an epoch the data set and the global batch size cannot change"
            )
        totals, rank = saved["totals"], dist.get_rank()
        if len(totals) != dist.get_world_size():  # by fewer or more ranks: the first has it all
            totals = [np.sum(totals, 0).tolist()]
        if rank < len(totals):
            run.totals = paddle.to_tensor(totals[rank], "float64")
    if args.max_steps is not None and args.max_steps <= run.step and args.resume_epoch != "latest":
        raise ValueError(f"--max_steps {args.max_steps} were taken before: {run.step} are done")


def is_complete(args, saved: dict) -> bool:
    reached = args.max_steps is not None and saved["step"] >= args.max_steps
    if reached and saved["step"] == args.max_steps and not saved["finished"]:
        reached = saved["epoch"] in checkpoint.reported(args.model_path)  # else: killed before
    return reached or (saved["finished"] and saved["epoch"] + 1 >= args.num_epochs)


def check_same_step(resumed: dict | None) -> None:
    steps = across_ranks(resumed["step"] if resumed else 0)
    if len(set(steps)) > 1:
        raise ValueError(
            f"the ranks would go on from steps {steps}: the checkpoints have to be in a folder "
            "that all machines see"
        )


def progress(run: Run) -> tqdm:
    """A bar on a terminal, over the steps of all epochs, with the time that is left."""
    steps = run.args.num_epochs * len(run.train_loader)
    return tqdm(
        total=min(steps, run.args.max_steps or steps),
        initial=run.step,
        unit=" steps",
        smoothing=0,  # the time left follows from all steps, with the tests between them
        disable=None if dist.get_rank() == 0 else True,
    )


def train(run: Run) -> None:
    args, task, model, pruner = run.args, run.task, run.model, run.pruner
    main_rank, decisive = dist.get_rank() == 0, task.MEASURED[0]
    best = checkpoint.best(args.model_path, decisive)
    for epoch in range(run.epoch, args.num_epochs):
        run.epoch = epoch
        run.bar.set_description(f"epoch {epoch} of {args.num_epochs}")
        if run.totals is None:
            run.epoch_lr = run.opt.get_lr()
            run.totals = paddle.zeros([len(task.COUNTED) + 1], "float64")
        record = {"epoch": epoch, "lr": run.epoch_lr}
        first_step, started = run.step, time.perf_counter()
        try:
            train_epoch(run)
        except ValueError:  # perhaps the signal to stop ended the reading processes, too
            if run.stop.received and dist.get_world_size() == 1:
                checkpoint.save(run, training_state(run))
                raise stopped(run, run.stop.received) from None
            raise
        state = training_state(run)  # waits for the device
        seconds = time.perf_counter() - started
        check_same_masks(run)
        results = summarize(np.sum(state["totals"], 0), task.COUNTED)
        stop = run.step == args.max_steps
        last = stop or epoch == args.num_epochs - 1

        share_buffers(model)
        if pruner is not None:
            pruner.update_params()
        record["train_loss"] = results["loss"]
        record.update(dict.fromkeys(task.MEASURED))
        record.update({key: state[key] for key in ("sparsity", "prunable_sparsity", "threshold")})
        images = (run.step - first_step) * args.batch_size * dist.get_world_size()
        record["images_per_sec"] = images / seconds
        record["seconds"] = seconds
        if last or (epoch + 1) % args.test_period == 0:
            try:
                metric = task.Metric(run.val_loader.dataset)
                tested = evaluate(model, run.val_loader, metric, lambda: stop_testing(run))
            except (ValueError, OSError, Stopped):  # no reason to lose the training
                if main_rank:
                    checkpoint.save(run, state)
                if dist.get_world_size() > 1:
                    dist.barrier()  # once a rank has left, the launcher ends the one that saves
                raise
            finite = (name for name in task.MEASURED if math.isfinite(tested[name]))
            record.update({name: tested[name] for name in finite})  # JSON has no NaN
        finished = run.batch == len(run.train_loader)
        comparable = record[decisive] is not None and finished
        comparable = comparable and (pruner is None or pruner.target_reached())
        record["best"] = comparable and record[decisive] > best
        if main_rank:
            if record["best"]:
                best = record[decisive]
                checkpoint.save_best(run)
            report(run, record)
            if last or (epoch + 1) % args.model_period == 0:
                checkpoint.save(run, {**state, "finished": finished})
        if stop:
            break
        run.totals = None


def train_epoch(run: Run) -> None:
    """One pass over the data, or what is left of it; moves run.step and run.totals."""
    args, task, loader, done = run.args, run.task, run.train_loader, run.batch
    loader.dataset.epoch = run.epoch
    loader.batch_sampler.set_epoch(run.epoch, done)
    run.network.train()
    run.finite = paddle.full([], done, "int64")
    reading, main_rank = 0.0, dist.get_rank() == 0
    batches = loader if done < len(loader) and run.step != args.max_steps else []
    started = waiting = time.perf_counter()
    for batch, (images, *targets) in enumerate(batches, done + 1):
        reading += time.perf_counter() - waiting
        seed_step(run)
        with paddle.amp.auto_cast(enable=args.amp, level="O1"):
            outputs = run.network(images)
            loss = task.loss(outputs, targets)
        run.scaler.scale(loss).backward()
        run.scaler.step(run.opt)  # opt.step() where there is no --amp
        run.scaler.update()
        run.schedule.step()
        if run.pruner is not None:
            run.pruner.step()
        run.opt.clear_grad()
        run.totals += task.counts(outputs, targets, loss)
        run.finite += paddle.isfinite(run.totals[0]).astype("int64")  # once NaN, always NaN
        run.step += 1
        run.bar.update()
        if run.first_losses is not None and len(run.first_losses) < FIRST_STEPS:
            run.first_losses.append(loss.detach())
        if batch % args.log_period == 0:
            check_finite(run)
            if main_rank:
                log(run, batch - done, reading, started)
        stopping = run.stop.agreed()
        if stopping or (args.save_steps and run.step % args.save_steps == 0):
            state = training_state(run)
            if main_rank:
                checkpoint.save(run, state)
        if stopping:
            if dist.get_world_size() > 1:
                dist.barrier()  # once a rank has left, the launcher ends the one that saves
            raise stopped(run, stopping)
        if run.step == args.max_steps:
            break
        waiting = time.perf_counter()


def stopped(run: Run, number: int) -> Stopped:
    return Stopped(
        number,
        f"stopped by {signal.Signals(number).name} after step {run.step}, which is saved; "
        "go on by --resume_epoch latest",
    )


def stop_testing(run: Run) -> None:
    """(Several ranks may have unequal numbers of test batches: they stop at the next step.)"""
    if run.stop.received and dist.get_world_size() == 1:
        raise stopped(run, run.stop.received)


def check_finite(run: Run) -> None:
    """To be called by all ranks, before anything is saved."""
    finite = run.finite.clone()
    if dist.get_world_size() > 1:
        dist.all_reduce(finite, dist.ReduceOp.MIN)
    if int(finite) < run.batch:
        step = run.epoch * len(run.train_loader) + int(finite) + 1
        raise ValueError(
            f"the loss is not finite at step {step}, in epoch {run.epoch}; lower --lr. Go on from "
            f"what was saved in {run.args.model_path}, but for a checkpoint of step {step - 1}"
        )
    for name, weight in run.model.named_parameters():
        if not bool(paddle.isfinite(weight).all()):
            raise ValueError(
                f"{name} is not finite after step {run.step}, in epoch {run.epoch}; lower --lr. "
                f"What was saved before is kept in {run.args.model_path}"
            )


def check_same_masks(run: Run) -> None:
    """All ranks find the same masks from the same weights; if not, they train different models."""
    if run.pruner is None:
        return
    digest = hashlib.sha256()
    for mask in run.pruner.masks.values():
        digest.update(np.packbits(mask.numpy()))
    number = int.from_bytes(digest.digest()[:7], "big")
    if len(set(across_ranks(number))) > 1:
        raise ValueError(f"the ranks' masks differ after step {run.step}: their weights must, too")


def across_ranks(number: int) -> list[int]:
    """The number of every rank."""
    if dist.get_world_size() == 1:
        return [number]
    numbers = []
    dist.all_gather(numbers, paddle.to_tensor([number], dtype="int64"))
    return [int(n[0]) for n in numbers]


def seed_step(run: Run) -> None:
    """Dropout depends on seed, step and rank, not on what ran before."""
    mixed = np.random.SeedSequence((run.seed, run.step, dist.get_rank()))
    paddle.seed(int(mixed.generate_state(1)[0]))


def log(run: Run, batches: int, reading: float, started: float) -> None:
    """A line, on a terminal above the bar: means over the epoch so far, of this rank."""
    result = summarize(run.totals, run.task.COUNTED)  # waits for the device
    seconds = time.perf_counter() - started
    images = batches * run.args.batch_size * dist.get_world_size()
    say(
        f"epoch {run.epoch} batch {run.batch}/{len(run.train_loader)} train "
        f"{listed(result, run.task.COUNTED[:2])}lr {run.opt.get_lr():.3g} "
        f"sparsity {UnstructuredPruner.total_sparse(run.model):.4f} {images / seconds:.0f} images/s"
    )
    say_what_is_lost(run)
    if reading > seconds / 2 and not run.waits:
        run.waits = True
        warn(f"{reading / seconds:.0%} of the time is spent on reading pictures; see --num_workers")
    check_learning_rate(run)


def check_learning_rate(run: Run) -> None:
    """Says once that training began by ruining the weights it started from."""
    if run.first_losses is None:
        return
    losses = [float(loss) for loss in run.first_losses]
    if too_high := is_ruined(losses, run.args.num_classes):
        warn(
            f"the loss rises: --lr {run.args.lr:g} is likely too high for trained weights; "
            f"try {run.args.lr / 100:g}"
        )
    if too_high or len(losses) == FIRST_STEPS:
        run.first_losses = None


def is_ruined(losses: list[float], num_classes: int) -> bool:
    """Whether ten steps in a row are worse than a guess and twice the first two.

    (Of which the second is with the first masks; at --lr 0.05 the third was ruined already.)
    """
    bound = max(2 * float(np.mean(losses[:2] or [0])), math.log(num_classes))
    return any(np.mean(losses[i : i + 10]) > bound for i in range(2, len(losses) - 9))


def say_what_is_lost(run: Run) -> None:
    """Once a layer where output channels have no weight left, and once where none has one."""
    for name, (lost, channels) in run.pruner.lost_channels().items() if run.pruner else ():
        whole = lost == channels
        if whole > run.lost.get(name, -1):
            run.lost[name] = whole
            short = name if len(name) <= 47 else f"...{name[-44:]}"  # a line of 100
            where = "" if whole else f"{lost} of {channels} output channels of "
            say(f"no weight is left in {where}{short}")


def report(run: Run, record: dict) -> None:
    """A finished epoch: a line in metrics.jsonl and one to read."""
    with open(os.path.join(run.args.model_path, checkpoint.METRICS), "a") as metrics:
        metrics.write(json.dumps(record) + "\n")
        metrics.flush()
        os.fsync(metrics.fileno())
    tested = listed(record, run.task.MEASURED)
    say(
        f"epoch {record['epoch']} train loss {record['train_loss']:.3f} "
        f"{'test ' if tested else ''}{tested}"
        f"sparsity {record['sparsity']:.4f}/{record['prunable_sparsity']:.4f} "
        f"{record['seconds']:.0f} s"
    )
    say_what_is_lost(run)
    check_learning_rate(run)


def make_loaders(args, seed: int) -> tuple[Loader, Loader]:
    """Of training and test data; the names of their classes go into `args`."""
    ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    make_dataset, options = TASKS[args.data].make_dataset, argparse.Namespace(**vars(args))
    options.seed = seed
    train_set = make_dataset(options, "train")
    args.classes = options.classes = class_names(train_set)
    val_set = make_dataset(options, "val")
    train_batches = EpochBatchSampler(
        len(train_set), args.batch_size, seed, **ranks, sizes=args.train_sizes
    )
    val_batches = EpochBatchSampler(
        len(val_set), args.batch_size_for_validation, **ranks, shuffle=False, drop_last=False
    )
    return (
        Loader(train_set, train_batches, args.num_workers),
        Loader(val_set, val_batches, args.num_workers),
    )


def make_schedule(args, steps_per_epoch: int) -> lr.LRScheduler:
    """The learning rate as a function of the step alone. (Paddle's cosine is a recursion.)"""
    steps = args.num_epochs * steps_per_epoch
    boundaries = [epoch * steps_per_epoch for epoch in args.step_epochs]

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / args.warmup_steps) if args.warmup_steps else 1.0
        if args.lr_strategy == "cosine_decay":
            return warm * 0.5 * (1 + math.cos(math.pi * step / steps))
        return warm * 0.1 ** sum(step >= boundary for boundary in boundaries)

    return lr.LambdaDecay(args.lr, factor)


def start_gmp(args, model) -> None:
    """Sets --initial_ratio to its default: at a ratio below the sparsity weights would come back.

    Raises:
        ValueError: --stable_epochs, which are dense, would let them come back.
    """
    there = UnstructuredPruner(model, "ratio", ratio=args.ratio, **which_weights(args))
    sparse = there.prunable_sparsity()
    args.initial_ratio = min(max(0.15, sparse), there.ratio)
    if sparse < 0.01:  # a dense network has dead channels at most
        return
    if args.stable_epochs:
        raise ValueError(
            f"the weights are {sparse:.2%} sparse, and --stable_epochs {args.stable_epochs} would "
            "let them come back; leave it out, or give --initial_ratio to have it so"
        )
    say(f"the weights are {sparse:.2%} sparse: gmp starts at {args.initial_ratio:.2%}")
    if sparse > there.ratio:
        warn(f"--ratio {there.ratio:g} is below the sparsity of the weights: some come back")
    elif there.distribution != "global" or there.sparse_block != [1, 1]:
        warn("if other layers or blocks of them are zero than are to be pruned, some come back")


def which_weights(args) -> dict:
    return {
        "prune_params_type": args.prune_params_type,
        "local_sparsity": args.local_sparsity,
        "sparse_block": args.sparse_block,
        "distribution": args.distribution,
    }


def make_pruner(args, model, steps_per_epoch: int) -> UnstructuredPruner | None:
    if args.pruning_mode == "none":
        return None
    options = which_weights(args)
    if args.pruning_strategy == "base":
        return UnstructuredPruner(
            model,
            args.pruning_mode,
            args.threshold,
            args.ratio,
            prune_period=args.prune_period or 1,
            **options,
        )
    configs = {
        "stable_iterations": args.stable_epochs * steps_per_epoch,
        "pruning_iterations": args.pruning_epochs * steps_per_epoch,
        "tunning_iterations": args.tunning_epochs * steps_per_epoch,
        "pruning_steps": args.pruning_steps,
        "initial_ratio": args.initial_ratio,
    }
    return GMPUnstructuredPruner(
        model, args.ratio, configs=configs, prune_period=args.prune_period, **options
    )


def checkpoint_to_resume(args) -> Path | None:
    """The checkpoint folder to resume from, checked against the options; None without resuming."""
    if args.resume_epoch == -1:
        return None
    if args.resume_epoch == "latest":
        folder = checkpoint.find_latest(args.model_path)
        if folder is None:
            return None
        state = checkpoint.read_state(folder)
    else:
        folder = checkpoint.find_epoch(args.pretrained_model, args.resume_epoch)
        state = checkpoint.verify(folder)
        if args.resume_epoch + 1 >= args.num_epochs:
            raise ValueError(
                f"epoch {args.resume_epoch} is the last of --num_epochs {args.num_epochs}; give "
                "more"
            )
    saved = state["options"]
    if args.initial_ratio is None and saved.get("pruning_strategy") == "gmp":
        initial = saved.get("initial_ratio", 0.15)
        if not args.force or initial <= args.ratio:
            args.initial_ratio = initial
    different = different_options(args, saved)
    images = saved.get("batch_size", args.batch_size) * state.get("ranks", 1)
    if images != args.batch_size * dist.get_world_size():
        different.append(f"a global batch of {images}")
    if different and not args.force:
        raise ValueError(
            f"{folder} was trained with {', '.join(different)}; give the same, or --force"
        )
    return folder


def check_same_classes(args, resumed: dict, folder: Path) -> None:
    names = resumed["options"].get("classes")
    if names != args.classes and not args.force:
        raise ValueError(
            f"{folder} was trained with {shortened(names)}, the data set has "
            f"{shortened(args.classes)}; give the same data, or --force"
        )


def training_state(run: Run) -> dict:
    """What train-state.json holds, inside an epoch; to be called by all ranks."""
    check_finite(run)
    totals = [run.totals]
    if dist.get_world_size() > 1:
        totals = []
        dist.all_gather(totals, run.totals)
    args, pruner = run.args, run.pruner
    one = pruner is not None and not args.static_masks and pruner.distribution == "global"
    return {
        "epoch": run.epoch,
        "step": run.step,
        "finished": False,
        "epoch_lr": run.epoch_lr,
        "started_from": run.started_from,
        "totals": [total.tolist() for total in totals],
        "sparsity": UnstructuredPruner.total_sparse(run.model),
        "prunable_sparsity": sparsity(prunable_parameters(run.model)),
        "threshold": float(pruner.threshold) if one else None,
        "masks_ratio": None if pruner is None else pruner.ratio,
        "ranks": dist.get_world_size(),
        "options": vars(args),
        "versions": {
            "paddle": paddle.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def share_buffers(model) -> None:
    """Rank 0's batch statistics for all: the model that is tested is the one that is saved."""
    if dist.get_world_size() > 1:
        for value in model.state_dict().values():
            if value.stop_gradient:
                dist.broadcast(value, src=0)


def check_writable(folder: str) -> None:
    if re.fullmatch(r"epoch-\d+(-step-\d+)?", Path(folder).resolve().name):
        raise ValueError(
            f"--model_path {folder} is the name of a checkpoint; give the folder above"
        )
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to --model_path {folder}: {error.strerror}; give another"
        ) from None


if __name__ == "__main__":
    sys.exit(main())
