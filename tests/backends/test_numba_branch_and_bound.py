"""The twins of branch and bound compute what the reference computes."""

import numpy as np
import pytest

import refmmr as rm
from refmmr import _kernels
from refmmr.reference import ascent, clipping, envelope
from refmmr.reference import branch_and_bound as bb
from refmmr.reference.backward_bound import layer_bounds
from refmmr.reference.ball import ball

pytest.importorskip("numba")

NORMS = (1, 2, np.inf)


def dense(seed):
    return rm.Network.mlp([7, 16, 12, 3], rng=seed)


def convolutional(seed):
    rng = np.random.default_rng(seed)
    layers = [
        rm.Conv2d(rng.normal(size=(3, 1, 3, 3)), rng.normal(size=3), (2, 2), ((1, 1), (1, 1))),
        rm.Conv2d(rng.normal(size=(2, 3, 2, 2)) / 2, rng.normal(size=2)),
        rm.Flatten(),
        rm.Linear(rng.normal(size=(3, 8)) / 2, rng.normal(size=3)),
    ]
    return rm.Network(layers, (1, 6, 6))


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("make", [dense, convolutional])
def test_gradient_steps(make, p, box, threads):
    rng = np.random.default_rng(0)
    net, n = make(1), 40
    x = rng.uniform(0, 1, (1, *net.input_shape))
    limits = (np.zeros(net.input_shape), np.ones(net.input_shape)) if box else None
    around = ball(x, np.array([0.4]), p, limits)
    bounds = layer_bounds(net, x, p, around.radius, limits, "crown")[:-1]
    nodes = ascent.root(bounds).take(np.zeros(n, int))
    for _ in range(3):
        nodes = bb.split(nodes, rng.integers(0, net.n_hidden, n)).take(np.arange(n))
    rows = rng.normal(size=(n, *net.logits_shape))
    expected = ascent.ascend(net, around, rows, nodes, 5)
    from refmmr.backends import threads as pool

    pool.set_threads(threads)
    try:
        with rm.use_backend("numba"):
            found = _kernels.ascend(net, around, rows, nodes, 5)
    finally:
        pool.set_threads(None)
    for name in ("slopes", "multipliers", "scores"):
        for a, b in zip(getattr(expected, name), getattr(found, name), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(found.points, expected.points, rtol=1e-9, atol=1e-12)
    # The reference subtracts the rounding errors, the twin leaves that to `bound`.
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize("make", [dense, convolutional])
def test_bounds_of_nodes(make, hidden):
    rng = np.random.default_rng(0)
    net, n = make(2), 40
    x = rng.uniform(0, 1, (1, *net.input_shape))
    around = ball(x, np.array([0.4]), np.inf, None)
    bounds = layer_bounds(net, x, np.inf, around.radius, None, "crown")[:hidden]
    nodes = ascent.root(bounds).take(np.zeros(n, int))
    for _ in range(3 * (hidden > 0)):
        units = sum(part[0].size for part in nodes.fixed)
        nodes = bb.split(nodes, rng.integers(0, units, n)).take(np.arange(n))
    multipliers = [rng.uniform(0, 2, part.shape) for part in nodes.fixed]
    nodes = nodes._replace(multipliers=multipliers)
    shape = net.logits_shape if hidden == 2 else net.unit_shapes[hidden]
    rows = rng.normal(size=(n, *shape))
    expected = ascent.bound(net, around, rows, nodes)
    with rm.use_backend("numba"):
        found = _kernels.bound(net, around, rows, nodes)
    np.testing.assert_allclose(found.A, expected.A, rtol=1e-9, atol=1e-12)
    for name in ("constant", "error"):  # the twin rounds intercepts up, too
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=0 if name == "error" else 1e-12)


@pytest.mark.parametrize("box", [True, False])
@pytest.mark.parametrize("p", NORMS)
def test_clipping(p, box):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (1, 9))
    limits = (np.zeros(9), np.ones(9)) if box else None
    around = ball(x, np.array([0.3]), p, limits)
    A, constant, c = rng.normal(size=(6, 9)), rng.normal(size=6), rng.normal(size=(20, 9))
    e, wanted = 0.2 - c @ x[0], rng.random((20, 6)) < 0.7
    with rm.use_backend("numba"):
        found = _kernels.clip_nodes(around, A, constant, c, e, wanted, 12)
    assert (found[~wanted] == -np.inf).all()
    # Both are bounds; the twin stops where little is left to gain, so each may be the better one.
    best = clipping.clip_nodes(around, A, constant, c, e, wanted, 200)
    first = clipping.clip_nodes(around, A, constant, c, e, wanted, 0)
    gap = 2e-3 * (1 + np.abs(best[wanted]))
    assert (found[wanted] >= best[wanted] - gap).all()
    assert (found[wanted] <= best[wanted] + 1e-9 * (1 + np.abs(best[wanted]))).all()
    assert (found[wanted] >= first[wanted] - 1e-9).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_envelopes(threads):
    rng = np.random.default_rng(0)
    net, n = rm.Network.mlp([9, 30, 4], rng=3), 40
    x = rng.uniform(0, 1, (1, 9))
    box = np.zeros(9), np.ones(9)
    around = ball(x, np.array([0.3]), np.inf, box)
    bounds = layer_bounds(net, x, np.inf, around.radius, box, "crown")[:-1]
    nodes = ascent.root(bounds).take(np.zeros(n, int))
    for _ in range(2):
        nodes = bb.split(nodes, rng.integers(0, 30, n)).take(np.arange(n))
    row, centers = rng.normal(size=4), rng.uniform(-1, 1, (n, 9))
    expected = envelope.ascend(net, envelope.hidden(net, around), row, nodes, centers, 2)
    from refmmr.backends import threads as pool

    pool.set_threads(threads)
    try:
        with rm.use_backend("numba"):
            found = _kernels.ascend_envelopes(
                net, envelope.hidden(net, around), row, nodes, centers, 2
            )
    finally:
        pool.set_threads(None)
    # The twin's levels are within one percent, and it computes in float32.
    for name in ("slopes", "multipliers", "scores", "centers"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=0.02)
    lowest = [result.bound.minimum(around) for result in (found, expected)]
    np.testing.assert_allclose(*lowest, atol=0.02)
    np.testing.assert_array_equal(found.points == around.lowest, expected.points == around.lowest)
