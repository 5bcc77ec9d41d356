"""The paper's Table 1 beside the networks of the zoo: the page and the README's short table.

Every figure is read from the cards in ``zoo`` and the points in ``results/table1``; cells without a
network are a dash.
"""

from __future__ import annotations

import _readme
from _markdown import write as write_report
from _table1_cells import NONE, THEIRS, Row, cards, interval, markdown, percent, table, title
from _table1_claims import claims
from _table1_differences import CELLS, differences, experiments
from _table1_evaluate import refresh
from _table1_figures import draw, texts
from _table1_files import ROOT, ZOO, write_checksums

import refmmr as rm

RESULTS = ROOT / "benchmarks" / "results"
AUTHORS = 360
"""Seconds for 100 points of a CNN trained with MMR+at by the authors' code, Gurobi (README)."""
INTRODUCTION = """\
Figures of the paper are those of Croce, Andriushchenko, Hein (2019), Table 1. Networks here are
trained with the preset of their name (`rm.presets`) and seed 0, by `benchmarks/table1.py train
ROW`, and measured by `benchmarks/table1.py evaluate ROW`, with ROW such as mnist-fc1-linf-mmr.
`rm.zoo.load(ROW)` is the network, `rm.zoo.card(ROW)` says how it was made. For a network of one's
own `refmmr train --preset ROW --out net.npz` trains it likewise, and `refmmr certify --preset ROW
net.npz`, in l_inf with `--n 1000`, gives its test error and its robust error in the box. Plain
training knows no norm: its rows in l_inf and in l_2 are one network here. In percent, each with the
methods that gave it:

- **TE**, the test error: of the whole test set.
- **LB**, a lower bound of the robust error: points with an adversarial example, in l_inf of the
  first 1000 test points, in l_2 of the whole test set. PGD: three runs here, one in the paper;
  bab: branch and bound in the box of the images; MIP: mixed-integer programs, 120 s a point.
- **UB**, an upper bound: points without a proof. KW: the bound of Wong and Kolter without the box;
  CROWN: that of Zhang and others in the box.

Below each table is where the figures of the robust error in the box come from, for an attacker that
stays in [0, 1]: the share of points that are *wrong*, attacked by *PGD* or by *bab*, proved by
*KW* or *CROWN*, or by *bab*, and *open*, neither proved nor attacked within this time for branch
and bound; these count in the upper bound only. *KW* is what that bound without the box leaves
unproved.

The last table of each block has radii and cost:

- *radius*: the largest that any method proves in the box, mean and median of the first 1000 points;
- *known by region*: the share of these points whose minimal perturbation lies in their own linear
  region, so that one gradient gives it exactly; then, of the first points for which it was looked
  for, the shares by *region*, by *search* through the regions, and by *bab*, in this time each;
- *seconds* by the clock, of one process beside other work, for training and evaluation, and for the
  bounds at eps of 100 points. The authors give 6 minutes for 100 points of a CNN trained with
  MMR+at, by mixed-integer programs with Gurobi (their README), and no times of trainings."""
DIFFERENCES = """\
A cause is named where trainings here measure it: *seed*, where the paper's figure lies within the
spread of trainings that differ in their seed alone; *border rule*, the authors' full filters for
units at the border of the first convolution; *random start* of the attack. The others are unknown.
Not measured by any training here: the split of Fashion-MNIST, whose 70,000 images the authors pool
and split anew; the number of runs of PGD; the solver and the time limit of exact answers."""

UNIVERSAL = """\
Networks trained with MMR in l_1 and l_inf at once (Croce and Hein 2020), in the box and in percent.
*all*: for an attacker who may choose among the three norms, each with its radius. *radius*: the
largest that any method proves, mean and median; *from l_1 and l_inf*: that which follows from the
regions' radii in these two norms, which is one for every l_p (`rm.certify_universal`)."""


def write() -> None:
    """Write the page, its figures, the README's table and the checksums."""
    for path in ZOO.glob("*.json"):
        refresh(path.stem)
    write_checksums()
    blocks = table()
    draw(blocks)
    write_report(RESULTS / "table1", report(blocks), page(blocks))
    _readme.replace("paper's table", short_table(blocks))


def report(blocks: dict[str, list[Row]]) -> dict[str, dict]:
    """The figures of each row that has a network, for other programs."""
    return {r.name: figures_of(r) for rows in blocks.values() for r in rows if r.card}


def figures_of(row: Row) -> dict:
    """The figures of a row for other programs."""
    assert row.card is not None
    return {
        "paper": None if row.printed is None else dict(zip(CELLS, row.printed, strict=True)),
        "here": dict(zip(CELLS, row.here(), strict=True)),
        "sources": row.sources(),
        "evaluation": row.found,
        "training_seconds": row.card.seconds,
        "commit": row.card.commit,
        "sha256": row.card.sha256,
    }


def page(blocks: dict[str, list[Row]]) -> str:
    """Claims, all blocks with their figures, and the differences, in Markdown."""
    parts = ["# The paper's table", INTRODUCTION]
    parts += ["## The paper's three claims", *claims(blocks)]
    for block, rows in blocks.items():
        parts += [f"## {title(block)}", compared(rows), *measured(rows)]
        parts += [
            f"![{text}](../../docs/images/{file})" for file, text in texts(block, rows).items()
        ]
    parts += universal()
    parts += ["## Differences of more than one point", differences(blocks), DIFFERENCES]
    return "\n\n".join(parts + experiments()) + "\n"


def universal() -> list[str]:
    """MMR-Universal, which is no row of the paper's table; nothing if no network is evaluated."""
    found = {name: card for name, (_, card) in cards().items() if card.preset.p is None}
    lines = [line for name, card in found.items() if card.evaluation for line in _norms(name, card)]
    if not lines:
        return []
    head = ["", "TE", "eps", "points", "LB", "UB", "open, after", "KW"]
    head += ["radius", "from l_1 and l_inf"]
    return ["## MMR-Universal", UNIVERSAL, markdown(head, lines)]


def _norms(name: str, card: rm.zoo.Card) -> list[list[str]]:
    """A line for an attacker who may choose the norm, and one for each norm."""
    union = card.evaluation
    assert union is not None
    line = [percent(100 * union[bound]) for bound in ("lower_bound", "upper_bound")]
    open_ = percent(100 * union["open"] / union["points"])
    lines = [[name, percent(100 * card.test_error), "all", f"{union['points']}", *line, open_]]
    for points, found in union["norms"].items():
        bounds = [percent(100 * found[bound]) for bound in ("lower_bound", "upper_bound")]
        radii = found["radii"] or {}
        lines.append(
            [points, "", f"{found['eps']:g}", f"{found['points']}", *bounds,
             open_share(found), percent(100 * found["kw"]),
             *(_mean_and_median(radii.get(kind)) for kind in ("best", "universal"))]
        )  # fmt: skip
    return [line + [NONE] * (10 - len(line)) for line in lines]


def compared(rows: list[Row]) -> str:
    """The paper's figures and those here, cell by cell, with the methods that gave them."""
    theirs = THEIRS[rows[0].norm]
    head = ["", "TE paper", "TE here"]
    for cell in ("LB", "UB"):
        head += [f"{cell} paper, by {theirs[cell]}", f"{cell} here"]
    lines = []
    for row in rows:
        line, sources = [row.scheme], row.sources()
        printed = row.printed or (NONE,) * 3
        for cell, there, here in zip(CELLS, printed, row.here(), strict=True):
            by = f", by {sources[cell]}" if cell in sources else ""
            line += [there, percent(here) + by]
        lines.append(line)
    return markdown(head, lines)


def measured(rows: list[Row]) -> list[str]:
    """What the paper's columns do not say of the networks that are evaluated."""
    evaluated = [row for row in rows if row.found]
    if not evaluated:
        return []
    about = dict.fromkeys(_machines(row) for row in evaluated)
    return [
        markdown(
            ["", "points", "wrong", "attacked by PGD", "by bab", "proved by KW, CROWN", "by bab",
             "open, after", "KW"],
            map(_settled, evaluated),
        ),
        markdown(
            ["", "radius", "known by region", "region, search, bab", "seconds: training",
             "evaluation", "100 points at eps"],
            map(_radii_and_cost, evaluated),
        ),
        " ".join(about),
    ]  # fmt: skip


def _settled(row: Row) -> list[str]:
    """Shares of the points by what decided them; open ones are those that bab has tried."""
    found = row.found
    assert found is not None
    settled, points = found["settled"], found["points"]
    by_bab = settled.get("bab_attacked", 0)
    counts = (
        settled["misclassified"], settled["attack"], by_bab, settled["kw"] + settled["crown"],
        settled["bab"] - by_bab,
    )  # fmt: skip
    shares = [percent(100 * count / points) for count in counts]
    return [row.scheme, f"{points}", *shares, open_share(found), percent(100 * found["kw"])]


def open_share(found: dict) -> str:
    """The share of points that are neither proved nor attacked, and the time they were given."""
    share, exact = percent(100 * found["open"] / found["points"]), found["exact"]
    tried = 0 if exact is None else exact["points"]
    if found["open"] and not found["max_seconds"]:
        return f"{share}, bab not begun"
    part = f", bab on the first {tried}" if found["open"] and tried < found["points"] else ""
    return f"{share}, {found['max_seconds']:g} s{part}"


def _radii_and_cost(row: Row) -> list[str]:
    found, card = row.found, row.card
    assert found is not None
    assert card is not None
    radii, seconds = found["radii"], found["seconds"]
    best, known = _mean_and_median(radii and radii["best"]), NONE
    if radii is not None:
        known = percent(100 * radii["known_by_region"])
    at_eps = sum(seconds[name] for name in ("kw", "crown", "attack", "bab")) / found["points"]
    return [
        row.scheme, best, known, _minimal(found.get("minimal")), f"{card.seconds:.0f}",
        f"{sum(seconds.values()):.0f}", f"{100 * at_eps:.0f}",
    ]  # fmt: skip


def _mean_and_median(found: dict | None) -> str:
    return NONE if found is None else f"{found['mean']:.3f}, {found['median']:.3f}"


def _minimal(found: dict | None) -> str:
    if found is None:
        return NONE
    shares = ", ".join(percent(100 * found[name]) for name in ("region", "search", "bab"))
    return f"{shares} of {found['points']} in {found['max_seconds']:g} s"


def in_the_box(found: dict) -> tuple[str, str]:
    """The robust error of the points that branch and bound has seen, and what it left open."""
    exact = found["exact"]
    if exact is None:
        return NONE, NONE
    error = interval(exact["lower_bound"], exact["upper_bound"])
    return f"{error} of {exact['points']}", f"{exact['open']}, {found['max_seconds']:g} s"


def _machines(row: Row) -> str:
    assert row.found is not None
    assert row.card is not None
    words = [
        f"{name} {machine['date']} on {machine['processor']}"
        for name, machine in (("trained", row.card.machine), ("evaluated", row.found["machine"]))
    ]
    return f"{row.scheme}: {', '.join(words)}."


def short_table(blocks: dict[str, list[Row]]) -> str:
    """The rows that are evaluated, for the README: figures of the paper / here, and the claims."""
    head = ["", "TE", "LB", "UB", "KW", "in the box", "open, after"]
    lines = []
    for block, rows in blocks.items():
        for row in (row for row in rows if row.found):
            assert row.found is not None
            theirs = row.printed or (NONE,) * 3
            pairs = zip(theirs, row.here(), strict=True)
            cells = [f"{printed} / {percent(ours)}" for printed, ours in pairs]
            cells += [percent(100 * row.found["kw"]), *in_the_box(row.found)]
            lines.append([f"{title(block)}, {row.scheme}", *cells])
    said = [item.splitlines()[0] for item in claims(blocks)]
    says = "The paper's three claims, for the networks here:"
    return "\n".join(["", markdown(head, lines), "", says, "", *said, ""])
