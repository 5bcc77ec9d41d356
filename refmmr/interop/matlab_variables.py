"""The variables of a MATLAB file of version 5 to 7 that are full real arrays.

`scipy.io.loadmat` trusts the bytes of a file, and damaged ones can crash the process.  This reader
checks every length against the bytes that are there before it uses it; variables of other classes
are named, not built.

The format, as MATLAB documents it: a header of 128 bytes, then elements.  An element is a tag of
type and length with its bytes; one of type 15 is another element compressed by zlib; one of type 14
is an array, which is a chain of elements itself: flags, dimensions, name, numbers.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from refmmr._files import read_regular

__all__ = ["MAX_BYTES", "read"]

MAX_BYTES = 2**30
"""Largest size in bytes of all unpacked elements of one file, and of all its arrays."""

HEADER = 128
"""Bytes before the first element."""
ARRAY, COMPRESSED = 14, 15
NAME, SIZES, FLAGS = 1, 5, 6
"""Types of elements."""

STORED = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
"""NumPy's names of the number types of elements; doubles may be stored as short integers."""

CLASSES = {
    1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single",
    8: "int8", 9: "uint8", 10: "int16", 11: "uint16", 12: "int32", 13: "uint32", 14: "int64",
    15: "uint64", 16: "function", 17: "opaque",
}  # fmt: skip
REAL = {"double": np.float64, "single": np.float32}
OPAQUE = 17
COMPLEX, LOGICAL = 0x800, 0x200


class _Element(NamedTuple):
    """A tag and the bytes after it."""

    kind: int
    data: bytes


class _DamagedError(Exception):
    """The bytes contradict each other."""


def read(path: Path) -> dict[str, np.ndarray | str]:
    """All variables by name: real arrays, and the name of the MATLAB class for others.

    Parameters
    ----------
    path : Path

    Returns
    -------
    dict of str to ndarray (float32 or float64) or str

    Raises
    ------
    ValueError
        For a damaged file, one of another version, or more than 1 GiB.
    """
    content = read_regular(path)
    if content.startswith((b"MATLAB 7.3 MAT", b"\x89HDF")):
        raise ValueError(
            f"{path}: expected a MATLAB file of version 5 to 7, got version 7.3 (HDF5); "
            "in MATLAB, save it with '-v7'"
        )
    order = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
    if not content.startswith(b"MATLAB 5.0 MAT") or order is None:
        raise ValueError(f"{path}: expected a MATLAB file of version 5 to 7, got something else")
    variables: dict[str, np.ndarray | str] = {}
    left = left_for_arrays = MAX_BYTES
    try:
        for element in _elements(content[HEADER:], order, padded=False):
            data = element.data
            if element.kind == COMPRESSED:
                unpacked = _inflated(data, left)
                left -= len(unpacked)
                element = next(_elements(unpacked, order, padded=False))
            if element.kind == ARRAY and element.data:
                name, value = _variable(element.data, order, left_for_arrays)
                variables[name] = value
                left_for_arrays -= value.nbytes if isinstance(value, np.ndarray) else 0
    except _DamagedError as error:
        raise ValueError(
            f"{path}: expected a whole MATLAB file, got a damaged one ({error})"
        ) from error
    return variables


def _elements(data: bytes, order: str, padded: bool = True) -> Iterator[_Element]:
    """The elements of a chain; inside arrays they are padded to multiples of 8 bytes."""
    at = 0
    while at < len(data):
        if at + 8 > len(data):
            raise _DamagedError("half a tag")
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # a short element: type and length in one word, then up to 4 bytes
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
            if size > 4:
                raise _DamagedError(f"{size} bytes in a place of 4")
        else:
            start, step = at + 8, 8 + size
        if start + size > len(data):
            raise _DamagedError(f"{size} bytes where {len(data) - start} are left")
        yield _Element(kind, data[start : start + size])
        at += step + (-step % 8 if padded else 0)


def _inflated(data: bytes, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        unpacked = inflater.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise _DamagedError(error) from error
    if len(unpacked) > max_bytes:
        raise _DamagedError(f"more than {MAX_BYTES} bytes unpacked")
    if not inflater.eof or not unpacked:
        raise _DamagedError("truncated")
    return unpacked


def _variable(data: bytes, order: str, max_bytes: int) -> tuple[str, np.ndarray | str]:
    """Name and value of an array element; the name of its class if it is not a real array."""
    parts = _elements(data, order)
    flags = _part(parts, FLAGS, 8)
    (word,) = struct.unpack_from(order + "I", flags)
    kind = CLASSES.get(word & 0xFF)
    if kind is None:
        raise _DamagedError(f"array class {word & 0xFF}")
    sizes = b"" if kind == CLASSES[OPAQUE] else _part(parts, SIZES, 8)
    name = _part(parts, NAME).decode("latin-1")
    if kind not in REAL:
        return name, kind
    if word & COMPLEX:
        return name, f"complex {kind}"
    if len(sizes) % 4:
        raise _DamagedError(f"dimensions of {len(sizes)} bytes")
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    stored = next(parts, None)
    if stored is None or stored.kind not in STORED:
        raise _DamagedError(f"no numbers in {name!r}")
    dtype = np.dtype(order + STORED[stored.kind])
    if min(shape) < 0 or math.prod(shape) * dtype.itemsize != len(stored.data):
        raise _DamagedError(f"{len(stored.data)} bytes for shape {shape} of {name!r}")
    # Doubles that are stored as bytes take eight times the memory.
    if math.prod(shape) * np.dtype(REAL[kind]).itemsize > max_bytes:
        raise _DamagedError(f"more than {MAX_BYTES} bytes of arrays")
    array = np.frombuffer(stored.data, dtype).reshape(shape, order="F")
    return name, array.astype(REAL[kind])


def _part(parts: Iterator[_Element], kind: int, min_bytes: int = 0) -> bytes:
    """The bytes of the next element, which must be of this type."""
    part = next(parts, None)
    if part is None or part.kind != kind or len(part.data) < min_bytes:
        raise _DamagedError("an array without flags, dimensions and name")
    return part.data
