"""The largest gain of a linear function on a ball within a box: values known by hand."""

import numpy as np
import pytest

from refmmr.reference.ball import ball, largest_gain

NORMS = [1, 2, np.inf]
UNIT = (np.zeros(2), np.ones(2))


@pytest.mark.parametrize(
    ("p", "radius", "box", "gain"),
    [
        (1, 0.5, None, 2.0),
        (2, 0.5, None, 2.5),
        (np.inf, 0.5, None, 3.5),
        # From (0.5, 0.9) the second coordinate can grow by 0.1 only.
        (1, 0.5, UNIT, 0.4 + 3 * 0.4),
        (2, 0.5, UNIT, 0.4 + 3 * np.sqrt(0.24)),
        (np.inf, 0.5, UNIT, 0.4 + 1.5),
        # All of the box is in the ball.
        (1, 5.0, UNIT, 0.4 + 1.5),
        (2, 5.0, UNIT, 0.4 + 1.5),
        (np.inf, 5.0, UNIT, 0.4 + 1.5),
        (1, 0.0, UNIT, 0.0),
        (2, 0.0, UNIT, 0.0),
        (np.inf, 0.0, UNIT, 0.0),
    ],
)
def test_by_hand(p, radius, box, gain):
    around = ball(np.array([[0.5, 0.9]]), np.array([radius]), p, box)
    found = largest_gain(around, np.array([[[3.0, 4.0], [0.0, 0.0]]]))
    np.testing.assert_allclose(found, [[gain, 0]], rtol=1e-14)


@pytest.mark.parametrize("p", NORMS)
def test_vertices_of_the_box_around_a_ball(p):
    around = ball(np.array([[0.5, 0.9]]), np.array([0.3]), p, UNIT)
    np.testing.assert_allclose(around.lowest, [[0.2, 0.6]])
    np.testing.assert_allclose(around.highest, [[0.8, 1.0]])
    free = around._replace(box=None)
    np.testing.assert_allclose(free.highest, [[0.8, 1.2]])


@pytest.mark.parametrize("p", NORMS)
def test_tiny_and_huge_functions(p):
    """Squares of them would vanish, or be infinite."""
    around = ball(np.full((1, 3), 0.5), np.array([0.25]), p, (np.zeros(3), np.ones(3)))
    w = np.array([[[1.0, 2.0, 3.0]]])
    plain = largest_gain(around, w)
    for scale in (2.0**-600, 2.0**600):
        np.testing.assert_allclose(largest_gain(around, scale * w), scale * plain, rtol=1e-15)


@pytest.mark.parametrize("p", NORMS)
def test_no_step_gains_more_and_some_step_gains_as_much(p):
    """Against random steps, and the steps that `shortest_step_in_box` finds for the gain."""
    from refmmr.reference.hyperplanes import norm, shortest_step_in_box

    rng = np.random.default_rng(0)
    lo, hi = np.zeros(5), np.ones(5)
    for _ in range(50):
        x, w = rng.uniform(size=5), rng.normal(size=5)
        radius = rng.uniform(0.01, 2)
        gain = largest_gain(ball(x[None], np.array([radius]), p, (lo, hi)), w[None, None])[0, 0]
        steps = rng.normal(size=(500, 5)) * rng.choice([0.1, 1, 5], size=(500, 1))
        steps = np.clip(x + steps * radius, lo, hi) - x
        steps = steps[norm(steps, p) <= radius]
        assert (steps @ w <= gain * (1 + 1e-12)).all()
        # The shortest step that gains a little less is no longer than the radius; more, longer.
        for share, inside in ((1 - 1e-6, True), (1 + 1e-6, False)):
            distance, _ = shortest_step_in_box(x, w, np.array(-gain * share), lo, hi, p)
            assert (abs(distance) <= radius) == inside
