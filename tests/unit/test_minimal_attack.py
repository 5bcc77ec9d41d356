"""The minimal-norm attack on networks whose nearest adversarial examples are known."""

import numpy as np
import pytest
from helpers import RADII_OF_SIMPLE, SIMPLE, network

import refmmr as rm
from refmmr._examples import surely_misclassified
from refmmr._kernels import margin_gradients
from refmmr.attacks import minimal_attack

NORMS = [1, 2, np.inf]


@pytest.mark.parametrize(("p", "box", "radius"), RADII_OF_SIMPLE)
def test_by_hand(p, box, radius):
    X = np.array([[1.0, 0.5]])
    Z, distances = minimal_attack(SIMPLE, X, [0], p, box=box)
    assert radius <= distances[0] <= radius * (1 + 1e-6)
    assert SIMPLE.predict(Z) == 1
    length = np.linalg.norm((Z - X)[0], p)
    assert length <= distances[0] <= length * (1 + 1e-12)


@pytest.mark.parametrize("p", NORMS)
def test_beyond_a_fold(p):
    """Class 1 where |x| > 1 and x > 0 counts double: the gradient at -0.1 leads away from it."""
    net = network(([[1], [-1]], [0, 0]), ([[0, 0], [2, 1]], [1, 0]))
    Z, distances = minimal_attack(net, [[-0.1]], [0], p, box=None)
    np.testing.assert_allclose(distances, 0.6, rtol=1e-6)
    np.testing.assert_allclose(Z, [[0.5]], rtol=1e-6)


def test_nothing_to_find():
    """One class in the whole box: NaN and infinity, for that sample and no other."""
    net = network(([[1.0]], [0.0]), ([[1.0], [0.0]], [0.0, 0.5]))  # class 0 for x > 1/2
    Z, distances = minimal_attack(net, [[0.75], [0.9]], [0, 0], 2, box=(0.6, 1))
    assert np.isnan(Z).all()
    assert (distances == np.inf).all()
    constant = network(([[0.0]], [1.0]), ([[0.0], [0.0]], [1.0, 0.0]))
    for box in (None, (0, 1)):
        Z, distances = minimal_attack(constant, [[0.5]], [0], 1, box=box)
        assert np.isnan(Z).all()
        assert distances == np.inf


def test_misclassified_points_are_their_own_example():
    X = np.array([[0.1, 0.1], [1.0, 0.5]])
    Z, distances = minimal_attack(SIMPLE, X, [0, 0], 2)
    np.testing.assert_array_equal(Z[0], X[0])
    assert distances[0] == 0 < distances[1]


@pytest.mark.parametrize("p", NORMS)
def test_nearly_exact_in_the_plane(p):
    """The exact distances come from an enumeration of all linear regions of the box."""
    rng = np.random.default_rng(0)
    net = rm.Network.mlp([2, 8, 8, 3], rng=rng)
    net = net.with_parameters(
        [(W, b + 0.3 * rng.standard_normal(b.shape)) for W, b in net.parameters]
    )
    X = rng.uniform(-1, 1, (60, 2))
    exact = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1])).boundary_distance(X, p).distance
    Z, distances = minimal_attack(net, X, net.predict(X), p, box=(-1, 1))
    assert np.isfinite(exact).all()
    assert (distances >= exact * (1 - 1e-9)).all()
    assert (distances <= exact * 1.01).mean() > 0.9
    assert surely_misclassified(net, Z, net.predict(X)).all()


@pytest.mark.parametrize("p", NORMS)
def test_nearer_than_pgd(p):
    """In no ball that is a twentieth smaller does PGD find anything."""
    net = rm.Network.lenet_small((1, 8, 8), 4, rng=0)
    X = np.random.default_rng(1).uniform(0, 1, (6, 1, 8, 8))
    y = net.predict(X)
    Z, distances = minimal_attack(net, X, y, p)
    assert np.isfinite(distances).all()
    assert ((Z >= 0) & (Z <= 1)).all()
    for x, label, distance in zip(X, y, distances, strict=True):
        found = rm.pgd(net, x[None], [label], p, eps=0.95 * distance, steps=60)
        assert net.predict(found) == label


def test_margin_gradients_are_those_of_the_linear_region():
    net = rm.Network.lenet_small((2, 6, 6), 3, rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (4, 2, 6, 6))
    y, rivals = np.array([0, 1, 2, 1]), np.array([[1, 2], [0, 2], [0, 1], [2, 0]])
    logits, w = margin_gradients(net, X, y, rivals)
    np.testing.assert_allclose(logits, net(X))
    for i in range(4):
        V = rm.linear_region(net, X[i]).V[-1].reshape(3, -1)
        np.testing.assert_allclose(w[i], V[y[i]] - V[rivals[i]], rtol=1e-9, atol=1e-12)


def test_seeds_and_float32():
    net, X = rm.Network.mlp([5, 20, 3], rng=0), np.random.default_rng(0).uniform(0, 1, (5, 5))
    y = net.predict(X)
    first, again = (minimal_attack(net, X, y, 2, rng=3, restarts=3) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])
    few = minimal_attack(net, X, y, 2, rng=3, restarts=1)
    assert (first[1] <= few[1]).all()
    Z, distances = minimal_attack(net.astype(np.float32), X.astype(np.float32), y, 2)
    assert Z.dtype == distances.dtype == np.float64


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"X": [[0.5]]}, ValueError, r"X: expected shape \(n, 2\)"),
        ({"X": [[2.0, 0.5]]}, ValueError, "X: expected points inside the box"),
        ({"y": [2]}, ValueError, "y: expected classes 0 to 1"),
        ({"p": 3}, ValueError, "p: expected 1, 2 or inf, got 3"),
        ({"steps": 0}, ValueError, "steps: expected an integer of at least 1, got 0"),
        ({"restarts": 1.5}, TypeError, "restarts: expected an integer of at least 1"),
        ({"rng": "seed"}, TypeError, "rng: expected a seed"),
        ({"box": 1}, ValueError, "box: expected None or a pair"),
    ],
)
def test_bad_arguments(change, error, message):
    given = {"X": [[1.0, 0.5]], "y": [0], "p": 2} | change
    with pytest.raises(error, match=message):
        minimal_attack(SIMPLE, **given)
