"""Going on from a checkpoint: which one, whether the options fit it, and what of it is loaded."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist

from tasks.lines import shortened
from training import checkpoint, folders, pruning, ranks
from training.folders import AVERAGE, MASKS, OPTIMIZER
from training.run import Run
from training.train_state import Saved
from training.trained import classes_of

# Options that decide how a training goes on: a resumed run has to repeat them.
LASTING = """
    data model scale num_classes seed amp lr lr_strategy lr_hold_epochs step_epochs warmup_steps
    l2_decay momentum_rate pruning_mode ratio threshold static_masks prune_params_type
    local_sparsity sparse_block distribution prune_period pruning_strategy image_size train_sizes
    augmentation mixup_epochs fast_convolutions min_layer_density min_channel_density
    freeze_masks_epoch teacher_sha256 distill_temperature distill_weight label_smoothing ema
    recalibrate_bn
""".split()  # noqa: SIM905
# Of those that a checkpoint may not have yet: what it was trained with, and goes on with.
BEFORE = {
    "fast_convolutions": False,
    "lr_hold_epochs": 0,
    "min_layer_density": 0.0,
    "min_channel_density": 0.0,
    "freeze_masks_epoch": None,
    "teacher_sha256": None,
    "label_smoothing": 0.0,
    "ema": None,
    "recalibrate_bn": 0,
}


def find(args) -> Saved | None:
    """The checkpoint to go on from, which fits the options; None: a new training.

    Options that were not given are filled in where their defaults depend on the checkpoint.

    Raises:
        FileNotFoundError, ValueError: it is not there, is damaged, or was trained otherwise.
    """
    if args.resume_epoch == -1:
        saved = None
    elif args.resume_epoch == "latest":
        saved = folders.find_latest(args.model_path)
    else:
        saved = folders.find_epoch(args.pretrained_model, args.resume_epoch)
        if args.resume_epoch + 1 >= args.num_epochs:
            raise ValueError(
                f"epoch {args.resume_epoch} is the last of --num_epochs {args.num_epochs}; give "
                "more"
            )
    fill_in(args, saved)
    if saved:
        different = different_options(args, saved.options)
        if saved.global_batch not in (None, args.batch_size * dist.get_world_size()):
            different.append(f"a global batch of {saved.global_batch}")
        if different and not args.force:
            raise ValueError(
                f"{saved.folder} was trained with {', '.join(different)}; give the same, or --force"
            )
    ranks.check_same_step(saved.step if saved else 0)
    return saved


def fill_in(args, saved: Saved | None) -> None:
    """Sets options that were not given, and so are None, to the checkpoint's."""
    if saved:
        options = {**BEFORE, **saved.options}
        for name in ("fast_convolutions", *pruning.GMP_DENSITIES):
            if getattr(args, name) is None:
                setattr(args, name, options[name])
        if args.initial_ratio is None and options.get("pruning_strategy") == "gmp":
            initial = options.get("initial_ratio", pruning.INITIAL_RATIO)
            if not args.force or initial <= args.ratio:
                args.initial_ratio = initial
    elif args.fast_convolutions is None:
        args.fast_convolutions = True


def different_options(args: argparse.Namespace, saved: dict) -> list[str]:
    """The saved options, as on a command line, that go on otherwise under `args`."""
    saved = {**BEFORE, **saved}
    idle = {"step_epochs"} if args.lr_strategy == "cosine_decay" else set()
    if args.pruning_mode != "ratio" or args.static_masks:
        idle.add("ratio")
    if args.pruning_mode != "threshold" or args.static_masks:
        idle.add("threshold")
    names = [name for name in LASTING if name not in idle]
    if args.lr_strategy == "cosine_decay" or args.pruning_strategy == "gmp":
        names.append("num_epochs")
    if args.pruning_strategy == "gmp":
        names += pruning.GMP_OPTIONS
    names = [n for n in names if n in saved and not same(saved[n], vars(args)[n])]
    return [shown(name, saved) for name in names]


def shown(name: str, saved: dict) -> str:
    """A saved option as on a command line."""
    if saved[name] is None:
        return f"no --{name}".replace("_sha256", "")
    if name != "teacher_sha256":
        return f"--{name} {saved[name]}"
    return f"--teacher {saved.get('teacher')}, whose SHA-256 was {saved[name][:12]}..."


def same(a, b) -> bool:
    return json.dumps(a) == json.dumps(b)  # of patterns the first that matches counts


def is_complete(args, saved: Saved) -> bool:
    """Whether --resume_epoch latest has nothing left to do; the familiar names are then set."""
    if args.resume_epoch != "latest":
        return False
    reached = args.max_steps is not None and saved.step >= args.max_steps
    if reached and saved.step == args.max_steps and not saved.finished:
        reached = saved.epoch in folders.reported(args.model_path)  # else: killed before
    complete = reached or (saved.finished and saved.epoch + 1 >= args.num_epochs)
    if complete and dist.get_rank() == 0 and not args.dry_run:
        folders.link(saved.folder, Path(args.model_path))  # a kill may have prevented it
    return complete


def check_same_classes(args, saved: Saved) -> None:
    names = classes_of(saved)
    if names != args.classes and not args.force:
        raise ValueError(
            f"{saved.folder} was trained with {shortened(names)}, the data set has "
            f"{shortened(args.classes)}; give the same data, or --force"
        )


def position(args, saved: Saved, steps_per_epoch: int) -> dict:
    """Of a Run: epoch, step, and what was counted in the epoch so far.

    Raises:
        ValueError: the checkpoint does not fit this number of steps, or --max_steps.
    """
    steps, rank = steps_per_epoch, dist.get_rank()
    if saved.finished:
        found = {"epoch": saved.epoch + 1, "step": (saved.epoch + 1) * steps}
    else:
        found = {"epoch": saved.epoch, "step": saved.step, "epoch_lr": saved.epoch_lr}
        if not 0 <= saved.step - saved.epoch * steps <= steps:
            raise ValueError(
                f"{saved.folder} is at step {saved.step}, which is not within epoch {saved.epoch} "
                f"of {steps} steps: inside an epoch the data set and the global batch size cannot "
                "change"
            )
        totals = saved.totals
        if totals and len(totals) != dist.get_world_size():  # of other ranks: the first has it all
            totals = [np.sum(totals, 0).tolist()]
        if rank < len(totals):
            found["totals"] = paddle.to_tensor(totals[rank], "float64")
    done = found["step"]
    if args.max_steps is not None and args.max_steps <= done and args.resume_epoch != "latest":
        raise ValueError(f"--max_steps {args.max_steps} were taken before: {done} are done")
    return found


def restore(run: Run, saved: Saved) -> None:
    """Optimizer, masks and average of the checkpoint, of whose weights and position the run is.

    Learning rate, threshold and ratio follow from the options and the step.

    Raises:
        FileNotFoundError, ValueError: files are damaged, or not of this model.
    """
    if run.average is not None and saved.options.get("ema") is not None:
        path = folders.find_weights(saved.folder, AVERAGE)
        checkpoint.load_weights(run.average.network, path, saved)
    checkpoint.load_optimizer(saved.folder / OPTIMIZER, run)
    if run.pruner is not None:
        _restore_pruner(run, saved)


def _restore_pruner(run: Run, saved: Saved) -> None:
    args, pruner, options = run.args, run.pruner, saved.options
    if options.get("pruning_mode") == "none":
        pruner.iteration = run.step
    else:
        state = pruner.state_dict()
        state["masks"] = checkpoint.read_masks(saved.folder / MASKS, pruner.masks)
        state["iteration"] = run.step
        state["static"] = args.static_masks and options.get("static_masks", False)
        if args.pruning_mode == "ratio":
            state["threshold"] = math.inf if saved.threshold is None else saved.threshold
        if args.pruning_strategy == "gmp":
            state["ratio"] = 0.0 if saved.masks_ratio is None else saved.masks_ratio
        pruner.set_state_dict(state)
    if args.static_masks and not pruner.state_dict()["static"]:
        pruner.set_static_masks()
