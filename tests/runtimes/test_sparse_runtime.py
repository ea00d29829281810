"""The sparse runtime's kernels against numpy, with every instruction set of this machine.

Imports neither paddle nor onnx: with `--noconftest` it runs under sanitizers, too.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from named_networks import (
    LINEAR,
    NETWORKS,
    SIDES,
    add,
    multiply,
    named,
)
from sparse_networks import (
    BATCH,
    LAST,
    MEAN,
    THREADS,
    assert_close,
    assert_right,
    assert_same,
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

every_set = pytest.mark.parametrize("instruction_set", build.instruction_sets())


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


def compare(made: Model, instruction_set: str, batches=(1, 2, 5), threads=THREADS) -> None:
    images = pictures(made)
    right = expected(made, images)
    for batch, count in itertools.product(batches, threads):
        results = Network(made, batch, count, instruction_set, tune=False)(images[:batch])
        assert all(len(result) == batch for result in results)
        assert_right(results, right)


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
    # Time has passed when all threads are done:
    awaited, run = [], Network._run
    monkeypatch.setattr(Network, "_run", lambda network, tasks: (
        awaited.extend(bool(task.wait) for task in tasks), run(network, tasks)))  # fmt: skip
    Network(made, BATCH, 2, instruction_set)
    assert awaited
    assert all(awaited)
    monkeypatch.undo()
    # Whatever turns out to be the quickest on a machine:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Network, "_time", lambda self, step, way: rng.random())
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
def test_swish_far_from_zero(instruction_set):
    made = model((1, 1, 6), {"kind": "scale", "activation": "swish"})
    made.operators[0].scale, made.operators[0].shift = np.float32([[1], [0]])
    images = np.float32([-3e38, -1e10, -89, 89, 1e10, 3e38]).reshape(1, 1, 1, 6)
    (result,) = Network(made, instruction_set=instruction_set, tune=False)(images)
    np.testing.assert_allclose(result, np.maximum(images, 0), atol=1e-36)


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
