"""All methods of certification together: they are in order, agree where exact, and withstand."""

from typing import NamedTuple

import numpy as np
import pytest
from helpers import margin_errors
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import _examples, testing
from refmmr.attacks import minimal_attack
from refmmr.reference import loss, pgd

pytestmark = pytest.mark.usefixtures("short_attack")

NORMS = [1, 2, np.inf]
BOUNDS = ("region", "ibp", "fast-lin", "crown")
EXACT = {1: ("search", "mip"), 2: ("search",), np.inf: ("search", "mip")}
BUDGETS = {"search": {"max_regions": 200}, "bab": {"max_seconds": 0.1}}
"""Branch and bound may need many leaves for the last digits: its bounds hold whenever it ends."""

SLACK = 1e-5
"""Exact distances of two methods agree to this, relative to the distance."""

VERTICES = 1e-9
"""Vertices of the enumeration, in the unit square, are nearer than this to where they should be:
rounding errors of about 1e-15 are divided by the sines of the angles at which lines meet."""

LARGE = 1e6
"""No order is checked of larger lower bounds: there, hardly any point is of another class."""


class Both(NamedTuple):
    """Two bounds on the minimal perturbation."""

    lower: np.ndarray
    upper: np.ndarray
    exact: np.ndarray


def certify_all(net, X, y, p, box):
    """Certificates by every method that knows the norm."""
    methods = [*BOUNDS, *([] if p == 2 else ["lp"]), "bab", *EXACT[p]]
    return {
        method: rm.certify(
            net, X, y, p, box=box, method=method, progress=False, **BUDGETS.get(method, {})
        )
        for method in methods
    }


def largest_lower(found):
    """The largest lower bound of each point."""
    return np.max([c.lower for c in found.values()], axis=0)


def examples(found):
    """Indices of the points with an adversarial example, for each method."""
    return {name: np.flatnonzero(np.isfinite(c.upper) & (c.upper > 0)) for name, c in found.items()}


def check_order(found, net, X, y, p, box):
    """Every lower bound is below every upper bound, and those that must rank do."""
    # Where the whole space has one class, numbers end before radii do.
    some = largest_lower(found) < LARGE
    assert some.any()
    found = {name: Both(c.lower[some], c.upper[some], c.exact[some]) for name, c in found.items()}
    X, y = X[some], y[some]
    lower = largest_lower(found)
    upper = np.min([c.upper for c in found.values()], axis=0)
    _, attacked = minimal_attack(net, X, y, p, box=box, steps=10, restarts=2)
    assert (lower <= np.minimum(upper, attacked)).all()
    # Methods subtract different bounds on their rounding errors, which decide about ties.
    clear = loss.margins(net(X), y) > 1e6 * margin_errors(net, X)[:, 0]
    for better in ("fast-lin", "crown"):
        assert (found["region"].lower <= found[better].lower * (1 + 3e-6))[clear].all()
    if "lp" in found:
        assert (found["crown"].lower <= found["lp"].lower * (1 + 1e-4))[clear].all()
    for method in EXACT[p]:
        for name in BOUNDS:
            ended = found[method].exact & clear
            above = found[name].lower <= found[method].lower * (1 + SLACK)
            assert above[ended].all(), (name, method)


def check_adversarial(found, net, X, y, p, box):
    """Examples are in the box, at their distance, and misclassified."""
    found_by = {method: some for method, some in examples(found).items() if len(some)}
    assert found_by
    for method, some in found_by.items():
        c = found[method]
        Z = c.adversarial[some]
        assert _examples.surely_misclassified(net, Z, y[some]).all(), method
        for i, z in zip(some, Z, strict=True):
            # The upper bound is that distance, perhaps of the same point in other coordinates.
            assert _examples.distance_rounded_up(X[[i]], z[None], p) <= c.upper[i] * (1 + 1e-12)
        assert box is None or ((box[0] <= Z) & (box[1] >= Z)).all()


def check_by_sampling(found, net, X, y, p, box, count=300):
    """Dense sampling and PGD inside the largest certified ball find nothing."""
    rng = np.random.default_rng(0)
    limits = None if box is None else tuple(np.full(net.input_shape, end) for end in box)
    lower = largest_lower(found)
    certified = np.flatnonzero((lower > 0) & (lower < LARGE))
    assert len(certified)
    for i in certified:
        eps = lower[i] * (1 - 1e-9)
        many, labels = np.repeat(X[[i]], count, axis=0), np.repeat(y[[i]], count)
        spread = lower[i] * rng.choice([0.5, 1, 5], size=(count, *[1] * (X.ndim - 1)))
        Z = many + spread * rng.standard_normal(many.shape)
        Z = pgd.project(many, Z, p, eps, limits)
        Z = np.concatenate([Z, rm.pgd(net, many[:8], labels[:8], p, eps=eps, steps=20,
                                      box=box, restarts=2)])  # fmt: skip
        many, labels = (np.concatenate([part, part[:8]]) for part in (many, labels))
        inside = _examples.distance_rounded_up(many, Z, p) <= lower[i] * (1 - 1e-12)
        assert inside.any()
        assert not (inside & _examples.surely_misclassified(net, Z, labels)).any()


@pytest.mark.parametrize("p", NORMS)
@given(st.data())
@settings(deadline=None, max_examples=8)
def test_random_networks(p, data):
    net = data.draw(st.one_of(testing.networks(), testing.conv_networks(max_size=3)))
    X, _ = data.draw(testing.batches(net, max_samples=2))
    y = net.predict(X)
    box = data.draw(st.sampled_from([None, (float(X.min()) - 0.1, float(X.max()) + 0.2)]))
    # Points with an example and a radius: tried by cheap methods, before the dear ones.
    attacked = minimal_attack(net, X, y, p, box=box, steps=10, restarts=2)[1]
    near = rm.certify(net, X, y, p, box=box, method="crown", progress=False).lower
    assume((np.isfinite(attacked) & (near > 0)).any())
    found = certify_all(net, X, y, p, box)
    check_order(found, net, X, y, p, box)
    check_adversarial(found, net, X, y, p, box)
    check_by_sampling(found, net, X, y, p, box, 100)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("seed", [0, 2, 3, 4])
def test_exact_distances_agree_with_the_enumeration(p, seed):
    """In the plane the partition knows the distance to the decision boundary."""
    rng = np.random.default_rng(seed)
    net = rm.Network.mlp([2, 8, 8, 3], rng=rng)
    net = net.with_parameters(
        [(W, b + 0.2 * rng.standard_normal(b.shape)) for W, b in net.parameters]
    )
    cx = rm.enumerate_regions(net, rm.Box([0, 0], [1, 1]))
    X = rng.uniform(0, 1, (4, 2))
    y = net.predict(X)
    true = cx.boundary_distance(X, p).distance
    finite = np.isfinite(true)
    assert finite.any()
    for method in EXACT[p]:
        found = rm.certify(net, X, y, p, box=(0, 1), method=method, progress=False)
        np.testing.assert_array_equal(np.isfinite(found.lower), finite)
        np.testing.assert_allclose(found.lower[finite], true[finite], rtol=SLACK, atol=VERTICES)
        np.testing.assert_allclose(found.upper[finite], true[finite], rtol=SLACK, atol=VERTICES)
        assert (found.lower <= true + VERTICES).all()
        assert found.exact[finite].all()
    found = rm.certify(net, X, y, p, box=(0, 1), method="bab", progress=False, **BUDGETS["bab"])
    assert (found.lower <= true + VERTICES).all()
    assert (found.upper >= true - VERTICES).all()
    assert (found.lower > 0).all()


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_adversarially_scaled_weights(p, scale):
    rng = np.random.default_rng(1)
    net = rm.Network.mlp([4, 6, 6, 3], rng=rng)
    (W0, b0), (W1, b1), last = net.parameters
    scaled = net.with_parameters([(scale * W0, scale * b0), (W1 / scale, b1), last])
    X = rng.uniform(0.2, 0.8, (2, 4))
    y = net.predict(X)
    plain, found = (certify_all(n, X, y, p, (0, 1)) for n in (net, scaled))
    check_order(found, scaled, X, y, p, (0, 1))
    check_adversarial(found, scaled, X, y, p, (0, 1))
    # What "bab" reaches within its time is no matter of weights; its intervals must meet.
    timed = found.pop("bab"), plain.pop("bab")
    for a, b in (timed, timed[::-1]):
        assert (a.lower <= (1 + 2e-5) * b.upper).all()
    for method in found:
        np.testing.assert_allclose(found[method].lower, plain[method].lower, rtol=2e-5)


@pytest.fixture(scope="module", params=["plain", "mmr"])
def trained(request):
    """A network trained in single precision, and points."""
    data = rm.datasets.load("digits", dtype=np.float32)
    net, _ = rm.fit(
        rm.Network.mlp([64, 16, 10], rng=0).astype(np.float32), data.X_train, data.y_train,
        request.param, epochs=3, batch_size=64, lam=0.5, gamma=0.3, progress=False,
    )  # fmt: skip
    return net, data.X_test[:6].astype(np.float64)


@pytest.mark.parametrize("p", NORMS)
def test_a_network_trained_in_single_precision(p, trained):
    net, X = trained
    y = net.predict(X)
    wide = net.astype(np.float64)
    found = {
        method: rm.certify(net, X, y, p, method=method, progress=False) for method in BOUNDS
    } | {
        method: rm.certify(net, X, y, p, method=method, max_seconds=seconds, progress=False)
        for method, seconds in [("bab", 0.1), *((exact, 2) for exact in EXACT[p])]
    }
    assert (largest_lower(found) <= np.min([c.upper for c in found.values()], axis=0)).all()
    check_adversarial(found, wide, X, y, p, (0, 1))
    check_by_sampling(found, wide, X, y, p, (0, 1), 1000)
