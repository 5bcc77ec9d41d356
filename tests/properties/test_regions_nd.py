"""Laws of the enumeration in a box of 1, 2, 3 or 4 dimensions."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, pairwise
from math import comb

import numpy as np
import pytest
from helpers import units
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr.reference import volumes as measure
from refmmr.regions.faces import faces_of
from refmmr.regions.polytopes import inradius
from refmmr.testing import exact_network, fractions

SEEDS = st.integers(0, 2**32 - 1)


def networks(dyadic=False, max_inputs=4):
    return testing.networks(
        max_inputs=max_inputs, max_hidden_layers=2, max_width=4, max_classes=3, dyadic=dyadic
    )


def box(net):
    n = net.input_shape[0]
    return rm.Box([-1] * n, [1] * n)


def volumes_of(cx, patterns=None):
    """Pattern, in bytes: volume."""
    patterns = cx.patterns if patterns is None else patterns
    volumes = cx.volumes if cx.exact_volumes is None else cx.exact_volumes
    found = {p.tobytes(): volume for p, volume in zip(patterns, volumes, strict=True)}
    assert len(found) == len(cx)
    return found


def assert_same_volumes(found, expected, tolerance=1e-10):
    """Up to slivers, which rounding may add or lose."""
    for pattern in set(found) | set(expected):
        assert abs(float(found.get(pattern, 0)) - float(expected.get(pattern, 0))) < tolerance


def preactivations(net, Z):
    """Of all hidden units, (m, N)."""
    return np.concatenate([np.zeros((len(Z), 0)), *net.forward(Z).outputs[:-1]], axis=1)


# ---- Against exact arithmetic.


def almost_degenerate(rng):
    """A small network with hyperplanes that are equal, parallel or concurrent, or almost."""
    n, eps = int(rng.integers(1, 4)), 10.0 ** -rng.integers(8, 18)
    sizes = [n, *rng.integers(1, 5, rng.integers(1, 3)).tolist(), 2]
    coarse, central = rng.random(2) < 0.5
    layers = []
    for d, m in pairwise(sizes):
        W = rng.integers(-4, 5, (m, d)) / 4 if coarse else rng.normal(size=(m, d))
        b = np.zeros(m) if central else rng.integers(-4, 5, m) / 4
        if m > 1 and rng.random() < 0.6:
            factor = rng.choice([1, -1, 0.5, 1 / 3])
            W[1], b[1] = factor * W[0], factor * b[0]
        if rng.random() < 0.5:
            W, b = W + eps * rng.normal(size=W.shape), b + eps * rng.normal(size=m)
        layers.append(rm.Linear(W, b))
    return rm.Network(layers, n)


@settings(max_examples=60)
@given(SEEDS)
def test_a_walk_misses_nothing_that_it_does_not_count(seed):
    net = almost_degenerate(np.random.default_rng(seed))
    found = rm.enumerate_regions(net, box(net), method="walk")
    if found.undecided == 0:
        exact = rm.enumerate_regions(net, box(net), exact=True)
        patterns = [{p.tobytes() for p in cx.patterns} for cx in (found, exact)]
        assert patterns[0] == patterns[1]


@settings(max_examples=40)
@given(networks(dyadic=True))
def test_dyadic_networks_have_the_regions_of_exact_arithmetic(net):
    exact = rm.enumerate_regions(net, box(net), exact=True)
    cx = rm.enumerate_regions(net, box(net))
    expected, found = volumes_of(exact), volumes_of(cx)
    assert set(found) == set(expected)
    assert sum(expected.values()) == 2**cx.dimension
    assert_same_volumes(found, expected)
    assert exact.unmatched_facets == cx.unmatched_facets == 0


def clipped(polygon, a, c):
    """The part of a convex polygon, a list of points, where ``<a, z> + c >= 0``."""
    values = [a @ z + c for z in polygon]
    part = []
    for i, (z, f) in enumerate(zip(polygon, values, strict=True)):
        after, g = polygon[i - len(polygon) + 1], values[i - len(polygon) + 1]
        if f >= 0:
            part.append(z)
        if f * g < 0:
            part.append(z + f / (f - g) * (after - z))
    return part


@settings(max_examples=30)
@given(networks(dyadic=True, max_inputs=2))
def test_exact_regions_are_clipped_by_their_half_planes(net):
    """Each pattern's half-planes, one by one, by other code; together they leave no gap."""
    assume(net.input_shape == (2,))
    cx = rm.enumerate_regions(net, box(net), exact=True)
    parameters = exact_network(net).parameters
    for pattern, area in zip(cx.patterns, cx.exact_volumes, strict=True):
        polygon = list(fractions([[-1, -1], [1, -1], [1, 1], [-1, 1]]))
        V, a, start = fractions(np.eye(2)), fractions(np.zeros(2)), 0
        for W, b in parameters[:-1]:
            V, a = W @ V, W @ a + b
            active = pattern[start : start + len(a)]
            start += len(a)
            for row, offset, on in zip(V, a, active, strict=True):
                polygon = clipped(polygon, row if on else -row, offset if on else -offset)
            V, a = V * active[:, None], a * active
        assert measure.area(np.array(polygon)) == area > 0


# ---- Regions.


@settings(max_examples=40)
@given(networks() | networks(dyadic=True))
def test_regions_are_a_partition(net):
    cx = rm.enumerate_regions(net, box(net))
    assert sum(volumes_of(cx).values()) == pytest.approx(2**cx.dimension, rel=1e-9)
    assert (np.abs(cx.points) <= 1).all()
    assert cx.unmatched_facets == 0
    large = cx.volumes > 1e-6
    patterns = net.activation_pattern(cx.centers[large])
    np.testing.assert_array_equal(patterns, cx.patterns[large])
    np.testing.assert_array_equal(cx.region_of(cx.centers[large]), np.flatnonzero(large))
    V, a = (part[large] for part in cx.affine_maps)
    logits = np.einsum("rkn,rn->rk", V, cx.centers[large]) + a
    np.testing.assert_allclose(logits, net(cx.centers[large]), rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(networks() | networks(dyadic=True), SEEDS)
def test_sampling_finds_no_other_pattern(net, seed):
    cx = rm.enumerate_regions(net, box(net))
    rng = np.random.default_rng(seed)
    Z = rng.uniform(-1, 1, (2000, cx.dimension))
    # Around the vertices there are the most regions.
    vertices = cx.points[rng.choice(cx.vertex_numbers.flat, 2000)]
    near = np.clip(vertices + 1e-3 * rng.normal(size=vertices.shape), -1, 1)
    for points in (Z, near):
        index = cx.region_of(points)
        assert (index >= 0).all()
        # Of units in doubt, those that are 0 on a whole region, either sign is right.
        clear = np.abs(preactivations(net, points)) > 1e-12
        differs = cx.patterns[index] != net.activation_pattern(points)
        assert not (differs & clear).any()
    shares = np.bincount(cx.region_of(Z), minlength=len(cx)) / len(Z)
    np.testing.assert_allclose(shares, cx.volumes / 2**cx.dimension, atol=0.06)


@settings(max_examples=30)
@given(networks(max_inputs=3) | networks(dyadic=True, max_inputs=3))
def test_euler_characteristic(net):
    """Faces of all dimensions, each once: their alternating sum is 1, as that of the box."""
    cx = rm.enumerate_regions(net, box(net))
    assume(len(cx) <= 100)
    faces = {
        (dimension, frozenset(cx.vertex_numbers[i][list(vertices)].tolist()))
        for i in range(len(cx))
        for dimension, vertices in faces_of(cx.raw.cell(i).touches)
    }
    assert sum((-1) ** dimension for dimension, _ in faces) == cx.euler_characteristic() == 1


# ---- One layer.


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [1, 2, 3, 5, 7])
def test_hyperplanes_in_general_position(n, m):
    """The sum of binomials (Zaslavsky), in a box that every flat of the arrangement meets."""
    rng = np.random.default_rng(10 * n + m)
    W, b = rng.normal(size=(m, n)), rng.normal(size=m)
    reach = 1.0
    for size in range(1, min(m, n) + 1):
        for some in map(list, combinations(range(m), size)):
            reach = max(reach, np.abs(np.linalg.lstsq(W[some], -b[some])[0]).max())
    cx = rm.enumerate_regions(units(W, b), rm.Box([-2 * reach] * n, [2 * reach] * n))
    assert len(cx) == sum(comb(m, i) for i in range(n + 1))
    assert not cx.uncertain.any()


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("m", [1, 2, 3, 5, 7])
def test_hyperplanes_through_the_origin(n, m):
    rng = np.random.default_rng(10 * n + m)
    cx = rm.enumerate_regions(
        units(rng.normal(size=(m, n)), np.zeros(m)), rm.Box([-1] * n, [1] * n)
    )
    assert len(cx) == 2 * sum(comb(m - 1, i) for i in range(n))
    assert cx.unmatched_facets == 0


# ---- Domains within the box.


@settings(max_examples=40)
@given(networks(), SEEDS)
def test_segments_run_through_the_regions(net, seed):
    cx = rm.enumerate_regions(net, box(net))
    start, end = np.random.default_rng(seed).uniform(-1, 1, (2, cx.dimension))
    assume((start != end).any())
    found = volumes_of(rm.enumerate_regions(net, rm.Segment(start, end)))
    expected = {}
    for i, pattern in enumerate(cx.patterns):
        A, b = cx.halfspaces(i)
        slope, room = A @ (end - start), b - A @ start
        enters = max([0, *(room[slope < 0] / slope[slope < 0])])
        leaves = min([1, *(room[slope > 0] / slope[slope > 0])])
        expected[pattern.tobytes()] = max(0, leaves - enters)
    assert_same_volumes(found, expected, tolerance=1e-7)


@settings(max_examples=20)
@given(networks(), SEEDS)
def test_planes_cut_the_regions(net, seed):
    cx = rm.enumerate_regions(net, box(net))
    assume(cx.dimension > 2)
    origin, u, v = np.random.default_rng(seed).uniform(-0.2, 0.2, (3, cx.dimension))
    plane = rm.Slice.spanned(origin, u, v, (-0.25, 0.25, -0.25, 0.25))
    flat = rm.enumerate_regions(net, plane)
    found = volumes_of(flat)
    vertices = plane.embed([[s, t] for s in (-0.25, 0.25) for t in (-0.25, 0.25)])
    assert (np.abs(vertices) <= 1).all()
    basis = plane.directions.T
    sides = np.concatenate([np.eye(2), -np.eye(2)]), np.full(4, 0.25)
    for i, pattern in enumerate(cx.patterns):
        A, b = cx.halfspaces(i)
        A, b = np.concatenate([A @ basis, sides[0]]), np.concatenate([b - A @ origin, sides[1]])
        _, radius = inradius(A, b)
        if radius > 1e-6:
            assert found.pop(pattern.tobytes()) >= np.pi * radius**2 * (1 - 1e-6)
        else:
            assert found.pop(pattern.tobytes(), 0) < 1e-4
    assert sum(found.values()) < 1e-12


# ---- The same network, written in another way.


@settings(max_examples=40)
@given(networks(), SEEDS)
def test_order_of_units(net, seed):
    rng = np.random.default_rng(seed)
    pairs, places, start = [list(pair) for pair in net.parameters], [], 0
    for pair, after in pairwise(pairs):
        order = rng.permutation(len(pair[1]))
        pair[:] = pair[0][order], pair[1][order]
        after[0] = after[0][:, order]
        places.extend((start + np.argsort(order)).tolist())
        start += len(order)
    other = rm.enumerate_regions(rewritten(net, pairs), box(net))
    cx = rm.enumerate_regions(net, box(net))
    assert_same_volumes(volumes_of(other, other.patterns[:, places]), volumes_of(cx))


@settings(max_examples=40)
@given(networks() | networks(dyadic=True), SEEDS)
def test_scales_of_units(net, seed):
    """A power of 2 rounds nothing: not even a bit changes."""
    rng = np.random.default_rng(seed)
    pairs = [list(pair) for pair in net.parameters]
    for pair, after in pairwise(pairs):
        scale = 2.0 ** rng.integers(-20, 21, len(pair[1]))
        pair[:] = pair[0] * scale[:, None], pair[1] * scale
        after[0] = after[0] / scale
    other = rm.enumerate_regions(rewritten(net, pairs), box(net))
    cx = rm.enumerate_regions(net, box(net))
    np.testing.assert_array_equal(other.packed_patterns, cx.packed_patterns)
    np.testing.assert_array_equal(other.points, cx.points)
    np.testing.assert_array_equal(other.vertex_numbers.flat, cx.vertex_numbers.flat)


def rewritten(net, pairs):
    return rm.Network([rm.Linear(W, b) for W, b in pairs], net.input_shape)


@settings(max_examples=40)
@given(networks() | networks(dyadic=True))
def test_a_layer_refines_the_regions_of_those_before(net):
    cx = rm.enumerate_regions(net, box(net))
    assert cx.layer_counts[-1] == len(cx)
    hidden = net.parameters[:-1]
    for depth in range(1, len(hidden)):
        width = hidden[depth][0].shape[1]
        pairs = [*hidden[:depth], (np.ones((1, width)), np.zeros(1))]
        coarse = rm.enumerate_regions(rewritten(net, pairs), box(net))
        together = Counter()
        for pattern, volume in zip(cx.patterns, cx.volumes, strict=True):
            together[pattern[: coarse.net.n_hidden].tobytes()] += volume
        assert_same_volumes(volumes_of(coarse), together)
        assert cx.layer_counts[depth] == len(coarse) == len(together)


# ---- Facets.


@settings(max_examples=40)
@given(networks() | networks(dyadic=True))
def test_facets_part_neighbours(net):
    cx = rm.enumerate_regions(net, box(net))
    hyperplanes, cells, vertices = cx.facets
    inner = cells[:, 1] >= 0
    np.testing.assert_array_equal(inner, hyperplanes >= 0)
    one, other = cx.patterns[cells[inner]].swapaxes(0, 1)
    assert (one != other)[np.arange(inner.sum()), hyperplanes[inner]].all()
    owners = vertices.owners()
    # A facet's vertices are vertices of both its regions, n at least, and on the hyperplane.
    assert (vertices.sizes >= cx.dimension).all()
    for facet, (pair, some) in enumerate(zip(cells.tolist(), vertices, strict=True)):
        for cell in pair[: 1 + inner[facet]]:
            assert set(some.tolist()) < set(cx.vertex_numbers[cell].tolist())
            assert facet in cx.facets_of[cell]
    points = cx.points[vertices.flat]
    on = inner[owners]
    values = preactivations(net, points[on])
    assert np.abs(values[np.arange(len(values)), hyperplanes[owners][on]]).max(initial=0) < 1e-9
    axis, upper = np.divmod(-1 - hyperplanes[owners][~on], 2)
    np.testing.assert_array_equal(points[~on][np.arange(len(axis)), axis], 2 * upper - 1)
    facets, units = cx.flips()
    assert set(zip(np.flatnonzero(inner), hyperplanes[inner], strict=True)) <= set(
        zip(facets, units, strict=True)
    )


@settings(max_examples=40)
@given(networks() | networks(dyadic=True))
def test_regions_are_their_half_spaces(net):
    """All vertices are inside, and each facet has its own on the boundary: none is redundant."""
    cx = rm.enumerate_regions(net, box(net))
    for i in range(len(cx)):
        A, b = cx.halfspaces(i)
        slack = b - cx.vertices[i] @ A.T
        assert slack.min() > -1e-9
        for facet, room in zip(cx.facets_of[i], slack.T, strict=True):
            on = np.isin(cx.vertex_numbers[i], cx.facets.vertices[facet])
            assert np.abs(room[on]).max() < 1e-9
            assert (room[~on] > 0).all()


@settings(max_examples=30)
@given(networks() | networks(dyadic=True))
def test_decision_boundary(net):
    """Along each piece its two classes tie for the largest logit; each is there once."""
    cx = rm.enumerate_regions(net, box(net))
    pieces, classes = cx.decision_boundary()
    assume(len(pieces))
    seen = Counter()
    for vertices, pair in zip(pieces, classes.tolist(), strict=True):
        logits = net(vertices)
        best = logits.max(axis=1, keepdims=True)
        np.testing.assert_allclose(logits[:, pair], np.repeat(best, 2, axis=1), atol=1e-9)
        seen[frozenset(map(tuple, vertices.round(9).tolist())), *pair] += len(vertices) > 2
    assert max(seen.values()) <= 1
    for winner, vertices in cx.class_polygons():
        logits = net(vertices.mean(axis=0, keepdims=True))[0]
        assert logits[winner] > logits.max() - 1e-9


@settings(max_examples=30)
@given(networks(dyadic=True), SEEDS)
def test_classes_change_at_the_decision_boundary_only(net, seed):
    """On a line through the box: the class changes where a piece of the boundary is."""
    start, end = np.random.default_rng(seed).integers(-64, 65, (2, *net.input_shape)) / 64
    assume((start != end).any())
    cx = rm.enumerate_regions(net, rm.Segment(start, end), exact=True)
    pieces, points = cx.class_pieces
    ends = sorted((*sorted(points[piece.cell.vertices, 0]), piece.winner) for piece in pieces)
    whole = set(range(len(cx))) - {piece.region for piece in pieces}
    ends += [(*sorted(cx.exact_points[cx.vertex_numbers[i], 0]), int(cx.classes[i])) for i in whole]
    ends.sort()
    assert ends[0][0] == 0
    assert ends[-1][1] == 1
    boundary = {
        (vertices[0, 0], *pair) for vertices, pair in zip(*cx.decision_boundary(), strict=True)
    }
    for (_, stop, winner), (begin, _, other) in pairwise(ends):
        assert stop == begin
        assert isinstance(stop, Fraction)
        if winner != other:
            assert (float(stop), *sorted((winner, other))) in boundary
