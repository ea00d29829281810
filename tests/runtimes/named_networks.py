"""Networks for the tests of the sparse runtime, by the name of what each has in it."""

from __future__ import annotations

from sparse_networks import (
    LAST,
    MEAN,
    convolution,
    depthwise,
    model,
    pool,
)

from sparse_runtime.model_file import Model


def add(*inputs, activation="none"):
    return {"kind": "add", "inputs": list(inputs), "activation": activation}


def multiply(*inputs, activation="none"):
    return {"kind": "multiply", "inputs": list(inputs), "activation": activation}


def concatenation(*inputs):
    return {"kind": "concatenation", "inputs": list(inputs)}


def channels(*numbers, of=-1):
    return {"kind": "channels", "channels": list(numbers), "inputs": [of]}


def upsample(factor):
    return {"kind": "upsample", "factor": factor}


SCALE, FLATTEN = {"kind": "scale", "activation": "relu"}, {"kind": "flatten"}
LINEAR = {"activation": "none"}

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
    "kernel 11, stride 4": ((3, 47, 63), convolution(6, 11, 4, 2)),
    "kernel 15 on one pixel": ((2, 1, 1), convolution(3, 15, 1, 14)),
    "kernel 15, stride 2, small pictures": ((1, 3, 2), convolution(3, 15, 2, 14)),
    "even kernel": ((3, 7, 8), convolution(3, 2), convolution(3, 4, 2, 1)),
    "1x7, 7x1": (
        (3, 17, 17), convolution(9, (1, 7), 1, (0, 3, 0, 3)),
        convolution(5, (7, 1), 1, (3, 0, 3, 0)),
    ),
    "unequal strides and padding": (
        (3, 15, 22), convolution(5, (3, 2), (1, 3), (2, 0, 1, 1)),
        convolution(4, (2, 4), (3, 1), (0, 3, 1, 0)),
    ),
    "padding of 1x1": ((5, 7, 6), convolution(3), convolution(4, 1, (1, 2))),
    "1x1, stride 2": ((17, 7, 7), convolution(33, 1, 2)),
    "1x1, stride 3 behind 1x1": ((3, 7, 8), convolution(17), convolution(33, 1, 3)),
    "stride larger than the kernel": ((3, 22, 19), convolution(5, 2, 5, 1)),
    "1x1 behind kernel 3": ((3, 7, 7), convolution(17, 3, 1, 1), convolution(33), LAST),
    "1x1 behind 1x1 on wide pictures": ((3, 33, 31), convolution(17), convolution(3)),
    "stride 2 behind kernel 3": (
        (3, 33, 31), convolution(5, 3, 1, 1), convolution(6, 3, 2, 1), convolution(7, 5, 2, 2),
    ),
    "several blocks of rows": ((3, 7, 7), convolution(200), convolution(129), convolution(65)),
    "several blocks on many pixels": ((3, 33, 31), convolution(400), convolution(70)),
    "several blocks of patches": ((3, 7, 7), convolution(200), convolution(5, 3, 1, 1)),
    "several blocks, few pixels": ((200, 1, 2), convolution(3), convolution(200), convolution(7)),
    "groups": ((6, 7, 9), convolution(9, 3, 1, 1, groups=3), convolution(6, groups=3)),
    "groups of one channel": ((6, 7, 7), convolution(12, 3, 2, 1, groups=6), LAST),
    "groups of many channels": ((64, 4, 4), convolution(96, 3, 1, 1, groups=2)),
    "groups on one pixel": ((8, 3, 3), convolution(8, 3, groups=4), convolution(20, groups=4)),
    "groups behind depthwise": ((6, 7, 7), depthwise(), convolution(12, groups=2)),
    "mean": ((17, 7, 7), MEAN),
    "mean of one pixel": ((3, 1, 1), MEAN),
    "mean twice": ((3, 15, 17), convolution(5), MEAN, MEAN),
    "fully connected": ((3, 7, 7), convolution(33, 3, 1, 1), MEAN, LAST),
    "two fully connected": ((3, 7, 7), convolution(33), MEAN, convolution(200), LAST),
    "fully connected at first": ((2000, 1, 1), LAST),
    "fully connected behind all pixels": ((3, 7, 5), convolution(6), FLATTEN, convolution(70)),
    "convolution of one pixel": ((3, 7, 7), MEAN, convolution(17, 3, 1, 1)),
    "depthwise behind a mean": ((17, 7, 7), MEAN, depthwise(), LAST),
    "depthwise that leaves one pixel": ((40, 3, 3), depthwise(padding=0), LAST),
    "depthwise of stride 2 that leaves one pixel": ((40, 2, 2), depthwise(2), convolution(17)),
    "depthwise twice": ((17, 9, 6), depthwise(), depthwise(2), LAST),
    "two behind a depthwise": (
        (5, 9, 6), depthwise(), convolution(7), convolution(4, inputs=[1]),
        concatenation(2, 3),
    ),
    "MobileNet": (
        (3, 33, 31), convolution(8, 3, 2, 1), depthwise(), convolution(17), depthwise(2),
        convolution(33), depthwise(), convolution(33), depthwise(2), convolution(70), depthwise(),
        convolution(200), MEAN, LAST,
    ),
    "MobileNetV2": (
        (3, 17, 19), convolution(8, 3, 2, 1, "relu6"), convolution(24, activation="relu6"),
        depthwise(1, "relu6"), convolution(8, **LINEAR), add(1, -1),
        convolution(24, activation="relu6"), depthwise(2, "relu6"), convolution(17, **LINEAR),
    ),
    "residual": (
        (8, 9, 11), convolution(8, 3, 1, 1), convolution(8, 3, 1, 1, **LINEAR),
        add(0, 2, activation="relu"), convolution(8, **LINEAR), add(-1, 1, activation="swish"),
    ),
    "residual of two convolutions": (
        (5, 9, 11), convolution(8, **LINEAR), convolution(8, 3, 1, 1, **LINEAR, inputs=[0]),
        add(2, 1, activation="relu"),
    ),
    "residual in several blocks": (
        (300, 5, 5), convolution(300, **LINEAR), add(0, 1), convolution(300, 3, 1, 1, **LINEAR),
        add(-1, 2, activation="relu"),
    ),
    "residual of one pixel": ((40, 1, 1), convolution(40, **LINEAR), add(0, 1), LAST),
    "what is not a residual": (
        (8, 7, 7), convolution(8), add(0, 1), convolution(8, **LINEAR), add(3, 2), add(3, 4),
        convolution(8, groups=2, **LINEAR), add(6, 5), convolution(8, **LINEAR), add(8, 8),
    ),
    "residual behind which its convolution is needed": (
        (4, 6, 6), convolution(4, **LINEAR), add(0, 1), convolution(4), add(1, 3),
    ),
    "squeeze and excite": (
        (17, 9, 7), depthwise(activation="hard_swish", kernel=5), MEAN, convolution(5),
        convolution(17, activation="hard_sigmoid"), multiply(1, -1), LAST,
    ),
    "shuffle": (
        (6, 7, 9), channels(0, 2, 4), channels(1, 3, 5, of=0), convolution(3), depthwise(),
        convolution(3, **LINEAR), concatenation(1, -1), channels(0, 3, 1, 4, 2, 5), LAST,
    ),
    "concatenations in each other": (
        (3, 7, 9), convolution(4), convolution(5, 3, 1, 1), concatenation(1, 2), convolution(2),
        concatenation(3, 4), SCALE, convolution(3, 3, 1, 1), concatenation(5, 7), SCALE, LAST,
    ),
    "concatenations that have to copy": (
        (3, 7, 9), concatenation(0, 0), convolution(4), concatenation(2, 0, 2),
        concatenation(2, 3), concatenation(4, 3, 2), LAST,
    ),
    "concatenation of one pixel": (
        (3, 5, 5), MEAN, convolution(7), convolution(9, inputs=[1]), concatenation(2, 3), LAST,
    ),
    "Inception": (
        (5, 9, 9), convolution(4), convolution(6, 3, 1, 1, inputs=[0]),
        pool("average_pool", 3, 1, 1, inputs=[0]), convolution(3),
        pool("max_pool", 3, 1, 1, inputs=[0]), concatenation(1, 2, 4, 5), LAST,
    ),
    "YOLOv3": (
        (3, 16, 24), convolution(8, 3, 2, 1, "leaky_relu", slope=0.1),
        convolution(16, 3, 2, 1, "leaky_relu", slope=0.1), convolution(9, **LINEAR),
        convolution(8, inputs=[2]), upsample(2), concatenation(5, 1),
        convolution(9, 3, 1, 1, **LINEAR),
    ),
}  # fmt: skip
OUTPUTS = {"YOLOv3": [3, 7], "shuffle": [6, -1, 1], "concatenations in each other": [4, 5, -1],
           "residual behind which its convolution is needed": [1, 4]}  # fmt: skip
SIDES = [(1, 1), (1, 40), (40, 1), (2, 3), (7, 7), (8, 16), (15, 17), (33, 31)]


def named(name: str, **options) -> Model:
    return model(*NETWORKS[name], outputs=OUTPUTS.get(name), **options)
