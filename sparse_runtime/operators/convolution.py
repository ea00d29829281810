"""Convolutions, fully connected layers among them, and depthwise ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .operator import Activated, Shape, Windowed, check_array

MAX_CHANNELS = (1 << 16) - 1


@dataclass
class Convolution(Windowed, Activated):
    """Stands for a fully connected layer, too: one of 1x1 on pictures of one pixel.

    weight: float32 [C_out, C_in / groups * kernel height * kernel width]; bias: float32 [C_out].
    """

    kind: ClassVar[str] = "convolution"
    ARRAYS: ClassVar[dict[str, type]] = {"weight": np.float32, "bias": np.float32}
    groups: int = 1
    weight: np.ndarray = field(default=None)
    bias: np.ndarray = field(default=None)

    def shape(self, *inputs: Shape) -> Shape:
        ((channels, height, width),) = inputs
        self.check_activation()
        size = self.positions(height, width)
        count = len(self.bias)
        if self.groups < 1 or channels % self.groups or count % self.groups:
            raise ValueError(f"{self.groups} groups of {channels} channels, {count} behind it")
        if not 0 < count <= MAX_CHANNELS:
            raise ValueError(f"{count} channels, not 1 to {MAX_CHANNELS}")
        columns = channels // self.groups * self.kernel[0] * self.kernel[1]
        check_array("weight", self.weight, count, columns)
        check_array("bias", self.bias, count)
        return count, *size


@dataclass
class Depthwise(Windowed, Activated):
    """weight: float32 [C, kernel height * kernel width]; bias: float32 [C]."""

    kind: ClassVar[str] = "depthwise"
    ARRAYS: ClassVar[dict[str, type]] = {"weight": np.float32, "bias": np.float32}
    weight: np.ndarray = field(default=None)
    bias: np.ndarray = field(default=None)

    def shape(self, *inputs: Shape) -> Shape:
        ((channels, height, width),) = inputs
        self.check_activation()
        size = self.positions(height, width)
        check_array("weight", self.weight, channels, self.kernel[0] * self.kernel[1])
        check_array("bias", self.bias, channels)
        return channels, *size
