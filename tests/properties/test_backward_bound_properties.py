"""Laws of the relaxations: bounds hold, in real arithmetic, and they are in order."""

import numpy as np
import pytest
from helpers import margin_errors, value_errors
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import _examples, testing
from refmmr.certify.bounds import linear, region
from refmmr.reference import backward_bound, loss, pgd, radius, relaxation
from refmmr.testing import exact_network, fractions

NETWORKS = st.one_of(testing.networks(), testing.conv_networks())
RADII = st.floats(-4, 1).map(lambda power: 10.0**power)
METHODS = relaxation.METHODS


def unit_box(net, X):
    """A box that holds X and ends at some of its coordinates."""
    shape = net.input_shape
    return np.broadcast_to(X.min(), shape) - 0.25, np.broadcast_to(X.max(), shape) + 0.0 + (
        X.max() == X.min()
    )


def points_of_the_ball(rng, x, p, eps, box, count):
    """Points of the ball within the box, many of them on its edge, as exact floats."""
    X = np.repeat(x[None], count, axis=0)
    scale = eps * rng.choice([0.3, 1, 10], size=(count, *[1] * x.ndim))
    sparse = rng.random(X.shape) < rng.choice([0.2, 1], size=(count, *[1] * x.ndim))
    Z = X + scale * sparse * rng.standard_normal(X.shape)
    return pgd.project(X, Z, p, eps * (1 - 1e-9), box)


@pytest.mark.parametrize("method", METHODS)
@given(st.data())
@settings(deadline=None)
def test_bounds_hold_at_points_of_the_ball(method, data):
    net = data.draw(NETWORKS)
    X, y = data.draw(testing.batches(net))
    p, eps = data.draw(testing.norms()), data.draw(RADII)
    box = unit_box(net, X) if data.draw(st.booleans()) else None
    radii = np.full(len(X), eps)
    bounds = backward_bound.layer_bounds(net, X, p, radii, box, method)
    margins = backward_bound.margin_bounds(net, X, y, p, radii, box, method)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    for i, x in enumerate(X):
        Z = points_of_the_ball(rng, x, p, eps, box, 100)
        cache = net.forward(Z)
        for (low, high), f, error in zip(bounds, cache.outputs, value_errors(net, Z), strict=True):
            error = error.reshape(f.shape)
            assert (low[i] <= f + error).all()
            assert (high[i] >= f - error).all()
        logits = cache.outputs[-1].reshape(len(Z), -1)
        true = logits[:, y[i]][:, None] - logits
        rivals = np.arange(net.n_classes) != y[i]
        assert (margins[i] <= true + margin_errors(net, Z))[:, rivals].all()


@pytest.mark.parametrize("method", METHODS)
@given(st.data())
@settings(deadline=None, max_examples=40)
def test_bounds_hold_in_exact_arithmetic(method, data):
    """No tolerance at all: values at points of the ball, in fractions, are within the bounds."""
    net = data.draw(testing.networks(dyadic=data.draw(st.booleans())))
    X, _ = data.draw(testing.batches(net))
    X = X[:1]
    eps = data.draw(st.sampled_from([2.0**-20, 0.25, 1.0]))
    p = data.draw(testing.norms())
    bounds = backward_bound.layer_bounds(net, X, p, np.full(1, eps), None, method)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    # Along a single coordinate all norms agree, and the edge of the ball is a float or near one.
    Z = np.repeat(X, 8, axis=0)
    for z in Z:
        j = rng.integers(z.size)
        z.reshape(-1)[j] += eps * rng.choice([-1, 1, 0.5])
    exact_X, exact_Z = fractions(X), fractions(Z)
    inside = [abs(z - exact_X[0]).max() <= eps for z in exact_Z]
    assume(any(inside))
    outputs = exact_network(net).forward(exact_Z[inside]).outputs
    for (low, high), f in zip(bounds, outputs, strict=True):
        assert (fractions(low) <= f).all()
        assert (fractions(high) >= f).all()


@pytest.mark.parametrize("method", ["fast-lin", "crown"])
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_a_relaxation_proves_what_the_region_proves(method, data):
    """Within its own region a network is affine, so that nothing is relaxed."""
    net = data.draw(NETWORKS)
    X, _ = data.draw(testing.batches(net))
    y = net.predict(X)
    p = data.draw(testing.norms())
    box = unit_box(net, X) if data.draw(st.booleans()) else None
    # The two subtract different bounds on their rounding errors, which decide about ties.
    assume((loss.margins(net.logits(X), y) > 1e8 * margin_errors(net, X)[:, 0]).all())
    proved = region.region_bounds(net, X, y, p, box).lower
    found = linear.relaxed_bounds(net, X, y, p, box, method=method).lower
    assert (found >= np.minimum(proved, 1e12) * (1 - 2 * radius.PRECISION)).all()


@pytest.mark.parametrize("method", METHODS)
@given(st.data())
@settings(deadline=None, max_examples=30)
def test_certified_radii_withstand_an_attack(method, data):
    net = data.draw(NETWORKS)
    X, _ = data.draw(testing.batches(net))
    y = net.predict(X)
    p = data.draw(testing.norms())
    box = unit_box(net, X) if data.draw(st.booleans()) else None
    lower = linear.relaxed_bounds(net, X, y, p, box, method=method).lower
    some = np.flatnonzero((lower > 0) & np.isfinite(lower))
    assume(len(some))
    for i in some:
        Z = rm.pgd(net, X[[i]], y[[i]], p, eps=lower[i], steps=20, box=box, restarts=3)
        found = _examples.verified_distances(net, X[[i]], Z, y[[i]], p, None)
        assert (found > lower[i]).all()


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_interval_bounds_are_monotone_in_the_radius_and_in_the_box(data):
    net = data.draw(NETWORKS)
    X, y = data.draw(testing.batches(net))
    p, eps = data.draw(testing.norms()), data.draw(RADII)
    box = unit_box(net, X)
    larger = (box[0] - 0.5, box[1] + 0.5)
    radii = np.full(len(X), eps)

    def margins(radii, box):
        return backward_bound.margin_bounds(net, X, y, p, radii, box, "ibp")

    plain = margins(radii, box)
    finite = np.isfinite(plain)
    # Each bound subtracts an allowance for its rounding errors, a few times those of a forward pass
    # at the largest inputs.
    slack = (32 * margin_errors(net, np.abs(X) + 1.5 * eps) + np.zeros_like(plain))[finite]
    for wider in (margins(1.5 * radii, box), margins(radii, larger), margins(radii, None)):
        assert (wider[finite] <= plain[finite] + slack).all()
