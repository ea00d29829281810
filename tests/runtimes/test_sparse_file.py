"""The files of the sparse runtime, and damaged ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from sparse_files import assert_same_model, properties, refusal, row, small
from sparse_networks import (
    LAST,
    MEAN,
    assert_same_bits,
    convolution,
    depthwise,
    model,
    pictures,
    random_model,
)

from sparse_runtime import Network, model_file
from sparse_runtime.model_file import decode, encode
from sparse_runtime.operators import KINDS

VERSION_1 = Path(__file__).with_name("version_1.sparse")  # written before there was 2


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.sparse"


# Matrices


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
    assert {op.kind for op in small().operators} == KINDS.keys()
    assert_same_model(model_file.read(path), small())
    networks = [Network(source, 5, tune=False) for source in (path, small())]
    for left, right in zip(*(network(pictures(small())) for network in networks)):
        assert_same_bits(left, right)


@properties
@given(st.integers(0, 1 << 32))
def test_any_graph_comes_back(tmp_path_factory, seed):
    path = tmp_path_factory.getbasetemp() / "model.sparse"
    model_file.write(random_model(seed), path)
    assert_same_model(model_file.read(path), random_model(seed))


def test_a_file_of_version_1():
    def counted(rows: int, columns: int, step: int) -> np.ndarray:
        numbers = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
        return np.where(numbers % step, 0, numbers)

    wanted = model(
        (2, 5, 4), convolution(3, 3, 2, 1), depthwise(), convolution(60, activation="none"), MEAN,
        LAST,
    )  # fmt: skip
    weights = {0: counted(3, 18, 3), 1: counted(3, 9, 1), 2: counted(60, 3, 50),
               4: counted(10, 60, 2)}  # fmt: skip
    for number, weight in weights.items():
        wanted.operators[number].weight = weight
        wanted.operators[number].bias = np.arange(-1, len(weight) - 1, dtype=np.float32)
    assert_same_model(model_file.read(VERSION_1), wanted)


def test_arrays_of_any_strides_and_dtype(path):
    made = small()
    for op in made.operators:
        for name in op.ARRAYS:
            array = np.asfortranarray(getattr(op, name), np.float64)
            setattr(op, name, np.repeat(array, 2, axis=0)[::2])
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
    dense = sum(4 * op.weights() for op in made.operators)
    assert path.stat().st_size <= most * dense


def test_a_network_that_does_not_fit_is_not_written(path):
    made = small()
    made.operators[2].bias = made.operators[2].bias[1:]
    with pytest.raises(ValueError, match=r"weight has the shape \[60, 3\], not \[59, 3\]"):
        model_file.write(made, path)
    assert not path.exists()


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
    made = model((1, 2, 1), convolution(2, activation="none"), density=1)
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
