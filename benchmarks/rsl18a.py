"""The robust error of rsl18a, open since 2018: all 10,000 test points of MNIST.

The network (784-500-10) is that of Raghunathan, Steinhardt, Liang (2018), ``rsl18a.npz`` in
``$REFMMR_MODELS``; the attacker has l_inf and eps = 0.1.  Published are its test error, 4.18 %, and
a robust error between 14.36 and 30.81 %, by mixed-integer programs and a commercial solver with 120
seconds a point (Tjeng, Xiao, Tedrake 2019).

CROWN, PGD and branch and bound settle one point after the other.  Points that a time limit leaves
open are tried again with the next one, those first on which the least time was spent.
``results/rsl18a.csv`` has a line for each point so far, and is read first: points that it decides
are done.  The records of a pass are in ``out/rsl18a``, so the same command goes on after an
interruption.

``--proofs N`` writes certificates of N points that branch and bound has certified, evenly spread,
to ``out/rsl18a/proofs``, and proves them again (``results/rsl18a_proofs.md``).

Needs ``REFMMR_DATA`` and ``REFMMR_MODELS``.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from pathlib import Path

import _command
import numpy as np
from _machine import machine
from _markdown import in_words, percent, table, write
from _records import is_open, pgd_error, seconds, times_table

import refmmr as rm
from refmmr import _files

EPS = 0.1
PUBLISHED = {"test error": "4.18 %", "robust error": "14.36 to 30.81 %"}
METHODS = ("crown", "attack", "bab")
COUNTS = ("point", "class", "misclassified", "attacked", "certified")
RESULTS = Path(__file__).parent / "results"
LIMITS = (3.0, 30.0, 300.0)
"""Seconds a point, one pass after the other."""


def main() -> None:
    """Passes over the points that are still open."""
    asked = arguments()
    rm.set_backend(asked.backend)
    os.environ["REFMMR_BACKEND"] = asked.backend
    net = network(Path(os.environ["REFMMR_MODELS"], "rsl18a.npz"))
    data = rm.datasets.load("mnist", dtype=np.float64)
    X, y = data.X_test[: asked.n].reshape(-1, 784), data.y_test[: asked.n]
    path = asked.results / "rsl18a.csv"
    records = read_points(path)
    if asked.proofs:
        prove(net, X, y, records, asked)
        return
    for limit in asked.limits:
        open_ = [i for i in range(len(X)) if i not in records or is_open(records[i])]
        open_.sort(key=lambda i: spent(records[i]) if i in records else 0.0)
        for part in range(0, len(open_), asked.part):
            some = open_[part : part + asked.part]
            found = rm.robust_error(
                net, X[some], y[some], np.inf, eps=EPS, methods=METHODS, max_seconds=limit,
                n_jobs=asked.jobs, out=asked.out / f"{limit:g}s-{some[0]}-{len(some)}",
            )  # fmt: skip
            for i, row in zip(some, found.records, strict=True):
                records[i] = {**row, "point": i}
            report = summary(records, len(X))
            write_points(path, records)
            write(asked.results / "rsl18a", report, markdown(report))
        print(markdown(summary(records, len(X))))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = _command.parser(__doc__)
    parser.add_argument("--n", type=int, help="only the first points")
    parser.add_argument("--part", type=int, default=500, help="points between two results")
    parser.add_argument("--limits", type=float, nargs="+", default=LIMITS, help="s a point")
    parser.add_argument("--proofs", type=int, metavar="N", help="check N certificates instead")
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


def prove(net: rm.Network, X: np.ndarray, y: np.ndarray, records: dict, asked) -> None:
    """Write certificates of some points, and prove them again."""
    certified = [
        i for i, row in sorted(records.items())
        if i < len(X) and row["certified"] and row["settled_by"] == "bab"
    ]  # fmt: skip
    chosen = np.linspace(0, len(certified) - 1, min(asked.proofs, len(certified))).astype(int)
    rows = []
    for i in [certified[j] for j in chosen]:
        folder = asked.out / "proofs" / str(i)
        found = rm.certify(
            net, X[i : i + 1], y[i : i + 1], np.inf, method="bab", eps=EPS, certificate=folder,
            max_seconds=asked.limits[-1],
        )  # fmt: skip
        begin = time.perf_counter()
        (checked,) = rm.check_certificate(net, folder)
        assert (checked.x == X[i]).all()
        assert (checked.y, checked.p, checked.eps) == (y[i], np.inf, EPS)
        rows.append(
            {
                "point": i,
                "proved": checked.proved,
                "nodes": checked.nodes,
                "kilobytes": round(checked.path.stat().st_size / 1000, 1),
                "written_s": round(float(found.seconds[0]), 1),
                "checked_s": round(time.perf_counter() - begin, 1),
            }
        )
        report = {"points": rows, "machine": machine()}
        write(asked.results / "rsl18a_proofs", report, proofs_page(report))
        print(rows[-1], flush=True)


def proofs_page(report: dict) -> str:
    """The checks of certificates as a page."""
    rows = report["points"]
    lines = [
        "# Proofs of rsl18a, checked again",
        "",
        f"{sum(row['proved'] for row in rows)} of {len(rows)} certificates are proved again by "
        "`refmmr.reference.proof`, in NumPy on one core.  Seconds to write one include the search.",
        "",
        *table([name.replace("_s", ", s") for name in rows[0]], (row.values() for row in rows)),
        "",
        f"{in_words(report['machine'])}.",
        "",
    ]
    return "\n".join(lines)


def read_points(path: Path) -> dict[int, dict]:
    """The results so far, by point."""
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {int(line["point"]): _row(line) for line in csv.DictReader(file)}


def _row(line: dict[str, str]) -> dict:
    row: dict = {name: int(line[name]) for name in COUNTS}
    row |= {"settled_by": line["settled_by"], "lower": float(line["lower"])}
    row["upper"] = float(line["upper"])
    row["seconds"] = {name: float(line[name]) for name in METHODS if line[name]}
    return row


def write_points(path: Path, records: dict[int, dict]) -> None:
    """A line for each point."""
    lines = [",".join([*COUNTS, "settled_by", "lower", "upper", *METHODS])]
    for _, row in sorted(records.items()):
        told = [str(int(row[name])) for name in COUNTS]
        told += [row["settled_by"] or "", f"{row['lower']:.6g}", f"{row['upper']:.6g}"]
        times = (row["seconds"].get(name) for name in METHODS)
        lines.append(",".join(told + ["" if time is None else f"{time:.4f}" for time in times]))
    _files.write_text(path, "\n".join(lines) + "\n")


def spent(row: dict) -> float:
    """Seconds of the last branch and bound on a point."""
    return row["seconds"].get("bab", 0.0)


def summary(records: dict[int, dict], n: int) -> dict:
    """The figures of n points; those without a record are open."""
    rows = list(records.values())
    attacked = sum(row["attacked"] for row in rows)
    certified = sum(row["certified"] for row in rows)
    tried = [spent(row) for row in rows if is_open(row)]
    return {
        "points": n,
        "eps": EPS,
        "test_error": sum(row["misclassified"] for row in rows) / n,
        "pgd": pgd_error(rows) * len(rows) / n,
        "lower_bound": attacked / n,
        "upper_bound": 1 - certified / n,
        "open": n - attacked - certified,
        "not_tried": n - len(rows),
        "open_after": [min(tried, default=0.0), max(tried, default=0.0)],
        "seconds": seconds(rows),
        "machine": machine(),
    }


def markdown(report: dict) -> str:
    """The summary as a page."""
    least, most = report["open_after"]
    rest = (
        f"{report['open']} points are open: branch and bound stopped at them after {least:.0f} to "
        f"{most:.0f} s"
    )
    if report["not_tried"]:
        rest += f"; {report['not_tried']} of them have not been tried yet"
    lines = [
        "# The robust error of rsl18a, open since 2018",
        "",
        f"MNIST, {report['points']} test points, l_inf, eps = {report['eps']}, 784-500-10.  The "
        "network is that of Raghunathan, Steinhardt, Liang (2018).",
        "",
        *compared(report),
        "",
        *times_table(report["seconds"]),
        "",
        f"{rest}.  {in_words(report['machine'])}.",
        "",
    ]
    return "\n".join(lines)


def compared(report: dict) -> list[str]:
    """Lines of a table: published figures beside those of a report."""
    here = {
        "test error": percent(report["test_error"]),
        "robust error": percent(report["lower_bound"], report["upper_bound"]),
    }
    rows = [[name, value, here[name]] for name, value in PUBLISHED.items()]
    return table(["", "published", "here"], [*rows, ["PGD alone", "", percent(report["pgd"])]])


if __name__ == "__main__":
    main()
