"""A program as a process: its device, its ranks, a command to paste."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

import paddle
import paddle.distributed as dist

from tasks import TASKS
from tasks.lines import warn
from training import folders, train_state
from training.command_line import WrongOption
from training.trained import check_model


def set_up_process(args) -> None:
    """Device and ranks of a training, and what of its options can be checked before it is set up.

    --num_classes becomes the data set's where it was not given.

    Raises:
        WrongOption, ValueError, FileNotFoundError: no such model, teacher or device, or
            --model_path cannot be written.
    """
    check_model(args)
    args.num_classes = args.num_classes or TASKS[args.data].num_classes(args)
    args.teacher_sha256 = None  # of its weights, by which a resumed run knows it
    if args.teacher is not None:
        weights = folders.find_weights(args.teacher).resolve()
        here = Path(args.model_path).resolve()
        if weights.parent in (here, *folders.checkpoints(here).values()):
            raise WrongOption(
                f"--teacher {args.teacher} is what an earlier run left in --model_path, where a "
                "new training moves it; give another --model_path"
            )
        args.teacher_sha256 = train_state.sha256(weights)
    set_device(args.use_gpu)
    if args.amp and paddle.get_device() == "cpu":
        raise WrongOption("--amp needs a GPU")
    if args.lr == 0:
        warn("--lr 0: the weights stay as they are, but for pruning")
    if args.pruning_mode == "ratio" and args.ratio == 1:
        warn(f"--ratio {args.ratio}: all prunable weights become 0")
    check_writable(args.model_path, args.dry_run)
    if dist.get_world_size() > 1:
        if paddle.get_device() == "cpu":
            os.environ["PADDLE_DISTRI_BACKEND"] = "gloo"  # also where Paddle was built for GPUs
        dist.init_parallel_env()


def check_writable(folder: str, dry_run: bool) -> None:
    """dry_run: what would hold the folder is looked at; nothing is made."""
    if re.fullmatch(r"epoch-\d+(-step-\d+)?", Path(folder).resolve().name):
        raise ValueError(
            f"--model_path {folder} is the name of a checkpoint; give the folder above"
        )
    try:
        place = Path(folder).absolute()
        if dry_run:
            place = next(path for path in (place, *place.parents) if os.path.lexists(path))
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"cannot write to --model_path {folder}: {error.strerror}; give another"
        ) from None


def command(program: str, *options) -> str:
    """A line for the shell that runs a program of the project, from where the user is."""
    python = os.path.basename(sys.executable)
    if shutil.which(python) != sys.executable:
        python = _seen_from_here(sys.executable)
    path = _seen_from_here(os.path.join(os.path.dirname(os.path.dirname(__file__)), program))
    return shlex.join([python, path, *map(str, options)])


def _seen_from_here(path: str) -> str:
    here = os.path.join(os.getcwd(), "")
    return path[len(here) :] if path.startswith(here) else path


def gpu_there() -> bool:
    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def set_device(use_gpu: bool | None) -> None:
    if use_gpu and not gpu_there():
        why = "no GPU was found" if paddle.is_compiled_with_cuda() else "this Paddle is CPU-only"
        raise WrongOption(f"--use_gpu true, but {why}; use --use_gpu false")
    paddle.set_device("gpu" if use_gpu is not False and gpu_there() else "cpu")
