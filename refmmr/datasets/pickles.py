"""The batches of CIFAR-10 for Python, which are pickles, read without unpickling.

A pickle is a program for a small stack machine; some of its instructions import and call arbitrary
functions.  This reader runs only the harmless instructions: those that put text, numbers, lists,
dictionaries and tuples on the stack.  The four functions that make an array of bytes are recorded
by name; nothing is imported or called, and any other instruction or name is refused.  The result is
not copied, compared in depth or printed, so a small file cannot take much memory or time.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["read_batch"]

VALUES = {
    "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
    "BININT", "BININT1", "BININT2",
}  # fmt: skip
MAX_INSTRUCTIONS = 2**20
"""Largest number of instructions of a pickle; a batch of 10,000 images has about 60,000."""
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
NAMES = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
}


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names."""

    name: str


class Bytes:
    """The dtype of bytes."""


class Array:
    """An array of bytes, as the pickle describes it; `values` makes it."""

    state: tuple[Any, ...] = ()

    def values(self) -> np.ndarray:
        """The array itself; at most as large as the pickle."""
        _, shape, _, fortran, data = self.state
        if len(shape) != 2 or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError("an array that is not two-dimensional")
        content = data if isinstance(data, bytes) else data.encode("latin-1")
        if shape[0] * shape[1] != len(content):
            raise ValueError(f"{len(content)} bytes for an array of shape {shape}")
        array = np.frombuffer(content, np.uint8)
        return array.reshape(shape, order="F" if fortran else "C")


def read_batch(content: bytes, source: str) -> tuple[np.ndarray, list[int]]:
    """Read a pickled dictionary with an array of bytes, ``data``, and a list, ``labels``.

    Parameters
    ----------
    content : bytes
        The pickle, of protocol 2 or 3.
    source : str
        Name of the file, for errors.

    Returns
    -------
    data : ndarray of uint8, two-dimensional
    labels : list of int

    Raises
    ------
    ValueError
        For any other content.
    """
    try:
        found = _Reader().run(content)
        data, labels = found["data"], found["labels"]
        if not isinstance(data, Array) or type(labels) is not list:
            raise ValueError("other things than an array as data and a list as labels")
        if not all(type(label) is int for label in labels):
            raise ValueError("labels that are no integers")
        return data.values(), labels
    # pickletools, and a damaged program, can raise nearly any exception.
    except Exception as error:
        raise ValueError(
            f"{source}: expected a pickle of a dictionary with 'data' and 'labels', no code, got "
            f"one with {str(error) or type(error).__name__}; the binary version of CIFAR-10 is no "
            "pickle"
        ) from error


def _text(value: Any) -> str:
    if not isinstance(value, (str, bytes)):
        raise ValueError(f"a key of type {type(value).__name__}")
    return value if isinstance(value, str) else value.decode("latin-1")


class _Reader:
    """The stack machine, without the instructions that import or call."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> dict[str, Any]:
        for count, (op, arg, _) in enumerate(pickletools.genops(content)):
            if count > MAX_INSTRUCTIONS:
                raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions")
            if op.name in VALUES:
                self.stack.append(arg)
            elif op.name in CONSTANTS:
                self.stack.append(CONSTANTS[op.name])
            elif op.name in ACTIONS:
                ACTIONS[op.name](self, arg)
            elif op.name != "STOP":
                raise ValueError(f"the instruction {op.name}")
        found = self.stack.pop()
        if type(found) is not dict:
            raise ValueError(f"a {type(found).__name__} instead of a dictionary")
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def last(self, n: int) -> list[Any]:
        if len(self.stack) < n:
            raise ValueError("too few values")
        items = self.stack[len(self.stack) - n :]
        del self.stack[len(self.stack) - n :]
        return items

    def protocol(self, number: int) -> None:
        if number not in (2, 3):
            raise ValueError(f"protocol {number}")

    def name(self, full: str) -> None:
        if full not in NAMES:
            raise ValueError(f"the name {full[:80]!r}")
        self.stack.append(Name(NAMES[full]))

    def put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    def get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError(f"items for a {type(target).__name__}")
        target.extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError(f"keys for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_text(key)] = value

    def call(self, _: Any) -> None:
        function, args = self.last(2)
        if not isinstance(function, Name) or type(args) is not tuple:
            raise ValueError("a call of something that is no function")
        if function.name == "array" and args[:1] == (Name("ndarray"),):
            self.stack.append(Array())
        elif function.name == "dtype" and args[:1] in (("u1",), (b"u1",)):
            self.stack.append(Bytes())
        # Python 3 writes bytes for Python 2 in this form: as text, each byte a character.
        elif function.name == "encode" and len(args) == 2 and args[1] == "latin1":
            self.stack.append(_text(args[0]))
        else:
            raise ValueError(f"a call of {function.name} for something else than bytes")

    def build(self, _: Any) -> None:
        state = self.last(1)[0]
        target = self.stack[-1]
        if isinstance(target, Bytes):  # the byte order, which bytes do not have
            return
        if not isinstance(target, Array) or type(state) is not tuple or len(state) != 5:
            raise ValueError("a state for something else than an array")
        _, shape, dtype, _, data = state
        if type(shape) is not tuple or not isinstance(dtype, Bytes):
            raise ValueError("an array of something else than bytes")
        if not isinstance(data, (str, bytes)):
            raise ValueError("an array without its bytes")
        target.state = state


ACTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    "PROTO": _Reader.protocol,
    "MARK": _Reader.mark,
    "GLOBAL": _Reader.name,
    "REDUCE": _Reader.call,
    "BUILD": _Reader.build,
    "BINPUT": _Reader.put,
    "LONG_BINPUT": _Reader.put,
    "BINGET": _Reader.get,
    "LONG_BINGET": _Reader.get,
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.since_mark())),
    "TUPLE1": lambda reader, _: reader.push(tuple(reader.last(1))),
    "TUPLE2": lambda reader, _: reader.push(tuple(reader.last(2))),
    "TUPLE3": lambda reader, _: reader.push(tuple(reader.last(3))),
    "APPEND": lambda reader, _: reader.extend(reader.last(1)),
    "APPENDS": lambda reader, _: reader.extend(reader.since_mark()),
    "SETITEM": lambda reader, _: reader.update(reader.last(2)),
    "SETITEMS": lambda reader, _: reader.update(reader.since_mark()),
}
