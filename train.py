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

from training.command_line import WrongOption, one_line_errors, start
from training.options import parse_training

parse = partial(parse_training, __doc__)
if __name__ == "__main__":
    ARGS = start(parse)

import argparse
import math
import sys
from pathlib import Path

import paddle
import paddle.distributed as dist
from paddle.optimizer import lr

from readers.loader import Loader
from readers.sampler import EpochBatchSampler
from tasks import TASKS
from tasks.lines import say
from tasks.measure import class_names, evaluate
from training import (
    checkpoint,
    convolutions,
    dry_run,
    folders,
    initial,
    loggers,
    ranks,
    report,
    resume,
)
from training.averaging import Average
from training.objective import Objective, load_teacher
from training.process import set_up_process
from training.run import Run
from training.stopping import check_stopped, evaluation_errors, stoppable
from training.train_state import Saved
from unstructured_pruner import GMPUnstructuredPruner, UnstructuredPruner


@one_line_errors
def main(argv=None, *, pruner_class: type[UnstructuredPruner] = UnstructuredPruner) -> None:
    """
    Args:
        argv: words of the command line, or the options from them; None: the program's own words.
        pruner_class: what prunes, with the constructor of UnstructuredPruner. (With
            --pruning_strategy gmp it has to be left out.)
    """
    args = argv if isinstance(argv, argparse.Namespace) else parse(argv)
    if args.pruning_strategy == "gmp" and pruner_class is not UnstructuredPruner:
        raise WrongOption(f"{pruner_class.__name__} needs --pruning_strategy base")
    set_up_process(args)
    run = set_up(args, pruner_class)
    if run is None:
        return
    if args.dry_run:
        dry_run.tell(run, train_epoch)
        return
    with stoppable(run), report.progress_bar(run) as run.bar:
        train(run)
    report.end(args)


def train(run: Run) -> None:
    args = run.args
    for epoch in range(run.epoch, args.num_epochs):
        run.epoch = epoch
        if args.freeze_masks_epoch is not None and epoch >= args.freeze_masks_epoch:
            run.pruner.freeze_masks()
        run.bar.set_description(f"epoch {epoch} of {args.num_epochs}")
        train_epoch(run)
        record = run.end_epoch()
        run.recalibrate()
        if run.ends or (epoch + 1) % args.test_period == 0:
            record.update(test(run))
        record["best"] = run.is_best(record)
        if record["best"] and dist.get_rank() == 0:
            checkpoint.save_best(run)
        report.epoch(run, record)
        if run.ends or (epoch + 1) % args.model_period == 0:
            checkpoint.save(run, finished=run.epoch_finished)
        if run.ends:
            break
        run.totals = None


def train_epoch(run: Run) -> None:
    """One pass over the data, or what is left of it."""
    args, task, pruner, scaler = run.args, run.task, run.pruner, run.scaler
    for images, *targets in run.batches():
        with paddle.amp.auto_cast(enable=args.amp, level="O1"):
            outputs = run.network(images)
            loss = run.objective(images, outputs, targets)
        scaler.scale(loss).backward()
        scaler.step(run.opt)  # without --amp: opt.step()
        scaler.update()
        if pruner is not None:
            pruner.step()
        if run.average is not None:
            run.average.update(run.step, {} if pruner is None else pruner.masks)
        run.schedule.step()
        run.opt.clear_grad()
        run.count(task.counts(outputs, targets, loss), loss)
        if run.batch % args.log_period == 0:
            run.check_finite()
            report.steps(run)
        if args.save_steps and run.step % args.save_steps == 0:
            checkpoint.save(run)


def test(run: Run) -> dict[str, float]:
    """What the task measures over the test data, also of --ema's average; what is finite of it."""
    found = {}
    with evaluation_errors():
        for prefix, network in run.networks.items():
            metric = run.task.Metric(run.val_loader.dataset)
            tested = evaluate(network, run.val_loader, metric, lambda: check_stopped(run))
            found.update({prefix + name: tested[name] for name in run.task.MEASURED})
    return {name: value for name, value in found.items() if math.isfinite(value)}


def set_up(args, pruner_class: type[UnstructuredPruner]) -> Run | None:
    """None: there is nothing left to do."""
    saved = resume.find(args)
    if saved and resume.is_complete(args, saved):
        say(f"{saved.folder} is the end of this training: nothing is left to do")
        return None
    started_from = saved.started_from if saved else initial.starting_weights(args)
    seed = initial.mixed_seed(args.seed, started_from)
    # What has to be downloaded comes after what can be checked here.
    loaders = make_loaders(args, seed) if args.use_pretrained else None
    paddle.seed(args.seed)  # the same initial weights on every rank
    model = initial.make_model(args, saved)
    if args.fast_convolutions:
        convolutions.use_fast(model)
    train_loader, val_loader = loaders or make_loaders(args, seed)
    if saved:
        resume.check_same_classes(args, saved)
    pruner = make_pruner(args, model, len(train_loader), pruner_class)
    schedule = make_schedule(args, len(train_loader))
    task = TASKS[args.data]
    run = Run(
        args=args,
        task=task,
        objective=Objective(task, args, load_teacher(args)),
        model=model,
        network=model,
        opt=make_optimizer(args, model, schedule),
        schedule=schedule,
        scaler=paddle.amp.GradScaler(enable=args.amp),
        pruner=pruner,
        average=None if args.ema is None else Average(model, args.ema),
        train_loader=train_loader,
        val_loader=val_loader,
        seed=seed,
        started_from=started_from,
        **(resume.position(args, saved, len(train_loader)) if saved else {}),
    )
    if saved:
        resume.restore(run, saved)
    else:
        initial.prepare(run)
    initial.check_static_masks(args, pruner, saved.folder if saved else args.pretrained_model)
    if dist.get_world_size() > 1:
        run.network = paddle.DataParallel(model)
    ranks.barrier()  # every rank has read what the first may move now
    if dist.get_rank() == 0:
        if not args.dry_run:
            make_room(run, saved)
        report.beginning(run, saved)
    return run


def make_room(run: Run, saved: Saved | None) -> None:
    """In --model_path: what an earlier training left there is moved, or gone on with."""
    args = run.args
    here = saved and saved.folder.resolve().parent == Path(args.model_path).resolve()
    again = args.resume_epoch == "latest" and not args.force
    folders.set_aside(args.model_path, saved if here else None, again, args.log_to)
    run.best_result = folders.best_result(args.model_path, run.task.MEASURED[0])
    if args.log_to is not None:
        run.logger = loggers.Logger(args.log_to, args.model_path, run.step, run.epoch)


def make_loaders(args, seed: int) -> tuple[Loader, Loader]:
    """Of training and test data; the names of their classes go into `args`."""
    place = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    make_dataset, options = TASKS[args.data].make_dataset, argparse.Namespace(**vars(args))
    options.seed = seed
    train_set = make_dataset(options, "train")
    args.classes = options.classes = class_names(train_set)
    val_set = make_dataset(options, "val")
    train_batches = EpochBatchSampler(
        len(train_set), args.batch_size, seed, **place, sizes=args.train_sizes
    )
    val_batches = EpochBatchSampler(
        len(val_set), args.batch_size_for_validation, **place, shuffle=False, drop_last=False
    )
    return (
        Loader(train_set, train_batches, args.num_workers),
        Loader(val_set, val_batches, args.num_workers),
    )


def make_optimizer(args, model, schedule: lr.LRScheduler) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.Momentum(
        schedule,
        momentum=args.momentum_rate,
        parameters=model.parameters(),
        weight_decay=paddle.regularizer.L2Decay(args.l2_decay),
    )


def make_schedule(args, steps_per_epoch: int) -> lr.LRScheduler:
    """The learning rate as a function of the step alone. (Paddle's cosine is a recursion.)"""
    steps, hold = (epochs * steps_per_epoch for epochs in (args.num_epochs, args.lr_hold_epochs))
    boundaries = [epoch * steps_per_epoch for epoch in args.step_epochs]

    def factor(step: int) -> float:
        warm = min(1.0, (step + 1) / args.warmup_steps) if args.warmup_steps else 1.0
        if args.lr_strategy == "cosine_decay":
            return warm * 0.5 * (1 + math.cos(math.pi * max(0, step - hold) / (steps - hold)))
        return warm * 0.1 ** sum(step >= boundary for boundary in boundaries)

    return lr.LambdaDecay(args.lr, factor)


def make_pruner(args, model, steps_per_epoch: int, pruner_class) -> UnstructuredPruner | None:
    if args.pruning_mode == "none":
        return None
    which = {
        "prune_params_type": args.prune_params_type,
        "local_sparsity": args.local_sparsity,
        "sparse_block": args.sparse_block,
        "distribution": args.distribution,
    }
    which.update(initial.densities(args, model, **which))
    if args.pruning_strategy == "base":
        return pruner_class(
            model,
            args.pruning_mode,
            threshold=args.threshold,
            ratio=args.ratio,
            prune_period=args.prune_period or 1,
            **which,
        )
    if args.initial_ratio is None:
        args.initial_ratio = initial.gmp_ratio(args, model, **which)
    configs = {
        "stable_iterations": args.stable_epochs * steps_per_epoch,
        "pruning_iterations": args.pruning_epochs * steps_per_epoch,
        "tunning_iterations": args.tunning_epochs * steps_per_epoch,
        "pruning_steps": args.pruning_steps,
        "initial_ratio": args.initial_ratio,
    }
    return GMPUnstructuredPruner(
        model, args.ratio, configs=configs, prune_period=args.prune_period, **which
    )


if __name__ == "__main__":
    sys.exit(main(ARGS))
