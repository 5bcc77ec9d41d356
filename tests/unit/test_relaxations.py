"""Relaxations whose bounds are known by hand, and the radii that follow from them."""

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify.bounds import linear
from refmmr.reference import backward_bound
from refmmr.reference.intervals import through

NORMS = [1, 2, np.inf]
RULES = backward_bound.RULES

# f = x (twice); logits (relu(x) - relu(-x) + 2, 0) = (x + 2, 0).
MIRROR = rm.Network([rm.Linear([[1.0], [-1.0]], [0, 0]), rm.Linear([[1, -1], [0, 0]], [2, 0])], 1)


def lines(rule, lower, upper):
    return backward_bound.relu_lines(np.array([lower]), np.array([upper]), rule)


@pytest.mark.parametrize("rule", ["fast-lin", "crown"])
def test_lines_of_stable_units_are_exact(rule):
    for found, slope in ((lines(rule, 0.0, 2.0), 1), (lines(rule, -2.0, 0.0), 0)):
        assert (found.lower_slope, found.upper_slope, found.intercept) == (slope, slope, 0)


def test_lines_of_unstable_units():
    parallel = lines("fast-lin", -1.0, 3.0)
    assert (parallel.lower_slope, parallel.upper_slope) == (0.75, 0.75)
    np.testing.assert_allclose(parallel.intercept, 0.75, rtol=1e-14)
    assert lines("crown", -1.0, 3.0).lower_slope == 1
    assert lines("crown", -3.0, 1.0).lower_slope == 0
    assert lines("crown", -1.0, 1.0).lower_slope == 0


@pytest.mark.parametrize("rule", ["fast-lin", "crown"])
def test_lines_are_around_the_relu_in_real_arithmetic(rule):
    """The vertices of the ReLU are below the upper line, in fractions."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    lower = -np.exp(rng.uniform(-40, 40, 500))
    upper = np.exp(rng.uniform(-40, 40, 500))
    found = backward_bound.relu_lines(lower, upper, rule)
    for low, high, slope, top in zip(lower, upper, found.upper_slope, found.intercept, strict=True):
        low, high, slope, top = map(Fraction, (low, high, slope, top))
        assert slope * low + top >= 0
        assert slope * high + top >= high
    assert ((found.lower_slope >= 0) & (found.lower_slope <= 1)).all()


@pytest.mark.parametrize(
    ("rule", "margin"),
    [
        # On [-1, 1] both units are between -1 and 1.
        ("ibp", 2 - 1),
        # relu(x) >= x / 2, and -relu(-x) >= -(-x / 2 + 1 / 2).
        ("fast-lin", 2 + -1 / 2 - 1 / 2 - 1 / 2),
        # relu(x) >= 0, and -relu(-x) >= x / 2 - 1 / 2.
        ("crown", 2 - 1 / 2 - 1 / 2),
    ],
)
def test_margin_by_hand(rule, margin):
    for p in NORMS:
        found = backward_bound.margin_bounds(
            MIRROR, np.zeros((1, 1)), np.array([0]), p, np.ones(1), None, rule
        )
        np.testing.assert_allclose(found, [[np.inf, margin]], rtol=1e-12)
        assert found[0, 1] <= margin


@pytest.mark.parametrize("rule", RULES)
def test_layer_bounds_by_hand(rule):
    (first, logits) = backward_bound.layer_bounds(
        MIRROR, np.array([[0.5]]), np.inf, np.ones(1), (np.zeros(1), np.ones(1)), rule
    )
    np.testing.assert_allclose(first, [[[0, -1]], [[1, 0]]], atol=1e-12)
    # In the box x >= 0, so that both units are stable and the logit is x + 2.
    np.testing.assert_allclose(logits, [[[2, 0]], [[3, 0]]], atol=1e-12)


def test_intervals_by_hand():
    net = rm.Network([rm.Linear([[1, -2]], [0.5]), rm.Linear([[3], [0]], [1, 0])], 2)
    low, high = through(net, 0, np.array([[-1.0, 0.0]]), np.array([[1.0, 0.25]]))
    np.testing.assert_allclose((low, high), [[[-1]], [[1.5]]])
    low, high = through(net, 1, low, high)
    np.testing.assert_allclose((low, high), [[[1, 0]], [[5.5, 0]]], atol=1e-14)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("p", NORMS)
def test_radius_of_an_affine_network_is_exact(p, rule):
    """Nothing is relaxed: the radius is the distance to the hyperplane."""
    net = rm.Network([rm.Linear([[3, 4], [0, 0]], [0, 1])], 2)
    found = linear.relaxed_bounds(net, np.array([[1.0, 0.5]]), np.array([0]), p, None, rule=rule)
    expected = {1: 1.0, 2: 0.8, np.inf: 4 / 7}[p]
    assert expected * (1 - 2 * linear.PRECISION) <= found.lower[0] < expected
    assert found.upper[0] == np.inf
    assert np.isnan(found.adversarial).all()


@pytest.mark.parametrize("rule", RULES)
def test_misclassified_and_tied_points(rule):
    net = rm.Network([rm.Linear([[1.0], [0.0]], [0, 0.5])], 1)
    X = np.array([[0.25], [0.5], [0.75]])
    found = linear.relaxed_bounds(net, X, np.zeros(3, int), 2, None, rule=rule)
    np.testing.assert_array_equal(found.lower[:2], 0)
    np.testing.assert_array_equal(found.upper, [0, np.inf, np.inf])
    np.testing.assert_array_equal(found.adversarial[:1], X[:1])
    assert found.lower[2] > 0.2499
    tied = linear.relaxed_bounds(net, X[1:2], np.ones(1, int), 2, None, rule=rule)
    assert tied.upper[0] == 0  # class 0 is predicted: the first of equals


@pytest.mark.parametrize("rule", RULES)
def test_one_class_everywhere(rule):
    net = rm.Network([rm.Linear([[1.0], [0.0]], [1, 0])], 1)
    box = (np.zeros(1), np.ones(1))
    inside = linear.relaxed_bounds(net, np.full((1, 1), 0.5), np.zeros(1, int), 2, box, rule=rule)
    assert inside.lower[0] == np.inf
    constant = rm.Network([rm.Linear([[0.0], [0.0]], [1, 0])], 1)
    free = linear.relaxed_bounds(
        constant, np.full((1, 1), 0.5), np.zeros(1, int), 2, None, rule=rule
    )
    assert free.lower[0] > 1e12


@pytest.mark.parametrize("rule", RULES)
def test_goal(rule):
    net = rm.Network([rm.Linear([[3, 4], [0, 0]], [0, 1])], 2)
    X, y = np.array([[1.0, 0.5]] * 3), np.zeros(3, int)
    goal = np.array([0.5, 0.79, 0.81])
    found = linear.relaxed_bounds(net, X, y, 2, None, goal, rule=rule)
    np.testing.assert_array_equal(found.lower, [0.5, 0.79, 0])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_adversarially_scaled_layers(rule, scale):
    """One layer times c, the next divided by it: the same function, the same radius."""
    rng = np.random.default_rng(0)
    net = rm.Network.mlp([6, 8, 8, 3], rng=rng)
    (W0, b0), (W1, b1), last = net.parameters
    scaled = net.with_parameters([(scale * W0, scale * b0), (W1 / scale, b1), last])
    X = rng.uniform(size=(5, 6))
    y = net.predict(X)
    for p in NORMS:
        plain = linear.relaxed_bounds(net, X, y, p, None, rule=rule).lower
        found = linear.relaxed_bounds(scaled, X, y, p, None, rule=rule).lower
        np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_overflow_certifies_nothing():
    net = rm.Network(
        [rm.Linear([[1e200], [-1e200]], [0, 0]), rm.Linear([[1e200, 0], [0, 1e200]], [0, 0])], 1
    )
    found = linear.relaxed_bounds(net, np.ones((1, 1)), np.zeros(1, int), 2, None, rule="crown")
    assert found.lower[0] == 0
