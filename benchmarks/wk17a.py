"""The robust error of a network trained by others, exactly: all 10,000 test points of MNIST.

The network is that of Wong & Kolter (2017), ``wk17a.npz`` in ``$REFMMR_MODELS``; the attacker has
l_inf and eps = 0.1.  Published are its test error, 1.89 %, the errors that PGD finds, 4.11 %, the
authors' own bound, 5.82 %, and the exact robust error, 4.38 %, by mixed-integer programs and a
commercial solver (Tjeng, Xiao, Tedrake 2019).

Here each bound alone comes first: Fast-Lin, which is the authors' bound, without and with the box
of the images, and CROWN.  Then PGD, CROWN and branch and bound (``method="bab"``) settle one point
after the other.  The records of a run are in ``out/wk17a``: after an interruption the same command
goes on from there.  Written are ``results/wk17a.csv``, a line a point, and the summary
``results/wk17a.json`` and ``.md``.

Needs ``REFMMR_DATA`` and ``REFMMR_MODELS``.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import _command
import numpy as np
from _machine import machine
from _markdown import in_words, percent, table, write
from _records import pgd_error, seconds, times_table

import refmmr as rm
from refmmr import _files

RESULTS = Path(__file__).parent / "results"
EPS = 0.1
PUBLISHED = {
    "test error": 1.89,
    "PGD": 4.11,
    "their own bound": 5.82,
    "exact robust error": 4.38,
}
BOUNDS = {
    "Fast-Lin (KW), no box": ("fast-lin", None),
    "Fast-Lin (KW), within the box": ("fast-lin", (0, 1)),
    "CROWN, within the box": ("crown", (0, 1)),
}
METHODS = ("attack", "crown", "bab")


def main() -> None:
    """Bounds, then the exact robust error."""
    asked = arguments()
    rm.set_backend(asked.backend)
    os.environ["REFMMR_BACKEND"] = asked.backend
    net = network(Path(os.environ["REFMMR_MODELS"], "wk17a.npz"))
    data = rm.datasets.load("mnist", images=True, dtype=np.float64)
    X, y = data.X_test[: asked.n], data.y_test[: asked.n]
    folder = asked.out
    report: dict = {"points": len(X), "eps": EPS, "bounds": {}}
    for name, (method, box) in BOUNDS.items():
        began = time.perf_counter()
        found = rm.robust_error(
            net, X, y, np.inf, eps=EPS, box=box, methods=(method,), n_jobs=asked.jobs,
            out=folder / f"{method}-{'free' if box is None else 'box'}",
        )  # fmt: skip
        report["bounds"][name] = found.upper_bound
        print(f"{name}: {100 * found.upper_bound:.2f} % ({time.perf_counter() - began:.0f} s)")
    found = rm.robust_error(
        net, X, y, np.inf, eps=EPS, methods=METHODS, restarts=asked.restarts,
        max_seconds=asked.max_seconds, n_jobs=asked.jobs, out=folder / "exact",
    )  # fmt: skip
    report |= {
        "test_error": found.test_error,
        "lower_bound": found.lower_bound,
        "upper_bound": found.upper_bound,
        "undecided": int((~found.attacked & ~found.certified).sum()),
        "pgd": pgd_error(found.records),
        "settled": {name: row._asdict() for name, row in found.settled.items()},
        "seconds": seconds(found.records),
        "machine": machine(),
    }
    write_points(asked.results / "wk17a.csv", found.records)
    write(asked.results / "wk17a", report, markdown(report))
    print(found.table())
    print(markdown(report))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = _command.parser(__doc__)
    parser.add_argument("--n", type=int, help="only the first points")
    parser.add_argument("--restarts", type=int, default=1, help="of PGD")
    parser.add_argument(
        "--max-seconds", type=float, default=600.0, help="a point, for branch and bound"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--out", type=Path, default=Path("out/wk17a"), help="records")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def network(path: Path) -> rm.Network:
    """The network, from arrays named as in a PyTorch state dict."""
    with np.load(path) as file:
        layers = {i: (file[f"{i}.weight"], file[f"{i}.bias"]) for i in (0, 2, 5, 7)}
    return rm.Network(
        [
            *(rm.Conv2d(*layers[i], stride=2, padding=1) for i in (0, 2)),
            rm.Flatten(),
            *(rm.Linear(*layers[i]) for i in (5, 7)),
        ],
        (1, 28, 28),
    )


def write_points(path: Path, records: list[dict]) -> None:
    """A line for each point."""
    lines = ["point,class,misclassified,attacked,certified,settled_by,lower,upper,seconds"]
    for row in records:
        told = [row["point"], row["class"]]
        told += [int(row[name]) for name in ("misclassified", "attacked", "certified")]
        told += [row["settled_by"] or "undecided", f"{row['lower']:.6g}", f"{row['upper']:.6g}"]
        told.append(f"{sum(row['seconds'].values()):.4f}")
        lines.append(",".join(map(str, told)))
    _files.write_text(path, "\n".join(lines) + "\n")


def markdown(report: dict) -> str:
    """The summary as a page."""
    lines = [
        "# The exact robust error of a network trained by others",
        "",
        f"MNIST, {report['points']} test points, l_inf, eps = {report['eps']}.  The network is "
        "that of Wong & Kolter (2017).",
        "",
        *compared(report),
        "",
        *table(
            ["bound alone", "robust error, at most"],
            ([name, f"{100 * bound:.2f} %"] for name, bound in report["bounds"].items()),
        ),
        "",
        *times_table(report["seconds"]),
        "",
        f"{report['undecided']} points are undecided.  {in_words(report['machine'])}.",
        "",
    ]
    return "\n".join(lines)


def compared(report: dict) -> list[str]:
    """Lines of a table: published figures beside those of a report."""
    here = {
        "test error": percent(report["test_error"]),
        "PGD": percent(report["pgd"]),
        "their own bound": percent(report["bounds"]["Fast-Lin (KW), no box"]),
        "exact robust error": percent(report["lower_bound"], report["upper_bound"]),
    }
    return table(
        ["", "published", "here"],
        ([name, f"{value:.2f} %", here[name]] for name, value in PUBLISHED.items()),
    )


if __name__ == "__main__":
    main()
