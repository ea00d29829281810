"""Boxes in pictures: x1, y1, x2, y2 with x1 < x2 and y1 < y2, in any unit."""

from __future__ import annotations

import numpy as np


def iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of every box [N, 4] with every other [M, 4]: float64 [N, M]."""
    boxes, others = boxes.astype(np.float64), others.astype(np.float64)
    corners = np.maximum(boxes[:, None, :2], others[:, :2])
    sides = (np.minimum(boxes[:, None, 2:], others[:, 2:]) - corners).clip(0)
    shared = sides.prod(2)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)[:, None] + (others[:, 2:] - others[:, :2]).prod(1)
    return shared / np.maximum(areas - shared, np.finfo(np.float64).tiny)
