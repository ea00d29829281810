"""What can be trained: a module each, behind the same doors.

- `DATA`, `MODELS`: names of its data sets and networks
- `DEFAULTS`, `OWN_OPTIONS`: values of options, and options that the others do not have
- `PRETRAINED`: the data sets whose training starts from ImageNet weights
- `num_classes(options)`: of the data set
- `make_dataset`, `make_model`, `loss`; a data set may have `classes`, names in the order of labels
- `input_shape(options)`: [C, H, W] of a test's picture
- `counts`, `COUNTED`: what is counted at every step of training
- `Metric`, `MEASURED`: what is measured on the test set; the first one tells what is best;
  a metric may have `table()` and `show(folder)`, for evaluate.py
"""

from __future__ import annotations

import argparse

import checkpoint
import classification
import detection
from program import boolean, number

TASKS = {data: task for task in (classification, detection) for data in task.DATA}
MODELS = [*classification.MODELS, *detection.MODELS]


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that train.py, evaluate.py and export.py share."""
    # fmt: off
    add = parser.add_argument
    add("--data", choices=list(TASKS), help="data set (default: cifar10)")
    add("--data_dir",
        help="its folder (default: data, data/ILSVRC2012, data/fashion-mnist, data/VOCdevkit)")
    add("--model", choices=MODELS, metavar="NAME", default="mobilenet_v1",
        help="a classifier of paddle.vision.models (default: %(default)s), or yolov3 for voc")
    add("--scale", type=number(float, 0.01), default=1.0, help="its width (default: %(default)s)")
    add("--num_classes", type=number(int, 1), help="number of classes (default: the data set's)")
    add("--image_size", type=number(int, 1, 4096), metavar="N",
        help="side of the pictures; voc: of a test's (default: imagenet 224, voc 416, else 32)")
    add("--use_gpu", type=boolean, help="true or false (default: whether there is one)")
    add("--num_workers", type=number(int, 0), default=16,
        help="processes that read data, at most one a core (default: %(default)s)")
    # fmt: on


def other_defaults() -> str:
    """For the end of --help."""
    words = []
    for name, value in detection.DEFAULTS.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return f"With --data voc the defaults are: {' '.join(words)}"


def input_size(text: str) -> int:
    """An argparse type: a side of pictures that YOLOv3 takes."""
    size = number(int, 32, 4096)(text)
    if size % 32:
        raise argparse.ArgumentTypeError(f"must be a multiple of 32, got {size}")
    return size


def parse(parser: argparse.ArgumentParser, argv, data: str) -> argparse.Namespace:
    """The options, with the defaults for this data set."""
    parser.set_defaults(**TASKS[data].DEFAULTS)
    args = parser.parse_args(argv)
    args.data = data
    if args.model not in TASKS[data].MODELS:
        fitting = [name for name, task in TASKS.items() if args.model in task.MODELS]
        parser.error(f"--model {args.model} needs --data {' or '.join(fitting)}")
    if data in detection.DATA and args.image_size % 32:
        parser.error(f"--image_size must be a multiple of 32 for {data}, got {args.image_size}")
    return args


def trained_options(parser: argparse.ArgumentParser, argv, folder) -> tuple:
    """The task, the options, and those that the train-state.json of `folder` tells, which win.

    Raises:
        ValueError: they do not fit each other.
    """
    args = parser.parse_args(argv)
    trained = checkpoint.read_state(folder).get("options", {})
    data = args.data or trained.get("data", "cifar10")
    if data not in TASKS:
        raise ValueError(f"there is no data set {data!r}; give --data")
    task = TASKS[data]
    known = {key: trained[key] for key in ("model", "scale", "num_classes") if key in trained}
    if args.image_size is None and trained.get("image_size"):
        known["image_size"] = trained["image_size"]
    known["classes"] = trained.get("classes")
    options = argparse.Namespace(**{**vars(parse(parser, argv, data)), **known}, seed=0)
    options.num_classes = options.num_classes or task.num_classes(options)
    return task, options, trained
