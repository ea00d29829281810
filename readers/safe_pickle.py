"""Reads a pickle as plain data: nothing that the file names is imported or called.

Admits dicts with string keys, lists, tuples, strings, numbers and numpy arrays of numbers: what
CIFAR-10 (Python 2) and paddle.save (protocols 2 to 4) hold. To admit only harmless names would not
do: BUILD hands the file's own state to numpy.dtype.__setstate__, and tuples nested through the memo
take for ever to hash. So this is the Unpickler written in Python, whose opcodes can be replaced.
"""

from __future__ import annotations

import pickle
from typing import BinaryIO

import numpy as np

_OPCODES = (  # left out: sets, classes, persistent ids, numbers as text, protocol 5, DUP and POP
    "PROTO FRAME STOP MARK GLOBAL STACK_GLOBAL REDUCE NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 "
    "LONG1 BINFLOAT BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES "
    "SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS "
    "EMPTY_DICT BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET"
)
_MAX_OPCODES = 2_000_000  # each may cost 100 bytes; a CIFAR-10 batch has 30,000, a tensor 28
_NUMBERS = "b1 i1 u1 i2 u2 i4 u4 i8 u8 f2 f4 f8 c8 c16"  # no objects, no records


def load(file: BinaryIO, encoding: str = "ASCII"):
    """The object pickled in an open file; `encoding="bytes"` for numpy data from Python 2.

    Raises:
        ValueError: the file asks for more than plain data, or is damaged. One line, to which
            the caller adds the file's name.
    """
    try:
        return _Unpickler(file, encoding=encoding).load()
    except OSError:
        raise
    except _Refusal as refusal:
        reason = f"refused: the file asks for {refusal}, which no data file needs"
    except Exception as error:  # a damaged file raises whatever its opcodes happen to raise
        reason = f"not a whole pickle of plain data ({str(error) or type(error).__name__})"
    raise ValueError(reason)


def load_paddle_state(path) -> dict:
    """The state dict that paddle.save wrote: name -> array, beside plain entries (LR_Scheduler).

    A tensor in a nested dict is saved as (parameter name, array); the array alone is kept.

    Raises:
        ValueError: as `load`, naming the file; or a tensor over 4 GB was saved in slices.
    """
    try:
        with open(path, "rb") as file:
            state = load(file)
        if type(state) is not dict:
            raise ValueError("not a state dict")
        if not all(type(key) is str for key in state):
            raise ValueError("a name that is not a text")
        if "UnpackBigParamInfor@@" in state:
            raise ValueError("holds a tensor in slices; save it with paddle.save(..., protocol=4)")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    state.pop("StructuredToParameterName@@", None)
    todo, seen = [state], {id(state)}
    while todo:  # no recursion: how deep the dicts nest, or whether in a loop, is the file's choice
        entries = todo.pop()
        for key, value in entries.items():
            if type(value) is dict and id(value) not in seen:
                seen.add(id(value))
                todo.append(value)
            elif type(value) is tuple and [type(v) for v in value[:3]] == [str, np.ndarray]:
                entries[key] = value[1]
    return state


class _Refusal(Exception):
    """What the file asks for."""


class _Budget(dict):
    left = _MAX_OPCODES

    def __getitem__(self, code: int):
        self.left -= 1
        if self.left < 0:
            raise _Refusal(f"more than {_MAX_OPCODES:,} opcodes")
        return super().__getitem__(code)


class _Unpickler(pickle._Unpickler):
    def __init__(self, file: BinaryIO, encoding: str):
        super().__init__(file, encoding=encoding)
        self.dispatch = _Budget(self.dispatch)
        self.encoded = {}  # each text once: a file may ask for the same one a million times

    def find_class(self, module: str, name: str):
        name = f"{module}.{name}"
        if name == "_codecs.encode":
            return self.encode
        if name not in _ADMITTED:
            raise _Refusal(ascii(name)[1:-1][:80])
        return _ADMITTED[name]

    def encode(self, text: str, codec: str) -> bytes:  # how protocol 2 writes bytes
        if type(text) is not str or codec != "latin1":
            raise _Refusal("a text encoding other than latin1")
        if text not in self.encoded:
            self.encoded[text] = text.encode("latin1")
        return self.encoded[text]

    def refuse(self):
        raise _Refusal("an opcode of sets, classes, persistent ids or other protocols")

    def set_items(self, items: list):
        if len(items) % 2 or not all(type(key) in (str, bytes) for key in items[::2]):
            raise _Refusal("a key that is not a string")
        self.stack[-1].update(zip(items[::2], items[1::2]))

    def load_setitem(self):
        self.set_items([self.stack.pop(-2), self.stack.pop()])

    def load_setitems(self):
        self.set_items(self.pop_mark())

    def load_build(self):
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, np.dtype):  # made whole by _dtype; only the byte order is left
            if state[1] not in ("<", "|", b"<", b"|"):
                raise _Refusal("numbers that are not little-endian")
        elif type(target) is np.ndarray:
            _, shape, dtype, fortran, data = state
            if not isinstance(dtype, np.dtype) or type(data) is not bytes:
                raise _Refusal("an array of something other than numbers in bytes")
            target.__setstate__((1, shape, dtype, bool(fortran), data))  # checks shape against data
        else:
            raise _Refusal("state in something that is not an array")

    dispatch = dict.fromkeys(pickle._Unpickler.dispatch, refuse)
    for _code in (getattr(pickle, name)[0] for name in _OPCODES.split()):
        dispatch[_code] = pickle._Unpickler.dispatch[_code]
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BUILD[0]] = load_build


def _ndarray():
    """Stands for the class numpy.ndarray, which is named and not called."""
    raise _Refusal("a call of numpy.ndarray")


def _array(subtype, shape: tuple, code: bytes) -> np.ndarray:
    if shape != (0,):  # numpy's own function allocates it
        raise _Refusal("an array without data")
    return np.empty(0, np.uint8)


def _dtype(code, align: bool, copy: bool) -> np.dtype:
    code = code.decode("ascii") if type(code) is bytes else code
    if type(code) is not str or code not in _NUMBERS.split():
        raise _Refusal("an array of objects, text or records")
    return np.dtype(code)


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    if not isinstance(dtype, np.dtype) or type(data) is not bytes:
        raise _Refusal("a number without data")
    (number,) = np.frombuffer(data, dtype)
    return number


def _tuple(items: tuple) -> tuple:  # how paddle.save writes a tensor: tuple((name, array))
    if type(items) is not tuple:
        raise _Refusal("a tuple of something else")
    return items


_ADMITTED = {
    "collections.OrderedDict": lambda: {},  # a plain dict keeps the order and has no attributes
    "builtins.tuple": _tuple,
    "__builtin__.tuple": _tuple,  # in protocol 2
    "__builtin__.bytes": lambda: b"",  # in protocol 2
    "numpy.ndarray": _ndarray,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray._reconstruct": _array,  # numpy 2
    "numpy._core.multiarray.scalar": _scalar,
}
