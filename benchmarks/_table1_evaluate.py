"""The evaluation of one network of the zoo: bounds on its robust error, and certified radii.

The points so far are in ``results/table1/ROW.csv.gz``, below a line with the checksum of their
network and the machine; the figures are on its card.  An evaluation goes on from there: points that
are missing are evaluated, those that a time limit left open are tried again with a longer one.
Cheap methods come first for all points: an evaluation that is stopped has the paper's figures, and
exact ones of the first points.  Minimal perturbations, which the paper's table does not need, come
last.  MMR-Universal is measured in three norms, with points of their own.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _machine import machine
from _records import is_open
from _table1_files import (
    METHODS,
    OUT,
    POINTS,
    Records,
    points_of,
    read_card,
    read_points,
    write_card,
    write_points,
)
from _table1_rows import measured_in
from _table1_summary import curve_radii, proved_radius, summary, text, union_summary

import refmmr as rm

CHEAP, EXACT = METHODS[:2], METHODS[2:]
"""Methods within the box: for all points at first, then for those that are open."""
MINIMAL = ("attack", "search", "bab")
"""For minimal perturbations that the region does not give; the attack is their upper bound."""
PART, MINIMAL_PART = 250, 20
"""Points between two results on disk: some minutes of work."""
RADII_POINTS = 1000
"""Points whose radii are measured: a median is known well enough, and ten thousand take an hour."""


class Limits(NamedTuple):
    """How much work the expensive methods may do."""

    seconds: float
    """Of branch and bound for a point at eps."""
    minimal_points: int
    """First points whose minimal perturbation is looked for, at most `RADII_POINTS`."""
    minimal_seconds: float
    """Of search, and of branch and bound, for the minimal perturbation of a point."""


class Task(NamedTuple):
    """A network, its points, a norm and a radius, and how much work they are worth."""

    name: str
    """That of the file of points."""
    sha256: str
    preset: rm.Preset
    net: rm.Network
    X: np.ndarray
    y: np.ndarray
    limits: Limits
    jobs: int


def evaluate(name: str, n: int | None, limits: Limits, jobs: int) -> None:
    """Evaluate the first n test points of a network, or those that are not done yet.

    Without n these are the paper's: all in l_2, otherwise 1000.
    """
    card = rm.zoo.card(name)  # an error with a way out, for a network that is not there
    sha256, preset = card.sha256, card.preset
    data = rm.datasets.load(preset.data, images=preset.network == "cnn", dtype=np.float64)
    if n is None and preset.p != 2:
        n = 1000
    given = (rm.zoo.load(name).astype(np.float64), data.X_test[:n], data.y_test[:n], limits, jobs)
    for wanted, work, part in (
        (_missing, bounds, PART),
        (_without_radii, radii, PART),
        (_open, exact, PART),
        (_unknown, minimal, MINIMAL_PART),
    ):
        for points, one in measured_in(name, preset).items():
            for _ in _continued(Task(points, sha256, one, *given), wanted, work, part):
                refresh(name)
                if found := read_card(name).get("evaluation"):
                    print(f"{name}: {text(found)}", flush=True)


def _continued(task: Task, wanted: Callable, work: Callable, part: int) -> Iterator[None]:
    """Do one kind of work on the points that want it, with a stop after each result on disk."""
    about = {"sha256": task.sha256, "machine": machine()}
    records = points_of(task.name, task.sha256)
    todo = [i for i in range(len(task.X)) if wanted(i, records, task.limits)]
    for start in range(0, len(todo), part):
        some = todo[start : start + part]
        for i, found in zip(some, _run(task, some, work), strict=True):
            records[i] = _joined(records.get(i, {"point": i}), found)
        check(records, task.preset)
        write_points(POINTS / f"{task.name}.csv.gz", about, records)
        yield


def refresh(name: str) -> None:
    """Put the figures of the points on a card, if there are any of its network in all norms."""
    card = read_card(name)
    presets = measured_in(name, rm.zoo.card(name).preset)
    parts = {points: points_of(points, card["sha256"]) for points in presets}
    if all(parts.values()):
        about, _ = read_points(POINTS / f"{next(iter(parts))}.csv.gz")
        if len(parts) == 1:
            found = summary(parts[name], presets[name])
        else:
            found = union_summary(parts, presets)
        write_card(card | {"evaluation": found | {"machine": about["machine"]}})


def _missing(i: int, records: Records, limits: Limits) -> bool:
    return i not in records


def _open(i: int, records: Records, limits: Limits) -> bool:
    """Whether a point is neither proved nor attacked, after less time for branch and bound."""
    return is_open(records[i]) and records[i]["limit"] < limits.seconds


def _without_radii(i: int, records: Records, limits: Limits) -> bool:
    return i < RADII_POINTS and "region" not in records[i]


def _unknown(i: int, records: Records, limits: Limits) -> bool:
    """Whether the minimal perturbation of a point is not known, after less time than this."""
    row = records[i]
    if i >= min(limits.minimal_points, RADII_POINTS):
        return False
    if row["misclassified"] or row["region_exact"] or row.get("minimal_by"):
        return False
    return row.get("minimal_limit", 0) < limits.minimal_seconds


def _run(task: Task, some: list[int], work: Callable) -> list[dict[str, Any]]:
    """What is found for some points; what is done is on disk, should it be interrupted."""
    mark = hashlib.sha256(repr((task.limits, some)).encode()).hexdigest()[:12]
    folder = OUT / f"{task.name}-{task.sha256[:12]}" / f"{work.__name__}-{mark}"
    found = work(task._replace(X=task.X[some], y=task.y[some]), folder)
    shutil.rmtree(folder)
    return found


def bounds(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Wong and Kolter without the box, as in the paper; then CROWN and PGD within the box.

    What is proved without the box holds in it: these points are settled.
    """
    net, X, y, p = task.net, task.X, task.y, task.preset.p
    same: dict[str, Any] = {"eps": task.preset.eps, "n_jobs": task.jobs}
    kw = rm.robust_error(net, X, y, p, box=None, methods=("kw",), out=folder / "kw", **same)
    found = [_decision(row) for row in kw.records]
    left = np.flatnonzero(~kw.certified)
    if len(left):
        box = rm.robust_error(net, X[left], y[left], p, methods=CHEAP, out=folder / "box", **same)
        for i, row in zip(left, box.records, strict=True):
            found[i] = _decision(row)
    return [
        {
            "class": row["class"],
            "misclassified": row["misclassified"],
            "kw": row["certified"],
            "limit": 0.0,
            **_seconds(row["seconds"], kw="kw"),
            **decided,
        }
        for row, decided in zip(kw.records, found, strict=True)
    ]


def exact(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Branch and bound within the box."""
    found = rm.robust_error(
        task.net, task.X, task.y, task.preset.p, eps=task.preset.eps, methods=EXACT,
        max_seconds=task.limits.seconds, n_jobs=task.jobs, out=folder,
    )  # fmt: skip
    return [{"limit": task.limits.seconds, **_decision(row)} for row in found.records]


def _decision(row: dict[str, Any]) -> dict[str, Any]:
    """What the pipeline says of a point, and its times."""
    return {
        "certified": row["certified"],
        "attacked": row["attacked"],
        "settled_by": row["settled_by"] or "",
        "attack": row["upper"],
        **_seconds(row["seconds"], **{name: name for name in METHODS}),
    }


def radii(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Radii that the region and CROWN prove within the box, and distances of attacks."""
    given = (task.net, task.X, task.y, task.preset.p)
    minimal = {
        name: rm.minimal_perturbations(
            *given, methods=(name,), out=folder / name, n_jobs=task.jobs
        ).records
        for name in ("region", "crown")
    }
    curve = rm.robustness_curve(
        *given, radii=curve_radii(task.preset), methods=("attack",), restarts=1,
        out=folder / "curve", n_jobs=task.jobs,
    ).records  # fmt: skip
    return [
        {
            "region": near["lower"],
            "region_exact": near["exact"] and not near["misclassified"],
            "crown": proved["lower"],
            "attack": min(near["upper"], attacked["upper"]),
            **_seconds(near["seconds"], region="region"),
            **_seconds(proved["seconds"], crown="radius"),
            **_seconds(attacked["seconds"], attack="curve"),
            **extra,
        }
        for near, proved, attacked, extra in zip(
            *minimal.values(), curve, universal_radii(task), strict=True
        )
    ]


def universal_radii(task: Task) -> list[dict[str, float]]:
    """For MMR-Universal the radii that follow from the regions' in l_1 and l_inf."""
    if task.preset.scheme != "mmr-universal":
        return [{}] * len(task.X)
    found = rm.certify_universal(task.net, task.X, task.y, task.preset.p)
    return [{"universal": float(radius)} for radius in found]


def minimal(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Minimal perturbations within the box by search, then by branch and bound."""
    seconds = task.limits.minimal_seconds
    found = rm.minimal_perturbations(
        task.net, task.X, task.y, task.preset.p, methods=MINIMAL, max_seconds=seconds,
        restarts=1, out=folder, n_jobs=task.jobs,
    ).records  # fmt: skip
    return [
        {
            "minimal": row["lower"],
            # Where the attack meets the lower bound of a search, the search has proved it.
            "minimal_by": (row["settled_by"] or "") if row["exact"] else "",
            "minimal_limit": seconds,
            "attack": row["upper"],
            "minimal_s": sum(row["seconds"].values()),
        }
        for row in found
    ]


def _seconds(spent: dict[str, float], **names: str) -> dict[str, float]:
    return {f"{name}_s": spent[method] for method, name in names.items() if method in spent}


def _joined(row: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """A record with what was found later: times add up, and the nearest example counts."""
    joined = row | found
    for name in found:
        if name.endswith("_s"):
            joined[name] = row.get(name, 0) + found[name]
    joined["attack"] = min(row.get("attack", np.inf), found["attack"])
    return joined


def check(records: Records, preset: rm.Preset) -> None:
    """Raise an error where a proof, by any method, contradicts an adversarial example."""
    for i, row in records.items():
        proved = proved_radius(row | {"certified": row["certified"] or row["kw"]}, preset)
        if row["attack"] < proved:
            raise ArithmeticError(f"point {i}: {proved} proved, an example at {row['attack']}")
