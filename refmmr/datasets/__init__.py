"""Data sets: those of the tutorials and of the paper, files in common formats, and arrays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from refmmr.datasets.arrays import Dataset, Halves, from_arrays, scaled, split
from refmmr.datasets.cifar import is_cifar, read_cifar
from refmmr.datasets.downloads import locate
from refmmr.datasets.gtsrb import is_gtsrb, read_gtsrb
from refmmr.datasets.idx import IDX_FILES, read_idx, read_idx_folder
from refmmr.datasets.tables import read_csv, read_npz

__all__ = ["IDX_FILES", "NAMES", "Dataset", "from_arrays", "load", "read_idx"]

NAMES = ("digits", "moons", "mnist", "fashion-mnist", "cifar10", "gtsrb")
ENDINGS = (".tar.gz", ".tgz", ".npz", ".csv")


def load(
    name: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    *,
    images: bool = False,
    dtype: DTypeLike = np.float64,
    download: bool = True,
    target: str | None = None,
    classes: Iterable[Any] | None = None,
    box: Any = (0, 1),
    test_size: float = 0.2,
    rng: int | np.random.Generator | None = 0,
    crop: bool = False,
    progress: bool | None = None,
) -> Dataset:
    """Load a data set by name, or from a file or folder.

    Pixels stored as bytes are divided by 255.

    Parameters
    ----------
    name : {"digits", "moons", "mnist", "fashion-mnist", "cifar10", "gtsrb"} or path-like
        ``digits``: scikit-learn's 1,797 digits of 8x8 pixels, a stratified fifth for the test.
        ``moons``: scikit-learn's two moons, 2-D, 2,000 points, half for the test.
        ``mnist``, ``fashion-mnist``: 70,000 images of 28x28 pixels.
        ``cifar10``: 60,000 images of 3x32x32 pixels.
        ``gtsrb``: 51,839 images of traffic signs, resized to 3x32x32 pixels.

        Or the path of other data:

        - a folder of four IDX files, compressed by gzip or not, the format of MNIST;
        - a folder or ``.tar.gz`` archive of CIFAR-10, the binary version or the one for Python
          (which is read without unpickling);
        - a folder of GTSRB, unpacked from its archives, or with ``Train.csv`` and ``Test.csv``;
        - an ``.npz`` file with ``X`` and ``y``, or ``X_train``, ``y_train``, ``X_test`` and
          ``y_test`` (in upper or lower case), images as (n, height, width) or (n, channels, height,
          width);
        - a ``.csv`` table of numbers with a header and a column of labels.
    data : path-like, optional
        Folder that holds ``mnist/``, ``fashion-mnist/``, ``cifar10/`` or ``gtsrb/``.  If not given,
        the folder that the environment variable ``REFMMR_DATA`` names, then the cache.
    images : bool
        Shape (n, channels, height, width) instead of (n, channels * height * width).
    dtype : {float64, float32}
    download : bool
        If `data` is not given and the data set is not on this computer, download it into the cache
        (``REFMMR_CACHE``, or the cache folder of the system); needs pooch.
    target : str, optional
        For a table: the column of the labels; the last one if not given.
    classes, box, test_size, rng
        For ``.npz`` files and tables, as for `from_arrays`; without a test half in the file a part
        is split off.  Images of bytes are divided by 255 only if `box` is [0, 1].
    crop : bool
        For GTSRB: only the sign instead of the whole image, which has a margin of a tenth.
    progress : bool, optional
        Show a progress bar for downloads and images; if not given, on a terminal only.

    Returns
    -------
    Dataset
        Points in [0, 1], or in `box`, and classes.

    Raises
    ------
    ValueError
        For an unknown name, or a file that is damaged.
    FileNotFoundError
        If a file is missing; the message names the files and their folder.

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
    table = {
        "classes": classes, "box": box, "test_size": test_size, "rng": rng
    }  # fmt: skip
    path = _path(name, data, download, progress)
    known = name in NAMES
    ending = "" if known or path is None or path.is_dir() else path.suffix
    if target is not None and ending != ".csv":
        raise ValueError(f"target: expected it for a .csv table only, got {target!r}")
    source = str(name) if known or path is None else _stem(path)
    if crop and (path is None or ending in (".csv", ".npz")):
        raise ValueError(f"crop: expected it for GTSRB only, got it for {source!r}")
    if path is None:
        found = BUILT_IN[source]()
    elif ending == ".csv":
        found = read_csv(path, target, **table)
    elif ending == ".npz":
        found = read_npz(path, **table)
    else:
        found = _read(source, path, crop, progress)
    return _shaped(source, found, images, dtype)


def _path(
    name: str | os.PathLike[str],
    data: str | os.PathLike[str] | None,
    download: bool,
    progress: bool | None,
) -> Path | None:
    """The path of the data; None if it is built in."""
    if name in BUILT_IN:
        return None
    if name in NAMES:
        return locate(str(name), data, download, progress)
    path = Path(name).resolve()
    if path.is_dir() or (path.is_file() and path.name.endswith(ENDINGS)):
        return path
    if path.name.endswith(ENDINGS) and not path.exists():
        raise FileNotFoundError(f"name: expected a file, found no {path}")
    raise ValueError(
        f"name: expected one of {', '.join(map(repr, NAMES))}, or a folder of IDX files, of "
        f"CIFAR-10 or GTSRB, or a file ending in {', '.join(ENDINGS)}, got {str(name)!r}"
    )


def _read(name: str, path: Path, crop: bool, progress: bool | None) -> Halves:
    """Read a folder or an archive in the format of its content, else in that of its name."""
    kind = name
    if path.is_file() or is_cifar(path):
        kind = "cifar10"
    elif is_gtsrb(path):
        kind = "gtsrb"
    if crop and kind != "gtsrb":
        raise ValueError(f"crop: expected it for GTSRB only, got it for {name!r}")
    if kind == "gtsrb":
        return read_gtsrb(path, name, crop, progress)
    return read_cifar(path) if kind == "cifar10" else read_idx_folder(path, name)


def _stem(path: Path) -> str:
    """The name of a folder, or of a file without its ending."""
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), "")
    return path.name if path.is_dir() else path.name.removesuffix(ending)


def _digits() -> Halves:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return split(digits.images / 16, digits.target, test_size=0.2, rng=0)


def _moons() -> Halves:
    from sklearn.datasets import make_moons

    X, y = make_moons(2000, noise=0.1, random_state=0)
    X = (X - X.min(axis=0)) / (X.max(axis=0) - X.min(axis=0))
    return Halves(X[:1000], y[:1000], X[1000:], y[1000:])


BUILT_IN: dict[str, Callable[[], Halves]] = {"digits": _digits, "moons": _moons}


def _shaped(name: str, found: Halves, images: bool, dtype: DTypeLike) -> Dataset:
    """The data set in the given shape and dtype."""
    if images and found.X_train.ndim == 2:
        raise ValueError(f"images: expected a data set of images, got {name!r}")
    if not len(found.X_train) or not len(found.X_test):
        raise ValueError(
            f"{name}: expected points in both halves, got {len(found.X_train)} for the training "
            f"and {len(found.X_test)} for the test"
        )
    X_train, X_test = (
        scaled(X.reshape(_shape(X, images)), dtype) for X in (found.X_train, found.X_test)
    )
    y_train, y_test = (y.astype(np.intp) for y in (found.y_train, found.y_test))
    return Dataset(name, X_train, y_train, X_test, y_test, found.classes)


def _shape(X: np.ndarray, images: bool) -> tuple[int, ...]:
    if images:
        return X.shape if X.ndim == 4 else (len(X), 1, *X.shape[1:])
    return len(X), int(np.prod(X.shape[1:]))
