"""Options of the regularizer, of the authors' code, on the backends."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

import refmmr as rm
from refmmr import _kernels
from refmmr.reference.mmr import Regularizer
from refmmr.reference.objective import objective_gradient

INF = np.inf


def networks():
    rng = np.random.default_rng(3)

    def conv(n_out, n_in, *kernel, **options):
        weights = rng.standard_normal((n_out, n_in, *kernel)) / 3
        return rm.Conv2d(weights, rng.standard_normal(n_out) / 4, **options)

    def dense(n_out, n_in):
        return rm.Linear(rng.standard_normal((n_out, n_in)) / 3, rng.standard_normal(n_out) / 4)

    one = [conv(3, 2, 3, 2, stride=2, padding=((1, 1), (0, 1)))]
    two = [conv(3, 1, 3, 3, padding=1), conv(2, 3, 2, 2, stride=2, padding=1)]
    return {
        "affine": rm.Network.mlp([5, 3], rng=1),
        "one hidden layer": rm.Network.mlp([9, 30, 5], rng=1),
        "deep": rm.Network.mlp([6, 12, 10, 4], rng=1),
        "lenet_small": rm.Network.lenet_small((2, 6, 6), 4, rng=0),
        "one convolution": rm.Network([*one, rm.Flatten(), dense(3, 27)], (2, 5, 5)),
        "two convolutions": rm.Network([*two, rm.Flatten(), dense(7, 18), dense(3, 7)], (1, 5, 5)),
        "three convolutions": rm.Network(
            [*two, conv(2, 2, 2, 2, padding=1), rm.Flatten(), dense(3, 32)], (1, 5, 5)
        ),
        "convolutions alone": rm.Network([*two, conv(1, 2, 2, 2), rm.Flatten()], (1, 4, 4)),
    }


NETWORKS = networks()
TERMS = {
    "l_1": [(1, 1.0, 2.0)],
    "l_2": [(2, 1.0, 0.7)],
    "l_inf": [(INF, 1.0, 0.3)],
    "both": [(1, 0.5, 2.0), (INF, 2.0, 0.3)],
}


def arguments(net, norms, dtype):
    rng = np.random.default_rng(5)
    X = rng.uniform(0, 1, (7, *net.input_shape)).astype(dtype)
    k_b = max(1, net.n_hidden // 5)
    terms = tuple(
        Regularizer(p, lam, gamma, gamma, k_b, net.n_classes) for p, lam, gamma in TERMS[norms]
    )
    return X, rng.integers(0, net.n_classes, len(X)), terms


def check(backend, name, norms, border, nearest, dtype):
    net = NETWORKS[name]
    X, y, terms = arguments(net, norms, np.float64)
    expected = objective_gradient(net, X, y, terms, border, nearest)
    X = X.astype(dtype)
    with rm.use_backend(backend):
        found = _kernels.objective_gradient(net.astype(dtype), X, y, terms, border, nearest)
    rtol = 1e-10 if dtype == np.float64 else 2e-5
    assert found.wrong == expected.wrong
    assert_allclose(found[:2], expected[:2], rtol=rtol)
    for pair, others in zip(found.gradients, expected.gradients, strict=True):
        for array, other in zip(pair, others, strict=True):
            assert array.dtype == dtype
            assert_allclose(array, other, rtol=0, atol=20 * rtol * max(1, np.abs(other).max()))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("nearest", ["each", "union"])
@pytest.mark.parametrize("border", ["exact", "full-filter"])
@pytest.mark.parametrize("norms", TERMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_numba(name, norms, border, nearest, dtype):
    pytest.importorskip("numba", reason="the numba backend needs numba")
    check("numba", name, norms, border, nearest, dtype)


@pytest.mark.parametrize("nearest", ["each", "union"])
@pytest.mark.parametrize("border", ["exact", "full-filter"])
@pytest.mark.parametrize("name", NETWORKS)
def test_cupy(cupy, name, border, nearest):
    check("cupy", name, "both", border, nearest, np.float64)


@pytest.mark.parametrize("norms", TERMS)
def test_border_on_the_device(cupy, norms):
    """No host is needed for it: arrays on the device stay there."""
    net = NETWORKS["two convolutions"]
    X, y, terms = arguments(net, norms, np.float32)
    expected = objective_gradient(net, X.astype(float), y, terms, "full-filter")
    with rm.use_backend("cupy"):
        there = net.astype(np.float32), cupy.asarray(X), cupy.asarray(y)
        found = _kernels.objective_gradient(*there, terms, "full-filter")
    assert_allclose(float(found.mmr), expected.mmr, rtol=1e-5)
    dW, _ = found.gradients[0]
    assert_allclose(dW.get(), expected.gradients[0][0], atol=1e-4)
