"""Runs a sparse network on the CPU with the kernels in kernels/."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from pathlib import Path

import numpy as np

from . import build, model_file, planning
from .model_file import Model
from .operators.operator import ALIGNMENT, Context, Shape, Step, Tensor

MAX_CACHED = 3 << 19  # floats of a step's input and output; with more fewer pictures run at once
MAX_BUFFERS = 8 << 30  # bytes: more than an input and two results of the largest
CLOSE = 1.2  # times as long as the quickest way so far: measured twice
BEHIND = 32  # kernels/step.h: floats behind the last pixel of a channel


class Task(ctypes.Structure):
    """kernels/step.h says what the fields are."""

    _fields_ = (
        ("run", ctypes.c_void_p), ("op", ctypes.c_void_p),
        ("wait", ctypes.c_int32),
    )  # fmt: skip


class Network:
    """A network that was exported for this runtime.

    Args:
        model: path of the file, or a Model, whose arrays have to stay as they are.
        batch: pictures at once, at most.
        threads: how many run it, the calling one included.
        instruction_set: "avx512", "avx2" or "plain"; None: the best that the machine has.
        tune: measure the ways to compute each step; results differ by rounding at most.

    Attributes:
        weights: bytes of them, as the kernels take them.
        activations: bytes of the buffers for all results, which share room.
        activations_in_sum: bytes of all results.

    Two threads may call it: one waits for the other. A forked process has to make its own.

    Raises:
        FileNotFoundError, ValueError: there is no such file, it is damaged, its results are too
            large together, or the kernels cannot be compiled.
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
        self._library.run.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t,
        ]  # fmt: skip
        self._library.run.restype = ctypes.c_bool
        self.lanes = self._library.lanes()
        self.batch, self.threads = batch, threads
        self._process = os.getpid()  # a fork has none of the threads
        self._lock = threading.Lock()
        self._context = Context(self._library, threads, build.l1_size())
        self._plan(model)
        self._pool = self._library.start_threads(threads)
        if self._pool is None:
            raise ValueError(f"could not start {threads} threads")
        if tune:
            self._tune()
        for step in self._steps:
            step.ways = None  # the forms that were not taken
        arrays = [*self._context.kept, *(part for step in self._steps for part in step.kept)]
        self.weights = sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))  # bytes

    def __del__(self):
        if getattr(self, "_pool", None) and self._process == os.getpid():
            self._library.end_threads(self._pool)

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """float32 [up to batch, C, H, W] -> every output: float32 [same, C, H, W].

        An output of one pixel is [same, C], but for those of the model's `pictures`.
        """
        if self._process != os.getpid():
            raise RuntimeError("this Network belongs to another process; make one in this process")
        images = np.asarray(images, np.float32)
        if images.shape[1:] != self.shape[1:] or not 0 < len(images) <= self.batch:
            raise ValueError(
                f"images must be [up to {self.batch}, {', '.join(map(str, self.shape[1:]))}], "
                f"got {list(images.shape)}"
            )
        results = [np.empty((len(images), *out.shape[1:]), np.float32) for out in self._outputs]
        at_once = self.shape[0]
        with self._lock:
            for i in range(0, len(images), at_once):
                part = images[i : i + at_once]
                self._input[: len(part)] = part
                self._run(self._tasks)
                for result, output in zip(results, self._outputs):
                    result[i : i + len(part)] = output[: len(part)]
        return results

    def _run(self, tasks: ctypes.Array) -> None:
        if not self._library.run(self._pool, tasks, len(tasks), self._scratch()):
            raise MemoryError("no room for a tile")

    def _plan(self, model: Model) -> None:
        """Steps, and room for their results."""
        shapes = model_file.shapes(model)
        nodes = planning.nodes(model.operators, model.outputs)
        sizes = [int(np.prod(shape)) for shape in shapes]
        largest = max(sum(sizes[n] for n in (*node.reads(), node.output)) for node in nodes)
        parts = -(-self.batch // max(1, MAX_CACHED // largest))
        pictures = -(-self.batch // parts)  # of what is computed at once
        self.shape = (pictures, *model.input_shape)
        places = planning.places(nodes, shapes)
        spans = planning.lifetimes(nodes, places, model.outputs)
        room = {b: shapes[b][0] * _stride(pictures, shapes[b]) + 2 * BEHIND for b in spans}
        begins = planning.offsets(spans, room)
        self.activations = 4 * max(begins[b] + room[b] for b in spans)
        given = 4 * self.batch * sum(sizes[number] for number in model.outputs)
        _check_room("results take", max(self.activations, given))
        self.activations_in_sum = 4 * sum(room.values())
        arena = _aligned(self.activations // 4)
        self._arena = arena

        def tensor(number: int) -> Tensor:
            place, stride = places[number], _stride(pictures, shapes[number])
            begin = begins[place.buffer] + BEHIND + place.channel * stride
            return Tensor(arena.ctypes.data + 4 * begin, stride, pictures, *shapes[number])

        def view(number: int) -> np.ndarray:
            """[pictures, C, H, W]."""
            place, (channels, *size) = places[number], shapes[number]
            stride = _stride(pictures, shapes[number])
            begin = begins[place.buffer] + BEHIND + place.channel * stride
            rows = arena[begin : begin + channels * stride].reshape(channels, stride)
            rows = rows[:, : pictures * size[0] * size[1]].reshape(channels, pictures, *size)
            return rows.swapaxes(0, 1)

        self._input = view(0)
        flat = [shapes[n][1:] == (1, 1) and n not in model.pictures for n in model.outputs]
        self._outputs = [
            view(number)[:, :, 0, 0] if each else view(number)
            for number, each in zip(model.outputs, flat)
        ]
        self._steps: list[Step] = []
        for node in nodes:
            inputs = [tensor(number) for number in node.reads()]
            self._steps += node.op.steps(node, inputs, tensor(node.output), self._context)
        self._tasks = (Task * len(self._steps))(*(self._task(step) for step in self._steps))
        self._scratch()

    def _scratch(self) -> int:
        """Floats that each thread needs for itself.

        Raises:
            ValueError: that is too much.
        """
        scratch = max(step.scratch for step in self._steps)
        _check_room("threads take", 4 * self.threads * scratch)
        return scratch

    def _task(self, step: Step) -> Task:
        function = ctypes.cast(getattr(self._library, step.function), ctypes.c_void_p)
        return Task(function, ctypes.addressof(step.op), step.wait)

    def _tune(self) -> None:
        """Takes the quickest way of every step that has several; what is alike is measured once."""
        quickest: dict = {}
        for step in self._steps:
            ways = step.ways
            if ways is None or len(ways.possible) == 1:
                continue
            if ways.alike not in quickest:
                self._time(step, ways.possible[0])  # the first run waits for memory
                seconds: dict = {}
                for way in ways.possible:
                    seconds[way] = self._time(step, way)
                    if seconds[way] < CLOSE * min(seconds.values()):
                        seconds[way] = min(seconds[way], self._time(step, way))
                quickest[ways.alike] = min(seconds, key=seconds.get)
            ways.choose(quickest[ways.alike])

    def _time(self, step: Step, way: tuple[bool, int, int]) -> float:
        step.ways.choose(way)
        task = (Task * 1)(self._task(step))
        task[0].wait = True  # for all threads to be done with it
        started = time.perf_counter()
        self._run(task)
        return time.perf_counter() - started


def _check_room(what: str, count: int) -> None:
    if count > MAX_BUFFERS:
        raise ValueError(f"its {what} {count} bytes, more than {MAX_BUFFERS}")


def _stride(pictures: int, shape: Shape) -> int:
    """Floats from a channel to the next."""
    pixels = pictures * shape[1] * shape[2]
    behind = BEHIND if pixels > 1 else 0
    return -(-(pixels + behind) // ALIGNMENT) * ALIGNMENT


def _aligned(count: int) -> np.ndarray:
    """float32 zeros that begin at a cache line."""
    array = np.zeros(count + ALIGNMENT, np.float32)
    skip = -array.ctypes.data // 4 % ALIGNMENT
    return array[skip : skip + count]
