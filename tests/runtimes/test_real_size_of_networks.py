"""The sparse runtime with the largest networks that somebody has."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import long
from sparse_networks import (
    LAST,
    MEAN,
    convolution,
    depthwise,
    expected,
    model,
    pictures,
    pool,
)  # fmt: skip

from sparse_runtime import Network, model_file
from sparse_runtime.model_file import Model
from sparse_runtime.operators import Scale, Upsample

MOST = (1 << 16) - 1  # channels, or pixels in a direction
MOBILENET = [convolution(32, 3, 2, 1)]
for rows, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
                     (1024, 2), (1024, 1)]:  # fmt: skip
    MOBILENET += [depthwise(stride), convolution(rows)]


def resnet50() -> list[dict]:
    steps = [convolution(64, 7, 2, 3), pool("max_pool", 3, 2, 1)]
    for rows, count in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(count):
            before, stride = len(steps), 2 if block == 0 and rows > 64 else 1
            steps += [
                convolution(rows, inputs=[before]), convolution(rows, 3, stride, 1),
                convolution(4 * rows, activation="none"),
            ]  # fmt: skip
            if block == 0:
                steps.append(convolution(4 * rows, 1, stride, activation="none", inputs=[before]))
            other = -2 if block == 0 else before
            steps.append({"kind": "add", "inputs": [-1, other], "activation": "relu"})
    return [*steps, MEAN, convolution(1000, activation="none")]


def assert_right(made: Model, tried: Network) -> None:
    images = pictures(made, 1)
    for result, (right, apart) in zip(tried(images), expected(made, images)):
        assert (abs(result - right) - apart).max() <= 0


def in_full(steps: list[dict], side: int, folder) -> np.ndarray:
    """What the last layer gives; all of it is close to what it has to be."""
    made = model((3, side, side), *steps, density=0.45)
    for op in made.operators:  # so that numbers do not grow from layer to layer
        if hasattr(op, "weight"):
            op.weight /= np.sqrt(op.weight.shape[1])
    path = folder / "model-sparse.safetensors"
    model_file.write(made, path)
    read = model_file.read(path)
    for op, wanted in zip(read.operators, made.operators):
        for name in op.ARRAYS:
            np.testing.assert_array_equal(getattr(op, name), getattr(wanted, name))
    images = pictures(made, 1)
    ((right, _),) = expected(made, images)
    assert right.std() > 0.5
    (first,), (result,) = (Network(path, 1, 2, tune=tune)(images) for tune in (False, True))
    largest = abs(right).max()
    np.testing.assert_allclose(result, right, rtol=0, atol=1e-4 * largest)
    np.testing.assert_allclose(result, first, rtol=0, atol=1e-5 * largest)
    return result


@pytest.mark.parametrize(("classes", "side"), [(1000, 224), pytest.param(21_841, 512, marks=long)])
def test_mobilenet_in_full(classes, side, large_tmp_path):
    """Also with all of ImageNet's 21,841 classes, and larger pictures."""
    steps = [*MOBILENET, MEAN, convolution(classes, activation="none")]
    assert in_full(steps, side, large_tmp_path).shape == (1, classes)


@long
def test_resnet50_in_full(large_tmp_path):
    assert in_full(resnet50(), 224, large_tmp_path).shape == (1, 1000)


@long
def test_the_fully_connected_layers_of_vgg(large_tmp_path):
    steps = [{"kind": "flatten"}, convolution(4096), convolution(4096), convolution(1000)]
    assert in_full([convolution(512), *steps], 7, large_tmp_path).shape == (1, 1000)


@pytest.mark.parametrize(
    ("shape", "step"),
    [
        ((MOST, 1, 1), convolution(16)),
        ((16, 1, 1), convolution(MOST)),
        ((8192, 3, 3), convolution(16, 3)),
        ((MOST, 3, 3), convolution(2, 3)),
        ((MOST, 2, 2), depthwise()),
        ((4096, 3, 3), convolution(8192, 3, 1, 1, groups=4096)),
        ((1, 1, MOST), convolution(2, [1, 128], [1, 128], [0, 127, 0, 127])),
        ((2, MOST, 1), depthwise(kernel=[128, 1], stride=[3, 1], padding=[127, 0, 127, 0])),
        ((2, 1, MOST), pool("max_pool", [1, 128], [1, 128])),
        ((1, MOST, 3), pool("average_pool", [128, 3], [1, 2], [127, 1, 127, 1])),
        ((3, 130, 140), convolution(5, 128)),
        ((2, 300, 500), depthwise(kernel=128, stride=128, padding=127)),
        ((1, 3000, 5000), depthwise(2)),
        ((1, 3000, 5000), MEAN),
        ((3, 21, 30), {"kind": "upsample", "factor": 64}),
        ((1, 255, 257), {"kind": "flatten"}),
        ((3, 7, 7), {"kind": "channels", "channels": [2, 0, 1] * (MOST // 3)}),
        ((MOST // 3, 3, 3), {"kind": "concatenation", "inputs": [0, 0, 0]}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else value["kind"],
)
def test_the_largest_layers(shape, step):
    """Those that are too large are in test_sparse_forged.py."""
    made = model(shape, step)
    assert_right(made, Network(made, threads=2, tune=False))


def test_a_batch_that_is_larger_than_a_cache():
    made = model((3, 32, 32), *MOBILENET, MEAN, LAST)
    images = pictures(made, 300)
    tried = Network(made, 300, 2, tune=False)
    assert tried.shape[0] < 300
    (result,) = tried(images)
    ((right, apart),) = expected(made, images[-3:])
    assert (abs(result[-3:] - right) - apart).max() <= 0


def test_as_many_operators_as_there_may_be():
    def made(count: int) -> Model:
        return Model((2, 3, 3), [Upsample([0], 1) for _ in range(count)], list(range(1, count + 1)))

    images = pictures(made(1), 1)
    results = Network(made(model_file.MAX_OPERATORS), tune=False)(images)
    assert all((result == images).all() for result in results)
    with pytest.raises(ValueError, match="4097 operators, more than 4096"):
        Network(made(model_file.MAX_OPERATORS + 1), tune=False)


def test_the_largest_results_together():
    """Two of the largest beside an input of that size; four are refused before they are made."""
    shape = (8, 1 << 13, 1 << 13)
    scaled = [
        Scale([0], scale=np.ones(8, np.float32), shift=np.ones(8, np.float32)) for _ in range(4)
    ]
    network = Network(Model(shape, scaled[:2], [1, 2]), tune=False)  # no page of it is touched
    assert network.activations > 3 * 4 * np.prod(shape)
    with pytest.raises(ValueError, match="more than"):
        Network(Model(shape, scaled, [1, 2, 3, 4]), tune=False)
    enlarged = [Upsample([min(number, 1)], 64) for number in range(2001)]  # in a few kilobytes
    with pytest.raises(ValueError, match="more than"):
        Network(Model((2, 4, 4), enlarged, list(range(2, 2002))), tune=False)
