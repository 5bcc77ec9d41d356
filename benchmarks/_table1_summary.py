"""The figures of a card, from the points of its network."""

from __future__ import annotations

from typing import Any

import numpy as np
from _records import is_open, pgd_error
from _table1_files import METHODS, STAGES, Records

import refmmr as rm

CURVE = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Radii of the attacks for the robustness curve, as multiples of eps."""
RADII = ("region", "crown", "universal")
"""Radii that a method proves; "universal" is that of `refmmr.certify_universal`."""


def summary(records: Records, preset: rm.Preset) -> dict[str, Any]:
    """The figures of a card: shares of all points, radii, seconds of work."""
    rows = [row for _, row in sorted(records.items())]
    measured = [row for row in rows if "region" in row]
    searched = _searched(measured)
    tried = _tried(rows)
    return {
        **shares(rows),
        "test_error": float(np.mean([row["misclassified"] for row in rows])),
        "pgd": pgd_error(rows),
        "kw": float(np.mean([not row["kw"] for row in rows])),
        "exact": shares(tried) if tried else None,
        "max_seconds": max(row["limit"] for row in rows),
        "settled": settled(rows),
        "seconds": {name: sum(row.get(f"{name}_s", 0) for row in rows) for name in STAGES},
        "radii": radii_summary(measured, preset) if measured else None,
        "minimal": minimal_summary(searched) if searched else None,
    }


def union_summary(parts: dict[str, Records], presets: dict[str, rm.Preset]) -> dict[str, Any]:
    """The figures of a network in several norms, and for an attacker who may choose among them.

    The points of the latter are those that are evaluated in all norms: attacked where they are in
    one, certified where they are in all.
    """
    common = sorted(set.intersection(*map(set, parts.values())))
    rows = [
        {
            "certified": all(records[i]["certified"] for records in parts.values()),
            "attacked": any(records[i]["attacked"] for records in parts.values()),
        }
        for i in common
    ]
    norms = {
        name: {"p": str(presets[name].p), "eps": presets[name].eps}
        | summary(records, presets[name])
        for name, records in parts.items()
    }
    return {**shares(rows), "norms": norms}


def shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Bounds of the robust error of some points, and how many are open."""
    return {
        "points": len(rows),
        "lower_bound": float(np.mean([row["attacked"] for row in rows])),
        "upper_bound": float(np.mean([not row["certified"] for row in rows])),
        "open": sum(is_open(row) for row in rows),
    }


def settled(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many points each method decided, and in which direction branch and bound did."""
    counts = {
        name: sum(row["settled_by"] == name for row in rows)
        for name in ("misclassified", "kw", *METHODS)
    }
    attacked = sum(row["settled_by"] == "bab" and row["attacked"] for row in rows)
    return counts | {"bab_attacked": attacked}


def _tried(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first points, up to one that is open and that branch and bound has not tried."""
    waiting = (i for i, row in enumerate(rows) if is_open(row) and not row["limit"])
    return rows[: next(waiting, len(rows))]


def _searched(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first points, up to one whose minimal perturbation has not been looked for."""
    waiting = (
        i
        for i, row in enumerate(rows)
        if not (row["misclassified"] or row["region_exact"] or "minimal" in row)
    )
    first = rows[: next(waiting, len(rows))]
    return first if any("minimal" in row for row in first) else []


def radii_summary(rows: list[dict[str, Any]], preset: rm.Preset) -> dict[str, Any]:
    """Certified radii, and shares of points that are certified and not attacked at some radii."""
    lower, upper = certified_radii(rows, preset), np.array([row["attack"] for row in rows])
    grid = curve_radii(preset)
    return {
        "points": len(rows),
        "known_by_region": float(np.mean([row["region_exact"] for row in rows])),
        **{
            name: {"mean": float(np.mean(values)), "median": float(np.median(values))}
            for name, values in (
                *((name, [row[name] for row in rows]) for name in RADII if name in rows[0]),
                ("best", lower),
            )
        },
        "curve": {
            "radii": grid,
            "certified_accuracy": [float((lower > radius).mean()) for radius in grid],
            "attacked_accuracy": [float((upper > radius).mean()) for radius in grid],
        },
    }


def minimal_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of points, classified right, whose minimal perturbation is known, by what found it.

    The region comes first; where it is not enough a search, then branch and bound is tried.
    """
    found = {"region": float(np.mean([row["region_exact"] for row in rows]))} | {
        name: float(np.mean([row.get("minimal_by") == name for row in rows]))
        for name in ("search", "bab")
    }
    return {
        "points": len(rows),
        "max_seconds": max(row.get("minimal_limit", 0) for row in rows),
        "misclassified": float(np.mean([row["misclassified"] for row in rows])),
        **found,
        "known": sum(found.values()),
    }


def curve_radii(preset: rm.Preset) -> list[float]:
    """The radii of the robustness curve."""
    assert preset.eps is not None
    return [round(multiple * preset.eps, 9) for multiple in CURVE]


def certified_radii(rows: list[dict[str, Any]], preset: rm.Preset) -> np.ndarray:
    """The largest radius that is proved for each point; 0 where it is misclassified."""
    return np.array([proved_radius(row, preset) for row in rows])


def proved_radius(row: dict[str, Any], preset: rm.Preset) -> float:
    """The largest radius within the box that a method proves; 0 if none does."""
    # A point is certified where the ball of radius eps is, with its sphere.
    at_eps = np.nextafter(preset.eps, np.inf) * row["certified"]
    return float(max(row.get("region", 0), row.get("crown", 0), row.get("minimal", 0), at_eps))


def text(found: dict[str, Any]) -> str:
    """The figures in a line; those of several norms together, and of each."""
    if "norms" in found:
        either = f"{100 * found['lower_bound']:.2f} to {100 * found['upper_bound']:.2f} %"
        parts = [f"p = {part['p']}: {text(part)}" for part in found["norms"].values()]
        return "; ".join([f"{found['points']} points, robust error in all norms {either}", *parts])
    said = {name: f"{100 * found[name]:.2f}" for name in ("lower_bound", "upper_bound", "kw")}
    return (
        f"{found['points']} points, robust error {said['lower_bound']} to "
        f"{said['upper_bound']} %, {found['open']} open; KW {said['kw']} %; "
        f"{sum(found['seconds'].values()):.0f} s"
    )
