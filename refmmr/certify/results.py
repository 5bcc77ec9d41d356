"""What `robust_error` returns: shares, curves, minimal perturbations, and who settled which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from refmmr.certify.api import METHODS, Certificates

__all__ = ["MinimalPerturbations", "RobustError", "RobustnessCurve", "Settled", "settled"]

ATTACK = "attack"
"""The name of the attack among the methods."""


class Settled(NamedTuple):
    """What a method was worth."""

    points: int  # that it settled
    robust: int  # of those, proved robust (at the largest eps of a curve)
    attacked: int  # of those, with an adversarial example
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What all three kinds of answers have in common."""

    test_error: float
    misclassified: np.ndarray
    certificates: Certificates
    p: float
    methods: tuple[str, ...]
    settled: Mapping[str, Settled]
    records: list[dict[str, Any]] = field(repr=False)

    _decides: ClassVar[bool] = False  # about one radius of each point

    def __len__(self) -> int:
        return len(self.misclassified)

    @property
    def exact_share(self) -> float:
        """Share of points that are classified right and whose minimal perturbation is known."""
        return float((self.certificates.exact & ~self.misclassified).mean())

    def to_frame(self) -> Any:
        """The records as a pandas DataFrame, one row a point."""
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame: needs the package pandas: pip install pandas") from error
        return pd.DataFrame(self.records).set_index("point")

    def _rows(self) -> list[tuple[str, str]]:
        raise NotImplementedError

    def _head(self) -> str:
        raise NotImplementedError

    def table(self) -> str:
        """The figures as text, in percent, and what each method settled."""
        lines = [self._head(), *_aligned(self._rows())]
        one = self._decides
        head = f"{'settled by':<14}{'points':>8}"
        lines += ["", head + (f"{'robust':>8}{'attacked':>10}" if one else "") + f"{'seconds':>10}"]
        for name, (points, robust, attacked, seconds) in self.settled.items():
            counts = f"{robust:>8}{attacked:>10}" if one else ""
            lines.append(f"{name:<14}{points:>8}{counts}{seconds:>10.2f}")
        left = len(self) - sum(row.points for row in self.settled.values())
        lines.append(f"{'undecided':<14}{left:>8}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return self.table()


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value:>9}" for name, value in rows]


@dataclass(frozen=True, kw_only=True, repr=False)
class RobustError(_Result):
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
        The bounds behind it: of each point the best that the methods found.  Methods that decide
        about eps alone leave radii of just eps, and a method sees only points that those before it
        left open.
    p : {1, 2, inf}
    eps : float or ndarray, shape (n,)
    methods : tuple of str
    settled : mapping of str to Settled
        For each method (and "misclassified"): the points that it settled, how many of them are
        robust or attacked, and its time.
    records : list of dict
        One a point.
    """

    lower_bound: float
    upper_bound: float
    attacked: np.ndarray
    certified: np.ndarray
    eps: float | np.ndarray

    _decides: ClassVar[bool] = True

    def _head(self) -> str:
        return f"{len(self)} points, l_{self.p}, eps = {_eps_text(self.eps)}"

    def _rows(self) -> list[tuple[str, str]]:
        finders = [name for name in self.methods if name == ATTACK or METHODS[name].finds]
        proofs = [name for name in self.methods if name != ATTACK]
        rows = [
            ("test error", f"{100 * self.test_error:.2f} %"),
            _bound("lower", finders, self.lower_bound),
            _bound("upper", proofs, self.upper_bound),
        ]
        if "region" in self.methods and not set(self.methods) - {"region", ATTACK}:
            # Radii, and not only decisions.
            rows += [
                ("mean certified radius", f"{self.certificates.lower.mean():.4f}"),
                ("exact minimal perturbation", f"{100 * self.exact_share:.1f} %"),
            ]
        return rows

    __repr__ = _Result.__repr__


def _bound(side: str, names: list[str], share: float) -> tuple[str, str]:
    by = f" ({', '.join(names)})" if names else ""
    return f"robust error, {side} bound{by}", f"{100 * share:.2f} %"


def _eps_text(eps: float | np.ndarray) -> str:
    if isinstance(eps, np.ndarray):
        return f"{eps.min():g} to {eps.max():g}, one a point"
    return f"{eps:g}"


@dataclass(frozen=True, kw_only=True, repr=False)
class RobustnessCurve(_Result):
    """Bounds on the robust accuracy at several radii.

    Attributes
    ----------
    eps : list of float
        Increasing.
    certified, attacked : ndarray of bool, shape (n, len(eps))
        What is known of each point at each radius; `attacked` includes the misclassified ones.
    certified_accuracy, attacked_accuracy : ndarray, shape (len(eps),)
        Share of points that are proved robust, and that no attack got: the true robust accuracy is
        between the two.  Neither grows with eps.
    test_error, misclassified, certificates, p, methods, settled, records
        As in `RobustError`.
    """

    eps: list[float]
    certified: np.ndarray
    attacked: np.ndarray

    @property
    def certified_accuracy(self) -> np.ndarray:
        """Share of points proved robust at each eps."""
        return self.certified.mean(axis=0)

    @property
    def attacked_accuracy(self) -> np.ndarray:
        """Share of points without a known adversarial example at each eps."""
        return (~self.attacked).mean(axis=0)

    def plot(self, ax: Any = None) -> Any:
        """Draw the curve, see `refmmr.plot.robustness_curve`."""
        from refmmr import plot

        return plot.robustness_curve(self, ax)

    def _head(self) -> str:
        return f"{len(self)} points, l_{self.p}, test error {100 * self.test_error:.2f} %"

    def _rows(self) -> list[tuple[str, str]]:
        bounds = zip(self.eps, self.certified_accuracy, self.attacked_accuracy, strict=True)
        head = ("robust accuracy", "at least    at most")
        return [
            head,
            *((f"eps = {e:g}", f"{100 * c:.2f} %    {100 * a:.2f} %") for e, c, a in bounds),
        ]

    __repr__ = _Result.__repr__


@dataclass(frozen=True, kw_only=True, repr=False)
class MinimalPerturbations(_Result):
    """Bounds on the minimal perturbation of each point.

    Attributes
    ----------
    lower, upper : ndarray, shape (n,)
        The largest of the methods' lower bounds and the smallest of their upper bounds.
    exact_share : float
        Share of points that are classified right and whose minimal perturbation is known.
    test_error, misclassified, certificates, p, methods, settled, records
        As in `RobustError`.
    """

    @property
    def lower(self) -> np.ndarray:
        """Certified radii."""
        return self.certificates.lower

    @property
    def upper(self) -> np.ndarray:
        """Distances of adversarial examples."""
        return self.certificates.upper

    def _head(self) -> str:
        return f"{len(self)} points, l_{self.p}, minimal perturbations"

    def _rows(self) -> list[tuple[str, str]]:
        none = int(np.isinf(self.upper).sum())
        rows = [
            ("test error", f"{100 * self.test_error:.2f} %"),
            ("lower bound, mean", f"{self.lower.mean():.4f}"),
            ("lower bound, median", f"{np.median(self.lower):.4f}"),
            ("upper bound, mean", f"{self.upper.mean():.4f}"),
            ("upper bound, median", f"{np.median(self.upper):.4f}"),
            ("exact minimal perturbation", f"{100 * self.exact_share:.1f} %"),
        ]
        if none:
            rows.append(("no adversarial example known", f"{none}"))
        return rows

    __repr__ = _Result.__repr__


def settled(
    rows: list[dict[str, Any]],
    names: tuple[str, ...],
    lower: np.ndarray,
    upper: np.ndarray,
    radii: np.ndarray | None,
) -> dict[str, Settled]:
    """What each method settled, from the records."""
    by = np.array([row["settled_by"] or "" for row in rows])
    if radii is None:
        robust, attacked = np.zeros(len(rows), dtype=bool), np.isfinite(upper)
    else:
        robust, attacked = lower > radii[:, -1], upper <= radii[:, -1]
    table = {}
    for name in ("misclassified", *names):
        here = by == name
        seconds = sum(row["seconds"].get(name, 0) for row in rows)
        table[name] = Settled(
            int(here.sum()), int((here & robust).sum()), int((here & attacked).sum()), seconds
        )
    return table
