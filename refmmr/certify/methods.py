"""The methods of `certify`: what each of them can do, how it is run, and which options it takes.

A new method is a line in `METHODS`; its function is in `refmmr.certify.bounds`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from refmmr import _boxes, _minimal_attack
from refmmr import _validate as check
from refmmr.attacks import RESTARTS, STEPS
from refmmr.certify._scaled import scaled_bounds
from refmmr.certify.bounds import EXACT, Bounds, linear, region
from refmmr.network import Network

WHOLE = STEPS, RESTARTS
"""Steps and runs of the attack before a search."""

BRIEF = 20, 1
"""The same before a method that looks for examples by itself: "bab" is exact on the demo's networks
in a third of the time that it takes after the whole attack."""


class Method(NamedTuple):
    """A certification method and its properties."""

    module: str  # loaded at first use: some need a solver
    function: str
    norms: tuple[float, ...] = (1, 2, np.inf)
    batched: bool = True  # bounding many points at once is cheaper than one after the other
    goal: bool = True  # can stop when a given radius is decided
    finds: bool = False  # finds adversarial examples
    guided: bool = False  # is faster with known adversarial examples
    attacks: bool = False  # looks for them by itself in a ball of given radius
    options: tuple[str, ...] = ()

    def load(self) -> Callable[..., Bounds]:
        """The function that computes the bounds."""
        function: Callable[..., Bounds] = getattr(
            importlib.import_module(self.module), self.function
        )
        return function


METHODS: dict[str, Method] = {
    "region": Method(region.__name__, "region_bounds", goal=False, finds=True),
    "ibp": Method(linear.__name__, "ibp_bounds"),
    "fast-lin": Method(linear.__name__, "fast_lin_bounds"),
    "kw": Method(linear.__name__, "fast_lin_bounds"),
    "crown": Method(linear.__name__, "crown_bounds"),
    "lp": Method(
        "refmmr.certify.bounds.lp", "lp_bounds", norms=(1, np.inf), batched=False,
        options=("max_seconds",),
    ),
    "bab": Method(
        "refmmr.certify.bounds.bab", "bab_bounds", batched=False, finds=True, guided=True,
        attacks=True, options=("max_seconds", "proofs"),
    ),
    "search": Method(
        "refmmr.certify.bounds.search", "search_bounds", batched=False, finds=True, guided=True,
        options=("max_regions", "max_seconds"),
    ),
    "mip": Method(
        "refmmr.certify.bounds.mip", "mip_bounds", norms=(1, np.inf), batched=False, finds=True,
        guided=True, options=("max_seconds",),
    ),
}  # fmt: skip
"""The methods by name, from the cheapest to the most expensive."""


def run_method(
    method: Method,
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None,
    goal: np.ndarray | None,
    options: Mapping[str, Any],
    known: tuple[np.ndarray, np.ndarray] | None = None,
    scale: np.ndarray | None = None,
) -> Bounds:
    """The bounds of one method, for checked arguments.

    `known` are distances (n,) and adversarial examples (n, *input_shape) for a guided method; if
    not given, or in units of a scale, they are those of `_attacked`.
    """
    lower, upper = np.zeros(len(X)), np.full(len(X), np.inf)
    found = Bounds(lower, upper, np.full(X.shape, np.nan))
    for rows, own in _boxes.shared(box, X):
        aim = None if goal is None else goal[rows]
        if scale is None:
            guide = None if known is None else (known[0][rows], known[1][rows])
            part = _run(method, net, X[rows], y[rows], p, own, aim, options, guide)
        else:

            def plain(net, X, y, box, goal):
                return _run(method, net, X, y, p, box, goal, options)

            part = scaled_bounds(plain, net, X[rows], y[rows], p, own, aim, scale)
        for whole, piece in zip(found, part, strict=True):
            whole[rows] = piece
    return found


def _run(method, net, X, y, p, box, goal, options, known=None):
    """The same for points that share a box, in the plain norm."""
    arguments = {name: options[name] for name in method.options if name in options}
    if method.goal:
        arguments["goal"] = goal
    # Overflow gives NaN or an infinite error, which prove nothing: a bound of 0, never a wrong one.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        least: np.ndarray | float = 0.0
        if method.guided:
            if known is None and not (method.attacks and goal is not None):
                limit, begin = options.get("max_seconds"), time.monotonic()
                deadline = np.inf if limit is None else begin + limit
                lower, *attacked = _attacked(net, X, y, p, box, deadline, method.attacks)
                known = attacked[0], attacked[1]
                if goal is None:  # with one, the lower bound is the goal or 0
                    least = lower
                if limit is not None:
                    arguments["max_seconds"] = max(0.0, limit - (time.monotonic() - begin))
            if known is not None:
                arguments["upper"], arguments["adversarial"] = known
        found = method.load()(net, X, y, p, box, **arguments)
        return found._replace(lower=np.maximum(found.lower, least))


def _attacked(net, X, y, p, box, deadline, brief):
    """What is known before a search: lower bounds (n,), distances (n,) and adversarial examples.

    The bounds are those of `region_bounds`.  The examples are its projections where these are
    minimal, else those of the attack: a brief one first, if it may be, and the whole one for points
    at which that finds nothing.
    """
    found = region.region_bounds(net, X, y, p, box)
    upper, adversarial = found.upper.copy(), found.adversarial.copy()
    some = ~is_exact(found.lower, upper)
    for effort in (BRIEF, WHOLE) if brief else (WHOLE,):
        if some.any():
            Z, distances = _minimal_attack.minimal_attack(
                net, X[some], y[some], p, box, *effort, np.random.default_rng(0), deadline
            )
            keep = distances < upper[some]
            nearer = np.flatnonzero(some)[keep]
            upper[nearer], adversarial[nearer] = distances[keep], Z[keep]
        some &= np.isinf(upper)
    return found.lower, upper, adversarial


def is_exact(lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Whether the bounds agree, up to `EXACT`."""
    exact: np.ndarray = upper <= lower * (1 + EXACT)
    return exact


def check_method(name: Any, p: float, argument: str = "method") -> Method:
    """A known method that supports the norm."""
    method = METHODS[check.check_choice(argument, name, tuple(METHODS))]
    if p not in method.norms:
        norms = " and ".join(f"p = {norm}" for norm in method.norms)
        others = ", ".join(repr(other) for other in METHODS if p in METHODS[other].norms)
        raise ValueError(
            f"{argument}: expected one that supports p = {p}, got {name!r}, which supports "
            f"{norms}; take one of {others}"
        )
    return method


def check_options(names: list[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given budgets; a budget that none of the methods takes is an error."""
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        takers = [key for key, method in METHODS.items() if name in method.options]
        if not set(takers) & set(names):
            raise ValueError(
                f"{name}: expected None, because only {', '.join(map(repr, takers))} can take it, "
                f"got {value!r}"
            )
        options[name] = (
            check.check_count(name, value, 1)
            if name == "max_regions"
            else check.check_number(name, value)
        )
    return options


def check_radii(eps: Any, n: int) -> np.ndarray:
    """One radius for each of n points, from a number or n of them."""
    if not isinstance(eps, (list, tuple)) and np.ndim(eps) == 0:
        return np.full(n, check.check_number("eps", eps))
    radii = check.check_array("eps", eps).astype(np.float64)
    if radii.shape != (n,):
        raise ValueError(
            f"eps: expected shape ({n},), got {radii.shape}; refmmr.robustness_curve takes several "
            "radii for all points"
        )
    if not (radii > 0).all():
        i = int((radii <= 0).argmax())
        raise ValueError(f"eps: expected numbers > 0, got {radii[i]} at index {i}")
    return radii
