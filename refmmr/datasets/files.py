"""Shared by the readers of files: bounded reading, and names that stay in their folder."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path, PureWindowsPath

from refmmr._files import open_regular

__all__ = ["inside", "read_bounded"]


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file, unpacked if it is a gzip file; at most `max_bytes`.

    Raises
    ------
    ValueError
        For a damaged gzip file, or more bytes.
    """
    try:
        with open_regular(path) as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            content = file.read(max_bytes + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a gzip file, got a damaged one ({error})") from error
    if len(content) > max_bytes:
        raise ValueError(f"{path}: expected at most {max_bytes} bytes, got more")
    return content


def inside(folder: Path, name: str, source: str) -> Path:
    """The path of a file that a table or an archive names, which must lie in the folder.

    Absolute paths, paths with ``..`` and links that lead out of the folder are refused.
    """
    # PureWindowsPath splits at both kinds of slash, and recognises drives.
    parts = PureWindowsPath(name)
    path = folder.joinpath(*parts.parts)
    if (
        "\0" in name
        or parts.anchor
        or ".." in parts.parts
        or not path.resolve().is_relative_to(folder.resolve())
    ):
        raise ValueError(f"{source}: expected names of files inside {folder}, got {name!r}")
    return path
