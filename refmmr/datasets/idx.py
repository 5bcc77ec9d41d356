"""IDX files of bytes, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from refmmr.datasets.arrays import Halves
from refmmr.datasets.files import read_bounded

__all__ = ["IDX_FILES", "find_idx", "read_idx", "read_idx_folder"]

IDX_FILES = {
    "X_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "X_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
MAX_IDX_BYTES = 2**30
"""Largest unpacked size of an IDX file in bytes; that of MNIST has 47 MB."""


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of bytes, compressed by gzip or not.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    ndarray of uint8

    Raises
    ------
    ValueError
        For a file that is truncated or not IDX.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "labels-idx1-ubyte"
    ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
    ...     read_idx(path)
    array([7, 2, 1], dtype=uint8)
    """
    path = Path(path)
    content = read_bounded(path, MAX_IDX_BYTES)
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path}: expected an IDX file of bytes, got {content[:4]!r} at its start")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", content[3], offset=4))
    start, expected = 4 + 4 * content[3], int(np.prod(shape, dtype=object))
    if len(content) - start != expected:
        raise ValueError(f"{path}: expected {expected} bytes of data, got {len(content) - start}")
    # NumPy has arrays of at most 64 axes.
    if len(shape) > 4:
        raise ValueError(f"{path}: expected at most 4 axes, got {len(shape)}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def read_idx_folder(folder: Path, name: str) -> Halves:
    """The two halves from a folder of four IDX files; images (n, height, width) of uint8."""
    found = {part: read_idx(find_idx(folder, name, file)) for part, file in IDX_FILES.items()}
    for half in ("train", "test"):
        X, y = found[f"X_{half}"], found[f"y_{half}"]
        if X.ndim != 3 or y.shape != (len(X),):
            raise ValueError(
                f"{name}: expected images (n, height, width) with labels (n,), "
                f"got {X.shape} with {y.shape}"
            )
    return Halves(found["X_train"], found["y_train"], found["X_test"], found["y_test"])


def find_idx(folder: Path, name: str, file: str) -> Path:
    """The path of an IDX file, gzip or not."""
    for candidate in (folder / file, folder / (file + ".gz")):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{name}: expected {folder / file} (or .gz), found neither")
