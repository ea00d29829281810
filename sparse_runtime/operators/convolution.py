"""Convolutions, fully connected layers among them, and depthwise ones."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .operator import (
    Activated,
    Activation,
    Context,
    Shape,
    Step,
    Tensor,
    Window,
    Windowed,
    check_array,
    rows_size,
)  # fmt: skip

DIRECT, COPY, PATCHES, DEPTHWISE = range(4)  # kernels/convolution.h: Producer
DENSE_ROWS = 4  # kernels/convolution.h
MAX_CHANNELS = (1 << 16) - 1
MAX_BLOCK = (1 << 16) - 1  # columns or rows of a matrix in a block
# With fewer zeros a matrix is surely quicker in its dense form, with more in its sparse one.
MIN_ZEROS, MAX_ZEROS = 0.1, 0.7
STRIP_ROWS = 8  # of a channel of a depthwise convolution, computed at once
NARROW = 6  # vectors of a tile
VECTORS = 1 << 12  # of `_neighbours` at once: a table of them takes 70 times as much on the way


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
        ("before", ctypes.POINTER(DepthwiseFields)), ("neighbours", ctypes.c_void_p),
        ("rows_size", ctypes.c_int64),
        ("matrix", ctypes.POINTER(Matrix)), ("bias", ctypes.c_void_p),
        *[(name, ctypes.c_int32) for name in ("lanes", "vectors", "groups")],
    )  # fmt: skip


@dataclass
class Weighted(Windowed, Activated):
    """What has a weight and a bias."""

    ARRAYS: ClassVar[dict[str, type]] = {"weight": np.float32, "bias": np.float32}
    weight: np.ndarray = field(default=None)
    bias: np.ndarray = field(default=None)


@dataclass
class Convolution(Weighted):
    """Stands for a fully connected layer, too: one of 1x1 on pictures of one pixel.

    weight: float32 [C_out, C_in / groups * kernel height * kernel width]; bias: float32 [C_out].
    """

    kind: ClassVar[str] = "convolution"
    groups: int = 1

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
                window=self.window_fields(),
                activation=(node.activation or self).activation_fields(),
                bias=context.pointer(self.bias[rows]), lanes=context.lanes,
            )  # fmt: skip
            if len(inputs) > 1:
                op.residual = inputs[1]
            pointwise = (self.kernel, self.stride, self.padding) == ([1, 1], [1, 1], [0] * 4)
            op.producer = DIRECT if pointwise else PATCHES
            if pointwise and output.pixels == 1:
                op.producer, op.lanes = COPY, 1  # each pixel is a channel's
            if node.depthwise is not None:
                op.producer = DEPTHWISE
                between = Tensor(0, 0, output.pictures, of, output.height, output.width)
                op.before = ctypes.pointer(node.depthwise.fields(inputs[0], between, context))
            if op.producer == PATCHES:
                op.neighbours = _neighbours(self, inputs[0], context)
            step = Step("convolution", op, output, wait=group == self.groups - 1)
            steps.append(step)
        ways = Ways(steps, self.weight, context)
        steps[0].ways = ways
        ways.choose(ways.possible[0])
        return steps


class Ways:
    """Forms of the matrix, widths of the tile and shares of threads to compute a convolution by.

    Args:
        steps: one for each group, which take the same way.
    """

    def __init__(self, steps: list[Step], weight: np.ndarray, context: Context):
        self.steps, self.context = steps, context
        self.weights = np.split(np.ascontiguousarray(weight, np.float32), len(steps))
        self.encoded: dict[tuple[bool, int], list] = {}
        op, (rows, columns) = steps[0].op, self.weights[0].shape
        vectors = -(-op.out.pixels // op.lanes)
        # Where there are few pixels, threads may share out the rows of the matrix: each then makes
        # the tiles of all pixels, but a weight is loaded for more of them.
        groups = (n for n in range(context.threads, 0, -1) if context.threads % n == 0)
        shares = next(n for n in groups if n * DENSE_ROWS <= rows or n == 1)
        shared = dict.fromkeys((shares, 1)) if vectors < 8 * context.threads else (1,)
        # All columns of a wide tile in the L1 cache, or a part of those of a narrow one.
        tile = context.l1 // (4 * op.lanes)
        narrow = min(vectors, NARROW)
        wide = min(vectors, context.max_vectors, max(NARROW, tile // columns))
        self.block = columns if op.lanes == 1 else min(columns, max(1, tile // wide))
        self.block = -(-columns // -(-columns // min(self.block, MAX_BLOCK)))  # nearly equal ones
        zeros = 1 - np.count_nonzero(weight) / weight.size
        widths = dict.fromkeys((min(vectors, 8), wide))
        forms = [(False, width) for width in widths] if zeros > MIN_ZEROS else []
        if zeros < MAX_ZEROS:
            forms += [(True, width) for width in dict.fromkeys((narrow, wide))]
        self.possible = [(*form, count) for form in forms for count in shared]
        self.alike = (
            rows, columns, len(steps), op.producer, op.in_.height, op.out.height, op.out.pixels,
            op.window.kernel_height, op.window.stride_height, round(zeros, 1), len(self.possible),
        )  # fmt: skip

    def choose(self, way: tuple[bool, int, int]) -> None:
        """way: whether the matrix is dense, vectors of a tile, threads that share out the rows."""
        dense, width, groups = way
        form = dense, groups
        if form not in self.encoded:
            self.encoded[form] = [self._encode(step.op, weight, dense, groups)
                                  for step, weight in zip(self.steps, self.weights)]  # fmt: skip
        for step, kept in zip(self.steps, self.encoded[form]):
            op, step.kept = step.op, kept
            op.matrix, op.vectors, op.groups = ctypes.pointer(kept[0]), width, groups
            pixels, lanes = width * op.lanes, self.context.lanes
            made = self.block * (pixels + lanes)
            if op.producer == PATCHES:
                op.rows_size = rows_size(op.window, op.out, pixels, lanes)
            step.scratch = op.rows_size + made + 2 * lanes

    def _encode(
        self, op: ConvolutionFields, weight: np.ndarray, dense: bool, groups: int
    ) -> list:  # fmt: skip
        """The matrix, and the arrays that it points to."""
        rows, columns = weight.shape
        chunk = min(MAX_BLOCK, _round_up(-(-rows // groups), DENSE_ROWS))
        matrix = Matrix(rows, columns, self.block, chunk, dense)
        if not dense:
            arrays = _encode_sparse(matrix, weight, self.context.library)
        elif op.lanes == 1:
            arrays = [weight]
        else:
            arrays = [_encode_dense(weight, self.block)]
        for name, array in zip(("values", "indices", "alike", "order", "starts"), arrays):
            setattr(matrix, name, array.ctypes.data)
        return [matrix, *arrays]


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
    groups = -(-rows // DENSE_ROWS)
    matrix = np.zeros(groups * columns * DENSE_ROWS, np.float32)
    for first in range(0, columns, block):
        part = weight[:, first : first + block]
        begin, end = (groups * DENSE_ROWS * at for at in (first, first + part.shape[1]))
        place = matrix[begin:end].reshape(groups, -1, DENSE_ROWS)
        for row in range(DENSE_ROWS):
            place[: len(part[row::DENSE_ROWS]), :, row] = part[row::DENSE_ROWS]
    return matrix


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


@dataclass
class Depthwise(Weighted):
    """weight: float32 [C, kernel height * kernel width]; bias: float32 [C]."""

    kind: ClassVar[str] = "depthwise"

    def shape(self, *inputs: Shape) -> Shape:
        ((channels, height, width),) = inputs
        self.check_activation()
        size = self.positions(height, width)
        check_array("weight", self.weight, channels, self.kernel[0] * self.kernel[1])
        check_array("bias", self.bias, channels)
        return channels, *size

    def fits_a_tile(self) -> bool:
        """Whether it can be computed on the way into a convolution of 1x1."""
        equal = self.stride in ([1, 1], [2, 2])
        return self.kernel == [3, 3] and self.padding == [1] * 4 and equal

    def fields(self, input: Tensor, output: Tensor, context: Context) -> DepthwiseFields:
        op = DepthwiseFields(
            input, output, self.window_fields(), self.activation_fields(),
            context.pointer(self.weight), context.pointer(self.bias),
        )  # fmt: skip
        op.neighbours = _neighbours(self, input, context)
        return op

    def steps(self, node, inputs, output, context):
        op = self.fields(inputs[0], output, context)
        op.strip = _round_up(STRIP_ROWS * output.width, context.lanes)
        op.rows_size = rows_size(op.window, output, op.strip, context.lanes)
        return [Step("depthwise", op, output, op.rows_size)]


def _neighbours(op: Windowed, tensor: Tensor, context: Context) -> int | None:
    """Of 3x3 with stride 1 and padding 1: the pixels that have one above, below, left and right.

    A bit each [vectors + 2, 4], also for a vector before the picture and one behind it; the address
    is that of the first one in it.
    """
    if (op.kernel, op.stride, op.padding) != ([3, 3], [1, 1], [1] * 4):
        return None
    lanes, key = context.lanes, (tensor.pictures, tensor.height, tensor.width)
    if key not in context.neighbours:
        bits = np.empty((-(-tensor.pixels // lanes) + 2, 4), np.uint16)
        for first in range(0, len(bits), VECTORS):
            part = bits[first : first + VECTORS]
            pixels = (first - 1) * lanes + np.arange(len(part) * lanes)
            y, x = np.divmod(pixels % (tensor.height * tensor.width), tensor.width)
            there = np.stack([y > 0, y < tensor.height - 1, x > 0, x < tensor.width - 1])
            there &= (pixels >= 0) & (pixels < tensor.pixels)
            part[:] = (there.reshape(4, -1, lanes) << np.arange(lanes)).sum(2).T
        context.neighbours[key] = context.pointer(bits, np.uint16) + bits[0].nbytes
    return context.neighbours[key]
