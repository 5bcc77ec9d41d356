"""Rows in networks of many inputs: the largest of several, and those with inputs, as networks."""

import time
from fractions import Fraction

import numpy as np
import pytest

import refmmr as rm
from refmmr.certify import verification
from refmmr.certify._clauses import box_around, rows_of
from refmmr.certify._conjunctions import largest_row
from refmmr.certify._input_terms import carry_inputs
from refmmr.exact import exact_logits
from refmmr.interop.vnnlib import Clause, Property, Row


def quarters(rng, *shape):
    return rng.integers(-6, 7, shape) / 4


def images(rng, pixels_at_the_end):
    layers = [rm.Conv2d(quarters(rng, 3, 1, 2, 2), quarters(rng, 3), 1, 0)]
    if pixels_at_the_end:
        layers.append(rm.Conv2d(quarters(rng, 2, 3, 2, 2), quarters(rng, 2), 1, 0))
    else:
        layers += [rm.Flatten(), rm.Linear(quarters(rng, 3, 12), quarters(rng, 3))]
    return rm.Network(layers, (1, 3, 3))


NETWORKS = [
    lambda rng: rm.Network([rm.Linear(quarters(rng, 3, 4), quarters(rng, 3))], 4),
    lambda rng: rm.Network(
        [rm.Linear(quarters(rng, *size), quarters(rng, size[0])) for size in ((5, 4), (3, 5))], 4
    ),
    lambda rng: images(rng, False),
    lambda rng: images(rng, True),
]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("m", [1, 2, 3, 6])
def test_the_network_is_the_largest_row(make, m):
    """In exact arithmetic: never above it, and below by rounding errors at most."""
    rng = np.random.default_rng(m)
    net = make(rng)
    C, constants = rng.standard_normal((m, net.n_classes)), rng.standard_normal(m)
    Z = rng.integers(0, 9, (5, *net.input_shape)) / 8
    logits = net.logits(Z)
    lowest = (logits @ C.T + constants).min(axis=0)
    longer, constant = largest_row(net, C, constants, lowest, logits.min(axis=0))
    for z in Z:
        x = [Fraction(v) for v in z.reshape(-1).tolist()]
        f = exact_logits(net, x)
        rows = [
            Fraction(k) + sum(Fraction(c) * y for c, y in zip(row, f, strict=True))
            for row, k in zip(C.tolist(), constants.tolist(), strict=True)
        ]
        value = exact_logits(longer, x)[0] + Fraction(constant)
        assert value <= max(rows) <= value + Fraction(1e-12)


def test_bounds_of_rows_that_do_not_hold_prove_nothing_wrong():
    """Rows below their bounds are cut off at 0, and the sum is not positive then."""
    net = NETWORKS[1](np.random.default_rng(0))
    z = np.full((1, 4), 0.5)
    f = net.logits(z)[0]
    C = np.eye(3)
    longer, constant = largest_row(net, C, -f - [1, 2, 3], np.array([5.0, 5, 5]), f)
    assert -1 <= longer.logits(z)[0, 0] + constant <= 0


def clause(rows, d):
    ends = (Fraction(-1),) * d, (Fraction(1),) * d
    return Clause(*ends, tuple(Row({}, dict(y), Fraction(bound), False) for y, bound in rows))


def absolute(d):
    """``Y_0 = sum_j |x_j|, Y_1 = sum_j x_j``."""
    W = np.concatenate([np.eye(d), -np.eye(d)])
    last = np.stack([np.ones(2 * d), np.repeat([1, -1], d)])
    return rm.Network([rm.Linear(W, np.zeros(2 * d)), rm.Linear(last, np.zeros(2))], d)


@pytest.mark.parametrize(
    ("rows", "status"),
    [
        # sum |x| <= 1 and sum x >= 1.1: the sum of both rows is positive, neither is.
        ((({0: 1}, 1), ({1: -1}, Fraction(-11, 10))), "holds"),
        ((({0: 1}, 1), ({1: -1}, Fraction(-9, 10))), "violated"),
        # A row between them that says nothing.
        ((({0: 1}, 1), ({0: -1}, 9), ({1: -1}, Fraction(-11, 10))), "holds"),
        # The last two rows exclude each other.
        ((({0: 1}, 3), ({0: -1}, -2), ({1: -1}, -2), ({1: 1}, Fraction(19, 10))), "holds"),
    ],
)
@pytest.mark.parametrize("d", [3, 14])
def test_clauses_of_several_rows(rows, status, d, monkeypatch):
    monkeypatch.setattr(verification, "MAX_INPUTS", 0)
    found = rm.verify(absolute(d), Property(d, 2, (clause(rows, d),)), max_seconds=60)
    assert found.status == status


@pytest.mark.parametrize(("least", "status"), [(0.25, "holds"), (0.0, "violated")])
def test_splits_choose_rows(least, status):
    """``ReLU(x_0)`` and ``ReLU(-x_0)`` are never both large, but no convex combination says so."""
    d = 13
    first = np.zeros((2, d))
    first[:, 0] = 1, -1
    net = rm.Network([rm.Linear(first, np.zeros(2)), rm.Linear(np.eye(2), np.zeros(2))], d)
    rows = (({0: -1}, -Fraction(least)), ({1: -1}, -Fraction(least)))
    found = rm.verify(net, Property(d, 2, (clause(rows, d),)), max_seconds=60)
    assert found.status == status


def test_time_is_over_before_the_units_are_bounded(monkeypatch):
    net = rm.Network.mlp([20, 300, 300, 300, 2], rng=0)
    largest = np.abs(net.logits(np.random.default_rng(0).uniform(-1, 1, (1000, 20)))).max()
    prop = Property(20, 2, (clause((({0: -1}, -2 * Fraction(largest)),), 20),))
    monkeypatch.setattr(verification, "descend", lambda *args: False)
    start = time.monotonic()
    found = rm.verify(net, prop, max_seconds=0.05)
    assert found.status == "unknown"
    assert found.reason == "time is over"
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("make", NETWORKS)
def test_inputs_are_carried_to_the_outputs(make):
    rng = np.random.default_rng(0)
    net = make(rng)
    d, outputs = int(np.prod(net.input_shape)), net.n_classes
    rows = []
    for i in range(3):
        # Thirds are rounded, and so is the smallest coefficient, to 0.
        x = {j: Fraction(int(rng.integers(-9, 9)), 3) for j in range(d)} if i else {}
        y = {k: Fraction(int(rng.integers(-9, 9)), 4) for k in range(outputs)}
        rows.append(Row(x or {0: Fraction(1, 10**400)}, y, Fraction(1, 2), False))
    ends = (Fraction(-1, 8),) * d, (Fraction(1),) * d
    asked = Clause(*ends, tuple(rows))
    floats, box = rows_of([asked], d, outputs), box_around(asked)
    longer, carried, f_size = carry_inputs(net, floats, box, np.full(outputs, 1e3))
    dense = all(isinstance(layer, (rm.Linear, rm.Flatten)) for layer in net.layers)
    assert carried.D.any() != dense
    assert (longer is net) != dense
    for z in rng.integers(-1, 9, (5, d)) / 8:
        x = list(map(Fraction, z.tolist()))
        f, more = exact_logits(net, x), exact_logits(longer, x)
        assert more[: len(f)] == f
        assert all(abs(float(v)) <= size for v, size in zip(more, f_size, strict=True))
        below = carried.C @ np.array(list(map(float, more))) - 1e-13
        lower = carried.lower(below[None], z[None], z[None], f_size)[0]
        for row, bound in zip(rows, lower.tolist(), strict=True):
            value = sum(c * x[j] for j, c in row.x.items()) - row.bound
            value += sum(c * f[k] for k, c in row.y.items())
            assert Fraction(bound) <= value <= Fraction(bound) + Fraction(1, 10**9)


@pytest.mark.parametrize(("bound", "status"), [("-1/10", "holds"), ("0", "violated")])
def test_outputs_beside_inputs(bound, status):
    """``sum |x_j| >= x_0``: bounds of both sides apart prove nothing."""
    row = Row({0: Fraction(-1)}, {0: Fraction(1)}, Fraction(bound), False)
    ends = (Fraction(-1),) * 14, (Fraction(1),) * 14
    prop = Property(14, 2, (Clause(*ends, (row,)),))
    assert rm.verify(absolute(14), prop, max_seconds=60).status == status
