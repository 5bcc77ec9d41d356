"""Backward bounds that are known by hand, and the radii that follow from them."""

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify.bounds import linear
from refmmr.reference import backward_bound, radius, relaxation
from refmmr.reference.ball import ball
from refmmr.reference.intervals import through

NORMS = [1, 2, np.inf]
UNIT = (np.zeros(2), np.ones(2))
METHODS = relaxation.METHODS

# f = x (twice); logits (relu(x) - relu(-x) + 2, 0) = (x + 2, 0).
MIRROR = rm.Network([rm.Linear([[1.0], [-1.0]], [0, 0]), rm.Linear([[1, -1], [0, 0]], [2, 0])], 1)


def relaxed(method, lower, upper):
    lower, upper = np.array(lower), np.array(upper)
    slope = relaxation.lower_slope(lower, upper, method)
    return relaxation.relu_relaxation(lower, upper, slope)


@pytest.mark.parametrize("method", ["fast-lin", "crown"])
def test_relaxations_of_stable_units_are_exact(method):
    for found, slope in ((relaxed(method, 0.0, 2.0), 1), (relaxed(method, -2.0, 0.0), 0)):
        assert (found.lower_slope, found.upper_slope, found.intercept) == (slope, slope, 0)


def test_relaxations_of_unstable_units():
    parallel = relaxed("fast-lin", -1.0, 3.0)
    assert (parallel.lower_slope, parallel.upper_slope) == (0.75, 0.75)
    np.testing.assert_allclose(parallel.intercept, 0.75, rtol=1e-14)
    assert relaxed("crown", -1.0, 3.0).lower_slope == 1
    assert relaxed("crown", -3.0, 1.0).lower_slope == 0
    assert relaxed("crown", -1.0, 1.0).lower_slope == 0


@pytest.mark.parametrize("method", ["fast-lin", "crown"])
def test_relaxations_are_around_the_relu_in_real_arithmetic(method):
    """The vertices of the ReLU are below the upper relaxation, in fractions."""
    from fractions import Fraction

    rng = np.random.default_rng(0)
    lower = -np.exp(rng.uniform(-40, 40, 500))
    upper = np.exp(rng.uniform(-40, 40, 500))
    found = relaxed(method, lower, upper)
    for low, high, slope, top in zip(lower, upper, found.upper_slope, found.intercept, strict=True):
        low, high, slope, top = map(Fraction, (low, high, slope, top))
        assert slope * low + top >= 0
        assert slope * high + top >= high
    assert ((found.lower_slope >= 0) & (found.lower_slope <= 1)).all()


@pytest.mark.parametrize(
    ("method", "margin"),
    [
        # On [-1, 1] both units are between -1 and 1.
        ("ibp", 2 - 1),
        # relu(x) >= x / 2, and -relu(-x) >= -(-x / 2 + 1 / 2).
        ("fast-lin", 2 + -1 / 2 - 1 / 2 - 1 / 2),
        # relu(x) >= 0, and -relu(-x) >= x / 2 - 1 / 2.
        ("crown", 2 - 1 / 2 - 1 / 2),
    ],
)
def test_margin_by_hand(method, margin):
    for p in NORMS:
        found = backward_bound.margin_bounds(
            MIRROR, np.zeros((1, 1)), np.array([0]), p, np.ones(1), None, method
        )
        np.testing.assert_allclose(found, [[np.inf, margin]], rtol=1e-12)
        assert found[0, 1] <= margin


@pytest.mark.parametrize("method", METHODS)
def test_layer_bounds_by_hand(method):
    (first, logits) = backward_bound.layer_bounds(
        MIRROR, np.array([[0.5]]), np.inf, np.ones(1), (np.zeros(1), np.ones(1)), method
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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("p", NORMS)
def test_radius_of_an_affine_network_is_exact(p, method):
    """Nothing is relaxed: the radius is the distance to the hyperplane."""
    net = rm.Network([rm.Linear([[3, 4], [0, 0]], [0, 1])], 2)
    found = linear.relaxed_bounds(
        net, np.array([[1.0, 0.5]]), np.array([0]), p, None, method=method
    )
    expected = {1: 1.0, 2: 0.8, np.inf: 4 / 7}[p]
    assert expected * (1 - 2 * radius.PRECISION) <= found.lower[0] < expected
    assert found.upper[0] == np.inf
    assert np.isnan(found.adversarial).all()


@pytest.mark.parametrize("method", METHODS)
def test_misclassified_and_tied_points(method):
    net = rm.Network([rm.Linear([[1.0], [0.0]], [0, 0.5])], 1)
    X = np.array([[0.25], [0.5], [0.75]])
    found = linear.relaxed_bounds(net, X, np.zeros(3, int), 2, None, method=method)
    np.testing.assert_array_equal(found.lower[:2], 0)
    np.testing.assert_array_equal(found.upper, [0, np.inf, np.inf])
    np.testing.assert_array_equal(found.adversarial[:1], X[:1])
    assert found.lower[2] > 0.2499
    tied = linear.relaxed_bounds(net, X[1:2], np.ones(1, int), 2, None, method=method)
    assert tied.upper[0] == 0  # class 0 is predicted: the first of equals


@pytest.mark.parametrize("method", METHODS)
def test_one_class_everywhere(method):
    net = rm.Network([rm.Linear([[1.0], [0.0]], [1, 0])], 1)
    box = (np.zeros(1), np.ones(1))
    inside = linear.relaxed_bounds(
        net, np.full((1, 1), 0.5), np.zeros(1, int), 2, box, method=method
    )
    assert inside.lower[0] == np.inf
    constant = rm.Network([rm.Linear([[0.0], [0.0]], [1, 0])], 1)
    free = linear.relaxed_bounds(
        constant, np.full((1, 1), 0.5), np.zeros(1, int), 2, None, method=method
    )
    assert free.lower[0] > 1e12


@pytest.mark.parametrize("method", METHODS)
def test_goal(method):
    net = rm.Network([rm.Linear([[3, 4], [0, 0]], [0, 1])], 2)
    X, y = np.array([[1.0, 0.5]] * 3), np.zeros(3, int)
    goal = np.array([0.5, 0.79, 0.81])
    found = linear.relaxed_bounds(net, X, y, 2, None, goal, method=method)
    np.testing.assert_array_equal(found.lower, [0.5, 0.79, 0])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_adversarially_scaled_layers(method, scale):
    """One layer times c, the next divided by it: the same function, the same radius."""
    rng = np.random.default_rng(0)
    net = rm.Network.mlp([6, 8, 8, 3], rng=rng)
    (W0, b0), (W1, b1), last = net.parameters
    scaled = net.with_parameters([(scale * W0, scale * b0), (W1 / scale, b1), last])
    X = rng.uniform(size=(5, 6))
    y = net.predict(X)
    for p in NORMS:
        plain = linear.relaxed_bounds(net, X, y, p, None, method=method).lower
        found = linear.relaxed_bounds(scaled, X, y, p, None, method=method).lower
        np.testing.assert_allclose(found, plain, rtol=1e-5)


def test_overflow_certifies_nothing():
    net = rm.Network(
        [rm.Linear([[1e200], [-1e200]], [0, 0]), rm.Linear([[1e200, 0], [0, 1e200]], [0, 0])], 1
    )
    found = linear.relaxed_bounds(net, np.ones((1, 1)), np.zeros(1, int), 2, None, method="crown")
    assert found.lower[0] == 0


def test_slopes_between_0_and_1_bound_the_function():
    """relu(x) + relu(-x) >= s x - t x for any lower slopes s and t."""
    around = ball(np.zeros((1, 1)), np.ones(1), np.inf, None)
    bounds = [(np.full((1, 2), -1.0), np.ones((1, 2)))]
    rows = np.array([[[1.0, 0.0]]])
    net = rm.Network([MIRROR.layers[0], rm.Linear([[1, 1], [0, 0]], [0, 0])], 1)
    for s, t in [(0, 0), (0.5, 0.25), (1, 0.5)]:
        bound = backward_bound.backward_bound(net, around, rows, bounds, [np.array([[s, t]])])
        np.testing.assert_array_equal(bound.A, [[[s - t]]])
        np.testing.assert_array_equal(bound.coefficients[0], [[[1, 1]]])
        np.testing.assert_allclose(bound.minimum(around), [[-abs(s - t)]], atol=1e-12)


def test_two_subproblems_at_once_with_multipliers():
    """relu(x) - relu(-x) + 2 on [-1, 1], with both units active, and with the first one alone."""
    around = ball(np.zeros((2, 1)), np.ones(2), np.inf, None)
    lower, upper = np.array([[0.0, 0.0], [0.0, -1.0]]), np.array([[1.0, 1.0], [1.0, 0.0]])
    slopes = [np.zeros((2, 2))]
    rows = np.array([[[1.0, 0.0]]])
    plain = backward_bound.backward_bound(MIRROR, around, rows, [(lower, upper)], slopes)
    # x - (-x) + 2, and x + 2.
    np.testing.assert_allclose(plain.minimum(around)[:, 0], [0, 1], atol=1e-12)
    # The constraint x >= 0 makes them (2 - beta) x + 2 and (1 - beta) x + 2.
    for beta, minima in ((1, [1, 2]), (2, [2, 1])):
        multipliers = [np.array([[[-beta, 0.0]]])]
        bound = backward_bound.backward_bound(
            MIRROR, around, rows, [(lower, upper)], slopes, multipliers
        )
        np.testing.assert_allclose(bound.minimum(around)[:, 0], minima, atol=1e-12)


def deep(weights, last, biases):
    """A network of one unit a layer, and two logits."""
    hidden = [rm.Linear([[w]], [0]) for w in weights]
    return rm.Network([*hidden, rm.Linear([[last], [0]], biases)], 1)


# The margin at x is 1e-35 - 1e-30 x; going back the product of the last weights underflows.
UNDERFLOW = {
    "subnormal": deep([1e100] * 3 + [1e-110] * 2, -1e-110, [1e-35, 0]),
    "largest weights": deep([1e300, 1e-165, 1e-165], -1, [1e-35, 0]),
}


@pytest.mark.usefixtures("short_attack")
@pytest.mark.parametrize("name", UNDERFLOW)
@pytest.mark.parametrize("backend", ["numpy", "numba"])
@pytest.mark.parametrize(
    "method", ["region", "ibp", "fast-lin", "kw", "crown", "lp", "bab", "search", "mip"]
)
def test_underflow_certifies_nothing_wrong(method, backend, name):
    """What a product loses by underflow is multiplied by activations of 1e300."""
    if backend == "numba":
        pytest.importorskip("numba", reason="the numba backend needs numba")
    x = np.zeros((1, 1))
    with rm.use_backend(backend):
        for box in ((0, 1), None):
            found = rm.certify(UNDERFLOW[name], x, [0], p=np.inf, box=box, method=method)
            assert 0 <= found.lower[0] <= 1e-5 * (1 + 1e-14)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-310, 1e-160])
def test_radius_of_a_network_with_tiny_weights(scale, method):
    """No square of a weight and no half of a number is taken for 0."""
    net = rm.Network([rm.Linear([[3 * scale, 4 * scale], [0, 0]], [0, 1e-6 * scale])], 2)
    for p, box, largest in (
        (np.inf, None, 1), (2, None, 7 / 5), (1, None, 7 / 4), (2, UNIT, 2**0.5), (1, UNIT, 2)
    ):  # fmt: skip
        found = linear.relaxed_bounds(net, np.ones((1, 2)), np.zeros(1, int), p, box, method=method)
        assert found.lower[0] <= largest
