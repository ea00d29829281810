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
from program import Loader, add_common_options, boolean, number, one_line_errors, set_device
from sampler import EpochBatchSampler
from unstructured_pruner import (
    GMPUnstructuredPruner,
    UnstructuredPruner,
    prunable_parameters,
    sparsity,
)


def parse_args(argv=None) -> argparse.Namespace:
    # fmt: off
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add_common_options(parser, list(classification.NUM_CLASSES), classification.MODELS)
    add("--log_period", type=number(int, 1), default=100,
        help="batches between log lines (default: %(default)s)")
    add("--batch_size", type=number(int, 1), default=64, help="per card (default: %(default)s)")
    add("--batch_size_for_validation", type=number(int, 1), default=64, help="(%(default)s)")
    add("--lr", type=number(float, 0), default=0.05, help="learning rate (default: %(default)s)")
    add("--lr_strategy", choices=["piecewise_decay", "cosine_decay"], default="piecewise_decay",
        help="x0.1 at each of --step_epochs, or a cosine down to 0 (default: %(default)s)")
    add("--step_epochs", type=number(int, 1), nargs="+", default=[30, 60, 90], metavar="EPOCH",
        help="(default: 30 60 90)")
    add("--l2_decay", type=number(float, 0), default=3e-5, help="(default: %(default)s)")
    add("--momentum_rate", type=number(float, 0, 1), default=0.9, help="(default: %(default)s)")
    add("--num_epochs", type=number(int, 1), default=120, help="(default: %(default)s)")
    add("--max_steps", type=number(int, 1), help="stop after so many steps of the whole training")
    add("--pruning_mode", choices=["ratio", "threshold", "none"], default="ratio",
        help="what decides what is pruned; none trains dense (default: %(default)s)")
    add("--ratio", type=number(float, 0, 1), default=0.55,
        help="fraction of the prunable weights to prune (default: %(default)s)")
    add("--threshold", type=number(float, 0), default=0.01,
        help="magnitude below which a weight is pruned (default: %(default)s)")
    add("--prune_params_type", choices=["conv1x1_only"],
        help="prune just the weights of 1x1 convolutions")
    add("--local_sparsity", type=boolean, nargs="?", const=True, default=False,
        help="ratio mode: every parameter at --ratio, as --distribution uniform")
    add("--sparse_block", type=number(int, 1), nargs=2, default=[1, 1], metavar=("M", "N"),
        help="prune or keep M x N blocks as a whole (default: 1 1)")
    add("--distribution", type=distribution, default="global",
        help="of the ratio: global, uniform, erk, or patterns like 'conv*=0.6,fc.weight=0.9'")
    add("--prune_period", type=number(int, 1),
        help="steps between new masks (default: 1; under gmp whenever the ratio changes)")
    add("--pruning_strategy", choices=["base", "gmp"], default="base",
        help="gmp: the ratio rises from --initial_ratio to --ratio (default: %(default)s)")
    add("--stable_epochs", type=number(int, 0), default=0, help="gmp: dense epochs (%(default)s)")
    add("--pruning_epochs", type=number(int, 0), default=60, help="gmp: of the rise (%(default)s)")
    add("--tunning_epochs", type=number(int, 0), default=60, help="gmp: at --ratio (%(default)s)")
    add("--pruning_steps", type=number(int, 1), default=100, help="gmp: rises (%(default)s)")
    add("--initial_ratio", type=number(float, 0, 1), default=0.15, help="gmp: first (%(default)s)")
    add("--static_masks", action="store_true",
        help="prune just the zeros that the weights of --pretrained_model hold, and keep them")
    add("--pretrained_model", "--checkpoint", metavar="PATH",
        help="folder, prefix or .pdparams file to start from")
    add("--force", action="store_true",
        help="resume although options differ from those of the checkpoint")
    add("--resume_epoch", "--last_epoch", type=int, default=-1, metavar="N",
        help="go on after finished epoch N of --pretrained_model (default: a new training)")
    add("--use_pretrained", type=boolean, nargs="?", const=True,
        help="start from Paddle's ImageNet weights (default: true for cifar10 and imagenet at "
        "--scale 1 without --pretrained_model)")
    add("--model_path", default="./models", help="where to save (default: %(default)s)")
    add("--model_period", type=number(int, 1), default=10, help="epochs a save (%(default)s)")
    add("--test_period", type=number(int, 1), default=5, help="epochs a test (%(default)s)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0,
        help="of all randomness (default: %(default)s)")
    add("--amp", action="store_true", help="mixed precision (O1), on GPUs")
    # fmt: on
    args = parser.parse_args(argv)
    args.data = args.data or "cifar10"
    args.num_classes = args.num_classes or classification.NUM_CLASSES[args.data]
    if args.resume_epoch < -1:
        parser.error(f"argument --resume_epoch: must be an epoch >= 0, got {args.resume_epoch}")
    if args.resume_epoch >= 0 and not args.pretrained_model:
        parser.error("--resume_epoch needs --pretrained_model, the folder to resume from")
    if args.static_masks and (not args.pretrained_model or args.pruning_mode == "none"):
        parser.error("--static_masks needs --pretrained_model and a --pruning_mode other than none")
    if args.pruning_strategy == "gmp":
        if args.pruning_mode != "ratio":
            parser.error("--pruning_strategy gmp needs --pruning_mode ratio")
        if args.static_masks:
            parser.error("--pruning_strategy gmp and --static_masks exclude each other")
        if args.stable_epochs + args.pruning_epochs >= args.num_epochs:
            parser.error(
                f"--stable_epochs {args.stable_epochs} and --pruning_epochs {args.pruning_epochs} "
                f"leave none of --num_epochs {args.num_epochs} at --ratio"
            )
    if args.pruning_mode == "none":
        odd = {"prune_params_type": None, "local_sparsity": False, "sparse_block": [1, 1],
               "distribution": "global", "prune_period": None}  # fmt: skip
        given = [f"--{name}" for name, default in odd.items() if getattr(args, name) != default]
        if given:
            parser.error(f"{', '.join(given)}: nothing is pruned with --pruning_mode none")
    if args.step_epochs != sorted(set(args.step_epochs)):
        parser.error(f"argument --step_epochs: must increase, got {args.step_epochs}")
    if args.use_pretrained and args.pretrained_model:
        parser.error("--use_pretrained and --pretrained_model exclude each other")
    if args.use_pretrained is None:
        args.use_pretrained = (
            args.data in ("cifar10", "imagenet") and args.scale == 1 and not args.pretrained_model
        )
    return args


def distribution(text: str) -> str | dict[str, float]:
    if text in ("global", "uniform", "erk"):
        return text
    try:
        return {name: float(ratio) for name, ratio in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be global, uniform, erk or like 'conv*=0.6,fc=0.9', got {text!r}"
        ) from None


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
    args = parse_args(argv)
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


# Options that decide how a training goes on: a resumed run has to repeat them.
LASTING = """
    data model scale num_classes seed amp lr lr_strategy step_epochs l2_decay momentum_rate
    pruning_mode ratio threshold static_masks prune_params_type local_sparsity sparse_block
    distribution prune_period pruning_strategy
""".split()  # noqa: SIM905
LASTING_GMP = ["stable_epochs", "pruning_epochs", "pruning_steps", "initial_ratio"]


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
    saved, given = state["options"], vars(args)
    names = list(LASTING)
    if args.lr_strategy == "cosine_decay":
        names.append("num_epochs")
    if args.pruning_strategy == "gmp":
        names += LASTING_GMP
    different = [f"--{n} {saved[n]}" for n in names if n in saved and saved[n] != given[n]]
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
