"""A training's folder, --model_path: its checkpoints, the links to the newest, metrics.jsonl.

    models/
        epoch-9/                  a checkpoint of a finished epoch (see checkpoint.py)
        epoch-10-step-8500/       one inside an epoch, after 8500 steps of the training
        model-pruned.pdparams  opt-pruned.pdopt  train-state.json     links to the newest
        average-pruned.pdparams   one more, with --ema
        model-best.pdparams       the best weights so far, by top-1 or mAP
        metrics.jsonl             a line an epoch
        tensorboard/  visualdl/   what --log_to asked for
        earlier-20260131-120000/  what another training left

With --format safetensors the weights are model-pruned.safetensors, and so on.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import sys
import time
from pathlib import Path

from training import loggers, train_state
from training.train_state import STATE, Saved

WEIGHTS, OPTIMIZER, MASKS = "model-pruned.pdparams", "opt-pruned.pdopt", "masks-pruned.npz"
AVERAGE, BEST, METRICS = "average-pruned.pdparams", "model-best.pdparams", "metrics.jsonl"
SAFETENSORS = {name: name.replace(".pdparams", ".safetensors") for name in (WEIGHTS, AVERAGE, BEST)}
LINKED = (WEIGHTS, SAFETENSORS[WEIGHTS], AVERAGE, SAFETENSORS[AVERAGE], OPTIMIZER, STATE)
BESTS = (BEST, SAFETENSORS[BEST])


def find_weights(path, name: str = WEIGHTS) -> Path:
    """The weights meant by a folder, a prefix ('models/model') or the file itself.

    Args:
        name: of the file in a folder, in either format.
    """
    path, give = Path(path), "give a run's folder, a prefix or a .pdparams or .safetensors file"
    beside = (Path(f"{path}.pdparams"), Path(f"{path}.safetensors"))
    for candidate in (path / name, path / SAFETENSORS[name], path, *beside):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        there = f"; it has {listed(checkpoints(path))}" if checkpoints(path) else ""
        raise FileNotFoundError(f"{path} holds no {name}{there}; {give}")
    raise FileNotFoundError(f"there is no {path}, {path}.pdparams or {path / name}; {give}")


def find_epoch(path, epoch: int) -> Saved:
    """The checkpoint saved after `epoch`, whose folder is `path`, or lies in or beside it.

    Raises:
        FileNotFoundError: that epoch is not there; the message names those that are.
        ValueError: it is damaged.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    found = checkpoints(folder)
    itself = train_state.read(folder)
    if itself and itself.epoch is not None:
        found.setdefault(itself.position, folder)
    if (epoch, math.inf) not in found:
        there = f"there are {listed(found)}" if found else "there are no checkpoints"
        raise FileNotFoundError(f"{path} has no checkpoint of epoch {epoch}; {there}")
    return verified(found[epoch, math.inf])


def find_latest(model_path) -> Saved | None:
    """The newest whole checkpoint; None where there is none. Says which ones are damaged."""
    for folder in reversed(checkpoints(Path(model_path)).values()):
        try:
            return verified(folder)
        except (ValueError, OSError) as error:
            print(f"{error}: passed over", file=sys.stderr)
    return None


def verified(folder: Path) -> Saved:
    """The state of a checkpoint whose files are all as they were saved.

    Raises:
        ValueError, FileNotFoundError: one of them is not; the message names it.
    """
    saved = train_state.read(folder)
    if saved is None:
        raise FileNotFoundError(f"{folder / STATE} is missing")
    if saved.epoch is None:
        raise ValueError(f"{folder} is an export, no checkpoint")
    for name in saved.checksums:
        train_state.verify_file(folder / name, saved)
    return saved


def checkpoints(model_path: Path) -> dict[tuple[int, float], Path]:
    """Folders by `Saved.position`, the newest last; whether they are whole is not looked at."""
    if not model_path.is_dir():
        return {}
    names = (
        (re.fullmatch(r"epoch-(\d+)(?:-step-(\d+))?", p.name), p) for p in model_path.iterdir()
    )
    found = {(int(m[1]), int(m[2]) if m[2] else math.inf): path for m, path in names if m}
    return dict(sorted(found.items()))


def checkpoint_name(epoch: int, step: int, finished: bool) -> str:
    return f"epoch-{epoch}" if finished else f"epoch-{epoch}-step-{step}"


def listed(found: dict) -> str:
    return ", ".join(path.name for path in found.values())


def set_aside(
    model_path, saved: Saved | None, again: bool = False, log_to: str | None = None
) -> None:
    """Moves all that is not of the training up to `saved` into a folder earlier-TIME; says so.

    Args:
        saved: where the training goes on in this folder; None: a new training begins here.
        again: where no checkpoint follows `saved`, what does is trained again identically: its
            metrics, logs and best weights need not be kept.
        log_to: which of loggers.PACKAGES the training goes on with, and so makes true itself.
    """
    model_path = Path(model_path)
    epoch, step = saved.position if saved else (-1, math.inf)
    finished = epoch if step == math.inf else epoch - 1
    moved = [path for position, path in checkpoints(model_path).items() if position > (epoch, step)]
    if moved or saved is None:  # links would lead nowhere; files are a user's, or copies of links
        names = LINKED if saved else (*LINKED, *BESTS)
        moved += [path for path in map(model_path.joinpath, names) if _is_file(path)]
    logs = [path for path in map(model_path.joinpath, loggers.PACKAGES) if path.is_dir()]
    if saved is None and (moved or not again):
        moved += logs
    records = read_metrics(model_path)
    kept = [record for record in records if record["epoch"] <= finished]
    lines_go = kept != records and (bool(moved) or not again)
    if lines_go and _best_record(records)["epoch"] > finished:
        moved += [p for p in map(model_path.joinpath, BESTS) if p.exists() and p not in moved]
    if moved or lines_go:
        aside = _new_folder(model_path)
        for path in moved:
            path.rename(aside / path.name)
        if lines_go:
            shutil.copy(model_path / METRICS, aside)
            for path in set(logs) - set(moved):
                if path.name == log_to:
                    shutil.copytree(path, aside / path.name)
                else:
                    path.rename(aside / path.name)
        print(f"moved what an earlier run left in {model_path} to {aside}")
    write_metrics(model_path, kept)  # also without a last line that was cut short
    link(saved.folder if saved else None, model_path)


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _new_folder(model_path: Path) -> Path:
    stamp = time.strftime("earlier-%Y%m%d-%H%M%S")
    names = itertools.chain([stamp], (f"{stamp}-{i}" for i in itertools.count(1)))
    folder = next(model_path / name for name in names if not (model_path / name).exists())
    folder.mkdir()
    return folder


def link(newest: Path | None, model_path: Path) -> None:
    """The familiar names under --model_path mean this checkpoint; None: there is none."""
    for name in LINKED:
        if newest and (newest / name).exists():
            _link(newest / name, model_path / name)
        elif (model_path / name).is_symlink():  # as of the other format
            (model_path / name).unlink()


def _link(target: Path, link: Path) -> None:
    """`link` becomes a relative symbolic link to `target`; a copy where there are no such links."""
    part = link.with_name(f"{link.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(os.path.relpath(target, link.parent))
    except OSError:  # Windows without the privilege, some network file systems
        shutil.copy(target, part)
    os.replace(part, link)


def reported(model_path) -> list[int]:
    """The epochs that metrics.jsonl has lines of."""
    return [record["epoch"] for record in read_metrics(model_path)]


def best_result(model_path, name: str) -> float:
    """What model-best.pdparams measured, from metrics.jsonl; -1 where there is none."""
    there = any((Path(model_path) / file).exists() for file in BESTS)
    return _best_record(read_metrics(model_path)).get(name, -1.0) if there else -1.0


def _best_record(records: list[dict]) -> dict:
    """The record of the epoch whose weights model-best.pdparams holds."""
    return next((r for r in reversed(records) if r.get("best")), {"epoch": -1})


def add_metrics(model_path, record: dict) -> None:
    with open(Path(model_path) / METRICS, "a") as metrics:
        metrics.write(json.dumps(record) + "\n")
        metrics.flush()
        os.fsync(metrics.fileno())


def read_metrics(model_path) -> list[dict]:
    """The records of metrics.jsonl, without a last line that was cut short."""
    path = Path(model_path) / METRICS
    if not path.exists():
        return []
    try:
        lines = path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; move it away") from None


def write_metrics(model_path, records: list[dict]) -> None:
    path = Path(model_path) / METRICS
    if not records:
        path.unlink(missing_ok=True)
        return
    replace(path, "".join(f"{json.dumps(r)}\n" for r in records).encode())


def replace(path: Path, content: bytes) -> None:
    """Writes the whole file or, where an OSError is raised, nothing."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_bytes(content)
        sync(part)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def sync(path) -> None:
    if os.name == "nt":  # cannot open a folder, nor sync a file that is open for reading
        return
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
