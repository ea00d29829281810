"""A file of the sparse runtime, and what reads one that is to be refused."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import settings
from sparse_networks import LAST, MEAN, convolution, depthwise, model, pool

from sparse_runtime import model_file
from sparse_runtime.model_file import Model

SECONDS, MEGABYTES = 2, 64  # what a file that is refused may take at most
properties = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def small() -> Model:
    """All kinds of operators, with a bitmap for the weights of operator 0 and gaps for 2."""
    window = {"kernel": [3, 2], "padding": [1, 0, 1, 0]}
    made = model(
        (2, 5, 4), convolution(3, 3, 2, 1), depthwise(), convolution(60, activation="none"), MEAN,
        LAST,
        convolution(60, 3, 1, 1, "leaky_relu", groups=3, slope=0.1, inputs=[3]),
        {"kind": "add", "inputs": [3, -1], "activation": "relu6"},
        {"kind": "multiply", "inputs": [-1, 4], "activation": "hard_sigmoid"},
        {"kind": "scale", "activation": "hard_swish"},
        pool("max_pool", **window), pool("average_pool", **window, inputs=[-2]),
        {"kind": "concatenation", "inputs": [-2, -1, 10]}, {"kind": "channels", "channels": [7, 0]},
        {"kind": "upsample", "factor": 3}, {"kind": "flatten"}, outputs=[-2, 5, -1],
    )  # fmt: skip
    made.operators[2].weight[1:-1] = 0
    return made


def assert_same_model(left: Model, other: Model) -> None:
    for name in ("input_shape", "outputs", "pictures"):
        assert getattr(left, name) == getattr(other, name)
    assert [op.kind for op in left.operators] == [op.kind for op in other.operators]
    for op, like in zip(left.operators, other.operators):
        fields, wanted = dict(vars(op)), dict(vars(like))
        for name, dtype in op.ARRAYS.items():
            assert fields[name].dtype == dtype
            np.testing.assert_array_equal(fields.pop(name), wanted.pop(name))
        assert fields == wanted


def row(*parts) -> np.ndarray:
    """[1, N]: a negative number stands for that many zeros."""
    return np.array([[x for part in parts for x in ([0] * -part if part < 0 else [part])]], "f4")


def refusal(path) -> str:
    """Why the file is refused: in one line that names it, soon, and with little memory."""
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is no network for the sparse") as refused:
            model_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < SECONDS
    message = str(refused.value)
    assert message.startswith(f"{path} is no network")
    assert "\n" not in message
    assert len(message) < 1000
    return message
