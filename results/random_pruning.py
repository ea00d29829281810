"""train.py with weights pruned at random: the floor that every criterion has to beat.

    python -m results.random_pruning --data digits --ratio 0.9

An example of a strategy of one's own in train.py, too: a class in place of UnstructuredPruner.
"""

from __future__ import annotations

import sys
import zlib

import numpy as np
import paddle

import train
from unstructured_pruner import UnstructuredPruner


class RandomPruner(UnstructuredPruner):
    """Prunes the same weights, drawn by lot once, at every step."""

    def scores(self, name, param):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return paddle.to_tensor(rng.random(param.shape, np.float32))


if __name__ == "__main__":
    sys.exit(train.main(pruner_class=RandomPruner))
