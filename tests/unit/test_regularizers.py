"""The objective with several regularizers, and the authors' rule for the border."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr.reference import objective as reference
from refmmr.reference.loss import loss_gradient
from refmmr.reference.mmr import Regularizer
from refmmr.reference.objective import objective_gradient

INF = np.inf
L1, LINF = Regularizer(1, 0.5, 1.5, 2.0, 5, 3), Regularizer(INF, 2.0, 0.3, 0.4, 5, 2)


def dense():
    return rm.Network.mlp([8, 20, 7, 3], rng=2)


def padded():
    """Two convolutions that pad the image."""
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(3, 2, 3, 3)) / 3, rng.normal(size=(2, 3, 2, 2)) / 2
    return rm.Network(
        [
            rm.Conv2d(first, rng.normal(size=3) / 4, stride=2, padding=1),
            rm.Conv2d(second, rng.normal(size=2) / 4, padding=1),
            rm.Flatten(),
            rm.Linear(rng.normal(size=(3, 18)) / 3, rng.normal(size=3)),
        ],
        (2, 4, 4),
    )


NETWORKS = [dense, padded]


def batch(net, n=4):
    rng = np.random.default_rng(7)
    return rng.uniform(0, 1, (n, *net.input_shape)), rng.integers(0, net.n_classes, n)


def options(term):
    p, _, gamma_b, gamma_d, k_b, k_d = term
    return {"p": p, "gamma_b": gamma_b, "gamma_d": gamma_d, "k_b": k_b, "k_d": k_d}


@pytest.mark.parametrize("make", NETWORKS)
def test_two_norms_are_the_sum_of_both(make):
    net = make()
    X, y = batch(net)
    found = objective_gradient(net, X, y, (L1, LINF))
    values = [rm.mmr(net, X, y, **options(term)).value.mean() for term in (L1, LINF)]
    assert_allclose(found.mmr, 0.5 * values[0] + 2 * values[1], rtol=1e-12)
    cross_entropy, gradients = loss_gradient(net, X, y)
    assert_allclose(found.cross_entropy, cross_entropy, rtol=1e-12)
    assert found.wrong == (net.predict(X) != y).sum()
    parts = [rm.mmr_gradient(net, X, y, **options(term))[1] for term in (L1, LINF)]
    for pair, *others in zip(found.gradients, gradients, *parts, strict=True):
        for one, loss, first, second in zip(pair, *others, strict=True):
            assert_allclose(one, loss + 0.5 * first + 2 * second, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", NETWORKS)
def test_union_of_the_nearest_boundaries(make):
    """Both norms count the units that are among the nearest in either, divided by k_B."""
    net = make()
    X, y = batch(net)
    distances = [rm.distances(net, X, y, p).boundary for p in (1, INF)]
    total, larger = 0.0, 0
    for i in range(len(X)):
        nearest = [
            set(np.argsort(d[i], kind="stable")[: term.k_b].tolist())
            for d, term in zip(distances, (L1, LINF), strict=True)
        ]
        union = sorted(nearest[0] | nearest[1])
        larger += len(union) > 5  # than what either counts alone
        for d, term in zip(distances, (L1, LINF), strict=True):
            hinges = np.maximum(0, 1 - d[i, union] / term.gamma_b)
            total += term.lam * hinges.sum() / term.k_b
    decision = sum(
        term.lam * rm.mmr(net, X, y, **options(term)).decision_term.sum() for term in (L1, LINF)
    )
    assert larger
    found = objective_gradient(net, X, y, (L1, LINF), nearest="union")
    assert_allclose(found.mmr, (total + decision) / len(X), rtol=1e-12)
    assert found.mmr > objective_gradient(net, X, y, (L1, LINF)).mmr


def test_one_norm_has_the_union_of_its_own():
    net = dense()
    X, y = batch(net)
    each, union = (objective_gradient(net, X, y, (LINF,), nearest=c) for c in ("each", "union"))
    assert each.mmr == union.mmr
    for (dW, db), (eW, eb) in zip(each.gradients, union.gradients, strict=True):
        assert_array_equal(dW, eW)
        assert_array_equal(db, eb)


@pytest.mark.parametrize("nearest", ["each", "union"])
@pytest.mark.parametrize("border", ["exact", "full-filter"])
@pytest.mark.parametrize("make", NETWORKS)
def test_gradient_is_the_difference_quotient(make, border, nearest):
    net = make()
    X, y = batch(net)
    given = X, y, (L1, LINF), border, nearest
    gradients = objective_gradient(net, *given).gradients
    rng, step = np.random.default_rng(1), 1e-6
    for k, pair in enumerate(gradients):
        for which, gradient in enumerate(pair):
            for _ in range(3):
                direction = rng.uniform(-1, 1, gradient.shape)
                values = []
                for sign in (-1, 1):
                    parameters = [list(arrays) for arrays in net.parameters]
                    parameters[k][which] = parameters[k][which] + sign * step * direction
                    moved = objective_gradient(net.with_parameters(parameters), *given)
                    values.append(moved.cross_entropy + moved.mmr)
                slope = (values[1] - values[0]) / (2 * step)
                assert_allclose((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-8)


def small(padding):
    """One filter of 1, 2, ..., 9 over an image of 3 x 3, and logits that are far apart."""
    filters = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    units = (3 + 2 * padding - 2) ** 2
    return rm.Network(
        [
            rm.Conv2d(filters, [-1.0], padding=padding),
            rm.Flatten(),
            rm.Linear(np.zeros((2, units)), [99, 0]),
        ],
        (1, 3, 3),
    )


@pytest.mark.parametrize(
    ("p", "full", "corner"), [(1, 9, 9), (2, 285**0.5, 206**0.5), (INF, 45, 28)]
)
def test_border_by_hand(p, full, corner):
    """At x = 0 all pre-activations are -1; the upper left unit meets the weights 5, 6, 8, 9."""
    X, y = np.zeros((1, 1, 3, 3)), np.array([0])
    term = [Regularizer(p, 1.0, 1.0, 1.0, 9, 2)]
    exact = objective_gradient(small(1), X, y, term)
    whole = objective_gradient(small(1), X, y, term, "full-filter")
    assert_allclose(whole.mmr, 1 - 1 / full, rtol=1e-12)
    distances = rm.distances(small(1), X, y, p).boundary[0]
    assert_allclose(distances[0], 1 / corner, rtol=1e-12)
    assert_allclose(exact.mmr, np.mean(1 - distances), rtol=1e-12)
    # The gradient with respect to the filter is that of the full filter's norm, |f| / ||W||.
    W = np.arange(1.0, 10)
    slope = {1: (W == 9) * 1.0, 2: W / 285**0.5, INF: np.ones(9)}[p]
    dW, db = whole.gradients[0]
    assert_allclose(dW.ravel(), slope / full**2, rtol=1e-12)
    assert_allclose(db, [1 / full], rtol=1e-12)


@pytest.mark.parametrize("make", [dense, lambda: small(0)])
def test_no_border_no_difference(make):
    net = make()
    X, y = batch(net)
    term = [LINF._replace(k_b=1, k_d=2)]
    exact, whole = (
        objective_gradient(net, X, y, term, border) for border in ("exact", "full-filter")
    )
    assert_allclose(whole.mmr, exact.mmr, rtol=1e-14)
    for (dW, db), (eW, eb) in zip(whole.gradients, exact.gradients, strict=True):
        assert_allclose(dW, eW, rtol=1e-12, atol=1e-15)
        assert_allclose(db, eb, rtol=1e-12, atol=1e-15)


def test_a_single_convolution_has_no_hidden_border():
    net = rm.Network(
        [rm.Conv2d(np.arange(9.0).reshape(1, 1, 3, 3) / 9, [0.0], padding=1)], (1, 2, 2)
    )
    X, y = batch(net)
    term = [LINF._replace(k_b=1)]
    found = [objective_gradient(net, X, y, term, border).mmr for border in ("exact", "full-filter")]
    assert found[0] == found[1] > 0


def test_samples_in_chunks(monkeypatch):
    net = padded()
    X, y = batch(net)
    given = X, y, (L1, LINF), "full-filter", "union"
    whole = objective_gradient(net, *given)
    monkeypatch.setattr(reference, "chunks", lambda net, n, size: [slice(0, 1), slice(1, n)])
    parts = objective_gradient(net, *given)
    assert_allclose(parts[:3], whole[:3], rtol=1e-12)
    for (dW, db), (eW, eb) in zip(parts.gradients, whole.gradients, strict=True):
        assert_allclose(dW, eW, rtol=1e-9, atol=1e-14)
        assert_allclose(db, eb, rtol=1e-9, atol=1e-14)
