"""train-state.json of a checkpoint or an export: its schema, reading and writing."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

STATE = "train-state.json"
MAX_CLASSES = 1 << 24
MAX_COUNT = (1 << 63) - 1  # of an int64


@dataclass(frozen=True)
class Saved:
    """A train-state.json: where a training was when it was saved; of an export the options alone.

    Further keys of a file are ignored.
    """

    folder: Path  # that it lies in; not a part of the file
    options: dict  # of train.py, by name
    checksums: dict[str, str] = field(default_factory=dict)  # SHA-256 of the files beside it
    exported_from: str | None = None  # SHA-256 of the weights that were exported
    epoch: int | None = None  # from 0; None: of an export
    step: int | None = None  # of the whole training
    finished: bool | None = None  # the epoch
    epoch_lr: float | None = None  # at the start of the epoch
    started_from: str | None = None  # see initial.starting_weights()
    totals: list[list[float]] = field(default_factory=list)  # what each rank counted in the epoch
    ranks: int = 1
    sparsity: float | None = None
    prunable_sparsity: float | None = None
    threshold: float | None = None
    masks_ratio: float | None = None  # of the pruner, when the masks were made
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def position(self) -> tuple[int, float]:
        """Epoch and step, by which checkpoints are ordered; the step of a finished epoch is inf."""
        return self.epoch, math.inf if self.finished else self.step

    @property
    def global_batch(self) -> int | None:
        """Pictures a step on all ranks together; None: it is not in the options."""
        size = self.options.get("batch_size")
        return None if size is None else size * self.ranks


def read(folder) -> Saved | None:
    """The train-state.json of a folder; None where there is none.

    Raises:
        ValueError: it is damaged, or not of this project.
    """
    path = Path(folder) / STATE
    if not path.is_file():
        return None
    try:
        state = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not _is_state(state):
        raise ValueError(f"{path} is no {STATE} of this program")
    if state["checksums"].get(STATE) != _own_checksum(state):
        raise ValueError(f"{path} is damaged: its own checksum is another")
    fields = {name: state[name] for name in Saved.__dataclass_fields__ if name in state}
    if "exported_from" in state:  # of earlier versions with a position
        for name in ("epoch", "step", "finished"):
            fields.pop(name, None)
    return Saved(**{**fields, "folder": Path(folder)})


def write(saved: Saved, folder: Path) -> None:
    """Writes the file, with the checksums of the files that are in the folder now."""
    parts = {
        name: value for name, value in vars(saved).items() if name not in ("folder", "checksums")
    }
    if saved.exported_from is not None:
        parts = {name: parts[name] for name in ("exported_from", "options")}
    else:
        del parts["exported_from"]
    seal(parts, folder)


def seal(state: dict, folder: Path) -> None:
    """Writes the file from any dict, with checksums of its own."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != STATE)
    state = {**state, "checksums": {path.name: sha256(path) for path in files}}
    state["checksums"][STATE] = _own_checksum(state)
    (folder / STATE).write_text(json.dumps(state, indent=1))


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def verify_file(path: Path, saved: Saved | None) -> None:
    """
    Args:
        saved: of its folder; what that does not list may be anything.

    Raises:
        ValueError, FileNotFoundError: it is not what was saved.
    """
    expected = saved.checksums.get(path.name) if saved else None
    if expected is None or path.name == STATE:
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if sha256(path) != expected:
        raise ValueError(f"{path} is not what {STATE} says was saved: it is damaged or replaced")


def _own_checksum(state: dict) -> str:
    """SHA-256 of all of the state but this very sum."""
    checksums = {name: value for name, value in state["checksums"].items() if name != STATE}
    text = json.dumps({**state, "checksums": checksums}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_a(*kinds: type):
    return lambda value: type(value) in kinds


def _is_count(value) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _is_number(value) -> bool:
    return type(value) in (int, float)


def _is_file_names(value) -> bool:
    return type(value) is dict and all(Path(name).name == name for name in value)


def _is_totals(value) -> bool:
    """Lists of numbers, all of them of one length."""
    if type(value) is not list or any(type(row) is not list for row in value):
        return False
    return len({len(row) for row in value}) <= 1 and all(
        _is_number(n) for row in value for n in row
    )


def _or_none(test):
    return lambda value: value is None or test(value)


def _is_part(value) -> bool:
    return _is_number(value) and 0 <= value <= 1


# What a file may hold, so that nothing which reads it has to doubt it.
REQUIRED = {"options": _is_a(dict), "checksums": _is_file_names}
REQUIRED_OF_TRAINING = {"epoch": _is_count, "step": _is_count, "finished": _is_a(bool)}
OPTIONAL = {
    "epoch_lr": _or_none(_is_number),
    "started_from": _is_a(str, type(None)),
    "totals": _is_totals,
    "ranks": lambda value: type(value) is int and value >= 1,
    "threshold": _or_none(_is_number),
    "masks_ratio": _or_none(_is_number),
    "sparsity": _or_none(_is_number),
    "prunable_sparsity": _or_none(_is_number),
    "versions": _is_a(dict),
    "exported_from": _is_a(str),
}
OPTIONS = {
    "model": _is_a(str),
    "data": _is_a(str),
    "batch_size": _is_a(int),
    "num_classes": lambda value: type(value) is int and 1 <= value < MAX_CLASSES,
    "scale": lambda value: _is_number(value) and 0.001 <= value <= 1000,
    "image_size": _or_none(lambda value: type(value) is int and 1 <= value <= 4096),
    "teacher_sha256": _or_none(_is_a(str)),
    "initial_ratio": _or_none(_is_part),
    "min_layer_density": _or_none(_is_part),
    "min_channel_density": _or_none(_is_part),
    "fast_convolutions": _is_a(bool),
    "classes": _or_none(
        lambda value: type(value) is list and all(type(name) is str for name in value)
    ),
}


def _is_state(state) -> bool:
    if type(state) is not dict:
        return False
    required = REQUIRED if "exported_from" in state else {**REQUIRED, **REQUIRED_OF_TRAINING}
    if not all(name in state and test(state[name]) for name, test in required.items()):
        return False
    parts = [(state, OPTIONAL), (state["options"], OPTIONS)]
    return all(
        test(part[name]) for part, tests in parts for name, test in tests.items() if name in part
    )
