"""PGD on problems that are solved by hand."""

import numpy as np
import pytest
from helpers import length

import refmmr as rm
from refmmr.reference import loss

NORMS = [1, 2, np.inf]


@pytest.fixture
def net():
    return rm.Network.mlp([4, 12, 8, 3], rng=0)


@pytest.fixture
def batch(net):
    X = np.random.default_rng(1).uniform(0, 1, (30, 4))
    return X, net.predict(X)


# A linear classifier of two classes: margin w x + b, so direction and distance are known.
W, B = np.array([3.0, -1.0, 0.5, -2.0]), 0.25
LINEAR = rm.Network([rm.Linear([W, 0 * W], [B, 0])], 4)
DISTANCE = {1: 3.0, 2: np.sqrt(14.25), np.inf: 6.5}


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("p", NORMS)
def test_linear_classifier(p, steps):
    X = np.random.default_rng(0).normal(size=(20, 4))
    y = LINEAR.predict(X)
    for x, label in zip(X[:, None], y[:, None], strict=True):
        distance = abs(x @ W + B).item() / DISTANCE[p]
        over, under = (
            rm.pgd(LINEAR, x, label, p, eps=distance * factor, steps=steps, box=None)
            for factor in (1 + 1e-6, 1 - 1e-6)
        )
        assert LINEAR.predict(over) != label
        assert LINEAR.predict(under) == label
        # The step goes all the way to the hyperplane: it is the minimal adversarial example.
        assert length(over - x, p) >= distance * (1 - 1e-12)
        np.testing.assert_allclose(under @ W + B, (x @ W + B) * 1e-6, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("p", NORMS)
def test_linear_classifier_in_the_box(p):
    """The best coordinate has nowhere to go: PGD spends the ball on the others."""
    x, label = np.array([[0.0, 0.5, 0.5, 0.6]]), [0]
    net = rm.Network([rm.Linear([[4, 1, 0, -1], [0, 0, 0, 0]], [0.3, 0])], 4)
    assert net.predict(x) == label
    # margin 0.2: only -x1 and +x3 help, each by 1 for 1.
    distance = {1: 0.2, 2: 0.2 / np.sqrt(2), np.inf: 0.1}[p]
    over = rm.pgd(net, x, label, p, eps=distance * 1.001)
    assert net.predict(over) != label
    assert over[0, 0] == 0
    assert net.predict(rm.pgd(net, x, label, p, eps=distance * 0.999)) == label


@pytest.mark.parametrize("p", NORMS)
def test_confident_classifier(p):
    """The other class has a probability of e^-400: the gradient is tiny, its direction is not."""
    net = rm.Network([rm.Linear([800 * W, 0 * W], [0, 0])], 4)
    x = 0.5 * W[None] / (W @ W)
    assert net.predict(x) == 0
    over = rm.pgd(net, x, [0], p, eps=0.501 / DISTANCE[p], box=None)
    assert net.predict(over) == 1


def test_single_step_by_hand():
    net = rm.Network([rm.Linear([[1, -2], [0, 0]], [5, 0])], 2)
    x = [[0.5, 0.5]]
    for p, expected in (
        (1, [0.5, 0.75]),
        (2, [0.5 - 0.25 / 5**0.5, 0.5 + 0.5 / 5**0.5]),
        (np.inf, [0.25, 0.75]),
    ):
        found = rm.pgd(net, x, [0], p, eps=0.5, steps=1, step_size=0.25)
        np.testing.assert_allclose(found, [expected], rtol=1e-14)
        # The ball stops the same step halfway.
        found = rm.pgd(net, x, [0], p, eps=0.125, steps=1, step_size=0.25)
        np.testing.assert_allclose(found, 0.25 + np.array([expected]) / 2, rtol=1e-14)


def test_default_step_size(net, batch):
    X, y = batch
    for steps in (1, 5):
        given, default = (
            rm.pgd(net, X, y, 2, eps=0.3, steps=steps, keep="last", **options)
            for options in ({"step_size": 0.6 / steps}, {})
        )
        np.testing.assert_array_equal(given, default)


def test_keep():
    """A valley that PGD steps over, to and fro: the best point is not the last one."""
    valley = rm.Linear([[0, 0], [-1, -1]], [0, 0.1])
    net = rm.Network([rm.Linear([[1], [-1]], [-0.68, 0.68]), valley], 1)
    kept = {
        keep: rm.pgd(net, [[0.5]], [0], np.inf, eps=0.5, steps=2, step_size=0.25, keep=keep)
        for keep in ("best", "last")
    }
    assert (kept["best"].item(), kept["last"].item()) == (0.75, 0.5)
    assert net.predict(kept["best"]) == 1


@pytest.mark.parametrize("p", NORMS)
def test_best_is_no_worse_than_last_and_start(net, batch, p):
    X, y = batch
    best, last = (rm.pgd(net, X, y, p, eps=0.4, steps=6, keep=keep) for keep in ("best", "last"))
    margins = [loss.margins(net(Z), y) for Z in (best, last, X)]
    assert (margins[0] <= margins[1]).all()
    assert (margins[0] <= margins[2]).all()
    assert (margins[0] < margins[2]).mean() > 0.9


@pytest.mark.parametrize("p", NORMS)
def test_restarts_are_never_worse(net, batch, p):
    X, y = batch
    runs = [rm.pgd(net, X, y, p, eps=0.3, steps=3, restarts=restarts) for restarts in (1, 2, 6)]
    margins = [loss.margins(net(Z), y) for Z in runs]
    assert (margins[1] <= margins[0]).all()
    assert (margins[2] <= margins[1]).all()
    assert (margins[2] < margins[0]).any()


def test_deterministic(net, batch):
    X, y = batch
    calls = [
        rm.pgd(net, X, y, 2, eps=0.3, steps=3, restarts=4, rng=rng).tobytes()
        for rng in (7, 7, np.random.default_rng(7), 8)
    ]
    assert calls[0] == calls[1] == calls[2]
    assert calls[0] != calls[3]


def test_arguments_stay_as_they_are(net, batch):
    X, y = batch
    before = X.copy(), y.copy()
    rm.pgd(net, X, y, 2, eps=0.3, restarts=2)
    np.testing.assert_array_equal(X, before[0])
    np.testing.assert_array_equal(y, before[1])


def test_images():
    net = rm.Network.lenet_small((1, 8, 8), 3, rng=0)
    X = np.random.default_rng(0).uniform(0, 1, (5, 1, 8, 8))
    y = net.predict(X)
    for p in NORMS:
        Z = rm.pgd(net, X, y, p, eps=0.5, steps=5)
        assert Z.shape == X.shape
        assert (loss.margins(net(Z), y) < loss.margins(net(X), y)).all()
        assert (length(Z - X, p) <= 0.5 * (1 + 1e-12)).all()


@pytest.mark.parametrize("p", NORMS)
def test_float32(net, batch, p):
    """float32 in, float32 out, in the ball and the box up to its own rounding."""
    X, y = batch[0].astype(np.float32), batch[1]
    Z = rm.pgd(net.astype(np.float32), X, y, p, eps=0.3, box=(0, 1))
    assert Z.dtype == np.float32
    assert (length(Z.astype(float) - X, p) <= 0.3 * (1 + 1e-5)).all()
    assert ((Z >= 0) & (Z <= 1)).all()


def test_float32_stays_in_a_box_that_float32_cannot_hold():
    """0.1 rounds up to float32: the result must still be a point of the box."""
    net = rm.Network([rm.Linear([[-1.0], [0]], [0.05, 0])], 1).astype(np.float32)
    Z = rm.pgd(net, np.zeros((1, 1), dtype=np.float32), [0], np.inf, eps=1, box=(0, 0.1))
    assert Z.astype(float) <= 0.1


def test_margins():
    logits = np.array([[1.0, 3.0, 2.0], [1.0, 3.0, 2.0], [5.0, 5.0, 0.0]])
    np.testing.assert_array_equal(loss.margins(logits, np.array([1, 0, 1])), [1, -2, 0])


BAD = {
    "X shape": ({"X": [[0.5]]}, r"X: expected shape \(n, 4\), got \(1, 1\)"),
    "X single": ({"X": [0.5] * 4}, r"X: .* pass X\[None\]"),
    "X empty": ({"X": np.zeros((0, 4)), "y": []}, "X: expected at least one sample"),
    "X nan": ({"X": [[0.5, np.nan, 0, 0]]}, r"X: expected finite numbers, got nan at .*\(0, 1\)"),
    "X outside": ({"X": [[0.5, 1.5, 0, 0]]}, "X: expected points inside the box.*1.5"),
    "y large": ({"y": [3]}, "y: expected classes 0 to 2, got 3"),
    "y negative": ({"y": [-1]}, "y: expected classes 0 to 2, got -1"),
    "y count": ({"y": [0, 1]}, r"y: expected shape \(1,\)"),
    "y float": ({"y": [0.0]}, "y: expected integer"),
    "p": ({"p": 3}, "p: expected 1, 2 or inf, got 3"),
    "eps 0": ({"eps": 0}, "eps: expected a finite number > 0, got 0"),
    "eps negative": ({"eps": -0.1}, "eps: expected a finite number > 0, got -0.1"),
    "eps nan": ({"eps": np.nan}, "eps: expected a finite number > 0, got nan"),
    "eps inf": ({"eps": np.inf}, "eps: expected a finite number > 0, got inf"),
    "eps text": ({"eps": "0.1"}, "eps: expected a finite number > 0, got '0.1'"),
    "steps 0": ({"steps": 0}, "steps: expected an integer of at least 1, got 0"),
    "steps float": ({"steps": 2.5}, "steps: expected an integer of at least 1, got 2.5"),
    "step_size": ({"step_size": 0}, "step_size: expected a finite number > 0, got 0"),
    "restarts": ({"restarts": 0}, "restarts: expected an integer of at least 1, got 0"),
    "keep": ({"keep": "all"}, "keep: expected one of 'best', 'last', got 'all'"),
    "box order": ({"box": (1, 0)}, "box: expected lo <= hi, got lo = 1, hi = 0"),
    "box triple": ({"box": (0, 1, 2)}, r"box: expected None or a pair \(lo, hi\)"),
    "box shape": ({"box": (np.zeros(3), 1)}, r"box: expected lo of shape \(4,\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors(net, name):
    changed, message = BAD[name]
    arguments = {"X": [[0.5] * 4], "y": [0], "p": 2, "eps": 0.1, **changed}
    with pytest.raises((ValueError, TypeError), match=message):
        rm.pgd(net, **arguments)
