"""What moves values and computes none: concatenation, channels, flattening, enlarging."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .operator import Operator, Shape, Step, Tensor

MAX_FACTOR = 64


class Moved(ctypes.Structure):
    _fields_ = (
        ("in_", Tensor), ("out", Tensor), ("channels", ctypes.c_void_p), ("factor", ctypes.c_int32),
    )  # fmt: skip


@dataclass
class Concatenation(Operator):
    """The channels of all inputs behind each other."""

    kind: ClassVar[str] = "concatenation"
    INPUTS: ClassVar[None] = None

    def shape(self, *inputs: Shape) -> Shape:
        if len({shape[1:] for shape in inputs}) != 1:
            raise ValueError(f"pictures of several sizes: {', '.join(map(str, inputs))}")
        return sum(shape[0] for shape in inputs), *inputs[0][1:]

    def steps(self, node, inputs, output, context):
        """Copies what does not lie there already."""
        found, channel = [], 0
        for tensor in inputs:
            part = output.part(channel, tensor.channels)
            if part.data != tensor.data:
                found.append(Step("gather", Moved(tensor, part), part, wait=False))
            channel += tensor.channels
        if found:
            found[-1].wait = True
        return found


@dataclass
class Channels(Operator):
    """Some channels, in any order: `channels`, uint16 [C_out], are their numbers in the input."""

    kind: ClassVar[str] = "channels"
    ARRAYS: ClassVar[dict[str, type]] = {"channels": np.uint16}
    channels: np.ndarray = field(default=None)

    def shape(self, *inputs: Shape) -> Shape:
        if not len(self.channels) or self.channels.max() >= inputs[0][0]:
            raise ValueError(f"channels that an input of {inputs[0]} does not have")
        return len(self.channels), *inputs[0][1:]

    def steps(self, node, inputs, output, context):
        channels = context.pointer(self.channels, np.uint16)
        return [Step("gather", Moved(inputs[0], output, channels), output)]


@dataclass
class Flatten(Operator):
    """A channel for every value: [C, H, W] -> [C * H * W, 1, 1]."""

    kind: ClassVar[str] = "flatten"

    def shape(self, *inputs: Shape) -> Shape:
        channels, height, width = inputs[0]
        return channels * height * width, 1, 1

    def steps(self, node, inputs, output, context):
        return [Step("flatten", Moved(inputs[0], output), output)]


@dataclass
class Upsample(Operator):
    """Each pixel `factor` times in both directions (nearest neighbour)."""

    kind: ClassVar[str] = "upsample"
    factor: int = 2

    def shape(self, *inputs: Shape) -> Shape:
        if not 1 <= self.factor <= MAX_FACTOR:
            raise ValueError(f"a factor of {self.factor}, not 1 to {MAX_FACTOR}")
        channels, height, width = inputs[0]
        return channels, height * self.factor, width * self.factor

    def steps(self, node, inputs, output, context):
        return [Step("upsample", Moved(inputs[0], output, factor=self.factor), output)]
