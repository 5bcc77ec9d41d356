"""The bytes of ONNX files: sizes are checked before memory is allocated.

A small protobuf file can unpack to large objects: a message of two bytes in the file takes a few
hundred in memory.  So the messages are counted before they are parsed, and the shape that a tensor
declares is compared with the length of its data.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from refmmr._files import open_regular

__all__ = ["MAX_BYTES", "Tensors", "check_fields", "quote", "read_file", "refuse"]

MAX_BYTES = 2**30
"""Largest size in bytes of one file, and of all weights of its network."""
MAX_FIELDS = 2**18
"""Largest number of fields of all messages of one file, some 100 MB as objects; an array is one
field."""
MAX_DEPTH = 16
"""Largest depth of nested messages; a model without subgraphs needs 7."""
MAX_AXES = 8
"""Largest number of axes of a tensor; filters have 4, and the limit of NumPy is 64."""


class _Kind(NamedTuple):
    """How a type of numbers is stored."""

    code: str  # NumPy's name of it, little-endian
    field: str  # the field that holds it when raw_data does not
    field_code: str
    real: bool = False


# By the numbers of TensorProto.DataType, which never change.
KINDS = {
    1: _Kind("<f4", "float_data", "f4", real=True),
    6: _Kind("<i4", "int32_data", "i4"),
    7: _Kind("<i8", "int64_data", "i8"),
    9: _Kind("<u1", "int32_data", "i4"),  # bool
    10: _Kind("<f2", "int32_data", "i4", real=True),
    11: _Kind("<f8", "double_data", "f8", real=True),
    16: _Kind("<u2", "int32_data", "i4", real=True),  # bfloat16: the upper half of a float32
}


def quote(text: str) -> str:
    """A name out of a file, for an error of one line."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def refuse(source: str, where: str, message: str) -> NoReturn:
    """Raise the error that all readers raise."""
    raise ValueError(f"{source}: {where}: {message}")


def read_file(path: Path) -> bytes:
    """The content of a file of at most `MAX_BYTES`; protobuf itself reads up to 2 GiB."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{path}: expected at most {MAX_BYTES} bytes, got {size}")
        return file.read(size)


def check_fields(content: bytes, descriptor: Any, source: str) -> None:
    """Count the fields of a serialised message without parsing it; refuse one with too many.

    Parameters
    ----------
    content : bytes
    descriptor : google.protobuf.descriptor.Descriptor
        Descriptor of the message, which tells the fields that are messages themselves.
    source : str

    Raises
    ------
    ValueError
        For more than `MAX_FIELDS` fields, messages deeper than `MAX_DEPTH`, or damaged bytes.
    """
    counter = iter(range(MAX_FIELDS))
    try:
        _walk(content, 0, len(content), descriptor, MAX_DEPTH, counter)
    except ValueError as error:
        refuse(source, "file", f"expected an ONNX model, got {error}")


def _walk(
    content: bytes, start: int, stop: int, descriptor: Any, depth: int, counter: Iterator[int]
) -> None:
    if depth == 0:
        raise ValueError(f"messages nested deeper than {MAX_DEPTH}")
    fields = descriptor.fields_by_number
    while start < stop:
        if next(counter, None) is None:
            raise ValueError(f"more than {MAX_FIELDS} fields")
        key, start = _varint(content, start, stop)
        wire = key & 7
        if wire == 0:
            _, start = _varint(content, start, stop)
        elif wire in (1, 5):
            start += 8 if wire == 1 else 4
        elif wire == 2:
            size, start = _varint(content, start, stop)
            field = fields.get(key >> 3)
            if start + size > stop:
                raise ValueError("bytes that end too early")
            if field is not None and field.message_type is not None:
                _walk(content, start, start + size, field.message_type, depth - 1, counter)
            # Protobuf returns bytes for a string that is not UTF-8.
            elif field is not None and field.type == field.TYPE_STRING:
                _check_text(content[start : start + size])
            start += size
        else:
            raise ValueError("other bytes")
    if start > stop:
        raise ValueError("bytes that end too early")


def _check_text(text: bytes) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise ValueError("names that are not UTF-8") from error


def _varint(content: bytes, start: int, stop: int) -> tuple[int, int]:
    """A varint (seven bits a byte, lowest first), and the position behind it."""
    value = 0
    for shift, byte in enumerate(content[start : min(start + 10, stop)]):
        value |= (byte & 127) << 7 * shift
        if byte < 128:
            return value, start + shift + 1
    raise ValueError("a number that does not end")


class Tensors:
    """Reads the tensors of one file as arrays.

    Parameters
    ----------
    source : str
        Name of the file, for errors.
    folder : Path or None
        Folder of data that is not in the file itself; None to refuse such data.
    """

    def __init__(self, source: str, folder: Path | None) -> None:
        self.source = source
        self.folder = folder
        # Any number of layers can share weights, so a small file can hold a large network.
        self._left = MAX_BYTES

    def reals(self, tensor: Any, where: str) -> np.ndarray:
        """A tensor of real numbers: float32 (half precision too, which is exact) or float64."""
        array = self._array(tensor, where, real=True)
        if tensor.data_type == 16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(np.float64 if array.dtype.itemsize == 8 else np.float32)

    def integers(self, tensor: Any, where: str) -> np.ndarray:
        """A tensor of integers or bools, as int64."""
        return self._array(tensor, where, real=False).astype(np.int64)

    def _array(self, tensor: Any, where: str, real: bool) -> np.ndarray:
        kind = KINDS.get(tensor.data_type)
        if kind is None or kind.real != real:
            expected = "float16, bfloat16, float32 or float64" if real else "integers"
            refuse(
                self.source, where, f"expected {expected}, got data type {_name(tensor.data_type)}"
            )
        shape = self._shape(tensor, where)
        return self._data(tensor, kind, math.prod(shape), where).reshape(shape)

    def take(self, size: int, where: str) -> None:
        """Subtract the bytes of an array from those left."""
        self._left -= size
        if self._left < 0:
            refuse(
                self.source,
                where,
                f"expected at most {MAX_BYTES} bytes of weights in all layers, got more",
            )

    def _shape(self, tensor: Any, where: str) -> tuple[int, ...]:
        if len(tensor.dims) > MAX_AXES:
            refuse(self.source, where, f"expected at most {MAX_AXES} axes, got {len(tensor.dims)}")
        shape = tuple(tensor.dims)
        if any(side < 1 for side in shape):
            refuse(self.source, where, f"expected a shape of numbers above 0, got {shape}")
        return shape

    def _data(self, tensor: Any, kind: _Kind, count: int, where: str) -> np.ndarray:
        """The flat array of `count` numbers."""
        if tensor.HasField("segment"):
            refuse(self.source, where, "expected a whole tensor, got a segment")
        size = count * np.dtype(kind.code).itemsize
        stored = getattr(tensor, kind.field)
        raw = tensor.HasField("raw_data")
        external = tensor.data_location == 1
        if raw + bool(len(stored)) + external > 1:
            refuse(self.source, where, "expected data in one place, got it in two")
        if not (raw or external):
            if len(stored) != count:
                self._refuse_length(where, tensor, count, len(stored), "numbers")
            self.take(size, where)
            return self._narrow(np.fromiter(stored, kind.field_code, count), kind, where)
        content = self._external(tensor, size, where) if external else tensor.raw_data
        if len(content) != size:
            self._refuse_length(where, tensor, size, len(content), "bytes")
        if not external:
            self.take(size, where)
        return np.frombuffer(content, kind.code)

    def _narrow(self, numbers: np.ndarray, kind: _Kind, where: str) -> np.ndarray:
        """Numbers that are stored in a field wider than their type."""
        width = np.dtype(kind.code).itemsize
        if kind.field != "int32_data" or width == 4:
            return numbers
        if ((numbers < 0) | (numbers >= 256**width)).any():
            refuse(self.source, where, f"expected numbers of {width} bytes, got larger ones")
        return numbers.astype(f"<u{width}").view(kind.code)

    def _refuse_length(self, where: str, tensor: Any, size: int, got: int, what: str) -> NoReturn:
        shape = tuple(tensor.dims)
        refuse(self.source, where, f"expected {size} {what} for shape {shape}, got {got}")

    def _external(self, tensor: Any, size: int, where: str) -> bytes:
        """Data of a tensor in a file beside the model."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        if self.folder is None or not location:
            refuse(self.source, where, "expected its data in the model, got them in another file")
        offset = self._number(entries.get("offset", "0"), "offset", where)
        length = self._number(entries.get("length", str(size)), "length", where)
        if length != size:
            self._refuse_length(where, tensor, size, length, "bytes")
        self.take(size, where)
        try:
            folder = self.folder.resolve()
            path = (folder / location).resolve()
            inside = path.is_relative_to(folder) and not Path(location).is_absolute()
            if inside and not path.exists():
                raise FileNotFoundError(
                    f"{self.source}: {where}: expected its data in {path}, got no such file"
                )
            if not inside or ".." in Path(location).parts:
                raise ValueError("a path out of it")
            with open_regular(path) as file:
                available = os.fstat(file.fileno()).st_size - offset
                if available < size:
                    raise ValueError(f"{max(available, 0)} bytes from {offset} on, not {size}")
                file.seek(offset)
                return file.read(size)
        except FileNotFoundError:
            raise
        # Valid locations, and the errors for others, depend on the operating system.
        except (OSError, ValueError) as error:
            refuse(
                self.source,
                where,
                f"expected its data in a file in the folder of the model, got {quote(location)} "
                f"({error})",
            )

    def _number(self, text: str, name: str, where: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            refuse(
                self.source, where, f"expected an integer as {name} of its data, got {quote(text)}"
            )
        return int(text)


def _name(data_type: int) -> str:
    from onnx import TensorProto

    values = TensorProto.DataType.items()
    return next((name for name, number in values if number == data_type), str(data_type))
