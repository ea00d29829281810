"""Convolutions of small pictures by other operators: the same results, chosen by shape."""

import copy
import json

import numpy as np
import paddle
import pytest
from conftest import assert_same_end, error_line, metrics
from paddle import nn

import evaluate
import train
from training import convolutions, train_state
from training.convolutions import depthwise, pointwise

LAYERS = {  # channels, outputs, kernel, settings of the layer, rows, columns
    "1x1": (5, 7, 1, {}, 4, 4),
    "1x1 with a bias": (5, 7, 1, {"bias_attr": None}, 3, 5),
    "3x3": (6, 6, 3, {"groups": 6, "padding": 1}, 8, 8),
    "3x3 of one pixel": (6, 6, 3, {"groups": 6, "padding": 1}, 1, 1),
    "stride 2": (6, 6, 3, {"groups": 6, "padding": 1, "stride": 2}, 7, 4),
    "5x3, all uneven": (4, 4, (5, 3), {"groups": 4, "padding": (2, 0), "stride": (1, 2),
                                       "dilation": (1, 2), "bias_attr": None}, 6, 9),
}  # fmt: skip


def layer_and_images(name, pictures=64):
    channels, outputs, kernel, settings, rows, columns = LAYERS[name]
    paddle.seed(0)
    layer = nn.Conv2D(channels, outputs, kernel, **{"bias_attr": False, **settings})
    if layer.bias is not None:
        layer.bias.set_value(paddle.randn([outputs]))
    images = paddle.randn([pictures, channels, rows, columns])
    images.stop_gradient = False
    return layer, images


@pytest.mark.parametrize("name", LAYERS)
def test_results_and_gradients_are_those_of_paddle(name):
    layer, images = layer_and_images(name)
    fast, their = copy.deepcopy(layer), {}
    convolutions.use_fast(fast)
    weights = paddle.randn(layer(images).shape)
    for one in (layer, fast):
        results = one(images)
        (results * weights).sum().backward()
        found = [results, images.grad, *(p.grad for p in one.parameters())]
        their[one] = [tensor.numpy() for tensor in found]
        images.clear_grad()
    assert layer.full_name() == fast.full_name()
    for own, other in zip(their[layer], their[fast]):
        np.testing.assert_allclose(other, own, rtol=1e-5, atol=1e-4)


def test_a_copy_computes_with_its_own_weights():
    layer, images = layer_and_images("1x1")
    convolutions.use_fast(layer)
    copied = copy.deepcopy(layer)
    copied.weight.set_value(paddle.zeros_like(copied.weight))
    assert not copied(images).any()
    assert layer(images).any()


@pytest.mark.parametrize(
    ("compute", "size", "stride", "pictures", "fast"),
    [
        (pointwise, 4, 1, 1, True),
        (pointwise, 5, 1, 64, False),
        (depthwise, 8, 1, 8, True),  # 4,096 entries
        (depthwise, 8, 1, 7, False),
        (depthwise, 16, 2, 32, True),  # 16,384
        (depthwise, 16, 2, 31, False),
        (depthwise, 12, 1, 1000, False),  # 20,736
        (depthwise, 2, 1, 1, True),
    ],
)
def test_operators_are_chosen_by_shape(compute, size, stride, pictures, fast):
    kernel = 1 if compute is pointwise else 3
    groups = 1 if compute is pointwise else 2
    layer = nn.Conv2D(2, 2, kernel, stride, kernel // 2, groups=groups)
    assert convolutions.kind_of(layer) is compute
    assert (compute(layer, paddle.zeros([pictures, 2, size, size])) is not None) == fast


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2D(4, 4, 3, padding=1),
        nn.Conv2D(4, 8, 3, padding=1, groups=2),
        nn.Conv2D(4, 8, 1, groups=2),
        nn.Conv2D(4, 8, 1, stride=2),
        nn.Conv2D(4, 8, 1, padding=1),
        nn.Conv2D(4, 4, 3, padding="SAME", groups=4),
        nn.Conv2D(4, 4, 3, padding=[0, 1, 0, 1], groups=4),
        nn.Conv2D(4, 4, 3, padding=1, padding_mode="circular", groups=4),
        nn.Conv2D(4, 4, 3, padding=1, groups=4, data_format="NHWC"),
        nn.Conv2DTranspose(4, 4, 1),
        type("Own", (nn.Conv2D,), {"forward": nn.Conv2D.forward})(4, 8, 1),
    ],
)
def test_other_layers_stay(layer):
    convolutions.use_fast(layer)
    assert "forward" not in vars(layer)


@pytest.mark.parametrize(
    ("name", "side"),
    [("mobilenet_v1", 32), ("mobilenet_v2", 32), ("mobilenet_v3_small", 64), ("resnet18", 32),
     ("shufflenet_v2_x0_25", 32)],
)  # fmt: skip
def test_a_network_keeps_its_loss_and_its_names(name, side):
    paddle.seed(0)
    model = getattr(paddle.vision.models, name)(num_classes=10)
    images, labels = paddle.randn([64, 3, side, side]), paddle.randint(0, 10, [64])
    names, losses = list(model.state_dict()), []
    for fast in (False, True):
        if fast:
            convolutions.use_fast(model)
        paddle.seed(1)  # of dropout
        losses.append(float(nn.functional.cross_entropy(model(images), labels)))
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert list(model.state_dict()) == names


def without_the_option(folder):
    """As a run of before there was --fast_convolutions."""
    path = folder / train_state.STATE
    state = json.loads(path.read_text())
    del state["options"]["fast_convolutions"]
    train_state.seal(state, folder.resolve() if path.is_symlink() else folder)


def test_a_run_of_before_goes_on_with_paddles_own(small, tmp_path):
    """And one of today with the fast ones, whatever the default will be."""
    common = [
        *small,
        "--batch_size",
        "20",
        "--num_epochs",
        "2",
        "--model_period",
        "1",
        "--test_period",
        "1",
    ]
    ends = {}
    for name, given in (("own", ["--fast_convolutions", "false"]), ("fast", [])):
        ends[name] = tmp_path / name
        train.main([*common, *given, "--model_path", str(ends[name])])
        parts = tmp_path / f"{name} in parts"
        train.main([*common, *given, "--model_path", str(parts), "--max_steps", "2"])
        if name == "own":
            without_the_option(parts / "epoch-0")
        again = ["--pretrained_model", str(parts), "--resume_epoch", "0"]
        train.main([*common, "--model_path", str(parts), *again])
        assert_same_end(ends[name], parts)
    with pytest.raises(AssertionError):  # they do differ
        assert_same_end(ends["own"], ends["fast"])


def test_another_choice_is_refused_on_resume(small, tmp_path, capsys):
    common = [*small, "--num_epochs", "2", "--model_period", "1", "--model_path", str(tmp_path)]
    train.main([*common, "--fast_convolutions", "false", "--max_steps", "2"])
    without_the_option(tmp_path / "epoch-0")
    again = ["--resume_epoch", "latest", "--fast_convolutions", "true"]
    line = error_line(capsys, train.main, *common, *again)
    assert "was trained with --fast_convolutions False" in line


def test_evaluate_measures_what_the_test_of_the_training_did(small, tmp_path, capsys):
    losses = {}
    for fast in ("true", "false"):
        folder = str(tmp_path / fast)
        options = ["--fast_convolutions", fast, "--num_epochs", "1", "--model_path", folder]
        train.main([*small, *options])
        capsys.readouterr()
        evaluate.main(["--pruned_model", folder, *small[:2], "--num_workers", "0", "--json"])
        losses[fast] = json.loads(capsys.readouterr().out)["loss"]
        assert losses[fast] == metrics(tmp_path / fast)[-1]["loss"]
