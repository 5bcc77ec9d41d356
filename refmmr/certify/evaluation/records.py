"""Records: one JSON line per point, written as soon as it is done, so that a run can be continued.

The first line identifies the computation.  Every other line is a point.  Lines are appended whole,
so a run that is killed leaves at most one incomplete line at the end, which the next run removes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from refmmr._files import read_regular
from refmmr.reference.network import Network

__all__ = ["Writer", "fingerprint", "read"]

FORMAT = "refmmr-records"
VERSION = 1
NAME = "records.jsonl"
"""Name of the file in a folder."""
SYNC = 1.0
"""Seconds between two calls of fsync: a power failure loses the points of at most this time."""


def place(out: str | os.PathLike[str]) -> Path:
    """The file of records: the path itself if it ends in .jsonl, else `NAME` in that folder."""
    path = Path(out)
    if path.suffix == ".jsonl":
        return path
    if path.suffix or path.is_file():
        raise ValueError(f"out: expected a folder or a file ending in .jsonl, got {str(path)!r}")
    return path / NAME


def fingerprint(net: Network, arrays: Mapping[str, Any], values: Mapping[str, Any]) -> dict:
    """Digests of the network and the arrays that a computation depends on, and plain values."""
    weights = hashlib.sha256(
        repr([(type(layer).__name__, *_shape(layer)) for layer in net.layers]).encode()
    )
    weights.update(repr(net.input_shape).encode())
    for W, b in net.parameters:
        weights.update(_digest(W).encode())
        weights.update(_digest(b).encode())
    marks = {"net": weights.hexdigest()[:32]}
    marks |= {name: _digest(array) for name, array in arrays.items()}
    return marks | {name: encode(value) for name, value in values.items()}


def _shape(layer: Any) -> tuple[Any, ...]:
    return getattr(layer, "stride", None), getattr(layer, "padding", None)


def _digest(array: Any) -> str:
    if array is None:
        return "none"
    array = np.ascontiguousarray(array)
    head = f"{array.dtype.str} {array.shape} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()[:32]


def encode(value: Any) -> Any:
    """A value for JSON: infinity becomes the string "inf", an array a base64 text."""
    if isinstance(value, np.ndarray):
        data = np.ascontiguousarray(value, dtype="<f8").tobytes()
        return {"shape": list(value.shape), "float64": base64.b64encode(data).decode()}
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    return value


def decode(record: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `encode` for the record of a point."""
    plain = dict(record)
    point = plain["point"]
    if type(point) is not int or point < 0:  # JSON's true is an int, too, and equal to 1
        raise ValueError(f"point {point!r}")
    for name in ("lower", "upper"):
        plain[name] = float(plain[name])
    if not 0 <= plain["lower"] <= plain["upper"]:
        raise ValueError(f"bounds {plain['lower']} and {plain['upper']}")
    packed = plain.get("adversarial")
    if packed is not None:
        data = np.frombuffer(base64.b64decode(packed["float64"]), "<f8")
        plain["adversarial"] = data.reshape(packed["shape"]).astype(np.float64)
    return plain


def read(out: str | os.PathLike[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read a file of records; a torn last line is left out.

    Parameters
    ----------
    out : path-like
        A folder or file that `refmmr.robust_error` wrote, complete or not.

    Returns
    -------
    header : dict
    records : list of dict
        One for each point, in the order in which they were done.

    Raises
    ------
    FileNotFoundError
    ValueError
        For a damaged file, or one of another format.
    """
    header, records, _ = _parse(place(out))
    return header, records


def _parse(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]], int]:
    """Header, records and the number of bytes of whole lines."""
    data = read_regular(path)
    whole = data.rfind(b"\n") + 1
    lines = data[:whole].splitlines()
    header: dict[str, Any] = {}
    records: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if number == 1:
                header = entry
                if header["format"] != FORMAT:
                    raise ValueError("another format")
                if header["version"] > VERSION:
                    raise ValueError("a newer version")
            else:
                record = decode(entry)
                records.setdefault(record["point"], record)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"out: expected records of refmmr in {path}, got a line {number} that is damaged "
                f"or something else ({error})"
            ) from error
    return header, list(records.values()), whole


class Writer:
    """Appends the records of one computation to a file; `done` are those that it already has.

    Parameters
    ----------
    out : path-like
        A folder, or a file ending in .jsonl.  It is created if it does not exist, continued if it
        belongs to the same computation.
    marks : mapping
        The `fingerprint`.
    extra : mapping
        Further entries of the header, which are not compared.

    Raises
    ------
    ValueError
        When the file belongs to another computation, or holds no records of refmmr.
    RuntimeError
        When another process is writing to it.
    """

    def __init__(
        self, out: str | os.PathLike[str], marks: Mapping[str, Any], extra: Mapping[str, Any]
    ) -> None:
        self.path = place(out)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            _lock(self._file, self.path)
            header, self.done, whole = _parse(self.path)
            if header:
                _compare(self.path, header.get("computation", {}), marks)
            elif os.fstat(self._file).st_size and not self._torn_header():
                raise ValueError(f"out: expected records of refmmr in {self.path}, got other data")
            os.ftruncate(self._file, whole)
            self._synced = time.monotonic()
            if not header:
                header = {"format": FORMAT, "version": VERSION, "computation": marks, **extra}
                self.write(header)
            self.header = header
        except BaseException:
            os.close(self._file)
            raise

    def _torn_header(self) -> bool:
        """Whether the file is the beginning of a header, from a run that was killed at once."""
        start, data = f'{{"format": "{FORMAT}"'.encode(), self.path.read_bytes()
        return b"\n" not in data and data[: len(start)] == start[: len(data)]

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line."""
        line = json.dumps(encode(record), allow_nan=False) + "\n"
        # One write with O_APPEND: lines of any length never mix, and only a kill tears one.
        data = line.encode()
        while data:
            data = data[os.write(self._file, data) :]
        if time.monotonic() - self._synced > SYNC:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def close(self) -> None:
        """Write all to the disk, and release the lock."""
        try:
            os.fsync(self._file)
        finally:
            os.close(self._file)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _lock(file: int, path: Path) -> None:
    """Lock a file, so that one run appends to it; the lock of a dead process is released."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise RuntimeError(f"out: another process is writing to {path}") from error


def _compare(path: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    there, here = (json.loads(json.dumps(encode(marks))) for marks in (there, here))
    differ = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if not differ:
        return
    texts = [
        f"{name}"
        if isinstance(here.get(name), str) and len(here[name]) == 32
        else f"{name} ({there.get(name)} there, {here.get(name)} here)"
        for name in differ
    ]
    raise ValueError(
        f"out: expected a new file, or one of the same computation to go on with; {path} was made "
        f"with another {', another '.join(texts)}"
    )
