"""The regularizer on Numba leaves out rows of units that cannot count, and no others."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr.reference import distances
from refmmr.reference.hyperplanes import hyperplane_distance

pytest.importorskip("numba", reason="the numba backend needs numba")

from refmmr.backends._numba.distances import Shared
from refmmr.backends._numba.nearest import NearestWorker

DTYPES = [np.float32, np.float64]


def two_convolutions(tail):
    """Channels of the first are no multiple of 4 or 16; patches overlap and leave the image."""
    rng = np.random.default_rng(0)
    filters = [rng.standard_normal(s) / 4 for s in [(18, 2, 3, 4), (5, 18, 4, 3)]]
    convs = [
        rm.Conv2d(filters[0], rng.standard_normal(18) / 4, stride=(2, 1), padding=1),
        rm.Conv2d(filters[1], rng.standard_normal(5) / 4, stride=(1, 2), padding=(2, 1)),
    ]
    shape = convs[1].output_shape(convs[0].output_shape((2, 9, 8)))
    dense = rm.Network.mlp([int(np.prod(shape)), *tail, 4], rng=1).layers
    return rm.Network([*convs, rm.Flatten(), *dense], (2, 9, 8))


def near(net, X, y, p, gamma, k):
    """Norms of all hyperplanes as the regularizer knows them: 0 of those that were left out."""
    worker = NearestWorker(Shared(net, X, p))
    found = [
        (hyperplanes.f_norms[0].copy(), hyperplanes.margin_norms[0].copy())
        for _, hyperplanes in worker.hyperplanes_near(worker.forward(X, y), (gamma,), (k,))
    ]
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def case(tail, dtype):
    net = two_convolutions(tail).astype(dtype)
    rng = np.random.default_rng(2)
    return net, rng.uniform(0, 1, (7, 2, 9, 8)).astype(dtype), rng.integers(4, size=7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize("tail", [(), (30,), (30, 20)])
def test_all_rows_that_may_count_are_made(tail, p, dtype):
    net, X, y = case(tail, dtype)
    around = distances.hyperplanes_around(net, X, y)
    norms, n = around.boundary_norms(p), net.n_hidden
    d = hyperplane_distance(np.abs(around.f), norms)
    kth = np.sort(d, axis=1)
    behind = np.zeros(n, bool)
    behind[n - sum(tail) :] = True
    for gamma, k in ((1e9, n), (1e9, 3), (1e9, n // 4), (np.median(d), n), (kth[:, 5].max(), 9)):
        found, margin_norms = near(net, X, y, p, gamma, k)
        left_out = found == 0
        assert not left_out[:, ~behind].any()
        # Strictly farther than the limit: a tie could be selected instead.
        limit = np.minimum(gamma, kth[:, [k - 1]])
        assert (d > limit)[left_out].all()
        tolerance = 1e-10 if dtype == np.float64 else 1e-4
        assert_allclose(found[~left_out], np.broadcast_to(norms, d.shape)[~left_out], tolerance)
        others = np.ones(margin_norms.shape, bool)
        others[np.arange(len(y)), y] = False
        assert (margin_norms[others] > 0).all()


@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize("tail", [(30,), (30, 20)])
def test_rows_of_far_units_are_left_out(tail, p):
    net, X, y = case(tail, np.float64)
    found, _ = near(net, X, y, p, 1e9, 3)
    first = net.n_hidden - sum(tail)
    for start, size in zip((first, first + 30), tail, strict=False):
        assert (found[:, start : start + size] == 0).mean() > 0.1


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_units_at_the_limit_are_kept(p):
    """Equal distances: a dense unit whose row is that of a unit of the second convolution."""
    net, X, y = case((30,), np.float64)
    *first, (W, b), last = net.parameters
    # Of each sample the nearest active unit of the second convolution, copied by a dense unit.
    pre_activations = net.forward(X).outputs[1].reshape(len(X), -1)
    W, b = np.zeros_like(W), np.full_like(b, 10.0)
    for i, f in enumerate(pre_activations):
        unit = np.where(f > 0, f, np.inf).argmin()
        W[i, unit], b[i] = 1, 0
    net = net.with_parameters([*first, (W, b), last])
    around = distances.hyperplanes_around(net, X, y)
    d = hyperplane_distance(np.abs(around.f), around.boundary_norms(p))
    for i in range(len(X)):
        k = int((d[i] < d[i, -30 + i]).sum()) + 1
        found, _ = near(net, X[i : i + 1], y[i : i + 1], p, 1e9, k)
        assert found[0, -30 + i] > 0


def test_rows_that_count_in_one_of_two_norms_are_made():
    net, X, y = case((30, 20), np.float64)
    worker = NearestWorker(Shared(net, X, 1, np.inf))
    both = [
        hyperplanes.f_norms.copy()
        for _, hyperplanes in worker.hyperplanes_near(worker.forward(X, y), (1e9, 0.2), (3, 5))
    ]
    found = np.concatenate(both, axis=1)
    alone = [near(net, X, y, p, *limits)[0] for p, *limits in ((1, 1e9, 3), (np.inf, 0.2, 5))]
    made = (alone[0] > 0) | (alone[1] > 0)
    assert ((alone[0] > 0) != (alone[1] > 0)).any()
    assert_array_equal(found > 0, [made, made])
    for norms, one in zip(found, alone, strict=True):
        assert_allclose(norms[one > 0], one[one > 0], rtol=1e-12)
