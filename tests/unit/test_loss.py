import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from refmmr import Linear, Network
from refmmr.reference.loss import (
    cross_entropy,
    cross_entropy_gradient,
    input_gradient,
    loss_gradient,
    softmax,
)


def test_by_hand():
    logits, y = np.log([[1.0, 3.0], [2.0, 2.0]]), np.array([0, 1])
    assert_allclose(softmax(logits), [[0.25, 0.75], [0.5, 0.5]], rtol=1e-15)
    assert_allclose(cross_entropy(logits, y), np.log([4, 2]), rtol=1e-15)
    assert_allclose(cross_entropy_gradient(logits, y), [[-0.75, 0.75], [0.5, -0.5]], rtol=1e-15)


def test_equal_logits_cost_the_logarithm_of_their_number():
    assert_allclose(cross_entropy(np.full((1, 7), 3.0), np.array([2])), [np.log(7)], rtol=1e-15)


def test_large_logits_do_not_overflow():
    logits = np.array([[1e5, 0.0], [1e5, 0.0], [-1e5, -1e5]])
    y = np.array([0, 1, 0])
    assert_allclose(cross_entropy(logits, y), [0, 1e5, np.log(2)], rtol=1e-15)
    assert_array_equal(softmax(logits), [[1, 0], [1, 0], [0.5, 0.5]])


def test_arguments_are_left_as_they_are():
    logits = np.array([[1.0, 2.0]])
    cross_entropy_gradient(logits, np.array([0]))
    assert_array_equal(logits, [[1, 2]])


def test_gradients_through_a_network_by_hand():
    # f_1 = (x, -x), logits (g_1, 0); at x = log 3 the probabilities are 3/4, 1/4.
    net = Network([Linear([[1], [-1]], [0, 0]), Linear([[1, 0], [0, 0]], [0, 0])], 1)
    x = np.log([[3.0]])
    value, gradients = loss_gradient(net, x, np.array([1]))
    assert value == pytest.approx(np.log(4))
    (dW1, db1), (dW2, db2) = gradients
    assert_allclose(db2, [0.75, -0.75])
    assert_allclose(dW2, np.log(3) * np.array([[0.75, 0], [-0.75, 0]]))
    assert_allclose(db1, [0.75, 0])
    assert_allclose(dW1, [[0.75 * np.log(3)], [0]])
    logits, gradient = input_gradient(net, x, np.array([1]))
    assert_allclose(logits, [[np.log(3), 0]])
    assert_allclose(gradient, [[0.75]])
