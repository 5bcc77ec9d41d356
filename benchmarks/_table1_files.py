"""Files of the paper's table: points in ``results/table1``, cards and checksums of the zoo."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import refmmr as rm
from refmmr import _files

ROOT = Path(__file__).parent.parent
ZOO, OUT = ROOT / "zoo", ROOT / "out" / "table1"
POINTS = ROOT / "benchmarks" / "results" / "table1"
METHODS = ("crown", "attack", "bab")
"""Methods at eps within the box, from cheap to expensive."""
STAGES = ("kw", *METHODS, "region", "radius", "curve", "minimal")
"""What takes time; "radius" is the largest that CROWN proves, "curve" the attacks at some radii,
"minimal" attack, search and branch and bound for the minimal perturbation."""
FLAGS = ("misclassified", "kw", "certified", "attacked", "region_exact")
WORDS = ("settled_by", "minimal_by")
NUMBERS = ("limit", "region", "crown", "attack", "minimal", "minimal_limit", "universal")
FIELDS = ("point", "class", *FLAGS, *WORDS, *NUMBERS, *(f"{name}_s" for name in STAGES))
Records = dict[int, dict[str, Any]]


def points_of(name: str, sha256: str) -> Records:
    """The points so far of a network; those of an older one of its name do not count."""
    path = POINTS / f"{name}.csv.gz"
    if not path.exists():
        return {}
    about, records = read_points(path)
    return records if about["sha256"] == sha256 else {}


def read_points(path: Path) -> tuple[dict[str, Any], Records]:
    """What the points were measured on, and the points by number."""
    with gzip.open(path, "rt", newline="") as file:
        about = json.loads(file.readline().removeprefix("# "))
        return about, {int(line["point"]): _parsed(line) for line in csv.DictReader(file)}


def _parsed(line: dict[str, str]) -> dict[str, Any]:
    """A record; columns that a file does not have, and empty cells, are not in it."""
    line = {name: cell for name, cell in line.items() if cell}
    row: dict[str, Any] = {"point": int(line["point"]), "class": int(line["class"])}
    row |= {name: line[name] == "1" for name in FLAGS if name in line}
    row["settled_by"] = line.get("settled_by", "")
    numbers = (*NUMBERS, *(f"{name}_s" for name in STAGES))
    row |= {name: float(line[name]) for name in numbers if name in line}
    if "minimal" in row:
        row["minimal_by"] = line.get("minimal_by", "")
    return row


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


def read_card(name: str) -> dict[str, Any]:
    """A card as it is stored."""
    found: dict[str, Any] = json.loads((ZOO / f"{name}.json").read_text())
    return found


def write_card(card: dict[str, Any]) -> None:
    """Write a card, and the checksums of all files of the zoo."""
    _files.write_text(ZOO / f"{card['name']}.json", json.dumps(card, indent=1) + "\n")
    write_checksums()


def write_checksums() -> None:
    """The SHA-256 sums of all files of the zoo, as the library knows them."""
    files = sorted(path for path in ZOO.iterdir() if path.suffix in (".json", ".npz"))
    sums = (f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in files)
    _files.write_text(rm.zoo.CHECKSUMS, "".join(sums))
