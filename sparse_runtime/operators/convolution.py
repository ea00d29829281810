"""Convolutions, fully connected layers among them, and depthwise ones."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from .operator import (
    Activated, Activation, Context, Shape, Step, Tensor, Window, Windowed, check_array,
)  # fmt: skip

COPY, PATCHES, DEPTHWISE = range(3)  # kernels/convolution.h: Producer
CHUNK = 64  # kernels/convolution.h: CHUNK
PAIR = np.dtype([("rows", np.uint16, 2), ("both_first_second", np.uint16, 3)])
MAX_TILE = 96 * 8 * 16  # floats of a tile of 8 vectors a row: what an L1 cache holds


class DepthwiseFields(ctypes.Structure):
    """kernels/convolution.h says what the fields are."""

    _fields_ = (
        ("in_", Tensor), ("out", Tensor), ("window", Window), ("activation", Activation),
        *[(name, ctypes.c_void_p) for name in ("weights", "bias", "neighbours")],
    )  # fmt: skip


class ConvolutionFields(ctypes.Structure):
    """kernels/convolution.h says what the fields are."""

    _fields_ = (
        ("in_", Tensor), ("out", Tensor), ("residual", Tensor), ("window", Window),
        ("activation", Activation), ("producer", ctypes.c_int32),
        ("before", ctypes.POINTER(DepthwiseFields)),
        *[(name, ctypes.c_int32) for name in ("rows", "tile_rows", "block_rows", "chunks")],
        *[(name, ctypes.c_void_p) for name in ("values", "indices", "starts", "pairs", "bias")],
        *[(name, ctypes.c_int32) for name in ("lanes", "vectors", "groups", "split")],
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
        for group in range(self.groups):
            of, count = inputs[0].channels // self.groups, output.channels // self.groups
            rows = slice(group * count, (group + 1) * count)
            op = ConvolutionFields(
                inputs[0].part(group * of, of), output.part(group * count, count),
                window=self.window_fields(), activation=(node.activation or self).activation_fields(),
            )  # fmt: skip
            if len(inputs) > 1:
                op.residual = inputs[1]
            pointwise = (self.kernel, self.stride, self.padding) == ([1, 1], [1, 1], [0] * 4)
            op.producer = COPY if pointwise else PATCHES
            if node.depthwise is not None:
                op.producer = DEPTHWISE
                between = Tensor(0, 0, output.pictures, of, output.height, output.width)
                op.before = ctypes.pointer(node.depthwise.fields(inputs[0], between, context))
            step = Step("convolution", op, output, wait=group == self.groups - 1)
            _set_matrix(op, self.weight[rows], self.bias[rows], context)
            _set_tile(step, context)
            if group:
                steps[0].others.append(step)
            steps.append(step)
        return steps


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
            there = _neighbours(input.pictures, input.height, input.width, context.lanes)
            op.neighbours = context.pointer(there, np.uint16)
        return op

    def steps(self, node, inputs, output, context):
        return [Step("depthwise", self.fields(inputs[0], output, context), output)]


def _set_matrix(op: ConvolutionFields, matrix: np.ndarray, bias: np.ndarray, context: Context):
    """All that the order of sums depends on, which neither threads nor tiles change."""
    odd = len(matrix) % 2  # then a row of zeros is added
    op.rows, op.tile_rows = len(matrix) + odd, matrix.shape[1]
    op.chunks = -(-op.rows // CHUNK)
    op.bias = context.pointer(np.pad(bias, (0, odd)))
    op.lanes = 1 if op.out.pixels == 1 and op.producer == COPY else context.lanes
    vectors = -(-op.out.pixels // op.lanes)
    op.split = vectors < 4  # a tile then has so few vectors that sums are kept in parts
    block = 1 << 15 if op.split else MAX_TILE // (op.lanes * min(8, vectors))
    op.block_rows = min(op.tile_rows, block)
    encoded = _by_block(matrix, op.block_rows)
    op.values, op.indices, op.starts, op.pairs = (context.pointer(a, a.dtype) for a in encoded)


def _set_tile(step: Step, context: Context) -> None:
    """How many vectors of pixels a tile has: a guess, and what may be quicker."""
    op = step.op
    vectors = -(-op.out.pixels // op.lanes)
    groups = (g for g in range(context.threads, 0, -1) if context.threads % g == 0)
    # Where there are few pixels, threads share out the rows of the matrix: with a part of the
    # pixels each would have to fetch those beside them from another thread's cache.
    few = vectors < 8 * context.threads
    op.groups = next(g for g in groups if g <= op.chunks) if few else 1
    most = min(vectors, context.max_vectors)
    op.vectors = min(8, most)
    step.scratch = op.block_rows * most * context.lanes + context.lanes
    if most > 4:
        step.ways = list(range(4, most + 1))

    def choose(vectors: int) -> None:
        for each in (step, *step.others):
            each.op.vectors = vectors

    step.choose = choose


def _by_block(matrix: np.ndarray, block: int) -> tuple[np.ndarray, ...]:
    """values, indices, starts and pairs, as kernels/convolution.h describes them."""
    matrix = np.pad(matrix, ((0, len(matrix) % 2), (0, 0)))
    values, indices, pairs, sizes = [], [], [], [np.zeros((1, 2), np.int64)]
    chunk = np.arange(len(matrix)) // CHUNK
    for first in range(0, matrix.shape[1], block):
        part = matrix[:, first : first + block]
        # Rows of a chunk in the order of their numbers of weights: the loop over a pair is then
        # about as long as the one before it, and the processor predicts where it ends.
        order = np.lexsort((np.count_nonzero(part, axis=1), chunk)).reshape(-1, 2)
        weights = part[order]  # [pairs, 2, columns]
        first_row, second_row = np.moveaxis(weights != 0, 1, 0)
        kinds = [first_row & second_row, first_row & ~second_row, second_row & ~first_row]
        kinds = np.stack(kinds, axis=1)  # [pairs, 3, columns]
        pair, kind, column = np.nonzero(kinds)
        values.append(weights[pair, :, column][np.stack([kind < 2, kind != 1], axis=1)])
        indices.append(column)
        counts = np.count_nonzero(kinds, axis=2)
        pairs.append(np.rec.fromarrays([order, counts], PAIR))
        sizes.append(np.stack([counts @ [2, 1, 1], counts.sum(1)], axis=1))
    begin = np.cumsum(np.concatenate(sizes), axis=0)[:-1].reshape(len(pairs), -1, 2)
    return (
        np.concatenate(values).astype(np.float32),
        np.concatenate(indices).astype(np.uint16),
        begin[:, :: CHUNK // 2].astype(np.uint32),
        np.concatenate(pairs),
    )


def _neighbours(batch: int, height: int, width: int, lanes: int) -> np.ndarray:
    """[vectors + 1, 4]: bits of the pixels that have one above, below, left and right."""
    vectors = -(-batch * height * width // lanes)
    pixels = np.arange((vectors + 1) * lanes)
    y, x = np.divmod(pixels % (height * width), width)
    there = np.stack([y > 0, y < height - 1, x > 0, x < width - 1])
    there &= pixels < batch * height * width
    bits = there.reshape(4, -1, lanes) << np.arange(lanes)
    return bits.sum(2).T
