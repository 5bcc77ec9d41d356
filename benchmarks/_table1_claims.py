"""The paper's three claims, and whether they hold for the networks here.

Croce, Andriushchenko, Hein (2019): networks trained with MMR have better proved bounds of the
robust error than those of adversarial training; their linear regions give the exact minimal
perturbation of a share of the points; and their bounds are comparable with those of networks
trained by Wong and Kolter's method.  Every verdict is computed from the rows that are here.
"""

from __future__ import annotations

from typing import NamedTuple

from _table1_cells import Row, title

SLACK = 1.0
"""Percentage points by which a distance from KW may exceed the paper's, and still be comparable:
differences up to there are not listed either."""
CLAIMS = {
    "bounds": "MMR has better upper bounds than adversarial training",
    "region": "with MMR the linear region alone gives the minimal perturbation of some points",
    "kw": "the bounds of MMR, with or without adversarial training, are comparable with KW",
}


class Verdict(NamedTuple):
    """Of one claim in one block; `held` is None where a row is missing."""

    held: bool | None
    why: str

    def __str__(self) -> str:
        word = {True: "held", False: "did not hold", None: "not yet"}[self.held]
        return f"{word}: {self.why}"


def claims(blocks: dict[str, list[Row]]) -> list[str]:
    """A list item for each claim, with the blocks that have a network of their own."""
    found = {block: verdicts(rows) for block, rows in blocks.items() if any(r.found for r in rows)}
    items = []
    for name, text in CLAIMS.items():
        of = {block: each[name] for block, each in found.items()}
        lines = [f"- **{text[0].upper()}{text[1:]}.** {summed(list(of.values()))}"]
        lines += [f"  - {title(block)}: {verdict}" for block, verdict in of.items()]
        items.append("\n".join(lines))
    return items


def summed(found: list[Verdict]) -> str:
    """How many of the verdicts say what."""
    decided = [verdict for verdict in found if verdict.held is not None]
    if not decided:
        return "Not yet: no block has the rows for it."
    held, missing = sum(bool(v.held) for v in decided), len(found) - len(decided)
    text = f"Held in {held} of the {len(decided)} blocks with the rows for it"
    if len(decided) == 1:
        text = f"{'Held' if held else 'Did not hold'} in the one block with the rows for it"
    return text + (f"; not decided in {missing}." if missing else ".")


def verdicts(rows: list[Row]) -> dict[str, Verdict]:
    """The three verdicts on a block."""
    by = {row.name.split("-")[3]: row for row in rows}
    return {"bounds": _bounds(by), "region": _region(by), "kw": _kw(by)}


def _upper(row: Row) -> float:
    value = row.here()[2]
    assert value is not None
    return value


def _missing(by: dict[str, Row], *schemes: str) -> Verdict | None:
    names = [by[scheme].name for scheme in schemes if not by[scheme].found]
    return Verdict(None, f"{' and '.join(names)} missing") if names else None


def _bounds(by: dict[str, Row]) -> Verdict:
    """UB of MMR and MMR+at, those that are here, against that of adversarial training."""
    mmr = [by[scheme] for scheme in ("mmr", "mmr+at") if by[scheme].found]
    if not mmr:
        return Verdict(None, f"{by['mmr'].name} missing")
    text = ", ".join(f"{row.scheme} {_upper(row):.2f}" for row in mmr)
    missing = _missing(by, "at")
    if missing:
        return missing._replace(why=f"{missing.why} (UB of {text})")
    other = _upper(by["at"])
    return Verdict(max(map(_upper, mmr)) < other, f"UB of {text}, at {other:.2f}")


def _region(by: dict[str, Row]) -> Verdict:
    """Share of points whose minimal perturbation lies in their own region, MMR against plain."""
    mmr = [by[s] for s in ("mmr", "mmr+at") if by[s].found and _found(by[s])["radii"]]
    if not mmr:
        return Verdict(None, f"{by['mmr'].name} missing")
    shares = [_found(row)["radii"]["known_by_region"] for row in mmr]
    text = ", ".join(
        f"{100 * share:.1f} % with {r.scheme}" for share, r in zip(shares, mmr, strict=True)
    )
    plain = by["plain"]
    if plain.found and _found(plain)["radii"]:
        text += f", {100 * _found(plain)['radii']['known_by_region']:.1f} % with plain training"
    return Verdict(min(shares) > 0, f"{text}, of the first {_found(mmr[0])['radii']['points']}")


def _kw(by: dict[str, Row]) -> Verdict:
    """The better UB of MMR and MMR+at minus that of KW, against the same in the paper."""
    missing = _missing(by, "kw", "mmr", "mmr+at")
    if missing:
        return missing
    mmr = (by["mmr"], by["mmr+at"])
    here = min(map(_upper, mmr)) - _upper(by["kw"])
    printed = [float(row.printed[2]) for row in (*mmr, by["kw"]) if row.printed]
    there = min(printed[:2]) - printed[2]
    return Verdict(
        here <= max(there, 0) + SLACK, f"UB minus KW's {here:+.2f}, in the paper {there:+.2f}"
    )


def _found(row: Row) -> dict:
    assert row.found is not None
    return row.found
