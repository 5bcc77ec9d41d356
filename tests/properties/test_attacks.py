"""Laws of PGD: the ball, the box, the projection and the steepest direction."""

import numpy as np
import pytest
from helpers import length
from hypothesis import assume, given
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr.reference import pgd

DUAL = {1: np.inf, 2: 2, np.inf: 1}


@st.composite
def arrays(draw, min_rows=1):
    """Rows of numbers, some of them 0 or shared."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(min_rows, 5)), draw(st.integers(1, 8))
    if draw(st.booleans()):
        return rng.integers(-3, 4, shape) / 2
    return rng.normal(size=shape) * (rng.random(shape) < 0.8)


@given(st.data(), testing.norms(), st.floats(0.05, 3), st.integers(1, 5), st.booleans())
def test_stays_in_the_ball_and_the_box(data, p, eps, steps, last):
    net = data.draw(testing.networks() | testing.conv_networks())
    X, y = data.draw(testing.batches(net))
    lo, hi = data.draw(testing.boxes(X))
    options = {"steps": steps, "restarts": 2, "keep": "last" if last else "best"}
    for box in (None, (lo, hi)):
        Z = rm.pgd(net, X, y, p, eps=eps, box=box, **options)
        assert Z.shape == X.shape
        # Each coordinate of Z is rounded once, and so is its difference from X.
        rounded = length(np.spacing(np.abs(Z) + np.abs(X)), p)
        assert (length(Z - X, p) <= eps * (1 + 1e-14) + rounded).all()
        assert box is None or ((lo <= Z) & (hi >= Z)).all()


def slow_l1_projection(delta, eps):
    """The nearest point of the l_1 ball by bisection of the threshold."""
    if np.abs(delta).sum() <= eps:
        return delta
    low, high = 0.0, np.abs(delta).max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(np.abs(delta) - middle, 0).sum() > eps:
            low = middle
        else:
            high = middle
    return np.sign(delta) * np.maximum(np.abs(delta) - high, 0)


@given(arrays(), st.floats(0.01, 10))
def test_l1_projection(delta, eps):
    found = pgd.project(np.zeros_like(delta), delta, 1, eps, None)
    expected = [slow_l1_projection(row, eps) for row in delta]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@given(arrays(), st.floats(0.01, 10), testing.norms())
def test_projection_is_the_nearest_point_of_the_ball(delta, eps, p):
    """Points of the ball are left alone; of others, <delta - projection, z - projection> <= 0."""
    zero = np.zeros_like(delta)
    found = pgd.project(zero, delta, p, eps, None)
    inside = length(delta, p) <= eps * (1 - 1e-12)
    np.testing.assert_allclose(found[inside], delta[inside], rtol=0, atol=1e-15)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = rng.normal(size=delta.shape)
        other *= eps / length(other, p)[:, None]
        assert (((delta - found) * (other - found)).sum(axis=1) <= 1e-11 * (1 + eps)).all()


@pytest.mark.parametrize("scale", [1, 1e-30, 1e30, 1e-200])
@given(gradient=arrays(), p=testing.norms())
def test_steepest_direction(scale, gradient, p):
    """It has length 1, and Hoelder's inequality holds with equality."""
    direction = pgd.steepest(gradient * scale, p)
    some = (gradient != 0).any(axis=1)
    np.testing.assert_allclose(length(direction, p), some, rtol=1e-13)
    climb = (gradient * direction).sum(axis=1)
    np.testing.assert_allclose(climb, length(gradient, DUAL[p]), rtol=1e-13)


@given(st.data(), testing.norms())
def test_affine_network_is_attacked_as_well_as_possible(data, p):
    """Two classes, no hidden layer: found just beyond the distance, never just below it."""
    (w, value), steps = data.draw(testing.hyperplanes(4)), data.draw(st.integers(1, 10))
    x = np.random.default_rng(0).uniform(-1, 1, (1, 4))
    net = rm.Network([rm.Linear([w, 0 * w], [value - x[0] @ w, 0])], 4)
    y = net.predict(x)
    distance = rm.distances(net, x, y, p).decision.min()
    assume(distance > 1e-3)
    for factor, expected in ((1 + 1e-6, True), (1 - 1e-6, False)):
        Z = rm.pgd(net, x, y, p, eps=distance * factor, steps=steps, box=None)
        assert (net.predict(Z) != y).item() is expected
