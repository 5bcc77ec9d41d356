"""`output_bounds`: intervals of the logits on balls, and local Lipschitz constants."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _boxes, _kernels
from refmmr import _validate as check
from refmmr.certify._output_search import tighten
from refmmr.certify.methods import check_radii
from refmmr.network import Network
from refmmr.reference.lipschitz import lipschitz_constants
from refmmr.reference.relaxation import METHODS

__all__ = ["OutputBounds", "output_bounds"]

NUMBERS = 2**22
"""Numbers in the widest array of a block of points, 32 MB."""


@dataclass(frozen=True)
class OutputBounds:
    """Intervals of the logits on balls.  Returned by `output_bounds`.

    Attributes
    ----------
    lower, upper : ndarray, shape (n, K)
        ``lower <= f(z) <= upper`` for all z of the ball and the box, in real arithmetic.
    lipschitz : ndarray, shape (n, K)
        ``|f_k(z) - f_k(z')| <= lipschitz * ||z - z'||_p`` for all z, z' of the ball and the box.
    reached_lower, reached_upper : ndarray, shape (n, K)
        Of "bab": the smallest and largest values that points of the ball were found to have, in
        floats; NaN for other methods.
    p : {1, 2, inf}
    eps : ndarray, shape (n,)
    method : str
    """

    lower: np.ndarray
    upper: np.ndarray
    lipschitz: np.ndarray
    reached_lower: np.ndarray
    reached_upper: np.ndarray
    p: float
    eps: np.ndarray
    method: str

    def __len__(self) -> int:
        return len(self.lower)

    def __repr__(self) -> str:
        width = float((self.upper - self.lower).mean())
        return (
            f"OutputBounds({len(self)} points, l_{self.p}, {self.method}: mean width {width:.4g})"
        )


def output_bounds(
    net: Network,
    X: ArrayLike,
    eps: ArrayLike,
    p: float | str = 2,
    box: Any = (0, 1),
    method: str = "crown",
    *,
    max_seconds: float | None = None,
) -> OutputBounds:
    """Bound the logits, and how fast they change, on the balls ``||z - x||_p <= eps`` in the box.

    It is for outputs of any kind: logits, or the numbers that a regression predicts.

    Parameters
    ----------
    net : Network
        Its weights are taken as exact real numbers; the computation is in float64.
    X : array_like, shape (n, *input_shape)
    eps : float or array_like, shape (n,)
        Radius, one for all points or one for each.
    p : {1, 2, inf}
        The norm; "l1", "l2" and "linf" are understood too.
    box : (lo, hi) or None
        ``lo <= z <= hi``, numbers or arrays of the shape of an input, or of X for a box of each
        point; where lo = hi, nothing changes.  None for the whole space.
    method : {"crown", "fast-lin", "ibp", "bab"}
        Of the bounds, see `refmmr.certify`.  "bab" begins with those of "crown" and splits until
        they are within 1e-4 of their first width of values that are reached (l_2: mostly 10%).
    max_seconds : float, optional
        Time limit for each point of "bab"; then the bounds proved by then are returned.

    Returns
    -------
    OutputBounds
        ``.lower``, ``.upper``, ``.lipschitz``, shape (n, K); of "bab" ``.reached_lower`` and
        ``.reached_upper``.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes, NaN, infinite values, points outside the box, an unknown norm or method,
        eps that is not positive.

    References
    ----------
    Zhang et al. (2018): CROWN.  Weng et al. (2018): Fast-Lip, Lipschitz constants of this kind.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> found = rm.output_bounds(net, [[1.0, 0.5]], 0.1, p=2, box=None)
    >>> found.lower.round(6), found.upper.round(6), found.lipschitz.round(6)
    (array([[4.5, 1. ]]), array([[5.5, 1. ]]), array([[5., 0.]]))
    """
    X = check.check_inputs(net, X, device=False).astype(np.float64)
    net = net.astype(np.float64)
    p = check.check_p(p)
    limits = check.check_box(box, X, own=True)
    radii = check_radii(eps, len(X))
    method = check.check_choice("method", method, (*METHODS, "bab"))
    if max_seconds is not None:
        if method != "bab":
            raise ValueError(f"max_seconds: expected None, as {method!r} takes none of it")
        max_seconds = check.check_number("max_seconds", max_seconds)
    cheap = "crown" if method == "bab" else method
    widest = net.n_classes * max(int(np.prod(shape)) for shape in net.shapes)
    size = max(1, NUMBERS // widest)
    parts = []
    # Overflow ends in infinite bounds, never in wrong ones.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(X), size):
            rows = slice(start, start + size)
            *hidden, (lower, upper) = _kernels.layer_bounds(
                net, X[rows], p, radii[rows], _boxes.take(limits, X, rows), cheap
            )
            n = len(lower)
            constants = np.broadcast_to(lipschitz_constants(net, hidden, p), (n, net.n_classes))
            parts.append((lower.reshape(n, -1), upper.reshape(n, -1), constants))
    lower, upper, lipschitz = (np.concatenate(part) for part in zip(*parts, strict=True))
    lower = np.where(np.isnan(lower), -np.inf, lower)
    upper = np.where(np.isnan(upper), np.inf, upper)
    reached = np.full((2, *lower.shape), np.nan)
    if method == "bab" and net.unit_shapes:
        for some, own in _boxes.shared(limits, X):
            for i in some.tolist():
                deadline = np.inf if max_seconds is None else time.monotonic() + max_seconds
                if np.isfinite(lower[i]).all() and np.isfinite(upper[i]).all():
                    ends = tighten(net, X[i], p, float(radii[i]), own, lower[i], upper[i], deadline)
                    lower[i], upper[i], reached[0, i], reached[1, i] = ends
    return OutputBounds(lower, upper, lipschitz, reached[0], reached[1], p, radii, method)
