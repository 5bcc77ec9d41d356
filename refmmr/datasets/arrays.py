"""Data sets from arrays: labels become classes 0, ..., K - 1, points are checked against a box."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from refmmr._validate import check_array, check_box, check_number, check_seed, refuse_masked

__all__ = ["Dataset", "Halves", "classified", "from_arrays", "is_unit", "scaled", "split"]


ROWS = 32
"""Points that are scaled together: they stay in the cache between division and conversion."""


class Dataset(NamedTuple):
    """Training and test points with their classes.

    Attributes
    ----------
    name : str
    X_train, X_test : ndarray, shape (n, d) or (n, channels, height, width)
    y_train, y_test : ndarray of int, shape (n,)
        Classes 0, ..., n_classes - 1.
    classes : tuple, optional
        The label of each class, if the labels are not 0, ..., K - 1.

    Examples
    --------
    >>> import refmmr as rm
    >>> data = rm.datasets.load("moons")
    >>> data.X_train.shape, data.y_train.shape, data.n_classes
    ((1000, 2), (1000,), 2)
    """

    name: str
    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[Any, ...] | None = None

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        if self.classes is not None:
            return len(self.classes)
        return int(max(self.y_train.max(initial=-1), self.y_test.max(initial=-1))) + 1


class Halves(NamedTuple):
    """The result of a reader: points of any dtype and shape (n, ...), labels (n,), their names."""

    X_train: np.ndarray
    y_train: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[Any, ...] | None = None


def from_arrays(
    X: ArrayLike,
    y: Any,
    X_test: ArrayLike | None = None,
    y_test: Any = None,
    *,
    box: Any = (0, 1),
    classes: Iterable[Any] | None = None,
    test_size: float = 0.2,
    rng: int | np.random.Generator | None = 0,
    name: str = "arrays",
) -> Dataset:
    """Make a data set from NumPy arrays, lists, data frames or tensors on the host.

    Parameters
    ----------
    X : array-like, shape (n, d), (n, height, width) or (n, channels, height, width)
        Training points, or all of them.  Images of one channel may come without that axis.
    y : array-like, shape (n,) or (n, 1)
        Their labels: integers, strings, or other comparable objects.
    X_test, y_test : array-like, optional
        Test points.  If not given, a stratified part of X and y is split off, as scikit-learn's
        ``train_test_split`` does.
    box : pair (lo, hi), optional
        Bounds that all points must satisfy, numbers or arrays of the shape of a point.  The points
        are not changed.  None for no check.
    classes : sequence, optional
        The labels in the order of their classes, for example ``range(10)`` where not all of the
        ten digits are in y.  If not given, the distinct labels of y, sorted: labels that are
        0, ..., K - 1 are then the classes.
    test_size : float
        The share of the test points that are split off.
    rng : int, numpy.random.Generator or None
        Source of the choice of these points: a seed or a generator; None for another choice at
        each call.
    name : str

    Returns
    -------
    Dataset
        Points in float32 if X is, else in float64.

    Raises
    ------
    ValueError
        For shapes that do not fit, NaN or infinite numbers, points outside the box, or labels that
        are missing or not among the classes.
    TypeError
        For points that are not real numbers, or labels that cannot be compared.

    Examples
    --------
    >>> from refmmr import datasets
    >>> X = [[0.0, 0.5], [1.0, 0.5], [0.2, 0.0], [0.9, 1.0]]
    >>> data = datasets.from_arrays(X, ["no", "yes", "no", "yes"], test_size=0.5)
    >>> data.classes, data.y_test.tolist()
    (('no', 'yes'), [1, 0])
    """
    halves = classified(X, y, X_test, y_test, box, classes, test_size, rng)
    return Dataset(name, *halves)


def classified(
    X: Any,
    y: Any,
    X_test: Any = None,
    y_test: Any = None,
    box: Any = (0, 1),
    classes: Iterable[Any] | None = None,
    test_size: float = 0.2,
    rng: int | np.random.Generator | None = 0,
    pixels: bool = False,
) -> Halves:
    """Points and classes, checked, in two halves; as `from_arrays`, for the readers of files.

    With `pixels`, images of bytes stay bytes where the box is [0, 1]; `scaled` divides them by 255.
    """
    if (X_test is None) != (y_test is None):
        raise ValueError("X_test, y_test: expected both or neither, got one of them")
    X = _points("X", X, box, pixels)
    labels = _labels("y", y, len(X))
    if X_test is None:
        order, encoded = _encode(labels, classes)
        halves = split(X, encoded, test_size, rng)
    else:
        X_test = _points("X_test", X_test, box, pixels)
        if X_test.shape[1:] != X.shape[1:]:
            raise ValueError(f"X_test: expected points {X.shape[1:]}, got {X_test.shape[1:]}")
        labels = [*labels, *_labels("y_test", y_test, len(X_test))]
        order, encoded = _encode(labels, classes)
        halves = Halves(X, encoded[: len(X)], X_test, encoded[len(X) :])
    same = order == tuple(range(len(order))) and not any(isinstance(c, bool) for c in order)
    return halves._replace(classes=None if same and classes is None else order)


def split(X: np.ndarray, y: np.ndarray, test_size: float, rng: Any) -> Halves:
    """Split off a stratified part of the points for the test."""
    from sklearn.model_selection import train_test_split

    if check_number("test_size", test_size) >= 1:
        raise ValueError(f"test_size: expected a number between 0 and 1, got {test_size!r}")
    seed, _ = check_seed(rng)
    try:
        X_train, X_test, y_train, y_test = train_test_split(
            X, y, test_size=float(test_size), random_state=seed % 2**32, stratify=y
        )
    except ValueError as error:
        raise ValueError(
            f"X: expected points that can be split into training and test halves, got {len(X)} of "
            f"{len(np.unique(y))} classes ({error}); give the test half yourself"
        ) from error
    return Halves(X_train, y_train, X_test, y_test)


def scaled(X: np.ndarray, dtype: Any) -> np.ndarray:
    """Points in a dtype, those of bytes divided by 255.

    The division is in float32 for every dtype, so that points do not depend on it.
    """
    if X.dtype != np.uint8:
        return X.astype(dtype, copy=False)
    found = np.empty(X.shape, dtype)
    for start in range(0, len(X), ROWS):
        rows = slice(start, start + ROWS)
        found[rows] = np.divide(X[rows], np.float32(255), dtype=np.float32)
    return found


def is_unit(box: Any) -> bool:
    """Whether a box is [0, 1] in every coordinate."""
    try:
        lo, hi = box
        return bool(np.all(np.asarray(lo) == 0) and np.all(np.asarray(hi) == 1))
    except (TypeError, ValueError):
        return False


def _points(name: str, X: Any, box: Any, pixels: bool) -> np.ndarray:
    X = _as_array(name, X)
    pixels = pixels and X.dtype == np.uint8 and X.ndim > 2 and is_unit(box)
    if not pixels:
        X = check_array(name, X)
    if X.ndim == 3:
        X = X[:, None]
    if X.ndim not in (2, 4) or 0 in X.shape:
        raise ValueError(
            f"{name}: expected points (n, d) or images (n, channels, height, width), got {X.shape}"
        )
    if X.ndim == 4 and X.shape[1] > 4 and X.shape[3] in (1, 3, 4):
        raise ValueError(
            f"{name}: expected images (n, channels, height, width), got {X.shape}, which has the "
            f"channels last; pass numpy.moveaxis({name}, -1, 1)"
        )
    if not pixels:
        check_box(box, X, name)
    return X


def _labels(name: str, y: Any, n: int) -> list[Any]:
    labels = _as_array(name, y)
    # NumPy converts numbers beside text to text, and strips zero bytes from the end of text.
    if labels.dtype.kind in "US" and isinstance(y, (list, tuple)):
        labels = np.array(y, dtype=object)
    if labels.shape == (n, 1):
        labels = labels[:, 0]
    if labels.shape != (n,):
        raise ValueError(f"{name}: expected shape ({n},), one label a point, got {labels.shape}")
    # A label that is not equal to itself is a NaN; None and pandas' NA are missing as well.
    missing = [i for i, label in enumerate(labels.tolist()) if _is_missing(label)]
    if missing:
        raise ValueError(f"{name}: expected a label for every point, got none at {missing[0]}")
    if labels.dtype.kind == "f":
        broken = labels[labels != np.rint(labels)]
        if len(broken) or np.isinf(labels).any() or (np.abs(labels) > 2**53).any():
            shown = broken[0] if len(broken) else labels[np.abs(labels).argmax()]
            raise ValueError(f"{name}: expected class labels, got the number {shown}")
        labels = labels.astype(np.int64)
    return labels.tolist()


def _is_missing(label: Any) -> bool:
    if label is None:
        return True
    try:
        return not bool(label == label)
    except TypeError:  # pandas' NA has no truth value
        return True


def _encode(labels: list[Any], classes: Iterable[Any] | None) -> tuple[tuple[Any, ...], np.ndarray]:
    """The labels in order, and for each point the position of its label."""
    try:
        order = tuple(sorted(set(labels))) if classes is None else tuple(classes)
        number = {label: i for i, label in enumerate(order)}
    except TypeError as error:
        what = "y" if classes is None else "classes"
        raise TypeError(f"{what}: expected labels that can be compared, {error}") from error
    if len(number) < len(order):
        raise ValueError(f"classes: expected every label once, got {order}")
    unknown = [label for label in labels if label not in number]
    if unknown:
        raise ValueError(f"y: expected labels among {order}, got {unknown[0]!r}")
    return order, np.array([number[label] for label in labels], dtype=np.intp)


def _as_array(name: str, value: Any) -> np.ndarray:
    """An array on the host."""
    if hasattr(value, "__cuda_array_interface__"):
        raise TypeError(f"{name}: expected an array on the host, got one on a CUDA device")
    refuse_masked(name, value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array, got a ragged sequence") from error
    # A tensor that records gradients, or is on another device, raises an exception of its own.
    except Exception as error:
        raise TypeError(
            f"{name}: expected something that NumPy can read, got {type(value).__name__} ({error})"
        ) from error
