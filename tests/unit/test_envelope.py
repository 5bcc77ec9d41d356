"""The least upper relaxation of a ReLU on a box: exact small cases, and laws."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refmmr as rm
from refmmr.certify.bounds import _place, _tree
from refmmr.reference import ascent, envelope
from refmmr.reference import branch_and_bound as bb
from refmmr.reference.backward_bound import layer_bounds
from refmmr.reference.ball import ball
from refmmr.reference.relaxation import relu_relaxation


def question(seed, d=4, units=12, eps=0.3, n=3):
    """A network, a ball within the unit box, a function, and n nodes with a split each."""
    rng = np.random.default_rng(seed)
    net = rm.Network.mlp([d, units, 3], rng=seed)
    x, box = rng.uniform(0, 1, (1, d)), (np.zeros(d), np.ones(d))
    around = ball(x, np.array([eps]), np.inf, box)
    bounds = layer_bounds(net, x, np.inf, around.radius, box, "crown")[:-1]
    nodes = ascent.root(bounds).take(np.zeros(n, int))
    nodes = bb.split(nodes, rng.integers(0, units, n)).take(np.arange(n))
    return net, around, np.array([1.0, -1.0, 0.0]), nodes


def corners(around):
    return np.array(list(product(*zip(around.lowest[0], around.highest[0], strict=True))))


def test_equal_slopes_are_the_triangle():
    net, around, _, nodes = question(0)
    layer = envelope.hidden(net, around)
    W, b = net.parameters[0]
    lower, upper = (side[:1] for side in nodes.bounds[0])
    chord = relu_relaxation(lower, upper, 0 * lower)
    unstable = np.flatnonzero((lower[0] < 0) & (upper[0] > 0))
    slopes = envelope.upper_slopes(layer.P[unstable], layer.upper[unstable], np.zeros(4))
    np.testing.assert_allclose(slopes, np.repeat(chord.upper_slope[0, unstable, None], 4, 1))
    relaxation = envelope.Upper(slopes, np.ones(len(unstable)))
    found = envelope.constants(W[unstable], b[unstable], layer, relaxation)
    expected = chord.intercept[0] + chord.upper_slope[0] * b
    np.testing.assert_allclose(found, expected[unstable], atol=1e-12)


def test_steep_slopes_are_exact_in_a_corner(monkeypatch):
    monkeypatch.setattr(envelope, "SHARPNESS", 1e6)
    net, around, _, _ = question(1)
    layer = envelope.hidden(net, around)
    W, b = net.parameters[0]
    some = np.flatnonzero((layer.upper > 0) & (2 * layer.q < layer.upper))  # unstable
    W, b = W[some], b[some]
    for v in product((-1.0, 1.0), repeat=4):
        slopes = envelope.upper_slopes(layer.P[some], layer.upper[some], np.array(v))
        own = envelope.constants(W, b, layer, envelope.Upper(slopes, np.ones(len(some))))
        z = np.where(np.array(v) > 0, layer.high, layer.low)
        np.testing.assert_allclose((slopes * W) @ z + own, np.maximum(W @ z + b, 0), atol=1e-4)


@given(st.integers(0, 2**32 - 1))
def test_any_slopes_are_a_relaxation(seed):
    rng = np.random.default_rng(seed)
    net, around, _, _ = question(seed)
    layer, (W, b) = envelope.hidden(net, around), net.parameters[0]
    weight = rng.uniform(0, 1, len(b))
    slopes = weight[:, None] * rng.choice([rng.uniform(0, 1, W.shape), rng.integers(0, 2, W.shape)])
    own = envelope.constants(W, b, layer, envelope.Upper(slopes, weight))
    Z = np.concatenate([corners(around), rng.uniform(around.lowest, around.highest, (20, 4))])
    above = Z @ (slopes * W).T + own
    assert (above >= weight * np.maximum(Z @ W.T + b, 0) - 1e-12).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(["numpy", "numba"]))
def test_bounds_hold_in_real_arithmetic(seed, backend):
    rng = np.random.default_rng(seed)
    net, around, row, nodes = question(seed, units=6)
    layer = net.affine_layers[0]
    scale = 10.0 ** rng.integers(-3, 4)
    net = rm.Network([layer.with_weights(scale * layer.W, scale * layer.b), *net.layers[1:]], 4)
    for side in nodes.bounds[0]:
        side *= scale
    centers = rng.uniform(-1, 1, (3, 4))
    with rm.use_backend(backend):
        found = _tree._kernels.ascend_envelopes(
            net, envelope.hidden(net, around), row, nodes, centers, 4
        )
    (W, b), (V, c) = net.parameters
    for z in corners(around):
        z = [Fraction(part) for part in z]
        f = [exact_dot(w, z) + Fraction(own) for w, own in zip(W, b, strict=True)]
        g = [max(part, Fraction(0)) for part in f]
        logits = [exact_dot(v, g) + Fraction(own) for v, own in zip(V, c, strict=True)]
        value = exact_dot(row, logits)
        for i, fixed in enumerate(nodes.fixed[0]):
            if any(sign * part < 0 for sign, part in zip(fixed, f, strict=True)):
                continue
            A, constant = found.bound.A[i, 0], found.bound.constant[i, 0] - found.bound.error[i, 0]
            assert exact_dot(A, z) + Fraction(constant) <= value


def exact_dot(weights, values):
    return sum(
        (Fraction(float(w)) * value for w, value in zip(weights, values, strict=True)), Fraction(0)
    )


@pytest.mark.parametrize("seed", range(8))
def test_better_than_the_triangle(seed):
    net, around, row, nodes = question(seed, d=20, units=40)
    best = envelope.ascend(net, envelope.hidden(net, around), row, nodes, np.zeros((3, 20)), 30, 0)
    chords = ascent.ascend(net, around, np.repeat(row[None], 3, axis=0), nodes, 30)
    assert (best.bound.minimum(around)[:, 0] > chords.values).all()


def test_parameters_that_are_no_numbers_prove_nothing_wrong():
    net, around, row, nodes = question(2)
    nodes.slopes[0][:] = np.nan
    nodes.multipliers[0][:] = np.inf
    with rm.use_backend("numba"):
        found = _tree._kernels.ascend_envelopes(
            net, envelope.hidden(net, around), row, nodes, np.full((3, 4), np.nan), 3
        )
    lowest = (net.logits(corners(around)) @ row).min()
    assert (found.bound.minimum(around)[0] <= lowest).all()


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_only_for_one_dense_hidden_layer_in_linf(p):
    def place(*layers, shape=4):
        net = rm.Network(list(layers), shape)
        x = np.zeros((1, int(np.prod(shape))))
        return _place.place(net, ball(x, np.ones(1), p, None))

    one, two, last = (rm.Network.mlp([4, 4, 2], rng=0).layers[i] for i in (0, 0, 1))
    image = rm.Conv2d(np.ones((1, 1, 2, 2)), np.zeros(1))
    assert _place.has_envelopes(place(one, last)) == (p == np.inf)
    assert not _place.has_envelopes(place(one, two, last))
    assert not _place.has_envelopes(place(image, rm.Flatten(), last, shape=(1, 3, 3)))
    assert not _place.has_envelopes(place(last))
