"""The objective of training is the sum of its parts, and its gradient that of the sum."""

from unittest.mock import patch

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr.reference import affine
from refmmr.reference.loss import cross_entropy, loss_gradient
from refmmr.reference.mmr import Regularizer, mmr, mmr_gradient
from refmmr.reference.objective import objective_gradient

LENET = rm.Network.lenet_small((1, 8, 8), 5, rng=0)
NETWORKS = {
    "no hidden layer": rm.Network.mlp([6, 3], rng=0),
    "dense": rm.Network.mlp([6, 8, 7, 4], rng=1),
    "convolutional": LENET,
    "no dense layer": rm.Network([LENET.layers[0], rm.Flatten()], (1, 3, 4)),
}
MMR = {p: Regularizer(p, 0.7, 0.5, 0.6, 5, 3) for p in (1, 2, np.inf)}
TERMS = {
    "plain": (),
    **{f"p={p}": (term,) for p, term in MMR.items()},
    "two norms": (MMR[1]._replace(lam=0.2), Regularizer(np.inf, 1.5, 0.1, 0.2, 3, 2)),
}


@pytest.fixture(params=NETWORKS)
def net(request):
    return NETWORKS[request.param]


@pytest.fixture(params=TERMS)
def terms(request):
    return TERMS[request.param]


def samples(net, n=9):
    rng = np.random.default_rng(0)
    return rng.uniform(0, 1, (n, *net.input_shape)), rng.integers(net.n_classes, size=n)


def test_sum_of_the_parts(net, terms):
    X, y = samples(net)
    found = objective_gradient(net, X, y, terms)
    expected, gradients = loss_gradient(net, X, y)
    assert_allclose(found.cross_entropy, expected, rtol=1e-14)
    assert found.wrong == (net.predict(X) != y).sum()
    total = 0.0
    for term in terms:
        value, more = mmr_gradient(net, X, y, term.p, *term[2:])
        total += term.lam * value
        gradients = [
            (dW + term.lam * more_W, db + term.lam * more_b)
            for (dW, db), (more_W, more_b) in zip(gradients, more, strict=True)
        ]
    assert_allclose(found.mmr, total, rtol=1e-13)
    for pair, others in zip(found.gradients, gradients, strict=True):
        for array, other in zip(pair, others, strict=True):
            assert_allclose(array, other, rtol=1e-12, atol=1e-14)


def test_gradient_is_the_difference_quotient(net, terms):
    X, y = samples(net)
    gradients = objective_gradient(net, X, y, terms).gradients
    rng, step = np.random.default_rng(1), 1e-7
    directions = [tuple(rng.normal(size=a.shape) for a in pair) for pair in net.parameters]

    def value(t):
        moved = net.with_parameters(
            [
                tuple(a + t * d for a, d in zip(pair, direction, strict=True))
                for pair, direction in zip(net.parameters, directions, strict=True)
            ]
        )
        values = [term.lam * mmr(moved, X, y, term.p, *term[2:]).value for term in terms]
        return (cross_entropy(moved(X), y) + sum(values)).mean()

    slope = sum(
        (g * d).sum()
        for pair, direction in zip(gradients, directions, strict=True)
        for g, d in zip(pair, direction, strict=True)
    )
    assert_allclose(slope, (value(step) - value(-step)) / (2 * step), rtol=1e-5)


def test_chunks_change_nothing(terms):
    net = NETWORKS["dense"]
    X, y = samples(net, 20)
    whole = objective_gradient(net, X, y, terms)
    with patch.object(affine, "CHUNK_BYTES", 3 * 6 * 8 * 8):  # three samples at a time
        assert len(list(affine.chunks(net, 20))) == 7
        parts = objective_gradient(net, X, y, terms)
    assert_allclose(parts[:3], whole[:3], rtol=1e-14)
    for pair, expected in zip(parts.gradients, whole.gradients, strict=True):
        for array, other in zip(pair, expected, strict=True):
            assert_allclose(array, other, rtol=1e-12, atol=1e-15)


def test_float32_stays_float32(net, terms):
    X, y = samples(net)
    found = objective_gradient(net.astype(np.float32), X.astype(np.float32), y, terms)
    assert {array.dtype for pair in found.gradients for array in pair} == {np.dtype(np.float32)}
    assert [type(value) for value in found[:3]] == [float, float, int]


def test_arguments_are_left_as_they_are(net, terms):
    X, y = samples(net)
    before = [a.copy() for pair in net.parameters for a in pair] + [X.copy(), y.copy()]
    objective_gradient(net, X, y, terms)
    after = [a for pair in net.parameters for a in pair] + [X, y]
    for array, other in zip(after, before, strict=True):
        assert_array_equal(array, other)
