"""The files of the sparse runtime, damaged ones and ones made to do harm; ONNX made into them."""

from __future__ import annotations

import json
import pickle
import re
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from test_sparse_runtime import LAST, POOL, convolution, depthwise, expected, model, pictures

from sparse_runtime import Network, model_file
from sparse_runtime.model_file import Model, Operator, decode, encode, shapes

try:
    import onnx
    from onnx import helper, numpy_helper
    from onnx.reference import ReferenceEvaluator

    from sparse_runtime import from_onnx
except ImportError:
    onnx = None

SECONDS, MEGABYTES = 2, 64  # what a file that is refused may take at most
needs_onnx = pytest.mark.skipif(onnx is None, reason="needs onnx")
properties = settings(max_examples=100, deadline=None, derandomize=True, database=None)


def shown(value) -> str:
    return repr(value)[:20]


def small() -> Model:
    """All kinds of operators, with a bitmap for the weights of operator 0 and gaps for 2."""
    made = model(
        (2, 5, 4), convolution(3, 3, 2, 1), depthwise(), convolution(60, relu=False), POOL, LAST
    )
    made.operators[2].weight[1:-1] = 0
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.sparse"


def assert_same_model(one: Model, other: Model) -> None:
    assert one.input_shape == other.input_shape
    assert len(one.operators) == len(other.operators)
    for op, like in zip(one.operators, other.operators):
        fields, wanted = dict(vars(op)), dict(vars(like))
        for name in ("weight", "bias"):
            np.testing.assert_array_equal(fields.pop(name), wanted.pop(name))
        assert fields == wanted


# Matrices


def row(*parts) -> np.ndarray:
    """[1, N]: a negative number stands for that many zeros."""
    return np.array([[x for part in parts for x in ([0] * -part if part < 0 else [part])]], "f4")


@pytest.mark.parametrize(
    ("parts", "form", "places"),
    [
        ((7,), "bitmap", [0b10000000]),
        ((-1,), "bitmap", [0]),
        ((-2, 7, -1), "bitmap", [0b00100000]),
        ((-2, 7, -4, 7, -1), "bitmap", [0b00100001, 0]),
        ((7, -14, 7, -1), "bitmap", [0b10000000, 0b00000001, 0]),  # as large as gaps would be
        ((7, -22, 7, -1), "gaps", [0, 22, 1]),
        ((-253,), "gaps", [253]),
        ((-254,), "gaps", [254]),
        ((-255,), "gaps", [255, 0]),
        ((-256,), "gaps", [255, 1]),
        ((-510,), "gaps", [255, 255, 0]),
        ((-254, 7), "gaps", [254, 0]),
        ((-255, 7), "gaps", [255, 0, 0]),
        ((-256, 7), "gaps", [255, 1, 0]),
        ((-509, 7), "gaps", [255, 254, 0]),
        ((-510, 7), "gaps", [255, 255, 0, 0]),
        ((7, -254), "gaps", [0, 254]),
        ((7, -255), "gaps", [0, 255, 0]),
        ((7, -256), "gaps", [0, 255, 1]),
        ((7, -255, 8, 9, -254, 7, -3), "gaps", [0, 255, 0, 0, 254, 3]),
    ],
)
def test_places_worked_out_by_hand(parts, form, places):
    matrix = row(*parts)
    values = [part for part in parts if part > 0]
    encoded = encode(matrix)
    assert {name: array.tolist() for name, array in encoded.items()} == {
        "values": values,
        form: places,
    }
    assert encoded[form].dtype == np.uint8
    np.testing.assert_array_equal(decode(**encoded, rows=1, columns=matrix.size), matrix)


@st.composite
def matrices(draw) -> np.ndarray:
    """Zeros in places of their own, in runs, or nearly everywhere."""
    rng = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shape = draw(st.integers(1, 30)), draw(st.integers(1, 300))
    matrix = rng.standard_normal(shape, np.float32)
    matrix[rng.random(shape) < draw(st.sampled_from([0, 0.5, 0.9, 0.999, 1]))] = 0
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, matrix.size))
        matrix.reshape(-1)[start : start + draw(st.integers(200, 600))] = 0
    return matrix


@properties
@given(matrices())
def test_any_matrix_comes_back(matrix):
    encoded = encode(matrix)
    places = encoded.get("gaps", encoded.get("bitmap"))
    assert len(encoded) == 2
    assert encoded["values"].all()
    zeros = "".join("01"[int(x != 0)] for x in matrix.ravel()).split("1")
    gaps = sum(len(run) // 255 + 1 for run in zeros)
    assert len(places) == min(gaps, -(-matrix.size // 8))
    assert ("gaps" in encoded) == (gaps < -(-matrix.size // 8))
    result = decode(**encoded, rows=len(matrix), columns=matrix.shape[1])
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, matrix)


BITS = {"bitmap": np.array([0b11000000], np.uint8)}  # of 3 weights
STEPS = {"gaps": np.array([0, 0, 1], np.uint8)}


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ({"bitmap": []}, "a bitmap of 0 bytes for 3 weights"),
        ({"bitmap": [0b11000000, 0]}, "a bitmap of 2 bytes for 3 weights"),
        ({"bitmap": [0b11010000]}, "behind the last weight"),
        ({"bitmap": [0b11000001]}, "behind the last weight"),
        ({"bitmap": [0b11100000]}, "2 values for 3 places"),
        ({"bitmap": [0b10000000]}, "2 values for 1 places"),
        ({"gaps": []}, "gaps that reach over -1 of 3 weights"),
        ({"gaps": [0, 0]}, "gaps that reach over 1 of 3 weights"),
        ({"gaps": [0, 0, 0]}, "gaps that reach over 2 of 3 weights"),
        ({"gaps": [0, 0, 2]}, "gaps that reach over 4 of 3 weights"),
        ({"gaps": [0, 0, 1, 0]}, "gaps that reach over 4 of 3 weights"),
        ({"gaps": [0, 0, 255]}, "gaps that reach over"),
        ({"gaps": [3]}, "2 values for 0 places"),
        ({"gaps": [0, 0, 0, 0]}, "2 values for 3 places"),
    ],
)
def test_places_that_contradict_the_rest(places, message):
    values = np.ones(2, np.float32)
    np.testing.assert_array_equal(decode(values, 1, 3, **BITS), [[1, 1, 0]])
    np.testing.assert_array_equal(decode(values, 1, 3, **STEPS), [[1, 1, 0]])
    places = {name: np.array(array, np.uint8) for name, array in places.items()}
    with pytest.raises(ValueError, match=message):
        decode(values, 1, 3, **places)


def test_gaps_without_an_end():
    assert decode(np.ones(0, np.float32), 1, 255, gaps=np.array([255, 0], np.uint8)).sum() == 0
    with pytest.raises(ValueError, match="no end"):
        decode(np.ones(0, np.float32), 1, 254, gaps=np.array([255], np.uint8))


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (1, -3), (1 << 14, (1 << 14) + 1)])
def test_a_matrix_of_no_possible_size(size):
    with pytest.raises(ValueError, match="a matrix of {} x {} is more than".format(*size)):
        decode(np.ones(2, np.float32), *size, **BITS)


# Files


def test_what_was_written_is_read(path):
    model_file.write(small(), path)
    with safe_open(path, "numpy") as file:
        assert {"0.bitmap", "2.gaps"} < set(file.keys())
    read = model_file.read(path)
    assert_same_model(read, small())
    assert all(op.weight.dtype == np.float32 for op in read.operators if op.kind != "pool")
    images = pictures(read)
    np.testing.assert_array_equal(
        Network(path, 5, tune=False)(images), Network(small(), 5, tune=False)(images)
    )


def test_arrays_of_any_strides_and_dtype(path):
    made = small()
    for op in made.operators[:3]:
        op.weight = np.asfortranarray(op.weight, np.float64)
        op.bias = np.repeat(op.bias, 2)[::2]
    model_file.write(made, str(path))
    assert_same_model(model_file.read(str(path)), small())


def test_values_that_are_no_numbers(path):
    made = small()
    made.operators[0].weight[0, :6] = np.nan, np.inf, -np.inf, -0.0, 1e-45, 3e38
    made.operators[2].bias[:2] = np.nan, -np.inf
    model_file.write(made, path)
    assert_same_model(model_file.read(path), made)


@pytest.mark.parametrize(("zeros", "most"), [(0.55, 0.5), (0.75, 0.3), (0.9, 0.15)])
def test_sizes(zeros, most, path):
    made = model((256, 7, 7), convolution(512), convolution(100, 3), density=1 - zeros)
    model_file.write(made, path)
    dense = sum(4 * (op.weight.size + op.bias.size) for op in made.operators)
    assert path.stat().st_size <= most * dense


def test_a_network_that_does_not_fit_is_not_written(path):
    made = small()
    made.operators[2].bias = made.operators[2].bias[1:]
    with pytest.raises(ValueError, match=r"\[59\] biases for 60 channels"):
        model_file.write(made, path)
    assert not path.exists()


def refusal(path) -> str:
    """Why the file is refused: in one line that names it, soon, and with little memory."""
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="is no network for the sparse") as refused:
            model_file.read(path)
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES << 20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < SECONDS
    message = str(refused.value)
    assert message.startswith(f"{path} is no network")
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_no_file(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{path} is no file; python export.py"):
        model_file.read(path)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} is no file"):
        model_file.read(tmp_path)
    with pytest.raises(FileNotFoundError, match=str(path)):
        Network(str(path))


def test_another_file(path):
    for content in (b"", b"{}", pickle.dumps({"a": 1}), bytes(1000), b"\xff" * 1000):
        path.write_bytes(content)
        assert "it is damaged" in refusal(path)
    for metadata in (None, {"format": "pt"}, {"format": model_file.FORMAT.upper()}):
        save_file({"a": np.zeros(3, np.float32)}, path, metadata)
        assert "it is not one" in refusal(path)


def tiny(path) -> bytes:
    made = model((1, 2, 1), convolution(2, relu=False), density=1)
    made.operators[0].weight[0] = 0
    model_file.write(made, path)
    assert_same_model(model_file.read(path), made)
    return path.read_bytes()


def test_every_cut(path):
    whole = tiny(path)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=f"^{path} is no network"):
            model_file.read(path)
    path.write_bytes(whole + b"\0")
    refusal(path)


def test_every_bit(path):
    whole = tiny(path)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{path} is no network"):
            model_file.read(path)


@properties
@given(st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(min_size=1, max_size=9)), min_size=1))
def test_any_bytes(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "model.sparse"
    model_file.write(small(), path)
    whole = path.read_bytes()
    damaged = bytearray(whole)
    for at, piece in changes:
        at %= len(damaged)
        damaged[at : at + len(piece)] = piece
    path.write_bytes(damaged)
    if damaged != whole:
        refusal(path)


def forge(path, change=lambda network, tensors: None, **changed) -> None:
    """`small`, changed, with the checksum that it has then."""
    model_file.write(small(), path)
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = json.loads(metadata["network"])
    change(network, tensors)
    metadata = {**metadata, "network": json.dumps(network), **changed}
    metadata["sha256"] = model_file._digest(metadata, tensors)
    save_file(tensors, path, metadata)


def test_a_forged_file_is_one(path):
    forge(path)
    assert_same_model(model_file.read(path), small())


@pytest.mark.parametrize("version", ["2", "", "1.0", "01", "x" * 100_000, "2\n\x1b[2J"], ids=shown)
def test_another_version(version, path):
    forge(path, version=version)
    assert "it has version " in refusal(path)
    if version == "2":
        assert refusal(path).endswith("it has version 2, this program reads 1")


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", "1", '"x"', "{}", '{"operators": [], "input_shape": [1, 1, 1]}',
     '{"operators": {}, "input_shape": [1, 1, 1]}', '{"operators": "", "input_shape": [1, 1, 1]}',
     "[" * 100_000, '{"operators": ' + "9" * 5000 + "}", "\x1b[2J" * 9],
    ids=shown,
)  # fmt: skip
def test_a_description_that_is_none(text, path):
    forge(path, network=text)
    refusal(path)


NO_INTEGERS = [None, 1.0, float("nan"), True, "1", [1], {}, "x" * 100_000]
NUMBERS = [-1, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 64, 10**30, *NO_INTEGERS]
FIELDS = {
    "kind": ["Convolution", "depthwise", "", None, 1, [], {}, "x" * 100_000, "\n\x1b[2J"],
    "inputs": [[], [1], [-1], [0, 0], [0.0], [False], ["0"], [[0]], 0, None, "0", {}, {"0": 0},
               [10**30], [0] * 100_000],
    "kernel": [0, 1, 2, 4, 15, 16, *NUMBERS],
    "stride": [0, 3, *NUMBERS],
    "padding": [3, *NUMBERS],
    "relu": [0, 1, None, "true", [], 1.0],
    "columns": [0, 1, 17, 19, 36, -18, 1 << 24, *NUMBERS],
    "weight": [None, [], [[1.0]], "x"],
    "bias": [None, [], [1.0], "x"],
    "dilation": [1],
    "x" * 100_000: [1],
    "\n\x1b[2J": [1],
}  # fmt: skip


@pytest.mark.parametrize("field", list(FIELDS), ids=shown)
def test_an_operator_with_another(field, path):
    for value in FIELDS[field]:
        forge(path, lambda network, tensors, v=value: network["operators"][0].update({field: v}))
        refusal(path)


@pytest.mark.parametrize("field", ["kind", "inputs"])
def test_an_operator_without(field, path):
    forge(path, lambda network, tensors: network["operators"][0].pop(field))
    assert field in refusal(path)


# Without weights of its own there is nothing to compare these with.
@pytest.mark.parametrize(
    ("field", "value"),
    [("weight", [[1.0]]), ("weight", "x"), ("bias", [1.0]), ("relu", True), ("kernel", 3),
     ("kernel", 10**30), ("stride", 2), ("padding", 1), ("padding", -1)],
    ids=shown,
)  # fmt: skip
def test_a_pooling_with(field, value, path):
    forge(path, lambda network, tensors: network["operators"][3].update({field: value}))
    assert "operator 3" in refusal(path)


@pytest.mark.parametrize("operator", [None, 1, "x", [], {}, [["kind"]], "x" * 100_000], ids=shown)
def test_an_operator_that_is_none(operator, path):
    for i in (0, 3):
        forge(path, lambda network, tensors, i=i: network["operators"].__setitem__(i, operator))
        refusal(path)


@pytest.mark.parametrize(
    "shape",
    [None, 1, "abc", {}, [], [2, 5], [2, 5, 4, 1], [2, 5, 0], [2, -5, 4], [2, 5.0, 4], [2, True, 4],
     [2, "5", 4], [2, [5], 4], [2, 65_536, 4], [2, 10**30, 4], [2, 65_535, 65_535], [3, 5, 4],
     [1] * 100_000, "x" * 100_000],
    ids=shown,
)  # fmt: skip
def test_pictures_of_another_shape(shape, path):
    forge(path, lambda network, tensors: network.update(input_shape=shape))
    refusal(path)


def test_operators_in_another_order(path):
    forge(path, lambda network, tensors: network["operators"].reverse())
    refusal(path)
    forge(path, lambda network, tensors: network["operators"].pop(0))
    refusal(path)
    forge(path, lambda network, tensors: network["operators"].append(network["operators"][0]))
    refusal(path)


F, U = np.float32, np.uint8
TENSORS = {
    "0.values": [
        None, np.zeros(0, F), np.ones(1, F), np.ones(99, F), np.ones((1, 9), F), np.ones((), F),
        np.ones(9, np.float64), np.ones(9, np.float16), np.ones(9, np.int32), np.ones(36, U),
    ],
    "0.bias": [
        None, np.zeros(0, F), np.ones(2, F), np.ones(4, F), np.ones((3, 1), F), np.ones((), F),
        np.ones(3, np.float64), np.ones(3, np.int32), np.ones(1 << 16, F), np.ones(1 << 20, F),
    ],
    "0.bitmap": [
        None, np.zeros(0, U), np.zeros(6, U), np.zeros(7, U), np.zeros(8, U), np.full(7, 255, U),
        np.zeros((1, 7), U), np.zeros(7, bool), np.zeros(7, np.int8), np.zeros(7, np.uint16),
    ],
    "2.gaps": [
        None, np.zeros(0, U), np.zeros(1, U), np.zeros(180, U), np.zeros(181, U),
        np.full(1, 180, U), np.full(9, 255, U), np.zeros((1, 9), U), np.zeros(181, np.int8),
        np.zeros(181, np.int64),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(TENSORS))
def test_another_tensor(name, path):
    for array in TENSORS[name]:
        forge(path, lambda network, tensors, new=array: tensors.__setitem__(name, new)
              if new is not None else tensors.pop(name))  # fmt: skip
        refusal(path)


@pytest.mark.parametrize("name", ["0.values", "0.bias", "0.bitmap", "2.values", "2.gaps"])
def test_a_tensor_of_two_dimensions(name, path):
    forge(path, lambda network, tensors: tensors.update({name: tensors[name][:, None]}))
    assert f"{name} is " in refusal(path)


def test_gaps_are_not_made_a_matrix_before_its_columns_are_known_to_fit(path):
    def change(network, tensors):
        network["operators"][0]["columns"] = 255 << 17  # which the gaps confirm: 400 MB
        del tensors["0.bitmap"]
        tensors["0.values"] = np.zeros(0, F)
        tensors["0.gaps"] = np.append(np.full(3 << 17, 255, U), U(0))

    forge(path, change)
    assert "not [C_out, 18]" in refusal(path)


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "F8_E5M2", "F4", "F16", "C64", "O"])
def test_dtypes_that_numpy_lacks(dtype, path):
    metadata = {"format": model_file.FORMAT, "version": "1", "network": "{}", "sha256": "0"}
    header = json.dumps({
        "__metadata__": metadata, "a": {"dtype": dtype, "shape": [8], "data_offsets": [0, 16]},
    }).encode()  # fmt: skip
    for size in (4, 8, 16, 64):
        content = header.replace(b"16]", b"%d]" % size)
        path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(size))
        refusal(path)


# What fits


def test_shapes():
    made = model(
        (3, 33, 31), convolution(8, 3, 2, 1), depthwise(2), convolution(9), convolution(5, 5, 1, 0),
        convolution(6, 4, 2, 3), convolution(7, 1, 2), POOL, LAST,
    )  # fmt: skip
    assert shapes(made) == [
        (3, 33, 31), (8, 17, 16), (8, 9, 8), (9, 9, 8), (5, 5, 4), (6, 4, 4), (7, 2, 2), (7, 1, 1),
        (10, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [(), (3, 7), (3, 7, 5, 1), (3, 7, 0), (3, -7, 5), (3, 7, 5.0), (True, 7, 5), (1 << 16, 7, 5)],
)
def test_impossible_pictures(shape):
    with pytest.raises(ValueError, match="three whole numbers from 1 to 65535, got") as refused:
        shapes(Model(shape, [Operator("pool", [0])]))
    assert str(refused.value).endswith(f"got {shape}")


KERNEL = "possible are a kernel of 1 to 15, stride 1 or 2, padding below the kernel"
FOLLOWED = "a depthwise convolution has to be followed by one of 1x1"
C4, C5, D = convolution(4), convolution(5), depthwise()
REFUSED = [  # steps, the number of one and what is changed in it, message
    ((C4, C5), 0, {"kind": "conv"}, "'conv'; this program knows convolution, depthwise, pool"),
    ((C4, C5), 0, {"inputs": [1]}, "0 (convolution) takes the results [1], not the one before"),
    ((C4, C5), 1, {"inputs": [0]}, "1 (convolution) takes the results [0], not"),
    ((C4, C5), 1, {"inputs": [1, 1]}, "1 (convolution) takes the results [1, 1], not"),
    ((C4, C5), 0, {"kernel": 0}, f"0 (convolution): kernel 0, stride 1, padding 0; {KERNEL}"),
    ((C4, C5), 1, {"kernel": 16}, f"1 (convolution): kernel 16, stride 1, padding 0; {KERNEL}"),
    ((C4, C5), 0, {"stride": 3}, f"kernel 1, stride 3, padding 0; {KERNEL}"),
    ((C4, C5), 0, {"stride": 0}, f"kernel 1, stride 0, padding 0; {KERNEL}"),
    ((C4, C5), 0, {"padding": 1}, f"kernel 1, stride 1, padding 1; {KERNEL}"),
    ((C4, C5), 0, {"padding": -1}, f"kernel 1, stride 1, padding -1; {KERNEL}"),
    ((C4, D, C5), 1, {"padding": 0}, "only a kernel of 3 with padding 1 is possible"),
    ((C4, D, C5), 1, {"kernel": 5}, "only a kernel of 3 with padding 1 is possible"),
    ((C4, C5), 1, {"weight": np.zeros((5, 3))}, "a weight of [5, 3], not [C_out, 4]"),
    ((C4, C5), 0, {"weight": np.zeros(3)}, "a weight of [3], not [C_out, 3]"),
    ((C4, C5), 0, {"kernel": 2}, "a weight of [4, 3], not [C_out, 12]"),
    ((C4, D, C5), 1, {"weight": np.zeros((4, 8))}, "a weight of [4, 8], not [C_out, 9]"),
    ((C4, D, C5), 1, {"weight": np.zeros((5, 9)), "bias": np.zeros(5)}, "needs a channel each of"),
    ((C4, D, C5), 1, {"bias": np.zeros(3)}, "1 (depthwise): [3] biases for 4 channels"),
    ((C4, C5), 0, {"bias": np.zeros(3)}, "0 (convolution): [3] biases for 4 channels"),
    ((C4, C5), 0, {"bias": np.zeros((4, 1))}, "[4, 1] biases for 4 channels"),
    ((C4,), 0, {"weight": np.zeros((0, 3)), "bias": np.zeros(0)}, "[0] biases for 0 channels"),
    ((POOL, C4), 0, {"relu": True}, "operator 0 (pool)"),
    ((convolution(1 << 16),), None, {}, "[65536] biases for 65536 channels"),
    ((D, C4), None, {}, "0 (depthwise) needs a channel each of the convolution before it"),
    ((POOL, convolution(4, 2)), None, {}, "1 (convolution): its pictures are 1x1, too small"),
    ((convolution(4, 6),), None, {}, "0 (convolution): its pictures are 7x5, too small"),
    ((C4, D), None, {}, FOLLOWED),
    ((C4, D, POOL), None, {}, FOLLOWED),
    ((C4, D, D, C5), None, {}, FOLLOWED),
    ((C4, D, convolution(5, 3, 1, 1)), None, {}, FOLLOWED),
    ((C4, D, convolution(5, 1, 2)), None, {}, FOLLOWED),
    ((), None, {}, "no operators"),
]


@pytest.mark.parametrize(("steps", "number", "changed", "message"), REFUSED)
def test_what_does_not_fit(steps, number, changed, message):
    made = model((3, 7, 5), *steps)
    if number is not None:
        assert len(shapes(made)) == len(steps) + 1
        vars(made.operators[number]).update(changed)
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes(made)


def test_weights_that_are_too_many_together():
    def step(number, channels, columns):
        zeros = np.broadcast_to(np.float32(0), (channels, columns))  # of no memory
        return Operator("convolution", [number], zeros, np.zeros(channels, np.float32))

    steps = [step(0, 2000, 50000), step(1, 50000, 2000), step(2, 2000, 50000)]
    assert len(shapes(Model((50000, 1, 1), steps[:2]))) == 3
    with pytest.raises(ValueError, match=r"operator 2 .* more than 268435456 weights"):
        shapes(Model((50000, 1, 1), steps))


def test_pictures_that_are_too_large():
    assert shapes(model((1, 1 << 14, 1 << 14), convolution(2)))[-1] == (2, 1 << 14, 1 << 14)
    message = "operator 0 (convolution): a result of (3, 16384, 16384) is more than this runtime"
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes(model((1, 1 << 14, 1 << 14), convolution(3)))
    with pytest.raises(ValueError, match="is more than this runtime takes"):
        shapes(model((3, 1 << 14, 1 << 14), POOL))


# ONNX


def graph(*nodes, shape=(3, 6, 5), outputs=None, **constants):
    """Each node is (operator, inputs, output, attributes); the network's input is x."""
    made = [helper.make_node(kind, inputs.split(), [out], **a) for kind, inputs, out, a in nodes]
    image = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *shape])
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in outputs or [nodes[-1][2]]]  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items()]
    return helper.make_graph(made, "network", [image], ends, tensors)


def check(made) -> Model:
    """Converts, and compares with ONNX' own evaluator in numpy."""
    converted = from_onnx.convert(made)
    images = pictures(converted, 2)
    right, apart = expected(converted, images)
    whole = helper.make_model(made, opset_imports=[helper.make_opsetid("", 15)])
    (result,) = ReferenceEvaluator(whole).run(None, {"x": images})
    # The folding rounds, too; a network without an error of its own here is off by 0.1 or more.
    np.testing.assert_allclose(result.reshape(right.shape), right, atol=10 * apart.max(), rtol=0)
    return converted


def random(*shape) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def norm(channels: int, name: str = "") -> dict[str, np.ndarray]:
    parts = random(3, channels)
    return dict(zip([f"scale{name}", f"shift{name}", f"mean{name}", f"var{name}"],
                    [*parts, np.exp(random(channels + 1)[:channels])]))  # fmt: skip


NORM = "c scale shift mean var"


@needs_onnx
def test_batch_normalisation_by_hand():
    made = graph(
        ("Conv", "x w b", "c", {}),
        ("BatchNormalization", NORM, "n", {"epsilon": 1.0}),
        shape=(1, 2, 2), w=row(2).reshape(1, 1, 1, 1), b=row(1)[0], scale=row(3)[0],
        shift=row(4)[0], mean=row(5)[0], var=row(15)[0],
    )  # fmt: skip
    (op,) = check(made).operators
    assert op.weight.tolist() == [[1.5]]  # 2 * 3 / sqrt(15 + 1)
    assert op.bias.tolist() == [1.0]  # (1 - 5) * 3 / 4 + 4
    assert (op.kind, op.relu) == ("convolution", False)


@needs_onnx
@pytest.mark.parametrize("epsilon", [{}, {"epsilon": 0.5}])
@pytest.mark.parametrize("bias", ["", " b"])
def test_batch_normalisation_is_folded(bias, epsilon):
    made = graph(
        ("Conv", f"x w{bias}", "c", {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("BatchNormalization", NORM, "n", epsilon),
        ("Relu", "n", "r", {}),
        ("Conv", f"r w2{bias}", "d", {"pads": [1, 1, 1, 1], "group": 4, "kernel_shape": [3, 3]}),
        ("BatchNormalization", NORM.replace("c ", "d "), "n2", epsilon),
        ("Conv", "n2 w3", "e", {}),
        w=random(4, 3, 3, 3), w2=random(4, 1, 3, 3), w3=random(2, 4, 1, 1), b=random(4), **norm(4),
    )  # fmt: skip
    convolved, deep, last = check(made).operators
    assert (convolved.kind, deep.kind, last.kind) == ("convolution", "depthwise", "convolution")
    assert (convolved.relu, deep.relu, last.relu) == (True, False, False)
    assert (convolved.kernel, convolved.stride, convolved.padding) == (3, 2, 1)
    assert [op.inputs for op in (convolved, deep, last)] == [[0], [1], [2]]
    assert deep.weight.shape == (4, 9)
    assert convolved.weight.dtype == convolved.bias.dtype == np.float32


@needs_onnx
@pytest.mark.parametrize(
    "nodes",
    [
        [("MatMul", "f w", "y", {})],
        [("MatMul", "f w", "m", {}), ("Add", "m b", "y", {})],
        [("MatMul", "f w", "m", {}), ("Add", "m b2", "y", {})],
        [("MatMul", "f w", "m", {}), ("Add", "m b", "a", {}), ("Relu", "a", "y", {})],
        [("Gemm", "f w", "y", {})],
        [("Gemm", "f w b", "y", {"alpha": 1.0, "beta": 1.0, "transA": 0})],
        [("Gemm", "f t b2", "y", {"transB": 1})],
        [("Gemm", "f t", "y", {"transB": 1})],
    ],
)
def test_fully_connected(nodes):
    made = graph(
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}), *nodes,
        w=random(3, 7), t=random(7, 3), b=random(7), b2=random(1, 7),
    )  # fmt: skip
    pooled, connected = check(made).operators
    assert pooled.kind == "pool"
    assert connected.weight.shape == (7, 3)
    assert connected.relu == (nodes[-1][0] == "Relu")


@needs_onnx
def test_reshapes_of_one_pixel_and_constant_nodes():
    made = graph(
        ("Constant", "", "w", {"value": numpy_helper.from_array(random(4, 3, 1, 1))}),
        ("Conv", "x w b4", "c", {}),
        ("Add", "c b", "a", {}),
        ("Identity", "a", "i", {}),
        ("GlobalAveragePool", "i", "p", {}),
        ("Squeeze", "p axes", "s", {}),
        ("Reshape", "s sizes", "y", {}),
        b4=random(4), b=random(1, 4, 1, 1), axes=np.array([2, 3]), sizes=np.array([-1, 4]),
    )  # fmt: skip
    assert [op.kind for op in check(made).operators] == ["convolution", "pool"]


@needs_onnx
def test_an_unused_constant_and_a_constant_among_the_inputs():
    made = graph(("Conv", "x w", "y", {}), w=random(2, 3, 1, 1), unused=random(5))
    made.input.insert(0, helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2, 3, 1, 1]))
    assert check(made).input_shape == (3, 6, 5)


CONV = ("Conv", "x w", "c", {})
W, B = random(4, 3, 3, 3), random(4)
LACKS = [
    ("Clip", [CONV, ("Clip", "c low high", "y", {})]),
    ("Sigmoid", [("Sigmoid", "x", "y", {})]),
    ("MaxPool", [("MaxPool", "x", "y", {"kernel_shape": [2, 2]})]),
    ("Concat", [CONV, ("Concat", "c c", "y", {"axis": 1})]),
    ("Add of two activations", [CONV, ("Conv", "x w", "d", {}), ("Add", "c d", "y", {})]),
    ("Add of two activations", [CONV, ("Add", "c c", "y", {})]),
    ("Add there", [("Add", "x b4", "y", {})]),
    ("Add behind pool", [("GlobalAveragePool", "x", "p", {}), ("Add", "p b3", "y", {})]),
    ("Add behind convolution", [CONV, ("Relu", "c", "r", {}), ("Add", "r b4", "y", {})]),
    ("MatMul of two activations", [CONV, ("MatMul", "c c", "y", {})]),
    ("Relu there", [("Relu", "x", "y", {})]),
    ("Relu behind pool", [("GlobalAveragePool", "x", "p", {}), ("Relu", "p", "y", {})]),
    ("BatchNormalization there", [("BatchNormalization", "x " + NORM[2:], "y", {})]),
    ("BatchNormalization behind convolution", [
        CONV, ("Relu", "c", "r", {}), ("BatchNormalization", "r " + NORM[2:], "y", {}),
    ]),
    ("BatchNormalization behind pool", [
        ("GlobalAveragePool", "x", "p", {}), ("BatchNormalization", "p " + NORM[2:], "y", {}),
    ]),
    ("Flatten but behind a global pooling", [CONV, ("Flatten", "c", "y", {})]),
    ("Reshape but behind a global pooling", [("Reshape", "x sizes", "y", {})]),
    ("Conv with 3 groups for 6 channels", [("Conv", "x g", "y", {"group": 3})]),
    ("Conv with 2 groups for 4 channels", [("Conv", "x g2", "y", {"group": 2})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"dilations": [2, 2]})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"strides": [1, 2]})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"pads": [0, 0, 1, 1]})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"auto_pad": "SAME_UPPER"})]),
    ("Conv with dilation, unequal", [("Conv", "x w", "y", {"auto_pad": "VALID"})]),
    ("Conv with dilation, unequal", [("Conv", "x oblong", "y", {})]),
    ("Conv", [("Conv", "x line", "y", {})]),
    ("Conv of", [CONV, ("Conv", "x c", "y", {})]),
    ("Conv of", [("Conv", "x w z", "y", {})]),
    ("Gemm with factors", [
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}),
        ("Gemm", "f t b3", "y", {"alpha": 0.5}),
    ]),
    ("Gemm with factors", [
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}),
        ("Gemm", "f t b3", "y", {"beta": 2.0}),
    ]),
    ("Gemm", [
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}),
        ("Gemm", "f t", "y", {"transA": 1}),
    ]),
    ("Gemm of two activations", [
        ("GlobalAveragePool", "x", "p", {}), ("Flatten", "p", "f", {}),
        ("Gemm", "f t f", "y", {}),
    ]),
    ("BatchNormalization of two activations", [
        CONV, ("BatchNormalization", "c scale x mean var", "y", {}),
    ]),
    # A result that another operator takes as well:
    ("Relu there", [CONV, ("Relu", "c", "r", {}), ("Conv", "c w4", "y", {})]),
    ("Relu there", [
        CONV, ("Identity", "c", "i", {}), ("Relu", "i", "r", {}), ("Conv", "c w4", "y", {}),
    ]),
    ("Shape but behind a global pooling", [("Shape", "x", "s", {}), CONV]),
    ("Shape but behind a global pooling", [
        CONV, ("Conv", "c g4", "d", {"group": 4, "pads": [1] * 4}), ("Shape", "d", "s", {}),
    ]),
    ("Add there", [CONV, ("Add", "c b4", "a", {}), ("Conv", "c w4", "y", {})]),
    ("BatchNormalization there", [
        CONV, ("BatchNormalization", NORM, "n", {}), ("Conv", "c w4", "y", {}),
    ]),
]  # fmt: skip


@needs_onnx
@pytest.mark.parametrize(("why", "nodes"), LACKS)
def test_operators_that_the_runtime_lacks(why, nodes):
    made = graph(
        *nodes, w=W, w4=random(2, 4, 1, 1), b3=random(1, 3, 1, 1), b4=random(1, 4, 1, 1),
        low=np.float32(0), high=np.float32(6), t=random(3, 3), g=random(6, 1, 3, 3),
        g4=random(4, 1, 3, 3),
        g2=random(4, 2, 1, 1), oblong=random(4, 3, 3, 1), line=random(4, 3, 3),
        sizes=np.array([-1, 90]), **norm(4),
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"the sparse runtime has no operator {why}") as refused:
        from_onnx.convert(made)
    assert "export as onnx or paddle" in str(refused.value)


@needs_onnx
def test_shapes_are_computed_at_once():
    nodes = [  # as paddle2onnx 1.3 writes a flattening
        ("GlobalAveragePool", "x", "p", {}), ("Shape", "p", "s", {}),
        ("Slice", "s zero one", "batch", {}), ("Concat", "batch rest", "sizes", {"axis": 0}),
        ("Reshape", "p sizes", "f", {}), ("MatMul", "f t", "y", {}),
    ]  # fmt: skip
    t = random(3, 2)
    model = from_onnx.convert(
        graph(*nodes, t=t, zero=np.array([0]), one=np.array([1]), rest=np.array([-1]))
    )
    assert [op.kind for op in model.operators] == ["pool", "convolution"]
    assert (model.operators[1].weight == t.T).all()


@needs_onnx
def test_a_part_of_a_shape():
    sizes = {"start": 0, "end": 2}  # of the pooled [1, 3, 1, 1]
    nodes = [("GlobalAveragePool", "x", "p", {}), ("Shape", "p", "s", sizes),
             ("Reshape", "p s", "f", {}), ("MatMul", "f t", "y", {})]  # fmt: skip
    converter = from_onnx._Converter(graph(*nodes, t=random(3, 2)))
    converter.model()
    assert converter.constants["s"].tolist() == [1, 3]


@needs_onnx
def test_a_result_that_is_an_output_as_well_is_not_folded():
    made = graph(CONV, ("Relu", "c", "y", {}), outputs=["c"], w=W)
    with pytest.raises(ValueError, match="no operator Relu there"):
        from_onnx.convert(made)


@needs_onnx
@pytest.mark.parametrize("outputs", [["c"], ["x"], ["w4"], ["y", "p"], ["p", "y"]])
def test_other_outputs_than_the_last(outputs):
    made = graph(CONV, ("Conv", "c w4", "y", {}), ("GlobalAveragePool", "y", "p", {}),
                 outputs=outputs, w=W, w4=random(2, 4, 1, 1))  # fmt: skip
    with pytest.raises(ValueError, match="gives one result, that of the last operator"):
        from_onnx.convert(made)


@needs_onnx
@pytest.mark.parametrize("shape", [("h", 6, 5), (3,), (3, 6, "w")])
def test_a_graph_for_pictures_of_any_size_is_not_written(shape, path):
    converted = from_onnx.convert(graph(CONV, shape=shape, w=W))
    with pytest.raises(ValueError, match="three whole numbers"):
        model_file.write(converted, path)


@needs_onnx
def test_branches_are_not_written(path):
    made = graph(CONV, ("Conv", "x w", "y", {}), w=W)
    with pytest.raises(ValueError, match=r"operator 1 \(convolution\) takes the results \[0\]"):
        model_file.write(from_onnx.convert(made), path)
