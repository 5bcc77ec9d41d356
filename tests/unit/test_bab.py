"""method="bab": answers against the search, limits, leaves, and networks out of float32's range."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

import refmmr as rm
from refmmr import _minimal_attack
from refmmr.certify import methods
from refmmr.certify.bounds import _place, _tree, bab
from refmmr.certify.bounds._ball_examples import FROM_NODES, BallExamples
from refmmr.reference.backward_bound import layer_bounds
from refmmr.reference.ball import ball

NORMS = (1, 2, np.inf)


def case(seed=0, n=2, sizes=(5, 10, 8, 3)):
    net = rm.Network.mlp(list(sizes), rng=seed)
    X = np.random.default_rng(seed).uniform(0, 1, (n, sizes[0]))
    return net, X, net.logits(X).argmax(axis=1)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("box", [(0, 1), None])
def test_answers_of_the_search(p, box):
    net, X, y = case()
    exact = rm.certify(net, X, y, p, box, "search")
    assert exact.exact.all()
    for share, status in ((0.99, "robust"), (1.01, "adversarial")):
        found = rm.certify(net, X, y, p, box, "bab", eps=share * exact.upper)
        assert (found.status == status).all()
        assert (found.lower <= exact.upper).all()
        assert (found.upper >= exact.lower).all()


@pytest.mark.parametrize("p", NORMS)
def test_minimal_perturbations(p):
    net, X, y = case(seed=1, n=2, sizes=(4, 8, 3))
    exact = rm.certify(net, X, y, p, method="search")
    found = rm.certify(net, X, y, p, method="bab")
    assert found.exact.all()
    np.testing.assert_allclose(found.upper, exact.upper, rtol=2e-6)
    assert (net.logits(found.adversarial).argmax(axis=1) != y).all()


def test_the_whole_box_has_one_class():
    net = rm.Network([rm.Linear([[1.0, 1.0]], [0]), rm.Linear([[1.0], [0.0]], [1, 0])], 2)
    found = rm.certify(net, [[0.2, 0.5]], [0], method="bab")
    np.testing.assert_array_equal([found.lower, found.upper], np.inf)


def test_a_misclassified_point_has_radius_zero():
    net, X, y = case()
    found = rm.certify(net, X, (y + 1) % 3, method="bab", eps=0.1)
    np.testing.assert_array_equal([found.lower, found.upper], 0)
    np.testing.assert_array_equal(found.adversarial, X)


def test_networks_without_hidden_layers():
    net = rm.Network([rm.Linear([[1.0, 0.0], [0.0, 1.0]], [0, 0])], 2)
    found = rm.certify(net, [[0.75, 0.25]], [0], np.inf, method="bab")
    assert found.exact.all()
    np.testing.assert_allclose(found.upper, 0.25, rtol=1e-6)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("share", [1, 1 + 1e-15, 1 - 1e-15])
def test_a_radius_up_to_rounding_of_a_network_without_a_unit_to_split(share, p):
    """No bound is positive and no descent ends at an example: nothing is claimed."""
    net = rm.Network([rm.Linear([[1.0, 0.0], [0.0, 1.0]], [0, 0])], 2)
    radius = {1: 0.5, 2: 0.5**0.5 / 2, np.inf: 0.25}[p]
    for box in ((0, 1), None, ([0.75 - radius, 0], [1, 0.25 + radius])):
        found = rm.certify(net, [[0.75, 0.25]], [0], p, box, "bab", eps=share * radius)
        assert found.lower <= radius * (1 + 1e-15)
        assert found.upper >= radius * (1 - 1e-15)


def test_weights_out_of_the_range_of_float32():
    scaled = [
        rm.Linear([[1e25, -1e25], [1e25, 1e25]], [0, 0]),
        rm.Linear(1e-25 * np.eye(2), [0.1, 0]),
    ]
    plain = [rm.Linear([[1.0, -1.0], [1.0, 1.0]], [0, 0]), rm.Linear(np.eye(2), [0.1, 0])]
    radii = [
        rm.certify(rm.Network(layers, 2), [[0.3, 0.02]], [0], np.inf, method="bab").upper[0]
        for layers in (scaled, plain)
    ]
    np.testing.assert_allclose(radii[0], radii[1], rtol=1e-6)


def test_a_time_limit_keeps_both_bounds():
    net, X, y = case(seed=3, n=1, sizes=(20, 40, 40, 3))
    begin = time.monotonic()
    found = rm.certify(net, X, y, method="bab", max_seconds=0.5)
    assert time.monotonic() - begin < 20  # not endless; how near the limit is no matter of a test
    assert 0 <= found.lower[0] <= found.upper[0] < np.inf
    assert net.logits(found.adversarial).argmax(axis=1)[0] != y[0]


def tree_of(net, x, eps, row, check=lambda points: False, constant=0.0):
    around = ball(x[None], np.array([eps]), np.inf, None)
    bounds = layer_bounds(net, x[None], np.inf, around.radius, None, "crown")[:-1]
    start = _place.start(_place.place(net, around), bounds)
    return _tree.Tree(start, row, check, constant)


def test_a_tree_proves_what_its_root_does_not():
    net, X, y = case(seed=1, sizes=(5, 16, 16, 3))
    radius = rm.certify(net, X[:1], y[:1], np.inf, None, "search").upper[0]
    rival = [s for s in range(3) if s != y[0]]
    trees = [
        tree_of(net, X[0], 0.99 * radius, np.eye(3)[y[0]] - np.eye(3)[s], constant=0.0)
        for s in rival
    ]
    for tree in trees:
        tree.run(max_nodes=5000)
    assert all(tree.proved for tree in trees)
    assert max(tree.nodes for tree in trees) > 1


def test_a_tree_is_never_proved_where_the_function_reaches_zero():
    net, X, y = case(seed=0, n=1)
    exact = rm.certify(net, X, y, np.inf, None, "search")
    rival = int(net.logits(exact.adversarial).argmax())
    tree = tree_of(net, X[0], float(exact.upper[0]), np.eye(3)[y[0]] - np.eye(3)[rival])
    tree.run(max_nodes=2000)
    assert not tree.proved


def test_a_counterexample_ends_a_tree():
    net, X, y = case(seed=0, n=1)
    seen = []

    def check(points):
        seen.append(points)
        return len(seen) > 1

    tree = tree_of(net, X[0], 5.0, np.eye(3)[y[0]] - np.eye(3)[(y[0] + 1) % 3], check)
    tree.run()
    assert (tree.refuted, tree.done, tree.proved, len(seen)) == (True, True, False, 2)


def test_leaves_are_proved_by_cuts(monkeypatch):
    """Without gradient steps, nodes end without an unstable unit and an unproved bound."""
    monkeypatch.setattr(_tree, "SMALL_NODE_STEPS", 0)
    net, X, y = case(seed=0, n=1, sizes=(3, 5, 2))
    exact = rm.certify(net, X, y, np.inf, method="search")
    assert exact.exact.all()
    limits = (np.zeros(3), np.ones(3))
    decision = bab.decide(net, X[0], int(y[0]), np.inf, 0.9999 * exact.upper[0], limits)
    assert decision.robust


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_a_tree_leaves_the_bounds_of_others_alone(p):
    """The half-space of one function's counterexamples says nothing about those of another."""
    net = rm.Network.mlp([3, 10, 8, 2], rng=2)
    X, radius = np.random.default_rng(0).uniform(size=(1, 3)), np.full(1, 0.4)
    box = np.zeros(3), np.ones(3)
    place = _place.place(net, ball(X, radius, p, box))
    start = _place.start(place, layer_bounds(net, X, p, radius, box, "crown")[:-1])
    before = [(lower.copy(), upper.copy()) for lower, upper in start.bounds]
    for row in ([1.0, -1.0], [-1.0, 1.0], [1.0, 0.0], [0.0, -1.0]):
        _tree.Tree(start, np.array(row), lambda points: False, -0.05).run(max_nodes=20)
    for (lower, upper), (low, high) in zip(start.bounds, before, strict=True):
        np.testing.assert_array_equal(lower, low)
        np.testing.assert_array_equal(upper, high)


@pytest.mark.parametrize("p", NORMS)
def test_an_affine_network_is_decided_next_to_its_boundary(p):
    net = rm.Network([rm.Linear([[1.0, 0.3], [0.2, 1.0]], [0, 0.1])], 2)
    w, value = np.array([0.8, -0.7]), 0.8 * 0.75 - 0.7 * 0.25 - 0.1
    radius = value / {1: 0.8, 2: np.linalg.norm(w), np.inf: 1.5}[p]
    for share, status in ((1 - 1e-9, "robust"), (1 + 1e-9, "adversarial")):
        found = rm.certify(net, [[0.75, 0.25]], [0], p, method="bab", eps=share * radius)
        assert found.status[0] == status


def test_balls_beyond_the_range_of_float32():
    net = rm.Network([rm.Linear([[1.0, 1.0]], [0]), rm.Linear([[1.0], [0.0]], [1, 0])], 2)
    for eps in (1e20, 1e300, 1.5e308):
        for box in ((0, 1), None):
            found = rm.certify(net, [[0.2, 0.5]], [0], np.inf, box, method="bab", eps=eps)
            assert not np.isfinite(found.upper[0])
            assert box is None or found.robust[0]


def test_no_unit_is_bounded_after_the_deadline():
    net, X, y = case(seed=1, n=1)
    around = ball(X, np.full(1, 0.5), np.inf, None)
    bounds = layer_bounds(net, X, np.inf, around.radius, None, "crown")[:-1]
    with pytest.raises(_place.OutOfTimeError):
        _place.start(_place.place(net, around, time.monotonic()), bounds)
    decision = bab.decide(net, X[0], int(y[0]), np.inf, 0.5, None, deadline=time.monotonic())
    assert not decision.robust
    assert decision.adversarial is None


def test_no_stable_unit_is_split_where_floats_overflow(monkeypatch):
    net, X, y = case(seed=1, n=1, sizes=(5, 16, 16, 3))
    tree = tree_of(net, X[0], 0.3, np.eye(3)[y[0]] - np.eye(3)[(y[0] + 1) % 3], constant=-5.0)
    assert tree._queue
    assert all(part.base is None for node in tree._queue for part in node)  # no view of a batch
    nodes, _, scores, _ = tree._pop()
    scores[:] = -1
    scores[0, 20] = 0.5
    bound = _tree._kernels.bound

    def overflow(*arguments):
        linear = bound(*arguments)
        return linear._replace(constant=np.full_like(linear.constant, np.nan))

    monkeypatch.setattr(_tree._kernels, "bound", overflow)
    np.testing.assert_array_equal(tree._choose(nodes, scores), 20)


def leaf_of_an_example(share):
    """The leaf of an image's nearest example, on a ball with a share of its distance as radius."""
    rng = np.random.default_rng(0)
    layers = [
        rm.Conv2d(rng.normal(size=(2, 1, 2, 2)), np.zeros(2), padding=1),
        rm.Flatten(),
        rm.Linear(rng.normal(size=(2, 18)), [0.0, 0.0]),
    ]
    net = rm.Network(layers, (1, 2, 2))
    x = rng.uniform(0.3, 0.7, (1, 1, 2, 2))
    y = int(net.logits(x).argmax())
    exact = rm.certify(net, x, [y], np.inf, method="search")
    eps = share * float(exact.upper[0])
    limits = np.zeros((1, 2, 2)), np.ones((1, 2, 2))
    place = _place.place(net, ball(x, np.full(1, eps), np.inf, limits))
    signs = np.where(net.activation_pattern(exact.adversarial)[0], 1, -1).astype(np.int8)
    found = BallExamples(place, x[0], y, np.inf, eps, limits)
    return SimpleNamespace(stuck=[signs], given_up=False), found, 1 - y


@pytest.mark.parametrize(
    ("seed", "method", "efforts"),
    [
        (9, "bab", [methods.BRIEF]),
        (9, "search", [methods.WHOLE]),
        (3, "bab", [methods.BRIEF, methods.WHOLE]),  # all units are inactive at this point
    ],
)
def test_minimal_perturbations_begin_with_an_attack(monkeypatch, seed, method, efforts):
    net, x = rm.Network.mlp([2, 6, 3], rng=seed), [[0.4, 0.6]]
    real, seen = _minimal_attack.minimal_attack, []

    def attack(net, X, y, p, box, steps, restarts, rng, deadline):
        seen.append((steps, restarts))
        return real(net, X, y, p, box, steps, restarts, rng, deadline)

    monkeypatch.setattr(_minimal_attack, "minimal_attack", attack)
    found = rm.certify(net, x, None, 2, method=method)
    assert seen == efforts
    assert np.isfinite(found.upper).all()


def test_descents_start_from_points_of_nodes():
    _, examples, _ = leaf_of_an_example(1.1)
    exact = rm.certify(
        examples.place.net, examples.x[None], [examples.y], np.inf, method="search"
    ).adversarial
    near = examples.x + 0.8 * (exact - examples.x)
    points = np.repeat(near, FROM_NODES, axis=0).reshape(FROM_NODES, -1)
    assert not examples.among(points)
    assert not examples(points[1:])  # so few are the points of roots
    assert examples(points)
    assert examples.place.net.logits(examples.found[None]).argmax() != examples.y
    assert np.abs(examples.found - examples.x).max() <= examples.eps


def test_an_example_in_a_leaf_is_an_image_of_the_ball():
    tree, examples, target = leaf_of_an_example(1.01)
    bab._prove_leaves(tree, examples, target)
    assert tree.stuck
    assert examples.found.shape == (1, 2, 2)
    assert np.abs(examples.found - examples.x).max() <= examples.eps


def test_a_leaf_is_taken_off_once_it_is_proved():
    tree, examples, target = leaf_of_an_example(0.999)
    bab._prove_leaves(tree, examples, target)
    assert (tree.stuck, tree.given_up, examples.found) == ([], False, None)


def fixed_coordinates(seed, i):
    """Point i of a random network, a box with some fixed coordinates, and units of coordinates."""
    rng = np.random.default_rng(seed)
    d, k, n = int(rng.integers(2, 7)), int(rng.integers(2, 4)), 3
    net = rm.Network.mlp([d, *rng.integers(2, 8, rng.integers(1, 3)).tolist(), k], rng=seed)
    if seed % 2:  # without biases, logits are all 0 in whole regions
        net = net.with_parameters([(W, rng.normal(0, 0.3, len(b))) for W, b in net.parameters])
    X = rng.uniform(-1, 1, (n, d))
    lo, hi = X - rng.uniform(0, 1.5, (n, d)), X + rng.uniform(0, 1.5, (n, d))
    fixed = rng.random((n, d)) < 0.35
    lo[fixed] = hi[fixed] = X[fixed]
    rng.random()
    scale = np.exp(rng.normal(size=d)) if rng.random() < 0.6 else None
    return net, X[[i]], net.predict(X[[i]]), (lo[i], hi[i]), scale


@pytest.mark.parametrize(
    ("seed", "p", "most"),
    [
        (4, 2, 4),  # projections of x bring an example nearer by a millionth, again and again
        (15, 1, 4),  # regions meet at the nearest example: a step beyond it ends at no example
    ],
)
def test_few_balls_are_enough(monkeypatch, seed, p, most):
    net, X, y, box, scale = fixed_coordinates(seed, 0)
    balls, decide = [], bab.decide

    def count(*args, **kwargs):
        balls.append(args[4])
        return decide(*args, **kwargs)

    monkeypatch.setattr(bab, "decide", count)
    assert rm.certify(net, X, y, p, box, "bab", scale=scale).exact
    assert len(balls) <= most


def test_the_lower_bound_is_the_distance_of_a_tie():
    """Logits are equal in a whole region, and an example is behind it."""
    net, X, y, box, scale = fixed_coordinates(2, 2)
    exact = rm.certify(net, X, y, np.inf, box, "search", scale=scale)
    found = rm.certify(net, X, y, np.inf, box, "bab", scale=scale)
    np.testing.assert_allclose(found.lower, exact.lower, rtol=1e-6)
    assert np.isfinite(found.upper)
    assert not found.exact


def test_only_so_many_leaves_are_bounded(monkeypatch):
    """A ball with more of them at a tie is left open, and smaller ones are proved."""
    monkeypatch.setattr(bab, "MAX_UNPROVED", 1)
    net, X, y, box, scale = fixed_coordinates(2, 2)
    exact = rm.certify(net, X, y, np.inf, box, "search", scale=scale)
    found = rm.certify(net, X, y, np.inf, box, "bab", scale=scale)
    assert 0 < found.lower <= exact.lower * (1 + 1e-9)
    assert np.isfinite(found.upper)
