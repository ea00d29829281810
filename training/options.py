"""The command lines of train.py, evaluate.py and export.py. Nothing here needs Paddle."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

from training import aids, loggers, pruning
from training.command_line import Parser, WrongOption, boolean, number, refuse_given

DETECTORS = ["yolov3"]
DATA = ["cifar10", "imagenet", "fashion_mnist", "digits", "voc"]
PRETRAINED = ["cifar10", "imagenet", "voc"]  # a training starts from ImageNet weights by default
# Options of some data sets alone.
OWN_OPTIONS = {
    "data_dir": ["cifar10", "imagenet", "fashion_mnist", "voc"],
    "train_sizes": ["voc"],
    "augmentation": ["voc"],
    "mixup_epochs": ["voc"],
}
RUNTIMES = ("paddle", "onnx", "sparse")

# Defaults that the parser leaves to fill_in(): of those that depend on the data set, and of those
# where it matters whether they were given.
DEFAULTS = {
    "model": "mobilenet_v1",
    "scale": 1.0,
    "batch_size": 64,
    "batch_size_for_validation": 64,
    "lr": 0.05,
    "l2_decay": 3e-5,
    "num_epochs": 120,
    "step_epochs": [30, 60, 90],
    "warmup_steps": 0,
    **pruning.DEFAULTS,
}
VOC_DEFAULTS = {  # PaddleDetection's, of yolov3_mobilenet_v1_270e_voc
    "model": "yolov3",
    "batch_size": 8,
    "batch_size_for_validation": 8,
    "lr": 0.001,
    "l2_decay": 5e-4,
    "num_epochs": 270,
    "step_epochs": [216, 243],
    "warmup_steps": 1000,
    "augmentation": "full",
    "mixup_epochs": 250,
    "image_size": 416,
    "train_sizes": [320, 608],
}


def defaults_of(data: str) -> dict:
    return {**DEFAULTS, **(VOC_DEFAULTS if data == "voc" else {})}


def fill_in(args: argparse.Namespace, data: str) -> None:
    """Sets --data, and the defaults of what was not given or is no option of the program."""
    args.data = data
    for name, value in defaults_of(data).items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)


def check_data(args: argparse.Namespace) -> None:
    """Raises WrongOption: an option does not go with --data."""
    for name, others in OWN_OPTIONS.items():
        if args.data not in others and getattr(args, name, None) is not None:
            why = "this needs --data voc"
            raise WrongOption(
                f"--{name}: {why if others == ['voc'] else f'--data {args.data} needs no folder'}"
            )
    if (args.model in DETECTORS) != (args.data == "voc"):
        fitting = ["voc"] if args.model in DETECTORS else [name for name in DATA if name != "voc"]
        raise WrongOption(f"--model {args.model} needs --data {' or '.join(fitting)}")
    if args.data == "voc" and args.image_size % 32:
        raise WrongOption(f"--image_size must be a multiple of 32 for voc, got {args.image_size}")


def parse_training(text: str, argv=None) -> argparse.Namespace:
    """Of train.py, whose docstring is the text.

    Raises:
        WrongOption: they do not go together.
    """
    parser = Parser(text, epilog=other_defaults())
    add_training_options(parser)
    args = parser.parse_args(argv)
    chosen = [name for name in ("ratio", "threshold") if getattr(args, name) is not None]
    fill_in(args, args.data or "cifar10")
    check_data(args)
    check_training(args, {**parser.defaults(), **defaults_of(args.data)}, chosen)
    if args.use_pretrained is None:
        args.use_pretrained = starts_pretrained(vars(args))
    args.classes = None  # their names, where the data set has some
    return args


def starts_pretrained(options: dict) -> bool:
    """The default of --use_pretrained."""
    named = options["data"] in PRETRAINED and not options["pretrained_model"]
    return named and options["scale"] == 1


def parse_evaluation(text: str, argv=None) -> argparse.Namespace:
    """Of evaluate.py; of a checkpoint's own options None are those that were not given."""
    parser = Parser(text)
    add_evaluation_options(parser)
    args = parser.parse_args(argv)
    check_early(args)
    if args.predict and (args.per_layer or args.per_class):
        raise WrongOption("--predict measures nothing: leave --per_layer and --per_class out")
    if args.per_layer and args.runtime:
        raise WrongOption("--per_layer is of a checkpoint's weights: leave --runtime out")
    if args.threads and not args.runtime:
        raise WrongOption("--threads is of --runtime; OMP_NUM_THREADS sets Paddle's own")
    return args


def parse_export(text: str, argv=None) -> argparse.Namespace:
    """Of export.py; of a checkpoint's own options None are those that were not given."""
    parser = Parser(text)
    add_export_options(parser)
    args = parser.parse_args(argv)
    if not args.what_if:
        missing = [f"--{name}" for name in ("format", "out") if not getattr(args, name)]
        if missing:
            raise WrongOption(f"{' and '.join(missing)} must be given, or --what_if")
        if args.pruned_model is None:
            args.pruned_model = "models"
    elif args.format or args.out:
        raise WrongOption("--what_if writes nothing: leave --format and --out out")
    check_early(args)
    return args


def check_early(args: argparse.Namespace) -> None:
    """Raises WrongOption: what is wrong whatever the checkpoint holds."""
    if args.data:
        filled_in = argparse.Namespace(**vars(args))
        fill_in(filled_in, args.data)
        check_data(filled_in)


def add_network_options(parser: Parser, saved: bool = False) -> None:
    """Those of several programs; saved: a checkpoint's own come first."""
    first = "the checkpoint's, else " if saved else ""
    # fmt: off
    add = parser.add_argument
    add("--data", choices=DATA, help=f"data set (default: {first}cifar10)")
    add("--data_dir",
        help="its folder (default: data, data/ILSVRC2012, data/fashion-mnist, data/VOCdevkit)")
    add("--model", metavar="NAME",
        help="a classifier of paddle.vision.models, or yolov3 for voc "
        f"(default: {first}mobilenet_v1, yolov3)")
    add("--scale", type=number(float, 0.01),
        help=f"its width (default: {first}{DEFAULTS['scale']})")
    add("--num_classes", type=number(int, 1),
        help=f"number of classes (default: {first}the data set's)")
    add("--image_size", type=number(int, 1, 4096), metavar="N",
        help="side of the pictures; voc: of a test's "
        f"(default: {first}imagenet 224, voc 416, others 32)")
    # fmt: on


def add_device_options(parser: Parser) -> None:
    # fmt: off
    add = parser.add_argument
    add("--use_gpu", type=boolean, help="true or false (default: whether there is one)")
    add("--num_workers", type=number(int, 0), default=16,
        help="processes that read data, at most one a core (default: %(default)s)")
    # fmt: on


def input_size(text: str) -> int:
    """An argparse type: a side of pictures that YOLOv3 takes."""
    size = number(int, 32, 4096)(text)
    if size % 32:
        raise argparse.ArgumentTypeError(f"must be a multiple of 32, got {size}")
    return size


def add_training_options(parser: Parser) -> None:
    # fmt: off
    add = parser.add_argument
    add_network_options(parser)
    add_device_options(parser)
    add("--log_period", type=number(int, 1), default=100,
        help="batches between log lines (default: %(default)s)")
    add("--log_to", choices=list(loggers.PACKAGES),
        help="also write what is told, in the folder of this name below --model_path")
    add("--batch_size", type=number(int, 1), help=f"per card (default: {DEFAULTS['batch_size']})")
    add("--batch_size_for_validation", type=number(int, 1),
        help=f"(default: {DEFAULTS['batch_size_for_validation']})")
    add("--lr", type=number(float, 0), help=f"learning rate (default: {DEFAULTS['lr']})")
    add("--lr_strategy", choices=["piecewise_decay", "cosine_decay"], default="piecewise_decay",
        help="x0.1 at each of --step_epochs, or a cosine down to 0 (default: %(default)s)")
    add("--lr_hold_epochs", type=number(int, 0), default=0,
        help="cosine_decay: epochs at --lr before the cosine begins (default: %(default)s)")
    add("--step_epochs", type=number(int, 1), nargs="+", metavar="EPOCH",
        help=f"(default: {' '.join(map(str, DEFAULTS['step_epochs']))})")
    add("--warmup_steps", type=number(int, 0),
        help="steps in which the learning rate rises from 0 "
        f"(default: {DEFAULTS['warmup_steps']}, voc: {VOC_DEFAULTS['warmup_steps']})")
    add("--l2_decay", type=number(float, 0), help=f"(default: {DEFAULTS['l2_decay']})")
    add("--momentum_rate", type=number(float, 0, 1), default=0.9, help="(default: %(default)s)")
    add("--num_epochs", type=number(int, 1), help=f"(default: {DEFAULTS['num_epochs']})")
    add("--max_steps", type=number(int, 1), help="stop after so many steps of the whole training")
    pruning.add_options(parser)
    add("--pretrained_model", "--checkpoint", metavar="PATH",
        help="folder, prefix or .pdparams file to start from")
    add("--force", action="store_true",
        help="resume although options differ from those of the checkpoint")
    add("--resume_epoch", "--last_epoch", type=epoch, default=-1, metavar="N",
        help="go on after finished epoch N of --pretrained_model, or 'latest': from the newest "
        "whole checkpoint in --model_path, if there is one (default: a new training)")
    add("--use_pretrained", type=boolean, nargs="?", const=True,
        help="start from Paddle's ImageNet weights (default: true for cifar10, imagenet and voc at "
        "--scale 1 without --pretrained_model)")
    add("--model_path", default="./models", help="where to save (default: %(default)s)")
    add("--model_period", type=number(int, 1), default=10,
        help="epochs between checkpoints (default: %(default)s)")
    add("--save_steps", type=number(int, 1), metavar="STEPS",
        help="steps between checkpoints, also inside an epoch (default: none)")
    add("--keep", type=number(int, 1), metavar="N",
        help="older checkpoints to keep beside the newest (default: all)")
    add("--format", choices=["pdparams", "safetensors"], default="pdparams",
        help="of the saved weights (default: %(default)s)")
    add("--test_period", type=number(int, 1), default=5,
        help="epochs between tests (default: %(default)s)")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0,
        help="seed of all randomness (default: %(default)s)")
    add("--train_sizes", type=input_size, nargs=2, metavar=("MIN", "MAX"),
        help="voc: side of the pictures, another one in each step (default: 320 608)")
    add("--augmentation", choices=["full", "flip"], help="voc: full is distorted colours, expand, "
        "crop, flip and mixup (default: full)")
    add("--mixup_epochs", type=number(int, 0), help="voc: epochs with mixup (default: 250)")
    add("--amp", action="store_true", help="mixed precision (O1), on GPUs")
    add("--dry_run", action="store_true",
        help="say what would be trained and pruned, and what it would cost; write nothing")
    add("--fast_convolutions", type=boolean,
        help="on the CPU: other operators of Paddle for convolutions of small pictures; results "
        "differ in their last digits (default: true; of a resumed run as before)")
    # fmt: on
    aids.add_options(parser)


def check_training(args: argparse.Namespace, defaults: dict, chosen: list[str]) -> None:
    """
    Args:
        defaults: of all options, by name.
        chosen: which of ratio and threshold stand on the command line.

    Raises:
        WrongOption: options do not go together.
    """
    if args.resume_epoch not in (-1, "latest") and not args.pretrained_model:
        raise WrongOption("--resume_epoch needs --pretrained_model, the folder to resume from")
    pruning.check(args, defaults, chosen)
    if args.step_epochs != sorted(set(args.step_epochs)):
        raise WrongOption(f"argument --step_epochs: must increase, got {args.step_epochs}")
    if args.lr_strategy != "cosine_decay":
        why = "this needs --lr_strategy cosine_decay"
        refuse_given(args, defaults, ["lr_hold_epochs"], why)
    if args.lr_hold_epochs >= args.num_epochs:
        raise WrongOption(
            f"--lr_hold_epochs {args.lr_hold_epochs} leaves none of --num_epochs {args.num_epochs} "
            "for the cosine; lower it"
        )
    if args.train_sizes and args.train_sizes[0] > args.train_sizes[1]:
        raise WrongOption("argument --train_sizes: smallest first")
    if args.augmentation == "flip":
        refuse_given(args, defaults, ["mixup_epochs"], "this needs --augmentation full")
    if args.use_pretrained and args.pretrained_model:
        raise WrongOption("--use_pretrained and --pretrained_model exclude each other")
    aids.check(args, defaults)
    loggers.check(args.log_to)


def add_evaluation_options(parser: Parser) -> None:
    # fmt: off
    add = parser.add_argument
    add("--pruned_model", default="models", metavar="PATH",
        help="folder, prefix or .pdparams file (default: %(default)s)")
    add_network_options(parser, saved=True)
    add_device_options(parser)
    add("--batch_size", type=number(int, 1), help=f"(default: {DEFAULTS['batch_size']}, voc: 8)")
    add("--log_period", type=number(int, 1), default=100, help=argparse.SUPPRESS)  # upstream's
    add("--show", metavar="FOLDER", help="voc: draw what is found in the first 100 pictures, or "
        "in those of --predict")
    add("--predict", nargs="+", metavar="PICTURE",
        help="say what is in these pictures; needs no data set")
    add("--json", action="store_true", help="print the results as one line of JSON, and only that")
    add("--per_layer", action="store_true", help="with a table of the layers' sparsity")
    add("--per_class", action="store_true", help="with a table of the classes (voc: always)")
    add("--runtime", choices=RUNTIMES, help="what runs a folder that export.py wrote")
    add("--threads", type=number(int, 1), help="of --runtime (default: 1)")
    # fmt: on


def add_export_options(parser: Parser) -> None:
    # fmt: off
    add = parser.add_argument
    add("--pruned_model", metavar="PATH",
        help="folder, prefix or .pdparams file (default: models; with --what_if random weights)")
    add("--format", choices=RUNTIMES)
    add("--out", type=folder, metavar="DIR", help="may hold its other formats")
    add("--what_if", type=number(float, 0, 1, part=True), nargs="+", metavar="RATIO",
        help="what pruning every layer at these ratios would give here; writes nothing")
    add_network_options(parser, saved=True)
    # fmt: on


def other_defaults() -> str:
    """For the end of --help."""
    words = []
    for name, value in VOC_DEFAULTS.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return textwrap.fill(f"With --data voc the defaults are: {' '.join(words)}", 100)


def epoch(text: str) -> int | str:
    if text == "latest":
        return text
    try:
        return number(int, -1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; or 'latest'") from None


def folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must be a folder, got ''")
    return Path(text)
