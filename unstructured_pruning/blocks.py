"""Weights seen as blocks, which are pruned or kept whole."""

from __future__ import annotations

import math

import numpy as np
import paddle


def size(tensor: paddle.Tensor | np.ndarray | Blocks) -> int:
    return math.prod(tensor.shape)


class Blocks:
    """The rows x columns blocks of a weight seen as the matrix [shape[0], the rest].

    They are ranked by their mean magnitudes, which are computed anew in every pass over them and
    never all there at once. Blocks at the right and lower edge may be smaller.
    """

    def __init__(self, weight: paddle.Tensor, rows: int, columns: int):
        height = weight.shape[0] if weight.shape else 1
        width = size(weight) // height
        self.weight, self.matrix = weight, (height, width)
        self.rows, self.columns = rows, columns = min(rows, height), min(columns, width)
        self.heights = np.minimum(rows, height - np.arange(0, height, rows)).astype("i4")
        self.widths = np.minimum(columns, width - np.arange(0, width, columns)).astype("i4")
        self.shape = [len(self.heights), len(self.widths)]
        self.place, self.is_contiguous = weight.place, weight.is_contiguous


def common_size(weights: list[paddle.Tensor | Blocks]) -> int | None:
    """How many weights each block holds, 1 where there are no blocks; None where they differ."""
    if not isinstance(weights[0], Blocks):
        return 1
    # Of one weight, those of the last row and column alone may differ from the first.
    sizes = {int(b.heights[i] * b.widths[j]) for b in weights for i in (0, -1) for j in (0, -1)}
    return sizes.pop() if len(sizes) == 1 else None
