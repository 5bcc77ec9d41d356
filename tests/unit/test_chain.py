"""Graphs of piecewise linear operations as chains of layers: the same function, exactly."""

import warnings
from fractions import Fraction

import numpy as np
import pytest

import refmmr as rm
from refmmr import _kernels
from refmmr.exact import exact_network, fractions
from refmmr.interop import graph as graphs
from refmmr.interop import levels
from refmmr.interop.chain import to_network
from refmmr.interop.graph import Graph
from refmmr.interop.pooling import Windows, average_pool, conv_transpose, max_pool, mean
from refmmr.reference.layers import Conv2d

RNG = np.random.default_rng(0)


def dyadic(*shape):
    """Multiples of 1/4, whose products and sums are exact."""
    return RNG.integers(-6, 7, shape) / 4


class Both:
    """The same operations, to a graph and on exact numbers, one after the other."""

    def __init__(self, *shape, samples=6):
        self.graph = Graph("both", (1, *shape))
        self.X = fractions(dyadic(samples, *shape))
        self.start = self.graph.input, self.X

    def conv(self, v, n_out, size=3, stride=1, padding=0):
        value, x = v
        W, b = dyadic(n_out, x.shape[1], size, size), dyadic(n_out)
        exact = Conv2d(fractions(W), fractions(b), (stride, stride), ((padding, padding),) * 2)
        return self.graph.conv(value, W, b, "conv", stride, padding), exact.apply(x)

    def linear(self, v, n_out):
        value, x = v
        W, b = dyadic(n_out, x.shape[1]), dyadic(n_out)
        return self.graph.linear(value, W, b, "linear"), x @ fractions(W).T + fractions(b)

    def flatten(self, v):
        return self.graph.reshape(v[0], (1, v[0].size), "flat"), v[1].reshape(len(v[1]), -1)

    def relu(self, v):
        return self.graph.relu(v[0], "relu"), np.maximum(v[1], 0)

    def leaky(self, v, slope):
        exact = np.maximum(v[1], 0) + Fraction(slope) * np.minimum(v[1], 0)
        return self.graph.leaky_relu(v[0], slope, "leaky"), exact

    def clip(self, v, low, high):
        exact = v[1]
        exact = exact if low is None else np.maximum(exact, Fraction(low))
        exact = exact if high is None else np.minimum(exact, Fraction(high))
        return self.graph.clip(v[0], low, high, "clip"), exact

    def absolute(self, v):
        return self.graph.absolute(v[0], "abs"), np.abs(v[1])

    def add(self, v, w, sign=1):
        return self.graph.add(v[0], w[0], "add", sign), v[1] + sign * w[1]

    def maximum(self, *vs):
        values = [value for value, _ in vs]
        return self.graph.maximum(values, "max"), np.maximum.reduce([x for _, x in vs])

    def minimum(self, *vs):
        values = [value for value, _ in vs]
        return self.graph.minimum(values, "min"), np.minimum.reduce([x for _, x in vs])

    def pool(self, v, windows):
        """Max-pooling, by its definition."""
        value, x = v
        rows, columns = (windows.taps(k, x.shape[2 + k]) for k in range(2))
        made = []
        for row in rows:
            for column in columns:
                inside = np.ix_(
                    [y for y in row if 0 <= y < x.shape[2]],
                    [y for y in column if 0 <= y < x.shape[3]],
                )
                made.append(x[:, :, *inside].max(axis=(2, 3)))
        exact = np.stack(made, axis=2).reshape(*x.shape[:2], len(rows), len(columns))
        return max_pool(self.graph, value, windows, "pool"), exact

    def check(self, v):
        """The network's logits are the exact ones, in exact arithmetic and in float64."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*written as ")
            net = to_network(self.graph, self.flatten(v)[0]).network
        X = self.X.reshape(len(self.X), *net.input_shape)
        expected = v[1].reshape(len(self.X), -1)
        assert (exact_network(net).logits(X) == expected).all()
        assert (net(X.astype(float)) == expected.astype(float)).all()
        return net


def kinds(net):
    return [type(layer).__name__ for layer in net.layers]


@pytest.mark.parametrize("slope", [0.25, -0.5, 2.0])
def test_leaky_relu_is_two_units(slope):
    both = Both(3)
    net = both.check(both.linear(both.leaky(both.linear(both.start, 4), slope), 2))
    assert net.n_hidden == 8


@pytest.mark.parametrize(
    ("low", "high", "units"),
    [(-1.0, 1.0, 8), (0.0, 1.5, 8), (None, 0.5, 4), (-0.25, None, 4), (None, None, 0), (2, 3, 8)],
)
def test_clip(low, high, units):
    both = Both(3)
    net = both.check(both.linear(both.clip(both.linear(both.start, 4), low, high), 2))
    assert net.n_hidden == units


def test_clip_of_a_relu_needs_no_lower_bound():
    both = Both(3)
    h = both.clip(both.relu(both.linear(both.start, 4)), -1, 1.5)
    assert both.check(both.linear(h, 2)).n_hidden == 8


def test_absolute_maximum_minimum():
    both = Both(3)
    a, b, c = (both.linear(both.start, 4) for _ in range(3))
    h = both.maximum(both.absolute(a), both.minimum(a, b), c)
    both.check(both.linear(both.add(h, both.minimum(both.relu(a), both.relu(b))), 2))


def test_relu_at_the_beginning_and_at_the_end():
    both = Both(3)
    assert both.check(both.relu(both.linear(both.relu(both.start), 2))).n_hidden == 5


def test_relu_of_a_maximum_is_the_maximum_of_relus():
    both = Both(3)
    a, b = both.linear(both.start, 4), both.linear(both.start, 4)
    net = both.check(both.linear(both.relu(both.maximum(a, b)), 2))
    assert net.n_hidden == 4 + 4 + 2 * 4


@pytest.mark.parametrize("first", [True, False])
def test_max_pool_with_a_relu(first):
    """2 x 2 windows: k n units of the ReLU, then k n and k n / 2."""
    both = Both(2, 6, 6)
    h = both.conv(both.start, 3, padding=1)
    windows = Windows((2, 2), (2, 2))
    h = both.pool(both.relu(h), windows) if first else both.relu(both.pool(h, windows))
    net = both.check(both.linear(both.flatten(both.relu(both.conv(h, 2, padding=1))), 3))
    assert [int(np.prod(shape)) for shape in net.unit_shapes] == [108, 108, 54, 18]
    assert kinds(net) == ["Conv2d"] * 4 + ["Flatten", "Linear"]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    "windows",
    [
        Windows((3, 3), (2, 2), ((1, 1), (1, 1))),
        Windows((3, 2), (1, 2), ((0, 1), (1, 0))),
        Windows((2, 2), (2, 2), ceil=True),
        Windows((2, 2), (1, 1), dilation=(2, 3)),
        Windows((5, 5), (1, 1)),
    ],
)
def test_max_pool_windows(windows, relu):
    both = Both(1, 5, 5, samples=3)
    h = both.conv(both.start, 2, padding=1)
    h = both.pool(both.relu(h) if relu else h, windows)
    both.check(both.linear(both.flatten(h), 2))


def test_max_pool_of_the_input():
    both = Both(2, 4, 4)
    both.check(both.linear(both.flatten(both.pool(both.start, Windows((2, 2), (2, 2)))), 2))


def test_residual_block():
    both = Both(2, 5, 5, samples=3)
    h = both.relu(both.conv(both.start, 3, padding=1))
    inner = both.conv(both.relu(both.conv(h, 3, padding=1)), 3, padding=1)
    h = both.relu(both.add(h, inner))
    net = both.check(both.linear(both.flatten(h), 2))
    assert [len(layer.b) for layer in net.affine_layers] == [3, 6, 3, 2]
    assert kinds(net) == ["Conv2d"] * 3 + ["Flatten", "Linear"]


def test_residual_block_with_a_stride():
    both = Both(1, 8, 8, samples=3)
    h = both.relu(both.conv(both.start, 2, padding=1))
    inner = both.relu(both.conv(h, 4, 3, 2, 1))
    h = both.relu(both.add(both.conv(h, 4, 1, 2), both.conv(inner, 4, padding=1)))
    net = both.check(both.linear(both.flatten(h), 2))
    assert kinds(net) == ["Conv2d"] * 3 + ["Flatten", "Linear"]


def test_a_skip_of_the_input_takes_two_units_for_each():
    both = Both(4)
    inner = both.linear(both.relu(both.linear(both.start, 5)), 4)
    net = both.check(both.linear(both.relu(both.add(both.start, inner)), 2))
    assert net.unit_shapes == [(5 + 8,), (4,)]


def test_long_skips_carry_what_is_small():
    """Of a pre-activation with 2 entries, made of 6 units, two ReLUs for each are carried."""
    both = Both(3)
    h = both.relu(both.linear(both.start, 6))
    small = both.linear(h, 2)
    for _ in range(3):
        h = both.relu(both.linear(h, 5))
    net = both.check(both.linear(both.add(both.linear(h, 2), small), 2))
    assert net.unit_shapes == [(6,), (5 + 4,), (5 + 4,), (5 + 4,)]


OPERATIONS = [
    lambda both, v, w: both.relu(v),
    lambda both, v, w: both.leaky(v, 0.25),
    lambda both, v, w: both.clip(v, -0.5, 1),
    lambda both, v, w: both.linear(v, 3),
    lambda both, v, w: both.add(v, w, -1),
    lambda both, v, w: both.maximum(v, w),
    lambda both, v, w: both.minimum(v, w),
]


def test_random_graphs():
    """Values of all kinds, each of any that came before."""
    rng = np.random.default_rng(1)
    for _ in range(12):
        both = Both(3, samples=4)
        values = [both.linear(both.start, 3), both.start]
        for _ in range(7):
            v, w = (values[k] for k in rng.integers(len(values), size=2))
            values.append(OPERATIONS[rng.integers(len(OPERATIONS))](both, v, w))
        total = values[-1]
        for v in values[2:-1]:
            total = both.add(total, v)
        both.check(both.linear(total, 2))


def test_affine_maps():
    """Pooling, means, turned and cut images; against NumPy."""
    both = Both(2, 4, 6)
    g, (x, X) = both.graph, both.start
    half = average_pool(g, x, Windows((2, 2), (2, 2)), "average")
    expected = X.reshape(6, 2, 2, 2, 3, 2).sum(axis=(3, 5)) / 4
    net = both.check((half, expected))
    assert kinds(net) == ["Conv2d", "Flatten"]
    cut = g.pick(x, g.indices(x)[:, ::-1, 1:, ::2].transpose(0, 3, 2, 1), "cut")
    both.check((cut, X[:, ::-1, 1:, ::2].transpose(0, 3, 2, 1)))
    both.check((mean(g, x, (2,), False, "sum", total=True), X.sum(axis=2)))
    joined = g.concat([x, np.ones((1, 2, 4, 1))], 3, "concat")
    ones = fractions(np.ones((6, 2, 4, 1)))
    both.check((joined, np.concatenate([X, ones], axis=3)))


def test_conv_transpose_is_the_transpose():
    """``<conv(y), x> = <y, conv_transpose(x)>`` for all x and y."""
    W = dyadic(2, 3, 3, 2)
    graph = Graph("t", (1, 2, 3, 4))
    conv = Conv2d(W, np.zeros(2), (2, 1), ((1, 0), (1, 1)))
    image = (3, 6, 3)
    assert conv.output_shape(image) == (2, 3, 4)
    made = conv_transpose(
        graph, graph.input, W, np.zeros(3), "t", conv.stride, conv.padding, image[1:]
    )
    flat = graph.reshape(made, (made.size,), "flat")
    net = to_network(graph, flat).network
    X, Y = dyadic(1, 2, 3, 4), dyadic(1, *image)
    assert net(X)[0] @ Y.reshape(-1) == (conv.apply(Y) * X).sum()


def test_channels_last():
    """An image (height, width, channels) that is turned for a convolution, and turned back."""
    graph = Graph("nhwc", (1, 5, 4, 2))
    W, b, V = dyadic(3, 2, 3, 3), dyadic(3), dyadic(2, 18)
    turned = graph.pick(graph.input, graph.indices(graph.input).transpose(0, 3, 1, 2), "turn")
    h = graph.conv(turned, W, b, "conv")
    h = graph.relu(graph.pick(h, graph.indices(h).transpose(0, 2, 3, 1), "back"), "relu")
    out = graph.linear(graph.reshape(h, (1, 18), "flat"), V, np.zeros(2), "last")
    net, order = to_network(graph, out)
    assert kinds(net) == ["Conv2d", "Flatten", "Linear"]
    assert net.input_shape == (2, 5, 4)
    X = dyadic(4, 5, 4, 2)
    images = np.empty((4, 40))
    images[:, order] = X.reshape(4, 40)
    assert (images.reshape(4, 2, 5, 4) == X.transpose(0, 3, 1, 2)).all()
    hidden = np.maximum(Conv2d(W, b).apply(X.transpose(0, 3, 1, 2)), 0)
    expected = hidden.transpose(0, 2, 3, 1).reshape(4, 18) @ V.T
    assert (net(images.reshape(4, 2, 5, 4)) == expected).all()


def test_an_image_of_one_channel_that_is_turned():
    """Without its channel it is the same vector, so that elementwise maps there change no layer."""
    graph = Graph("t", (1, 1, 5, 4))
    W, V = dyadic(2, 1, 2, 2), dyadic(3, 24)
    turned = graph.reshape(graph.input, (1, 5, 4, 1), "turn")
    half = graph.scale(turned, np.full((5, 1, 1), 0.5), 0.25, "scale")
    h = graph.relu(graph.conv(graph.reshape(half, (1, 1, 5, 4), "back"), W, [0, 0], "conv"), "relu")
    out = graph.linear(graph.reshape(h, (1, 24), "flat"), V, np.zeros(3), "last")
    net = to_network(graph, out).network
    assert kinds(net) == ["Conv2d", "Flatten", "Linear"]
    X = dyadic(4, 1, 5, 4)
    hidden = np.maximum(Conv2d(W, np.zeros(2)).apply(0.5 * X + 0.25), 0)
    assert (net(X) == hidden.reshape(4, 24) @ V.T).all()


def test_a_vector_that_becomes_an_image():
    graph = Graph("v", (1, 12))
    W = dyadic(2, 3, 2, 2)
    h = graph.relu(graph.conv(graph.reshape(graph.input, (1, 3, 2, 2), ""), W, dyadic(2), "c"), "")
    net, order = to_network(graph, graph.reshape(h, (1, 2), "flat"))
    assert (net.input_shape, order) == ((3, 2, 2), None)


def test_weights_stay_in_float32():
    graph = Graph("f", (1, 1, 4, 4))
    W = RNG.normal(size=(2, 1, 3, 3)).astype(np.float32)
    h = graph.relu(graph.conv(graph.input, W, np.zeros(2, np.float32), "conv", 1, 1), "relu")
    h = max_pool(graph, h, Windows((2, 2), (2, 2)), "pool")
    with pytest.warns(UserWarning, match="MaxPool written as ReLUs: 80 hidden units, 24 of"):
        net = to_network(graph, mean(graph, h, (2, 3), False, "")).network
    assert net.dtype == np.float32
    assert (net.parameters[0][0] == W).all()


@pytest.mark.parametrize("backend", ["numpy", "numba"])
def test_carriers_are_always_active(backend):
    """Their pre-activations are sums of terms of at least 0, so that they need no relaxation."""
    if backend == "numba":
        pytest.importorskip("numba")
    both = Both(2, 6, 6)
    h = both.pool(both.relu(both.conv(both.start, 3, padding=1)), Windows((2, 2), (2, 2)))
    net = both.check(both.linear(both.flatten(h), 3))
    X, eps = both.X.astype(float) * 1.1, np.full(6, 0.3)
    with rm.use_backend(backend):
        bounds = _kernels.layer_bounds(net, X, np.inf, eps, None, "crown")
    W, b = net.parameters[1]
    carriers = (W >= 0).all(axis=(1, 2, 3)) & (b >= 0)
    assert carriers.sum() == len(b) / 2
    assert (bounds[1][0][:, carriers] >= 0).all()
    assert (bounds[1][0][:, ~carriers] < 0).any()


def test_regions_of_a_max_pool_network():
    """Sampled points are in the regions of their patterns; no piece of the maximum is cut twice."""
    both = Both(2)
    v = both.linear(both.start, 6)
    h, g = both.relu(v), both.graph
    parts = [g.pick(h[0], np.arange(6)[None, k::2], "tap") for k in range(2)]
    top = g.maximum(parts, "max"), np.maximum(h[1][:, ::2], h[1][:, 1::2])
    net = both.check(both.linear(top, 3))
    regions = rm.enumerate_regions(net, rm.Box([-2, -2], [2, 2]), progress=False)
    assert abs(regions.areas.sum() - 16) < 1e-9
    Z = np.random.default_rng(2).uniform(-2, 2, (3000, 2))
    patterns = net.activation_pattern(Z)
    assert (regions.patterns[regions.region_of(Z)] == patterns).all()
    # The pieces as max-pooling has them: which units are above 0, and which of two is the larger.
    W, b = net.parameters[0]
    f = np.maximum(Z @ W.T + b, 0)
    pieces = np.hstack([f > 0, f[:, ::2] > f[:, 1::2]])
    sampled = np.unique(np.hstack([pieces, regions.region_of(Z)[:, None]]), axis=0)
    assert len(sampled) == len(np.unique(pieces, axis=0)) == len(np.unique(patterns, axis=0))


def test_limits(monkeypatch):
    monkeypatch.setattr(graphs, "MAX_HIDDEN", 100)
    monkeypatch.setattr(levels, "MAX_HIDDEN", 100)
    both = Both(2, 6, 6)
    h = both.relu(both.conv(both.start, 3, padding=1))
    with pytest.raises(ValueError, match=r"both: pool: expected at most 100 units of .*instead:"):
        max_pool(both.graph, h[0], Windows((2, 2), (2, 2)), "pool")
    both = Both(2, 6, 6)
    h = both.relu(both.conv(both.start, 3, padding=1))
    h = both.add(h, both.conv(both.relu(both.conv(h, 3, padding=1)), 3, padding=1))
    out = both.linear(both.flatten(both.relu(h)), 2)[0]
    with pytest.raises(
        ValueError, match="at most 100 hidden units, got 324 or more, of which 108 carry"
    ):
        to_network(both.graph, out)


def test_many_skips_are_counted_before_they_are_made():
    """Each of n ReLUs is read at the end on its own, so that about n^2 / 2 values are carried."""
    graph = Graph("g", (1, 1))
    values = [graph.input]
    for _ in range(400):
        values.append(graph.relu(graph.scale(values[-1], 1.0, -1.0, "scale"), "relu"))
    with pytest.raises(ValueError, match=r"g: output: expected at most .* carry values through"):
        to_network(graph, graph.concat(values, 1, "concat"))


FAR = Windows((2, 2), (5, 5), ((2, 9), (0, 0)))
REFUSED = {
    "inputs of shape \\(3,\\), got": lambda g, x: g.linear(x, np.ones((1, 3)), [0], "a"),
    "inputs of shape \\(1, height": lambda g, x: g.conv(x, np.ones((1, 1, 2, 2)), [0], "a"),
    "W: expected finite": lambda g, x: g.conv(x, np.full((1, 2, 2, 2), np.nan), [0], "a"),
    "numbers that broadcast": lambda g, x: g.scale(x, np.ones(3), 0, "a"),
    "a shape of 32 entries": lambda g, x: g.reshape(x, (3,), "a"),
    "shapes that fit": lambda g, x: g.add(x, g.reshape(x, (32, 1), "b"), "a"),
    "windows that all meet": lambda g, x: max_pool(g, x, FAR, "a"),
    "a lower bound up to": lambda g, x: g.clip(x, 1, 0, "a"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message):
    graph = Graph("g", (1, 2, 4, 4))
    with pytest.raises(ValueError, match=f"g: a: .*{message}"):
        REFUSED[message](graph, graph.input)


def test_the_output_is_a_vector():
    graph = Graph("g", (1, 2, 4, 4))
    with pytest.raises(ValueError, match="g: output: expected logits of shape"):
        to_network(graph, graph.input)
