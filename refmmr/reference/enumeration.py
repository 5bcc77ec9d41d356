"""Exact enumeration of the linear regions in a box, by splitting cells layer by layer.

Start with one convex cell, the domain.  The first layer is affine on it, so each of its units is 0
on a hyperplane: split every cell along the hyperplane of every unit that changes sign on it.  On
each of the pieces the activation pattern of the first layer is constant, so the second layer is
affine there: split again, and so on.  The cells after the last layer are the linear regions: each
unit has one sign on each of them (Hanin and Rolnick 2019; in a plane, Humayun et al. 2023).

The domain is a box of n dimensions, with coordinates z, mapped into the input space by
``x = origin + z_1 direction_1 + ... + z_n direction_n``: a box of inputs (n = d), a rectangle of a
plane (n = 2) or a segment (n = 1).

`refmmr.reference.cells` cuts a cell; `refmmr.reference.vertices` decides the signs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from refmmr.reference import rounding
from refmmr.reference.cells import Cell, Polygon, Polytope, box_cell
from refmmr.reference.network import Network, flat
from refmmr.reference.vertices import VertexTable

EXTRA_ROUNDINGS = 128
"""Roundings per layer in the error bounds, beyond those of the matrix products here.

A backend may also compute an affine map from that of a neighbouring cell, by a rank-one update for
each unit that differs.  These roundings cover both computations, so both decide the same signs.
"""

WORD = 64
"""Bits of a word of `Regions.touches`."""

Proceed = Callable[[int, int, int, int], bool]
"""Whether to continue: ``proceed(layer, split, cells, pieces)``, see `enumerate_regions`."""


class Domain(NamedTuple):
    """A box in coordinates z, (n,), and its affine map into the input space."""

    lo: np.ndarray  # (n,)
    hi: np.ndarray  # (n,)
    origin: np.ndarray  # (*input_shape): the input at z = 0
    directions: np.ndarray  # (n, *input_shape)


class Regions(NamedTuple):
    """R convex cells of n dimensions, concatenated: cell i has ``vertices[start_i:start_(i+1)]``.

    In the plane (n = 2) the vertices of a cell are in counter-clockwise order and its facet i is
    the edge from vertex i to vertex i + 1, so `touches` has no words.  In other dimensions the
    facets of a cell are in the order of their labels.
    """

    points: np.ndarray  # (V, n), each vertex once
    uncertain: np.ndarray  # (V,) bool: the sign of some unit was within its rounding error
    vertex_starts: np.ndarray  # (R + 1,) int
    vertices: np.ndarray  # (C,) int, rows of `points`
    touches: np.ndarray  # (C, words) uint64: bit j says that the vertex lies on facet j of its cell
    facet_starts: np.ndarray  # (R + 1,) int
    hyperplanes: np.ndarray  # (F,) int: the hidden unit that is 0 on the facet, or a `face_label`
    patterns: np.ndarray  # (R, ceil(N / 8)) uint8: `numpy.packbits` in the order "little"
    maps: np.ndarray  # (R, n + 1, K): the logits are z @ maps[:n] + maps[n]
    complete: bool  # False if the enumeration was stopped

    def cell(self, i: int) -> Cell:
        """Region i as a cell."""
        vertices = slice(*self.vertex_starts[i : i + 2])
        hyperplanes = self.hyperplanes[slice(*self.facet_starts[i : i + 2])]
        if self.points.shape[1] == 2:
            return Polygon(self.vertices[vertices], hyperplanes)
        touches = unpack(self.touches[vertices], len(hyperplanes))
        return Polytope(self.vertices[vertices], hyperplanes, touches)


def enumerate_regions(
    net: Network,
    domain: Domain,
    proceed: Proceed = lambda layer, split, cells, pieces: True,
    max_pieces: int | None = None,
) -> Regions:
    """All linear regions of a network in a domain.

    Parameters
    ----------
    net : Network
    domain : Domain
    proceed : callable, optional
        Called repeatedly, for progress and to stop early, with the number k of the hidden layer,
        the number of cells split by it so far, the number of all its cells, and the number of
        pieces so far.  If it returns False, the remaining cells are left out of the next layers and
        of the result.
    max_pieces : int, optional
        Stop in the same manner as soon as a layer has more pieces than this.

    Returns
    -------
    Regions
        In a fixed order: of two pieces of a cell, the first is the one on which the first unit
        whose sign differs is active.
    """
    cell, points = box_cell(domain.lo, domain.hi)
    cells: list[Cell] = [cell]
    patterns = np.zeros((1, 0), dtype=bool)
    table = VertexTable(points)
    maps = first_map(net, domain)
    errors = value_errors(net, domain)
    complete, limit = True, np.inf if max_pieces is None else max_pieces
    for k, units in enumerate(net.unit_slices):
        table.evaluate([cell.vertices for cell in cells], maps, errors[k])
        pieces: list[Cell] = []
        parents: list[int] = []
        active: list[np.ndarray] = []
        for i, cell in enumerate(cells):
            for piece, signs in split_cell(cell, table, units):
                pieces.append(piece)
                parents.append(i)
                active.append(signs)
                if len(pieces) > limit:
                    break
            goes_on = proceed(k + 1, i + 1, len(cells), len(pieces))
            if len(pieces) > limit or (not goes_on and i + 1 < len(cells)):
                complete = False
                break
        cells = pieces
        patterns = np.concatenate([patterns[parents], np.array(active)], axis=1)
        maps = next_maps(net, k, maps[parents] * np.array(active)[:, None])
    return _concatenated(cells, table, patterns, maps, complete)


def split_cell(cell: Cell, table: VertexTable, units: slice) -> Iterator[tuple[Cell, np.ndarray]]:
    """Cut a cell along the hyperplanes of a layer's units, depth first.

    Parameters
    ----------
    cell : Cell
    table : VertexTable
        With the values of the layer.
    units : slice
        The layer's units among all N; their numbers are the labels of the hyperplanes.

    Yields
    ------
    piece : Cell
    active : ndarray of bool, shape (N_k,)
        Which units are active on the piece.
    """
    n_units = units.stop - units.start
    waiting = [(cell, np.arange(n_units), np.zeros(n_units, dtype=bool))]
    while waiting:
        piece, crossing, active = waiting.pop()
        values = table.values_at(piece.vertices)[:, crossing]
        positive, negative = (values > 0).any(axis=0), (values < 0).any(axis=0)
        # A unit that has one sign on a piece has it on all pieces of the piece.
        active = active.copy()
        active[crossing] = positive
        crossing = crossing[positive & negative]
        if len(crossing) == 0:
            yield piece, active
            continue
        unit = int(crossing[0])
        above, below = piece.split(table, unit, crossing, units.start + unit)
        waiting += [(below, crossing, active), (above, crossing, active)]


def first_map(net: Network, domain: Domain) -> np.ndarray:
    """The first layer as an affine map of z, (1, n + 1, N_1): n directions, then f_1 at 0."""
    return _through(net, 0, np.concatenate([domain.directions, domain.origin[None]])[None])


def next_maps(net: Network, layer: int, maps: np.ndarray) -> np.ndarray:
    """Maps of a hidden layer's activations to those of the next layer's pre-activations.

    Parameters
    ----------
    net : Network
    layer : int
        The hidden layer, counted from 0.
    maps : ndarray, shape (c, n + 1, N_k)
        For each of c cells ``s_k * V_k``, a row per direction, then ``s_k * a_k``.

    Returns
    -------
    ndarray, shape (c, n + 1, N_{k+1})
        ``V_{k+1} = W_{k+1} diag(s_k) V_k`` and ``a_{k+1} = W_{k+1} diag(s_k) a_k + b_{k+1}``.
    """
    rows = maps.reshape(*maps.shape[:2], *net.unit_shapes[layer])
    return _through(net, layer + 1, rows)


def _through(net, k, rows):
    """Propagate the directions and, last, the point of each cell through affine layer k, from 0."""
    for layer in (net.layers[i] for i in net.span(k)):
        rows = np.concatenate([layer.linear(rows[:, :-1]), layer.apply(rows[:, -1:])], axis=1)
    return rows.reshape(*rows.shape[:2], -1)


def value_errors(net: Network, domain: Domain) -> list[np.ndarray]:
    """Bounds on the rounding error of each layer's values anywhere in the domain, (N_k,) each.

    The bounds grow with ``|x|``, so they are taken at the largest absolute value of each input.
    """
    if domain.lo.dtype == object:  # fractions are exact
        return [flat([np.zeros((1, *shape))])[0] for shape in (*net.unit_shapes, net.shapes[-1])]
    reach = np.maximum(np.abs(domain.lo), np.abs(domain.hi))
    largest = np.abs(domain.origin) + np.tensordot(reach, np.abs(domain.directions), axes=1)
    # Roundings of z -> x and of the sum over a map's rows, beyond those of the layers.
    extra = 2 * len(reach) + 2 + EXTRA_ROUNDINGS * len(net.affine)
    return [flat([bound])[0] for bound in rounding.value_errors(net, largest[None], extra=extra)]


def _concatenated(cells, table, patterns, maps, complete):
    """The cells as flat arrays."""
    plane = isinstance(cells[0], Polygon)
    if not plane:
        cells = [cell.sorted_facets() for cell in cells]
    words = 0 if plane else -(-max(len(cell.hyperplanes) for cell in cells) // WORD)
    return Regions(
        points=np.array(table.points),
        uncertain=np.array(table.uncertain),
        vertex_starts=np.cumsum([0, *(len(cell.vertices) for cell in cells)]),
        vertices=np.concatenate([cell.vertices for cell in cells]),
        touches=np.concatenate([pack(cell.touches, words) for cell in cells]),
        facet_starts=np.cumsum([0, *(len(cell.hyperplanes) for cell in cells)]),
        hyperplanes=np.concatenate([cell.hyperplanes for cell in cells]),
        patterns=np.packbits(patterns, axis=1, bitorder="little"),
        maps=maps,
        complete=complete,
    )


def pack(bits: np.ndarray, words: int) -> np.ndarray:
    """Rows of bools, (m, n), as the bits of words, (m, words) uint64."""
    padded = np.zeros((len(bits), words * WORD), dtype=np.uint8)
    padded[:, : bits.shape[1]] = bits[:, : padded.shape[1]]
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def unpack(words: np.ndarray, n: int) -> np.ndarray:
    """The inverse of `pack`: (m, words) uint64 to (m, n) bool."""
    as_bytes = np.ascontiguousarray(words).astype("<u8").view(np.uint8)
    return np.unpackbits(as_bytes, axis=1, count=n, bitorder="little").astype(bool)
