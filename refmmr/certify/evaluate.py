"""`robust_error`: the row of the paper's table, test error and bounds on the robust test error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from refmmr import _validate as check
from refmmr.attacks import pgd
from refmmr.certify import region
from refmmr.certify.api import Certificates, certify
from refmmr.network import Network

__all__ = ["RobustError", "robust_error"]


@dataclass(frozen=True)
class RobustError:
    """Test error and bounds on the robust test error, as shares between 0 and 1.

    Attributes
    ----------
    test_error : float
        Share of misclassified points (TE).
    lower_bound : float
        Share of points with a known adversarial example within eps (LB).
    upper_bound : float
        Share of points not proved robust at eps (UB).
    misclassified, attacked, certified : ndarray of bool, shape (n,)
        Point by point: `attacked` includes the misclassified ones.
    certificates : Certificates
        The certified radii behind it.
    p : {1, 2, inf}
    eps : float
    """

    test_error: float
    lower_bound: float
    upper_bound: float
    misclassified: np.ndarray
    attacked: np.ndarray
    certified: np.ndarray
    certificates: Certificates
    p: float
    eps: float

    @property
    def exact_share(self) -> float:
        """Share of points that are classified right and whose minimal perturbation is known."""
        return float((self.certificates.exact & ~self.misclassified).mean())

    def table(self) -> str:
        """The figures as text, in percent."""
        radii = self.certificates
        rows = [
            ("test error", f"{100 * self.test_error:.2f} %"),
            ("robust error, lower bound (attack)", f"{100 * self.lower_bound:.2f} %"),
            ("robust error, upper bound (region)", f"{100 * self.upper_bound:.2f} %"),
            ("mean certified radius", f"{radii.lower.mean():.4f}"),
            ("exact minimal perturbation", f"{100 * self.exact_share:.1f} %"),
        ]
        width = max(len(name) for name, _ in rows)
        lines = [f"{len(radii)} points, l_{self.p}, eps = {self.eps:g}"]
        lines += [f"{name:<{width}}  {value:>9}" for name, value in rows]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def robust_error(
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float,
    *,
    eps: float,
    box: Any = (0, 1),
    pgd_steps: int = 40,
    restarts: int = 3,
    rng: int | np.random.Generator | None = 0,
    progress: bool | None = None,
) -> RobustError:
    """Test error, and lower and upper bound of the robust test error at eps.

    The lower bound counts adversarial examples: those that certification comes across, and PGD's on
    the other points without a certificate; each is within eps and misclassified in real arithmetic.
    The upper bound counts the points without a certificate at eps.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
    eps : float
        Radius of the attack, in units of the input.
    box : (lo, hi) or None
        Where the attacker must stay.
    pgd_steps, restarts : int
        Strength of the attack.
    rng : int, numpy.random.Generator or None
        Seed of the attack's random starts.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    RobustError
        ``.test_error``, ``.lower_bound``, ``.upper_bound``, ``.table()``.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, an unknown norm,
        eps that is not positive.

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
    X = check.check_inputs(net, X, device=False).astype(np.float64)
    y = check.check_labels(y, len(X), net.n_classes, device=False)
    eps = check.check_number("eps", eps)
    check.check_count("pgd_steps", pgd_steps, 1)
    check.check_count("restarts", restarts, 1)
    rng = check.check_rng(rng)
    certificates = certify(net, X, y, p, box, progress=progress)
    net = net.astype(np.float64)
    misclassified = net.predict(X) != y
    certified = certificates.lower > eps
    attacked = misclassified | (certificates.upper <= eps)
    # Only undecided points are worth an attack.
    open_points = np.flatnonzero(~attacked & ~certified)
    if len(open_points):
        # So that rounding carries no example beyond eps.
        slightly_less = eps * (1 - 1e-12)
        Z = pgd(net, X[open_points], y[open_points], p, eps=slightly_less, steps=pgd_steps,
                box=box, restarts=restarts, rng=rng)  # fmt: skip
        attacked[open_points] = region.within(X[open_points], Z, p, eps) & (
            region.surely_misclassified(net, Z, y[open_points])
        )
    return RobustError(
        test_error=float(misclassified.mean()),
        lower_bound=float(attacked.mean()),
        upper_bound=float((~certified).mean()),
        misclassified=misclassified,
        attacked=attacked,
        certified=certified,
        certificates=certificates,
        p=certificates.p,
        eps=eps,
    )
