"""The Wong-Kolter bound by hand, and against explicit matrices."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr import Conv2d, Flatten, Linear, Network
from refmmr.reference import affine, loss, wong_kolter

INF = np.inf
NORMS = [1, 2, INF]

# f_1 = (x, -x) and logits (g_1 + g_2, 1): the bump |x| against a constant.
BUMP = Network([Linear([[1], [-1]], [0, 0]), Linear([[1, 1], [0, 0]], [0, 1])], 1)


def with_biases(net, seed=0):
    """He initialisation has none."""
    rng = np.random.default_rng(seed)
    return net.with_parameters([(W, 0.3 * rng.normal(size=b.shape)) for W, b in net.parameters])


NETS = {
    "dense": with_biases(Network.mlp([4, 7, 6, 3], rng=0)),
    "one hidden layer": with_biases(Network.mlp([5, 9, 4], rng=1)),
    "no hidden layer": with_biases(Network.mlp([3, 3], rng=2)),
    "convolutions": with_biases(
        Network(
            [
                Conv2d(0.3 * np.random.default_rng(3).normal(size=(3, 2, 3, 2)), np.zeros(3),
                       (2, 1), ((1, 0), (0, 1))),
                Conv2d(0.3 * np.random.default_rng(4).normal(size=(2, 3, 2, 2)), np.zeros(2),
                       1, "same"),
                Flatten(),
                Linear(0.5 * np.random.default_rng(5).normal(size=(3, 16)), np.zeros(3)),
            ],
            (2, 4, 4),
        )
    ),
}  # fmt: skip
RADII = {1: 0.5, 2: 0.2, INF: 0.08}


def batch(net, n=4, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (n, *net.input_shape)), rng.integers(0, net.n_classes, n)


# ---- The bound.


def dense(net):
    """Weights and biases of every affine layer as explicit matrices."""
    found = []
    for k, i in enumerate(net.affine):
        before = net.affine[k - 1] + 1 if k else 0
        shape = net.shapes[before]
        size = int(np.prod(shape))
        points = np.concatenate([np.zeros((1, size)), np.eye(size)]).reshape(-1, *shape)
        for layer in net.layers[before : i + 1]:
            points = layer.apply(points)
        b, *rows = points.reshape(size + 1, -1)
        found.append(((np.array(rows) - b).T, b))
    return found


def margins_by_hand(net, x, c, p, eps):
    """One sample, one function at a time, with explicit matrices."""
    layers = dense(net)
    q = {1: INF, 2: 2, INF: 1}[p]

    def lowest(a, k, ends):
        total = 0.0
        for j in reversed(range(k + 1)):
            W, b = layers[j]
            total += a @ b
            a = a @ W
            if j == 0:
                return total + a @ x - eps * np.linalg.norm(a, q)
            for i, (low, high) in enumerate(ends[j - 1]):
                if low >= 0:
                    continue
                if high <= 0:
                    a[i] = 0
                    continue
                slope = high / (high - low)
                total -= max(-a[i], 0) * -slope * low
                a[i] *= slope
        raise AssertionError

    ends = []
    for k in range(len(layers) - 1):
        units = np.eye(len(layers[k][1]))
        ends.append([(lowest(e.copy(), k, ends), -lowest(-e, k, ends)) for e in units])
    unit = np.eye(net.n_classes)
    return [lowest(unit[c] - unit[s], len(layers) - 1, ends) for s in range(net.n_classes)]


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", NETS)
def test_against_explicit_matrices(name, p):
    net = NETS[name]
    X, y = batch(net)
    found = wong_kolter.robust_margins(net, X, y, p, RADII[p])
    wanted = [margins_by_hand(net, x.ravel(), c, p, RADII[p]) for x, c in zip(X, y, strict=True)]
    assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)
    assert_array_equal(found[np.arange(len(y)), y], 0)


def test_bump_by_hand():
    # At 0, eps 1, both units run from -1 to 1: slope 1/2, intercept 1/2.  The sum is relaxed to
    # f_1 / 2 + f_2 / 2 = 0 below and to 1 above.
    x = np.zeros((1, 1))
    assert_array_equal(wong_kolter.robust_margins(BUMP, x, np.array([0]), INF, 1.0), [[0, -1]])
    assert_array_equal(wong_kolter.robust_margins(BUMP, x, np.array([1]), INF, 1.0), [[0, 0]])
    # At 3 the units are stable, and the bound is exact: |x| >= 2.
    x = np.full((1, 1), 3.0)
    assert_array_equal(wong_kolter.robust_margins(BUMP, x, np.array([0]), 2, 1.0), [[0, 1]])


def test_relaxation_by_hand():
    lower, upper = np.array([-1.0, 0, -2, -3]), np.array([3.0, 2, 0, -1])
    relaxation = wong_kolter.parallel_relaxation(lower, upper)
    assert_array_equal(relaxation.slope, [0.75, 1, 0, 0])
    assert_array_equal(relaxation.intercept, [0.75, 0, 0, 0])
    ones = np.ones(4)
    # s = u / (u - l): 3/16, 1/16;  t = -u l / (u - l): -9/16, 1/16.
    for drelaxation, wanted in (((ones, 0 * ones), (3, 1)), ((0 * ones, ones), (-9, 1))):
        dlower, dupper = wong_kolter.parallel_relaxation_gradient(lower, upper, *drelaxation)
        assert_array_equal(dlower, [wanted[0] / 16, 0, 0, 0])
        assert_array_equal(dupper, [wanted[1] / 16, 0, 0, 0])


# ---- The loss.


def test_loss_of_the_bump_by_hand():
    X, y = np.array([[0.0], [3.0]]), np.array([0, 0])
    value, error, gradients = wong_kolter.robust_loss_gradient(BUMP, X, y, INF, 1.0)
    assert value == pytest.approx((np.log(1 + np.e) + np.log(1 + np.exp(-1))) / 2, rel=1e-15)
    assert error == 0.5
    # Biases of the logits: softmax of the worst case.
    first, second = 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))
    assert_allclose(gradients[1][1], [-(first + second) / 2, (first + second) / 2], rtol=1e-15)


def test_margin_0_is_an_error():
    """A tie is no proof."""
    x, y = np.zeros((1, 1)), np.array([1])
    assert wong_kolter.robust_loss_gradient(BUMP, x, y, INF, 1.0)[1] == 1
    assert wong_kolter.robust_loss_gradient(BUMP, x, y, INF, 0.99)[1] == 0


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", NETS)
def test_tiny_balls_give_the_plain_cross_entropy(name, p):
    net = NETS[name]
    X, y = batch(net)
    value, error, gradients = wong_kolter.robust_loss_gradient(net, X, y, p, 1e-9)
    plain, wanted = loss.loss_gradient(net, X, y)
    assert value == pytest.approx(plain, rel=1e-7)
    assert error == (net.predict(X) != y).mean()
    for (dW, db), (plain_W, plain_b) in zip(gradients, wanted, strict=True):
        assert_allclose(dW, plain_W, atol=1e-7)
        assert_allclose(db, plain_b, atol=1e-7)


def changed(net, k, which, index, step):
    parameters = [[W.copy(), b.copy()] for W, b in net.parameters]
    parameters[k][which][index] += step
    return net.with_parameters(parameters)


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", NETS)
def test_gradient_against_differences(name, p):
    """Every weight and bias."""
    net, step = NETS[name], 1e-6
    X, y = batch(net)
    _, _, gradients = wong_kolter.robust_loss_gradient(net, X, y, p, RADII[p])

    def value(*change):
        return wong_kolter.robust_loss_gradient(changed(net, *change), X, y, p, RADII[p])[0]

    for k, pair in enumerate(gradients):
        for which, gradient in enumerate(pair):
            wanted = np.empty_like(gradient)
            for index in np.ndindex(gradient.shape):
                rise = value(k, which, index, step) - value(k, which, index, -step)
                wanted[index] = rise / (2 * step)
            assert_allclose(gradient, wanted, atol=2e-8)


def test_units_are_unstable_in_the_tests_above():
    """Otherwise they would not test the relaxation."""
    for name in ("dense", "one hidden layer", "convolutions"):
        net = NETS[name]
        X, y = batch(net)
        for p in NORMS:
            for layer in wong_kolter.forward(net, X, y, p, RADII[p])[:-1]:
                lower, upper = layer.bounds
                assert ((lower < 0) & (upper > 0)).any()
                assert (lower >= 0).any() or (upper <= 0).any()


@pytest.mark.parametrize("name", NETS)
def test_small_chunks_give_the_same(name, monkeypatch):
    net = NETS[name]
    X, y = batch(net, n=5)
    value, error, gradients = wong_kolter.robust_loss_gradient(net, X, y, INF, 0.05)
    margins = wong_kolter.robust_margins(net, X, y, INF, 0.05)
    for samples in (1, 2):
        widest = max(int(np.prod(shape)) for shape in net.shapes[1:])
        monkeypatch.setattr(affine, "CHUNK_BYTES", samples * 8 * X[0].size * widest)
        again = wong_kolter.robust_loss_gradient(net, X, y, INF, 0.05)
        assert again[0] == pytest.approx(value, rel=1e-14)
        assert again[1] == error
        for found, wanted in zip(again[2], gradients, strict=True):
            assert_allclose(found[0], wanted[0], rtol=1e-10, atol=1e-14)
            assert_allclose(found[1], wanted[1], rtol=1e-10, atol=1e-14)
        assert_allclose(
            wong_kolter.robust_margins(net, X, y, INF, 0.05), margins, rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("name", NETS)
def test_float32_stays_float32(name, p):
    net = NETS[name]
    X, y = batch(net)
    single = net.astype(np.float32)
    value, _, gradients = wong_kolter.robust_loss_gradient(
        single, X.astype(np.float32), y, p, RADII[p]
    )
    wanted, _, exact = wong_kolter.robust_loss_gradient(net, X, y, p, RADII[p])
    assert value == pytest.approx(wanted, rel=1e-5)
    for pair, other in zip(gradients, exact, strict=True):
        for gradient, reference in zip(pair, other, strict=True):
            assert gradient.dtype == np.float32
            assert_allclose(gradient, reference, atol=1e-4)


def test_no_unit_and_no_weight_at_all():
    """Rows of zeros: no slope of the norm, nothing infinite."""
    net = Network([Linear([[0, 0], [0, 0]], [1, 0]), Linear([[1, 1], [0, 0]], [0, 0])], 2)
    X, y = np.ones((2, 2)), np.array([0, 1])
    for p in NORMS:
        value, error, gradients = wong_kolter.robust_loss_gradient(net, X, y, p, 0.5)
        assert value == pytest.approx((np.log(1 + np.exp(-1)) + np.log(1 + np.e)) / 2, rel=1e-15)
        assert error == 0.5
        assert all(np.isfinite(array).all() for pair in gradients for array in pair)


# ---- What it is for.


@pytest.mark.parametrize(("p", "eps"), [(INF, 0.05), (2, 0.4)])
def test_training_on_digits_makes_networks_provable(p, eps):
    data = rm.datasets.load("digits")
    start = Network.mlp([64, 32, 10], rng=0).astype(np.float32)
    X = data.X_test.astype(np.float32)
    errors = {}
    for scheme in ("plain", "kw"):
        net, _ = rm.fit(
            start, data.X_train, data.y_train, scheme, p=p, eps=eps, epochs=20, batch_size=64,
            lr=5e-3,
        )  # fmt: skip
        errors[scheme] = wong_kolter.robust_loss_gradient(net, X, data.y_test, p, eps)[1]
        assert (net.predict(X) != data.y_test).mean() < 0.1
    assert errors["kw"] < 0.6 * errors["plain"]
