"""Linear regions as users meet them: domains, and the complex of all regions in one."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from refmmr import _validate as check
from refmmr._backend import kernel
from refmmr.network import Network
from refmmr.reference import regions as _regions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Box", "DecisionBoundary", "RegionComplex", "Slice", "enumerate_regions"]

_enumerate_plane = kernel(_regions.enumerate_plane)


class Box:
    """A rectangle of a two-dimensional input space.

    Parameters
    ----------
    lo, hi : array_like, shape (2,)
        Corners, ``lo < hi``.

    Examples
    --------
    >>> Box([0, 0], [1, 2])
    Box([0.0, 0.0], [1.0, 2.0])
    """

    def __init__(self, lo: ArrayLike, hi: ArrayLike) -> None:
        sides = [check.check_array(f"Box {name}", side) for name, side in (("lo", lo), ("hi", hi))]
        if max(sides, key=np.ndim).shape != (2,):
            raise ValueError(
                f"Box: expected lo and hi of shape (2,), got {max(sides, key=np.ndim).shape}"
            )
        lo, hi = check.check_bounds(lo, hi, (2,), "Box")
        self.lo, self.hi = lo.copy(), hi.copy()

    @property
    def rectangle(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner in coordinates of the plane, the inputs themselves."""
        return self.lo, self.hi

    def embed(self, points: np.ndarray) -> np.ndarray:
        """Points of the plane, (m, 2), are inputs already."""
        return points

    def __repr__(self) -> str:
        return f"Box({self.lo.tolist()}, {self.hi.tolist()})"


class Slice:
    """A rectangle in the plane through three points of a high-dimensional input space.

    The plane's coordinates are lengths (l_2) along two orthogonal directions, with the origin at
    `x0` and the first axis towards `x1`.

    Parameters
    ----------
    x0, x1, x2 : array_like, shape (*input_shape)
        Three points that do not lie on a line.
    extent : (u_min, u_max, v_min, v_max), optional
        The rectangle in the plane's coordinates; if not given, it holds the three points with a
        quarter of its size to spare around them.

    Attributes
    ----------
    points : ndarray, shape (3, 2)
        Coordinates of the three points.
    """

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
            spare = 0.25 * (high - low).max()
            self._rectangle = low - spare, high + spare
        else:
            sides = check.check_array("extent", extent)
            if sides.shape != (4,):
                raise ValueError(f"extent: expected (u_min, u_max, v_min, v_max), got {extent!r}")
            u_min, u_max, v_min, v_max = sides
            self._rectangle = check.check_bounds([u_min, v_min], [u_max, v_max], (2,), "extent")

    @property
    def rectangle(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper corner in coordinates of the plane."""
        return self._rectangle

    def embed(self, points: np.ndarray) -> np.ndarray:
        """Points of the plane, (m, 2), to inputs, (m, *input_shape)."""
        return self.origin + np.tensordot(points, self.directions, axes=1)

    def project(self, X: ArrayLike) -> np.ndarray:
        """Coordinates of the points of the plane nearest to inputs, (n, *input_shape) -> (n, 2)."""
        X = check.check_array("X", X, self.origin.ndim + 1)
        X = check.check_shape("X", X, (len(X), *self.origin.shape)) - self.origin
        return X.reshape(len(X), -1) @ self.directions.reshape(2, -1).T

    def __repr__(self) -> str:
        (u_min, v_min), (u_max, v_max) = self.rectangle
        extent = ", ".join(f"{value:.4g}" for value in (u_min, u_max, v_min, v_max))
        return f"Slice(of {self.origin.shape}, extent=({extent}))"


class DecisionBoundary(NamedTuple):
    """Pieces of the set where two classes tie for the largest logit."""

    segments: np.ndarray  # (m, 2, 2): start and end of each, in coordinates of the plane
    classes: np.ndarray  # (m, 2): the two classes, the smaller first


def _areas(polygons: list[np.ndarray]) -> np.ndarray:
    """Areas of polygons, those with as many corners together."""
    sizes = np.array([len(corners) for corners in polygons])
    areas = np.empty(len(polygons))
    for size in np.unique(sizes):
        same = np.flatnonzero(sizes == size)
        areas[same] = _regions.area(np.stack([polygons[i] for i in same]))
    return np.maximum(areas, 0)


class RegionComplex:
    """All linear regions of a network in a plane domain.

    Attributes
    ----------
    net : Network
    domain : Box or Slice
    patterns : ndarray of bool, shape (n_regions, n_hidden)
        Activation pattern of each region.
    vertices : list of ndarray, shape (m, 2)
        Corners of each region, counter-clockwise, in coordinates of the plane.
    areas : ndarray, shape (n_regions,)
        In squared units of the input.
    """

    def __init__(self, net: Network, domain: Box | Slice, cells: list[_regions.Cell]) -> None:
        self.net, self.domain, self._cells = net, domain, cells
        self.patterns = np.array([cell.pattern for cell in cells])
        self.vertices = [cell.corners for cell in cells]
        self.areas = _areas(self.vertices)

    def __len__(self) -> int:
        return len(self._cells)

    def __repr__(self) -> str:
        return f"RegionComplex({len(self)} regions of {self.net.n_hidden} units in {self.domain})"

    @cached_property
    def _class_pieces(self) -> list[_regions.ClassPiece]:
        return _regions.class_pieces(self.net, self._cells, self.domain.embed)

    def class_polygons(self) -> list[tuple[int, np.ndarray]]:
        """Regions cut by the class that wins: pairs (class, corners (m, 2))."""
        return [(piece.winner, piece.corners) for piece in self._class_pieces]

    def decision_boundary(self) -> DecisionBoundary:
        """Exact segments where two classes tie for the largest logit.

        Where logits tie on a whole region, the first of the classes wins there and only the edges
        to other classes count.
        """
        found: dict[tuple, tuple[np.ndarray, tuple[int, int]]] = {}
        for piece in self._class_pieces:
            ends = np.roll(piece.corners, -1, axis=0)
            for i, rival in enumerate(piece.rivals.tolist()):
                # A cut through a region is an edge of both its pieces: take the first class's.
                if rival < 0 or (piece.inside[i] and rival < piece.winner):
                    continue
                start, end = piece.corners[i], ends[i]
                pair = (min(piece.winner, rival), max(piece.winner, rival))
                found.setdefault((*_key(start, end), *pair), (np.stack([start, end]), pair))
        return DecisionBoundary(
            segments=np.array([segment for segment, _ in found.values()]).reshape(-1, 2, 2),
            classes=np.array([pair for _, pair in found.values()], dtype=int).reshape(-1, 2),
        )

    def bent_lines(self) -> tuple[np.ndarray, np.ndarray]:
        """The walls: where each unit changes sign, a line that bends at the units before it.

        Returns
        -------
        segments : ndarray, shape (m, 2, 2)
        units : ndarray, shape (m,)
            The unit of each segment.  Where several units share a wall, one of them is named.
        """
        found: dict[tuple, tuple[np.ndarray, int]] = {}
        for cell in self._cells:
            ends = np.roll(cell.corners, -1, axis=0)
            for start, end, unit in zip(cell.corners, ends, cell.walls, strict=True):
                if unit != _regions.DOMAIN:
                    found.setdefault(_key(start, end), (np.stack([start, end]), int(unit)))
        segments = np.array([segment for segment, _ in found.values()]).reshape(-1, 2, 2)
        return segments, np.array([unit for _, unit in found.values()], dtype=int)

    def region_of(self, Z: ArrayLike) -> np.ndarray:
        """Index of the region of each point, -1 outside the domain.

        Parameters
        ----------
        Z : array_like, shape (n, 2)
            Points in coordinates of the plane (for a `Box` the inputs; see `Slice.project`).

        Returns
        -------
        ndarray of int, shape (n,)
            A point on a wall belongs to one of the regions beside it.
        """
        Z = check.check_array("Z", Z, 2).astype(np.float64)
        check.check_shape("Z", Z, (len(Z), 2))
        patterns = (
            self.net.activation_pattern(self.domain.embed(Z)) if len(Z) else self.patterns[:0]
        )
        lo, hi = self.domain.rectangle
        inside = ((lo <= Z) & (hi >= Z)).all(axis=1)
        index = np.full(len(Z), -1)
        for i in np.flatnonzero(inside):
            found = self._index.get(np.packbits(patterns[i]).tobytes())
            index[i] = self._nearest(Z[i]) if found is None else found
        return index

    @cached_property
    def _index(self) -> dict[bytes, int]:
        return {np.packbits(pattern).tobytes(): i for i, pattern in enumerate(self.patterns)}

    def _nearest(self, z: np.ndarray) -> int:
        """The region that z, a point on a wall whose own pattern no region has, is nearest to."""

        def sticks_out(corners: np.ndarray) -> float:
            edges = np.roll(corners, -1, axis=0) - corners
            normals = np.stack([edges[:, 1], -edges[:, 0]], axis=1)
            lengths = np.sqrt((normals * normals).sum(axis=1))
            return float(
                (((z - corners) * normals).sum(axis=1) / np.where(lengths, lengths, 1)).max()
            )

        return int(np.argmin([sticks_out(corners) for corners in self.vertices]))

    def plot(self, color: str = "region", ax: Axes | None = None, **options: Any) -> Axes:
        """Draw the regions; see `refmmr.plot.regions`."""
        from refmmr.plot import regions as draw

        return draw(self, color=color, ax=ax, **options)


def enumerate_regions(
    net: Network, domain: Box | Slice, *, progress: bool | None = None
) -> RegionComplex:
    """All linear regions of a network in a plane domain, exactly.

    Polygons are split layer by layer; no sampling is involved.  Signs are decided in float64, up to
    the rounding error of each value.

    Parameters
    ----------
    net : Network
    domain : Box or Slice
        A rectangle of the input plane, or of a plane through three inputs.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    RegionComplex

    Raises
    ------
    TypeError, ValueError
        For a domain of another kind, or of another input shape than the network's.

    Examples
    --------
    >>> import refmmr as rm
    >>> hidden = rm.Linear([[1, 0], [0, 1], [1, 1]], [0, 0, 0])
    >>> net = rm.Network([hidden, rm.Linear([[1, 1, 1]], [0])], 2)
    >>> len(rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1])))
    6
    """
    check.check_network(net)
    if not isinstance(domain, (Box, Slice)):
        raise TypeError(f"domain: expected a Box or a Slice, got {type(domain).__name__}")
    shape = (2,) if isinstance(domain, Box) else domain.origin.shape
    if shape != net.input_shape:
        raise ValueError(
            f"domain: expected inputs of shape {net.input_shape}, got a {type(domain).__name__} "
            f"of inputs of shape {shape}"
        )
    net = net.astype(np.float64)
    (left, bottom), (right, top) = domain.rectangle
    corners = np.array([[left, bottom], [right, bottom], [right, top], [left, top]])
    disable = None if progress is None else not progress
    with tqdm(total=len(net.unit_shapes), desc="regions", unit="layer", disable=disable) as bar:

        def on_layer(layer: int, cells: int) -> None:
            bar.update()
            bar.set_postfix(cells=cells)

        cells = _enumerate_plane(net, corners, domain.embed, on_layer)
    return RegionComplex(net, domain, cells)


def _key(start: np.ndarray, end: np.ndarray) -> tuple[float, ...]:
    """The same for an edge seen from both sides."""
    first, last = sorted((tuple(start.tolist()), tuple(end.tolist())))
    return (*first, *last)
