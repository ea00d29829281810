"""The options of pruning. Nothing here needs Paddle."""

from __future__ import annotations

import argparse

from training.command_line import Parser, WrongOption, boolean, number, refuse_given

DEFAULTS = {"ratio": 0.55, "threshold": 0.01}
INITIAL_RATIO = 0.15  # gmp's, from weights that are not sparse
# Where they are not given, of gmp; others have 0. See initial.densities().
GMP_DENSITIES = {"min_layer_density": 0.01, "min_channel_density": 0.001}
GMP_OPTIONS = ["stable_epochs", "pruning_epochs", "pruning_steps", "initial_ratio"]


def add_options(parser: Parser) -> None:
    # fmt: off
    add = parser.add_argument
    add("--pruning_mode", choices=["ratio", "threshold", "none"], default="ratio",
        help="what decides what is pruned; none trains dense (default: %(default)s)")
    add("--ratio", type=number(float, 0, 1, part=True),
        help=f"fraction of the prunable weights to prune (default: {DEFAULTS['ratio']})")
    add("--threshold", type=number(float, 0),
        help=f"magnitude below which a weight is pruned (default: {DEFAULTS['threshold']})")
    add("--prune_params_type", choices=["conv1x1_only"],
        help="prune just the weights of 1x1 convolutions")
    add("--local_sparsity", type=boolean, nargs="?", const=True, default=False,
        help="ratio mode: every parameter at --ratio, as --distribution uniform")
    add("--sparse_block", type=number(int, 1), nargs=2, default=[1, 1], metavar=("M", "N"),
        help="prune or keep M x N blocks as a whole (default: 1 1)")
    add("--distribution", type=distribution, default="global",
        help="of the ratio: global, uniform, erk, or patterns like 'conv*=0.6,fc.weight=0.9'")
    add("--prune_period", type=number(int, 1),
        help="steps between new masks (default: 1; under gmp whenever the ratio changes)")
    for name, of in (("min_layer_density", "layer"), ("min_channel_density", "output channel")):
        add(f"--{name}", type=number(float, 0, 1, part=True), metavar="PART",
            help=f"part of its weights that every {of} keeps at least (default: 0; "
            f"gmp without --sparse_block: {GMP_DENSITIES[name]:g})")
    add("--freeze_masks_epoch", type=number(int, 1), metavar="N",
        help="from epoch N on the masks stay as they are (default: never; gmp's do after its "
        "rise anyway, but for --prune_period)")
    add("--pruning_strategy", choices=["base", "gmp"], default="base",
        help="gmp: the ratio rises from --initial_ratio to --ratio (default: %(default)s)")
    add("--stable_epochs", type=number(int, 0), default=0,
        help="gmp: dense epochs before the ratio rises (default: %(default)s)")
    add("--pruning_epochs", type=number(int, 0), default=60,
        help="gmp: epochs in which the ratio rises (default: %(default)s)")
    add("--tunning_epochs", type=number(int, 0), default=60,
        help="gmp: upstream's; all that follow the rise are at --ratio")
    add("--pruning_steps", type=number(int, 1), default=100,
        help="gmp: steps in which the ratio rises (default: %(default)s)")
    add("--initial_ratio", type=number(float, 0, 1, part=True),
        help=f"gmp: ratio at the start of the rise (default: {INITIAL_RATIO}; from weights that "
        "are sparser, their sparsity)")
    add("--static_masks", action="store_true",
        help="prune just the zeros that the weights of --pretrained_model hold, and keep them")
    # fmt: on


def check(args: argparse.Namespace, defaults: dict, chosen: list[str]) -> None:
    """As options.check_training()."""

    def refuse(names: list[str], why: str) -> None:
        refuse_given(args, defaults, names, why)

    if args.static_masks and (not args.pretrained_model or args.pruning_mode == "none"):
        raise WrongOption(
            "--static_masks needs --pretrained_model and a --pruning_mode other than none"
        )
    densities = [name for name in GMP_DENSITIES if getattr(args, name)]
    how = ["local_sparsity", "sparse_block", "distribution", "prune_period", *densities,
           "freeze_masks_epoch"]  # fmt: skip
    if args.pruning_mode == "none":
        refuse(
            ["ratio", "threshold", "prune_params_type", *how],
            "nothing is pruned with --pruning_mode none",
        )
    if args.pruning_mode == "ratio":
        refuse(["threshold"], "this needs --pruning_mode threshold")
    if args.pruning_mode == "threshold":
        refuse(["ratio"], "this needs --pruning_mode ratio")
    if args.freeze_masks_epoch is not None and args.freeze_masks_epoch >= args.num_epochs:
        raise WrongOption(
            f"--freeze_masks_epoch {args.freeze_masks_epoch} is after the last epoch of "
            f"--num_epochs {args.num_epochs}; lower it"
        )
    if isinstance(args.distribution, dict):
        refuse(["ratio"], "it follows from the ratios of --distribution")
    if args.sparse_block != [1, 1]:
        refuse(densities, "this needs --sparse_block 1 1")
    if args.static_masks:
        refuse(how, "no new masks are made with --static_masks")
        if chosen:
            raise WrongOption(f"--{chosen[0]}: --static_masks keeps the zeros that are there")
    if args.pruning_strategy != "gmp":
        refuse([*GMP_OPTIONS, "tunning_epochs"], "this needs --pruning_strategy gmp")
    else:
        if args.pruning_mode != "ratio":
            raise WrongOption("--pruning_strategy gmp needs --pruning_mode ratio")
        if args.static_masks:
            raise WrongOption("--pruning_strategy gmp and --static_masks exclude each other")
        if args.stable_epochs + args.pruning_epochs >= args.num_epochs:
            raise WrongOption(
                f"--stable_epochs {args.stable_epochs} and --pruning_epochs {args.pruning_epochs} "
                f"leave none of --num_epochs {args.num_epochs} at --ratio; raise it or lower them"
            )
        reached = args.stable_epochs + args.pruning_epochs
        if args.freeze_masks_epoch is not None and args.freeze_masks_epoch <= reached:
            raise WrongOption(
                f"--freeze_masks_epoch {args.freeze_masks_epoch}: the masks are at --ratio in "
                f"epoch {reached}, the end of the rise; give {reached + 1} or more"
            )


def distribution(text: str) -> str | dict[str, float]:
    if text in ("global", "uniform", "erk"):
        return text
    try:
        pairs = [part.split("=") for part in text.split(",")]
        ratios = {name: number(float, 0, 1, part=True)(ratio) for name, ratio in pairs}
        if len(ratios) < len(pairs):
            raise argparse.ArgumentTypeError(f"{text!r} names a pattern twice")
        return ratios
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be global, uniform, erk or like 'conv*=0.6,fc=0.9', got {text!r}"
        ) from None
