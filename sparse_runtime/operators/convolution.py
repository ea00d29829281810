"""Convolutions, fully connected layers among them, and depthwise ones."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .operator import (
    Activated, Activation, Context, Shape, Step, Tensor, Window, Windowed, check_array,
    rows_size,
)  # fmt: skip

DIRECT, COPY, PATCHES, DEPTHWISE = range(4)  # kernels/convolution.h: Producer
DENSE_ROWS = 4  # kernels/convolution.h
MAX_BLOCK = (1 << 16) - 1  # columns or rows of a matrix in a block
MIN_ZEROS, MAX_ZEROS = 0.2, 0.85  # a share of zeros with which a sparse form is not, or surely used
STRIP_ROWS = 8  # of a channel of a depthwise convolution, computed at once
MAX_STRIP = 192 << 10  # bytes of a strip of all channels of one: leaves half of an L2 cache
MAX_TILE = 24 << 10  # bytes of a block of a tile: leaves room for weights in an L1 cache of 32 KB


class DepthwiseFields(ctypes.Structure):
    """kernels/convolution.h says what the fields are."""

    _fields_ = (
        ("in_", Tensor), ("out", Tensor), ("window", Window), ("activation", Activation),
        *[(name, ctypes.c_void_p) for name in ("weights", "bias", "neighbours")],
        ("strip", ctypes.c_int64), ("rows_size", ctypes.c_int64),
    )  # fmt: skip


class Matrix(ctypes.Structure):
    """kernels/convolution.h says what the fields are."""

    _fields_ = (
        *[(name, ctypes.c_int32) for name in (
            "rows", "columns", "block_columns", "chunk_rows", "dense")],
        *[(name, ctypes.c_void_p) for name in (
            "values", "indices", "alike", "order", "starts")],
    )  # fmt: skip


class ConvolutionFields(ctypes.Structure):
    """kernels/convolution.h says what the fields are."""

    _fields_ = (
        ("in_", Tensor), ("out", Tensor), ("residual", Tensor), ("window", Window),
        ("activation", Activation), ("producer", ctypes.c_int32),
        ("before", ctypes.POINTER(DepthwiseFields)), ("rows_size", ctypes.c_int64),
        ("matrix", ctypes.POINTER(Matrix)), ("bias", ctypes.c_void_p),
        *[(name, ctypes.c_int32) for name in ("lanes", "vectors", "groups")],
    )  # fmt: skip

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

    def steps(self, node, inputs, output, context):
        """One for each group."""
        steps = []
        of, count = inputs[0].channels // self.groups, output.channels // self.groups
        for group in range(self.groups):
            rows = slice(group * count, (group + 1) * count)
            op = ConvolutionFields(
                inputs[0].part(group * of, of), output.part(group * count, count),
                window=self.window_fields(), activation=(node.activation or self).activation_fields(),
                bias=context.pointer(self.bias[rows]), groups=1,
            )  # fmt: skip
            if len(inputs) > 1:
                op.residual = inputs[1]
            pointwise = (self.kernel, self.stride, self.padding) == ([1, 1], [1, 1], [0] * 4)
            op.producer = COPY if pointwise else PATCHES
            if node.depthwise is not None:
                op.producer = DEPTHWISE
                between = Tensor(0, 0, output.pictures, of, output.height, output.width)
                op.before = ctypes.pointer(node.depthwise.fields(inputs[0], between, context))
                before = op.before.contents
                before.strip = _strip(of, output, context.lanes)
                op.rows_size = before.rows_size = rows_size(
                    before.window, output, before.strip, context.lanes
                )
            op.lanes = 1 if pointwise and output.pixels == 1 else context.lanes
            step = Step("convolution", op, output, wait=group == self.groups - 1)
            steps.append(step)
        ways = Ways(steps, self.weight, context)
        steps[0].ways, steps[0].choose = ways.possible, ways.choose
        ways.choose(ways.possible[0])
        return steps


class Ways:
    """Forms of the matrix and widths of the tile, by which a convolution can be computed.

    Args:
        steps: one for each group, which take the same way.
    """

    def __init__(self, steps: list[Step], weight: np.ndarray, context: Context):
        self.steps, self.context = steps, context
        self.weights = np.split(np.ascontiguousarray(weight, np.float32), len(steps))
        op = steps[0].op
        vectors = -(-op.out.pixels // op.lanes)
        # Where there are few pixels, threads share out the rows of the matrix: with a part of the
        # pixels each would have to fetch those beside them from another thread's cache.
        groups = (n for n in range(context.threads, 0, -1) if context.threads % n == 0)
        few = vectors < 8 * context.threads
        shares = next(n for n in groups if n * DENSE_ROWS <= op.out.channels or n == 1)
        for step in steps:
            step.op.groups = shares if few else 1
        most = min(vectors, context.max_vectors)
        widths = sorted({min(width, most) for width in (most, 8, 6, 4)}, reverse=True)
        zeros = 1 - np.count_nonzero(weight) / weight.size
        forms = [False] if zeros > MAX_ZEROS else [True] if zeros < MIN_ZEROS else [False, True]
        producers = [op.producer] if op.producer != COPY or op.lanes == 1 else [DIRECT, COPY]
        self.possible = [
            (dense, width, producer)
            for dense in forms for width in widths for producer in producers
        ]  # fmt: skip

    def choose(self, way: tuple[bool, int, int]) -> None:
        """way: whether the matrix is dense, vectors of pixels of a tile, how that is made."""
        dense, width, producer = way
        for step, weight in zip(self.steps, self.weights):
            op, (rows, columns) = step.op, weight.shape
            block = columns if op.lanes == 1 else MAX_TILE // (4 * op.lanes * width)
            block = -(-columns // -(-columns // min(block, MAX_BLOCK)))  # of nearly equal sizes
            chunk = min(MAX_BLOCK, _round_up(-(-rows // op.groups), DENSE_ROWS))
            matrix = Matrix(rows, columns, block, chunk, dense)
            if not dense:
                kept = _encode_sparse(matrix, weight, self.context.library)
            elif op.lanes == 1:
                kept = [weight]
            else:
                kept = [_encode_dense(weight, block)]
            names = ("values", "indices", "alike", "order", "starts")
            for name, array in zip(names, kept):
                setattr(matrix, name, array.ctypes.data)
            step.kept = [matrix, *kept]
            op.matrix, op.vectors, op.producer = ctypes.pointer(matrix), width, producer
            made = block * width * op.lanes
            if producer == DEPTHWISE:
                strip = min(op.before.contents.strip, _round_up(op.out.pixels, op.lanes))
                made = columns * (strip + self.context.lanes)
            elif producer == PATCHES:
                pixels = width * op.lanes
                op.rows_size = rows_size(op.window, op.out, pixels, self.context.lanes)
                made = block * (pixels + self.context.lanes)
            step.scratch = op.rows_size + made + 2 * self.context.lanes


def _encode_sparse(matrix: Matrix, weight: np.ndarray, library) -> list[np.ndarray]:
    """values, indices, alike, order and starts, as kernels/convolution.h describes them."""
    blocks = -(-matrix.columns // matrix.block_columns)
    chunks = -(-matrix.rows // matrix.chunk_rows)
    count = np.count_nonzero(weight) + 1
    arrays = [
        np.empty(count, np.float32), np.empty(count, np.uint16),
        np.empty((blocks * matrix.rows, 2), np.uint16), np.empty(blocks * matrix.rows, np.uint16),
        np.empty((blocks * chunks + 1, 2), np.uint32),
    ]  # fmt: skip
    pointers = (ctypes.c_void_p(array.ctypes.data) for array in [weight, *arrays])
    library.encode_sparse(next(pointers), ctypes.byref(matrix), *pointers)
    return arrays


def _encode_dense(weight: np.ndarray, block: int) -> np.ndarray:
    """As kernels/convolution.h describes it."""
    rows, columns = weight.shape
    padded = np.zeros((_round_up(rows, DENSE_ROWS), columns), np.float32)
    padded[:rows] = weight
    padded = padded.reshape(-1, DENSE_ROWS, columns)
    parts = (padded[:, :, first : first + block] for first in range(0, columns, block))
    return np.concatenate([part.swapaxes(1, 2).ravel() for part in parts])


def _strip(channels: int, output: Tensor, lanes: int) -> int:
    """Pixels of a depthwise convolution's result that are kept in an L2 cache at once."""
    rows = max(1, MAX_STRIP // (4 * channels * output.width))
    return _round_up(rows * output.width, lanes)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


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

    def fields(self, input: Tensor, output: Tensor, context: Context) -> DepthwiseFields:
        op = DepthwiseFields(
            input, output, self.window_fields(), self.activation_fields(),
            context.pointer(self.weight), context.pointer(self.bias),
        )  # fmt: skip
        if (self.kernel, self.stride, self.padding) == ([3, 3], [1, 1], [1] * 4):
            there = context.pointer(_neighbours(input, context.lanes), np.uint16)
            op.neighbours = there + 2 * 4  # bytes of a vector's
        return op

    def steps(self, node, inputs, output, context):
        op = self.fields(inputs[0], output, context)
        op.strip = _round_up(STRIP_ROWS * output.width, context.lanes)
        op.rows_size = rows_size(op.window, output, op.strip, context.lanes)
        return [Step("depthwise", op, output, op.rows_size)]


def _neighbours(tensor: Tensor, lanes: int) -> np.ndarray:
    """[vectors + 2, 4]: bits of the pixels that have one above, below, left and right.

    Those of a vector before and of one behind the picture, too.
    """
    pixels = np.arange(-lanes, _round_up(tensor.pixels, lanes) + lanes)
    y, x = np.divmod(pixels % (tensor.height * tensor.width), tensor.width)
    there = np.stack([y > 0, y < tensor.height - 1, x > 0, x < tensor.width - 1])
    there &= (pixels >= 0) & (pixels < tensor.pixels)
    bits = there.reshape(4, -1, lanes) << np.arange(lanes)
    return bits.sum(2).T
