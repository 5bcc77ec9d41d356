import numpy as np
import pytest
from numpy.testing import assert_array_equal

from refmmr import Conv2d, Flatten, Linear, Network
from refmmr.reference.network import flat, unflat

NET = Network(
    [Linear([[1, -1], [2, 0], [0, 1]], [0, -1, 0]), Linear([[1, 1, 0], [0, -1, 3]], [1, 2])], 2
)


def test_forward_by_hand():
    # f_1 = (-1, 1, 2) at (1, 2), and (2, 1, -1) at (1, -1).
    X = [[1, 2], [1, -1]]
    assert_array_equal(NET(X), [[2, 7], [4, 1]])
    assert_array_equal(NET.predict(X), [1, 0])
    assert_array_equal(NET.activation_pattern(X), [[False, True, True], [True, True, False]])
    assert (NET.n_hidden, NET.n_classes, NET.dtype) == (3, 2, np.float64)


def test_a_unit_at_zero_is_not_active():
    assert_array_equal(NET.activation_pattern([[0, 0]]), [[False, False, False]])


def test_the_first_of_equal_logits_wins():
    net = Network([Linear(np.zeros((3, 1)), [0, 1, 1])], 1)
    assert_array_equal(net.predict([[5]]), [1])


def test_no_relu_after_the_last_layer_and_none_after_flatten():
    conv = Conv2d([[[[1]]]], [0])
    net = Network([Flatten(), Linear([[-1, 0], [0, -1]], [0, 0])], (1, 1, 2))
    assert_array_equal(net([[[[1, -2]]]]), [[-1, 2]])
    net = Network([conv, Flatten()], (1, 1, 2))
    assert net.n_hidden == 0
    assert_array_equal(net([[[[1, -2]]]]), [[1, -2]])


def test_frozen_masks_drop_the_relu():
    masks = [np.array([[True, True, False]])]
    outputs = NET.forward(np.array([[1.0, 2.0]]), masks).outputs
    assert_array_equal(outputs[1], [[1, 1]])
    outputs = NET.forward(np.array([[1.0, 2.0]]), masks, bias=False).outputs
    assert_array_equal(outputs[0], [[-1, 2, 2]])
    assert_array_equal(outputs[1], [[1, -2]])


def test_backward_adds_the_gradients_with_respect_to_f():
    cache = NET.forward(np.array([[1.0, 2.0]]))  # pattern: off, on, on
    hidden, logits = NET.backward(cache, [np.array([[5.0, 6, 7]]), np.array([[1.0, 10]])])
    assert_array_equal(logits, [[1, 10]])
    # Through the mask (0, 1 - 10, 30), and 5, 6, 7 on top: gradients to f meet no mask.
    assert_array_equal(hidden, [[5, -3, 37]])
    (dW1, db1), (dW2, db2) = NET.weight_gradients(cache, [hidden, logits])
    assert_array_equal(dW1, [[5, 10], [-3, -6], [37, 74]])
    assert_array_equal(db1, [5, -3, 37])
    assert_array_equal(dW2, [[0, 1, 2], [0, 10, 20]])
    assert_array_equal(db2, [1, 10])
    assert_array_equal(NET.input_gradient([hidden, logits]), [[5 - 6, -5 + 37]])


@pytest.mark.parametrize(
    ("input_shape", "n_hidden"),
    [((1, 28, 28), 4804), ((3, 32, 32), 6244)],
)
def test_lenet_small_has_the_papers_units(input_shape, n_hidden):
    net = Network.lenet_small(input_shape, 10, rng=0)
    assert net.n_hidden == n_hidden
    assert net.n_classes == 10
    side = input_shape[1]
    assert net.unit_shapes == [(16, side // 2, side // 2), (32, side // 4, side // 4), (100,)]
    assert net(np.zeros((1, *input_shape))).shape == (1, 10)


def test_lenet_small_on_sizes_that_do_not_divide():
    net = Network.lenet_small((1, 5, 7), 3, rng=0)
    assert net.unit_shapes == [(16, 3, 4), (32, 2, 2), (100,)]


def test_he_initialisation():
    net = Network.mlp([784, 1024, 10], rng=0)
    W, b = net.parameters[0]
    assert W.shape == (1024, 784)
    assert net.n_hidden == 1024
    assert not b.any()
    std = np.sqrt(2 / 784)
    assert 1.99 * std < np.abs(W).max() <= 2 * std
    # A normal distribution cut off at two standard deviations has 0.8796 of its spread left.
    assert W.std() == pytest.approx(0.8796 * std, rel=5e-3)
    assert np.abs(W.mean()) < 1e-3 * std * 4


def test_a_seed_fixes_the_weights():
    for make in (
        lambda rng: Network.mlp([3, 4, 2], rng),
        lambda rng: Network.lenet_small((1, 8, 8), 2, rng),
    ):
        one, same, other = (make(seed).parameters[0][0] for seed in (1, 1, 2))
        assert_array_equal(one, same)
        assert (one != other).any()


def test_astype():
    single = NET.astype(np.float32)
    assert single.dtype == np.float32
    assert single(np.ones((1, 2), dtype=np.float32)).dtype == np.float32
    assert all(W.dtype == b.dtype == np.float32 for W, b in single.parameters)
    assert NET.dtype == np.float64


def test_with_parameters_leaves_the_network_as_it_was():
    net = NET.with_parameters([(2 * W, b + 1) for W, b in NET.parameters])
    assert_array_equal(net.parameters[0][0], [[2, -2], [4, 0], [0, 2]])
    assert_array_equal(net.parameters[1][1], [2, 3])
    assert_array_equal(NET.parameters[0][0], [[1, -1], [2, 0], [0, 1]])


def test_flat_and_unflat():
    layers = [np.arange(12.0).reshape(2, 2, 3), np.array([[7.0]])]
    units = flat(layers)
    assert_array_equal(units, [[0, 1, 2, 3, 4, 5, 7], [6, 7, 8, 9, 10, 11, 7]])
    first, second = unflat(units, [(2, 3), (1,)])
    assert_array_equal(first, layers[0])
    assert_array_equal(second, [[7], [7]])


def test_repr_shows_the_relus():
    assert repr(NET) == "Network((2,): Linear(2 -> 3), ReLU, Linear(3 -> 2))"
