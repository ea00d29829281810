"""What is saved, how it gets to disk whole, and how it is read back.

    models/
        epoch-9/                    a finished epoch, committed by a single rename
            model-pruned.pdparams   plain dense state dict with zeros: paddle.load + set_state_dict
            opt-pruned.pdopt        optimizer's accumulators under structured names
            masks-pruned.npz        one packed bit a prunable weight
            train-state.json        epoch, step, options, sparsity, versions, SHA-256 of all files
        epoch-10-step-8500/         the same inside an epoch, after 8500 steps of the training
        model-pruned.pdparams  opt-pruned.pdopt  train-state.json     links to the newest
        model-best.pdparams         the best weights so far, by top-1 or mAP
        metrics.jsonl               a line an epoch

With --format safetensors the weights are model-pruned.safetensors and model-best.safetensors.
Files are read without unpickling anything but arrays and plain containers.
"""

from __future__ import annotations

import hashlib
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
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes

from readers import safe_pickle

WEIGHTS, OPTIMIZER = "model-pruned.pdparams", "opt-pruned.pdopt"
MASKS, STATE = "masks-pruned.npz", "train-state.json"
BEST, METRICS = "model-best.pdparams", "metrics.jsonl"
SAFETENSORS = {WEIGHTS: "model-pruned.safetensors", BEST: "model-best.safetensors"}
FORMATS = ["pdparams", "safetensors"]
LINKED = [WEIGHTS, SAFETENSORS[WEIGHTS], OPTIMIZER, STATE]  # from --model_path to the newest


def save(run, state: dict) -> None:
    """Writes a checkpoint under --model_path, whole or not at all; the familiar names then mean it.

    Args:
        run: train.py's `Run`: model, optimizer, scaler, and the pruner or None.
        state: what train-state.json is to hold; of it `epoch`, `step` and `finished` name the
            folder.

    Raises:
        OSError: it could not be written; what was saved before is as it was.
    """
    model_path = Path(run.args.model_path)
    inside = "" if state["finished"] else f"-step-{state['step']}"
    folder = model_path / f"epoch-{state['epoch']}{inside}"
    if folder.exists():  # this very step was saved before
        return
    staging = _staging(folder)
    for left_over in model_path.glob(".epoch-*.part"):  # of a run that was killed
        shutil.rmtree(left_over)
    try:
        staging.mkdir(parents=True)
        _write_weights(staging / _name(WEIGHTS, run.args.format), run.model)
        optimizer = _rename(run.opt.state_dict(), _names(run.model))
        if run.args.amp:
            optimizer["GradScaler"] = run.scaler.state_dict()
        paddle.save(optimizer, str(staging / OPTIMIZER))
        if run.pruner is not None:
            masks = run.pruner.state_dict()["masks"]
            packed = {name: np.packbits(mask.numpy()) for name, mask in masks.items()}
            np.savez(staging / MASKS, **packed)
        write_state(staging, state)
        for path in [*staging.iterdir(), staging]:
            _sync(path)
        os.rename(staging, folder)
        _sync(model_path)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        there = _listed(_saved(model_path)) or "nothing"
        raise OSError(
            f"could not save {folder}: {error.strerror or error}; saved before: {there}"
        ) from None
    link_all(folder, model_path)
    _sync(model_path)
    if run.args.keep is not None:
        for old in list(_saved(model_path).values())[: -run.args.keep - 1]:
            _remove(old)


def write_state(folder: Path, state: dict) -> None:
    """train-state.json, with the checksums of the files that the folder holds."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != STATE)
    state = {**state, "checksums": {path.name: sha256(path) for path in files}}
    state["checksums"][STATE] = _state_checksum(state)
    (folder / STATE).write_text(json.dumps(state, indent=1))


def save_best(run) -> None:
    path = Path(run.args.model_path) / _name(BEST, run.args.format)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        _write_weights(part, run.model)
        _sync(part)
        os.replace(part, path)
        for other in {BEST, SAFETENSORS[BEST]} - {path.name}:  # of a run in the other format
            path.with_name(other).unlink(missing_ok=True)
        _sync(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(f"could not save {path}: {error.strerror or error}") from None


def _name(pdparams: str, format: str) -> str:
    return SAFETENSORS[pdparams] if format == "safetensors" else pdparams


def _write_weights(path: Path, model) -> None:
    if path.suffix == ".safetensors":
        arrays = {name: value.numpy() for name, value in model.state_dict().items()}
        path.write_bytes(safetensors_bytes(arrays))
    else:
        paddle.save(model.state_dict(), str(path))


def _staging(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.part")


def _remove(folder: Path) -> None:
    """Out of sight first, so that no half of it is ever taken for a checkpoint."""
    staging = _staging(folder)
    os.rename(folder, staging)
    shutil.rmtree(staging)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _state_checksum(state: dict) -> str:
    """SHA-256 of all of the state but this very sum."""
    checksums = {name: value for name, value in state["checksums"].items() if name != STATE}
    text = json.dumps({**state, "checksums": checksums}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def reported(model_path) -> list[int]:
    """The epochs that metrics.jsonl has lines of."""
    return [record["epoch"] for record in _metrics(model_path)]


def best(model_path, name: str) -> float:
    """What model-best.pdparams measured, from metrics.jsonl; -1 where there is none."""
    there = any((Path(model_path) / name).exists() for name in (BEST, SAFETENSORS[BEST]))
    return _best(_metrics(model_path)).get(name, -1.0) if there else -1.0


def _best(records: list[dict]) -> dict:
    """The record of the epoch whose weights model-best.pdparams holds."""
    bests = [record for record in records if record.get("best")]
    return bests[-1] if bests else {"epoch": -1}


def set_aside(model_path, resumed: dict | None, again: bool = False) -> None:
    """Moves what was saved after the resumed state, or all, out of the way; loses nothing.

    Args:
        resumed: a train-state.json, or None for a new training.
        again: what followed is trained again just the same, so that lines of metrics.jsonl of
            epochs that are in no checkpoint may go.
    """
    model_path = Path(model_path)
    reached = _position(resumed) if resumed else (-1, 0)
    later = [folder for position, folder in _saved(model_path).items() if position > reached]
    records = _metrics(model_path)
    finished = reached[0] if reached[1] == math.inf else reached[0] - 1
    kept = [record for record in records if record["epoch"] <= finished]
    names = [] if resumed else [*LINKED, BEST, SAFETENSORS[BEST]]  # perhaps of another program
    strays = [p for p in (model_path / name for name in names) if p.exists() and not p.is_symlink()]
    if not later and not strays and (again or kept == records):
        _write_metrics(model_path, kept)  # without a last line that was cut short
        return
    stamp = time.strftime("earlier-%Y%m%d-%H%M%S")
    names = (f"{stamp}-{i}" if i else stamp for i in itertools.count())
    aside = next(model_path / name for name in names if not (model_path / name).exists())
    aside.mkdir()
    for stray in strays:
        stray.rename(aside / stray.name)
    if kept != records:
        for best in (model_path / name for name in (BEST, SAFETENSORS[BEST])):
            if _best(records)["epoch"] > finished and best.exists():
                best.rename(aside / best.name)
        shutil.copy(model_path / METRICS, aside / METRICS)
    for folder in later:
        folder.rename(aside / folder.name)
    _write_metrics(model_path, kept)
    stay = list(_saved(model_path).values())
    if later:
        for path in (model_path / name for name in LINKED):
            if path.is_symlink():
                path.unlink()
            elif path.exists():  # a copy, or the user's own
                path.rename(aside / path.name)
        if stay:
            link_all(stay[-1], model_path)
    print(f"moved what an earlier run left in {model_path} to {aside}")


def find_weights(path) -> Path:
    """The weights meant by a folder, a prefix ('models/model') or the file itself."""
    path, give = Path(path), "give a run's folder, a prefix or a .pdparams or .safetensors file"
    for name in (path / WEIGHTS, path / SAFETENSORS[WEIGHTS], path):
        if name.is_file():
            return name
    for candidate in (Path(f"{path}.{suffix}") for suffix in FORMATS):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        there = f"; it has {_listed(_saved(path))}" if _saved(path) else ""
        raise FileNotFoundError(f"{path} holds no {WEIGHTS}{there}; {give}")
    raise FileNotFoundError(f"there is no {path}, {path}.pdparams or {path / WEIGHTS}; {give}")


def find_epoch(path, epoch: int) -> Path:
    """The folder of the checkpoint saved after `epoch`, under or beside `path`.

    Raises:
        FileNotFoundError: that epoch is not there; the message names those that are.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    saved = _saved(folder)
    if (folder / STATE).is_file():
        saved.setdefault(_position(read_state(folder)), folder)
    if (epoch, math.inf) not in saved:
        there = f"there are {_listed(saved)}" if saved else "there are no checkpoints"
        raise FileNotFoundError(f"{path} has no checkpoint of epoch {epoch}; {there}")
    return saved[epoch, math.inf]


def find_latest(model_path) -> Path | None:
    """The newest whole checkpoint; None where there is none. Says which ones are damaged."""
    for folder in reversed(_saved(Path(model_path)).values()):
        try:
            verify(folder)
            return folder
        except (ValueError, OSError) as error:
            print(f"{error}: passed over", file=sys.stderr)
    return None


def verify(folder: Path) -> dict:
    """The train-state.json of a checkpoint whose files are all as they were saved.

    Raises:
        ValueError, FileNotFoundError: one of them is not; the message names it.
    """
    state = read_state(folder)
    if not state:
        raise FileNotFoundError(f"{folder / STATE} is missing")
    for name in state["checksums"]:
        verify_file(folder / name, state)
    return state


def verify_file(path: Path, state: dict) -> None:
    wanted = state["checksums"].get(path.name)
    if wanted is None or path.name == STATE:
        return
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    if sha256(path) != wanted:
        raise ValueError(f"{path} is not what {STATE} says was saved: it is damaged or replaced")


def read_state(folder) -> dict:
    """The train-state.json of a folder; {} where there is none."""
    path = Path(folder) / STATE
    if not path.is_file():
        return {}
    try:
        state = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not _is_state(state):
        raise ValueError(f"{path} is no {STATE} of this program")
    if state["checksums"].get(STATE) != _state_checksum(state):
        raise ValueError(f"{path} is damaged: its own checksum is another")
    return state


def _is_state(state) -> bool:
    kinds = {"epoch": int, "step": int, "finished": bool, "options": dict, "checksums": dict}
    if not isinstance(state, dict) or any(type(state.get(k)) is not t for k, t in kinds.items()):
        return False
    options, ranks = state["options"], state.get("ranks", 1)
    for name, kind in {"model": str, "data": str, "batch_size": int, "num_classes": int}.items():
        if name in options and type(options[name]) is not kind:
            return False
    scale = options.get("scale", 1)
    if type(scale) not in (int, float) or not 0.001 <= scale <= 1000:
        return False
    size = options.get("image_size")
    if size is not None and (type(size) is not int or not 1 <= size <= 4096):
        return False
    if type(state.get("started_from")) not in (str, type(None)):
        return False
    ratio = options.get("initial_ratio")
    if ratio is not None and (type(ratio) not in (int, float) or not 0 <= ratio <= 1):
        return False
    totals = state.get("totals", [])
    if type(totals) is not list or any(type(row) is not list for row in totals):
        return False
    if len({len(row) for row in totals}) > 1:
        return False
    numbers = [state.get(name) for name in ("epoch_lr", "threshold", "masks_ratio")]
    numbers = [n for n in numbers if n is not None] + [n for row in totals for n in row]
    if any(type(n) not in (int, float) for n in numbers):
        return False
    names = options.get("classes")
    if names is not None and not (type(names) is list and all(type(n) is str for n in names)):
        return False
    if type(ranks) is not int or ranks < 1 or not 1 <= options.get("num_classes", 1) < 1 << 24:
        return False
    plain_names = all(Path(name).name == name for name in state["checksums"])
    return plain_names and state["epoch"] >= 0 and state["step"] >= 0


def load_weights(model, path, make_other=None) -> list[str]:
    """Loads a .pdparams or .safetensors file into the model.

    Args:
        make_other: makes this network for another number of classes. Where it is given and the
            weights are for another number, those whose shapes follow from it are left as they are.

    Returns:
        the names of what was left as it was.

    Raises:
        ValueError: the file is no checkpoint, or its names and shapes are not the model's.
    """
    path = Path(path)
    folder = path.resolve().parent  # a link means a file of a checkpoint
    verify_file(folder / path.resolve().name, read_state(folder) or {"checksums": {}})
    given, wanted = read_arrays(path), model.state_dict()
    masks = [name for name in given if name.endswith("_mask") and name not in wanted]
    if masks:
        message = f"{path}: dropped {len(masks)} masks that PaddleSlim stored among the weights"
        print(message, file=sys.stderr)
    given = {name: value for name, value in given.items() if name not in masks}
    if any(getattr(value, "dtype", None) == np.uint16 for value in given.values()):
        raise _bfloat16(path)
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} is unknown" for name in given if name not in wanted]
    unlike = {}
    for name in (name for name in wanted if name in given):
        value, shape = given[name], list(wanted[name].shape)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            problems.append(f"{name} is not an array of floats")
        elif list(value.shape) != shape:
            unlike[name] = f"{name} is {list(value.shape)}, the model's {shape}"
    if unlike and not problems and make_other is not None:
        if _differ_in_classes(given, wanted, make_other().state_dict()) == set(unlike):
            given.update((name, wanted[name].numpy()) for name in unlike)
        else:
            problems = list(unlike.values())
    else:
        problems += unlike.values()
    if problems:
        more = f" and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(
            f"{path} does not fit the model: {'; '.join(problems[:6])}{more}; give the --model, "
            "--scale and --num_classes it was trained with"
        )
    odd = [name for name, value in given.items() if not np.isfinite(value).all()]
    if odd:
        print(f"{path}: {', '.join(odd)}: there are NaN or infinite weights", file=sys.stderr)
    model.set_state_dict({n: paddle.to_tensor(v).astype(wanted[n].dtype) for n, v in given.items()})
    return list(unlike)


def _differ_in_classes(given: dict, wanted: dict, other: dict) -> set[str] | None:
    """The names of `wanted` whose shapes follow the number of classes; they are others in `other`.

    None where one of `given` differs from it along another axis.
    """
    names = {name for name in wanted if list(wanted[name].shape) != list(other[name].shape)}
    for name in names:
        shapes = given[name].shape, wanted[name].shape, other[name].shape
        if len(given[name].shape) != len(wanted[name].shape):
            return None
        if any(a != b and b == c for a, b, c in zip(*shapes)):
            return None
    return names


def load_training(folder, run) -> None:
    """Loads a checkpoint folder into train.py's `Run`: all that is not given by the options.

    That is the optimizer's accumulators, the AMP scale, masks. Learning rate, threshold
    and ratio follow from the options and the step; train.py refuses options that differ.
    """
    folder = Path(folder)
    saved = read_state(folder)
    accumulators = read_arrays(folder / OPTIMIZER)
    scale = accumulators.pop("GradScaler", None)
    if type(scale) not in (dict, type(None)):
        raise ValueError(f"{folder / OPTIMIZER}: GradScaler is no dict")
    if scale and run.args.amp:
        run.scaler.load_state_dict(scale)
    shapes = {name: list(p.shape) for name, p in run.model.named_parameters()}
    for key, value in accumulators.items():
        owner = max((name for name in shapes if key.startswith(f"{name}_")), key=len, default=None)
        if key != "LR_Scheduler" and not isinstance(value, (np.ndarray, np.generic)):
            raise ValueError(f"{folder / OPTIMIZER}: {key} is no array")
        if owner and list(np.shape(value)) not in (shapes[owner], [1], []):
            raise ValueError(
                f"{folder / OPTIMIZER}: {key} is {list(np.shape(value))}, not {shapes[owner]}"
            )
    steps = run.step
    if steps and not any(
        key.startswith(tuple(f"{name}_" for name in shapes)) for key in accumulators
    ):
        raise ValueError(f"{folder / OPTIMIZER} holds nothing of this model's parameters")
    run.schedule.step(steps)
    accumulators["LR_Scheduler"] = run.schedule.state_dict()
    run.opt.set_state_dict(_rename(accumulators, {v: k for k, v in _names(run.model).items()}))
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
    elif run.pruner is not None:
        run.pruner.iteration = steps
    if run.args.static_masks and not run.pruner.state_dict()["static"]:
        run.pruner.set_static_masks()


def _read_masks(path: Path, like: dict) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    most = 4096 + max((math.prod(mask.shape) for mask in like.values()), default=0)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.file_size > most for member in archive.infolist()):
                raise ValueError("it claims to unpack to more")
        with np.load(path, allow_pickle=False) as packed:
            masks = {name: packed[name] for name in like}
    except Exception as error:  # zipfile and numpy raise nearly anything on a broken file
        reason = " ".join(f"{error or type(error).__name__}".split())[:200]
        raise ValueError(f"{path} does not hold this model's masks: {reason}") from None
    for name, mask in like.items():
        count = math.prod(mask.shape)
        if masks[name].dtype != np.uint8 or masks[name].shape != (-(-count // 8),):
            raise ValueError(f"{path}: the mask of {name} is not {list(mask.shape)} packed bits")
        masks[name] = np.unpackbits(masks[name], count=count).reshape(mask.shape)
    return masks


def read_arrays(path: Path) -> dict:
    """The arrays of a .pdparams, .pdopt or .safetensors file, by name."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return safe_pickle.load_paddle_state(path)
    except (SafetensorError, TypeError, AttributeError, KeyError) as error:  # a dtype not numpy's
        if "bfloat16" in str(error):
            raise _bfloat16(path) from None
        raise ValueError(f"{path}: {error}; it is damaged or no safetensors file") from None
    except ValueError as error:
        raise ValueError(f"{error}; it is damaged or no Paddle checkpoint: use another") from None


def _bfloat16(path: Path) -> ValueError:  # numpy has no such dtype: Paddle gives it uint16
    return ValueError(
        f"{path} holds bfloat16 weights; save them as float32: "
        "paddle.save({name: p.astype('float32') for name, p in model.state_dict().items()}, path)"
    )


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
    if not records:
        path.unlink(missing_ok=True)
        return
    Path(f"{path}.part").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    _sync(f"{path}.part")
    os.replace(f"{path}.part", path)


def _saved(folder: Path) -> dict[tuple[int, float], Path]:
    """The checkpoints in a folder by epoch and step, infinite where the epoch was finished."""
    if not folder.is_dir():
        return {}
    names = ((re.fullmatch(r"epoch-(\d+)(?:-step-(\d+))?", p.name), p) for p in folder.iterdir())
    found = {(int(m[1]), int(m[2]) if m[2] else math.inf): path for m, path in names if m}
    return dict(sorted(found.items()))


def _position(state: dict) -> tuple[int, float]:
    return state["epoch"], math.inf if state["finished"] else state["step"]


def _listed(saved: dict) -> str:
    return ", ".join(path.name for path in saved.values())


def link_all(folder: Path, model_path: Path) -> None:
    """The familiar names under --model_path mean this checkpoint."""
    for name in LINKED:
        if (folder / name).exists():
            _link(folder / name, model_path / name)
        elif (model_path / name).is_symlink():  # the weights in the other format, of a run before
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


def _sync(path) -> None:
    if os.name == "nt":  # cannot open a folder, nor sync a file that is open for reading
        return
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
