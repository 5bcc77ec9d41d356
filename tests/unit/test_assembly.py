"""Networks assembled from operations do what the operations do, one after the other."""

import numpy as np
import pytest

from refmmr import Conv2d, Flatten, Linear
from refmmr.interop import assembly
from refmmr.interop.assembly import Assembly

RNG = np.random.default_rng(0)
IMAGE = (2, 4, 5)


def conv_weights(n_out, n_in, height=3, width=2):
    return RNG.normal(size=(n_out, n_in, height, width)), RNG.normal(size=n_out)


def dense_weights(n_out, n_in):
    return RNG.normal(size=(n_out, n_in)), RNG.normal(size=n_out)


class Chain:
    """The same operations, to an assembly and one by one."""

    def __init__(self, shape):
        self.assembly, self.steps = Assembly("chain", shape), []

    def linear(self, W, b):
        self.assembly.linear(W, b, "linear")
        self.steps.append(lambda x: x @ W.T + b)
        return self

    def conv(self, W, b, stride=1, padding=0):
        self.assembly.conv(W, b, "conv", stride, padding)
        self.steps.append(Conv2d(W, b, stride, padding).apply)
        return self

    def scale(self, factor, shift):
        self.assembly.scale(factor, shift, "scale")
        self.steps.append(lambda x: factor * x + shift)
        return self

    def relu(self):
        self.assembly.relu("relu")
        self.steps.append(lambda x: np.maximum(x, 0))
        return self

    def flatten(self):
        self.assembly.flatten("flatten")
        self.steps.append(lambda x: x.reshape(len(x), -1))
        return self

    def check(self):
        """The network and the steps agree; returns the network."""
        net = self.assembly.network()
        X = RNG.normal(size=(7, *net.input_shape))
        expected = X
        for step in self.steps:
            expected = step(expected)
        np.testing.assert_allclose(net(X), expected, rtol=1e-11, atol=1e-11)
        return net


def test_dense():
    W, b = dense_weights(4, 3)
    net = Chain((3,)).linear(W, b).relu().linear(*dense_weights(2, 4)).check()
    assert [type(layer) for layer in net.layers] == [Linear, Linear]
    assert (net.layers[0].W == W).all()


def test_weights_stay_bit_for_bit():
    parts = Assembly("x", IMAGE)
    W, b = (array.astype(np.float32) for array in conv_weights(3, 2))
    parts.conv(W, b, "conv", (2, 1), 1)
    parts.relu("relu")
    parts.flatten("flatten")
    V, c = (array.astype(np.float32) for array in dense_weights(2, 3 * 2 * 6))
    parts.linear(V, c, "linear")
    net = parts.network()
    assert net.dtype == np.float32
    for (W1, b1), (W2, b2) in zip(net.parameters, [(W, b), (V, c)], strict=True):
        assert (W1 == W2).all()
        assert (b1 == b2).all()


@pytest.mark.parametrize("padding", [0, 1])
def test_scaled_input_is_folded_into_a_convolution(padding):
    chain = Chain(IMAGE).scale(np.array([2.0, 0.5])[:, None, None], 0.0)
    net = chain.conv(*conv_weights(3, 2), 1, padding).relu().flatten()
    net = net.linear(*dense_weights(2, np.prod(chain.assembly.shape))).check()
    assert [type(layer) for layer in net.layers] == [Conv2d, Flatten, Linear]


def test_shifted_input_is_folded_into_a_convolution_without_padding():
    chain = Chain(IMAGE).scale(1 / 0.3, -0.5 / 0.3).conv(*conv_weights(3, 2)).relu().flatten()
    net = chain.linear(*dense_weights(2, np.prod(chain.assembly.shape))).check()
    assert [type(layer) for layer in net.layers] == [Conv2d, Flatten, Linear]


@pytest.mark.parametrize(
    ("stride", "padding"), [(1, 1), (2, ((1, 0), (0, 0))), (2, ((0, 0), (0, 1)))]
)
def test_shifted_input_and_padding_make_a_matrix(stride, padding):
    chain = Chain(IMAGE).scale(1 / 0.3, -0.5 / 0.3)
    with pytest.warns(UserWarning, match="chain: conv: convolution written as a matrix"):
        chain.conv(*conv_weights(3, 2), stride, padding)
    # All that follows acts on what is flat by now.
    channels, height, width = chain.relu().assembly.shape
    with pytest.warns(UserWarning, match="matrix"):
        chain.conv(*conv_weights(2, channels, height, 1))
    net = chain.relu().flatten().linear(*dense_weights(2, 2 * width)).check()
    assert [type(layer) for layer in net.layers] == [Flatten, Linear, Linear, Linear]


def test_scale_by_pixel_makes_a_matrix():
    chain = Chain(IMAGE).scale(RNG.normal(size=IMAGE), 0.0)
    with pytest.warns(UserWarning, match="matrix"):
        chain.conv(*conv_weights(3, 2))
    chain.relu().flatten()
    chain.linear(*dense_weights(2, chain.assembly.shape[0])).check()


@pytest.mark.parametrize("flat", [False, True])
def test_batch_normalisation_after_a_layer(flat):
    chain = Chain(IMAGE).conv(*conv_weights(3, 2), 1, 1)
    if flat:
        chain.flatten()
        n = chain.assembly.shape[0]
        with pytest.warns(UserWarning, match="matrix"):
            chain.scale(RNG.normal(size=n), RNG.normal(size=n))
    else:
        factor, shift = RNG.normal(size=(2, 3, 1, 1))
        chain.scale(factor, shift).relu().flatten()
    chain.linear(*dense_weights(4, chain.assembly.shape[0]))
    chain.scale(RNG.normal(size=4), RNG.normal(size=4)).relu()
    chain.linear(*dense_weights(2, 4)).scale(2.0, -1.0).check()


def test_two_layers_without_a_relu():
    chain = Chain((3,)).linear(*dense_weights(5, 3)).linear(*dense_weights(4, 5)).relu()
    assert len(chain.linear(*dense_weights(2, 4)).check().layers) == 2


def test_two_convolutions_without_a_relu():
    chain = Chain(IMAGE).conv(*conv_weights(3, 2), 1, 1)
    with pytest.warns(UserWarning, match="matrix"):
        chain.conv(*conv_weights(2, 3)).relu().flatten()
    chain.linear(*dense_weights(2, chain.assembly.shape[0])).check()


def test_flatten_between_convolution_and_relu():
    chain = Chain(IMAGE).conv(*conv_weights(3, 2)).flatten().relu()
    net = chain.linear(*dense_weights(2, chain.assembly.shape[0])).check()
    assert [type(layer) for layer in net.layers] == [Conv2d, Flatten, Linear]


def test_scales_before_and_around_a_relu():
    chain = Chain((3,)).scale(RNG.normal(size=3), 1.0).scale(0.5, RNG.normal(size=3))
    chain.linear(*dense_weights(4, 3)).relu().scale(RNG.normal(size=4), 0.25).relu().relu()
    chain.scale(RNG.normal(size=4), RNG.normal(size=4)).check()


def test_scale_of_images_between_relus():
    chain = Chain(IMAGE).conv(*conv_weights(3, 2)).relu().scale(-0.5, 0.25).relu().flatten()
    net = chain.linear(*dense_weights(2, chain.assembly.shape[0])).check()
    assert [type(layer) for layer in net.layers] == [Conv2d, Conv2d, Flatten, Linear]


def test_flatten_of_scaled_input():
    chain = Chain(IMAGE).scale(RNG.normal(size=IMAGE), RNG.normal(size=IMAGE)).flatten()
    chain.flatten().linear(*dense_weights(4, 40)).relu().linear(*dense_weights(2, 4)).check()


def test_half_precision_is_widened():
    parts = Assembly("x", (2,))
    parts.linear(np.float16([[0.1, 0.2]]), np.float16([0.3]), "linear")
    net = parts.network()
    assert net.dtype == np.float32
    assert net.parameters[0][0].tolist() == np.float16([[0.1, 0.2]]).tolist()


def test_folding_rounds_to_float64_only():
    parts = Assembly("x", (2,))
    W = np.float32([[1.0, 3.0]])
    parts.scale(1 / 3, 0.0, "scale")
    parts.linear(W, np.float32([0.0]), "linear")
    assert parts.network().parameters[0][0].tolist() == [[1 / 3, 3.0 * (1 / 3)]]


def test_folding_that_does_not_round_keeps_float32():
    parts = Assembly("x", (2,))
    parts.linear(np.float32([[0.1, 0.2]]), np.zeros(1, np.float32), "product")
    parts.scale(1.0, np.float32([0.3]), "bias")
    net = parts.network()
    assert net.dtype == np.float32
    assert net.parameters[0][1].tolist() == np.float32([0.3]).tolist()


REFUSED = {
    "relu first": (lambda a: a.relu("r1"), r"x: r1: expected a layer with weights before"),
    "nothing": (lambda a: a.network(), r"x: output: expected a layer with weights at the end"),
    "ends with relu": (
        lambda a: (a.linear([[1.0, 1]], [0.0], "l"), a.relu("r"), a.network()),
        r"x: output: expected a layer with weights at the end",
    ),
    "inputs": (lambda a: a.linear([[1.0]], [0.0], "l1"), r"x: l1: .*shape \(1,\), got \(2,\)"),
    "conv of a vector": (
        lambda a: a.conv(np.ones((1, 1, 2, 2)), [0.0], "c1"),
        r"x: c1: expected inputs of shape \(1, height, width\), got \(2,\)",
    ),
    "bias": (lambda a: a.linear([[1.0, 1]], [0.0, 1], "l1"), r"x: l1: b: expected shape \(1,\)"),
    "nan": (lambda a: a.linear([[1.0, np.nan]], [0.0], "l1"), r"x: l1: W: expected finite"),
    "text": (lambda a: a.linear([["a", "b"]], [0.0], "l1"), r"x: l1: W: expected real numbers"),
    "scale shape": (lambda a: a.scale(np.ones(3), 0.0, "s1"), r"x: s1: .*broadcast"),
    "scale wider": (lambda a: a.scale(np.ones((5, 2)), 0.0, "s1"), r"x: s1: .*broadcast"),
    "scale nan": (lambda a: a.scale(np.nan, 0.0, "s1"), r"x: s1: .*finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    action, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        action(Assembly("x", (2,)))


def test_image_refusals():
    parts = Assembly("x", IMAGE)
    with pytest.raises(ValueError, match=r"x: l1: expected inputs of shape \(5,\)"):
        parts.linear(np.ones((2, 5)), np.zeros(2), "l1")
    with pytest.raises(ValueError, match=r"x: c1: expected an image larger than the filters"):
        parts.conv(np.ones((1, 2, 9, 9)), [0.0], "c1")
    parts.conv(*conv_weights(1, 2), "c2")
    with pytest.raises(ValueError, match=r"x: output: expected logits of shape \(classes,\)"):
        parts.network()


@pytest.mark.parametrize("shape", [(), (2, 3), (0,), (1, 2, 3, 4)])
def test_input_shapes(shape):
    with pytest.raises(ValueError, match=r"x: input: expected shape \(d,\) or"):
        Assembly("x", shape)


def test_matrices_are_bounded(monkeypatch):
    monkeypatch.setattr(assembly, "MAX_WEIGHTS", 1000)
    parts = Assembly("x", IMAGE)
    parts.scale(1.0, 1.0, "scale")
    with pytest.raises(ValueError, match=r"x: conv: expected .* at most 1000 entries, got 40 x 60"):
        parts.conv(*conv_weights(3, 2, 3, 3), "conv", 1, 1)
