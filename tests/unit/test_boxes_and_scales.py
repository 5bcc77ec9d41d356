"""What may change: fixed coordinates, a box for each point, a unit for each coordinate."""

import re
from fractions import Fraction

import numpy as np
import oracle
import pytest

import refmmr as rm
from refmmr import _scaling
from refmmr.certify import METHODS

NORMS = [1, 2, np.inf]
CHEAP = ("region", "ibp", "fast-lin", "crown")


def network(sizes, seed):
    """A network with weights and biases of one size."""
    net, rng = rm.Network.mlp(sizes, rng=seed), np.random.default_rng(seed)
    return net.with_parameters([(W, rng.normal(0, 0.3, len(b))) for W, b in net.parameters])


def methods(p):
    return [name for name, method in METHODS.items() if p in method.norms and name != "kw"]


@pytest.mark.parametrize("p", NORMS)
def test_fixed_coordinates_are_constants(p):
    """A network of three inputs, of which one is fixed, is one of two inputs."""
    net = network([3, 5, 2], 3)
    (W, b), *others = net.parameters
    folded = rm.Network([rm.Linear(W[:, :2], b + W[:, 2] * 0.5), rm.Linear(*others[0])], 2)
    X = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2))
    whole = np.column_stack([X, np.full(len(X), 0.5)])
    y = net.predict(whole)
    for method in methods(p):
        few = rm.certify(folded, X, y, p, ([-1, -1], [1, 1]), method, progress=False)
        all_ = rm.certify(net, whole, y, p, ([-1, -1, 0.5], [1, 1, 0.5]), method, progress=False)
        np.testing.assert_allclose(all_.lower, few.lower, rtol=2e-6, atol=1e-9, err_msg=method)
        np.testing.assert_allclose(all_.upper, few.upper, rtol=2e-6, atol=1e-9, err_msg=method)
        found = np.isfinite(all_.upper)
        assert (all_.adversarial[found, 2] == 0.5).all()


@pytest.mark.parametrize("p", NORMS)
def test_all_coordinates_are_fixed(p):
    net = network([2, 5, 2], 0)
    X = np.array([[0.25, 0.5]])
    for method in methods(p):
        found = rm.certify(net, X, net.predict(X), p, (X[0], X[0]), method, progress=False)
        assert np.isinf(found.lower).all(), method
        assert np.isinf(found.upper).all(), method
        wrong = rm.certify(net, X, 1 - net.predict(X), p, (X[0], X[0]), method, progress=False)
        assert wrong.upper == 0


@pytest.mark.parametrize("p", NORMS)
def test_a_box_for_each_point(p):
    net = network([2, 5, 3], 1)
    X = np.random.default_rng(0).uniform(-0.5, 0.5, (3, 2))
    X[2] = X[0]
    y = net.predict(X)
    boxes = X - np.array([[0.5, 1], [0, 2], [0.5, 1]]), X + np.array([[0.25, 0], [1, 1], [0.25, 0]])
    for method in ("region", "crown", "search"):
        together = rm.certify(net, X, y, p, boxes, method, progress=False)
        for i in range(3):
            box = boxes[0][i], boxes[1][i]
            alone = rm.certify(net, X[[i]], y[[i]], p, box, method, progress=False)
            np.testing.assert_allclose(together.lower[i], alone.lower[0], rtol=2e-6)
            np.testing.assert_allclose(together.upper[i], alone.upper[0], rtol=2e-6)
    found = rm.minimal_perturbations(net, X, y, p, box=boxes, methods=["attack", "search"])
    np.testing.assert_allclose(found.lower, together.lower, rtol=2e-6)
    robust = rm.robust_error(net, X, y, p, eps=0.2, box=boxes, methods=["crown", "attack"])
    assert (robust.certified <= (found.lower > 0.2)).all()
    assert (robust.attacked <= (found.upper <= 0.2)).all()


@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("seed", range(3))
def test_scaled_distances_against_exact_arithmetic(p, boxed, seed):
    """Products of weights and scale fit into a float, so that the oracle knows the network too."""
    rng = np.random.default_rng(seed)
    net = rm.Network.mlp([2, 4, 2], rng=seed)
    net = net.with_parameters(
        [(W.astype(np.float32), rng.normal(size=len(b)).astype(np.float32))
         for W, b in net.parameters]
    ).astype(np.float64)  # fmt: skip
    scale = rng.uniform(0.1, 9, 2).astype(np.float32).astype(float)
    U = rng.integers(-16, 17, (2, 2)) / 16
    ends = (np.full(2, -1.25), np.full(2, 1.0)) if boxed else None
    box = None if ends is None else (ends[0] * scale, ends[1] * scale)
    X = U * scale
    y = net.predict(X)
    scaled = _scaling.scaled_network(net, scale)
    truth = [oracle.minimal_perturbation_squares(scaled, u, int(c), ends)[p]
             for u, c in zip(U, y, strict=True)]  # fmt: skip
    names = (*CHEAP, "search", *("lp", "mip")[: 2 * (p == np.inf and seed == 0)])
    for method in names:
        found = rm.certify(net, X, y, p, box, method, scale=scale, progress=False)
        for lower, upper, exact in zip(found.lower, found.upper, truth, strict=True):
            if exact is None:
                assert np.isinf(upper)
                continue
            assert np.isfinite(lower)
            assert Fraction(float(lower)) ** 2 <= exact
            assert np.isinf(upper) or exact <= Fraction(float(upper)) ** 2
            if method in ("search", "mip"):
                assert upper <= lower * (1 + 2e-6)
        if method not in CHEAP:
            continue
        eps = np.where(np.isfinite(found.lower) & (found.lower > 0), found.lower, 1) * 0.75
        decided = rm.certify(net, X, y, p, box, method, eps=eps, scale=scale, progress=False)
        assert ((found.lower == 0) | (decided.lower > eps)).all()


@pytest.mark.parametrize("p", NORMS)
def test_what_is_rounded_is_subtracted(p):
    """``f_0 - f_1 = w x + b`` with a margin of a few roundings of its terms."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        w, x, s = rng.normal(size=3) * 10.0 ** rng.integers(-3, 4, 3)
        s = abs(s)
        b = -w * x + rng.normal() * abs(w * x) * 10.0 ** rng.integers(-17, -13)
        exact = Fraction(w) * Fraction(x) + Fraction(b)
        net = rm.Network([rm.Linear([[w], [0]], [b, 0])], 1)
        y = [0 if exact >= 0 else 1]
        radius = abs(exact) / (abs(Fraction(w)) * Fraction(s))
        far = 2 * abs(x) + 1
        for box in (None, (-far, far)):
            for method in ("region", "crown"):
                found = rm.certify(net, [[x]], y, p, box, method, scale=s, progress=False)
                assert Fraction(found.lower[0]) <= radius
                goal = float(radius) * (1 + 1e-15)
                if goal > 0:
                    found = rm.certify(
                        net, [[x]], y, p, box, method, scale=s, eps=goal, progress=False
                    )
                    assert not (found.robust[0] and Fraction(goal) >= radius)


@pytest.mark.parametrize("box", [(-1, 1), None, "own"])
def test_pipeline_in_units(box, tmp_path):
    net = network([2, 4, 2], 2)
    rng = np.random.default_rng(5)
    X = rng.uniform(-1, 1, (4, 2))
    y = net.predict(X)
    y[0] = 1 - y[0]
    if box == "own":
        box = X - np.array([0.25, 0]), X + np.array([0.5, 0])
    scale = [0.3, 1.7]
    names = ["attack", "crown", "search"]
    found = rm.minimal_perturbations(net, X, y, np.inf, box=box, scale=scale, methods=names)
    assert found.lower[0] == found.upper[0] == 0
    some = np.isfinite(found.upper)
    assert (found.upper[some] <= found.lower[some] * (1 + 2e-6)).all()
    Z = found.certificates.adversarial
    away = np.abs((Z - X) / scale).max(axis=1)
    np.testing.assert_allclose(away[some], found.upper[some], rtol=1e-9)
    if box is not None:
        inside = (box[0] <= Z) & (box[1] >= Z)
        assert inside[some].all()
    out = tmp_path / "records.jsonl"
    eps = 0.3
    robust = rm.robust_error(net, X, y, np.inf, eps=eps, box=box, scale=scale, methods=names,
                             out=out)  # fmt: skip
    np.testing.assert_array_equal(robust.certified, found.lower > eps)
    with pytest.raises(ValueError, match="out:"):
        rm.robust_error(net, X, y, np.inf, eps=eps, box=box, methods=names, out=out)


@pytest.mark.parametrize("p", NORMS)
def test_attacks_in_units(p):
    rng = np.random.default_rng(0)
    net = rm.Network.mlp([4, 16, 3], rng=0)
    X = rng.uniform(0, 1, (6, 4))
    y = net.predict(X)
    scale = np.array([0.1, 1, 2, 0.5])
    boxes = np.zeros_like(X), np.ones_like(X)
    boxes[0][:, 1] = boxes[1][:, 1] = X[:, 1]
    for box in (None, (0, 1), boxes):
        Z = rm.pgd(net, X, y, p, eps=0.3, box=box, scale=scale, restarts=2)
        away = np.linalg.norm((Z - X) / scale, p, axis=1)
        assert (away <= 0.3 * (1 + 1e-9)).all()
        assert (net.predict(Z) != y).any()
        if box is not None:
            assert ((box[0] <= Z) & (box[1] >= Z)).all()
        near, distances = rm.minimal_attack(net, X, y, p, box=box, scale=scale)
        some = np.isfinite(distances)
        away = np.linalg.norm((near - X) / scale, p, axis=1)
        np.testing.assert_allclose(away[some], distances[some], rtol=1e-9)
        assert (net.predict(near[some]) != y[some]).all()
        # An attack that minimises the distance is no worse.
        beaten = (net.predict(Z) != y) & ~(distances <= 0.3)
        assert beaten.mean() <= 0.1
    assert (Z[:, 1] == X[:, 1]).all()


def test_a_unit_for_each_channel():
    net = rm.Network(
        [rm.Conv2d(np.ones((1, 2, 2, 2)), [0]), rm.Flatten(), rm.Linear([[1], [0]], [0, 0.1])],
        (2, 2, 2),
    )
    X = np.full((1, 2, 2, 2), 0.5)
    scale = np.array([0.5, 2.0]).reshape(2, 1, 1)
    found = rm.certify(net, X, [0], np.inf, None, scale=scale)
    # The sum of eight pixels falls from 4 to 0.1, by r (4 * 0.5 + 4 * 2).
    np.testing.assert_allclose(found.lower, 0.39, rtol=1e-9)
    with pytest.raises(ValueError, match="scale: expected one number for each channel"):
        rm.certify(net, X, [0], np.inf, None, scale=np.arange(1.0, 9).reshape(2, 2, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": [1, 0]}, "scale: expected numbers > 0, got 0 at index (1,); for a coordinate"),
        ({"scale": [1, 2, 3]}, "scale: expected numbers of shape (2,)"),
        ({"scale": [1, np.nan]}, "scale: expected finite numbers"),
        ({"box": ([0, 1], [1, 0])}, "box: expected lo <= hi, got lo = 1, hi = 0 at index (1,)"),
        ({"box": (np.zeros((2, 2)), 1)}, "box: expected lo of shape (3, 2)"),
        ({"box": (np.ones((3, 2)), 2)}, "X: expected points inside the box, got sample 0"),
    ],
)
def test_errors(arguments, message):
    net = rm.Network.mlp([2, 3, 2], rng=0)
    X = np.full((3, 2), 0.5)
    for call in (
        lambda: rm.certify(net, X, [0, 0, 0], **arguments),
        lambda: rm.pgd(net, X, [0, 0, 0], eps=0.1, **arguments),
        lambda: rm.minimal_attack(net, X, [0, 0, 0], **arguments),
        lambda: rm.robust_error(net, X, [0, 0, 0], eps=0.1, **arguments),
    ):
        with pytest.raises(ValueError, match="^" + re.escape(message)):
            call()
