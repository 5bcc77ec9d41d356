"""Bounds of hidden units by trees: valid, better, and used where the tree of a margin is large."""

import time

import numpy as np
import pytest
from helpers import random_biases

import refmmr as rm
from refmmr.certify.bounds import _place, _tree, _unit_trees
from refmmr.reference.backward_bound import layer_bounds
from refmmr.reference.ball import ball

NORMS = (1, 2, np.inf)


def start_of(net, x, eps, p=np.inf, box=None, deadline=np.inf):
    around = ball(x[None], np.array([eps]), p, box)
    bounds = layer_bounds(net, x[None], p, around.radius, box, "crown")[:-1]
    return _place.start(_place.place(net, around, deadline), bounds)


def points_of(start, n):
    """Points of a ball of a plane within the box, a grid."""
    around = start.place.ball
    steps = np.linspace(-1, 1, n) * around.radius[0]
    Z = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    Z = around.x[0] + Z[np.linalg.norm(Z, around.p, axis=1) <= around.radius[0]]
    return Z[(np.clip(Z, around.lowest, around.highest) == Z).all(axis=1)]


@pytest.fixture
def turns(monkeypatch):
    """Few gradient steps and nodes, so that small trees take turns: their numbers of nodes."""
    monkeypatch.setattr(_tree, "ROOT_STEPS", 8)
    monkeypatch.setattr(_tree, "ROUNDS", 1)
    monkeypatch.setattr(_unit_trees, "FIRST_NODES", 1)
    monkeypatch.setattr(_unit_trees, "UNIT_NODES", 4)
    seen, refined = [], _unit_trees.refined

    def counted(start, max_nodes):
        seen.append(max_nodes)
        return refined(start, max_nodes)

    monkeypatch.setattr(_unit_trees, "refined", counted)
    return seen


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("box", [None, (np.zeros(2), np.ones(2))])
def test_bounds_of_units_against_a_grid(turns, p, box):
    net = random_biases(2, 8, 8, 8, 3)
    start = start_of(net, np.array([0.3, 0.6]), 0.5, p, box)
    *_, (better, _) = _unit_trees.refined(start, 20)
    f = net.forward(points_of(start, 150)).outputs
    gained = 0.0
    for values, own, before in zip(f[:-1], better.bounds, start.bounds, strict=True):
        (lower, upper), (low, high) = own, before
        assert (lower >= low).all()
        assert (upper <= high).all()
        # Of a side that ends at 0 it is known that the unit is stable, not how far.
        assert (np.minimum(lower, 0) <= values.min(axis=0)).all()
        assert (np.maximum(upper, 0) >= values.max(axis=0)).all()
        gained += (lower - low).sum() + (high - upper).sum()
    assert gained > 0


@pytest.mark.parametrize("p", NORMS)
def test_decisions_next_to_the_minimal_perturbation(turns, p):
    net = random_biases(3, 8, 6, 6, 3)
    X = np.random.default_rng(0).uniform(size=(2, 3))
    exact = rm.certify(net, X, None, p, None, "search")
    assert exact.exact.all()
    for share, status in ((0.999, "robust"), (1.001, "adversarial")):
        found = rm.certify(net, X, None, p, None, "bab", eps=share * exact.upper)
        assert (found.status == status).all()
    assert turns


def test_a_tree_begins_anew(turns):
    net = rm.Network.mlp([5, 12, 12, 12, 3], rng=0)
    x = np.random.default_rng(0).uniform(size=5)
    start, row = start_of(net, x, 0.35), np.array([1.0, -1.0, 0.0])
    Z = x + np.random.default_rng(1).uniform(-0.35, 0.35, (4000, 5))
    lowest = float((net.logits(Z) @ row).min())
    # Positive everywhere, but the bound at the root is not.
    tree = _tree.Tree(start, row, lambda points: False, 0.1 - lowest)
    assert not tree.done
    better, (proved,) = _unit_trees.run(start, [tree])
    assert proved.proved
    assert proved.nodes > tree.nodes
    assert turns == [4 * _unit_trees.GROWTH**i for i in range(len(turns))]
    for own, before in zip(better.bounds, start.bounds, strict=True):
        assert (own[0] >= before[0]).all()
        assert (own[1] <= before[1]).all()


def test_no_turns_where_a_certificate_is_recorded(turns, tmp_path):
    net = random_biases(3, 8, 6, 6, 3)
    X = np.random.default_rng(0).uniform(size=(1, 3))
    radius = rm.certify(net, X, None, np.inf, None, "search").upper[0]
    found = rm.certify(net, X, None, np.inf, None, "bab", eps=0.99 * radius, certificate=tmp_path)
    assert found.robust.all()
    assert len(rm.check_certificate(net, tmp_path)) == 1
    assert not turns


def test_the_deadline_ends_a_turn(turns):
    net = random_biases(3, 8, 6, 6, 3)
    start = start_of(net, np.full(3, 0.5), 0.3)
    late = start._replace(place=start.place._replace(deadline=time.monotonic()))
    assert list(_unit_trees.refined(late, 10)) == []
    tree = _tree.Tree(start, np.array([1.0, -1.0, 0.0]), lambda points: False, -1e3)
    (same,) = _unit_trees.run(late, [tree])[1]
    assert same is tree
