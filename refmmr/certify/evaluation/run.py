"""One evaluation: the methods run on blocks of points, and each point gets a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from refmmr import _examples
from refmmr.certify._estimate import warn_if_slow
from refmmr.certify.api import Certificates
from refmmr.certify.evaluation import records, workers
from refmmr.certify.evaluation.results import ATTACK, settled
from refmmr.certify.evaluation.stages import Block, Problem, improve
from refmmr.certify.methods import is_exact

__all__ = ["Run", "without_example"]

FIELDS: dict[str, tuple[type, ...]] = {
    "class": (int,),
    "misclassified": (bool,),
    "exact": (bool,),
    "settled_by": (str, type(None)),
    "seconds": (dict,),
}
"""What else the record of a point has than its number and bounds, and of which types."""

BLOCK = 32
"""Number of points of a block.  It is fixed, so that neither the number of workers nor the points
already done change the last digit of a matrix product."""


def without_example(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a point, without its adversarial example."""
    return {name: value for name, value in record.items() if name != "adversarial"}


class Run:
    """The points of an evaluation: their records, and the blocks of those that have none yet.

    Parameters
    ----------
    problem : Problem
    names : tuple of str
        The methods, in their order.
    X, y : ndarray
        Checked points and classes.
    radii : ndarray, shape (n, E), or None
        Radii of each point, increasing along E; None for minimal perturbations.
    keep_adversarial : bool
        Whether records on disk keep adversarial examples.
    """

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

    def records_in(self, out: Any, rng: Any, eps: Any) -> Any:
        """A context with the writer of records to `out`; an empty context if `out` is None.

        Points that the file has already are taken over.  `eps` is the radius, a list of radii, an
        array with one for each point, or None.
        """
        if out is None:
            return nullcontext()
        problem = self.problem
        arrays: dict[str, Any] = {
            "X": self.X,
            "y": self.y,
            "box": None if problem.box is None else np.stack(problem.box),
        }
        if problem.scale is not None:
            arrays["scale"] = problem.scale
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
        # With rng=None the seed that the first run drew holds for all that continue from it.
        self.problem = problem._replace(seed=writer.header["random_seed"])
        try:
            for record in writer.done:
                self._check(record, writer.path)
                self.take(record)
        except BaseException:
            writer.close()
            raise
        return writer

    def _check(self, record: Mapping[str, Any], path: Path) -> None:
        """Raise a ValueError for a record on disk that cannot be one of a point of this run."""
        point, shape = record["point"], self.X.shape[1:]
        example = record.get("adversarial")
        wrong = [
            f"{name} {record.get(name, 'missing')!r}"
            for name, types in FIELDS.items()
            if type(record.get(name, ...)) not in types
        ]
        if point >= len(self.X):
            wrong.append(f"one of {len(self.X)} points")
        if example is not None and example.shape != shape:
            wrong.append(f"an example of shape {example.shape}, not {shape}")
        if wrong:
            raise ValueError(
                f"out: expected the records of an evaluation in {path}, got that of point {point} "
                f"with {', '.join(wrong)}; remove its line, or name another file"
            )

    def take(self, record: dict[str, Any]) -> None:
        """Add the record of a point that is done."""
        i = record["point"]
        self.records[i] = without_example(record)
        if record.get("adversarial") is not None:
            self.adversarial[i] = record["adversarial"]
        elif record["misclassified"]:
            self.adversarial[i] = self.X[i]

    def warn_if_slow(self, jobs: int) -> None:
        """Warn where the first method will take long with the backend in use."""
        name = self.names[0]
        if name == ATTACK or not self.problem.methods[name].batched:
            return
        one = np.array([next(i for i in range(len(self.X)) if i not in self.records)])
        block = self._block(one)._replace(names=(name,))
        left = len(self.X) - len(self.records)
        warn_if_slow(lambda: improve(self.problem, block), name, left, max(1, jobs))

    def improve(self, work: workers.RunTasks) -> Iterator[dict[str, Any]]:
        """Run the methods; yields the record of each point as soon as it is done."""
        # Batched methods take fixed blocks of points; the others one point at a time.
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
                undecided = []
                for row in range(len(block.points)):
                    if block.points[row] in self.records:
                        continue
                    if last or block.settled_by[row]:
                        record = self._record(block, row)
                        self.take(record)
                        yield record
                    else:
                        undecided.append(row)
                waiting += [_rows(block, np.array(undecided))] if undecided else []

    def _blocks(self) -> list[Block]:
        """Whole blocks with a point that is not done: another size could change the last digit."""
        blocks = []
        for start in range(0, len(self.X), BLOCK):
            points = np.arange(start, min(start + BLOCK, len(self.X)))
            if all(int(i) in self.records for i in points):
                continue
            blocks.append(self._block(points))
        return blocks

    def _block(self, points: np.ndarray) -> Block:
        """The state of points before any method."""
        X, y = self.X[points], self.y[points]
        wrong = _examples.misclassified(self.problem.net, X, y)
        return Block(
            (), points, X, y, None if self.radii is None else self.radii[points],
            np.zeros(len(points)), np.where(wrong, 0, np.inf),
            np.where(wrong.reshape(-1, *[1] * (X.ndim - 1)), X, np.nan),
            np.where(wrong, "misclassified", "").astype(object), {},
        )  # fmt: skip

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
            "exact": bool(is_exact(block.lower[row], block.upper[row])),
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

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The records of all points, in their order."""
        return [self.records[i] for i in range(len(self.X))]

    @property
    def lower(self) -> np.ndarray:
        """Lower bounds of all points, shape (n,)."""
        return np.array([row["lower"] for row in self.rows])

    @property
    def upper(self) -> np.ndarray:
        """Upper bounds of all points, shape (n,)."""
        return np.array([row["upper"] for row in self.rows])

    def decisions(self) -> tuple[np.ndarray, np.ndarray]:
        """Which points are certified, and which attacked, at each radius; shape (n, E) each."""
        return self.lower[:, None] > self.radii, self.upper[:, None] <= self.radii

    def summary(self) -> dict[str, Any]:
        """The fields of `results.Result`, by name."""
        lower, upper = self.lower, self.upper
        misclassified = np.array([row["misclassified"] for row in self.rows])
        one_radius = self.radii is not None and self.radii.shape[1] == 1
        certificates = Certificates(
            lower, upper, is_exact(lower, upper), self.adversarial, self.problem.p,
            "+".join(self.names),
            self.radii[:, 0] if self.radii is not None and one_radius else None,
            np.array([sum(row["seconds"].values()) for row in self.rows]),
        )  # fmt: skip
        return {
            "test_error": float(misclassified.mean()),
            "misclassified": misclassified,
            "certificates": certificates,
            "p": self.problem.p,
            "methods": self.names,
            "settled": settled(self.rows, self.names, lower, upper, self.radii),
            "records": self.rows,
        }


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
    """The same points in the order of their numbers, in blocks of another size."""
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
