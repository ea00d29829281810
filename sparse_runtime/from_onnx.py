"""An ONNX graph as operators of the sparse runtime.

What depends on constants alone is computed at once. Batch normalisation, biases and factors become
part of the weights before them, activations part of the operator before them, where only they take
its result; else of a Scale. Reshapes, splits and shuffles only note where their values come from:
an operator that takes these gets them from a Channels or a Flatten.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from . import operators as ops
from .model_file import Model
from .operators.operator import Activated

OPSET = {"": 13}
# Modes of Resize that repeat each pixel where the factor is whole.
REPEATING = (
    (b"nearest", b"asymmetric", b"floor"),
    (b"nearest", b"half_pixel", b"round_prefer_floor"),
)


@dataclass
class Tensor:
    """Values of a result, for a batch of 1: [1, C, H, W] or, where it is flat, [1, C].

    places: where in the result its values are, in the shape of the tensor; None: all in order.
    """

    result: int
    shape: tuple[int, ...]
    places: np.ndarray | None = None


def convert(graph: onnx.GraphProto) -> Model:
    """The graph, of opset 13 or 14, for this runtime.

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
        self.made_by = {name: node for node in graph.node for name in node.output}
        images, *others = [i for i in graph.input if i.name not in self.constants]
        shape = tuple(d.dim_value for d in images.type.tensor_type.shape.dim[1:])
        if others or len(shape) != 3 or not all(shape):
            raise ValueError("the sparse runtime takes pictures of one size, [N, C, H, W]")
        self.operators: list[ops.Operator] = []
        self.shapes = [shape]  # of the results
        self.tensors = {images.name: Tensor(0, (1, *shape))}

    def model(self) -> Model:
        for node in self.graph.node:
            names = [name for name in node.input if name]
            if all(name in self.constants for name in names):
                values = {name: self.constants[name] for name in names}
                self.constants.update(zip(node.output, _evaluate(node, values)))
            elif node.output[0] not in self.tensors:  # else it became part of the one before
                method = getattr(self, f"on_{node.op_type}", None)
                if method is None:
                    raise self._lacks(node)
                method(node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
        names = [output.name for output in self.graph.output]
        outputs = [self._result(name) for name in names]
        pictures = [n for n, name in zip(outputs, names) if len(self.tensors[name].shape) == 4]
        return Model(self.shapes[0], self.operators, outputs, pictures)

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

    def _tensor(self, name: str) -> Tensor:
        if name not in self.tensors:
            raise ValueError(
                f"the sparse runtime has no operator for {name}: export as onnx or paddle"
            )
        return self.tensors[name]

    def _result(self, name: str) -> int:
        """The number of the result that this tensor is: if need be, of a new operator."""
        tensor = self._tensor(name)
        if tensor.places is not None:
            tensor.result, tensor.places = self._gathered(self.made_by[name], tensor), None
        return tensor.result

    def _gathered(self, node, tensor: Tensor) -> int:
        number, shape = tensor.result, tensor.shape
        channels, *size = self.shapes[number]
        pixels = prod(size)
        if len(shape) in (2, 4) and shape[0] == 1:
            places = tensor.places.reshape(shape[1], -1)
            in_order = np.array_equal(places.ravel(), np.arange(channels * pixels))
            chosen = places[:, :1] // pixels
            whole = np.array_equal(places, chosen * pixels + np.arange(pixels))
            if whole and list(shape[2:] or (1, 1)) == size:
                if in_order:
                    return number
                return self._make(node, ops.Channels([number], chosen[:, 0].astype(np.uint16)))
            if in_order and places.shape[1] == 1:
                return self._make(node, ops.Flatten([number]))
        raise self._lacks(node, f" to {list(shape)}")

    def _make(self, node, operator: ops.Operator) -> int:
        """The number of its result."""
        try:
            shape = operator.shape(*(self.shapes[number] for number in operator.inputs))
        except ValueError as error:
            raise self._lacks(node, f" here: {error}") from None
        self.operators.append(operator)
        self.shapes.append(shape)
        return len(self.operators)

    def _append(self, node, operator: ops.Operator) -> None:
        """The operator makes the node's output, which is flat if the first input is."""
        number = self._make(node, operator)
        rank = next(len(self.tensors[name].shape) for name in node.input if name in self.tensors)
        self.tensors[node.output[0]] = Tensor(number, (1, *self.shapes[number])[:rank])

    def _change(self, node, name: str, kinds) -> Activated:
        """The operator that makes this tensor, for the node to change: if need be, a new Scale."""
        number, shape = self._result(name), self.tensors[name].shape
        operator = self.operators[number - 1] if number else None
        free = self.used[name] == 1 and isinstance(operator, kinds)
        if not free or operator.activation != "none":
            scale, shift = np.ones(shape[1], np.float32), np.zeros(shape[1], np.float32)
            operator = ops.Scale([number], scale=scale, shift=shift)
            number = self._make(node, operator)
        self.tensors[node.output[0]] = Tensor(number, shape)
        return operator

    # Convolutions and fully connected layers

    def on_Conv(self, node, given) -> None:
        weight, *biases = self._constants(node)
        number, groups = self._result(node.input[0]), given.get("group", 1)
        count, per_group, *kernel = weight.shape
        fields = self._window(node, {**given, "kernel_shape": kernel})
        fields["weight"] = weight.reshape(count, -1)
        fields["bias"] = biases[0] if biases else np.zeros(count, np.float32)
        if groups == count > 1 == per_group:
            self._append(node, ops.Depthwise([number], **fields))
        else:
            self._append(node, ops.Convolution([number], groups=groups, **fields))

    def _window(self, node, given) -> dict[str, list[int]]:
        kernel, stride = list(given["kernel_shape"]), list(given.get("strides", [1, 1]))
        padding = list(given.get("pads", [0, 0, 0, 0]))
        automatic = given.get("auto_pad", b"NOTSET").decode()
        if set(given.get("dilations", [1])) != {1}:
            raise self._lacks(node, " with dilation")
        sizes = self.tensors[node.input[0]].shape[2:]
        for i, (size, k, s) in enumerate(zip(sizes, kernel, stride)):
            if automatic.startswith("SAME"):
                total = max(0, (-(-size // s) - 1) * s + k - size)
                sides = total // 2, total - total // 2
                padding[i::2] = sides if automatic == "SAME_UPPER" else sides[::-1]
            if given.get("ceil_mode", 0):  # one window more, unless it begins behind the picture
                size += padding[i]
                last = min(-(-(size + padding[i + 2] - k) // s), (size - 1) // s)
                padding[i + 2] = max(padding[i + 2], last * s + k - size)
        return {"kernel": kernel, "stride": stride, "padding": padding}

    def on_Gemm(self, node, given) -> None:
        weight, *biases = self._constants(node)
        if weight.ndim != 2 or len(self._tensor(node.input[0]).shape) != 2:
            raise self._lacks(node, " but of two matrices")
        if {given.get("alpha", 1.0), given.get("beta", 1.0)} != {1.0} or given.get("transA", 0):
            raise self._lacks(node, " with factors or transA")
        weight = weight if given.get("transB", 0) else weight.T
        bias = sum((bias.ravel() for bias in biases), np.zeros(len(weight), np.float32))
        self._append(node, ops.Convolution([self._result(node.input[0])], weight=weight, bias=bias))

    on_MatMul = on_Gemm

    # Elementwise operators

    def on_BatchNormalization(self, node, given) -> None:
        scale, shift, mean, variance = self._constants(node)
        factor = scale / np.sqrt(variance.astype(np.float64) + given.get("epsilon", 1e-5))
        self._affine(node, node.input[0], factor, shift - mean * factor)

    def _affine(self, node, name: str, factor, shift) -> None:
        """The tensor's channels times a factor, plus a shift: numbers or [C]."""
        operator = self._change(node, name, (ops.Convolution, ops.Depthwise, ops.Scale))
        scaled, shifted = operator.ARRAYS
        if np.any(factor != 1):  # weights may be large
            array = getattr(operator, scaled)
            by_row = np.reshape(factor, (-1, *[1] * (array.ndim - 1)))
            setattr(operator, scaled, (array * by_row).astype(np.float32))
        bias = getattr(operator, shifted) * factor + shift
        setattr(operator, shifted, bias.astype(np.float32))

    def _operands(self, node) -> tuple[list[str], list[np.ndarray]]:
        """The activations that it takes, and the constants: of one value, or one a channel."""
        names = [name for name in node.input if name not in self.constants]
        shapes = [self._tensor(name).shape for name in names]
        if len(set(map(len, shapes))) > 1:
            raise self._lacks(node, " of pictures and a flat tensor")
        constants = [self.constants[name] for name in node.input if name in self.constants]
        for constant in constants:
            possible = 1, constant.size, *[1] * (len(shapes[0]) - 2)
            fits = constant.size in (1, shapes[0][1])
            if not fits or constant.shape != possible[len(possible) - constant.ndim :]:
                raise self._lacks(node, f" of a constant of {list(constant.shape)}")
        return names, [constant.ravel() for constant in constants]

    def on_Add(self, node, given) -> None:
        names, constants = self._operands(node)
        if constants:
            self._affine(node, names[0], 1, constants[0])
        else:
            self._append(node, ops.Add([self._result(name) for name in names]))

    def on_Mul(self, node, given) -> None:
        names, constants = self._operands(node)
        if constants:
            self._affine(node, names[0], constants[0], 0)
        else:
            names.sort(key=lambda name: self.tensors[name].shape[2:] == (1, 1))  # that comes second
            self._append(node, ops.Multiply([self._result(name) for name in names]))

    # Activations

    def _activate(self, node, name: str, activation: str, slope: float = 0.0) -> None:
        operator = self._change(node, name, Activated)
        operator.activation, operator.slope = activation, slope

    def on_Relu(self, node, given) -> None:
        self._activate(node, node.input[0], "relu")

    def on_Clip(self, node, given) -> None:
        if [bound.item() for bound in self._constants(node)] != [0, 6]:
            raise self._lacks(node, " but from 0 to 6")
        self._activate(node, node.input[0], "relu6")

    def on_HardSwish(self, node, given) -> None:
        self._activate(node, node.input[0], "hard_swish")

    def on_LeakyRelu(self, node, given) -> None:
        self._activate(node, node.input[0], "leaky_relu", float(given.get("alpha", 0.01)))

    def on_HardSigmoid(self, node, given) -> None:
        if abs(given.get("alpha", 0.2) - 1 / 6) > 1e-6 or given.get("beta", 0.5) != 0.5:
            raise self._lacks(node, " but of x / 6 + 0.5")
        self._sigmoid(node, "hard_sigmoid", "hard_swish")

    def on_Sigmoid(self, node, given) -> None:
        self._sigmoid(node, "sigmoid", "swish")

    def _sigmoid(self, node, activation: str, product: str) -> None:
        """With the product x * activation(x) at once, where that alone takes the activation."""
        x, y = node.input[0], node.output[0]
        for other in self.graph.node:
            alike = other.op_type == "Mul" and sorted(other.input) == sorted([x, y])
            if alike and self.used[y] == 1:
                self.used[x] -= 1
                node, activation = other, product
        self._activate(node, x, activation)

    # Pooling and enlarging

    def on_MaxPool(self, node, given) -> None:
        number = self._result(node.input[0])
        self._append(node, ops.MaxPool([number], **self._window(node, given)))

    def on_AveragePool(self, node, given) -> None:
        number = self._result(node.input[0])
        window = self._window(node, given)
        if not given.get("count_include_pad", 0) or not any(window["padding"]):
            self._append(node, ops.AveragePool([number], **window))
        elif given.get("ceil_mode", 0):
            raise self._lacks(node, " with ceil_mode and padding that counts")
        else:
            channels, pixels = self.shapes[number][0], prod(window["kernel"])
            weight = np.full((channels, pixels), 1 / pixels, np.float32)
            bias = np.zeros(channels, np.float32)
            self._append(node, ops.Depthwise([number], **window, weight=weight, bias=bias))

    def on_GlobalAveragePool(self, node, given) -> None:
        self._append(node, ops.Mean([self._result(node.input[0])]))

    def on_Resize(self, node, given) -> None:
        number = self._result(node.input[0])
        *_, sizes = self._constants(node)  # or factors, behind a region of interest
        shape = self._tensor(node.input[0]).shape
        factors = (sizes / shape if len(node.input) > 3 else sizes).tolist()
        how = (
            given.get("mode", b"nearest"),
            given.get("coordinate_transformation_mode", b"half_pixel"),
            given.get("nearest_mode", b"round_prefer_floor"),
        )
        factor = factors[-1]
        if how not in REPEATING or factors != [1, 1, factor, factor] or factor % 1:
            raise self._lacks(node, " but to the nearest, by a whole factor")
        self._append(node, ops.Upsample([number], factor=int(factor)))

    # What computes nothing

    def on_Concat(self, node, given) -> None:
        numbers = [self._result(name) for name in node.input]
        if given["axis"] not in (1, 1 - len(self.tensors[node.input[0]].shape)):
            raise self._lacks(node, f" of axis {given['axis']}")
        self._append(node, ops.Concatenation(numbers))

    def on_Shape(self, node, given) -> None:
        self.constants[node.output[0]] = np.array(self._tensor(node.input[0]).shape)

    def on_Identity(self, node, given) -> None:
        self._same(node, node.output[0], self._tensor(node.input[0]))

    on_Dropout = on_Identity

    def _move(self, node, given) -> None:
        name, *others = node.input
        tensor, places = self._tensor(name), self._tensor(name).places
        if places is None:
            places = np.arange(prod(tensor.shape)).reshape(tensor.shape)
        values = {name: places, **dict(zip(others, self._constants(node)))}
        for output, places in zip(node.output, _evaluate(node, values)):
            self._same(node, output, Tensor(tensor.result, places.shape, places))

    on_Flatten = on_Reshape = on_Slice = on_Split = on_Squeeze = on_Transpose = _move

    def _same(self, node, output: str, tensor: Tensor) -> None:
        """The output has values of the node's input: who takes that takes the same result."""
        self.tensors[output] = tensor
        self.used[output] += self.used[node.input[0]] - 1


def _evaluate(node, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    return ReferenceEvaluator(node, opsets=OPSET).run(None, values)
