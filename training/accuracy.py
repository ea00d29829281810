"""The options that help the accuracy of a sparse network. Nothing here needs Paddle."""

from __future__ import annotations

import argparse

from training.command_line import Parser, WrongOption, number

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
    """
    Args:
        defaults: of all options, by name.

    Raises:
        WrongOption: options do not go together.
    """

    def given(names: list[str]) -> str:
        return ", ".join(f"--{name}" for name in names if getattr(args, name) != defaults[name])

    if args.data == "voc" and (names := given(OF_CLASSIFIERS)):
        raise WrongOption(f"{names}: this is for classifiers, not for --data voc")
    if args.teacher is None and (names := given(OF_TEACHER)):
        raise WrongOption(f"{names}: this needs --teacher")
