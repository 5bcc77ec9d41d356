"""Counterexamples of a property: how they are searched, and checked in exact arithmetic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from refmmr.certify._clauses import Rows, nearest
from refmmr.certify.bounds._place import LARGEST
from refmmr.exact import exact_logits
from refmmr.interop.vnnlib import Clause
from refmmr.network import Network

CHECKED = 3
"""Points of a batch that are checked exactly, those that satisfy a clause most clearly."""

STEPS = 60
"""Steps of a descent; their lengths fall linearly to 0."""

FIRST_STEP = 0.5
"""Length of the first step, in half widths of the box."""

RESTARTS = 20
"""Starts of the descent for each clause: the center of the box, the others at random."""

BATCH = 256
"""Points that descend together."""


class Counterexample(NamedTuple):
    """An input that satisfies a clause, with its exact output."""

    x: tuple[Fraction, ...]
    y: tuple[Fraction, ...]


class Examples:
    """The first point among those proposed that satisfies a clause, in exact arithmetic.

    Parameters
    ----------
    net : Network
        With float64 weights, taken as exact real numbers.
    clauses : sequence of Clause
        On one box.
    rows : Rows
        Of these clauses.
    """

    def __init__(self, net: Network, clauses: Sequence[Clause], rows: Rows) -> None:
        self.net, self.clauses, self.rows = net, clauses, rows
        self.found: Counterexample | None = None
        self._tried: set[bytes] = set()

    def __call__(self, points: np.ndarray) -> bool:
        """Whether a counterexample is among points (n, d), or was before."""
        if self.found is not None:
            return True
        Z = np.asarray(points, dtype=np.float64)
        logits = self.net.logits(Z.reshape(-1, *self.net.input_shape))
        values = self.rows.values(Z, logits)
        # A clause is as far from being satisfied as its worst row.
        worst = np.full((len(Z), len(self.clauses)), -np.inf)
        for column, clause in zip(values.T, self.rows.clause, strict=True):
            worst[:, clause] = np.maximum(worst[:, clause], column)
        size = np.abs(logits).max(initial=1)
        order = np.argsort(worst, axis=None)[:CHECKED]
        for i, clause in zip(*np.unravel_index(order, worst.shape), strict=True):
            if worst[i, clause] <= 1e-9 * size and self._check(Z[i], self.clauses[clause]):
                return True
        return False

    def _check(self, z: np.ndarray, clause: Clause) -> bool:
        """Check a point, moved into the box of the file where that has ends that are no floats."""
        key = z.tobytes()
        if key in self._tried or not np.isfinite(z).all():
            return False
        self._tried.add(key)
        x = tuple(
            min(max(Fraction(v), low), high)
            for v, low, high in zip(z.tolist(), clause.lo, clause.hi, strict=True)
        )
        y = exact_logits(self.net, x)
        if clause.holds(x, y):
            self.found = Counterexample(x, tuple(y))
        return self.found is not None


def descend(
    net: Network,
    rows: Rows,
    n_clauses: int,
    box: tuple[np.ndarray, np.ndarray],
    examples: Examples,
    rng: np.random.Generator,
    deadline: float,
) -> bool:
    """Search for counterexamples: for each clause, descents of its largest row within the box.

    Steps have the sign of the gradient, and lengths in proportion to the widths of the box (the
    attack of Madry et al. 2018, in l_inf).

    Parameters
    ----------
    net : Network
    rows : Rows
    n_clauses : int
    box : (lo, hi), each (d,)
    examples : Examples
    rng : numpy.random.Generator
    deadline : float
        Time of `time.monotonic` at which to stop.

    Returns
    -------
    bool
        Whether `examples` found one.
    """
    # In float32, where its range holds all weights.
    largest = max(np.abs(part).max() for pair in net.parameters for part in pair)
    fast = net.astype(np.float32 if largest < LARGEST else np.float64)
    clauses = np.repeat(np.arange(n_clauses), RESTARTS)
    # Starts in turn, so that each clause has had its first one early.
    clauses = clauses.reshape(n_clauses, RESTARTS).T.reshape(-1)
    for start in range(0, len(clauses), BATCH):
        if time.monotonic() > deadline or _descend(
            fast, rows, clauses[start : start + BATCH], box, examples, rng, start == 0, deadline
        ):
            break
    return examples.found is not None


def _descend(net, rows, clauses, box, examples, rng, from_center, deadline):
    lo, hi = box
    half = (hi - lo) / 2
    Z = lo + rng.uniform(size=(len(clauses), len(lo))) * (hi - lo)
    if from_center:
        first = np.unique(clauses, return_index=True)[1]
        Z[first] = lo + half
    own = rows.clause[None] == clauses[:, None]  # (n, M)
    dtype = net.dtype
    for step in range(STEPS):
        points = Z.reshape(-1, *net.input_shape).astype(dtype)
        cache = net.forward(points)
        logits = cache.outputs[-1].reshape(len(Z), -1)
        values = np.where(own, rows.values(Z, logits), -np.inf)
        pick = values.argmax(axis=1)
        if (values.max(axis=1) <= 0).any() and examples(Z):
            return True
        if time.monotonic() > deadline:
            return False
        df = net.at_logits(rows.C[pick].astype(dtype))
        gradient = net.input_gradient(net.backward(cache, df)).reshape(len(Z), -1)
        gradient = gradient + rows.D[pick]
        length = FIRST_STEP * (1 - step / STEPS)
        Z = np.clip(Z - length * half * np.sign(gradient), lo, hi)
    return examples(Z)


def text_of(found: Counterexample) -> str:
    """A counterexample in the format of the competition: ``sat`` and pairs of name and value.

    Inputs are exact decimal numbers, outputs are rounded to floats.
    """
    pairs = [f"(X_{j} {_decimal(number)})" for j, number in enumerate(found.x)]
    pairs += [f"(Y_{k} {nearest(number)!r})" for k, number in enumerate(found.y)]
    return "sat\n(" + "\n".join(pairs) + ")\n"


def _decimal(number: Fraction) -> str:
    """A float as Python writes it; another number, an end of the box, with all its digits."""
    value = nearest(number)
    if Fraction(value) == number:
        return repr(value)
    digits, denominator = 0, number.denominator
    while (10**digits) % denominator:
        digits += 1
        if digits > 1100:  # no decimal number: the quotient of two
            return repr(value)
    whole, sign = abs(number.numerator) * (10**digits // denominator), "-" if number < 0 else ""
    text = str(whole).rjust(digits + 1, "0")
    return f"{sign}{text[: len(text) - digits]}.{text[len(text) - digits :]}"
