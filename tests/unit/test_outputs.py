"""Intervals of outputs and local Lipschitz constants."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr.reference.hyperplanes import dual_norm
from refmmr.reference.pgd import random_start

METHODS = ("ibp", "fast-lin", "crown")


@given(st.data())
def test_outputs_and_slopes_stay_within(data):
    net = data.draw(st.one_of(testing.networks(), testing.conv_networks()))
    X, _ = data.draw(testing.batches(net))
    p, method = data.draw(testing.norms()), data.draw(st.sampled_from(METHODS))
    eps = data.draw(st.sampled_from([1e-3, 0.1, 3.0]))
    own = np.minimum(X, X - 0.05 * (np.arange(X[0].size) % 2).reshape(X.shape[1:])), X + 0.2
    box = data.draw(st.sampled_from([None, own]))
    found = rm.output_bounds(net, X, eps, p, box, method)
    rng = np.random.default_rng(0)
    for _ in range(10):
        Z, W = (random_start(X, p, eps * (1 - 1e-9), box, rng) for _ in range(2))
        f, g = net.logits(Z), net.logits(W)
        size = np.abs(f).max(axis=1, keepdims=True) + 1
        assert (found.lower <= f + 1e-9 * size).all()
        assert (f <= found.upper + 1e-9 * size).all()
        length = np.linalg.norm((Z - W).reshape(len(X), -1), p, axis=1)[:, None]
        assert (np.abs(f - g) <= found.lipschitz * length + 1e-9 * size).all()


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_constants_are_exact_where_all_units_are_stable(p):
    net = rm.Network.mlp([5, 12, 8, 3], rng=0)
    X = np.random.default_rng(0).uniform(size=(4, 5))
    found = rm.output_bounds(net, X, 1e-7, p, None)
    rows = np.stack([rm.linear_region(net, x).V[-1] for x in X])
    np.testing.assert_allclose(found.lipschitz, dual_norm(rows, p), rtol=1e-10)
    assert (found.lipschitz >= dual_norm(rows, p)).all()
    width = found.upper - found.lower
    np.testing.assert_allclose(width, 2e-7 * found.lipschitz, atol=1e-11)  # rounding errors


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_branch_and_bound_meets_what_is_reached(p):
    net = rm.Network.mlp([3, 8, 6, 1], rng=1)
    X = np.random.default_rng(0).uniform(size=(1, 3))
    first = rm.output_bounds(net, X, 0.4, p)
    found = rm.output_bounds(net, X, 0.4, p, method="bab")
    # In l_2 gradient steps find the multipliers of leaves, not linear programs.
    gap = (0.2 if p == 2 else 1.01e-4) * (first.upper - first.lower)
    assert (first.lower <= found.lower).all()
    assert (found.upper <= first.upper).all()
    assert (found.lower <= found.reached_lower).all()
    assert (found.reached_lower <= found.lower + gap).all()
    assert (found.upper - gap <= found.reached_upper).all()
    assert (found.reached_upper <= found.upper).all()
    rng = np.random.default_rng(0)
    box = np.zeros(3), np.ones(3)
    for _ in range(200):
        f = net(random_start(X, p, 0.4 * (1 - 1e-9), box, rng))
        assert ((found.lower <= f) & (f <= found.upper)).all()
    assert np.isnan(first.reached_lower).all()


def test_branch_and_bound_in_time():
    net = rm.Network.mlp([20, 60, 60, 3], rng=0)
    found = rm.output_bounds(net, [[0.5] * 20], 0.5, np.inf, method="bab", max_seconds=0.3)
    assert (found.lower <= found.reached_lower).all()
    with pytest.raises(ValueError, match="max_seconds: expected None"):
        rm.output_bounds(net, [[0.5] * 20], 0.5, max_seconds=1)


def test_what_is_fixed_does_not_change_the_outputs():
    net = rm.Network.mlp([3, 8, 1], rng=0)
    x = np.array([[0.2, 0.5, 0.7]])
    found = rm.output_bounds(net, x, 1.0, np.inf, (x[0], x[0]))
    np.testing.assert_allclose(found.lower, net(x), atol=1e-12)
    np.testing.assert_allclose(found.upper, net(x), atol=1e-12)
    assert "OutputBounds(1 points, l_inf, crown" in repr(found)


def test_one_radius_for_each_point():
    net = rm.Network.mlp([3, 8, 2], rng=0)
    X = np.full((2, 3), 0.5)
    found = rm.output_bounds(net, X, [0.1, 0.4])
    assert (found.upper[0] < found.upper[1]).all()
    assert (found.lipschitz[0] <= found.lipschitz[1]).all()
    assert len(found) == 2


def test_overflow_proves_nothing():
    net = rm.Network([rm.Linear([[1e200]], [0]), rm.Linear([[1e200]], [0])], 1)
    found = rm.output_bounds(net, [[0.5]], 1.0, np.inf)
    assert np.isinf(found.upper).all()
    assert np.isinf(found.lipschitz).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "eps: expected a finite number > 0"),
        ((0.1, 3), "p: expected 1, 2 or inf"),
        ((0.1, 2, (1, 2)), "X: expected points inside the box"),
        ((0.1, 2, None, "search"), "method: expected one of 'ibp', 'fast-lin', 'crown', 'bab'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        rm.output_bounds(rm.Network.mlp([2, 3, 2], rng=0), [[0.5, 0.5]], *arguments)
