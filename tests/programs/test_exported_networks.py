"""export.py with networks of other operators than MobileNetV1 has."""

from __future__ import annotations

import paddle
import pytest

import export
import runtimes

pytest.importorskip("paddle2onnx")


class TwoSlopes(paddle.nn.Layer):
    """The LeakyReLU that is called first was made last."""

    def __init__(self):
        super().__init__()
        self.second, self.first = paddle.nn.LeakyReLU(0.3), paddle.nn.LeakyReLU(0.1)
        self.conv = paddle.nn.Conv2D(3, 4, 1)

    def forward(self, x):
        return self.second(self.conv(self.first(x)))


def test_a_leaky_relu_is_one_operator_of_onnx_with_its_slope(tmp_path):
    onnx = pytest.importorskip("onnx")
    export.save_onnx(TwoSlopes(), (3, 8, 8), tmp_path)
    nodes = onnx.load(tmp_path / runtimes.ONNX).graph.node
    assert not {node.op_type for node in nodes} & {"Mul", "Max"}
    slopes = [node.attribute[0].f for node in nodes if node.op_type == "LeakyRelu"]
    assert slopes == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize("model", ["mobilenet_v3_small", "shufflenet_v2_x0_25"])
def test_a_network_with_branches_is_exported_as_sparse(model, tmp_path):
    network = getattr(paddle.vision.models, model)(num_classes=10)
    paddle.save(network.state_dict(), str(tmp_path / "w.pdparams"))
    export.main(["--pruned_model", str(tmp_path / "w.pdparams"), "--format", "sparse", "--out",
                 str(tmp_path / "out"), "--model", model])  # fmt: skip
    assert (tmp_path / "out" / runtimes.SPARSE).is_file()


def test_an_operator_the_runtime_lacks_is_named(tmp_path):
    network = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 1), paddle.nn.Tanh())
    with pytest.raises(ValueError, match="the sparse runtime has no operator Tanh"):
        export.save_sparse(network, (3, 8, 8), tmp_path)
    assert list(tmp_path.iterdir()) == []
