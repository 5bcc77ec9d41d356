"""The rivals of the benchmarks compute what the library computes."""

import importlib.util
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import refmmr as rm
from refmmr.testing import batches, dyadic_networks, networks, norms

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "refmmr[torch]"')

pytestmark = pytest.mark.torch

CLOSE = {"rtol": 1e-9, "atol": 1e-11}
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


rivals = load("rivals")
BACKWARD = [rivals.graph_backward, rivals.careful_backward, rivals.expert_backward]


@st.composite
def two_convolutions(draw):
    """Two convolutions and one or two dense hidden layers, as `careful` takes them."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.tuples(st.integers(1, 2), st.integers(5, 9), st.integers(5, 9)))
    layers, size = [], shape
    for channels in (3, 4):
        kernel = draw(st.tuples(*(st.integers(1, min(3, side)) for side in size[1:])))
        W, b = rng.normal(size=(channels, size[0], *kernel)), rng.normal(size=channels) / 2
        stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
        padding = draw(st.sampled_from([0, 1, "same", ((0, 1), (1, 0)), ((1, 0), (2, 1))]))
        layers.append(rm.Conv2d(W / np.sqrt(W[0].size), b, stride, padding))
        size = layers[-1].output_shape(size)
    layers.append(rm.Flatten())
    sizes = [int(np.prod(size)), *draw(st.sampled_from([[5], [5, 4]])), 3]
    for n, m in pairwise(sizes):
        layers.append(rm.Linear(rng.normal(size=(m, n)) / np.sqrt(n), rng.normal(size=m) / 2))
    return rm.Network(layers, shape)


def flawed():
    """A small lenet with a zero filter, a dead one, and a unit without a hyperplane."""
    net = rm.Network.lenet_small((1, 9, 10), 4, rng=1)
    parameters = [(W.copy(), b + 0.01) for W, b in net.parameters]
    parameters[0][0][2], parameters[0][1][2] = 0, 0
    parameters[1][0][3], parameters[1][1][3] = -1, -1
    parameters[2][0][5] = 0
    return net.with_parameters(parameters)


NETS = networks() | two_convolutions() | st.builds(flawed)


def tensors(X, y):
    return torch.tensor(X), torch.tensor(y)


def assert_same_gradients(model, gradients):
    for pair, expected in zip(model.gradients(), gradients, strict=True):
        for gradient, wanted in zip(pair, expected, strict=True):
            scale = max(1, np.abs(wanted).max())
            assert_allclose(gradient / scale, wanted / scale, **CLOSE)


def assert_same_mmr(net, X, y, p, asked):
    value, gradients = rm.mmr_gradient(net, X, y, p, **asked)
    for backward in BACKWARD:
        model = rivals.Model(net)
        found = backward(model, *tensors(X, y), rivals.Options(p, **asked))
        assert_allclose(found, value, **CLOSE)
        assert_same_gradients(model, gradients)


@given(NETS, st.data(), norms(), st.sampled_from([0.1, 1.0, 5.0]), st.sampled_from([0.1, 1.0]))
def test_mmr(net, data, p, gamma_b, gamma_d):
    X, y = data.draw(batches(net))
    k_b = data.draw(st.integers(1, max(1, net.n_hidden)))
    k_d = data.draw(st.integers(1, net.n_classes))
    asked = {"gamma_b": gamma_b, "gamma_d": gamma_d, "k_b": k_b, "k_d": k_d}
    assert_same_mmr(net, X, y, p, asked)


@given(dyadic_networks(conv=False), st.data(), st.sampled_from([2, np.inf]))
def test_mmr_of_degenerate_networks(net, data, p):
    # All hyperplanes count: which of several equally near ones count would be a matter of taste.
    X, y = data.draw(batches(net, dyadic=True))
    asked = {"gamma_b": 0.7, "gamma_d": 0.7, "k_b": max(1, net.n_hidden), "k_d": net.n_classes}
    assert_same_mmr(net, X, y, p, asked)


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_mmr_in_chunks(p):
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    rng = np.random.default_rng(0)
    X, y = rng.uniform(0, 1, (rivals.CHUNK * 2 + 3, 1, 8, 8)), rng.integers(3, size=19)
    assert_same_mmr(net, X, y, p, {"gamma_b": 0.3, "gamma_d": 0.5, "k_b": 70, "k_d": 3})


@given(NETS, st.data(), norms())
def test_distances(net, data, p):
    X, y = data.draw(batches(net))
    expected = rm.distances(net, X, y, p)
    for measure in (rivals.careful_distances, rivals.all_graph_distances):
        d_B, d_D = measure(rivals.Model(net), *tensors(X, y), p)
        assert_allclose(d_B.numpy(), expected.boundary, **CLOSE)
        # A hyperplane that is not there is infinitely far on either side.
        decision = np.where(np.isinf(expected.decision), np.inf, expected.decision)
        assert_allclose(d_D.numpy(), decision, **CLOSE)


@given(NETS, st.data(), st.sampled_from([2, np.inf]))
def test_distances_in_a_box(net, data, p):
    X, y = data.draw(batches(net, low=0, high=1))
    expected = rm.distances(net, X, y, p, box=(0, 1))
    for found, wanted in zip(
        rivals.box_distances(rivals.Model(net), *tensors(X, y), p), expected, strict=True
    ):
        assert_allclose(found.abs().numpy(), np.abs(wanted), **CLOSE)
        finite = np.isfinite(wanted)
        assert_allclose(found.numpy()[finite], wanted[finite], **CLOSE)


@given(NETS, st.data(), st.sampled_from([2, np.inf]))
def test_pgd(net, data, p):
    X, y = data.draw(batches(net, low=0, high=1))
    expected = rm.pgd(net, X, y, p, eps=0.3, steps=5, keep="last")
    found = rivals.pgd(rivals.Model(net), *tensors(X, y), p, 0.3, 5)
    assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scheme", ["mmr", "mmr+at"])
@pytest.mark.parametrize("backward", BACKWARD)
def test_training(scheme, backward):
    net = rm.Network.mlp([6, 12, 3], rng=0)
    rng = np.random.default_rng(0)
    X, y = rng.uniform(0, 1, (17, 6)), rng.integers(3, size=17)
    expected, _ = rm.fit(
        net, X, y, scheme, p=2, eps=0.1, lam=2, gamma=0.3, epochs=1, batch_size=8, lr=1e-3,
        pgd_steps=5, k_b_shares=(0.5, 0.5),
    )  # fmt: skip
    model = rivals.Model(net)
    order = np.random.default_rng([0, 0]).permutation(17)[:16].reshape(2, 8)
    # In its first epoch `fit` takes a tenth of lambda.
    asked = rivals.Options(2, 0.3, 0.3, 6, 3, lam=0.2, weight=1.0)
    attack = rivals.Attack(0.1, 5) if scheme == "mmr+at" else None
    rivals.epoch(model, *tensors(X, y), order, asked, 1e-3, attack, backward)
    leaves = iter(model.leaves)
    for pair in expected.parameters:
        for array in pair:
            assert_allclose(next(leaves).detach().numpy(), array, rtol=1e-7, atol=1e-9)


def test_other_architectures_are_refused():
    net = rm.Network([rm.Conv2d(np.ones((1, 1, 2, 2)), [0]), rm.Flatten()], (1, 2, 2))
    with pytest.raises(ValueError, match="two convolutions"):
        rivals.careful_distances(rivals.Model(net), torch.ones(1, 1, 2, 2), torch.zeros(1), 2)
