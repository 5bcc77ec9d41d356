"""The walk through the regions, against what is known by other means."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from helpers import units
from scipy.optimize import linprog

import refmmr as rm
from refmmr.regions.walk import walk


def go(net, half=1.0, **options):
    """Walk through the box [-half, half]^n of the inputs."""
    n = net.input_shape[0]
    side = np.full(n, float(half))
    return walk(net, np.zeros(n), np.eye(n), -side, side, **options)


def random_net(sizes, seed, bias=0.3):
    rng = np.random.default_rng(seed)
    layers = [
        rm.Linear(layer.W, bias * rng.normal(size=layer.b.shape))
        for layer in rm.Network.mlp(sizes, rng=seed).layers
    ]
    return rm.Network(layers, sizes[0])


def keys(patterns):
    return {pattern.tobytes() for pattern in patterns}


def facets_of(found, region):
    """Hyperplanes of one region, sorted."""
    return sorted(found.hyperplanes[(found.cells == region).any(axis=1)].tolist())


def check(net, found, points=lambda Z: Z):
    """What holds for every walk that ended by itself; `points` are the inputs of points Z."""
    R, n = found.centers.shape
    assert found.complete
    assert found.undecided == 0
    assert found.patterns.shape == (R, net.n_hidden)
    assert found.radii.shape == (R,)
    assert len(keys(found.patterns)) == R
    np.testing.assert_array_equal(net.activation_pattern(points(found.centers)), found.patterns)
    rng = np.random.default_rng(0)
    for _ in range(3):
        on_sphere = rng.normal(size=(R, n))
        on_sphere *= (found.radii / np.linalg.norm(on_sphere, axis=1))[:, None]
        inside = net.activation_pattern(points(found.centers + 0.999 * on_sphere))
        np.testing.assert_array_equal(inside, found.patterns)
    first, second = found.cells.T
    inner = found.hyperplanes >= 0
    np.testing.assert_array_equal(inner, second >= 0)
    assert (first >= 0).all()
    differ = found.patterns[first[inner]] != found.patterns[second[inner]]
    assert differ.any(axis=1).all()
    named = [int(np.flatnonzero(units)[0]) for units in differ]
    assert named == found.hyperplanes[inner].tolist()
    # No facet twice, and at least as many as a polytope has.
    sides = [
        (hyperplane, *sorted(pair))
        for hyperplane, pair in zip(found.hyperplanes, found.cells, strict=True)
    ]
    assert len(set(sides)) == len(sides)
    assert np.bincount(found.cells[found.cells >= 0], minlength=R).min() > n


# ---- Against other methods.


@pytest.mark.parametrize("seed", range(12))
def test_plane(seed):
    """The regions of the plane enumeration, and as many facets as their polygons have edges."""
    rng = np.random.default_rng(seed)
    sizes = [2, *rng.integers(2, 9, rng.integers(1, 4)).tolist(), 2]
    net = random_net(sizes, seed, bias=0 if seed % 4 == 0 else 0.3)
    found = go(net)
    check(net, found)
    cx = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]))
    assert cx.areas.min() > 1e-12
    assert keys(found.patterns) == keys(cx.patterns)
    edges = {
        pattern.tobytes(): len(vertices)
        for pattern, vertices in zip(cx.patterns, cx.vertices, strict=True)
    }
    for region, pattern in enumerate(found.patterns):
        assert len(facets_of(found, region)) == edges[pattern.tobytes()]


@pytest.mark.parametrize(("n", "N"), [(2, 7), (3, 6), (4, 6)])
def test_hyperplanes_in_general_position(n, N):
    """Zaslavsky: regions are counted by the intersections of up to n hyperplanes."""
    rng = np.random.default_rng(n)
    W, b = rng.normal(size=(N, n)), rng.uniform(-1, 1, N)
    meetings = [np.linalg.solve(W[list(i)], -b[list(i)]) for i in combinations(range(N), n)]
    net = units(W, b)
    found = go(net, half=2 * np.abs(meetings).max())
    check(net, found)
    assert len(found.radii) == sum(comb(N, k) for k in range(n + 1))
    # Each hyperplane is cut into pieces by the others.
    assert (found.hyperplanes >= 0).sum() == N * sum(comb(N - 1, k) for k in range(n))


@pytest.mark.parametrize(("sizes", "half"), [([3, 8, 8, 2], 1), ([4, 6, 4, 4, 2], 1)])
def test_facets_by_one_program_each(sizes, half):
    net = random_net(sizes, 1)
    n = sizes[0]
    found = go(net, half)
    check(net, found)
    rng = np.random.default_rng(0)
    for region in rng.choice(len(found.radii), 8, replace=False).tolist():
        A, b = halfspaces(net, found.centers[region], half)
        hyperplanes = []
        for row, hyperplane in enumerate([*range(net.n_hidden), *(-1 - np.arange(2 * n))]):
            looser = b.copy()
            looser[row] -= 1
            lowest = linprog(A[row], -A, -looser, bounds=(None, None))
            if lowest.fun < b[row] - 1e-9:
                hyperplanes.append(int(hyperplane))
        assert facets_of(found, region) == sorted(hyperplanes)


def halfspaces(net, x, half):
    """Rows ``A z >= b`` of the region of a point: the units', then the faces' of the box."""
    n = len(x)
    pattern = net.forward(x[None])
    V = np.concatenate(net.forward(np.eye(n), pattern.masks, bias=False).outputs[:-1], axis=1).T
    f = np.concatenate(pattern.outputs[:-1], axis=1)[0]
    A, b = np.sign(f)[:, None] * V, -np.sign(f) * (f - V @ x)
    faces = np.stack([np.eye(n), -np.eye(n)], axis=1).reshape(-1, n)
    return np.concatenate([A, faces]), np.append(b, np.full(2 * n, -half))


@pytest.mark.parametrize(
    ("sizes", "half"), [([8, 10, 10, 2], 0.05), ([5, 8, 8, 2], 0.2), ([20, 7, 2], 0.3)]
)
def test_sampling_finds_nothing_new(sizes, half):
    net = random_net(sizes, 0, bias=0.1)
    found = go(net, half)
    check(net, found)
    X = np.random.default_rng(1).uniform(-half, half, (30_000, sizes[0]))
    sampled = keys(np.unique(net.activation_pattern(X), axis=0))
    assert len(sampled) > 100
    assert sampled <= keys(found.patterns)


def test_convolution_in_a_slice():
    rng = np.random.default_rng(3)
    layers = [
        rm.Conv2d(rng.normal(size=(2, 1, 3, 3)), rng.normal(size=2) / 3, padding=1),
        rm.Conv2d(rng.normal(size=(1, 2, 2, 2)), rng.normal(size=1), (2, 2)),
        rm.Flatten(),
        rm.Linear(rng.normal(size=(3, 4)), np.zeros(3)),
        rm.Linear(rng.normal(size=(2, 3)), np.zeros(2)),
    ]
    net = rm.Network(layers, (1, 4, 4))
    origin, directions = rng.normal(size=(1, 4, 4)), rng.normal(size=(3, 1, 4, 4))
    lo, hi = np.array([-0.8, 0, 2]), np.array([0.8, 1, 2.5])

    def points(Z):
        return origin + np.tensordot(Z, directions, axes=1)

    found = walk(net, origin, directions, lo, hi)
    check(net, found, points)
    Z = rng.uniform(lo, hi, (20_000, 3))
    sampled = keys(np.unique(net.activation_pattern(points(Z)), axis=0))
    assert len(sampled) > 100
    assert sampled <= keys(found.patterns)


# ---- Degenerate networks.


@pytest.mark.parametrize(("n", "N"), [(3, 7), (4, 6)])
def test_central_arrangement(n, N):
    net = units(np.random.default_rng(n).normal(size=(N, n)), np.zeros(N))
    found = go(net)
    check(net, found)
    assert len(found.radii) == 2 * sum(comb(N - 1, k) for k in range(n))


def test_deep_cones():
    """Without biases all hyperplanes of all layers meet in the centre."""
    net = random_net([3, 5, 5, 4, 2], 2, bias=0)
    found = go(net)
    check(net, found)
    X = np.random.default_rng(1).uniform(-1, 1, (20_000, 3))
    assert keys(net.activation_pattern(X)) <= keys(found.patterns)


def degenerate():
    """Name: (network in three dimensions, number of regions, of facets between them)."""
    x, y = [1, 0, 0], [0, 1, 0]
    yield "no hidden layer", rm.Network.mlp([3, 2], rng=0), 1, 0
    yield "duplicate", units([x, x], [0, 0]), 2, 1
    yield "multiple", units([x, [1 / 4, 0, 0]], [1 / 3, 1 / 12]), 2, 1
    yield "negated", units([x, [-1, 0, 0]], [0.1, -0.1]), 2, 1
    yield "dead", units([x, y], [0, -5]), 2, 1
    yield "constant", units([x, [0, 0, 0], [0, 0, 0]], [0, 0, 1]), 2, 1
    yield "along a face", units([x, y], [-1, 1]), 1, 0
    yield "through an edge", units([[1, 1, 0]], [-2]), 1, 0
    yield "through a vertex", units([[1, 1, 1]], [-3]), 1, 0
    yield "parallel", units([x, x], [0.5, -0.5]), 3, 2
    yield "hyperplane on a hyperplane", units([x], [0], ([[1], [-1]], [0, 0])), 2, 1
    yield "absolute", units([x, [-1, 0, 0]], [0, 0], ([[1, 1]], [-0.5])), 4, 3
    yield "absolute on a hyperplane", units([x, [-1, 0, 0]], [0, 0], ([[1, 1]], [0])), 2, 1
    # relu(x) - relu(y): zero on a whole region, and on a diagonal.
    yield "zero on a region", units([x, y], [0, 0], ([[1, -1]], [0])), 5, 5
    yield "bent away", units([x], [0], ([[1]], [-0.5])), 3, 2
    yield "deep zeros", units([x], [0], ([[1]], [0]), ([[1]], [0]), ([[-1]], [0])), 2, 1


ZOO = {name: case for name, *case in degenerate()}


@pytest.mark.parametrize("name", ZOO)
def test_degenerate(name):
    net, regions, facets = ZOO[name]
    found = go(net)
    check(net, found)
    assert len(found.radii) == regions
    assert (found.hyperplanes >= 0).sum() == facets


def test_a_cube():
    """One region: its ball and its faces, lower and upper of each axis."""
    net = rm.Network.mlp([3, 2], rng=0)
    lo, hi = np.array([0.0, 1, 2]), np.array([4.0, 3, 5])
    found = walk(net, np.zeros(3), np.eye(3), lo, hi)
    assert found.patterns.shape == (1, 0)
    np.testing.assert_allclose(found.centers[0, 1], 2)
    np.testing.assert_allclose(found.radii, [1])
    assert sorted(found.hyperplanes) == [-6, -5, -4, -3, -2, -1]
    assert found.cells.tolist() == [[0, -1]] * 6


def test_faces_are_calls_apart():
    found = go(units([[1, 0, 0]], [0]))
    negative = int(found.centers[:, 0].argmin())
    assert facets_of(found, negative) == [-6, -5, -4, -3, -1, 0]
    assert facets_of(found, 1 - negative) == [-6, -5, -4, -3, -2, 0]


def test_shared_hyperplanes_are_named_after_their_first_unit():
    found = go(units([[0, 1, 0], [1, 0, 0], [-1, 0, 0]], [-5, 0, 0]))
    assert found.hyperplanes[found.hyperplanes >= 0].tolist() == [1]


@pytest.mark.parametrize("gap", [1e-9, 3e-11])
def test_thin_slab(gap):
    """A region too thin to be sure of is counted, and what lies behind it is found."""
    found = go(units([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [0, -gap, -0.5]))
    assert found.complete
    fat = keys(found.patterns)
    behind = [[a, a, b] for a in (False, True) for b in (False, True)]
    assert keys(np.array(behind)) <= fat
    assert (len(fat) == 6) == (gap == 1e-9)
    assert (found.undecided == 0) == (gap == 1e-9)


@pytest.mark.parametrize("n", [1, 3])
def test_a_slab_that_floats_do_not_see_is_counted(n):
    """Two regions with a third of width 1e-12, or 1e-17, between them."""
    x = np.eye(n)[0]
    for b in ([0, 1e-12], [1 / 3, 1 / 3 + 1e-16]):
        net = units([x, x], b)
        found = go(net)
        assert len(rm.enumerate_regions(net, rm.Box([-1] * n, [1] * n), exact=True)) == 3
        assert len(found.radii) == 2
        assert found.undecided == 1
    # 1/9 is rounded: not 1/3 times the other row.
    assert go(units([x, x / 3], [1 / 3, 1 / 9])).undecided == 1


@pytest.mark.parametrize("seed", range(4))
def test_regions_that_floats_do_not_see_are_counted(seed):
    """Planes almost through one point cut off tiny regions there, which a walk does not find."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(5, 3))
    net = units(W, 1e-13 * rng.normal(size=5))
    found = go(net)
    exact = rm.enumerate_regions(net, rm.Box([-1] * 3, [1] * 3), exact=True)
    assert len(exact) > len(found.radii) == 2 * sum(comb(4, k) for k in range(3))
    assert found.undecided > 0


def test_slivers_at_a_face_and_in_a_vertex_of_the_domain_are_counted():
    for W, b in (([1, 0], 1 - 1e-13), ([1, 1], 2 - 1e-15)):
        for pattern in (1, -1):  # the sliver is active, or inactive
            found = go(units([np.multiply(pattern, W)], [pattern * b]))
            assert len(found.radii) == 1
            assert found.undecided > 0
        assert go(units([W], [np.ceil(b)])).undecided == 0


def test_constants_are_known_to_be_constant():
    """0.3 (x + 2) - 0.3 (x + 2) is 0, but 0.1 + 0.2 is not 0.3 in floats."""
    for weight, constant in ((0.3, True), (0.1 + 0.2, False)):
        bias = -2 * (weight - 0.3)
        found = go(units([[1, 0], [1, 0]], [2, 2], ([[weight, -0.3]], [bias])))
        assert len(found.radii) == 1
        assert (found.undecided == 0) == constant


def test_equal_rows_beside_constants():
    """Of equal hyperplanes one is left out, also where other units are constant."""
    net = units([[0.75, -1], [0.375, -0.5]], [-0.25, -0.125], ([[0.75, -0.25]], [1]))
    found = go(net)
    assert found.undecided == 0
    expected = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]), exact=True)
    assert keys(found.patterns) == keys(expected.patterns)
    assert len(found.radii) == 2


def test_a_unit_that_is_negative_in_a_sliver_only():
    """|z| - 1e-17: active on both sides of the hyperplane z = 0, but not next to it."""
    net = units([[1.0], [-1.0]], [0, 0], ([[1, 1]], [-1e-17]))
    found = go(net)
    assert len(rm.enumerate_regions(net, rm.Box([-1], [1]), exact=True)) == 4
    assert len(found.radii) == 2
    assert found.undecided > 0
    # |z| itself touches 0 there, and changes no sign.
    assert go(units([[1.0], [-1.0]], [0, 0], ([[1, 1]], [0]))).undecided == 0


def test_rows_beyond_the_limit_of_exact_arithmetic_stay_undecided(monkeypatch):
    monkeypatch.setattr("refmmr.regions.exact_rows.MAX_PRODUCTS", 0)
    found = go(units([[1, 0], [1, 0], [0, 1]], [0, 0, 0]))
    assert len(found.radii) == 4
    assert found.undecided > 0


# ---- Coordinates, budgets.


def test_shifted_and_scaled():
    """The same regions where z is measured in other units from elsewhere."""
    net = random_net([3, 6, 6, 2], 5)
    shift, scale = np.array([30.0, -7, 2]), 250.0
    origin, directions = -shift / scale, np.eye(3) / scale
    here, there = go(net), walk(net, origin, directions, shift - scale, shift + scale)
    order = [np.lexsort(found.patterns.T) for found in (here, there)]
    np.testing.assert_array_equal(here.patterns[order[0]], there.patterns[order[1]])
    np.testing.assert_allclose(there.radii[order[1]], scale * here.radii[order[0]], rtol=1e-6)
    assert sorted(here.hyperplanes) == sorted(there.hyperplanes)


def test_start():
    net = random_net([3, 6, 6, 2], 5)
    start = np.array([0.9, -0.7, 0.8])
    found = go(net, start=start)
    np.testing.assert_array_equal(found.patterns[:1], net.activation_pattern(start[None]))
    assert keys(found.patterns) == keys(go(net).patterns)


def test_start_on_hyperplanes_and_in_a_vertex():
    net = units(np.eye(3), np.zeros(3))
    for start in (np.zeros(3), np.ones(3), np.array([-1.0, 0, 0])):
        found = go(net, start=start)
        check(net, found)
        assert len(found.radii) == 8


def test_max_regions():
    net = random_net([4, 6, 6, 2], 0)
    whole, part = go(net), go(net, max_regions=7)
    assert not part.complete
    assert len(part.radii) == 7
    np.testing.assert_array_equal(part.patterns, whole.patterns[:7])
    np.testing.assert_array_equal(part.centers, whole.centers[:7])
    assert part.cells.max() < 7
    # Facets to regions that were not visited are there, open on the other side.
    assert ((part.hyperplanes >= 0) & (part.cells[:, 1] < 0)).any()
    everything = go(net, max_regions=len(whole.radii))
    assert everything.complete
    nothing = go(net, max_regions=0)
    assert nothing.patterns.shape == (0, 12)
    assert nothing.centers.shape == (0, 4)
    assert not nothing.complete


def test_stop_and_progress():
    net = random_net([3, 8, 8, 2], 0)
    calls = []
    found = go(net, stop=lambda: len(calls) == 5, on_region=lambda *news: calls.append(news))
    assert not found.complete
    assert [count for count, _ in calls] == [1, 2, 3, 4, 5]
    calls.clear()
    found = go(net, on_region=lambda *news: calls.append(news))
    assert calls[-1] == (len(found.radii), 0)


def test_interrupted():
    net = random_net([3, 8, 8, 2], 0)

    def interrupt(count, waiting):
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(net, on_region=interrupt)
    check(net, go(net))
