"""A test of a network whose data cannot be read."""

import numpy as np
import paddle
import pytest

from readers.loader import Loader
from readers.sampler import EpochBatchSampler
from tasks.classification import Metric
from tasks.measure import evaluate


class Unreadable(paddle.io.Dataset):
    """Four samples, the last of which raises."""

    def __init__(self, error: Exception):
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int):
        if index == 3:
            raise self.error
        return np.zeros([3, 4, 4], np.float32), np.int64(0)


def test_unreadable_data_end_the_test():
    model = paddle.nn.Sequential(paddle.nn.Flatten(), paddle.nn.Linear(48, 10))
    batches = EpochBatchSampler(4, 2, shuffle=False, drop_last=False)
    for error in (ValueError("x.jpg: cut short"), FileNotFoundError(2, "is missing", "x.jpg")):
        loader = Loader(Unreadable(error), batches, num_workers=0)
        with pytest.raises(type(error)) as caught:
            evaluate(model, loader, Metric(loader.dataset))
        assert caught.value is error
    loader = Loader(Unreadable(ValueError("x.jpg: cut short")), batches, num_workers=1)
    with pytest.raises(ValueError, match=r"^x\.jpg: cut short$"):
        evaluate(model, loader, Metric(loader.dataset))
    broken = Loader(Unreadable(KeyError("a fault of the program's")), batches, num_workers=0)
    with pytest.raises(KeyError):
        evaluate(model, broken, Metric(broken.dataset))
