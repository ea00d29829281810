"""The lines that train.py prints, and metrics.jsonl."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist
from tqdm import tqdm

from readers.loader import available_cores
from tasks.lines import listed, say, warn
from tasks.measure import summarize
from training import folders
from training.process import command
from training.run import FIRST_STEPS, Run
from training.tables import fast_products
from training.train_state import STATE, Saved
from unstructured_pruner import UnstructuredPruner, prunable_parameters


def beginning(run: Run, saved: Saved | None) -> None:
    """What is about to be trained and pruned, where it starts and where it will be."""
    args, ranks = run.args, dist.get_world_size()
    gpu = paddle.get_device() != "cpu"
    device = paddle.device.cuda.get_device_name() if gpu else f"CPU, {available_cores()} cores"
    if not gpu and any(name not in os.environ for name in fast_products()):
        hint = " ".join(f"{name}={value}" for name, value in fast_products().items())
        device += f"; `{hint} python ...` is faster on it"
    weights = "random" if not args.use_pretrained else "Paddle's for ImageNet"
    lines = {
        "device": f"{device}{f', {ranks} processes' if ranks > 1 else ''}",
        "data": f"{args.data}, {len(run.train_loader.dataset):,} pictures to train on, "
        f"{len(run.val_loader.dataset):,} to test, "
        f"{'x'.join(map(str, run.task.input_shape(args)))}, {args.num_classes} classes",
        "steps": f"{len(run.train_loader):,} an epoch, {args.batch_size * ranks} pictures each, "
        f"{args.num_epochs} epochs{f', ends at {args.max_steps:,}' if args.max_steps else ''}",
        "model": f"{args.model} of width {args.scale:g}, {_size(run.model):,} parameters",
        "weights": str(saved.folder if saved else args.pretrained_model or weights),
        **({"teacher": args.teacher} if args.teacher else {}),
        "pruned": _what_is_pruned(run),
        "saved in": "no file, as this is a dry run" if args.dry_run else args.model_path,
    }
    say("\n".join(f"{name:9} {text}" for name, text in lines.items()))


def _size(model, names=None) -> int:
    """Elements of all parameters, or of these."""
    tensors = dict(model.named_parameters())
    return sum(math.prod(tensors[name].shape) for name in (tensors if names is None else names))


def _what_is_pruned(run: Run) -> str:
    args, pruner = run.args, run.pruner
    if pruner is None:
        return "nothing"
    weights = _size(run.model, pruner.masks)
    of = (
        f"of {weights:,} weights in {len(pruner.masks)} layers "
        f"({weights / _size(run.model):.1%} of the parameters)"
    )
    if args.static_masks:
        return f"what is 0, {pruner.prunable_sparsity():.2%} {of}"
    by_pattern = isinstance(pruner.distribution, dict)
    how = ", by pattern" if by_pattern else f", {pruner.distribution}".replace(", global", "")
    if args.min_layer_density or args.min_channel_density:
        layer, channel = args.min_layer_density, args.min_channel_density
        how += f"; at least {layer:.2%} of a layer and {channel:.2%} of a channel stay"
    if args.pruning_mode == "threshold":
        return f"what is smaller than {args.threshold:g}, {of}{how}"
    if args.pruning_strategy == "gmp":
        return f"{args.initial_ratio:.2%} rising to {pruner.target_ratio:.2%} {of}{how}"
    return f"{pruner.ratio:.2%} {of}{how}"


def progress_bar(run: Run) -> tqdm:
    """A bar on a terminal, over the steps of all epochs, with the time that is left."""
    return tqdm(
        total=run.last_step,
        initial=run.step,
        unit=" steps",
        smoothing=0,  # the time left follows from all steps, with the tests between them
        disable=None if dist.get_rank() == 0 else True,
    )


def steps(run: Run) -> None:
    """A line, on a terminal above the bar: means over the epoch so far, of this rank."""
    if dist.get_rank() > 0:
        return
    result = summarize(run.totals, run.task.COUNTED)  # waits for the device
    seconds = time.perf_counter() - run.started
    images = (run.step - run.first_step) * run.args.batch_size * dist.get_world_size()
    shown = run.task.COUNTED[:2]
    values = {
        **{name: result[name] for name in shown},
        "lr": run.opt.get_lr(),
        "sparsity": UnstructuredPruner.total_sparse(run.model),
        "images_per_sec": images / seconds,
    }
    say(
        f"epoch {run.epoch} batch {run.batch}/{len(run.train_loader)} train "
        f"{listed(values, shown)}lr {values['lr']:.3g} sparsity {values['sparsity']:.4f} "
        f"{values['images_per_sec']:.0f} images/s"
    )
    if run.logger is not None:
        run.logger.step(run.step, values)
    _warn_of_lost_channels(run)
    if run.seconds_reading > seconds / 2 and not run.warned_of_reading:
        run.warned_of_reading = True
        warn(
            f"{run.seconds_reading / seconds:.0%} of the time is spent on reading pictures; "
            "see --num_workers"
        )
    _warn_of_learning_rate(run)


def epoch(run: Run, record: dict) -> None:
    """A finished epoch: a line in metrics.jsonl, one to read, and --log_to's."""
    if dist.get_rank() > 0:
        return
    folders.add_metrics(run.args.model_path, record)
    if run.logger is not None:
        run.logger.epoch(record, prunable_parameters(run.model))
    tested = listed(record, run.task.MEASURED)
    say(
        f"epoch {record['epoch']} train loss {record['train_loss']:.3f} "
        f"{'test ' if tested else ''}{tested}"
        f"sparsity {record['sparsity']:.4f}/{record['prunable_sparsity']:.4f} "
        f"{record['seconds']:.0f} s"
    )
    average = {name: record.get(f"average_{name}") for name in run.task.MEASURED}
    if averaged := listed(average, run.task.MEASURED):
        say(f"epoch {record['epoch']} average test {averaged.rstrip()}")
    _warn_of_lost_channels(run)
    _warn_of_learning_rate(run)


def end(args) -> None:
    """Where the newest checkpoint is, and the command that measures it."""
    saved = (Path(args.model_path) / STATE).resolve().parent
    data_dir = ["--data_dir", args.data_dir] if args.data_dir else []
    measure = command("evaluate.py", "--pruned_model", args.model_path, *data_dir)
    say(f"saved {saved}; to measure it:\n{measure}")


def _warn_of_lost_channels(run: Run) -> None:
    """Once a layer where output channels have no weight left, and once where none has one."""
    for name, (lost, channels) in run.pruner.lost_channels().items() if run.pruner else ():
        whole = lost == channels
        if whole > run.reported_lost.get(name, -1):
            run.reported_lost[name] = whole
            short = name if len(name) <= 47 else f"...{name[-44:]}"  # a line of 100
            where = "" if whole else f"{lost} of {channels} output channels of "
            say(f"no weight is left in {where}{short}")


def _warn_of_learning_rate(run: Run) -> None:
    """Once, where training began by ruining the weights it started from."""
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
