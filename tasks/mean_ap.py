"""Average precision of Pascal VOC. Boxes are those of readers/boxes.py."""

from __future__ import annotations

import numpy as np

from readers.boxes import iou


def hits(
    detected: np.ndarray, truth: np.ndarray, difficult: np.ndarray, threshold: float = 0.5
) -> np.ndarray:
    """Which detections of a class in a picture are right: int64 [N], 1 right, 0 wrong, -1 ignored.

    A detection is matched with the object that it overlaps most. It is right if their IoU is at
    least `threshold` and no detection before it was matched with that object; it is ignored if the
    object is difficult.

    Args:
        detected: boxes [N, 4], the highest score first.
        truth: boxes [M, 4].
        difficult: bool [M].
    """
    result = np.zeros(len(detected), np.int64)
    if not len(truth) or not len(detected):
        return result
    overlaps, found = iou(detected, truth), set()
    for i, (match, overlap) in enumerate(zip(overlaps.argmax(1), overlaps.max(1))):
        if overlap >= threshold and difficult[match]:
            result[i] = -1
        elif overlap >= threshold and match not in found:
            result[i] = 1
            found.add(match)
    return result


def average_precision(right: np.ndarray, positives: int) -> tuple[float, float]:
    """VOC's two forms: 11-point (until 2009) and the area under the curve (since 2010), in 0..1.

    Args:
        right: [N], 1 or 0 for each detection of the whole data set, the highest score first.
        positives: number of objects to be found; both are NaN where there are none.
    """
    if positives == 0:
        return float("nan"), float("nan")
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]  # highest at this recall or above
    # Whole numbers, as 3 of 10 would be less than 0.1 * 3.
    at = [np.searchsorted(10 * found, tenth * positives) for tenth in range(11)]
    points = [envelope[i] if i < len(envelope) else 0.0 for i in at]
    return float(np.mean(points)), float(np.sum(envelope * (right == 1)) / positives)
