"""`certify`: bounds on the minimal adversarial perturbation of each point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from refmmr import _validate as check
from refmmr._backend import kernel
from refmmr.certify import region
from refmmr.network import Network

__all__ = ["METHODS", "Certificates", "certify"]

METHODS = ("region",)

EXACT = 1e-6
"""Bounds that agree to this relative tolerance are called exact."""

BLOCK = 128
"""Points between two steps of the progress bar."""

_region_bounds = kernel(region.region_bounds)


@dataclass(frozen=True)
class Certificates:
    """Bounds on the minimal adversarial perturbation of n points, in l_p, within the box.

    Attributes
    ----------
    lower : ndarray, shape (n,)
        Certified radius: no point of the box nearer than this has another class.  0 for points that
        are misclassified, infinite where the whole box has one class.  Rounded down: it holds in
        real arithmetic.
    upper : ndarray, shape (n,)
        Distance of the nearest adversarial example that was found; infinite where none was.
    exact : ndarray of bool, shape (n,)
        Whether the two agree, to a millionth: the minimal perturbation is known (0 where
        misclassified).
    adversarial : ndarray, shape (n, *input_shape)
        That adversarial example (the point itself where it is misclassified), float64; NaN where
        none was found.
    p : {1, 2, inf}
    method : str
    """

    lower: np.ndarray
    upper: np.ndarray
    exact: np.ndarray
    adversarial: np.ndarray
    p: float
    method: str

    def __len__(self) -> int:
        return len(self.lower)

    def __repr__(self) -> str:
        return (
            f"Certificates({len(self)} points, l_{self.p}, {self.method}: mean certified radius "
            f"{self.lower.mean():.4g}, exact for {100 * self.exact.mean():.1f}%)"
        )


def certify(
    net: Network,
    X: ArrayLike,
    y: ArrayLike | None,
    p: float,
    box: Any = (0, 1),
    method: str = "region",
    *,
    progress: bool | None = None,
) -> Certificates:
    """Certify points: how far must an attacker move each of them, at least and at most.

    Parameters
    ----------
    net : Network
        Its weights are taken as exact real numbers; the computation is in float64.
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,), or None
        True classes; points of another predicted class have radius 0.  None means the predicted
        classes.
    p : {1, 2, inf}
        The norm.
    box : (lo, hi) or None
        Where the attacker must stay (all of X lies in it); None for the whole space.
    method : {"region"}
        "region": the distances to the walls of the point's own linear region and to the decision
        boundaries of the affine map there.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    Certificates
        ``.lower``, ``.upper``, ``.exact``, ``.adversarial``.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, unknown norms or
        methods.

    References
    ----------
    Croce, Andriushchenko, Hein (2019): guarantees inside a linear region.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> certificates = rm.certify(net, [[1.0, 0.5]], [0], p=2, box=None)
    >>> certificates.lower.round(6), certificates.exact
    (array([0.8]), array([ True]))
    """
    X = check.check_inputs(net, X, device=False).astype(np.float64)
    net = net.astype(np.float64)
    check.check_classes(net)
    p = check.check_p(p)
    limits = check.check_box(box, X)
    check.check_choice("method", method, METHODS)
    labels = (
        net.predict(X) if y is None else check.check_labels(y, len(X), net.n_classes, device=False)
    )
    parts = []
    disable = None if progress is None else not progress
    with tqdm(total=len(X), desc=f"certify, {method}", unit="point", disable=disable) as bar:
        for start in range(0, len(X), BLOCK):
            rows = slice(start, start + BLOCK)
            parts.append(_region_bounds(net, X[rows], labels[rows], p, limits))
            bar.update(len(parts[-1].lower))
    bounds = region.Bounds(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    exact = bounds.upper <= bounds.lower * (1 + EXACT)
    return Certificates(bounds.lower, bounds.upper, exact, bounds.adversarial, p, method)
