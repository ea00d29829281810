"""Mean average precision of Pascal VOC: which detections are right, and how good a ranking is.

Boxes are x1, y1, x2, y2 with x1 < x2 and y1 < y2, in any unit.
"""

from __future__ import annotations

import numpy as np

from readers.voc import iou


def hits(
    detected: np.ndarray, truth: np.ndarray, difficult: np.ndarray, threshold: float = 0.5
) -> np.ndarray:
    """Of one class in one picture, by falling score: 1 right, 0 wrong, -1 not to be counted.

    A detection means the object that it overlaps most; it is right if by `threshold` or more and
    the first to mean it. Difficult objects are neither to be found nor wrong to find.

    Args:
        detected: boxes [N, 4], the highest score first.
        truth: boxes [M, 4]; difficult: bool [M].
    """
    result = np.zeros(len(detected), np.int64)
    if not len(truth) or not len(detected):
        return result
    overlaps, found = iou(detected, truth), set()
    for i, (best, overlap) in enumerate(zip(overlaps.argmax(1), overlaps.max(1))):
        if overlap >= threshold and difficult[best]:
            result[i] = -1
        elif overlap >= threshold and best not in found:
            result[i] = 1
            found.add(best)
    return result


def average_precision(right: np.ndarray, positives: int) -> tuple[float, float]:
    """VOC's two forms of it: 11-point (until 2009) and the area under the curve (since 2010).

    Args:
        right: 0 or 1 a detection over the whole data set, the highest score first.
        positives: objects to be found; NaN is returned where there are none.
    """
    if positives == 0:
        return float("nan"), float("nan")
    found = np.cumsum(right)
    precision = found / np.arange(1, len(right) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    # Whole numbers, as 3 of 10 would be less than 0.1 * 3.
    at = [np.searchsorted(10 * found, tenth * positives) for tenth in range(11)]
    points = [best[i] if i < len(best) else 0.0 for i in at]
    return float(np.mean(points)), float(np.sum(best * (right == 1)) / positives)
