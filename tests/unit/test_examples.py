"""Verified examples: inside the box and misclassified in real arithmetic, distances rounded up."""

from fractions import Fraction

import numpy as np
import pytest

import refmmr as rm
from refmmr import _examples

NORMS = [1, 2, np.inf]

# Class 1 wins where u + v < 1.
HALF = rm.Network([rm.Linear([[1, 1], [-1, -1]], [-1, 1])], 2)
UNIT = np.zeros(2), np.ones(2)
ZERO = np.zeros(1, int)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("size", [1e-310, 1e-200, 1.0, 1e200])
def test_distances_are_rounded_up(p, size):
    rng = np.random.default_rng(0)
    X, Z = size * rng.normal(size=(50, 3, 2)), size * rng.normal(size=(50, 3, 2))
    for x, z, found in zip(X, Z, _examples.distance_rounded_up(X, Z, p), strict=True):
        delta = [abs(Fraction(a) - Fraction(b)) for a, b in zip(x.flat, z.flat, strict=True)]
        if p == 2:
            assert sum(d * d for d in delta) <= Fraction(found) ** 2
        else:
            assert (sum(delta) if p == 1 else max(delta)) <= Fraction(found)


@pytest.mark.parametrize("p", NORMS)
def test_what_counts_as_an_example(p):
    x = np.array([[0.75, 0.5]])
    Z = np.array([[0.25, 0.5], [0.75, 0.25], [0.8, 0.8], [-1e-11, 0.5], [np.nan, 0.5]])
    labels = np.zeros(len(Z), int)
    found = _examples.verified_distances(HALF, x, Z, labels, p, UNIT)
    # The second lies on the boundary, the third has the class of x, the fourth is outside the box.
    assert 0.5 <= found[0] <= 0.5 * (1 + 1e-12)
    assert (found[1:] == np.inf).all()
    assert _examples.verified_distances(HALF, x, Z, labels, p, None)[3] < np.inf
    assert _examples.verified_distances(HALF, x, Z, labels, p, UNIT, found)[0] == np.inf


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("outside", [0.0, 1e-11])
def test_bring_nearer_stays_in_the_box(p, outside):
    """A solver's point may violate the box by its tolerance."""
    x, z = np.array([0.9, 0.5]), np.array([0.3, -outside])
    adversarial, distance = _examples.bring_nearer(HALF, x, z, 0, p, UNIT)
    radius = {1: 0.4, 2: 0.4 / np.sqrt(2), np.inf: 0.2}[p]
    assert radius < distance < radius * (1 + 1e-6)
    assert ((adversarial >= 0) & (adversarial <= 1)).all()
    assert HALF.predict(adversarial[None]) == 1
    # Nothing nearer than a vertex of the box is misclassified here.
    box = np.array([0.5, 0.25]), np.ones(2)
    adversarial, distance = _examples.bring_nearer(HALF, x, z, 0, p, box)
    assert distance < np.inf
    assert (adversarial >= box[0]).all()


def test_bring_nearer_without_an_example():
    x = np.array([0.9, 0.5])
    box = np.array([0.6, 0.5]), np.ones(2)
    adversarial, distance = _examples.bring_nearer(HALF, x, np.array([0.6, 0.5]), 0, 2, box)
    assert adversarial is None
    assert distance == np.inf


def test_near_ties_are_not_sure():
    """A margin of one rounding error decides nothing."""
    net = rm.Network([rm.Linear([[0.1, 0.2, 0.3], [0.2, 0.1, 0.3]], [0, 0])], 3)
    Z = np.array([[0.5, np.nextafter(0.5, 1), 0.7], [0.5, 0.6, 0.7]])
    assert (net(Z).argmax(axis=1) == 0).all()
    np.testing.assert_array_equal(
        _examples.surely_misclassified(net, Z, np.ones(2, int)), [False, True]
    )


def test_linear_margin_is_that_of_the_region():
    net = rm.Network.lenet_small((1, 5, 5), 4, rng=0)
    X, Z = np.random.default_rng(0).uniform(0, 1, (2, 3, 1, 5, 5))
    y = net.predict(Z)
    value, w = _examples.linear_margin(net, X, Z, y)
    for i in range(3):
        region = rm.linear_region(net, Z[i])
        V, a = region.V[-1].reshape(4, -1), region.a[-1].reshape(4)
        f = np.delete(V @ Z[i].reshape(-1) + a, y[i])
        s = np.delete(np.arange(4), y[i])[f.argmax()]
        np.testing.assert_allclose(w[i], V[y[i]] - V[s], atol=1e-12)
        expected = (V[y[i]] - V[s]) @ X[i].reshape(-1) + a[y[i]] - a[s]
        np.testing.assert_allclose(value[i], expected, atol=1e-12)
