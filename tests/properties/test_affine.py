"""On its linear region the network is the affine map V z + a, and only there."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr.reference import affine
from refmmr.testing import (
    batches,
    conv_networks,
    dyadic_networks,
    exact_network,
    fractions,
    networks,
)

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def networks_with_points(draw, nets, dyadic=False):
    net = draw(nets)
    X, y = draw(batches(net, max_samples=1, dyadic=dyadic))
    return net, X[0], y[0]


GENERAL = networks_with_points(networks() | conv_networks())
DYADIC = networks_with_points(dyadic_networks(), dyadic=True)


def room(net, x):
    """An l_2 radius that stays in the region of x, 1 at most."""
    return min(1, rm.distances(net, x[None], [0], p=2).boundary.min(initial=np.inf))


@given(GENERAL, SEEDS)
def test_affine_inside_the_region(case, seed):
    net, x, _ = case
    region = rm.linear_region(net, x)
    directions = np.random.default_rng(seed).standard_normal((5, x.size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    Z = x + 0.99 * room(net, x) * directions.reshape(5, *x.shape)
    assert_array_equal(region.x, x.ravel())
    assert region.contains(Z, tolerance=1e-12).all()
    assert_allclose(region.logits(Z), net(Z), rtol=1e-10, atol=1e-10)
    flat_Z = Z.reshape(5, -1)
    for V, a, f in zip(region.V, region.a, net.forward(Z).outputs, strict=True):
        assert_allclose(flat_Z @ V.T + a, f.reshape(5, -1), rtol=1e-10, atol=1e-10)


@given(GENERAL)
def test_columns_are_difference_quotients(case):
    net, x, _ = case
    step = room(net, x) / 2
    assume(step > 1e-4)
    region = rm.linear_region(net, x)
    moved = x + step * np.eye(x.size).reshape(x.size, *x.shape)
    here, there = net.forward(x[None]).outputs, net.forward(moved).outputs
    for V, f, f_moved in zip(region.V, here, there, strict=True):
        quotients = (f_moved - f).reshape(x.size, -1).T / step
        assert_allclose(V, quotients, rtol=1e-9, atol=1e-9)


@given(GENERAL, SEEDS)
def test_membership_is_the_same_activation_pattern(case, seed):
    net, x, _ = case
    region = rm.linear_region(net, x)
    rng = np.random.default_rng(seed)
    scales = 10.0 ** rng.uniform(-2, 0.5, (40, *[1] * x.ndim))
    Z = x + scales * rng.standard_normal((40, *x.shape))
    A, b = region.halfspaces
    clear = (np.abs(Z.reshape(40, -1) @ A.T - b) > 1e-9).all(axis=1)
    same = (net.activation_pattern(Z) == region.pattern).all(axis=1)
    assert_array_equal(region.contains(Z)[clear], same[clear])


@given(DYADIC, SEEDS)
def test_membership_is_exact_on_multiples_of_a_quarter(case, seed):
    """Facets included: with the masks of x frozen, each unit has its sign or is 0."""
    net, x, _ = case
    region = rm.linear_region(net, x)
    rng = np.random.default_rng(seed)
    Z = np.concatenate([x[None], x + rng.integers(-4, 5, (39, *x.shape)) / 4])
    masks = net.forward(x[None]).masks
    frozen = net.forward(Z, masks).outputs[:-1]
    sides = [np.where(mask, f >= 0, f <= 0) for mask, f in zip(masks, frozen, strict=True)]
    inside = np.array([all(side[i].all() for side in sides) for i in range(40)])
    assert_array_equal(region.contains(Z), inside)
    same = (net.activation_pattern(Z) == region.pattern).all(axis=1)
    assert not (same & ~inside).any()
    assert_array_equal(region.logits(Z[inside]), net(Z)[inside])


@given(DYADIC)
def test_a_region_contains_its_point(case):
    net, x, _ = case
    region = rm.linear_region(net, x)
    assert region.contains(x[None]).all()
    A, b = region.halfspaces
    assert A.shape == (net.n_hidden, x.size)
    assert (A @ x.ravel() <= b).all()
    assert_array_equal(region.pattern, net.activation_pattern(x[None])[0])
    assert_array_equal(region.logits(x[None]), net(x[None]))


@given(DYADIC)
def test_fractions_give_the_same_region(case):
    net, x, _ = case
    region = rm.linear_region(net, x)
    exact = affine.linear_region(exact_network(net), fractions(x))
    assert_array_equal(region.pattern, exact.pattern.astype(bool))
    for mine, theirs in zip([*region.V, *region.a], [*exact.V, *exact.a], strict=True):
        assert_array_equal(fractions(mine), theirs)
    for mine, theirs in zip(region.halfspaces, exact.halfspaces, strict=True):
        assert_array_equal(mine, theirs.astype(float))


@given(networks_with_points(dyadic_networks(conv=False), dyadic=True))
def test_dense_rows_are_products_of_masked_weights(case):
    """``V_{k+1} = W_{k+1} diag(s_k) V_k`` and ``a_{k+1} = W_{k+1} diag(s_k) a_k + b_{k+1}``."""
    net, x, _ = case
    region = rm.linear_region(net, x)
    V, a, s = np.eye(x.size), np.zeros(x.size), np.ones(x.size)
    for k, (W, b) in enumerate(net.parameters):
        V, a = W @ (s[:, None] * V), W @ (s * a) + b
        assert_array_equal(region.V[k], V)
        assert_array_equal(region.a[k], a)
        s = V @ x + a > 0
