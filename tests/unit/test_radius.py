"""The largest radius at which a bound is positive."""

import numpy as np
import pytest

import refmmr as rm
from refmmr.reference import backward_bound, radius

FUNCTIONS = {
    "line": (lambda r: 3 - 2 * r, 1.5, 1.5),
    "concave": (lambda r: 1 - r / 10 - r**3, np.inf, 0.9666794233),
    "convex": (lambda r: np.exp(-r) - 0.3, 0.7, -np.log(0.3)),
    "far": (lambda r: 1 - r / 1e9, 1e-3, 1e9),
    "near": (lambda r: 1 - r * 1e9, 1e3, 1e-9),
    "jump": (lambda r: np.where(r < 0.377, 0.4, -2.0), 1.0, 0.377),
    "steps": (lambda r: 1 - r + 0.2 * np.floor(-10 * r), 1.0, 0.3),
    "cliff": (lambda r: np.where(r < 0.9, 1 - r, -np.inf), 1.0, 0.9),
    "not a number": (lambda r: np.where(r < 0.9, 1 - r, np.nan), 1.0, 0.9),
    "flat, then steep": (lambda r: np.where(r < 2, 1e-3, 1e-3 - 1e3 * (r - 2) ** 2), 1.0, 2.001),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_largest_radius_is_found_from_below(name):
    f, tangent, root = FUNCTIONS[name]
    tried = []

    def find(eps, rows):
        tried.append(eps)
        return f(eps)

    first = np.asarray(f(np.zeros(1)), dtype=float)
    farthest = np.full(1, np.inf)
    found = radius.largest_radii(find, first, np.full(1, tangent), farthest)
    assert f(found)[0] > 0
    assert any((found == eps).all() for eps in tried)
    assert root * (1 - 1.1 * radius.PRECISION) <= found[0] <= root
    if name in ("line", "concave", "convex"):
        assert len(tried) <= 7


def test_points_are_searched_together():
    slopes = np.array([1.0, 7.0, 0.5, 0.01])

    def find(eps, rows):
        return 1 / (1 + slopes[rows] * eps) - 0.1

    tangent, farthest = np.full(4, np.inf), np.array([20.0, 20.0, 2.0, 3.0])
    found = radius.largest_radii(find, np.full(4, 0.9), tangent, farthest)
    np.testing.assert_allclose(found[:2], [9, 9 / 7], rtol=radius.PRECISION)
    assert np.isinf(found[2:]).all()  # positive on the whole box


def test_nothing_is_certified_where_no_bound_is_positive():
    found = radius.largest_radii(
        lambda eps, rows: np.full(len(eps), -np.inf), np.ones(2), np.ones(2), np.full(2, np.inf)
    )
    np.testing.assert_array_equal(found, [0, 0])


def test_the_function_of_the_radius_is_the_margin_bound():
    net = rm.Network.mlp([3, 6, 4], rng=0)
    X = np.random.default_rng(1).uniform(size=(4, 3))
    y, rows, eps = net.predict(X), np.array([2, 0, 2]), np.array([0.1, 0.2, 0.3])
    own = X - 0.1, X + 0.2
    for box in (None, (np.zeros(3), np.ones(3)), own):
        part = (own[0][rows], own[1][rows]) if box is own else box
        np.testing.assert_array_equal(
            radius.margin_function(net, X, y, 2, box, "crown")(eps, rows),
            backward_bound.margin_bounds(net, X[rows], y[rows], 2, eps, part, "crown"),
        )
