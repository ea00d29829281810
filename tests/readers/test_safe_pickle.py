from __future__ import annotations

import collections
import io
import os
import pickle

import numpy as np
import paddle
import pytest
from hostile import ARRAY, FLOAT, Reduced

from readers import safe_pickle

# {"data": uint8 [[1, 2, 3], [4, 5, 6]], "labels": [7, 3]} as Python 2 and its numpy write it.
PYTHON2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
    b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x02K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87"
    b"Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x06\x01\x02\x03\x04\x05"
    b"\x06tbU\x06labelsq\x08]q\x09(K\x07K\x03eu."
)


def loads(data: bytes, **kwargs):
    return safe_pickle.load(io.BytesIO(data), **kwargs)


def test_a_python2_batch():
    batch = loads(PYTHON2, encoding="bytes")
    assert batch.keys() == {b"data", b"labels"}
    assert batch[b"data"].dtype == np.uint8
    assert batch[b"data"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert batch[b"labels"] == [7, 3]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_plain_data_comes_back(protocol):
    data = {
        "none": None,
        "flags": [True, False],
        "numbers": (0, -1, 2**40, 0.1),
        "text": "aé\n",
        "bytes": [b"", b"\xff\x00"],
        "ordered": collections.OrderedDict(b=1, a=()),
        "f4": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.float16),
        "large": np.arange(2000, dtype=np.uint16),
        "none-dimensional": np.array(2.5),
        "scalar": np.float32(1.5),
        "flag": np.bool_(True),
    }
    read = loads(pickle.dumps(data, protocol))
    assert list(read) == list(data)
    for name, value in data.items():
        if isinstance(value, (np.ndarray, np.generic)):
            assert type(read[name]) is type(value)
            assert read[name].dtype == value.dtype
            assert np.array_equal(read[name], value)
        else:
            assert read[name] == value
    read["large"][0] = 9  # writable


@pytest.mark.parametrize("module", [b"numpy.core.", b"numpy._core."])
def test_numpy_1_and_2_name_their_functions_differently(module):
    data = pickle.dumps([np.float64(2), np.arange(3)], protocol=2)
    data = data.replace(b"numpy._core.", b"numpy.core.").replace(b"numpy.core.", module)
    number, array = loads(data)
    assert number == 2
    assert array.tolist() == [0, 1, 2]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, "posix.system"), (eval, "eval"), (getattr, "getattr"), (open, "io.open")],
)
def test_a_function_is_refused_by_name(protocol, function, name, tmp_path):
    if os.name == "nt" and function is os.system:
        name = "nt.system"
    victim = tmp_path / "victim"
    data = pickle.dumps(Reduced(function, (f"touch {victim}",)), protocol)
    with pytest.raises(ValueError, match=rf"^refused: the file asks for .*{name}.*, which no data"):
        loads(data)
    assert not victim.exists()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"cposix\nsystem\nX\x02\x00\x00\x00id\x85R.", "posix.system"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system"),
        (b"cbuiltins\ntuple.__class__\n.", "builtins.tuple.__class__"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        (b"cnumpy.testing\nrundocs\n.", "numpy.testing.rundocs"),
        (b"cnumpy\nload\n.", "numpy.load"),
        (b"ca\x1b[2Jb\nc\n.", r"a\\x1b\[2Jb.c"),  # no escape code reaches the terminal
        (b"(iposix\nsystem\n.", "opcode"),
        (b"Pan id\n.", "opcode"),
        (b"X\x01\x00\x00\x00aQ.", "opcode"),
        (b"cnumpy\nndarray\n)\x81.", "opcode"),
        (b"\x82\x01.", "opcode"),
        (b"]2.", "opcode"),
        (b"]]0.", "opcode"),
        (ARRAY + b"(K\x01K\x01\x85K\x07\x89C\x04abcdtb.", "something other than numbers"),
        (
            ARRAY + b"(K\x01K\x01\x85" + FLOAT + b"\x89X\x04\x00\x00\x00abcdtb.",  # a copy each
            "something other than numbers",
        ),
        (b"cnumpy.core.multiarray\nscalar\nX\x02\x00\x00\x00f4C\x04abcd\x86R.", "without data"),
        (b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".", "opcode"),
    ],
)
def test_an_opcode_or_a_name_that_no_data_needs(data, match):
    with pytest.raises(ValueError, match=f"^refused: .*{match}.*, which no data file needs$"):
        loads(data)


@pytest.mark.parametrize(
    "data",
    [
        ARRAY.replace(b"K\x00\x85", b"\x8a\x05\x00\xe4\x0b\x54\x02\x85") + b".",  # 10**10
        b"cnumpy\nndarray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85\x85R.",
        ARRAY + b"(K\x01\x8a\x05\x00\xe4\x0b\x54\x02\x85" + FLOAT + b"\x89C\x04abcdtb.",
        ARRAY + b"(K\x01J\xff\xff\xff\xffJ\xff\xff\xff\xff\x86" + FLOAT + b"\x89C\x04abcdtb.",
        ARRAY + b"(K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x86"
        + FLOAT + b"\x89C\x04abcdtb.",
        ARRAY + b"(K\x01K\x01\x85K\x07\x89C\x04abcdtb.",  # a dtype that is none
        ARRAY + b"(K\x01K\x01\x85" + FLOAT + b"\x89]K\x01atb.",  # a list as data
        b"cnumpy.core.multiarray\nscalar\n" + FLOAT + b"C\x08abcdefgh\x86R.",
        b"cnumpy.core.multiarray\nscalar\nX\x04\x00\x00\x008000C\x01a\x86R.",
        FLOAT + b"(K\x03X\x01\x00\x00\x00>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb.",
        FLOAT.replace(b"f4", b"O8") + b".",
        FLOAT.replace(b"\x02\x00\x00\x00f4", b"\x0a\x00\x00\x00V999999999") + b".",
        FLOAT.replace(b"X\x02\x00\x00\x00f4", b"]X\x02\x00\x00\x00f4a") + b".",
        pickle.dumps(np.array([{}])),
        pickle.dumps(np.array(["text"])),
        pickle.dumps(np.zeros(2, [("a", "f4"), ("b", "i4")])),
        b"cbuiltins\ntuple\nX\x01\x00\x00\x00a\x85R.",
        b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
        b"c_codecs\nencode\nC\x01aX\x06\x00\x00\x00latin1\x86R.",
        b"c_codecs\nencode\n}X\x01\x00\x00\x00aK\x01sb.",  # attributes set on a function
        b"cbuiltins\ntuple\n}X\x01\x00\x00\x00aK\x01sb.",
        b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsK\x01sb.",
        b"}](K\x01eK\x02s.",  # a list as key
        b"}K\x01K\x02s.",
        b"}(X\x01\x00\x00\x00au.",
        ARRAY + b"X\x01\x00\x00\x00aK\x01s.",
        b"\x80\x07.",
        b"",
        b".",
        b"e.",
        b"a.",
        b"R.",
        b"h\x05.",
        b"\xff",
        b"not a pickle",
        b"B\xff\xff\xff\x7fabc.",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"X\x02\x00\x00\x00\xff\xfe.",
    ],
)  # fmt: skip
def test_hostile_and_damaged_data_is_a_short_valueerror(data):
    with pytest.raises(
        ValueError, match=r"^(refused: |not a whole pickle of plain data).+$"
    ) as info:
        loads(data)
    assert len(str(info.value)) < 250
    assert "\n" not in str(info.value)


def test_a_dtype_keeps_nothing_of_the_state_that_the_file_gives_it():
    # flags 1: numpy would take the numbers for pointers to objects
    dtype = FLOAT + b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x01tb"
    array = loads(ARRAY + b"(K\x01K\x01\x85" + dtype + b"\x89C\x04\x00\x00\x80?tb.")
    assert array.tolist() == [1.0]
    assert array.dtype == np.float32
    assert not array.dtype.hasobject


def test_a_tuple_that_takes_for_ever_to_hash():
    nested = b")q\x00" + b"h\x00h\x00\x86q\x00" * 100  # 2**100 leaves
    for data in (b"}" + nested + b"K\x01s.", b"}(" + nested + b"K\x01u."):
        with pytest.raises(ValueError, match="a key that is not a string"):
            loads(b"\x80\x02" + data)


def test_the_same_text_is_encoded_once():
    text = b"X" + (10**6).to_bytes(4, "little") + b"a" * 10**6
    head = b"\x80\x02c_codecs\nencode\nq\x00X\x06\x00\x00\x00latin1q\x01" + text + b"q\x02]("
    many = loads(head + b"h\x00h\x02h\x01\x86R" * 10_000 + b"e.")
    assert len(many) == 10_000  # 10 GB if each were a copy
    assert many[0] is many[-1]


def test_too_many_opcodes(monkeypatch):
    monkeypatch.setattr(safe_pickle._Budget, "left", 1000)
    assert loads(b"\x80\x02]q\x00" + b"h\x00" * 996 + b".") == []
    with pytest.raises(ValueError, match="more than 2,000,000 opcodes"):
        loads(b"\x80\x02]q\x00" + b"h\x00" * 997 + b".")


def read_or_refused(data):
    try:
        return loads(data, encoding="bytes")
    except ValueError as error:
        return f"refused in {len(str(error).splitlines())} line"


@pytest.mark.parametrize(
    "whole", [pickle.dumps({"w": np.arange(3.0), "n": np.float32(1)}, protocol=4), PYTHON2]
)
def test_every_truncation_and_every_wrong_byte_is_a_valueerror_or_data(whole):
    for end in range(len(whole)):
        assert read_or_refused(whole[:end]) == "refused in 1 line"
    for at in range(len(whole)):
        for wrong in (0, whole[at] ^ 1, whole[at] ^ 0x80, ord("R"), ord("b")):
            read = read_or_refused(whole[:at] + bytes([wrong]) + whole[at + 1 :])
            assert not isinstance(read, str) or read == "refused in 1 line"


def test_a_fault_of_the_disk_is_not_taken_for_a_damaged_pickle():
    class Broken(io.BytesIO):
        def read(self, size=-1):
            raise OSError("input/output error")

    with pytest.raises(OSError, match="input/output"):
        safe_pickle.load(Broken())


def trained():
    model = paddle.nn.Sequential(paddle.nn.Conv2D(1, 2, 3), paddle.nn.BatchNorm2D(2))
    steps = paddle.optimizer.lr.PiecewiseDecay([1, 2], [0.5, 0.25, 0.125])
    warmup = paddle.optimizer.lr.LinearWarmup(steps, 2, 0.0, 0.5)
    opt = paddle.optimizer.Momentum(warmup, 0.9, parameters=model.parameters())
    model(paddle.ones([1, 1, 5, 5])).sum().backward()
    opt.step()
    warmup.step()
    return model, opt


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_paddle_state_dicts(protocol, tmp_path):
    model, opt = trained()
    for state in (model.state_dict(), opt.state_dict()):
        path = str(tmp_path / "state")
        paddle.save(state, path, protocol=protocol)
        read = safe_pickle.load_paddle_state(path)
        assert read.keys() == state.keys()
        for name, value in state.items():
            if name == "LR_Scheduler":
                assert read[name] == value
                assert read[name]["last_lr"] == 0.25
            else:
                assert type(read[name]) is np.ndarray
                assert read[name].dtype == np.float32
                assert np.array_equal(read[name], value.numpy())


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_in_nested_dicts_lose_their_parameter_name(protocol, tmp_path):
    weight = paddle.nn.Linear(2, 1).weight
    state = {"model": {"w": weight, "pair": ("a", 1)}, "epoch": 3}
    paddle.save(state, str(tmp_path / "all"), protocol=protocol)
    read = safe_pickle.load_paddle_state(tmp_path / "all")
    assert read.keys() == {"model", "epoch"}
    assert np.array_equal(read["model"].pop("w"), weight.numpy())
    assert read == {"model": {"pair": ("a", 1)}, "epoch": 3}


def test_paddle_state_errors_name_the_file(tmp_path):
    path = tmp_path / "x.pdparams"
    for content, match in [
        (pickle.dumps([1]), "not a state dict"),
        (pickle.dumps({"a": Reduced(eval, ("1",))}), "refused: the file asks for builtins.eval"),
        (pickle.dumps({"UnpackBigParamInfor@@": {}}), "protocol=4"),
        (b"", "whole pickle"),
    ]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.pdparams: .*{match}"):
            safe_pickle.load_paddle_state(path)
    with pytest.raises(FileNotFoundError, match="missing"):
        safe_pickle.load_paddle_state(tmp_path / "missing")


def test_dicts_in_a_loop_or_nested_without_end(tmp_path):
    loop = {"w": ("name", np.zeros(1))}
    loop["again"] = loop
    deep = tmp_path / "deep"
    with open(tmp_path / "loop", "wb") as file:
        pickle.dump(loop, file)
    deep.write_bytes(b"\x80\x02" + b"}X\x01\x00\x00\x00a" * 50_000 + b"}" + b"s" * 50_000 + b".")
    assert type(safe_pickle.load_paddle_state(tmp_path / "loop")["w"]) is np.ndarray
    assert list(safe_pickle.load_paddle_state(deep)) == ["a"]
