"""Draws detections into pictures. Pixels are RGB, uint8 [H, W, 3]."""

from __future__ import annotations

import cv2
import numpy as np

from readers.printable import printable
from readers.voc import Objects

LONG_SIDE = 512  # pixels of a drawn picture
GAP = 4  # white pixels between two


def side_by_side(
    pixels: np.ndarray,
    found: tuple[np.ndarray, np.ndarray, np.ndarray],
    truth: Objects,
    classes: list[str],
) -> np.ndarray:
    """The picture twice: to the left with what was found, to the right with what is there.

    Args:
        found: boxes [K, 4] in the picture's pixels, scores [K] and classes [K].
        classes: names, in the order of the labels.
    """
    boxes, scores, labels = found
    classes = [printable(name) for name in classes]
    texts = [f"{classes[label]} {score:.2f}" for label, score in zip(labels, scores)]
    left = draw_boxes(pixels, boxes, labels, texts)
    texts = [
        classes[label] + " (difficult)" * bool(difficult)
        for label, difficult in zip(truth.labels, truth.difficult)
    ]
    right = draw_boxes(pixels, truth.boxes, truth.labels, texts)
    return np.concatenate([left, np.full_like(left[:, :GAP], 255), right], 1)


def draw_boxes(
    pixels: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: list[str]
) -> np.ndarray:
    """A copy, its longer side 512 pixels, with boxes and their texts; each class has its colour."""
    scale = LONG_SIDE / max(pixels.shape[:2])
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    for box, label, text in zip(boxes, labels, texts):
        x1, y1, x2, y2 = (round(float(edge)) for edge in box * scale)
        hue = np.uint8([[[label * 67 % 180, 255, 255]]])
        colour = cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0].tolist()
        cv2.rectangle(pixels, (x1, y1), (x2 - 1, y2 - 1), colour, 2)
        for colour, thickness in (((0, 0, 0), 3), ((255, 255, 255), 1)):  # white, edged in black
            cv2.putText(
                pixels, text, (x1 + 3, y1 + 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, thickness,
                cv2.LINE_AA,
            )  # fmt: skip
    return pixels


def write_png(path: str, pixels: np.ndarray) -> None:
    data = cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1]
    with open(path, "wb") as file:  # cv2.imwrite would only return False where it cannot write
        file.write(data)
