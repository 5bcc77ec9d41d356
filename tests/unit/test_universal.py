"""Radii in all l_p norms from those in l_1 and l_inf: values known by hand, and wrong arguments."""

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify.universal import certify_universal
from refmmr.reference.universal import hull_radius, union_radius

# One hyperplane, {3 x + 4 y = 0}, and a decision boundary, {3 x + 4 y = 1}.
SIMPLE = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)


@pytest.mark.parametrize(
    ("e1", "e_inf", "p", "d", "radius"),
    [
        # An octagon: the edge from (1, 1) to (1.5, 0) is on the line x + 0.5 y = 1.5.
        (1.5, 1, 2, 2, 1.5 / np.sqrt(1 + 0.5**2)),
        (1.5, 1, 1, 2, 1.5),
        (1.5, 1, np.inf, 2, 1),
        # e_1 / e_inf = 2.5 in three dimensions: 2 + 0.5^2.
        (2.5, 1, 2, 3, 2.5 / 1.5),
        (2, 1, 2, 3, np.sqrt(2)),
        # q = 3 / 2 and q = 3.
        (2.25, 1, 3, 5, 2.25 / (2 + 0.125) ** (2 / 3)),
        (2.5, 1, 1.5, 5, 2.5 / 2.125 ** (1 / 3)),
    ],
)
def test_hull_by_hand(e1, e_inf, p, d, radius):
    found = hull_radius(e1, e_inf, p, d)
    np.testing.assert_allclose(found, radius, rtol=1e-12)
    assert found <= radius


@pytest.mark.parametrize(
    ("e1", "e_inf", "p", "d", "radius"),
    [
        # The vertices of the star are at (1, 0.5): where the square meets the diamond.
        (1.5, 1, 2, 2, np.hypot(1, 0.5)),
        (1.5, 1, 1, 2, 1.5),
        (1.5, 1, np.inf, 2, 1),
        # (1, 0.75, 0.75)
        (2.5, 1, 2, 3, np.sqrt(1 + 2 * 0.75**2)),
        (2.5, 1, 3, 3, np.cbrt(1 + 2 * 0.75**3)),
    ],
)
def test_union_by_hand(e1, e_inf, p, d, radius):
    found = union_radius(e1, e_inf, p, d)
    np.testing.assert_allclose(found, radius, rtol=1e-12)
    assert found <= radius


@pytest.mark.parametrize("radius", [hull_radius, union_radius])
@pytest.mark.parametrize("p", [1, 1.5, 2, 7, 1e300, np.inf])
def test_one_ball_contains_the_other(radius, p):
    """Then its own l_p radius counts: e_inf, or e_1 d^(1/p - 1)."""
    for e1 in (0, 0.5, 1):
        np.testing.assert_allclose(radius(e1, 1, p, 9), 1, rtol=1e-12)
    for e_inf in (0, 1 / 10, 1 / 9):
        np.testing.assert_allclose(radius(1, e_inf, p, 9), 9 ** (1 / p - 1), rtol=1e-12)
    np.testing.assert_allclose(radius(2, 3, p, 1), 3, rtol=1e-12)
    np.testing.assert_allclose(radius(3, 2, p, 1), 3, rtol=1e-12)


@pytest.mark.parametrize("radius", [hull_radius, union_radius])
@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_ends(radius, p):
    """No radius and endless ones, without a warning, in one array."""
    e1 = np.array([0, np.inf, 1, np.inf, np.inf, 0])
    e_inf = np.array([0, 1, np.inf, np.inf, 0, np.inf])
    np.testing.assert_array_equal(radius(e1, e_inf, p, 4), [0] + 5 * [np.inf])
    assert radius(1e300, 1e-300, p, 4) > 0
    assert radius(1e-320, 1e-320, p, 4) == 0


@pytest.mark.parametrize("p", [1.0000001, 3, 1e3, 1e300])
def test_large_numbers_do_not_overflow(p):
    for radius in (hull_radius, union_radius):
        found = radius(2e300, 1e300, p, 784)
        assert 1e300 * (1 - 1e-12) <= found <= 2e300


@pytest.mark.parametrize(
    ("p", "radius"),
    # Margin 4, gradient (3, 4): e_1 = 1, e_inf = 4 / 7; e_1 / e_inf = 1.75.  This is the exact
    # distance, 4 / ||(3, 4)||_q: both balls touch the same hyperplane.
    [(1, 1), (2, 0.8), (3, 4 / (3**1.5 + 4**1.5) ** (2 / 3)), ("inf", 4 / 7)],
)
def test_certificate_by_hand(p, radius):
    found = certify_universal(SIMPLE, [[1.0, 0.5]], [0], p, box=None)
    np.testing.assert_allclose(found, radius, rtol=1e-12)
    assert found <= radius


def test_box():
    """In [0, 1]^2 both balls are larger: their union, too, than the hull of the free ones."""
    for p, radius in ((1, 0.5 + 2 / 3), (np.inf, 2 / 3), (2, np.hypot(2 / 3, 0.5))):
        found = certify_universal(SIMPLE, [[1.0, 0.5]], [0], p)
        np.testing.assert_allclose(found, radius, rtol=1e-12)
        assert found <= radius * (1 + 1e-15)


def test_misclassified_and_constant():
    assert certify_universal(SIMPLE, [[1.0, 0.5]], [1], 2) == 0
    constant = rm.Network([rm.Linear([[0.0, 0]], [1]), rm.Linear([[0], [0]], [1, 0])], 2)
    assert certify_universal(constant, [[0.5, 0.5]], None, 3) == np.inf


@pytest.mark.parametrize("p", [0.5, 0, -1, np.nan, "two", None, True])
def test_bad_norms(p):
    with pytest.raises(ValueError, match="p: expected a number from 1 to infinity"):
        certify_universal(SIMPLE, [[1.0, 0.5]], [0], p)


def test_bad_arguments():
    with pytest.raises(ValueError, match="X: expected points inside the box"):
        certify_universal(SIMPLE, [[2.0, 0.5]], [0], 2)
    with pytest.raises(ValueError, match="y: expected classes 0 to 1"):
        certify_universal(SIMPLE, [[1.0, 0.5]], [2], 2)
