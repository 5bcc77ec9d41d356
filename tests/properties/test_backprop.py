"""Every gradient is the limit of difference quotients, and every transpose is one."""

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from refmmr.reference.loss import cross_entropy, input_gradient, loss_gradient
from refmmr.reference.network import flat
from refmmr.testing import (
    batches,
    conv_networks,
    dyadic_networks,
    exact_network,
    fractions,
    networks,
)

SEEDS = st.integers(0, 2**32 - 1)
STEP = 1e-6  # of the difference quotients; rounding costs them 1e-16 / 1e-6


def clear_of_kinks(net, X):
    """No hidden unit comes near 0 within a step."""
    return all((np.abs(f) > 1e-3).all() for f in net.forward(X).outputs[:-1])


@given(networks() | conv_networks(), st.data(), SEEDS)
def test_gradient_to_the_weights(net, data, seed):
    X, y = data.draw(batches(net))
    assume(clear_of_kinks(net, X))
    value, gradients = loss_gradient(net, X, y)
    assert_allclose(value, cross_entropy(net(X), y).mean(), rtol=1e-12)
    rng = np.random.default_rng(seed)
    for k, pair in enumerate(gradients):
        for which, gradient in enumerate(pair):
            direction = rng.uniform(-1, 1, gradient.shape)

            def loss(t, k=k, which=which, direction=direction):
                parameters = [list(pair) for pair in net.parameters]
                parameters[k][which] = parameters[k][which] + t * direction
                return cross_entropy(net.with_parameters(parameters)(X), y).mean()

            slope = (loss(STEP) - loss(-STEP)) / (2 * STEP)
            assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-7)


@given(networks() | conv_networks(), st.data(), SEEDS)
def test_gradient_to_the_inputs(net, data, seed):
    X, y = data.draw(batches(net))
    assume(clear_of_kinks(net, X))
    logits, gradient = input_gradient(net, X, y)
    assert_array_equal(logits, net(X))
    direction = np.random.default_rng(seed).uniform(-1, 1, X.shape)

    def losses(t):
        return cross_entropy(net(X + t * direction), y)

    slopes = (losses(STEP) - losses(-STEP)) / (2 * STEP)
    products = (gradient * direction).reshape(len(X), -1).sum(axis=1)
    assert_allclose(products, slopes, rtol=1e-6, atol=1e-7)


def quarters(rng, shape):
    return rng.integers(-8, 9, shape) / 4


@given(dyadic_networks(), SEEDS)
def test_layers_are_linear_and_transposed(net, seed):
    """``<W x, g> = <x, W^T g>``, exact on multiples of 1/4."""
    rng = np.random.default_rng(seed)
    for layer, shape in zip(net.layers, net.shapes[:-1], strict=True):
        x, z = quarters(rng, (2, *shape)), quarters(rng, (2, *shape))
        y = layer.linear(x)
        assert y.shape[1:] == layer.output_shape(shape)
        assert_array_equal(layer.linear(2 * x - 3 * z), 2 * y - 3 * layer.linear(z))
        assert_array_equal(layer.apply(x) - layer.apply(z), y - layer.linear(z))
        g = quarters(rng, y.shape)
        back = layer.transpose(g, shape)
        assert back.shape == x.shape
        assert (y * g).sum() == (x * back).sum()


@given(dyadic_networks(), SEEDS)
def test_weight_gradients_are_transposed(net, seed):
    """``<W' x + b', g> = <W', dW> + <b', db>`` for any other weights, exactly."""
    rng = np.random.default_rng(seed)
    for i, layer in zip(net.affine, net.affine_layers, strict=True):
        x = quarters(rng, (3, *net.shapes[i]))
        W, b = quarters(rng, layer.W.shape), quarters(rng, layer.b.shape)
        y = layer.with_weights(W, b).apply(x)
        g = quarters(rng, y.shape)
        dW, db = layer.gradient(x, g)
        assert (y * g).sum() == (W * dW).sum() + (b * db).sum()


@given(dyadic_networks(), st.data())
def test_forward_is_exact_on_multiples_of_a_quarter(net, data):
    X, _ = data.draw(batches(net, dyadic=True))
    exact = exact_network(net).forward(fractions(X))
    floats = net.forward(X)
    assert_array_equal(flat(exact.outputs), fractions(flat(floats.outputs)))
    for mask, exact_mask in zip(floats.masks, exact.masks, strict=True):
        assert_array_equal(mask, exact_mask)
