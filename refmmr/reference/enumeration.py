"""Exact enumeration of the linear regions in a box, by splitting polytopes layer by layer.

Start with one convex cell, the domain.  On it the first layer is affine, so each unit is zero on a
hyperplane: cut every cell along the hyperplane of every unit that changes sign on it.  On each of
the pieces the pattern of the first layer is fixed, so the second layer is affine there: cut again;
and so on.  What is left in the end are the linear regions: every unit has one sign on each.

The domain is a box in coordinates z of n dimensions, and the input of the network is
``origin + z_1 direction_1 + ... + z_n direction_n``: an input space itself (n = d), a plane in it
(n = 2) or a line (n = 1).

Three things keep neighbours in agreement, so that no sliver is lost and none is invented:

- The value of a unit at a vertex is computed once, from the affine map of one of the cells around
  it.  The network is continuous: all of the maps agree there.
- A vertex made by a cut has a name: the edge that was cut, and the hyperplane.  All the cells around the
  edge find the same vertex under that name.
- In floats the sign of a unit at a vertex is decided only where its value is larger than its
  rounding error (`refmmr.reference.rounding`).  Within that error the value is taken to be 0 and
  the hyperplane to pass through the vertex, so a cell is never cut along a hyperplane that only touches it.
  Vertices where that happened are marked as uncertain.

With `fractions.Fraction` as numbers (object arrays) every sign is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from refmmr.reference import rounding
from refmmr.reference.network import Network, flat

WORD = 64
"""Bits in which a vertex remembers the facets that it touches."""


UPDATES = 128
"""Roundings a layer that the bounds allow for where a backend makes one map out of another."""


UNLIMITED = 2**62
"""Pieces that there are never more of."""


class Domain(NamedTuple):
    """A box in coordinates z, (n,), and where it lies in the input space."""

    lo: np.ndarray  # (n,)
    hi: np.ndarray  # (n,)
    origin: np.ndarray  # (*input_shape), the input at z = 0
    directions: np.ndarray  # (n, *input_shape)


class Regions(NamedTuple):
    """R convex cells of n dimensions; those of one are beside those of the next in every array.

    Vertices are numbers, rows of `points`.  In the plane the vertices of a cell go counter-clockwise
    and its facet i is the edge from vertex i to vertex i + 1; `touches` is empty then.
    """

    points: np.ndarray  # (V, n)
    uncertain: np.ndarray  # (V,) bool: some sign there was within its rounding error
    vertex_starts: np.ndarray  # (R + 1,) int
    vertices: np.ndarray  # (C,) int
    touches: np.ndarray  # (C, words) uint64: bit i says that the vertex lies on facet i of its cell
    facet_starts: np.ndarray  # (R + 1,) int
    hyperplanes: (
        np.ndarray
    )  # (F,) int, the unit that is 0 on a facet, or a `face`; rising if n is not 2
    patterns: np.ndarray  # (R, ceil(N / 8)) uint8: `numpy.packbits`, little
    maps: np.ndarray  # (R, n + 1, K): the logits are z @ maps[:n] + maps[n]
    complete: bool  # false if it was told to stop


def face(axis: int, upper: bool) -> int:
    """The hyperplane of a facet that lies on the domain's own face, where z[axis] is lo or hi."""
    return -1 - 2 * axis - upper


# ---- Cells.


class Polygon(NamedTuple):
    """A convex cell of the plane."""

    vertices: np.ndarray  # (m,) int, counter-clockwise
    hyperplanes: np.ndarray  # (m,) int: of the edge from vertex i to vertex i + 1

    def split(
        self, table: VertexTable, unit: int, units: np.ndarray, hyperplane: int
    ) -> list[Polygon]:
        """Cut along the line where a unit is 0: the positive and the negative side.

        Parameters
        ----------
        table : VertexTable
            Gets the vertices that the cut makes.
        unit : int
            A unit of the layer at hand that has both signs at the vertices.
        units : ndarray of int
            Those whose signs will be asked for at the new vertices.
        hyperplane : int
            Label of the new facet.
        """
        f = table.values_at(self.vertices)[:, unit].tolist()
        numbers = self.vertices.tolist()
        vertices, hyperplanes, signs = [], [], []
        for i, (a, hyperplane_here) in enumerate(
            zip(numbers, self.hyperplanes.tolist(), strict=True)
        ):
            vertices.append(a)
            hyperplanes.append(hyperplane_here)
            signs.append((f[i] > 0) - (f[i] < 0))
            j = (i + 1) % len(numbers)
            if f[i] > 0 > f[j] or f[i] < 0 < f[j]:
                ends = (a, numbers[j]) if f[i] > 0 else (numbers[j], a)
                vertices.append(table.between(*ends, unit, units, hyperplane))
                hyperplanes.append(hyperplane_here)
                signs.append(0)
        whole = Polygon(np.array(vertices), np.array(hyperplanes))
        return [whole._side(np.array(signs) * sign >= 0, hyperplane) for sign in (1, -1)]

    def _side(self, keep: np.ndarray, hyperplane: int) -> Polygon:
        """The vertices on one side of a line; the edge that closes the piece lies on the line."""
        kept = np.flatnonzero(keep)
        # The kept vertices follow each other around the polygon, except across the cut.
        leaves = ~keep[(kept + 1) % len(keep)]
        return Polygon(self.vertices[kept], np.where(leaves, hyperplane, self.hyperplanes[kept]))


class Polytope(NamedTuple):
    """A convex cell of any dimension; its edges and faces are known by what vertices touch."""

    vertices: np.ndarray  # (m,) int
    hyperplanes: np.ndarray  # (F,) int: one a facet
    touches: np.ndarray  # (m, F) bool: vertex i lies on facet j

    def split(
        self, table: VertexTable, unit: int, units: np.ndarray, hyperplane: int
    ) -> list[Polytope]:
        """Cut along the hyperplane where a unit is 0; see `Polygon.split`."""
        f = table.values_at(self.vertices)[:, unit]
        edges = self._edges(f > 0, f < 0, n=len(table.points[0]))
        new = [
            table.between(self.vertices[i], self.vertices[j], unit, units, hyperplane)
            for i, j in edges
        ]
        common = self.touches[edges[:, 0]] & self.touches[edges[:, 1]]
        on_cut = np.concatenate([f == 0, np.ones(len(new), dtype=bool)])
        whole = Polytope(
            np.concatenate([self.vertices, np.array(new, dtype=int)]),
            np.append(self.hyperplanes, hyperplane),
            np.column_stack([np.concatenate([self.touches, common]), on_cut]),
        )
        sides = np.concatenate([np.sign(f).astype(int), np.zeros(len(new), dtype=int)])
        return [whole._side(sides * sign) for sign in (1, -1)]

    def _edges(self, above: np.ndarray, below: np.ndarray, n: int) -> np.ndarray:
        """Pairs (vertex above, vertex below) that an edge joins, (e, 2).

        An edge lies on n - 1 facets at least, and no third vertex touches all of them.
        """
        i, j = np.nonzero(above[:, None] & below)
        common = self.touches[i] & self.touches[j]
        many = common.sum(axis=1) >= n - 1
        i, j, common = i[many], j[many], common[many].astype(np.intp)
        touched = common @ self.touches.T.astype(np.intp) == common.sum(axis=1)[:, None]
        ends = touched.sum(axis=1) == 2
        return np.column_stack([i[ends], j[ends]])

    def _side(self, sides: np.ndarray) -> Polytope:
        """The vertices where `sides` is not negative; the last facet is the cut.

        Another facet stays if one of its vertices is really on that side.
        """
        keep = sides >= 0
        facets = np.append(self.touches[sides > 0, :-1].any(axis=0), True)
        return Polytope(
            self.vertices[keep], self.hyperplanes[facets], self.touches[keep][:, facets]
        )


class VertexTable:
    """The table of all vertices: where each one is, and the layer's values there."""

    def __init__(self, points: np.ndarray) -> None:
        self.points = list(points)
        self.values: list[np.ndarray] = []
        self.uncertain = [False] * len(self.points)
        self.errors = np.zeros(0)
        self._names: dict[tuple[int, int, int], int] = {}

    def evaluate(self, cells: Sequence[Cell], maps: np.ndarray, errors: np.ndarray) -> None:
        """Evaluate a layer's units, each vertex by the map of the first cell that it belongs to.

        Parameters
        ----------
        cells : sequence of Polygon or Polytope
        maps : ndarray, shape (cells, n + 1, N_k)
        errors : ndarray, shape (N_k,)
            Bounds on the rounding errors.
        """
        self.errors = errors
        values: list[np.ndarray | None] = [None] * len(self.points)
        for cell, rows in zip(cells, maps, strict=True):
            for number in cell.vertices.tolist():
                if values[number] is None:
                    exact = self.points[number] @ rows[:-1] + rows[-1]
                    values[number] = self._decided(exact)
                    self.uncertain[number] |= bool(self._doubtful(exact).any())
        nowhere = np.zeros_like(errors)
        self.values = [nowhere if row is None else row for row in values]

    def values_at(self, numbers: np.ndarray) -> np.ndarray:
        """Decided values at some vertices, (m, N_k)."""
        return np.array([self.values[number] for number in numbers.tolist()])

    def between(self, a: int, b: int, unit: int, units: np.ndarray, hyperplane: int) -> int:
        """The vertex where a unit is 0 on the edge from a, where it is positive, to b."""
        number = self._names.setdefault((a, b, hyperplane), len(self.points))
        f, g = self.values[a], self.values[b]
        t = f[unit] / (f[unit] - g[unit])
        exact = f + t * (g - f)
        others = units[units != unit]
        # If the two values are wrong by their errors, the hyperplane crosses the edge a little off t.
        slip = self.errors[unit] / abs(f[unit] - g[unit]) if self.errors[unit] else 0
        doubtful = bool(self._doubtful(exact, slip * np.abs(g - f))[others].any())
        if number == len(self.points):
            value = self._decided(exact)
            value[unit] = 0
            self.points.append(self.points[a] + t * (self.points[b] - self.points[a]))
            self.values.append(value)
            self.uncertain.append(False)
        self.uncertain[number] |= doubtful
        return number

    def _decided(self, values: np.ndarray) -> np.ndarray:
        """The values whose sign is certain; 0 for the others."""
        return np.where(np.abs(values) > self.errors, values, 0)

    def _doubtful(self, values: np.ndarray, more: np.ndarray | int = 0) -> np.ndarray:
        return (np.abs(values) <= self.errors + more) & (self.errors > 0)


Cell = Polygon | Polytope


def domain_cell(domain: Domain) -> tuple[Cell, np.ndarray]:
    """The domain as a cell, and its vertices, (2 ** n, n)."""
    n = len(domain.lo)
    if n == 2:
        upper = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=bool)
        hyperplanes = [
            face(1, upper=False),
            face(0, upper=True),
            face(1, upper=True),
            face(0, False),
        ]
        return Polygon(np.arange(4), np.array(hyperplanes)), np.where(upper, domain.hi, domain.lo)
    upper = np.array(list(product([False, True], repeat=n)))
    hyperplanes = [face(axis, end) for axis in range(n) for end in (False, True)]
    touches = np.stack([~upper, upper], axis=2).reshape(len(upper), 2 * n)
    cell = _sorted_facets(Polytope(np.arange(len(upper)), np.array(hyperplanes), touches))
    return cell, np.where(upper, domain.hi, domain.lo)


# ---- The enumeration.


def enumerate_regions(
    net: Network,
    domain: Domain,
    go_on: Callable[[int, int, int, int], bool] = lambda layer, done, cells, pieces: True,
    most: int = UNLIMITED,
) -> Regions:
    """All linear regions of a network in a domain.

    Parameters
    ----------
    net : Network
    domain : Domain
    go_on : callable, optional
        Told, now and then, the number of the hidden layer, how many of its cells are split, out of
        how many, and into how many pieces.  If it returns False the other cells are left out.
    most : int, optional
        So are those, and what is left of a cell, when a layer has more pieces than these.

    Returns
    -------
    Regions
        In a fixed order: of two pieces of a cell the one where the first unit that tells them apart
        is active comes first.
    """
    cell, points = domain_cell(domain)
    cells: list[Cell] = [cell]
    patterns = np.zeros((1, 0), dtype=bool)
    table = VertexTable(points)
    maps = first_map(net, domain)
    errors = value_errors(net, domain)
    complete = True
    for k, shape in enumerate(net.unit_shapes):
        table.evaluate(cells, maps, errors[k])
        pieces: list[Cell] = []
        parents: list[int] = []
        active: list[np.ndarray] = []
        first_unit = patterns.shape[1]
        for i, cell in enumerate(cells):
            for piece, signs in split_cell(cell, table, int(np.prod(shape)), first_unit):
                pieces.append(piece)
                parents.append(i)
                active.append(signs)
                if len(pieces) > most:
                    break
            told = go_on(k + 1, i + 1, len(cells), len(pieces))
            if len(pieces) > most or (not told and i + 1 < len(cells)):
                complete = False
                break
        cells = pieces
        patterns = np.concatenate([patterns[parents], np.array(active)], axis=1)
        maps = next_maps(net, k, maps[parents] * np.array(active)[:, None])
    return _side_by_side(cells, table, patterns, maps, complete)


def split_cell(
    cell: Cell, table: VertexTable, n_units: int, first_unit: int
) -> Iterator[tuple[Cell, np.ndarray]]:
    """Cut a cell along the hyperplanes of a layer's units: pieces, and which units are active on each."""
    waiting = [(cell, np.arange(n_units), np.zeros(n_units, dtype=bool))]
    while waiting:
        piece, units, active = waiting.pop()
        values = table.values_at(piece.vertices)[:, units]
        above, below = (values > 0).any(axis=0), (values < 0).any(axis=0)
        # A unit that has one sign on a piece has it on all pieces of the piece.
        active = active.copy()
        active[units] = above
        units = units[above & below]
        if len(units) == 0:
            yield piece, active
            continue
        positive, negative = piece.split(table, int(units[0]), units, first_unit + int(units[0]))
        waiting += [(negative, units, active), (positive, units, active)]


def first_map(net: Network, domain: Domain) -> np.ndarray:
    """The first layer as an affine map of z, (1, n + 1, N_1): n directions, then the value at 0."""
    rows = np.concatenate([domain.directions, domain.origin[None]])[None]
    return _through(net, rows, 0, net.affine[0] + 1)


def next_maps(net: Network, layer: int, maps: np.ndarray) -> np.ndarray:
    """Maps of a hidden layer's activations to those of the next layer's pre-activations.

    Parameters
    ----------
    net : Network
    layer : int
        k - 1, a position among the layers with weights.
    maps : ndarray, shape (c, n + 1, N_k)
        Of each of c cells: ``s_k * V_k``, one row a direction, then ``s_k * a_k``.

    Returns
    -------
    ndarray, shape (c, n + 1, N_{k+1})
        ``V_{k+1} = W_{k+1} diag(s_k) V_k`` and ``a_{k+1} = W_{k+1} diag(s_k) a_k + b_{k+1}``.
    """
    rows = maps.reshape(*maps.shape[:2], *net.unit_shapes[layer])
    return _through(net, rows, net.affine[layer] + 1, net.affine[layer + 1] + 1)


def value_errors(net: Network, domain: Domain) -> list[np.ndarray]:
    """Bounds on the rounding error of each layer's values anywhere in the domain, (N_k,) each.

    The bounds grow with ``|x|``, so they are largest where every coordinate is.
    """
    if domain.lo.dtype == object:  # fractions make no errors
        return [flat([np.zeros((1, *shape))])[0] for shape in (*net.unit_shapes, net.shapes[-1])]
    reach = np.maximum(np.abs(domain.lo), np.abs(domain.hi))
    largest = np.abs(domain.origin) + np.tensordot(reach, np.abs(domain.directions), axes=1)
    # Of z -> x, of the sum of a map's rows, and of maps that are updated instead of made afresh.
    extra = 2 * len(reach) + 2 + UPDATES * len(net.affine)
    return [flat([bound])[0] for bound in rounding.value_errors(net, largest[None], extra=extra)]


def _through(net, rows, start, stop):
    """Send directions and, last, one point of each cell through some layers."""
    for layer in net.layers[start:stop]:
        rows = np.concatenate([layer.linear(rows[:, :-1]), layer.apply(rows[:, -1:])], axis=1)
    return rows.reshape(*rows.shape[:2], -1)


def _side_by_side(cells, table, patterns, maps, complete):
    """The cells as flat arrays."""
    plane = isinstance(cells[0], Polygon)
    if not plane:
        cells = [_sorted_facets(cell) for cell in cells]
    words = 0 if plane else -(-max(len(cell.hyperplanes) for cell in cells) // WORD)
    return Regions(
        points=np.array(table.points),
        uncertain=np.array(table.uncertain),
        vertex_starts=np.cumsum([0, *(len(cell.vertices) for cell in cells)]),
        vertices=np.concatenate([cell.vertices for cell in cells]),
        touches=np.concatenate([pack(cell_touches(cell), words) for cell in cells]),
        facet_starts=np.cumsum([0, *(len(cell.hyperplanes) for cell in cells)]),
        hyperplanes=np.concatenate([cell.hyperplanes for cell in cells]),
        patterns=np.packbits(patterns, axis=1, bitorder="little"),
        maps=maps,
        complete=complete,
    )


def _sorted_facets(cell):
    """The same polytope with its facets in the order of their hyperplanes."""
    order = np.argsort(cell.hyperplanes)
    return Polytope(cell.vertices, cell.hyperplanes[order], cell.touches[:, order])


def pack(touches: np.ndarray, words: int) -> np.ndarray:
    """Rows of bools as rows of words, uint64; bit i of the row is its entry i.  No more fit."""
    bits = np.zeros((len(touches), words * WORD), dtype=np.uint8)
    n = min(touches.shape[1], bits.shape[1])
    bits[:, :n] = touches[:, :n]
    return np.packbits(bits, axis=1, bitorder="little").view("<u8").astype(np.uint64)


# ---- Single cells.


def region_cell(regions: Regions, i: int) -> Cell:
    """Region i as a cell of its own."""
    vertices = regions.vertices[regions.vertex_starts[i] : regions.vertex_starts[i + 1]]
    hyperplanes = regions.hyperplanes[regions.facet_starts[i] : regions.facet_starts[i + 1]]
    if regions.points.shape[1] == 2:
        return Polygon(vertices, hyperplanes)
    return Polytope(vertices, hyperplanes, touching(regions, i))


def cell_touches(cell: Cell) -> np.ndarray:
    """Which vertex of a cell touches which of its facets, (m, F) bool."""
    if isinstance(cell, Polytope):
        return cell.touches
    edges = np.eye(len(cell.hyperplanes), dtype=bool)
    return edges | np.roll(edges, -1, axis=1)


def touching(regions: Regions, i: int) -> np.ndarray:
    """Which vertex of region i touches which of its facets, (m, F) bool."""
    start, stop = regions.vertex_starts[i : i + 2]
    n_facets = int(np.diff(regions.facet_starts[i : i + 2])[0])
    words = np.ascontiguousarray(regions.touches[start:stop]).astype("<u8").view(np.uint8)
    return np.unpackbits(words, axis=1, count=n_facets, bitorder="little").astype(bool)
