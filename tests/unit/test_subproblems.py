"""Branch and bound over activation patterns: its claims hold, and it ends at the exact radius."""

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify.bounds import _subproblems, region, search
from refmmr.certify.bounds._nearest import nearest_point
from refmmr.reference.hyperplanes import norm, shortest_step_in_box

NORMS = [1, 2, np.inf]
BOX = np.full(2, -1.0), np.full(2, 1.0)


def network(sizes, seed, spread=1 / 3):
    """A network with random biases; a large spread moves hyperplanes away."""
    rng = np.random.default_rng(seed)
    net = rm.Network.mlp(sizes, rng=seed)
    biases = [rng.normal(size=b.shape) * spread for _, b in net.parameters[:-1]]
    weights = [W for W, _ in net.parameters]
    return net.with_parameters(
        list(zip(weights, [*biases, np.zeros(sizes[-1])], strict=True))
    ).astype(np.float64)


def points(net, n=4):
    X = np.random.default_rng(9).uniform(-0.9, 0.9, (n, 2))
    return X, net.predict(X)


def true_distance(net, X, p):
    return rm.enumerate_regions(net, rm.Box(*BOX)).boundary_distance(X, p).distance


SIZES = [[2, 16, 3], [2, 10, 8, 3], [2, 7, 6, 5, 2]]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_subproblems_first(monkeypatch, sizes, p):
    monkeypatch.setattr(search, "FIRST_REGIONS", 0)
    net = network(sizes, seed=8)
    X, y = points(net)
    result = search.search(net, X, y, p, BOX)
    expected = true_distance(net, X, p)
    np.testing.assert_allclose(result.bounds.lower, expected, rtol=2e-6)
    np.testing.assert_allclose(result.bounds.upper, expected, rtol=2e-6)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_subproblems_alone(sizes, p):
    """Their own bound never exceeds the distance, rises, and ends there."""
    net = network(sizes, seed=8)
    X, y = points(net)
    expected = true_distance(net, X, p)
    met = 0
    for state, distance in zip(search.point_searches(net, X, y, p, BOX), expected, strict=True):
        before = 0.0
        for _ in range(3000):
            if state.subproblems.done:
                break
            state.subproblems.step()
            assert before <= state.subproblems.lower
            before = state.subproblems.lower
            assert before <= min(distance * (1 + 1e-9), 4)
            assert state.upper >= distance * (1 - 1e-9)
        met += before >= distance * (1 - 1e-6) or np.isinf(distance)
    assert met == len(X)


@pytest.mark.parametrize("p", NORMS)
def test_walks_without_stable_units(p):
    """Most units are stable on the ball, and regions are walked without their hyperplanes."""
    net = network([2, 40, 3], seed=4, spread=1.5)
    X, y = points(net, 5)
    expected = true_distance(net, X, p)
    shares, unstable = [], 0
    first = search.search(net, X, y, p, BOX, max_regions=1).bounds
    searches = search.point_searches(net, X, y, p, BOX, None, first.upper, first.adversarial)
    for state, distance in zip(searches, expected, strict=True):
        subproblems = state.subproblems
        subproblems.step()
        state.region_search.leave_out(subproblems.stable, subproblems.stable_radius)
        subproblems.done, subproblems.lower = True, 0.0
        state.run()
        np.testing.assert_allclose(state.lower, distance, rtol=2e-6)
        np.testing.assert_allclose(state.upper, distance, rtol=2e-6)
        shares.append(state.region_search.stable.mean())
        unstable += int((~state.region_search.stable).sum())
    assert np.mean(shares) > 0.5
    assert unstable > 0


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_stable_units_keep_their_activation(sizes, p):
    net = network(sizes, seed=3)
    X, y = points(net)
    goal = np.full(len(X), 0.2)
    rng = np.random.default_rng(0)
    seen = 0
    for x, state in zip(X, search.point_searches(net, X, y, p, BOX, goal), strict=True):
        state.subproblems.step()
        radius = state.subproblems.stable_radius
        assert radius <= 0.2
        delta = rng.uniform(-1, 1, (500, 2))
        Z = np.clip(x + delta / norm(delta, p)[:, None] * radius * rng.random((500, 1)), *BOX)
        same = (net.activation_pattern(Z) == net.activation_pattern(x[None])).all(axis=0)
        assert same[state.subproblems.stable].all()
        seen += int(state.subproblems.stable.sum())
    assert seen > 0


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_cuts_keep_the_examples(sizes, p):
    """Each cut holds at all points of the class in the subproblem, within the ball."""
    net = network(sizes, seed=8)
    X, y = points(net, 6)
    ticks = np.linspace(-1, 1, 101)
    Z = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)
    classes, patterns = net.predict(Z), net.activation_pattern(Z)
    tested = 0
    for x, state in zip(X, search.point_searches(net, X, y, p, BOX), strict=True):
        subproblems, seen = state.subproblems, set()
        for _ in range(20):
            if subproblems.done:
                break
            subproblems.step()
            near = norm(Z - x, p) < subproblems._radius
            for _, number, subproblem in subproblems._queue:
                if number in seen:  # on a ball that was no smaller
                    continue
                seen.add(number)
                agree = np.where(patterns, 1, -1) * subproblem.fixed >= 0
                inside = near & agree.all(axis=1) & (classes == subproblem.target)
                for cut in subproblem.cuts:
                    assert (cut.value + (Z[inside] - x) @ cut.row >= -cut.error).all()
                    tested += int(inside.sum())
    assert tested > 0


@pytest.mark.parametrize("p", NORMS)
def test_smaller_balls_first(monkeypatch, p):
    """A poor example makes a large ball; the proved radius grows through smaller ones."""
    monkeypatch.setattr(_subproblems, "LARGE_SHARE", 0.999)
    net = network([2, 16, 3], seed=3)
    X, y = points(net)
    expected = true_distance(net, X, p)
    for state, distance in zip(search.point_searches(net, X, y, p, BOX), expected, strict=True):
        while not state.subproblems.done:
            state.subproblems.step()
        np.testing.assert_allclose(
            state.subproblems.lower, min(distance, state.point.limit), rtol=2e-6
        )


def test_interrupted(monkeypatch):
    """An interruption between two branches loses neither of them."""
    monkeypatch.setattr(search, "FIRST_REGIONS", 0)
    net = network([2, 16, 3], seed=3)
    X, y = points(net, 3)
    expected = true_distance(net, X, 2)
    bound = _subproblems.Subproblems._bound
    for state, distance in zip(search.point_searches(net, X, y, 2, BOX), expected, strict=True):
        calls = iter(range(10**6))

        def sometimes(self, subproblem, lower, calls=calls):
            if next(calls) % 5 == 3:
                raise KeyboardInterrupt
            return bound(self, subproblem, lower)

        monkeypatch.setattr(_subproblems.Subproblems, "_bound", sometimes)
        interruptions = 0
        while interruptions < 10**4:
            try:
                state.run()
                break
            except KeyboardInterrupt:
                interruptions += 1
                assert state.lower <= distance * (1 + 1e-9)
        assert interruptions > 0
        monkeypatch.setattr(_subproblems.Subproblems, "_bound", bound)
        state.run()
        np.testing.assert_allclose([state.lower, state.upper], distance, rtol=2e-6)


@pytest.mark.parametrize("p", NORMS)
def test_convolutional(p):
    """On a ball beyond the own region, which the subproblems prove."""
    net = rm.Network.lenet_small((1, 4, 4), 3, rng=0).astype(np.float64)
    X = np.random.default_rng(0).uniform(0, 1, (2, 1, 4, 4))
    y = net.predict(X)
    box = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
    goal = 2 * region.region_bounds(net, X, y, p, box).lower
    for state in search.point_searches(net, X, y, p, box, goal):
        for _ in range(10):
            if state.subproblems.done:
                break
            state.subproblems.step()
        assert state.point.goal <= state.subproblems.lower <= state.upper
        eps = state.point.goal * (1 - 1e-9)
        Z = rm.pgd(net, state.point.x, [state.point.y], p, eps=eps, steps=20, box=box, rng=0)
        assert net.predict(Z) == state.point.y


def half_spaces(seed, reach):
    """Five half-spaces without the origin, two nearly the same, and a box of this size."""
    rng = np.random.default_rng(seed)
    rows, values = rng.normal(size=(5, 8)), -np.abs(rng.normal(size=5))
    rows[4] = rows[3] + 1e-4 * rows[4]
    return values, rows, *reach * np.array([[-1], [1]]) * rng.uniform(0.5, 3, (2, 8))


def distance_of_the_sum(multipliers, values, rows, lo, hi, p):
    """Distance to the half-space that the multipliers add the others up to."""
    w = multipliers / multipliers.max()
    return -shortest_step_in_box(np.zeros(8), w @ rows, w @ values, lo, hi, p)[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("p", NORMS)
def test_nearest_point(p, seed):
    """The step leads into all half-spaces, and the sum of them is no nearer."""
    values, rows, lo, hi = half_spaces(seed, 1)
    multipliers, step = nearest_point(values, rows, lo, hi, p, np.zeros(5), 100.0)
    assert ((step >= lo) & (step <= hi)).all()
    assert (values + rows @ step >= -1e-7).all()
    distance = distance_of_the_sum(multipliers, values, rows, lo, hi, p)
    np.testing.assert_allclose(distance, norm(step, p), rtol=1e-6)


def test_nearest_point_where_a_model_of_the_dual_function_has_no_maximum():
    """At the first step, (-2, 0.75), both coordinates are at the box: no model moves them."""
    values, rows = np.array([0.25, -1]), np.array([[0, -0.5], [-0.5, 0.5]])
    lo, hi = np.array([-2, -0.5]), np.array([0.5, 0.75])
    multipliers, step = nearest_point(values, rows, lo, hi, 2, np.zeros(2), 100.0)
    np.testing.assert_allclose(step, [-1.5, 0.5], rtol=1e-7)
    np.testing.assert_allclose(multipliers, [2, 3], rtol=1e-7)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("p", NORMS)
def test_half_spaces_out_of_reach(p, seed):
    """No point of a small box is in all half-spaces: the box misses the sum of them."""
    values, rows, lo, hi = half_spaces(seed, 0.1)
    multipliers, _ = nearest_point(values, rows, lo, hi, p, np.zeros(5), 100.0)
    assert distance_of_the_sum(multipliers, values, rows, lo, hi, p) == np.inf


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_nearest_point_without_limits(p):
    """An input without weight has an infinite way to go, and counts for nothing."""
    values, rows = np.array([-1.0, 1.0]), np.array([[0.5, 0.0], [-0.25, 0.0]])
    limits = np.full(2, np.inf)
    multipliers, step = nearest_point(values, rows, -limits, limits, p, np.zeros(2), 100.0)
    np.testing.assert_allclose([step[0], norm(step, p)], 2)
    assert multipliers[0] > 0


def test_empty_subproblems_are_left_out_without_a_box():
    """Cuts that exclude each other, with inputs that have no weight in their sum."""
    values, rows = np.array([-1.0, -1.0]), np.array([[1.0, 1.0, 0.5], [-1.0, -1.0, -0.5]])
    limits = np.full(3, np.inf)
    multipliers, _ = nearest_point(values, rows, -limits, limits, np.inf, np.zeros(2), 9.0)
    np.testing.assert_allclose(multipliers @ rows, 0, atol=1e-9)
    assert multipliers @ values < 0
