"""The compiled enumeration of regions gives the reference's cells, in its order."""

import inspect
import subprocess
import sys
import zlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import _backend, testing
from refmmr.backends import threads
from refmmr.reference import enumeration as reference
from refmmr.reference import volumes as measure
from refmmr.testing import exact_network

numba = pytest.importorskip("numba", reason="the numba backend needs numba")

with rm.use_backend("numba"):
    from refmmr.backends._numba import edges as edges_twin
    from refmmr.backends._numba import enumeration as twin
    from refmmr.backends._numba import maps as maps_twin
    from refmmr.backends._numba import pieces as pieces_twin
    from refmmr.backends._numba import vertices as vertices_twin
    from refmmr.backends._numba import volumes as volumes_twin
    from refmmr.backends._numba.polygons import split_polygons
    from refmmr.backends._numba.polytopes import split_polytopes

SEEDS = st.integers(0, 2**32 - 1)
NUMBERS = ("vertex_starts", "vertices", "touches", "facet_starts", "hyperplanes", "patterns")


def box(n):
    return rm.Box([-1] * n, [1] * n).arrays()


def subspace(rng, shape, n, dyadic=False):
    """A random box of n dimensions in a space of inputs, not orthonormal."""
    origin, *directions = (
        rng.integers(-6, 7, (n + 1, *shape)) / 4 if dyadic else rng.normal(size=(n + 1, *shape))
    )
    return reference.Domain(-np.ones(n), np.ones(n), origin, np.stack(directions))


def dense(rng, sizes, bias=0.3):
    layers = [
        rm.Linear(rng.normal(size=(m, n)) * np.sqrt(2 / n), bias * rng.normal(size=m))
        for n, m in pairwise(sizes)
    ]
    return rm.Network(layers, sizes[0])


def assert_same(net, domain, tolerance=1e-11):
    """Run both; the regions."""
    told, expected_told = [], []
    found = twin.enumerate_regions(net, domain, lambda *args: told.append(args) or True)
    expected = reference.enumerate_regions(
        net, domain, lambda *args: expected_told.append(args) or True
    )
    if tolerance and (found.uncertain.any() or expected.uncertain.any()):
        return found  # a sign within rounding: the two may disagree about it
    assert told[-1:] == expected_told[-1:]
    for field in NUMBERS:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), field)
    for field in ("points", "maps"):
        array, other = getattr(found, field), getattr(expected, field)
        assert array.shape == other.shape
        np.testing.assert_allclose(array, other, rtol=tolerance, atol=tolerance, err_msg=field)
    np.testing.assert_array_equal(found.uncertain, expected.uncertain)
    assert found.complete
    return found


@pytest.fixture(params=[1, 3])
def one_and_three_threads(request, monkeypatch):
    monkeypatch.setattr(twin, "LEAST", 1)
    monkeypatch.setattr(twin, "BLOCK", 40)
    threads.set_threads(request.param)
    yield
    threads.set_threads(None)


def test_is_registered():
    assert "refmmr.reference.enumeration.enumerate_regions" in _backend._twins["numba"]


@given(testing.networks(max_width=9) | testing.conv_networks(), SEEDS, st.integers(1, 3))
def test_networks(net, seed, n):
    assert_same(net, subspace(np.random.default_rng(seed), net.input_shape, n), tolerance=1e-9)


@settings(max_examples=60)
@given(testing.dyadic_networks(), SEEDS, st.integers(1, 4))
def test_dyadic_networks(net, seed, n):
    """Zero rows, twins, opposites, dead units, hyperplanes through one vertex or along a facet."""
    domain = subspace(np.random.default_rng(seed), net.input_shape, n, dyadic=True)
    assert_same(net, domain, tolerance=1e-12)


def coarse(rng, n, width=6):
    """Weights of a coarse grid: many hyperplanes meet in points."""
    sizes = [n, *rng.integers(2, width, rng.integers(1, 3)), 3]
    layers = [
        rm.Linear(rng.integers(-4, 5, (m, k)) / 4, rng.integers(-4, 5, m) / 4 * rng.integers(2))
        for k, m in pairwise(sizes)
    ]
    return rm.Network(layers, n)


@settings(max_examples=150)
@given(SEEDS, st.integers(1, 4))
def test_regions_that_are_not_simple(seed, n):
    """Signs are decided alike, where they are 0 too."""
    net = coarse(np.random.default_rng(seed), n)
    found = twin.enumerate_regions(net, box(n))
    expected = reference.enumerate_regions(net, box(n))
    for field in NUMBERS:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), field)
    np.testing.assert_array_equal(found.uncertain, expected.uncertain)
    np.testing.assert_allclose(found.points, expected.points, atol=1e-12)


@pytest.mark.usefixtures("one_and_three_threads")
@pytest.mark.parametrize(
    "sizes", [[2, 70, 2], [2, 24, 24, 2], [2, 12, 12, 12, 12, 2], [3, 12, 12, 2], [4, 7, 6, 2]]
)
def test_wide_and_deep(sizes):
    """More pieces and vertices than the first arrays hold; several words of bits."""
    found = assert_same(dense(np.random.default_rng(0), sizes), box(sizes[0]))
    assert len(found.patterns) > 300


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_hidden_layer(n):
    assert len(assert_same(rm.Network.mlp([n, 3], rng=0), box(n)).patterns) == 1


def test_no_hyperplane_in_the_domain():
    net = rm.Network(
        [rm.Linear([[1, 1], [0, 0], [0, 0]], [9, 0, -1]), rm.Linear([[1] * 3], [0])], 2
    )
    assert len(assert_same(net, box(2)).patterns) == 1


def test_more_facets_than_bits_go_to_the_reference():
    """70 planes that cut off a ball, but nothing of each other's cuts' centres."""
    rng = np.random.default_rng(0)
    W = rng.normal(size=(70, 3))
    W /= np.linalg.norm(W, axis=1)[:, None]
    net = rm.Network([rm.Linear(W, np.full(70, -0.99)), rm.Linear(np.ones((2, 70)), [0, 0])], 3)
    domain = reference.Domain(*(s * np.full(3, 1.1) for s in (-1, 1)), np.zeros(3), np.eye(3))
    found = assert_same(net, domain)
    assert np.diff(found.facet_starts).max() > 64


@pytest.mark.parametrize("seed", range(5))
def test_updated_maps_are_those_of_the_patterns(seed):
    """One cell with many pieces: maps are made out of each other again and again."""
    rng = np.random.default_rng(seed)
    net = dense(rng, [2, 40, 20, 3])
    found = twin.enumerate_regions(net, box(2))
    cx = rm.RegionComplex(net, rm.Box([-1, -1], [1, 1]), found)
    fresh = rm.RegionGraph.affine_maps.func(cx)
    errors = reference.value_errors(net, box(2))[-1]
    vertices = cx.points[cx.vertex_numbers.flat]
    owner = cx.vertex_numbers.owners()
    for (V, a), (W, b) in [(cx.affine_maps, fresh)]:
        values = np.einsum("ckn,cn->ck", V[owner], vertices) + a[owner]
        others = np.einsum("ckn,cn->ck", W[owner], vertices) + b[owner]
        assert (np.abs(values - others) <= errors).all()


def test_a_map_is_made_afresh_before_its_error_bound_is_used_up():
    rng = np.random.default_rng(0)
    parents = np.sort(rng.integers(0, 3, 500))
    flips = np.uint64(1) << rng.integers(0, 63, (500, 1), dtype=np.uint64)
    active = np.bitwise_xor.accumulate(flips)
    fresh = maps_twin.find_fresh(parents, active, 10)
    assert 0 < len(fresh) < 250
    updates = 0
    for i in range(500):
        if i in fresh:
            updates = 0
            continue
        assert parents[i] == parents[i - 1]
        updates += int(active[i, 0] ^ active[i - 1, 0]).bit_count()
        assert updates <= 10


@given(SEEDS, st.integers(1, 300))
def test_each_cut_of_an_edge_by_a_unit_is_one_vertex(seed, n):
    """Cuts of the same edge by the same unit are the same vertex."""
    rng = np.random.default_rng(seed)
    cuts = rng.integers(0, 6, (n, 3))
    uncertain = rng.random(n) < 0.1
    vertices = -1 - rng.integers(0, n, 20)
    table, count = vertices_twin.no_vertices(2), 0
    numbers = []
    for start in range(0, n, 100):  # in several runs
        some = slice(start, start + 100)
        here = np.arange(-1, -1 - len(cuts[some]), -1)
        table, count = vertices_twin.merge(
            table, count, cuts[some], rng.normal(size=(len(here), 2)), uncertain[some], here, 50
        )
        numbers.extend(here - 50)
    known = {}
    expected = [known.setdefault(tuple(cut), len(known)) for cut in cuts.tolist()]
    assert numbers == expected
    assert count == len(known)
    for edge_and_unit, place in known.items():
        assert tuple(table.cuts[place]) == edge_and_unit
        same = [cut == edge_and_unit for cut in map(tuple, cuts.tolist())]
        assert table.uncertain[place] == uncertain[same].any()
    assert vertices.max() < 0


@given(SEEDS, st.lists(st.integers(1, 150), min_size=1, max_size=4))
def test_bits_are_appended(seed, widths):
    rng = np.random.default_rng(seed)
    packed, bits, n_bits = np.zeros((1, 0), np.uint8), np.zeros((1, 0), bool), 0
    for width in widths:
        parents = np.sort(rng.integers(0, len(packed), 5))
        active = rng.random((5, width)) < 0.5
        words = reference.pack(active, words=-(-width // 64))
        packed = twin.append_bits(packed, n_bits, parents, words, width)
        bits = np.concatenate([bits[parents], active], axis=1)
        n_bits += width
        np.testing.assert_array_equal(packed, np.packbits(bits, axis=1, bitorder="little"))


def test_stop():
    """What is left is marked as not complete, and is still right."""
    net = dense(np.random.default_rng(0), [2, 30, 30, 2])
    for run in (twin.enumerate_regions, reference.enumerate_regions):
        calls = []
        part = run(net, box(2), lambda *told, calls=calls: calls.append(told) or told[0] == 1)
        assert part.complete == (calls[-1][1] == calls[-1][2])


@pytest.mark.parametrize("n", [1, 2, 3])
def test_fractions(n):
    net = coarse(np.random.default_rng(3), n)
    domain = rm.Box([-1] * n, [1] * n).arrays(exact=True)
    cells = twin.enumerate_regions(exact_network(net), domain)
    expected = reference.enumerate_regions(exact_network(net), domain)
    assert cells.points.dtype == object
    for array, other in zip(cells, expected, strict=True):
        np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("size", [1e150, 1e200, 1e300])
def test_overflow(size):
    """What is infinite or no number is undecided."""
    rng = np.random.default_rng(0)
    layers = [rm.Linear(rng.normal(size=(6, n)) * size, rng.normal(size=6)) for n in (2, 6, 6)]
    net = rm.Network([*layers, rm.Linear(np.ones((2, 6)), np.zeros(2))], 2)
    with np.errstate(all="ignore"):
        found, expected = (
            run(net, box(2)) for run in (twin.enumerate_regions, reference.enumerate_regions)
        )
    np.testing.assert_array_equal(found.patterns, expected.patterns)


def test_interrupt_between_layers():
    layers = []

    def stop(layer, done, cells, pieces):
        layers.append(layer)
        if layer == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        twin.enumerate_regions(dense(np.random.default_rng(0), [2, 5, 5, 5, 2]), box(2), stop)
    assert layers == [1, 2]


def test_complex_of_a_slice_of_a_convolutional_network(monkeypatch):
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    plane = rm.Slice(*np.random.default_rng(0).uniform(0, 1, (3, 1, 8, 8)))
    expected = rm.enumerate_regions(net, plane)
    with rm.use_backend("numba"):
        found = rm.enumerate_regions(net, plane)
    np.testing.assert_array_equal(found.packed_patterns, expected.packed_patterns)
    np.testing.assert_allclose(found.areas, expected.areas, atol=1e-12)
    for array, other in zip(found.bent_lines(), expected.bent_lines(), strict=True):
        np.testing.assert_allclose(array, other, atol=1e-12)


@settings(max_examples=40)
@given(SEEDS, st.integers(1, 4), st.booleans())
def test_volumes(seed, n, grid):
    rng = np.random.default_rng(seed)
    net = coarse(rng, n) if grid else dense(rng, [n, 5, 3, 2])
    found = reference.enumerate_regions(net, box(n))
    np.testing.assert_allclose(
        volumes_twin.volumes(found), measure.volumes(found).astype(float), atol=1e-12
    )


def test_the_key_of_the_cache_holds_the_sources():
    """What Numba caches would not notice a change of a file that it is compiled from."""
    polygons, polytopes = (inspect.signature(f.py_func) for f in (split_polygons, split_polytopes))
    pieces, edges = (Path(module.__file__).read_bytes() for module in (pieces_twin, edges_twin))
    assert polygons.parameters["source"].default == zlib.crc32(pieces)
    assert polytopes.parameters["source"].default == zlib.crc32(edges, zlib.crc32(pieces))


def test_compiled_code_from_the_cache():
    """Twice in new processes: the second one finds what the first has compiled."""
    code = (
        "import numpy as np, refmmr as rm\n"
        "rm.set_backend('numba')\n"
        "net = rm.Network.mlp([3, 4, 2], rng=0)\n"
        "cx = rm.enumerate_regions(net, rm.Box([-1] * 3, [1] * 3))\n"
        "assert abs(cx.volumes.sum() - 8) < 1e-9 and cx.verify().ok\n"
    )
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
