"""The vertex table: coordinates of each vertex, and the values of a layer's units there.

All cells of a subdivision refer to their vertices by numbers in one table.  So neighbouring cells
agree about the vertices that they share, and no sliver between them is lost or invented:

- The value of a unit at a vertex is computed once, by the affine map of one of the cells that have
  the vertex.  The network is continuous, so the maps of all these cells agree there.
- A vertex that a cut makes is identified by the edge and by the hyperplane that cuts it.  All cells
  that have the edge get the same vertex.
- In floating point, a unit has a sign at a vertex only where its value exceeds a bound on the
  rounding error (`refmmr.reference.rounding`).  Elsewhere the value is set to 0: the hyperplane
  passes through the vertex, so it does not cut a cell that it only touches.  Such a vertex is
  marked as uncertain.

Values at new vertices are interpolated along the edge, for all units at once, so no system of
linear equations is solved (edge subdivision: Berzins 2023).  With `fractions.Fraction` as numbers,
in arrays of objects, every value and every sign is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class VertexTable:
    """Vertices, each once, and the values of a layer's units at them.

    Attributes
    ----------
    points : list of ndarray, shape (n,)
        Coordinates of each vertex.
    values : list of ndarray, shape (N_k,)
        Values of the layer's units at each vertex; 0 where the sign is not certain.
    uncertain : list of bool
        Whether the sign of any unit, of any layer so far, was uncertain at the vertex.
    errors : ndarray, shape (N_k,)
        Bounds on the rounding errors of the values.
    """

    def __init__(self, points: np.ndarray) -> None:
        self.points = list(points)
        self.values: list[np.ndarray] = []
        self.uncertain = [False] * len(self.points)
        self.errors = np.zeros(0)
        self._on_edges: dict[tuple[int, int, int], int] = {}

    def evaluate(self, cells: Sequence[np.ndarray], maps: np.ndarray, errors: np.ndarray) -> None:
        """Evaluate a layer's units, at each vertex by the map of the first cell that has it.

        Parameters
        ----------
        cells : sequence of ndarray of int, shapes (m,)
            The vertices of each cell.
        maps : ndarray, shape (cells, n + 1, N_k)
            The affine map on each cell: ``z @ map[:n] + map[n]``.
        errors : ndarray, shape (N_k,)
            Bounds on the rounding errors; 0 for exact numbers.
        """
        self.errors = errors
        values: list[np.ndarray | None] = [None] * len(self.points)
        for vertices, affine in zip(cells, maps, strict=True):
            for vertex in vertices.tolist():
                if values[vertex] is None:
                    computed = self.points[vertex] @ affine[:-1] + affine[-1]
                    values[vertex] = self._with_certain_sign(computed)
                    self.uncertain[vertex] |= bool(self._is_uncertain(computed).any())
        nowhere = np.zeros_like(errors)
        self.values = [nowhere if row is None else row for row in values]

    def values_at(self, vertices: np.ndarray) -> np.ndarray:
        """Values of all units at some vertices, (m,) int to (m, N_k)."""
        return np.array([self.values[vertex] for vertex in vertices.tolist()])

    def cut_edge(self, a: int, b: int, unit: int, crossing: np.ndarray, label: int) -> int:
        """The vertex where a unit is 0 on an edge; it is added to the table if it is new.

        Parameters
        ----------
        a, b : int
            The ends of the edge: the unit is positive at a and negative at b.
        unit : int
        crossing : ndarray of int
            The units that change sign on the cell: only their signs at the vertex matter.
        label : int
            The label of the unit's hyperplane.

        Returns
        -------
        int
            The number of the vertex.
        """
        vertex = self._on_edges.setdefault((a, b, label), len(self.points))
        f, g = self.values[a], self.values[b]
        t = f[unit] / (f[unit] - g[unit])
        computed = f + t * (g - f)
        # The errors of f[unit] and g[unit] shift t by this much, and values by |g - f| times that.
        shift = self.errors[unit] / abs(f[unit] - g[unit]) if self.errors[unit] else 0
        others = crossing[crossing != unit]
        uncertain = bool(self._is_uncertain(computed, shift * np.abs(g - f))[others].any())
        if vertex == len(self.points):
            values = self._with_certain_sign(computed)
            values[unit] = 0
            self.points.append(self.points[a] + t * (self.points[b] - self.points[a]))
            self.values.append(values)
            self.uncertain.append(False)
        self.uncertain[vertex] |= uncertain
        return vertex

    def _with_certain_sign(self, values: np.ndarray) -> np.ndarray:
        """The values that exceed their errors; 0 for the others."""
        return np.where(np.abs(values) > self.errors, values, 0)

    def _is_uncertain(self, values: np.ndarray, extra: np.ndarray | int = 0) -> np.ndarray:
        """Whether values are within their errors plus `extra`; False where they are exact."""
        return (np.abs(values) <= self.errors + extra) & (self.errors > 0)
