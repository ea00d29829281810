"""A network of the sparse runtime as its callers use it: results, threads, refusals.

Imports neither paddle nor onnx: with `--noconftest` it runs under sanitizers, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from named_networks import (
    LINEAR,
    named,
)
from sparse_networks import (
    SMALL,
    THREADS,
    assert_close,
    assert_right,
    assert_same,
    assert_same_bits,
    convolution,
    expected,
    model,
    pictures,
    pool,
)

from sparse_runtime import Network, build

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
every_set = pytest.mark.parametrize("instruction_set", build.instruction_sets())


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_makes_its_own():
    made = model((3, 7, 8), convolution(5))
    tried, images = Network(made, 1, 2, tune=False), pictures(made, 1)
    right = tried(images)
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        status = 1
        try:
            tried(images)
        except RuntimeError:
            status = 7
        del tried  # which waits for none of the threads that it does not have
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert_same(tried(images), right)


def test_what_is_known_of_a_large_picture_takes_little_memory():
    made = model((1, 1024, 2048), convolution(1, 3, padding=1))
    tracemalloc.start()
    tried = Network(made, tune=False)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.5 * tried.activations


def test_threads_that_need_too_much():
    """A little file: 128 rows of a picture that is wide, and the 128 times as many under them."""
    tall = pool("max_pool", [128, 1], [128, 1], [127, 0, 127, 0])
    made = model((1, 500, 65_000), tall)
    Network(made, tune=False)
    with pytest.raises(ValueError, match="its threads take"):
        Network(made, 1, 64, tune=False)


def test_outputs_that_take_too_much():
    """A result again and again."""
    made = model((1, 1024, 1024), convolution(1), outputs=[1] * 2049)
    with pytest.raises(ValueError, match="its results take"):
        Network(made, 1, tune=False)


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
