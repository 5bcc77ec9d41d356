"""The Wong-Kolter bound: it holds on the whole ball, and behaves as a bound must."""

import numpy as np
from helpers import value_errors
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from refmmr.reference import backward_bound, loss, wong_kolter
from refmmr.testing import batches, conv_networks, networks, norms

SEEDS = st.integers(0, 2**32 - 1)
NETWORKS = networks() | conv_networks()


@st.composite
def cases(draw, nets=NETWORKS):
    """A network, a batch, a norm and a radius."""
    net = draw(nets)
    X, y = draw(batches(net))
    return net, X, y, draw(norms()), draw(st.sampled_from([1e-3, 0.03, 0.2, 1.0]))


def in_ball(rng, x, p, eps):
    """Points of the ball around x, many of them on its surface."""
    z = rng.normal(size=(60, x.size)) * (rng.uniform(size=(60, x.size)) < rng.uniform(size=(60, 1)))
    if p == np.inf:
        z[::2] = np.sign(z[::2])
    lengths = np.linalg.norm(z, p, axis=1, keepdims=True)
    z = eps * np.divide(z, lengths, out=np.zeros_like(z), where=lengths > 0)
    z *= np.where(np.arange(60) % 3 == 0, rng.uniform(0, 1, 60), 1)[:, None]
    return x + z.reshape(60, *x.shape)


@given(cases(), SEEDS)
def test_no_point_of_the_ball_is_worse(case, seed):
    net, X, y, p, eps = case
    margins = wong_kolter.robust_margins(net, X, y, p, eps)
    bounds = [layer.bounds for layer in wong_kolter.forward(net, X, y, p, eps)]
    rng = np.random.default_rng(seed)
    for i, (x, c) in enumerate(zip(X, y, strict=True)):
        Z = in_ball(rng, x, p, eps)
        outputs = net.forward(Z).outputs
        # These bounds, of training, are not rounded down; all are made of terms of this size.
        errors = [32 * error.max() for error in value_errors(net, np.abs(Z) + eps)]
        for (lower, upper), f, slack in zip(bounds[:-1], outputs[:-1], errors, strict=False):
            f = f.reshape(60, -1)
            assert (f >= lower[i] - slack).all()
            assert (f <= upper[i] + slack).all()
        logits = outputs[-1].reshape(60, -1)
        found = logits[:, [c]] - logits
        assert (found >= margins[i] - 4 * errors[-1]).all()


@given(cases(), SEEDS)
def test_the_loss_is_at_least_that_of_any_point(case, seed):
    net, X, y, p, eps = case
    value, error, _ = wong_kolter.robust_loss_gradient(net, X, y, p, eps)
    rng = np.random.default_rng(seed)
    Z = np.stack([in_ball(rng, x, p, eps)[0] for x in X])
    logits = net.logits(Z)
    slack = 64 * value_errors(net, np.abs(Z) + eps)[-1].max()
    assert value >= loss.cross_entropy(logits, y).mean() - slack
    assert error >= (np.argsort(logits, axis=1)[:, -1] != y).mean() - 1e-12


@given(cases(networks(max_hidden_layers=1)))
def test_certificates_of_one_hidden_layer_say_the_same(case):
    """`backward_bound` has the same relaxation; of deeper networks its intervals may be tighter."""
    net, X, y, p, eps = case
    margins = wong_kolter.robust_margins(net, X, y, p, eps)
    radius = np.full(len(X), eps)
    certified = backward_bound.margin_bounds(net, X, y, p, radius, None, "fast-lin")
    certified[np.arange(len(y)), y] = 0
    assert_allclose(certified, margins, rtol=1e-9, atol=1e-9 * (1 + np.abs(margins).max()))


@given(cases(), SEEDS)
def test_gradient_against_differences(case, seed):
    """Along a random direction in the space of all weights, unless a kink is near."""
    net, X, y, p, eps = case
    rng = np.random.default_rng(seed)
    direction = [(rng.normal(size=W.shape), rng.normal(size=b.shape)) for W, b in net.parameters]
    _, _, gradients = wong_kolter.robust_loss_gradient(net, X, y, p, eps)
    slope = sum(
        (dW * eW).sum() + (db * eb).sum()
        for (dW, db), (eW, eb) in zip(gradients, direction, strict=True)
    )

    def value(t):
        moved = [
            (W + t * eW, b + t * eb)
            for (W, b), (eW, eb) in zip(net.parameters, direction, strict=True)
        ]
        return wong_kolter.robust_loss_gradient(net.with_parameters(moved), X, y, p, eps)[0]

    step = 1e-6
    here, ahead, behind = value(0), value(step), value(-step)
    right, left = (ahead - here) / step, (here - behind) / step
    # At a kink the derivative is between the one-sided ones.
    scale = 1e-4 * (1 + abs(right) + abs(left) + abs(here))
    assert min(left, right) - scale <= slope <= max(left, right) + scale


@given(cases(), SEEDS)
def test_order_of_the_samples_does_not_matter(case, seed):
    net, X, y, p, eps = case
    order = np.random.default_rng(seed).permutation(len(X))
    value, error, gradients = wong_kolter.robust_loss_gradient(net, X, y, p, eps)
    again = wong_kolter.robust_loss_gradient(net, X[order], y[order], p, eps)
    assert_allclose(again[0], value, rtol=1e-9)
    for pair, other in zip(again[2], gradients, strict=True):
        for found, wanted in zip(pair, other, strict=True):
            assert_allclose(found, wanted, rtol=1e-6, atol=1e-9 * (1 + np.abs(wanted).max()))
    margins = wong_kolter.robust_margins(net, X, y, p, eps)
    assert_allclose(
        wong_kolter.robust_margins(net, X[order], y[order], p, eps),
        margins[order],
        rtol=1e-9,
        atol=1e-9 * (1 + np.abs(margins).max()),
    )
    assert 0 <= error <= 1
