"""A certificate is a promise: checked in exact rational arithmetic, by sampling and by attack."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from helpers import region_errors
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import datasets, testing
from refmmr.certify.bounds import region
from refmmr.reference.distances import hyperplanes_around
from refmmr.testing import exact_network, fractions

NORMS = [1, 2, np.inf]


# ---- The oracle: the certificate of a region in fractions.  Distances are compared as squares,
# ---- because for p = 2 only those are rational; None is infinite.


def exact_hyperplanes(net, x, y):
    """Pairs (value at x, gradient) of all hyperplanes of the region of x, and the exact margins."""
    exact = exact_network(net)
    cache = exact.forward(fractions(x)[None])
    d = x.size
    basis = fractions(np.eye(d)).reshape(d, *net.input_shape)
    columns = exact.forward(basis, cache.masks, bias=False).outputs
    layers = [
        (f.reshape(-1), V.reshape(d, -1).T) for f, V in zip(cache.outputs, columns, strict=True)
    ]
    logits, V = layers.pop()
    hyperplanes = [hyperplane for f, rows in layers for hyperplane in zip(f, rows, strict=True)]
    margins = [(logits[y] - logits[s], V[y] - V[s]) for s in range(net.n_classes) if s != y]
    return hyperplanes, margins


def square_distance(value, w, x, box, p):
    """Square of the distance from x to ``value + <w, z - x> = 0`` within the box."""
    need, speed = abs(value), np.abs(w)
    if not speed.any():
        return None
    if box is None:
        dual = {1: max(speed) ** 2, 2: (speed * speed).sum(), np.inf: speed.sum() ** 2}[p]
        return need * need / dual
    down = value * w > 0
    lo, hi = (fractions(side).reshape(-1) for side in box)
    reach = np.where(down, x - lo, hi - x)
    if sum(speed * reach) < need:
        return None
    if p == 1:  # the fastest coordinates first
        spent = Fraction(0)
        for j in sorted(range(len(w)), key=lambda j: -speed[j]):
            if need > 0 and speed[j] > 0:
                move = min(reach[j], need / speed[j])
                need, spent = need - speed[j] * move, spent + move
        return spent * spent
    # All at the same pace (inf) or in proportion to their speed (2), each until it is stopped.
    pace = speed if p == 2 else np.array([Fraction(1)] * len(w), dtype=object)
    moving = [j for j in range(len(w)) if speed[j] > 0]
    for stop in sorted({reach[j] / pace[j] for j in moving}):
        if sum(speed[j] * min(reach[j], stop * pace[j]) for j in moving) >= need:
            stopped = [j for j in moving if reach[j] < stop * pace[j]]
            going = [j for j in moving if reach[j] >= stop * pace[j]]
            gained = sum((speed[j] * reach[j] for j in stopped), Fraction(0))
            level = (need - gained) / sum(speed[j] * pace[j] for j in going)
            moves = [reach[j] for j in stopped] + [level * pace[j] for j in going]
            return sum(m * m for m in moves) if p == 2 else max(moves) ** 2
    raise AssertionError("reached, but by no level")


def exact_square(net, x, y, p, box):
    """Square of the exact certificate of the region of x."""
    hyperplanes, margins = exact_hyperplanes(net, x, y)
    if any(value <= 0 for value, _ in margins):
        return Fraction(0)
    flat = fractions(x).reshape(-1)
    squares = [square_distance(value, w, flat, box, p) for value, w in hyperplanes + margins]
    return min((square for square in squares if square is not None), default=None)


def holds(lower, square):
    return square is None or (np.isfinite(lower) and Fraction(float(lower)) ** 2 <= square)


def tight(lower, square):
    if square is None:
        return lower > 1e100
    return Fraction(float(lower)) ** 2 >= square * (1 - Fraction(2, 10**9))


def check_examples(net, X, y, p, box, found):
    """Adversarial examples: in the box, at the distance that is said, and really misclassified."""
    exact = exact_network(net)
    for x, label, upper, z in zip(X, y, found.upper, found.adversarial, strict=True):
        assert np.isfinite(z).all() == np.isfinite(upper)
        if not np.isfinite(upper):
            assert np.isnan(z).all()
            continue
        assert box is None or ((box[0] <= z) & (z <= box[1])).all()
        assert exact.logits(fractions(z)[None])[0].argmax() != label
        delta = np.abs(fractions(z) - fractions(x)).reshape(-1)
        square = {1: delta.sum() ** 2, 2: (delta * delta).sum(), np.inf: delta.max() ** 2}[p]
        assert square <= Fraction(upper) ** 2 <= square * (1 + Fraction(1, 10**9))


def check(net, X, y, p, box):
    """Everything that a certificate promises."""
    found = rm.certify(net, X, y, p, box)
    assert (found.lower >= 0).all()
    assert (found.lower <= found.upper).all()
    squares = [exact_square(net, x, label, p, box) for x, label in zip(X, y, strict=True)]
    for lower, square in zip(found.lower, squares, strict=True):
        assert holds(lower, square), (lower, square and float(square) ** 0.5)
    check_examples(net, X, y, p, box, found)
    return found, squares


@st.composite
def problems(draw, **options):
    """A network, points, and None or a box around them."""
    conv = draw(st.integers(0, 3)) == 0
    net = draw((testing.conv_networks if conv else testing.networks)(**options))
    X, y = draw(testing.batches(net, **options))
    # Most points in their own class: other certificates are zero.
    y = np.where(np.arange(len(X)) > 0, y, net.predict(X))
    box = draw(st.none() | testing.boxes(X, **options))
    return net, X, y, box


def rescaled(net, factors):
    """Nearly the same function: each hidden layer times a factor, the next one divided by it."""
    done, parameters = 1.0, []
    for (W, b), factor in zip(net.parameters, [*factors, 1.0], strict=True):
        parameters.append((W * (factor / done), b * factor))
        done = factor
    return net.with_parameters(parameters)


# ---- Exact arithmetic.


@given(problems(), testing.norms())
def test_sound_and_tight(problem, p):
    net, X, y, box = problem
    found, squares = check(net, X, y, p, box)
    for lower, square in zip(found.lower, squares, strict=True):
        # A random hyperplane is not nearer to a point than a millionth, so rounding is far below.
        assert square == 0 or (square is not None and square < 1e-8) or tight(lower, square)


@given(problems(dyadic=True), testing.norms())
def test_degenerate_networks(problem, p):
    net, X, y, box = problem
    found, squares = check(net, X, y, p, box)
    for x, label, lower, square in zip(X, y, found.lower, squares, strict=True):
        hyperplanes, _ = exact_hyperplanes(net, x, label)
        if square == 0 or all(value != 0 for value, _ in hyperplanes):
            assert tight(lower, square)
        if any(value == 0 and w.any() for value, w in hyperplanes):
            assert lower == 0


@given(problems(), testing.norms(), st.integers(0, 2**32 - 1))
def test_layers_of_very_different_size(problem, p, seed):
    net, X, y, box = problem
    factors = 10.0 ** np.random.default_rng(seed).choice([-8, -4, 0, 4, 8], len(net.unit_shapes))
    check(rescaled(net, factors), X, y, p, box)


@given(problems(), testing.norms(), st.integers(0, 2**32 - 1))
def test_weights_of_very_different_size(problem, p, seed):
    """Large weights that cancel: rounding errors as large as the values."""
    net, X, y, box = problem
    rng = np.random.default_rng(seed)
    wild = [
        (W * 10.0 ** rng.integers(-9, 10, W.shape), b * 10.0 ** rng.integers(-9, 10, b.shape))
        for W, b in net.parameters
    ]
    net = net.with_parameters(wild)
    check(net, X, np.where(y == y[0], net.predict(X), y), p, box)


@pytest.mark.parametrize("p", NORMS)
def test_gradients_that_cancel(p):
    """Two units that differ by ulps, subtracted: V itself is hardly more than rounding error."""
    rng = np.random.default_rng(0)
    proved = 0
    for _ in range(100):
        w, ulps = rng.normal(size=3), 10 ** rng.uniform(0.5, 3)
        twin = w * (1 + 2.0**-52 * np.round(ulps * rng.normal(size=3)))
        large = 2.0 ** rng.integers(40, 50) * rng.uniform(1, 2)
        away = large * 1e4 * 2.0**-52 * 10 ** rng.uniform(1, 2.5)
        layers = [([w, twin], [1e4, 1e4]), ([[large, -large]], [away]), ([[1], [0]], [0, 0])]
        net = rm.Network([rm.Linear(*layer) for layer in layers], 3)
        x = rng.uniform(-1, 1, (1, 3))
        for box in (None, (np.full(3, -1e5), np.full(3, 1e5))):
            lower = rm.certify(net, x, [0], p, box).lower[0]
            proved += lower > 0
            assert holds(lower, exact_square(net, x[0], 0, p, box))
    assert proved > 20


@pytest.mark.parametrize("p", NORMS)
def test_constant_units_of_unknown_sign(p):
    """A unit without a hyperplane whose value is all rounding error: is it active?"""
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = rng.uniform(0.1, 1, 2)
        hidden = [([[1.0], [0.0]], [0.0, a]), ([[1, 0], [0, b]], [0, -(a * b)])]
        net = rm.Network(
            [rm.Linear(*h) for h in hidden] + [rm.Linear([[1, -1e18], [0, 0]], [0, 0])], 1
        )
        for box in (None, (np.zeros(1), np.ones(1))):
            lower = rm.certify(net, [[0.5]], [0], p, box).lower[0]
            assert holds(lower, exact_square(net, np.array([0.5]), 0, p, box))


@settings(max_examples=25)
@given(problems(), testing.norms())
def test_points_close_to_hyperplanes(problem, p):
    """Points moved onto a hyperplane and a few ulps off it."""
    net, X, y, box = problem
    assume(net.n_hidden)
    x, label = X[:1], y[:1]
    region = rm.linear_region(net, x[0])
    A, b = region.halfspaces
    norms = (A * A).sum(axis=1)
    assume((norms > 1e-6).any())
    i = int((norms > 1e-6).argmax())
    onto = region.x + (b[i] - A[i] @ region.x) / norms[i] * A[i]
    if box is not None:
        onto = np.clip(onto, *(side.reshape(-1) for side in box))
    for scale in (0, 1e-16, 1e-15, 1e-12, 1e-9):
        near = onto * (1 + scale)
        if box is not None:
            near = np.clip(near, *(side.reshape(-1) for side in box))
        near = near.reshape(x.shape)
        check(net, near, net.predict(near), p, box)
        check(net, near, label, p, box)


@pytest.mark.parametrize("power", [-600, -560, -520, -400, -100, 100, 400, 520])
@pytest.mark.parametrize("p", NORMS)
def test_powers_of_two(p, power):
    """The same function in other units: logits, or a hidden layer, times a power of two."""
    net = rm.Network.mlp([3, 6, 4, 3], rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (6, 3))
    y = net.predict(X)
    factor = 2.0**power
    (W, b), (W2, b2), (W3, b3) = net.parameters
    others = (
        [(W, b), (W2, b2), (W3 * factor, b3 * factor)],
        [(W * factor, b * factor), (W2 / factor, b2), (W3, b3)],
        [(W, b), (W2 * factor, b2 * factor), (W3 / factor, b3)],
    )
    for parameters in others:
        for box in (None, (np.zeros(3), np.ones(3))):
            check(net.with_parameters(parameters), X, y, p, box)


@pytest.mark.parametrize("scale", [1e-120, 1e-160, 1e-200])
@pytest.mark.parametrize("p", NORMS)
def test_products_that_underflow(p, scale):
    """Without biases the second layer is 0 in floats; the fourth is as large as ever in truth."""
    net = rm.Network.mlp([3, 6, 5, 4, 3], rng=0)
    factors = (scale, scale, 1 / scale, 1 / scale)
    net = net.with_parameters(
        [(W * factor, b) for (W, b), factor in zip(net.parameters, factors, strict=True)]
    )
    X = np.random.default_rng(0).uniform(-1, 1, (5, 3))
    for box in (None, (np.full(3, -1.0), np.ones(3))):
        for x, lower in zip(X, rm.certify(net, X, None, p, box).lower, strict=True):
            label = exact_network(net).logits(fractions(x)[None])[0].argmax()
            assert holds(lower, exact_square(net, x, label, p, box))


@pytest.mark.parametrize("unit", [2.0**-535, 2.0**-520, 2.0**-100])
@pytest.mark.parametrize("slope", [1, 2.0**60, 2.0**400])
@pytest.mark.parametrize("p", NORMS)
def test_points_in_tiny_units(p, slope, unit):
    """Inputs and distances as small as 1e-161, whose squares are hardly numbers."""
    net = rm.Network.mlp([3, 6, 3], rng=0)
    (W, b), (W2, b2) = net.parameters
    net = net.with_parameters([(W * slope, (b + 0.1) * slope * unit), (W2, b2)])
    X = np.random.default_rng(0).uniform(-1, 1, (20, 3)) * unit
    for box in (None, (np.full(3, -unit), np.full(3, unit))):
        check(net, X, net.predict(X), p, box)


# ---- Laws.


@given(problems(), testing.norms())
def test_a_smaller_box_is_safer(problem, p):
    net, X, y, box = problem
    assume(box is not None)
    lo, hi = box
    boxes = [None, (lo - 1, hi + 1), box, ((lo + X.min(axis=0)) / 2, (hi + X.max(axis=0)) / 2)]
    assume((boxes[3][0] < boxes[3][1]).all())
    lowers = [rm.certify(net, X, y, p, limits).lower for limits in boxes]
    slack = region_errors(net, X, y, p)
    for wide, narrow in pairwise(lowers):
        assert (narrow >= wide * (1 - 1e-12) - slack).all()


@given(problems(), testing.norms())
def test_box_bound_is_the_least_distance_in_the_box(problem, p):
    """Hyperplanes that were left out as too far away did not matter."""
    net, X, y, box = problem
    assume(box is not None)
    lower = rm.certify(net, X, y, p, box).lower
    around = hyperplanes_around(net, X, y)
    errors = region.hyperplane_errors(net, X, y, around)
    lo, hi = (side.reshape(-1) for side in box)
    for i, x in enumerate(X.reshape(len(X), -1)):
        exists, other = errors.V[i] > 0, np.arange(net.n_classes) != y[i]
        f = around.f[i, exists]
        rows = np.sign(f)[:, None] * around.boundary_gradients[i, exists]
        boundary = np.abs(f), errors.f[i, exists], errors.V[i, exists]
        decision = around.margin[i, other], errors.margin[i, other], errors.R[i, other]
        bounds = [
            region.hyperplane_in_box(np.broadcast_to(x, w.shape), w, *values, lo, hi, p)
            for w, values in ((rows, boundary), (around.R[i].T[other], decision))
        ]
        certain = (np.abs(around.f[i]) > errors.f[i]) | (errors.f[i] == 0)
        expected = np.concatenate(bounds).min() if certain.all() else 0
        assert lower[i] == expected


@given(problems(), testing.norms())
def test_exact_means_that_bounds_meet(problem, p):
    net, X, y, box = problem
    found = rm.certify(net, X, y, p, box)
    np.testing.assert_array_equal(found.exact, found.upper <= found.lower * (1 + 1e-6))
    near = rm.distances(net, X, y, p, box)
    decision = near.decision.min(axis=1)
    # The projection lies well inside the region: nothing can be closer.
    clear = (decision > 1e-6) & (decision < near.boundary.min(axis=1, initial=np.inf) * 0.999)
    assert found.exact[clear & np.isfinite(decision)].all()
    np.testing.assert_allclose(found.upper[clear], decision[clear], rtol=1e-5)


# ---- Sampling and attack.


def ball(rng, shape, p, count):
    """Points of the unit ball of l_p: on its sphere, inside, and at its vertices."""
    d = int(np.prod(shape))
    Z = rng.normal(size=(count, d))
    Z[: count // 4] = rng.choice([-1, 1], (count // 4, d))
    Z[count // 4 : count // 2] *= rng.random((len(Z[count // 4 : count // 2]), d)) < 0.1
    Z[0] = np.arange(d) == 0
    Z /= np.maximum(np.linalg.norm(Z, p, axis=1), 1e-300)[:, None]
    Z[count // 2 :: 3] *= rng.random((len(Z[count // 2 :: 3]), 1))
    return Z.reshape(count, *shape)


def flips(net, x, label, radius, p, box, count, seed=0):
    """Points within the radius (and the box) that have another class, sampled and by PGD."""
    net = net.astype(np.float64)
    radius = min(radius, 1e3) * (1 - 1e-9)
    if radius <= 1e-9:
        return []
    Z = x + radius * ball(np.random.default_rng(seed), x.shape, p, count)
    if box is not None:
        Z = np.clip(Z, *box)
    Z = np.concatenate(
        [Z, rm.pgd(net, x[None], [label], p, eps=radius, steps=10, box=box, restarts=2)]
    )
    exact = exact_network(net) if net.n_hidden < 100 else net
    suspects = Z[net.predict(Z) != label]
    return [z for z in suspects if exact.logits(fractions(z)[None])[0].argmax() != label]


@given(problems(), testing.norms())
def test_no_sample_and_no_attack_gets_through(problem, p):
    net, X, y, box = problem
    lower = rm.certify(net, X, y, p, box).lower
    for x, label, radius in zip(X, y, lower, strict=True):
        assert not flips(net, x, label, radius, p, box, 2000)


@pytest.fixture(scope="module")
def digits():
    return datasets.load("digits")


@pytest.fixture(scope="module", params=["plain", "mmr", "float32"])
def trained(request, digits):
    scheme = "plain" if request.param == "plain" else "mmr"
    net = rm.Network.mlp([64, 24, 16, 10], rng=0)
    if request.param == "float32":
        net = net.astype(np.float32)
    options = {"p": 2, "lam": 0.5, "gamma": 0.3, "epochs": 6, "batch_size": 32, "lr": 3e-3}
    return rm.fit(net, digits.X_train, digits.y_train, scheme, **options)[0]


@pytest.mark.parametrize("box", [None, (0, 1)])
@pytest.mark.parametrize("p", NORMS)
def test_trained_networks(trained, digits, p, box):
    X, y = digits.X_test[:40], digits.y_test[:40]
    found = rm.certify(trained, X, y, p, box)
    wrong = trained.predict(X.astype(trained.dtype)) != y
    assert wrong.mean() < 0.25
    assert (found.lower[wrong] == 0).all()
    assert (found.lower[~wrong] > 0).all()
    assert (found.lower <= found.upper).all()
    limits = None if box is None else (np.zeros(64), np.ones(64))
    check_examples(trained, X[:10], y[:10], p, limits, rm.certify(trained, X[:10], y[:10], p, box))
    for x, label, radius in zip(X, y, found.lower, strict=True):
        assert not flips(trained, x, label, radius, p, box, 500)


@pytest.mark.parametrize("p", NORMS)
def test_trained_network_in_exact_arithmetic(trained, digits, p):
    X, y = digits.X_test[:1], digits.y_test[:1]
    for box in (None, (np.zeros(64), np.ones(64))):
        check(trained, X, y, p, box)
