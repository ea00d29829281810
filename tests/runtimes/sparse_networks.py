"""Networks of random weights for the sparse runtime's tests, and what they have to give.

Imports neither paddle nor onnx, and nothing of conftest.
"""

from __future__ import annotations

import numpy as np

from sparse_runtime.model_file import Model, Operator

BATCH, THREADS = 5, (1, 2, 3)
ERROR = 2e-6  # float32 rounds a sum by some 1e-7 of its absolute terms, here 1800 at most


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


def assert_same_bits(left: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(left.view(np.uint32), other.view(np.uint32))


SMALL = model((3, 7, 8), convolution(5, 3, relu=False))
