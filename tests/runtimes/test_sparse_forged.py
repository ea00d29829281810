"""Files of the sparse runtime made to do harm, and networks that do not fit."""

from __future__ import annotations

import json
import re
import struct

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from sparse_files import assert_same_model, refusal, small
from sparse_networks import LAST, POOL, convolution, depthwise, model

from sparse_runtime import model_file
from sparse_runtime.model_file import Model, Operator, shapes


def shown(value) -> str:
    return repr(value)[:20]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.sparse"


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
