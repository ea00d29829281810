"""The options that help the accuracy of a sparse network. Nothing here needs Paddle."""

from __future__ import annotations

import argparse

from training.command_line import Parser, number, refuse_given

OF_CLASSIFIERS = ["teacher", "label_smoothing"]
OF_TEACHER = ["distill_temperature", "distill_weight"]


def add_options(parser: Parser) -> None:
    # fmt: off
    add = parser.add_argument
    add("--teacher", metavar="PATH",
        help="folder, prefix or file of a trained network whose outputs are learned, too")
    add("--distill_temperature", type=number(float, 0.1, 100), default=4.0, metavar="T",
        help="what softens these outputs (default: %(default)s)")
    add("--distill_weight", type=number(float, 0, 1, part=True), default=0.5, metavar="W",
        help="their part of the loss; that of the labels is 1 - W (default: %(default)s)")
    add("--label_smoothing", type=number(float, 0, 1, part=True), default=0.0, metavar="E",
        help="in training, the part of a label that is spread over all classes "
        "(default: %(default)s)")
    add("--ema", type=number(float, 0, 0.999999), metavar="DECAY",
        help="also keep, test and save an average of the weights, like 0.999 (default: none)")
    add("--recalibrate_bn", type=number(int, 0), default=0, metavar="N",
        help="batches over which batch norm's statistics are measured anew after the last epoch "
        "(default: %(default)s)")
    # fmt: on


def check(args: argparse.Namespace, defaults: dict) -> None:
    """As options.check_training()."""
    if args.data == "voc":
        why = "this is for classifiers, not for --data voc"
        refuse_given(args, defaults, OF_CLASSIFIERS, why)
    if args.teacher is None:
        refuse_given(args, defaults, OF_TEACHER, "this needs --teacher")
