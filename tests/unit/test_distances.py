import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr import Conv2d, Flatten, Linear, Network
from refmmr.reference.hyperplanes import (
    dual_norm,
    hyperplane_distance,
    norm,
    shortest_step,
    shortest_step_in_box,
)

INF = np.inf


def in_box(x, w, value, lo, hi, p):
    arrays = [np.array(argument, dtype=float) for argument in (x, w, value, lo, hi)]
    distance, delta = shortest_step_in_box(*arrays, p)
    return float(distance), delta.tolist()


@pytest.mark.parametrize(("p", "own", "dual"), [(1, 7, 4), (2, 5, 5), (INF, 4, 7)])
def test_norms_by_hand(p, own, dual):
    assert norm(np.array([3.0, -4.0]), p) == own
    assert dual_norm(np.array([3.0, -4.0]), p) == dual
    assert_array_equal(dual_norm(np.array([[3.0], [-4.0]]), p, axis=0), [dual])


@pytest.mark.parametrize(
    ("p", "distance", "step"),
    [(1, 2.5, [0, 2.5]), (2, 2, [-1.2, 1.6]), (INF, 10 / 7, [-10 / 7, 10 / 7])],
)
def test_free_step_by_hand(p, distance, step):
    # The hyperplane 10 + 3 d_1 - 4 d_2 = 0.
    w, value = np.array([3.0, -4.0]), np.array(10.0)
    assert hyperplane_distance(value, dual_norm(w, p)) == pytest.approx(distance, rel=1e-15)
    assert_allclose(shortest_step(w, value, p), step, rtol=1e-15)


def test_hyperplane_distance_keeps_the_sign_and_is_infinite_without_a_hyperplane():
    value, w_norm = np.array([6.0, -6, 6, -6, 0, 0]), np.array([2.0, 2, 0, 0, 0, 2])
    assert_array_equal(hyperplane_distance(value, w_norm), [3, -3, INF, -INF, INF, 0])


@pytest.mark.parametrize(
    ("p", "distance", "step"),
    [
        (1, 1.25, [-0.5, -0.75]),  # coordinate 1 gains 2 a unit and stops at 0.5, then 1 a unit
        (2, np.sqrt(0.25 + 0.5625), [-0.5, -0.75]),
        (INF, 0.75, [-0.5, -0.75]),
    ],
)
def test_box_step_by_hand(p, distance, step):
    found = in_box([0.5, 1], [2, 1], 1.75, [0, 0], [1, 1], p)
    assert found == (pytest.approx(distance, rel=1e-15), step)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_in_the_box_a_hyperplane_may_be_out_of_reach(p):
    w, lo, hi = [2, 1], [0, 0], [1, 1]
    # From (0.5, 1) the function 2 z_1 + z_2 can fall by 2 at most.
    distance, step = in_box([0.5, 1], w, 2, lo, hi, p)
    assert step == [-0.5, -1]
    assert distance == norm(np.array(step), p)
    assert in_box([0.5, 1], w, 2.25, lo, hi, p) == (INF, [0, 0])
    assert in_box([0.5, 1], w, -2.25, lo, hi, p) == (-INF, [0, 0])
    # Downwards from the lower vertex nothing moves at all.
    assert in_box([0, 0], w, 1, lo, hi, p) == (INF, [0, 0])
    assert in_box([0, 0], w, 0, lo, hi, p) == (0, [0, 0])


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_sign_of_the_value_turns_the_step_and_the_distance(p):
    up = in_box([0, 0], [1, -1], -0.5, [-1, -1], [1, 1], p)
    down = in_box([0, 0], [1, -1], 0.5, [-1, -1], [1, 1], p)
    assert up[0] == -down[0] < 0
    assert up[1] == [-step for step in down[1]]


@pytest.mark.parametrize("p", [1, 2, INF])
@pytest.mark.parametrize("value", [-1, 0, 1])
def test_in_the_box_zero_weights_are_no_hyperplane(p, value):
    distance, step = in_box([0.5, 0.5], [0, 0], value, [0, 0], [1, 1], p)
    assert distance == (-INF if value < 0 else INF)
    assert step == [0, 0]


@pytest.mark.parametrize("p", [1, 2, INF])
def test_coordinates_without_weight_stay(p):
    distance, step = in_box([0, 0, 0], [0, 2, 0], 1, [-1, -1, -1], [1, 1, 1], p)
    assert (distance, step) == (0.5, [0, -0.5, 0])


@pytest.mark.parametrize("p", [1, 2, np.inf])
@pytest.mark.parametrize("w", [(3.0, 0.0, -4.0), (0.0, -2.0, 0.0), (0.0, 0.0, 0.0)])
def test_a_box_without_limits_is_none(p, w):
    x, w, value = np.array([0.5, -1.0, 0.25]), np.array(w), np.array(-1.5)
    free = hyperplane_distance(value, dual_norm(w, p))
    distance, step = shortest_step_in_box(x, w, value, np.full(3, -np.inf), np.full(3, np.inf), p)
    assert_allclose(distance, free, rtol=1e-12)
    assert_array_equal(step[w == 0], 0)
    # One limit that is not in the way.
    half, _ = shortest_step_in_box(x, w, value, np.array([-np.inf, -np.inf, -9]), np.full(3, 9), p)
    assert_allclose(half, free, rtol=1e-12)


# f_1 = 3 x_1 + 4 x_2, logits (g_1, 1)
NET = Network([Linear([[3, 4]], [0]), Linear([[1], [0]], [0, 1])], 2)


@pytest.mark.parametrize(("p", "dual"), [(1, 4), (2, 5), (INF, 7)])
def test_distances_of_a_network_by_hand(p, dual):
    d = rm.distances(NET, [[1, 0.5], [1, 0.5], [-1, 0.5], [0.25, 0]], [0, 1, 1, 0], p=p)
    assert_allclose(d.boundary, np.array([[5], [5], [1], [0.75]]) / dual, rtol=1e-15)
    # Negative: misclassified.  At the third sample the logits are constant: no hyperplane.
    expected = [[INF, 4 / dual], [-4 / dual, INF], [INF, INF], [INF, -0.25 / dual]]
    assert_allclose(d.decision, expected, rtol=1e-15)


def test_on_the_wrong_side_without_a_hyperplane():
    d = rm.distances(NET, [[-1, 0.5]], [0])
    assert_array_equal(d.decision, [[INF, -INF]])


@pytest.mark.parametrize("box", [None, (-3, 3)])
@pytest.mark.parametrize("p", [1, 2, INF])
def test_units_without_a_hyperplane_are_infinitely_far(p, box):
    # Constant 1; constant 0 (0/0); behind them a unit that sees only the constant.
    layers = [
        Linear([[0, 0], [0, 0], [1, 0]], [1, 0, -5]),
        Linear([[1, 1, 1], [-1, 0, 1]], [0, 1]),
        Linear([[1, 0], [0, 1]], [0, 0]),
    ]
    d = rm.distances(Network(layers, 2), [[1, 1]], [0], p=p, box=box)
    assert_array_equal(d.boundary, [[INF, INF, INF if box else 4, INF, INF]])
    assert_array_equal(d.decision, [[INF, INF]])


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_box_moves_the_hyperplanes_of_a_network_away(p):
    X, y = [[0.25, 0.5]], [0]
    # 2.75 to lose for the unit, 1.75 for the class; x_2 gains 4 a unit, and can give 2.
    d = rm.distances(NET, X, y, p=p, box=(0, 1))
    assert_array_equal(d.boundary, [[norm(np.array([0.25, 0.5]), p)]])
    expected = {1: 1.75 / 4, 2: 1.75 / 5, INF: 0.25}[p]
    assert_allclose(d.decision, [[INF, expected]], rtol=1e-15)
    away = rm.distances(NET, X, y, p=p, box=([0, 0.25], [1, 1]))
    assert_array_equal(away.boundary, [[INF]])


def test_border_units_of_a_padded_convolution_are_measured_by_their_own_row():
    layers = [
        Conv2d([[[[1, 2, 4]]]], [0], padding=((0, 0), (1, 1))),
        Flatten(),
        Linear(np.ones((2, 3)), [0, 0]),
    ]
    net = Network(layers, (1, 1, 3))
    x = np.ones((1, 1, 1, 3))  # f = (2 + 4, 1 + 2 + 4, 1 + 2)
    for p, norms in [(1, [4, 4, 2]), (2, [20**0.5, 21**0.5, 5**0.5]), (INF, [6, 7, 3])]:
        d = rm.distances(net, x, [0], p=p)
        assert_allclose(d.boundary, [np.array([6, 7, 3]) / norms], rtol=1e-15)


def test_without_hidden_units_there_is_no_region_boundary():
    net = Network([Linear([[1, 0], [0, 1], [0, 0]], [0, 0, 0])], 2)
    d = rm.distances(net, [[3, 1]], [0], p=1)
    assert d.boundary.shape == (1, 0)
    assert_array_equal(d.decision, [[INF, 2, 3]])
    boxed = rm.distances(net, [[3, 1]], [0], p=1, box=(0, 5))
    assert boxed.boundary.shape == (1, 0)
    assert_array_equal(boxed.decision, [[INF, 2, 3]])


def test_float32_stays_float32():
    d = rm.distances(NET.astype(np.float32), np.ones((1, 2), dtype=np.float32), [0])
    assert d.boundary.dtype == d.decision.dtype == np.float32
