"""Small ONNX graphs, and what the sparse runtime's operators make of them."""

from __future__ import annotations

import numpy as np
import pytest
from sparse_networks import expected, pictures

from sparse_runtime.model_file import Model, shapes

try:
    import onnx
    import onnxruntime
    from onnx import helper, numpy_helper

    from sparse_runtime import from_onnx
except ImportError:
    pytest.skip("needs onnx and onnxruntime", allow_module_level=True)

PROVIDERS = ["CPUExecutionProvider"]


def graph(*nodes, shape=(3, 6, 5), outputs=None, **constants):
    """Each node is (operator, inputs, outputs, attributes); the network's input is x."""
    made = [helper.make_node(kind, ins.split(), outs.split(), **a) for kind, ins, outs, a in nodes]
    ends = [described(name, None) for name in outputs or [nodes[-1][2]]]
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    return helper.make_graph(made, "network", [described("x", [1, *shape])], ends, tensors)


def described(name: str, shape: list | None):
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def check(made) -> Model:
    """Converts, and compares with ONNX Runtime."""
    converted = from_onnx.convert(made)
    shapes(converted)
    images = pictures(converted, 1)
    opset = helper.make_opsetid("", 14)
    whole = helper.make_model(made, opset_imports=[opset], ir_version=8)
    session = onnxruntime.InferenceSession(whole.SerializeToString(), providers=PROVIDERS)
    results = session.run(None, {"x": images})
    assert len(results) == len(converted.outputs)
    for result, (right, apart) in zip(results, expected(converted, images)):
        assert result.shape == right.shape
        # The folding rounds, too; an error of the conversion is one of 0.01 or more here.
        np.testing.assert_allclose(result, right, atol=1e-6 + 10 * apart.max(), rtol=0)
    return converted


def kinds(made: Model) -> str:
    """Of the operators, each with its activation."""
    found = [f"{op.kind}+{getattr(op, 'activation', 'none')}" for op in made.operators]
    return " ".join(found).replace("+none", "")


def random(*shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def norm(channels: int) -> dict[str, np.ndarray]:
    parts = random(3, channels)
    return dict(zip(["scale", "shift", "mean", "var"],
                    [*parts, np.exp(random(channels + 1)[:channels])]))  # fmt: skip


def numbers(*values) -> np.ndarray:
    return np.array(values, np.float32)


# With these every case below may name what it needs.
CONSTANTS = {
    "w": random(4, 3, 3, 3), "w6": random(6, 3, 1, 1),
    "w3": random(3, 4, 1, 1), "w4": random(2, 4, 1, 1),
    "deep": random(3, 1, 3, 3), "deep4": random(4, 1, 3, 3), "twice": random(6, 1, 3, 3),
    "groups": random(8, 2, 3, 3), "wide": random(4, 3, 1, 7), "high": random(4, 3, 5, 1),
    "ut": random(7, 3), "u": random(3, 7), "many": random(90, 7), "square": random(3, 3),
    "c1": random(1), "c0": random(), "b4": random(4), "b7": random(7), "row7": random(1, 7),
    "c3": random(3, 1, 1), "c4": random(4, 1, 1), "nc4": random(1, 4, 1, 1),
    "pixels": random(6, 5), "batch": random(2, 4, 1, 1), "line": random(4, 3, 3),
    "zero": numbers(0)[0], "six": numbers(6)[0], "one": numbers(1)[0],
    "scales": numbers(1, 1, 2, 2), "oblong": numbers(1, 1, 2, 3), "half": numbers(1, 1, 1.5, 1.5),
    "none": numbers(), "sizes": np.array([1, 3, 18, 15]), "more": np.array([1, 6, 12, 10]),
    "two": np.array([2, 2]), "uneven": np.array([1, 3]), "axes": np.array([2, 3]),
    "flat": np.array([1, -1]), "kept": np.array([0, -1]), "any": np.array([-1, 4]),
    "pairs": np.array([1, 2, 2, 4, 3]), "fours": np.array([1, 4, 4, 3]),
    "turned": np.array([1, 30, 3]), "batches": np.array([3, 30]),
    "across": np.array([1, 3, 5, 6]),
    "i0": np.array([0]), "i1": np.array([1]), "i2": np.array([2]), "i3": np.array([3]),
    "i_1": np.array([-1]), "far": np.array([1 << 31]), **norm(4),
}  # fmt: skip


def case(*nodes, shape=(3, 6, 5), outputs=None):
    """A graph of CONSTANTS; a node without attributes is one text: operator inputs > outputs."""
    made = []
    for node in nodes:
        text, attributes = (node, {}) if isinstance(node, str) else node
        left, right = text.split(" > ")
        kind, *names = left.split()
        made.append((kind, " ".join(names), right, attributes))
    named = {name for _, names, _, _ in made for name in names.split()} | set(outputs or ())
    constants = {name: array for name, array in CONSTANTS.items() if name in named}
    return graph(*made, shape=shape, outputs=outputs, **constants)


CONV = "Conv x w > c"  # [4, 4, 3]
MEAN = ("GlobalAveragePool x > p", "Flatten p > f")
PADDED = {"pads": [1, 1, 1, 1]}
AXIS = {"axis": 1}
NORM = "scale shift mean var"
