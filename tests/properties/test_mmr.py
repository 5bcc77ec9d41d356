"""The regularizer: its value from the formula, its gradient, and what must not change it."""

from unittest.mock import patch

import numpy as np
from helpers import value_errors
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr.reference import affine
from refmmr.testing import batches, conv_networks, dyadic_networks, networks, norms

SEEDS = st.integers(0, 2**32 - 1)
STEP = 1e-6  # of the difference quotients


@st.composite
def cases(draw, nets, dyadic=False):
    """A network, a batch, and the options of the regularizer."""
    net = draw(nets)
    X, y = draw(batches(net, dyadic=dyadic))
    options = {
        "p": draw(norms()),
        "gamma_b": draw(st.sampled_from([0.1, 0.5, 2.0])),
        "gamma_d": draw(st.sampled_from([0.1, 0.5, 2.0])),
        "k_b": draw(st.integers(1, max(1, net.n_hidden))),
        "k_d": draw(st.integers(1, net.n_classes)),
    }
    return net, X, y, options


GENERAL = cases(networks() | conv_networks())
DYADIC = cases(dyadic_networks(), dyadic=True)


def hyperplanes(net, x, c):
    """Value and gradient of every hidden unit, and of every margin of class c, by the formulas."""
    V, a, mask = np.eye(x.size), np.zeros(x.size), np.ones(x.size)
    hidden = []
    for i, (layer, shape) in enumerate(zip(net.layers, net.shapes[:-1], strict=True)):
        if i not in net.affine:
            continue
        size = int(np.prod(shape))
        W = layer.linear(np.eye(size).reshape(size, *shape)).reshape(size, -1).T
        b = layer.apply(np.zeros((1, *shape))).ravel()
        V, a = W @ (mask[:, None] * V), W @ (mask * a) + b
        f = V @ x.ravel() + a
        mask = f > 0
        hidden += zip(f, V, strict=True)
    hidden, logits = hidden[: net.n_hidden], hidden[net.n_hidden :]
    f_c, V_c = logits[c]
    return hidden, [(f_c - f, V_c - v) for s, (f, v) in enumerate(logits) if s != c]


def term(hyperplanes, p, gamma, k):
    """``1/k sum_{j <= k} max(0, 1 - d^(j) / gamma)``; what has no hyperplane costs nothing."""
    q = {1: np.inf, 2: 2, np.inf: 1}[p]
    distances = [f / np.linalg.norm(v, q) for f, v in hyperplanes if v.any()]
    return sum(max(0, 1 - d / gamma) for d in sorted(distances)[:k]) / k


def term_error(net, x, hyperplanes, p, gamma):
    """How far two computations of a term may be apart: an error of f is divided by slopes."""
    q = {1: np.inf, 2: 2, np.inf: 1}[p]
    error = max(4 * errors.max() for errors in value_errors(net, x[None]))
    # Gradients lose as many digits as values: both are sums of products of the same weights.
    turned = max(
        4 * errors.max() for errors in value_errors(net.map(np.abs), np.ones_like(x[None]))
    )
    slopes = np.array([np.linalg.norm(v, q) for _, v in hyperplanes])
    values = np.array([abs(f) for f, _ in hyperplanes])
    near = (slopes > 0) & (values <= gamma * slopes * (1 + 1e-9) + error)
    return ((error + gamma * turned) / slopes[near]).max(initial=0) / gamma


@given(GENERAL | DYADIC)
def test_value_is_the_formula(case):
    net, X, y, options = case
    p, gamma_b, gamma_d, k_b, k_d = options.values()
    values = rm.mmr(net, X, y, **options)
    for i, (x, c) in enumerate(zip(X, y, strict=True)):
        hidden, margins = hyperplanes(net, x, c)
        boundaries = [(abs(f), v) for f, v in hidden]
        for found, some, gamma, k in (
            (values.boundary_term[i], boundaries, gamma_b, k_b),
            (values.decision_term[i], margins, gamma_d, k_d),
        ):
            slack = 1e-15 + term_error(net, x, some, p, gamma)
            assert_allclose(found, term(some, p, gamma, k), rtol=1e-14, atol=slack)
    assert_allclose(values.value, values.boundary_term + values.decision_term, rtol=1e-15)
    value, _ = rm.mmr_gradient(net, X, y, **options)
    assert_allclose(value, values.value.mean(), rtol=1e-12)


def clear_of_kinks(net, X, y, p, gamma_b, gamma_d, k_b, k_d):
    """Nothing that a small step of the weights could change: masks, hinges, order, signs."""

    def clear(hyperplanes, gamma, k):
        q = {1: np.inf, 2: 2, np.inf: 1}[p]
        real = [(f / np.linalg.norm(v, q), v) for f, v in hyperplanes if v.any()]
        distances = np.array([d for d, _ in real])
        near = np.sort(distances[distances < gamma + 1e-3])
        if (np.abs(near - gamma) < 1e-3).any():
            return False
        if len(near) > k and near[k] - near[k - 1] < 1e-3:
            return False
        for v in (np.abs(v) for d, v in real if d < gamma):
            if np.linalg.norm(v) < 0.05:
                return False
            if p == 1 and len(v) > 1 and np.diff(np.sort(v)[-2:]) < 1e-4:
                return False
            if p == np.inf and (v[v > 0] < 1e-4).any():
                return False
        return True

    for x, c in zip(X, y, strict=True):
        hidden, margins = hyperplanes(net, x, c)
        if not all(abs(f) > 1e-3 for f, _ in hidden):
            return False
        boundaries = [(abs(f), v) for f, v in hidden]
        if not (clear(boundaries, gamma_b, k_b) and clear(margins, gamma_d, k_d)):
            return False
    return True


@given(GENERAL, SEEDS)
def test_gradient_is_the_difference_quotient(case, seed):
    net, X, y, options = case
    assume(clear_of_kinks(net, X, y, **options))
    _, gradients = rm.mmr_gradient(net, X, y, **options)
    rng = np.random.default_rng(seed)
    for k, pair in enumerate(gradients):
        for which, gradient in enumerate(pair):
            direction = rng.uniform(-1, 1, gradient.shape)

            def value(t, k=k, which=which, direction=direction):
                parameters = [list(pair) for pair in net.parameters]
                parameters[k][which] = parameters[k][which] + t * direction
                return rm.mmr(net.with_parameters(parameters), X, y, **options).value.mean()

            slope = (value(STEP) - value(-STEP)) / (2 * STEP)
            assert_allclose((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6)


@given(DYADIC)
def test_gradients_are_finite_also_for_degenerate_networks(case):
    net, X, y, options = case
    value, gradients = rm.mmr_gradient(net, X, y, **options)
    assert np.isfinite(value)
    for pair, parameters in zip(gradients, net.parameters, strict=True):
        for gradient, parameter in zip(pair, parameters, strict=True):
            assert gradient.shape == parameter.shape
            assert np.isfinite(gradient).all()


@given(cases(networks(dyadic=True).filter(lambda net: net.n_hidden), dyadic=True), st.data(), SEEDS)
def test_hidden_units_may_change_places_and_scales(case, data, seed):
    """Unit i times alpha, its outgoing weights divided by alpha: the same hyperplanes."""
    net, X, y, options = case
    layer = data.draw(st.integers(0, len(net.unit_shapes) - 1))
    (W, b), (W_next, b_next) = net.parameters[layer : layer + 2]
    rng = np.random.default_rng(seed)
    order, alpha = rng.permutation(len(b)), 2.0 ** rng.integers(-3, 4, len(b))
    parameters = net.parameters
    parameters[layer] = (alpha[:, None] * W)[order], (alpha * b)[order]
    parameters[layer + 1] = (W_next / alpha)[:, order], b_next
    other = net.with_parameters(parameters)

    widths = [size for (size,) in net.unit_shapes]
    first = sum(widths[:layer])
    units = np.arange(net.n_hidden)
    units[first : first + widths[layer]] = first + order
    before = rm.distances(net, X, y, p=options["p"])
    after = rm.distances(other, X, y, p=options["p"])
    assert_array_equal(after.boundary, before.boundary[:, units])
    assert_array_equal(after.decision, before.decision)
    mine, theirs = rm.mmr(net, X, y, **options), rm.mmr(other, X, y, **options)
    assert_allclose(mine.value, theirs.value, rtol=1e-14)


@given(GENERAL)
def test_a_batch_is_its_samples(case):
    net, X, y, options = case
    together = rm.mmr(net, X, y, **options)
    alone = [rm.mmr(net, X[i : i + 1], y[i : i + 1], **options).value[0] for i in range(len(X))]
    slack = np.zeros(len(X))
    for i, (x, c) in enumerate(zip(X, y, strict=True)):
        hidden, margins = hyperplanes(net, x, c)
        for some, gamma in ((hidden, options["gamma_b"]), (margins, options["gamma_d"])):
            slack[i] += term_error(net, x, some, options["p"], gamma)
    assert (np.abs(together.value - alone) <= 1e-14 * (1 + together.value) + slack).all()
    value, gradients = rm.mmr_gradient(net, X, y, **options)
    singles = [rm.mmr_gradient(net, X[i : i + 1], y[i : i + 1], **options) for i in range(len(X))]
    mean = np.mean([single for single, _ in singles])
    assert abs(value - mean) <= 1e-14 * (1 + value) + slack.max()
    for k, pair in enumerate(gradients):
        for which, gradient in enumerate(pair):
            mean = sum(single[k][which] for _, single in singles) / len(X)
            assert_allclose(gradient, mean, rtol=1e-9, atol=1e-10)


@given(DYADIC, st.sampled_from([1, 300, 2000]))
def test_chunks_change_nothing(case, size):
    net, X, y, options = case
    X, y = np.concatenate([X, X[::-1]]), np.concatenate([y, y[::-1]])
    distances, value = rm.distances(net, X, y, p=options["p"]), rm.mmr(net, X, y, **options).value
    mean, gradients = rm.mmr_gradient(net, X, y, **options)
    with patch.object(affine, "CHUNK_BYTES", size):
        chunked = rm.distances(net, X, y, p=options["p"])
        assert_array_equal(chunked.boundary, distances.boundary)
        assert_array_equal(chunked.decision, distances.decision)
        assert_array_equal(rm.mmr(net, X, y, **options).value, value)
        chunked_mean, chunked_gradients = rm.mmr_gradient(net, X, y, **options)
    assert_allclose(chunked_mean, mean, rtol=1e-14)
    for pair, chunked_pair in zip(gradients, chunked_gradients, strict=True):
        for gradient, other in zip(pair, chunked_pair, strict=True):
            assert_allclose(other, gradient, rtol=1e-12, atol=1e-13)
