"""Attacks on Numba: convolutions without windows, and threads that share the units of a layer."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr.backends import threads

pytest.importorskip("numba", reason="the numba backend needs numba")

from refmmr.backends._numba import pgd
from refmmr.backends._numba.layers import Buffers
from refmmr.backends._numba.layout import Layout
from refmmr.backends._numba.planes import PlaneConv, without_windows

SIDES = st.integers(1, 7)
PADS = st.tuples(st.integers(0, 3), st.integers(0, 3))


@st.composite
def convolutions(draw):
    """A convolution of any sizes on integers, with a dense layer behind it, and its images."""
    channels, height, width = draw(st.integers(1, 3)), draw(SIDES), draw(SIDES)
    pads = draw(PADS), draw(PADS)
    kernel = [
        draw(st.integers(1, min(5, side + sum(pad))))
        for side, pad in zip((height, width), pads, strict=True)
    ]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_out, strides = draw(st.integers(1, 6)), (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    W = rng.integers(-8, 8, (n_out, channels, *kernel)).astype(float)
    conv = rm.Conv2d(W, np.zeros(n_out), strides, pads)
    shape = conv.output_shape((channels, height, width))
    dense = rm.Linear(np.ones((2, np.prod(shape))), np.zeros(2))
    net = rm.Network([conv, rm.Flatten(), dense], (channels, height, width))
    return net, rng.integers(-8, 8, (draw(st.integers(1, 3)), *net.input_shape)).astype(float)


@given(convolutions())
def test_a_convolution_without_windows_is_that_with_windows(case):
    net, X = case
    layout = Layout(net, X)
    conv, x = layout.layers[0], layout.inputs(X)
    planes, buffers = PlaneConv(conv), Buffers(layout.dtype)
    expected, found = (np.full((len(x), conv.outputs), np.nan) for _ in range(2))
    conv.linear(conv.operand(x, buffers, "windows"), expected)
    planes.linear(planes.operand(x, buffers, "windows"), found)
    assert_array_equal(found, expected)
    back, again = (np.full(x.shape, np.nan) for _ in range(2))
    conv.transpose(expected, back, buffers)
    planes.transpose(expected, again, buffers)
    assert_array_equal(again, back)


def test_where_windows_are_left_out():
    def first_layer(net):
        return without_windows(Layout(net, np.zeros((1, *net.input_shape))).layers[0])

    assert isinstance(first_layer(rm.Network.lenet_small((3, 8, 8), 10, rng=0)), PlaneConv)
    assert not isinstance(first_layer(rm.Network.lenet_small((5, 8, 8), 10, rng=0)), PlaneConv)
    assert not isinstance(first_layer(rm.Network.mlp([4, 3, 2], rng=0)), PlaneConv)


@pytest.fixture(params=[2, 3])
def sharing(request, monkeypatch):
    """Threads share units, however small the work."""
    monkeypatch.setattr(pgd, "MIN_UNITS", 2)
    monkeypatch.setattr(pgd, "PRODUCTS_PER_THREAD", 1)
    threads.set_threads(request.param)
    yield request.param
    threads.set_threads(None)


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_threads_share_units(p, keep, sharing, monkeypatch):
    counts, together = [], threads.together
    monkeypatch.setattr(
        threads, "together", lambda work, count: (counts.append(count), together(work, count))
    )
    net = rm.Network.mlp([6, 11, 4], rng=0)
    rng = np.random.default_rng(0)
    X, y = rng.random((7, 6)), rng.integers(4, size=7)
    options = {"p": p, "eps": 0.3, "steps": 6, "keep": keep}
    with rm.use_backend("numba"):
        found = rm.pgd(net, X, y, **options)
    assert counts == [sharing]
    expected = rm.pgd(net, X, y, **options)
    assert np.abs(expected - X).max() > 0.05
    assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_an_error_in_one_thread_ends_all():
    def work(i, barrier):
        if i == 1:
            raise ValueError("one")
        barrier.wait()

    with pytest.raises(ValueError, match="one"):
        threads.together(work, 3)
    seen = []
    threads.together(lambda i, barrier: (barrier.wait(), seen.append(i)), 3)
    assert sorted(seen) == [0, 1, 2]


def test_two_callers_at_once_both_finish(sharing):
    net = rm.Network.mlp([6, 11, 4], rng=0)
    X, y = np.random.default_rng(0).random((7, 6)), np.arange(7) % 4
    expected = rm.pgd(net, X, y, p=2, eps=0.3, steps=40)
    results = []

    def attack():
        with rm.use_backend("numba"):
            results.extend(rm.pgd(net, X, y, p=2, eps=0.3, steps=40) for _ in range(5))

    callers = [threading.Thread(target=attack) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert len(results) == 20
    for found in results:
        assert_allclose(found, expected, rtol=0, atol=1e-13)
