import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import refmmr as rm
from refmmr import Linear, Network
from refmmr.reference.hyperplanes import dual_norm_gradient

INF = np.inf

# One input: f_1 = (x, 2 x - 4, 8 - x), hyperplanes at 0, 2 and 8; logits (g_1, g_3, 5).
NET = Network(
    [Linear([[1], [2], [-1]], [0, -4, 8]), Linear([[1, 0, 0], [0, 0, 1], [0, 0, 0]], [0, 0, 5])], 1
)


@pytest.mark.parametrize(
    ("k_b", "expected"),
    [(1, 0.75), (2, (0.75 + 0.25) / 2), (3, (0.75 + 0.25) / 3)],
)
def test_boundary_term_is_the_mean_hinge_of_the_k_nearest(k_b, expected):
    # At 3 the hyperplanes are 3, 1 and 5 away.
    term = rm.mmr(NET, [[3]], [1], gamma_b=4, gamma_d=1, k_b=k_b).boundary_term
    assert_allclose(term, [expected], rtol=1e-15)


@pytest.mark.parametrize(
    ("y", "k_d", "expected"),
    [
        # Logits (3, 5, 5) with slopes (1, -1, 0): class 1 is 1 ahead of class 0, level with 2.
        (1, 1, 1),
        (1, 2, (1 + 0.5) / 2),
        (1, 3, (1 + 0.5) / 3),
        # Class 0 is on the wrong side: -1 from class 1, -2 from class 2.
        (0, 1, 2),
        (0, 2, (2 + 1.5) / 2),
    ],
)
def test_decision_term_by_hand(y, k_d, expected):
    values = rm.mmr(NET, [[3]], [y], gamma_b=0.5, gamma_d=2, k_d=k_d)
    assert_allclose(values.decision_term, [expected], rtol=1e-15)
    assert_array_equal(values.boundary_term, [0])
    assert_array_equal(values.value, values.decision_term)


def test_all_classes_count_unless_told():
    one = rm.mmr(NET, [[3]], [1], gamma_b=1, gamma_d=2)
    assert_array_equal(one.value, rm.mmr(NET, [[3]], [1], gamma_b=1, gamma_d=2, k_b=1, k_d=3).value)


def test_a_tenth_of_the_units_counts_unless_told():
    net = Network.mlp([4, 30, 2], rng=0)
    X, y = np.ones((2, 4)), [0, 1]
    options = {"gamma_b": 10, "gamma_d": 1}
    assert_array_equal(
        rm.mmr(net, X, y, **options).value, rm.mmr(net, X, y, k_b=3, **options).value
    )


@pytest.mark.parametrize("p", [1, 2, INF])
def test_far_hyperplanes_cost_nothing_and_have_no_gradient(p):
    options = {"p": p, "gamma_b": 1e-3, "gamma_d": 1e-3}
    values = rm.mmr(NET, [[3.5]], [1], k_d=1, **options)  # level with nothing: logits (3.5, 4.5, 5)
    assert_array_equal(values.boundary_term, [0])
    value, gradients = rm.mmr_gradient(NET, [[1]], [1], k_b=3, k_d=3, **options)
    assert value == 0
    assert not any(dW.any() or db.any() for dW, db in gradients)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_hyperplanes_that_do_not_exist_cost_nothing_and_have_no_gradient(p):
    # A unit that is 1, one that is 0; logits that are constant, on the right and the wrong side.
    net = Network([Linear([[0, 0], [0, 0]], [1, 0]), Linear([[1, 1], [0, 0]], [0, 0])], 2)
    for y in (0, 1):
        options = {"p": p, "gamma_b": 10, "gamma_d": 10, "k_b": 2}
        assert_array_equal(rm.mmr(net, [[1, 1]], [y], **options).value, [0])
        value, gradients = rm.mmr_gradient(net, [[1, 1]], [y], **options)
        assert value == 0
        assert not any(dW.any() or db.any() for dW, db in gradients)


def test_no_hidden_layer_has_only_a_decision_term():
    net = Network([Linear([[2], [0]], [0, 0])], 1)
    values = rm.mmr(net, [[1]], [0], gamma_b=1, gamma_d=4, k_d=1)
    assert_array_equal(values.boundary_term, [0])
    assert_array_equal(values.decision_term, [0.75])
    value, [(dW, db)] = rm.mmr_gradient(net, [[1]], [0], gamma_b=1, gamma_d=4, k_d=1)
    # 1 - d / 4 with d = ((u - v) x + b - c) / |u - v|: no slope to the weights at b = c.
    assert value == 0.75
    assert_allclose(dW, [[0], [0]], atol=1e-16)
    assert_allclose(db, [-1 / 8, 1 / 8], rtol=1e-15)


def test_gradient_by_hand():
    # d_B = |w x + b| / |w| with w = 2, b = -1, x = 3: 5 / 2; the slope is -1/10 of its.
    net = Network([Linear([[2]], [-1]), Linear([[0], [0]], [9, 0])], 1)
    value, [(dW, db), (dW2, db2)] = rm.mmr_gradient(net, [[3]], [0], gamma_b=10, gamma_d=1)
    assert value == pytest.approx(0.75, rel=1e-15)
    assert_allclose(db, [-0.1 / 2], rtol=1e-15)
    assert_allclose(dW, [[-0.1 * (3 / 2 - 5 / 4)]], rtol=1e-14)
    assert not dW2.any()
    assert not db2.any()


def test_gradient_of_the_two_nearest_by_hand():
    # At 2.5 the hyperplanes are 2.5, 0.5 and 5.5 away, of slopes 1, 2 and 1; d / db = 1 / |w|.
    options = {"gamma_b": 4, "gamma_d": 0.25, "k_b": 2}
    value, [(dW, db), (dW2, _)] = rm.mmr_gradient(NET, [[2.5]], [1], **options)
    assert value == pytest.approx((1.5 / 4 + 3.5 / 4) / 2, rel=1e-15)
    assert_allclose(db, [-1 / 8, -1 / 16, 0], rtol=1e-15)
    # d / dw = (x - d) / w for a unit that is on and has w > 0.
    assert_allclose(dW, [[0], [-1 / 8 * (2.5 - 0.5) / 2], [0]], rtol=1e-14, atol=1e-16)
    assert not dW2.any()


@pytest.mark.parametrize(
    ("p", "expected"), [(1, [0, -1, 0]), (2, [0.6, -0.8, 0]), (INF, [1, -1, 0])]
)
def test_gradient_of_the_dual_norm(p, expected):
    w = np.array([[3.0, -4, 0], [0, 0, 0]])
    assert_allclose(dual_norm_gradient(w, p, axis=1), [expected, [0, 0, 0]], rtol=1e-15)


def test_of_equally_large_entries_the_first_counts():
    assert_array_equal(dual_norm_gradient(np.array([[1.0, -2, 2]]), 1, axis=1), [[0, -1, 0]])
