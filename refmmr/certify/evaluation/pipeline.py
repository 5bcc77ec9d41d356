"""`robust_error`: the row of the paper's table, test error and bounds on the robust test error.

Each point is a state: the best lower and upper bound on its minimal perturbation so far.  Methods
improve the states, cheap ones first, each only those that are still undecided.  A state knows the
answer for every radius: robust below its lower bound, attacked from its upper bound on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from refmmr import _validate as check
from refmmr.certify import api
from refmmr.certify.api import Certificates
from refmmr.certify.evaluation import records, workers
from refmmr.certify.evaluation.results import (
    ATTACK,
    MinimalPerturbations,
    RobustError,
    RobustnessCurve,
    settled,
)
from refmmr.certify.evaluation.stages import Block, Problem, improve
from refmmr.network import Network

__all__ = ["robust_error"]

DEFAULT = ("region", ATTACK, "crown")
"""Methods that take no more than a moment a point, in any norm."""
BLOCK = 32
"""Points that are treated at once.  Fixed, so that neither the number of workers nor what is done
already changes a product of matrices in its last digit."""


@overload
def robust_error(
    net: Network, X: ArrayLike, y: ArrayLike, p: float, *, eps: None, **options: Any
) -> MinimalPerturbations: ...
@overload
def robust_error(
    net: Network, X: ArrayLike, y: ArrayLike, p: float, *, eps: float | np.ndarray, **options: Any
) -> RobustError: ...
@overload
def robust_error(
    net: Network, X: ArrayLike, y: ArrayLike, p: float, *, eps: Sequence[float], **options: Any
) -> RobustnessCurve: ...
# The options are listed once, here.
def robust_error(  # type: ignore[misc]
    net: Network,
    X: ArrayLike,
    y: ArrayLike,
    p: float,
    *,
    eps: float | np.ndarray | Sequence[float] | None,
    box: Any = (0, 1),
    methods: Sequence[str] = DEFAULT,
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
) -> RobustError | RobustnessCurve | MinimalPerturbations:
    """Test error, and lower and upper bound of the robust test error at eps.

    Misclassified points are settled at once; then the methods run in the order given, each on the
    points that are still undecided.  The lower bound counts adversarial examples, each within eps
    and misclassified in real arithmetic.  The upper bound counts the points without a certificate.

    Parameters
    ----------
    net : Network
    X : array_like, shape (n, *input_shape)
    y : array_like of int, shape (n,)
        True classes.
    p : {1, 2, inf}
    eps : float, ndarray of shape (n,), list of float, or None
        Radius of the attack, in units of the input: one for all points; one for each point; a list
        for a curve over several radii; None for the minimal perturbations themselves.
    box : (lo, hi) or None
        Where the attacker must stay.
    methods : sequence of str
        "attack" and methods of `certify`, cheap to dear; add "search" or "mip" to settle what the
        cheap ones leave open.
    pgd_steps, restarts : int
        Strength of the attack at given radii, projected gradient descent.  Minimal perturbations
        are looked for by `refmmr.attacks.minimal_attack` instead.
    rng : int, numpy.random.Generator or None
        Seed of the attack's random starts, of which each point has its own: they depend neither on
        the other points nor on the number of workers.
    max_seconds, max_regions : optional
        Budget of "lp", "search" and "mip" for each question about a point.
    out : path-like, optional
        A folder, or a file ending in .jsonl, that gets one line a point as soon as the point is
        settled or all methods have tried.  The same call goes on from it after an interruption; a
        call with other arguments is refused.  See `refmmr.certify.evaluation.records`.
    keep_adversarial : bool
        Write adversarial examples into the records too (float64, base64).  Without it
        ``.certificates.adversarial`` is NaN for points that come from the file.
    n_jobs : int
        Worker processes, each of one thread; -1 is one per core.
    dask : str, optional
        Address of a Dask scheduler whose workers do it; "local" for a cluster on this machine.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    RobustError, RobustnessCurve or MinimalPerturbations
        For a number or an array, a list, and None.

    Raises
    ------
    ValueError, TypeError
        For wrong shapes or labels, NaN, infinite values, points outside the box, an unknown norm,
        eps that is not positive, unknown methods or those that do not support the norm, records of
        another computation in `out`.
    ImportError, OSError
        When Dask is not installed, or does not answer.
    KeyboardInterrupt
        On Ctrl-C.  What is in `out` stays; without it nothing is kept.

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
    >>> rm.robust_error(net, X, y, p=2, eps=[0.1, 0.2, 0.9]).certified_accuracy
    array([1. , 0.5, 0. ])
    """
    X = check.check_inputs(net, X, device=False).astype(np.float64)
    check.check_classes(net)
    if y is None:
        raise TypeError(f"y: expected {len(X)} true classes, got None")
    y = check.check_labels(y, len(X), net.n_classes, device=False)
    p = check.check_p(p)
    limits = check.check_box(box, X)
    net = net.astype(np.float64)
    radii, shown = _check_eps(eps, len(X))
    names = _check_methods(methods, p)
    options = api.check_options(
        list(names), {"max_seconds": max_seconds, "max_regions": max_regions}
    )
    pgd_steps = check.check_count("pgd_steps", pgd_steps, 1)
    restarts = check.check_count("restarts", restarts, 1)
    n_jobs = _check_jobs(n_jobs)
    if dask is not None and not isinstance(dask, str):
        raise TypeError(f'dask: expected None, "local" or an address, got {dask!r}')
    seed = int(check.check_rng(rng).integers(2**63))
    problem = Problem(
        net, p, limits, {name: api.METHODS[name] for name in names if name != ATTACK}, options,
        pgd_steps, restarts, seed,
    )  # fmt: skip
    run = _Run(problem, names, X, y, radii, keep_adversarial)
    disable = None if progress is None else not progress
    with (
        run.keep(out, rng, eps=shown) as writer,
        tqdm(total=len(X), desc="robust error", unit="point", disable=disable) as bar,
    ):
        bar.update(len(run.records))
        try:
            if len(run.records) < len(X):
                with workers.pool(n_jobs, dask) as work:
                    for record in run.go(work):
                        if writer is not None:
                            writer.write(record if keep_adversarial else _light(record))
                        bar.update(1)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(_stopped(run, writer)) from stop
    return run.result(shown)


def _stopped(run: _Run, writer: records.Writer | None) -> str:
    if writer is None:
        return "stopped; nothing is kept without out="
    return (
        f"{len(run.records)} of {len(run.X)} points are kept in {writer.path}; the same call goes "
        "on from there"
    )


def _light(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "adversarial"}


class _Run:
    """One evaluation: from arguments to records, and from records to the answer."""

    def __init__(
        self,
        problem: Problem,
        names: tuple[str, ...],
        X: np.ndarray,
        y: np.ndarray,
        radii: np.ndarray | None,
        keep_adversarial: bool,
    ) -> None:
        self.problem, self.names, self.X, self.y, self.radii = problem, names, X, y, radii
        self.keep_adversarial = keep_adversarial
        self.records: dict[int, dict[str, Any]] = {}
        self.adversarial = np.full(X.shape, np.nan)

    def keep(self, out: Any, rng: Any, eps: Any) -> Any:
        """The writer of the records, with those that are there already taken over."""
        if out is None:
            return _Nothing()
        problem = self.problem
        arrays: dict[str, Any] = {
            "X": self.X,
            "y": self.y,
            "box": None if problem.box is None else np.stack(problem.box),
        }
        values = {
            "p": problem.p,
            "methods": list(self.names),
            "options": dict(problem.options),
            "pgd_steps": problem.pgd_steps,
            "restarts": problem.restarts,
            "keep_adversarial": bool(self.keep_adversarial),
        }
        if isinstance(eps, np.ndarray):
            arrays["eps"] = eps
        else:
            values["eps"] = eps
        if rng is not None:
            values["seed"] = problem.seed
        marks = records.fingerprint(problem.net, arrays, values)
        writer = records.Writer(out, marks, {"points": len(self.X), "random_seed": problem.seed})
        # Without a seed of the caller's, the first run's draw holds for all that go on from it.
        self.problem = problem._replace(seed=writer.header["random_seed"])
        for record in writer.done:
            self.take(record)
        return writer

    def take(self, record: dict[str, Any]) -> None:
        """A point that is done."""
        i = record["point"]
        self.records[i] = _light(record)
        if record.get("adversarial") is not None:
            self.adversarial[i] = record["adversarial"]
        elif record["misclassified"]:
            self.adversarial[i] = self.X[i]

    def go(self, work: workers.Run) -> Iterator[dict[str, Any]]:
        """Run the methods; yields the record of each point as soon as it is done."""
        # Batched methods take fixed blocks of points; others one at a time.
        phases = [
            (batched, tuple(names))
            for batched, names in groupby(
                self.names, lambda name: name == ATTACK or self.problem.methods[name].batched
            )
        ]
        waiting = self._blocks()
        for number, (batched, names) in enumerate(phases):
            last = number == len(phases) - 1
            if number or not batched:
                todo = [self._not_done(block) for block in waiting]
                waiting = _regroup(todo, BLOCK if batched else 1)
            tasks = [block._replace(names=names) for block in waiting]
            waiting = []
            for block in work(improve, self.problem, tasks):
                still = []
                for row in range(len(block.points)):
                    if block.points[row] in self.records:
                        continue
                    if last or block.settled_by[row]:
                        record = self._record(block, row)
                        self.take(record)
                        yield record
                    else:
                        still.append(row)
                waiting += [_rows(block, np.array(still))] if still else []

    def _blocks(self) -> list[Block]:
        """All blocks with a point that is not done; whole ones, for the sake of the last digit."""
        blocks = []
        for start in range(0, len(self.X), BLOCK):
            points = np.arange(start, min(start + BLOCK, len(self.X)))
            if all(int(i) in self.records for i in points):
                continue
            X, y = self.X[points], self.y[points]
            wrong = self.problem.net.predict(X) != y
            blocks.append(
                Block(
                    (), points, X, y, None if self.radii is None else self.radii[points],
                    np.zeros(len(points)), np.where(wrong, 0, np.inf),
                    np.where(wrong.reshape(-1, *[1] * (X.ndim - 1)), X, np.nan),
                    np.where(wrong, "misclassified", "").astype(object), {},
                )
            )  # fmt: skip
        return blocks

    def _not_done(self, block: Block) -> Block:
        rows = [row for row, point in enumerate(block.points) if int(point) not in self.records]
        return _rows(block, np.array(rows, dtype=int))

    def _record(self, block: Block, row: int) -> dict[str, Any]:
        lower, upper = float(block.lower[row]), float(block.upper[row])
        wrong = block.settled_by[row] == "misclassified"
        record: dict[str, Any] = {
            "point": int(block.points[row]),
            "class": int(block.y[row]),
            "misclassified": wrong,
            "lower": lower,
            "upper": upper,
            "exact": bool(api.is_exact(block.lower[row], block.upper[row])),
        }
        if block.eps is not None:
            eps = block.eps[row].tolist()
            certified, attacked = [lower > e for e in eps], [upper <= e for e in eps]
            several = len(eps) > 1
            record["eps"] = eps if several else eps[0]
            record["certified"] = certified if several else certified[0]
            record["attacked"] = attacked if several else attacked[0]
        record["settled_by"] = block.settled_by[row] or None
        record["seconds"] = {
            name: float(seconds[row]) for name, seconds in block.seconds.items() if seconds[row]
        }
        if np.isfinite(upper) and not wrong:
            record["adversarial"] = block.adversarial[row]
        return record

    def result(self, eps: Any) -> RobustError | RobustnessCurve | MinimalPerturbations:
        """The answer, from the records of all points."""
        rows = [self.records[i] for i in range(len(self.X))]
        lower, upper = (np.array([row[side] for row in rows]) for side in ("lower", "upper"))
        misclassified = np.array([row["misclassified"] for row in rows])
        certificates = Certificates(
            lower, upper, api.is_exact(lower, upper), self.adversarial, self.problem.p,
            "+".join(self.names),
            self.radii[:, 0] if self.radii is not None and self.radii.shape[1] == 1 else None,
            np.array([sum(row["seconds"].values()) for row in rows]),
        )  # fmt: skip
        common: dict[str, Any] = {
            "test_error": float(misclassified.mean()),
            "misclassified": misclassified,
            "certificates": certificates,
            "p": self.problem.p,
            "methods": self.names,
            "settled": settled(rows, self.names, lower, upper, self.radii),
            "records": rows,
        }
        if self.radii is None:
            return MinimalPerturbations(**common)
        certified, attacked = lower[:, None] > self.radii, upper[:, None] <= self.radii
        if isinstance(eps, list):
            return RobustnessCurve(eps=eps, certified=certified, attacked=attacked, **common)
        return RobustError(
            lower_bound=float(attacked.mean()),
            upper_bound=float((~certified).mean()),
            attacked=attacked[:, 0],
            certified=certified[:, 0],
            eps=eps,
            **common,
        )


class _Nothing:
    """No writer."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def _rows(block: Block, rows: np.ndarray) -> Block:
    """Some points of a block."""
    arrays: dict[str, Any] = {
        name: value[rows]
        for name, value in block._asdict().items()
        if isinstance(value, np.ndarray)
    }
    seconds = {name: value[rows] for name, value in block.seconds.items()}
    return block._replace(**arrays, seconds=seconds)


def _regroup(blocks: list[Block], size: int) -> list[Block]:
    """The same points in the order of their numbers, in blocks of a size, whatever came first."""
    single = [_rows(block, np.array([row])) for block in blocks for row in range(len(block.points))]
    single.sort(key=lambda block: int(block.points[0]))
    if size == 1:
        return single
    grouped = []
    for start in range(0, len(single), size):
        parts = single[start : start + size]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name, value in parts[0]._asdict().items()
            if isinstance(value, np.ndarray)
        }
        used = {name for part in parts for name in part.seconds}
        seconds = {
            name: np.concatenate([part.seconds.get(name, np.zeros(1)) for part in parts])
            for name in used
        }
        grouped.append(parts[0]._replace(**arrays, seconds=seconds))
    return grouped


# ---- arguments


def _check_eps(eps: Any, n: int) -> tuple[np.ndarray | None, Any]:
    """Radii of each point, shape (n, E), and eps as the result shows it."""
    if eps is None:
        return None, None
    if isinstance(eps, np.ndarray) and eps.ndim:
        radii = api.check_radii(eps, n)
        return radii[:, None], radii
    if isinstance(eps, (list, tuple)):
        if not eps:
            raise ValueError(f"eps: expected at least one radius, got {eps!r}")
        values = sorted({check.check_number("eps", value) for value in eps})
        return np.tile(values, (n, 1)), values
    value = check.check_number("eps", eps)
    return np.full((n, 1), value), value


def _check_methods(methods: Any, p: float) -> tuple[str, ...]:
    names = check.check_sequence("methods", methods, "names of methods")
    if not names:
        raise ValueError("methods: expected at least one method, got none")
    for name in names:
        check.check_choice("methods", name, (ATTACK, *api.METHODS))
        if name != ATTACK:
            api.check_method(name, p, "methods")
    if len(set(names)) < len(names):
        raise ValueError(f"methods: expected each method once, got {names!r}")
    return tuple(names)


def _check_jobs(n_jobs: Any) -> int:
    if n_jobs == -1 and not isinstance(n_jobs, bool):
        return -1
    return check.check_count("n_jobs", n_jobs, 1, what=", or -1 for one per core")
