"""Batches of a data set, read by processes."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import numpy as np
import paddle
from paddle.io import DataLoader, Dataset

from readers.sampler import EpochBatchSampler


def available_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Loader:
    """Batches of a data set as lists of tensors, read by processes or, with 0 workers, in this one.

    With workers an error in a data set is raised here as a ValueError with its message, without
    them as it is. (A plain DataLoader of Paddle waits for ever without workers, and with them dies
    of an error that names nothing.)
    """

    def __init__(self, dataset, batch_sampler: EpochBatchSampler, num_workers: int):
        self.dataset, self.batch_sampler = dataset, batch_sampler
        self.workers = min(num_workers, available_cores())

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self):
        if self.workers == 0:
            for indices in self.batch_sampler:
                batch = _collate([self.dataset[index] for index in indices])
                yield [paddle.to_tensor(column) for column in batch]
            return
        reader = DataLoader(
            _Guarded(self.dataset),
            batch_sampler=self.batch_sampler,
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=_end_with_parent,
        )
        batches = iter(reader)
        if hasattr(signal, "SIGCHLD"):
            # Paddle's handler raises wherever the program is, also within a step, when a process
            # dies. Without it that is seen at the next batch, within seconds.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        try:
            for batch in batches:
                if len(batch) == 1:
                    raise ValueError(bytes(batch[0].numpy()).decode())
                yield batch
        except SystemError:
            if batches._thread is not None:  # Paddle's warns: not after our error
                batches._thread.join(5)
            raise ValueError(
                "a process that reads data died, perhaps for lack of memory; lower --num_workers"
            ) from None


class _Guarded(Dataset):
    """A data set that gives an error as a sample, so that it survives the way to this process."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int):
        try:
            return self.dataset[index]
        except Exception as error:
            return error


def _end_with_parent(worker: int) -> None:
    """In a reading process: it ends with the training, however that ends, and not by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Python's way to end it at exit
    if "PADDLE_TRAINER_ID" in os.environ:
        os.setpgrp()  # the launcher sends SIGTERM to a rank's group, which still needs data then
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _collate(samples: list) -> list[np.ndarray]:
    """An array for each column of the samples; or the first error's message alone, as bytes."""
    for sample in samples:
        if isinstance(sample, (ValueError, OSError)):
            return [np.frombuffer(str(sample).encode(), np.uint8)]
        if isinstance(sample, Exception):
            return [np.frombuffer(repr(sample).encode(), np.uint8)]
    columns = [np.stack(column) for column in zip(*samples)]
    return [c.astype(np.float32) if c.dtype == np.float64 else c for c in columns]
