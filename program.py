"""What the programs share: signals to stop, the device, the data loader, a test."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import signal
import sys
import warnings
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)

import numpy as np
import paddle
import paddle.distributed as dist
from paddle.io import DataLoader, Dataset
from tqdm import tqdm

from command_line import WrongOption
from sampler import EpochBatchSampler


class StopSignals:
    """SIGINT and SIGTERM while it is entered: noted; a second one ends the program at once.

    One that the program was started to ignore (SIGINT behind a script's `&`) stays ignored.

    (Not a rank of Paddle's launcher, which sends three, 0.2 s apart, and kills after 30 s.)
    """

    NUMBERS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.received = 0  # number of the signal that this process got
        self._asked: paddle.Tensor | None = None

    def __enter__(self) -> StopSignals:
        before = {number: signal.getsignal(number) for number in self.NUMBERS}
        self._before = {n: handler for n, handler in before.items() if handler != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame) -> None:
        self.received = number
        if "PADDLE_TRAINER_ID" not in os.environ:  # Paddle's launcher repeats it, and then kills
            for each in self._before:
                signal.signal(each, signal.SIG_DFL)

    def agreed(self) -> int:
        """The signal on which all ranks stop now, 0 for none; to be asked once a step by all.

        Several ranks answer for the step before: by then a device has the answer ready.
        """
        if dist.get_world_size() == 1:
            return self.received
        asked, self._asked = self._asked, paddle.to_tensor([self.received], dtype="int64")
        dist.all_reduce(self._asked, dist.ReduceOp.MAX)
        return 0 if asked is None else int(asked[0])


def say(text: str, file=None) -> None:
    """A line of rank 0, above the progress bars."""
    if dist.get_rank() == 0:
        tqdm.write(text, file=file)
        (file or sys.stdout).flush()


def warn(text: str) -> None:
    say(f"{os.path.basename(sys.argv[0])}: warning: {text}", sys.stderr)


def command(program: str, *options) -> str:
    """A line for the shell that runs a program of this folder, from where the user is."""
    python = os.path.basename(sys.executable)
    if shutil.which(python) != sys.executable:
        python = _seen_from_here(sys.executable)
    path = _seen_from_here(os.path.join(os.path.dirname(__file__), program))
    return shlex.join([python, path, *map(str, options)])


def _seen_from_here(path: str) -> str:
    here = os.path.join(os.getcwd(), "")
    return path[len(here) :] if path.startswith(here) else path


def gpu_there() -> bool:
    return paddle.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0


def set_device(use_gpu: bool | None) -> None:
    if use_gpu and not gpu_there():
        why = "no GPU was found" if paddle.is_compiled_with_cuda() else "this Paddle is CPU-only"
        raise WrongOption(f"--use_gpu true, but {why}; use --use_gpu false")
    paddle.set_device("gpu" if use_gpu is not False and gpu_there() else "cpu")


def available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Loader:
    """Batches of a data set as lists of tensors, read by processes or, with 0 workers, in this one.

    An error in a data set is raised here as a ValueError with its message. (A plain DataLoader of
    Paddle waits for ever without workers, and with them dies of an error that names nothing.)
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
    """A column of the samples each; or the first error's message alone, as bytes."""
    for sample in samples:
        if isinstance(sample, (ValueError, OSError)):
            return [np.frombuffer(str(sample).encode(), np.uint8)]
        if isinstance(sample, Exception):
            return [np.frombuffer(repr(sample).encode(), np.uint8)]
    columns = [np.stack(column) for column in zip(*samples)]
    return [c.astype(np.float32) if c.dtype == np.float64 else c for c in columns]


def class_names(dataset) -> list[str] | None:
    """Its `classes`, in the order of the labels; None where classes are numbers."""
    names = getattr(dataset, "classes", None)
    return None if names is None else [str(name) for name in names]


def shortened(names: list[str] | None) -> str:
    if names is None or len(names) <= 20:
        return str(names)
    return f"{str(names[:20])[:-1]}, ...]"


def build(make, name: str, scale: float, pretrained: bool):
    """What `make()` gives: a network of Paddle's, whose refusals become a line each.

    Raises:
        ValueError: it cannot be as narrow or as wide, or its ImageNet weights cannot be had.
    """
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = make()
    except (ZeroDivisionError, OverflowError, AssertionError, RuntimeError, OSError) as error:
        if isinstance(error, (ZeroDivisionError, OverflowError)) or (
            isinstance(error, AssertionError) and not pretrained  # Paddle 2.6
        ):
            raise ValueError(f"{name} cannot be {scale} times as wide") from None
        if not pretrained:
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"could not get ImageNet weights for {name} ({reason}); put Paddle's file into "
            "~/.cache/paddle/hapi/weights, give --pretrained_model FILE with weights of the whole "
            "network, or --use_pretrained false to start from random weights"
        ) from None
    skipped = [w for w in caught if str(w.message).startswith("Skip loading for ")]
    for warning in caught:
        if warning not in skipped:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if skipped:
        names = [str(w.message).split()[3].rstrip(".") for w in skipped]
        say(not_loaded(f"Paddle's {name}", names), sys.stderr)
    return model


def not_loaded(what: str, names: list[str]) -> str:
    return f"{what} is for another number of classes: {', '.join(names)} not loaded, but random"


def summarize(totals: paddle.Tensor | np.ndarray, names: tuple[str, ...]) -> dict:
    """Means over the samples, from sums under these names and, last, the number of samples."""
    *sums, samples = totals.tolist()
    means = {name: total / samples for name, total in zip(names, sums)}
    return {**means, "samples": int(samples)}


def listed(values: dict, names: tuple[str, ...]) -> str:
    """`loss 0.123 top1 0.5000 `, of those that are there."""
    digits = {"loss": 3}
    there = [name for name in names if values[name] is not None]
    return "".join(f"{name} {values[name]:.{digits.get(name, 4)}f} " for name in there)


@paddle.no_grad()
def evaluate(model, loader: Loader, metric, after_batch=lambda: None) -> dict:
    """What the metric says of the model, over the test data of every rank."""
    model.eval()
    fault = None
    try:
        for images, *targets in tqdm(loader, desc="evaluate", disable=None, leave=False):
            metric.add(model(images), targets)
            after_batch()
    except (ValueError, OSError) as error:
        fault = error
    faults = paddle.to_tensor([int(fault is not None)], dtype="int64")
    if dist.get_world_size() > 1:  # also after a fault: the other ranks wait
        dist.all_reduce(faults)
    if int(faults[0]):
        raise fault or ValueError("another process could not read its test data: see its log")
    return metric.result()
