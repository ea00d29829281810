"""Which samples, in which order, on which rank: a function of (seed, epoch) and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import paddle


class EpochBatchSampler(paddle.io.BatchSampler):
    """Lists of sample numbers for DataLoader(batch_sampler=...).

    Args:
        batch_size: of one rank.
        drop_last: True for training: the ranks together see, step by step, what a single rank with
            a batch of batch_size * world_size sees, and all take as many steps. False for
            evaluation: batches are dealt to the ranks in turn, each sample once; the last batch
            may be short, and a rank may have one batch less.
        sizes: the smallest and the largest side of pictures, multiples of 32. The lists are then
            of pairs (sample number, side): in each step another multiple of 32 from that range,
            the same on all ranks.

    Raises:
        ValueError: nothing to sample from, too little for one step, or a bad size or rank.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        sizes: list[int] | None = None,
    ):
        step = batch_size * world_size
        if num_samples < 1:
            raise ValueError("the data set is empty")
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must be in [0, {world_size}), got {rank}")
        if drop_last and num_samples < step:
            raise ValueError(
                f"training set has {num_samples} samples, fewer than batch size {batch_size} "
                f"times {world_size} ranks; lower --batch_size"
            )
        self.num_samples, self.batch_size, self.seed, self.epoch = num_samples, batch_size, seed, 0
        self.shuffle, self.drop_last, self.done, self.sizes = shuffle, drop_last, 0, sizes
        stop = num_samples - num_samples % step if drop_last else num_samples
        self.starts = range(
            rank * batch_size, stop, step
        )  # of this rank's batches: places in the order

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """From now on this epoch's order, without the first `done` batches of each rank."""
        self.epoch, self.done = epoch, done

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = (rng.permutation if self.shuffle else np.arange)(self.num_samples)
        if self.sizes is not None:
            smallest, largest = self.sizes
            sides = rng.integers(smallest // 32, largest // 32 + 1, len(self)) * 32
        for number, start in list(enumerate(self.starts))[self.done :]:
            samples = order[start : start + self.batch_size].tolist()
            if self.sizes is None:
                yield samples
            else:
                yield [(sample, int(sides[number])) for sample in samples]
