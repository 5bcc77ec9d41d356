"""Networks in .npz files: those of this library, and state dicts that others wrote."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

from refmmr import io
from refmmr._npz import read_arrays
from refmmr.interop.state_dicts import from_state_dict
from refmmr.network import Network

__all__ = ["read", "write"]

MOST_BYTES = 2**30
"""What all arrays of one file may take in memory."""


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
    return from_state_dict(read_arrays(path, MOST_BYTES), str(path), **options)


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
