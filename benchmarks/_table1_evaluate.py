"""The evaluation of one network of the zoo: bounds on its robust error, and certified radii.

The points so far are in ``results/table1/ROW.csv.gz``, below a line with the checksum of their
network and the machine; the figures are on its card.  An evaluation goes on from there: points that
are missing are evaluated, those that a time limit left open are tried again with a longer one.
Cheap methods come first for all points: an evaluation that is stopped has the paper's figures, and
exact ones of the first points.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _machine import machine

import refmmr as rm
from refmmr import _files

ROOT = Path(__file__).parent.parent
ZOO, OUT = ROOT / "zoo", ROOT / "out" / "table1"
POINTS = ROOT / "benchmarks" / "results" / "table1"
CHEAP, EXACT = ("crown", "attack"), ("bab",)
"""Methods within the box: for all points at first, then for those that are open."""
METHODS = (*CHEAP, *EXACT)
PART = 250
"""Points between two results on disk: some minutes of branch and bound."""
RADII_POINTS = 1000
"""Points whose radii are measured: a median is known well enough, and ten thousand take an hour."""
CURVE = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0)
"""Radii of the attacks for the robustness curve, as multiples of eps."""
FLAGS = ("misclassified", "kw", "certified", "attacked", "region_exact")
NUMBERS = ("limit", "region", "crown", "attack")
STAGES = ("kw", *METHODS, "region", "radius", "curve")
"""What takes time; "radius" is the largest that CROWN proves, "curve" the attacks at `CURVE`."""
FIELDS = ("point", "class", *FLAGS, "settled_by", *NUMBERS, *(f"{name}_s" for name in STAGES))
Records = dict[int, dict[str, Any]]


class Task(NamedTuple):
    """A network, its points, and how much work they are worth."""

    row: str
    preset: rm.Preset
    net: rm.Network
    X: np.ndarray
    y: np.ndarray
    max_seconds: float
    jobs: int


def evaluate(row: str, n: int | None, max_seconds: float, jobs: int) -> None:
    """Evaluate the first n test points of a row, or those that are not done yet.

    Without n these are the paper's: 1000 in l_inf, all in l_2.
    """
    card = json.loads((ZOO / f"{row}.json").read_text())
    preset = rm.presets[row]
    data = rm.datasets.load(preset.data, images=preset.network == "cnn", dtype=np.float64)
    if n is None and preset.p == np.inf:
        n = 1000
    X, y = data.X_test[:n], data.y_test[:n]
    task = Task(row, preset, rm.zoo.load(row).astype(np.float64), X, y, max_seconds, jobs)
    path = POINTS / f"{row}.csv.gz"
    about = {"sha256": card["sha256"], "machine": machine()}
    records = points_of(card)
    for wanted, work in ((_missing, bounds), (_without_radii, radii), (_open, exact)):
        todo = [i for i in range(len(X)) if wanted(i, records, max_seconds)]
        for start in range(0, len(todo), PART):
            some = todo[start : start + PART]
            for i, found in zip(some, _run(task, some, work), strict=True):
                records[i] = _joined(records.get(i, {"point": i}), found)
            check(records, preset)
            write_points(path, about, records)
            card["evaluation"] = summary(records, preset) | {"machine": about["machine"]}
            write_card(card)
            print(f"{row}: {text(card['evaluation'])}", flush=True)


def _missing(i: int, records: Records, max_seconds: float) -> bool:
    return i not in records


def _open(i: int, records: Records, max_seconds: float) -> bool:
    """Whether a point is neither proved nor attacked, after less time for branch and bound."""
    return _is_open(records[i]) and records[i]["limit"] < max_seconds


def _without_radii(i: int, records: Records, max_seconds: float) -> bool:
    return i < RADII_POINTS and "region" not in records[i]


def _run(task: Task, some: list[int], work: Callable) -> list[dict[str, Any]]:
    """Bounds or radii of some points; what is done is on disk, should it be interrupted."""
    mark = hashlib.sha256(repr((task.max_seconds, some)).encode()).hexdigest()[:12]
    sums = hashlib.sha256((ZOO / f"{task.row}.npz").read_bytes()).hexdigest()[:12]
    folder = OUT / f"{task.row}-{sums}" / f"{work.__name__}-{mark}"
    found = work(task._replace(X=task.X[some], y=task.y[some]), folder)
    shutil.rmtree(folder)
    return found


def bounds(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Wong and Kolter without the box, as in the paper; CROWN and PGD within the box."""
    given = (task.net, task.X, task.y, task.preset.p)
    same: dict[str, Any] = {"eps": task.preset.eps, "n_jobs": task.jobs}
    kw = rm.robust_error(*given, box=None, methods=("kw",), out=folder / "kw", **same)
    box = rm.robust_error(*given, methods=CHEAP, out=folder / "box", **same)
    return [
        {
            "class": row["class"],
            "misclassified": row["misclassified"],
            "kw": free["certified"],
            "limit": 0.0,
            **_seconds(free["seconds"], kw="kw"),
            **_decision(row),
        }
        for free, row in zip(kw.records, box.records, strict=True)
    ]


def exact(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Branch and bound within the box."""
    found = rm.robust_error(
        task.net, task.X, task.y, task.preset.p, eps=task.preset.eps, methods=EXACT,
        max_seconds=task.max_seconds, n_jobs=task.jobs, out=folder,
    )  # fmt: skip
    return [{"limit": task.max_seconds, **_decision(row)} for row in found.records]


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
        }
        for near, proved, attacked in zip(*minimal.values(), curve, strict=True)
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
        proved = max(row.get("region", 0), row.get("crown", 0))
        if row["certified"] or row["kw"]:
            proved = max(proved, np.nextafter(preset.eps, np.inf))
        if row["attack"] < proved:
            raise ArithmeticError(f"point {i}: {proved} proved, an example at {row['attack']}")


# ---- files


def points_of(card: dict[str, Any]) -> Records:
    """The points so far of the network of a card; those of an older network do not count."""
    path = POINTS / f"{card['name']}.csv.gz"
    if not path.exists():
        return {}
    about, records = read_points(path)
    return records if about["sha256"] == card["sha256"] else {}


def read_points(path: Path) -> tuple[dict[str, Any], Records]:
    """What the points were measured on, and the points by number."""
    with gzip.open(path, "rt", newline="") as file:
        about = json.loads(file.readline().removeprefix("# "))
        return about, {int(line["point"]): _parsed(line) for line in csv.DictReader(file)}


def _parsed(line: dict[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = {"point": int(line["point"]), "class": int(line["class"])}
    row |= {name: line[name] == "1" for name in FLAGS if line[name]}
    row["settled_by"] = line["settled_by"]
    times = [f"{name}_s" for name in STAGES]
    return row | {name: float(line[name]) for name in (*NUMBERS, *times) if line[name]}


def write_points(path: Path, about: dict[str, Any], records: Records) -> None:
    """A line for each point; radii in full, for a rounded one may be larger."""
    page = io.StringIO()
    page.write(f"# {json.dumps(about)}\n")
    writer = csv.DictWriter(page, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: _cell(name, value) for name, value in row.items()}
        for _, row in sorted(records.items())
    )
    # Without a time in it, the same points give the same file.
    packed = gzip.compress(page.getvalue().encode(), mtime=0)
    _files.write_atomically(path, lambda file: file.write(packed))


def _cell(name: str, value: Any) -> Any:
    if name in FLAGS:
        return int(value)
    return f"{value:.4f}" if name.endswith("_s") else value


def write_card(card: dict[str, Any]) -> None:
    """Write a card, and the checksums of all files of the zoo."""
    _files.write_text(ZOO / f"{card['name']}.json", json.dumps(card, indent=1) + "\n")
    write_checksums()


def refresh(row: str) -> None:
    """Put the figures of the points on a card, if there are any of its network."""
    card = json.loads((ZOO / f"{row}.json").read_text())
    records = points_of(card)
    if records:
        about, _ = read_points(POINTS / f"{row}.csv.gz")
        card["evaluation"] = summary(records, rm.presets[row]) | {"machine": about["machine"]}
        write_card(card)


def write_checksums() -> None:
    """The SHA-256 sums of all files of the zoo, as the library knows them."""
    files = sorted(path for path in ZOO.iterdir() if path.suffix in (".json", ".npz"))
    sums = (f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    _files.write_text(rm.zoo.CHECKSUMS, "".join(sums))


# ---- figures


def summary(records: Records, preset: rm.Preset) -> dict[str, Any]:
    """The figures of a card: shares of all points, radii, seconds of work."""
    rows = [row for _, row in sorted(records.items())]
    measured = [row for row in rows if "region" in row]
    tried = _tried(rows)
    return {
        **shares(rows),
        "test_error": float(np.mean([row["misclassified"] for row in rows])),
        "pgd": float(np.mean([row["settled_by"] in ("misclassified", "attack") for row in rows])),
        "kw": float(np.mean([not row["kw"] for row in rows])),
        "exact": shares(tried) if tried else None,
        "max_seconds": max(row["limit"] for row in rows),
        "settled": {
            name: sum(row["settled_by"] == name for row in rows)
            for name in ("misclassified", *METHODS)
        },
        "seconds": {name: sum(row.get(f"{name}_s", 0) for row in rows) for name in STAGES},
        "radii": radii_summary(measured, preset) if measured else None,
    }


def shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Bounds of the robust error of some points, and how many are open."""
    return {
        "points": len(rows),
        "lower_bound": float(np.mean([row["attacked"] for row in rows])),
        "upper_bound": float(np.mean([not row["certified"] for row in rows])),
        "open": sum(_is_open(row) for row in rows),
    }


def _tried(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first points, up to one that is open and that branch and bound has not tried."""
    waiting = (i for i, row in enumerate(rows) if _is_open(row) and not row["limit"])
    return rows[: next(waiting, len(rows))]


def _is_open(row: dict[str, Any]) -> bool:
    return not (row["certified"] or row["attacked"])


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
                ("region", [row["region"] for row in rows]),
                ("crown", [row["crown"] for row in rows]),
                ("best", lower),
            )
        },
        "curve": {
            "radii": grid,
            "certified_accuracy": [float((lower > radius).mean()) for radius in grid],
            "attacked_accuracy": [float((upper > radius).mean()) for radius in grid],
        },
    }


def curve_radii(preset: rm.Preset) -> list[float]:
    """The radii of the robustness curve."""
    return [round(multiple * preset.eps, 9) for multiple in CURVE]


def certified_radii(rows: list[dict[str, Any]], preset: rm.Preset) -> np.ndarray:
    """The largest radius that is proved for each point; 0 where it is misclassified."""
    proved = np.nextafter(preset.eps, np.inf)
    return np.array([max(r["region"], r["crown"], proved * r["certified"]) for r in rows])


def text(found: dict[str, Any]) -> str:
    """The figures in a line."""
    said = {name: f"{100 * found[name]:.2f}" for name in ("lower_bound", "upper_bound", "kw")}
    return (
        f"{found['points']} points, robust error {said['lower_bound']} to "
        f"{said['upper_bound']} %, {found['open']} open; KW {said['kw']} %; "
        f"{sum(found['seconds'].values()):.0f} s"
    )
