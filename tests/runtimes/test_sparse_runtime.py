"""The sparse runtime's kernels against numpy, with every instruction set of this machine.

Imports neither paddle nor onnx: with `--noconftest` it runs under sanitizers, too.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_networks import (
    BATCH,
    LAST,
    MEAN,
    SMALL,
    THREADS,
    assert_same_bits,
    convolution,
    depthwise,
    expected,
    model,
    pictures,
    pool,
    random_model,
)

from sparse_runtime import Network, build, model_file, network
from sparse_runtime.model_file import Model
from sparse_runtime.operators.operator import ACTIVATIONS, Tensor

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
every_set = pytest.mark.parametrize("instruction_set", build.instruction_sets())
ROUNDING = 1e-5  # of the largest value: how far apart the ways to compute a network may be


class Chosen(Network):
    """Computes every step in the way that `pick` takes of those that there are."""

    def __init__(self, *args, pick):
        self._pick, self.most = pick, 0
        super().__init__(*args)

    def _tune(self):
        for step in self._steps:
            if step.ways:
                step.ways.choose(self._pick(step.ways.possible))
                self.most = max(self.most, len(step.ways.possible))


def way(number: int):
    return lambda ways: ways[number % len(ways)]


def assert_right(results: list[np.ndarray], right: list) -> None:
    """right: of expected(), for at least as many pictures."""
    assert len(results) == len(right)
    for result, (value, apart) in zip(results, right):
        assert result.dtype == np.float32
        assert result.shape[1:] == value.shape[1:]
        assert (abs(result - value[: len(result)]) - apart[: len(result)]).max() <= 0


def assert_close(results: list[np.ndarray], others: list[np.ndarray]) -> None:
    for result, other in zip(results, others):
        assert abs(result - other).max() <= ROUNDING * abs(other).max()


def assert_same(results: list[np.ndarray], others: list[np.ndarray]) -> None:
    for result, other in zip(results, others):
        assert_same_bits(result, other)


def compare(made: Model, instruction_set: str, batches=(1, 2, 5), threads=THREADS) -> None:
    images = pictures(made)
    right = expected(made, images)
    for batch, count in itertools.product(batches, threads):
        results = Network(made, batch, count, instruction_set, tune=False)(images[:batch])
        assert all(len(result) == batch for result in results)
        assert_right(results, right)


def add(*inputs, activation="none"):
    return {"kind": "add", "inputs": list(inputs), "activation": activation}


def multiply(*inputs, activation="none"):
    return {"kind": "multiply", "inputs": list(inputs), "activation": activation}


def concatenation(*inputs):
    return {"kind": "concatenation", "inputs": list(inputs)}


def channels(*numbers, of=-1):
    return {"kind": "channels", "channels": list(numbers), "inputs": [of]}


def upsample(factor):
    return {"kind": "upsample", "factor": factor}


SCALE, FLATTEN = {"kind": "scale", "activation": "relu"}, {"kind": "flatten"}
LINEAR = {"activation": "none"}

NETWORKS = {
    "one pixel": ((3, 1, 1), convolution(17)),
    "one channel": ((1, 1, 1), convolution(1)),
    "a row": ((17, 1, 33), convolution(3)),
    "a column": ((1, 33, 1), convolution(33)),
    "kernel 3": ((3, 15, 17), convolution(17, 3, padding=1)),
    "kernel 3 without padding": ((3, 7, 7), convolution(17, 3)),
    "kernel 3 on all pixels": ((3, 3, 3), convolution(17, 3)),
    "kernel 3, stride 2": ((3, 33, 31), convolution(8, 3, 2, 1)),
    "kernel 3, stride 2 without padding": ((3, 15, 17), convolution(8, 3, 2)),
    "kernel 3, stride 2, even sides": ((1, 16, 34), convolution(3, 3, 2, 1)),
    "kernel 5": ((3, 15, 17), convolution(17, 5, 1, 2)),
    "kernel 5, stride 2": ((3, 33, 31), convolution(3, 5, 2, 2)),
    "kernel 5 of mostly padding": ((17, 2, 3), convolution(3, 5, 1, 4)),
    "kernel 11, stride 4": ((3, 47, 63), convolution(6, 11, 4, 2)),
    "kernel 15 on one pixel": ((2, 1, 1), convolution(3, 15, 1, 14)),
    "kernel 15, stride 2, small pictures": ((1, 3, 2), convolution(3, 15, 2, 14)),
    "even kernel": ((3, 7, 8), convolution(3, 2), convolution(3, 4, 2, 1)),
    "1x7, 7x1": (
        (3, 17, 17), convolution(9, (1, 7), 1, (0, 3, 0, 3)),
        convolution(5, (7, 1), 1, (3, 0, 3, 0)),
    ),
    "unequal strides and padding": (
        (3, 15, 22), convolution(5, (3, 2), (1, 3), (2, 0, 1, 1)),
        convolution(4, (2, 4), (3, 1), (0, 3, 1, 0)),
    ),
    "padding of 1x1": ((5, 7, 6), convolution(3), convolution(4, 1, (1, 2))),
    "1x1, stride 2": ((17, 7, 7), convolution(33, 1, 2)),
    "1x1, stride 3 behind 1x1": ((3, 7, 8), convolution(17), convolution(33, 1, 3)),
    "stride larger than the kernel": ((3, 22, 19), convolution(5, 2, 5, 1)),
    "1x1 behind kernel 3": ((3, 7, 7), convolution(17, 3, 1, 1), convolution(33), LAST),
    "1x1 behind 1x1 on wide pictures": ((3, 33, 31), convolution(17), convolution(3)),
    "stride 2 behind kernel 3": (
        (3, 33, 31), convolution(5, 3, 1, 1), convolution(6, 3, 2, 1), convolution(7, 5, 2, 2),
    ),
    "several blocks of rows": ((3, 7, 7), convolution(200), convolution(129), convolution(65)),
    "several blocks on many pixels": ((3, 33, 31), convolution(400), convolution(70)),
    "several blocks of patches": ((3, 7, 7), convolution(200), convolution(5, 3, 1, 1)),
    "several blocks, few pixels": ((200, 1, 2), convolution(3), convolution(200), convolution(7)),
    "groups": ((6, 7, 9), convolution(9, 3, 1, 1, groups=3), convolution(6, groups=3)),
    "groups of one channel": ((6, 7, 7), convolution(12, 3, 2, 1, groups=6), LAST),
    "groups of many channels": ((64, 4, 4), convolution(96, 3, 1, 1, groups=2)),
    "groups on one pixel": ((8, 3, 3), convolution(8, 3, groups=4), convolution(20, groups=4)),
    "groups behind depthwise": ((6, 7, 7), depthwise(), convolution(12, groups=2)),
    "mean": ((17, 7, 7), MEAN),
    "mean of one pixel": ((3, 1, 1), MEAN),
    "mean twice": ((3, 15, 17), convolution(5), MEAN, MEAN),
    "fully connected": ((3, 7, 7), convolution(33, 3, 1, 1), MEAN, LAST),
    "two fully connected": ((3, 7, 7), convolution(33), MEAN, convolution(200), LAST),
    "fully connected at first": ((2000, 1, 1), LAST),
    "fully connected behind all pixels": ((3, 7, 5), convolution(6), FLATTEN, convolution(70)),
    "convolution of one pixel": ((3, 7, 7), MEAN, convolution(17, 3, 1, 1)),
    "depthwise behind a mean": ((17, 7, 7), MEAN, depthwise(), LAST),
    "depthwise that leaves one pixel": ((40, 3, 3), depthwise(padding=0), LAST),
    "depthwise of stride 2 that leaves one pixel": ((40, 2, 2), depthwise(2), convolution(17)),
    "depthwise twice": ((17, 9, 6), depthwise(), depthwise(2), LAST),
    "two behind a depthwise": (
        (5, 9, 6), depthwise(), convolution(7), convolution(4, inputs=[1]),
        concatenation(2, 3),
    ),
    "MobileNet": (
        (3, 33, 31), convolution(8, 3, 2, 1), depthwise(), convolution(17), depthwise(2),
        convolution(33), depthwise(), convolution(33), depthwise(2), convolution(70), depthwise(),
        convolution(200), MEAN, LAST,
    ),
    "MobileNetV2": (
        (3, 17, 19), convolution(8, 3, 2, 1, "relu6"), convolution(24, activation="relu6"),
        depthwise(1, "relu6"), convolution(8, **LINEAR), add(1, -1),
        convolution(24, activation="relu6"), depthwise(2, "relu6"), convolution(17, **LINEAR),
    ),
    "residual": (
        (8, 9, 11), convolution(8, 3, 1, 1), convolution(8, 3, 1, 1, **LINEAR),
        add(0, 2, activation="relu"), convolution(8, **LINEAR), add(-1, 1, activation="swish"),
    ),
    "residual of two convolutions": (
        (5, 9, 11), convolution(8, **LINEAR), convolution(8, 3, 1, 1, **LINEAR, inputs=[0]),
        add(2, 1, activation="relu"),
    ),
    "residual in several blocks": (
        (300, 5, 5), convolution(300, **LINEAR), add(0, 1), convolution(300, 3, 1, 1, **LINEAR),
        add(-1, 2, activation="relu"),
    ),
    "residual of one pixel": ((40, 1, 1), convolution(40, **LINEAR), add(0, 1), LAST),
    "what is not a residual": (
        (8, 7, 7), convolution(8), add(0, 1), convolution(8, **LINEAR), add(3, 2), add(3, 4),
        convolution(8, groups=2, **LINEAR), add(6, 5), convolution(8, **LINEAR), add(8, 8),
    ),
    "residual behind which its convolution is needed": (
        (4, 6, 6), convolution(4, **LINEAR), add(0, 1), convolution(4), add(1, 3),
    ),
    "squeeze and excite": (
        (17, 9, 7), depthwise(activation="hard_swish", kernel=5), MEAN, convolution(5),
        convolution(17, activation="hard_sigmoid"), multiply(1, -1), LAST,
    ),
    "shuffle": (
        (6, 7, 9), channels(0, 2, 4), channels(1, 3, 5, of=0), convolution(3), depthwise(),
        convolution(3, **LINEAR), concatenation(1, -1), channels(0, 3, 1, 4, 2, 5), LAST,
    ),
    "concatenations in each other": (
        (3, 7, 9), convolution(4), convolution(5, 3, 1, 1), concatenation(1, 2), convolution(2),
        concatenation(3, 4), SCALE, convolution(3, 3, 1, 1), concatenation(5, 7), SCALE, LAST,
    ),
    "concatenations that have to copy": (
        (3, 7, 9), concatenation(0, 0), convolution(4), concatenation(2, 0, 2),
        concatenation(2, 3), concatenation(4, 3, 2), LAST,
    ),
    "concatenation of one pixel": (
        (3, 5, 5), MEAN, convolution(7), convolution(9, inputs=[1]), concatenation(2, 3), LAST,
    ),
    "Inception": (
        (5, 9, 9), convolution(4), convolution(6, 3, 1, 1, inputs=[0]),
        pool("average_pool", 3, 1, 1, inputs=[0]), convolution(3),
        pool("max_pool", 3, 1, 1, inputs=[0]), concatenation(1, 2, 4, 5), LAST,
    ),
    "YOLOv3": (
        (3, 16, 24), convolution(8, 3, 2, 1, "leaky_relu", slope=0.1),
        convolution(16, 3, 2, 1, "leaky_relu", slope=0.1), convolution(9, **LINEAR),
        convolution(8, inputs=[2]), upsample(2), concatenation(5, 1),
        convolution(9, 3, 1, 1, **LINEAR),
    ),
}  # fmt: skip
OUTPUTS = {"YOLOv3": [3, 7], "shuffle": [6, -1, 1], "concatenations in each other": [4, 5, -1],
           "residual behind which its convolution is needed": [1, 4]}  # fmt: skip
SIDES = [(1, 1), (1, 40), (40, 1), (2, 3), (7, 7), (8, 16), (15, 17), (33, 31)]


def named(name: str, **options) -> Model:
    return model(*NETWORKS[name], outputs=OUTPUTS.get(name), **options)


@every_set
@pytest.mark.parametrize("name", list(NETWORKS))
def test_against_numpy(name, instruction_set):
    compare(named(name), instruction_set)


@every_set
@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_way(name, instruction_set):
    made = named(name)
    images = pictures(made)
    right = expected(made, images)
    for batch in (1, BATCH):
        first = Network(made, batch, 2, instruction_set, tune=False)(images[:batch])
        for number in itertools.count():
            tried = Chosen(made, batch, 2, instruction_set, pick=way(number))
            results = tried(images[:batch])
            assert_right(results, right)
            assert_close(results, first)
            if number + 1 >= tried.most:
                break


@every_set
def test_what_is_measured_changes_rounding_alone(instruction_set, monkeypatch):
    made = named("MobileNet")
    images = pictures(made)
    first = Network(made, BATCH, 1, instruction_set, tune=False)(images)
    assert_close(Network(made, BATCH, 2, instruction_set)(images), first)
    # Whatever turns out to be the quickest on a machine:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Network, "_time", lambda self, step: rng.random())
    taken = set()
    for threads in THREADS * 4:
        tuned = Network(made, BATCH, threads, instruction_set)
        taken |= {(s.op.matrix.contents.dense, s.op.vectors)
                  for s in tuned._steps if s.function == "convolution"}  # fmt: skip
        assert_close(tuned(images), first)
    assert {dense for dense, _ in taken} == {0, 1}
    assert len({vectors for dense, vectors in taken if not dense}) > 2


@every_set
@pytest.mark.parametrize("kernel", range(1, 8))
def test_depthwise(kernel, instruction_set):
    """By itself, and as a part of the convolution behind it."""
    rng = np.random.default_rng(kernel)
    for sides, stride, half in itertools.product(SIDES, range(1, 5), (True, False)):
        least = [max(0, (kernel - side + 1) // 2) for side in sides * 2]
        padding = [max(kernel // 2 if half else int(rng.integers(n, kernel)), n) for n in least]
        channels, rows = rng.choice([1, 3, 17, 33], 2)
        batch, threads = int(rng.integers(1, 4)), int(rng.integers(1, 4))
        window = {"kernel": kernel, "stride": [stride] * 2, "padding": padding}
        alone, fused = (str(activation) for activation in rng.choice(ACTIVATIONS, 2))
        made = model(
            (int(channels), *sides), depthwise(**window, activation=alone),
            depthwise(**window, activation=fused, inputs=[0]), convolution(int(rows), **LINEAR),
            outputs=[1, 3], seed=stride, density=0.6,
        )  # fmt: skip
        compare(made, instruction_set, [batch], [threads])


@every_set
@pytest.mark.parametrize(("stride", "kernel"), [(1, 3), (2, 3), (1, 5), (2, 5), (1, 4)])
def test_depthwise_in_several_strips(stride, kernel, instruction_set):
    """Of rows that are as long as several vectors, and of more pixels than are kept at once."""
    window = {"kernel": kernel, "stride": stride, "inputs": [0]}
    steps = depthwise(**window), depthwise(**window), convolution(4)
    made = model((64, 21, 85), *steps, outputs=[1, 3])
    compare(made, instruction_set, [2], [3])


@every_set
@pytest.mark.parametrize("kind", ["max_pool", "average_pool", "depthwise", "convolution"])
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_window(instruction_set, kind, data):
    def one(least, most):
        return data.draw(st.integers(least, most))

    sides = [one(1, 40), one(1, 40)]
    kernel = [one(1, min(9, 3 * side)) for side in sides]
    missing = [max(0, k - side) for k, side in zip(kernel, sides)]
    before = [one((lack + 1) // 2, k - 1) for lack, k in zip(missing, kernel)]
    behind = [one((lack + 1) // 2, k - 1) for lack, k in zip(missing, kernel)]
    step = pool(kind, kernel, [one(1, 6), one(1, 6)], before + behind)
    if kind == "convolution":
        step["rows"] = one(1, 9)
    made = model((one(1, 5), *sides), step, density=0.7)
    compare(made, instruction_set, [one(1, 4)], [one(1, 3)])


@every_set
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation, instruction_set):
    behind = {"activation": activation, "slope": 0.3}
    made = model(
        (17, 5, 7), convolution(17, **behind), convolution(17, 3, 1, 1, **behind, inputs=[0]),
        depthwise(kernel=3, **behind, inputs=[0]), depthwise(kernel=5, **behind, inputs=[0]),
        {"kind": "scale", **behind, "inputs": [0]}, {**add(0, 0), **behind},
        {**multiply(0, 0), **behind}, {**MEAN, "inputs": [0]}, convolution(9, **behind),
        convolution(17, **LINEAR, inputs=[0]), {**add(0, 10), **behind},
        depthwise(kernel=3, **behind, inputs=[0]), convolution(4),
        outputs=[1, 2, 3, 4, 5, 6, 7, 9, 11, 13],
    )  # fmt: skip
    for op in made.operators[:2]:
        op.weight *= 20  # so that what is bounded is at its bounds
    compare(made, instruction_set, [2], [2])
    for number in range(4):
        tried = Chosen(made, 1, 1, instruction_set, pick=way(number))
        assert_right(tried(pictures(made)[:1]), expected(made, pictures(made)))


@every_set
def test_the_sigmoid_is_exact_to_some_bits(instruction_set):
    made = model((1, 1, 4001), {"kind": "scale", "activation": "sigmoid"})
    made.operators[0].scale, made.operators[0].shift = np.float32([[1], [0]])
    images = np.linspace(-80, 80, 4001, dtype=np.float32).reshape(1, 1, 1, -1)
    right = 1 / (1 + np.exp(-images.astype(np.float64)))
    (result,) = Network(made, instruction_set=instruction_set, tune=False)(images)
    np.testing.assert_allclose(result, right, rtol=1e-6)


@every_set
@pytest.mark.parametrize("density", [0, 0.02, 1])
@pytest.mark.parametrize(
    "name", ["several blocks of patches", "two fully connected", "MobileNet", "groups", "residual"]
)
def test_from_no_weight_to_all(name, density, instruction_set):
    compare(named(name, density=density), instruction_set, batches=(1, 2))


@every_set
def test_rows_and_columns_without_weights(instruction_set):
    made = model((3, 15, 17), convolution(150), depthwise(), convolution(33), convolution(5))
    for op in made.operators:
        op.weight[::2] = 0
        op.weight[-1] = 0
        op.weight[:, : op.weight.shape[1] // 2] = 0
    compare(made, instruction_set, batches=(1, 3))


@every_set
def test_a_result_of_biases_alone_is_exact(instruction_set):
    made = model((3, 7, 7), convolution(200), convolution(17, 3, **LINEAR), density=0)
    (result,) = Network(made, 2, 2, instruction_set, tune=False)(pictures(made, 2))
    assert (result == made.operators[-1].bias[:, None, None]).all()


@every_set
def test_more_columns_than_16_bits_count(instruction_set):
    made = model((292, 15, 15), convolution(2, 15), density=1)  # 65,700
    made.operators[0].weight[0, [65_535, 65_536]] = 1, 2
    made.operators[0].weight[1, -1] = 4
    compare(made, instruction_set, batches=(1,), threads=(1,))
    made.operators[0].weight[:, ::2] = 0
    compare(made, instruction_set, batches=(1,), threads=(1,))


@every_set
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 1 << 32), st.integers(1, BATCH), st.sampled_from(THREADS))
def test_any_network(instruction_set, seed, batch, threads):
    made = random_model(seed)
    images = pictures(made, batch)
    right = expected(made, images)
    tried = Network(made, batch, threads, instruction_set, tune=False)
    results = tried(images)
    assert_right(results, right)
    assert_same(tried(images), results)
    ways = Chosen(made, batch, threads, instruction_set, pick=np.random.default_rng(seed).choice)
    assert_right(ways(images), right)


@every_set
@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_step_reads_its_inputs_and_writes_its_result(name, instruction_set):
    """Nothing else in memory counts, nor changes."""
    made = named(name)
    for batch, threads in ((1, 2), (3, 1)):
        tried = Network(made, batch, threads, instruction_set, tune=False)
        images = pictures(made, batch)
        first = tried(images)
        assert_same(steps_alone(tried, images), first)


def steps_alone(tried: Network, images: np.ndarray) -> list[np.ndarray]:
    """Runs each step where all is NaN but the pixels of what it takes."""
    memory = tried._arena

    def lines(tensor: Tensor) -> np.ndarray:
        """[channels, floats from a channel to the next]."""
        begin = (tensor.data - memory.ctypes.data) // 4
        size = tensor.channels * tensor.stride
        assert tensor.pixels <= tensor.stride
        assert network.BEHIND <= begin <= begin + size + network.BEHIND <= len(memory)
        return memory[begin : begin + size].reshape(tensor.channels, tensor.stride)

    memory.fill(np.nan)
    tried._input[:] = images
    for step in tried._steps:
        takes = [getattr(step.op, name) for name, kind in step.op._fields_
                 if kind is Tensor and name != "out"]  # fmt: skip
        taken = [(lines(t)[:, : t.pixels], lines(t)[:, : t.pixels].copy()) for t in takes if t.data]
        before = memory.copy()
        memory.fill(np.nan)
        for place, values in taken:
            place[:] = values
        alone = memory.copy()
        task = (network.Task * 1)(tried._task(step))
        task[0].wait = True
        tried._run(task)
        out = step.op.out
        result = lines(out)[:, : out.pixels].copy()
        lines(out)[:] = 0
        changed = memory.copy()
        memory[:] = alone
        lines(out)[:] = 0
        assert_same_bits(changed, memory)
        memory[:] = before
        lines(out)[:, : out.pixels] = result
    return [output.copy() for output in tried._outputs]


def test_pictures_too_large_for_a_cache_are_computed_in_parts(monkeypatch):
    made = model(*NETWORKS["MobileNet"], outputs=[3, -1])
    images = pictures(made)
    sizes = [int(np.prod(shape)) for shape in model_file.shapes(made)]
    sizes = [sizes[number] for number in (0, 1, 3, 5, 7, 9, 11, 12, 13)]  # others are in a cache
    most = max(map(sum, zip(sizes, sizes[1:])))
    two_at_once = Network(made, 2, tune=False)
    parts = [two_at_once(images[i : i + 2]) for i in (0, 2, 4)]
    joined = [np.concatenate(each) for each in zip(*parts)]
    monkeypatch.setattr(network, "MAX_CACHED", 2 * most + 1)
    whole = Network(made, 5, tune=False)
    assert whole.shape == (2, *made.input_shape)
    assert_same(whole(images), joined)
    assert_same(whole(images[:3]), [each[:3] for each in joined])
    monkeypatch.setattr(network, "MAX_CACHED", 1)
    assert Network(made, 5, tune=False).shape == (1, *made.input_shape)


@every_set
@pytest.mark.parametrize("sides", [(1, 1), (1, 40), (2, 3), (7, 7), (15, 17)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_pictures_do_not_touch_each_other(sides, stride, instruction_set):
    made = model(
        (3, *sides), convolution(17, 3, 1, 1, **LINEAR), depthwise(stride, "none"),
        convolution(33, activation="swish"), convolution(5, 3, stride, 1),
        depthwise(1, "sigmoid", kernel=5), pool("max_pool", 3, 1, 1), pool("average_pool", 3, 1, 1),
        MEAN, multiply(-2, -1), add(-1, 7), convolution(200), outputs=[3, -2, -1],
    )  # fmt: skip
    images = pictures(made)
    tried = Network(made, BATCH, 2, instruction_set, tune=False)
    first = tried(images)
    for bad in (np.nan, np.inf, -np.inf):
        tried(np.full_like(images, bad))
        for count in (2, 4, 1, 5):  # beside what the call before left
            assert_same(tried(images[:count]), [each[:count] for each in first])
            # In another place of a batch its sums are those of another tile.
            assert_close(tried(images[-count:]), [each[-count:] for each in first])
        mixed = images.copy()
        mixed[::2] = bad
        assert_same([each[1::2].copy() for each in tried(mixed)],
                    [each[1::2].copy() for each in first])  # fmt: skip


@every_set
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_no_number_stays_so(activation, instruction_set):
    behind = {"activation": activation, "slope": 0.1}
    steps = (
        convolution(8, 3, 1, 1, **behind), depthwise(2, **behind), convolution(9, **behind),
        {"kind": "scale", **behind}, {**add(-1, -1), **behind}, {**multiply(-1, -1), **behind},
        depthwise(1, **behind, kernel=5), convolution(10, 3, 1, 1), MEAN, LAST,
    )  # fmt: skip
    made = model((3, 15, 17), *steps, density=1)
    images = pictures(made, 3)
    images[1] = np.nan
    (result,) = Network(made, 3, 1, instruction_set, tune=False)(images)
    assert np.isnan(result).all(1).tolist() == [False, True, False]
    assert np.isfinite(result[::2]).all()


@pytest.mark.parametrize(
    ("shape", "last"),
    [((3, 4, 4), 5), ((3, 1, 1), 1), ((3, 7, 7), 1), ((3, 7, 7), 5), ((3, 1, 1), 16)],
)
@pytest.mark.parametrize("batch", [1, 16])
def test_a_result_is_the_callers(shape, last, batch):
    made = model(shape, convolution(last, **LINEAR), convolution(last), outputs=[1, 2])
    tried = Network(made, batch, instruction_set="plain", tune=False)
    images = pictures(made, batch)
    first = tried(images)
    kept = [each.copy() for each in first]
    tried(2 * images)
    assert_same(first, kept)
    for each in first:
        each[:] = 7
    assert_same(tried(images), kept)


def test_a_result_that_is_an_output_twice():
    made = model((3, 7, 8), convolution(5), convolution(4), outputs=[2, 1, 2])
    images = pictures(made, 1)
    last, first, again = Network(made, tune=False)(images)
    assert_right([last, first, again], expected(made, images))
    assert not np.shares_memory(last, again)


def test_the_pictures_stay_and_may_have_any_strides():
    made = model((3, 7, 8), convolution(5, 3, **LINEAR))
    tried = Network(made, 2, instruction_set="plain", tune=False)
    images = pictures(made, 2)
    before, first = images.copy(), tried(images)
    assert_same_bits(images, before)
    assert_same(tried(images.astype(np.float64)), first)
    assert_same(tried(np.asfortranarray(images)), first)
    assert_same(tried(images.tolist()), first)
    assert_same(tried(images[::-1].copy()), tried(images[::-1]))


@every_set
def test_several_threads_call(instruction_set):
    made = [named(name) for name in ("MobileNet", "YOLOv3", "groups")]
    tried = [Network(m, 2, 1 + i, instruction_set, tune=False) for i, m in enumerate(made)]
    images = [[pictures(m, 2, seed) for seed in range(4)] for m in made]
    alone = [[tried[i](batch) for batch in images[i]] for i in range(3)]
    start = threading.Barrier(4)

    def call(thread: int) -> None:
        start.wait()
        turns = [(i % 3, (i + thread) % 4) for i in range(thread, thread + 60)]
        for which, i in turns:
            assert_same(tried[which](images[which][i]), alone[which][i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))  # raises what they raised


def test_a_network_stays_when_another_ends():
    made = named("MobileNet")
    images = pictures(made, 1)
    stays = Network(made, threads=2, tune=False)
    first = stays(images)
    for threads in THREADS:
        ends = Network(made, threads=threads, tune=False)
        assert_close(ends(images), first)
        del ends
        assert_same(stays(images), first)


@linux
def test_networks_that_end_leave_no_threads():
    made = named("kernel 3")
    before = threads_of_this_process()
    kept = [Network(made, threads=3, tune=False) for _ in range(4)]
    assert threads_of_this_process() == before + 8
    del kept
    assert threads_of_this_process() == before


def threads_of_this_process() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize(
    "shape",
    [(0, 3, 7, 8), (3, 3, 7, 8), (1, 3, 8, 7), (1, 1, 7, 8), (3, 7, 8), (1, 168), ()],
)
def test_pictures_of_another_shape_are_refused(shape):
    tried = Network(SMALL, 2, instruction_set="plain", tune=False)
    with pytest.raises(ValueError, match="up to 2, 3, 7, 8") as refused:
        tried(np.zeros(shape, np.float32))
    assert f"got {list(shape)}" in str(refused.value)
    assert tried(pictures(SMALL, 2))[0].shape == (2, 5, 5, 6)


@pytest.mark.parametrize(("batch", "threads"), [(0, 1), (-1, 1), (1, 0), (1, -2)])
def test_no_pictures_or_threads_are_refused(batch, threads):
    with pytest.raises(ValueError, match=f"at least 1, got {batch} and {threads}"):
        Network(SMALL, batch, threads)


def test_a_network_that_does_not_fit_is_refused():
    wrong = model((3, 7, 8), convolution(5, 3), convolution(4))
    wrong.operators[1].weight = wrong.operators[1].weight[:, 1:]
    with pytest.raises(ValueError, match=r"operator 1 .*weight has the shape \[4, 4\], not"):
        Network(wrong, tune=False)


# In a process of its own, which such an error may end or stop for ever.
LIMITED = """
import resource
from sparse_networks import SMALL
from sparse_runtime import Network
Network(SMALL, tune=False)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, [used + (200 << 20)] * 2)
try:
    Network(SMALL, threads=500, tune=False)
except ValueError as error:
    print(error)
"""


@linux
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="needs the address space")
def test_more_threads_than_can_be_started():
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=30,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "could not start 500 threads\n"), done.stderr
