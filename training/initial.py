"""What a new training starts with: weights, the seed that goes with them, gmp's first ratio."""

from __future__ import annotations

import argparse
import hashlib
import sys
from functools import partial

from tasks import TASKS
from tasks.lines import not_loaded, say, warn
from training import checkpoint, folders, pruning, train_state
from training.train_state import Saved
from unstructured_pruner import UnstructuredPruner

MIN_SPARSITY = 0.001  # of weights that were pruned; a dense network has hardly a zero


def starting_weights(args) -> str | None:
    """The SHA-256 of --pretrained_model's weights, a name for Paddle's, or None: random ones."""
    if args.pretrained_model:
        return train_state.sha256(folders.find_weights(args.pretrained_model))
    return f"Paddle's {args.model}" if args.use_pretrained else None


def mixed_seed(seed: int, started_from: str | None) -> int:
    """The seed of order, augmentation and dropout: from random weights the user's own.

    From trained weights another one: with the same one it would see the very batches again that
    these weights were trained on, and learn them by heart.
    """
    if started_from is None:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed} {started_from}".encode()).digest()[:4], "big")


def make_model(args, saved: Saved | None):
    """The network with the weights of the checkpoint, of --pretrained_model, or its first ones."""
    task = TASKS[args.data]
    model = task.make_model(args, args.use_pretrained and not saved)
    if saved:
        checkpoint.load_weights(model, folders.find_weights(saved.folder), saved)
    elif args.pretrained_model:
        path = folders.find_weights(args.pretrained_model)
        other = argparse.Namespace(**{**vars(args), "num_classes": args.num_classes + 1})
        beside = train_state.read(path.resolve().parent)
        make_other = partial(task.make_model, other)
        left_out = checkpoint.load_weights(model, path, beside, make_other)
        if left_out:  # the output layers: it has another number of classes
            dense = " and dense" if args.static_masks else ""
            say(f"{not_loaded(path, left_out)}{dense}", sys.stderr)
    return model


def gmp_ratio(args, model, **which_weights) -> float:
    """The default of --initial_ratio: below the sparsity that is there weights would come back.

    Raises:
        ValueError: --stable_epochs, which are dense, would let them come back.
    """
    pruner = UnstructuredPruner(model, "ratio", ratio=args.ratio, **which_weights)
    sparse = pruner.prunable_sparsity()
    initial_ratio = min(max(pruning.INITIAL_RATIO, sparse), pruner.ratio)
    if sparse < 0.01:  # a dense network has dead channels at most
        return initial_ratio
    if args.stable_epochs:
        raise ValueError(
            f"the weights are {sparse:.2%} sparse, and --stable_epochs {args.stable_epochs} would "
            "let them come back; leave it out, or give --initial_ratio to have it so"
        )
    say(f"the weights are {sparse:.2%} sparse: gmp starts at {initial_ratio:.2%}")
    if sparse > pruner.ratio:
        warn(f"--ratio {pruner.ratio:g} is below the sparsity of the weights: some come back")
    elif pruner.distribution != "global" or pruner.sparse_block != [1, 1]:
        warn("if other layers or blocks of them are zero than are to be pruned, some come back")
    return initial_ratio


def densities(args, model, **which_weights) -> dict[str, float]:
    """The floors of the pruner. gmp's defaults give way, with a line, to a ratio that is too high.

    Raises:
        ValueError: the ratio cannot be met with a floor that was given.
    """
    given = {name: getattr(args, name) for name in pruning.GMP_DENSITIES if getattr(args, name)}
    missing = [name for name in pruning.GMP_DENSITIES if getattr(args, name) is None]
    gmp = args.pruning_strategy == "gmp" and args.sparse_block == [1, 1]
    floors = {name: pruning.GMP_DENSITIES[name] for name in missing if gmp}
    try:
        if floors:
            UnstructuredPruner(model, "ratio", ratio=args.ratio, **which_weights, **given, **floors)
    except ValueError as error:
        if "cannot be met" not in str(error):
            raise
        say(f"gmp's default floors are left out: {error}")
        floors = {}
    for name in missing:
        setattr(args, name, floors.get(name, 0.0))
    return {**given, **floors}


def prepare(run) -> None:
    """The parts of a run that only a new training has: static masks, losses to be looked at."""
    args = run.args
    if args.static_masks:
        run.pruner.set_static_masks()
    # gmp's ratio raises the loss, too, a detector's varies widely, a teacher's is no cross entropy.
    other = args.pruning_strategy == "gmp" or args.data == "voc" or args.teacher is not None
    if run.started_from and args.lr > 0 and not other:
        run.first_losses = []


def check_static_masks(args, pruner, path) -> None:
    """Raises ValueError: the weights of `path` hold no zeros to keep."""
    if args.static_masks and pruner.prunable_sparsity() < MIN_SPARSITY:
        raise ValueError(
            f"--static_masks keeps zeros, but of the weights of {path} "
            f"{pruner.prunable_sparsity():.2%} are 0; give a pruned checkpoint, or leave it out"
        )
