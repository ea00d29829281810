"""Networks of given weights, their masks, and what a plain sort would mask."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn

from unstructured_pruner import UnstructuredPruner
from unstructured_pruning import sampling

DTYPES = ["float16", "bfloat16", "float32", "float64"]


PADDLE_2 = paddle.__version__.startswith("2.")


def net_of(*arrays, dtype: str = "float32") -> nn.Layer:
    """A layer whose root owns the parameters w0, w1, ... with these values."""
    net = nn.Layer()
    for i, values in enumerate(arrays):
        values = paddle.to_tensor(np.asarray(values)).astype(dtype)
        parameter = net.create_parameter(values.shape, dtype=dtype)
        paddle.assign(values, output=parameter)
        net.add_parameter(f"w{i}", parameter)
    return net


def values_of(tensor: paddle.Tensor) -> np.ndarray:
    return tensor.detach().astype("float64").numpy()


def masks_of(pruner: UnstructuredPruner) -> list:
    return [mask.numpy().astype(int).tolist() for mask in pruner.masks.values()]


def stepped(net: nn.Layer, mode: str, strategy=UnstructuredPruner, **options) -> UnstructuredPruner:
    pruner = strategy(net, mode, **options)
    pruner.step()
    return pruner


def sorted_masks(arrays: list[np.ndarray], ratio: float) -> list[np.ndarray]:
    """What ratio mode has to give, by a stable sort (numpy sorts NaN to the end; NaN is kept)."""
    flat = np.abs(np.concatenate([a.ravel() for a in arrays]))
    keep = np.isnan(flat)
    keep[np.argsort(flat, kind="stable")[round(ratio * flat.size) :]] = True
    ends = np.cumsum([a.size for a in arrays])[:-1]
    return [part.reshape(a.shape) for part, a in zip(np.split(keep, ends), arrays)]


class ConvNet(nn.Layer):
    """A net with a layer of each kind that matters for names and counts."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2D(1, 4, 3), nn.BatchNorm2D(4), nn.Conv2D(4, 2, 1))
        self.fc = nn.Linear(2, 5)

    def forward(self, x):
        return self.fc(self.features(x).mean(axis=[2, 3]))


N = 3 * 65536 + 7
STRIDE = sampling.stride(N)


def layouts(stride=STRIDE) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(N).astype("float32")
    index = np.arange(N)
    return {
        "normal": normal,
        "sorted": np.sort(normal),
        "largest_first": -np.sort(-np.abs(normal)),
        "heavy_tailed": rng.standard_cauchy(N).astype("float32") ** 3,
        "two_valued": np.where(rng.random(N) < 0.4, -0.25, 0.5).astype("float32"),
        "all_equal": np.full(N, -0.125, "float32"),
        "sixty_percent_zeros": normal * (rng.random(N) < 0.4),
        "stride_sees_only_zeros": np.where(index % stride == 0, 0, normal),
        "stride_sees_only_the_largest": np.where(index % stride == 0, 100 + normal, normal),
        "stride_sees_two_extremes": np.where(
            index % stride == 0, np.where(index % 2, 0, 9), normal
        ),
        "small_integers": np.round(3 * normal),
        "nearly_half_nan": np.where(rng.random(N) < 0.45, np.nan, normal),
        "some_nan_and_inf": np.where(rng.random(N) < 0.01, np.nan, np.where(normal > 3, np.inf, 1)),
    }
