"""Gradients against autograd, of the method written once more in PyTorch from its formulas."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import refmmr as rm
from refmmr.reference.loss import input_gradient, loss_gradient
from refmmr.testing import batches, conv_networks, networks, norms

torch = pytest.importorskip("torch", reason='PyTorch is not installed: pip install "refmmr[torch]"')

pytestmark = pytest.mark.torch

NETS = networks() | conv_networks()
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


def tensor(array, **options):
    return torch.tensor(np.asarray(array, dtype=float), dtype=torch.float64, **options)


def leaves(net):
    """One (W, b) per layer with weights, for autograd."""
    return [
        (tensor(W, requires_grad=True), tensor(b, requires_grad=True)) for W, b in net.parameters
    ]


def pre_activations(net, parameters, x):
    """``f_1, ..., f_{L+1}`` of a batch, flat, with PyTorch's own layers."""
    outputs, k = [], 0  # Flatten commutes with the ReLU before it
    for layer in net.layers:
        if isinstance(layer, rm.Flatten):
            x = x.flatten(1)
            continue
        if k > 0:
            x = torch.relu(x)
        W, b = parameters[k]
        if isinstance(layer, rm.Conv2d):
            (top, bottom), (left, right) = layer.pads(*x.shape[-2:])
            x = torch.nn.functional.pad(x, (left, right, top, bottom))
            x = torch.nn.functional.conv2d(x, W, b, stride=layer.stride)
        else:
            x = torch.nn.functional.linear(x, W, b)
        outputs.append(x.flatten(1))
        k += 1
    return outputs


def mmr(net, parameters, X, y, p, gamma_b, gamma_d, k_b, k_d):
    """The mean regularizer; V is the Jacobian that autograd finds."""
    q = {1: torch.inf, 2: 2, np.inf: 1}[p]
    total = torch.zeros((), dtype=torch.float64)
    for x, c in zip(X, y, strict=True):
        x = tensor(x)[None]

        def outputs(z):
            return torch.cat(pre_activations(net, parameters, z), dim=1)[0]

        f = outputs(x)
        V = torch.autograd.functional.jacobian(outputs, x, create_graph=True).flatten(1)
        logits, rows = f[net.n_hidden :], V[net.n_hidden :]
        others = [s for s in range(net.n_classes) if s != c]
        d_B = distances(f[: net.n_hidden].abs(), V[: net.n_hidden], q)
        d_D = distances(logits[c] - logits[others], rows[c] - rows[others], q)
        for d, gamma, k in ((d_B, gamma_b, k_b), (d_D, gamma_d, k_d)):
            total = total + torch.relu(1 - d.sort().values[:k] / gamma).sum() / k
    return total / len(X)


def distances(f, V, q):
    """``f / ||V||_q`` of the hyperplanes that exist."""
    hyperplanes = (V != 0).any(dim=1)
    return f[hyperplanes] / torch.linalg.vector_norm(V[hyperplanes], ord=q, dim=1)


def assert_same_gradients(gradients, parameters):
    for pair, leaf_pair in zip(gradients, parameters, strict=True):
        for gradient, leaf in zip(pair, leaf_pair, strict=True):
            expected = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
            scale = max(1, np.abs(gradient).max())
            assert_allclose(gradient / scale, expected.numpy() / scale, **CLOSE)


@given(NETS, st.data())
def test_backprop(net, data):
    X, y = data.draw(batches(net))
    parameters = leaves(net)
    x = tensor(X, requires_grad=True)
    logits = pre_activations(net, parameters, x)[-1]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(y), reduction="none")
    value, gradients = loss_gradient(net, X, y)
    assert_allclose(value, losses.mean().item(), **CLOSE)
    losses.mean().backward(retain_graph=True)
    assert_same_gradients(gradients, parameters)
    x.grad = None
    losses.sum().backward()
    assert_allclose(input_gradient(net, X, y)[1], x.grad.numpy(), **CLOSE)


@given(NETS, st.data(), norms())
def test_a_step_of_pgd_goes_up_the_gradient(net, data, p):
    X, y = data.draw(batches(net))
    x = tensor(X, requires_grad=True)
    logits = pre_activations(net, leaves(net), x)[-1]
    torch.nn.functional.cross_entropy(logits, torch.tensor(y), reduction="sum").backward()
    g = x.grad.flatten(1)
    if p == np.inf:
        assume((g.abs() > 1e-9).all())
        step = g.sign()
    elif p == 2:
        step = g / g.norm(dim=1, keepdim=True)
        assume((g.norm(dim=1) > 1e-9).all())
    else:
        assume(g.shape[1] == 1 or (g.abs().topk(2).values.diff().abs() > 1e-9).all())
        assume((g.abs().max(dim=1).values > 1e-9).all())
        step = torch.zeros_like(g).scatter(1, g.abs().argmax(dim=1, keepdim=True), 1.0) * g.sign()
    options = {"eps": 0.1, "steps": 1, "step_size": 0.1, "box": None, "keep": "last"}
    found = rm.pgd(net, X, y, p, **options)
    assert_allclose(found, X + 0.1 * step.numpy().reshape(X.shape), **CLOSE)


@given(NETS, st.data(), norms(), st.sampled_from([0.1, 1.0, 5.0]), st.sampled_from([0.1, 1.0]))
def test_mmr(net, data, p, gamma_b, gamma_d):
    X, y = data.draw(batches(net))
    options = {
        "p": p,
        "gamma_b": gamma_b,
        "gamma_d": gamma_d,
        "k_b": data.draw(st.integers(1, max(1, net.n_hidden))),
        "k_d": data.draw(st.integers(1, net.n_classes)),
    }
    parameters = leaves(net)
    expected = mmr(net, parameters, X, y, **options)
    value, gradients = rm.mmr_gradient(net, X, y, **options)
    assert_allclose(value, expected.item(), **CLOSE)
    assert_allclose(rm.mmr(net, X, y, **options).value.mean(), expected.item(), **CLOSE)
    if expected.requires_grad:  # not where no hyperplane exists
        expected.backward()
    assert_same_gradients(gradients, parameters)
