"""runtimes/cost.py: medians of runs in turns, and the memory of a network."""

from __future__ import annotations

import time
from pathlib import Path

import paddle
import pytest

import export
from runtimes import cost


class Clock:
    """In place of the machine's; a network makes it move."""

    def __init__(self):
        self.now = 0.0

    def network(self, *seconds: float):
        """Its runs take as long as these, one after the other; later ones as long as the last."""
        left = list(seconds)

        def run(images):
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_each_second_run_counts(clock):
    """Five rounds at least, of which the median is taken."""
    steady = clock.network(2)
    other = clock.network(100, 1, 100, 9, 100, 3, 100, 4, 100, 5)
    assert cost.medians({"a": steady, "b": other}, None, seconds=0) == {"a": 2, "b": 4}


def test_more_rounds_in_more_time(clock):
    runs = []
    network = clock.network(1)
    cost.medians({"a": lambda images: (runs.append(images), network(images))}, 7, seconds=20)
    assert runs == [7] * 20


def test_memory_is_that_of_the_network_alone(tmp_path):
    """Its weights at least; not the runtime's code, some 30 MB, nor what was loaded before."""
    pytest.importorskip("paddle2onnx")
    model = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(3 * 32 * 32, 2048))
    model.eval()
    weights = 4 * 3 * 32 * 32 * 2048  # 25 MB
    export.save_onnx(model, (3, 32, 32), tmp_path)
    assert weights < cost.memory("onnx", tmp_path, (3, 32, 32)) < 1.5 * weights
    with pytest.raises(ValueError, match=r"to measure its memory: .*holds no model-sparse"):
        cost.memory("sparse", Path(tmp_path), (3, 32, 32))
