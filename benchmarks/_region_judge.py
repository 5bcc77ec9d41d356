"""Who is right where tools that count regions differ: each pattern in dispute is checked exactly.

A pattern is real if the points of the box that have it form a set of full dimension.  The rows
``a x + c`` whose signs make the pattern are computed in integers, from the network's own numbers (a
float is a fraction whose denominator is a power of two), so that no rounding takes part.  In the
plane the box is clipped by all of them in fractions, and the pattern is real if some area is left.
In more dimensions a linear program proposes a point, which is a proof if its signs are right in
exact arithmetic; where it finds that there is none, its word is taken.

What all tools missed is searched for too: patterns of random points join those in dispute, and on
small networks in the plane the exact areas of the regions must add up to that of the box.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from _region_rivals import Layers, patterns_at
from scipy.optimize import linprog

MOST = 300
"""Patterns in dispute that are checked at most; a sample if there are more."""
POINTS = 20_000
"""Random points."""
FEW = 2000
"""Regions of which the areas are added up."""


def verdicts(claims: dict[str, np.ndarray], layers: Layers, radius: float) -> dict[str, dict]:
    """What each tool got wrong, by the packed patterns (regions, bytes) that it claims.

    Returns for each tool `distinct` patterns, `wrong` ones (no region has them) and `missed` ones;
    `checked`: (patterns checked, patterns in dispute), the same for all of them; and `gap`, the
    share of the box that the regions leave over, where it was computed.
    """
    sets = {tool: {row.tobytes() for row in packed} for tool, packed in claims.items()}
    points = np.random.default_rng(0).uniform(-radius, radius, (POINTS, layers[0][0].shape[1]))
    met = {row.tobytes() for row in np.packbits(patterns_at(points, layers), axis=1)}
    disputed = sorted(met.union(*sets.values()) - set.intersection(*sets.values()))
    checked = disputed
    if len(disputed) > MOST:
        picked = np.random.default_rng(0).choice(len(disputed), MOST, replace=False)
        checked = [disputed[i] for i in picked]
    exact = Exact(layers, radius)
    real = {key for key in checked if exact.real(key)}
    return {
        tool: {
            "distinct": len(found),
            "wrong": sum(key in found and key not in real for key in checked),
            "missed": sum(key not in found and key in real for key in checked),
            "checked": (len(checked), len(disputed)),
            "gap": exact.gap(found),
        }
        for tool, found in sets.items()
    }


class Exact:
    """A network in integers: all numbers times a power of two."""

    def __init__(self, layers: Layers, radius: float) -> None:
        self.radius = Fraction(radius)
        numbers = [float(v) for pair in layers[:-1] for array in pair for v in array.flat]
        self.scale = max(Fraction(v).denominator for v in numbers)
        self.layers = [(self._integers(W), self._integers(b)) for W, b in layers[:-1]]
        self.n, self.units = layers[0][0].shape[1], sum(len(b) for _, b in layers[:-1])
        self._areas: dict[bytes, Fraction] = {}

    def _integers(self, array: np.ndarray) -> np.ndarray:
        whole = [int(Fraction(float(v)) * self.scale) for v in array.flat]
        return np.array(whole, dtype=object).reshape(array.shape)

    def real(self, key: bytes) -> bool:
        """Whether a region of full dimension has this packed pattern."""
        return self.area(key) > 0 if self.n == 2 else self._inner_point(self._rows(key))

    def area(self, key: bytes) -> Fraction:
        """Area of a pattern's region in the plane."""
        if key not in self._areas:
            self._areas[key] = self._area(self._rows(key))
        return self._areas[key]

    def gap(self, keys: set[bytes]) -> float | None:
        """Share of the box that few regions in the plane leave over; 1e-16 or so is rounding."""
        if self.n != 2 or len(keys) > FEW:
            return None
        return 1 - math.fsum(float(self.area(key)) for key in keys) / float(2 * self.radius) ** 2

    def _rows(self, key: bytes) -> list[list[int]]:
        """Rows (a, c) with a x + c >= 0 for all points of the pattern, one for each unit."""
        pattern = np.unpackbits(np.frombuffer(key, np.uint8))[: self.units].astype(bool)
        maps = np.concatenate([np.eye(self.n, dtype=int), np.zeros((self.n, 1), dtype=int)], axis=1)
        maps, scale, rows, first = maps.astype(object), 1, [], 0
        for W, b in self.layers:
            maps = W.dot(maps)
            maps[:, -1] += b * scale
            scale *= self.scale
            on = pattern[first : first + len(b)]
            rows += [row if active else -row for row, active in zip(maps, on, strict=True)]
            maps = np.where(on[:, None], maps, 0)
            first += len(b)
        return [[int(v) for v in row] for row in rows]

    def _area(self, rows: list[list[int]]) -> Fraction:
        """Area of what the half-planes leave of the square."""
        r = self.radius
        vertices = [(-r, -r), (r, -r), (r, r), (-r, r)]
        for row in rows:
            vertices = clip(vertices, *row)
            if not vertices:
                return Fraction(0)
        pairs = zip(vertices, vertices[1:] + vertices[:1], strict=True)
        return sum((x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs), Fraction(0)) / 2

    def _inner_point(self, rows: list[list[int]]) -> bool:
        """Whether the centre of the largest ball, as found in floats, proves the pattern real."""
        if any(row[-1] < 0 for row in rows if not any(row[:-1])):
            return False
        rows = [row for row in rows if any(row[:-1])]
        A = np.array([[float(v) for v in _shortened(row)] for row in rows])
        lengths = np.sqrt((A[:, :-1] ** 2).sum(axis=1))
        A /= lengths[:, None]
        r = float(self.radius)
        sides = np.concatenate([np.eye(self.n), -np.eye(self.n)])
        left = np.concatenate([-A[:, :-1], sides])
        found = linprog(
            np.eye(self.n + 1)[-1] * -1,
            A_ub=np.concatenate([left, np.ones((len(left), 1))], axis=1),
            b_ub=np.concatenate([A[:, -1], np.full(2 * self.n, r)]),
            bounds=[(None, None)] * (self.n + 1),
        )
        if found.status != 0 or found.x[-1] <= 0:
            return False
        point = [Fraction(float(v)) for v in found.x[:-1]] + [Fraction(1)]
        signs = [sum(a * x for a, x in zip(row, point, strict=True)) > 0 for row in rows]
        return all(signs) and max(map(abs, point[:-1])) < self.radius


def clip(vertices: list[tuple[Fraction, Fraction]], a: int, b: int, c: int) -> list:
    """The part of a convex polygon where a x + b y + c >= 0."""
    values = [a * x + b * y + c for x, y in vertices]
    if all(value >= 0 for value in values):
        return vertices
    kept = []
    for i, (here, value) in enumerate(zip(vertices, values, strict=True)):
        j = i - 1
        if value * values[j] < 0:
            share = values[j] / (values[j] - value)
            kept.append(tuple(p + share * (q - p) for p, q in zip(vertices[j], here, strict=True)))
        if value >= 0:
            kept.append(here)
    return kept


def _shortened(row: list[int]) -> list[Fraction]:
    """The row divided by a power of two, so that it fits into floats."""
    bits = max(abs(v).bit_length() for v in row)
    return [Fraction(v, 1 << bits) for v in row]
