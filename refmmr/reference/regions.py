"""Exact enumeration of the linear regions in a plane, by splitting polygons layer by layer.

Start with one convex polygon, the domain.  On it the first layer is affine, so each unit is zero
along a straight line: cut every polygon along the line of every unit that changes sign on it.  On
each of the pieces the pattern of the first layer is fixed, so the second layer is affine there: cut
again; and so on.  What is left in the end are the linear regions: every unit has one sign on each.

Only the values of the units at the *corners* are needed.  They come from the network itself, never
from a copy of the affine map of some piece; as the network is continuous, the pieces on both sides
of a wall agree about a corner they share.  Within a layer the values at a new corner follow by
interpolation along the edge that is cut.

In floats the sign of a unit at a corner is decided only where its value is larger than its rounding
error (`refmmr.reference.rounding`); within that error the value is taken to be 0 and the line to
pass through the corner, so a cell is never cut along a line that only touches it.  With
`fractions.Fraction` as numbers (an object array) every sign is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from refmmr.reference import rounding
from refmmr.reference.network import Network, flat

DOMAIN = -1
"""The wall of an edge that belongs to the domain, not to a unit."""

Embedding = Callable[[np.ndarray], np.ndarray]
"""Points of the plane (m, 2) to inputs of the network (m, *input_shape)."""


class Cell(NamedTuple):
    """A convex polygon, corners counter-clockwise; edge i goes from corner i to corner i + 1."""

    corners: np.ndarray  # (m, 2), in coordinates of the plane
    walls: np.ndarray  # (m,) int: the unit whose zero set edge i lies on, or DOMAIN
    pattern: np.ndarray  # (units so far,) bool


def enumerate_plane(
    net: Network,
    corners: np.ndarray,
    embed: Embedding,
    on_layer: Callable[[int, int], object] = lambda layer, cells: None,
) -> list[Cell]:
    """All linear regions of a network in a convex polygon.

    Parameters
    ----------
    net : Network
    corners : ndarray, shape (m, 2)
        The domain, counter-clockwise.
    embed : callable
        Points of the plane to inputs of the network.
    on_layer : callable, optional
        Told after every hidden layer: its number and the number of cells so far.

    Returns
    -------
    list of Cell
        With the pattern of all hidden units.
    """
    walls = np.full(len(corners), DOMAIN)
    cells = [Cell(corners, walls, np.zeros(0, dtype=bool))]
    first_unit = 0
    for k, shape in enumerate(net.unit_shapes):
        cells = [
            piece
            for cell, values, errors in corner_values(net, cells, embed, layer=k)
            for piece in split_cell(cell, values, errors, first_unit)
        ]
        first_unit += int(np.prod(shape))
        on_layer(k + 1, len(cells))
    return cells


def corner_values(
    net: Network, cells: Sequence[Cell], embed: Embedding, layer: int
) -> Iterator[tuple[Cell, np.ndarray, np.ndarray]]:
    """For each cell the pre-activations of a layer at its corners, (m, N_k), and their errors.

    The errors, (N_k,), hold on the whole cell: their bounds are convex, so largest at a corner.
    """
    # A corner is shared by several cells; ask the network once, so that they hear the same.
    corners, places = _distinct(np.concatenate([cell.corners for cell in cells]))
    parts = [
        _values_and_errors(net, embed(corners[start : start + 1024]), layer)
        for start in range(0, len(corners), 1024)
    ]
    values, errors = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    start = 0
    for cell in cells:
        here = places[start : start + len(cell.corners)]
        yield cell, values[here], errors[here].max(axis=0)
        start += len(here)


def split_cell(cell: Cell, values: np.ndarray, errors: np.ndarray, first_unit: int) -> list[Cell]:
    """Cut a cell along the zero lines of a layer's units, given their values at its corners."""
    pieces = [(cell.corners, cell.walls, decided(values, errors))]
    crossing = (pieces[0][2] > 0).any(axis=0) & (pieces[0][2] < 0).any(axis=0)
    for unit in np.flatnonzero(crossing).tolist():
        pieces = [
            part for piece in pieces for part in split(*piece, errors, unit, wall=first_unit + unit)
        ]
    return [
        Cell(corners, walls, np.concatenate([cell.pattern, (values > 0).any(axis=0)]))
        for corners, walls, values in pieces
    ]


def decided(values: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """The values whose sign is certain; 0 for the others."""
    return np.where(np.abs(values) > errors, values, 0)


Piece = tuple[np.ndarray, np.ndarray, np.ndarray]


def split(
    corners: np.ndarray,
    walls: np.ndarray,
    values: np.ndarray,
    errors: np.ndarray,
    column: int,
    wall: int,
) -> list[Piece]:
    """Cut a polygon along the line where a column of `values` is zero.

    Parameters
    ----------
    corners : ndarray, shape (m, 2)
    walls : ndarray, shape (m,)
        Labels of the edges.
    values : ndarray, shape (m, c)
        Functions that are affine on the polygon, at its corners, decided.
    errors : ndarray, shape (c,)
        Their rounding errors on the polygon.
    column : int
        The one to cut along.
    wall : int
        Label of the new edge.

    Returns
    -------
    list of (corners, walls, values)
        The positive and the negative piece, or the polygon itself where the line misses its
        interior.
    """
    f = values[:, column]
    if not ((f > 0).any() and (f < 0).any()):
        return [(corners, walls, values)]
    corners, walls, values = _with_crossings(corners, walls, values, errors, column)
    return [_side(corners, walls, values, values[:, column] * sign >= 0, wall) for sign in (1, -1)]


def _with_crossings(corners, walls, values, errors, column):
    """Insert a corner wherever an edge crosses the zero line."""
    f = values[:, column]
    after = np.roll(f, -1)
    new_corners, new_walls, new_values = [], [], []
    for i in range(len(corners)):
        new_corners.append(corners[i])
        new_walls.append(walls[i])
        new_values.append(values[i])
        if (f[i] > 0 > after[i]) or (f[i] < 0 < after[i]):
            j = (i + 1) % len(corners)
            # From a fixed end, so that both cells at this edge find the same point.
            a, b = (i, j) if tuple(corners[i]) < tuple(corners[j]) else (j, i)
            t = f[a] / (f[a] - f[b])
            value = decided(values[a] + t * (values[b] - values[a]), errors)
            value[column] = 0
            new_corners.append(corners[a] + t * (corners[b] - corners[a]))
            new_walls.append(walls[i])
            new_values.append(value)
    return np.array(new_corners), np.array(new_walls), np.array(new_values)


def _side(corners, walls, values, keep, wall):
    """The corners on one side of the line; the edge that closes the piece lies on the line."""
    kept = np.flatnonzero(keep)
    # The kept corners follow each other around the polygon, except across the cut.
    leaves = ~keep[(kept + 1) % len(keep)]
    return corners[kept], np.where(leaves, wall, walls[kept]), values[kept]


def area(corners: np.ndarray) -> np.ndarray:
    """Areas of polygons, (..., m, 2) to (...): half the sum of the cross products of edges."""
    x, y = np.moveaxis(corners - corners[..., :1, :], -1, 0)
    return (x * np.roll(y, -1, axis=-1) - y * np.roll(x, -1, axis=-1)).sum(axis=-1) / 2


class ClassPiece(NamedTuple):
    """The part of a linear region where one class has the largest logit."""

    cell: int
    winner: int
    corners: np.ndarray  # (m, 2)
    rivals: np.ndarray  # (m,) int: the class that ties along edge i, or -1
    inside: np.ndarray  # (m,) bool: edge i is a cut through the region, not an edge of it


def class_pieces(net: Network, cells: Sequence[Cell], embed: Embedding) -> list[ClassPiece]:
    """Cut every linear region by the class that wins; logits are affine on it."""
    pieces = []
    layer = len(net.unit_shapes)
    for index, (cell, logits, errors) in enumerate(corner_values(net, cells, embed, layer)):
        for winner in range(logits.shape[1]):
            piece = _winning_piece(cell, logits, errors, winner)
            if piece is not None:
                pieces.append(ClassPiece(index, winner, *piece))
    return pieces


def _winning_piece(cell, logits, errors, winner):
    """Where `winner` beats every rival (the first of equals wins), and who ties along the edges."""
    errors = 2 * (errors + errors[winner])
    values = decided(logits[:, winner : winner + 1] - logits, errors)
    corners, rivals = cell.corners, np.full(len(cell.corners), -1)
    for rival in range(values.shape[1]):
        f = values[:, rival]
        if not (f > 0).any() and ((f < 0).any() or rival < winner):
            return None
        corners, rivals, values = split(corners, rivals, values, errors, rival, wall=rival)[0]
    inside = rivals >= 0
    # An edge of the region along which a rival ties is a decision boundary too.
    ties = (values == 0) & (np.roll(values, -1, axis=0) == 0) & (values != 0).any(axis=0)
    for rival in np.flatnonzero(ties.any(axis=0)).tolist():
        rivals = np.where(ties[:, rival] & ~inside, rival, rivals)
    return corners, rivals, inside


def _values_and_errors(net, X, layer):
    """Pre-activations of a layer and bounds on their rounding error, both (n, N_k)."""
    values = flat([net.forward(X).outputs[layer]])
    if values.dtype == object:  # fractions make no errors
        return values, np.zeros_like(values)
    return values, flat([rounding.value_errors(net, X)[layer]])


def _distinct(corners):
    """Distinct rows, and the place of each row among them."""
    places: dict[tuple, int] = {}
    indices = [places.setdefault(tuple(corner), len(places)) for corner in corners.tolist()]
    first = {place: i for i, place in reversed(list(enumerate(indices)))}
    return corners[[first[place] for place in range(len(places))]], np.array(indices)
