"""Results of evaluations: robust errors, robustness curves, minimal perturbations; LaTeX tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from refmmr._optional import require
from refmmr.certify.api import Certificates
from refmmr.certify.methods import METHODS

__all__ = [
    "MinimalPerturbations",
    "Result",
    "RobustError",
    "RobustnessCurve",
    "Settled",
    "latex_table",
    "settled",
]

ATTACK = "attack"
"""The name of the attack among the methods."""

Rows = list[tuple[str, ...]]
"""A table of text: in each row, the name of a number and its values."""


class Settled(NamedTuple):
    """The points that a method decided, and the time that it took."""

    points: int  # that it decided
    robust: int  # of those, proved robust (at the largest radius of a curve)
    attacked: int  # of those, with an adversarial example
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result:
    """The fields and methods that all three kinds of results share."""

    test_error: float
    misclassified: np.ndarray
    certificates: Certificates
    p: float
    methods: tuple[str, ...]
    settled: Mapping[str, Settled]
    records: list[dict[str, Any]] = field(repr=False)

    decides: ClassVar[bool] = False  # whether each point is robust at one radius

    def __len__(self) -> int:
        return len(self.misclassified)

    @property
    def exact_share(self) -> float:
        """Share of points that are classified right and whose minimal perturbation is known."""
        return float((self.certificates.exact & ~self.misclassified).mean())

    def to_frame(self) -> Any:
        """The records as a pandas DataFrame, one row per point."""
        pandas = require("pandas", "to_frame")
        return pandas.DataFrame(self.records).set_index("point")

    def to_latex(self) -> str:
        """The numbers as a LaTeX ``tabular`` (with the package booktabs)."""
        return latex(self.rows())

    def rows(self) -> Rows:
        """The numbers with their names, as text."""
        raise NotImplementedError

    def head(self) -> str:
        """Number of points, norm and radii, in a line."""
        raise NotImplementedError

    def table(self) -> str:
        """The numbers as text, in percent, and the points that each method decided."""
        lines = [self.head(), *_aligned(self.rows())]
        one = self.decides
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

    def _repr_html_(self) -> str:
        from refmmr.display import html

        return html.result(self)


def _aligned(rows: Rows) -> list[str]:
    width = max(len(name) for name, *_ in rows)
    return [f"{name:<{width}}" + "".join(f"  {cell:>9}" for cell in cells) for name, *cells in rows]


@dataclass(frozen=True, kw_only=True, repr=False)
class RobustError(Result):
    """Test error and bounds on the robust test error, as shares between 0 and 1.

    Returned by `robust_error`.

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
        The best bounds that the methods found for each point.  Methods that only decide whether a
        point is robust at eps end with a lower bound just above eps, and each method runs only on
        the points that earlier methods left undecided.
    p : {1, 2, inf}
    eps : float or ndarray, shape (n,)
    methods : tuple of str
    settled : mapping of str to Settled
        For each method (and "misclassified"): the number of points that it decided, how many of
        them are robust or attacked, and its time.
    records : list of dict
        One per point.
    """

    lower_bound: float
    upper_bound: float
    attacked: np.ndarray
    certified: np.ndarray
    eps: float | np.ndarray

    decides: ClassVar[bool] = True

    def to_latex(self, name: str = "") -> str:
        """TE, LB and UB in percent as a row of a LaTeX table, as in the paper's (with booktabs).

        Parameters
        ----------
        name : str
            Name of the row.

        See Also
        --------
        refmmr.certify.latex_table : one table of several networks.
        """
        return latex_table({name: self})

    def head(self) -> str:
        """Number of points, norm and radii, in a line."""
        return f"{len(self)} points, l_{self.p}, eps = {_eps_text(self.eps)}"

    def rows(self) -> Rows:
        """The numbers with their names, as text."""
        finders = [name for name in self.methods if name == ATTACK or METHODS[name].finds]
        proofs = [name for name in self.methods if name != ATTACK]
        rows: Rows = [
            ("test error", f"{100 * self.test_error:.2f} %"),
            _bound("lower", finders, self.lower_bound),
            _bound("upper", proofs, self.upper_bound),
        ]
        if "region" in self.methods and not set(self.methods) - {"region", ATTACK}:
            # These methods compute radii, and not only a decision at eps.
            rows += [
                ("mean certified radius", f"{self.certificates.lower.mean():.4f}"),
                ("exact minimal perturbation", f"{100 * self.exact_share:.1f} %"),
            ]
        return rows

    __repr__ = Result.__repr__


def _bound(side: str, names: list[str], share: float) -> tuple[str, str]:
    by = f" ({', '.join(names)})" if names else ""
    return f"robust error, {side} bound{by}", f"{100 * share:.2f} %"


def _eps_text(eps: float | np.ndarray) -> str:
    if isinstance(eps, np.ndarray):
        return f"{eps.min():g} to {eps.max():g}, one a point"
    return f"{eps:g}"


@dataclass(frozen=True, kw_only=True, repr=False)
class RobustnessCurve(Result):
    """Bounds on the robust accuracy at several radii.

    Returned by `robustness_curve`.

    Attributes
    ----------
    radii : list of float
        Increasing.
    certified, attacked : ndarray of bool, shape (n, len(radii))
        Which points are certified, and which attacked, at each radius; `attacked` includes the
        misclassified ones.
    certified_accuracy, attacked_accuracy : ndarray, shape (len(radii),)
        Share of points that are proved robust, and share without a known adversarial example: the
        true robust accuracy is between the two.  Both fall as the radius grows.
    test_error, misclassified, certificates, p, methods, settled, records
        As in `RobustError`.
    """

    radii: list[float]
    certified: np.ndarray
    attacked: np.ndarray

    @property
    def certified_accuracy(self) -> np.ndarray:
        """Share of points proved robust at each radius."""
        return self.certified.mean(axis=0)

    @property
    def attacked_accuracy(self) -> np.ndarray:
        """Share of points without a known adversarial example at each radius."""
        return (~self.attacked).mean(axis=0)

    def plot(self, ax: Any = None) -> Any:
        """Draw the curve, see `refmmr.display.figures.robustness_curve`."""
        from refmmr.display import figures

        return figures.robustness_curve(self, ax)

    def head(self) -> str:
        """Number of points, norm and radii, in a line."""
        return f"{len(self)} points, l_{self.p}, test error {100 * self.test_error:.2f} %"

    def to_latex(self) -> str:
        """The curve as a LaTeX ``tabular`` (with the package booktabs), a row for each radius."""
        return latex(self.rows(), head=True)

    def rows(self) -> Rows:
        """Radii and the robust accuracies at them, as text."""
        bounds = zip(self.radii, self.certified_accuracy, self.attacked_accuracy, strict=True)
        shares = ((f"eps = {e:g}", f"{100 * c:.2f} %", f"{100 * a:.2f} %") for e, c, a in bounds)
        return [("robust accuracy", "at least", "at most"), *shares]

    __repr__ = Result.__repr__


@dataclass(frozen=True, kw_only=True, repr=False)
class MinimalPerturbations(Result):
    """Bounds on the minimal perturbation of each point.

    Returned by `minimal_perturbations`.

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

    def head(self) -> str:
        """Number of points, norm and radii, in a line."""
        return f"{len(self)} points, l_{self.p}, minimal perturbations"

    def rows(self) -> Rows:
        """The numbers with their names, as text."""
        none = int(np.isinf(self.upper).sum())
        rows: Rows = [
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

    __repr__ = Result.__repr__


def latex_table(results: Mapping[str, RobustError]) -> str:
    r"""Test error and bounds of several networks as a LaTeX table, as the paper's Table 1.

    Parameters
    ----------
    results : mapping of str to RobustError
        By the name of the row.

    Returns
    -------
    str
        A ``tabular`` in the style of the package booktabs, in percent.

    Raises
    ------
    TypeError, ValueError
        If `results` is not a mapping to `RobustError`, or is empty.

    References
    ----------
    Croce, Andriushchenko, Hein (2019), Table 1.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network([rm.Linear([[3, 4]], [0]), rm.Linear([[1], [0]], [0, 1])], 2)
    >>> result = rm.robust_error(net, [[1.0, 0.5], [0.4, 0.1]], [0, 0], p=2, eps=0.15)
    >>> print(rm.latex_table({"plain": result}))
    \begin{tabular}{lrrr}
    ...
    plain & 0.00 & 50.00 & 50.00 \\
    ...
    """
    if not isinstance(results, Mapping) or not results:
        raise ValueError(f"results: expected a mapping of names to RobustError, got {results!r}")
    for name, result in results.items():
        if not isinstance(result, RobustError):
            raise TypeError(
                f"results[{name!r}]: expected a RobustError, got {type(result).__name__}"
            )
    head = ("", "TE", "LB", "UB")
    shares = (
        (name, *(f"{100 * share:.2f}" for share in (r.test_error, r.lower_bound, r.upper_bound)))
        for name, r in results.items()
    )
    return latex([head, *shares], head=True)


def latex(rows: Rows, head: bool = False) -> str:
    """A ``tabular`` with rules of booktabs; the first column is aligned left, the others right."""
    lines = [_latex_row(row) for row in rows]
    if head:
        lines.insert(1, r"\midrule")
    columns = "l" + "r" * (len(rows[0]) - 1)
    start = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    return "\n".join([*start, *lines, r"\bottomrule", r"\end{tabular}"])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_latex_text(cell) for cell in cells) + r" \\"


def _latex_text(text: str) -> str:
    """Text with the special characters of LaTeX escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def settled(
    rows: list[dict[str, Any]],
    names: tuple[str, ...],
    lower: np.ndarray,
    upper: np.ndarray,
    radii: np.ndarray | None,
) -> dict[str, Settled]:
    """The points that each method decided, from the records."""
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
