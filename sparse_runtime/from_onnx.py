"""An ONNX graph as operators of the sparse runtime, with batch normalisation folded in."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from .model_file import Model, Operator, shapes

SAME = ("Identity", "Flatten", "Reshape", "Squeeze")  # of a single pixel: the same numbers


def convert(graph: onnx.GraphProto) -> Model:
    """The graph for this runtime: one input and one result, a chain of the operators of _lacks().

    Raises:
        ValueError: the runtime lacks an operator; the message names it.
    """
    return _Converter(graph).model()


class _Converter:
    def __init__(self, graph: onnx.GraphProto):
        self.graph = graph
        self.constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.used = Counter(name for node in graph.node for name in node.input)
        self.used.update(output.name for output in graph.output)
        inputs = [i for i in graph.input if i.name not in self.constants]
        self.results = {inputs[0].name: 0}  # by tensor: number of the result
        self.operators: list[Operator] = []
        dims = inputs[0].type.tensor_type.shape.dim
        self.input_shape = tuple(d.dim_value for d in dims[1:])

    def model(self) -> Model:
        for node in self.graph.node:
            if all(name in self.constants for name in node.input if name):
                inputs = {name: self.constants[name] for name in node.input if name}
                values = ReferenceEvaluator(node).run(None, inputs)
                self.constants.update(zip(node.output, values))
                continue
            step = getattr(self, f"_{node.op_type.lower()}", None)
            if node.op_type in SAME:
                step = self._same
            if step is None:
                raise self._lacks(node)
            step(node, {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute})
        last = self.results.get(self.graph.output[0].name)
        if len(self.graph.output) != 1 or last != len(self.operators):
            raise ValueError("the sparse runtime gives one result, that of the last operator")
        return Model(self.input_shape, self.operators)

    def _lacks(self, node, why: str = "") -> ValueError:
        names = "Conv, BatchNormalization, Relu, GlobalAveragePool, MatMul, Gemm"
        return ValueError(
            f"the sparse runtime has no operator {node.op_type}{why} (of {node.output[0]}); it has "
            f"{names}: export as onnx or paddle"
        )

    def _append(self, node, op: Operator) -> None:
        self.operators.append(op)
        self.results[node.output[0]] = len(self.operators)

    def _source(self, node) -> int:
        if node.input[0] not in self.results:
            raise self._lacks(node, " of a constant")
        return self.results[node.input[0]]

    def _constants(self, node) -> list[np.ndarray]:
        """What it takes beside an activation."""
        names = [name for name in node.input[1:] if name]
        if any(name not in self.constants for name in names):
            raise self._lacks(node, " of two activations")
        return [self.constants[name] for name in names]

    def _producer(self, node, kinds: tuple[str, ...]) -> Operator:
        """The operator whose result this node alone takes, to be changed by it."""
        number = self._source(node)
        if number == 0 or self.used[node.input[0]] > 1:
            raise self._lacks(node, " there")
        op = self.operators[number - 1]
        if op.kind not in kinds or op.relu:
            raise self._lacks(node, f" behind {op.kind}")
        self.results[node.output[0]] = number
        return op

    def _pooled(self, node) -> int:
        """The result that it takes, of one pixel a picture."""
        number = self._source(node)
        if number == 0 or self.operators[number - 1].kind != "pool":
            raise self._lacks(node, " but behind a global pooling")
        return number

    def _shape(self, node, attributes) -> None:
        number = self._pooled(node)
        shape = [1, *shapes(Model(self.input_shape, self.operators))[number]]
        part = slice(attributes.get("start", 0), attributes.get("end"))
        self.constants[node.output[0]] = np.array(shape[part])

    def _same(self, node, attributes) -> None:
        # That a picture has one pixel here is seen by the comparison that follows an export.
        number = self._source(node) if node.op_type == "Identity" else self._pooled(node)
        self.results[node.output[0]] = number
        self.used[node.output[0]] += self.used[node.input[0]] - 1

    def _conv(self, node, attributes) -> None:
        weight, *biases = self._constants(node)
        if weight.ndim != 4:
            raise self._lacks(node, f" in {weight.ndim - 2} dimensions")
        count, per_group, kernel = weight.shape[:3]
        bias = biases[0] if biases else np.zeros(count, np.float32)
        strides, pads = set(attributes.get("strides", [1])), set(attributes.get("pads", [0]))
        group, dilations = attributes.get("group", 1), set(attributes.get("dilations", [1]))
        same = attributes.get("auto_pad", b"NOTSET") == b"NOTSET" and weight.shape[3] == kernel
        if dilations != {1} or len(strides) > 1 or len(pads) > 1 or not same:
            raise self._lacks(node, " with dilation, unequal strides, pads or sides")
        if group > 1 and (per_group, group) != (1, count):
            raise self._lacks(node, f" with {group} groups for {count} channels")
        (stride,), (padding,) = strides, pads
        operator = Operator(
            "depthwise" if group > 1 else "convolution",
            [self._source(node)],
            weight=weight.reshape(count, -1),
            bias=bias,
            kernel=kernel,
            stride=stride,
            padding=padding,
        )
        self._append(node, operator)

    def _batchnormalization(self, node, attributes) -> None:
        op = self._producer(node, ("convolution", "depthwise"))
        scale, shift, mean, variance = self._constants(node)
        factor = scale / np.sqrt(variance.astype(np.float64) + attributes.get("epsilon", 1e-5))
        op.weight = (op.weight * factor[:, None]).astype(np.float32)
        op.bias = ((op.bias - mean) * factor + shift).astype(np.float32)

    def _relu(self, node, attributes) -> None:
        self._producer(node, ("convolution", "depthwise")).relu = True

    def _globalaveragepool(self, node, attributes) -> None:
        self._append(node, Operator("pool", [self._source(node)]))

    def _matmul(self, node, attributes) -> None:
        weight = self._constants(node)[0]
        bias = np.zeros(weight.shape[1], np.float32)
        self._append(node, Operator("convolution", [self._source(node)], weight.T, bias))

    def _gemm(self, node, attributes) -> None:
        self._matmul(node, attributes)
        op = self.operators[-1]
        if attributes.get("transB", 0):
            op.weight = op.weight.T
        if {attributes.get("alpha", 1.0), attributes.get("beta", 1.0)} != {1.0}:
            raise self._lacks(node, " with factors")
        if attributes.get("transA", 0):
            raise self._lacks(node, " with transA")
        op.bias = np.zeros(len(op.weight), np.float32)
        if len(node.input) > 2:
            op.bias = self.constants[node.input[2]].ravel()

    def _add(self, node, attributes) -> None:
        (bias,) = self._constants(node)
        op = self._producer(node, ("convolution",))
        op.bias = op.bias + bias.ravel()
