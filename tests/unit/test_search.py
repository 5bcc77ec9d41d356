"""The search through linear regions: values by hand, budgets, goals."""

import numpy as np
import pytest
from helpers import RADII_OF_SIMPLE, SIMPLE, network

import refmmr as rm
from refmmr.certify.bounds import region
from refmmr.certify.bounds.search import point_searches, search, search_bounds

NORMS = [1, 2, np.inf]


def as_box(lo, hi, d=2):
    """A box as the method takes it."""
    return np.broadcast_to(lo, d).astype(float), np.broadcast_to(hi, d).astype(float)


def exact(result, radius):
    """Both bounds are a radius."""
    lower, upper, _ = result.bounds
    np.testing.assert_allclose(lower, radius, rtol=1e-6)
    np.testing.assert_allclose(upper, radius, rtol=1e-6)
    assert (lower <= upper).all()


@pytest.mark.parametrize(("p", "box", "radius"), RADII_OF_SIMPLE)
def test_first_region(p, box, radius):
    box = None if box is None else as_box(*box)
    result = search(SIMPLE, np.array([[1.0, 0.5]]), np.array([0]), p, box)
    exact(result, radius)
    assert result.regions == 1
    assert SIMPLE.predict(result.bounds.adversarial) == 1


# f = (max(u - 0.5, 0), max(v, 0)): class 0 wins where v > 0.25.
NEARER_HYPERPLANE = network(([[1, 0], [0, 1]], [-0.5, 0]), ([[0, 1], [0, 0]], [0, 0.25]))


@pytest.mark.parametrize("box", [None, as_box(0, 1)])
@pytest.mark.parametrize("p", NORMS)
def test_hyperplane_nearer_than_the_decision_boundary(p, box):
    exact(search(NEARER_HYPERPLANE, np.array([[0.6, 0.75]]), np.array([0]), p, box), 0.5)


# |u - 0.5| + 0.1 against 0.4 (class 1 wins from u = 0.2 down, and from 0.8 up).
VALLEY = network(([[1], [-1]], [-0.5, 0.5]), ([[0, 0], [1, 1]], [0.4, 0.1]))


@pytest.mark.parametrize("p", NORMS)
def test_beyond_a_hyperplane(p):
    """From 0.55 the nearer end of the valley is 0.8, in the same region; from 0.45 it is 0.2."""
    X = np.array([[0.55], [0.45], [0.75]])
    result = search(VALLEY, X, np.zeros(3, int), p, as_box(0, 1, 1))
    exact(result, [0.25, 0.25, 0.05])
    # The upper end is outside the box: the lower one lies beyond the hyperplane at 0.5.
    result = search(VALLEY, X, np.zeros(3, int), p, as_box(0, 0.75, 1))
    exact(result, [0.35, 0.25, 0.55])
    # Both units have the same hyperplane: two patterns are regions, two are as thin as it.
    np.testing.assert_array_equal(result.regions, 4)


@pytest.mark.parametrize("p", NORMS)
def test_no_example_in_the_box(p):
    """Neither end of the valley is in the box."""
    result = search(VALLEY, np.array([[0.55]]), np.array([0]), p, as_box(0.25, 0.75, 1))
    assert result.bounds.lower == result.bounds.upper == np.inf
    assert np.isnan(result.bounds.adversarial).all()
    assert result.regions == 4


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("box", [None, as_box(0, 1)])
def test_no_hidden_layer(p, box):
    net = network(([[1, 0], [0, 1], [0, 0]], [0, 0, -9]))
    radius = {1: 0.5, 2: 0.5 / np.sqrt(2), np.inf: 0.25}[p]
    exact(search(net, np.array([[0.75, 0.25]]), np.array([0]), p, box), radius)


@pytest.mark.parametrize("p", NORMS)
def test_misclassified_and_ties(p):
    X = np.array([[0.9, 0.5], [0.1, 0.1]])
    lower, upper, adversarial = search_bounds(SIMPLE, X, np.array([1, 0]), p, as_box(-1, 1))
    np.testing.assert_array_equal(lower, 0)
    np.testing.assert_array_equal(upper, 0)
    np.testing.assert_array_equal(adversarial, X)
    net = network(([[1, 0], [1, 0]], [0, 0]))
    lower, upper, _ = search_bounds(net, X, np.array([0, 0]), p, None)
    np.testing.assert_array_equal(lower, 0)
    np.testing.assert_array_equal(upper, np.inf)


@pytest.mark.parametrize("p", NORMS)
def test_a_tie_where_all_units_meet_ends_the_search(p):
    """Without biases all logits are 0 at the origin, a corner of the box: 2^20 patterns meet."""
    net = rm.Network.mlp([3, 10, 10, 2], rng=0)
    x = np.array([[0.3, 0.3, 0.3]])
    (state,) = point_searches(net, x, net.predict(x), p, as_box(0, 1, 3))
    state.run(max_regions=1000)
    assert state.done
    assert np.isinf(state.upper)  # a tie is no example
    np.testing.assert_allclose(state.lower, np.linalg.norm(x[0], p), rtol=1e-6)
    assert state.lower <= np.linalg.norm(x[0], p)


@pytest.mark.parametrize("p", NORMS)
def test_point_on_hyperplanes(p):
    """At the origin all three units are 0: no pattern is certain, all are visited."""
    net = network(([[1, 0], [0, 1], [1, 1]], [0, 0, 0]), ([[1, 1, 1], [0, 0, 0]], [0, 0.75]))
    result = search(net, np.zeros((1, 2)), np.array([1]), p, as_box(-1, 1))
    # The first class wins where u + v + (u + v) > 0.75, or u + (u + v) > 0.75 with v < 0, ...
    exact(result, {1: 0.375, 2: np.sqrt(2) * 0.1875, np.inf: 0.1875}[p])


@pytest.mark.parametrize("constant", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("p", NORMS)
def test_units_without_a_hyperplane(p, constant):
    net = network(([[3, 4], [0, 0]], [0, constant]), ([[1, 0], [0, 0]], [0, 1]))
    result = search(net, np.array([[1.0, 0.5]]), np.array([0]), p, None)
    exact(result, {1: 1, 2: 0.8, np.inf: 4 / 7}[p])
    assert result.regions == 1


def test_vertex():
    """Where the nearest point is the vertex of a region, it is found in all norms.

    Class 1 wins where max(u, 0) + max(v, 0) > 2, from (0.5, 0) in the box [-1, 1.25]^2: the
    boundary is the segment from (1.25, 0.75) to (0.75, 1.25).
    """
    net = network(([[1, 0], [0, 1]], [0, 0]), ([[0, 0], [1, 1]], [2, 0]))
    for p, radius in ((1, 1.5), (2, 1.5 / np.sqrt(2)), (np.inf, 0.75)):
        exact(search(net, np.array([[0.5, 0.0]]), np.array([0]), p, as_box(-1, 1.25)), radius)


@pytest.fixture(scope="module")
def task():
    """A network on the plane whose search takes some regions."""
    rng = np.random.default_rng(0)
    net = rm.Network.mlp([2, 12, 12, 3], rng=1)
    net = net.with_parameters([(W, rng.normal(size=b.shape) / 3) for W, b in net.parameters])
    X = rng.uniform(-1, 1, (4, 2))
    return net, X, net.predict(X), as_box(-1, 1)


@pytest.fixture(scope="module", params=NORMS)
def p(request):
    """The norm; in a module's scope, so that one search serves all tests of the task."""
    return request.param


@pytest.fixture(scope="module")
def whole(task, p):
    """The search of the task without a budget."""
    net, X, y, box = task
    return search(net, X, y, p, box)


def test_against_enumeration(task, whole, p):
    net, X, _, box = task
    exact(whole, rm.enumerate_regions(net, rm.Box(*box)).boundary_distance(X, p).distance)
    assert whole.regions.max() > 3


def test_budget_of_regions(task, whole, p):
    net, X, y, box = task
    lower, upper = np.zeros(len(X)), np.full(len(X), np.inf)
    for budget in (0, 1, 4, 100):
        result = search(net, X, y, p, box, max_regions=budget)
        assert (result.regions <= budget).all()
        assert (result.bounds.lower >= lower).all()
        assert (result.bounds.upper <= upper).all()
        lower, upper, _ = result.bounds
    np.testing.assert_array_equal(lower, whole.bounds.lower)
    np.testing.assert_array_equal(upper, whole.bounds.upper)
    assert (region.region_bounds(net, X, y, p, box).lower <= lower * (1 + 1e-9)).all()


def test_budget_of_seconds(task):
    net, X, y, box = task
    result = search(net, X, y, 2, box, max_seconds=0)
    np.testing.assert_array_equal(result.regions, 0)
    np.testing.assert_array_equal(result.bounds.lower, 0)


def test_goal(task, whole, p):
    net, X, y, box = task
    radius = whole.bounds.lower
    low, high = (search(net, X, y, p, box, goal=radius * share) for share in (0.9, 1.1))
    assert (low.bounds.lower >= 0.9 * radius).all()
    assert (high.bounds.upper < 1.1 * radius).all()
    assert (high.bounds.lower <= radius * (1 + 1e-9)).all()


def test_known_examples_save_work(task, whole, p):
    net, X, y, box = task
    again = search(net, X, y, p, box, upper=whole.bounds.upper,
                   adversarial=whole.bounds.adversarial)  # fmt: skip
    # Subproblems may end the search a little earlier or later.
    assert again.regions.sum() <= whole.regions.sum() + len(X)
    exact(again, whole.bounds.upper)
    np.testing.assert_array_equal(again.bounds.adversarial, whole.bounds.adversarial)


def test_interrupted(task):
    """What was found before is kept, and the search can go on."""
    net, X, y, box = task
    expected = search(net, X, y, 2, box).bounds

    def interrupt(state):
        raise KeyboardInterrupt

    for i, state in enumerate(point_searches(net, X, y, 2, box)):
        with pytest.raises(KeyboardInterrupt):
            state.run(on_region=interrupt)
        assert state.regions == 1
        assert state.lower <= expected.lower[i] <= state.upper
        state.run()
        assert state.lower == expected.lower[i]


def test_told_of_each_region(task):
    net, X, y, box = task
    told = []
    result = search(net, X, y, 2, box, on_region=lambda i, state: told.append((i, state.regions)))
    assert told == [(i, k + 1) for i, regions in enumerate(result.regions) for k in range(regions)]


@pytest.mark.parametrize("p", NORMS)
def test_convolutional(p):
    net = rm.Network.lenet_small((1, 4, 4), 3, rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (2, 1, 4, 4))
    y = net.predict(X)
    box = np.zeros((1, 4, 4)), np.ones((1, 4, 4))
    result = search(net, X, y, p, box, max_regions=10)
    lower, upper, adversarial = result.bounds
    first = region.region_bounds(net, X, y, p, box)
    assert (lower >= first.lower * (1 - 1e-9)).all()
    assert (lower <= upper).all()
    assert adversarial.shape == X.shape


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e150, 1e300])
@pytest.mark.parametrize("p", NORMS)
def test_absurd_weights(p, scale):
    """What overflows or vanishes is not certified; nothing breaks."""
    net = network(([[3 * scale, 4 * scale], [0, 0]], [0, scale]))
    radius = search(
        network(([[3, 4], [0, 0]], [0, 1])), np.array([[0.7, 0.5]]), np.array([0]), p, None
    ).bounds
    lower, upper, _ = search_bounds(net, np.array([[0.7, 0.5]]), np.array([0]), p, None)
    assert 0 <= lower <= radius.upper
    assert upper >= radius.lower


def test_hyperplanes_that_no_solver_takes():
    """Gradients and values differ by more than 1e20, which HiGHS takes for infinite."""
    net = rm.Network(
        [
            rm.Linear([[0.4], [0.7]], [0.6, 0.6]),
            rm.Linear([[4e-9, -3e6], [8e-4, 8e-6]], [1e37, 8e38]),
            rm.Linear([[4e-117, 0], [3e-115, 2e-115], [0, -7e-106]], [-2e-110, -4e-111, -3e-111]),
        ],
        1,
    )
    x = np.array([[0.5]])
    for p in (1, np.inf):
        found = rm.certify(net, x, net.predict(x), p=p, box=None, method="search", max_regions=60)
        assert 0 < found.lower[0] <= found.upper[0]
