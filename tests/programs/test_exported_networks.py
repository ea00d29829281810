"""export.py with networks of other operators than MobileNetV1 has."""

from __future__ import annotations

import numpy as np
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
    """With the layer that it stands for: a GELU is five operators of ONNX."""
    nn = paddle.nn
    wide = nn.Conv2D(4, 4, 3, dilation=2)
    for layers, operator, layer in (
        ([nn.Tanh()], "Tanh", "1, Tanh()"),
        ([nn.Conv2D(4, 4, 3), nn.Sequential(nn.ReLU(), nn.GELU())], "Div", "2.1, GELU("),
        ([nn.Conv2D(4, 4, 3), wide], "Conv with dilation", "2, Conv2D(4, 4, kernel_size=[3, 3], "),
        ([nn.Flatten(), nn.Linear(256, 4), nn.Softmax()], "Softmax", "3, Softmax("),
        ([Tanh()], "Tanh", None),
    ):
        network = nn.Sequential(nn.Conv2D(3, 4, 1), *layers)
        with pytest.raises(ValueError, match=f"runtime has no operator {operator} ") as refused:
            export.save_sparse(network, (3, 8, 8), tmp_path)
        _, _, named = str(refused.value).partition("export as onnx or paddle; the layer is ")
        assert named.startswith(layer) if layer else not named
        assert list(tmp_path.iterdir()) == []


class Tanh(paddle.nn.Layer):
    """By a function, without a layer."""

    def __init__(self):
        super().__init__()
        self.inside = paddle.nn.ReLU()

    def forward(self, x):
        return paddle.tanh(self.inside(x))


@pytest.mark.parametrize("layers", [[], [paddle.nn.ReLU(), paddle.nn.AdaptiveAvgPool2D(1)]])
def test_an_output_of_one_pixel_stays_a_picture(layers, tmp_path):
    side = 10 if layers else 8
    network = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 8), *layers)
    network.eval()
    assert export.save_checked("sparse", network, (3, side, side), tmp_path) <= 1e-5


def test_rounding_that_the_network_magnifies_is_no_fault(tmp_path, monkeypatch):
    """What is left of products that nearly cancel; the same with an error is refused."""
    rng = np.random.default_rng(0)
    made = rng.standard_normal((32, 27)).astype(np.float32)
    sums = rng.standard_normal((8, 32)) @ (np.eye(32) - made @ np.linalg.pinv(made))
    sums = (sums + 3e-4 * rng.standard_normal((8, 32))).astype(np.float32)
    network = paddle.nn.Sequential(paddle.nn.Conv2D(3, 32, 3), paddle.nn.Conv2D(32, 8, 1))
    with paddle.no_grad():
        for layer, weight in zip(network, (made, sums)):
            layer.weight.set_value(weight.reshape(layer.weight.shape))
            layer.bias.set_value(paddle.zeros_like(layer.bias))
        network.eval()
        largest = float(network(paddle.randn([2, 3, 16, 16])).abs().max())
    error = export.save_checked("sparse", network, (3, 16, 16), tmp_path)
    assert error > export.MAX_ERROR

    def save_other(model, shape, folder):
        with paddle.no_grad():
            model[1].bias.set_value(model[1].bias + 0.01 * largest)
        export.save_sparse(model, shape, folder)

    monkeypatch.setitem(export.SAVE, "sparse", save_other)
    with pytest.raises(ValueError, match="differs from the model by"):
        export.save_checked("sparse", network, (3, 16, 16), tmp_path)
