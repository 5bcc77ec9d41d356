"""Regions of networks that can be drawn by hand."""

import numpy as np
import pytest
from helpers import units

import refmmr as rm
from refmmr.reference import enumeration as reference
from refmmr.reference import volumes as measure
from refmmr.testing import exact_network

UNIT = rm.Box([0, 0], [1, 1])
AROUND = rm.Box([-1, -1], [1, 1])


def exact_cells(net, domain):
    """Pattern and area of all regions, in fractions."""
    regions = reference.enumerate_regions(exact_network(net), domain.arrays(exact=True))
    patterns = rm.RegionComplex(net, domain, regions).patterns
    areas = dict(zip(map(tuple, patterns), measure.volumes(regions), strict=True))
    assert len(areas) == len(patterns)
    assert sum(areas.values()) == np.prod(domain.hi - domain.lo)
    return areas


# ---- How many there are.


def zoo():
    """Name: (network, domain, number of regions)."""
    yield "no hidden layer", rm.Network.mlp([2, 3], rng=0), UNIT, 1
    yield "one line", units([[1, 1]], [-1]), UNIT, 2
    yield "line beside the box", units([[1, 1]], [5]), UNIT, 1
    yield "line along an edge", units([[1, 0]], [-1]), UNIT, 1
    yield "line through a vertex", units([[1, 1]], [-2]), UNIT, 1
    yield "diagonal", units([[1, -1]], [0]), UNIT, 2
    yield "dead", units([[1, 1], [-1, -1]], [-1, -5]), UNIT, 2
    yield "constant 1", units([[1, 1], [0, 0]], [-1, 1]), UNIT, 2
    yield "constant 0", units([[1, 1], [0, 0]], [-1, 0]), UNIT, 2
    yield "duplicate", units([[1, 1], [1, 1]], [-1, -1]), UNIT, 2
    yield "multiple", units([[1, 1], [2, 2]], [-1, -2]), UNIT, 2
    yield "third", units([[1, 1], [1 / 3, 1 / 3]], [-1, -1 / 3]), UNIT, 2
    yield "negated", units([[1, 1], [-1, -1]], [-1, 1]), UNIT, 2
    yield "parallel", units([[1, 1], [1, 1]], [-0.5, -1.5]), UNIT, 3
    yield "cross", units([[1, 0], [0, 1]], [0, 0]), AROUND, 4
    yield "pencil of 3", units([[1, 0], [0, 1], [1, 1]], [0, 0, 0]), AROUND, 6
    pencil = [[1, 2], [2, 1], [1, -1]]
    yield "pencil at (1/3, 1/3)", units(pencil, [-1, -1, 0]), UNIT, 6
    yield "pencil of 5", units([*pencil, [4, 5], [5, 1]], [-1, -1, 0, -3, -2]), UNIT, 10
    yield "triangle", units([[1, 0], [0, 1], [1, 1]], [0, 0, -0.5]), AROUND, 7
    # Behind a dead layer the second one is constant.
    yield "behind a dead layer", units([[1, 1]], [-5], ([[1], [1]], [0.5, -0.5])), UNIT, 1
    # The second layer is relu(x) - 1/2: a second line on one side only.
    yield "bent away", units([[1, 0]], [0], ([[1]], [-0.5])), AROUND, 3
    # |x| - 1/2: zero at two places.
    yield "absolute", units([[1, 0], [-1, 0]], [0, 0], ([[1, 1]], [-0.5])), AROUND, 4
    # relu(x) - relu(y): zero on a whole cell, and on a diagonal.
    yield "zero on a cell", units([[1, 0], [0, 1]], [0, 0], ([[1, -1]], [0])), AROUND, 5
    yield "hyperplane on a hyperplane", units([[1, 0]], [0], ([[1], [-1]], [0, 0])), AROUND, 2
    yield "deep zeros", rm.Network.mlp([2, 1, 1, 1, 1], rng=0), AROUND, 2


ZOO = {name: case for name, *case in zoo()}


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name):
    net, domain, count = ZOO[name]
    cx = rm.enumerate_regions(net, domain)
    assert len(cx) == count
    np.testing.assert_allclose(cx.areas.sum(), np.prod(domain.hi - domain.lo), rtol=1e-12)
    assert cx.patterns.shape == (count, net.n_hidden)
    assert (cx.areas > 1e-6).all()


@pytest.mark.parametrize("name", ZOO)
def test_zoo_in_fractions(name):
    """The same regions, without rounding."""
    net, domain, count = ZOO[name]
    if name == "third":
        pytest.skip("a third is not a float: as fractions these are two lines")
    exact = exact_cells(net, domain)
    assert len(exact) == count
    cx = rm.enumerate_regions(net, domain)
    found = dict(zip(map(tuple, cx.patterns), cx.areas, strict=True))
    assert set(found) == set(exact)
    for pattern, area in found.items():
        assert area == pytest.approx(float(exact[pattern]), rel=1e-12)


def test_pencil_in_any_order():
    """Which line is cut first must not matter."""
    W, b = np.array([[1, 2], [2, 1], [1, -1], [4, 5], [5, 1]]), np.array([-1, -1, 0, -3, -2])
    rng = np.random.default_rng(0)
    for _ in range(20):
        order = rng.permutation(5)
        signs = rng.choice([-1, 1], 5)
        cx = rm.enumerate_regions(units(signs[:, None] * W[order], signs * b[order]), UNIT)
        assert len(cx) == 10


def test_vertex_that_is_rounded_off_a_hyperplane():
    """All lines meet in the origin, which interpolation misses by 1e-16."""
    net = units(
        [[0.5, -0.75], [1.0, -0.75], [0.5, 0.25], [0.0, -0.25]],
        np.zeros(4),
        ([[0.25, 0.5, -0.25, 0.25], [-0.75, 0.5, -0.5, -0.5], [0.75, -0.5, 0.5, 0.0]], np.zeros(3)),
    )
    exact = exact_cells(net, AROUND)
    cx = rm.enumerate_regions(net, AROUND)
    found = dict(zip(map(tuple, cx.patterns), cx.areas, strict=True))
    for pattern, area in exact.items():
        assert found.get(pattern) == pytest.approx(float(area), rel=1e-12)
    assert len(found) == len(exact)


def test_exact_areas():
    cx = rm.enumerate_regions(units([[1, 1]], [-0.5]), UNIT)
    areas = {bool(pattern[0]): area for pattern, area in zip(cx.patterns, cx.areas, strict=True)}
    assert areas == {False: 0.125, True: 0.875}


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_lines_in_general_position(n):
    """n lines that all meet within the box: 1 + n + n (n - 1) / 2 regions (Zaslavsky)."""
    rng = np.random.default_rng(n)
    angles = np.arange(n) * np.pi / n + 0.1
    W = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    b = rng.uniform(-0.1, 0.1, n)
    meetings = [np.linalg.solve(W[[i, j]], -b[[i, j]]) for i in range(n) for j in range(i)]
    box = rm.Box([-9, -9], [9, 9])
    assert np.abs(meetings or [0]).max() < 9
    assert len(rm.enumerate_regions(units(W, b), box)) == 1 + n + n * (n - 1) // 2


def test_every_line_that_crosses_the_box_adds_its_crossings():
    """In any box: 1 + lines through it + crossings inside it."""
    rng = np.random.default_rng(0)
    for _ in range(10):
        W, b = rng.normal(size=(7, 2)), rng.normal(size=7) / 2
        vertices = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) @ W.T + b
        lines = ((vertices > 0).any(axis=0) & (vertices < 0).any(axis=0)).sum()
        meetings = [np.linalg.solve(W[[i, j]], -b[[i, j]]) for i in range(7) for j in range(i)]
        crossings = (np.abs(meetings).max(axis=1) < 1).sum()
        assert len(rm.enumerate_regions(units(W, b), AROUND)) == 1 + lines + crossings


# ---- Hyperplanes.


def test_bent_lines():
    net = units([[1, 0], [-1, 0]], [0, 0], ([[1, 1]], [-0.5]))  # |x| = 1/2
    segments, labels = rm.enumerate_regions(net, AROUND).bent_lines()
    found = sorted(
        (round(float(s[0, 0]), 12), int(unit)) for s, unit in zip(segments, labels, strict=True)
    )
    # Where two units share a hyperplane, it is there for each.
    assert found == [(-0.5, 2), (0, 0), (0, 1), (0.5, 2)]
    np.testing.assert_allclose(np.abs(segments[:, 1, 1] - segments[:, 0, 1]), 2)


def test_no_hyperplanes():
    segments, labels = rm.enumerate_regions(rm.Network.mlp([2, 3], rng=0), UNIT).bent_lines()
    assert segments.shape == (0, 2, 2)
    assert labels.shape == (0,)


# ---- Classes.


def classify(W, b, *more):
    return rm.Network([rm.Linear(W, b) for W, b in [(W, b), *more]], 2)


def test_decision_boundary_of_a_linear_network():
    cx = rm.enumerate_regions(classify([[1, 0], [0, 1]], [0, 0]), UNIT)
    segments, classes = cx.decision_boundary()
    assert segments.shape == (1, 2, 2)
    assert classes.tolist() == [[0, 1]]
    np.testing.assert_array_equal(segments[0][:, 0], segments[0][:, 1])
    assert sorted(segments[0][:, 0]) == [0, 1]
    assert sorted(winner for winner, _ in cx.class_polygons()) == [0, 1]


def test_three_classes_meet_in_a_point():
    angles = np.pi / 2 + np.arange(3) * 2 * np.pi / 3
    net = classify(np.stack([np.cos(angles), np.sin(angles)], axis=1), np.zeros(3))
    segments, classes = rm.enumerate_regions(net, AROUND).decision_boundary()
    assert sorted(classes.tolist()) == [[0, 1], [0, 2], [1, 2]]
    nearest = np.linalg.norm(segments, axis=2).min(axis=1)
    np.testing.assert_allclose(nearest, 0, atol=1e-12)


def test_xor():
    """The class changes where relu(x) + relu(-x) - relu(y) - relu(-y) = |x| - |y| does."""
    net = classify(
        [[1, 0], [-1, 0], [0, 1], [0, -1]],
        np.zeros(4),
        ([[1, 1, -1, -1], [0, 0, 0, 0]], [0, 0]),
    )
    segments, _ = rm.enumerate_regions(net, AROUND).decision_boundary()
    assert len(segments) == 4
    np.testing.assert_allclose(np.abs(segments[..., 0]), np.abs(segments[..., 1]), atol=1e-15)


def test_boundary_along_a_hyperplane():
    """relu(x) against relu(-x): the classes meet exactly where the units switch."""
    net = classify([[1, 0], [-1, 0]], [0, 0], ([[1, 0], [0, 1]], [0, 0]))
    cx = rm.enumerate_regions(net, AROUND)
    segments, classes = cx.decision_boundary()
    assert classes.tolist() == [[0, 1]]
    np.testing.assert_array_equal(segments[0][:, 0], 0)
    assert sorted(segments[0][:, 1]) == [-1, 1]
    areas = {winner: measure.area(vertices) for winner, vertices in cx.class_polygons()}
    assert areas == {0: 2, 1: 2}


def test_tie_on_a_whole_region():
    """relu(x) against 0: left of the hyperplane the first class wins all of the tie."""
    net = classify([[1, 0]], [0], ([[0], [1]], [0, 0]))
    cx = rm.enumerate_regions(net, AROUND)
    areas = {winner: measure.area(vertices) for winner, vertices in cx.class_polygons()}
    assert areas == {0: 2, 1: 2}
    segments, _ = cx.decision_boundary()
    assert len(segments) == 1
    np.testing.assert_array_equal(segments[0][:, 0], 0)


def test_no_decision_boundary():
    cx = rm.enumerate_regions(classify([[1, 0], [1, 0]], [1, 0]), UNIT)
    segments, classes = cx.decision_boundary()
    assert segments.shape == (0, 2, 2)
    assert classes.shape == (0, 2)
    assert [winner for winner, _ in cx.class_polygons()] == [0]


# ---- Finding regions.


def test_region_of():
    cx = rm.enumerate_regions(units([[1, 0], [0, 1]], [0, 0]), AROUND)
    Z = np.array([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.5], [-0.5, -0.5], [2, 0], [0, -1.5]])
    found = cx.region_of(Z)
    assert sorted(found[:4]) == [0, 1, 2, 3]
    assert found[4:].tolist() == [-1, -1]
    for z, index in zip(Z[:4], found[:4], strict=True):
        assert cx.patterns[index].tolist() == (z > 0).tolist()
    assert cx.region_of(np.zeros((0, 2))).shape == (0,)


def test_region_of_a_point_on_a_hyperplane():
    """With opposite units no region has the pattern on the hyperplane: a neighbour is found."""
    cx = rm.enumerate_regions(units([[1, 0], [-1, 0]], [-0.5, 0.5]), UNIT)
    assert not cx.net.activation_pattern([[0.5, 0.5]]).any()
    assert cx.region_of([[0.5, 0.5]])[0] in (0, 1)
    assert (cx.region_of([[0, 0], [1, 1], [0, 1]]) >= 0).all()


def test_region_of_errors():
    cx = rm.enumerate_regions(units([[1, 0]], [0]), AROUND)
    with pytest.raises(ValueError, match=r"Z: expected shape \(1, 2\), got \(1, 3\)"):
        cx.region_of([[1, 2, 3]])
    with pytest.raises(ValueError, match="Z: expected 2 axes"):
        cx.region_of([0.5, 0.5])
    with pytest.raises(ValueError, match="Z: expected finite numbers, got nan"):
        cx.region_of([[np.nan, 0]])


# ---- Domains.


def test_box():
    box = rm.Box([0, -1], [1, 2.5])
    assert repr(box) == "Box([0.0, -1.0], [1.0, 2.5])"
    assert rm.Box(0, [1, 2]).lo.tolist() == [0, 0]
    lo = np.zeros(2)
    box = rm.Box(lo, [1, 1])
    lo[:] = 9
    assert box.lo.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("lo", "hi", "message"),
    [
        ([0, 0], [1, 0], "Box: expected lo < hi, got lo = 0, hi = 0 at index"),
        ([0, 2], [1, 1], "Box: expected lo < hi, got lo = 2, hi = 1"),
        ([0, np.nan], [1, 1], "Box lo: expected finite numbers, got nan"),
        ([0, 0], [1, np.inf], "Box hi: expected finite numbers, got inf"),
        ([[0, 0]], [[1, 1]], r"Box: expected lo and hi of shape \(n,\), got \(1, 2\)"),
        (0, 1, r"Box: expected lo and hi of shape \(n,\), got \(\)"),
        ([], [], r"Box: expected lo and hi of shape \(n,\), got \(0,\)"),
    ],
)
def test_box_errors(lo, hi, message):
    with pytest.raises(ValueError, match=message):
        rm.Box(lo, hi)


@pytest.fixture(params=[(5,), (1, 4, 4)], ids=["flat", "image"])
def three_points(request):
    return np.random.default_rng(0).normal(size=(3, *request.param))


def test_slice_contains_its_points(three_points):
    plane = rm.Slice(*three_points)
    np.testing.assert_allclose(plane.embed(plane.points), three_points, atol=1e-12)
    np.testing.assert_allclose(plane.project(three_points), plane.points, atol=1e-12)
    lo, hi = plane.rectangle
    assert ((lo < plane.points) & (plane.points < hi)).all()
    np.testing.assert_allclose(plane.points[0], 0)
    np.testing.assert_allclose(plane.points[1, 1], 0)
    assert plane.points[1, 0] > 0
    assert plane.points[2, 1] > 0


def test_slice_is_an_isometry(three_points):
    plane = rm.Slice(*three_points)
    P = np.random.default_rng(1).normal(size=(20, 2))
    X = plane.embed(P)
    assert X.shape == (20, *three_points.shape[1:])
    lengths = np.linalg.norm((X[1:] - X[:-1]).reshape(19, -1), axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(P[1:] - P[:-1], axis=1), rtol=1e-12)
    np.testing.assert_allclose(plane.project(X), P, atol=1e-12)


def test_slice_projects_to_the_nearest_point(three_points):
    plane = rm.Slice(*three_points)
    x = np.random.default_rng(2).normal(size=(1, *three_points.shape[1:]))
    foot = plane.embed(plane.project(x))
    for other in plane.embed(np.random.default_rng(3).normal(size=(50, 2))):
        assert np.linalg.norm(x - foot) <= np.linalg.norm(x - other)


def test_slice_extent(three_points):
    plane = rm.Slice(*three_points, extent=(-1, 2, -3, 4))
    lo, hi = plane.rectangle
    assert (lo.tolist(), hi.tolist()) == ([-1, -3], [2, 4])
    assert "extent=(-1, 2, -3, 4)" in repr(plane)


@pytest.mark.parametrize(
    ("points", "extent", "message"),
    [
        (([0, 0, 0], [1, 1, 1], [2, 2, 2]), None, "three points that do not lie on a line"),
        (([0, 0, 0], [0, 0, 0], [1, 2, 3]), None, "three points that do not lie on a line"),
        (([0, 0, 0], [1, 2, 3], [0, 0, 0]), None, "three points that do not lie on a line"),
        (([0, 0, 0], [1, 2, 3], [1, 2, 3]), None, "three points that do not lie on a line"),
        (([0, 0], [1, 0, 0], [0, 1, 0]), None, r"x1: expected shape \(2,\), got \(3,\)"),
        (([0, 0], [1, 0], [0, np.nan]), None, "x2: expected finite numbers, got nan"),
        (([0, 0], [1, 0], [0, 1]), (0, 0, 0, 1), "extent: expected lo < hi, got lo = 0, hi = 0"),
        (([0, 0], [1, 0], [0, 1]), (0, 1, 0), r"extent: expected \(u_min, u_max, v_min, v_max\)"),
    ],
)
def test_slice_errors(points, extent, message):
    with pytest.raises(ValueError, match=message):
        rm.Slice(*points, extent)


def test_slice_of_a_convolutional_network():
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (3, 1, 8, 8))
    plane = rm.Slice(*X)
    cx = rm.enumerate_regions(net, plane)
    lo, hi = plane.rectangle
    np.testing.assert_allclose(cx.areas.sum(), np.prod(hi - lo), rtol=1e-9)
    Z = np.random.default_rng(1).uniform(lo, hi, (500, 2))
    index = cx.region_of(Z)
    assert (index >= 0).all()
    np.testing.assert_array_equal(cx.patterns[index], net.activation_pattern(plane.embed(Z)))
    assert (cx.region_of(plane.points) >= 0).all()
    assert cx.patterns.shape[1] == net.n_hidden


def test_errors():
    net = rm.Network.mlp([2, 4, 2], rng=0)
    with pytest.raises(TypeError, match="domain: expected a Box, Slice or Segment, got tuple"):
        rm.enumerate_regions(net, (0, 1))
    with pytest.raises(ValueError, match=r"domain: expected inputs of shape \(3,\), got a Box"):
        rm.enumerate_regions(rm.Network.mlp([3, 2], rng=0), UNIT)
    plane = rm.Slice([0, 0, 0], [1, 0, 0], [0, 1, 0])
    with pytest.raises(ValueError, match=r"of shape \(2,\), got a Slice of inputs .* \(3,\)"):
        rm.enumerate_regions(net, plane)


def test_progress(capfd):
    net = rm.Network.mlp([2, 4, 2], rng=0)
    rm.enumerate_regions(net, UNIT)
    assert capfd.readouterr() == ("", "")
    rm.enumerate_regions(net, UNIT, progress=True)
    assert "regions" in capfd.readouterr().err


def test_repr():
    cx = rm.enumerate_regions(units([[1, 1]], [-1]), UNIT)
    assert repr(cx) == "RegionComplex(2 regions of 1 units in Box([0.0, 0.0], [1.0, 1.0]))"


def test_float32_network():
    net = rm.Network.mlp([2, 6, 4, 2], rng=0).astype(np.float32)
    single, double = (rm.enumerate_regions(n, AROUND) for n in (net, net.astype(np.float64)))
    np.testing.assert_array_equal(single.patterns, double.patterns)
    np.testing.assert_array_equal(single.areas, double.areas)
