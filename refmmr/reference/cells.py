"""Convex cells: a polygon or polytope, and how a hyperplane cuts it in two.

A cell lists its vertices, by their numbers in a `VertexTable`, and its facets, by the label of the
hyperplane that each lies on.  To cut a cell where a unit is 0, only the unit's signs at the
vertices are needed.  Every edge from a positive to a negative vertex gets a new vertex.  Each of
the two parts has the old vertices of one sign, the vertices where the unit is 0, and one new facet,
the cut.

- A polygon keeps its vertices in counter-clockwise order, so its edges join neighbours in the list.
- A polytope of another dimension keeps which vertex touches which facet.  This is enough to tell
  which vertices an edge joins (the double description method: Motzkin, Raiffa, Thompson and Thrall
  1953).
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np

from refmmr.reference.vertices import VertexTable


class Polygon(NamedTuple):
    """A convex cell of the plane."""

    vertices: np.ndarray  # (m,) int, counter-clockwise
    hyperplanes: np.ndarray  # (m,) int: label of the edge from vertex i to vertex i + 1

    @property
    def touches(self) -> np.ndarray:
        """Which vertex touches which edge, (m, m) bool: vertex i ends the edges i - 1 and i."""
        edges = np.eye(len(self.vertices), dtype=bool)
        return edges | np.roll(edges, -1, axis=1)

    def split(
        self, table: VertexTable, unit: int, crossing: np.ndarray, label: int
    ) -> tuple[Polygon, Polygon]:
        """Cut along the line where a unit is 0.

        Parameters
        ----------
        table : VertexTable
            Gets the new vertices.
        unit : int
            A unit of the layer that the table holds the values of, with both signs at the vertices.
        crossing : ndarray of int
            All units of the layer that may change sign on the cell.
        label : int
            Label of the new facet.

        Returns
        -------
        positive, negative : Polygon
        """
        f = table.values_at(self.vertices)[:, unit].tolist()
        numbers, labels = self.vertices.tolist(), self.hyperplanes.tolist()
        vertices, hyperplanes, signs = [], [], []
        for i, (a, edge) in enumerate(zip(numbers, labels, strict=True)):
            vertices.append(a)
            hyperplanes.append(edge)
            signs.append((f[i] > 0) - (f[i] < 0))
            j = (i + 1) % len(numbers)
            if f[i] > 0 > f[j] or f[i] < 0 < f[j]:
                # From the positive end, so that both cells at the edge compute the same vertex.
                ends = (a, numbers[j]) if f[i] > 0 else (numbers[j], a)
                vertices.append(table.cut_edge(*ends, unit, crossing, label))
                hyperplanes.append(edge)
                signs.append(0)
        whole = Polygon(np.array(vertices), np.array(hyperplanes))
        return whole._part(np.array(signs) >= 0, label), whole._part(np.array(signs) <= 0, label)

    def _part(self, keep: np.ndarray, label: int) -> Polygon:
        """The polygon of some vertices, consecutive except for one gap, which the cut closes."""
        kept = np.flatnonzero(keep)
        before_gap = ~keep[(kept + 1) % len(keep)]
        return Polygon(self.vertices[kept], np.where(before_gap, label, self.hyperplanes[kept]))


class Polytope(NamedTuple):
    """A convex cell of any dimension n."""

    vertices: np.ndarray  # (m,) int
    hyperplanes: np.ndarray  # (F,) int: label of each facet
    touches: np.ndarray  # (m, F) bool: vertex i lies on facet j

    def split(
        self, table: VertexTable, unit: int, crossing: np.ndarray, label: int
    ) -> tuple[Polytope, Polytope]:
        """Cut along the hyperplane where a unit is 0; see `Polygon.split`."""
        f = table.values_at(self.vertices)[:, unit]
        edges = self._edges(f > 0, f < 0, n=len(table.points[0]))
        new = [
            table.cut_edge(self.vertices[i], self.vertices[j], unit, crossing, label)
            for i, j in edges
        ]
        # A new vertex lies on the facets that its edge lies on, and on the cut.
        touched = self.touches[edges[:, 0]] & self.touches[edges[:, 1]]
        on_cut = np.concatenate([f == 0, np.ones(len(new), dtype=bool)])
        whole = Polytope(
            np.concatenate([self.vertices, np.array(new, dtype=int)]),
            np.append(self.hyperplanes, label),
            np.column_stack([np.concatenate([self.touches, touched]), on_cut]),
        )
        signs = np.concatenate([np.sign(f).astype(int), np.zeros(len(new), dtype=int)])
        return whole._part(signs), whole._part(-signs)

    def _edges(self, positive: np.ndarray, negative: np.ndarray, n: int) -> np.ndarray:
        """The edges from a positive to a negative vertex, (e, 2).

        An edge joins two vertices if they touch at least n - 1 common facets, and no third vertex
        touches all of these.
        """
        i, j = np.nonzero(positive[:, None] & negative)
        common = self.touches[i] & self.touches[j]
        enough = common.sum(axis=1) >= n - 1
        i, j, common = i[enough], j[enough], common[enough].astype(np.intp)
        touch_all = common @ self.touches.T.astype(np.intp) == common.sum(axis=1)[:, None]
        alone = touch_all.sum(axis=1) == 2
        return np.column_stack([i[alone], j[alone]])

    def _part(self, signs: np.ndarray) -> Polytope:
        """The polytope of the vertices whose sign is not negative; its last facet is the cut.

        Another facet remains if it has a vertex of positive sign.
        """
        keep = signs >= 0
        facets = np.append(self.touches[signs > 0, :-1].any(axis=0), True)
        return Polytope(
            self.vertices[keep], self.hyperplanes[facets], self.touches[keep][:, facets]
        )

    def sorted_facets(self) -> Polytope:
        """The same polytope with its facets in the order of their labels."""
        order = np.argsort(self.hyperplanes)
        return Polytope(self.vertices, self.hyperplanes[order], self.touches[:, order])


Cell = Polygon | Polytope


def face_label(axis: int, upper: bool) -> int:
    """Label, negative, of the facets on the face of the domain where ``z[axis]`` is lo or hi."""
    return -1 - 2 * axis - upper


def box_cell(lo: np.ndarray, hi: np.ndarray) -> tuple[Cell, np.ndarray]:
    """A box with bounds (n,) as a cell, and its vertices, (2 ** n, n)."""
    n = len(lo)
    if n == 2:
        upper = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=bool)
        labels = [face_label(*edge) for edge in ((1, False), (0, True), (1, True), (0, False))]
        return Polygon(np.arange(4), np.array(labels)), np.where(upper, hi, lo)
    upper = np.array(list(product([False, True], repeat=n)))
    labels = [face_label(axis, end) for axis in range(n) for end in (False, True)]
    touches = np.stack([~upper, upper], axis=2).reshape(len(upper), 2 * n)
    cell = Polytope(np.arange(len(upper)), np.array(labels), touches).sorted_facets()
    return cell, np.where(upper, hi, lo)
