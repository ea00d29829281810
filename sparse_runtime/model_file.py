"""A network for the sparse runtime in one safetensors file: operators, and weights without zeros.

Of a weight matrix [C_out, C_in * k * k] the file holds the values that are not zero, row by row,
and where they are: as a bitmap, or as the gaps between them, whichever is smaller. Of a gap a byte
of 255 stands for 255 zeros with no value behind them; the gaps reach to the matrix' last element.
Metadata: format, version, the operators as JSON, and a SHA-256 of all that and of the tensors.
Version 1 is read, too: of a chain of convolutions, depthwise ones of 3x3, and a mean at its end.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from .operators import KINDS, Operator, Shape

FORMAT, VERSION = "unstructured-pruning sparse network", 2
READ = ("1", "2")
MAX_OPERATORS = 1 << 12  # the time to plan a network grows by their square
MAX_WEIGHTS = 1 << 28  # of a network, zeros included
MAX_ACTIVATIONS = 1 << 29  # floats, of an operator's result for one picture
DAMAGES = (SafetensorError, ValueError, KeyError, TypeError, RecursionError, AttributeError)


@dataclass
class Model:
    input_shape: Shape
    operators: list[Operator]
    outputs: list[int]  # numbers of the results that it gives: [N, C, H, W], of one pixel [N, C],
    pictures: list[int] = field(default_factory=list)  # but for these: always [N, C, H, W]


def shapes(model: Model) -> list[Shape]:
    """Of the input and of every operator's result.

    Raises:
        ValueError: an operator does not fit what comes before it, or this runtime.
    """
    found = [tuple(model.input_shape)]
    if len(found[0]) != 3 or not all(type(n) is int and 0 < n < 1 << 16 for n in found[0]):
        raise ValueError(f"the input must be three whole numbers from 1 to 65535, got {found[0]}")
    if np.prod(found[0], dtype=np.int64) > MAX_ACTIVATIONS:
        raise ValueError(f"an input of {found[0]} is more than this runtime takes")
    if not model.operators:
        raise ValueError("there are no operators")
    if len(model.operators) > MAX_OPERATORS:
        raise ValueError(f"{len(model.operators)} operators, more than {MAX_OPERATORS}")
    weights = 0
    for i, op in enumerate(model.operators):
        what = f"operator {i} ({op.kind})"
        if len(op.inputs) != op.INPUTS if op.INPUTS else not op.inputs:
            raise ValueError(f"{what} takes {len(op.inputs)} results")
        if not all(0 <= number <= i for number in op.inputs):
            raise ValueError(f"{what} takes the results {op.inputs}, not ones before it")
        try:
            shape = op.shape(*(found[number] for number in op.inputs))
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        if np.prod(shape, dtype=np.int64) > MAX_ACTIVATIONS or shape[0] >= 1 << 16:
            raise ValueError(f"{what}: a result of {shape} is more than this runtime takes")
        weights += op.weights()
        if weights > MAX_WEIGHTS:
            raise ValueError(f"{what}: more than {MAX_WEIGHTS} weights, zeros included")
        found.append(shape)
    if not model.outputs or not all(0 < number < len(found) for number in model.outputs):
        raise ValueError(f"it gives the results {model.outputs}, of {len(found) - 1}")
    return found


def encode(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Values, and their places as `bitmap` or `gaps` (uint8), whichever is smaller."""
    flat = matrix.ravel()
    there = flat != 0
    values, bitmap = flat[there], np.packbits(there)
    if len(values) + 1 < len(bitmap):  # as many gaps at least: the last ends behind the matrix
        zeros = np.diff(np.flatnonzero(there), prepend=-1, append=flat.size) - 1
        skips, rest = np.divmod(zeros, 255)
        gaps = np.full(skips.sum() + len(zeros), 255, np.uint8)
        gaps[np.cumsum(skips + 1) - 1] = rest
        if len(gaps) < len(bitmap):
            return {"values": values, "gaps": gaps}
    return {"values": values, "bitmap": bitmap}


def decode(values: np.ndarray, rows: int, columns: int, bitmap=None, gaps=None) -> np.ndarray:
    """The matrix, float32 [rows, columns].

    Raises:
        ValueError: the parts contradict each other. No matrix is allocated then.
    """
    size = rows * columns
    if not 0 < size <= MAX_WEIGHTS:
        raise ValueError(f"a matrix of {rows} x {columns} is more than this runtime takes")
    if bitmap is not None:
        if len(bitmap) != -(-size // 8):
            raise ValueError(f"a bitmap of {len(bitmap)} bytes for {size} weights")
        if np.unpackbits(bitmap[-1:])[(size - 1) % 8 + 1 :].any():
            raise ValueError("a bitmap with places behind the last weight")
        there = np.unpackbits(bitmap, count=size).view(bool)
        count = np.count_nonzero(there)
    else:
        steps = gaps.astype(np.int64) + (gaps != 255)
        if steps.sum() - 1 != size:  # the last gap ends behind the matrix
            raise ValueError(f"gaps that reach over {steps.sum() - 1} of {size} weights")
        if gaps[-1] == 255:
            raise ValueError("gaps that end with 255 zeros and no end")
        there = (np.cumsum(steps) - 1)[gaps != 255][:-1]
        count = len(there)
    if count != len(values):
        raise ValueError(f"{len(values)} values for {count} places")
    matrix = np.zeros(size, np.float32)
    matrix[there if bitmap is None else np.flatnonzero(there)] = values  # a mask takes longer
    return matrix.reshape(rows, columns)


def _described(op: Operator | type[Operator]) -> dict:
    """The fields of its description in JSON: a value of the type each has."""
    found = {"inputs": [0]}
    for each in fields(op):
        if each.name not in (*op.ARRAYS, "inputs"):
            default = each.default
            found[each.name] = each.default_factory() if default is MISSING else default
    return found


def write(model: Model, path) -> None:
    """Writes the file that `read` reads.

    Raises:
        ValueError: the runtime does not know the network.
        OSError: the file cannot be written.
    """
    shapes(model)
    tensors, described = {}, []
    for i, op in enumerate(model.operators):
        described.append({"kind": op.kind, **{name: getattr(op, name) for name in _described(op)}})
        for name, dtype in op.ARRAYS.items():
            array = np.asarray(getattr(op, name), dtype)
            if name == "weight":
                described[-1]["columns"] = array.shape[1]
                for part, coded in encode(array).items():
                    tensors[f"{i}.{part}"] = np.ascontiguousarray(coded)
            else:
                tensors[f"{i}.{name}"] = np.ascontiguousarray(array)
    network = json.dumps(
        {
            "input_shape": list(model.input_shape),
            "operators": described,
            "outputs": model.outputs,
            "pictures": model.pictures,
        }
    )
    metadata = {"format": FORMAT, "version": str(VERSION), "network": network}
    metadata["sha256"] = _digest(metadata, tensors)
    Path(path).write_bytes(save(tensors, metadata))


def _digest(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("format", "version", "network"):
        digest.update(metadata[name].encode() + b"\0")
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
        digest.update(array)
    return digest.hexdigest()


def read(path) -> Model:
    """Reads what `write` wrote.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is another file or a damaged one. What
            a file says of sizes is compared with what it holds before anything is made of it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; python export.py --format sparse makes one")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError("it is not one")
            version = metadata.get("version")
            if version not in READ:
                raise ValueError(f"it has version {version}, this program reads 1 and {VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("sha256") != _digest(metadata, tensors):
            raise ValueError("its checksum is another")
        described = json.loads(metadata["network"])
        if version == "1":
            _from_version_1(described)
        return _model(described, tensors)
    except DAMAGES as error:
        why = str(error) if isinstance(error, ValueError) else f"it is damaged ({error})"
        why = " ".join(why.split())[:200]
        raise ValueError(f"{path} is no network for the sparse runtime: {why}") from None


def _from_version_1(described: dict) -> None:
    """Changes a network's description into one of today."""
    for entry in described["operators"]:
        for name, count in (("kernel", 2), ("stride", 2), ("padding", 4)):
            entry[name] = [entry[name]] * count
        entry["activation"] = "relu" if entry.pop("relu") else "none"
        if entry["kind"] == "pool":
            entry.update(kind="mean")
            for name in ("kernel", "stride", "padding", "activation"):
                del entry[name]
    described["outputs"] = [len(described["operators"])]


def _model(described: dict, tensors: dict[str, np.ndarray]) -> Model:
    operators = []
    for i, entry in enumerate(described["operators"]):
        entry = dict(entry)
        kind, columns = entry.pop("kind"), entry.pop("columns", 0)
        if kind not in KINDS:
            raise ValueError(f"operator {i} is {kind!r}; this program knows {', '.join(KINDS)}")
        types = _described(KINDS[kind])
        if not entry.keys() <= types.keys():
            raise ValueError(f"operator {i} ({kind}) has fields that it should not have")
        for name, value in entry.items():
            if not _alike(value, types[name]):
                raise ValueError(f"operator {i} ({kind}): {name} is {str(value)[:40]}")
        if type(columns) is not int or not 0 <= columns <= MAX_WEIGHTS:
            raise ValueError(f"operator {i} has {columns} columns")
        op = KINDS[kind](**entry)
        for name, dtype in op.ARRAYS.items():
            if name != "weight":
                setattr(op, name, _tensor(tensors, f"{i}.{name}", dtype))
        if "weight" in op.ARRAYS:
            # For `shapes`, which refuses what does not fit before a matrix is made of it.
            op.weight = np.broadcast_to(np.float32(0), (len(op.bias), columns))
        operators.append(op)
    numbers = [described["outputs"], described.get("pictures", [])]
    if not all(_alike(each, [0]) and len(each) <= MAX_OPERATORS for each in numbers):
        raise ValueError("its outputs are not a list of results")
    model = Model(tuple(described["input_shape"]), operators, *numbers)
    shapes(model)
    for i, op in enumerate(operators):
        if "weight" in op.ARRAYS:
            values = _tensor(tensors, f"{i}.values", np.float32)
            form = "bitmap" if f"{i}.bitmap" in tensors else "gaps"
            places = {form: _tensor(tensors, f"{i}.{form}", np.uint8)}
            op.weight = decode(values, *op.weight.shape, **places)
    return model


def _alike(value, example) -> bool:
    """Whether it has the same type; of a list, every element that of the example's first."""
    if isinstance(example, list):
        return type(value) is list and all(_alike(part, example[0]) for part in value)
    return type(value) is type(example)


def _tensor(tensors: dict[str, np.ndarray], name: str, dtype) -> np.ndarray:
    array = tensors[name]
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
    return array
