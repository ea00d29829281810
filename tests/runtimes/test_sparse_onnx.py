"""ONNX made into the files of the sparse runtime."""

from __future__ import annotations

import numpy as np
import pytest
from sparse_files import row
from sparse_networks import expected, pictures

from sparse_runtime import model_file
from sparse_runtime.model_file import Model

try:
    import onnx
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    from sparse_runtime import from_onnx
except ImportError:
    onnx = None

needs_onnx = pytest.mark.skipif(onnx is None, reason="needs onnx")


def graph(*nodes, shape=(3, 6, 5), outputs=None, **constants):
    """Each node is (operator, inputs, output, attributes); the network's input is x."""
    made = [helper.make_node(kind, inputs.split(), [out], **a) for kind, inputs, out, a in nodes]
    image = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *shape])
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in outputs or [nodes[-1][2]]]  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    return helper.make_graph(made, "network", [image], ends, tensors)


def check(made) -> Model:
    """Converts, and compares with ONNX' own evaluator in numpy."""
    converted = from_onnx.convert(made)
    images = pictures(converted, 2)
    right, apart = expected(converted, images)
    whole = helper.make_model(made, opset_imports=[helper.make_opsetid("", 15)])
    (result,) = ReferenceEvaluator(whole).run(None, {"x": images})
    # The folding rounds, too; a network without an error of its own here is off by 0.1 or more.
    np.testing.assert_allclose(result.reshape(right.shape), right, atol=10 * apart.max(), rtol=0)
    return converted


def random(*shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def norm(channels: int, name: str = "") -> dict[str, np.ndarray]:
    parts = random(3, channels)
    return dict(zip([f"scale{name}", f"shift{name}", f"mean{name}", f"var{name}"],
                    [*parts, np.exp(random(channels + 1)[:channels])]))  # fmt: skip


NORM = "c scale shift mean var"


@needs_onnx
def test_batch_normalisation_by_hand():
    made = graph(
        ("Conv", "x w b", "c", {}),
        ("BatchNormalization", NORM, "n", {"epsilon": 1.0}),
        shape=(1, 2, 2), w=row(2).reshape(1, 1, 1, 1), b=row(1)[0], scale=row(3)[0],
        shift=row(4)[0], mean=row(5)[0], var=row(15)[0],
    )  # fmt: skip
    (op,) = check(made).operators
    assert op.weight.tolist() == [[1.5]]  # 2 * 3 / sqrt(15 + 1)
    assert op.bias.tolist() == [1.0]  # (1 - 5) * 3 / 4 + 4
    assert (op.kind, op.relu) == ("convolution", False)


@needs_onnx
@pytest.mark.parametrize("epsilon", [{}, {"epsilon": 0.5}])
@pytest.mark.parametrize("bias", ["", " b"])
def test_batch_normalisation_is_folded(bias, epsilon):
    made = graph(
        ("Conv", f"x w{bias}", "c", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("BatchNormalization", NORM, "n", epsilon),
        ("Relu", "n", "r", {}),
        ("Conv", f"r w2{bias}", "d", {"pads": [1, 1, 1, 1], "group": 4, "kernel_shape": [3, 3]}),
        ("BatchNormalization", NORM.replace("c ", "d "), "n2", epsilon),
        ("Conv", "n2 w3", "e", {}),
        w=random(4, 3, 3, 3), w2=random(4, 1, 3, 3), w3=random(2, 4, 1, 1), b=random(4), **norm(4),
    )  # fmt: skip
    convolved, deep, last = check(made).operators
    assert (convolved.kind, deep.kind, last.kind) == ("convolution", "depthwise", "convolution")
    assert (convolved.relu, deep.relu, last.relu) == (True, False, False)
    assert (convolved.kernel, convolved.stride, convolved.padding) == (3, 2, 1)
    assert [op.inputs for op in (convolved, deep, last)] == [[0], [1], [2]]
    assert deep.weight.shape == (4, 9)
    assert convolved.weight.dtype == convolved.bias.dtype == np.float32


@needs_onnx
@pytest.mark.parametrize(
    "nodes",
    [
        [("MatMul", "f w", "y", {})],
        [("MatMul", "f w", "m", {}), ("Add", "m b", "y", {})],
        [("MatMul", "f w", "m", {}), ("Add", "m b2", "y", {})],
        [("MatMul", "f w", "m", {}), ("Add", "m b", "a", {}), ("Relu", "a", "y", {})],
        [("Gemm", "f w", "y", {})],
        [("Gemm", "f w b", "y", {"alpha": 1.0, "beta": 1.0, "transA": 0})],
        [("Gemm", "f t b2", "y", {"transB": 1})],
        [("Gemm", "f t", "y", {"transB": 1})],
    ],
)
def test_fully_connected(nodes):
    made = graph(
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}), *nodes,
        w=random(3, 7), t=random(7, 3), b=random(7), b2=random(1, 7),
    )  # fmt: skip
    pooled, connected = check(made).operators
    assert pooled.kind == "pool"
    assert connected.weight.shape == (7, 3)
    assert connected.relu == (nodes[-1][0] == "Relu")


@needs_onnx
def test_reshapes_of_one_pixel_and_constant_nodes():
    made = graph(
        ("Constant", "", "w", {"value": numpy_helper.from_array(random(4, 3, 1, 1))}),
        ("Conv", "x w b4", "c", {}),
        ("Add", "c b", "a", {}),
        ("Identity", "a", "i", {}),
        ("GlobalAveragePool", "i", "p", {}),
        ("Squeeze", "p axes", "s", {}),
        ("Reshape", "s sizes", "y", {}),
        b4=random(4), b=random(1, 4, 1, 1), axes=np.array([2, 3]), sizes=np.array([-1, 4]),
    )  # fmt: skip
    assert [op.kind for op in check(made).operators] == ["convolution", "pool"]


@needs_onnx
def test_an_unused_constant_and_a_constant_among_the_inputs():
    made = graph(("Conv", "x w", "y", {}), w=random(2, 3, 1, 1), unused=random(5))
    made.input.insert(0, helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2, 3, 1, 1]))
    assert check(made).input_shape == (3, 6, 5)


CONV = ("Conv", "x w", "c", {})
W, B = random(4, 3, 3, 3), random(4)
LACKS = [
    ("Clip", [CONV, ("Clip", "c low high", "y", {})]),
    ("Sigmoid", [("Sigmoid", "x", "y", {})]),
    ("MaxPool", [("MaxPool", "x", "y", {"kernel_shape": [2, 2]})]),
    ("Concat", [CONV, ("Concat", "c c", "y", {"axis": 1})]),
    ("Add of two activations", [CONV, ("Conv", "x w", "d", {}), ("Add", "c d", "y", {})]),
    ("Add of two activations", [CONV, ("Add", "c c", "y", {})]),
    ("Add there", [("Add", "x b4", "y", {})]),
    ("Add behind pool", [("GlobalAveragePool", "x", "p", {}), ("Add", "p b3", "y", {})]),
    ("Add behind convolution", [CONV, ("Relu", "c", "r", {}), ("Add", "r b4", "y", {})]),
    ("MatMul of two activations", [CONV, ("MatMul", "c c", "y", {})]),
    ("Relu there", [("Relu", "x", "y", {})]),
    ("Relu behind pool", [("GlobalAveragePool", "x", "p", {}), ("Relu", "p", "y", {})]),
    ("BatchNormalization there", [("BatchNormalization", "x " + NORM[2:], "y", {})]),
    ("BatchNormalization behind convolution", [
        CONV, ("Relu", "c", "r", {}), ("BatchNormalization", "r " + NORM[2:], "y", {}),
    ]),
    ("BatchNormalization behind pool", [
        ("GlobalAveragePool", "x", "p", {}), ("BatchNormalization", "p " + NORM[2:], "y", {}),
    ]),
    ("Flatten but behind a global pooling", [CONV, ("Flatten", "c", "y", {})]),
    ("Reshape but behind a global pooling", [("Reshape", "x sizes", "y", {})]),
    ("Conv with 3 groups for 6 channels", [("Conv", "x g", "y", {"group": 3})]),
    ("Conv with 2 groups for 4 channels", [("Conv", "x g2", "y", {"group": 2})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"dilations": [2, 2]})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"strides": [1, 2]})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"pads": [0, 0, 1, 1]})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"auto_pad": "SAME_UPPER"})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"auto_pad": "VALID"})]),
    ("Conv with dilation, unequal", [("Conv", "x oblong", "y", {})]),
    ("Conv", [("Conv", "x line", "y", {})]),
    ("Conv of", [CONV, ("Conv", "x c", "y", {})]),
    ("Conv of", [("Conv", "x w z", "y", {})]),
    ("Gemm with factors", [
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}),
        ("Gemm", "f t b3", "y", {"alpha": 0.5}),
    ]),
    ("Gemm with factors", [
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}),
        ("Gemm", "f t b3", "y", {"beta": 2.0}),
    ]),
    ("Gemm", [
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}),
        ("Gemm", "f t", "y", {"transA": 1}),
    ]),
    ("Gemm of two activations", [
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}),
        ("Gemm", "f t f", "y", {}),
    ]),
    ("BatchNormalization of two activations", [
        CONV, ("BatchNormalization", "c scale x mean var", "y", {}),
    ]),
    # A result that another operator takes as well:
    ("Relu there", [CONV, ("Relu", "c", "r", {}), ("Conv", "c w4", "y", {})]),
    ("Relu there", [
        CONV, ("Identity", "c", "i", {}), ("Relu", "i", "r", {}), ("Conv", "c w4", "y", {}),
    ]),
    ("Shape but behind a global pooling", [("Shape", "x", "s", {}), CONV]),
    ("Shape but behind a global pooling", [
        CONV, ("Conv", "c g4", "d", {"group": 4, "pads": [1] * 4}), ("Shape", "d", "s", {}),
    ]),
    ("Add there", [CONV, ("Add", "c b4", "a", {}), ("Conv", "c w4", "y", {})]),
    ("BatchNormalization there", [
        CONV, ("BatchNormalization", NORM, "n", {}), ("Conv", "c w4", "y", {}),
    ]),
]  # fmt: skip


@needs_onnx
@pytest.mark.parametrize(("why", "nodes"), LACKS)
def test_operators_that_the_runtime_lacks(why, nodes):
    made = graph(
        *nodes, w=W, w4=random(2, 4, 1, 1), b3=random(1, 3, 1, 1), b4=random(1, 4, 1, 1),
        low=np.float32(0), high=np.float32(6), t=random(3, 3), g=random(6, 1, 3, 3),
        g4=random(4, 1, 3, 3),
        g2=random(4, 2, 1, 1), oblong=random(4, 3, 3, 1), line=random(4, 3, 3),
        sizes=np.array([-1, 90]), **norm(4),
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"the sparse runtime has no operator {why}") as refused:
        from_onnx.convert(made)
    assert "export as onnx or paddle" in str(refused.value)


@needs_onnx
def test_shapes_are_computed_at_once():
    nodes = [  # as paddle2onnx 1.3 writes a flattening
        ("GlobalAveragePool", "x", "p", {}), ("Shape", "p", "s", {}),
        ("Slice", "s zero one", "batch", {}), ("Concat", "batch rest", "sizes", {"axis": 0}),
        ("Reshape", "p sizes", "f", {}), ("MatMul", "f t", "y", {}),
    ]  # fmt: skip
    t = random(3, 2)
    model = from_onnx.convert(
        graph(*nodes, t=t, zero=np.array([0]), one=np.array([1]), rest=np.array([-1]))
    )
    assert [op.kind for op in model.operators] == ["pool", "convolution"]
    assert (model.operators[1].weight == t.T).all()


@needs_onnx
def test_a_part_of_a_shape():
    sizes = {"start": 0, "end": 2}  # of the pooled [1, 3, 1, 1]
    nodes = [("GlobalAveragePool", "x", "p", {}), ("Shape", "p", "s", sizes),
             ("Reshape", "p s", "f", {}), ("MatMul", "f t", "y", {})]  # fmt: skip
    converter = from_onnx._Converter(graph(*nodes, t=random(3, 2)))
    converter.model()
    assert converter.constants["s"].tolist() == [1, 3]


@needs_onnx
def test_a_result_that_is_an_output_as_well_is_not_folded():
    made = graph(CONV, ("Relu", "c", "y", {}), outputs=["c"], w=W)
    with pytest.raises(ValueError, match="no operator Relu there"):
        from_onnx.convert(made)


@needs_onnx
@pytest.mark.parametrize("outputs", [["c"], ["x"], ["w4"], ["y", "p"], ["p", "y"]])
def test_other_outputs_than_the_last(outputs):
    made = graph(CONV, ("Conv", "c w4", "y", {}), ("GlobalAveragePool", "y", "p", {}),
                 outputs=outputs, w=W, w4=random(2, 4, 1, 1))  # fmt: skip
    with pytest.raises(ValueError, match="gives one result, that of the last operator"):
        from_onnx.convert(made)


@needs_onnx
@pytest.mark.parametrize("shape", [("h", 6, 5), (3,), (3, 6, "w")])
def test_a_graph_for_pictures_of_any_size_is_not_written(shape, tmp_path):
    converted = from_onnx.convert(graph(CONV, shape=shape, w=W))
    with pytest.raises(ValueError, match="three whole numbers"):
        model_file.write(converted, tmp_path / "model.sparse")


@needs_onnx
def test_branches_are_not_written(tmp_path):
    made = graph(CONV, ("Conv", "x w", "y", {}), w=W)
    with pytest.raises(ValueError, match=r"operator 1 \(convolution\) takes the results \[0\]"):
        model_file.write(from_onnx.convert(made), tmp_path / "model.sparse")
