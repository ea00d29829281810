"""What is computed of each value by itself: sums, products, batch normalisation, activations."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .operator import Activated, Activation, Shape, Step, Tensor, check_array


class Binary(ctypes.Structure):
    _fields_ = (("left", Tensor), ("right", Tensor), ("out", Tensor), ("activation", Activation))


class ScaleFields(ctypes.Structure):
    _fields_ = (
        ("in_", Tensor), ("out", Tensor), ("activation", Activation),
        ("scale", ctypes.c_void_p), ("shift", ctypes.c_void_p),
    )  # fmt: skip


@dataclass
class Add(Activated):
    kind: ClassVar[str] = "add"
    INPUTS: ClassVar[int] = 2

    def shape(self, *inputs: Shape) -> Shape:
        self.check_activation()
        if inputs[0] != inputs[1]:
            raise ValueError(f"results of {inputs[0]} and {inputs[1]} cannot be added")
        return inputs[0]

    def steps(self, node, inputs, output, context):
        return [Step("add", Binary(*inputs, output, self.activation_fields()), output)]


@dataclass
class Multiply(Activated):
    """The second input may be one value a channel, [C, 1, 1]."""

    kind: ClassVar[str] = "multiply"
    INPUTS: ClassVar[int] = 2

    def shape(self, *inputs: Shape) -> Shape:
        self.check_activation()
        if inputs[1] not in (inputs[0], (inputs[0][0], 1, 1)):
            raise ValueError(f"a result of {inputs[0]} cannot be multiplied by {inputs[1]}")
        return inputs[0]

    def steps(self, node, inputs, output, context):
        return [Step("multiply", Binary(*inputs, output, self.activation_fields()), output)]


@dataclass
class Scale(Activated):
    """Each channel times its scale, plus its shift (float32 [C] each), and an activation."""

    kind: ClassVar[str] = "scale"
    ARRAYS: ClassVar[dict[str, type]] = {"scale": np.float32, "shift": np.float32}
    scale: np.ndarray = field(default=None)
    shift: np.ndarray = field(default=None)

    def shape(self, *inputs: Shape) -> Shape:
        self.check_activation()
        check_array("scale", self.scale, inputs[0][0])
        check_array("shift", self.shift, inputs[0][0])
        return inputs[0]

    def steps(self, node, inputs, output, context):
        arrays = context.pointer(self.scale), context.pointer(self.shift)
        op = ScaleFields(inputs[0], output, self.activation_fields(), *arrays)
        return [Step("scale", op, output)]
