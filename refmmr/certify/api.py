"""`certify`: bounds on the minimal adversarial perturbation of each point."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from refmmr import _boxes, _examples, _scaling
from refmmr import _validate as check
from refmmr._optional import require
from refmmr.certify._estimate import warn_if_slow
from refmmr.certify.bounds import Bounds
from refmmr.certify.certificate_files import CertificateFolder
from refmmr.certify.methods import (
    METHODS,
    check_method,
    check_options,
    check_radii,
    is_exact,
    run_method,
)
from refmmr.network import Network

__all__ = ["Certificates", "certify"]

BLOCK = 128
"""Number of points that a batched method bounds at once, between two steps of the progress bar."""


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
