"""The questions of VNN-COMP 2021 on mnistfc and oval21, against the answers of that competition.

``$REFMMR_VNNCOMP`` is a folder with the networks, the properties (``.vnnlib.gz``) and
``answers.csv``: for each question, whether the property holds there, is violated, or was left open
by the four best tools, and which of them answered.  They had GPUs or 16 to 48 cores, and 120
(mnistfc) or 720 (oval21) seconds a question; the same limits are the default here.

``results/vnncomp.json`` has all answers so far, and is read first: the same command goes on after
an interruption, and asks questions that were left open again where the limit has grown.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from pathlib import Path

import _command
from _machine import machine
from _markdown import in_words, table, write

import refmmr as rm

RESULTS = Path(__file__).parent / "results"
LIMITS = {"mnistfc": 120.0, "oval21": 720.0}
"""Seconds a question, as in the competition."""


def main() -> None:
    """Ask what has no answer yet, and write the summary after each answer."""
    asked = arguments()
    rm.set_backend(asked.backend)
    root = Path(os.environ["REFMMR_VNNCOMP"])
    with open(root / "answers.csv") as file:
        questions = list(csv.DictReader(file))
    path = asked.results / "vnncomp.json"
    records = json.loads(path.read_text())["answers"] if path.exists() else {}
    about = machine()
    for question in (row for row in questions if asked.only in row["network"]):
        key = f"{question['network']} {question['property']}"
        limit = asked.limit or LIMITS[question["network"].partition("/")[0]]
        known = records.get(key)
        if known is None or (known["status"] == "unknown" and known["limit"] < limit):
            records[key] = ask(root, question, limit)
            print(key, question["answer"], "here:", records[key], flush=True)
            report = {"networks": summary(questions, records), "answers": records}
            report["machine"] = about
            write(asked.results / "vnncomp", report, markdown(report))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = _command.parser(__doc__)
    parser.add_argument("--only", default="", help="networks whose names contain this")
    parser.add_argument("--limit", type=float, help="s a question, the competition's by default")
    parser.add_argument("--backend", default="numba")
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def ask(root: Path, question: dict[str, str], limit: float) -> dict:
    """Ask one question."""
    file = (root / question["network"]).parent / f"{question['property']}.gz"
    wall, cpu = time.perf_counter(), time.process_time()
    found = rm.verify(root / question["network"], file, max_seconds=limit)
    return {
        "status": found.status,
        "replayed": found.replayed,
        "reason": found.reason,
        "limit": limit,
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
    }


def summary(questions: list[dict[str, str]], records: dict[str, dict]) -> dict[str, dict]:
    """For each network: how many questions were answered here, and there."""
    table: dict[str, dict] = {}
    for question in questions:
        found = records.get(f"{question['network']} {question['property']}")
        if found is None:
            continue
        row = table.setdefault(
            question["network"],
            dict.fromkeys(["asked", "holds", "violated", "answered_there", "only_there"], 0)
            | {"only_here": 0, "contradictions": 0, "seconds": 0.0, "limit": 0.0},
        )
        here, there = found["status"], question["answer"]
        row["asked"] += 1
        row["holds"] += here == "holds"
        row["violated"] += here == "violated"
        row["answered_there"] += there != "open"
        row["only_there"] += here == "unknown" and there != "open"
        row["only_here"] += here != "unknown" and there == "open"
        row["contradictions"] += {here, there} == {"holds", "violated"}
        row["seconds"] += found["seconds"]
        row["limit"] = max(row["limit"], found["limit"])
    return table


def markdown(report: dict) -> str:
    """The summary as a page."""
    head = ["network", "questions", "here: holds", "violated", "open", "s in all", "limit, s"]
    head += ["answered there", "only there", "only here", "contradictions"]
    rows = []
    for name, row in report["networks"].items():
        open_ = row["asked"] - row["holds"] - row["violated"]
        cells = [name, row["asked"], row["holds"], row["violated"], open_]
        cells += [f"{row['seconds']:.0f}", f"{row['limit']:g}"]
        cells += [row[key] for key in ("answered_there", "only_there", "only_here")]
        rows.append([*cells, row["contradictions"]])
    lines = [
        "# Questions of VNN-COMP 2021",
        "",
        "*There* is an answer of at least one of the four best tools of the competition, on GPUs "
        "or 16 to 48 cores.",
        "",
        *table(head, rows),
        "",
        f"{in_words(report['machine'])}.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
