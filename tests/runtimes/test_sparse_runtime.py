"""The sparse runtime's kernels against numpy, with every instruction set of this machine.

Imports neither paddle nor onnx: with `--noconftest` it runs under AddressSanitizer, too.
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
    POOL,
    SMALL,
    THREADS,
    assert_same_bits,
    convolution,
    depthwise,
    expected,
    model,
    pictures,
)

from sparse_runtime import Network, build, model_file, network
from sparse_runtime.model_file import Model

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
every_set = pytest.mark.parametrize("instruction_set", build.instruction_sets())


def compare(made: Model, instruction_set: str, batches=(1, 2, 3, 4, 5), threads=THREADS) -> None:
    images = pictures(made)
    right, apart = expected(made, images)
    for batch in batches:
        results = [
            Network(made, batch, count, instruction_set, tune=False)(images[:batch])
            for count in threads
        ]
        assert results[0].dtype == np.float32
        assert results[0].shape == right[:batch].shape
        assert (abs(results[0] - right[:batch]) - apart[:batch]).max() <= 0
        for result in results[1:]:
            assert_same_bits(result, results[0])


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
    "kernel 15 on one pixel": ((2, 1, 1), convolution(3, 15, 1, 14)),
    "kernel 15, stride 2, small pictures": ((1, 3, 2), convolution(3, 15, 2, 14)),
    "even kernel": ((3, 7, 8), convolution(3, 2), convolution(3, 4, 2, 1)),
    "1x1, stride 2": ((17, 7, 7), convolution(33, 1, 2)),
    "1x1, stride 2 behind 1x1": ((3, 7, 8), convolution(17), convolution(33, 1, 2)),
    "1x1 behind kernel 3": ((3, 7, 7), convolution(17, 3, 1, 1), convolution(33), LAST),
    "1x1 behind 1x1 on wide pictures": ((3, 33, 31), convolution(17), convolution(3)),
    "kernel 3 behind 1x1": ((3, 15, 17), convolution(17), convolution(3, 3, 1, 1)),
    "stride 2 behind kernel 3": (
        (3, 33, 31), convolution(5, 3, 1, 1), convolution(6, 3, 2, 1), convolution(7, 5, 2, 2),
    ),
    "several blocks of rows": ((3, 7, 7), convolution(200), convolution(129), convolution(65)),
    "several blocks without vectors": ((3, 7, 7), convolution(400), convolution(70)),
    "several blocks of patches": ((3, 7, 7), convolution(200), convolution(5, 3, 1, 1)),
    "several blocks, few pixels": ((200, 1, 2), convolution(3), convolution(200), convolution(7)),
    "pooling": ((17, 7, 7), POOL),
    "pooling one pixel": ((3, 1, 1), POOL),
    "pooling twice": ((3, 15, 17), convolution(5), POOL, POOL),
    "fully connected": ((3, 7, 7), convolution(33, 3, 1, 1), POOL, LAST),
    "two fully connected": ((3, 7, 7), convolution(33), POOL, convolution(200), LAST),
    "fully connected at first": ((200, 1, 1), LAST),
    "convolution of one pixel": ((3, 7, 7), POOL, convolution(17, 3, 1, 1)),
    "depthwise behind pooling": ((17, 7, 7), POOL, depthwise(), LAST),
    "MobileNet": (
        (3, 33, 31), convolution(8, 3, 2, 1), depthwise(), convolution(17), depthwise(2),
        convolution(33), depthwise(), convolution(33), depthwise(2), convolution(70), depthwise(),
        convolution(200), POOL, LAST,
    ),
}  # fmt: skip
SIDES = [(1, 1), (1, 2), (1, 40), (40, 1), (2, 3), (7, 7), (8, 16), (15, 17), (16, 5), (33, 31)]


@every_set
@pytest.mark.parametrize("name", list(NETWORKS))
def test_against_numpy(name, instruction_set):
    compare(model(*NETWORKS[name]), instruction_set)


@every_set
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_depthwise(sides, stride, instruction_set):
    relus = itertools.product([True, False], repeat=2)
    for channels, (relu, relu_behind) in zip((1, 3, 17, 70), relus):
        made = model(
            (2, *sides), convolution(channels, relu=False), depthwise(stride, relu),
            convolution(3, relu=relu_behind), seed=channels,
        )  # fmt: skip
        compare(made, instruction_set, threads=(1, 3))


@every_set
@pytest.mark.parametrize("density", [0, 0.02, 1])
@pytest.mark.parametrize("name", ["several blocks of patches", "two fully connected", "MobileNet"])
def test_from_no_weight_to_all(name, density, instruction_set):
    compare(model(*NETWORKS[name], density=density), instruction_set, batches=(2,))


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
    made = model((3, 7, 7), convolution(200), convolution(17, 3, relu=False), density=0)
    result = Network(made, 2, 2, instruction_set, tune=False)(pictures(made, 2))
    assert (result == made.operators[-1].bias[:, None, None]).all()


@every_set
def test_more_tile_rows_than_16_bits_count(instruction_set):
    made = model((292, 15, 15), convolution(2, 15), density=1)  # 65,700
    made.operators[0].weight[0, [65_535, 65_536]] = 1, 2
    made.operators[0].weight[1, -1] = 4
    compare(made, instruction_set, batches=(1,), threads=(1,))


@st.composite
def networks(draw) -> Model:
    channels = st.sampled_from([1, 2, 3, 17, 33, 65, 130])
    shape = draw(channels), draw(st.integers(1, 35)), draw(st.integers(1, 35))
    height, width = shape[1:]
    steps = []
    for i in range(draw(st.integers(1, 4))):
        rows, relu = draw(channels), draw(st.booleans())
        if i and draw(st.booleans()):
            steps.append(depthwise(draw(st.sampled_from([1, 2])), draw(st.booleans())))
            steps.append(convolution(rows, relu=relu))
        elif draw(st.integers(0, 9)) == 0:
            steps.append(POOL)
        else:
            kernel, stride = draw(st.integers(1, 5)), draw(st.sampled_from([1, 2]))
            least = max(0, -(-(kernel - min(height, width)) // 2))
            padding = draw(st.integers(least, kernel - 1))
            steps.append(convolution(rows, kernel, stride, padding, relu))
        made = model(shape, *steps, density=draw(st.sampled_from([0, 0.1, 0.5, 1])), seed=i)
        height, width = model_file.shapes(made)[-1][1:]
    return made


@every_set
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(networks(), st.integers(1, BATCH), st.sampled_from(THREADS))
def test_any_network(instruction_set, made, batch, threads):
    compare(made, instruction_set, [batch], [threads])


@every_set
@pytest.mark.parametrize("batch", [1, 3])
def test_tiles_change_no_bit(batch, instruction_set, monkeypatch):
    made = model(*NETWORKS["MobileNet"])
    images = pictures(made, batch)
    guessed = Network(made, batch, 1, instruction_set, tune=False)
    first = guessed(images)
    assert_same_bits(guessed(images), first)
    assert_same_bits(Network(made, batch, 2, instruction_set)(images), first)
    # Whatever turns out to be the quickest on a machine:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(Network, "_time", lambda self, layer: rng.random())
    tiles = set()
    for threads in THREADS * 5:
        tuned = Network(made, batch, threads, instruction_set)
        tiles |= {(each.vectors, each.block_rows, each.groups) for each in tuned._layers}
        # The classifier does without vectors where there is one pixel.
        assert tuned._layers[-1].lanes == (1 if batch == 1 else tuned.lanes)
        assert_same_bits(tuned(images), first)
    assert len(tiles) > 15
    assert {groups for _, _, groups in tiles} == {1, 2, 3}


def test_pictures_too_large_for_a_cache_are_computed_in_parts(monkeypatch):
    made = model(*NETWORKS["MobileNet"])
    images = pictures(made)
    sizes = [np.prod(shape) for shape in model_file.shapes(made)]
    most = max(map(sum, zip(sizes, sizes[1:])))
    two_at_once = Network(made, 2, tune=False)
    expected = [two_at_once(images[i : i + 2]) for i in (0, 2, 4)]
    monkeypatch.setattr(network, "MAX_CACHED", 2 * most + 1)
    whole = Network(made, 5, tune=False)
    assert whole.shape == (2, *made.input_shape)
    assert_same_bits(whole(images), np.concatenate(expected))
    assert_same_bits(whole(images[:3]), np.concatenate(expected)[:3])
    monkeypatch.setattr(network, "MAX_CACHED", 1)
    assert Network(made, 5, tune=False).shape == (1, *made.input_shape)


@every_set
@pytest.mark.parametrize("sides", [(1, 1), (1, 40), (2, 3), (7, 7), (15, 17)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_pictures_do_not_touch_each_other(sides, stride, instruction_set):
    made = model(
        (3, *sides), convolution(17, 3, 1, 1, relu=False), depthwise(stride, relu=False),
        convolution(33, relu=False), convolution(5, 3, stride, 1), depthwise(), convolution(200),
    )  # fmt: skip
    images = pictures(made)
    tried = Network(made, BATCH, 2, instruction_set, tune=False)
    first = tried(images)
    for bad in (np.nan, np.inf, -np.inf):
        tried(np.full_like(images, bad))
        for count in (2, 4, 1, 5):  # beside what the call before left
            assert_same_bits(tried(images[:count]), first[:count])
            assert_same_bits(tried(images[-count:]), first[-count:])
        mixed = images.copy()
        mixed[::2] = bad
        assert_same_bits(tried(mixed)[1::2], first[1::2])


@every_set
@pytest.mark.parametrize("stride", [1, 2])
def test_what_is_no_number_stays_so(stride, instruction_set):
    steps = convolution(8, 3, 1, 1), depthwise(stride), LAST, depthwise(stride, False), LAST, POOL
    made = model((3, 15, 17), *steps, density=1)
    images = pictures(made, 3)
    images[1] = np.nan
    result = Network(made, 3, 1, instruction_set, tune=False)(images)
    assert np.isnan(result).all(1).tolist() == [False, True, False]
    assert np.isfinite(result[::2]).all()


@pytest.mark.parametrize(
    ("shape", "last"),
    [((3, 4, 4), 5), ((3, 1, 1), 1), ((3, 7, 7), 1), ((3, 7, 7), 5), ((3, 1, 1), 16)],
)
@pytest.mark.parametrize("batch", [1, 16])
def test_a_result_is_the_callers(shape, last, batch):
    made = model(shape, convolution(last, relu=False))
    tried = Network(made, batch, instruction_set="plain", tune=False)
    images = pictures(made, batch)
    first = tried(images)
    kept = first.copy()
    tried(2 * images)
    assert_same_bits(first, kept)
    first[:] = 7
    assert_same_bits(tried(images), kept)


def test_the_pictures_stay_and_may_have_any_strides():
    made = model((3, 7, 8), convolution(5, 3, relu=False))
    tried = Network(made, 2, instruction_set="plain", tune=False)
    images = pictures(made, 2)
    before, first = images.copy(), tried(images)
    assert_same_bits(images, before)
    assert_same_bits(tried(images.astype(np.float64)), first)
    assert_same_bits(tried(np.asfortranarray(images)), first)
    assert_same_bits(tried(images[::-1])[::-1], first)
    assert_same_bits(tried(images.tolist()), first)


@every_set
def test_several_threads_call(instruction_set):
    made = [model(*NETWORKS[name]) for name in ("MobileNet", "kernel 5, stride 2")]
    made.append(model(*NETWORKS["MobileNet"], seed=1))
    tried = [Network(m, 2, 1 + i, instruction_set, tune=False) for i, m in enumerate(made)]
    images = [[pictures(m, 2, seed) for seed in range(4)] for m in made]
    alone = [[tried[i](batch) for batch in images[i]] for i in range(3)]
    start = threading.Barrier(4)

    def call(thread: int) -> None:
        start.wait()
        turns = [(i % 3, (i + thread) % 4) for i in range(thread, thread + 60)]
        for which, i in turns:
            assert_same_bits(tried[which](images[which][i]), alone[which][i])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(4)))  # raises what they raised


def test_a_network_stays_when_another_ends():
    made = model(*NETWORKS["MobileNet"])
    images = pictures(made, 1)
    stays = Network(made, threads=2, tune=False)
    first = stays(images)
    for threads in THREADS:
        ends = Network(made, threads=threads, tune=False)
        assert_same_bits(ends(images), first)
        del ends
        assert_same_bits(stays(images), first)


@linux
def test_networks_that_end_leave_no_threads():
    made = model(*NETWORKS["kernel 3"])
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
    assert tried(pictures(SMALL, 2)).shape == (2, 5, 5, 6)


@pytest.mark.parametrize(("batch", "threads"), [(0, 1), (-1, 1), (1, 0), (1, -2)])
def test_no_pictures_or_threads_are_refused(batch, threads):
    with pytest.raises(ValueError, match=f"at least 1, got {batch} and {threads}"):
        Network(SMALL, batch, threads)


def test_a_network_that_does_not_fit_is_refused():
    wrong = model((3, 7, 8), convolution(5, 3), convolution(4))
    wrong.operators[1].weight = wrong.operators[1].weight[:, 1:]
    with pytest.raises(ValueError, match=r"operator 1 .* a weight of \[4, 4\], not \[C_out, 5\]"):
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


def test_pairs_by_hand():
    matrix = np.float32([[1, 0, 2, 0], [0, 0, 3, 0], [4, 5, 0, 6]])
    values, indices, starts, pairs = network._by_block(matrix, 3)
    # Of the first three columns the rows have 2, 1, 2 weights, the added one none; of the last one
    # 0, 0, 1 and none. Rows that have as many are paired.
    assert pairs["rows"].tolist() == [[3, 1], [0, 2], [0, 1], [3, 2]]
    assert pairs["both_first_second"].tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert values.tolist() == [3, 1, 4, 2, 5, 6]
    assert indices.tolist() == [2, 0, 2, 1, 0]
    assert starts.tolist() == [[[0, 0]], [[5, 4]]]


def test_rows_are_paired_within_their_chunk():
    matrix = np.tri(200, 300, k=2, dtype=np.float32)
    _, indices, starts, pairs = network._by_block(matrix, 300)
    chunks = pairs["rows"].reshape(-1, 2) // network.CHUNK
    assert (chunks[:, 0] == chunks[:, 1]).all()
    assert sorted(pairs["rows"].ravel()) == list(range(200))
    counts = pairs["both_first_second"].sum(1)
    assert starts[0, :, 1].tolist() == [counts[: 32 * chunk].sum() for chunk in range(4)]
    assert len(indices) == counts.sum()
