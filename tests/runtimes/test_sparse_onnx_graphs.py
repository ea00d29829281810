"""Whole ONNX graphs for the sparse runtime, and what it refuses."""

from __future__ import annotations

import pytest
from onnx_graphs import (
    AXIS,
    CONSTANTS,
    CONV,
    MEAN,
    PADDED,
    case,
    check,
    described,
    graph,
    kinds,
    numpy_helper,
    random,
)  # fmt: skip

from sparse_runtime import from_onnx, model_file


@pytest.mark.parametrize(
    ("outputs", "numbers", "wanted"),
    [
        (["p", "y"], [3, 2], "convolution convolution mean"),
        (["y", "c", "y"], [2, 1, 2], "convolution convolution mean"),
        (["r", "c"], [4, 1], "convolution convolution mean scale+relu"),  # not folded
        (["s"], [4], "convolution convolution mean channels"),
    ],
)
def test_outputs(outputs, numbers, wanted):
    nodes = [CONV, "Conv c w4 > y", "GlobalAveragePool y > p"]
    nodes += ["Relu c > r"] * ("r" in outputs) + ["Slice y i1 far i1 > s"] * ("s" in outputs)
    model = check(case(*nodes, outputs=outputs))
    assert (model.outputs, kinds(model)) == (numbers, wanted)


def test_an_output_is_a_picture_or_flat_as_in_the_graph():
    nodes = [CONV, "GlobalAveragePool c > p", "Flatten p > f", "Relu c > r"]
    for outputs, given in ((["p", "c"], [2]), (["f", "c"], []), (["f"], [])):
        model = check(case(*nodes, outputs=outputs))
        assert [n for n in model.pictures if n == 2] == given


def test_an_output_keeps_its_value():
    model = check(case(CONV, "Relu c > y", outputs=["c", "y"]))
    assert kinds(model) == "convolution scale+relu"


def test_constant_nodes():
    made = graph(
        ("Constant", "", "k", {"value": numpy_helper.from_array(random(4, 3, 1, 1))}),
        ("Identity", "k", "w", {}),
        ("Conv", "x w", "y", {}),
    )
    (op,) = check(made).operators
    assert (op.weight == random(4, 3, 1, 1).reshape(4, 3)).all()


def test_an_unused_constant_and_a_constant_among_the_inputs():
    made = graph(("Conv", "x w", "y", {}), w=random(2, 3, 1, 1), unused=random(5))
    made.input.insert(0, described("w", [2, 3, 1, 1]))
    assert check(made).input_shape == (3, 6, 5)


def test_shapes_are_computed_at_once():
    nodes = [  # as paddle2onnx 1.3 writes a flattening
        "GlobalAveragePool x > p", "Shape p > s", "Slice s i0 i1 > batch1",
        ("Concat batch1 i_1 > sizes1", {"axis": 0}), "Reshape p sizes1 > f", "MatMul f u > y",
    ]  # fmt: skip
    model = check(case(*nodes))
    assert kinds(model) == "mean convolution"
    assert (model.operators[1].weight == CONSTANTS["u"].T).all()


# Refusals


PICK = ("Transpose x > t", {"perm": [0, 2, 1, 3]})
COUNTED = {"kernel_shape": [3, 3], "strides": [2, 2], "count_include_pad": 1, **PADDED}
RESIZE = "Resize but to the nearest, by a whole factor"
NEAREST = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
           "nearest_mode": "floor"}  # fmt: skip
LACKS = [
    ("Tanh", ["Tanh x > y"]),
    ("Clip but from 0 to 6", [CONV, "Clip c zero one > y"]),
    ("Clip but from 0 to 6", [CONV, "Clip c zero > y"]),
    ("HardSigmoid but of x / 6", ["HardSigmoid x > y"]),
    ("HardSigmoid but of x / 6", [("HardSigmoid x > y", {"alpha": 0.1667})]),
    ("HardSigmoid but of x / 6", [("HardSigmoid x > y", {"alpha": 1 / 6, "beta": 0.4})]),
    ("Conv with dilation", [("Conv x w > y", {"dilations": [1, 2]})]),
    ("MaxPool with dilation", [("MaxPool x > y", {"kernel_shape": [2, 2], "dilations": [2, 2]})]),
    ("Conv here: its pictures are 4x3, too small", [CONV, "Conv c w3 > d", "Conv d wide > y"]),
    ("Conv here: 2 groups of 3 channels", [("Conv x groups > y", {"group": 2})]),
    ("Conv here: weight has the shape", ["Conv x w4 > y"]),
    ("Conv of two activations", [CONV, "Conv x c > y"]),
    ("Gemm with factors or transA", [*MEAN, ("Gemm f u > y", {"alpha": 0.5})]),
    ("Gemm with factors or transA", [*MEAN, ("Gemm f u b7 > y", {"beta": 2.0})]),
    ("Gemm with factors or transA", [*MEAN, ("Gemm f u > y", {"transA": 1})]),
    ("MatMul but of two matrices", ["MatMul x square > y"]),
    ("MatMul of two activations", [*MEAN, "MatMul f f > y"]),
    ("BatchNormalization of two activations", [
        CONV, "BatchNormalization c scale x mean var > y",
    ]),
    ("AveragePool with ceil_mode and padding that counts", [
        ("AveragePool x > y", {**COUNTED, "ceil_mode": 1}),
    ]),
    (RESIZE, [("Resize x none scales > y", {**NEAREST, "mode": "linear"})]),
    (RESIZE, [("Resize x none scales > y",
               {**NEAREST, "coordinate_transformation_mode": "align_corners"})]),
    (RESIZE, [("Resize x none scales > y", {**NEAREST, "nearest_mode": "ceil"})]),
    (RESIZE, [("Resize x none oblong > y", NEAREST)]),
    (RESIZE, [("Resize x none half > y", NEAREST)]),
    (RESIZE, [("Resize x none none more > y", NEAREST)]),
    (r"Add of a constant of \[6, 5\]", ["Add x pixels > y"]),
    (r"Mul of a constant of \[4, 1, 1\]", ["Mul x c4 > y"]),
    (r"Add of a constant of \[2, 4, 1, 1\]", [CONV, "Add c batch > y"]),
    (r"Add of a constant of \[1, 4, 1, 1\]", [CONV, "GlobalAveragePool c > p", "Flatten p > f",
                                             "Add f nc4 > y"]),
    ("Add here: results of .* cannot be added", [CONV, "GlobalAveragePool c > p", "Add c p > y"]),
    ("Add of pictures and a flat tensor", [*MEAN, "Add p f > y"]),
    ("Concat of axis 2", [("Concat x x > y", {"axis": 2})]),
    ("Concat here: pictures of several sizes", [CONV, ("Concat x c > y", AXIS)]),
    ("Reshape to", ["Reshape x turned > t", "Relu t > y"]),
    ("Reshape to", ["Reshape x batches > t", "Relu t > y"]),
    ("Reshape to", ["Reshape x across > t", "Relu t > y"]),
    ("Transpose to", [PICK, "Relu t > y"]),
    ("Flatten to", [("Transpose x > t", {"perm": [0, 2, 3, 1]}), "Flatten t > f",
                      "MatMul f many > y"]),
    ("Slice to", ["Slice x i1 far i2 > s", "Relu s > y"]),
    ("Flatten to", [("Flatten x > t", {"axis": 2}), "Relu t > y"]),
]  # fmt: skip


@pytest.mark.parametrize(("why", "nodes"), LACKS)
def test_operators_that_the_runtime_lacks(why, nodes):
    made = case(*nodes)
    with pytest.raises(ValueError, match=f"^the sparse runtime has no operator {why}") as refused:
        from_onnx.convert(made)
    message = str(refused.value)
    assert message.endswith("): export as onnx or paddle")
    assert any(f"(of {name})" in message for node in made.node for name in node.output)


def test_constants_that_are_taken_as_results():
    for nodes, outputs in [([CONV], ["w"]), ([CONV, ("Concat c nc4 > y", AXIS)], None)]:
        with pytest.raises(ValueError, match=r"no operator for (w|nc4): export as onnx or paddle"):
            from_onnx.convert(case(*nodes, outputs=outputs))


def test_a_network_that_gives_its_input_is_not_written(tmp_path):
    with pytest.raises(ValueError, match=r"it gives the results \[0\]"):
        model_file.write(from_onnx.convert(case(CONV, outputs=["x"])), tmp_path / "model.sparse")


@pytest.mark.parametrize("shape", [("h", 6, 5), (3,), (3, 6, "w"), (3, 6, 5, 1)])
def test_pictures_of_any_size(shape):
    with pytest.raises(ValueError, match="takes pictures of one size"):
        from_onnx.convert(case(CONV, shape=shape))


def test_two_inputs():
    made = case("Add x x > y")
    made.input.append(described("z", [1, 3, 6, 5]))
    with pytest.raises(ValueError, match="takes pictures of one size"):
        from_onnx.convert(made)
