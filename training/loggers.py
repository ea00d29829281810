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
        step: how many steps are done. What an earlier run told of later ones is dropped.
        epoch: the one under way. What was told of it and of later ones is dropped.

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
    """Events files, written anew as one without what is dropped. (TensorBoard's own way, an event
    that hides earlier ones, is not heeded by its fast loader.)

    Raises:
        ImportError, TypeError, OSError, ValueError: as Logger says.
    """

    def __init__(self, folder: Path, first: int):
        from google.protobuf.message import DecodeError
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event

        self._summary, self._event = summary, Event
        folder.mkdir(parents=True, exist_ok=True)
        old = sorted(folder.glob("events.out.tfevents.*"))
        # Two starts within a second would write the same file.
        self._file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        for path in old:
            for record in _records(path, header=12, footer=4):
                try:
                    event = Event.FromString(record)
                except DecodeError:
                    raise ValueError(f"{path} is damaged; move it away") from None
                if event.step < first and event.HasField("summary"):
                    self._file.write_event(event)
        self._file.flush()
        for path in old:
            path.unlink()

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
            for record in _records(self._path, header=8):
                (value,) = Record.FromString(record).values
                if value.id < first and not value.HasField("meta_data"):
                    kept.append(record)
        except (DecodeError, ValueError):
            raise ValueError(f"{self._path} is damaged; move it away") from None
        part = folder / ".part"
        part.write_bytes(b"".join(map(_framed, kept)))
        os.replace(part, self._path)

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


def _records(path: Path, header: int, footer: int = 0) -> Iterator[bytes]:
    """Those of a file, without a last one that was cut short.

    Args:
        header: bytes before each, which begin with its size.
        footer: bytes after each.
    """
    content, at = path.read_bytes() if path.exists() else b"", 0
    while at + header <= len(content):
        start = at + header
        end = start + struct.unpack_from("<Q", content, at)[0]
        at = end + footer
        if at <= len(content):
            yield content[start:end]


def _framed(record: bytes) -> bytes:
    """As it stands in VisualDL's file."""
    return struct.pack("<Q", len(record)) + record


def _tag(name: str) -> str:
    return name.replace("%", "_")  # by which VisualDL stands for a slash


def _now() -> int:
    return round(1000 * time.time())
