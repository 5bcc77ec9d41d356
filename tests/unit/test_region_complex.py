"""A complex of regions: facets, faces, maps, sizes, distances, budgets."""

import os
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from helpers import units

import refmmr as rm
from refmmr.reference import class_pieces
from refmmr.reference import volumes as measure
from refmmr.regions.budget import first_layer_regions
from refmmr.regions.faces import faces_of


def network(sizes, seed=0):
    rng = np.random.default_rng(seed)
    layers = [rm.Linear(rng.normal(size=(m, n)), rng.normal(size=m)) for n, m in pairwise(sizes)]
    return rm.Network(layers, sizes[0])


def box(n):
    return rm.Box([-1] * n, [1] * n)


QUADRANTS = units([[1, 0], [0, 1]], [0, 0])
OCTANTS = units(np.eye(3), np.zeros(3))


@pytest.fixture(params=[[1, 7, 5, 3], [2, 9, 7, 3], [3, 6, 5, 3], [4, 5, 3, 2]], ids=str)
def cx(request):
    return rm.enumerate_regions(network(request.param), box(request.param[0]))


# ---- Facets and faces.


def test_octants():
    cx = rm.enumerate_regions(OCTANTS, box(3))
    assert len(cx) == 8
    np.testing.assert_array_equal(cx.volumes, np.ones(8))
    assert len(cx.points) == 27
    assert len(cx.neighbours) == 12
    assert (cx.facets.cells[:, 1] < 0).sum() == 24
    assert cx.facets_of.sizes.tolist() == [6] * 8
    assert cx.layer_counts.tolist() == [1, 8]
    assert [len(cx.bent_hyperplane(unit)) for unit in range(3)] == [4, 4, 4]
    assert cx.euler_characteristic() == 1
    with pytest.raises(ValueError, match="unit: expected an integer from 0 to 2, got 3"):
        cx.bent_hyperplane(3)
    for i in range(8):
        A, b = cx.halfspaces(i)
        inner = np.where(cx.patterns[i], 1, -1)
        expected = {(*(-inner[j] * np.eye(3)[j]), 0.0) for j in range(3)}
        expected |= {(*(inner[j] * np.eye(3)[j]), 1.0) for j in range(3)}
        assert {
            (*row, value) for row, value in zip(A.tolist(), b.tolist(), strict=True)
        } == expected


@pytest.mark.parametrize("method", ["split", "walk"])
def test_arrays_are_computed_once_and_read_only(method):
    cx = rm.enumerate_regions(network([2, 4, 2]), box(2), method=method)
    names = ["patterns", "neighbours", "classes", "layer_counts"]
    names += ["volumes", "areas", "centers"] if method == "split" else []
    for name in names:
        array = getattr(cx, name)
        assert getattr(cx, name) is array
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[0]


def test_vertices_are_within_their_half_spaces(cx):
    for i, vertices in enumerate(cx.vertices):
        A, b = cx.halfspaces(i)
        slack = b - vertices @ A.T
        assert slack.min() > -1e-12
        # None is redundant: each touches as many vertices as a facet has at least.
        assert ((slack < 1e-9).sum(axis=0) >= cx.dimension).all()
        np.testing.assert_allclose(np.linalg.norm(A, axis=1), 1)


def test_each_facet_is_between_regions_that_differ_in_its_unit(cx):
    patterns = cx.patterns
    for hyperplane, (i, j) in zip(cx.facets.hyperplanes, cx.facets.cells, strict=True):
        assert (j < 0) == (hyperplane < 0)
        if j >= 0:
            assert i < j
            assert np.flatnonzero(patterns[i] != patterns[j]).tolist() == [hyperplane]
    assert cx.unmatched_facets == 0


def test_flips_of_units_that_share_a_hyperplane():
    cx = rm.enumerate_regions(units([[1, 0], [-2, 0], [0, 1]], [0, 0, 0]), box(2))
    facets, flipped = cx.flips()
    assert sorted(flipped.tolist()) == [0, 0, 1, 1, 2, 2]
    assert len(np.unique(facets)) == 4
    segments, labels = cx.bent_lines()
    assert len(segments) == len(labels) == 6


def test_affine_maps(cx):
    rng = np.random.default_rng(0)
    Z = rng.uniform(-1, 1, (300, cx.dimension))
    index = cx.region_of(Z)
    V, a = cx.affine_maps
    assert V.shape == (len(cx), cx.net.n_classes, cx.dimension)
    logits = np.einsum("mkn,mn->mk", V[index], Z) + a[index]
    np.testing.assert_allclose(logits, cx.net(Z), atol=1e-10)
    np.testing.assert_array_equal(cx.classes[index] >= 0, True)


def test_layer_counts_are_those_of_shorter_networks(cx):
    layers = cx.net.layers
    for k, count in enumerate(cx.layer_counts.tolist()):
        shorter = rm.Network(layers[: k + 1], cx.dimension)
        assert len(rm.enumerate_regions(shorter, cx.domain)) == count


def test_euler_characteristic(cx):
    assert cx.euler_characteristic() == 1


def test_faces_of_a_square_pyramid():
    """Its top touches four facets: it is not simple."""
    base, sides = [1, 1, 1, 1, 0], np.zeros((5, 4), dtype=bool)
    for i in range(4):
        sides[[i, (i + 1) % 4, 4], i] = True
    faces = faces_of(np.column_stack([np.array(base, dtype=bool), sides]))
    assert np.bincount([dimension for dimension, _ in faces]).tolist() == [5, 8, 5, 1]


def test_volume_of_a_square_pyramid():
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.3, 0.4, 6]])
    touches = np.zeros((5, 5), dtype=bool)
    touches[:4, 4] = True
    for i in range(4):
        touches[[i, (i + 1) % 4, 4], i] = True
    assert measure.volume(points, touches) == pytest.approx(2)
    exact = np.array([[Fraction(v) for v in row] for row in points.tolist()], dtype=object)
    exact[4] = [Fraction(1, 3), Fraction(1, 4), Fraction(6)]
    assert measure.volume(exact, touches) == 2


def test_dual_graph_of_networkx():
    networkx = pytest.importorskip("networkx", reason="networkx is not installed")
    graph = rm.enumerate_regions(QUADRANTS, box(2)).to_networkx()
    assert networkx.is_isomorphic(graph, networkx.cycle_graph(4))
    assert {data["pattern"] for _, data in graph.nodes(data=True)} == {"00", "01", "10", "11"}
    assert sorted(data["hyperplane"] for *_, data in graph.edges(data=True)) == [0, 0, 1, 1]


# ---- Segments.


def test_break_points_of_a_segment():
    """|x| is folded at 0, ||x| - 1/2| at -1/2 and 1/2 too."""
    fold = ([[1], [-1]], [0, 0])
    net = units(*fold, ([[1, 1], [-1, -1]], [-0.5, 0.5]))
    cx = rm.enumerate_regions(net, rm.Segment([-1], [1]))
    assert cx.breakpoints.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert cx.volumes.sum() == 1
    np.testing.assert_array_equal(cx.volumes, 0.25)


def test_segment_through_an_image():
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    x, y = np.random.default_rng(0).uniform(0, 1, (2, 1, 8, 8))
    segment = rm.Segment(x, y)
    cx = rm.enumerate_regions(net, segment)
    t = np.linspace(0, 1, 2001)[:, None]
    index = cx.region_of(t)
    np.testing.assert_array_equal(cx.patterns[index], net.activation_pattern(segment.embed(t)))
    assert (np.diff(cx.breakpoints) > 0).all()
    assert len(cx.breakpoints) == len(cx) + 1
    np.testing.assert_allclose(segment.project(segment.embed(t)), t, atol=1e-12)


def test_pictures_are_of_planes_only(tmp_path):
    cx = rm.enumerate_regions(QUADRANTS, box(2))
    cx.explore(tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
    line = rm.enumerate_regions(QUADRANTS, rm.Segment([0, 0], [1, 1]))
    for method in ("explore", "plot", "bent_lines"):
        with pytest.raises(ValueError, match=f"{method}: expected a plane, got a domain of 1 dim"):
            getattr(line, method)()


def test_break_points_are_of_lines_only():
    with pytest.raises(ValueError, match="breakpoints: expected a line, got a domain of 2 dim"):
        _ = rm.enumerate_regions(QUADRANTS, box(2)).breakpoints


@pytest.mark.parametrize(
    ("x0", "x1", "message"),
    [
        ([0, 0], [0, 0], "Segment: expected two different points, got x0 = x1"),
        ([0, 0], [0, 0, 1], r"x1: expected shape \(2,\), got \(3,\)"),
        ([0, np.nan], [0, 1], "x0: expected finite numbers, got nan"),
    ],
)
def test_segment_errors(x0, x1, message):
    with pytest.raises(ValueError, match=message):
        rm.Segment(x0, x1)


def test_slice_along_two_directions():
    plane = rm.Slice.spanned([1, 1, 1], [2, 0, 0], [1, 3, 0], (-1, 2, -3, 4))
    np.testing.assert_array_equal(plane.embed([[1, 0], [0, 1]]), [[2, 1, 1], [1, 2, 1]])
    assert [side.tolist() for side in plane.rectangle] == [[-1, -3], [2, 4]]
    with pytest.raises(ValueError, match=r"v: expected shape \(3,\), got \(2,\)"):
        rm.Slice.spanned([1, 1, 1], [2, 0, 0], [1, 3], (-1, 2, -3, 4))
    with pytest.raises(ValueError, match="three points that do not lie on a line"):
        rm.Slice.spanned([1, 1, 1], [2, 0, 0], [1, 0, 0], (-1, 2, -3, 4))


# ---- Classes.


def test_decision_boundary_in_three_dimensions():
    """Class 1 wins where x + y + z > 0: a hexagon."""
    net = rm.Network([rm.Linear([[0, 0, 0], [1, 1, 1]], [0, 0])], 3)
    pieces, classes = rm.enumerate_regions(net, box(3)).decision_boundary()
    assert classes.tolist() == [[0, 1]]
    assert sorted(np.abs(pieces[0]).sum(axis=1)) == [2] * 6
    np.testing.assert_array_equal(pieces[0].sum(axis=1), 0)


def test_decision_boundary_of_a_line():
    net = rm.Network([rm.Linear([[1], [-1], [0]], [0, 0, 0.5])], 1)
    pieces, classes = rm.enumerate_regions(net, box(1)).decision_boundary()
    found = sorted(
        (float(piece[0, 0]), pair) for piece, pair in zip(pieces, classes.tolist(), strict=True)
    )
    assert found == [(-0.5, [1, 2]), (0.5, [0, 2])]


def test_classes_share_out_the_volume(cx):
    Z = np.random.default_rng(0).uniform(-1, 1, (20_000, cx.dimension))
    pieces, points = class_pieces.class_pieces(cx.net, cx.raw, cx.domain.arrays(), range(len(cx)))
    volumes = np.zeros(cx.net.n_classes)
    for piece in pieces:
        vertices = points[piece.cell.vertices]
        plane = cx.dimension == 2
        touches = piece.cell.touches
        volumes[piece.winner] += (
            measure.area(vertices) if plane else measure.volume(vertices, touches)
        )
    total = 2**cx.dimension
    assert volumes.sum() == pytest.approx(total)
    shares = np.bincount(cx.net.predict(Z), minlength=cx.net.n_classes) / len(Z)
    np.testing.assert_allclose(shares, volumes / total, atol=0.02)


# ---- Distances, balls, tables.


@pytest.mark.parametrize(("p", "expected"), [(1, 0.6), (2, 0.6 / 2**0.5), (np.inf, 0.3)])
def test_distance_to_the_decision_boundary(p, expected):
    """Class 1 wins where x + y > 0."""
    net = rm.Network([rm.Linear([[0, 0], [1, 1]], [0, 0])], 2)
    found = rm.enumerate_regions(net, box(2)).boundary_distance([[0.1, 0.5]], p)
    assert found.distance[0] == pytest.approx(expected)
    assert found.nearest[0].sum() == pytest.approx(0)
    assert found.classes.tolist() == [[0, 1]]


def test_distance_without_a_boundary():
    net = rm.Network([rm.Linear([[0, 0], [0, 0]], [0, 1])], 2)
    found = rm.enumerate_regions(net, box(2)).boundary_distance([[0.1, 0.5]], 2)
    assert found.distance.tolist() == [np.inf]
    assert np.isnan(found.nearest).all()
    assert found.classes.tolist() == [[-1, -1]]


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_the_class_is_constant_within_the_distance(p):
    net = network([2, 12, 9, 3], seed=4)
    cx = rm.enumerate_regions(net, box(2))
    rng = np.random.default_rng(0)
    Z = rng.uniform(-0.5, 0.5, (50, 2))
    distance = np.minimum(cx.boundary_distance(Z, p).distance, 0.5)
    steps = rng.normal(size=(2000, 2))
    steps *= rng.uniform(0, 1, (2000, 1)) / np.linalg.norm(steps, ord=p, axis=1, keepdims=True)
    for z, radius in zip(Z, distance, strict=True):
        assert (net.predict(z + 0.999999 * radius * steps) == net.predict(z[None])).all()
    nearest = cx.boundary_distance(Z, p).nearest
    top = np.sort(net(nearest), axis=1)
    np.testing.assert_allclose(top[:, -1], top[:, -2], atol=1e-9)


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_regions_that_meet_a_ball(cx, p):
    rng = np.random.default_rng(0)
    z = rng.uniform(-0.3, 0.3, cx.dimension)
    found = cx.regions_meeting_ball(z, 0.4, p)
    steps = rng.normal(size=(3000, cx.dimension))
    steps *= (
        0.4 * rng.uniform(0, 1, (3000, 1)) / np.linalg.norm(steps, ord=p, axis=1, keepdims=True)
    )
    assert set(cx.region_of(z + steps)) <= set(found.tolist())
    # The nearest point of each other region is farther.
    gaps = [np.linalg.norm(vertices - z, ord=p, axis=1).min() for vertices in cx.vertices]
    near = np.array(gaps) <= 0.4
    assert set(np.flatnonzero(near)) <= set(found.tolist())
    assert len(cx.regions_meeting_ball(z, 100, p)) == len(cx)


def test_table():
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = rm.enumerate_regions(QUADRANTS, box(2)).to_frame()
    assert frame["volume"].tolist() == [1] * 4
    np.testing.assert_allclose(frame["inradius"], 0.5)
    assert frame["facets"].tolist() == [4] * 4
    assert sorted(frame["active"]) == [0, 1, 1, 2]
    np.testing.assert_allclose(sorted(frame["jacobian_norm"]), [0, 1, 1, 2**0.5])


def test_inradii_in_three_dimensions():
    pytest.importorskip("pandas", reason="pandas is not installed")
    frame = rm.enumerate_regions(OCTANTS, box(3)).to_frame()
    np.testing.assert_allclose(frame["inradius"], 0.5)


def test_summary(cx):
    summary = cx.summary()
    assert summary["regions"] == len(cx)
    assert summary["regions_by_layer"][-1] == len(cx)
    assert summary["smallest_volume"] <= summary["median_volume"] <= summary["largest_volume"]
    assert summary["complete"] is True


# ---- Checks of itself.


def test_verify(cx):
    report = cx.verify()
    assert report.ok
    assert report.euler_characteristic == 1
    assert "all invariants hold" in str(report)


def tampered(cx, **fields):
    return rm.RegionComplex(cx.net, cx.domain, cx.raw._replace(**fields))


def test_verify_sees_what_is_wrong():
    cx = rm.enumerate_regions(network([2, 9, 7, 3]), box(2))
    patterns = cx.packed_patterns.copy()
    patterns[3] ^= 1
    assert any("centre" in problem for problem in tampered(cx, patterns=patterns).verify().problems)
    patterns = cx.packed_patterns.copy()
    patterns[3] = patterns[4]
    assert "1 patterns occur twice" in tampered(cx, patterns=patterns).verify().problems
    hyperplanes = np.where(cx.raw.hyperplanes == 2, 3, cx.raw.hyperplanes)
    assert any(
        "on both sides" in problem
        for problem in tampered(cx, hyperplanes=hyperplanes).verify().problems
    )
    points = cx.points.copy()
    points[cx.facets.vertices[np.flatnonzero(cx.facets.hyperplanes >= 0)[0]][0]] += 1e-3
    assert not tampered(cx, points=points).verify().ok
    missing = rm.regions.budget.first_regions(cx.raw, len(cx) - 1)._replace(complete=True)
    problems = rm.RegionComplex(cx.net, cx.domain, missing).verify().problems
    assert any("volumes add up to 0." in problem for problem in problems)
    assert any("have no region" in problem for problem in problems)


# ---- Exact mode.


def test_exact_points_and_volumes():
    """Two lines that meet in (1/3, 1/3), which is no float."""
    net = units([[1, 2], [2, 1]], [-1, -1])
    cx = rm.enumerate_regions(net, rm.Box([0, 0], [1, 1]), exact=True)
    assert len(cx) == 4
    assert [Fraction(1, 3)] * 2 in cx.exact_points.tolist()
    assert cx.verify().ok
    assert cx.volumes.sum() == 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_exact_mode_keeps_what_floats_merge(n):
    """Two hyperplanes closer than rounding errors."""
    row = np.eye(n)[:1]
    net = units(np.concatenate([row, row]), [-0.3, -np.nextafter(0.3, 1)])
    assert len(rm.enumerate_regions(net, box(n))) == 2
    assert rm.enumerate_regions(net, box(n)).uncertain.any()
    exact = rm.enumerate_regions(net, box(n), exact=True)
    assert len(exact) == 3
    assert not exact.uncertain.any()
    assert 0 < exact.volumes.min() < 1e-15


def test_verify_of_facets_without_vertices():
    """Cells that rounding errors spoiled: no exception, here for the last facet of the last one."""
    cx = rm.enumerate_regions(OCTANTS, box(3))
    touches = cx.raw.touches.copy()
    last = slice(*cx.raw.vertex_starts[-2:])
    bit = int(np.diff(cx.raw.facet_starts)[-1]) - 1
    touches[last] &= ~np.uint64(1 << bit)
    report = tampered(cx, touches=touches).verify()
    assert "1 facets have no vertices" in report.problems
    assert "1 facets have no vertices" not in cx.verify().problems


ALMOST_EQUAL = {
    3: ([(0.8, 0.2, 0.3), (0.80000000000008, 0.20000000000004003, 0.30000000000006)], 0.3),
    4: (
        [
            (0.4, -0.3, -0.5, 0.9),
            (0.39999999999996, -0.30000000000002996, -0.5000000000001, 0.90000000000009),
        ],
        -0.2,
    ),
}
"""Rows and bias of two units whose hyperplanes agree up to 1e-13."""


@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize("n", ALMOST_EQUAL)
def test_faces_lost_in_rounding_errors_are_said_to_be(n, backend):
    """Exact arithmetic has four regions; floats have volumes that add up, and a report."""
    if backend not in rm.available_backends():
        pytest.skip("the numba backend needs numba")
    rows, b = ALMOST_EQUAL[n]
    net = units(rows, [b, b])
    with rm.use_backend(backend):
        cx = rm.enumerate_regions(net, box(n))
        report = cx.verify()
    assert abs(report.volume_defect) < 1e-12
    assert report.euler_characteristic is cx.euler_characteristic() is None
    assert not report.ok
    assert "exact=True" in str(report)
    exact = rm.enumerate_regions(net, box(n), exact=True)
    assert len(exact) == 4
    assert exact.verify().ok
    assert exact.verify().euler_characteristic == 1
    volumes = np.sort(exact.volumes)[-2:]
    np.testing.assert_allclose(np.sort(cx.volumes)[-2:], volumes, rtol=1e-12)


def test_exact_mode_with_values_larger_than_floats():
    """f = relu(1e200 relu(1e200 z)), against a second logit that is 1."""
    large = rm.Linear([[1e200]], [0])
    net = rm.Network([large, large, rm.Linear([[1], [0]], [0, 1])], 1)
    for method in ("split", "walk"):
        with pytest.raises(ValueError, match=r"net: expected values below .* layer 2 of 3.*exact"):
            rm.enumerate_regions(net, box(1), method=method)
    cx = rm.enumerate_regions(net, box(1), exact=True)
    active = int(cx.patterns.all(axis=1).argmax())
    assert cx.affine_maps.V[active].tolist() == [[np.inf], [0]]
    assert cx.exact_raw.maps.max() == Fraction(1e200) ** 2
    assert cx.classes[[1 - active, active]].tolist() == [1, 0]
    assert cx.contested.tolist() == [active]
    assert cx.verify().ok


# ---- Budgets.


@pytest.mark.parametrize("count", [1, 7, 100])
def test_max_regions(count):
    net = network([2, 20, 15, 2])
    cx = rm.enumerate_regions(net, box(2), max_regions=count)
    assert len(cx) == count
    assert not cx.complete
    assert repr(cx).startswith(f"RegionComplex(incomplete, {count} regions")
    assert cx.verify().ok
    assert np.isnan(cx.verify().volume_defect)
    assert cx.region_of([[-1, -1], [1, 1], [0, 0]]).min() == -1
    whole = rm.enumerate_regions(net, box(2))
    assert {p.tobytes() for p in cx.patterns} <= {p.tobytes() for p in whole.patterns}


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_the_budget_ends_a_single_large_cell(backend):
    if backend not in rm.available_backends():
        pytest.skip("the numba backend needs numba")
    with rm.use_backend(backend):
        for n in (2, 3):
            cx = rm.enumerate_regions(network([n, 60, 2]), box(n), max_regions=10)
            assert len(cx) == 10
            assert not cx.complete
            assert cx.verify().ok
        cx = rm.enumerate_regions(network([2, 40, 40, 2]), box(2), max_regions=50)
        assert (len(cx), cx.complete) == (50, False)


def test_a_budget_that_is_enough():
    net = network([2, 9, 7, 2])
    whole = rm.enumerate_regions(net, box(2))
    cx = rm.enumerate_regions(net, box(2), max_regions=len(whole), max_seconds=1000)
    assert cx.complete
    np.testing.assert_array_equal(cx.packed_patterns, whole.packed_patterns)


def test_max_seconds():
    with rm.use_backend("numpy"):  # Numba finishes within the block after which it reads the clock
        cx = rm.enumerate_regions(network([2, 60, 60, 2]), box(2), max_seconds=1e-3)
    assert not cx.complete
    assert len(cx) >= 1


def test_budget_errors():
    with pytest.raises(ValueError, match="max_regions: expected an integer of at least 1, got 0"):
        rm.enumerate_regions(QUADRANTS, box(2), max_regions=0)
    with pytest.raises(ValueError, match="max_seconds: expected a finite number > 0, got -1"):
        rm.enumerate_regions(QUADRANTS, box(2), max_seconds=-1)


def test_cost_is_estimated_first():
    net = rm.Network.mlp([3, 12_000, 2], rng=0)
    with pytest.raises(
        ValueError, match=r"12000 units of .* 3 dimensions, which may make 2.9e\+11"
    ):
        rm.enumerate_regions(net, box(3))
    assert len(rm.enumerate_regions(network([3, 30, 2]), box(3), max_regions=5)) == 5


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_bound_on_the_regions_is_that_of_general_position(n):
    """In a large box every generic arrangement has as many as Zaslavsky says."""
    rng = np.random.default_rng(n)
    net = units(rng.normal(size=(6, n)), 1e-3 * rng.normal(size=6))
    bound, crossing = first_layer_regions(net, box(n).arrays())
    assert crossing == 6
    assert len(rm.enumerate_regions(net, box(n))) == bound


@pytest.mark.usefixtures("ctrl_c")
def test_interruption_keeps_what_was_found():
    """Ctrl-C in a process of its own, where signals may be sent."""
    code = (
        "import os, signal, threading, warnings\n"
        "import numpy as np, refmmr as rm\n"
        "net = rm.Network.mlp([2, 64, 64, 64, 2], rng=0)\n"
        "rng = np.random.default_rng(0)\n"
        "net = net.with_parameters([(W, rng.normal(size=b.shape)) for W, b in net.parameters])\n"
        "threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    cx = rm.enumerate_regions(net, rm.Box([-3, -3], [3, 3]))\n"
        "assert 'interrupted' in str(caught[0].message), caught\n"
        "assert len(cx) > 0 and not cx.complete and cx.verify().ok\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    environment = {**os.environ, "REFMMR_BACKEND": "numpy"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_other_threads_leave_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    found = []
    thread = threading.Thread(target=lambda: found.append(rm.enumerate_regions(QUADRANTS, box(2))))
    thread.start()
    thread.join()
    assert len(found[0]) == 4
    assert signal.getsignal(signal.SIGINT) is before


# ---- Walking instead of splitting.


def test_walk_and_split_find_the_same():
    net = network([3, 7, 5, 2])
    graph = rm.enumerate_regions(net, box(3), method="walk")
    cx = rm.enumerate_regions(net, box(3), method="split")
    assert type(graph) is rm.RegionGraph
    assert type(cx) is rm.RegionComplex
    assert graph.complete
    assert graph.undecided == 0
    place = {pattern.tobytes(): i for i, pattern in enumerate(cx.packed_patterns)}
    order = np.array([place[pattern.tobytes()] for pattern in graph.packed_patterns])
    assert sorted(order) == list(range(len(cx)))
    found = {tuple(sorted(pair)) for pair in order[graph.neighbours].tolist()}
    assert found == set(map(tuple, cx.neighbours.tolist()))
    np.testing.assert_allclose(graph.affine_maps.V, cx.affine_maps.V[order], atol=1e-12)
    np.testing.assert_array_equal(graph.layer_counts, cx.layer_counts)
    Z = np.random.default_rng(0).uniform(-1, 1, (200, 3))
    np.testing.assert_array_equal(order[graph.region_of(Z)], cx.region_of(Z))
    for i in range(0, len(cx), 7):
        ours, theirs = (
            np.column_stack(part.halfspaces(j)) for part, j in ((graph, i), (cx, order[i]))
        )
        np.testing.assert_allclose(
            ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)], atol=1e-9
        )


def test_many_dimensions_are_walked():
    net = network([12, 4, 2])
    graph = rm.enumerate_regions(net, box(12))
    assert type(graph) is rm.RegionGraph
    assert len(graph) == 16
    part = rm.enumerate_regions(network([12, 9, 9, 2]), box(12), max_regions=6)
    assert len(part) == 6
    assert repr(part).startswith("RegionGraph(incomplete, 6 regions of 18 units")


def test_method_errors():
    with pytest.raises(ValueError, match="method: expected one of 'auto', 'split', 'walk', got"):
        rm.enumerate_regions(QUADRANTS, box(2), method="jump")
    with pytest.raises(ValueError, match='method: expected "split" for exact=True, got "walk"'):
        rm.enumerate_regions(QUADRANTS, box(2), method="walk", exact=True)
    with pytest.raises(
        ValueError, match=r"method: expected at most 16 dimensions to split, got .* 20"
    ):
        rm.enumerate_regions(network([20, 2, 2]), box(20), method="split")
