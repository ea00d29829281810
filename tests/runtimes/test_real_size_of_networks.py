"""The sparse runtime with the largest networks that somebody has."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import long
from sparse_networks import POOL, convolution, depthwise, expected, model, pictures

from sparse_runtime import Network, model_file

MOBILENET = [convolution(32, 3, 2, 1)]
for rows, stride in [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
                     (1024, 2), (1024, 1)]:  # fmt: skip
    MOBILENET += [depthwise(stride), convolution(rows)]


@pytest.mark.parametrize(("classes", "side"), [(1000, 224), pytest.param(21_841, 512, marks=long)])
def test_mobilenet_in_full(classes, side, large_tmp_path):
    """Also with all of ImageNet's 21,841 classes, and larger pictures."""
    steps = [*MOBILENET, POOL, convolution(classes, relu=False)]
    made = model((3, side, side), *steps, density=0.45)
    for op in made.operators:  # so that numbers do not grow from layer to layer
        if op.weight is not None:
            op.weight /= np.sqrt(op.weight.shape[1])
    path = large_tmp_path / "model-sparse.safetensors"
    model_file.write(made, path)
    read = model_file.read(path)
    for op, wanted in zip(read.operators, made.operators):
        np.testing.assert_array_equal(op.weight, wanted.weight)
    images = pictures(made, 1)
    right, _ = expected(made, images)
    assert right.shape == (1, classes)
    assert right.std() > 0.5
    np.testing.assert_allclose(Network(path, 1, 2, tune=False)(images), right, rtol=0, atol=1e-4)


def test_the_largest_layers():
    """Those that are too large are in test_sparse_forged.py."""
    most = (1 << 16) - 1
    for shape, step in (
        ((most, 1, 1), convolution(16)),
        ((16, 1, 1), convolution(most)),
        ((8192, 3, 3), convolution(16, 3)),
        ((most, 3, 3), convolution(2, 3)),
    ):
        made = model(shape, step)
        images = pictures(made, 1)
        right, apart = expected(made, images)
        assert (abs(Network(made, tune=False)(images) - right) - apart).max() <= 0
