"""Augmentation of pictures with boxes, for training.

Each augmentation is a function of a Sample and a random generator, and keeps no other state.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from readers.boxes import iou
from readers.pictures import MEAN, normalize, resize

MAX_BOXES = 50  # of a picture in training


class Sample(NamedTuple):
    """A picture in training, with its objects."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    boxes: np.ndarray  # float32 [N, 4]: x1, y1, x2, y2 in pixels, 0 at the left and the top edge
    labels: np.ndarray  # int32 [N]
    weights: np.ndarray  # float32 [N]: of the boxes in the loss


def mixup(first: Sample, second: Sample, share: float) -> Sample:
    """Both pictures over each other (Zhang et al., 2019): `share` in 0..1 of the first."""
    height, width = np.maximum(first.pixels.shape[:2], second.pixels.shape[:2])
    mixed = np.zeros((height, width, 3), np.float32)
    for sample, part in ((first, share), (second, 1 - share)):
        mixed[: sample.pixels.shape[0], : sample.pixels.shape[1]] += sample.pixels * np.float32(
            part
        )
    return Sample(
        mixed.round().astype(np.uint8),
        np.concatenate([first.boxes, second.boxes]),
        np.concatenate([first.labels, second.labels]),
        np.concatenate([first.weights * share, second.weights * (1 - share)]).astype(np.float32),
    )


def distort(sample: Sample, rng: np.random.Generator) -> Sample:
    """Brightness, contrast, saturation (each x 0.5 to 1.5) and hue (by up to 18 degrees).

    Each with a probability of 1/2, in random order.
    """
    pixels = sample.pixels.astype(np.float32)
    for change in rng.permutation(4):
        if rng.random() < 0.5:
            continue
        factor = np.float32(rng.uniform(0.5, 1.5))
        if change == 0:
            pixels = pixels * factor
        elif change == 1:
            pixels = (pixels - pixels.mean()) * factor + pixels.mean()
        else:
            hsv = cv2.cvtColor(pixels.clip(0, 255) / 255, cv2.COLOR_RGB2HSV)  # 0..360, 0..1, 0..1
            if change == 2:
                hsv[..., 1] = (hsv[..., 1] * factor).clip(0, 1)
            else:
                hsv[..., 0] = (hsv[..., 0] + np.float32(rng.uniform(-18, 18))) % 360
            pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * 255
    return sample._replace(pixels=pixels.clip(0, 255).round().astype(np.uint8))


def expand(sample: Sample, rng: np.random.Generator) -> Sample:
    """With a probability of 1/2: somewhere on a canvas of mean colour, up to 4 times as wide."""
    if rng.random() < 0.5:
        return sample
    height, width = sample.pixels.shape[:2]
    ratio = rng.uniform(1, 4)
    canvas_height, canvas_width = round(height * ratio), round(width * ratio)
    top = int(rng.integers(canvas_height - height + 1))
    left = int(rng.integers(canvas_width - width + 1))
    canvas = np.empty((canvas_height, canvas_width, 3), np.uint8)
    canvas[:] = (MEAN.ravel() * 255).round()
    canvas[top : top + height, left : left + width] = sample.pixels
    return sample._replace(pixels=canvas, boxes=sample.boxes + np.float32([left, top, left, top]))


def crop(sample: Sample, rng: np.random.Generator) -> Sample:
    """A random part that overlaps some box by a random IoU or more (Liu et al., SSD, 2016), or all.

    Boxes with their middle outside are dropped, the others cut.
    """
    height, width = sample.pixels.shape[:2]
    min_iou = rng.choice([-1.0, 0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
    if min_iou < 0 or not len(sample.boxes):
        return sample
    middles = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2
    for _ in range(50):
        part, ratio = rng.uniform(0.3, 1), np.sqrt(rng.uniform(0.5, 2))
        ratio = np.clip(ratio, part, 1 / part)
        w, h = round(width * part * ratio), round(height * part / ratio)
        if w < 1 or h < 1:
            continue
        left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
        window = np.float32([left, top, left + w, top + h])
        inside = ((middles > window[:2]) & (middles < window[2:])).all(1)
        if inside.any() and iou(window[None], sample.boxes).max() >= min_iou:
            boxes = sample.boxes[inside].clip(np.tile(window[:2], 2), np.tile(window[2:], 2))
            return Sample(
                sample.pixels[top : top + h, left : left + w],
                boxes - np.tile(window[:2], 2),
                sample.labels[inside],
                sample.weights[inside],
            )
    return sample


def flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """With a probability of 1/2: left and right exchanged."""
    if rng.random() < 0.5:
        return sample
    boxes = sample.boxes.copy()
    boxes[:, [2, 0]] = sample.pixels.shape[1] - sample.boxes[:, [0, 2]]
    return sample._replace(pixels=cv2.flip(sample.pixels, 1), boxes=boxes)


AUGMENTATIONS = {"full": (distort, expand, crop, flip), "flip": (flip,)}


def target(sample: Sample, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, boxes, labels and weights as VOCDataset gives them, of the first 50 boxes."""
    count = min(MAX_BOXES, len(sample.boxes))
    sides = np.float32(sample.pixels.shape[1::-1])
    boxes, labels = np.zeros((MAX_BOXES, 4), np.float32), np.zeros(MAX_BOXES, np.int32)
    weights = np.zeros(MAX_BOXES, np.float32)
    low, high = sample.boxes[:count, :2] / sides, sample.boxes[:count, 2:] / sides
    boxes[:count] = np.concatenate([(low + high) / 2, high - low], 1)
    labels[:count], weights[:count] = sample.labels[:count], sample.weights[:count]
    return normalize(resize(sample.pixels, size, size)), boxes, labels, weights
