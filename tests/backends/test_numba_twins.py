"""Every Numba twin gives what the reference gives, on every kind of network.

Where arithmetic is exact the bits must agree.  Elsewhere the tolerances are computed: the rounding
error of a sum of n terms is at most n * eps times the sum of their absolute values, in any order.
"""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr import _kernels, testing
from refmmr.reference import (
    adam,
    affine,
    distances,
    hyperplanes,
    loss,
    mmr,
    network,
    objective,
    pgd,
)

pytest.importorskip("numba", reason="the numba backend needs numba")

RUN = {kernel.reference: kernel for kernel in _kernels.KERNELS.values()}
EPS = {np.dtype(t): float(np.finfo(t).eps) for t in (np.float32, np.float64)}
SEEDS = st.integers(0, 2**32 - 1)


def twin(function, *args):
    """Call the twin of a reference function."""
    with rm.use_backend("numba"):
        return RUN[function](*args)


def assert_same(found, expected):
    """Equal numbers (0 and -0 are equal), kinds and dtypes."""
    assert type(found) is type(expected)
    if isinstance(expected, (tuple, list)):
        for part, other in zip(found, expected, strict=True):
            assert_same(part, other)
        return
    assert getattr(found, "dtype", None) == getattr(expected, "dtype", None)
    assert_array_equal(found, expected, strict=True)


@pytest.fixture(autouse=True)
def strict(monkeypatch):
    """No reference runs instead of a twin."""
    monkeypatch.setenv("REFMMR_STRICT", "1")


def test_there_is_a_twin_of_every_kernel():
    assert [kernel.name for kernel in RUN.values() if "numba" not in kernel.twins] == []


def test_the_package_says_where_each_twin_is():
    """The file has the name of the reference's, or, in mmr_gradient.py, of the function."""
    from refmmr.backends import _numba

    for name in _kernels.KERNELS:
        assert f"``{name}``" in _numba.__doc__
        file, function = name.split(".")
        assert any(hasattr(getattr(_numba, place, None), function) for place in (file, function))


# ------------------------------------------------------------------------------------- strategies


@st.composite
def dense_layers(draw, n_inputs, n_classes, dyadic, most=3):
    sizes = [n_inputs, *draw(st.lists(st.integers(1, 6), max_size=most)), n_classes]
    shapes = [(m, n) for n, m in pairwise(sizes)]
    return [rm.Linear(*draw(testing._parameters(shape, dyadic))) for shape in shapes]


PADS = st.one_of(
    st.integers(0, 2),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    st.sampled_from(["same", "valid"]),
)
STRIDES = st.integers(1, 3) | st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def conv_layer(draw, shape, n_out, dyadic):
    channels, height, width = shape
    kernel_shape = st.integers(1, min(3, height)), st.integers(1, min(3, width))
    filters = (n_out, channels, *(draw(side) for side in kernel_shape))
    W, b = draw(testing._parameters(filters, dyadic))
    return rm.Conv2d(W, b, draw(STRIDES), draw(PADS))


@st.composite
def image_networks(draw, dyadic, n_classes):
    """Up to three convolutions, and whatever may follow them."""
    n_classes = n_classes or draw(st.integers(1, 5))
    side = st.integers(1, 6)
    shape = input_shape = draw(st.tuples(st.integers(1, 3), side, side))
    layers = []
    for _ in range(draw(st.integers(0, 3))):
        layers.append(draw(conv_layer(shape, draw(st.integers(1, 3)), dyadic)))
        shape = layers[-1].output_shape(shape)
    ends = ["dense", "deep"] if n_classes > 1 else ["dense", "deep", "conv"]
    end = draw(st.sampled_from([*ends, "whole image"]))
    if end == "conv" and layers:  # the last convolution's pixels are the classes
        assume(1 < np.prod(shape) <= 6)
        layers += [rm.Flatten()] * draw(st.integers(0, 1))
    elif end == "whole image":  # a convolution instead of a dense layer
        W, b = draw(testing._parameters((n_classes, *shape), dyadic))
        layers.append(rm.Conv2d(W, b, draw(STRIDES)))
    else:
        most = 2 if end == "deep" else 0
        size = int(np.prod(shape))
        layers += [rm.Flatten(), *draw(dense_layers(size, n_classes, dyadic, most))]
    return rm.Network(layers, input_shape)


@st.composite
def vector_networks(draw, dyadic, n_classes):
    n_inputs = draw(st.integers(1, 6))
    classes = n_classes or draw(st.integers(1, 5))
    return rm.Network(draw(dense_layers(n_inputs, classes, dyadic)), n_inputs)


def networks(dyadic=False, n_classes=None):
    """Networks of 1 to 5 classes, with up to three hidden layers and up to three convolutions."""
    return vector_networks(dyadic, n_classes) | image_networks(dyadic, n_classes)


@st.composite
def cases(draw, dyadic=False, n_classes=None, low=-2.0, max_samples=7):
    """A network, points, and labels."""
    net = draw(networks(dyadic, n_classes))
    X, y = draw(testing.batches(net, max_samples=max_samples, low=low, dyadic=dyadic))
    return net, X, y


def dtypes():
    """Of the network and of the points."""
    both = st.sampled_from([np.float32, np.float64])
    return st.tuples(both, both)


# ----------------------------------------------------------------------------------------- bounds


class Sizes:
    """The exact hyperplanes, and how far off an implementation in this precision may be."""

    def __init__(self, net, X, y, dtype):
        exact = net.astype(np.float64)
        self.hyperplanes = distances.hyperplanes_around(exact, X.astype(np.float64), y)
        masks = self.hyperplanes.cache.masks
        absolute = network.Network(
            [
                layer.with_weights(np.abs(layer.W), np.abs(layer.b)) if i in exact.affine else layer
                for i, layer in enumerate(exact.layers)
            ],
            net.input_shape,
        )
        cache = absolute.forward(np.abs(X).astype(np.float64), masks)
        probes = affine.probe(absolute, masks, affine.basis(net, np.float64))
        n, d = len(X), X[0].size
        terms = sum(int(np.prod(W.shape[1:])) + 3 for W, _ in net.parameters)
        self.unit = 2 * terms * EPS[np.dtype(dtype)]
        self.sum = 2 * (d + 5) * EPS[np.dtype(dtype)]
        self.f = network.flat(cache.outputs[:-1]) if net.n_hidden else np.zeros((n, 0))
        self.logits = cache.outputs[-1].reshape(n, -1)
        self.margin = self.logits[np.arange(n), y][:, None] + self.logits
        columns = [np.broadcast_to(c, (n, *c.shape[1:])).reshape(n, d, -1) for c in probes.outputs]
        self.V = np.concatenate([*columns[:-1], columns[-1][:, :, :0]], axis=2).swapaxes(1, 2)
        last = columns[-1].swapaxes(1, 2)
        self.R = last[np.arange(n), y][:, None] + last

    @property
    def decided(self):
        """Whether rounding cannot change the pattern."""
        return ((np.abs(self.hyperplanes.f) > self.unit * self.f) | (self.f == 0)).all()

    def each(self):
        """Value and rows of boundaries and decisions, and how far off they may be."""
        f, margin = self.unit * self.f, self.unit * self.margin
        rows, R = self.hyperplanes.boundary_gradients, self.hyperplanes.R.swapaxes(1, 2)
        yield self.hyperplanes.f, f, rows, self.unit * self.V
        yield self.hyperplanes.margin, margin, R, self.unit * self.R


def assert_distances(sizes, y, p, found, box, x):
    """Each distance is that of a hyperplane with rounding errors of at most the computed size.

    With an error a of the value and w of the row, the distance is at least that of a hyperplane
    whose value is smaller by ``a + <w, m>``, m the largest move of each coordinate in the box.
    """
    wide = np.full(x.shape[1:], 1e30).reshape(-1)
    lo, hi = (-wide, wide) if box is None else (np.ravel(bound) for bound in box)
    flat = x.reshape(len(x), 1, -1)
    for k, (values, a, rows, w) in enumerate(sizes.each()):
        got = found[k]
        signs = values < -a
        if k == 1:
            assert_array_equal(got[np.arange(len(y)), y], np.inf)
            assert (got[signs] < 0).all()
            others = np.ones(got.shape, bool)
            others[np.arange(len(y)), y] = False
            assert (got[(values > a) & others] > 0).all()
        else:
            others = np.ones(got.shape, bool)
            assert (got >= 0).all()
        norm = hyperplanes.dual_norm(np.abs(rows), p)
        slack = hyperplanes.dual_norm(w, p)
        if box is None:
            known = (slack < 0.1 * norm) | (slack == 0)
            assert np.isinf(got[(norm == 0) & (slack == 0)]).all()
            known &= norm > 0
            with np.errstate(all="ignore"):
                low = (np.abs(values) - a) / (norm + slack)
                high = (np.abs(values) + a) / (norm - slack)
        else:
            known = np.ones(got.shape, bool)
            in_box = hyperplanes.shortest_step_in_box
            moves = np.maximum(np.abs(hi - flat), np.abs(flat - lo))
            off = a + (w * moves).sum(axis=-1)
            low, high = (
                np.abs(in_box(flat, rows, np.sign(values) * size, lo, hi, p)[0])
                for size in (np.maximum(np.abs(values) - off, 0), np.abs(values) + off)
            )
            known &= np.abs(values) > off
        known &= others
        got = np.abs(got)
        assert (got[known] >= low[known] * (1 - sizes.sum)).all()
        assert (got[known] <= high[known] * (1 + sizes.sum)).all()


def gradient_arrays(gradients):
    return [array for pair in gradients for array in pair]


# --------------------------------------------------------------------------------------- forward


@given(cases(dyadic=True))
def test_passes_are_exact_on_multiples_of_a_quarter(case):
    net, X, _ = case
    assert_same(twin(network.logits, net, X), network.logits(net, X))
    pattern = network.activation_pattern(net, X)
    assert_same(twin(network.activation_pattern, net, X), pattern)


@given(cases(), dtypes())
def test_passes(case, dtype):
    net, X, y = case
    net, X = net.astype(dtype[0]), X.astype(dtype[1])
    sizes = Sizes(net, X, y, np.result_type(*dtype))
    assume(sizes.decided)
    expected, found = network.logits(net, X), twin(network.logits, net, X)
    assert found.dtype == expected.dtype
    assert (np.abs(found - expected) <= 2 * sizes.unit * sizes.logits).all()
    assert_same(twin(network.activation_pattern, net, X), network.activation_pattern(net, X))


# ------------------------------------------------------------------------------------- distances


def exact_squares(net, X, y):
    """Whether float64 adds up the squares of all rows without rounding."""
    around = distances.hyperplanes_around(net, X, y)
    largest = max(
        np.abs(hyperplanes.dual_norm(rows, 2)).max(initial=0)
        for rows in (around.boundary_gradients, around.R.swapaxes(1, 2))
    )
    return largest**2 * 16 ** len(net.affine) < 2**53


@given(cases(dyadic=True), testing.norms())
def test_distances_are_exact_on_multiples_of_a_quarter(case, p):
    net, X, y = case
    assume(p != 2 or exact_squares(net, X, y))
    expected = distances.distances(net, X, y, p)
    assert_same(twin(distances.distances, net, X, y, p), expected)


@given(cases(), testing.norms(), dtypes())
def test_distances(case, p, dtype):
    net, X, y = case
    net, X = net.astype(dtype[0]), X.astype(dtype[1])
    work = np.result_type(*dtype)
    sizes = Sizes(net, X, y, work)
    assume(sizes.decided)
    found = twin(distances.distances, net, X, y, p)
    assert {part.dtype for part in found} == {work}
    assert_distances(sizes, y, p, found, None, X.astype(np.float64))


@given(cases(dyadic=True), st.data(), testing.norms())
def test_distances_in_boxes_on_multiples_of_a_quarter(case, data, p):
    """Up to the last roundings: in l_inf it is a single division."""
    net, X, y = case
    box = data.draw(testing.boxes(X, dyadic=True))
    expected = distances.distances(net, X, y, p, box)
    found = twin(distances.distances, net, X, y, p, box)
    if p == np.inf:
        assert_same(found, expected)
    for part, other in zip(found, expected, strict=True):
        assert_allclose(part, other, rtol=1e-14, atol=0)


@given(cases(), st.data(), testing.norms(), dtypes())
def test_distances_in_boxes(case, data, p, dtype):
    net, X, y = case
    net, X = net.astype(dtype[0]), X.astype(dtype[1])
    work = np.result_type(*dtype)
    sizes = Sizes(net, X, y, work)
    assume(sizes.decided)
    box = tuple(end.astype(X.dtype).astype(np.float64) for end in data.draw(testing.boxes(X)))
    found = twin(distances.distances, net, X, y, p, box)
    assert {part.dtype for part in found} == {work}
    assert_distances(sizes, y, p, found, box, X.astype(np.float64))


@given(cases(dyadic=True, max_samples=1), testing.norms(), SEEDS)
def test_boxes_without_room_in_some_coordinates(case, p, seed):
    net, X, y = case
    rng = np.random.default_rng(seed)
    below, above = rng.integers(0, 5, (2, *X[0].shape)) / 4 * rng.integers(0, 2, X[0].shape)
    box = X[0] - below, X[0] + above
    expected = distances.distances(net, X, y, p, box)
    found = twin(distances.distances, net, X, y, p, box)
    for part, other in zip(found, expected, strict=True):
        assert_allclose(part, other, rtol=1e-14, atol=0)


@given(cases(low=0.0), testing.norms())
def test_boxes_of_two_numbers(case, p):
    net, X, y = case
    X = X / 2
    sides = np.zeros(()), np.ones(())
    whole = np.zeros(net.input_shape), np.ones(net.input_shape)
    found = twin(distances.distances, net, X, y, p, sides)
    assert_same(found, twin(distances.distances, net, X, y, p, whole))
    with rm.use_backend("numba"):
        assert_same(rm.distances(net, X, y, p, box=(0, 1)), found)


# ------------------------------------------------------------------------------------------- MMR

GAMMAS = st.sampled_from([0.25, 1.0, 1.5, 1e6]) | st.floats(1e-6, 10)


@st.composite
def counts(draw, net):
    most = max(1, net.n_hidden)
    k_b = draw(st.sampled_from([1, most, max(1, most // 2)]) | st.integers(1, most))
    return k_b, draw(st.integers(1, net.n_classes))


def magnitude(net, X, y, p, gammas, counts):
    """The largest entry of any single sample's gradient."""
    single = [
        mmr.mmr_gradient(net, X[i : i + 1], y[i : i + 1], p, *gammas, *counts)[1]
        for i in range(len(X))
    ]
    return max(np.abs(array).max() for g in single for array in gradient_arrays(g))


@given(cases(dyadic=True), st.data(), testing.norms(), GAMMAS, GAMMAS)
def test_mmr_on_multiples_of_a_quarter(case, data, p, gamma_b, gamma_d):
    """Ties, dead units, rows of zeros: distances agree bitwise, so the same are selected."""
    net, X, y = case
    assume(p != 2 or exact_squares(net, X, y))
    args = net, X, y, p, gamma_b, gamma_d, *data.draw(counts(net))
    found, expected = twin(mmr.mmr, *args), mmr.mmr(*args)
    assert type(found) is mmr.MMR
    for part, other in zip(found, expected, strict=True):
        assert part.dtype == other.dtype
        assert_allclose(part, other, rtol=1e-14, atol=1e-15)
    value, gradients = twin(mmr.mmr_gradient, *args)
    other_value, others = mmr.mmr_gradient(*args)
    assert_allclose(value, other_value, rtol=1e-14, atol=1e-15)
    scale = magnitude(net, X, y, p, args[4:6], args[6:])
    for g, other in zip(gradient_arrays(gradients), gradient_arrays(others), strict=True):
        assert g.dtype == other.dtype
        assert_allclose(g, other, rtol=1e-12, atol=1e-12 * scale)


def wiggled(net, size, rng):
    """The same network with weights that are off by a relative error of this size."""
    return net.with_parameters(
        [
            tuple((a * (1 + size * rng.uniform(-1, 1, a.shape))).astype(a.dtype) for a in pair)
            for pair in net.parameters
        ]
    )


def assert_as_stable(function, net, args, dtype, arrays, precise=np.float64):
    """The twin differs from the reference by no more than weights that are off by 200 roundings do.

    Cases in which these change the result a lot (a mask changes, or another hyperplane is the
    nearest) are skipped.  The reference runs in float64, or as given.
    """
    X, *rest = args
    exact, there = (net, X) if precise is None else (net.astype(precise), X.astype(precise))
    expected = arrays(function(exact, there, *rest))
    rng, size, change = np.random.default_rng(0), 200 * EPS[np.dtype(dtype)], 0.0
    for _ in range(4):
        others = arrays(function(wiggled(exact, size, rng), there, *rest))
        change = max(change, *(np.abs(a - b).max() for a, b in zip(others, expected, strict=True)))
    scale = max(np.abs(array).max() for array in expected)
    assume(change <= 100 * size * scale)
    found = arrays(twin(function, net, X, *rest))
    for array, other in zip(found, expected, strict=True):
        assert array.dtype == dtype
        assert array.shape == other.shape
        assert np.abs(array - other).max() <= 3 * change + 20 * EPS[np.dtype(dtype)] * scale


@given(cases(), st.data(), testing.norms(), GAMMAS, GAMMAS, dtypes())
def test_mmr(case, data, p, gamma_b, gamma_d, dtype):
    net, X, y = case
    net, X = net.astype(dtype[0]), X.astype(dtype[1])
    args = X, y, p, gamma_b, gamma_d, *data.draw(counts(net))
    assert_as_stable(mmr.mmr, net, args, np.result_type(*dtype), list)


@given(cases(), st.data(), testing.norms(), GAMMAS, GAMMAS, dtypes())
def test_mmr_gradient(case, data, p, gamma_b, gamma_d, dtype):
    net, X, y = case
    net, X = net.astype(dtype[0]), X.astype(dtype[1])
    args = X, y, p, gamma_b, gamma_d, *data.draw(counts(net))
    assert_as_stable(
        mmr.mmr_gradient, net, args, dtype[0], lambda result: gradient_arrays(result[1])
    )


@given(cases(), st.data(), st.lists(testing.norms(), max_size=2), GAMMAS, GAMMAS, dtypes())
def test_objective_gradient(case, data, norms, gamma_b, gamma_d, dtype):
    net, X, y = case
    net, X = net.astype(dtype[0]), X.astype(dtype[1])
    terms = tuple(
        mmr.Regularizer(p, lam, gamma_b, gamma_d, *data.draw(counts(net)))
        for p, lam in zip(norms, (0.5, 2.0), strict=False)
    )

    def arrays(found):
        scalars = [np.array([value], dtype[0]) for value in found[:2]]
        return [*scalars, *gradient_arrays(found.gradients)]

    assert_as_stable(objective.objective_gradient, net, (X, y, terms), dtype[0], arrays)
    found = twin(objective.objective_gradient, net, X, y, terms)
    assert [type(value) for value in found[:3]] == [float, float, int]
    highest = np.sort(net(X), axis=1)
    if net.n_classes == 1 or (highest[:, -1] - highest[:, -2] > 1e-3).all():
        assert found.wrong == (net.predict(X) != y).sum()


@given(st.data())
def test_margin_gradients_are_exact_on_multiples_of_a_quarter(data):
    net, X, y = data.draw(cases(dyadic=True, n_classes=data.draw(st.integers(2, 5))))
    others = np.arange(net.n_classes - 1)[None] + (np.arange(net.n_classes - 1) >= y[:, None])
    args = net, X, y, others[:, : data.draw(st.integers(1, net.n_classes - 1))]
    assert_same(twin(loss.margin_gradients, *args), loss.margin_gradients(*args))


@st.composite
def climbs(draw):
    """Radius, number and length of steps."""
    eps, steps = draw(st.sampled_from([0.25, 0.5, 1.0, 4.0])), draw(st.integers(1, 6))
    return eps, steps, eps / draw(st.sampled_from([0.5, 1.0, 2.0, 4.0]))


@given(cases(dyadic=True, n_classes=2), st.data(), climbs(), st.booleans(), st.booleans())
def test_pgd_is_exact_on_multiples_of_a_quarter(case, data, climb, boxed, last):
    """With two classes the gradient of the log-odds has no exponential in it."""
    net, X, y = case
    box = data.draw(testing.boxes(X, dyadic=True)) if boxed else None
    args = net, X, y, np.inf, *climb, box, X, last
    assert_same(twin(pgd.pgd, *args), pgd.pgd(*args))


@given(st.data(), climbs(), testing.norms(), st.booleans(), st.sampled_from(["best", "last"]))
@settings(max_examples=30)
def test_pgd_with_restarts(data, climb, p, boxed, keep):
    net, X, y = data.draw(cases(n_classes=2))
    eps, steps, step_size = climb
    box = data.draw(testing.boxes(X)) if boxed else None
    options = {"eps": eps, "steps": steps, "step_size": step_size, "box": box}

    def attack(net, X):
        return rm.pgd(net, X, y, p, **options, restarts=3, rng=5, keep=keep)

    expected = attack(net, X)
    rng = np.random.default_rng(0)
    for _ in range(4):
        assume(np.abs(attack(wiggled(net, 1e-13, rng), X) - expected).max() < 1e-10)
    with rm.use_backend("numba"):
        assert_allclose(attack(net, X), expected, rtol=0, atol=1e-9)


@st.composite
def attacked(draw):
    return draw(cases(n_classes=draw(st.integers(2, 5))))


@given(attacked(), st.data(), testing.norms(), climbs(), st.booleans(), st.booleans(), dtypes())
def test_pgd(case, data, p, climb, boxed, last, dtype):
    net, X, y = case
    net, X = net.astype(dtype[0]), X.astype(dtype[1])
    box = None
    if boxed:
        box = tuple(end.astype(X.dtype) for end in data.draw(testing.boxes(X)))
    args = X, y, p, *climb, box, X, last
    assert_as_stable(pgd.pgd, net, args, np.result_type(*dtype), lambda Z: [Z], None)


@pytest.mark.parametrize(
    ("dtype", "exponent"), [("f4", -90), ("f4", 90), ("f8", -600), ("f8", 600)]
)
@given(cases(), st.data(), st.sampled_from([1, np.inf]))
@settings(max_examples=15)
def test_very_small_and_very_large_weights(dtype, exponent, case, data, p):
    """All functions times a power of two: no hyperplane moves, and nothing is rounded."""
    net, X, y = case
    net, X, scale = net.astype(dtype), X.astype(dtype), np.ldexp(np.ones((), dtype), exponent)
    (W, b), *others = net.parameters
    scaled = net.with_parameters([(W * scale, b * scale), *((W, b * scale) for W, b in others)])
    args = X, y, p, 0.5, 2.0, *data.draw(counts(net))
    for function in (mmr.mmr_gradient, lambda *args: twin(mmr.mmr_gradient, *args)):
        value, ((dW, db), *rest) = function(net, *args)
        expected = value, [(dW / scale, db / scale), *((dW, db / scale) for dW, db in rest)]
        assert_same(function(scaled, *args), expected)
    expected = twin(distances.distances, net, X, y, p)
    assert_same(twin(distances.distances, scaled, X, y, p), expected)


def tied_networks():
    """All units of a layer, and all rivals, are at the same distance, with different rows."""
    steps = np.array([[1.0, 2], [2, 1], [-1, 2], [2, -1], [1, -2]])
    dense = [
        rm.Linear(steps, 1 - steps @ [0.5, 0.25]),
        rm.Linear([[1, 2, 3, 0, 0], [3, 2, 1, 0, 0], [0, 1, 2, 3, 0]], [0, 0, 0]),
        rm.Linear([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 0, 0, 0]),
    ]
    W = np.stack([np.ones((2, 2, 2)), np.ones((2, 2, 2))])
    conv = [rm.Conv2d(W, [0, 0]), rm.Conv2d(W[:, :, :1], [0, 0]), rm.Flatten()]
    return {
        "dense": (rm.Network(dense, 2), np.array([[0.5, 0.25]])),
        "convolutional": (
            rm.Network(
                [*conv, rm.Linear(np.repeat([[2, 1, 1, 1]], 4, axis=0).T, [0] * 4)], (2, 3, 3)
            ),
            np.ones((1, 2, 3, 3)),
        ),
    }


@pytest.mark.parametrize("name", tied_networks())
@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_the_first_of_hyperplanes_at_the_same_distance_are_selected(name, p):
    """First in the user's order: layer, channel, row, column."""
    net, X = tied_networks()[name]
    y = np.array([0])
    for k in range(1, net.n_hidden + 1):
        args = net, X, y, p, 100.0, 100.0, k, min(k, net.n_classes)
        value, gradients = twin(mmr.mmr_gradient, *args)
        other_value, others = mmr.mmr_gradient(*args)
        assert_allclose(value, other_value, rtol=1e-14)
        for g, other in zip(gradient_arrays(gradients), gradient_arrays(others), strict=True):
            assert_allclose(g, other, rtol=1e-12, atol=1e-14)


def test_the_first_of_points_with_the_same_margin_is_kept():
    """The margin is |x|, and the step leads from x to -x."""
    net = rm.Network([rm.Linear([[1], [-1]], [0, 0]), rm.Linear([[1, 1], [0, 0]], [0, 0])], 1)
    X, y = np.array([[-0.25], [0.25]]), np.array([0, 0])
    for last, expected in ((False, X), (True, -X)):
        args = net, X, y, np.inf, 1.0, 1, 0.5, None, X, last
        assert_same(pgd.pgd(*args), expected)
        assert_same(twin(pgd.pgd, *args), expected)


# ------------------------------------------------------------------------------------------- Adam


def moments(rng, shapes, dtype):
    """Arrays, means and squares in the middle of a training, and gradients."""
    return [
        [
            (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)) ** power
            for shape in shapes
        ]
        for power in (1, 1, 2, 1)
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), max_size=5), SEEDS)
def test_adam(dtype, shapes, seed):
    """A few roundings of the numbers that are added."""
    start = moments(np.random.default_rng(seed), shapes, dtype)
    start = [[array.astype(dtype) for array in arrays] for arrays in start]
    exact = [[array.astype(np.float64) for array in arrays] for arrays in start]
    found = [[array.copy() for array in arrays] for arrays in start]
    adam.update(*exact, 0.01)
    assert twin(adam.update, *found, 0.01) is None
    # The sizes that rounding errors are relative to: a mean may cancel, a step has its error.
    means = [np.abs(m) + np.abs(g) for m, g in zip(start[1], start[3], strict=True)]
    steps = [0.01 * m / (np.sqrt(v) + 1e-8) for m, v in zip(means, exact[2], strict=True)]
    for k, more in enumerate((steps, means, exact[2])):
        for array, part, expected, size in zip(start[k], found[k], exact[k], more, strict=True):
            assert part.dtype == dtype
            allowed = 4 * EPS[np.dtype(dtype)] * (np.abs(array) + np.abs(expected) + size)
            assert (np.abs(part - expected) <= allowed).all()
    for g, kept in zip(found[3], start[3], strict=True):
        assert_array_equal(g, kept)
