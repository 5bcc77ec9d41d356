"""Differences from the paper of more than one point, and what is known of their causes.

A cause is known where trainings here measure it: repeated ones with other seeds, or one with a
setting of the authors' code switched.
"""

from __future__ import annotations

from typing import NamedTuple

from _table1_cells import CELLS, NONE, Row, cards, figures, markdown
from _table1_rows import CHANGES, Training

import refmmr as rm

LARGE = 1.0
"""Percentage points from which on a difference from the paper is listed."""
CAUSES = {"fullfilter": "border rule", "nostart": "random start"}
assert CAUSES.keys() == CHANGES.keys()
Stored = dict[str, tuple[Training, rm.zoo.Card]]


class Spread(NamedTuple):
    """The smallest and the largest figure of trainings that differ in their seed alone."""

    least: float
    largest: float
    n: int


def differences(blocks: dict[str, list[Row]]) -> str:
    """A table of the figures that are more than one point from the paper's, with causes."""
    stored = cards()
    lines = []
    for row in (row for rows in blocks.values() for row in rows if row.printed):
        assert row.printed is not None
        for i, (theirs, ours) in enumerate(zip(row.printed, row.here(), strict=True)):
            if ours is not None and abs(ours - float(theirs)) > LARGE:
                change = f"{ours - float(theirs):+.2f}"
                said = cause(row, i, stored)
                lines.append([row.name, CELLS[i], theirs, f"{ours:.2f}", change, said])
    if not lines:
        return "None."
    return markdown(["row", "", "paper", "here", "difference", "cause"], lines)


def cause(row: Row, cell: int, stored: Stored) -> str:
    """What trainings here say of a difference, or that nothing is known."""
    assert row.printed is not None
    said, theirs = [], float(row.printed[cell])
    seeds = spread(row.name, cell, stored)
    if seeds:
        text = f"{seeds.n} seeds here, {seeds.least:.2f} to {seeds.largest:.2f}"
        if seeds.least <= theirs <= seeds.largest:
            return f"seed: within the spread of {text}"
        said.append(f"beyond the spread of {text}")
    for word, name in CAUSES.items():
        change = effect(row.name, word, cell, stored)
        if change is not None:
            said.append(f"{name}: the other choice changes it by {change:+.2f} here")
    possible = unmeasured(row, stored)
    left = [f"not measured: {', '.join(possible)}"] if possible else []
    return "; ".join([*(said or ["unknown"]), *left])


def unmeasured(row: Row, stored: Stored) -> list[str]:
    """What differs from the paper's computation in a row, and no training here measures."""
    data, network, _, scheme = row.name.split("-")
    possible = []
    if spread(row.name, 0, stored) is None:
        possible.append("seed")
    if network == "cnn" and "mmr" in scheme and not _pairs(row.name, "fullfilter", stored):
        possible.append("border rule")
    if data == "fmnist":
        possible.append("split of the data")
    return possible


def spread(row: str, cell: int, stored: Stored) -> Spread | None:
    """Of a figure over the seeds of a row, if there are two or more."""
    found = [
        figures(card)[cell] for one, card in stored.values() if (one.row, one.changes) == (row, {})
    ]
    values = [value for value in found if value is not None]
    return Spread(min(values), max(values), len(values)) if len(values) > 1 else None


def effect(row: str, word: str, cell: int, stored: Stored) -> float | None:
    """By how much one of `CHANGES` changes a figure, on the mean of its pairs of trainings."""
    changes = []
    for changed, base in _pairs(row, word, stored):
        after, before = figures(changed)[cell], figures(base)[cell]
        if after is not None and before is not None:
            changes.append(after - before)
    return sum(changes) / len(changes) if changes else None


def _pairs(row: str, word: str, stored: Stored) -> list[tuple[rm.zoo.Card, rm.zoo.Card]]:
    """Trainings of a row with and without a change, otherwise the same."""
    return [
        (card, stored[one.without(word).name][1])
        for one, card in stored.values()
        if one.row == row
        and CHANGES[word].items() <= one.changes.items()
        and one.without(word).name in stored
    ]


def experiments() -> list[str]:
    """Tables of repeated trainings and of those with one change; nothing where there are none."""
    stored = cards()
    rows, parts = sorted({one.row for one, _ in stored.values()}), []
    seeds = [line for row in rows for line in _seeds(row, stored)]
    if seeds:
        parts += ["The spread of trainings that differ in their seed alone:",
                  markdown(["row", "seeds", *CELLS], seeds)]  # fmt: skip
    changed = [line for row in rows for line in _changed(row, stored)]
    if changed:
        parts += ["Trainings with one setting changed, before and after:",
                  markdown(["", "without", "with", *CELLS], changed)]  # fmt: skip
    return parts


def _seeds(row: str, stored: Stored) -> list[list[str]]:
    """A line with the spread of a row, if its training was repeated."""
    found = [spread(row, i, stored) for i in range(len(CELLS))]
    if not any(found):
        return []
    texts = [NONE if s is None else f"{s.least:.2f} to {s.largest:.2f}" for s in found]
    return [[row, f"{max(s.n for s in found if s)}", *texts]]


def _changed(row: str, stored: Stored) -> list[list[str]]:
    """A line for each pair of trainings of a row."""
    return [
        [
            name,
            before.name,
            after.name,
            *(
                NONE if a is None or b is None else f"{a:.2f}, {b:.2f}"
                for a, b in zip(figures(before), figures(after), strict=True)
            ),
        ]
        for word, name in CAUSES.items()
        for after, before in _pairs(row, word, stored)
    ]
