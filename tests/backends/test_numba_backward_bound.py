"""The compiled relaxations give the bounds of the reference, up to rounding."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr._backend import kernel
from refmmr.reference import backward_bound, radius, relaxation

pytest.importorskip("numba", reason="the numba backend needs numba")

RUN_LAYERS = kernel(backward_bound.layer_bounds)
MARGIN_FUNCTION = kernel(radius.margin_function)
RUN_ROWS = kernel(backward_bound.row_bounds)
NETWORKS = st.one_of(testing.networks(), testing.conv_networks())
RADII = st.sampled_from([1e-6, 1e-2, 0.3, 2.0, 100.0])


def margins_of(net, X, y, p, radii, box, method):
    """The margin bounds of all points, from the last to the first: points may be chosen."""
    rows = np.arange(len(X))[::-1]
    return MARGIN_FUNCTION(net, X, y, p, box, method)(radii[rows], rows)[rows]


def scale(net, X, radii):
    """How large the terms of each layer's sums can be: rounding errors are some eps of it."""
    size = np.abs(X).reshape(len(X), -1).max(axis=1) + radii
    for W, b in net.parameters:
        rows = np.abs(W).reshape(len(W), -1).sum(axis=1).max()
        size = rows * size + np.abs(b).max()
        yield size


@pytest.mark.parametrize("method", relaxation.METHODS)
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_same_bounds(method, data):
    net = data.draw(NETWORKS)
    X, y = data.draw(testing.batches(net))
    p = data.draw(testing.norms())
    radii = np.array([data.draw(RADII) for _ in X])
    box = data.draw(
        st.sampled_from(
            [
                None,
                tuple(np.full(net.input_shape, side) for side in (X.min() - 0.1, X.max() + 0.1)),
                # One for each point, in which some coordinates are fixed.
                (X - 0.1 * (X.min() < X), X + 0.2 * (X.max() > X)),
            ]
        )
    )
    rows = np.random.default_rng(len(X)).normal(size=(1, 3, net.n_classes))
    with rm.use_backend("numba"):
        layers = RUN_LAYERS(net, X, p, radii, box, method)
        margins = margins_of(net, X, y, p, radii, box, method)
        linear = RUN_ROWS(net, X, rows, p, radii, box, method)
    sizes = list(scale(net, X, radii))
    for size, found, expected in zip(
        sizes, layers, backward_bound.layer_bounds(net, X, p, radii, box, method), strict=True
    ):
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.shape == theirs.shape
            off = np.abs(mine - theirs).reshape(len(X), -1).max(axis=1)
            assert (off <= 1e-9 * size).all()
    expected = backward_bound.margin_bounds(net, X, y, p, radii, box, method)
    np.testing.assert_array_equal(np.isinf(margins), np.isinf(expected))
    finite = np.isfinite(expected)
    off = np.where(finite, margins, 0) - np.where(finite, expected, 0)
    assert (np.abs(off).max(axis=1) <= 1e-9 * sizes[-1]).all()
    off = np.abs(linear - backward_bound.row_bounds(net, X, rows, p, radii, box, method))
    assert (off.max(axis=1) <= 1e-9 * np.abs(rows).sum() * sizes[-1]).all()


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_many_samples_on_several_threads(p):
    """Blocks of rows and runs of samples end where they should."""
    rng = np.random.default_rng(0)
    net = rm.Network.mlp([40, 300, 200, 10], rng=rng)
    X = rng.uniform(size=(150, 40))
    y = net.predict(X)
    radii = rng.uniform(0.001, 0.05, len(X))
    box = (np.zeros(40), np.ones(40))
    expected = backward_bound.margin_bounds(net, X[-3:], y[-3:], p, radii[-3:], box, "crown")
    with rm.use_backend("numba"):
        found = margins_of(net, X, y, p, radii, box, "crown")
        alone = margins_of(net, X[:1], y[:1], p, radii[:1], box, "crown")
    # The bounds on the rounding errors need not be equally good.
    np.testing.assert_allclose(found[-3:], expected, atol=1e-8)
    np.testing.assert_allclose(found[:1], alone, rtol=1e-10)
