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
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_runtime import Network, build, model_file, network
from sparse_runtime.model_file import Model, Operator

ROOT = Path(__file__).resolve().parent.parent
BATCH, THREADS = 5, (1, 2, 3)
ERROR = 2e-6  # float32 rounds a sum by some 1e-7 of its absolute terms, here 1800 at most

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
every_set = pytest.mark.parametrize("instruction_set", build.instruction_sets())


def convolution(rows, kernel=1, stride=1, padding=0, relu=True):
    return rows, {"kind": "convolution", "kernel": kernel, "stride": stride, "padding": padding,
                  "relu": relu}  # fmt: skip


def depthwise(stride=1, relu=True):
    return None, {"kind": "depthwise", "kernel": 3, "stride": stride, "padding": 1, "relu": relu}


POOL = None, {"kind": "pool"}
LAST = convolution(10, relu=False)


def model(shape, *steps, density=0.4, seed=0) -> Model:
    """These steps with random weights; of a convolution they say how many channels it makes."""
    rng = np.random.default_rng(seed)
    channels, operators = shape[0], []
    for rows, fields in steps:
        op = Operator(inputs=[len(operators)], **fields)
        operators.append(op)
        if op.kind == "pool":
            continue
        rows = rows or channels
        columns = 9 if op.kind == "depthwise" else channels * op.kernel**2
        kept = rng.random((rows, columns)) < (1 if op.kind == "depthwise" else density)
        op.weight = rng.standard_normal((rows, columns), np.float32) * kept
        op.bias = rng.standard_normal(rows, np.float32)
        channels = rows
    return Model(shape, operators)


def pictures(made: Model, count: int = BATCH, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *made.input_shape), np.float32)


def windows_times(x, weight, bias, op: Operator) -> np.ndarray:
    """[B, C, H, W] convolved."""
    around = (op.padding, op.padding)
    x = np.pad(x, ((0, 0), (0, 0), around, around))
    x = np.lib.stride_tricks.sliding_window_view(x, (op.kernel, op.kernel), axis=(2, 3))
    x = x[:, :, :: op.stride, :: op.stride]
    weight = weight.reshape(len(weight), -1, op.kernel, op.kernel)
    if op.kind == "depthwise":
        return np.einsum("bchwyx,cyx->bchw", x, weight[:, 0]) + bias[:, None, None]
    return np.einsum("bchwyx,ocyx->bohw", x, weight, optimize=True) + bias[:, None, None]


def expected(made: Model, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the network has to give, in float64, and how far from it float32 may be."""
    x = images.astype(np.float64)
    apart = np.zeros_like(x)
    for op in made.operators:
        if op.kind == "pool":
            apart = (apart + ERROR * abs(x)).mean((2, 3), keepdims=True)
            x = x.mean((2, 3), keepdims=True)
            continue
        size, bias = abs(op.weight), abs(op.bias)
        apart = windows_times(apart, size, 0 * bias, op)
        apart += ERROR * windows_times(abs(x), size, bias, op)
        x = windows_times(x, op.weight, op.bias, op)
        if op.relu:
            x = np.maximum(x, 0)
    return (x[:, :, 0, 0], apart[:, :, 0, 0]) if x.shape[2:] == (1, 1) else (x, apart)


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


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))


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
    monkeypatch.setattr(network, "CACHED", 2 * most + 1)
    whole = Network(made, 5, tune=False)
    assert whole.shape == (2, *made.input_shape)
    assert_same_bits(whole(images), np.concatenate(expected))
    assert_same_bits(whole(images[:3]), np.concatenate(expected)[:3])
    monkeypatch.setattr(network, "CACHED", 1)
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


SMALL = model((3, 7, 8), convolution(5, 3, relu=False))


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
from test_sparse_runtime import SMALL, Network
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
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "could not start 500 threads\n"), done.stderr


def test_pairs_by_hand():
    matrix = np.float32([[1, 0, 2, 0], [0, 0, 3, 0], [4, 5, 0, 6]])
    values, indices, starts, pairs = network._by_block(matrix, 3)
    # Of the first three columns the rows have 2, 1, 2 weights, the added one none; of the last one
    # 0, 0, 1 and none. Rows that have as many are paired.
    assert pairs["rows"].tolist() == [[3, 1], [0, 2], [0, 1], [3, 2]]
    assert pairs["both_one_other"].tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0], [0, 0, 1]]
    assert values.tolist() == [3, 1, 4, 2, 5, 6]
    assert indices.tolist() == [2, 0, 2, 1, 0]
    assert starts.tolist() == [[[0, 0]], [[5, 4]]]


def test_rows_are_paired_within_their_chunk():
    matrix = np.tri(200, 300, k=2, dtype=np.float32)
    _, indices, starts, pairs = network._by_block(matrix, 300)
    chunks = pairs["rows"].reshape(-1, 2) // network.CHUNK
    assert (chunks[:, 0] == chunks[:, 1]).all()
    assert sorted(pairs["rows"].ravel()) == list(range(200))
    counts = pairs["both_one_other"].sum(1)
    assert starts[0, :, 1].tolist() == [counts[: 32 * chunk].sum() for chunk in range(4)]
    assert len(indices) == counts.sum()


# The compiler


def test_both_sides_mean_the_same_layer():
    for name in build.instruction_sets():
        library = build.library(name)
        assert library.layer_size() == network.ctypes.sizeof(network.Layer)
        assert library.lanes() == {"avx512": 16, "avx2": 8, "plain": 4}[name]
        assert library.pair_size() == network.PAIR.itemsize
        assert library.chunk() == network.CHUNK


def test_the_best_instructions_are_the_default():
    assert Network(SMALL, tune=False).lanes == build.library(build.instruction_sets()[0]).lanes()


@pytest.mark.parametrize("name", ["neon", "AVX2", "../plain"])
def test_unknown_instructions_are_refused(name):
    with pytest.raises(ValueError, match=f"no {name}; it has .*plain"):
        Network(SMALL, instruction_set=name)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("flags\t\t: fpu avx512f avx2 fma", ["avx512", "avx2", "plain"]),
        ("flags\t\t: fpu avx avx2 fma", ["avx2", "plain"]),
        ("flags\t\t: fpu avx512f avx2", ["plain"]),
        ("Features\t: fp asimd", ["plain"]),
        ("", ["plain"]),
    ],
)
def test_instructions_of_another_machine(flags, found, monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path: f"processor\t: 0\n{flags}\n")
    assert build.instruction_sets() == found
    build.library.cache_clear()
    for name in build.FLAGS.keys() - found:
        with pytest.raises(ValueError, match=f"no {name}; it has {', '.join(found)}$"):
            build.library(name)


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that copies a library which is there already, and a list of its commands."""
    real = build.library("plain")._name
    log, program = tmp_path / "log", tmp_path / "compiler"
    program.write_text(f"""#!/bin/sh
        echo "$@" >> {log}
        case "$*" in *--version*) echo one; exit;; esac
        for last; do :; done
        cp {real} "$last"
    """)
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))
    monkeypatch.delenv("CXXFLAGS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.library.cache_clear()
    yield lambda: [line for line in log.read_text().splitlines() if "--version" not in line]
    build.library.cache_clear()


def compiled(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("cache/paddle-unstructured-pruning/*"))


def test_the_kernels_are_compiled_once(compiler, tmp_path, capsys):
    right = expected(SMALL, pictures(SMALL, 1))[0]
    for _ in range(3):
        build.library.cache_clear()  # as in another process
        result = Network(SMALL, instruction_set="plain", tune=False)(pictures(SMALL, 1))
        np.testing.assert_allclose(result, right, rtol=1e-4, atol=1e-4)
    told = "compiling the sparse runtime for plain (once, up to a minute)\n"
    assert capsys.readouterr() == ("", told)
    (command,) = compiler()
    assert all(f"{name}.cpp" in command for name in ("network", "patches", "pointwise", "pool"))
    (name,) = compiled(tmp_path)  # and nothing beside it
    assert name.startswith("kernels-plain-")
    assert (tmp_path / "cache/paddle-unstructured-pruning").stat().st_mode & 0o077 == 0


def test_what_the_kernels_depend_on(compiler, tmp_path, monkeypatch):
    def again(count: int) -> None:
        for _ in range(2):
            build.library.cache_clear()
            build.library("plain")
        assert len(compiler()) == len(compiled(tmp_path)) == count

    again(1)
    monkeypatch.setenv("CXXFLAGS", "-g '-DA=b c'")
    again(2)
    assert "-g -DA=b c" in compiler()[-1]
    program = tmp_path / "compiler"
    program.write_text(program.read_text().replace("echo one", "echo two"))  # a new version
    again(3)
    monkeypatch.setenv("CXX", f"{program} -pipe")
    again(4)
    kernels = tmp_path / "kernels"
    kernels.mkdir()
    for path in build.KERNELS.iterdir():
        (kernels / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(build, "KERNELS", kernels)
    (kernels / "simd.h").write_text("another")
    again(5)
    monkeypatch.delenv("CXXFLAGS")
    monkeypatch.setenv("CXX", str(program))
    again(6)


def test_both_compile_at_once(compiler, tmp_path):
    with ThreadPoolExecutor(4) as pool:
        tried = list(pool.map(lambda i: Network(SMALL, 1, 1, "plain", False), range(4)))
    assert len({network(pictures(SMALL, 1)).tobytes() for network in tried}) == 1
    assert len(compiled(tmp_path)) == 1


def refusal() -> str:
    build.library.cache_clear()
    with pytest.raises(ValueError, match=r".") as refused:
        Network(SMALL, instruction_set="plain")
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_no_compiler(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -pipe")
    assert "there is no no-such-compiler" in refusal()
    assert "apt-get install g++" in refusal()
    for nothing in ("", " "):
        monkeypatch.setenv("CXX", nothing)
        monkeypatch.setenv("PATH", str(tmp_path / "empty"))
        assert "there is no C++ compiler; install one" in refusal()
    monkeypatch.delenv("CXX")
    assert "there is no C++ compiler; install one" in refusal()


@pytest.mark.parametrize("which", ["*) ", "*--version*) exit;; *) echo some;"])
def test_a_compiler_that_fails(which, compiler, tmp_path, monkeypatch):
    program = tmp_path / "compiler"
    failing = "(echo warning: old; echo 'a.cpp:1: error: no AVX'; echo 'b: error') >&2; exit 1"
    program.write_text(f'#!/bin/sh\ncase "$*" in {which} {failing};; esac\n')
    assert refusal() == f"{program} could not compile the kernels: a.cpp:1: error: no AVX"
    assert compiled(tmp_path) == []
    program.write_text("#!/bin/sh\nexit 1\n")
    assert refusal() == f"{program} could not compile the kernels: status 1"
    program.write_text("no program")
    assert refusal().startswith(str(program))


def test_a_real_compiler_that_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CXXFLAGS", "-std=c++1")
    try:
        assert "could not compile the kernels: " in refusal()
    finally:
        build.library.cache_clear()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owners")
def test_a_cache_of_another_user(compiler, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert refusal() == (
        f"cannot keep the compiled kernels in {tmp_path}/paddle-unstructured-pruning: "
        "it belongs to another user; set XDG_CACHE_HOME"
    )


def test_a_cache_that_cannot_be_made(compiler, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = tmp_path / "file/paddle-unstructured-pruning"
    assert refusal() == (
        f"cannot keep the compiled kernels in {folder}: Not a directory; set XDG_CACHE_HOME"
    )
