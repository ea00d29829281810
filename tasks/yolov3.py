"""YOLOv3 (Redmon and Farhadi, 2018) on the MobileNetV1 of paddle.vision.models.

    model = YOLOv3(num_classes=20)
    outputs = model(images)  # float32 [N, 3, S, S], S a multiple of 32
    loss(outputs, boxes, labels, weights).mean().backward()
    for boxes, scores, classes in detections(outputs, sizes):
        ...  # of a picture

Sizes, anchors and thresholds are those of PaddleDetection's yolov3_mobilenet_v1_270e_voc.
"""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.vision.models import mobilenet_v1
from paddle.vision.ops import nms, yolo_box, yolo_loss

STRIDES = (32, 16, 8)  # of the three outputs
# Width and height in pixels of three anchors for each of them.
ANCHORS = (
    (116, 90, 156, 198, 373, 326),
    (30, 61, 62, 45, 59, 119),
    (10, 13, 16, 30, 33, 23),
)
ALL_ANCHORS = [side for anchors in reversed(ANCHORS) for side in anchors]
TAPS = {4: 256, 10: 512, 12: 1024}  # blocks of MobileNetV1 at strides 8, 16, 32: channels
WIDTHS = (512, 256, 128)  # of the neck, by output
IGNORE_IOU = 0.7  # a wrong anchor that overlaps an object by more is left out of the loss
# Of detections():
MIN_OBJECTNESS, MIN_SCORE = 0.005, 0.01
MAX_IOU = 0.45  # of two of a class
MAX_CANDIDATES = 1000  # of a class in a picture, before suppression
MAX_DETECTIONS = 100  # of a picture, after it


class YOLOv3(nn.Layer):
    """Outputs by falling stride: [N, 3 * (5 + num_classes), S / stride, S / stride] each.

    Weight decay is for the convolutions of neck and heads alone: other parameters carry a
    regularizer of their own, of 0.

    Args:
        scale: width of backbone and neck.
        pretrained: start from Paddle's ImageNet weights (at scale 1).
    """

    def __init__(self, num_classes: int = 20, scale: float = 1.0, pretrained: bool = False):
        super().__init__()
        width = {} if scale == 1 else {"scale": scale}
        self.backbone = mobilenet_v1(pretrained, num_classes=0, with_pool=False, **width)
        self.blocks, self.tips, self.heads, self.routes = (nn.LayerList() for _ in range(4))
        channels = 0
        for tap, full in zip(sorted(TAPS, reverse=True), WIDTHS):
            inputs, width = channels + int(TAPS[tap] * scale), max(1, int(full * scale))
            self.blocks.append(nn.Sequential(
                conv(inputs, width, 1), conv(width, 2 * width, 3), conv(2 * width, width, 1),
                conv(width, 2 * width, 3), conv(2 * width, width, 1),
            ))  # fmt: skip
            self.tips.append(conv(width, 2 * width, 3))
            head = nn.Conv2D(2 * width, 3 * (5 + num_classes), 1)
            # Nearly all anchors hold nothing: begin there, at sigmoid(-4.6) = 0.01.
            bias = np.zeros([3, 5 + num_classes], np.float32)
            bias[:, 4] = -4.6
            head.bias.set_value(bias.ravel())
            self.heads.append(head)
            if full != WIDTHS[-1]:
                channels = max(1, width // 2)
                self.routes.append(conv(width, channels, 1))
        self.upsampling = Upsampling()
        for name, parameter in self.named_parameters():
            if name.startswith("backbone.") or len(parameter.shape) == 1:
                parameter.regularizer = paddle.regularizer.L2Decay(0.0)

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        x, taps = self.backbone.conv1(images), []
        for number, block in enumerate(self.backbone.dwsl):
            x = block(x)
            if number in TAPS:
                taps.insert(0, x)
        outputs = []
        for i, (block, tip, head) in enumerate(zip(self.blocks, self.tips, self.heads)):
            x = block(taps[i] if i == 0 else paddle.concat([x, taps[i]], 1))
            outputs.append(head(tip(x)))
            if i < len(self.routes):
                x = self.upsampling(self.routes[i](x))
        return outputs


class Upsampling(nn.Layer):
    """Each pixel four times, in twice the height and width."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        # By size: paddle2onnx does not know a scale factor.
        return F.interpolate(x, size=[2 * n for n in x.shape[2:]], mode="nearest")


def conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.Sequential:
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2D(in_channels, out_channels, kernel_size, padding=padding, bias_attr=False),
        nn.BatchNorm2D(out_channels),
        nn.LeakyReLU(0.1),
    )


def classes_of(output: paddle.Tensor) -> int:
    """How many classes an output [N, 3 * (5 + classes), H, W] tells apart."""
    return output.shape[1] // 3 - 5


def loss(
    outputs: list[paddle.Tensor],
    boxes: paddle.Tensor,
    labels: paddle.Tensor,
    weights: paddle.Tensor,
) -> paddle.Tensor:
    """float32 [N]: the sum over all anchors. (Paddle computes it on the CPU, also on a GPU.)

    Args:
        boxes: float32 [N, B, 4], middle x and y, width and height, as parts of the picture's;
            zeros where a picture has fewer than B.
        labels: int32 [N, B].
        weights: float32 [N, B], below 1 after mixup.
    """
    return sum(
        yolo_loss(
            output.astype("float32"),
            boxes,
            labels,
            ALL_ANCHORS,
            [6 - 3 * i, 7 - 3 * i, 8 - 3 * i],
            classes_of(output),
            IGNORE_IOU,
            STRIDES[i],
            gt_score=weights,
            use_label_smooth=False,
        )
        for i, output in enumerate(outputs)
    )


@paddle.no_grad()
def detections(
    outputs: list[paddle.Tensor], sizes: paddle.Tensor
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What is seen in each picture, the highest score first, after suppression within a class.

    Args:
        sizes: int32 [N, 2], heights and widths of the pictures before they were resized.

    Returns:
        For each picture float32 [K, 4] boxes (x1, y1, x2, y2 in its pixels), float32 [K] scores
        and int64 [K] classes, K at most MAX_DETECTIONS.
    """
    decoded = [
        yolo_box(
            output.astype("float32"),
            sizes,
            list(anchors),
            classes_of(output),
            MIN_OBJECTNESS,
            stride,
            clip_bbox=False,  # Paddle's would cut at the middle of the last pixel
        )
        for output, anchors, stride in zip(outputs, ANCHORS, STRIDES)
    ]
    all_boxes = paddle.concat([boxes for boxes, _ in decoded], 1)
    all_scores = paddle.concat([scores for _, scores in decoded], 1)
    limits = paddle.tile(sizes.flip(1), [1, 2]).astype("float32").unsqueeze(1)  # [N, 1, 4]
    all_boxes = paddle.minimum(all_boxes.clip(0), limits)
    return [suppress(boxes, scores) for boxes, scores in zip(all_boxes, all_scores)]


def suppress(
    boxes: paddle.Tensor, scores: paddle.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Non-maximum suppression of a picture's boxes [M, 4] by their scores [M, C] of each class.

    Returns a picture's part of what `detections` returns.
    """
    scores, order = paddle.topk(
        scores, min(MAX_CANDIDATES, scores.shape[0]), axis=0
    )  # of each class
    likely = paddle.nonzero(scores > MIN_SCORE)  # [count, 2]: rank, class
    count = likely.shape[0]
    if count == 0:
        return np.zeros([0, 4], np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    labels = likely[:, 1]
    boxes, scores = boxes[paddle.gather_nd(order, likely)], paddle.gather_nd(scores, likely)
    if count > 1:
        present = np.unique(labels.numpy()).tolist()
        kept = nms(boxes, MAX_IOU, scores, labels, present, min(MAX_DETECTIONS, count))
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    return boxes.numpy(), scores.numpy(), labels.numpy()
