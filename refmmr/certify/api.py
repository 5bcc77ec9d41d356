"""`certify`: bounds on the minimal adversarial perturbation of each point."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from refmmr import _boxes, _examples, _minimal_attack, _scaling
from refmmr import _validate as check
from refmmr._optional import require
from refmmr.attacks import RESTARTS, STEPS
from refmmr.certify._estimate import warn_if_slow
from refmmr.certify._scaled import scaled_bounds
from refmmr.certify.bounds import EXACT, Bounds, linear, region
from refmmr.certify.certificate_files import CertificateFolder
from refmmr.network import Network

__all__ = ["METHODS", "Certificates", "Method", "certify"]

BLOCK = 128
"""Number of points that a batched method bounds at once, between two steps of the progress bar."""


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


@dataclass(frozen=True)
class Certificates:
    """Bounds on the minimal adversarial perturbation of n points, in l_p, within the box.

    Returned by `certify`.

    Attributes
    ----------
    lower : ndarray, shape (n,)
        Certified radius: no point of the box nearer than this has another class.  0 for points that
        are misclassified, infinite where the whole box has one class.  Rounded down: it holds in
        real arithmetic, for every method.
    upper : ndarray, shape (n,)
        Distance of the nearest adversarial example found, rounded up; infinite where none was
        found.
    exact : ndarray of bool, shape (n,)
        Whether both bounds agree to a relative 1e-6, so that the minimal perturbation is known.
    adversarial : ndarray, shape (n, *input_shape)
        The adversarial example of `upper` (the point itself where it is misclassified), float64;
        NaN where none was found.
    p : {1, 2, inf}
    method : str
    eps : ndarray, shape (n,), or None
        The radii to decide about; None for bounds as close as possible.  With eps, bounds are only
        as close as the decision needs.
    seconds : ndarray, shape (n,), or None
        Time per point; the time of points bounded together is divided equally among them.
    """

    lower: np.ndarray
    upper: np.ndarray
    exact: np.ndarray
    adversarial: np.ndarray
    p: float
    method: str
    eps: np.ndarray | None = None
    seconds: np.ndarray | None = None

    @property
    def robust(self) -> np.ndarray | None:
        """Whether the closed ball of radius eps is proved free of other classes, shape (n,)."""
        return None if self.eps is None else self.lower > self.eps

    @property
    def status(self) -> np.ndarray | None:
        """Each point at eps: "robust", "adversarial" (an example is known) or "unknown"."""
        if self.eps is None:
            return None
        found = np.where(self.upper <= self.eps, "adversarial", "unknown")
        return np.where(self.lower > self.eps, "robust", found)

    def to_frame(self) -> Any:
        """The bounds as a pandas DataFrame, one row per point.

        Columns: lower, upper, exact; with eps also eps and status; seconds, where measured.
        """
        pandas = require("pandas", "to_frame")
        columns = {"lower": self.lower, "upper": self.upper, "exact": self.exact}
        others = {"eps": self.eps, "status": self.status, "seconds": self.seconds}
        columns |= {name: value for name, value in others.items() if value is not None}
        return pandas.DataFrame(columns).rename_axis("point")

    def __len__(self) -> int:
        return len(self.lower)

    def _repr_html_(self) -> str:
        from refmmr.display import html

        return html.certificates(self)

    def __repr__(self) -> str:
        head = f"Certificates({len(self)} points, l_{self.p}, {self.method}: "
        if self.robust is not None:
            attacked = float((self.upper <= self.eps).mean())
            return (
                f"{head}{100 * self.robust.mean():.1f}% robust, "
                f"{100 * attacked:.1f}% with an adversarial example within eps)"
            )
        return (
            f"{head}mean certified radius {self.lower.mean():.4g}, "
            f"exact for {100 * self.exact.mean():.1f}%)"
        )


def certify(
    net: Network,
    X: ArrayLike,
    y: ArrayLike | None,
    p: float | str = 2,
    box: Any = (0, 1),
    method: str = "region",
    *,
    eps: ArrayLike | None = None,
    scale: ArrayLike | None = None,
    max_seconds: float | None = None,
    max_regions: int | None = None,
    certificate: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Certificates:
    """Bound the minimal adversarial perturbation of each point from below and from above.

    It is ``min ||z - x||_p`` over the points z of the box that have another class than y (ties
    count as another class).

    Parameters
    ----------
    net : Network
        Its weights are taken as exact real numbers; the computation is in float64.
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,), or None
        True classes; points of another predicted class have radius 0.  None means the predicted
        classes.  The predicted class is that of real arithmetic: ties of floats are decided
        exactly, by integers.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    box : (lo, hi) or None
        The attacker stays in ``lo <= z <= hi``, numbers or arrays of the shape of an input, or of X
        for a box of each point; X must lie in it.  Where lo = hi, nothing may change.  None for the
        whole space.
    method : str
        From the cheapest to the most expensive, one of

        - "region": ``min(d_B, d_D)``, the distances to the hyperplanes of the point's linear region
          and to the decision boundaries of its affine map; exact if d_D is the smaller one;
        - "ibp": interval bound propagation;
        - "fast-lin", also called "kw": backward bounds with parallel linear relaxations of a ReLU;
        - "crown": backward bounds with a lower slope of 0 or 1, chosen for each unit;
        - "lp": the triangle relaxation, by linear programs (p = 1 and inf);
        - "bab": branch and bound on linear relaxations, exact if it ends within its budget;
        - "search": best-first search through the linear regions around the point, exact if it
          ends within its budget;
        - "mip": mixed-integer programs (p = 1 and inf), exact if they are solved within the
          budget.
    eps : float or array_like, shape (n,), optional
        Decide whether each point is robust at this radius (one for all points, or one for each),
        see ``.robust`` and ``.status``, instead of searching for the largest certified radius.
    scale : float or array_like, optional
        A unit for each coordinate (an array that broadcasts to the shape of an input): distances
        are ``||(z - x) / scale||_p``, so that a coordinate with a larger scale may move further.
        For a network that begins with a convolution one for each channel.
    max_seconds : float, optional
        Time limit for each point of "lp", "bab", "search" and "mip"; then the bounds found so far
        are returned.  Without it they run to their end, which may take hours for a single point.
    max_regions : int, optional
        Largest number of linear regions for each point of "search"; then the bounds found so far
        are returned.
    certificate : path-like, optional
        A folder, for "bab" with eps: each point that is robust gets a file ``NUMBER.npz`` with its
        proof, which `check_certificate` checks.  A warning names points whose proof is too large.
        To write it takes about as long as the check does, beyond `max_seconds`.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    Certificates
        ``.lower``, ``.upper``, ``.exact``, ``.adversarial``; with eps also ``.robust``,
        ``.status``.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, unknown norms or
        methods, a method that does not support the norm, options that the method does not take.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): guarantees inside a linear region.
    Gowal et al. (2018): interval bounds.  Weng et al. (2018): Fast-Lin.  Wong, Kolter (2018).
    Zhang et al. (2018): CROWN.  Ehlers (2017): the triangle relaxation.
    Wang et al. (2021): beta-CROWN, branch and bound.
    Jordan, Lewis, Dimakis (2019): GeoCert, search through regions.
    Tjeng, Xiao, Tedrake (2019): mixed-integer programs.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> certificates = rm.certify(net, [[1.0, 0.5]], [0], p=2, box=None)
    >>> certificates.lower.round(6), certificates.exact
    (array([0.8]), array([ True]))
    >>> rm.certify(net, [[1.0, 0.5]], [0], p=2, box=None, eps=0.5).status
    array(['robust'], dtype='<U11')
    """
    X = check.check_inputs(net, X, device=False).astype(np.float64)
    net = net.astype(np.float64)
    check.check_classes(net)
    p = check.check_p(p)
    limits = check.check_box(box, X, own=True)
    units = _scaling.check_scale(scale, net)
    method = check.check_choice("method", method, tuple(METHODS))
    chosen = check_method(method, p)
    options = check_options([method], {"max_seconds": max_seconds, "max_regions": max_regions})
    labels = (
        _examples.classes(net, X)
        if y is None
        else check.check_labels(y, len(X), net.n_classes, device=False)
    )
    radii = None if eps is None else check_radii(eps, len(X))
    goal = None if radii is None else np.nextafter(radii, np.inf)
    folder = None
    if certificate is not None:
        folder = CertificateFolder(certificate, net, method, radii, units)
        options["proofs"] = folder.proofs
    if chosen.batched:
        first = slice(0, 1)
        warn_if_slow(
            lambda: run_method(
                chosen, net, X[first], labels[first], p, limits,
                None if goal is None else goal[first], options,
            ),
            method, len(X),
        )  # fmt: skip
    parts, seconds = [], []
    disable = None if progress is None else not progress
    size = BLOCK if chosen.batched else 1
    with tqdm(total=len(X), desc=f"certify, {method}", unit="point", disable=disable) as bar:
        for start in range(0, len(X), size):
            rows = slice(start, start + size)
            begin = time.perf_counter()
            part = run_method(
                chosen, net, X[rows], labels[rows], p, _boxes.take(limits, X, rows),
                None if goal is None else goal[rows], options, scale=units,
            )  # fmt: skip
            n = len(part.lower)
            seconds += n * [(time.perf_counter() - begin) / n]
            parts.append(part)
            if folder is not None:
                folder.write(start, X, labels, p, limits)
            bar.update(n)
    if folder is not None:
        folder.warn()
    found = Bounds(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return Certificates(
        found.lower, found.upper, is_exact(found.lower, found.upper), found.adversarial, p, method,
        radii, np.array(seconds),
    )  # fmt: skip


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
        if method.guided:
            if known is None and not (method.attacks and goal is not None):
                limit, begin = options.get("max_seconds"), time.monotonic()
                known = _attacked(net, X, y, p, box, np.inf if limit is None else begin + limit)
                if limit is not None:
                    arguments["max_seconds"] = max(0.0, limit - (time.monotonic() - begin))
            if known is not None:
                arguments["upper"], arguments["adversarial"] = known
        return method.load()(net, X, y, p, box, **arguments)


def _attacked(net, X, y, p, box, deadline):
    """Distances (n,) and adversarial examples (n, *input_shape) that are known before a search.

    They are the projections of `region_bounds` where these are minimal, else those of the attack.
    """
    found = region.region_bounds(net, X, y, p, box)
    upper, adversarial = found.upper.copy(), found.adversarial.copy()
    some = ~is_exact(found.lower, upper)
    if some.any():
        Z, distances = _minimal_attack.minimal_attack(
            net, X[some], y[some], p, box, STEPS, RESTARTS, np.random.default_rng(0), deadline
        )
        nearer = np.flatnonzero(some)[distances < upper[some]]
        keep = distances < upper[some]
        upper[nearer], adversarial[nearer] = distances[keep], Z[keep]
    return upper, adversarial


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
