"""Domains of an enumeration: a box of the input space, a rectangle of a plane, a segment."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _validate as check
from refmmr.exact import fractions
from refmmr.reference.enumeration import Domain

__all__ = ["Box", "Segment", "Slice"]


class AffineDomain:
    """A box in coordinates z of n dimensions, and its affine map into the input space.

    Attributes
    ----------
    origin : ndarray, shape (*input_shape)
        The input at z = 0.
    directions : ndarray, shape (n, *input_shape)
        ``x = origin + z[0] directions[0] + ... + z[n - 1] directions[n - 1]``.
    rectangle : (ndarray, ndarray), shapes (n,)
        Lower and upper bounds of the coordinates.
    """

    origin: np.ndarray
    directions: np.ndarray
    rectangle: tuple[np.ndarray, np.ndarray]
    axis_labels = ("coordinate 1", "coordinate 2")
    """How figures label the first two coordinates."""

    @property
    def dimension(self) -> int:
        """Number of coordinates, n."""
        return len(self.directions)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the inputs."""
        return self.origin.shape

    def embed(self, points: ArrayLike) -> np.ndarray:
        """Points in coordinates of the domain, (m, n), to inputs, (m, *input_shape)."""
        points = check.check_array("points", points, 2)
        check.check_shape("points", points, (len(points), self.dimension))
        return self.origin + np.tensordot(points, self.directions, axes=1)

    def project(self, X: ArrayLike) -> np.ndarray:
        """Coordinates of the points of the domain's plane nearest to inputs.

        Parameters
        ----------
        X : array_like, shape (m, *input_shape)

        Returns
        -------
        ndarray, shape (m, n)
        """
        X = check.check_array("X", X, self.origin.ndim + 1)
        offsets = check.check_shape("X", X, (len(X), *self.origin.shape)) - self.origin
        basis = self.directions.reshape(self.dimension, -1)
        return np.linalg.solve(basis @ basis.T, basis @ offsets.reshape(len(X), -1).T).T

    def arrays(self, exact: bool = False) -> Domain:
        """The domain of the reference, in floats or in fractions of the same values."""
        arrays = (*self.rectangle, self.origin, self.directions)
        if exact:
            return Domain(*(fractions(array) for array in arrays))
        return Domain(*(np.array(array, dtype=np.float64) for array in arrays))


class Box(AffineDomain):
    """A box of the input space, of any number of dimensions.

    Parameters
    ----------
    lo, hi : array_like, shape (n,)
        Bounds of the inputs, ``lo < hi``.

    Examples
    --------
    >>> Box([0, 0], [1, 2])
    Box([0.0, 0.0], [1.0, 2.0])
    """

    axis_labels = ("input 1", "input 2")

    def __init__(self, lo: ArrayLike, hi: ArrayLike) -> None:
        lo, hi = check.check_array("Box lo", lo), check.check_array("Box hi", hi)
        shape = max(lo, hi, key=np.ndim).shape
        if len(shape) != 1 or shape[0] == 0:
            raise ValueError(f"Box: expected lo and hi of shape (n,), got {shape}")
        lo, hi = check.check_bounds(lo, hi, shape, "Box")
        self.lo, self.hi = lo.copy(), hi.copy()
        self.rectangle = self.lo, self.hi
        self.origin, self.directions = np.zeros(shape), np.eye(shape[0])

    def __repr__(self) -> str:
        return f"Box({self.lo.tolist()}, {self.hi.tolist()})"


class Segment(AffineDomain):
    """The straight line from one input to another.

    Its coordinate goes from 0 at `x0` to 1 at `x1`.

    Parameters
    ----------
    x0, x1 : array_like, shape (*input_shape)
        Two different points.

    Examples
    --------
    >>> Segment([0.0, 0.0], [1.0, 2.0]).embed([[0.25]])
    array([[0.25, 0.5 ]])
    """

    def __init__(self, x0: ArrayLike, x1: ArrayLike) -> None:
        start, end = (
            check.check_array(name, x).astype(np.float64) for name, x in (("x0", x0), ("x1", x1))
        )
        check.check_shape("x1", end, start.shape)
        if not (start != end).any():
            raise ValueError("Segment: expected two different points, got x0 = x1")
        self.origin, self.directions = start, (end - start)[None]
        self.rectangle = np.zeros(1), np.ones(1)

    def __repr__(self) -> str:
        return f"Segment(of {self.origin.shape})"


class Slice(AffineDomain):
    """A rectangle in the plane through three points of a high-dimensional input space.

    The plane's coordinates are lengths (l_2) along two orthogonal directions, with the origin at
    `x0` and the first axis towards `x1`.

    Parameters
    ----------
    x0, x1, x2 : array_like, shape (*input_shape)
        Three points that do not lie on a line.
    extent : (u_min, u_max, v_min, v_max), optional
        The rectangle in the plane's coordinates.  If not given, the bounding box of the three
        points, extended on each side by a quarter of its longer edge.

    Attributes
    ----------
    points : ndarray, shape (3, 2)
        Coordinates of the three points.

    Examples
    --------
    >>> Slice([0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]).embed([[0.5, 0.5]])
    array([[0.5, 0.5, 0. ]])
    """

    axis_labels = (
        "distance along the plane ($l_2$, from point 1 to point 2)",
        "distance across ($l_2$, towards point 3)",
    )

    def __init__(
        self,
        x0: ArrayLike,
        x1: ArrayLike,
        x2: ArrayLike,
        extent: tuple[float, float, float, float] | None = None,
    ) -> None:
        named = (("x0", x0), ("x1", x1), ("x2", x2))
        points = [check.check_array(name, x).astype(np.float64) for name, x in named]
        for name, x in zip(("x1", "x2"), points[1:], strict=True):
            check.check_shape(name, x, points[0].shape)
        origin, a, b = points[0], points[1] - points[0], points[2] - points[0]
        length = np.sqrt((a * a).sum())
        first = a / (length or 1)
        across = b - (b * first).sum() * first
        across -= (across * first).sum() * first
        height = np.sqrt((across * across).sum())
        if length == 0 or height <= 1e-9 * max(length, np.sqrt((b * b).sum())):
            raise ValueError(
                "Slice: expected three points that do not lie on a line, got x0, x1, x2 on one"
            )
        self.origin = origin
        self.directions = np.stack([first, across / height])
        self.points = np.array([[0, 0], [length, 0], [(b * first).sum(), height]])
        if extent is None:
            low, high = self.points.min(axis=0), self.points.max(axis=0)
            margin = 0.25 * (high - low).max()
            self.rectangle = low - margin, high + margin
        else:
            bounds = check.check_array("extent", extent)
            if bounds.shape != (4,):
                raise ValueError(f"extent: expected (u_min, u_max, v_min, v_max), got {extent!r}")
            u_min, u_max, v_min, v_max = bounds
            self.rectangle = check.check_bounds([u_min, v_min], [u_max, v_max], (2,), "extent")

    @classmethod
    def spanned(
        cls,
        origin: ArrayLike,
        u: ArrayLike,
        v: ArrayLike,
        extent: tuple[float, float, float, float],
    ) -> Slice:
        """The plane through an input along two directions.

        Parameters
        ----------
        origin : array_like, shape (*input_shape)
        u, v : array_like, shape (*input_shape)
            Directions that are not parallel.  The first axis goes along `u`; the second is
            orthogonal to it, towards `v`.
        extent : (u_min, u_max, v_min, v_max)
            The rectangle, in lengths (l_2) along the two axes.

        Returns
        -------
        Slice
        """
        origin = check.check_array("origin", origin)
        u, v = check.check_array("u", u), check.check_array("v", v)
        for name, direction in (("u", u), ("v", v)):
            check.check_shape(name, direction, origin.shape)
        return cls(origin, origin + u, origin + v, extent)

    def __repr__(self) -> str:
        (u_min, v_min), (u_max, v_max) = self.rectangle
        extent = ", ".join(f"{value:.4g}" for value in (u_min, u_max, v_min, v_max))
        return f"Slice(of {self.origin.shape}, extent=({extent}))"
