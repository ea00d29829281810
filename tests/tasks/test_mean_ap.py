from __future__ import annotations

import numpy as np
import pytest

from readers.boxes import iou
from tasks.mean_ap import average_precision, hits


def boxes(*corners) -> np.ndarray:
    return np.array(corners, float).reshape(-1, 4)


def test_iou():
    overlaps = iou(
        boxes([0, 0, 4, 2], [5, 5, 6, 6]), boxes([0, 0, 2, 2], [2, 1, 6, 3], [4, 0, 8, 2])
    )
    assert overlaps.tolist() == [[0.5, 2 / 14, 0], [0, 0, 0]]
    assert iou(boxes(), boxes([0, 0, 1, 1])).shape == (0, 1)


def test_each_object_is_found_once_and_difficult_ones_do_not_count():
    truth = boxes([0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10])
    detected = boxes(
        [0, 0, 10, 5],  # an IoU of just one half
        [0, 0, 10, 10],  # better, but the object is found
        [20, 0, 30, 4.9],  # less than one half
        [40, 0, 50, 10],
        [40, 0, 50, 9],
        [70, 0, 80, 10],
    )
    difficult = np.array([False, False, True])
    assert hits(detected, truth, difficult).tolist() == [1, 0, 0, -1, -1, 0]
    assert hits(detected, boxes(), np.zeros(0, bool)).tolist() == [0] * 6
    assert hits(boxes(), truth, difficult).tolist() == []


def test_a_detection_means_the_object_that_it_overlaps_most():
    truth = boxes([0, 0, 10, 10], [0, 0, 10, 8])
    detected = boxes([0, 0, 10, 10], [0, 0, 10, 9.5])  # the second one fits both, the first better
    assert hits(detected, truth, np.zeros(2, bool)).tolist() == [1, 0]


def test_average_precision_worked_out_by_hand():
    # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: six points of 1, five of 2/3.
    assert average_precision(np.array([1, 0, 1]), 2) == pytest.approx(((6 + 10 / 3) / 11, 5 / 6))
    # Recall 0.3 is reached, although 3 / 10 < 0.1 * 3 for a computer: four points of 1.
    assert average_precision(np.array([1, 1, 1]), 10) == pytest.approx((4 / 11, 0.3))
    assert average_precision(np.array([0, 1]), 1) == pytest.approx((0.5, 0.5))
    assert average_precision(np.array([], int), 3) == (0, 0)
    assert average_precision(np.array([0, 0]), 3) == (0, 0)
    assert np.isnan(average_precision(np.array([0]), 0)).all()


def test_an_independent_implementation_agrees():
    package = pytest.importorskip("mean_average_precision")
    rng = np.random.default_rng(0)
    for _ in range(5):
        other = package.MetricBuilder.build_evaluation_metric(
            "map_2d", async_mode=False, num_classes=1
        )
        ranking, positives = [], 0
        for _ in range(11):
            count = int(rng.integers(4))
            corner = rng.uniform(0, 60, (count + 2, 2))
            objects = np.hstack([corner, corner + rng.uniform(10, 30, corner.shape)])
            truth, positives = objects[:count], positives + count
            detected = np.concatenate([truth + rng.normal(0, 3, truth.shape), objects])
            scores = np.sort(rng.random(len(detected)))[::-1]
            ranking += zip(scores, hits(detected, truth, np.zeros(count, bool)))
            pixel = np.array([0, 0, 1, 1])  # its corners are pixels, the last one included
            columns = np.zeros((len(detected), 1)), scores[:, None]
            other.add(
                np.hstack([detected - pixel, *columns]),
                np.hstack([truth - pixel, np.zeros((count, 3))]),
            )
        ranked = np.array([hit for _, hit in sorted(ranking, reverse=True)])
        tenths = np.linspace(0, 1, 11) - 1e-9
        wanted = (other.value(0.5, tenths)["mAP"], other.value(0.5)["mAP"])
        assert average_precision(ranked, positives) == pytest.approx(wanted, abs=1e-6)
        assert 0.1 < wanted[0] < 1
