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
from sparse_networks import LAST, MEAN, convolution, depthwise, model, pool

from sparse_runtime import model_file
from sparse_runtime.model_file import Model, shapes
from sparse_runtime.operators import Convolution, Mean


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


@pytest.mark.parametrize("version", ["3", "", "2.0", "02", "x" * 100_000, "3\n\x1b[2J"], ids=shown)
def test_another_version(version, path):
    forge(path, version=version)
    assert "it has version " in refusal(path)
    if version == "3":
        assert refusal(path).endswith("it has version 3, this program reads 1 and 2")


def test_what_version_1_did_not_know(path):
    forge(path, version="1")
    assert "it is damaged" in refusal(path)


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
NO_TEXTS = ["", None, 1, True, [], {}, "x" * 100_000, "\n\x1b[2J"]
FIELDS = {  # of operator 0
    "kind": ["Convolution", "depthwise", "pool", ["convolution"], *NO_TEXTS],
    "inputs": [[], [1], [-1], [0, 0], [0.0], [False], ["0"], [[0]], 0, None, "0", {}, {"0": 0},
               [10**30], [0] * 100_000],
    "kernel": [[], [3], [3, 3, 3], [2, 3], [129, 3], [0, 3], 3, "33", *[[3, n] for n in NUMBERS]],
    "stride": [[], [2], [2, 2, 2], [0, 1], [129, 1], 2, "22", *[[2, n] for n in NUMBERS]],
    "padding": [[], [1, 1], [1] * 5, [1, 1, 1, 3], 1, *[[n, 1, 1, 1] for n in NUMBERS]],
    "groups": [0, 2, 3, *NUMBERS],
    "activation": ["ReLU", "tanh", ["relu"], *NO_TEXTS],
    "slope": [0, 10**400, *NO_INTEGERS[3:], None],
    "columns": [0, 1, 17, 19, 36, -18, 1 << 24, *NUMBERS],
    "weight": [None, [], [[1.0]], "x"],
    "bias": [None, [], [1.0], "x"],
    "dilation": [1],
    "x" * 100_000: [1],
    "\n\x1b[2J": [1],
}  # fmt: skip


def changed(number: int, **fields):
    return lambda network, tensors: network["operators"][number].update(fields)


@pytest.mark.parametrize("field", list(FIELDS), ids=shown)
def test_an_operator_with_another(field, path):
    for value in FIELDS[field]:
        forge(path, changed(0, **{field: value}))
        refusal(path)


@pytest.mark.parametrize("field", ["kind", "inputs"])
def test_an_operator_without(field, path):
    forge(path, lambda network, tensors: network["operators"][0].pop(field))
    assert field in refusal(path)


@pytest.mark.parametrize(
    ("number", "field", "values"),
    [
        (1, "kernel", [[3, 2], [1, 9]]),
        # Without weights of its own there is nothing to compare these with.
        (3, "kernel", [3, [3, 3], 10**30]),
        (3, "activation", ["none", "relu"]),
        (3, "bias", [[1.0]]),
        (5, "groups", [7, 60, 120]),
        (6, "inputs", [[6], [3, 4], [4, 6], [3, 6, 6], [3, 7], [6, 15]]),
        (7, "inputs", [[7], [4, 7], [7, 0], [7, 5], [7, 4, 4]]),
        (8, "inputs", [[], [8, 8], [9]]),
        (9, "kernel", [[7, 2], [1, 2], [3, 1 << 40]]),
        (10, "padding", [[3, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 1 << 40]]),
        (11, "inputs", [[], [10, 9], [0, 10], [12], [10] * 1100, [10] * 100_000]),
        (13, "factor", [0, 65, *NUMBERS]),
        (14, "inputs", [[13, 13]]),
    ],
)
def test_operators_that_do_not_fit(number, field, values, path):
    for value in values:
        forge(path, changed(number, **{field: value}))
        assert f"operator {number} " in refusal(path)


@pytest.mark.parametrize("outputs", [[], [0], [16], [10**30], 1, "5", *[[n] for n in NUMBERS[5:]],
                                     [1] * 4097], ids=shown)  # fmt: skip
def test_outputs_that_are_none(outputs, path):
    forge(path, lambda network, tensors: network.update(outputs=outputs))
    refusal(path)


@pytest.mark.parametrize("pictures", [1, "5", [None], [1.0], [1] * 4097], ids=shown)
def test_outputs_that_are_pictures_by_a_wrong_list(pictures, path):
    forge(path, lambda network, tensors: network.update(pictures=pictures))
    assert "its outputs are not a list of results" in refusal(path)


@pytest.mark.parametrize(
    "grow",
    [lambda n: {"kind": "upsample", "inputs": [n], "factor": 64},
     lambda n: {"kind": "concatenation", "inputs": [n, n]},
     lambda n: {"kind": "concatenation", "inputs": [n] * 10_000}],
)  # fmt: skip
def test_results_that_grow(grow, path):
    def change(network, tensors):
        network["operators"] += [grow(number) for number in range(14, 40)]

    forge(path, change)
    assert "is more than this runtime takes" in refusal(path)


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
    forge(path, lambda network, tensors: network["operators"].insert(0, network["operators"][1]))
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
    "8.scale": [None, np.ones(0, F), np.ones(59, F), np.ones((60, 1), F), np.ones(60, np.float64)],
    "8.shift": [None, np.ones(0, F), np.ones(61, F), np.ones((60, 1), F), np.ones(60, np.int32)],
    "12.channels": [
        None, np.zeros(0, np.uint16), np.full(1, 180, np.uint16), np.full(9, 65_535, np.uint16),
        np.zeros((1, 2), np.uint16), np.zeros((), np.uint16), np.zeros(2, F), np.zeros(2, U),
        np.zeros(2, np.int16), np.zeros(2, np.int64), np.zeros(1 << 16, np.uint16),
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
    assert "[3, 33423360], not [3, 18]" in refusal(path)


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
        convolution(6, 4, 2, 3), convolution(7, 1, 2), MEAN, LAST,
        depthwise(kernel=[1, 7], inputs=[2]), pool("max_pool", [3, 2], [2, 3], [1, 0, 2, 1]),
        {"kind": "concatenation", "inputs": [-1, -1, -1]}, {"kind": "channels", "channels": [3]},
        {"kind": "upsample", "factor": 3}, {"kind": "flatten"},
    )  # fmt: skip
    assert shapes(made) == [
        (3, 33, 31), (8, 17, 16), (8, 9, 8), (9, 9, 8), (5, 5, 4), (6, 4, 4), (7, 2, 2), (7, 1, 1),
        (10, 1, 1), (8, 9, 8), (8, 5, 3), (24, 5, 3), (1, 5, 3), (1, 15, 9), (135, 1, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "shape",
    [(), (3, 7), (3, 7, 5, 1), (3, 7, 0), (3, -7, 5), (3, 7, 5.0), (True, 7, 5), (1 << 16, 7, 5)],
)
def test_impossible_pictures(shape):
    with pytest.raises(ValueError, match="three whole numbers from 1 to 65535, got") as refused:
        shapes(Model(shape, [Mean([0])], [1]))
    assert str(refused.value).endswith(f"got {shape}")


WINDOW = "possible are kernels and strides of 1 to 128, padding below the kernel"
C4, C5, D = convolution(4), convolution(5), depthwise()
ADD, MULTIPLY = ({"kind": kind, "inputs": [1, 2]} for kind in ("add", "multiply"))
REFUSED = [  # steps, the number of one and what is changed in it, message
    ((C4, C5), 0, {"inputs": [1]}, "0 (convolution) takes the results [1], not ones before it"),
    ((C4, C5), 1, {"inputs": [-1]}, "1 (convolution) takes the results [-1], not ones before it"),
    ((C4, C5), 1, {"inputs": [1, 1]}, "1 (convolution) takes 2 results"),
    ((C4, C4, ADD), 2, {"inputs": [1]}, "2 (add) takes 1 results"),
    ((C4, C5), 0, {"kernel": [1, 0]}, f"0 (convolution): kernel [1, 0], stride [1, 1], padding "
                                      f"[0, 0, 0, 0]; {WINDOW}"),
    ((C4, C5), 1, {"kernel": [129, 1]}, WINDOW),
    ((C4, C5), 0, {"kernel": [1]}, WINDOW),
    ((C4, C5), 0, {"stride": [129, 1]}, WINDOW),
    ((C4, C5), 0, {"stride": [1, 0]}, WINDOW),
    ((C4, D), 1, {"padding": [0, 0, 0, 3]}, f"padding [0, 0, 0, 3]; {WINDOW}"),
    ((C4, C5), 0, {"padding": [0, -1, 0, 0]}, WINDOW),
    ((C4, C5), 0, {"padding": [0, 0]}, WINDOW),
    ((C4, C5), 1, {"weight": np.zeros((5, 3))}, "weight has the shape [5, 3], not [5, 4]"),
    ((C4, C5), 0, {"weight": np.zeros(3)}, "weight has the shape [3], not [4, 3]"),
    ((C4, C5), 0, {"kernel": [2, 1]}, "weight has the shape [4, 3], not [4, 6]"),
    ((C4, C5), 0, {"bias": np.zeros(3)}, "weight has the shape [4, 3], not [3, 3]"),
    ((C4, C5), 0, {"bias": np.zeros((4, 1))}, "bias has the shape [4, 1], not [4]"),
    ((C4, C5), 1, {"groups": 2}, "2 groups of 4 channels, 5 behind it"),
    ((C5, C4), 1, {"groups": 2}, "2 groups of 5 channels, 4 behind it"),
    ((C4, C5), 0, {"activation": "tanh"}, "activation 'tanh', not none, relu, "),
    ((C4, D), 1, {"weight": np.zeros((4, 8))}, "weight has the shape [4, 8], not [4, 9]"),
    ((C4, D), 1, {"bias": np.zeros(3)}, "1 (depthwise): bias has the shape [3], not [4]"),
    ((C4,), 0, {"weight": np.zeros((0, 3)), "bias": np.zeros(0)}, "0 channels, not 1 to 65535"),
    ((convolution(1 << 16),), None, {}, "65536 channels, not 1 to 65535"),
    ((MEAN, convolution(4, 2)), None, {}, "1 (convolution): its pictures are 1x1, too small"),
    ((convolution(4, 6),), None, {}, "0 (convolution): its pictures are 7x5, too small"),
    ((pool("max_pool", [1, 6]),), None, {}, "0 (max_pool): its pictures are 7x5, too small"),
    ((C4, C5, ADD), None, {}, "results of (4, 7, 5) and (5, 7, 5) cannot be added"),
    ((C4, MEAN, ADD), None, {}, "results of (4, 7, 5) and (4, 1, 1) cannot be added"),
    ((C4, C5, MULTIPLY), None, {}, "(4, 7, 5) cannot be multiplied by (5, 7, 5)"),
    (({"kind": "scale"},), 0, {"shift": np.zeros(1)}, "shift has the shape [1], not [3]"),
    ((MEAN, {"kind": "concatenation", "inputs": [0, 1]}), None, {},
     "pictures of several sizes: (3, 7, 5), (3, 1, 1)"),
    (({"kind": "channels", "channels": [3]},), None, {}, "channels that an input of (3, 7, 5)"),
    (({"kind": "channels", "channels": []},), None, {}, "channels that an input of (3, 7, 5)"),
    (({"kind": "upsample", "factor": 65},), None, {}, "a factor of 65, not 1 to 64"),
    ((), None, {}, "no operators"),
]  # fmt: skip


@pytest.mark.parametrize(("steps", "number", "changed", "message"), REFUSED)
def test_what_does_not_fit(steps, number, changed, message):
    def checked() -> None:
        made = model((3, 7, 5), *steps)
        if number is not None:
            vars(made.operators[number]).update(changed)
        shapes(made)

    with pytest.raises(ValueError, match=re.escape(message)):
        checked()


@pytest.mark.parametrize("outputs", [[], [0], [3], [-1], [1, 3]])
def test_outputs_that_the_network_does_not_have(outputs):
    made = model((3, 7, 5), C4, C5)
    made.outputs = outputs
    with pytest.raises(ValueError, match=re.escape(f"it gives the results {outputs}, of 2")):
        shapes(made)


def test_weights_that_are_too_many_together():
    def step(number, channels, columns):
        zeros = np.broadcast_to(np.float32(0), (channels, columns))  # of no memory
        return Convolution([number], weight=zeros, bias=np.zeros(channels, np.float32))

    steps = [step(0, 2000, 50000), step(1, 50000, 2000), step(2, 2000, 50000)]
    assert len(shapes(Model((50000, 1, 1), steps[:2], [2]))) == 3
    with pytest.raises(ValueError, match=r"operator 2 .* more than 268435456 weights"):
        shapes(Model((50000, 1, 1), steps, [3]))


def test_pictures_that_are_too_large():
    def made(channels: int, steps: int) -> Model:
        enlarge = {"kind": "upsample", "factor": 64}
        return model((channels, 4, 4), *[enlarge] * steps)

    assert shapes(made(2, 2))[-1] == (2, 1 << 14, 1 << 14)
    message = "operator 1 (upsample): a result of (3, 16384, 16384) is more than this runtime takes"
    with pytest.raises(ValueError, match=re.escape(message)):
        shapes(made(3, 2))
    with pytest.raises(ValueError, match=r"an input of .* is more than this runtime takes"):
        shapes(Model((3, 1 << 14, 1 << 14), [Mean([0])], [1]))
