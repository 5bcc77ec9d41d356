"""Branch and bound: its steps against linear programs, and its answers against the search."""

import numpy as np
import pytest
from scipy.optimize import linprog

import refmmr as rm
from refmmr.reference import ascent, clipping
from refmmr.reference import branch_and_bound as bb
from refmmr.reference.backward_bound import layer_bounds
from refmmr.reference.ball import ball, largest_gain, minimizer
from refmmr.reference.network import flat

NORMS = (1, 2, np.inf)


def case(p, seed=1, box=True, eps=0.4, sizes=(6, 12, 8, 3)):
    rng = np.random.default_rng(seed)
    net = rm.Network.mlp(list(sizes), rng=seed)
    x = rng.uniform(0, 1, (1, sizes[0]))
    limits = (np.zeros(sizes[0]), np.ones(sizes[0])) if box else None
    around = ball(x, np.array([eps]), p, limits)
    bounds = layer_bounds(net, x, p, around.radius, limits, "crown")[:-1]
    return net, around, bounds, rng


def points_of(around, rng, n):
    """Random points of a ball within its box, also on its surface."""
    d = around.x.shape[1]
    step = rng.normal(size=(n, d))
    length = np.linalg.norm(step, around.p, axis=1, keepdims=True)
    step *= around.radius[0] * rng.choice([0.3, 0.9, 1.0], (n, 1)) / length
    points = around.x + step
    return points if around.box is None else np.clip(points, *around.box)


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("p", NORMS)
def test_the_minimizer_reaches_the_largest_gain(p, box):
    rng = np.random.default_rng(0)
    limits = (np.zeros(5), np.ones(5)) if box else None
    around = ball(rng.uniform(0, 1, (4, 5)), rng.uniform(0.05, 1.5, 4), p, limits)
    w = rng.normal(size=(4, 3, 5)) * (rng.random((4, 3, 5)) < 0.8)
    z = minimizer(around, w)
    step = z - around.x[:, None]
    assert (np.linalg.norm(step, p, axis=-1) <= around.radius[:, None] * (1 + 1e-12)).all()
    if box:
        np.testing.assert_array_equal(z, np.clip(z, 0, 1))
    np.testing.assert_allclose((w * step).sum(-1), -largest_gain(around, -w), rtol=1e-12)


@pytest.mark.parametrize("p", NORMS)
def test_gradient_steps_raise_a_bound_that_holds(p):
    net, around, bounds, rng = case(p)
    nodes = ascent.root(bounds).take(np.zeros(2, int))
    rows = rng.normal(size=(2, 3))
    first = ascent.bound(net, around, rows, nodes).minimum(around)[:, 0]
    best = ascent.ascend(net, around, rows, nodes, 20)
    found = nodes._replace(slopes=best.slopes, multipliers=best.multipliers)
    better = ascent.bound(net, around, rows, found).minimum(around)[:, 0]
    assert (better > first + 1e-3).all()
    np.testing.assert_allclose(best.values, better, rtol=1e-12)
    values = net.logits(points_of(around, rng, 2000)) @ rows.T
    assert (values >= better).all()


def test_multipliers_hold_in_their_node():
    net, around, bounds, rng = case(np.inf)
    nodes = ascent.root(bounds)
    for unit in (3, 14):
        nodes = bb.split(nodes, np.full(len(nodes.fixed[0]), unit))
    rows = np.repeat(rng.normal(size=(1, 3)), 4, axis=0)
    best = ascent.ascend(net, around, rows, nodes, 20)
    assert max(part.max() for part in best.multipliers) > 0
    nodes = nodes._replace(slopes=best.slopes, multipliers=best.multipliers)
    lowest = ascent.bound(net, around, rows, nodes).minimum(around)[:, 0]
    points = points_of(around, rng, 5000)
    hidden = flat(net.forward(points).outputs[:-1])
    values = net.logits(points) @ rows[0]
    for i, fixed in enumerate(flat(nodes.fixed)):
        inside = (fixed * hidden >= 0).all(axis=1)
        assert (values[inside] >= lowest[i]).all()
    # Each point is in one of the nodes.
    assert sorted(map(tuple, flat(nodes.fixed)[:, [3, 14]])) == [(-1, -1), (-1, 1), (1, -1), (1, 1)]


@pytest.mark.parametrize("p", NORMS)
def test_both_halves_begin_with_the_bound_of_their_parent(p):
    """Where the unit's coefficient is positive; with one hidden layer it is the output weight."""
    net, around, bounds, _ = case(p, sizes=(6, 12, 3))
    row = np.array([[1.0, -1.0, 0.0]])
    best = ascent.ascend(net, around, row, ascent.root(bounds), 20)
    parent = ascent.root(bounds)._replace(slopes=best.slopes, multipliers=best.multipliers)
    value = ascent.bound(net, around, row, parent).minimum(around)[0, 0]
    G = (row @ net.parameters[-1][0])[0]
    units = np.flatnonzero((bounds[0][0][0] < 0) & (bounds[0][1][0] > 0) & (G > 0))
    assert len(units) >= 2
    for unit in units:
        halves = bb.split(parent, np.array([unit]))
        found = ascent.bound(net, around, row[[0, 0]], halves).minimum(around)[:, 0]
        assert (found >= value - 1e-12).all()


def test_clipping_in_linf_solves_the_linear_program():
    _, around, _, rng = case(np.inf)
    A, constant, c = rng.normal(size=(7, 6)), rng.normal(size=7), rng.normal(size=6)
    e = 0.3 - c @ around.x[0]
    below = clipping.clip(around, A, constant, c, e, steps=40)
    ends = np.stack([around.lowest[0], around.highest[0]], axis=1)
    for row, offset, value in zip(A, constant, below, strict=True):
        exact = linprog(row, A_ub=c[None], b_ub=[-e], bounds=ends).fun + offset
        assert exact - 1e-7 <= value <= exact


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("p", NORMS)
def test_clipped_bounds_hold_and_are_better(p, box):
    _, around, _, rng = case(p, box=box)
    A, constant, c = rng.normal(size=(7, 6)), rng.normal(size=7), rng.normal(size=6)
    e = 0.1 - c @ around.x[0]
    below = clipping.clip(around, A, constant, c, e)
    whole = clipping.clip(around, A, constant, c, e, steps=0)
    points = points_of(around, rng, 4000)
    inside = points[points @ c + e <= 0]
    assert len(inside) > 100
    assert (inside @ A.T + constant >= below).all()
    assert (below >= whole).all()
    assert (below > whole + 1e-3).any()


def test_no_unit_is_scored_where_its_relaxation_is_exact():
    net, around, bounds, rng = case(np.inf)
    best = ascent.ascend(net, around, rng.normal(size=(1, 3)), ascent.root(bounds), 3)
    for (lower, upper), score in zip(bounds, best.scores, strict=True):
        unstable = (lower < 0) & (upper > 0)
        np.testing.assert_array_equal(score >= 0, unstable)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("seed", [2, 10])
def test_the_search_agrees_with_the_exact_distance(p, seed):
    net = rm.Network.mlp([4, 6, 5, 3], rng=seed)
    x = np.random.default_rng(seed).uniform(0, 1, (1, 4))
    y = int(net.logits(x).argmax())
    exact = rm.certify(net, x, [y], p, method="search")
    for share in (0.9, 1.1):
        limits = (np.zeros(4), np.ones(4))
        around = ball(x, share * exact.upper, p, limits)
        bounds = layer_bounds(net, x, p, around.radius, limits, "crown")[:-1]
        results = []
        for s in set(range(3)) - {y}:
            row = np.eye(3)[y] - np.eye(3)[s]
            results.append(bb.search(net, around, row, bounds))
        assert all(proved or point is not None for proved, point, _ in results)
        assert all(proved for proved, _, _ in results) == (share < 1)


def test_a_constant_moves_the_function():
    net, around, bounds, _ = case(np.inf, eps=0.05)
    row = np.array([1.0, -1.0, 0.0])
    lowest = (net.logits(points_of(around, np.random.default_rng(0), 2000)) @ row).min()
    assert bb.search(net, around, row, bounds, constant=0.5 - lowest)[0]
    proved, point, _ = bb.search(net, around, row, bounds, constant=-0.01 - lowest)
    assert not proved
    assert net.logits(point[None]) @ row <= lowest + 0.01


def test_the_search_stops_at_its_number_of_nodes():
    net, around, bounds, _ = case(np.inf)
    row = np.array([1.0, -1.0, 0.0])
    lowest = ascent.bound(net, around, row[None], ascent.root(bounds)).minimum(around)[0, 0]
    logits = net.logits(points_of(around, np.random.default_rng(0), 5000)) @ row
    constant = -(lowest + 3 * logits.min()) / 4  # between the first bound and the minimum
    proved, point, tree = bb.search(
        net, around, row, bounds, constant=constant, max_nodes=1, steps=0
    )
    assert (proved, point, len(tree)) == (False, None, 1)


def test_the_tree_is_a_tree():
    net, around, bounds, rng = case(np.inf)
    row = np.array([1.0, -1.0, 0.0])
    lowest = (net.logits(points_of(around, rng, 20000)) @ row).min()
    proved, _, tree = bb.search(net, around, row, bounds, constant=0.2 - lowest, steps=5)
    assert proved
    assert len(tree) > 2
    assert tree[0][:3] == (-1, -1, 0)
    points = points_of(around, rng, 5000)
    hidden, values = flat(net.forward(points).outputs[:-1]), net.logits(points) @ row
    inside = np.ones((len(tree), len(points)), bool)
    for i, visit in enumerate(tree[1:], 1):
        assert visit.parent < i
        inside[i] = inside[visit.parent] & (visit.sign * hidden[:, visit.unit] >= 0)
        c, e = visit.half_space
        assert (values[inside[i]] + 0.2 - lowest >= points[inside[i]] @ c + e).all()
        assert (values[inside[i]] + 0.2 - lowest >= visit.bound).all()
