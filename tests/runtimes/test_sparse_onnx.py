"""ONNX graphs made into operators of the sparse runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_graphs import AXIS, CONV, MEAN, NORM, PADDED, case, check, graph, kinds, numbers

# Convolutions and fully connected layers


@pytest.mark.parametrize(
    ("weight", "attributes", "kind", "fields"),
    [
        ("w", {}, "convolution", {"kernel": [3, 3], "stride": [1, 1], "padding": [0] * 4}),
        ("w", {"pads": [0, 1, 2, 1], "strides": [2, 1]}, "convolution",
         {"stride": [2, 1], "padding": [0, 1, 2, 1]}),
        ("w", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, "convolution",
         {"padding": [0, 1, 1, 1]}),
        ("w", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, "convolution",
         {"padding": [1, 1, 0, 1]}),
        ("w", {"auto_pad": "VALID"}, "convolution", {"padding": [0] * 4}),
        ("wide", {"pads": [0, 3, 0, 3]}, "convolution",
         {"kernel": [1, 7], "padding": [0, 3, 0, 3]}),
        ("high", {}, "convolution", {"kernel": [5, 1]}),
        ("deep", {"group": 3, **PADDED}, "depthwise", {"kernel": [3, 3], "padding": [1] * 4}),
        ("twice", {"group": 3}, "convolution", {"groups": 3}),
    ],
)  # fmt: skip
def test_a_convolution(weight, attributes, kind, fields):
    (op,) = check(case((f"Conv x {weight} > y", attributes))).operators
    assert op.kind == kind
    assert {name: getattr(op, name) for name in fields} == fields


def test_groups():
    (op,) = check(case(("Conv x groups > y", {"group": 2}), shape=(4, 6, 5))).operators
    assert (op.kind, op.groups, op.weight.shape) == ("convolution", 2, (8, 18))


def test_batch_normalisation_by_hand():
    made = graph(
        ("Conv", "x w b", "c", {}),
        ("BatchNormalization", "c scale shift mean var", "n", {"epsilon": 1.0}),
        shape=(1, 2, 2), w=numbers(2).reshape(1, 1, 1, 1), b=numbers(1), scale=numbers(3),
        shift=numbers(4), mean=numbers(5), var=numbers(15),
    )  # fmt: skip
    (op,) = check(made).operators
    assert op.weight.tolist() == [[1.5]]  # 2 * 3 / sqrt(15 + 1)
    assert op.bias.tolist() == [1.0]  # (1 - 5) * 3 / 4 + 4
    assert (op.kind, op.activation) == ("convolution", "none")


@pytest.mark.parametrize("epsilon", [{}, {"epsilon": 0.5}])
@pytest.mark.parametrize("bias", ["", " b4"])
def test_batch_normalisation_is_folded(bias, epsilon):
    made = case(
        (f"Conv x w{bias} > c", {**PADDED, "strides": [2, 2]}),
        (f"BatchNormalization c {NORM} > n", epsilon),
        "Relu n > r",
        (f"Conv r deep4{bias} > d", {"group": 4, "kernel_shape": [3, 3], **PADDED}),
        (f"BatchNormalization d {NORM} > n2", epsilon),
        "Conv n2 w4 > e",
    )  # fmt: skip
    model = check(made)
    assert kinds(model) == "convolution+relu depthwise convolution"
    assert [op.inputs for op in model.operators] == [[0], [1], [2]]
    assert model.operators[0].weight.dtype == model.operators[0].bias.dtype == np.float32


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        (["MatMul f u > y"], "convolution"),
        (["MatMul f u > m", "Add m b7 > y"], "convolution"),
        (["MatMul f u > m", "Add row7 m > y"], "convolution"),
        (["MatMul f u > m", "Add m b7 > a", "Relu a > y"], "convolution+relu"),
        (["MatMul f u > m", "Mul m c1 > y"], "convolution"),
        (["Gemm f u > y"], "convolution"),
        ([("Gemm f u b7 > y", {"alpha": 1.0, "beta": 1.0, "transA": 0})], "convolution"),
        ([("Gemm f ut row7 > y", {"transB": 1})], "convolution"),
        ([("Gemm f ut > g", {"transB": 1}), "Relu g > y"], "convolution+relu"),
    ],
)
def test_fully_connected(nodes, wanted):
    model = check(case(*MEAN, *nodes))
    assert kinds(model) == f"mean {wanted}"
    assert model.operators[1].weight.shape == (7, 3)


@pytest.mark.parametrize(
    "flatten", ["Flatten x > f", "Reshape x flat > f", "Reshape x kept > f",
                ("Flatten x > f", {"axis": 1})],
)  # fmt: skip
def test_fully_connected_with_all_pixels(flatten):
    assert kinds(check(case(flatten, "MatMul f many > y"))) == "flatten convolution"


# Elementwise operators and activations


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([CONV, "Add c c4 > y"], "convolution"),
        ([CONV, "Add nc4 c > y"], "convolution"),
        ([CONV, "Mul c0 c > y"], "convolution"),
        ([CONV, "Mul c c1 > y"], "convolution"),
        ([CONV, "Mul nc4 c > y"], "convolution"),
        ([CONV, "Mul c c4 > m", "Add m c1 > y"], "convolution"),
        ([CONV, "Relu c > r", "Mul r c4 > y"], "convolution+relu scale"),
        ([CONV, "Relu c > r", f"BatchNormalization r {NORM} > n", "Relu n > y"],
         "convolution+relu scale+relu"),
        ([CONV, ("MaxPool c > p", {"kernel_shape": [2, 2]}), f"BatchNormalization p {NORM} > n",
          "Add n c4 > y"], "convolution max_pool scale"),
        (["Add x c3 > a", "Mul a c1 > m", "Relu m > y"], "scale+relu"),
        (["GlobalAveragePool x > p", "Add p c3 > y"], "mean scale"),
        ([*MEAN, "Mul f c1 > y"], "mean scale"),
        # A result that another operator takes as well stays:
        ([CONV, f"BatchNormalization c {NORM} > n", "Add n c > y"], "convolution scale add"),
        ([CONV, "Identity c > i", "Add i c4 > n", "Add n c > y"], "convolution scale add"),
        ([CONV, "Identity c > i", "Relu i > n", "Add n i > y"], "convolution scale+relu add"),
        ([CONV, "Add c c > y"], "convolution add"),
        ([CONV, "Conv x w b4 > d", "Add c d > a", "Relu a > y"],
         "convolution convolution add+relu"),
        # Squeeze and excite:
        ([CONV, "GlobalAveragePool c > p", "Mul c p > y"], "convolution mean multiply"),
        ([CONV, "GlobalAveragePool c > p", "Mul p c > m", "Relu m > y"],
         "convolution mean multiply+relu"),
    ],
)  # fmt: skip
def test_elementwise(nodes, wanted):
    assert kinds(check(case(*nodes))) == wanted


SIXTH = {"alpha": 1 / 6, "beta": 0.5}
SIXTH_BY_PADDLE = {"alpha": 0.16666670143604279}
ACTIVATIONS = [
    (["Relu {} > y"], "relu"),
    (["Clip {} zero six > y"], "relu6"),
    ([("LeakyRelu {} > y", {"alpha": 0.3})], "leaky_relu"),
    (["HardSwish {} > y"], "hard_swish"),
    (["Sigmoid {} > y"], "sigmoid"),
    ([("HardSigmoid {} > y", SIXTH)], "hard_sigmoid"),
    ([("HardSigmoid {} > y", SIXTH_BY_PADDLE)], "hard_sigmoid"),
    (["Sigmoid {} > s", "Mul {} s > y"], "swish"),
    ([("HardSigmoid {} > s", SIXTH), "Mul s {} > y"], "hard_swish"),
]


def of(name: str, nodes: list) -> list:
    return [node.format(name) if isinstance(node, str) else (node[0].format(name), node[1])
            for node in nodes]  # fmt: skip


@pytest.mark.parametrize(("nodes", "name"), ACTIVATIONS)
def test_activations(nodes, name):
    def wanted(before, kind, count=1):
        model = check(case(*before, *nodes_of))
        assert kinds(model) == f"{kind}+{name}"
        assert model.operators[-1].slope == (np.float32(0.3) if name == "leaky_relu" else 0)

    nodes_of = of("c", nodes)
    wanted([CONV], "convolution")
    wanted([("Conv x deep > c", {"group": 3})], "depthwise")
    wanted(["Add x x > c"], "add")
    wanted(["Mul x x > c"], "multiply")
    wanted(["Mul x c3 > c"], "scale")
    wanted(["GlobalAveragePool x > c"], "mean scale")
    wanted(["Relu x > c"], "scale+relu scale")
    nodes_of = of("x", nodes)
    wanted([], "scale")


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        # The sigmoid of another tensor, taken twice, or multiplied by another:
        ([CONV, "Conv x w b4 > d", "Sigmoid c > s", "Mul s d > y"],
         "convolution+sigmoid convolution multiply"),
        ([CONV, "Sigmoid c > s", "Mul c s > m", "Add m s > y"],
         "convolution scale+sigmoid multiply add"),
        ([CONV, "Sigmoid c > s", "Mul s s > y"], "convolution+sigmoid multiply"),
        ([CONV, "Sigmoid c > s", "Add c s > y"], "convolution scale+sigmoid add"),
        # A product of which another operator takes the factor:
        ([CONV, "Sigmoid c > s", "Mul c s > m", "Add m c > y"], "convolution scale+swish add"),
        ([CONV, "Add c c > a", "Sigmoid c > s", "Mul c s > m", "Add m a > y"],
         "convolution add scale+swish add"),
        ([CONV, "Sigmoid c > s", "GlobalAveragePool c > p", "Mul s c > m", "Mul m p > y"],
         "convolution scale+swish mean multiply"),
    ],
)  # fmt: skip
def test_sigmoids_beside_other_operators(nodes, wanted):
    assert kinds(check(case(*nodes))) == wanted


# Pooling and enlarging


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("attributes", "padding"),
    [
        ({"kernel_shape": [2, 3]}, [0] * 4),
        ({"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 1, 2]}, [1, 0, 1, 2]),
        ({"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}, [0, 0, 1, 1]),
        ({"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, [0, 0, 0, 1]),
        ({"kernel_shape": [3, 3], "strides": [3, 3], "pads": [1, 1, 1, 1], "ceil_mode": 1},
         [1, 1, 2, 1]),
        ({"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, [0, 1, 1, 1]),
    ],
)  # fmt: skip
def test_pooling(kind, attributes, padding):
    made = case((f"{kind} x > y", attributes))
    (op,) = check(made).operators
    assert op.kind == {"MaxPool": "max_pool", "AveragePool": "average_pool"}[kind]
    assert (op.kernel, op.padding) == (attributes["kernel_shape"], padding)


def test_an_average_with_the_padding_is_a_depthwise_convolution():
    counted = {"kernel_shape": [3, 2], "count_include_pad": 1}
    assert kinds(check(case(("AveragePool x > y", {**counted, **PADDED})))) == "depthwise"
    assert kinds(check(case(("AveragePool x > y", counted)))) == "average_pool"


@pytest.mark.parametrize(
    ("inputs", "mode", "rounding", "factor"),
    [
        ("none scales", "asymmetric", {"nearest_mode": "floor"}, 2),
        ("none none sizes", "asymmetric", {"nearest_mode": "floor"}, 3),
        ("none none sizes", "half_pixel", {}, 3),
        ("none scales", "half_pixel", {"nearest_mode": "round_prefer_floor"}, 2),
    ],
)
def test_resizing(inputs, mode, rounding, factor):
    attributes = {"mode": "nearest", "coordinate_transformation_mode": mode, **rounding}
    (op,) = check(case((f"Resize x {inputs} > y", attributes))).operators
    assert (op.kind, op.factor) == ("upsample", factor)


# What only moves values


def test_a_shuffle_by_hand():
    model = check(case(
        CONV, "Reshape c pairs > p", ("Transpose p > t", {"perm": [0, 2, 1, 3, 4]}),
        "Reshape t fours > s", ("Split s two > l r", AXIS), "Relu r > a", ("Concat l a > y", AXIS),
    ))  # fmt: skip
    assert kinds(model) == "convolution channels scale+relu channels concatenation"
    right, _, left, together = model.operators[1:]
    assert (right.channels.tolist(), left.channels.tolist()) == ([1, 3], [0, 2])
    assert right.channels.dtype == left.channels.dtype == np.uint16
    assert together.inputs == [4, 3]


@pytest.mark.parametrize(
    ("nodes", "wanted", "channels"),
    [
        ([CONV, ("Split c uneven > l r", AXIS), "Relu r > y"], "channels scale+relu", [1, 2, 3]),
        ([CONV, ("Split c > l r", AXIS), "Relu r > y"], "channels scale+relu", [2, 3]),
        ([CONV, "Slice c i1 i3 i1 > s", "Relu s > y"], "channels scale+relu", [1, 2]),
        ([CONV, "Slice c i_1 i0 i1 i_1 > s", "Relu s > y"], "channels scale+relu", [3, 2, 1]),
        ([CONV, "Slice c i0 far i1 i2 > s", "Relu s > y"], "channels scale+relu", [0, 2]),
        # Slices of slices, each channel moved once:
        (
            [CONV, "Slice c i1 far i1 > s", "Slice s i1 far i1 > q", "Relu q > y"],
            "channels scale+relu",
            [2, 3],
        ),
        (
            [CONV, "Slice c i1 far i1 > s", "Relu s > r", "Add r s > y"],
            "channels scale+relu add",
            [1, 2, 3],
        ),
        ([CONV, "Slice c i1 far i1 > y"], "channels", [1, 2, 3]),
        (
            [CONV, "GlobalAveragePool c > p", "Flatten p > f", "Slice f i1 far i1 > y"],
            "mean channels",
            [1, 2, 3],
        ),
    ],
)
def test_channels_that_are_picked(nodes, wanted, channels):
    model = check(case(*nodes))
    assert kinds(model) == f"convolution {wanted}"
    (op,) = (op for op in model.operators if op.kind == "channels")
    assert op.channels.tolist() == channels


@pytest.mark.parametrize(
    "nodes",
    [
        ["Slice c i0 far i1 > y"],
        ["Reshape c pairs > p", "Reshape p fours > y"],
        ["Reshape c pairs > p", ("Transpose p > q", {"perm": [0, 2, 1, 3, 4]}),
         ("Transpose q > r", {"perm": [0, 2, 1, 3, 4]}), "Reshape r fours > y"],
        ["Identity c > i", "Dropout i > y"],
    ],
)  # fmt: skip
def test_what_moves_nothing_is_no_operator(nodes):
    model = check(case(CONV, *nodes, "Relu y > z"))
    assert kinds(model) == "convolution+relu"


@pytest.mark.parametrize(
    "nodes", [["Squeeze p axes > s", "Reshape s any > f"], ["Squeeze p > s", "Reshape s any > f"],
              ["Reshape p any > s", "Identity s > f"], ["Flatten p > f"]],
)  # fmt: skip
def test_reshapes_of_one_pixel(nodes):
    made = case(CONV, "GlobalAveragePool c > p", *nodes, "Add f b4 > a", "Relu a > y")
    assert kinds(check(made)) == "convolution mean scale+relu"


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        ([CONV, "Conv x w6 > d", ("MaxPool d > e", {"kernel_shape": [3, 3]}),
          ("Concat c e c > y", AXIS)], "convolution convolution max_pool concatenation"),
        ([CONV, ("Concat c c > d", {"axis": -3}), ("Concat d c > e", AXIS), "Relu e > y"],
         "convolution concatenation concatenation scale+relu"),
        ([*MEAN, ("Concat f f > y", AXIS)], "mean concatenation"),
    ],
)  # fmt: skip
def test_concatenation(nodes, wanted):
    assert kinds(check(case(*nodes))) == wanted
