from __future__ import annotations

import numpy as np
import paddle
import pytest

from readers.sampler import EpochBatchSampler


class Numbers(paddle.io.Dataset):
    def __init__(self, size):
        super().__init__()
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return np.int64(index)


def test_the_order_is_a_function_of_seed_and_epoch():
    sampler = EpochBatchSampler(6, 3, seed=1)
    wanted = [  # numpy.random.default_rng((1, epoch)).permutation(6)
        [[4, 0, 2], [1, 5, 3]],
        [[1, 4, 0], [3, 2, 5]],
        [[4, 5, 1], [0, 3, 2]],
    ]
    assert list(sampler) == wanted[0]
    for epoch in (2, 1, 1, 0):
        sampler.set_epoch(epoch)
        assert list(sampler) == wanted[epoch]
    assert list(EpochBatchSampler(6, 3, seed=0)) == [[3, 2, 5], [4, 0, 1]]


def test_training_drops_the_rest():
    sampler = EpochBatchSampler(11, 4, shuffle=False)
    assert len(sampler) == 2
    assert list(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_two_ranks_see_step_by_step_what_one_rank_of_twice_the_batch_sees():
    first, second = (EpochBatchSampler(23, 3, seed=1, rank=r, world_size=2) for r in (0, 1))
    alone = EpochBatchSampler(23, 6, seed=1)
    for epoch in range(3):
        for sampler in (first, second, alone):
            sampler.set_epoch(epoch)
        assert len(first) == len(second) == len(alone) == 3
        assert [a + b for a, b in zip(first, second)] == list(alone)
        assert len({sample for batch in alone for sample in batch}) == 18


def test_evaluation_deals_batches_in_turn():
    first, second = (
        EpochBatchSampler(10, 4, rank=r, world_size=2, shuffle=False, drop_last=False)
        for r in (0, 1)
    )
    assert (len(first), len(second)) == (2, 1)
    assert list(first) == [[0, 1, 2, 3], [8, 9]]
    assert list(second) == [[4, 5, 6, 7]]


def test_evaluation_of_fewer_samples_than_ranks_leaves_some_without_any():
    ranks = [
        EpochBatchSampler(3, 2, rank=r, world_size=4, shuffle=False, drop_last=False)
        for r in range(4)
    ]
    assert [list(sampler) for sampler in ranks] == [[[0, 1]], [[2]], [], []]
    assert [len(sampler) for sampler in ranks] == [1, 1, 0, 0]
    assert list(paddle.io.DataLoader(Numbers(3), batch_sampler=ranks[3])) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_follows_it(workers):
    sampler = EpochBatchSampler(10, 4, seed=5)
    loader = paddle.io.DataLoader(Numbers(10), batch_sampler=sampler, num_workers=workers)
    assert len(loader) == 2
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        batches = [(batch[0] if isinstance(batch, list) else batch).tolist() for batch in loader]
        assert batches == list(sampler)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"num_samples": 0}, "the data set is empty"),
        ({"batch_size": 0}, "batch size must be at least 1, got 0"),
        ({"batch_size": -4}, "batch size must be at least 1, got -4"),
        ({"rank": 2, "world_size": 2}, r"rank must be in \[0, 2\), got 2"),
        ({"rank": -1}, r"rank must be in \[0, 1\), got -1"),
        (
            {"batch_size": 6, "world_size": 2},
            "training set has 10 samples, fewer than batch size 6 times 2 ranks; lower --batch.*",
        ),
    ],
)
def test_what_cannot_be_sampled(arguments, match):
    with pytest.raises(ValueError, match=f"^{match}$"):
        EpochBatchSampler(**{"num_samples": 10, "batch_size": 4, **arguments})


def test_a_batch_of_the_whole_set_is_enough():
    assert len(EpochBatchSampler(12, 6, world_size=2)) == 1
