"""Laws of the search through linear regions, on random networks, many of them degenerate."""

import numpy as np
import pytest
from helpers import margin_errors, region_errors
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import testing
from refmmr.certify.bounds import region
from refmmr.certify.bounds.search import point_searches, search
from refmmr.reference import loss

NORMS = [1, 2, np.inf]
BUDGET = 100
"""Regions a point: enough for nearly all of these networks."""

VERTICES = 1e-9
"""Vertices of the enumeration are nearer than this to where they should be: rounding errors of
about 1e-15 are divided by the sines of the angles at which lines meet."""


@st.composite
def cases(draw, strategy, dyadic=False):
    """A network, points with the predicted classes, a norm, and a box or None."""
    net = draw(strategy)
    X, _ = draw(testing.batches(net, max_samples=2, dyadic=dyadic))
    box = draw(st.none() | testing.boxes(X, dyadic=dyadic))
    return net, X, net.predict(X), draw(testing.norms()), box


def samples(X, radius, p, box, rng, m=400):
    """Points of the box within the balls around one point, on the sphere and inside."""
    delta = rng.normal(size=(m, X.size)) * (rng.random((m, X.size)) < rng.random((m, 1)))
    length = np.linalg.norm(delta, ord=p, axis=1)
    size = radius * np.where(rng.random(m) < 0.5, 1 - 1e-9, rng.random(m))
    scale = size / np.where(length > 0, length, 1)
    Z = X + (delta * scale[:, None]).reshape(m, *X.shape)
    return Z if box is None else np.clip(Z, *box)


def check(net, X, y, p, box, budget=BUDGET):
    """What must hold for any network."""
    result = search(net, X, y, p, box, max_regions=budget)
    lower, upper, adversarial = result.bounds
    assert (lower <= upper).all()
    assert (result.regions <= budget).all()
    plain = region.region_bounds(net, X, y, p, box)
    assert (plain.lower <= lower + region_errors(net, X, y, p)).all()
    found = np.isfinite(upper)
    assert np.isnan(adversarial[~found]).all()
    assert not found.any() or (net.predict(adversarial[found]) != y[found]).all()
    lengths = np.linalg.norm((adversarial - X).reshape(len(X), -1), ord=p, axis=1)
    assert (lengths[found] <= upper[found]).all()
    assert box is None or ((box[0] <= adversarial) & (adversarial <= box[1]))[found].all()
    rng = np.random.default_rng(0)
    for x, label, radius in zip(X, y, lower, strict=True):
        if radius > 0:
            Z = samples(x, min(radius, 10), p, box, rng)
            inside = np.linalg.norm((Z - x).reshape(len(Z), -1), ord=p, axis=1) < radius
            assert (net.predict(Z)[inside] == label).all()
            eps = min(radius, 10) * (1 - 1e-9)
            Z = rm.pgd(net, x[None], [label], p, eps=eps, steps=20, box=box, rng=0)
            assert net.predict(Z) == label
    return result


@settings(max_examples=40)
@given(cases(testing.networks()))
def test_dense(case):
    check(*case)


@settings(max_examples=12)
@given(cases(testing.conv_networks(max_size=4)))
def test_convolutional(case):
    check(*case, budget=15)


@settings(max_examples=40)
@given(cases(testing.dyadic_networks(), dyadic=True))
def test_degenerate(case):
    check(*case, budget=40)


@st.composite
def flat_cases(draw, dyadic):
    """A network on the plane, points in a box that is the domain of the enumeration."""
    net = draw(testing.networks(max_inputs=1, max_hidden_layers=2, dyadic=dyadic))
    first = net.layers[0]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    W = rng.integers(-8, 9, (len(first.W), 2)) / 4 if dyadic else rng.normal(size=(len(first.W), 2))
    net = rm.Network([rm.Linear(W, first.b), *net.layers[1:]], 2)
    X = rng.integers(-7, 8, (3, 2)) / 8 if dyadic else rng.uniform(-1, 1, (3, 2))
    return net, X


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("dyadic", [False, True])
@given(data=st.data())
@settings(max_examples=12)
def test_against_enumeration(p, dyadic, data):
    net, X = data.draw(flat_cases(dyadic))
    y = net.predict(X)
    box = (np.full(2, -1.0), np.full(2, 1.0))
    distance = rm.enumerate_regions(net, rm.Box(*box)).boundary_distance(X, p).distance
    result = search(net, X, y, p, box)
    lower, upper, _ = result.bounds
    assert (lower <= distance + VERTICES).all()
    logits = np.sort(net(X), axis=1)
    tied = logits[:, -1] - logits[:, -2] < 1e-9
    assert (upper >= distance - VERTICES)[~tied].all()
    if not dyadic:
        # In general position bounds meet, at the distance.
        np.testing.assert_allclose(upper[~tied], distance[~tied], rtol=1e-5, atol=VERTICES)
        np.testing.assert_allclose(lower[~tied], upper[~tied], rtol=1e-5)


@given(cases(testing.networks(max_hidden_layers=2)))
@settings(max_examples=20)
def test_bounds_only_get_better(case):
    net, X, y, p, box = case
    steps = 0
    for state in point_searches(net, X, y, p, box):
        before = state.lower, state.upper
        while not state.done and state.regions < BUDGET:
            state.step()
            assert state.lower >= before[0]
            assert state.upper <= before[1]
            before = state.lower, state.upper
            steps += 1
    assume(steps)


@given(cases(testing.networks(max_hidden_layers=2)), st.sampled_from([1e-8, 1e8]))
@settings(max_examples=20)
def test_scaled_weights(case, factor):
    """Larger or smaller logits, weights of single layers, do not change the distance."""
    net, X, y, p, box = case
    scaled = net.with_parameters(
        [(W * factor, b * factor ** (k + 1)) for k, (W, b) in enumerate(net.parameters)]
    )
    one, other = (search(n, X, y, p, box, max_regions=BUDGET) for n in (net, scaled))
    assert (other.bounds.lower <= one.bounds.upper).all()
    assert (one.bounds.lower <= other.bounds.upper).all()
    finished = (one.regions < BUDGET) & (other.regions < BUDGET) & np.isfinite(one.bounds.upper)
    # A distance is no better known than the margin, whose error is divided by a slope.
    known = finished & (loss.margins(net(X), y) > 1e6 * margin_errors(net, X)[:, 0])
    np.testing.assert_allclose(other.bounds.lower[known], one.bounds.lower[known], rtol=1e-5)
