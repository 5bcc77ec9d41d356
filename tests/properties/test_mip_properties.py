"""Programs against brute force over all linear regions, and against each other."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import _solvers, testing
from refmmr.certify.bounds import _milp, lp, mip
from refmmr.reference import backward_bound, loss

UNIT = (np.zeros(2), np.ones(2))

VERTICES = 1e-9
"""Vertices of the enumeration, in the unit square, are nearer than this to where they should be:
rounding errors of about 1e-15 are divided by the sines of the angles at which lines meet."""

flat_norms = st.sampled_from([1, np.inf])


def right_points(net, X):
    """Points with a clear class, and their classes."""
    y = net.predict(X)
    clear = loss.margins(net(X), y) > 1e-6
    return X[clear], y[clear]


def plane_network(rng):
    """A random network with inputs in the plane, dense."""
    net = rm.Network.mlp([2, *rng.integers(2, 8, rng.integers(1, 3)), 3], rng=rng)
    return net.with_parameters([(W, 0.3 * rng.standard_normal(len(b))) for W, b in net.parameters])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1).map(np.random.default_rng), flat_norms)
def test_minimal_perturbation_is_that_of_brute_force(rng, p):
    net = plane_network(rng)
    X, y = right_points(net, rng.uniform(0, 1, (2, 2)))
    assume(len(X))
    regions = rm.enumerate_regions(net, rm.Box([0, 0], [1, 1]))
    exact = regions.boundary_distance(X, p).distance
    found = mip.mip_bounds(net, X, y, p, UNIT)
    relaxed = lp.lp_bounds(net, X, y, p, UNIT)
    np.testing.assert_allclose(found.lower, exact, rtol=2e-6, atol=VERTICES)
    assert (found.lower <= exact + VERTICES).all()
    assert (found.upper >= exact - VERTICES).all()
    assert (relaxed.lower <= exact + VERTICES).all()
    seen = np.isfinite(found.upper)
    np.testing.assert_allclose(found.upper[seen], exact[seen], rtol=2e-6, atol=VERTICES)
    Z = np.where(seen[:, None], found.adversarial, 0)
    assert (net.predict(Z) != y)[seen].all()


def margins_of_brute_force(net, x, y, s, eps):
    """The smallest of many sampled margins, vertices of the ball among them."""
    rng = np.random.default_rng(0)
    delta = rng.uniform(-eps, eps, (400, *net.input_shape))
    vertices = eps * np.sign(rng.standard_normal((200, *net.input_shape)))
    logits = net(np.concatenate([x + delta, x + vertices]))
    return (logits[:, y] - logits[:, s]).min()


def smallest_margin(net, x, y, s, p, eps, bounds):
    """The optimum of the mixed-integer program, and of the linear one."""
    values = []
    for binary in (False, True):
        program = _milp.build(net, x.reshape(-1), p, eps, None, bounds, binary)
        highs = _milp.solver(program)
        _solvers.set_costs(highs, *_milp.margin(program, y, s))
        assert _solvers.run(highs) == _solvers.OPTIMAL
        info = highs.getInfo()
        exact = binary and program.binary.any()
        values.append(info.mip_dual_bound if exact else info.objective_function_value)
    return values


@settings(max_examples=25, deadline=None)
@given(st.data(), st.floats(0.05, 1.0), st.sampled_from(["dense", "conv"]))
def test_order_of_the_bounds(data, eps, kind):
    networks = testing.networks() if kind == "dense" else testing.conv_networks()
    net = data.draw(networks)
    X, y = data.draw(testing.batches(net, max_samples=1))
    x, y = X[0], int(y[0])
    p = np.inf
    bounds = lp.layer_bounds(net, x, p, eps, None)
    crown = backward_bound.margin_bounds(net, X, np.array([y]), p, np.array([eps]), None, "crown")[
        0
    ]
    below = lp.margins_below(net, x, y, p, eps, None, bounds)
    for s in set(range(net.n_classes)) - {y}:
        relaxed, exact = smallest_margin(net, x, y, s, p, eps, bounds)
        sampled = margins_of_brute_force(net, x, y, s, eps)
        scale = 1e-7 * (1 + abs(sampled) + abs(relaxed))
        assert crown[s] <= relaxed + scale
        assert relaxed <= exact + scale
        assert exact <= sampled + scale
        assert below.lower[s] <= relaxed + scale
        if not below.lower[s] > 0:  # then its program was solved, and nothing is lost by rounding
            assert below.lower[s] == pytest.approx(relaxed, abs=10 * scale)


@settings(max_examples=12, deadline=None)
@given(st.data(), flat_norms, st.booleans(), st.floats(0.05, 1.5))
def test_decisions_are_consistent(data, p, boxed, eps):
    net = data.draw(testing.networks() | testing.conv_networks())
    X, _ = data.draw(testing.batches(net, max_samples=1))
    X, y = right_points(net, X)
    assume(len(X))
    box = data.draw(testing.boxes(X)) if boxed else None
    decided = mip.mip_bounds(net, X, y, p, box, np.array([eps]))
    nearest = mip.mip_bounds(net, X, y, p, box)
    assert nearest.lower[0] <= nearest.upper[0]
    assert decided.lower[0] > 0 or np.isfinite(decided.upper[0])
    if decided.lower[0] > 0:
        assert decided.lower[0] == eps <= nearest.upper[0]
    if np.isfinite(decided.upper[0]):
        assert nearest.lower[0] <= decided.upper[0] <= eps
    for found in (decided, nearest):
        if np.isfinite(found.upper[0]):
            z = found.adversarial
            assert net.predict(z)[0] != y[0]
            length = np.linalg.norm((z - X).reshape(-1), p)
            assert length == pytest.approx(found.upper[0], rel=1e-9)
            assert box is None or ((box[0] <= z[0]) & (z[0] <= box[1])).all()


@settings(max_examples=25, deadline=None)
@given(st.data(), flat_norms)
def test_degenerate_networks(data, p):
    """Zero rows, twins and dead units, where many bounds are 0 exactly."""
    net = data.draw(testing.dyadic_networks())
    X, y = data.draw(testing.batches(net, max_samples=2, dyadic=True))
    goal = np.full(len(X), 0.5)
    found = mip.mip_bounds(net, X, y, p, None, goal)
    relaxed = lp.lp_bounds(net, X, y, p, None, goal)
    assert (relaxed.lower <= found.lower).all()
    rng = np.random.default_rng(1)
    delta = rng.standard_normal((100, len(X), *net.input_shape))
    size = np.linalg.norm(delta.reshape(100, len(X), -1), p, axis=2)
    delta *= 0.4999 / size.reshape(100, len(X), *[1] * len(net.input_shape))
    for Z in X + delta:
        rivals = loss.margins(net(Z), y)
        assert (rivals[found.lower > 0] > 0).all()
