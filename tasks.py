"""What can be trained: a module each, behind the same doors.

CLASSES, MODELS         names of its data sets and networks
num_classes(options)    of the data set
make_dataset, make_model, loss
counts, COUNTED         what is counted at every step of training
Metric, MEASURED        what is measured on the test set; the first one tells what is best
"""

from __future__ import annotations

import argparse

import classification
from program import boolean, number

TASKS = {data: task for task in (classification,) for data in task.CLASSES}
MODELS = [model for task in (classification,) for model in task.MODELS]


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options that train.py and evaluate.py share."""
    add = parser.add_argument
    add("--data", choices=list(TASKS), help="data set (default: cifar10)")
    add("--data_dir", help="its folder (default: data, data/ILSVRC2012, data/fashion-mnist)")
    add("--model", choices=MODELS, metavar="NAME", default="mobilenet_v1",
        help="a classifier of paddle.vision.models (default: %(default)s)")  # fmt: skip
    add("--scale", type=number(float, 0.01), default=1.0, help="its width (default: %(default)s)")
    add("--num_classes", type=number(int, 2), help="number of classes (default: the data set's)")
    add("--use_gpu", type=boolean, help="true or false (default: whether there is one)")
    add("--num_workers", type=number(int, 0), default=16,
        help="processes that read data, at most one a core (default: %(default)s)")  # fmt: skip
