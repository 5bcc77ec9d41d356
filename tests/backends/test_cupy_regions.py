"""Polygons that are cut on the device are those of the reference: same cells, order and bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr._backend import kernel
from refmmr.reference import regions

enumerate_plane = kernel(regions.enumerate_plane)

SQUARE = rm.Box([-1, -1], [1, 1])


def both(net, domain):
    """All cells, from the reference and from the twin."""
    expected = rm.enumerate_regions(net, domain, progress=False)
    with rm.use_backend("cupy"):
        found = rm.enumerate_regions(net, domain, progress=False)
    return expected._cells, found._cells


def assert_same_cells(expected, found):
    assert len(found) == len(expected)
    for theirs, ours in zip(expected, found, strict=True):
        for array, other in zip(theirs, ours, strict=True):
            assert other.dtype == array.dtype
            np.testing.assert_array_equal(other, array)


@pytest.mark.parametrize("sizes", [[2, 3], [2, 1, 2], [2, 16, 3], [2, 12, 10, 8, 2]])
def test_random_networks(cupy, sizes):
    cells = both(rm.Network.mlp(sizes, rng=0), SQUARE)
    assert_same_cells(*cells)
    assert len(cells[0]) > (len(sizes) - 2) * 3 or sizes in ([2, 3], [2, 1, 2])


@given(data=st.data())
@settings(max_examples=30)
def test_any_network(cupy, data):
    dyadic = data.draw(st.booleans())
    net = data.draw(testing.networks(dyadic=dyadic, max_hidden_layers=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    if net.input_shape == (2,):
        domain = rm.Box([-1, -2], [2, 1])
    elif net.input_shape == (1,):
        return  # no plane in it
    else:
        domain = rm.Slice(*rng.standard_normal((3, *net.input_shape)))
    assert_same_cells(*both(net, domain))


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_cuts_without_any_rounding_error_to_hide_behind(cupy, seed):
    """Values that are taken at their word, some of them exactly 0 at a corner."""
    from refmmr.backends._cupy import regions as twin

    rng = np.random.default_rng(seed)
    corners = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    W, b = rng.integers(-2, 3, (6, 2)) / rng.choice([1, 3]), rng.integers(-2, 3, 6) / 2
    values, errors = corners @ W.T + b, np.zeros(6)
    cell = regions.Cell(corners, np.full(4, regions.DOMAIN), np.zeros(0, bool))
    expected = regions.split_cell(cell, values, errors, 10)
    there = twin.Polygons(
        cupy.asarray([0, 4]), cupy.asarray(corners), cupy.asarray(cell.walls), cupy.asarray([0])
    )
    pieces, active = twin._split_cells(there, cupy.asarray(values), cupy.asarray(errors[None]), 10)
    assert_same_cells(expected, twin._as_cells(pieces, cupy.asnumpy(active)))


def test_slice_of_a_convolution(cupy):
    rng = np.random.default_rng(0)
    layer = rm.Conv2d(rng.standard_normal((3, 1, 2, 2)), rng.standard_normal(3), padding=1)
    dense = rm.Linear(rng.standard_normal((3, 48)), rng.standard_normal(3))
    net = rm.Network([layer, rm.Flatten(), dense], (1, 3, 3))
    points = rng.random((3, 1, 3, 3))
    assert_same_cells(*both(net, rm.Slice(*points)))


def test_layers_are_reported(cupy):
    net = rm.Network.mlp([2, 4, 3, 2], rng=0)
    corners = np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]])
    calls = {"cupy": [], "numpy": []}
    for backend, heard in calls.items():
        with rm.use_backend(backend):
            enumerate_plane(
                net, corners, lambda points: points, lambda *told, h=heard: h.append(told)
            )
    assert calls["cupy"] == calls["numpy"]
    assert [layer for layer, _ in calls["cupy"]] == [1, 2]
