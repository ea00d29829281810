"""The options of evaluate.py and export.py, of which a checkpoint decides some."""

from __future__ import annotations

from types import ModuleType

from tasks import TASKS, classification
from training.command_line import WrongOption, nearest
from training.options import check_data, fill_in
from training.train_state import Saved


def check_model(args) -> None:
    """Raises WrongOption: there is no such network for this data set."""
    there = TASKS[args.data].MODELS
    if args.model not in there:
        close = nearest(args.model, there)
        hint = f"did you mean {close}?" if close else f"there are {', '.join(there)}"
        raise WrongOption(f"there is no model {args.model!r} for {args.data}; {hint}")


def classes_of(saved: Saved | None, data: str | None = None) -> list[str] | None:
    """Names of the classes of a checkpoint or export; None: they are numbers.

    Early ones of CIFAR-10 and Fashion-MNIST were saved without; their labels mean the same.

    Args:
        data: the name of the data set, where nothing was saved.
    """
    options = saved.options if saved else {"data": data}
    names = options.get("classes")
    if names is None:
        names = getattr(classification.SMALL.get(options.get("data")), "classes", None)
    return None if names is None else list(names)


def complete(args, saved: Saved | None) -> ModuleType:
    """Sets what was not given to what the checkpoint or export was trained with, else to defaults.

    Args:
        args: of parse_evaluation() or parse_export().

    Returns:
        the task.

    Raises:
        ValueError: the options do not fit each other, or not the checkpoint.
    """
    trained = saved.options if saved else {}
    data = args.data or trained.get("data", "cifar10")
    if data not in TASKS:
        raise ValueError(f"there is no data set {data!r}; give --data")
    for name in ("model", "scale", "num_classes", "image_size"):
        own, value = trained.get(name), getattr(args, name)
        if value is None:
            setattr(args, name, own)
        elif own not in (None, value) and name != "image_size":
            raise ValueError(
                f"--{name} {value}: {saved.folder} was trained with --{name} {own}; leave it out"
            )
    args.classes, args.seed = classes_of(saved, data), 0
    fill_in(args, data)
    check_model(args)
    check_data(args)
    args.num_classes = args.num_classes or TASKS[data].num_classes(args)
    return TASKS[data]
