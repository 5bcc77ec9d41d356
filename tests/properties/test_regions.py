"""Laws of the enumeration: a partition, complete, affine on each region, exact on dyadics."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr.reference import enumeration as reference
from refmmr.reference import volumes as measure
from refmmr.testing import exact_network

BOX = rm.Box([-1, -1], [1, 1])


def on_the_plane(dyadic=False):
    """Networks on the plane; the strategy for any number of inputs, with two columns."""
    return testing.networks(max_inputs=1, dyadic=dyadic).flatmap(
        lambda net: st.integers(0, 2**32 - 1).map(lambda seed: widen(net, seed, dyadic))
    )


def widen(net, seed, dyadic):
    """Give a network with one input a second one."""
    rng = np.random.default_rng(seed)
    (W, b), *rest = net.parameters
    column = rng.integers(-8, 9, W.shape) / 4 if dyadic else rng.normal(size=W.shape)
    # A column of zeros keeps what is degenerate about the first one.
    column *= rng.random() < 0.8
    layers = [rm.Linear(np.concatenate([W, column], axis=1), b)]
    return rm.Network([*layers, *(rm.Linear(W, b) for W, b in rest)], 2)


def inside(vertices, rng, count=5):
    """Random points in the interior of a convex polygon."""
    weights = rng.dirichlet(np.ones(len(vertices)), count)
    return weights @ vertices


def edges(vertices):
    return np.roll(vertices, -1, axis=0) - vertices


@given(on_the_plane())
def test_regions_are_a_partition(net):
    cx = rm.enumerate_regions(net, BOX)
    np.testing.assert_allclose(cx.areas.sum(), 4, rtol=1e-9)
    assert len({pattern.tobytes() for pattern in cx.patterns}) == len(cx)
    for vertices, area in zip(cx.vertices, cx.areas, strict=True):
        assert len(vertices) >= 3
        assert ((vertices >= BOX.lo) & (vertices <= BOX.hi)).all()
        # Convex and counter-clockwise: all turns go left.
        e = edges(vertices)
        after = np.roll(e, -1, axis=0)
        turns = e[:, 0] * after[:, 1] - e[:, 1] * after[:, 0]
        assert (turns >= -1e-12).all()
        assert area == pytest.approx(measure.area(vertices))


@given(on_the_plane(), st.integers(0, 2**32 - 1))
def test_sampling_finds_no_other_pattern(net, seed):
    cx = rm.enumerate_regions(net, BOX)
    Z = np.random.default_rng(seed).uniform(-1, 1, (5000, 2))
    index = cx.region_of(Z)
    assert (index >= 0).all()
    np.testing.assert_array_equal(cx.patterns[index], net.activation_pattern(Z))
    # And the shares of the samples are the shares of the areas.
    shares = np.bincount(index, minlength=len(cx)) / len(Z)
    np.testing.assert_allclose(shares, cx.areas / 4, atol=5 * (0.25 / 5000) ** 0.5)


@given(on_the_plane())
def test_the_network_is_affine_on_each_region(net):
    cx = rm.enumerate_regions(net, BOX)
    rng = np.random.default_rng(0)
    large = np.flatnonzero(cx.areas >= 1e-6)
    assert len(large)
    for i in large:
        vertices = cx.vertices[i]
        centroid = vertices.mean(axis=0)
        np.testing.assert_array_equal(net.activation_pattern(centroid[None])[0], cx.patterns[i])
        region = rm.linear_region(net, centroid)
        Z = inside(vertices, rng)
        np.testing.assert_allclose(region.logits(Z), net(Z), rtol=1e-9, atol=1e-9)
        assert region.contains(vertices, tolerance=1e-9).all()


@given(on_the_plane())
def test_hyperplanes_are_where_their_unit_is_zero(net):
    cx = rm.enumerate_regions(net, BOX)
    segments, units = cx.bent_lines()
    assume(len(segments))
    outputs = net.forward(segments.reshape(-1, 2)).outputs[:-1]
    f = np.concatenate(outputs, axis=1).reshape(len(segments), 2, -1)
    assert np.abs(f[np.arange(len(units)), :, units]).max() < 1e-9
    # Each hyperplane divides two regions, whose patterns differ in its unit.
    middle = segments.mean(axis=1)
    direction = segments[:, 1] - segments[:, 0]
    length = np.linalg.norm(direction, axis=1)
    step = 1e-7 * np.stack([-direction[:, 1], direction[:, 0]], axis=1)
    step /= np.where(length, length, 1)[:, None]
    left, right = net.activation_pattern(middle + step), net.activation_pattern(middle - step)
    long = np.flatnonzero(length > 1e-5)
    assume(len(long))
    assert (left != right)[long, units[long]].all()


@given(on_the_plane())
def test_decision_boundary(net):
    cx = rm.enumerate_regions(net, BOX)
    segments, classes = cx.decision_boundary()
    assume(len(segments))
    logits = net(segments.reshape(-1, 2))
    for values, pair in zip(logits.reshape(-1, 2, net.n_classes), classes, strict=True):
        assert pair[0] < pair[1]
        # At both ends the two tie for the largest logit.
        top = values.max(axis=1, keepdims=True)
        np.testing.assert_allclose(values[:, pair], np.repeat(top, 2, axis=1), atol=1e-9)


@given(on_the_plane())
def test_class_polygons_agree_with_a_raster(net):
    cx = rm.enumerate_regions(net, BOX)
    polygons = cx.class_polygons()
    areas = np.zeros(net.n_classes)
    for winner, vertices in polygons:
        areas[winner] += measure.area(vertices)
    np.testing.assert_allclose(areas.sum(), 4, rtol=1e-9)
    ticks = np.linspace(-1, 1, 61)[1:] - 1 / 60
    raster = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    shares = np.bincount(net.predict(raster), minlength=net.n_classes) / len(raster)
    np.testing.assert_allclose(shares, areas / 4, atol=0.05)
    for winner, vertices in polygons:
        if measure.area(vertices) > 1e-6:
            assert net.predict(vertices.mean(axis=0)[None]) == winner


@given(on_the_plane())
def test_segments_are_reported_once(net):
    segments, classes = rm.enumerate_regions(net, BOX).decision_boundary()
    long = np.linalg.norm(segments[:, 1] - segments[:, 0], axis=1) > 1e-6
    assume(long.any())
    seen = {
        (*sorted(map(tuple, segment.round(9).tolist())), *pair)
        for segment, pair in zip(segments[long], classes[long].tolist(), strict=True)
    }
    assert len(seen) == long.sum()


def exact_areas(net, domain=BOX):
    """Pattern and area of all regions, in fractions."""
    regions = reference.enumerate_regions(exact_network(net), domain.arrays(exact=True))
    patterns = rm.RegionComplex(net, domain, regions).patterns
    areas = {
        pattern.tobytes(): area
        for pattern, area in zip(patterns, measure.volumes(regions), strict=True)
    }
    assert len(areas) == len(patterns)
    assert sum(areas.values()) == np.prod(domain.hi - domain.lo)
    return areas


@given(on_the_plane(dyadic=True))
def test_degenerate_networks_have_the_regions_of_exact_arithmetic(net):
    exact = exact_areas(net)
    cx = rm.enumerate_regions(net, BOX)
    found = {p.tobytes(): area for p, area in zip(cx.patterns, cx.areas, strict=True)}
    assert set(found) == set(exact)
    assert len(cx) == len(exact)
    for pattern, area in exact.items():
        assert found[pattern] == pytest.approx(float(area), rel=1e-9)


def random_dyadic(rng):
    """A network of small multiples of 1/4, with twins and opposites: many lines meet in points."""
    sizes = [2, *rng.integers(2, 6, rng.integers(1, 3)), 3]
    layers = []
    for n, m in pairwise(sizes):
        W, b = rng.integers(-4, 5, (m, n)) / 4, rng.integers(-4, 5, m) / 4
        if rng.random() < 0.5:
            W[-1], b[-1] = rng.choice([-1, 1]) * W[0], rng.choice([-1, 1]) * b[0]
        layers.append(rm.Linear(W, b * (rng.random() < 0.7)))
    return rm.Network(layers, 2)


@pytest.mark.parametrize("seed", range(8))
def test_many_degenerate_networks(seed):
    """As above, with wider networks, where more than two lines often meet."""
    rng = np.random.default_rng(seed)
    for _ in range(30):
        net = random_dyadic(rng)
        exact = exact_areas(net)
        cx = rm.enumerate_regions(net, BOX)
        found = {p.tobytes(): area for p, area in zip(cx.patterns, cx.areas, strict=True)}
        large = {pattern for pattern, area in exact.items() if area > 1e-6}
        # First of all: no region of some size has a wrong pattern.
        assert large <= set(found)
        assert all(found[p] == pytest.approx(float(exact[p]), rel=1e-9) for p in large)
        assert set(found) == set(exact)


@given(testing.conv_networks() | testing.networks(max_inputs=6), st.integers(0, 2**32 - 1))
def test_slices(net, seed):
    assume(np.prod(net.input_shape) > 1)
    rng = np.random.default_rng(seed)
    plane = rm.Slice(*rng.normal(size=(3, *net.input_shape)))
    cx = rm.enumerate_regions(net, plane)
    lo, hi = plane.rectangle
    np.testing.assert_allclose(cx.areas.sum(), np.prod(hi - lo), rtol=1e-9)
    Z = rng.uniform(lo, hi, (500, 2))
    patterns = cx.patterns[cx.region_of(Z)]
    np.testing.assert_array_equal(patterns, net.activation_pattern(plane.embed(Z)))


def test_a_larger_network():
    """Hundreds of regions."""
    rng = np.random.default_rng(0)
    net = rm.Network.mlp([2, 24, 16, 8, 3], rng=1)
    net = net.with_parameters([(W, rng.normal(size=b.shape) / 2) for W, b in net.parameters])
    cx = rm.enumerate_regions(net, BOX)
    assert len(cx) > 200
    np.testing.assert_allclose(cx.areas.sum(), 4, rtol=1e-9)
    assert len({pattern.tobytes() for pattern in cx.patterns}) == len(cx)
    Z = rng.uniform(-1, 1, (50_000, 2))
    known = {pattern.tobytes() for pattern in cx.patterns}
    assert {pattern.tobytes() for pattern in net.activation_pattern(Z)} <= known
