"""The compiled bound of Wong and Kolter and its gradient: the reference's, up to rounding.

The gradient jumps where a unit is just about to be unstable, or a coefficient to change its sign.
Random weights keep away from there, except for what is exactly 0; that stays exactly 0.
"""

import importlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr import _kernels, testing
from refmmr.backends import threads
from refmmr.reference import wong_kolter

pytest.importorskip("numba", reason="the numba backend needs numba")
numba_twin = importlib.import_module("refmmr.backends._numba.wong_kolter")
numba_rows = importlib.import_module("refmmr.backends._numba.wong_kolter_rows")

INF = np.inf
NORMS = pytest.mark.parametrize("p", [1, 2, INF])
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32])
PRECISION = {np.float64: 1e-11, np.float32: 3e-4}


def assert_same(net, X, y, p, eps, precision=1e-11, reach=0.0):
    """Value, error and gradients; each gradient as close as its largest entry allows."""
    expected = wong_kolter.robust_loss_gradient(net, X, y, p, eps)
    with rm.use_backend("numba"):
        value, error, gradients = _kernels.robust_loss_gradient(net, X, y, p, eps)
    assert_allclose(value, expected[0], rtol=precision, atol=precision * reach)
    assert error == expected[1]
    for pair, wanted in zip(gradients, expected[2], strict=True):
        for found, part in zip(pair, wanted, strict=True):
            assert found.shape == part.shape
            assert found.dtype == part.dtype
            assert_allclose(found, part, rtol=0, atol=precision * max(np.abs(part).max(), reach))
    return value, error, gradients


def random_layer(rng, kind, *args, **options):
    """A layer of the right size whose outputs are about as large as its inputs."""
    if kind is rm.Linear:
        fan_in, fan_out = args
        W = rng.normal(size=(fan_out, fan_in)) / np.sqrt(fan_in)
        return rm.Linear(W, 0.3 * rng.normal(size=fan_out))
    channels_in, channels_out, kernel_shape = args
    W = rng.normal(size=(channels_out, channels_in, *kernel_shape))
    W /= np.sqrt(channels_in * np.prod(kernel_shape))
    return rm.Conv2d(W, 0.3 * rng.normal(size=channels_out), **options)


def with_dtype(net, dtype):
    return net.with_parameters([(W.astype(dtype), b.astype(dtype)) for W, b in net.parameters])


def dense(*sizes):
    rng = np.random.default_rng(sum(sizes))
    layers = [random_layer(rng, rm.Linear, *pair) for pair in pairwise(sizes)]
    return rm.Network(layers, sizes[:1])


def two_convs():
    """Strides and paddings differ between the directions; a border unit sees mostly padding."""
    rng = np.random.default_rng(1)
    layers = [
        random_layer(rng, rm.Conv2d, 2, 3, (3, 2), stride=(2, 1), padding=((1, 2), (0, 1))),
        random_layer(rng, rm.Conv2d, 3, 4, (2, 3), stride=(1, 2), padding="same"),
        rm.Flatten(),
        random_layer(rng, rm.Linear, 48, 6),
        random_layer(rng, rm.Linear, 6, 5),
    ]
    return rm.Network(layers, (2, 6, 5))


def three_convs():
    """Windows of the third one are larger than the image."""
    rng = np.random.default_rng(2)
    layers = [
        random_layer(rng, rm.Conv2d, 2, 3, (3, 2), stride=1, padding=((1, 2), (0, 1))),
        random_layer(rng, rm.Conv2d, 3, 2, (3, 3), stride=(2, 1), padding="same"),
        random_layer(rng, rm.Conv2d, 2, 3, (4, 3), stride=(1, 2), padding=2),
        rm.Flatten(),
        random_layer(rng, rm.Linear, 60, 4),
    ]
    return rm.Network(layers, (2, 6, 5))


def padding_only():
    """Some units of both convolutions see nothing but padding."""
    rng = np.random.default_rng(4)
    layers = [
        random_layer(rng, rm.Conv2d, 1, 2, (2, 2), stride=2, padding=3),
        random_layer(rng, rm.Conv2d, 2, 3, (2, 2), stride=2, padding=2),
        rm.Flatten(),
        random_layer(rng, rm.Linear, 48, 3),
    ]
    return rm.Network(layers, (1, 3, 3))


def only_convs():
    """The logits are a convolution's, too, which is then made dense."""
    rng = np.random.default_rng(3)
    layers = [
        random_layer(rng, rm.Conv2d, 1, 2, (3, 3), stride=2, padding=1),
        random_layer(rng, rm.Conv2d, 2, 2, (2, 1), stride=1, padding=0),
        rm.Flatten(),
    ]
    return rm.Network(layers, (1, 4, 3))


NETWORKS = {
    "no hidden layer": dense(5, 4),
    "one": dense(5, 7, 4),
    "two": dense(5, 9, 8, 4),
    "three": dense(5, 6, 5, 7, 3),
    "two convolutions": two_convs(),
    "three convolutions": three_convs(),
    "only convolutions": only_convs(),
    "padding only": padding_only(),
}


def batch(net, n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.uniform(size=(n, *net.input_shape)).astype(net.dtype)
    return X, rng.integers(net.n_classes, size=n)


@NORMS
@DTYPES
@pytest.mark.parametrize("eps", [1e-6, 0.1, 3.0])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_as_the_reference(name, eps, dtype, p):
    net = with_dtype(NETWORKS[name], dtype)
    X, y = batch(net, 5)
    assert_same(net, X, y, p, eps, PRECISION[dtype])


@given(st.data())
@settings(deadline=None, max_examples=100)
def test_same_as_the_reference_for_any_network(data):
    net = data.draw(st.one_of(testing.networks(), testing.conv_networks()))
    X, y = data.draw(testing.batches(net))
    p = data.draw(testing.norms())
    eps = data.draw(st.sampled_from([1e-9, 1e-2, 0.3, 2.0, 100.0]))
    # What is 0 but for rounding is compared with what it is a sum of.
    reach = 1.0
    for W, _ in net.parameters:
        reach *= 1 + np.abs(W).reshape(len(W), -1).sum(axis=1).max()
    reach *= 1 + eps + np.abs(X).max()
    assert_same(net, X, y, p, eps, 1e-9, reach)


@NORMS
def test_inactive_and_active_units(p):
    """Some units are inactive and some active on every ball: relaxations without an intercept."""
    net = dense(6, 12, 9, 3)
    parameters = [(W.copy(), b.copy()) for W, b in net.parameters]
    for _, b in parameters[:-1]:
        b[:3], b[3:5] = -50, 50
    net = net.with_parameters(parameters)
    X, y = batch(net, 7)
    _, _, gradients = assert_same(net, X, y, p, 0.1)
    for dW, db in gradients[:-1]:
        assert_array_equal(dW[:3], 0)
        assert_array_equal(db[:3], 0)
        assert dW[3:5].any()


@NORMS
def test_rows_of_zeros(p):
    """A unit without weights is a number; its norm is 0 and has no gradient."""
    for name in ("two", "two convolutions"):
        net = NETWORKS[name]
        parameters = [(W.copy(), b.copy()) for W, b in net.parameters]
        for W, _ in parameters:
            W[0] = 0
        parameters[1][1][0] = 0
        net = net.with_parameters(parameters)
        X, y = batch(net, 4)
        assert_same(net, X, y, p, 0.2)


@pytest.mark.parametrize("channels", [1, 3])
def test_of_equally_large_coefficients_the_first_counts(channels):
    """For p = 1, the first in the order of the input: channel, row, column."""
    shape = (channels, 4, 4)
    rng = np.random.default_rng(0)
    W = np.where(rng.integers(2, size=(4, channels, 3, 3)), 0.25, -0.25)
    layers = [
        rm.Conv2d(W, 0.1 * rng.normal(size=4), stride=1, padding=1),
        rm.Flatten(),
        random_layer(rng, rm.Linear, 64, 3),
    ]
    net = rm.Network(layers, shape)
    X, y = batch(net, 4)
    assert_same(net, X, y, 1, 0.1)


@NORMS
def test_equal_margins_are_errors(p):
    """Two classes with the same weights: margins of exactly 0."""
    net = NETWORKS["one"]
    (W, b), (V, c) = net.parameters
    V, c = V.copy(), c.copy()
    V[1], c[1] = V[0], c[0]
    net = net.with_parameters([(W, b), (V, c)])
    X = batch(net, 6)[0]
    _, error, _ = assert_same(net, X, np.zeros(6, np.intp), p, 1e-6)
    assert error == 1


@pytest.fixture
def several_threads():
    threads.set_threads(3)
    yield
    threads.set_threads(None)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize(
    ("name", "numbers"), [("one", 1), ("one", 700), ("three", 1), ("two convolutions", 1)]
)
def test_blocks_and_threads(name, numbers, monkeypatch):
    """Blocks of rows and runs of samples end where they should; no sample sees another's state."""
    net = NETWORKS[name]
    X, y = batch(net, 23)
    monkeypatch.setattr(numba_rows, "NUMBERS", numbers)
    monkeypatch.setattr(numba_twin, "SAMPLES", 3)
    monkeypatch.setattr(numba_twin, "PRODUCTS_PER_THREAD", 1)
    assert_same(net, X, y, 2, 0.1)


@DTYPES
def test_network_of_the_paper(dtype):
    """On a few samples: the reference takes seconds for one."""
    net = with_dtype(rm.Network.lenet_small((1, 12, 12), 10, rng=0), dtype)
    X, y = batch(net, 2)
    assert_same(net, X, y, INF, 0.05, PRECISION[dtype])


@pytest.mark.parametrize("name", ["one", "two convolutions"])
def test_weights_that_are_not_numbers_show(name):
    """A training that diverges is recognised by its loss."""
    net = NETWORKS[name]
    for k in range(len(net.parameters) - 1):
        damaged = net.map(np.copy)
        damaged.parameters[k][0][0] = np.nan
        X, y = batch(net, 3)
        with rm.use_backend("numba"):
            assert not np.isfinite(_kernels.robust_loss_gradient(damaged, X, y, INF, 0.1)[0])


@pytest.mark.parametrize("sizes", [[64, 20, 10], [64, 20, 12, 10]])
def test_training_on_numba(sizes, monkeypatch):
    """The same weights as on NumPy; no kernel is missing."""
    monkeypatch.setenv("REFMMR_STRICT", "1")
    data = rm.datasets.load("digits")
    options = {"p": 2, "eps": 0.1, "epochs": 2, "batch_size": 32, "rng": 1, "progress": False}
    X, y = data.X_train[:128], data.y_train[:128]
    runs = []
    for backend in ("numpy", "numba"):
        with rm.use_backend(backend):
            runs.append(rm.fit(rm.Network.mlp(sizes, rng=0), X, y, "kw", **options))
    (net, history), (other, other_history) = runs
    for pair, other_pair in zip(net.parameters, other.parameters, strict=True):
        for array, other_array in zip(pair, other_pair, strict=True):
            assert_allclose(array, other_array, rtol=0, atol=1e-11)
    for column in ("loss", "robust_error"):
        assert_allclose(history[column], other_history[column], rtol=1e-11)
