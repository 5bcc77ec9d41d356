"""The rows of the paper's table: robust errors, robustness curves and minimal perturbations.

Each point has a state: the best lower and upper bound on its minimal perturbation so far.  Methods
improve the states in the given order, each only for the points that are still undecided.  The state
decides all radii outside of the bounds: robust below the lower one, attacked from the upper one on.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from refmmr import _scaling
from refmmr import _validate as check
from refmmr.certify.evaluation import workers
from refmmr.certify.evaluation.results import (
    ATTACK,
    MinimalPerturbations,
    RobustError,
    RobustnessCurve,
)
from refmmr.certify.evaluation.run import Run, without_example
from refmmr.certify.evaluation.stages import Problem
from refmmr.certify.methods import METHODS, check_method, check_options, check_radii
from refmmr.network import Network

__all__ = ["minimal_perturbations", "robust_error", "robustness_curve"]

AT_RADII = ("crown", ATTACK, "bab")
"""The default at given radii: what proves most points first, then the attack on the rest, then
branch and bound on what both leave open.

Branch and bound settles all of them on the demo's networks, in 20 to 100 ms a point, where "search"
takes up to four times as long, and nearly all of networks 784-1024-10 on MNIST: no other method
comes after it.
The linear region settles no point after CROWN and the attack: CROWN is exact on a ball within it,
and the attack begins with its projections.  On a convolutional network of 4804 units it takes 25
times as long as CROWN, because it needs the gradients of all units."""

SECONDS = 10.0
"""Limit of branch and bound for a point and radius in the default `AT_RADII`: most points take less
than a second, and a few could take hours."""

MINIMAL = ("region", ATTACK, "crown")
"""The default for minimal perturbations: where ``d_D <= d_B`` the region gives the exact one, where
the attack and CROWN leave a gap."""

OPTIONS = """\
box : (lo, hi) or None
    The attacker stays in ``lo <= z <= hi``, numbers or arrays of the shape of an input, or of X for
    a box of each point; X must lie in it.  Where lo = hi, nothing may change.  None for the whole
    space.
scale : float or array_like, optional
    A unit for each coordinate: distances are ``||(z - x) / scale||_p``, see `refmmr.certify`.
methods : sequence of str, optional
    "attack" and methods of `refmmr.certify`, the cheapest first.  If not given, "crown", "attack"
    and "bab" at radii, "region", "attack" and "crown" for minimal perturbations.
pgd_steps, restarts : int
    Steps and runs of the attack at a given radius: projections onto the decision boundaries of the
    affine map around each point, then `refmmr.pgd`.  Minimal perturbations are attacked by
    `refmmr.minimal_attack` instead.
rng : int, numpy.random.Generator or None
    Source of the attack's random starts.  Each point has its own starts, which depend neither on
    the other points nor on the number of workers.
max_seconds, max_regions : optional
    Budget of "lp", "bab", "search" and "mip" for each point and radius.  Without it they run to
    their end; but if `methods` are not given either, "bab" has 10 seconds, after which the point
    stays undecided.
out : path-like, optional
    A folder, or a file ending in .jsonl, to which a line is written for each point as soon as it is
    decided or all methods have run.  The same call continues from it after an interruption; a
    call with other arguments is refused.  See `refmmr.certify.evaluation.records`.
keep_adversarial : bool
    Write adversarial examples into the records too (float64, base64).  Without them
    ``.certificates.adversarial`` is NaN for points that come from the file.
n_jobs : int
    Worker processes, each of one thread; -1 is one per core.
dask : str, optional
    Address of a Dask scheduler, or "local" for a cluster on this machine, to run the methods on
    its workers.
progress : bool, optional
    Show a progress bar; if not given, on a terminal only."""
"""The options of the three functions; `_with_options` puts them into each docstring."""


def _with_options(function: Callable[..., Any]) -> Any:
    """Show the options of `_evaluate` in a function's signature and docstring."""
    own, shared = inspect.signature(function), inspect.signature(_evaluate)
    parameters = [one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD]
    parameters += [one for one in shared.parameters.values() if one.kind is one.KEYWORD_ONLY]
    described = inspect.cleandoc(function.__doc__ or "")
    function.__doc__ = described.replace("**options\n    Listed in `OPTIONS`.", OPTIONS)
    function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function


def _evaluate(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float | str,
    radii: Callable[[int], tuple[np.ndarray | None, Any]],
    *,
    box: Any = (0, 1),
    scale: ArrayLike | None = None,
    methods: Sequence[str] | None = None,
    pgd_steps: int = 40,
    restarts: int = 3,
    rng: int | np.random.Generator | None = 0,
    max_seconds: float | None = None,
    max_regions: int | None = None,
    out: str | os.PathLike[str] | None = None,
    keep_adversarial: bool = False,
    n_jobs: int = 1,
    dask: str | None = None,
    progress: bool | None = None,
) -> tuple[Run, dict[str, Any]]:
    """Check the arguments, run the methods, keep records; ``radii(n)`` checks the radii.

    ``radii`` returns the radii of each of n points, shape (n, E) and increasing along E, or None
    for minimal perturbations; and their form in the records.
    """
    X = check.check_inputs(net, X, device=False).astype(np.float64)
    check.check_classes(net)
    if y is None:
        raise TypeError(f"y: expected {len(X)} true classes, got None")
    y = check.check_labels(y, len(X), net.n_classes, device=False)
    p = check.check_p(p)
    limits = check.check_box(box, X, own=True)
    units = _scaling.check_scale(scale, net)
    net = net.astype(np.float64)
    eps, recorded = radii(len(X))
    if methods is None:
        methods = MINIMAL if eps is None else AT_RADII
        if eps is not None and max_seconds is None:
            max_seconds = SECONDS
    names = _check_methods(methods, p)
    options = check_options(list(names), {"max_seconds": max_seconds, "max_regions": max_regions})
    pgd_steps = check.check_count("pgd_steps", pgd_steps, 1)
    restarts = check.check_count("restarts", restarts, 1)
    n_jobs = _check_jobs(n_jobs)
    if dask is not None and not isinstance(dask, str):
        raise TypeError(f'dask: expected None, "local" or an address, got {dask!r}')
    seed = int(check.check_rng(rng).integers(2**63))
    problem = Problem(
        net, p, limits, {name: METHODS[name] for name in names if name != ATTACK}, options,
        pgd_steps, restarts, seed, units,
    )  # fmt: skip
    run = Run(problem, names, X, y, eps, keep_adversarial)
    disable = None if progress is None else not progress
    with (
        run.records_in(out, rng, recorded) as writer,
        tqdm(total=len(X), desc="robust error", unit="point", disable=disable) as bar,
    ):
        bar.update(len(run.records))
        try:
            if len(run.records) < len(X):
                run.warn_if_slow(n_jobs)
                with workers.pool(n_jobs, dask) as work:
                    for record in run.improve(work):
                        if writer is not None:
                            writer.write(record if keep_adversarial else without_example(record))
                        bar.update(1)
        except KeyboardInterrupt as stop:
            if writer is None:
                raise KeyboardInterrupt("stopped; nothing is kept without out=") from stop
            raise KeyboardInterrupt(
                f"{len(run.records)} of {len(X)} points are kept in {writer.path}; the same call "
                "continues from there"
            ) from stop
    return run, run.summary()


@_with_options
def robust_error(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float | str = 2,
    *,
    eps: ArrayLike,
    **options: Any,
) -> RobustError:
    """Test error, and lower and upper bound of the robust test error at eps.

    Misclassified points are decided at once; then the methods run in the order given, each on the
    points that are still undecided.  The lower bound is the share of points with an adversarial
    example within eps, misclassified in real arithmetic; the upper bound is the share of points
    without a certificate that the class is constant on the ball of radius eps within the box.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    eps : float or array_like, shape (n,)
        Radius of the attack, in units of the input: one for all points, or one for each.
    **options
        Listed in `OPTIONS`.

    Returns
    -------
    RobustError
        ``.test_error``, ``.lower_bound``, ``.upper_bound``, ``.table()``; point by point
        ``.misclassified``, ``.attacked``, ``.certified``.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, an unknown norm,
        eps that is not positive, unknown methods or those that do not support the norm, records of
        another computation in `out`.
    ImportError, OSError
        When Dask is not installed, or no scheduler replies.
    KeyboardInterrupt
        On Ctrl-C.  Records in `out` are kept; without `out` nothing is kept.

    See Also
    --------
    refmmr.robustness_curve : several radii at once.
    refmmr.minimal_perturbations : the radii at which the points are no longer robust.

    References
    ----------
    Croce, Andriushchenko, Hein (2019), Table 1.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> X, y = [[1.0, 0.5], [0.4, 0.1]], [0, 0]
    >>> result = rm.robust_error(net, X, y, p=2, eps=0.15)
    >>> result.test_error, result.lower_bound, result.upper_bound
    (0.0, 0.5, 0.5)
    """

    def radii(n: int) -> tuple[np.ndarray, Any]:
        checked = check_radii(eps, n)
        return checked[:, None], checked if np.ndim(eps) else float(checked[0])

    run, summary = _evaluate(net, X, y, p, radii, **options)
    certified, attacked = run.decisions()
    return RobustError(
        lower_bound=float(attacked.mean()),
        upper_bound=float((~certified).mean()),
        attacked=attacked[:, 0],
        certified=certified[:, 0],
        eps=radii(len(certified))[1],
        **summary,
    )


@_with_options
def robustness_curve(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float | str = 2,
    *,
    radii: Sequence[float],
    **options: Any,
) -> RobustnessCurve:
    """Lower and upper bounds of the robust accuracy at several radii.

    Each point keeps its bounds from radius to radius: so a curve costs little more than its most
    expensive radius, and decisions at different radii never contradict each other.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    radii : sequence of float
        Radii of the attack, in units of the input, in any order.
    **options
        Listed in `OPTIONS`.

    Returns
    -------
    RobustnessCurve
        ``.radii`` (increasing), ``.certified_accuracy``, ``.attacked_accuracy``, ``.plot()``.

    Raises
    ------
    ValueError, TypeError, ImportError, OSError, KeyboardInterrupt
        As `refmmr.robust_error`.

    References
    ----------
    Croce, Andriushchenko, Hein (2019), Table 1.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> X, y = [[1.0, 0.5], [0.4, 0.1]], [0, 0]
    >>> rm.robustness_curve(net, X, y, p=2, radii=[0.1, 0.2, 0.9]).certified_accuracy
    array([1. , 0.5, 0. ])
    """
    values = _check_radii(radii)
    run, summary = _evaluate(net, X, y, p, lambda n: (np.tile(values, (n, 1)), values), **options)
    certified, attacked = run.decisions()
    return RobustnessCurve(radii=values, certified=certified, attacked=attacked, **summary)


@_with_options
def minimal_perturbations(
    net: Network, X: ArrayLike, y: ArrayLike, p: float | str = 2, **options: Any
) -> MinimalPerturbations:
    """Lower and upper bounds on the minimal adversarial perturbation of each point.

    The largest lower bound and the smallest upper bound of several methods of `refmmr.certify` and
    an attack; a method runs only on points where these bounds still differ.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    **options
        Listed in `OPTIONS`.

    Returns
    -------
    MinimalPerturbations
        ``.lower``, ``.upper``, shape (n,), 0 where misclassified; ``.exact_share``.

    Raises
    ------
    ValueError, TypeError, ImportError, OSError, KeyboardInterrupt
        As `refmmr.robust_error`.

    References
    ----------
    Croce, Andriushchenko, Hein (2019); Tjeng, Xiao, Tedrake (2019).

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> found = rm.minimal_perturbations(net, [[1.0, 0.5], [0.4, 0.1]], [0, 0], p=2)
    >>> found.lower.round(4), found.upper.round(4)
    (array([0.8333, 0.12  ]), array([0.8333, 0.12  ]))
    """
    return MinimalPerturbations(**_evaluate(net, X, y, p, lambda n: (None, None), **options)[1])


# ---- arguments


def _check_radii(radii: Any) -> list[float]:
    """Different radii, increasing."""
    given = np.asarray(radii).tolist() if isinstance(radii, np.ndarray) else radii
    values = check.check_sequence("radii", given, "numbers")
    if not values:
        raise ValueError(f"radii: expected at least one radius, got {radii!r}")
    return sorted({check.check_number("radii", value) for value in values})


def _check_methods(methods: Any, p: float) -> tuple[str, ...]:
    given = check.check_sequence("methods", methods, "names of methods")
    if not given:
        raise ValueError("methods: expected at least one method, got none")
    names = tuple(check.check_choice("methods", name, (ATTACK, *METHODS)) for name in given)
    for name in names:
        if name != ATTACK:
            check_method(name, p, "methods")
    if len(set(names)) < len(names):
        raise ValueError(f"methods: expected each method once, got {given!r}")
    return names


def _check_jobs(n_jobs: Any) -> int:
    if n_jobs == -1 and not isinstance(n_jobs, bool):
        return -1
    return check.check_count("n_jobs", n_jobs, 1, what=", or -1 for one per core")
