"""Laws of method="bab": in the radius, and in networks that are the same function."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refmmr as rm

NORMS = (1, 2, np.inf)
SEEDS = st.integers(0, 2**32 - 1)
ORDER = {"robust": 0, "unknown": 1, "adversarial": 2}


def problem(seed):
    """A network with 3 inputs, a point and its class, and weights."""
    rng = np.random.default_rng(seed)
    sizes = [3, *rng.integers(2, 6, rng.integers(1, 3)), int(rng.integers(2, 4))]
    net = rm.Network.mlp(sizes, rng=int(seed))
    x = rng.uniform(0, 1, (1, 3))
    return net, x, net.logits(x).argmax(axis=1), rng


def status(net, x, y, p, eps):
    found = rm.certify(net, x, y, p, method="bab", eps=eps, max_seconds=2)
    return found.status[0]


@pytest.mark.parametrize("p", NORMS)
@settings(max_examples=3)
@given(seed=SEEDS)
def test_a_larger_ball_is_no_more_robust(p, seed):
    net, x, y, rng = problem(seed)
    answers = [ORDER[status(net, x, y, p, eps)] for eps in np.sort(rng.uniform(0.01, 1, 3))]
    assert answers == sorted(answers)


@pytest.mark.parametrize("p", NORMS)
@settings(max_examples=3)
@given(seed=SEEDS)
def test_answers_do_not_depend_on_the_order_and_units_of_hidden_units(p, seed):
    net, x, y, rng = problem(seed)
    W, b = zip(*net.parameters, strict=True)
    W, b = list(W), list(b)
    for k in range(len(W) - 1):
        order, scale = rng.permutation(len(b[k])), 2.0 ** rng.integers(-20, 21, len(b[k]))
        W[k], b[k] = (scale[:, None] * W[k])[order], (scale * b[k])[order]
        W[k + 1] = (W[k + 1] / scale)[:, order]
    twin = rm.Network([rm.Linear(*pair) for pair in zip(W, b, strict=True)], 3)
    eps = float(rng.uniform(0.02, 0.6))
    assert {status(net, x, y, p, eps), status(twin, x, y, p, eps)} != {"robust", "adversarial"}
    exact = rm.certify(net, x, y, p, method="search")
    for share in (0.99, 1.01):
        if exact.exact[0] and np.isfinite(exact.upper[0]) and exact.upper[0] > 0:
            expected = "robust" if share < 1 else "adversarial"
            assert status(twin, x, y, p, share * exact.upper[0]) == expected
