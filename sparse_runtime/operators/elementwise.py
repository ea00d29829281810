"""What is computed of each value by itself: sums, products, batch normalisation, activations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .operator import Activated, Shape, check_array


@dataclass
class Add(Activated):
    kind: ClassVar[str] = "add"
    INPUTS: ClassVar[int] = 2

    def shape(self, *inputs: Shape) -> Shape:
        self.check_activation()
        if inputs[0] != inputs[1]:
            raise ValueError(f"results of {inputs[0]} and {inputs[1]} cannot be added")
        return inputs[0]


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
