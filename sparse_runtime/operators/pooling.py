"""The largest or the mean value under a window, and the mean over a whole picture."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .operator import Operator, Shape, Step, Tensor, Window, Windowed


class Pool(ctypes.Structure):
    """kernels/pool.cpp says what the fields are."""

    _fields_ = (
        ("in_", Tensor),
        ("out", Tensor),
        ("window", Window),
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
        return [Step("max_pool", Pool(inputs[0], output, self.window_fields()), output)]


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
        op = Pool(inputs[0], output, self.window_fields(), *inside)
        return [Step("average_pool", op, output)]


@dataclass
class Mean(Operator):
    """The mean over each channel's pixels."""

    kind: ClassVar[str] = "mean"

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0][0], 1, 1

    def steps(self, node, inputs, output, context):
        return [Step("mean", Pool(inputs[0], output), output)]
