"""What all operators have in common: their place in the network, activations, windows."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

import numpy as np

if TYPE_CHECKING:
    from .convolution import Ways

Shape = tuple[int, int, int]  # of one picture: channels, height, width
# In the order of kernels/activation.h.
ACTIVATIONS = (
    "none", "relu", "relu6", "leaky_relu", "hard_sigmoid", "hard_swish", "sigmoid", "swish",
)  # fmt: skip


class Tensor(ctypes.Structure):
    """Activations in memory; kernels/step.h says what the fields are."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("pictures", "channels", "height", "width")],
    )

    @property
    def pixels(self) -> int:
        return self.pictures * self.height * self.width

    def part(self, first: int, count: int) -> Tensor:
        """Some of the channels."""
        skipped = 4 * first * self.stride
        return Tensor(
            self.data + skipped, self.stride, self.pictures, count, self.height, self.width
        )


class Activation(ctypes.Structure):
    """kernels/activation.h says what the fields are."""

    _fields_ = (("kind", ctypes.c_int32), ("slope", ctypes.c_float))


class Window(ctypes.Structure):
    """kernels/window.h says what the fields are."""

    _fields_ = tuple((name, ctypes.c_int32) for name in (
        "kernel_height", "kernel_width", "stride_height", "stride_width", "top", "left",
    ))  # fmt: skip


@dataclass
class Step:
    """A call of one of the kernels."""

    function: str
    op: ctypes.Structure
    output: Tensor
    scratch: int = 0  # floats that each thread needs
    wait: bool = True  # whether the next step needs the result
    # Of a convolution: how it can be computed, to choose the quickest.
    ways: Ways | None = None
    kept: list = field(default_factory=list)  # what `op` points to


class Context:
    """The kernels that steps are made for."""

    def __init__(self, library: ctypes.CDLL, threads: int, l1: int):
        self.library, self.threads = library, threads
        self.l1 = l1  # bytes of a core's first cache
        self.lanes, self.max_vectors = library.lanes(), library.max_vectors()
        self.kept = []  # what steps point to
        self.neighbours: dict = {}  # of convolution.py, by the size of the pictures

    def pointer(self, array: np.ndarray, dtype=np.float32) -> int:
        """Its address, or that of a copy; either is kept."""
        array = np.ascontiguousarray(array, dtype)
        self.kept.append(array)
        return array.ctypes.data


@dataclass
class Operator:
    """One operator of a network: its result is made of results before it.

    The network's input has number 0, the result of operator i number i + 1.
    """

    kind: ClassVar[str]
    INPUTS: ClassVar[int | None] = 1  # None: any number
    ARRAYS: ClassVar[dict[str, type]] = {}  # fields that are arrays: their dtype
    inputs: list[int]

    def shape(self, *inputs: Shape) -> Shape:
        """Of the result.

        Raises:
            ValueError: it does not fit these inputs, or this runtime.
        """
        raise NotImplementedError

    def steps(self, node, inputs: list[Tensor], output: Tensor, context: Context) -> list[Step]:
        """What computes it.

        node: planning.Node, with what else is to be computed in these steps.
        """
        raise NotImplementedError

    def weights(self) -> int:
        """Weights, zeros included."""
        return sum(getattr(self, name).size for name in self.ARRAYS)


@dataclass
class Activated(Operator):
    """An operator with an activation function behind it; `slope` is that of leaky_relu below 0."""

    activation: str = "none"
    slope: float = 0.0

    def check_activation(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation {self.activation!r}, not {', '.join(ACTIVATIONS)}")
        if not isfinite(self.slope):
            raise ValueError(f"a slope of {self.slope}")

    def activation_fields(self) -> Activation:
        return Activation(ACTIVATIONS.index(self.activation), self.slope)


MAX_KERNEL = 128
ALIGNMENT = 16  # floats in a cache line
MIN_ROWS = 4096  # floats for Rows of several channels


@dataclass
class Windowed(Operator):
    """An operator with a window that moves over the picture."""

    kernel: list[int] = field(default_factory=lambda: [1, 1])  # height, width
    stride: list[int] = field(default_factory=lambda: [1, 1])
    padding: list[int] = field(default_factory=lambda: [0, 0, 0, 0])  # top, left, bottom, right

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """How many the window has in a picture, from top to bottom and from left to right.

        Raises:
            ValueError: it has none, or is none.
        """
        whole = len(self.kernel) == len(self.stride) == 2 and len(self.padding) == 4
        if not whole or not all(
            1 <= k <= MAX_KERNEL and 1 <= s <= MAX_KERNEL and 0 <= before < k and 0 <= after < k
            for k, s, before, after in zip(
                self.kernel, self.stride, self.padding[:2], self.padding[2:]
            )
        ):
            raise ValueError(
                f"kernel {self.kernel}, stride {self.stride}, padding {self.padding}; possible "
                f"are kernels and strides of 1 to {MAX_KERNEL}, padding below the kernel"
            )
        sizes = zip((height, width), self.kernel, self.stride, self.padding, self.padding[2:])
        found = [(n + before + after - k) // s + 1 for n, k, s, before, after in sizes]
        if min(found) < 1:
            raise ValueError(f"its pictures are {height}x{width}, too small")
        return found[0], found[1]

    def window_fields(self) -> Window:
        return Window(*self.kernel, *self.stride, *self.padding[:2])


def rows_size(window: Window, output: Tensor, pixels: int, lanes: int) -> int:
    """Floats of kernels/window.h: Rows, for that many pixels of the result one after another."""
    rows = min(pixels // output.width + 2, output.height)
    under = (rows - 1) * window.stride_height + window.kernel_height
    used = output.width + (window.kernel_width - 1) // window.stride_width
    phase = -(-(used + lanes) // lanes) * lanes
    needed = under * phase * window.stride_width + ALIGNMENT  # a vector may be stored behind it
    return max(MIN_ROWS, -(-needed // ALIGNMENT) * ALIGNMENT)


def check_array(name: str, array: np.ndarray, *shape: int) -> None:
    """Raises ValueError: it has another shape."""
    if array.shape != shape:
        raise ValueError(f"{name} has the shape {list(array.shape)}, not {list(shape)}")
