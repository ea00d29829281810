"""demos/shapes.py: its boxes are where its shapes are."""

from __future__ import annotations

import numpy as np
import pytest

from demos import shapes
from readers.voc import VOCDataset


def test_shapes_lie_in_their_boxes(voc_dir):
    colours = list(shapes.CLASSES.values())
    for mode in ("train", "val"):
        dataset = VOCDataset(voc_dir, mode)
        assert dataset.classes == list(shapes.CLASSES)
        for index, objects in enumerate(dataset.objects):
            pixels = dataset.pixels(index).astype(int)
            for (x1, y1, x2, y2), label in zip(objects.boxes.astype(int), objects.labels):
                strong = np.abs(pixels - colours[label]).max(2) < 60
                assert strong[y1:y2, x1:x2].mean() > 0.3
                middle = pixels[(y1 + y2) // 2 + 2, (x1 + x2) // 2]
                assert np.abs(middle - colours[label]).max() < 60


@pytest.mark.parametrize("name", shapes.CLASSES)
def test_shapes_reach_the_edges_of_their_boxes(name):
    for size in range(16, 48):
        pixels = np.zeros((60, 60, 3), np.uint8)
        shapes.draw(pixels, name, [5, 7, 5 + size, 7 + size])
        ys, xs = np.nonzero(pixels.any(2))
        assert [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] == [5, 7, 5 + size, 7 + size]
