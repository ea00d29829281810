from __future__ import annotations

import numpy as np
import paddle
import pytest

from tasks import yolov3
from unstructured_pruner import UnstructuredPruner


@pytest.fixture
def model():
    paddle.seed(0)
    return yolov3.YOLOv3(num_classes=3, scale=0.25)


@pytest.mark.parametrize(("size", "classes"), [(64, 3), (96, 1), (320, 20)])
def test_three_outputs_at_strides_32_16_and_8(size, classes):
    model = yolov3.YOLOv3(classes, scale=0.25)
    shapes = [output.shape for output in model(paddle.zeros([2, 3, size, size]))]
    assert shapes == [[2, 3 * (5 + classes), size // s, size // s] for s in (32, 16, 8)]


def test_at_full_width_it_has_the_sizes_of_the_paper():
    channels = {name: p.shape for name, p in yolov3.YOLOv3(20).named_parameters()}
    assert [channels[f"heads.{i}.weight"] for i in range(3)] == [
        [75, 1024, 1, 1], [75, 512, 1, 1], [75, 256, 1, 1]]  # fmt: skip
    assert [channels[f"blocks.{i}.0.0.weight"][1] for i in range(3)] == [1024, 256 + 512, 128 + 256]


def test_training_begins_where_nearly_all_anchors_are_empty(model):
    for head in model.heads:
        objectness = head.bias.reshape([3, 8])[:, 4]
        assert paddle.nn.functional.sigmoid(objectness).tolist() == pytest.approx(
            [0.01] * 3, rel=0.01
        )


def targets(*objects):
    """Boxes, labels, weights of one picture, with one row of padding."""
    boxes, labels = np.zeros([1, len(objects) + 1, 4]), np.zeros([1, len(objects) + 1])
    for i, (box, label) in enumerate(objects):
        boxes[0, i], labels[0, i] = box, label
    weights = (boxes[..., 2] > 0).astype("float32")
    return [paddle.to_tensor(a.astype(t)) for a, t in
            ((boxes, "float32"), (labels, "int32"), (weights, "float32"))]  # fmt: skip


def blank(classes: int, size: int) -> list[np.ndarray]:
    """Outputs that see nothing: objectness sigmoid(-12)."""
    outputs = [np.zeros([1, 3, 5 + classes, size // s, size // s], np.float32) for s in (32, 16, 8)]
    for output in outputs:
        output[:, :, 4] = -12
    return outputs


def say(output: np.ndarray, anchor: int, row: int, column: int, label: int, tx=0.0, tw=0.0) -> None:
    output[0, anchor, :2, row, column] = tx
    output[0, anchor, 2:4, row, column] = tw
    output[0, anchor, 4, row, column] = 12
    output[0, anchor, 5:, row, column] = -12
    output[0, anchor, 5 + label, row, column] = 12


def tensors(outputs: list[np.ndarray]) -> list[paddle.Tensor]:
    return [paddle.to_tensor(o.reshape([1, -1, *o.shape[3:]])) for o in outputs]


@pytest.mark.parametrize("scale", [0, 1, 2])
@pytest.mark.parametrize("anchor", [0, 1, 2])
def test_a_perfect_prediction_decodes_to_its_box_and_costs_nothing(scale, anchor):
    size, outputs = 416, blank(3, 416)
    row, column, stride = 5, 4, yolov3.STRIDES[scale]
    w, h = yolov3.ANCHORS[scale][2 * anchor : 2 * anchor + 2]
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    say(
        outputs[scale], anchor, row, column, label=2
    )  # the middle of its cell, as large as its anchor
    sizes = paddle.to_tensor([[2 * size, 3 * size]], dtype="int32")  # a picture that was resized
    ((boxes, scores, classes),) = yolov3.detections(tensors(outputs), sizes)
    wanted = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]).clip(0) * [3, 2, 3, 2]
    assert boxes == pytest.approx(wanted[None].clip(0, [3 * size, 2 * size] * 2), abs=0.01)
    assert scores == pytest.approx([1], abs=1e-3)
    assert classes.tolist() == [2]

    truth = targets(([x / size, y / size, w / size, h / size], 2))
    best = float(yolov3.loss(tensors(outputs), *truth).sum())
    # What is left: binary cross entropy of targets of 0.5 by 0, for x and y.
    weight = 2 - w * h / size**2
    assert best == pytest.approx(2 * weight * np.log(2), abs=0.2)
    for change in ({"label": 1}, {"label": 2, "tx": 1.0}, {"label": 2, "tw": 0.5}):
        other = blank(3, 416)
        say(other[scale], anchor, row, column, **change)
        assert float(yolov3.loss(tensors(other), *truth).sum()) > best + 0.2
    elsewhere = blank(3, 416)
    say(elsewhere[scale], anchor, row + 1, column, label=2)
    assert float(yolov3.loss(tensors(elsewhere), *truth).sum()) > best + 12


@pytest.mark.parametrize(("shift", "ignored"), [(8, True), (24, False)])
def test_a_box_that_overlaps_an_object_enough_may_be_sure(shift, ignored):
    middle = 13.5 * 16  # of a cell; the box of its left neighbour is `shift` pixels away
    truth = targets(([middle / 416, middle / 416, 62 / 416, 45 / 416], 0))
    costs = []
    for objectness in (6, -12):
        outputs = blank(3, 416)
        outputs[1][0, 1, 0, 13, 12] = 12 if shift == 8 else -12  # on the right or left of its cell
        outputs[1][0, 1, 4, 13, 12] = objectness
        costs.append(float(yolov3.loss(tensors(outputs), *truth).sum()))
    overlap = (62 - shift) / (62 + shift)
    assert (overlap > 0.7) == ignored
    assert costs[0] - costs[1] == pytest.approx(0 if ignored else 6, abs=0.01)


def test_the_weights_of_mixup_scale_the_loss():
    boxes, labels, weights = targets(([0.5, 0.5, 0.3, 0.3], 0))
    outputs = tensors(blank(3, 96))
    whole = float(yolov3.loss(outputs, boxes, labels, weights).sum())
    nothing = float(yolov3.loss(outputs, boxes, labels, weights * 0).sum())
    half = float(yolov3.loss(outputs, boxes, labels, weights * 0.5).sum())
    assert half == pytest.approx((whole + nothing) / 2, rel=1e-4)
    assert whole > nothing + 10


def test_overlapping_detections_of_one_class_are_one():
    outputs = blank(3, 96)
    say(outputs[1], 1, 2, 2, label=0)
    say(outputs[1], 1, 2, 3, label=0)  # 16 pixels beside it, 62 wide: an IoU of 0.59
    say(outputs[1], 1, 4, 3, label=1)
    outputs[1][0, 1, 4, 2, 3] = 2  # less sure
    ((_, scores, classes),) = yolov3.detections(
        tensors(outputs), paddle.to_tensor([[96, 96]]).astype("int32")
    )
    assert classes.tolist() == [0, 1] or classes.tolist() == [1, 0]
    assert scores == pytest.approx([1, 1], abs=1e-3)
    outputs[1][0, 1, 4:, 2, 3] = outputs[1][0, 1, 4:, 4, 3]  # of another class than its neighbour
    ((_, scores, _),) = yolov3.detections(
        tensors(outputs), paddle.to_tensor([[96, 96]]).astype("int32")
    )
    assert len(scores) == 3


def test_nothing_and_very_much_are_found():
    sizes = paddle.to_tensor([[96, 96]]).astype("int32")
    ((boxes, scores, classes),) = yolov3.detections(tensors(blank(3, 96)), sizes)
    assert (boxes.shape, scores.shape, classes.shape) == ((0, 4), (0,), (0,))
    crowded = blank(3, 96)
    for output in crowded:
        output[:, :, 4:] = 3
        output[:, :, 2:4] = -3
    ((boxes, scores, _),) = yolov3.detections(tensors(crowded), sizes)
    assert len(boxes) == yolov3.MAX_DETECTIONS
    assert (np.diff(scores) <= 0).all()
    assert (boxes >= 0).all()
    assert (boxes <= 96).all()


def test_gradients_reach_every_parameter(model):
    outputs = model(paddle.randn([2, 3, 64, 64]))
    boxes, labels, weights = (
        paddle.concat([t, t]) for t in targets(([0.5, 0.5, 0.8, 0.8], 1), ([0.3, 0.3, 0.2, 0.2], 0))
    )
    yolov3.loss(outputs, boxes, labels, weights).mean().backward()
    trained = [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]
    assert len(trained) == 27 * 3 + 20 * 3 + 3 * 2  # convolutions with batch norm, heads
    for name, parameter in trained:
        assert float(parameter.grad.abs().sum()) > 0, name


def test_decay_is_for_the_convolutions_of_neck_and_heads(model):
    before = {name: p.numpy() for name, p in model.named_parameters()}
    opt = paddle.optimizer.Momentum(
        0.1, parameters=model.parameters(), weight_decay=paddle.regularizer.L2Decay(0.5)
    )
    sum((p * 0).sum() for p in model.parameters()).backward()  # gradients of 0
    opt.step()
    for name, parameter in model.named_parameters():
        decays = not name.startswith("backbone.") and len(parameter.shape) == 4
        assert np.allclose(parameter.numpy(), before[name] * (0.95 if decays else 1), rtol=1e-5), (
            name
        )
        assert decays or (parameter.numpy() == before[name]).all(), name


def test_the_pruner_knows_nothing_of_detection(model):
    pruner = UnstructuredPruner(model, mode="ratio", ratio=0.565)
    pruner.step()
    pruned = {name for name, p in model.named_parameters() if (p == 0).any() and len(p.shape) == 4}
    assert pruned == set(pruner.masks)
    assert all(len(mask.shape) == 4 for mask in pruner.masks.values())
    zeros = sum(int((m == 0).sum()) for m in pruner.masks.values())
    assert zeros == round(0.565 * sum(m.size for m in pruner.masks.values()))
