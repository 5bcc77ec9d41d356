"""Distances to hyperplanes: linear programs, root finding, fractions, and their laws."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import brentq, linprog, minimize

import refmmr as rm
from refmmr.reference import affine
from refmmr.reference.hyperplanes import (
    dual_norm,
    hyperplane_distance,
    norm,
    shortest_step,
    shortest_step_in_box,
)
from refmmr.testing import (
    batches,
    boxes,
    dyadic_networks,
    exact_network,
    fractions,
    hyperplanes,
    norms,
)

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def points_and_hyperplanes(draw, dyadic=False):
    """A point in a box, and a hyperplane: ``x, w, value, lo, hi``."""
    rng = np.random.default_rng(draw(SEEDS))
    w, value = draw(hyperplanes(draw(st.integers(1, 6)), dyadic=dyadic))
    x = rng.integers(-8, 9, len(w)) / 4 if dyadic else rng.uniform(-2, 2, len(w))
    return x, w, value, *draw(boxes(x[None], dyadic=dyadic))


def capacity(x, w, value, lo, hi):
    """How far the affine function can move towards 0 within the box."""
    direction = -np.sign(w) * (-1 if value < 0 else 1)
    return (np.abs(w) * np.where(direction > 0, hi - x, x - lo)).sum()


def well_decided(hyperplane):
    """Assume that rounding does not decide whether the box meets the hyperplane."""
    assume(abs(capacity(*hyperplane) - abs(hyperplane[2])) > 1e-6)


def free_distance(w, value, p):
    return abs(float(hyperplane_distance(value, dual_norm(w, p))))


def box_distance(hyperplane, p):
    return abs(float(shortest_step_in_box(*hyperplane, p)[0]))


def between(low, found, high, slack=1e-12):
    """Whether a distance is exact for a value that is off by a rounding error.

    In a box the slope that is left where most coordinates have stopped may be tiny: an error of the
    value is divided by it.  Distances grow with the value, so those of two values bound what any
    sound computation may return.
    """
    return low * (1 - slack) <= found <= high * (1 + slack)


def perturbed(hyperplane, p, relative=1e-13, absolute=0.0):
    """Distances of the hyperplanes whose value is smaller and larger by this much."""
    x, w, value, lo, hi = hyperplane
    size = abs(value)
    off = relative * size + absolute
    sign = np.copysign(1, value)
    values = sign * max(size - off, 0), sign * (size + off)
    return [box_distance((x, w, np.array(v), lo, hi), p) for v in values]


def program_distance(x, w, value, lo, hi, p):
    """The distance in l_1 or l_inf by HiGHS; infinite where there is no feasible point."""
    d = len(x)
    if p == 1:  # delta = up - down
        program = {
            "c": np.ones(2 * d),
            "A_eq": [np.concatenate([w, -w])],
            "bounds": [
                *zip(np.zeros(d), hi - x, strict=True),
                *zip(np.zeros(d), x - lo, strict=True),
            ],
        }
    else:  # (delta, t) with |delta_j| <= t
        ones = np.ones((d, 1))
        program = {
            "c": np.append(np.zeros(d), 1),
            "A_eq": [np.append(w, 0)],
            "A_ub": np.block([[np.eye(d), -ones], [-np.eye(d), -ones]]),
            "b_ub": np.zeros(2 * d),
            "bounds": [*zip(lo - x, hi - x, strict=True), (0, None)],
        }
    result = linprog(b_eq=[-value], **program)
    assert result.status in (0, 2)
    return result.fun if result.status == 0 else np.inf


def root_distance(x, w, value, lo, hi):
    """The distance in l_2 by its optimality conditions: ``delta = clip(-m w)``, m by Brent."""

    def delta(m):
        return np.clip(-np.sign(value) * m * w, lo - x, hi - x)

    def rest(m):
        return (value + w @ delta(m)) * np.sign(value)

    largest = (np.maximum(hi - x, x - lo)[w != 0] / np.abs(w[w != 0])).max()
    if rest(largest) > 0:
        return np.inf
    return np.linalg.norm(delta(brentq(rest, 0, largest, xtol=1e-15)))


def fraction_distance(x, w, value, lo, hi, p):
    """The distance in l_1 or l_inf without rounding, as a fraction; None where it is infinite."""
    x, w, lo, hi = (fractions(array).tolist() for array in (x, w, lo, hi))
    need = abs(Fraction(float(value)))
    side = -1 if value < 0 else 1
    moves = [
        (abs(wj), xj - lj if side * wj > 0 else hj - xj)
        for xj, wj, lj, hj in zip(x, w, lo, hi, strict=True)
        if wj
    ]
    if not moves or sum(speed * reach for speed, reach in moves) < need:
        return None
    length = Fraction(0)
    if p == 1:
        for speed, reach in sorted(moves, reverse=True):
            step = min(reach, need / speed)
            length, need = length + step, need - speed * step
        return length
    moves.sort(key=lambda move: move[1])
    rate = sum(speed for speed, _ in moves)
    for speed, reach in moves:
        if need <= rate * (reach - length):
            break
        need, length, rate = need - rate * (reach - length), reach, rate - speed
    return length + need / rate


@given(points_and_hyperplanes(), norms())
def test_free_steps_land_on_the_hyperplane_and_nothing_shorter_does(hyperplane, p):
    x, w, value, _, _ = hyperplane
    distance, delta = free_distance(w, value, p), shortest_step(w, value, p)
    assert_allclose(norm(delta, p), distance, rtol=1e-13)
    assert_allclose(w @ delta, -value, rtol=1e-13, atol=1e-15)
    # Hoelder: no step of length 1 does better than this one.
    steps = np.random.default_rng(0).standard_normal((50, len(x)))
    steps = np.concatenate([steps, np.eye(len(x)), np.sign(steps)])
    steps /= norm(steps, p)[:, None]
    assert (np.abs(steps @ w) * distance <= abs(value) * (1 + 1e-13)).all()


@given(points_and_hyperplanes(), norms())
def test_steps_in_the_box_land_on_the_hyperplane_and_stay_in_the_box(hyperplane, p):
    x, w, value, lo, hi = hyperplane
    distance, delta = shortest_step_in_box(*hyperplane, p)
    assert np.signbit(distance) == np.signbit(value)
    assert (lo - x <= delta).all()
    assert (delta <= hi - x).all()
    if np.isinf(distance):
        assert not delta.any()
        assert capacity(*hyperplane) <= abs(value) * (1 + 1e-13)
    else:
        assert_allclose(norm(delta, p), abs(distance), rtol=1e-15)
        assert_allclose(w @ delta, -value, rtol=1e-12, atol=1e-12)


@given(points_and_hyperplanes(), st.sampled_from([1, np.inf]))
def test_linear_programs_find_nothing_nearer(hyperplane, p):
    # HiGHS meets its constraints and bounds to 1e-7.
    absolute = 1e-7 * (1 + 2 * np.abs(hyperplane[1]).sum())
    low, high = perturbed(hyperplane, p, absolute=absolute)
    found = program_distance(*hyperplane, p)
    assert low - 1e-6 <= found <= high + 1e-6


@given(points_and_hyperplanes())
def test_a_quadratic_program_finds_nothing_nearer(hyperplane):
    well_decided(hyperplane)
    x, w, value, lo, hi = hyperplane
    distance = abs(box_distance(hyperplane, 2))
    assume(np.isfinite(distance))
    found = minimize(
        lambda delta: delta @ delta,
        np.zeros(len(x)),
        jac=lambda delta: 2 * delta,
        method="SLSQP",
        bounds=list(zip(lo - x, hi - x, strict=True)),
        constraints={"type": "eq", "fun": lambda d: value + w @ d, "jac": lambda d: w},
        options={"ftol": 1e-12, "maxiter": 200},
    )
    assume(found.success and abs(value + w @ found.x) < 1e-9)
    assert_allclose(distance, np.sqrt(found.fun), rtol=1e-5, atol=1e-6)


@given(points_and_hyperplanes())
def test_the_optimality_conditions_of_l_2_give_the_same(hyperplane):
    # Brent's method ends where the value is 0 to a rounding error, or its argument to 1e-15.
    absolute = 1e-14 * (1 + hyperplane[1] @ hyperplane[1])
    low, high = perturbed(hyperplane, 2, absolute=absolute)
    assert between(low, root_distance(*hyperplane), high)


@given(points_and_hyperplanes(), norms(), SEEDS)
def test_no_random_point_of_the_hyperplane_in_the_box_is_nearer(hyperplane, p, seed):
    """Random steps along the hyperplane from the nearest point; those that stay in the box."""
    x, w, _, lo, hi = hyperplane
    distance, delta = shortest_step_in_box(*hyperplane, p)
    assume(np.isfinite(distance))
    steps = np.random.default_rng(seed).standard_normal((100, len(x)))
    steps -= np.outer(steps @ w / (w @ w), w)
    steps = np.concatenate([scale * steps for scale in (1, 0.1, 0.01, 1e-4)])
    others = delta + steps
    inside = ((lo - x <= others) & (others <= hi - x)).all(axis=1)
    assume(inside.any())
    # Rounding moves these points off the hyperplane.
    off = 1e-15 * len(x) * (np.abs(w).sum() * (1 + np.abs(others[inside]).max()))
    nearest, _ = perturbed(hyperplane, p, absolute=off)
    assert (norm(others[inside], p) >= nearest * (1 - 1e-12)).all()


@given(points_and_hyperplanes(), norms())
def test_in_one_dimension(hyperplane, p):
    x, w, value, lo, hi = hyperplane
    j = np.abs(w).argmax()
    line = x[j : j + 1], w[j : j + 1], value, lo[j : j + 1], hi[j : j + 1]
    reach = hi[j] - x[j] if value * w[j] < 0 else x[j] - lo[j]
    length = abs(value / w[j])
    assume(abs(length - reach) > 1e-9)
    assert_allclose(box_distance(line, p), length if length <= reach else np.inf, rtol=1e-14)


@given(points_and_hyperplanes(), norms(), SEEDS)
def test_larger_boxes_have_nearer_hyperplanes_down_to_no_box(hyperplane, p, seed):
    x, w, value, lo, hi = hyperplane
    rng = np.random.default_rng(seed)
    more = x, w, value, lo - rng.exponential(size=len(x)), hi + rng.exponential(size=len(x))
    endless = x, w, value, np.full(len(x), -1e6), np.full(len(x), 1e6)
    small, large, free = (
        box_distance(hyperplane, p),
        box_distance(more, p),
        free_distance(w, value, p),
    )
    assert small >= perturbed(more, p)[0] * (1 - 1e-13)
    assert large >= free * (1 - 1e-13)
    if dual_norm(w, p) > 1e-3:
        assert_allclose(box_distance(endless, p), free, rtol=1e-12)


@given(points_and_hyperplanes())
def test_the_order_of_the_norms(hyperplane):
    x, w, value, _, _ = hyperplane
    boxed = {p: perturbed(hyperplane, p) for p in (1, 2, np.inf)}
    free = {p: [free_distance(w, value, p)] * 2 for p in (1, 2, np.inf)}
    for ends in (boxed, free):
        (inf_low, inf_high), (low, high), (one_low, one_high) = (ends[p] for p in (np.inf, 2, 1))
        assert inf_low <= high * (1 + 1e-13)
        assert low <= one_high * (1 + 1e-13)
        assert one_low <= len(x) * inf_high * (1 + 1e-13)


SCALES = st.integers(-30, 30).map(lambda exponent: 2.0**exponent)


@given(points_and_hyperplanes(), norms(), SCALES, SCALES)
def test_homogeneity(hyperplane, p, slope, size):
    """Steeper functions have the same hyperplane; a larger world has larger distances.

    Powers of two: everything rounds as before.
    """
    x, w, value, lo, hi = hyperplane
    scaled = size * x, slope * w, slope * size * value, size * lo, size * hi
    assert box_distance(scaled, p) == size * box_distance(hyperplane, p)
    assert free_distance(slope * w, slope * size * value, p) == size * free_distance(w, value, p)


@given(points_and_hyperplanes(), norms(), SEEDS)
def test_the_order_of_coordinates_and_their_signs_do_not_matter(hyperplane, p, seed):
    x, w, value, lo, hi = hyperplane
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(x))
    shuffled = x[order], w[order], value, lo[order], hi[order]
    below, above = perturbed(hyperplane, p)
    assert between(below, box_distance(shuffled, p), above)
    sign = rng.choice([-1, 1], len(x))
    low, high = np.minimum(sign * lo, sign * hi), np.maximum(sign * lo, sign * hi)
    mirrored = sign * x, sign * w, value, low, high
    assert box_distance(mirrored, p) == box_distance(hyperplane, p)


@given(points_and_hyperplanes(), norms())
def test_hyperplanes_through_the_point_are_at_distance_0(hyperplane, p):
    x, w, _, lo, hi = hyperplane
    distance, delta = shortest_step_in_box(x, w, np.zeros(()), lo, hi, p)
    assert distance == 0
    assert not delta.any()


@given(st.lists(points_and_hyperplanes(), min_size=2, max_size=4), norms())
def test_a_batch_is_its_hyperplanes(some, p):
    d = min(len(hyperplane[0]) for hyperplane in some)
    cut = [[part[:d] if part.ndim else part for part in hyperplane] for hyperplane in some]
    batch = [np.array(parts) for parts in zip(*cut, strict=True)]
    distances, deltas = shortest_step_in_box(*batch, p)
    singles = [shortest_step_in_box(*hyperplane, p) for hyperplane in cut]
    assert_array_equal(distances, [distance for distance, _ in singles])
    assert_array_equal(deltas, [delta for _, delta in singles])


@given(points_and_hyperplanes(dyadic=True), st.sampled_from([1, np.inf]))
def test_fractions_give_the_same_distance(hyperplane, p):
    """On multiples of 1/4 only the last division rounds (and in l_1 the sum of the steps)."""
    _, w, value, _, _ = hyperplane
    exact = fraction_distance(*hyperplane, p)
    if exact is None:
        assert box_distance(hyperplane, p) == np.inf
    elif p == np.inf:
        assert box_distance(hyperplane, p) == float(exact)
    else:
        assert_allclose(box_distance(hyperplane, p), float(exact), rtol=5e-16)
    dual = max(abs(fractions(w))) if p == 1 else sum(abs(fractions(w)))
    assert free_distance(w, value, p) == float(abs(Fraction(float(value))) / dual)


@given(points_and_hyperplanes(dyadic=True), norms(), st.sampled_from([-1.0, 1.0]))
def test_a_vertex_of_the_box_may_be_all_there_is(hyperplane, p, sign):
    """The hyperplane touches the box in one vertex; 2^-30 farther it misses the box."""
    x, w, _, lo, hi = hyperplane
    full = capacity(x, w, sign, lo, hi)
    direction = -np.sign(w) * sign
    vertex = direction * np.where(direction > 0, hi - x, x - lo)
    distance, delta = shortest_step_in_box(x, w, np.array(sign * full), lo, hi, p)
    assert_array_equal(delta, vertex)
    assert abs(distance) == norm(vertex, p)
    beyond = np.array(sign * (full + 2.0**-30))
    assert abs(shortest_step_in_box(x, w, beyond, lo, hi, p)[0]) == np.inf


@given(points_and_hyperplanes(), norms())
@example((np.zeros(3), np.array([1.0, 5, 7]), np.array(13.0), -np.ones(3), np.ones(3)), 2)
def test_a_rounding_error_decides_whether_the_box_meets_the_hyperplane(hyperplane, p):
    x, w, value, lo, hi = hyperplane
    full = np.copysign(capacity(*hyperplane), value)
    assume(full != 0)
    within, beyond = (
        box_distance((x, w, np.array(full * factor), lo, hi), p)
        for factor in (1 - 1e-14, 1 + 1e-14)
    )
    assert np.isfinite(within)
    assert beyond == np.inf


@given(points_and_hyperplanes(), st.sampled_from([1, np.inf]), SEEDS)
def test_weights_of_very_different_size(hyperplane, p, seed):
    """Backward stable: the result is exact for a hyperplane that is off by 1e-12 of its value."""
    x, w, value, lo, hi = hyperplane
    rng = np.random.default_rng(seed)
    w = w * 10.0 ** rng.integers(-8, 9, len(w))
    value = rng.uniform(0.01, 1.2) * np.sign(value) * capacity(x, w, value, lo, hi)
    assume(value != 0)
    distance = box_distance((x, w, value, lo, hi), p)
    below, above = (
        fraction_distance(x, w, value * factor, lo, hi, p) for factor in (1 - 1e-12, 1 + 1e-12)
    )
    assert below is None or float(below) * (1 - 1e-12) <= distance
    assert below is not None or distance == np.inf
    assert above is None or distance <= float(above) * (1 + 1e-12)


@given(dyadic_networks(), st.data(), st.sampled_from([1, np.inf]))
def test_distances_of_networks_are_exact_on_multiples_of_a_quarter(net, data, p):
    X, y = data.draw(batches(net, dyadic=True))
    d = rm.distances(net, X, y, p=p)
    for i, x in enumerate(X):
        region = affine.linear_region(exact_network(net), fractions(x))
        V, a = np.concatenate(region.V), np.concatenate(region.a)
        f = V @ fractions(x).ravel() + a
        N = net.n_hidden
        V[N:], f[N:] = V[N:][y[i]] - V[N:], f[N:][y[i]] - f[N:]
        dual = np.abs(V).max(axis=1) if p == 1 else np.abs(V).sum(axis=1)
        f[:N] = np.abs(f[:N])
        expected = [
            float(f_j / n_j) if n_j else (-np.inf if f_j < 0 else np.inf)
            for f_j, n_j in zip(f, dual, strict=True)
        ]
        expected[N + y[i]] = np.inf
        assert_array_equal(np.concatenate([d.boundary[i], d.decision[i]]), expected)


@given(dyadic_networks(), st.data(), norms())
def test_distances_of_networks_in_a_box_are_those_of_their_hyperplanes(net, data, p):
    X, y = data.draw(batches(net, dyadic=True))
    lo, hi = data.draw(boxes(X, dyadic=True))
    d = rm.distances(net, X, y, p=p, box=(lo, hi))
    for i, x in enumerate(X):
        region = rm.linear_region(net, x)
        f = region.V[-1] @ x.ravel() + region.a[-1]
        w = np.concatenate([*region.V[:-1], region.V[-1][y[i]] - region.V[-1]])
        value = [*(V @ x.ravel() + a for V, a in zip(region.V[:-1], region.a[:-1], strict=True))]
        value = np.concatenate([*value, f[y[i]] - f])
        sides = lo.ravel(), hi.ravel()
        for j, found in enumerate([*d.boundary[i], *d.decision[i]]):
            hyperplane = x.ravel(), w[j], value[j], *sides
            if j == net.n_hidden + y[i]:
                assert found == np.inf
            elif p == 2:
                expected = abs(shortest_step_in_box(*hyperplane, 2)[0])
                assert_allclose(abs(found), expected, rtol=1e-14)
            else:
                exact = fraction_distance(*hyperplane, p)
                expected = np.inf if exact is None else float(exact)
                assert_allclose(abs(found), expected, rtol=1e-13)
            assert found >= 0 or (j >= net.n_hidden and value[j] < 0)


@pytest.mark.parametrize("p", [1, 2, np.inf])
@given(dyadic_networks(), st.data())
def test_a_box_never_brings_a_hyperplane_nearer(p, net, data):
    X, y = data.draw(batches(net))
    free = rm.distances(net, X, y, p=p)
    boxed = rm.distances(net, X, y, p=p, box=data.draw(boxes(X)))
    assert (boxed.boundary >= free.boundary * (1 - 1e-12)).all()
    assert (np.abs(boxed.decision) >= np.abs(free.decision) * (1 - 1e-12)).all()
    assert_array_equal(boxed.decision < 0, free.decision < 0)
