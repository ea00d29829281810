"""What is saved, how it gets to disk whole, and how it is read back.

    models/
        epoch-9/                    one finished epoch, committed by a single rename
            model-pruned.pdparams   plain dense state dict with zeros: paddle.load + set_state_dict
            opt-pruned.pdopt        optimizer's accumulators under structured names
            masks-pruned.npz        one packed bit a prunable weight
            train-state.json        epoch, step, options, sparsity, versions
        model-pruned.pdparams  opt-pruned.pdopt  train-state.json     links to the newest
        model-best.pdparams         the weights of the best top-1 so far
        metrics.jsonl               a line an epoch

Files are read without unpickling anything but arrays and plain containers.
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
import zipfile
import zlib  # noqa: F401  (before paddle: 2.6 crashes in zlib on some Pythons otherwise)
from pathlib import Path

import numpy as np
import paddle

import safe_pickle

WEIGHTS, OPTIMIZER = "model-pruned.pdparams", "opt-pruned.pdopt"
MASKS, STATE = "masks-pruned.npz", "train-state.json"
BEST, METRICS = "model-best.pdparams", "metrics.jsonl"


def save(run, epoch: int, state: dict) -> None:
    """Writes `epoch-N` under --model_path, whole or not at all; the familiar names then mean it.

    Args:
        run: train.py's `Run`: model, optimizer, scaler, and the pruner or None.
        state: what train-state.json is to hold besides the epoch.
    """
    model_path = Path(run.args.model_path)
    folder, staging = model_path / f"epoch-{epoch}", model_path / f".epoch-{epoch}.part"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    paddle.save(run.model.state_dict(), str(staging / WEIGHTS))
    optimizer = _rename(run.opt.state_dict(), _names(run.model))
    if run.args.amp:
        optimizer["GradScaler"] = run.scaler.state_dict()
    paddle.save(optimizer, str(staging / OPTIMIZER))
    if run.pruner is not None:
        masks = run.pruner.state_dict()["masks"]
        np.savez(staging / MASKS, **{name: np.packbits(m.numpy()) for name, m in masks.items()})
    (staging / STATE).write_text(json.dumps({"epoch": epoch, **state}, indent=1))
    for path in [*staging.iterdir(), staging]:
        _sync(path)
    os.rename(staging, folder)
    for name in (WEIGHTS, OPTIMIZER, STATE):
        _link(folder / name, model_path / name)
    _sync(model_path)


def save_best(model_path, model) -> None:
    path = Path(model_path) / BEST
    paddle.save(model.state_dict(), f"{path}.part")
    os.replace(f"{path}.part", path)


def best_top1(model_path) -> float:
    """The top-1 of model-best.pdparams, from metrics.jsonl; -1 where there is none."""
    return _best(_metrics(model_path))["top1"] if (Path(model_path) / BEST).exists() else -1.0


def _best(records: list[dict]) -> dict:
    """The record of the epoch whose weights model-best.pdparams holds."""
    best = [record for record in records if record.get("best")]
    return best[-1] if best else {"epoch": -1, "top1": -1.0}


def set_aside(model_path, after: int = -1) -> None:
    """Moves what an earlier run left for epochs beyond `after` out of the way; loses nothing."""
    model_path = Path(model_path)
    later = [folder for epoch, folder in _epochs(model_path).items() if epoch > after]
    records = _metrics(model_path)
    kept = [record for record in records if record["epoch"] <= after]
    if not later and kept == records:
        _write_metrics(model_path, kept)  # without a last line that was cut short
        return
    stamp = time.strftime("earlier-%Y%m%d-%H%M%S")
    names = (f"{stamp}-{i}" if i else stamp for i in itertools.count())
    aside = next(model_path / name for name in names if not (model_path / name).exists())
    aside.mkdir()
    if kept != records:
        (model_path / METRICS).rename(aside / METRICS)
        _write_metrics(model_path, kept)
        if _best(records)["epoch"] > after and (model_path / BEST).exists():
            (model_path / BEST).rename(aside / BEST)
    for folder in later:
        folder.rename(aside / folder.name)
    stay = _epochs(model_path)
    for path in (model_path / name for name in (WEIGHTS, OPTIMIZER, STATE)):
        if later and path.is_symlink():
            path.unlink()
        elif later and path.exists():  # a copy, or the user's own
            path.rename(aside / path.name)
        if later and stay:
            _link(stay[max(stay)] / path.name, path)
    print(f"moved what an earlier run left in {model_path} to {aside}")


def find_weights(path) -> Path:
    """The .pdparams file meant by a folder, a prefix ('models/model') or the file itself."""
    path, give = Path(path), "give a run's folder, a prefix or a .pdparams file"
    for candidate in (path / WEIGHTS, path, Path(f"{path}.pdparams")):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        epochs = f"; it has epochs {_listed(_epochs(path))}" if _epochs(path) else ""
        raise FileNotFoundError(f"{path} holds no {WEIGHTS}{epochs}; {give}")
    raise FileNotFoundError(f"there is no {path}, {path}.pdparams or {path / WEIGHTS}; {give}")


def find_epoch(path, epoch: int) -> Path:
    """The folder of the checkpoint saved after `epoch`, under or beside `path`.

    Raises:
        FileNotFoundError: that epoch is not there; the message names those that are.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    epochs = _epochs(folder)
    if (folder / STATE).is_file():
        epochs.setdefault(read_state(folder)["epoch"], folder)
    if epoch not in epochs:
        there = f"the epochs there are: {_listed(epochs)}" if epochs else "there are no checkpoints"
        raise FileNotFoundError(f"{path} has no checkpoint of epoch {epoch}; {there}")
    return epochs[epoch]


def read_state(folder) -> dict:
    """The train-state.json of a folder; {} where there is none."""
    path = Path(folder) / STATE
    if not path.is_file():
        return {}
    try:
        state = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; use another epoch's") from None
    whole = isinstance(state, dict) and isinstance(state.get("epoch"), int)
    if not whole or not isinstance(state.get("options"), dict):
        raise ValueError(f"{path} is no train-state.json of this program")
    return state


def load_weights(model, path) -> None:
    """Loads a .pdparams file into the model.

    Raises:
        ValueError: the file is no checkpoint, or its names and shapes are not the model's.
    """
    given, wanted = _read(path), model.state_dict()
    masks = [name for name in given if name.endswith("_mask") and name not in wanted]
    if masks:
        message = f"{path}: dropped {len(masks)} masks that PaddleSlim stored among the weights"
        print(message, file=sys.stderr)
    given = {name: value for name, value in given.items() if name not in masks}
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in wanted]
    for name in (name for name in wanted if name in given):
        value, shape = given[name], list(wanted[name].shape)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            problems.append(f"{name} is not an array of floats")
        elif list(value.shape) != shape:
            problems.append(f"{name} is {list(value.shape)}, the model's {shape}")
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(
            f"{path} does not fit the model: {'; '.join(problems[:6])}{more}; give the --model, "
            "--scale and --num_classes it was trained with"
        )
    model.set_state_dict({n: paddle.to_tensor(v).astype(wanted[n].dtype) for n, v in given.items()})


def load_training(folder, run, epoch: int) -> None:
    """Loads a checkpoint folder into train.py's `Run`: all that is not given by the options.

    That is weights, the optimizer's accumulators, the AMP scale, masks. Learning rate, threshold
    and ratio follow from the options and the step; train.py refuses options that differ.
    """
    folder = Path(folder)
    load_weights(run.model, folder / WEIGHTS)
    accumulators = _read(folder / OPTIMIZER)
    scale = accumulators.pop("GradScaler", None)
    if scale and run.args.amp:
        run.scaler.load_state_dict(scale)
    shapes = {name: list(p.shape) for name, p in run.model.named_parameters()}
    for key, value in accumulators.items():
        owner = max((name for name in shapes if key.startswith(f"{name}_")), key=len, default=None)
        if owner and list(np.shape(value)) not in (shapes[owner], [1], []):
            raise ValueError(
                f"{folder / OPTIMIZER}: {key} is {list(np.shape(value))}, not {shapes[owner]}"
            )
    steps = (epoch + 1) * len(run.train_loader)
    run.schedule.step(steps)
    accumulators["LR_Scheduler"] = run.schedule.state_dict()
    run.opt.set_state_dict(_rename(accumulators, {v: k for k, v in _names(run.model).items()}))
    saved = read_state(folder)
    if run.pruner is not None and saved["options"].get("pruning_mode") != "none":
        state, args = run.pruner.state_dict(), run.args
        state["masks"] = _read_masks(folder / MASKS, run.pruner.masks)
        state["iteration"] = steps
        state["static"] = args.static_masks and saved["options"].get("static_masks", False)
        if args.pruning_mode == "ratio" and saved.get("threshold") is not None:
            state["threshold"] = saved["threshold"]
        if args.pruning_strategy == "gmp":
            state["ratio"] = saved.get("masks_ratio", 0.0)
        run.pruner.set_state_dict(state)
    if run.args.static_masks and not run.pruner.state_dict()["static"]:
        run.pruner.set_static_masks()


def _read_masks(path: Path, like: dict) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with np.load(path, allow_pickle=False) as packed:
            masks = {name: packed[name] for name in like}
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} does not hold this model's masks: {error}") from None
    for name, mask in like.items():
        count = math.prod(mask.shape)
        if masks[name].dtype != np.uint8 or masks[name].shape != (-(-count // 8),):
            raise ValueError(f"{path}: the mask of {name} is not {list(mask.shape)} packed bits")
        masks[name] = np.unpackbits(masks[name], count=count).reshape(mask.shape)
    return masks


def _read(path) -> dict:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        return safe_pickle.load_paddle_state(path)
    except ValueError as error:
        raise ValueError(f"{error}; it is damaged or no Paddle checkpoint: use another") from None


def _names(model) -> dict[str, str]:
    """Paddle's own parameter names, counted up in each process -> structured names."""
    return {p.name: name for name, p in model.named_parameters()}


def _rename(state: dict, names: dict[str, str]) -> dict:
    """Replaces the parameter's name that each accumulator's key starts with."""
    renamed = {}
    for key, value in state.items():
        owners = [old for old in names if key.startswith(f"{old}_")]
        old = max(owners, key=len, default="")
        renamed[names.get(old, "") + key[len(old) :]] = value
    return renamed


def _metrics(model_path) -> list[dict]:
    """The records of metrics.jsonl, without a last line that was cut short."""
    path = Path(model_path) / METRICS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    try:
        return [json.loads(line) for line in lines if line.endswith("\n")]
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; move it away") from None


def _write_metrics(model_path, records: list[dict]) -> None:
    path = Path(model_path) / METRICS
    if records:
        Path(f"{path}.part").write_text("".join(f"{json.dumps(r)}\n" for r in records))
        os.replace(f"{path}.part", path)


def _epochs(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = ((re.fullmatch(r"epoch-(\d+)", path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in found if match}


def _listed(epochs) -> str:
    return ", ".join(str(epoch) for epoch in sorted(epochs))


def _link(target: Path, link: Path) -> None:
    """`link` becomes a relative symbolic link to `target`; a copy where there are no such links."""
    part = link.with_name(f"{link.name}.part")
    part.unlink(missing_ok=True)
    try:
        part.symlink_to(os.path.relpath(target, link.parent))
    except OSError:  # Windows without the privilege, some network file systems
        shutil.copy(target, part)
    os.replace(part, link)


def _sync(path) -> None:
    if os.name == "nt":  # cannot open a folder, nor sync a file that is open for reading
        return
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
