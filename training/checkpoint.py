"""A checkpoint, a folder below --model_path: how it gets to disk whole, and how it is read back.

    epoch-9/
        model-pruned.pdparams   plain dense state dict with zeros: paddle.load + set_state_dict
        average-pruned.pdparams the same of --ema's average
        opt-pruned.pdopt        optimizer's accumulators under structured names
        masks-pruned.npz        one packed bit a prunable weight
        train-state.json        epoch, step, options, sparsity, versions, SHA-256 of all files

It appears by a single rename. Files are read without unpickling anything but arrays and plain
containers.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import paddle
import paddle.distributed as dist
from safetensors import SafetensorError
from safetensors.numpy import load_file
from safetensors.numpy import save as safetensors_bytes

from readers import safe_pickle
from training import batch_norm, folders, train_state
from training.folders import AVERAGE, BEST, BESTS, MASKS, OPTIMIZER, SAFETENSORS, WEIGHTS
from training.train_state import Saved

FORMATS = ("pdparams", "safetensors")


def save(run, finished: bool = False) -> None:
    """Writes a checkpoint under --model_path, whole or not at all; the familiar names then mean it.

    To be called by all ranks; the first one writes.

    Args:
        run: `training.run.Run`.
        finished: the epoch that is under way; else the checkpoint is one inside of it.

    Raises:
        ValueError: what would be saved is not finite.
        OSError: it could not be written; what was saved before is as it was.
    """
    saved, model_path = run.state(finished), Path(run.args.model_path)
    folder = saved.folder
    if dist.get_rank() > 0 or folder.exists():  # this very step was saved before
        return
    staging = _staging(folder)
    for left_over in model_path.glob(".epoch-*.part"):  # of a run that was killed
        shutil.rmtree(left_over)
    try:
        staging.mkdir(parents=True)
        _write_weights(staging / _name(WEIGHTS, run.args.format), run.model)
        if run.average is not None:
            _write_weights(staging / _name(AVERAGE, run.args.format), run.average.network)
        # What was loaded is not in Paddle 2.6's state_dict() before a first step.
        loaded = run.opt._accumulators_holder
        optimizer = _rename({**loaded, **run.opt.state_dict()}, _names(run.model))
        if run.args.amp:
            optimizer["GradScaler"] = run.scaler.state_dict()
        if run.statistics is not None:  # those of the weights' file are for tests
            optimizer["BatchNorm"] = run.statistics
        paddle.save(optimizer, str(staging / OPTIMIZER))
        if run.pruner is not None:
            masks = run.pruner.state_dict()["masks"]
            packed = {name: np.packbits(mask.numpy()) for name, mask in masks.items()}
            np.savez(staging / MASKS, **packed)
        train_state.write(saved, staging)
        for path in [*staging.iterdir(), staging]:
            folders.sync(path)
        os.rename(staging, folder)
        folders.sync(model_path)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        there = folders.listed(folders.checkpoints(model_path)) or "nothing"
        raise OSError(
            f"could not save {folder}: {error.strerror or error}; saved before: {there}"
        ) from None
    folders.link(folder, model_path)
    folders.sync(model_path)
    if run.args.keep is not None:
        for old in list(folders.checkpoints(model_path).values())[: -run.args.keep - 1]:
            _remove(old)


def save_best(run) -> None:
    """To be called by the first rank."""
    path = Path(run.args.model_path) / _name(BEST, run.args.format)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        _write_weights(part, run.model)
        folders.sync(part)
        os.replace(part, path)
        for other in {*BESTS} - {path.name}:  # of a run in the other format
            path.with_name(other).unlink(missing_ok=True)
        folders.sync(path.parent)
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


def load_weights(model, path, saved: Saved | None = None, make_other=None) -> list[str]:
    """Loads a .pdparams or .safetensors file into the model.

    Args:
        saved: the state that lies beside it, whose checksum it has to have.
        make_other: makes this network for another number of classes. Where it is given and the
            weights are for another number, those whose shapes follow from it are left as they are.

    Returns:
        the names of what was left as it was.

    Raises:
        ValueError: the file is no checkpoint, or its names and shapes are not the model's.
    """
    path = Path(path)
    train_state.verify_file(path.resolve(), saved)  # a link means a file of a checkpoint
    arrays, expected = read_arrays(path), model.state_dict()
    masks = [name for name in arrays if name.endswith("_mask") and name not in expected]
    if masks:
        message = f"{path}: dropped {len(masks)} masks that PaddleSlim stored among the weights"
        print(message, file=sys.stderr)
    arrays = {name: value for name, value in arrays.items() if name not in masks}
    # Paddle's are uint16 to numpy; a safetensors file's have a dtype where ml_dtypes, which comes
    # with onnx, has been imported.
    dtypes = {str(getattr(value, "dtype", "")) for value in arrays.values()}
    if dtypes & {"uint16", "bfloat16"}:
        raise _bfloat16(path)
    problems = [f"{name} is missing" for name in expected if name not in arrays]
    problems += [f"{name} is unknown" for name in arrays if name not in expected]
    unlike = {}
    for name in (name for name in expected if name in arrays):
        value, shape = arrays[name], list(expected[name].shape)
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            problems.append(f"{name} is not an array of floats")
        elif list(value.shape) != shape:
            unlike[name] = f"{name} is {list(value.shape)}, the model's {shape}"
    if unlike and not problems and make_other is not None:
        if _differ_in_classes(arrays, expected, make_other().state_dict()) == set(unlike):
            arrays.update((name, expected[name].numpy()) for name in unlike)
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
    odd = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if odd:
        print(f"{path}: {', '.join(odd)}: there are NaN or infinite weights", file=sys.stderr)
    model.set_state_dict(
        {name: paddle.to_tensor(v).astype(expected[name].dtype) for name, v in arrays.items()}
    )
    return list(unlike)


def _differ_in_classes(arrays: dict, expected: dict, other: dict) -> set[str] | None:
    """Names of `expected` whose shapes follow the number of classes: they are others in `other`.

    None where one of `arrays` differs from it along another axis.
    """
    names = {name for name in expected if list(expected[name].shape) != list(other[name].shape)}
    for name in names:
        shapes = arrays[name].shape, expected[name].shape, other[name].shape
        if len(arrays[name].shape) != len(expected[name].shape):
            return None
        if any(a != b and b == c for a, b, c in zip(*shapes)):
            return None
    return names


def load_optimizer(path: Path, run) -> None:
    """The optimizer's accumulators and, with --amp, the loss scale, for step `run.step`.

    After --recalibrate_bn also the statistics of batch norm that the training had before.

    Raises:
        FileNotFoundError, ValueError: it is not there, damaged, or of another model.
    """
    accumulators = read_arrays(path)
    scale = accumulators.pop("GradScaler", None)
    if type(scale) not in (dict, type(None)):
        raise ValueError(f"{path}: GradScaler is no dict")
    if scale and run.args.amp:
        run.scaler.load_state_dict(scale)
    statistics = accumulators.pop("BatchNorm", {})
    if type(statistics) is not dict:
        raise ValueError(f"{path}: BatchNorm is no dict")
    for prefix in [p for p in run.networks if p in statistics]:
        try:
            batch_norm.restore(run.networks[prefix], statistics[prefix])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    shapes = {name: list(p.shape) for name, p in run.model.named_parameters()}
    for key, value in accumulators.items():
        owner = max((name for name in shapes if key.startswith(f"{name}_")), key=len, default=None)
        if key != "LR_Scheduler" and not isinstance(value, (np.ndarray, np.generic)):
            raise ValueError(f"{path}: {key} is no array")
        if owner and list(np.shape(value)) not in (shapes[owner], [1], []):
            raise ValueError(f"{path}: {key} is {list(np.shape(value))}, not {shapes[owner]}")
    starts = tuple(f"{name}_" for name in shapes)
    if run.step and not any(key.startswith(starts) for key in accumulators):
        raise ValueError(f"{path} holds nothing of this model's parameters")
    run.schedule.step(run.step)
    accumulators["LR_Scheduler"] = run.schedule.state_dict()
    run.opt.set_state_dict(_rename(accumulators, {v: k for k, v in _names(run.model).items()}))


def read_masks(path: Path, like: dict) -> dict[str, np.ndarray]:
    """The bool masks of a masks-pruned.npz.

    Args:
        like: tensors or arrays of their names and shapes.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    max_size = 4096 + max((math.prod(mask.shape) for mask in like.values()), default=0)
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.file_size > max_size for member in archive.infolist()):
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


def _bfloat16(path: Path) -> ValueError:
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
