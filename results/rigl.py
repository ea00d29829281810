"""train.py with RigL, the pruner of docs/rigl.md, to compare it with the others.

    python -m results.rigl 500 --data digits --ratio 0.9 --distribution erk --prune_period 50

The first word is END, the steps until no mask moves. train.py gives a pruner no optimizer: weights
come back with the momentum that they gathered while they were masked.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import paddle

import train
from training.command_line import WrongOption, number, one_line_errors
from unstructured_pruner import UnstructuredPruner


class RigLPruner(UnstructuredPruner):
    """Masks of constant sparsity that move to where the gradients are large."""

    FRACTION, END = 0.3, 1000  # of the kept weights that move at first; steps until none does

    def scores(self, name, param):
        if self.iteration == 0:  # every mask is still 1: the largest weights begin
            return param.abs()
        if param.grad is None:
            raise ValueError(f"{name} has no gradient: call step() before clear_grad()")
        kept = int(self.masks[name].sum())
        progress = min(self.iteration / self.END, 1)
        stay = kept - int(kept * self.FRACTION / 2 * (1 + math.cos(math.pi * progress)))
        size = paddle.where(self.masks[name], param.abs(), -paddle.ones_like(param))
        smallest = size.flatten().sort(descending=True)[stay - 1]
        gradient = paddle.nan_to_num(param.grad).abs()  # not finite: a step that --amp skips
        gradient /= gradient.max() + 1e-30  # at most 1
        return paddle.where(size >= smallest, 2 * paddle.ones_like(param), gradient)


@one_line_errors
def main(argv=None) -> None:
    end, *options = (sys.argv[1:] if argv is None else argv) or [""]
    try:
        RigLPruner.END = number(int, 1)(end)
    except argparse.ArgumentTypeError as error:
        raise WrongOption(f"END, the first word, {error}") from None
    train.main(options, pruner_class=RigLPruner)


if __name__ == "__main__":
    sys.exit(main())
