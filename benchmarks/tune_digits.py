"""How the settings of ``refmmr demo`` were chosen: a grid on a part of the training set.

The test set is not touched.  The setting whose linear regions alone certify the most points of the
validation split wins; of equal ones, that with the larger mean certified radius.  The exact robust
error stands beside it: differences of one per cent, three points, say little.  Writes
``tune_digits.json`` and ``.md``.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import _command
from _machine import machine
from _markdown import in_words, table, write
from sklearn.model_selection import train_test_split

import refmmr as rm
from refmmr import demo

LAMBDAS, GAMMAS = (0.5, 1.0, 2.0, 4.0), (0.4, 0.5, 0.6, 0.8)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train the grid, write the table."""
    _command.parser(__doc__).parse_args()
    data = rm.datasets.load("digits")
    X, X_val, y, y_val = train_test_split(
        data.X_train, data.y_train, test_size=0.2, random_state=0, stratify=data.y_train
    )
    rows = []
    for scheme, lam, gamma in itertools.product(("mmr", "mmr+at"), LAMBDAS, GAMMAS):
        settings = {**demo.TRAINING, "lam": lam, "gamma": gamma}
        net, _ = rm.fit(rm.Network.mlp(demo.SIZES, rng=demo.SEED), X, y, scheme, **settings)
        result = rm.robust_error(net, X_val, y_val, p=demo.P, eps=demo.EPS)
        region = rm.certify(net, X_val, y_val, p=demo.P)
        rows.append(
            {
                "scheme": scheme,
                "lam": lam,
                "gamma": gamma,
                "error": result.test_error,
                "lower": result.lower_bound,
                "upper": result.upper_bound,
                "not_certified_by_region": float((region.lower <= demo.EPS).mean()),
                "radius": float(region.lower.mean()),
            }
        )
        print(rows[-1], flush=True)
    rows.sort(key=lambda row: (row["scheme"], row["not_certified_by_region"], -row["radius"]))
    report = {"points": len(X_val), "machine": machine(), "rows": rows}
    write(RESULTS / "tune_digits", report, markdown(report))


def markdown(report: dict) -> str:
    """The grid as a table, the best of each scheme first."""
    head = ["scheme", "lambda", "gamma", "error %", "robust error", "not certified by region %"]
    head += ["mean radius by region"]
    rows = [
        [
            row["scheme"],
            row["lam"],
            row["gamma"],
            f"{100 * row['error']:.1f}",
            demo.interval(row["lower"], row["upper"]),
            f"{100 * row['not_certified_by_region']:.1f}",
            f"{row['radius']:.3f}",
        ]
        for row in report["rows"]
    ]
    what = f"Validation split of digits, {report['points']} points, l_{demo.P}, eps {demo.EPS}."
    where = in_words(report["machine"])
    return "\n".join([what, "", *table(head, rows), "", where + ".", ""])


if __name__ == "__main__":
    main()
