"""An ONNX graph as operators of the sparse runtime.

What depends on constants alone is computed at once. Batch normalisation, biases and factors become
part of the weights before them, activations part of the operator before them, where only they take
its result; else of a Scale. Splits and shuffles are followed by the numbers of the channels, which
move where an operator takes them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from .model_file import Model
from .operators import (
    Add,
    AveragePool,
    Channels,
    Concatenation,
    Convolution,
    Depthwise,
    Flatten,
    MaxPool,
    Mean,
    Multiply,
    Operator,
    Scale,
    Upsample,
)


@dataclass
class Tensor:
    """[1, *channels.shape, *pixels]: some channels of an operator's result.

    channels: their numbers there. pixels: height and width, or () of a flat tensor.
    """

    result: int
    channels: np.ndarray
    pixels: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return 1, *self.channels.shape, *self.pixels


def convert(graph: onnx.GraphProto) -> Model:
    """The graph, of opset 13, for this runtime.

    Raises:
        ValueError: the runtime lacks an operator; the message names it and its output.
    """
    return _Converter(graph).model()


class _Converter:
    """A method for every operator of ONNX: it takes the node and its attributes."""

    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.used = Counter(name for node in graph.node for name in node.input)
        self.used.update(output.name for output in graph.output)
        images, *others = [i for i in graph.input if i.name not in self.constants]
        shape = tuple(d.dim_value for d in images.type.tensor_type.shape.dim[1:])
        if others or len(shape) != 3 or not all(shape):
            raise ValueError("the sparse runtime takes pictures of one size, [N, C, H, W]")
        self.operators: list[Operator] = []
        self.shapes = [shape]  # of the results
        self.tensors = {images.name: Tensor(0, np.arange(shape[0]), shape[1:])}
        self.gates: dict[str, str] = {}  # products x * sigmoid(x): their activation of x

    def model(self) -> Model:
        for node in self.graph.node:
            names = [name for name in node.input if name]
            if all(name in self.constants for name in names):
                inputs = {name: self.constants[name] for name in names}
                self.constants.update(zip(node.output, ReferenceEvaluator(node).run(None, inputs)))
                continue
            method = getattr(self, f"on_{node.op_type}", None)
            if method is None:
                raise self._lacks(node)
            method(node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
        return Model(self.shapes[0], self.operators, [self._output(o) for o in self.graph.output])

    def _output(self, output: onnx.ValueInfoProto) -> int:
        node = onnx.helper.make_node("Identity", [output.name], [output.name])
        number = self._result(node)
        if number == 0:
            raise self._lacks(node, " of the pictures")
        return number

    def _lacks(self, node, why: str = "") -> ValueError:
        return ValueError(
            f"the sparse runtime has no operator {node.op_type}{why} (of {node.output[0]}): "
            "export as onnx or paddle"
        )

    def _constants(self, node) -> list[np.ndarray]:
        """What it takes behind its first input."""
        names = [name for name in node.input[1:] if name]
        if any(name not in self.constants for name in names):
            raise self._lacks(node, " of two activations")
        return [self.constants[name] for name in names]

    def _result(self, node, name: str = "", dimensions: tuple[int, ...] = (2, 4)) -> int:
        """The number of a result that is this tensor (the node's first), made if there is none."""
        name = name or node.input[0]
        if name not in self.tensors:
            raise self._lacks(node, " of a constant")
        tensor = self.tensors[name]
        if len(tensor.shape) not in dimensions or tensor.channels.ndim != 1:
            raise self._lacks(node, f" of {len(tensor.shape)} dimensions")
        if not self._whole(tensor):
            tensor.result = self._make(node, Channels([tensor.result], tensor.channels))
            tensor.channels = np.arange(len(tensor.channels))
        return tensor.result

    def _whole(self, tensor: Tensor) -> bool:
        return np.array_equal(tensor.channels, np.arange(self.shapes[tensor.result][0]))

    def _make(self, node, operator: Operator) -> int:
        """The number of its result."""
        try:
            shape = operator.shape(*(self.shapes[number] for number in operator.inputs))
        except ValueError as error:
            raise self._lacks(node, f" here: {error}") from None
        self.operators.append(operator)
        self.shapes.append(shape)
        return len(self.operators)

    def _append(self, node, operator: Operator, flat: bool = False) -> None:
        """The operator makes the node's output, which is flat or a picture."""
        number = self._make(node, operator)
        channels, *pixels = self.shapes[number]
        pixels = () if flat else tuple(pixels)
        self.tensors[node.output[0]] = Tensor(number, np.arange(channels), pixels)

    def _refer(self, node, output: str, channels: np.ndarray, pixels: tuple[int, ...]) -> None:
        """The output consists of channels of the node's input."""
        name = node.input[0]
        self.tensors[output] = Tensor(self.tensors[name].result, channels, pixels)
        self.used[output] += self.used[name] - 1  # who takes the input takes the same result

    def _producer(self, node, name: str, kinds: tuple[type[Operator], ...]) -> Operator:
        """What makes this tensor for this node alone, to be changed by it: if need be, a Scale."""
        tensor = self.tensors[name]
        operator = self.operators[tensor.result - 1] if tensor.result else None
        alone = self._whole(tensor) and self.used[name] == 1
        if not alone or not isinstance(operator, kinds) or operator.activation != "none":
            number = self._result(node, name)
            ones, zeros = np.ones(self.shapes[number][0]), np.zeros(self.shapes[number][0])
            operator = Scale([number], scale=ones, shift=zeros)
            tensor = Tensor(self._make(node, operator), tensor.channels, tensor.pixels)
        self.tensors[node.output[0]] = tensor
        return operator

    # Convolutions and fully connected layers

    def on_Conv(self, node, given) -> None:
        weight, *biases = self._constants(node)
        if weight.ndim != 4:
            raise self._lacks(node, f" in {weight.ndim - 2} dimensions")
        number = self._result(node, dimensions=(4,))
        count, per_group, *kernel = weight.shape
        window = self._window(node, {**given, "kernel_shape": kernel})
        weight = weight.reshape(count, -1)
        bias = biases[0] if biases else np.zeros(count, np.float32)
        groups = given.get("group", 1)
        if groups == count > 1 == per_group:
            self._append(node, Depthwise([number], **window, weight=weight, bias=bias))
        else:
            operator = Convolution([number], **window, groups=groups, weight=weight, bias=bias)
            self._append(node, operator)

    def _window(self, node, given) -> dict[str, list[int]]:
        kernel, stride = list(given["kernel_shape"]), list(given.get("strides", [1, 1]))
        padding = list(given.get("pads", [0, 0, 0, 0]))
        automatic = given.get("auto_pad", b"NOTSET").decode()
        if set(given.get("dilations", [1])) != {1}:
            raise self._lacks(node, " with dilation")
        for i, (n, k, s) in enumerate(zip(self.tensors[node.input[0]].pixels, kernel, stride)):
            if automatic.startswith("SAME"):
                pixels = max(0, (-(-n // s) - 1) * s + k - n)
                small, large = pixels // 2, pixels - pixels // 2
                upper = automatic == "SAME_UPPER"
                padding[i], padding[i + 2] = (small, large) if upper else (large, small)
            if given.get("ceil_mode", 0):  # to a last window that begins before the padding
                last = min(
                    -(-(n + padding[i] + padding[i + 2] - k) // s), (n + padding[i] - 1) // s
                )
                padding[i + 2] = max(padding[i + 2], last * s + k - n - padding[i])
        return {"kernel": kernel, "stride": stride, "padding": padding}

    def on_MatMul(self, node, given) -> None:
        (weight,) = self._constants(node)
        number = self._result(node, dimensions=(2,))
        bias = np.zeros(weight.shape[-1], np.float32)
        self._append(node, Convolution([number], weight=weight.T, bias=bias), flat=True)

    def on_Gemm(self, node, given) -> None:
        weight, *biases = self._constants(node)
        if {given.get("alpha", 1.0), given.get("beta", 1.0)} != {1.0} or given.get("transA", 0):
            raise self._lacks(node, " with factors or transA")
        number = self._result(node, dimensions=(2,))
        weight = weight if given.get("transB", 0) else weight.T
        bias = np.zeros(len(weight), np.float32)
        self._append(node, Convolution([number], weight=weight, bias=bias), flat=True)
        if biases:
            self.operators[-1].bias = bias + self._by_channel(node, node.output[0], biases[0])

    # Elementwise operators

    def on_BatchNormalization(self, node, given) -> None:
        scale, shift, mean, variance = self._constants(node)
        factor = scale / np.sqrt(variance.astype(np.float64) + given.get("epsilon", 1e-5))
        self._affine(node, node.input[0], factor, shift - mean * factor)

    def _affine(self, node, name: str, factor, shift) -> None:
        """The tensor's channels times a factor, plus a shift: numbers or [C]."""
        operator = self._producer(node, name, (Convolution, Depthwise, Scale))
        scaled, shifted = ("scale", "shift") if isinstance(operator, Scale) else ("weight", "bias")
        if np.any(factor != 1):  # weights may be large
            array = getattr(operator, scaled)
            by_row = np.reshape(factor, (-1, *[1] * (array.ndim - 1)))
            setattr(operator, scaled, (array * by_row).astype(np.float32))
        bias = getattr(operator, shifted) * factor + shift
        setattr(operator, shifted, bias.astype(np.float32))

    def _by_channel(self, node, name: str, constant: np.ndarray) -> np.ndarray:
        """A constant beside this tensor as one value, or one a channel: [1] or [C]."""
        rank = len(self.tensors[name].shape)
        shape = (*[1] * (rank - constant.ndim), *constant.shape)
        if shape[1] not in (1, self.tensors[name].shape[1]) or constant.size != shape[1]:
            raise self._lacks(node, f" of a constant of {list(constant.shape)}")
        return constant.ravel()

    def _operands(self, node) -> tuple[list[str], list[np.ndarray]]:
        """The tensors and the constants (as _by_channel) that it takes."""
        names = [name for name in node.input if name in self.tensors]
        if len({len(self.tensors[name].shape) for name in names}) > 1:
            raise self._lacks(node, " of pictures and a flat tensor")
        constants = [self.constants[name] for name in node.input if name in self.constants]
        return names, [self._by_channel(node, names[0], constant) for constant in constants]

    def on_Add(self, node, given) -> None:
        names, constants = self._operands(node)
        if constants:
            self._affine(node, names[0], 1, constants[0])
        else:
            flat = not self.tensors[names[0]].pixels
            self._append(node, Add([self._result(node, name) for name in names]), flat)

    def on_Mul(self, node, given) -> None:
        names, constants = self._operands(node)
        if node.output[0] in self.gates:
            self._activate(node, names[0], self.gates[node.output[0]])
        elif constants:
            self._affine(node, names[0], constants[0], 0)
        else:
            # A tensor of one pixel comes second.
            names.sort(key=lambda name: self.tensors[name].pixels == (1, 1))
            flat = not self.tensors[names[0]].pixels
            self._append(node, Multiply([self._result(node, name) for name in names]), flat)

    # Activations

    def _activate(self, node, name: str, activation: str, slope: float = 0.0) -> None:
        operator = self._producer(node, name, (Convolution, Depthwise, Add, Multiply, Scale))
        operator.activation, operator.slope = activation, slope

    def on_Relu(self, node, given) -> None:
        self._activate(node, node.input[0], "relu")

    def on_Clip(self, node, given) -> None:
        if [bound.item() for bound in self._constants(node)] != [0, 6]:
            raise self._lacks(node, " but from 0 to 6")
        self._activate(node, node.input[0], "relu6")

    def on_LeakyRelu(self, node, given) -> None:
        self._activate(node, node.input[0], "leaky_relu", float(given.get("alpha", 0.01)))

    def on_HardSigmoid(self, node, given) -> None:
        if abs(given.get("alpha", 0.2) - 1 / 6) > 1e-6 or given.get("beta", 0.5) != 0.5:
            raise self._lacks(node, " but of x / 6 + 0.5")
        self._sigmoid(node, "hard_sigmoid", "hard_swish")

    def on_Sigmoid(self, node, given) -> None:
        self._sigmoid(node, "sigmoid", "swish")

    def _sigmoid(self, node, activation: str, gate: str) -> None:
        (x,), (y,) = node.input, node.output
        takers = [other for other in self.graph.node if y in other.input]
        if self.used[y] == 1 and takers and sorted(takers[0].input) == sorted([x, y]):
            if takers[0].op_type == "Mul":
                self.gates[takers[0].output[0]] = gate
                self.used[x] -= 1
                return
        self._activate(node, x, activation)

    # Pooling and enlarging

    def on_MaxPool(self, node, given) -> None:
        number = self._result(node, dimensions=(4,))
        self._append(node, MaxPool([number], **self._window(node, given)))

    def on_AveragePool(self, node, given) -> None:
        number = self._result(node, dimensions=(4,))
        window = self._window(node, given)
        if not given.get("count_include_pad", 0) or not any(window["padding"]):
            self._append(node, AveragePool([number], **window))
            return
        if given.get("ceil_mode", 0):
            raise self._lacks(node, " with ceil_mode and padding that counts")
        channels, pixels = self.shapes[number][0], np.prod(window["kernel"])
        weight = np.full((channels, pixels), 1 / pixels, np.float32)
        bias = np.zeros(channels, np.float32)
        self._append(node, Depthwise([number], **window, weight=weight, bias=bias))

    def on_GlobalAveragePool(self, node, given) -> None:
        self._append(node, Mean([self._result(node, dimensions=(4,))]))

    def on_Resize(self, node, given) -> None:
        number = self._result(node, dimensions=(4,))
        _, height, width = self.shapes[number]
        *_, sizes = self._constants(node)  # or factors, behind a region of interest
        is_size = len(node.input) > 3
        factors = {f / n for f, n in zip(sizes[2:], (height, width) if is_size else (1, 1))}
        how = [given.get(name, b"").decode() for name in
               ("mode", "coordinate_transformation_mode", "nearest_mode")]  # fmt: skip
        factor = factors.pop()
        same = how == ["nearest", "asymmetric", "floor"] or how[:2] == ["nearest", "half_pixel"]
        if factors or factor % 1 or not same:
            raise self._lacks(node, " but to the nearest, by a whole factor")
        self._append(node, Upsample([number], factor=int(factor)))

    # What moves channels

    def on_Concat(self, node, given) -> None:
        numbers = [self._result(node, name) for name in node.input]
        tensor = self.tensors[node.input[0]]
        if given["axis"] not in (1, 1 - len(tensor.shape)):
            raise self._lacks(node, f" of axis {given['axis']}")
        self._append(node, Concatenation(numbers), flat=not tensor.pixels)

    def on_Identity(self, node, given) -> None:
        tensor = self.tensors[node.input[0]]
        self._refer(node, node.output[0], tensor.channels, tensor.pixels)

    on_Dropout = on_Identity

    def on_Shape(self, node, given) -> None:
        part = slice(given.get("start", 0), given.get("end"))
        self.constants[node.output[0]] = np.array(self.tensors[node.input[0]].shape[part])

    def on_Reshape(self, node, given) -> None:
        tensor = self.tensors[node.input[0]]
        (wanted,) = self._constants(node)
        shape = [tensor.shape[i] if n == 0 else n for i, n in enumerate(wanted.tolist())]
        self._reshape(node, shape)

    def on_Flatten(self, node, given) -> None:
        self._reshape(node, [1, -1] if given.get("axis", 1) == 1 else [])

    def on_Squeeze(self, node, given) -> None:
        shape = self.tensors[node.input[0]].shape
        axes = {axis % len(shape) for axes in self._constants(node) for axis in axes.tolist()}
        self._reshape(node, [n for i, n in enumerate(shape) if i not in axes])

    def _reshape(self, node, shape: list[int]) -> None:
        """One of the dimensions may be -1."""
        tensor = self.tensors[node.input[0]]
        count = np.prod(tensor.shape)
        batch, *rest = [count // -np.prod(shape) if n == -1 else n for n in shape] or [0]
        if batch != 1 or np.prod(rest) != count:
            raise self._lacks(node, f" from {list(tensor.shape)} to {shape}")
        pixels = self.shapes[tensor.result][1:]
        if len(rest) > 2 and tuple(rest[-2:]) == pixels:
            self._refer(node, node.output[0], tensor.channels.reshape(rest[:-2]), pixels)
        elif pixels == (1, 1):
            self._refer(node, node.output[0], tensor.channels.reshape(rest), ())
        elif len(rest) == 1:
            self._append(node, Flatten([self._result(node)]), flat=True)
        else:
            raise self._lacks(node, f" from {list(tensor.shape)} to {shape}")

    def on_Transpose(self, node, given) -> None:
        tensor = self.tensors[node.input[0]]
        count = tensor.channels.ndim
        order, last = given["perm"][1 : count + 1], given["perm"][count + 1 :]
        if given["perm"][0] != 0 or last != list(range(count + 1, len(tensor.shape))):
            raise self._lacks(node, f" to {given['perm']}")
        channels = tensor.channels.transpose([axis - 1 for axis in order])
        self._refer(node, node.output[0], channels, tensor.pixels)

    def on_Split(self, node, given) -> None:
        tensor, count = self.tensors[node.input[0]], len(node.output)
        axis = self._channel_axis(node, given.get("axis", 0))
        size = tensor.channels.shape[axis]
        sizes = self._constants(node)
        ends = np.cumsum(sizes[0] if sizes else [-(-size // count)] * count)
        for output, channels in zip(node.output, np.split(tensor.channels, ends[:-1], axis)):
            self._refer(node, output, channels, tensor.pixels)

    def on_Slice(self, node, given) -> None:
        tensor = self.tensors[node.input[0]]
        starts, ends, *more = [constant.tolist() for constant in self._constants(node)]
        axes = more[0] if more else range(len(starts))
        steps = more[1] if len(more) > 1 else [1] * len(starts)
        channels = tensor.channels
        for axis, *part in zip(axes, starts, ends, steps):
            index = [slice(None)] * channels.ndim
            index[self._channel_axis(node, axis)] = slice(*part)
            channels = channels[tuple(index)]
        self._refer(node, node.output[0], channels, tensor.pixels)

    def _channel_axis(self, node, axis: int) -> int:
        """An axis of the node's input as one of its channels."""
        tensor = self.tensors[node.input[0]]
        found = axis % len(tensor.shape) - 1
        if not 0 <= found < tensor.channels.ndim:
            raise self._lacks(node, f" of axis {axis}")
        return found
