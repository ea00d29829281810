"""Networks of random weights for the sparse runtime's tests, and what they have to give.

Imports neither paddle nor onnx, and nothing of conftest.
"""

from __future__ import annotations

import numpy as np

from sparse_runtime import model_file
from sparse_runtime.model_file import Model
from sparse_runtime.operators import KINDS, Operator, Shape
from sparse_runtime.operators.operator import ACTIVATIONS

ROUNDING = 1e-5  # of the largest value: how far apart the ways to compute a network may be
BATCH, THREADS = 5, (1, 2, 3)
ERROR = 2e-6  # float32 rounds a sum by some 1e-7 of its absolute terms, here 1800 at most
MAX_CHANNELS, MAX_VALUES = 512, 1 << 15  # of a result in a random network

# Steps: a kind of operator, its fields, and how many channels it makes where it may choose them.


def convolution(rows, kernel=1, stride=1, padding=0, activation="relu", **fields):
    return {"kind": "convolution", "rows": rows, "kernel": pair(kernel), "stride": pair(stride),
            "padding": four(padding), "activation": activation, **fields}  # fmt: skip


def depthwise(stride=1, activation="relu", kernel=3, padding=None, **fields):
    padding = [side // 2 for side in pair(kernel) * 2] if padding is None else four(padding)
    return {"kind": "depthwise", "kernel": pair(kernel), "stride": pair(stride),
            "padding": padding, "activation": activation, **fields}  # fmt: skip


def pool(kind, kernel, stride=1, padding=0, **fields):
    return {"kind": kind, "kernel": pair(kernel), "stride": pair(stride),
            "padding": four(padding), **fields}  # fmt: skip


def pair(value) -> list[int]:
    return [value] * 2 if isinstance(value, int) else list(value)


def four(value) -> list[int]:
    return [value] * 4 if isinstance(value, int) else list(value)


MEAN = {"kind": "mean"}
LAST = convolution(10, activation="none")


def model(shape, *steps, density=0.4, seed=0, outputs=None) -> Model:
    """These steps with random weights.

    A step takes the result before it, or its `inputs`: numbers of results, negative ones from the
    last (-1). The last result is the network's, or those of the `outputs`.
    """
    rng = np.random.default_rng(seed)
    operators, shapes = [], [shape]
    for step in steps:
        inputs = [n % len(shapes) for n in step.get("inputs", [-1])]
        op = operator({**step, "inputs": inputs}, [shapes[n] for n in inputs], density, rng)
        operators.append(op)
        shapes = model_file.shapes(Model(shape, operators, [len(operators)]))
    outputs = [n % len(shapes) for n in outputs or [-1]]
    return Model(shape, operators, outputs)


def operator(step: dict, shapes: list[Shape], density: float, rng) -> Operator:
    fields = {name: value for name, value in step.items() if name not in ("kind", "rows")}
    op = KINDS[step["kind"]](**fields)
    channels = shapes[0][0]
    if op.kind in ("convolution", "depthwise"):
        rows = step.get("rows", channels)
        columns = op.kernel[0] * op.kernel[1]
        kept = True
        if op.kind == "convolution":
            columns *= channels // op.groups
            kept = rng.random((rows, columns)) < density
        op.weight = rng.standard_normal((rows, columns), np.float32) * kept
        op.bias = rng.standard_normal(rows, np.float32)
    if op.kind == "scale":
        op.scale, op.shift = rng.standard_normal((2, channels), np.float32)
    if op.kind == "channels":
        op.channels = np.asarray(op.channels, np.uint16)
    return op


def random_model(seed: int, count: int = 12) -> Model:
    """A graph of about as many operators, with branches, for pictures of up to 24x24."""
    rng = np.random.default_rng(seed)
    pick = rng.choice
    widths = [1, 2, 3, 8, 17, 33, 64, 66]
    shapes: list[Shape] = [(int(pick(widths)), *(int(n) for n in rng.integers(1, 25, 2)))]
    steps: list[dict] = []

    def add(kind: str, inputs: list[int], **fields) -> int | None:
        """The number of its result, or None where it does not fit."""
        inputs = [int(n) for n in inputs]
        step = {"kind": kind, "inputs": inputs, **fields}
        try:
            made = operator(step, [shapes[n] for n in inputs], 1, rng)
            shape = made.shape(*(shapes[n] for n in inputs))
        except ValueError:
            return None
        if shape[0] > MAX_CHANNELS or np.prod(shape) > MAX_VALUES:
            return None
        steps.append(step)
        shapes.append(shape)
        return len(steps)

    def activated() -> dict:
        return {"activation": str(pick(ACTIVATIONS)), "slope": float(pick([0.1, -0.5, 2]))}

    def window(height: int, width: int) -> dict:
        most = int(pick([1, 3, 3, 7]))
        kernel = [int(n) for n in rng.integers(1, [min(most, 2 * height), min(most, 2 * width)],
                                               endpoint=True)]  # fmt: skip
        return {"kernel": kernel, "stride": pick([1, 1, 2, 3], 2).tolist(),
                "padding": [int(rng.integers(0, k)) for k in kernel * 2]}  # fmt: skip

    def alike(test) -> int:
        return int(pick([n for n, shape in enumerate(shapes) if test(shape)]))

    def squeeze_and_excite(x: int) -> None:
        channels = shapes[x][0]
        small = add("convolution", [add("mean", [x])], rows=3, activation="relu")
        gate = add("convolution", [small], rows=channels, **activated())
        add("multiply", [x, gate], **activated())

    def shuffle(x: int) -> None:
        channels = shapes[x][0]
        order = np.arange(channels)
        groups = int(pick([n for n in range(1, channels + 1) if channels % n == 0]))
        order = order.reshape(groups, -1).T.ravel()
        halves = [add("channels", [x], channels=half) for half in np.array_split(order, 2)]
        if channels > 1:
            done = add("depthwise", halves[:1], kernel=[3, 3], padding=[1] * 4, **activated())
            add("concatenation", [done, halves[1]])

    def residual(x: int) -> None:
        window = {"kernel": [3, 3], "padding": [1] * 4} if rng.random() < 0.5 else {}
        behind = activated() if rng.random() < 0.3 else {}
        y = add("convolution", [x], rows=shapes[x][0], **window, **behind)
        add("add", [x, y] if rng.random() < 0.5 else [y, x], **activated())

    def separable(x: int) -> None:
        stride = [int(pick([1, 2]))] * 2
        usual = {"kernel": [3, 3], "stride": stride, "padding": [1] * 4}
        fields = usual if rng.random() < 0.7 else window(*shapes[x][1:])
        done = add("depthwise", [x], **fields, **activated())
        if done is not None:
            add("convolution", [done], rows=int(pick(widths)), **activated())

    def step(x: int) -> None:
        channels, height, width = shapes[x]
        kind = pick([*KINDS, "residual", "separable", "squeeze", "shuffle"])
        if kind == "convolution":
            groups = int(pick([n for n in range(1, channels + 1) if channels % n == 0]))
            fields = {"groups": groups if rng.random() < 0.3 else 1, **activated()}
            rows = fields["groups"] * int(pick([1, 2, 5, 17]))
            fields = fields if rng.random() < 0.4 else {**fields, **window(height, width)}
            add(kind, [x], rows=rows, **fields)
        elif kind in ("depthwise", "max_pool", "average_pool"):
            extra = activated() if kind == "depthwise" else {}
            add(kind, [x], **window(height, width), **extra)
        elif kind in ("mean", "flatten", "upsample"):
            add(kind, [x], **({"factor": int(pick([1, 2, 3]))} if kind == "upsample" else {}))
        elif kind == "scale":
            add(kind, [x], **activated())
        elif kind == "add":
            add(kind, [x, alike(lambda shape: shape == shapes[x])], **activated())
        elif kind == "multiply":
            fitting = shapes[x], (channels, 1, 1)
            add(kind, [x, alike(lambda shape: shape in fitting)], **activated())
        elif kind == "concatenation":
            others = [alike(lambda shape: shape[1:] == (height, width)) for _ in range(3)]
            add(kind, [x, *others[: rng.integers(4)]])
        elif kind == "channels":
            add(kind, [x], channels=rng.integers(0, channels, int(pick(widths))))
        else:
            several = {"residual": residual, "separable": separable, "shuffle": shuffle,
                       "squeeze": squeeze_and_excite}  # fmt: skip
            several[kind](x)

    while len(steps) < count:
        # Chains mostly, and branches from any result before.
        step(len(steps) if rng.random() < 0.6 else int(rng.integers(0, len(steps) + 1)))
    taken = {n for each in steps for n in each["inputs"]}
    outputs = [n for n in range(1, len(steps) + 1) if n not in taken or rng.random() < 0.1]
    rng.shuffle(outputs)
    return model(shapes[0], *steps, density=pick([0.1, 0.4, 1]), seed=seed, outputs=outputs)


def pictures(made: Model, count: int = BATCH, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *made.input_shape), np.float32)


# What a network has to give. A value is a pair: float64 [N, C, H, W], and how far from it float32
# may be.


def expected(made: Model, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The values of its outputs, those of one pixel as [N, C]."""
    values = [(images.astype(np.float64), np.zeros(images.shape))]
    for op in made.operators:
        x, apart = COMPUTED[op.kind](op, *(values[number] for number in op.inputs))
        values.append(activated(op, x, apart) if hasattr(op, "activation") else (x, apart))
    return [
        values[number]
        if number in made.pictures or values[number][0].shape[2:] != (1, 1)
        else tuple(array[:, :, 0, 0] for array in values[number])
        for number in made.outputs
    ]


def activated(op, x, apart):
    sigmoid = np.exp(-np.logaddexp(0, -x))  # 1 / (1 + exp(-x)) without an overflow
    hard_sigmoid = np.clip(x / 6 + 0.5, 0, 1)
    # By kind: the result, how steep it is at most, and what rounding it once may change.
    result, steepest, rounding = {
        "none": (x, 1, 0),
        "relu": (np.maximum(x, 0), 1, 0),
        "relu6": (np.clip(x, 0, 6), 1, 0),
        "leaky_relu": (np.where(x < 0, op.slope * x, x), max(1, abs(op.slope)), abs(op.slope * x)),
        "hard_sigmoid": (hard_sigmoid, 1 / 6, 1),
        "hard_swish": (x * hard_sigmoid, 1.5, abs(x)),
        "sigmoid": (sigmoid, 1 / 4, 1),
        "swish": (x * sigmoid, 1.1, abs(x)),
    }[op.activation]
    return result, steepest * apart + ERROR * rounding


def windows(op, x, outside=0.0) -> np.ndarray:
    """[N, C, H, W, kernel height, kernel width]: what lies under each position of the window."""
    top, left, bottom, right = op.padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=outside)
    x = np.lib.stride_tricks.sliding_window_view(x, op.kernel, axis=(2, 3))
    return x[:, :, :: op.stride[0], :: op.stride[1]]


def convolved(op, value):
    def times(weight, x):
        groups = getattr(op, "groups", len(weight))
        weight = weight.astype(np.float64).reshape(groups, len(weight) // groups, -1, *op.kernel)
        n, _, height, width = x.shape
        x = windows(op, x.reshape(n, -1, height, width))
        x = x.reshape(n, groups, -1, *x.shape[2:])
        out = np.einsum("ngchwyx,gocyx->ngohw", x, weight, optimize=True)
        return out.reshape(n, -1, *out.shape[3:])

    x, apart = value
    bias, size = op.bias[:, None, None].astype(np.float64), abs(op.weight)
    return (
        times(op.weight, x) + bias,
        times(size, apart) + ERROR * (times(size, abs(x)) + abs(bias)),
    )


def averaged(op, value):
    x, apart = value
    count = windows(op, np.ones_like(x)).sum((4, 5))

    def mean(x):
        return windows(op, x).sum((4, 5)) / count

    return mean(x), mean(apart) + ERROR * mean(abs(x))


def mean(op, value):
    x, apart = value
    return x.mean((2, 3), keepdims=True), (apart + ERROR * abs(x)).mean((2, 3), keepdims=True)


def added(op, left, right):
    (x, x_apart), (y, y_apart) = left, right
    return x + y, x_apart + y_apart + ERROR * (abs(x) + abs(y))


def multiplied(op, left, right):
    (x, x_apart), (y, y_apart) = left, right
    apart = x_apart * (abs(y) + y_apart) + abs(x) * y_apart
    return x * y, apart + ERROR * abs(x * y)


def scaled(op, value):
    x, apart = value
    scale, shift = (array[:, None, None].astype(np.float64) for array in (op.scale, op.shift))
    return x * scale + shift, abs(scale) * apart + ERROR * (abs(x * scale) + abs(shift))


def moved(move):
    """Of an operator that computes nothing: the same for the values and for how far apart."""
    return lambda op, *values: tuple(move(op, *arrays) for arrays in zip(*values))


COMPUTED = {
    "convolution": convolved,
    "depthwise": convolved,
    "max_pool": lambda op, value: (
        windows(op, value[0], -np.inf).max((4, 5)), windows(op, value[1]).max((4, 5)),
    ),
    "average_pool": averaged,
    "mean": mean,
    "add": added,
    "multiply": multiplied,
    "scale": scaled,
    "concatenation": moved(lambda op, *x: np.concatenate(x, 1)),
    "channels": moved(lambda op, x: x[:, op.channels]),
    "flatten": moved(lambda op, x: x.reshape(len(x), -1, 1, 1)),
    "upsample": moved(lambda op, x: x.repeat(op.factor, 2).repeat(op.factor, 3)),
}  # fmt: skip


def assert_same_bits(left: np.ndarray, other: np.ndarray) -> None:
    np.testing.assert_array_equal(left.view(np.uint32), other.view(np.uint32))


def assert_right(results: list[np.ndarray], right: list) -> None:
    """right: of expected(), for at least as many pictures."""
    assert len(results) == len(right)
    for result, (value, apart) in zip(results, right):
        assert result.dtype == np.float32
        assert result.shape[1:] == value.shape[1:]
        assert (abs(result - value[: len(result)]) - apart[: len(result)]).max() <= 0


def assert_close(results: list[np.ndarray], others: list[np.ndarray]) -> None:
    for result, other in zip(results, others):
        assert abs(result - other).max() <= ROUNDING * abs(other).max()


def assert_same(results: list[np.ndarray], others: list[np.ndarray]) -> None:
    for result, other in zip(results, others):
        assert_same_bits(result, other)


SMALL = model((3, 7, 8), convolution(5, 3, activation="none"))
