"""Numbers that float64 does not hold, and masked ones, are refused: nothing is lost silently."""

import numpy as np
import pytest

import refmmr as rm

NET = rm.Network.mlp([2, 3, 2], rng=0)
LONG = np.finfo(np.longdouble).nmant > 52
"""Whether this system's longdouble is longer than float64."""


def masked(values, mask):
    return np.ma.masked_array(values, mask=mask)


CASES = {
    "X": lambda: NET.predict(masked([[0.1, 0.2]], [[False, True]])),
    "X ": lambda: NET.predict([masked([0.1, 0.2], [False, True])]),
    "y": lambda: rm.certify(NET, [[0.1, 0.2]], masked([0], [True])),
    "W": lambda: rm.Linear(masked([[1.0]], [[True]]), [0]),
    "eps": lambda: rm.certify(NET, [[0.1, 0.2]], None, eps=masked([0.1], [True])),
    "X  ": lambda: rm.datasets.from_arrays(masked(np.ones((4, 2)), np.eye(4, 2)), [0, 1, 0, 1]),
    "y ": lambda: rm.datasets.from_arrays(np.ones((4, 2)), masked([0, 1, 0, 1], [0, 1, 0, 0])),
}


@pytest.mark.parametrize("name", CASES)
def test_masked_entries_are_refused(name):
    with pytest.raises(ValueError, match=rf"{name.strip()}: .* masked array with \d of .*filled"):
        CASES[name]()


def test_masked_arrays_without_masked_entries_are_arrays():
    X = np.array([[0.1, 0.2], [0.3, 0.4]])
    expected = NET(X)
    for mask in (np.ma.nomask, np.zeros((2, 2), bool)):
        np.testing.assert_array_equal(NET(masked(X, mask)), expected)


@pytest.mark.parametrize(
    ("value", "dtype"), [(2**53 + 1, np.int64), (-(2**53) - 1, np.int64), (2**64 - 1, np.uint64)]
)
def test_integers_that_would_be_rounded_are_refused(value, dtype):
    X = np.array([[0, value]], dtype)
    with pytest.raises(ValueError, match=rf"X: .* got {value} of u?int64 at index \(0, 1\)"):
        NET.predict(X)
    with pytest.raises(ValueError, match="eps: expected a number that float64 holds"):
        rm.certify(NET, [[0.1, 0.2]], None, eps=abs(value))


@pytest.mark.parametrize("value", [2**53, -(2**63), 2**63, 3 * 2**60])
def test_large_integers_that_floats_hold_are_taken(value):
    X = np.array([[value, 1]], dtype=np.uint64 if value > 0 else np.int64)
    np.testing.assert_array_equal(NET(X), NET([[float(value), 1.0]]))


@pytest.mark.skipif(not LONG, reason="longdouble is float64 here")
def test_longdoubles_that_would_be_rounded_are_refused():
    third = np.longdouble(1) / 3
    with pytest.raises(ValueError, match=r"X: .*0\.33333333333333333\d+ of .*astype\(float\)"):
        NET.predict(np.array([[0, third]]))
    with pytest.raises(ValueError, match=r"eps: .* rounded"):
        rm.certify(NET, [[0.1, 0.2]], None, eps=third)
    with pytest.raises(ValueError, match=r"X: .* got 1e\+4000"):
        NET.predict(np.array([[0, np.longdouble("1e4000")]]))
    with pytest.raises(ValueError, match="X: expected finite"):
        NET.predict(np.array([[0, np.longdouble("nan")]]))
    X = np.array([[0.1, 0.25]])
    np.testing.assert_array_equal(NET(X.astype(np.longdouble)), NET(X))
