"""Networks in .npz files: those of this library, and state dicts that others wrote."""

from __future__ import annotations

import struct
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from refmmr import io
from refmmr.interop.state_dicts import from_state_dict
from refmmr.network import Network

__all__ = ["arrays", "read", "write"]

MOST_BYTES = 2**30
"""What all arrays of one file may take in memory."""
HEADER = 2**16
"""Bytes that hold the header of any array."""


def read(path: Path, **options: Any) -> Network:
    """Read a network of this library's format, or a state dict that `numpy.savez` wrote.

    Parameters
    ----------
    path : Path
    **options
        For a state dict, see `refmmr.interop.state_dicts.from_state_dict`.

    Returns
    -------
    Network

    Raises
    ------
    ValueError
        For a damaged file, objects in it, more than 1 GiB of arrays, or no network.
    """
    if not _foreign(path):
        if options:
            raise ValueError(
                f"{next(iter(options))}: expected none for {path}, which says it itself"
            )
        return io.read_own(path)
    return from_state_dict(arrays(path), str(path), **options)


def write(net: Network, path: Path) -> None:
    """Write a network in this library's format."""
    io.write_own(net, path)


def _foreign(path: Path) -> bool:
    """Whether this is an archive without the header of this library."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "format.npy" not in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return False  # damaged: the reader of our own format says how


def arrays(path: Path, most_bytes: int = MOST_BYTES) -> dict[str, np.ndarray]:
    """All arrays of an .npz file, compressed or not; never unpickles, never takes more memory.

    The headers tell how large the arrays are before any of them is unpacked.

    Parameters
    ----------
    path : Path
    most_bytes : int
        Refuse files with larger arrays, in all.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    ValueError
        For a damaged file, one with objects, or with larger arrays.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            sizes = [_size(archive, info) for info in archive.filelist]
            if sum(sizes) > most_bytes:
                raise ValueError(f"{sum(sizes)} bytes of arrays, more than {most_bytes}")
            return {
                info.filename.removesuffix(".npy"): _array(archive, info, size)
                for info, size in zip(archive.filelist, sizes, strict=True)
            }
    # Damaged bytes can make zipfile and NumPy raise nearly anything; all of it means one thing.
    except Exception as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path}: expected an .npz file without objects, got {text}") from error


def _size(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Bytes of one array with its header, as its own header tells."""
    with archive.open(info) as member:
        stream = BytesIO(member.read(HEADER))
    version = np.lib.format.read_magic(stream)
    header = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError(f"objects in {info.filename!r}")
    count = 1
    for side in shape:
        if side < 0:
            raise ValueError(f"shape {shape} of {info.filename!r}")
        count *= side
    return stream.tell() + count * dtype.itemsize


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int) -> np.ndarray:
    with archive.open(info) as member:
        packed = member.read(size)
        if len(packed) != size or member.read(1):
            raise ValueError(f"another length than its header says in {info.filename!r}")
    return np.lib.format.read_array(BytesIO(packed), allow_pickle=False)
