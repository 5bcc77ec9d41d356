"""`certify_universal`: certified radii in every l_p norm, from those in l_1 and l_inf."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _examples
from refmmr import _validate as check
from refmmr.certify.bounds import region
from refmmr.network import Network
from refmmr.reference.universal import hull_radius, union_radius

__all__ = ["certify_universal"]


def certify_universal(
    net: Network, X: ArrayLike, y: ArrayLike | None, p: float | str = 2, box: Any = (0, 1)
) -> np.ndarray:
    """Certified radii in l_p, for any p from 1 to infinity, from the linear regions of points.

    The l_1 ball and the l_inf ball that fit into a point's linear region, within the decision
    boundaries of its affine map, lie in one convex set; so does their convex hull, and each l_p
    ball in that.

    Parameters
    ----------
    net : Network
        Its weights are taken as exact real numbers; the computation is in float64.
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,), or None
        True classes; points of another predicted class have radius 0.  None means the predicted
        classes.
    p : float or str
        The norm, any number from 1 to infinity, also as "inf" or "l3".
    box : (lo, hi) or None
        The attacker stays in ``lo <= z <= hi`` (all of X lies in it); None for the whole space.

    Returns
    -------
    ndarray, shape (n,)
        No point of the box that is nearer than this in l_p has another class.  Infinite where the
        whole box is certified.  Rounded down: it holds in real arithmetic.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, p below 1.

    See Also
    --------
    refmmr.certify : larger radii, for one of the norms 1, 2 and infinity.

    Notes
    -----
    Within a box there are two certificates, and the larger radius counts:

    - the hull of the balls that are certified in the *whole space*: what holds there holds in the
      box.  (The hull of balls that are certified in the box alone proves nothing: with ``x = 0``,
      ``e_1 = 1.5``, ``e_inf = 1`` and a box that ends at ``z_1 = 0.9``, the point ``(0.9, 1.05)``
      is in the box and in the hull of the two balls, but not in the hull of their parts in the
      box, and only this lies in the convex set.);
    - the union of the balls that are certified in the box: no hull, but larger balls.

    References
    ----------
    Croce, Hein (2020): Provable robustness against all adversarial l_p-perturbations for p >= 1.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> rm.certify_universal(net, [[1.0, 0.5]], [0], p=3, box=None).round(4)
    array([0.7163])
    """
    X = check.check_inputs(net, X, device=False).astype(np.float64)
    net = net.astype(np.float64)
    check.check_classes(net)
    p = _check_any_p(p)
    limits = check.check_box(box, X)
    labels = (
        _examples.classes(net, X)
        if y is None
        else check.check_labels(y, len(X), net.n_classes, device=False)
    )
    d = X[0].size
    e1, e_inf = _radii(net, X, labels, None)
    radius = hull_radius(e1, e_inf, p, d)
    if limits is None:
        return radius
    e1, e_inf = _radii(net, X, labels, limits)
    return np.maximum(radius, union_radius(e1, e_inf, p, d))


def _radii(net, X, y, box):
    """Certified radii in l_1 and in l_inf."""
    return [region.region_bounds(net, X, y, p, box).lower for p in (1, np.inf)]


def _check_any_p(p: Any) -> float:
    """A number from 1 to infinity, or a string such as "inf" or "l3"."""
    number = check.norm_number(p)
    if not number >= 1:
        raise ValueError(f"p: expected a number from 1 to infinity, got {p!r}")
    return number
