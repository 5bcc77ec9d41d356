"""Networks whose rounding errors, cancellations and underflows once gave wrong certificates.

The true values are worked out by hand; every method must keep to them, on every backend.
"""

from fractions import Fraction

import numpy as np
import oracle
import pytest
from helpers import network

import refmmr as rm
from refmmr import _solvers
from refmmr.certify.methods import METHODS
from refmmr.exact import exact_classes
from refmmr.testing import exact_network, fractions

pytestmark = pytest.mark.usefixtures("short_attack")

CASES = [(method, p) for method, known in METHODS.items() for p in known.norms]
every_method = pytest.mark.parametrize(("method", "p"), CASES)


def certify(net, x, y, p, box, method, **options):
    """Bounds of one point."""
    return rm.certify(net, [x], [y], p, box, method, progress=False, **options)


def assert_bounds(found, truth, exact=False):
    """The bounds enclose the true minimal perturbation; `exact` demands that they meet."""
    lower, upper = found.lower[0], found.upper[0]
    assert Fraction(lower) <= truth, (lower, float(truth))
    assert np.isinf(upper) or Fraction(upper) >= truth, (upper, float(truth))
    assert found.exact[0] or not exact


# 0.5 - relu((0.7 x + b) - fl(0.7 0.1 + 1e12)), where b = 1e12 swallows digits of 0.7 x.
CANCELLING = network(([[0.7]], [1e12]), ([[1.0]], [-1e12]), ([[0.0], [1.0]], [0.5, 0.0]))
CANCELLING_RADIUS = Fraction(0.5) / Fraction(0.7) - Fraction(0.1)


@every_method
def test_constants_that_a_program_rounds(method, p):
    """``W c + b`` of a mixed-integer program is off by 1e-4: no proof may rest on it."""
    found = certify(CANCELLING, [0.1], 0, p, (0, 1), method)
    assert_bounds(found, CANCELLING_RADIUS)
    if METHODS[method].goal:  # a radius just beyond
        assert certify(CANCELLING, [0.1], 0, p, (0, 1), method, eps=0.6143164).status != ["robust"]


FOUR_CLASSES = network(
    (
        [[-0.5, 2.5], [0.8, 1.6], [2, 1], [0.6, 0.6], [-1.7, -1.3], [-0.5, 0.6]],
        [0.6, 0.3, -0.1, 0.1, 0.3, 0],
    ),
    (
        [
            [0.3, 0.1, 1.9, 2.2, -0.7, 0.2],
            [-1.9, -0.8, 1.9, 0.9, -0.1, -0.3],
            [-0.5, 1, -0.1, 1, 1.2, 0],
            [-0.4, 0.1, 0.5, -0.1, 0.9, -0.2],
        ],
        [-0.1, -0.2, 0.6, 0.6],
    ),
)


@every_method
def test_examples_at_the_edge_of_the_box(method, p):
    """The nearest example has the first coordinate 0, the end of the box: never -8e-12."""
    lo, hi = np.array([0, -0.75]), np.array([2.05, 1.77])
    found = certify(FOUR_CLASSES, [0, 0.51], 0, p, (lo, hi), method)
    z = found.adversarial[0]
    assert np.isnan(z).all() or ((lo <= z) & (z <= hi)).all()
    if method in ("search", "mip"):
        assert found.exact[0]
        assert z[0] == 0
        assert found.upper[0] == pytest.approx(0.3157921635, abs=1e-9)


# In both the floats of class 0 are larger, or tie, and the real numbers of class 1 are.
RIGHT_IN_TRUTH = {
    "a sum of products": network(([[0.1, 0.2, -0.3], [0, 0, 0]], [0, 4e-17])),
    "a sum that swallows": network(([[0, 0, 0], [1e16, 1, -1e16]], [0.5, 0])),
}


@pytest.mark.parametrize("name", RIGHT_IN_TRUTH)
@every_method
def test_misclassified_in_floats_only(method, p, name):
    net, x = RIGHT_IN_TRUTH[name], np.ones(3)
    assert net.predict(x[None]) == [0]
    assert exact_network(net).logits(fractions(x)[None]).argmax() == 1
    found = certify(net, x, 1, p, None, method)
    assert found.upper[0] > 0
    assert found.lower[0] == 0  # nothing is proved, as the margin is within the rounding error
    wrong = certify(net, x, 0, p, None, method)
    assert wrong.lower[0] == wrong.upper[0] == 0
    np.testing.assert_array_equal(wrong.adversarial[0], x)


@pytest.mark.parametrize("name", RIGHT_IN_TRUTH)
def test_the_predicted_class_is_the_true_one(name):
    net, X = RIGHT_IN_TRUTH[name], np.ones((1, 3))
    assert rm.certify(net, X, None, 2, None).upper[0] > 0
    assert rm.certify_universal(net, X, None, 2, None) == [0]
    evaluated = rm.robust_error(net, X, [1], 2, eps=1e-30, box=None, progress=False)
    assert evaluated.test_error == evaluated.lower_bound == 0
    assert rm.robust_error(net, X, [0], 2, eps=0.1, box=None, progress=False).test_error == 1
    _, distance = rm.minimal_attack(net, X, [1], 2, box=None)
    assert distance[0] > 0


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1, 1e20, 1e300])
def test_exact_classes(scale):
    """As fractions say, for dense and convolutional networks with near ties and numbers of any
    size."""
    rng = np.random.default_rng(0)
    W = np.tile(rng.normal(size=(1, 4)), (3, 1)) * (1 + 1e-16 * rng.integers(-3, 4, (3, 4)))
    layers = [
        rm.Conv2d(scale * rng.normal(size=(4, 2, 2, 2)), scale * rng.normal(size=4)),
        rm.Flatten(),
        rm.Linear(W, np.zeros(3)),
    ]
    net = rm.Network(layers, (2, 2, 2))
    X = rng.normal(size=(20, 2, 2, 2))
    expected = exact_network(net).logits(fractions(X)).argmax(axis=1)
    np.testing.assert_array_equal(exact_classes(net, X), expected)
    np.testing.assert_array_equal(exact_classes(net, X[:0]), np.zeros(0))
    assert len(np.unique(expected)) > 1


# f_0 - f_1 = 1e-35 - relu(1e-320 relu(...)): layers of 1e100 and 1e-110 around an underflow.
UNDERFLOW = {
    "five layers": network(
        *[([[1e100]], [0])] * 3, *[([[1e-110]], [0])] * 2, ([[-1e-110], [0]], [1e-35, 0])
    ),
    "two layers": network(([[1e300]], [0]), ([[1e-165]], [0]), ([[-1e-165], [0]], [1e-35, 0])),
}


@pytest.mark.parametrize("name", UNDERFLOW)
@every_method
def test_underflow_on_the_way_back(method, p, name):
    net = UNDERFLOW[name]
    slope = Fraction(1)
    for W, _ in net.parameters:
        slope *= abs(Fraction(W[0, 0]))
    truth = Fraction(1e-35) / slope
    assert float(truth) == pytest.approx(1e-5)
    assert_bounds(certify(net, [0.0], 0, p, (0, 1), method), truth, exact=method == "search")


# f_0 is 0 - relu(x) + 1e-140, where a product of 1e-300 and 1e-140 underflows on the way.
NO_EXAMPLE = network(
    ([[1e-300], [1]], [0, 0]), ([[1e200, 0], [0, 1]], [0, 0]), ([[1e200, -1], [0, 0]], [1e-140, 0])
)


@every_method
@pytest.mark.parametrize("box", [None, (-1, 1)])
def test_an_example_that_is_none(method, p, box):
    """``f_0 = 1e-140 + (1e100 - 1) max(x, 0)`` in truth, ``1e-140 - max(x, 0)`` in floats."""
    found = certify(NO_EXAMPLE, [0.0], 0, p, box, method)
    assert found.upper[0] == np.inf


# f_0 - f_1 = 1e-145 - 1e-163 x: the square of the slope underflows.
TINY_SLOPE = network(([[-1e-163], [0]], [1e-145, 0]))


@every_method
def test_underflow_in_a_norm(method, p):
    truth = Fraction(1e-145) / Fraction(1e-163)
    found = certify(TINY_SLOPE, [0.0], 0, p, None, method)
    assert_bounds(found, truth, exact=method in ("region", "search"))
    assert found.lower[0] >= 0.9e18
    assert certify(TINY_SLOPE, [0.0], 0, p, None, method, eps=1e20).status != ["robust"]


def test_distances_whose_squares_underflow():
    near = rm.distances(TINY_SLOPE, [[0.0]], [0], 2)
    np.testing.assert_allclose(near.decision, [[np.inf, 1e18]])


# The nearest example in l_inf is a step of 7.03e19 in both coordinates; 1e20 is infinite to HiGHS.
FAR_AWAY = network(
    ([[0, 2e-8], [1.58e-8, 9e-9]], [0, 0]), ([[-1, 0], [0, 0], [-2, 0.5]], [0, 0.8, 0])
)


@every_method
def test_steps_that_are_infinite_to_a_solver(method, p):
    x = np.array([-7.03e19, -6.18e19])
    found = certify(FAR_AWAY, x, 1, p, None, method)
    square = oracle.minimal_perturbation_squares(FAR_AWAY, x, 1, None)[p]
    truth = {1: 1.0550253165e20, 2: 9.1673174791e19, np.inf: 7.0300000000e19}[p]
    assert float(square) == pytest.approx(truth**2, rel=1e-9)
    assert Fraction(found.lower[0]) ** 2 <= square
    assert np.isinf(found.upper[0]) or Fraction(found.upper[0]) ** 2 >= square
    if method in ("search", "mip"):
        assert found.exact[0]


def test_a_model_that_the_solver_refuses_is_never_optimal():
    highs = _solvers.simplex()
    one = np.ones(1)
    for bound, optimal in ((1.0, True), (1e21, False)):
        _solvers.load(highs, one, (bound * one, bound * one), one[None], (0 * one, np.inf * one))
        highs.run()
        assert (highs.getModelStatus() == _solvers.OPTIMAL) == optimal


@every_method
def test_two_logits_without_an_input(method, p):
    """They tie everywhere, with no rounding error at all: no radius is certified."""
    net = network(([[1, 2]], [0]), ([[0], [-2], [0]], [0, -1, 0]))
    found = certify(net, [0.25, 0.5], 0, p, None, method)
    assert found.lower[0] == 0
    assert found.upper[0] == np.inf


# One hidden layer; weights of 1e200, then of 1e300: all logits overflow.
OVERFLOW = network(
    (
        [[-6.2e199, 1.5e199], [-1.6e200, 2.4e199], [2.4e199, 1.6e200], [3.2e199, 5.1e199]],
        [-7.5e199, 1.1e200, -9.6e199, 5.5e199],
    ),
    (
        [[-3.3e299, -8.8e299, -6.6e299, -6.7e299], [3.8e299, -1.1e299, 1.5e300, -1.8e300]],
        [-1.5e297, -4.5e299],
    ),
)


@every_method
def test_logits_that_overflow(method, p):
    """Hyperplanes whose values are no numbers count as near."""
    x, box = np.array([-0.25, -0.75]), (np.array([-1.25, -100.75]), np.array([99.75, 0.25]))
    found = certify(OVERFLOW, x, 1, p, box, method)
    square = oracle.minimal_perturbation_squares(OVERFLOW, x, 1, box)[p]
    assert square > 0
    assert Fraction(found.lower[0]) ** 2 <= square


@every_method
def test_inputs_whose_squares_overflow(method, p):
    """Distances of about 1e160 in a box of that size."""
    net = network(([[1e-160, 2e-160], [3e-160, -1e-160]], [0.1, 0.1]), ([[1, 0], [0, 1]], [0, 0.5]))
    x, box = np.array([0.25e160, 0.75e160]), (np.zeros(2), np.full(2, 1e160))
    found = certify(net, x, 0, p, box, method)
    square = oracle.minimal_perturbation_squares(net, x, 0, box)[p]
    assert Fraction(found.lower[0]) ** 2 <= square
    if method in ("search", "mip"):
        assert found.exact[0]
        assert Fraction(found.upper[0]) ** 2 >= square


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_exact_classes_of_padded_images(scale):
    """The zeros around an image are exact numbers too."""
    rng = np.random.default_rng(0)
    layers = [
        rm.Conv2d(scale * rng.normal(size=(2, 1, 2, 2)), rng.normal(size=2), 1, 1),
        rm.Conv2d(rng.normal(size=(2, 2, 2, 2)), rng.normal(size=2), 1, 1),
        rm.Flatten(),
        rm.Linear(rng.normal(size=(3, 40)), rng.normal(size=3)),
    ]
    net, X = rm.Network(layers, (1, 3, 2)), rng.normal(size=(3, 1, 3, 2))
    np.testing.assert_array_equal(exact_classes(net, X), net.predict(X))


@pytest.mark.parametrize(
    ("method", "p"), [(name, p) for name, method in METHODS.items() for p in method.norms]
)
def test_a_gradient_that_overflows_proves_nothing(method, p):
    """The gradient of the margin is 1e360, the decision boundary 3.3e-160 away."""
    hidden = rm.Linear([[1.5e160, 1.6e159]], [1.1])
    net = rm.Network([hidden, rm.Linear([[-1.2e200], [-9.2e199]], [8.5e199, -7.2e199])], 2)
    x = np.array([-2.4e-161, 4.9e-161])
    box = x, x + 1e-158
    truth = oracle.minimal_perturbation_squares(net, x, 0, box)[p]
    seconds = {"max_seconds": 0.5} if method in ("search", "bab", "mip", "lp") else {}
    found = rm.certify(net, [x], [0], p, box, method, progress=False, **seconds)
    assert Fraction(found.lower[0]) ** 2 <= truth


# Behind a unit that is inactive around x = 1 two units are 0.1, and their difference is 0.
CONSTANTS = network(
    ([[1], [1]], [-5, 0]), ([[0.7, 0], [0.7, 0], [0, 1]], [0.1, 0.1, 0]),
    ([[1, -1, 0], [0, 0, 1]], [0, 0]), ([[0, 1], [1, 0]], [0, 0.25]),
)  # fmt: skip


@every_method
@pytest.mark.parametrize("box", [None, (-9, 9)])
def test_units_that_are_constant_around_a_point(method, p, box):
    """As in max-pools of a constant background: f_0 = relu(x) falls to f_1 = 0.25."""
    found = certify(CONSTANTS, [1.0], 0, p, box, method)
    assert_bounds(found, Fraction(3, 4), exact=method in ("search", "region"))


@pytest.mark.parametrize("method", ["region", "crown", "search", "bab"])
@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_sign_of_a_constant_unit_that_floats_lose(method, p, sign):
    """``0.1 w - fl(0.1 w)`` is 0 in floats; f_1 is 1e18 times as much, where it is above 0."""
    w = 0.7
    net = network(
        ([[0], [1]], [0.1, 0]), ([[sign * w, 0], [0, 1]], [-sign * (0.1 * w), 0]),
        ([[0, 1], [1e17, 0]], [0, 0.25]),
    )  # fmt: skip
    lost = sign * (Fraction(0.1) * Fraction(w) - Fraction(0.1 * w))
    assert lost != 0
    truth = 1 - Fraction(1, 4) - max(Fraction(1e17) * lost, 0)
    assert 0 < truth < 1
    assert_bounds(certify(net, [1.0], 0, p, None, method), truth)
