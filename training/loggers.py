"""--log_to: what a training tells, for TensorBoard or VisualDL to draw.

    models/tensorboard/steps/     the lines of batches, by steps of the whole training
    models/tensorboard/epochs/    metrics.jsonl by epochs, with sparsity and weights of each layer

With --log_to visualdl the folder is visualdl. Names are never part of a path.

Both packages have a writer that works in a thread and keeps its faults to itself; with a full disk
tensorboardX's waits for ever. Here their formats alone are theirs. What is not asked for is not
imported, nor is Paddle.
"""

from __future__ import annotations

import importlib.util
import os
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from training.command_line import WrongOption

PACKAGES = {"tensorboard": "tensorboardX>=2.6,<3", "visualdl": "visualdl>=2.5.3,<3"}
BINS = 64


def check(kind: str | None) -> None:
    """Raises WrongOption: the package is not there. (It is looked for, not imported.)"""
    if kind and importlib.util.find_spec(re.match(r"\w+", PACKAGES[kind]).group()) is None:
        raise WrongOption(f"--log_to {kind} needs a package: pip install '{PACKAGES[kind]}'")


class Logger:
    """
    Args:
        kind: which of PACKAGES.
        folder: the training's, --model_path.
        step: how many steps are done. Of what an earlier run told, that of later steps goes.
        epoch: the one under way, of which, and of later ones, goes what was told.

    Raises:
        ValueError: the package cannot be imported, or what is there is damaged.
        OSError: it cannot be written, here and in the methods.
    """

    def __init__(self, kind: str, folder, step: int, epoch: int):
        writer = {"tensorboard": TensorBoard, "visualdl": VisualDL}[kind]
        try:
            self.steps = writer(Path(folder, kind, "steps"), step + 1)
            self.epochs = writer(Path(folder, kind, "epochs"), epoch)
        except (ImportError, TypeError) as error:  # TypeError: of protobuf, when versions differ
            raise ValueError(
                f"--log_to {kind}: its package cannot be imported ({error}); "
                f"pip install '{PACKAGES[kind]}'"
            ) from None

    def step(self, step: int, values: dict[str, float]) -> None:
        self.steps.add(step, values, {})

    def epoch(self, record: dict, weights: dict) -> None:
        """
        Args:
            record: a line of metrics.jsonl.
            weights: tensors by name, whose sparsity is told, and what is not 0 as a histogram.
        """
        values = {k: v for k, v in record.items() if v is not None and k not in ("epoch", "best")}
        kept = {}
        for name, weight in weights.items():
            weight = weight.numpy()
            left = weight[weight != 0].astype("float64")
            values[f"sparsity/{name}"] = (weight.size - left.size) / weight.size
            if left.size:
                kept[f"weights/{name}"] = left
        self.epochs.add(record["epoch"], values, kept)


class TensorBoard:
    """An events file more at each start, whose first event hides what others have from `first` on.

    Raises:
        ImportError, TypeError, OSError: as Logger says.
    """

    def __init__(self, folder: Path, first: int):
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._summary, self._event = summary, Event
        folder.mkdir(parents=True, exist_ok=True)
        # Two starts within a second would write the same file.
        self._file = EventsWriter(str(folder / "events"), f".{first:012}")
        self._write(step=first, session_log=SessionLog(status=SessionLog.START))
        self._file.flush()

    def _write(self, **fields) -> None:
        self._file.write_event(self._event(wall_time=time.time(), **fields))

    def add(self, step: int, values: dict[str, float], weights: dict) -> None:
        for name, value in values.items():
            self._write(step=step, summary=self._summary.scalar(name, value))
        for name, weight in weights.items():
            self._write(step=step, summary=self._summary.histogram(name, weight, BINS))
        self._file.flush()


class VisualDL:
    """One file, since VisualDL shows the newest of a folder alone; written anew without what goes.

    Raises:
        ImportError, TypeError, OSError, ValueError: as Logger says.
    """

    def __init__(self, folder: Path, first: int):
        from google.protobuf.message import DecodeError
        from visualdl.component import base_component
        from visualdl.proto.record_pb2 import Record

        self._make, self._path = base_component, folder / "vdlrecords.log"
        folder.mkdir(parents=True, exist_ok=True)
        meta = base_component.meta_data(walltime=_now()).SerializeToString()
        kept = [meta]
        try:
            for record in self._records():
                (value,) = Record.FromString(record).values
                if value.id < first and not value.HasField("meta_data"):
                    kept.append(record)
        except (DecodeError, ValueError):
            raise ValueError(f"{self._path} is damaged; move it away") from None
        part = folder / ".part"
        part.write_bytes(b"".join(map(_framed, kept)))
        os.replace(part, self._path)

    def _records(self) -> Iterator[bytes]:
        """Those of the file, without a last one that was cut short."""
        content, at = self._path.read_bytes() if self._path.exists() else b"", 0
        while at + 8 <= len(content):
            start = at + 8
            at = start + struct.unpack_from("<Q", content, at)[0]
            if at <= len(content):
                yield content[start:at]

    def add(self, step: int, values: dict[str, float], weights: dict) -> None:
        import numpy as np

        make = self._make
        records = [make.scalar(_tag(n), value, step, _now()) for n, value in values.items()]
        records += [
            make.histogram(_tag(name), *np.histogram(weight, BINS), step, _now())
            for name, weight in weights.items()
        ]
        with open(self._path, "ab") as file:
            file.write(b"".join(_framed(record.SerializeToString()) for record in records))


def _framed(record: bytes) -> bytes:
    """As it stands in VisualDL's file."""
    return struct.pack("<Q", len(record)) + record


def _tag(name: str) -> str:
    return name.replace("%", "_")  # by which VisualDL stands for a slash


def _now() -> int:
    return round(1000 * time.time())
