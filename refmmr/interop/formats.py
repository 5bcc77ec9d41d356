"""The reader or writer of a file, chosen by its ending and checked against its first bytes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refmmr._files import open_regular

__all__ = ["FORMATS", "Format", "of_content", "of_ending", "reader", "writer"]


class Format(NamedTuple):
    """A kind of file that holds networks."""

    what: str
    module: str  # with functions read(path, **options) and, where networks can be written, write
    options: tuple[str, ...] = ()  # of read
    writable: bool = False


FORMATS: Mapping[str, Format] = {
    ".npz": Format(
        "an .npz archive", "refmmr.interop.npz_files", ("input_shape", "stride", "padding"), True
    ),
    ".onnx": Format("an ONNX model", "refmmr.interop.onnx_files", ("input_shape",), True),
    ".safetensors": Format(
        "a safetensors file", "refmmr.interop.safetensors_files",
        ("input_shape", "stride", "padding"), True,
    ),
    ".mat": Format(
        "a MATLAB file", "refmmr.interop.matlab", ("input_shape", "stride", "padding", "flatten")
    ),
}  # fmt: skip
"""Kinds of files by ending."""

PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
KERAS = (".h5", ".hdf5", ".keras")


def reader(path: Path, given: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that reads a file, once ending, content and options fit together."""
    if path.suffix.lower() in (*PICKLES, *KERAS):
        of_ending(path)  # raises, whatever is in the file: PyTorch's are zip archives too
    if path.is_dir():
        raise IsADirectoryError(f"path: expected a file, got the directory {path}")
    with open_regular(path) as file:
        start, size = file.read(16), os.fstat(file.fileno()).st_size
    found = of_content(start, size)
    try:
        ending = of_ending(path)
    except ValueError:
        if found is None:
            raise
        ending = found
    chosen = FORMATS[ending]
    if found not in (None, ending):
        raise ValueError(
            f"{path}: expected {chosen.what}, as its ending says, got {FORMATS[found].what}"
        )
    for name, value in given.items():
        if name not in chosen.options:
            raise ValueError(
                f"{name}: expected none for {chosen.what}, which contains it, got {value!r}"
            )
    read: Callable[..., Any] = importlib.import_module(chosen.module).read
    return read


def writer(path: Path) -> Callable[..., Any]:
    """The function that writes a file of this ending."""
    chosen = FORMATS[of_ending(path, writable=True)]
    write: Callable[..., Any] = importlib.import_module(chosen.module).write
    return write


def of_ending(path: Path, writable: bool = False) -> str:
    """The key of FORMATS for a path, or an error that lists the keys."""
    ending = path.suffix.lower()
    if ending in FORMATS and (FORMATS[ending].writable or not writable):
        return ending
    known = [key for key, value in FORMATS.items() if value.writable or not writable]
    hint = ""
    if ending in PICKLES:
        hint = (
            "; a pickle can run code: load it where you trust it and pass the module to "
            "refmmr.from_torch, or its state dict through safetensors"
        )
    elif ending in KERAS:
        hint = "; export the model to ONNX"
    raise ValueError(f"path: expected a file ending in {', '.join(known)}, got {str(path)!r}{hint}")


def of_content(start: bytes, size: int) -> str | None:
    """The key of FORMATS that the first 16 bytes of a file belong to, if any."""
    if start.startswith(b"PK\x03\x04"):
        return ".npz"
    if start.startswith((b"MATLAB 5.0 MAT", b"MATLAB 7.3 MAT")):
        return ".mat"
    # A safetensors file starts with the length of its JSON header.
    if start[8:9] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= size - 8:
        return ".safetensors"
    return None
