"""A network for the sparse runtime in one safetensors file: operators, and weights without zeros.

Of a weight matrix [C_out, C_in * k * k] the file holds the values that are not zero, row by row,
and where they are: as a bitmap, or as the gaps between them, whichever is smaller. Of a gap a byte
of 255 stands for 255 zeros with no value behind them; the gaps reach to the matrix' last element.
Metadata: format, version, the operators as JSON, and a SHA-256 of all that and of the tensors.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

FORMAT, VERSION = "unstructured-pruning sparse network", 1
KINDS = ("convolution", "depthwise", "pool")
DESCRIBED = ("kind", "inputs", "kernel", "stride", "padding", "relu")
MAX_WEIGHTS = 1 << 28  # of a network, zeros included
MAX_ACTIVATIONS = 1 << 29  # floats, of an operator's result for one picture
DAMAGES = (SafetensorError, ValueError, KeyError, TypeError, RecursionError, AttributeError)


@dataclass
class Operator:
    """One step; the result of step i has number i + 1, the network's input number 0.

    convolution: any kernel, stride 1 or 2; a fully connected layer is one of 1x1 on 1x1 pixels.
    depthwise: 3x3, padding 1, stride 1 or 2. pool: the mean over each channel's pixels.
    """

    kind: str
    inputs: list[int]
    weight: np.ndarray | None = None  # float32 [C_out, C_in * k * k]; depthwise: [C, 9]
    bias: np.ndarray | None = None  # float32 [C_out]
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    relu: bool = False


@dataclass
class Model:
    input_shape: tuple[int, int, int]  # channels, height, width
    operators: list[Operator]


def shapes(model: Model) -> list[tuple[int, int, int]]:
    """[C, H, W] of the input and of every operator's result.

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
    weights = 0
    for i, op in enumerate(model.operators):
        what = f"operator {i} ({op.kind})"
        if op.kind not in KINDS:
            raise ValueError(f"operator {i} is {op.kind!r}; this program knows {', '.join(KINDS)}")
        if op.inputs != [i]:
            raise ValueError(f"{what} takes the results {op.inputs}, not the one before it")
        channels, height, width = found[-1]
        if op.kind == "pool":
            if (op.kernel, op.stride, op.padding, op.relu) != (1, 1, 0, False):
                raise ValueError(f"{what}: it has no kernel and no ReLU")
            found.append((channels, 1, 1))
            continue
        if not (1 <= op.kernel <= 15 and op.stride in (1, 2) and 0 <= op.padding < op.kernel):
            raise ValueError(
                f"{what}: kernel {op.kernel}, stride {op.stride}, padding {op.padding}; "
                "possible are a kernel of 1 to 15, stride 1 or 2, padding below the kernel"
            )
        columns = channels * op.kernel**2
        if op.kind == "depthwise":
            if (op.kernel, op.padding) != (3, 1):
                raise ValueError(f"{what}: only a kernel of 3 with padding 1 is possible")
            columns = 9
        if op.weight.ndim != 2 or op.weight.shape[1] != columns:
            raise ValueError(f"{what}: a weight of {list(op.weight.shape)}, not [C_out, {columns}]")
        weights += op.weight.size
        if weights > MAX_WEIGHTS:
            raise ValueError(f"{what}: more than {MAX_WEIGHTS} weights, zeros included")
        if op.kind == "depthwise" and (i == 0 or len(op.weight) != channels):
            raise ValueError(f"{what} needs a channel each of the convolution before it")
        if op.bias.shape != (len(op.weight),) or not 0 < len(op.weight) < 1 << 16:
            raise ValueError(f"{what}: {list(op.bias.shape)} biases for {len(op.weight)} channels")
        size = [(n + 2 * op.padding - op.kernel) // op.stride + 1 for n in (height, width)]
        if min(size) < 1:
            raise ValueError(f"{what}: its pictures are {height}x{width}, too small")
        found.append((len(op.weight), *size))
        if np.prod(found[-1], dtype=np.int64) > MAX_ACTIVATIONS:
            raise ValueError(f"{what}: a result of {found[-1]} is more than this runtime takes")
    for before, op in zip(model.operators, [*model.operators[1:], None]):
        if before.kind == "depthwise" and (
            op is None or (op.kind, op.kernel, op.stride) != ("convolution", 1, 1)
        ):
            raise ValueError("a depthwise convolution has to be followed by one of 1x1")
    return found


def encode(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Values, and their places as `bitmap` or `gaps` (uint8), whichever is smaller."""
    flat = matrix.ravel()
    places = np.flatnonzero(flat)
    zeros = np.diff(places, prepend=-1, append=flat.size) - 1
    skips, rest = np.divmod(zeros, 255)
    gaps = np.full(skips.sum() + len(zeros), 255, np.uint8)
    gaps[np.cumsum(skips + 1) - 1] = rest
    bitmap = np.packbits(flat != 0)
    smaller = {"gaps": gaps} if len(gaps) < len(bitmap) else {"bitmap": bitmap}
    return {"values": flat[places], **smaller}


def decode(values: np.ndarray, rows: int, columns: int, bitmap=None, gaps=None) -> np.ndarray:
    """The matrix, float32 [rows, columns].

    Raises:
        ValueError: the parts contradict each other. Nothing of the matrix' size is allocated then.
    """
    size = rows * columns
    if not 0 < size <= MAX_WEIGHTS:
        raise ValueError(f"a matrix of {rows} x {columns} is more than this runtime takes")
    if bitmap is not None:
        if len(bitmap) != -(-size // 8):
            raise ValueError(f"a bitmap of {len(bitmap)} bytes for {size} weights")
        if np.unpackbits(bitmap[-1:])[(size - 1) % 8 + 1 :].any():
            raise ValueError("a bitmap with places behind the last weight")
        places = np.flatnonzero(np.unpackbits(bitmap, count=size))
    else:
        steps = gaps.astype(np.int64) + (gaps != 255)
        if steps.sum() - 1 != size:  # the last gap ends behind the matrix
            raise ValueError(f"gaps that reach over {steps.sum() - 1} of {size} weights")
        if gaps[-1] == 255:
            raise ValueError("gaps that end with 255 zeros and no end")
        places = (np.cumsum(steps) - 1)[gaps != 255][:-1]
    if len(places) != len(values):
        raise ValueError(f"{len(values)} values for {len(places)} places")
    matrix = np.zeros(size, np.float32)
    matrix[places] = values
    return matrix.reshape(rows, columns)


def write(model: Model, path) -> None:
    """Writes the file that `read` reads.

    Raises:
        ValueError: the runtime does not know the network.
        OSError: the file cannot be written.
    """
    shapes(model)
    tensors, described = {}, []
    for i, op in enumerate(model.operators):
        described.append({key: getattr(op, key) for key in DESCRIBED})
        if op.kind == "pool":
            continue
        for name, array in encode(op.weight.astype(np.float32)).items():
            tensors[f"{i}.{name}"] = np.ascontiguousarray(array)
        tensors[f"{i}.bias"] = np.ascontiguousarray(op.bias, np.float32)
        described[-1]["columns"] = op.weight.shape[1]
    network = json.dumps({"input_shape": list(model.input_shape), "operators": described})
    metadata = {"format": FORMAT, "version": str(VERSION), "network": network}
    metadata["sha256"] = _digest(metadata, tensors)
    Path(path).write_bytes(save(tensors, metadata))


def _digest(metadata: dict[str, str], tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in ("format", "version", "network"):
        digest.update(metadata[name].encode() + b"\0")
    for name, array in sorted(tensors.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode() + array.tobytes())
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
            if metadata.get("version") != str(VERSION):
                raise ValueError(
                    f"it has version {metadata.get('version')}, this program reads {VERSION}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("sha256") != _digest(metadata, tensors):
            raise ValueError("its checksum is another")
        return _model(json.loads(metadata["network"]), tensors)
    except DAMAGES as error:
        why = str(error) if isinstance(error, ValueError) else f"it is damaged ({error})"
        why = " ".join(why.split())[:200]
        raise ValueError(f"{path} is no network for the sparse runtime: {why}") from None


def _model(described: dict, tensors: dict[str, np.ndarray]) -> Model:
    operators = []
    for i, entry in enumerate(described["operators"]):
        entry = dict(entry)
        columns = entry.pop("columns", 0)
        if not entry.keys().isdisjoint({"weight", "bias"}):
            raise ValueError(f"operator {i} has weights in its description")
        op = Operator(**entry)
        whole = (op.kernel, op.stride, op.padding, columns, *op.inputs)
        if any(type(n) is not int for n in whole) or type(op.relu) is not bool:
            raise ValueError(f"operator {i} has numbers that are none")
        if not 0 <= columns <= MAX_WEIGHTS:
            raise ValueError(f"operator {i} has {columns} columns")
        if op.kind != "pool":
            op.bias = _tensor(tensors, f"{i}.bias", np.float32)
            # For `shapes`, which refuses what does not fit before a matrix is made of it.
            op.weight = np.broadcast_to(np.float32(0), (len(op.bias), columns))
        operators.append(op)
    model = Model(tuple(described["input_shape"]), operators)
    shapes(model)
    for i, op in enumerate(operators):
        if op.kind != "pool":
            values = _tensor(tensors, f"{i}.values", np.float32)
            form = "bitmap" if f"{i}.bitmap" in tensors else "gaps"
            places = {form: _tensor(tensors, f"{i}.{form}", np.uint8)}
            op.weight = decode(values, *op.weight.shape, **places)
    return model


def _tensor(tensors: dict[str, np.ndarray], name: str, dtype) -> np.ndarray:
    array = tensors[name]
    if array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}")
    return array
