import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose
from scipy.optimize import nnls

from refmmr import _solvers
from refmmr.reference.hyperplanes import dual_norm, norm
from refmmr.regions.polytopes import distance, inradius, projection_step
from refmmr.testing import norms

INF = np.inf
P = pytest.mark.parametrize("p", [1, 2, INF])
GENERATORS = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def box(lo, hi):
    n = len(lo)
    return np.concatenate([np.eye(n), -np.eye(n)]), np.concatenate([hi, -np.asarray(lo)])


def around(rng, n, m):
    """Random half-spaces around the origin, with rows of any length."""
    A = rng.normal(size=(m, n)) * 10.0 ** rng.uniform(-3, 3, (m, 1))
    return A, norm(A, 2) * rng.uniform(0.1, 1, m)


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_ball_in_a_box(n):
    lo, hi = -np.arange(1.0, n + 1), np.arange(1.0, n + 1)
    center, radius = inradius(*box(lo, hi))
    assert radius == pytest.approx(1, rel=1e-12)
    assert center[0] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("n", [2, 3, 7])
def test_ball_in_a_simplex(n):
    # x >= 0 and sum x <= 1: the center is (r, ..., r) with n r + sqrt(n) r = 1.
    center, radius = inradius(np.vstack([-np.eye(n), np.ones(n)]), np.append(np.zeros(n), 1))
    assert radius == pytest.approx(1 / (n + n**0.5), rel=1e-12)
    assert_allclose(center, radius, rtol=1e-9)


@pytest.mark.parametrize(
    ("A", "b", "radius"),
    [
        ([[1, 0], [0, 1]], [1, 1], INF),
        ([[0, 0]], [1], INF),
        ([[1, 0], [-1, 0]], [0, -1], -INF),
        ([[0, 0], [1, 0]], [-1, 1], -INF),
        ([[1, 0], [-1, 0], [0, 1], [0, -1]], [1, -1, 1, 0], 0),
        ([[1, 0], [-1, 0]], [1, 0], 0.5),
    ],
    ids=["vertex", "space", "empty", "false", "flat", "strip"],
)
def test_unusual_balls(A, b, radius):
    center, found = inradius(np.array(A, dtype=float), np.array(b, dtype=float))
    assert found == radius
    assert np.isnan(center).all() == np.isinf(radius)


@given(GENERATORS, st.integers(1, 4), st.integers(0, 20))
def test_the_ball_is_inside_and_follows_the_polytope(rng, n, extra):
    A, b = crowded(rng, n, extra)
    center, radius = inradius(A, b)
    lengths = norm(A, 2)
    slack = b / lengths - A / lengths[:, None] @ center
    assert slack.min() == pytest.approx(radius, rel=1e-12, abs=1e-14)
    # No ball is larger: it cannot leave all constraints that it touches, for a mean of their
    # normals is 0.
    touched = slack < radius + 1e-8
    rows = np.vstack([(A[touched] / lengths[touched, None]).T, np.ones(touched.sum())])
    assert nnls(rows, np.append(np.zeros(n), 1))[1] < 1e-7
    moved, same = inradius(7 * A, 7 * (b + A @ np.ones(n)))
    assert same == pytest.approx(radius, rel=1e-8)
    assert ((b + A @ np.ones(n) - A @ moved) / lengths).min() == pytest.approx(radius, rel=1e-8)


def crowded(rng, n, extra):
    """A box from -1 to 1, cut by some half-spaces around the origin."""
    A, b = around(rng, n, extra)
    return np.concatenate([A, box(-np.ones(n), np.ones(n))[0]]), np.append(b, np.ones(2 * n))


@P
def test_distance_by_hand(p):
    # To the quadrant beyond (3, 4), with rows of different lengths.
    A, b = np.array([[-2.0, 0], [0, -5]]), np.array([-6.0, -20])
    assert distance(A, b, np.zeros(2), p) == pytest.approx({1: 7, 2: 5, INF: 4}[p], rel=1e-12)
    assert distance(A, b, np.array([3.0, 0]), p) == pytest.approx(4, rel=1e-12)
    assert distance(A, b, np.array([3.0, 4]), p) == 0
    assert distance(A, b, np.array([5.0, 9]), p) == 0


@P
@pytest.mark.parametrize("far", [1e-12, 1e-5, 1.0, 1e6])
def test_small_and_large_distances_to_a_half_space(p, far):
    w = np.array([[3.0, -4.0, 12.0]])
    expected = far / dual_norm(w[0], p)
    assert distance(w, np.array([-far]), np.zeros(3), p) == pytest.approx(expected, rel=1e-9)


@P
def test_no_polytope_is_at_infinity(p):
    apart = np.array([[1.0, 1], [-1, -1]])
    assert distance(apart, np.array([0, -1e-3]), np.zeros(2), p) == INF
    assert distance(np.zeros((1, 2)), np.array([-1.0]), np.zeros(2), p) == INF


@P
def test_rows_of_zeros_that_are_true_change_nothing(p):
    A, b = np.array([[-1.0, 0], [0, 0], [0, 0]]), np.array([-2.0, 0, 5])
    assert distance(A, b, np.zeros(2), p) == pytest.approx(2, rel=1e-12)


@P
def test_constraints_that_are_far_away_do_not_blur_the_others(p):
    A, b = box([1e-9, 2e-9, -1e6], [1e6, 1e6, 1e6])
    expected = norm(np.array([1e-9, 2e-9]), p)
    assert distance(A, b, np.zeros(3), p) == pytest.approx(expected, rel=1e-9)


@P
def test_distance_to_the_tip_of_a_wedge(p):
    # Between y = 1e-4 x and y = -1e-4 x: a half-space is near, the wedge is not.
    A, b = np.array([[-1e-4, 1], [-1e-4, -1]]), np.zeros(2)
    assert distance(A, b, np.array([-3.0, 0]), p) == pytest.approx(3, rel=1e-9)


@given(GENERATORS, norms(), st.integers(1, 6))
def test_distance_to_a_box(rng, p, n):
    lo = rng.uniform(-1, 0, n)
    hi, z = lo + rng.uniform(0, 1, n), rng.normal(size=n)
    A, b = box(lo, hi)
    scale = 10.0 ** rng.uniform(-2, 2, 2 * n)
    found = distance(A * scale[:, None], b * scale, z, p)
    assert found == pytest.approx(norm(z - np.clip(z, lo, hi), p), rel=1e-9, abs=1e-12)


@given(GENERATORS, st.integers(2, 6))
def test_euclidean_distance_to_a_turned_box(rng, n):
    turn = np.linalg.qr(rng.normal(size=(n, n)))[0]
    z = 3 * rng.normal(size=n)
    A, b = box(-np.ones(n), np.arange(n))
    expected = norm(z - np.clip(z, -1, np.arange(n)), 2)
    assert distance(A @ turn, b, z @ turn, 2) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(GENERATORS, norms(), st.integers(1, 5), st.integers(0, 15))
def test_laws_of_distances(rng, p, n, extra):
    A, b = crowded(rng, n, extra)
    a, c = 3 * rng.normal(size=(2, n))
    da, dc, middle = (distance(A, b, z, p) for z in (a, c, (a + c) / 2))
    assert middle <= (da + dc) / 2 + 1e-9
    assert abs(da - dc) <= norm(a - c, p) + 1e-9
    # At most as near as each half-space, at least as near as any point of the polytope.
    assert da >= ((A @ a - b) / dual_norm(A, p)).max() - 1e-9
    points = rng.normal(size=(20, n))
    with np.errstate(divide="ignore"):
        reach = (b / np.maximum(points @ A.T, 0)).min(axis=1)
    assert da <= norm(a - points * reach[:, None], p).min() + 1e-9
    order = rng.permutation(len(b))
    assert distance(A[order], b[order], a, p) == pytest.approx(da, rel=1e-8, abs=1e-9)
    shift = rng.normal(size=n)
    assert distance(A, b + A @ shift, a + shift, p) == pytest.approx(da, rel=1e-8, abs=1e-9)
    assert distance(A, 1e-3 * b, 1e-3 * a, p) == pytest.approx(1e-3 * da, rel=1e-8, abs=1e-12)


@given(GENERATORS, st.integers(1, 5), st.integers(0, 15))
def test_the_shortest_step_in_l2_is_a_projection(rng, n, extra):
    A, b = crowded(rng, n, extra)
    z = 3 * rng.normal(size=n)
    slack = b - A @ z
    if (slack >= 0).all():
        return
    step = projection_step(A, slack)
    assert (A @ step <= slack + 1e-9 * norm(A, 2)).all()
    # From z everything in the polytope lies beyond the plane through the nearest point.
    points = rng.normal(size=(20, n))
    with np.errstate(divide="ignore"):
        points *= (b / np.maximum(points @ A.T, 0)).min(axis=1)[:, None]
    assert ((points - z - step) @ step >= -1e-9).all()


def stopped_at_once(presolves):
    """HiGHS that makes no iteration where its option presolve is one of these."""
    solver = _solvers.solver

    def stopped(*args, presolve, **options):
        if presolve in presolves:
            return solver(*args, **options, presolve="off", simplex_iteration_limit=0)
        return solver(*args, **options, presolve=presolve)

    return stopped


def test_an_undecided_program_is_an_error(monkeypatch):
    monkeypatch.setattr(_solvers, "solver", stopped_at_once({"on", "off"}))
    with pytest.raises(RuntimeError, match="HiGHS does not decide a linear program: Iteration lim"):
        inradius(np.eye(2), np.ones(2))


def test_without_presolving_an_undecided_program_is_decided(monkeypatch):
    monkeypatch.setattr(_solvers, "solver", stopped_at_once({"on"}))
    assert inradius(*box([0, 0], [2, 2]))[1] == 1
