"""The largest or the mean value under a window, and the mean over a whole picture."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .operator import Context, Operator, Shape, Step, Tensor, Window, Windowed, rows_size

STRIP_ROWS = 8  # of a channel's result, computed at once: what they are made of fits an L1 cache


class Pool(ctypes.Structure):
    """kernels/pool.cpp says what the fields are."""

    _fields_ = (
        ("in_", Tensor),
        ("out", Tensor),
        ("window", Window),
        ("strip", ctypes.c_int64),
        ("rows_size", ctypes.c_int64),
        ("of_rows", ctypes.c_void_p),
        ("of_columns", ctypes.c_void_p),
    )


@dataclass
class MaxPool(Windowed):
    kind: ClassVar[str] = "max_pool"

    def shape(self, *inputs: Shape) -> Shape:
        ((channels, height, width),) = inputs
        return channels, *self.positions(height, width)

    def steps(self, node, inputs, output, context):
        return [_windows("max_pool", self, inputs[0], output, context)]


@dataclass
class AveragePool(Windowed):
    """The mean of those under the window that lie in the picture."""

    kind: ClassVar[str] = "average_pool"

    def shape(self, *inputs: Shape) -> Shape:
        ((channels, height, width),) = inputs
        return channels, *self.positions(height, width)

    def steps(self, node, inputs, output, context):
        sizes = zip((inputs[0].height, inputs[0].width), (output.height, output.width))
        inside = []
        for axis, (size, positions) in enumerate(sizes):
            begin = np.arange(positions) * self.stride[axis] - self.padding[axis]
            counts = np.minimum(begin + self.kernel[axis], size) - np.maximum(begin, 0)
            inside.append(context.pointer(1 / np.maximum(counts, 1)))
        return [_windows("average_pool", self, inputs[0], output, context, *inside)]


@dataclass
class Mean(Operator):
    """The mean over each channel's pixels."""

    kind: ClassVar[str] = "mean"

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0][0], 1, 1

    def steps(self, node, inputs, output, context):
        return [Step("mean", Pool(inputs[0], output), output)]


def _windows(function: str, op: Windowed, input: Tensor, output: Tensor, context: Context, *inside):
    """A step whose windows see a few rows at a time."""
    window, strip = op.window_fields(), STRIP_ROWS * output.width
    scratch = rows_size(window, output, strip, context.lanes)
    return Step(function, Pool(input, output, window, strip, scratch, *inside), output, scratch)
