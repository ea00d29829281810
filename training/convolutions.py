"""Convolutions of small pictures on the CPU by other operators of Paddle, several times as fast.

Paddle's own multiplies small matrices for every picture (1x1), and is slow in every depthwise
convolution. Here a whole batch is one product:

- 1x1: [N * H * W, C] @ [C, C_out];
- depthwise: for every channel [N, H * W] @ [H * W, H' * W'], a matrix with the weights of the
  kernel in bands, which the product of the weights with a constant of 0 and 1 makes.

Weights, names and state dict stay what they are. A result may differ in its last bits, as sums are
taken in another order; which operators compute it follows from shapes alone.
"""

from __future__ import annotations

import math
from functools import cache, partial

import numpy as np
import paddle
from paddle import nn

MAX_PIXELS = 16  # of a picture, 1x1; with more Paddle's own is as fast
MAX_ENTRIES = 16384  # of a channel's matrix, depthwise; with more Paddle's own is as fast
MAX_ENTRIES_A_PICTURE = 512  # of a batch: making the matrices has to pay


def use_fast(model: nn.Layer) -> None:
    """Has every 1x1 and depthwise Conv2D choose its operators by shape; on the CPU alone."""
    if paddle.get_device() != "cpu":
        return
    for layer in model.sublayers(include_self=True):
        compute = kind_of(layer) if type(layer) is nn.Conv2D else None
        if compute is not None:
            layer.forward = partial(forward, layer, compute)


def kind_of(layer: nn.Conv2D):
    """What computes it where pictures are small; None: nothing but Paddle's own."""
    explicit = layer._padding_algorithm == "EXPLICIT" and len(layer._updated_padding) == 2
    if not explicit or layer._padding_mode != "zeros" or layer._data_format != "NCHW":
        return None
    outputs, inputs, *kernel = layer.weight.shape
    plain = kernel == [1, 1] and not any(layer._updated_padding)
    if plain and layer._groups == 1 and list(layer._stride) == [1, 1]:
        return pointwise
    return depthwise if inputs == 1 and layer._groups == outputs else None


def forward(layer: nn.Conv2D, compute, images: paddle.Tensor) -> paddle.Tensor:
    """In place of layer.forward(); float32 [N, C, H, W] -> [N, C_out, H', W']."""
    result = compute(layer, images)
    if result is None:
        return type(layer).forward(layer, images)
    return result if layer.bias is None else result + layer.bias.reshape([1, -1, 1, 1])


def pointwise(layer: nn.Conv2D, images: paddle.Tensor) -> paddle.Tensor | None:
    """Without the bias; None where Paddle's own is the faster one."""
    pictures, channels, height, width = images.shape
    if height * width > MAX_PIXELS:
        return None
    weight = layer.weight.reshape([-1, channels])
    pixels = images.transpose([0, 2, 3, 1]).reshape([-1, channels])
    result = paddle.matmul(pixels, weight, transpose_y=True)
    return result.reshape([pictures, height, width, -1]).transpose([0, 3, 1, 2])


def depthwise(layer: nn.Conv2D, images: paddle.Tensor) -> paddle.Tensor | None:
    """As pointwise()."""
    pictures, channels, *size = images.shape
    axes = size, layer.weight.shape[2:], layer._stride, layer._updated_padding, layer._dilation
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(*axes)]
    entries = math.prod(size) * math.prod(out)
    if entries > min(MAX_ENTRIES, MAX_ENTRIES_A_PICTURE * pictures):
        return None
    matrices = paddle.matmul(
        layer.weight.reshape([channels, -1]), bands(*map(tuple, (out, *axes)))
    ).reshape([channels, math.prod(size), -1])
    pixels = images.reshape([pictures, channels, -1]).transpose([1, 0, 2])
    result = paddle.matmul(pixels, matrices).transpose([1, 0, 2])
    return result.reshape([pictures, channels, *out])


@cache
def bands(out, size, kernel, stride, padding, dilation) -> paddle.Tensor:
    """float32 [weights of a kernel, H * W * H' * W']: 1 where a weight leads from pixel to pixel.

    Each argument: of the rows and of the columns.
    """
    rows, columns = (
        np.arange(n)[:, None] == np.arange(o) * s - p + (np.arange(k) * d)[:, None, None]
        for o, n, k, s, p, d in zip(out, size, kernel, stride, padding, dilation)
    )  # [kernel, pixels, pixels of the result]
    both = rows[:, None, :, None, :, None] & columns[None, :, None, :, None, :]
    return paddle.to_tensor(both.reshape([math.prod(kernel), -1]).astype("float32"))
