"""Prunes a network while it trains.

    python train.py --data digits --scale 0.25 --num_epochs 8                     # laptop, a minute
    python train.py --data imagenet --lr 0.05 --pruning_mode threshold --threshold 0.01
    python train.py --data imagenet --lr 0.05 --pruning_mode ratio --ratio 0.55
    python -m paddle.distributed.launch --gpus="0,1,2,3" train.py --data imagenet --batch_size 256
    python train.py --data imagenet --pretrained_model models --resume_epoch 29   # after epoch 29

Options, defaults and file names are those of PaddleSlim's demo; models/README.md tells what is
saved. Epochs count from 0, the batch size is per card, accuracies and sparsities are fractions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
import time
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.optimizer import lr
from tqdm import tqdm

import checkpoint
import classification
from options import different_options, parse_args
from program import Loader, one_line_errors, set_device
from sampler import EpochBatchSampler
from unstructured_pruner import (
    GMPUnstructuredPruner,
    UnstructuredPruner,
    prunable_parameters,
    sparsity,
)


@dataclass
class Run:
    """All that takes part in one training."""

    args: argparse.Namespace
    model: paddle.nn.Layer
    network: paddle.nn.Layer  # the model, or its DataParallel wrapper
    opt: paddle.optimizer.Optimizer
    schedule: lr.LRScheduler  # steps once a batch
    scaler: paddle.amp.GradScaler
    pruner: UnstructuredPruner | None
    train_loader: Loader
    val_loader: Loader


@one_line_errors
def main(argv=None) -> None:
    args = parse_args(argv, __doc__)
    set_device(args.use_gpu)
    if args.amp and paddle.get_device() == "cpu":
        raise ValueError("--amp needs a GPU")
    check_writable(args.model_path)
    if dist.get_world_size() > 1:
        if paddle.get_device() == "cpu":
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"  # also where Paddle was built for GPUs
        dist.init_parallel_env()
    train(set_up(args))


def set_up(args) -> Run:
    resumed = checkpoint_to_resume(args)
    # What has to be downloaded comes after what can be checked here.
    loaders = make_loaders(args) if args.use_pretrained else None
    paddle.seed(args.seed)  # the same initial weights on every rank
    model = classification.make_model(
        args.model, args.scale, args.num_classes, args.use_pretrained, args.data
    )
    if args.pretrained_model and not resumed:
        checkpoint.load_weights(model, checkpoint.find_weights(args.pretrained_model))
    train_loader, val_loader = loaders or make_loaders(args)
    pruner = make_pruner(args, model, len(train_loader))
    schedule = make_schedule(args, len(train_loader))
    opt = paddle.optimizer.Momentum(
        schedule,
        momentum=args.momentum_rate,
        parameters=model.parameters(),
        weight_decay=paddle.regularizer.L2Decay(args.l2_decay),
    )
    scaler = paddle.amp.GradScaler(enable=args.amp)
    run = Run(args, model, model, opt, schedule, scaler, pruner, train_loader, val_loader)
    if resumed:
        checkpoint.load_training(resumed, run, args.resume_epoch)
        done = (args.resume_epoch + 1) * len(train_loader)
        if args.max_steps is not None and args.max_steps <= done:
            raise ValueError(f"--max_steps {args.max_steps} were taken before: {done} are done")
    elif args.static_masks:
        pruner.set_static_masks()
    if dist.get_world_size() > 1:
        run.network = paddle.DataParallel(model)
        dist.barrier()  # every rank has read what the first may move now
    if dist.get_rank() == 0:
        same_run = resumed and resumed.resolve().parent == Path(args.model_path).resolve()
        checkpoint.set_aside(args.model_path, after=args.resume_epoch if same_run else -1)
    return run


def train(run: Run) -> None:
    args, model, pruner = run.args, run.model, run.pruner
    main_rank = dist.get_rank() == 0
    best_top1 = checkpoint.best_top1(args.model_path)
    epochs = range(args.resume_epoch + 1, args.num_epochs)
    for epoch in tqdm(epochs, desc="epochs", disable=None if main_rank else True):
        record = {"epoch": epoch, "lr": run.opt.get_lr()}
        started = time.perf_counter()
        step, totals = train_epoch(run, epoch)
        if dist.get_world_size() > 1:
            dist.all_reduce(totals)
        results = classification.summarize(totals)  # waits for the device
        seconds = time.perf_counter() - started
        if not math.isfinite(results["loss"]):
            raise ValueError(
                f"the loss of epoch {epoch} is {results['loss']}; lower --lr. What was saved "
                f"before is kept in {args.model_path}"
            )
        finished = step == (epoch + 1) * len(run.train_loader)
        stop = step == args.max_steps
        last = stop or epoch == args.num_epochs - 1

        share_buffers(model)
        if pruner is not None:
            pruner.update_params()
        record["train_loss"] = results["loss"]
        record.update(top1=None, top5=None, loss=None)
        record["sparsity"] = UnstructuredPruner.total_sparse(model)
        record["prunable_sparsity"] = sparsity(prunable_parameters(model))
        one = pruner is not None and not args.static_masks and pruner.distribution == "global"
        record["threshold"] = float(pruner.threshold) if one else None
        record["images_per_sec"] = results["samples"] / seconds
        record["seconds"] = seconds
        state = training_state(run, step, finished, record)
        if last or (epoch + 1) % args.test_period == 0:
            try:
                tested = classification.evaluate(model, run.val_loader)
            except (ValueError, OSError):  # a bad test picture is no reason to lose the training
                if main_rank:
                    checkpoint.save(run, epoch, state)
                raise
            record.update(top1=tested["top1"], top5=tested["top5"])
            if math.isfinite(tested["loss"]):  # JSON has no NaN
                record["loss"] = tested["loss"]
        comparable = record["top1"] is not None and (pruner is None or pruner.target_reached())
        record["best"] = comparable and record["top1"] > best_top1
        if main_rank:
            if record["best"]:
                best_top1 = record["top1"]
                checkpoint.save_best(args.model_path, model)
            report(args, record)
            if last or (epoch + 1) % args.model_period == 0:
                checkpoint.save(run, epoch, state)
        if stop:
            break


def train_epoch(run: Run, epoch: int) -> tuple[int, paddle.Tensor]:
    """One pass over the data: the training's step count after it, and the sums of `counts`."""
    args, loader = run.args, run.train_loader
    seed_everything(run, epoch)
    run.network.train()
    step, totals, reading = epoch * len(loader), paddle.zeros([4], "float64"), 0.0
    main_rank = dist.get_rank() == 0
    bar = tqdm(loader, desc=f"epoch {epoch}", disable=None if main_rank else True, leave=False)
    started = waiting = time.perf_counter()
    for batch, (images, labels) in enumerate(bar, 1):
        reading += time.perf_counter() - waiting
        with paddle.amp.auto_cast(enable=args.amp, level="O1"):
            outputs = run.network(images)
            loss = classification.loss(outputs, labels)
        run.scaler.scale(loss).backward()
        run.scaler.step(run.opt)  # opt.step() where there is no --amp
        run.scaler.update()
        run.schedule.step()
        if run.pruner is not None:
            run.pruner.step()
        run.opt.clear_grad()
        totals += classification.counts(outputs, labels, loss)
        step += 1
        if main_rank and batch % args.log_period == 0:
            log(run, epoch, batch, totals, reading, started)
        if step == args.max_steps:
            break
        waiting = time.perf_counter()
    return step, totals


def seed_everything(run: Run, epoch: int) -> None:
    """Order, augmentation and dropout depend on seed and epoch, not on what ran before."""
    run.train_loader.dataset.epoch = epoch
    run.train_loader.batch_sampler.set_epoch(epoch)
    mixed = np.random.SeedSequence((run.args.seed, epoch, dist.get_rank()))
    paddle.seed(int(mixed.generate_state(1)[0]))


def log(run: Run, epoch, batch, totals, reading, started) -> None:
    """A line, on a terminal above the bars: means over the epoch so far, of this rank."""
    result = classification.summarize(totals)  # waits for the device
    seconds = time.perf_counter() - started
    images = result["samples"] * dist.get_world_size()
    tqdm.write(
        f"epoch {epoch} batch {batch}/{len(run.train_loader)} "
        f"loss {result['loss']:.4f} top1 {result['top1']:.4f} top5 {result['top5']:.4f} "
        f"lr {run.opt.get_lr():.6g} images/s {images / seconds:.1f} "
        f"reader {reading / batch:.4f} s batch {seconds / batch:.4f} s "
        f"sparsity {UnstructuredPruner.total_sparse(run.model):.4f}"
    )
    sys.stdout.flush()


def report(args, record: dict) -> None:
    """A finished epoch: a line in metrics.jsonl and one to read."""
    with open(os.path.join(args.model_path, checkpoint.METRICS), "a") as metrics:
        metrics.write(json.dumps(record) + "\n")
    top1 = "" if record["top1"] is None else "top1 {top1:.4f} top5 {top5:.4f} ".format(**record)
    tqdm.write(
        f"epoch {record['epoch']} train_loss {record['train_loss']:.4f} {top1}"
        f"sparsity {record['sparsity']:.4f} prunable {record['prunable_sparsity']:.4f} "
        f"images/s {record['images_per_sec']:.1f} seconds {record['seconds']:.1f}"
    )
    sys.stdout.flush()


def make_loaders(args) -> tuple[Loader, Loader]:
    ranks = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    train_set, val_set = (
        classification.make_dataset(args.data, args.data_dir, mode, args.num_classes, args.seed)
        for mode in ("train", "val")
    )
    train_batches = EpochBatchSampler(len(train_set), args.batch_size, args.seed, **ranks)
    val_batches = EpochBatchSampler(
        len(val_set), args.batch_size_for_validation, **ranks, shuffle=False, drop_last=False
    )
    return (
        Loader(train_set, train_batches, args.num_workers),
        Loader(val_set, val_batches, args.num_workers),
    )


def make_schedule(args, steps_per_epoch: int) -> lr.LRScheduler:
    """The learning rate as a function of the step alone. (Paddle's cosine is a recursion.)"""
    if args.lr_strategy == "cosine_decay":
        steps = args.num_epochs * steps_per_epoch
        return lr.LambdaDecay(args.lr, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    boundaries = [epoch * steps_per_epoch for epoch in args.step_epochs]
    return lr.PiecewiseDecay(boundaries, [args.lr * 0.1**i for i in range(len(boundaries) + 1)])


def make_pruner(args, model, steps_per_epoch: int) -> UnstructuredPruner | None:
    if args.pruning_mode == "none":
        return None
    options = {
        "prune_params_type": args.prune_params_type,
        "local_sparsity": args.local_sparsity,
        "sparse_block": args.sparse_block,
        "distribution": args.distribution,
    }
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
    if args.resume_epoch < 0:
        return None
    folder = checkpoint.find_epoch(args.pretrained_model, args.resume_epoch)
    state = checkpoint.read_state(folder)
    if not state.get("finished"):
        raise ValueError(f"{folder} was cut short by --max_steps and cannot be resumed")
    if args.resume_epoch + 1 >= args.num_epochs:
        raise ValueError(
            f"epoch {args.resume_epoch} is the last of --num_epochs {args.num_epochs}; give more"
        )
    saved = state["options"]
    different = different_options(args, saved)
    images = saved.get("batch_size", args.batch_size) * state.get("ranks", 1)
    if images != args.batch_size * dist.get_world_size():
        different.append(f"a global batch of {images}")
    if different and not args.force:
        raise ValueError(
            f"{folder} was trained with {', '.join(different)}; give the same, or --force"
        )
    return folder


def training_state(run: Run, step: int, finished: bool, record: dict) -> dict:
    """What train-state.json holds besides the epoch. The random state is seed and epoch."""
    return {
        "step": step,
        "finished": finished,
        **{key: record[key] for key in ("sparsity", "prunable_sparsity", "threshold")},
        "masks_ratio": None if run.pruner is None else run.pruner.ratio,
        "ranks": dist.get_world_size(),
        "options": vars(run.args),
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
