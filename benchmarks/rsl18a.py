"""The robust error of rsl18a, open since 2018: all 10,000 test points of MNIST.

The network (784-500-10) is that of Raghunathan, Steinhardt, Liang (2018), ``rsl18a.npz`` in
``$REFMMR_MODELS``; the attacker has l_inf and eps = 0.1.  Published are its test error, 4.18 %, and
a robust error between 14.36 and 30.81 %, by mixed-integer programs and a commercial solver with 120
seconds a point (Tjeng, Xiao, Tedrake 2019).

CROWN, PGD and branch and bound settle one point after the other.  Points that a time limit leaves
open are tried again with the next one.  The records of a pass are in ``out/rsl18a``: after an
interruption the same command goes on from there.  After each pass ``results/rsl18a.csv``, a line a
point, and the summary ``results/rsl18a.json`` and ``.md`` are written.

Needs ``REFMMR_DATA`` and ``REFMMR_MODELS``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from _machine import machine
from wk17a import RESULTS, pgd_error, seconds, times_table, write_points, write_summary

import refmmr as rm

EPS = 0.1
PUBLISHED = {"test error": "4.18 %", "robust error": "14.36 to 30.81 %"}
METHODS = ("crown", "attack", "bab")
LIMITS = (10.0, 60.0, 600.0)
"""Seconds a point, one pass after the other."""


def main() -> None:
    """Passes over the points that are still open."""
    asked = arguments()
    rm.set_backend(asked.backend)
    os.environ["REFMMR_BACKEND"] = asked.backend
    net = network(Path(os.environ["REFMMR_MODELS"], "rsl18a.npz"))
    data = rm.datasets.load("mnist", dtype=np.float64)
    X, y = data.X_test[: asked.n].reshape(-1, 784), data.y_test[: asked.n]
    records: list[dict] = []
    for limit in asked.limits:
        open_ = [i for i, row in enumerate(records) if is_open(row)] if records else range(len(X))
        if not len(open_):
            break
        found = rm.robust_error(
            net, X[open_], y[open_], np.inf, eps=EPS, methods=METHODS, max_seconds=limit,
            n_jobs=asked.jobs, out=asked.out / f"{limit:g}s",
        )  # fmt: skip
        if not records:
            records = list(found.records)
        for i, row in zip(open_, found.records, strict=True):
            records[i] = {**row, "point": i}
        report = summary(records, limit)
        write_points(asked.results / "rsl18a.csv", records)
        write_summary(asked.results / "rsl18a", report, markdown(report))
        print(markdown(report))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, help="only the first points")
    parser.add_argument("--limits", type=float, nargs="+", default=LIMITS, help="s a point")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--out", type=Path, default=Path("out/rsl18a"), help="records")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def network(path: Path) -> rm.Network:
    """The network, from arrays named as in a PyTorch state dict."""
    with np.load(path) as file:
        layers = [rm.Linear(file[f"{i}.weight"], file[f"{i}.bias"]) for i in (0, 2)]
    return rm.Network(layers, 784)


def is_open(row: dict) -> bool:
    """Whether a point is neither certified nor attacked."""
    return not (row["attacked"] or row["certified"])


def summary(records: list[dict], limit: float) -> dict:
    """The figures of all points so far."""
    n = len(records)
    attacked = sum(row["attacked"] for row in records)
    certified = sum(row["certified"] for row in records)
    return {
        "points": n,
        "eps": EPS,
        "test_error": sum(row["misclassified"] for row in records) / n,
        "pgd": pgd_error(records),
        "lower_bound": attacked / n,
        "upper_bound": 1 - certified / n,
        "open": [row["point"] for row in records if is_open(row)],
        "limit": limit,
        "seconds": seconds(records),
        "machine": machine(),
    }


def markdown(report: dict) -> str:
    """The summary as a page."""
    ends = [f"{100 * report[name]:.2f} %" for name in ("lower_bound", "upper_bound")]
    here = {
        "test error": f"{100 * report['test_error']:.2f} %",
        "robust error": " to ".join(dict.fromkeys(ends)),
    }
    left = report["open"]
    rest = f"{len(left)} points are open" + (f": {', '.join(map(str, left))}" if left else "")
    about = ", ".join(f"{key} {value}" for key, value in report["machine"].items())
    lines = [
        "# The robust error of rsl18a, open since 2018",
        "",
        f"MNIST, {report['points']} test points, l_inf, eps = {report['eps']}, 784-500-10.  The "
        "network is that of Raghunathan, Steinhardt, Liang (2018).",
        "",
        "| | published | here |",
        "| --- | --- | --- |",
        *(f"| {name} | {value} | {here[name]} |" for name, value in PUBLISHED.items()),
        f"| PGD alone | | {100 * report['pgd']:.2f} % |",
        "",
        *times_table(report["seconds"]),
        "",
        f"{rest}, after {report['limit']:g} s each.  {about}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
