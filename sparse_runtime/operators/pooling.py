"""The largest or the mean value under a window, and the mean over a whole picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .operator import Operator, Shape, Windowed


@dataclass
class MaxPool(Windowed):
    kind: ClassVar[str] = "max_pool"

    def shape(self, *inputs: Shape) -> Shape:
        ((channels, height, width),) = inputs
        return channels, *self.positions(height, width)


@dataclass
class AveragePool(Windowed):
    """The mean of those under the window that lie in the picture."""

    kind: ClassVar[str] = "average_pool"

    def shape(self, *inputs: Shape) -> Shape:
        ((channels, height, width),) = inputs
        return channels, *self.positions(height, width)


@dataclass
class Mean(Operator):
    """The mean over each channel's pixels."""

    kind: ClassVar[str] = "mean"

    def shape(self, *inputs: Shape) -> Shape:
        return inputs[0][0], 1, 1
