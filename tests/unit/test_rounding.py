from fractions import Fraction

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refmmr import Conv2d, Flatten, Linear, Network
from refmmr.reference import rounding
from refmmr.reference.affine import basis, probe
from refmmr.testing import exact_network, fractions

RNG = np.random.default_rng(2)
CONV = Network(
    [
        Conv2d(RNG.standard_normal((3, 2, 3, 3)), [0.1, 0.2, 0.3], padding="same"),
        Conv2d(RNG.standard_normal((4, 3, 2, 2)), [0.1, 0.2, 0.3, 0.4], stride=2),
        Flatten(),
        Linear(RNG.standard_normal((3, 16)), [0, 0, 0]),
    ],
    (2, 4, 4),
)
NETS = {
    "dense": Network.mlp([6, 20, 20, 3], rng=0),
    "no hidden layer": Network.mlp([6, 3], rng=0),
    "conv": CONV,
}


def test_gamma_bounds_n_roundings():
    u = Fraction(2) ** -53
    for n in (1, 10, 10**6):
        assert rounding.rounding_factor(n) == pytest.approx(float(n * u / (1 - n * u)), rel=1e-15)


def test_counts_by_hand():
    net = Network(
        [
            Conv2d(np.ones((1, 2, 3, 3)), [0]),  # 18 products and a bias
            Flatten(),
            Linear(np.ones((2, 4)), [0, 0]),  # 4 products and a bias
        ],
        (2, 4, 4),
    )
    assert rounding.roundings(net) == [2 * 19 + 8, 2 * (19 + 5) + 8]


def test_absolute():
    net = Network([Linear([[-1, 2]], [-3]), Linear([[-4]], [5])], 2)
    assert_array_equal(rounding.absolute(net).logits(np.ones((1, 2))), [[4 * 6 + 5]])
    assert_array_equal(net.parameters[0][0], [[-1, 2]])


@pytest.mark.parametrize("name", NETS)
def test_bounds_cover_the_error_and_are_small(name):
    net = NETS[name]
    X = np.random.default_rng(1).uniform(size=(2, *net.input_shape))
    cache, exact = net.forward(X), exact_network(net)
    bounds = rounding.value_errors(net, X, cache.masks)
    truth = exact.forward(fractions(X), cache.masks).outputs
    worst = max_ratio(cache.outputs, truth, bounds)
    assert 0 < worst <= 1
    for output, bound in zip(cache.outputs, bounds, strict=True):
        assert bound.shape == output.shape
        assert bound.max() < 1e-11 * (1 + np.abs(output).max())

    bounds = rounding.gradient_errors(net, cache.masks)
    rows = probe(net, cache.masks, basis(net, X.dtype)).outputs
    exact_rows = probe(exact, cache.masks, fractions(basis(net, X.dtype))).outputs
    for row, exact_row, bound in zip(rows, exact_rows, bounds, strict=True):
        error = np.abs(fractions(row) - exact_row).sum(axis=1)  # l_1, the largest of the l_q
        assert (error <= fractions(bound)).all()
        assert bound.max() < 1e-11 * (1 + np.abs(row).sum(axis=1).max())


def max_ratio(outputs, truth, bounds):
    ratios = [
        np.abs(fractions(output) - exact) / fractions(bound)
        for output, exact, bound in zip(outputs, truth, bounds, strict=True)
    ]
    return max(ratio.max() for ratio in ratios)


def test_bounds_are_zero_only_where_nothing_leads():
    net = Network([Linear([[0], [0], [1e-300]], [0, 1, 0]), Linear([[1, 0, 1]], [0])], 1)
    X = np.zeros((1, 1))
    masks = [np.ones((1, 3), dtype=bool)]
    hidden, logit = rounding.value_errors(net, X, masks)
    assert (hidden > 0).tolist() == [[False, True, True]]
    assert (logit > 0).all()
    hidden, logit = rounding.gradient_errors(net, masks)
    assert (hidden > 0).tolist() == [[False, False, True]]
    assert (logit > 0).all()


def test_a_bound_covers_every_order_of_summation():
    """Cancellation: 1e16 + 1 - 1e16 is 0 or 1 or 2 in floats, and the bound knows."""
    net = Network([Linear([[1e16, 1.0, -1e16]], [0])], 3)
    X = np.ones((1, 3))
    [bound] = rounding.value_errors(net, X, [])
    assert bound >= abs(net(X) - 1)
    assert bound >= 1


def test_underflow_is_multiplied_by_the_weights_behind():
    """The product 1e-400 of two layers is 0 in floats, and a third layer multiplies it by 1e300."""
    net = Network([Linear([[1e-200]], [0]), Linear([[1e-200]], [0]), Linear([[1e300]], [0])], 1)
    X, masks = np.ones((1, 1)), [np.ones((1, 1), dtype=bool)] * 2
    exact = exact_network(net).forward(fractions(X), masks).outputs[-1]
    assert net(X) == 0
    assert exact > 0
    assert (fractions(rounding.value_errors(net, X, masks)[-1]) >= exact).all()
    assert (fractions(rounding.gradient_errors(net, masks)[-1]) >= exact).all()
