"""Data sets of the tutorials and of the paper, each scaled to [0, 1]."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["NAMES", "Dataset", "load", "read_idx"]

NAMES = ("digits", "moons", "mnist", "fashion-mnist")

IDX_FILES = {
    "X_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "X_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
IDX_LARGEST = 2**30
"""Bytes an IDX file may unpack to; the largest of the data sets here is 47 MB."""


class Dataset(NamedTuple):
    """Training and test points with their classes."""

    name: str
    X_train: np.ndarray  # (n, d) or (n, channels, height, width), in [0, 1]
    y_train: np.ndarray  # (n,) of int
    X_test: np.ndarray
    y_test: np.ndarray

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.y_train.max()) + 1


def load(
    name: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    images: bool = False,
    dtype: DTypeLike = np.float64,
) -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name : {"digits", "moons", "mnist", "fashion-mnist"} or path-like
        ``digits``: scikit-learn's 1,797 digits of 8x8 pixels, a fixed stratified fifth as test.
        ``moons``: scikit-learn's two moons, 2-D, 2,000 points, half for the test.
        ``mnist``, ``fashion-mnist``: IDX files (gzip or not) in a folder of that name.
        Any other folder with IDX files of these names: its path.
    data : path-like, optional
        Folder that holds the folder ``mnist`` or ``fashion-mnist``; the environment variable
        ``REFMMR_DATA`` if not given.
    images : bool
        Shape (n, 1, height, width) instead of (n, height * width).
    dtype : {float64, float32}

    Returns
    -------
    Dataset
        Points in [0, 1] and classes.

    Raises
    ------
    ValueError
        For an unknown name, or a file that is damaged.
    FileNotFoundError
        Where a file is missing; it says which files to put where.

    Examples
    --------
    >>> from refmmr import datasets
    >>> datasets.load("digits").X_train.shape
    (1437, 64)
    """
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"dtype: expected float32 or float64, got {dtype!r}")
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name: expected a name or a folder, got {name!r}")
    if name not in NAMES and Path(name).is_dir():
        name, data = Path(name).resolve().name, Path(name).resolve().parent
        loader: Loader = _idx
    else:
        if name not in NAMES:
            raise ValueError(
                f"name: expected one of {', '.join(map(repr, NAMES))}, or a folder of IDX files, "
                f"got {str(name)!r}"
            )
        loader = _LOADERS[str(name)]
    name = str(name)
    X_train, y_train, X_test, y_test = loader(name, data)
    if images and X_train.ndim != 3:
        raise ValueError(f"images: expected a data set of images, got {name!r}")
    X_train, X_test = (
        X[:, None].astype(dtype) if images else X.reshape(len(X), -1).astype(dtype)
        for X in (X_train, X_test)
    )
    return Dataset(name, X_train, y_train, X_test, y_test)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of bytes, gzip or not, as MNIST comes in.

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
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else open(path, "rb") as file:
            content = file.read(IDX_LARGEST + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a gzip file, got a damaged one ({error})") from error
    if len(content) > IDX_LARGEST:
        raise ValueError(f"{path}: expected at most {IDX_LARGEST} bytes, got more")
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(f"{path}: expected an IDX file of bytes, got {content[:4]!r} at its start")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", content[3], offset=4))
    start, expected = 4 + 4 * content[3], int(np.prod(shape, dtype=object))
    if len(content) - start != expected:
        raise ValueError(f"{path}: expected {expected} bytes of data, got {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Loader = Callable[[str, str | os.PathLike[str] | None], Arrays]


def _digits(name: str, data: object) -> Arrays:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    X_train, X_test, y_train, y_test = train_test_split(
        digits.images / 16,
        digits.target,
        test_size=0.2,
        random_state=0,
        stratify=digits.target,
    )
    return X_train, y_train, X_test, y_test


def _moons(name: str, data: object) -> Arrays:
    from sklearn.datasets import make_moons

    X, y = make_moons(2000, noise=0.1, random_state=0)
    X = (X - X.min(axis=0)) / (X.max(axis=0) - X.min(axis=0))
    return X[:1000], y[:1000], X[1000:], y[1000:]


def _idx(name: str, data: str | os.PathLike[str] | None) -> Arrays:
    found = {part: read_idx(_find(name, data, file)) for part, file in IDX_FILES.items()}
    for half in ("train", "test"):
        X, y = found[f"X_{half}"], found[f"y_{half}"]
        if X.ndim != 3 or y.shape != (len(X),):
            raise ValueError(
                f"{name}: expected images (n, height, width) with labels (n,), "
                f"got {X.shape} with {y.shape}"
            )
    X_train, X_test = (found[f"X_{half}"].astype(np.float32) / 255 for half in ("train", "test"))
    y_train, y_test = (found[f"y_{half}"].astype(np.intp) for half in ("train", "test"))
    return X_train, y_train, X_test, y_test


def _find(name: str, data: str | os.PathLike[str] | None, file: str) -> Path:
    folder = data if data is not None else os.environ.get("REFMMR_DATA")
    if folder is None:
        raise FileNotFoundError(
            f"{name}: expected the environment variable REFMMR_DATA to name a folder "
            f"that holds {name}/ with {', '.join(IDX_FILES.values())} (each may end in .gz)"
        )
    for candidate in (Path(folder, name, file), Path(folder, name, file + ".gz")):
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{name}: expected {Path(folder, name, file)} (or .gz), found neither")


_LOADERS: dict[str, Loader] = {
    "digits": _digits,
    "moons": _moons,
    "mnist": _idx,
    "fashion-mnist": _idx,
}
