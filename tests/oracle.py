"""The exact minimal adversarial perturbation of networks on the plane, in rational arithmetic.

It shares no code with the library: half-planes cut a polygon into the parts on which a network is
affine, and those into the parts where a class wins.  Floats are taken as the rational numbers that
they are, so a distance is a rational number (in l_2 its square is).
"""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np

FAR = Fraction(2) ** 1100
"""Half the side of the square that stands for the whole plane: farther than any float."""


def exact(array):
    """Rows of fractions."""
    if np.ndim(array) == 0:
        return Fraction(float(array))
    return [exact(part) for part in array]


def value(row, z):
    """An affine function ``(w_0, w_1, c)`` at a point."""
    return row[0] * z[0] + row[1] * z[1] + row[2]


def clip(polygon, row):
    """The part of a convex polygon where an affine function is >= 0; its vertices in order.

    A part that is a point or a segment has one or two vertices.
    """
    values = [value(row, z) for z in polygon]
    kept = []
    for i, (z, v) in enumerate(zip(polygon, values, strict=True)):
        if v >= 0:
            kept.append(z)
        after, w = polygon[(i + 1) % len(polygon)], values[(i + 1) % len(polygon)]
        if v * w < 0:
            t = v / (v - w)
            kept.append((z[0] + t * (after[0] - z[0]), z[1] + t * (after[1] - z[1])))
    return list(dict.fromkeys(kept))


def has_area(polygon):
    """Whether a polygon is more than a segment."""
    sides = [(z[0] - polygon[0][0], z[1] - polygon[0][1]) for z in polygon[1:]]
    return any(a[0] * b[1] != a[1] * b[0] for a, b in pairwise(sides))


def affine_pieces(net, polygon):
    """Polygons, and the affine functions of the logits on each."""
    identity = [[Fraction(1), Fraction(0), Fraction(0)], [Fraction(0), Fraction(1), Fraction(0)]]
    pieces = [(polygon, identity)]
    for k, (W, b) in enumerate(net.parameters):
        W, b = exact(W), exact(b)
        following = []
        for part, G in pieces:
            F = [
                [
                    sum((w * g[j] for w, g in zip(row, G, strict=True)), Fraction(0))
                    for j in range(3)
                ]
                for row in W
            ]
            for row, constant in zip(F, b, strict=True):
                row[2] += constant
            following += _cut(part, F) if k < len(net.parameters) - 1 else [(part, F)]
        pieces = following
    return pieces


def _cut(polygon, F):
    """Cut a polygon by the zero lines of a layer: the parts with their activations."""
    parts = [(polygon, [])]
    off = [Fraction(0)] * 3
    for row in F:
        following = []
        for part, G in parts:
            for side, activation in ((row, row), ([-entry for entry in row], off)):
                cut = clip(part, side)
                if has_area(cut):
                    following.append((cut, [*G, activation]))
        parts = following
    return parts


def segment_squares(x, a, b):
    """Squares of the distances of a point to a segment, in l_1, l_2 and l_inf."""
    u, d = [a[j] - x[j] for j in (0, 1)], [b[j] - a[j] for j in (0, 1)]
    # In l_1 and l_inf the distance is piecewise linear along the segment: these are the bends.
    functions = [(u[0], d[0]), (u[1], d[1]), (u[0] - u[1], d[0] - d[1]), (u[0] + u[1], d[0] + d[1])]
    bends = [-c / slope for c, slope in functions if slope != 0]
    length = d[0] * d[0] + d[1] * d[1]
    foot = [-(u[0] * d[0] + u[1] * d[1]) / length] if length else []
    points = [[abs(u[j] + t * d[j]) for j in (0, 1)] for t in (0, 1, *bends, *foot) if 0 <= t <= 1]
    return {
        1: min(sum(delta) for delta in points) ** 2,
        2: min(delta[0] ** 2 + delta[1] ** 2 for delta in points),
        np.inf: min(max(delta) for delta in points) ** 2,
    }


def contains(polygon, z):
    """Whether a point is in a convex polygon, whatever its orientation."""
    turns = [
        (b[0] - a[0]) * (z[1] - a[1]) - (b[1] - a[1]) * (z[0] - a[0])
        for a, b in zip(polygon, polygon[1:] + polygon[:1], strict=True)
    ]
    return has_area(polygon) and (min(turns) >= 0 or max(turns) <= 0)


def logits(net, z):
    """The logits of one point, of any number of inputs."""
    g = exact(z)
    for k, (W, b) in enumerate(net.parameters):
        if k:
            g = [max(entry, Fraction(0)) for entry in g]
        g = [
            sum((w * entry for w, entry in zip(row, g, strict=True)), constant)
            for row, constant in zip(exact(W), exact(b), strict=True)
        ]
    return g


def predicted_class(net, z):
    """The class of the largest logit, the first of equals."""
    values = logits(net, z)
    return values.index(max(values))


def minimal_perturbation_squares(net, x, y, box):
    """Squares of the distances to the nearest point of the box with ``f_s >= f_y`` for some s.

    Parameters
    ----------
    net : Network
        Dense layers, two inputs.
    x : ndarray, shape (2,)
    y : int
    box : (lo, hi) or None
        Arrays of shape (2,).

    Returns
    -------
    dict
        By norm, 1, 2 and inf; None where the class is y in the whole box.
    """
    x = exact(x)
    lo, hi = (
        ([entry - FAR for entry in x], [entry + FAR for entry in x])
        if box is None
        else (exact(side) for side in box)
    )
    square = [(lo[0], lo[1]), (hi[0], lo[1]), (hi[0], hi[1]), (lo[0], hi[1])]
    assert has_area(square)
    best = {1: None, 2: None, np.inf: None}
    for polygon, F in affine_pieces(net, square):
        for s in set(range(len(F))) - {y}:
            lost = clip(polygon, [F[s][j] - F[y][j] for j in range(3)])
            if not lost:
                continue
            if contains(lost, x):
                return dict.fromkeys(best, Fraction(0))
            for a, b in zip(lost, lost[1:] + lost[:1], strict=True):
                for p, found in segment_squares(x, a, b).items():
                    best[p] = found if best[p] is None else min(best[p], found)
    return best


def length_square(x, z, p):
    """Square of the distance of two points."""
    delta = [abs(a - b) for a, b in zip(exact(x), exact(z), strict=True)]
    if p == 2:
        return sum(entry * entry for entry in delta)
    return (sum(delta) if p == 1 else max(delta)) ** 2
