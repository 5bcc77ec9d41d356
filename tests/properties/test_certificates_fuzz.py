"""Certificates of random and of hostile networks on the plane, judged by the exact oracle.

Each case draws a network, a point and its class, a box or none, a norm and a radius, and tries all
methods.  A few cases of each kind run with the other tests, always the same; ``make fuzz`` runs any
number of new ones.
"""

import os
from fractions import Fraction
from itertools import pairwise

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr.certify.methods import METHODS

CASES = int(os.environ.get("REFMMR_FUZZ_CASES", "32"))
FRESH = "REFMMR_FUZZ_CASES" in os.environ

BUDGETS = {
    "search": {"max_regions": 300, "max_seconds": 2},
    "lp": {"max_seconds": 2},
    "bab": {"max_seconds": 0.5},
    "mip": {"max_seconds": 2},
}


def plane(rng, sizes=None):
    """A dense network on the plane, with normal weights and biases."""
    sizes = sizes or [2, *rng.integers(1, 6, rng.integers(0, 4)), rng.integers(2, 5)]
    return [(rng.normal(size=(m, n)), 0.5 * rng.normal(size=m)) for n, m in pairwise(sizes)]


def ordinary(rng):
    return plane(rng)


def rounded(rng):
    """One or two decimal digits, as people write numbers down: bounds of boxes are hit."""
    digits = rng.integers(1, 3)
    return [(W.round(digits), b.round(digits)) for W, b in plane(rng)]


def dyadic(rng):
    """Quarters: twins, dead units, ties, hyperplanes through one point."""
    return [(np.round(2 * W) / 4, np.round(2 * b) / 4) for W, b in plane(rng)]


def scaled(rng):
    """Each layer in another unit."""
    powers = rng.choice([0, 4, 10, 100, 150, 200, 300], 4) * rng.choice([-1, 1], 4)
    layers, total = [], 0
    for (W, b), power in zip(plane(rng), powers, strict=False):
        total = total + power
        layers.append((W * 10.0**power, b * 10.0 ** float(np.clip(total, -300, 300))))
    return layers


def wild(rng):
    """Weights of very different size."""
    reach = rng.choice([3, 9, 20, 100])

    def factors(shape):
        return 10.0 ** rng.integers(-reach, reach + 1, shape)

    return [(W * factors(W.shape), b * factors(b.shape)) for W, b in plane(rng)]


def cancelling(rng):
    """Biases that swallow digits of one layer and are subtracted in the next."""
    layers = plane(rng, [2, *rng.integers(1, 5, 2), rng.integers(2, 4)])
    size = 10.0 ** rng.integers(4, 17)
    (W, b), (W2, b2) = layers[:2]
    large = size * rng.choice([1, 2, 3], len(b))
    layers[:2] = [(W, b + large), (W2, b2 - W2 @ large)]
    return layers


def twins(rng):
    """Logits, or units, that differ by ulps."""
    layers = plane(rng)
    W, b = layers[-1] if rng.random() < 0.7 else layers[0]
    W[1:], b[1:] = W[0], b[0]
    W *= 1 + 2.0**-52 * rng.integers(-3, 4, W.shape)
    b += np.abs(b) * 2.0**-52 * rng.integers(-3, 4, b.shape)
    if rng.random() < 0.5:
        W[rng.integers(len(W))] *= 1 + 10.0 ** -rng.integers(3, 15)
    return layers


def sparse(rng):
    """Few connections; logits that hang on tiny constants."""
    layers = [(W * (rng.random(W.shape) < 0.5), b * (rng.random(b.shape) < 0.5))
              for W, b in plane(rng)]  # fmt: skip
    W, b = layers[-1]
    layers[-1] = W, b * 10.0 ** -rng.integers(0, 310, b.shape)
    return layers


pytestmark = pytest.mark.usefixtures("short_attack")

KINDS = [ordinary, rounded, dyadic, scaled, wild, cancelling, twins, sparse]


def problem(rng, kind):
    """A network, a point, its class, and a box or None."""
    layers = kind(rng)
    if kind is not dyadic and rng.random() < 0.2:  # other units of the input
        unit = 10.0 ** (rng.choice([1, 8, 19, 100, 160]) * rng.choice([-1, 1]))
    else:
        unit = 1.0
    with np.errstate(over="ignore"):
        layers[0] = np.clip(layers[0][0] / unit, -1e300, 1e300), layers[0][1]
    net = rm.Network([rm.Linear(W, b) for W, b in layers], 2)
    x = rng.integers(-4, 5, 2) / 4 if rng.random() < 0.3 else rng.uniform(-1, 1, 2)
    x = x * unit
    box = None
    if rng.random() < 0.7:
        room = rng.choice([0, 0.25, 1, 3, 100], (2, 2)) * unit
        lo, hi = x - room[0], x + room[1]
        box = lo, np.where(hi > lo, hi, lo + unit)
    y = oracle.predicted_class(net, x)
    if rng.random() < 0.1:
        y = int(rng.integers(net.n_classes))
    return net, x, y, box


def check(net, x, y, p, box, squares, method, eps=None):
    """What a certificate promises."""
    options = BUDGETS.get(method, {})
    found = rm.certify(net, [x], [y], p, box, method, eps=eps, progress=False, **options)
    lower, upper, z = found.lower[0], found.upper[0], found.adversarial[0]
    truth = squares[p]
    assert 0 <= lower <= upper
    if truth is not None:
        assert np.isfinite(lower)
        assert Fraction(lower) ** 2 <= truth
    assert np.isfinite(z).all() if np.isfinite(upper) else np.isnan(z).all()
    if np.isfinite(upper):
        assert box is None or ((box[0] <= z) & (z <= box[1])).all()
        assert oracle.predicted_class(net, z) != y
        assert oracle.length_square(x, z, p) <= Fraction(upper) ** 2
    if oracle.predicted_class(net, x) != y:
        assert lower == upper == 0
    if eps is not None and found.robust[0]:
        assert truth is None or Fraction(eps) ** 2 < truth


BACKENDS = ["numpy", "numba"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=-(-CASES // (len(KINDS) * len(BACKENDS))), derandomize=not FRESH)
@given(seed=st.integers(0, 2**64 - 1))
def test_certificates_hold(seed, kind, backend):
    rng = np.random.default_rng(seed)
    net, x, y, box = problem(rng, kind)
    squares = oracle.minimal_perturbation_squares(net, x, y, box)
    p = [1, 2, np.inf][rng.integers(3)]
    # Half of the radii are hardly smaller or larger than the true one.
    eps = 10.0 ** rng.uniform(-3, 1)
    if (
        squares[p]
        and Fraction(1, 10**400) < squares[p] < Fraction(10) ** 400
        and rng.random() < 0.8
    ):
        eps = root(squares[p]) * (1 + rng.choice([-1, 1]) * 10.0 ** -rng.integers(1, 15))
    methods = [method for method, known in METHODS.items() if p in known.norms]
    with rm.use_backend(backend), np.errstate(all="ignore"):
        for method in methods:
            check(net, x, y, p, box, squares, method)
            if METHODS[method].goal and 0 < eps < 1e300:
                check(net, x, y, p, box, squares, method, eps)


def root(square):
    """A float near the square root of a fraction."""
    power = (square.numerator.bit_length() - square.denominator.bit_length()) // 2
    return float(np.ldexp(np.sqrt(float(square / Fraction(4) ** power)), power))
