"""Degenerate networks by name, in two and three dimensions: exact arithmetic is the judge."""

from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
from helpers import units

import refmmr as rm
from refmmr.reference import volumes as measure

NO_NUMBA = pytest.mark.skipif(not find_spec("numba"), reason="the numba backend needs numba")
BACKENDS = ["numpy", pytest.param("numba", marks=NO_NUMBA)]

PENCIL = {
    2: ([[1, 2], [2, 1], [1, -1], [4, 5]], [-1, -1, 0, -3]),
    3: ([[1, 1, 1], [1, -1, 0], [0, 1, -1], [2, -1, -1], [1, 2, 3]], [-1, 0, 0, 0, -2]),
}
"""Hyperplanes through (1/3, 1/3), and through (1/3, 1/3, 1/3)."""


def box(n, lo=-1.0, hi=1.0):
    return rm.Box(np.full(n, lo), np.full(n, hi))


def rows(n, *starts):
    """Rows of n numbers that start like this and go on with zeros."""
    return np.array([[*start, *[0] * (n - len(start))] for start in starts], dtype=float)


def folds(n, levels):
    """``|...||x_i| - 1/2| - 1/4 ...|`` of every coordinate."""
    fold = np.concatenate([np.eye(n), -np.eye(n)])
    unfold = np.concatenate([np.eye(n), np.eye(n)], axis=1)
    pairs = [(fold, np.zeros(2 * n))]
    for level in range(1, levels):
        shift = np.full(n, 0.5**level)
        pairs.append((fold @ unfold, np.concatenate([-shift, shift])))
    return units(*pairs[0], *pairs[1:])


def cases(n):
    """Name: (network, domain)."""
    W, b = (np.array(array, dtype=float) for array in PENCIL[n])
    x, ones = rows(n, [1]), np.ones((1, n))
    yield "hyperplanes through a point", units(W, b), box(n)
    yield "scaled hyperplanes through a point", units(W / 3, b / 3), box(n)
    yield "hyperplanes that almost meet", units(W, b + 2.0 ** -np.arange(40, 40 + len(b))), box(n)
    yield "central hyperplanes", units(W, 0 * b), box(n)
    yield (
        "central hyperplanes in two layers",
        units(W, 0 * b, (W[:, :1] @ W[:, 1:2].T, 0 * b)),
        box(n),
    )
    yield "duplicates", units(np.concatenate([W, W]), np.concatenate([b, b])), box(n)
    yield "opposites", units(np.concatenate([W, -W]), np.concatenate([b, -b])), box(n)
    for error in (2.0**-52, 2.0**-40, 1e-9):
        twins = np.concatenate([W, W * (1 + error)]), np.concatenate([b, b])
        yield f"almost duplicates, {error:.1e}", units(*twins), box(n)
        shifted = np.concatenate([W, W]), np.concatenate([b, b + error])
        yield f"bundles, {error:.1e}", units(*shifted), box(n)
    yield "dead units", units(np.concatenate([x, -x, x]), [-5, -5, 0]), box(n)
    yield "dead layer", units(x, [-5], ([[1], [-1]], [0.5, -0.5]), ([[1, 1]], [-0.5])), box(n)
    yield "units of weight 0", units(np.concatenate([0 * x, 0 * x, x]), [1, 0, 0]), box(n)
    yield "hyperplanes along faces", units(np.concatenate([x, -x, x]), [-1, -1, 1]), box(n)
    yield (
        "hyperplanes through vertices",
        units(np.concatenate([ones, -ones, ones]), [n, n, -n]),
        box(n),
    )
    yield "diagonals", units(rows(n, [1, 1], [1, -1], [-1, 1]), [0, 0, 0]), box(n)
    yield "thirds of diagonals", units(rows(n, [1, 1], [1, -1]) / 3, [0, 0]), box(n)
    yield "folded once", folds(n, 1), box(n)
    yield "folded", folds(n, 3 if n == 2 else 2), box(n)
    yield "folded off the grid", folds(n, 2), box(n, -0.9, 1.1)
    # Behind relu(x) and relu(y): a unit that is 0 on a whole cell, and one that only touches it.
    first = rows(n, [1], [0, 1])
    yield "zero on a cell", units(first, [0, 0], ([[1, -1]], [0])), box(n)
    yield "touching a cell", units(first, [0, 0], ([[1, 1], [-1, -1]], [0, 0])), box(n)
    yield "constant on a cell", units(first, [0, 0], ([[1, 1]], [-0.5])), box(n)
    yield "hyperplane on a hyperplane", units(first, [0, 0], ([[1, 0], [0, -1]], [0, 0])), box(n)
    yield (
        "bends on hyperplanes",
        units(W, b, (W[:, :1].T, [-0.5]), ([[1], [-2]], [-0.25, 0.5])),
        box(n),
    )
    for size in (1e-8, 1e8):
        yield f"weights of {size}", units(size * W, size * b), box(n)
        yield f"a box of {size}", units(W, size * b), box(n, -size, size)
    yield "layers of 1e8 and 1e-8", units(1e8 * W, 1e8 * b, (1e-8 * W @ W.T, b - 0.1)), box(n)
    yield "far away", units(W, b - W @ np.full(n, 2.0**20)), box(n, 2.0**20 - 1, 2.0**20 + 1)
    thin = rm.Box([-1] * (n - 1) + [0.25], [1] * (n - 1) + [0.25 + 1e-9])
    yield "a thin box", units(W, b, (W[:, :1].T, [-0.5])), thin
    yield "a sliver across", units(np.concatenate([W, ones, ones]), [*b, 0, 2.0**-30]), box(n)


ZOO = {(name, n): case for n in (2, 3) for name, *case in cases(n)}
IDS = [f"{name} ({n})" for name, n in ZOO]


@cache
def judged(name, n):
    """Pattern and volume of all regions by exact arithmetic; shares of the domain's."""
    cx = rm.enumerate_regions(*ZOO[name, n], exact=True)
    shares = shares_of(cx)
    assert sum(shares.values()) == pytest.approx(1, rel=1e-15)
    assert cx.unmatched_facets == 0
    return shares


def shares_of(cx):
    volumes, sides = cx.volumes, cx.domain.hi - cx.domain.lo
    shares = [float(volume) / float(np.prod(sides)) for volume in volumes]
    found = dict(zip(map(tuple, cx.patterns.tolist()), shares, strict=True))
    assert len(found) == len(cx)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "n"), ZOO, ids=IDS)
def test_zoo(name, n, backend):
    net, domain = ZOO[name, n]
    with rm.use_backend(backend):
        cx = rm.enumerate_regions(net, domain)
    expected, found = judged(name, n), shares_of(cx)
    if not cx.uncertain.any():
        assert set(found) == set(expected)
    # What rounding may add or lose is small; what is large is right.
    for pattern in set(found) ^ set(expected):
        assert found.get(pattern, 0) + expected.get(pattern, 0) < 1e-9
    for pattern in set(found) & set(expected):
        assert found[pattern] == pytest.approx(expected[pattern], rel=1e-6, abs=1e-8)
    assert sum(found.values()) == pytest.approx(1, rel=1e-9)
    assert cx.unmatched_facets == 0
    assert cx.complete


EXACT_COUNTS = {
    "hyperplanes through a point": (8, 20),
    "central hyperplanes": (8, 20),
    "duplicates": (8, 20),
    "opposites": (8, 20),
    "dead units": (2, 2),
    "dead layer": (1, 1),
    "units of weight 0": (2, 2),
    "hyperplanes along faces": (1, 1),
    "hyperplanes through vertices": (1, 1),
    "diagonals": (4, 4),
    "folded once": (4, 8),
    "folded": (64, 64),
    "zero on a cell": (5, 5),
    "touching a cell": (4, 4),
    "constant on a cell": (7, 7),
    "hyperplane on a hyperplane": (4, 4),
}
"""By hand, in 2 and in 3 dimensions.  (Three of the five planes through a point share a line.)"""


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("name", EXACT_COUNTS)
def test_counts(name, n):
    """Dyadic networks whose regions can be counted by hand: the floats agree too."""
    assert len(judged(name, n)) == EXACT_COUNTS[name][n - 2]
    assert len(rm.enumerate_regions(*ZOO[name, n])) == EXACT_COUNTS[name][n - 2]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("name", "n"), ZOO, ids=IDS)
def test_every_vertex_is_in_some_region(name, n, backend):
    net, domain = ZOO[name, n]
    with rm.use_backend(backend):
        cx = rm.enumerate_regions(net, domain)
    vertices = cx.points[np.unique(cx.vertex_numbers.flat)]
    assert (cx.region_of(vertices) >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_vertex_of_almost_parallel_hyperplanes_is_in_doubt(seed, backend):
    """A third hyperplane through it may miss the computed vertex by far, but not without notice."""
    rng = np.random.default_rng(seed)
    W, b = np.array([[1, 2], [2**20 + 1, 2**21 - 1], [1, -1]]) * 3, np.array([-3, -3 * 2**20, 0])
    net, domain = units(W, b), rm.Box(rng.uniform(-1, 0.2, 2), rng.uniform(0.5, 2, 2))
    assert len(rm.enumerate_regions(net, domain, exact=True)) == 6
    with rm.use_backend(backend):
        cx = rm.enumerate_regions(net, domain)
    assert len(cx) == 6 or cx.uncertain.any()
    assert np.sort(cx.areas)[:-6].sum() < 1e-20


# ---- Who wins.


def classifier(W, b, *more):
    return rm.Network([rm.Linear(W, b) for W, b in [(W, b), *more]], np.shape(W)[1])


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_three_classes_tie_where_the_first_never_wins(n, exact):
    """0, x and -x: all are equal at x = 0, and only the last two win anywhere."""
    net = classifier(rows(n, [0], [1], [-1]), np.zeros(3))
    cx = rm.enumerate_regions(net, box(n), exact=exact)
    assert sorted(winner for winner, _ in cx.class_polygons()) == [1, 2]
    pieces, classes = cx.decision_boundary()
    assert sorted(classes.tolist()) == [[0, 1], [0, 2], [1, 2]]
    for vertices in pieces:
        assert len(vertices) == 2 ** (n - 1)
        assert (vertices[:, 0] == 0).all()


@pytest.mark.parametrize("exact", [False, True])
def test_a_third_class_ends_a_tie_along_a_hyperplane(exact):
    """relu(x), relu(-x) and y: both regions know the tie of the first two; it is there once."""
    net = classifier(
        [[1, 0], [-1, 0], [0, 1]], [0, 0, 2], ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 0, -2])
    )
    segments, classes = rm.enumerate_regions(net, box(2), exact=exact).decision_boundary()
    assert sorted(classes.tolist()) == [[0, 1], [0, 2], [1, 2]]
    ends = {
        tuple(pair): sorted(map(tuple, segment.tolist()))
        for segment, pair in zip(segments, classes.tolist(), strict=True)
    }
    assert ends[0, 1] == [(0, -1), (0, 0)]
    assert ends[0, 2] == [(0, 0), (1, 1)]
    assert ends[1, 2] == [(-1, 1), (0, 0)]


def test_equal_classes():
    """Where two classes are the same everywhere the first wins, and the second ties along."""
    net = classifier([[1, 0], [1, 0], [-1, 0]], np.zeros(3))
    cx = rm.enumerate_regions(net, box(2))
    areas = {winner: measure.area(vertices) for winner, vertices in cx.class_polygons()}
    assert areas == {0: 2, 2: 2}
    segments, classes = cx.decision_boundary()
    assert sorted(classes.tolist()) == [[0, 2], [1, 2]]
    np.testing.assert_array_equal(segments[..., 0], 0)
