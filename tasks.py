"""What can be trained: a module each, behind the same doors. (options.py has their options.)

- `DATA`, `MODELS`: names of its data sets and networks
- `num_classes(options)`: of the data set
- `make_dataset`, `make_model`, `loss`; a data set may have `classes`, names in the order of labels
- `input_shape(options)`: [C, H, W] of a test's picture
- `counts`, `COUNTED`: what is counted at every step of training
- `Metric`, `MEASURED`: what is measured on the test set; the first one tells what is best;
  a metric may have `table()` and `show(folder)`, for evaluate.py
"""

from __future__ import annotations

import checkpoint
import classification
import detection
from command_line import WrongOption, nearest

TASKS = {data: task for task in (classification, detection) for data in task.DATA}


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
