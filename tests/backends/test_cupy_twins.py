"""Every CuPy twin gives what the reference gives."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refmmr as rm
from refmmr import _backend, testing
from refmmr._kernels import KERNELS
from refmmr.reference import adam, distances, mmr, network, objective, pgd

FUSED = {"test_mmr", "test_objective_gradient", "test_pgd", "test_adam"}
TWIN = {kernel.reference: kernel for kernel in KERNELS.values() if "cupy" in kernel.twins}


def conv(rng, n_out, n_in, kernel, **options):
    weights = rng.standard_normal((n_out, n_in, *kernel))
    return rm.Conv2d(weights, rng.standard_normal(n_out), **options)


def with_dense(rng, layers, input_shape, *sizes):
    """Convolutions with dense layers of some sizes behind them."""
    shape = input_shape
    for layer in layers:
        shape = layer.output_shape(shape)
    dense = rm.Network.mlp([int(np.prod(shape)), *sizes], rng=rng).layers
    return rm.Network([*layers, rm.Flatten(), *dense], input_shape)


def zoo():
    """Networks of every kind of architecture, by name."""
    rng = np.random.default_rng(0)
    front = [
        conv(rng, 3, 2, (2, 3), stride=(1, 2), padding=((1, 0), (2, 1))),
        conv(rng, 2, 3, (3, 1), stride=(2, 1), padding="same"),
        conv(rng, 4, 2, (2, 2), padding=1),
    ]
    gaps = [conv(rng, 2, 1, (1, 2), stride=3, padding=1), conv(rng, 2, 2, (2, 1), padding=2)]
    return {
        "affine": rm.Network.mlp([5, 3], rng=1),
        "one hidden layer": rm.Network.mlp([9, 17, 5], rng=1),
        "deep": rm.Network.mlp([6, 8, 7, 9, 4], rng=1),
        "flattened": with_dense(1, [], (2, 3, 3), 7, 3),
        "lenet_small": rm.Network.lenet_small((3, 7, 9), 4, rng=0),
        "conv, dense": with_dense(rng, [conv(rng, 4, 2, (3, 2), stride=3)], (2, 5, 6), 4),
        "three convs, dense": with_dense(rng, front, (2, 6, 7), 3),
        "stride past the kernel": with_dense(rng, gaps, (1, 7, 8), 4, 3),
        "three convs": rm.Network([*front, rm.Flatten()], (2, 6, 7)),
        "one conv": rm.Network([conv(rng, 2, 1, (2, 3))], (1, 3, 4)),
    }


ZOO = zoo()
NETWORKS = testing.networks() | testing.conv_networks()
MARGINS = {"gamma_b": 0.5, "gamma_d": 1.5}


def both(cupy, function, *args):
    """Results of the reference and of the twin for the same arguments on the host."""
    with rm.use_backend("cupy"):
        twin = TWIN[function](*args)
    return function(*args), twin


def assert_close(expected, found, rtol, scale=None):
    """Equal kinds, and numbers equal up to a share of the largest of all, or of 1."""
    if scale is None:
        scale = max(1, largest(expected))
    assert type(found) is type(expected)
    if isinstance(expected, (tuple, list)):
        assert len(found) == len(expected)
        for parts in zip(expected, found, strict=True):
            assert_close(*parts, rtol, scale)
        return
    assert np.shape(found) == np.shape(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * scale)


def largest(value):
    """The largest finite number anywhere."""
    if isinstance(value, (tuple, list)):
        return max(map(largest, value))
    return np.abs(np.asarray(value))[np.isfinite(value)].max(initial=0)


def inputs(net, n, dtype=np.float64):
    rng = np.random.default_rng(n)
    X = rng.uniform(0, 1, (n, *net.input_shape)).astype(dtype)
    return X, rng.integers(net.n_classes, size=n)


def unit_box(net):
    zeros = np.zeros(net.input_shape, net.dtype)
    return zeros, zeros + 1


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    return request.param


@pytest.fixture
def rtol(dtype):
    return 1e-9 if dtype == np.float64 else 2e-5


@pytest.fixture(params=ZOO)
def net(request, dtype):
    return ZOO[request.param].astype(dtype)


def test_cupy_registers_what_is_declared(cupy):
    registered = {name for name in _backend._twins["cupy"] if name.startswith("refmmr.")}
    assert registered == {kernel.name for kernel in TWIN.values()}


# ------------------------------------------------------------------------------ every architecture


@pytest.mark.parametrize("n", [1, 5])
def test_forward(cupy, net, n, rtol):
    X, _ = inputs(net, n, net.dtype)
    expected, found = both(cupy, network.logits, net, X)
    assert found.dtype == net.dtype
    assert_close(expected, found, rtol)
    expected, found = both(cupy, network.activation_pattern, net, X)
    assert found.dtype == bool
    if net.dtype == np.float64:
        np.testing.assert_array_equal(expected, found)


@pytest.mark.parametrize("boxed", [False, True])
def test_distances(cupy, net, boxed, rtol):
    X, y = inputs(net, 3, net.dtype)
    for p in (1, 2, np.inf):
        expected, found = both(
            cupy, distances.distances, net, X, y, p, unit_box(net) if boxed else None
        )
        assert {d.dtype for d in found} == {net.dtype}
        assert_close(tuple(expected), tuple(found), rtol)


def test_mmr(cupy, net, rtol):
    X, y = inputs(net, 3, net.dtype)
    k_b = max(1, net.n_hidden // 5)
    for p in (1, 2, np.inf):
        args = (net, X, y, p, *MARGINS.values(), k_b, net.n_classes)
        expected, found = both(cupy, mmr.mmr, *args)
        assert_close(expected, found, rtol)
        expected, found = both(cupy, mmr.mmr_gradient, *args)
        assert_close(expected, found, 5 * rtol)
        assert {array.dtype for pair in found[1] for array in pair} == {net.dtype}


@pytest.mark.parametrize("norms", [(), (2,), (1, np.inf)])
def test_objective_gradient(cupy, net, norms, rtol):
    X, y = inputs(net, 3, net.dtype)
    k_b = max(1, net.n_hidden // 5)
    terms = tuple(mmr.Regularizer(p, 0.5, *MARGINS.values(), k_b, net.n_classes) for p in norms)
    expected, found = both(cupy, objective.objective_gradient, net, X, y, terms)
    assert_close(expected, found, 5 * rtol)


@pytest.mark.parametrize("boxed", [False, True])
def test_pgd(cupy, net, boxed, rtol):
    X, y = inputs(net, 3, net.dtype)
    box = unit_box(net) if boxed else None
    for p, eps in ((1, 1.0), (2, 0.4), (np.inf, 0.1)):
        for keep_last in (False, True):
            args = (net, X, y, p, eps, 4, eps / 2, box, X, keep_last)
            expected, found = both(cupy, pgd.pgd, *args)
            assert found.dtype == net.dtype
            assert_close(expected, found, rtol)


def test_pgd_drops_components_that_point_out_of_the_box(cupy, dtype):
    net = rm.Network([rm.Linear([[1, 1], [-1, -1]], [0, 0])], 2).astype(dtype)
    X = np.array([[0.0, 1.0]], dtype)
    box = (np.zeros(2, dtype), np.ones(2, dtype))
    for p in (1, 2, np.inf):
        expected, found = both(cupy, pgd.pgd, net, X, np.array([0]), p, 0.5, 1, 0.5, box, X, True)
        np.testing.assert_array_equal(found, expected)


def test_adam(cupy, dtype):
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (3,), (2, 1, 2, 2)]
    host = [[rng.random(shape).astype(dtype) for shape in shapes] for _ in range(3)]
    there = [[cupy.asarray(array) for array in arrays] for arrays in host]
    for step in range(1, 4):
        gradients = [rng.standard_normal(shape).astype(dtype) for shape in shapes]
        adam.update(*host, gradients, 0.1 / step)
        with rm.use_backend("cupy"):
            TWIN[adam.update](*there, [cupy.asarray(g) for g in gradients], 0.1 / step)
    for ours, theirs in zip(host, there, strict=True):
        for expected, found in zip(ours, theirs, strict=True):
            assert found.dtype == dtype
            # Three steps on numbers of the order of 1, each with a few roundings.
            atol = 4 * np.finfo(dtype).eps
            np.testing.assert_allclose(cupy.asnumpy(found), expected, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------- any network


@given(data=st.data())
def test_exact_networks_are_equal_bit_by_bit(cupy, data):
    net = data.draw(testing.dyadic_networks())
    X, y = data.draw(testing.batches(net, dyadic=True))
    p = data.draw(testing.norms())
    for function in (network.logits, network.activation_pattern):
        expected, found = both(cupy, function, net, X)
        np.testing.assert_array_equal(found, expected)
    expected, found = both(cupy, distances.distances, net, X, y, p)
    np.testing.assert_array_equal(found.boundary, expected.boundary)
    np.testing.assert_array_equal(found.decision, expected.decision)


@given(data=st.data())
def test_distances_within_any_box(cupy, data):
    net = data.draw(testing.dyadic_networks())
    X, y = data.draw(testing.batches(net, dyadic=True))
    box, p = data.draw(testing.boxes(X, dyadic=True)), data.draw(testing.norms())
    expected, found = both(cupy, distances.distances, net, X, y, p, box)
    assert_close(tuple(expected), tuple(found), 1e-12)


@given(data=st.data())
def test_degenerate_networks_have_the_same_gradients(cupy, data):
    net = data.draw(testing.dyadic_networks())
    X, y = data.draw(testing.batches(net, dyadic=True))
    p = data.draw(testing.norms())
    k_b = data.draw(st.integers(1, max(1, net.n_hidden)))
    k_d = data.draw(st.integers(1, net.n_classes))
    args = (net, X, y, p, *MARGINS.values(), k_b, k_d)
    for function in (mmr.mmr, mmr.mmr_gradient):
        assert_close(*both(cupy, function, *args), 1e-12)
    expected, found = both(cupy, objective.objective_gradient, net, X, y)
    assert_close(tuple(expected), tuple(found), 1e-12)


@given(data=st.data())
def test_any_network(cupy, data):
    net = data.draw(NETWORKS)
    X, y = data.draw(testing.batches(net))
    p = data.draw(testing.norms())
    args = (net, X, y, p, *MARGINS.values(), max(1, net.n_hidden // 2), net.n_classes)
    assert_close(*both(cupy, mmr.mmr_gradient, *args), 1e-6)
    box = (X.min(axis=0) - 0.1, X.max(axis=0) + 0.1)
    args = (net, X, y, p, 0.3, 3, 0.1, box, X)
    assert_close(*both(cupy, pgd.pgd, *args), 1e-6)


@pytest.mark.parametrize("name", ["deep", "lenet_small"])
def test_small_chunks_make_no_difference(cupy, name, monkeypatch):
    from refmmr.backends._cupy import hyperplanes
    from refmmr.backends._cupy import network as device_network

    monkeypatch.setattr(hyperplanes, "CHUNK_BYTES", 1)
    monkeypatch.setattr(device_network, "GROUP_BYTES", 1)
    net = ZOO[name]
    X, y = inputs(net, 3)
    args = (net, X, y, 2, *MARGINS.values(), net.n_hidden // 3, net.n_classes)
    assert_close(*both(cupy, mmr.mmr_gradient, *args), 1e-9)
    expected, found = both(cupy, distances.distances, net, X, y, 2)
    assert_close(tuple(expected), tuple(found), 1e-9)
    assert_close(*both(cupy, network.logits, net, X), 1e-9)
    np.testing.assert_array_equal(*both(cupy, network.activation_pattern, net, X))


def test_the_comparison_can_fail(cupy, monkeypatch):
    def wrong(net, X):
        return network.logits(net, X) + 1e-6

    monkeypatch.setitem(_backend._twins["cupy"], TWIN[network.logits].name, wrong)
    net = ZOO["deep"]
    with pytest.raises(AssertionError):
        assert_close(*both(cupy, network.logits, net, inputs(net, 3)[0]), 1e-9)
