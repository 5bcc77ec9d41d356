"""The stages of an evaluation: methods improve the bounds of a block of points.

The state of a point is the best lower and upper bound on its minimal perturbation so far.  They
decide every radius outside of them: the point is robust below the lower bound, and has an
adversarial example from the upper bound on.  So the results for the radii of a curve never
contradict each other, and each method only decides radii between the bounds, by bisection.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from refmmr import _boxes, _examples, _kernels, _scaling
from refmmr.attacks import RESTARTS, STEPS, nearest_examples
from refmmr.certify.evaluation.results import ATTACK
from refmmr.certify.methods import Method, is_exact, run_method
from refmmr.network import Network
from refmmr.reference import pgd


class Problem(NamedTuple):
    """Network, norm, box and options: the same for all points."""

    net: Network
    p: float
    box: tuple[np.ndarray, np.ndarray] | None  # of the shape of an input, or of all points
    methods: Mapping[str, Method]  # without the attack
    options: Mapping[str, Any]
    pgd_steps: int
    restarts: int
    seed: int
    scale: np.ndarray | None = None  # of the shape of an input


class Block(NamedTuple):
    """The state of some points, and the methods to run on them."""

    names: tuple[str, ...]
    points: np.ndarray  # (m,) their numbers
    X: np.ndarray  # (m, *input_shape)
    y: np.ndarray  # (m,)
    eps: np.ndarray | None  # (m, E), increasing; None for minimal perturbations
    lower: np.ndarray  # (m,)
    upper: np.ndarray  # (m,)
    adversarial: np.ndarray  # (m, *input_shape)
    settled_by: np.ndarray  # (m,) names of methods, "" where undecided
    seconds: dict[str, np.ndarray]  # (m,) each


def improve(problem: Problem, block: Block) -> Block:
    """Run the methods of a block, each on the points that are still undecided."""
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
            _decide(problem, name, block, rows)
        spent = np.zeros(len(block.points))
        spent[rows] = (time.perf_counter() - start) / len(rows)
        block.seconds[name] = block.seconds.get(name, 0) + spent
        block.settled_by[rows[~_is_undecided(block, rows)]] = name
    return block


def _is_undecided(block: Block, rows: np.ndarray) -> np.ndarray:
    if block.eps is None:
        undecided: np.ndarray = ~is_exact(block.lower[rows], block.upper[rows])
    else:
        undecided = np.asarray(_undecided_radii(block, rows).any(axis=1))
    return undecided


def _undecided_radii(block: Block, rows: np.ndarray) -> np.ndarray:
    """Radii between the bounds, shape (rows, E) bool."""
    assert block.eps is not None
    unproved: np.ndarray = block.lower[rows, None] <= block.eps[rows]
    unknown: np.ndarray = unproved & (block.eps[rows] < block.upper[rows, None])
    return unknown


def _merge(
    block: Block, rows: np.ndarray, name: str, lower: Any, upper: np.ndarray, Z: np.ndarray
) -> None:
    """Keep the bounds that a method found where they are better."""
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


def _decide(problem: Problem, name: str, block: Block, rows: np.ndarray) -> None:
    """Run a certification method, once or for one undecided radius after the other."""
    method = problem.methods[name]
    if block.eps is None or not method.goal:
        _call(problem, name, block, rows, None)
        return
    tried = np.zeros((len(rows), block.eps.shape[1]), dtype=bool)
    while True:
        undecided = _undecided_radii(block, rows)
        active, pick = _next(undecided, tried)
        if not len(active):
            return
        some = rows[active]
        _call(problem, name, block, some, np.nextafter(block.eps[some, pick], np.inf))
        tried[active, pick] = True
        if not method.finds:
            # Where a radius is not proved, larger ones are not either.
            for i, j in zip(active, pick, strict=True):
                if block.lower[rows[i]] <= block.eps[rows[i], j]:
                    tried[i, j:] = True


def _next(undecided: np.ndarray, tried: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows with a radius to try, and its column: the middle of the undecided radii not yet tried.

    Radii below one that a method tried without success come first: a smaller ball is easier to
    decide.
    """
    active, pick = [], []
    for i in np.flatnonzero((undecided & ~tried).any(axis=1)):
        waiting = np.flatnonzero(undecided[i] & ~tried[i])
        stuck = np.flatnonzero(undecided[i] & tried[i])
        below = waiting[waiting < stuck[0]] if len(stuck) else waiting
        waiting = below if len(below) else waiting
        active.append(i)
        pick.append(waiting[(len(waiting) - 1) // 2])
    return np.array(active, dtype=int), np.array(pick, dtype=int)


def _call(problem, name, block, rows, goal):
    known = block.upper[rows], block.adversarial[rows]
    found = run_method(
        problem.methods[name], problem.net, block.X[rows], block.y[rows], problem.p,
        _box(problem, block, rows),
        goal, problem.options, known if np.isfinite(known[0]).any() else None, problem.scale,
    )  # fmt: skip
    _merge(block, rows, name, *found)


def _attack(problem: Problem, block: Block, rows: np.ndarray) -> None:
    """Projections and PGD at the undecided radii, or the attack of minimal norm without radii."""
    if block.eps is None:
        for i in rows:  # one by one, with a generator for each
            row, rng = slice(i, i + 1), np.random.default_rng([problem.seed, int(block.points[i])])
            Z, length = nearest_examples(
                problem.net,
                block.X[row],
                block.y[row],
                problem.p,
                _box(problem, block, np.array([i])),
                problem.scale,
                STEPS,
                RESTARTS,
                rng,
            )
            _merge(block, np.array([i]), ATTACK, 0, length, Z)
        return
    _project(problem, block, rows)
    tried = np.zeros((len(rows), block.eps.shape[1]), dtype=bool)
    while True:
        active, pick = _next(_undecided_radii(block, rows), tried)
        if not len(active):
            return
        some = rows[active]
        radii = block.eps[some, pick]
        for eps in np.unique(radii):
            _pgd(problem, block, some[radii == eps], float(eps))
        tried[active, pick] = True
        for i, j in zip(active, pick, strict=True):
            # Where PGD fails at a radius, smaller ones are not tried.
            if block.eps[rows[i], j] < block.upper[rows[i]]:
                tried[i, :j] = True


def _project(problem: Problem, block: Block, rows: np.ndarray) -> None:
    """Project onto the decision boundaries of the affine maps around the points.

    The examples hold for all radii.  Those that lie in the linear region of their point are the
    nearest ones, which PGD, at a radius hardly larger, mostly misses.
    """
    no_runs, rng = (0, 0), np.random.default_rng(problem.seed)
    Z, length = nearest_examples(
        problem.net, block.X[rows], block.y[rows], problem.p, _box(problem, block, rows),
        problem.scale, *no_runs, rng,
    )  # fmt: skip
    _merge(block, rows, ATTACK, 0, length, Z)


def _pgd(problem: Problem, block: Block, rows: np.ndarray, eps: float) -> None:
    """PGD with restarts at one radius, until an adversarial example is verified."""
    slightly_less = eps * (1 - 1e-12)  # so that no rounded example lies beyond eps
    step = 2 * slightly_less / problem.pgd_steps
    for restart in range(problem.restarts):
        Z, length = _attack_once(problem, block, rows, slightly_less, step, restart)
        genuine = length <= eps
        _merge(block, rows, ATTACK, 0, np.where(genuine, length, np.inf), Z)
        rows = rows[~genuine]
        if not len(rows):
            return


def _attack_once(problem, block, rows, eps, step, restart):
    """One run of PGD, in units of the scale: points, and their distances if they are verified."""
    net, X, y, p, scale = problem.net, block.X[rows], block.y[rows], problem.p, problem.scale
    box = _box(problem, block, rows)
    if scale is None:
        Z = _climb(problem, net, X, y, box, eps, step, block.points[rows], restart)
        return Z, _examples.verified_distances(net, X, Z, y, p, box)
    inner = None if box is None else (box[0] / scale, box[1] / scale)
    scaled = _scaling.scaled_network(net, scale)
    U = _climb(problem, scaled, X / scale, y, inner, eps, step, block.points[rows], restart)
    length, Z = _scaling.verified(net, X, U, y, p, box, scale)
    return Z, length


def _climb(problem, net, X, y, box, eps, step, points, restart):
    """The points where PGD ends; the compiled attacks know one box for all points."""
    start = X if restart == 0 else _starts(problem, points, X, eps, restart, box)
    attack = pgd.pgd if _boxes.is_own(box, X) else _kernels.pgd
    return attack(net, X, y, problem.p, eps, problem.pgd_steps, step, box, start, False)


def _box(problem, block, rows):
    """The box of some points of a block."""
    return _boxes.take(problem.box, block.X, block.points[rows])


def _starts(problem, points, X, eps, restart, box):
    """Random points of the balls, each drawn by the generator of its point."""
    directions = np.empty_like(X)
    for i, number in enumerate(points):
        rng = np.random.default_rng([problem.seed, int(number), restart])
        shape = X.shape[1:]
        inf = problem.p == np.inf
        directions[i] = rng.uniform(-eps, eps, shape) if inf else rng.standard_normal(shape)
    return pgd.project(X, X + directions, problem.p, eps, box)
