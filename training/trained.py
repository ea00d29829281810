"""The options of evaluate.py and export.py, of which a checkpoint decides some."""

from __future__ import annotations

from tasks import TASKS
from training import checkpoint
from training.command_line import WrongOption, nearest


def check_model(options) -> None:
    """Raises WrongOption: there is no such network for this data set."""
    there = TASKS[options.data].MODELS
    if options.model not in there:
        close = nearest(options.model, there)
        hint = f"did you mean {close}?" if close else f"there are {', '.join(there)}"
        raise WrongOption(f"there is no model {options.model!r} for {options.data}; {hint}")


def trained_options(parse, argv, folder) -> tuple:
    """The task, the options, and those that the train-state.json of `folder` tells, which win.

    Args:
        parse: takes the words of the command line, and the data set where they do not name one.

    Raises:
        ValueError: they do not fit each other.
    """
    trained = checkpoint.read_state(folder).get("options", {})
    data = parse(argv).data or trained.get("data", "cifar10")
    if data not in TASKS:
        raise ValueError(f"there is no data set {data!r}; give --data")
    task, options = TASKS[data], parse(argv, data)
    for name in ("model", "scale", "num_classes"):
        known, value = trained.get(name), getattr(options, name)
        if name in options.given and known not in (None, value):
            raise ValueError(
                f"--{name} {value}: {folder} was trained with --{name} {known}; leave it out"
            )
        setattr(options, name, value if known is None else known)
    if "image_size" not in options.given and trained.get("image_size"):
        options.image_size = trained["image_size"]
    options.classes, options.seed = trained.get("classes"), 0
    check_model(options)
    options.num_classes = options.num_classes or task.num_classes(options)
    return task, options, trained
