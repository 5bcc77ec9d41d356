"""Records of points, as `refmmr.robust_error` gives them: what the scripts count and show."""

from __future__ import annotations

from typing import Any

import numpy as np
from _markdown import table


def is_open(row: dict[str, Any]) -> bool:
    """Whether a point is neither proved nor attacked."""
    return not (row["certified"] or row["attacked"])


def pgd_error(records: list[dict]) -> float:
    """Share of points that are misclassified, or that PGD alone breaks."""
    return float(np.mean([row["settled_by"] in ("misclassified", "attack") for row in records]))


def seconds(records: list[dict]) -> dict[str, dict[str, float]]:
    """What each method took: all together, and for the slowest point."""
    spent: dict[str, list[float]] = {}
    for row in records:
        for method, time_ in row["seconds"].items():
            spent.setdefault(method, []).append(time_)
    return {
        method: {
            "points": len(times),
            "total": sum(times),
            "median": float(np.median(times)),
            "largest": max(times),
        }
        for method, times in spent.items()
    }


def times_table(spent: dict[str, dict[str, float]]) -> list[str]:
    """Lines of a table of `seconds`."""
    head = ["method, in this order", "points tried", "s in all", "median ms", "slowest point, s"]
    rows = (
        [
            method,
            row["points"],
            f"{row['total']:.0f}",
            f"{1e3 * row['median']:.1f}",
            f"{row['largest']:.2f}",
        ]
        for method, row in spent.items()
    )
    return table(head, rows)
