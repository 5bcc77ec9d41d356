"""The stages of an evaluation: methods improve what is known about a block of points.

The state of a point is the best lower and upper bound on its minimal perturbation so far.  It is an
answer for every radius at once: robust below the lower bound, attacked from the upper bound on.  So
what is known at one radius of a curve never contradicts what is known at another, and each method
is only asked about radii between the bounds, by bisection.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refmmr import _examples, _kernels
from refmmr.attacks import minimal_attack
from refmmr.certify import api
from refmmr.certify.api import Method
from refmmr.certify.evaluation.results import ATTACK
from refmmr.network import Network
from refmmr.reference import pgd


class Problem(NamedTuple):
    """All that is the same for all points."""

    net: Network
    p: float
    box: tuple[np.ndarray, np.ndarray] | None
    methods: Mapping[str, Method]  # without the attack
    options: Mapping[str, Any]
    pgd_steps: int
    restarts: int
    seed: int


class Block(NamedTuple):
    """The state of some points, and the methods to run on them."""

    names: tuple[str, ...]
    points: np.ndarray  # (m,) their numbers
    X: np.ndarray  # (m, *input_shape)
    y: np.ndarray  # (m,)
    eps: np.ndarray | None  # (m, E), increasing; None: minimal perturbations are looked for
    lower: np.ndarray  # (m,)
    upper: np.ndarray  # (m,)
    adversarial: np.ndarray  # (m, *input_shape)
    settled_by: np.ndarray  # (m,) names, "" where open
    seconds: dict[str, np.ndarray]  # (m,) each


def improve(problem: Problem, block: Block) -> Block:
    """Run methods on a block, each on the points that are still open."""
    block = block._replace(
        lower=block.lower.copy(), upper=block.upper.copy(), adversarial=block.adversarial.copy(),
        settled_by=block.settled_by.copy(), seconds=dict(block.seconds),
    )  # fmt: skip
    for name in block.names:
        rows = np.flatnonzero(block.settled_by == "")
        if not len(rows):
            break
        start = time.perf_counter()
        if name == ATTACK:
            _attack(problem, block, rows)
        else:
            _ask(problem, name, block, rows)
        spent = np.zeros(len(block.points))
        spent[rows] = (time.perf_counter() - start) / len(rows)
        block.seconds[name] = block.seconds.get(name, 0) + spent
        block.settled_by[rows[~_is_open(block, rows)]] = name
    return block


def _is_open(block: Block, rows: np.ndarray) -> np.ndarray:
    if block.eps is None:
        open_: np.ndarray = ~api.is_exact(block.lower[rows], block.upper[rows])
    else:
        open_ = np.asarray(_open_radii(block, rows).any(axis=1))
    return open_


def _open_radii(block: Block, rows: np.ndarray) -> np.ndarray:
    """Radii that nothing is known about, shape (rows, E): between the two bounds."""
    assert block.eps is not None
    unproved: np.ndarray = block.lower[rows, None] <= block.eps[rows]
    unknown: np.ndarray = unproved & (block.eps[rows] < block.upper[rows, None])
    return unknown


def _merge(
    block: Block, rows: np.ndarray, name: str, lower: Any, upper: np.ndarray, Z: np.ndarray
) -> None:
    """Take over what a method found, where it is better."""
    block.lower[rows] = np.maximum(block.lower[rows], lower)
    better = upper < block.upper[rows]
    block.upper[rows[better]], block.adversarial[rows[better]] = upper[better], Z[better]
    wrong = rows[block.lower[rows] > block.upper[rows]]
    if len(wrong):
        i = wrong[0]
        raise ArithmeticError(
            f"contradiction at point {block.points[i]}: certified radius {block.lower[i]}, but an "
            f"adversarial example at {block.upper[i]}, after method {name!r}; this is an error of "
            "the library, please report it"
        )


def _ask(problem: Problem, name: str, block: Block, rows: np.ndarray) -> None:
    """A certification method: once, or about radius after radius."""
    method = problem.methods[name]
    if block.eps is None or not method.goal:
        _call(problem, name, block, rows, None)
        return
    asked = np.zeros((len(rows), block.eps.shape[1]), dtype=bool)
    while True:
        open_ = _open_radii(block, rows)
        active, pick = _next(open_, asked)
        if not len(active):
            return
        there = rows[active]
        _call(problem, name, block, there, np.nextafter(block.eps[there, pick], np.inf))
        asked[active, pick] = True
        if not method.finds:
            # What cannot be proved at a radius cannot at a larger one.
            for i, j in zip(active, pick, strict=True):
                if block.lower[rows[i]] <= block.eps[rows[i], j]:
                    asked[i, j:] = True


def _next(open_: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The middle one of the open radii, for bisection; first those below one that stayed open."""
    active, pick = [], []
    for i in np.flatnonzero((open_ & ~asked).any(axis=1)):
        waiting = np.flatnonzero(open_[i] & ~asked[i])
        stuck = np.flatnonzero(open_[i] & asked[i])
        below = waiting[waiting < stuck[0]] if len(stuck) else waiting
        waiting = below if len(below) else waiting
        active.append(i)
        pick.append(waiting[(len(waiting) - 1) // 2])
    return np.array(active, dtype=int), np.array(pick, dtype=int)


def _call(problem, name, block, rows, goal):
    known = block.upper[rows], block.adversarial[rows]
    found = api.bounds(
        problem.methods[name], problem.net, block.X[rows], block.y[rows], problem.p, problem.box,
        goal, problem.options, known if np.isfinite(known[0]).any() else None,
    )  # fmt: skip
    _merge(block, rows, name, *found)


def _attack(problem: Problem, block: Block, rows: np.ndarray) -> None:
    """PGD at the open radii; for minimal perturbations, the attack that looks for them."""
    if block.eps is None:
        for i in rows:  # one by one, with a generator for each
            row, rng = slice(i, i + 1), np.random.default_rng([problem.seed, int(block.points[i])])
            Z, length = minimal_attack(
                problem.net, block.X[row], block.y[row], problem.p, box=problem.box, rng=rng
            )
            _merge(block, np.array([i]), ATTACK, 0, length, Z)
        return
    asked = np.zeros((len(rows), block.eps.shape[1]), dtype=bool)
    while True:
        active, pick = _next(_open_radii(block, rows), asked)
        if not len(active):
            return
        there = rows[active]
        radii = block.eps[there, pick]
        for eps in np.unique(radii):
            _pgd(problem, block, there[radii == eps], float(eps))
        asked[active, pick] = True
        for i, j in zip(active, pick, strict=True):
            # What is not found at a radius is not looked for at a smaller one.
            if block.eps[rows[i], j] < block.upper[rows[i]]:
                asked[i, :j] = True


def _pgd(problem: Problem, block: Block, rows: np.ndarray, eps: float) -> None:
    """PGD with restarts, at one radius, until there is an adversarial example."""
    slightly_less = eps * (1 - 1e-12)  # so that rounding carries no example beyond eps
    step = 2 * slightly_less / problem.pgd_steps
    for restart in range(problem.restarts):
        X, y = block.X[rows], block.y[rows]
        start = (
            X if restart == 0 else _starts(problem, block.points[rows], X, slightly_less, restart)
        )
        Z = _kernels.pgd(
            problem.net, X, y, problem.p, slightly_less, problem.pgd_steps, step, problem.box,
            start, False,
        )  # fmt: skip
        length = _examples.verified_distances(problem.net, X, Z, y, problem.p, problem.box)
        genuine = length <= eps
        _merge(block, rows, ATTACK, 0, np.where(genuine, length, np.inf), Z)
        rows = rows[~genuine]
        if not len(rows):
            return


def _starts(problem, points, X, eps, restart):
    """Random points of the balls, each from a generator of its own point."""
    directions = np.empty_like(X)
    for i, number in enumerate(points):
        rng = np.random.default_rng([problem.seed, int(number), restart])
        shape = X.shape[1:]
        inf = problem.p == np.inf
        directions[i] = rng.uniform(-eps, eps, shape) if inf else rng.standard_normal(shape)
    return pgd.project(X, X + directions, problem.p, eps, problem.box)
