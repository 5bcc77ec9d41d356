"""The compiled enumeration of regions gives the reference's cells, bit for bit and in order."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import _backend, testing
from refmmr.backends import threads
from refmmr.reference import regions as reference
from refmmr.testing import exact_network, fractions

numba = pytest.importorskip("numba", reason="the numba backend needs numba")

with rm.use_backend("numba"):
    from refmmr.backends._numba import regions as twin

SQUARE = np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
BOX = rm.Box([-1, -1], [1, 1])
SEEDS = st.integers(0, 2**32 - 1)


def unchanged(points):
    return points


def assert_same_bits(found, expected):
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()


def assert_same(net, corners=SQUARE, embed=unchanged):
    """Run both; the number of cells."""
    told, expected_told = [], []
    found = twin.enumerate_plane(net, corners, embed, lambda *args: told.append(args))
    expected = reference.enumerate_plane(
        net, corners, embed, lambda *args: expected_told.append(args)
    )
    assert told == expected_told
    assert len(found) == len(expected)
    for cell, other in zip(found, expected, strict=True):
        assert type(cell) is reference.Cell
        for array, other_array in zip(cell, other, strict=True):
            assert_same_bits(array, other_array)
    return len(found)


def polygon(rng, m):
    """Corners of a convex polygon: random points of a circle."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, m))
    return rng.uniform(0.2, 2) * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def plane(rng, shape, dyadic=False):
    """A random plane in a space of inputs, not orthonormal."""
    origin, *directions = (
        rng.integers(-6, 7, (3, *shape)) / 4 if dyadic else rng.normal(size=(3, *shape))
    )
    return lambda points: origin + np.tensordot(points, np.stack(directions), axes=1)


def dense(rng, sizes, bias=0.3):
    layers = [
        rm.Linear(rng.normal(size=(m, n)) * np.sqrt(2 / n), bias * rng.normal(size=m))
        for n, m in pairwise(sizes)
    ]
    return rm.Network(layers, sizes[0])


@pytest.fixture(params=[1, 3])
def one_and_three_threads(request, monkeypatch):
    monkeypatch.setattr(twin, "LEAST", 1)
    threads.set_threads(request.param)
    yield
    threads.set_threads(None)


def test_is_registered():
    assert "refmmr.reference.regions.enumerate_plane" in _backend._twins["numba"]


# ---- The same cells.


@given(testing.networks(max_width=9) | testing.conv_networks(), SEEDS, st.integers(3, 8))
def test_networks(net, seed, m):
    rng = np.random.default_rng(seed)
    assert_same(net, polygon(rng, m), plane(rng, net.input_shape))


@settings(max_examples=150)
@given(testing.dyadic_networks(), SEEDS)
def test_dyadic_networks(net, seed):
    """Zero rows, twins, opposites, dead units, lines through one point or along an edge."""
    assert_same(net, SQUARE, plane(np.random.default_rng(seed), net.input_shape, dyadic=True))


def coarse(rng, width=7):
    """Weights of a coarse grid on the plane: many lines meet in points."""
    sizes = [2, *rng.integers(2, width, rng.integers(1, 4)), 3]
    layers = [
        rm.Linear(rng.integers(-4, 5, (m, n)) / 4, rng.integers(-4, 5, m) / 4 * rng.integers(2))
        for n, m in pairwise(sizes)
    ]
    return rm.Network(layers, 2)


def nearly(net, rng, noise):
    """The same network with twins and opposites that are off by about some roundings."""
    layers = []
    for W, b in net.parameters:
        W, b = W.copy(), b.copy()
        i, j = rng.integers(len(W), size=(2, max(1, len(W) // 2)))
        signs = rng.choice([-1, 1], len(i))
        W[i], b[i] = signs[:, None] * W[j], signs * b[j]
        W *= 1 + noise * rng.normal(size=W.shape)
        b *= 1 + noise * rng.normal(size=b.shape)
        layers.append(rm.Linear(W, b))
    return rm.Network(layers, net.input_shape)


@settings(max_examples=150)
@given(SEEDS, st.sampled_from([0, 1e-16, 1e-15, 1e-14, 1e-13, 1e-10]), st.booleans())
def test_values_near_their_rounding_errors(seed, noise, grid):
    """Slivers: pieces on which a unit that is active beside them is 0 up to rounding."""
    rng = np.random.default_rng(seed)
    net = coarse(rng) if grid else dense(rng, [2, 10, 8, 2])
    assert_same(nearly(net, rng, noise))


@given(SEEDS)
def test_pencils(seed):
    """All lines of the first layer in one point, which is no float."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(12, 2))
    layers = [rm.Linear(W, -W @ [1 / 3, 1 / 7]), rm.Linear(rng.normal(size=(6, 12)), np.zeros(6))]
    assert_same(rm.Network([*layers, rm.Linear(np.ones((2, 6)), np.zeros(2))], 2))


@settings(max_examples=30)
@given(testing.networks() | testing.dyadic_networks(), SEEDS)
def test_float32(net, seed):
    rng = np.random.default_rng(seed)
    embed = plane(rng, net.input_shape)
    assert_same(
        net.astype(np.float32),
        polygon(rng, 5).astype(np.float32),
        lambda points: embed(points).astype(np.float32),
    )


@pytest.mark.usefixtures("one_and_three_threads")
@pytest.mark.parametrize("sizes", [[2, 70, 2], [2, 24, 24, 2], [2, 12, 12, 12, 12, 2]])
def test_wide_and_deep(sizes):
    """More pieces and more corners than the first buffers hold, and than one batch."""
    assert assert_same(dense(np.random.default_rng(0), sizes)) > 500


def test_many_corners():
    rng = np.random.default_rng(0)
    assert_same(dense(rng, [2, 8, 8, 2]), polygon(rng, 300))


def test_the_network_is_asked_in_the_same_batches():
    """A matrix product may round differently in a batch of another size."""
    net = dense(np.random.default_rng(0), [2, 70, 3, 2])
    found, expected = [], []
    for run, asked in ((twin, found), (reference, expected)):
        run.enumerate_plane(net, SQUARE, lambda points, asked=asked: asked.append(points) or points)
    _, *found = found  # one point, for the dtype
    assert [len(points) for points in found][:3] == [4, 1024, 1024]
    for points, other in zip(found, expected, strict=True):
        assert_same_bits(points, other)


@given(testing.networks() | testing.conv_networks() | testing.dyadic_networks(), SEEDS)
def test_values_and_errors(net, seed):
    rng = np.random.default_rng(seed)
    embed, points = plane(rng, net.input_shape), rng.normal(size=(5, 2))
    for layer in range(len(net.unit_shapes)):
        found = twin._values_and_errors(net, points, embed, layer)
        expected = reference._values_and_errors(net, embed(points), layer)
        for array, other in zip(found, expected, strict=True):
            assert_same_bits(array, other)


def values_at(rng, corners, n_units):
    """Values at corners, and their errors: affine or wild, large or just above the error."""
    m = len(corners)
    values = corners @ rng.normal(size=(2, n_units)) + 0.5 * rng.normal(size=n_units)
    wild = rng.random(n_units) < 0.3
    values[:, wild] = rng.normal(size=(m, wild.sum()))
    errors = rng.choice([0, 1e-300, 1e-16, 1e-15, 0.01, 0.3, np.inf, np.nan], (m, n_units))
    largest = errors.max(axis=0)
    edge = largest * (1 + rng.integers(-1, 5, (m, n_units)) * np.finfo(float).eps)
    values = np.where((rng.random((m, n_units)) < 0.2) & (largest < 1), edge, values)
    if rng.random() < 0.3:  # all lines within some roundings of one corner, all cells slivers
        values, errors = rng.uniform(0.1, 1, (m, n_units)), np.full((m, n_units), 1e-300)
        values[0] = -rng.integers(1, 40, n_units) * 2.0**-56
        errors[:, 0] = values[0, 0] = 2.0 ** -rng.integers(51, 57)
        values[0, 0] *= 1 + np.finfo(float).eps
    return values * rng.choice([1, 1, -1], n_units), errors


@settings(max_examples=400)
@given(SEEDS, st.integers(3, 7), st.integers(1, 12))
def test_splitting_one_cell(seed, m, n_units):
    """Errors of any size, and values as rounding alone would hardly make them."""
    rng = np.random.default_rng(seed)
    corners, walls = polygon(rng, m), rng.integers(-1, 5, m)
    values, errors = values_at(rng, corners, n_units)
    sizes, places = np.array([m]), np.arange(m)
    found = twin.split_cells(0, 1, corners, walls, sizes, places, values, errors, 7)
    found = twin._as_objects(twin.Cells(*found))
    cell = reference.Cell(corners, walls, np.zeros(0, bool))
    expected = reference.split_cell(cell, values, errors.max(axis=0), 7)
    assert len(found) == len(expected)
    for piece, other in zip(found, expected, strict=True):
        for array, other_array in zip(piece, other, strict=True):
            assert_same_bits(array, other_array)


def test_no_hidden_layer():
    assert assert_same(rm.Network.mlp([2, 3], rng=0)) == 1


def test_no_line_in_the_domain():
    net = rm.Network(
        [rm.Linear([[1, 1], [0, 0], [0, 0]], [9, 0, -1]), rm.Linear([[1] * 3], [0])], 2
    )
    assert assert_same(net) == 1


@pytest.mark.parametrize("size", [1e150, 1e200, 1e300])
def test_overflow(size):
    """What is infinite or no number is undecided."""
    rng = np.random.default_rng(0)
    layers = [rm.Linear(rng.normal(size=(6, n)) * size, rng.normal(size=6)) for n in (2, 6, 6)]
    with np.errstate(all="ignore"):
        assert_same(rm.Network([*layers, rm.Linear(np.ones((2, 6)), np.zeros(2))], 2))


@given(SEEDS, st.integers(1, 200))
@example(0, 1)
def test_distinct(seed, n):
    rng = np.random.default_rng(seed)
    corners = rng.integers(-2, 3, (n, 2)) * rng.choice([-1.0, 1.0, 0.1], (n, 2))  # also -0
    rows, places = twin.distinct(corners)
    expected, expected_places = reference._distinct(corners)
    assert_same_bits(corners[rows], expected)
    np.testing.assert_array_equal(places, expected_places)


# ---- What the reference does itself.


def test_fractions():
    net = coarse(np.random.default_rng(3))
    cells = twin.enumerate_plane(exact_network(net), fractions(SQUARE), unchanged)
    expected = reference.enumerate_plane(exact_network(net), fractions(SQUARE), unchanged)
    assert len(cells) == len(expected) > 1
    for cell, other in zip(cells, expected, strict=True):
        assert isinstance(cell.corners[0, 0], Fraction)
        for array, other_array in zip(cell, other, strict=True):
            np.testing.assert_array_equal(array, other_array)


@pytest.mark.parametrize(
    ("weights", "corners", "inputs"),
    [("f4", "f8", "f8"), ("f8", "f4", "f4"), ("f8", "f4", "f8"), ("f4", "f8", "f4")],
)
def test_mixed_floats(weights, corners, inputs):
    net = dense(np.random.default_rng(0), [2, 6, 5, 2]).astype(weights)
    assert_same(net, SQUARE.astype(corners), lambda points: points.astype(inputs))


def test_integer_corners():
    assert_same(dense(np.random.default_rng(0), [2, 6, 5, 2]), SQUARE.astype(int))


# ---- What the caller sees.


def test_interrupt_between_layers():
    layers = []

    def stop(layer, cells):
        layers.append(layer)
        if layer == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        twin.enumerate_plane(
            dense(np.random.default_rng(0), [2, 5, 5, 5, 2]), SQUARE, unchanged, stop
        )
    assert layers == [1, 2]


def assert_same_complex(net, domain, monkeypatch):
    expected = rm.enumerate_regions(net, domain)
    monkeypatch.setenv("REFMMR_STRICT", "1")
    with rm.use_backend("numba"):
        found = rm.enumerate_regions(net, domain)
    monkeypatch.delenv("REFMMR_STRICT")
    assert len(found) > 1
    assert_same_bits(found.patterns, expected.patterns)
    assert_same_bits(found.areas, expected.areas)
    for corners, other in zip(found.vertices, expected.vertices, strict=True):
        assert_same_bits(corners, other)
    for array, other in zip(found.bent_lines(), expected.bent_lines(), strict=True):
        assert_same_bits(array, other)
    for array, other in zip(found.decision_boundary(), expected.decision_boundary(), strict=True):
        assert_same_bits(array, other)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_complex_of_a_box(dtype, monkeypatch):
    net = dense(np.random.default_rng(0), [2, 16, 16, 3]).astype(dtype)
    assert_same_complex(net, BOX, monkeypatch)


def test_complex_of_a_slice_of_a_convolutional_network(monkeypatch):
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (3, 1, 8, 8))
    assert_same_complex(net, rm.Slice(*X), monkeypatch)
