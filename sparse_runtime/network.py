"""Runs a sparse network on the CPU with the kernels in kernels/."""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path

import numpy as np

from . import build, model_file
from .model_file import Model, Operator

POOL, DEPTHWISE, PATCHES, COPY = range(4)  # kernels/layer.h: Kind
CHUNK = 64  # kernels/layer.h: CHUNK
PAIR = np.dtype([("rows", np.uint16, 2), ("both_first_second", np.uint16, 3)])  # kernels/layer.h
MAX_TILE = 96 * 8 * 16  # floats of a tile of 8 vectors a row: what an L1 cache holds
MAX_CACHED = 3 << 19  # floats of a layer's input and output; with more fewer pictures run at once
ALIGNMENT = 16  # floats in a cache line


class Layer(ctypes.Structure):
    """kernels/layer.h says what the fields are."""

    _fields_ = (
        *[(name, ctypes.c_int32) for name in (
            "kind", "batch", "in_channels", "in_height", "in_width", "out_height", "out_width",
            "kernel", "stride", "padding")],
        ("in_channel_stride", ctypes.c_int64),
        ("in_batch_stride", ctypes.c_int64),
        *[(name, ctypes.c_void_p) for name in ("in_", "depthwise_weights", "depthwise_bias")],
        ("depthwise_relu", ctypes.c_int32),
        ("neighbours", ctypes.c_void_p),
        *[(name, ctypes.c_int32) for name in ("rows", "tile_rows", "block_rows", "chunks", "relu")],
        *[(name, ctypes.c_void_p) for name in (
            "values", "indices", "starts", "pairs", "bias", "out")],
        ("out_stride", ctypes.c_int64),
        *[(name, ctypes.c_int32) for name in ("lanes", "vectors", "groups", "split")],
    )  # fmt: skip


class Network:
    """A network that was exported for this runtime.

    Args:
        model: path of the file, or a Model.
        batch: pictures at once, at most.
        threads: how many run it, the calling one included.
        instruction_set: "avx512", "avx2" or "plain"; None: the best that the machine has.
        tune: measure the ways to cut each layer into tiles, about 0.2 s; the result is the same.

    Two threads may call it: one waits for the other.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is damaged, or the kernels cannot
            be compiled.
        MemoryError: weights and activations do not fit the memory.
    """

    def __init__(
        self, model: str | Path | Model, batch: int = 1, threads: int = 1,
        instruction_set: str | None = None, tune: bool = True,
    ):  # fmt: skip
        if batch < 1 or threads < 1:
            raise ValueError(f"batch and threads must be at least 1, got {batch} and {threads}")
        model = model if isinstance(model, Model) else model_file.read(model)
        self._library = build.library(instruction_set)
        self._library.start_threads.restype = ctypes.c_void_p
        self._library.end_threads.argtypes = [ctypes.c_void_p]
        self._library.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        self._library.run.restype = ctypes.c_bool
        self.lanes = self._library.lanes()
        self.batch = batch
        sizes = [channels * height * width for channels, height, width in model_file.shapes(model)]
        max_pictures = MAX_CACHED // max(map(sum, zip(sizes, sizes[1:])))
        parts = -(-batch // max(1, max_pictures))
        self.shape = (-(-batch // parts), *model.input_shape)  # of what is computed at once
        self.threads = threads
        self._lock = threading.Lock()
        self._kept = []  # arrays that layers point to
        self._layers, matrices = self._plan(model)
        self._pool = self._library.start_threads(threads)
        if self._pool is None:
            raise ValueError(f"could not start {threads} threads")
        for i, matrix in enumerate(matrices):
            if matrix is not None:
                self._set_matrix(self._layers[i], matrix)
                self._choose_tile(i, tune)

    def __del__(self):
        if getattr(self, "_pool", None):
            self._library.end_threads(self._pool)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float32 [up to batch, C, H, W] -> float32 [same, classes] (or [same, C, H, W])."""
        images = np.asarray(images, np.float32)
        if images.shape[1:] != self.shape[1:] or not 0 < len(images) <= self.batch:
            raise ValueError(
                f"images must be [up to {self.batch}, {', '.join(map(str, self.shape[1:]))}], "
                f"got {list(images.shape)}"
            )
        computed = self._output.swapaxes(0, 1)
        outputs = np.empty((len(images), *computed.shape[1:]), np.float32)
        with self._lock:
            for i in range(0, len(images), len(computed)):
                part = images[i : i + len(computed)]
                self._input[: len(part)] = part
                self._run(0, len(self._layers))
                outputs[i : i + len(part)] = computed[: len(part)]
        return outputs

    def _run(self, first: int, number: int) -> None:
        begin = ctypes.byref(self._layers, first * ctypes.sizeof(Layer))
        if not self._library.run(self._pool, begin, number):
            raise MemoryError("no room for a tile")

    def _time(self, layer: int) -> float:
        started = time.perf_counter()
        self._run(layer, 1)
        return time.perf_counter() - started

    def _plan(self, model: Model):
        """A layer for each operator; a depthwise convolution and the 1x1 behind it share one."""
        batch, shapes = self.shape[0], model_file.shapes(model)
        layers, matrices = [], []
        depthwise = None
        for op, before, after in zip(model.operators, shapes, shapes[1:]):
            if op.kind == "depthwise":
                depthwise, shape = op, before
                continue
            if depthwise is None:
                shape = before
            layers.append(self._layer(op, depthwise, shape, after, first=not layers))
            matrices.append(op.weight)
            depthwise = None
        # Results go to and fro between two buffers. Around them there is room for what kernels
        # load beside a picture and drop again: a vector before it, 14 + 31 floats behind it.
        room = 3 * ALIGNMENT
        sizes = [layer.out_stride * (layer.rows or layer.in_channels) for layer in layers]
        buffers = [_aligned(max(sizes[i::2], default=0) + 2 * room) for i in (0, 1)]
        self._kept += buffers
        size = int(np.prod(self.shape))
        self._input = _aligned(size + 2 * room)[room : room + size].reshape(self.shape)
        source, strides = self._input.ctypes.data, (shapes[0][1] * shapes[0][2],)
        strides = (strides[0], strides[0] * shapes[0][0])
        for i, layer in enumerate(layers):
            layer.in_, (layer.in_channel_stride, layer.in_batch_stride) = source, strides
            source = layer.out = buffers[i % 2].ctypes.data + 4 * room
            strides = (layer.out_stride, layer.out_height * layer.out_width)
        channels, height, width = shapes[-1]
        output = buffers[(len(layers) - 1) % 2][room : room + channels * layers[-1].out_stride]
        output = output.reshape(channels, -1)[:, : batch * height * width]
        shape = (channels, batch) if (height, width) == (1, 1) else (channels, batch, height, width)
        self._output = output.reshape(shape)
        return (Layer * len(layers))(*layers), matrices

    def _layer(self, op: Operator, depthwise: Operator | None, before, after, first: bool) -> Layer:
        batch, (channels, height, width) = self.shape[0], before
        window = depthwise or op
        layer = Layer(
            kind=POOL, batch=batch, in_channels=channels, in_height=height, in_width=width,
            out_height=after[1], out_width=after[2], kernel=window.kernel, stride=window.stride,
            padding=window.padding, out_stride=_round_up(batch * after[1] * after[2]), groups=1,
        )  # fmt: skip
        if op.kind == "pool":
            return layer
        odd = len(op.weight) % 2  # then a row of zeros is added
        layer.rows, layer.tile_rows = len(op.weight) + odd, op.weight.shape[1]
        layer.chunks = -(-layer.rows // CHUNK)
        layer.relu, layer.bias = op.relu, self._pointer(np.pad(op.bias, (0, odd)))
        layer.kind = PATCHES if first or op.kernel > 1 or op.stride > 1 else COPY
        if depthwise is not None:
            layer.kind, layer.depthwise_relu = DEPTHWISE, depthwise.relu
            layer.depthwise_weights = self._pointer(depthwise.weight)
            layer.depthwise_bias = self._pointer(depthwise.bias)
            if depthwise.stride == 1:
                there = _neighbours(batch, height, width, self.lanes)
                layer.neighbours = self._pointer(there, np.uint16)
        return layer

    def _pointer(self, array: np.ndarray, dtype=np.float32) -> int:
        array = np.ascontiguousarray(array, dtype)
        self._kept.append(array)
        return array.ctypes.data

    def _set_matrix(self, layer: Layer, matrix: np.ndarray) -> None:
        """All that the order of sums depends on, which neither threads nor tiles change."""
        pixels = layer.batch * layer.out_height * layer.out_width
        layer.lanes = 1 if pixels == 1 and layer.kind == COPY else self.lanes
        vectors = -(-pixels // layer.lanes)
        layer.split = vectors < 4  # a tile then has so few vectors that sums are kept in parts
        block = 1 << 15 if layer.split else MAX_TILE // (layer.lanes * min(8, vectors))
        layer.block_rows = min(layer.tile_rows, block)
        encoded = _by_block(matrix, layer.block_rows)
        self._kept.append(encoded)
        layer.values, layer.indices, layer.starts, layer.pairs = (a.ctypes.data for a in encoded)

    def _choose_tile(self, index: int, tune: bool) -> None:
        """How many vectors of pixels a tile has: the quickest number, or a guess."""
        layer = self._layers[index]
        vectors = -(-layer.batch * layer.out_height * layer.out_width // layer.lanes)
        groups = (g for g in range(self.threads, 0, -1) if self.threads % g == 0)
        # Where there are few pixels, threads share out the rows of the matrix: with a part of the
        # pixels each would have to fetch those beside them from another thread's cache.
        few = vectors < 8 * self.threads
        layer.groups = next(g for g in groups if g <= layer.chunks) if few else 1
        max_vectors = min(vectors, self._library.max_vectors())
        layer.vectors = min(8, max_vectors)
        if tune and max_vectors > 4:
            seconds = {}
            for vectors in range(4, max_vectors + 1):
                layer.vectors = vectors
                seconds[vectors] = min(self._time(index) for _ in range(5))
            layer.vectors = min(seconds, key=seconds.get)


def _by_block(matrix: np.ndarray, block: int) -> tuple[np.ndarray, ...]:
    """values, indices, starts and pairs, as kernels/layer.h describes them."""
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
    pixels = np.arange(_round_up(batch * height * width) + lanes)
    y, x = np.divmod(pixels % (height * width), width)
    there = np.stack([y > 0, y < height - 1, x > 0, x < width - 1])
    there &= pixels < batch * height * width
    bits = there.reshape(4, -1, lanes) << np.arange(lanes)
    return bits.sum(2).T


def _round_up(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def _aligned(count: int) -> np.ndarray:
    """float32 zeros that begin at a cache line."""
    array = np.zeros(count + ALIGNMENT, np.float32)
    skip = -array.ctypes.data // 4 % ALIGNMENT
    return array[skip : skip + count]
