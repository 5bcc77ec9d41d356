"""Arrays of .npz files that anybody may have written: never unpickled, and bounded in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

__all__ = ["read_arrays"]

BLOCK = 2**20
DEFLATE_MOST = 1032
"""Deflate makes no more than this many bytes of one."""


def read_arrays(
    path: Path, most_bytes: int, key: Callable[[str], str | None] = str
) -> dict[str, np.ndarray]:
    """The arrays of a file, compressed or not; checked before any memory is asked for.

    Parameters
    ----------
    path : Path
    most_bytes : int
        What all of them may take together.
    key : callable
        How an array of this name is called in the result; None for one that is not read.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    ValueError
        For a damaged file, one with objects, or with larger arrays.
    """
    found: dict[str, np.ndarray] = {}
    left = most_bytes
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                name = key(info.filename.removesuffix(".npy"))
                if name is None:
                    continue
                if name in found:
                    raise ValueError(f"{name} twice")
                left -= info.file_size
                if left < 0:
                    raise ValueError(f"arrays of more than {most_bytes} bytes")
                if info.file_size > DEFLATE_MOST * (info.compress_size + 1):
                    raise ValueError(f"{info.filename} with a false size")
                with archive.open(info) as member:
                    found[name] = _array(member, info)
    except FileNotFoundError:
        raise
    # Damaged bytes can make zipfile and NumPy raise nearly anything; all of it means one thing.
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path}: expected an .npz file without objects, got {text}") from error
    return found


def _array(member: IO[bytes], info: zipfile.ZipInfo) -> np.ndarray:
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{info.filename} compressed by method {info.compress_type}")
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{info.filename} of version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype.hasobject or dtype.kind not in "biufUS":
        raise ValueError(f"{info.filename} of dtype {dtype}")
    if not all(size >= 0 for size in shape):
        raise ValueError(f"{info.filename} of shape {shape}")
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if expected != info.file_size - member.tell():
        raise ValueError(f"{info.filename} of {info.file_size} bytes for shape {shape}")
    # Memory is touched only as the bytes come.
    content = np.empty(expected, np.uint8)
    for start in range(0, expected + 1, BLOCK):  # one read more, which checks the sum
        block = member.read(BLOCK)
        content[start : start + len(block)] = np.frombuffer(block, np.uint8)
    if member.read(1):
        raise ValueError(f"{info.filename} with bytes behind its end")
    if expected == 0:
        return np.empty(shape, dtype)
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")
