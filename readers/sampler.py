"""Which samples, in which order, on which rank: a function of (seed, epoch) and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import paddle


class EpochBatchSampler(paddle.io.BatchSampler):
    """Lists of sample numbers for DataLoader(batch_sampler=...); `batch_size` is that of one rank.

    drop_last (training): the ranks together see, step by step, what one rank with a batch of
    batch_size * world_size sees, and all take as many steps. Otherwise (evaluation): batches are
    dealt to the ranks in turn, each sample once; the last may be short, a rank may have one less.
    sizes: the smallest and the largest side of pictures. Then pairs of sample number and side are
    given: in each step another multiple of 32, the same on all ranks.

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
        self.starts = range(rank * batch_size, stop, step)  # of this rank's batches, in the order

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """The order of this epoch, without its first `done` batches of a rank."""
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
