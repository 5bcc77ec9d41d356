"""The paper's Table 1 beside the networks of the zoo: tables, differences, figures.

Every figure is read from the cards in ``zoo`` and the points in ``results/table1``; cells without a
network are a dash.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import _table1_paper as paper
import matplotlib as mpl
import numpy as np
from _table1_evaluate import refresh
from _table1_files import POINTS, ROOT, read_points, write_checksums
from _table1_summary import certified_radii
from matplotlib import pyplot as plt

import refmmr as rm

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
NONE = "–"
CELLS = ("TE", "LB", "UB")
LARGE = 1.0
"""Percentage points from which on a difference from the paper is listed."""
COLORS = {
    "plain": "#555555",
    "at": "#D55E00",
    "kw": "#CC79A7",
    "mmr": "#0072B2",
    "mmr+at": "#009E73",
}
INTRODUCTION = """\
Figures of the paper are those of Croce, Andriushchenko, Hein (2019), Table 1. Networks here are
trained once, with the preset of their name (`rm.presets`) and seed 0, by
`benchmarks/table1.py train ROW`, and measured by `benchmarks/table1.py evaluate ROW`, with ROW such
as mnist-fc1-linf-mmr; `rm.zoo.load(ROW)` is the network, `rm.zoo.card(ROW)` says how it was made.
Plain training knows no norm: its rows in l_inf and in l_2 are one network here. In percent:

- **TE**, the test error: of the whole test set.
- **LB**, a lower bound of the robust error: points with an adversarial example. In l_inf of the
  first 1000 test points; paper: PGD and mixed-integer programs, here: PGD and branch and bound. In
  l_2 of the whole test set, by PGD.
- **UB**, an upper bound: points without a proof. In l_inf, paper: the bound of Wong and Kolter (KW)
  and mixed-integer programs with 120 s a point, here: CROWN and branch and bound in the box of the
  images. In l_2, by KW without the box.

A second table has what was measured beyond that:

- *KW*: what the paper's bound without the box leaves unproved by itself;
- *in the box*: the robust error against an attacker that stays in [0, 1], exact or between both
  bounds, by CROWN, PGD, and branch and bound; of so many of the points, the first of the test set;
- *open*: those of them that are neither proved nor attacked within this time for branch and bound;
  they count in the upper bound only;
- *radius*: the largest that region, CROWN or branch and bound proves in the box, mean and median of
  the first 1000 points;
- *by region*: the share of points, classified right, whose minimal perturbation lies in their own
  linear region, so that one gradient gives it exactly; and the mean radius that the region proves;
- *seconds* by the clock, of one process beside other work, for training and evaluation.

The authors' code decides 100 points of a CNN trained with MMR+at in 6 minutes, by mixed-integer
programs with Gurobi (their README)."""
DIFFERENCES = """\
What differs from the paper's computations, and may explain a part: one training, with another seed;
border units of the first convolution, which the regularizer measures exactly here, and with the
full filter there (CNNs with MMR); the test points of Fashion-MNIST, where the authors split all
70,000 images anew; one run of PGD there, three here; the solver and the time limit of exact
answers. Only repeated trainings can tell which of these it is."""


class Row(NamedTuple):
    """A cell of the paper's table: what is printed there, and the card of the network here."""

    name: str
    printed: tuple[str, str, str] | None
    card: rm.zoo.Card | None

    @property
    def scheme(self) -> str:
        """As the paper calls it."""
        return paper.SCHEMES[self.name.split("-")[3]]

    @property
    def found(self) -> dict | None:
        """The evaluation, if there is one."""
        return None if self.card is None else self.card.evaluation

    def here(self) -> tuple[float | None, float | None, float | None]:
        """TE, LB and UB as the paper measures them, in percent."""
        if self.card is None:
            return None, None, None
        error = 100 * self.card.test_error
        if self.found is None:
            return error, None, None
        l_inf = self.card.preset.p == np.inf
        names = ("lower_bound", "upper_bound") if l_inf else ("pgd", "kw")
        return error, *(100 * self.found[name] for name in names)


def write() -> None:
    """Write the page, its figures, the README's table and the checksums."""
    # Only here: the README's script imports this file.
    import readme

    mpl.use("Agg")
    for row in rm.zoo.names():
        refresh(row)
    write_checksums()
    blocks = table()
    (RESULTS / "table1.md").write_text(page(blocks, draw(blocks)))
    figures = {r.name: figures_of(r) for rows in blocks.values() for r in rows if r.card}
    (RESULTS / "table1.json").write_text(json.dumps(figures, indent=1) + "\n")
    readme.replace("paper's table", short_table(blocks))


def table() -> dict[str, list[Row]]:
    """The rows of each block, a data set with a network and a norm, in the paper's order."""
    printed, here = paper.cells(), set(rm.zoo.names())
    blocks = {}
    for data in paper.DATA:
        for column in paper.COLUMNS:
            names = [f"{data}-{column}-{scheme}" for scheme in paper.SCHEMES]
            rows = [
                Row(name, printed.get(name), rm.zoo.card(name) if name in here else None)
                for name in names
                if name in printed or name in here
            ]
            if rows:
                blocks[f"{data}-{column}"] = rows
    return blocks


def figures_of(row: Row) -> dict:
    """The figures of a row for other programs."""
    assert row.card is not None
    return {
        "paper": None if row.printed is None else dict(zip(CELLS, row.printed, strict=True)),
        "here": dict(zip(CELLS, row.here(), strict=True)),
        "evaluation": row.found,
        "training_seconds": row.card.seconds,
        "commit": row.card.commit,
        "sha256": row.card.sha256,
    }


# ---- text


def page(blocks: dict[str, list[Row]], images: dict[str, str]) -> str:
    """All blocks, and the differences, in Markdown; `images` are texts by name of the file."""
    parts = ["# The paper's table", INTRODUCTION]
    for block, rows in blocks.items():
        parts += [f"## {title(block)}", compared(rows), *measured(rows)]
        parts += [
            f"![{text}](../../docs/images/{file})"
            for file, text in images.items()
            if file.startswith(f"table1-{block}-")
        ]
    parts += ["## Differences of more than one point", *differences(blocks)]
    return "\n\n".join(parts) + "\n"


def title(block: str) -> str:
    """A block in words."""
    data, network, norm = block.split("-")
    preset = rm.presets[f"{block}-plain"]
    radius = f"{preset.eps:g}" if data in ("mnist", "fmnist") or norm == "l2" else _in_255(preset)
    name = "FC1" if network == "fc1" else "CNN"
    return f"{paper.DATA[data]}, {name}, {'l_inf' if norm == 'linf' else 'l_2'}, eps = {radius}"


def _in_255(preset: rm.Preset) -> str:
    assert preset.eps is not None
    return f"{255 * preset.eps:.0f}/255"


def compared(rows: list[Row]) -> str:
    """The paper's figures and those here, cell by cell."""
    lines = [
        "| | TE paper | TE here | LB paper | LB here | UB paper | UB here |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        pairs = zip(row.printed or (NONE,) * 3, row.here(), strict=True)
        cells = [cell for theirs, ours in pairs for cell in (theirs, percent(ours))]
        lines.append(f"| {row.scheme} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A figure in percent, or a dash."""
    return NONE if value is None else f"{value:.2f}"


def measured(rows: list[Row]) -> list[str]:
    """What the paper's columns do not say of the networks that are evaluated."""
    evaluated = [row for row in rows if row.found]
    if not evaluated:
        return []
    lines = [
        "| | points | KW | in the box | open, after | radius | by region | seconds |",
        "| --- " * 8 + "|",
    ]
    lines += [_measured(row) for row in evaluated]
    about = dict.fromkeys(_machines(row) for row in evaluated)
    return ["\n".join(lines), " ".join(about)]


def _measured(row: Row) -> str:
    found, card = row.found, row.card
    assert found is not None
    assert card is not None
    cells = [f"{found['points']}", percent(100 * found["kw"]), *in_the_box(found)]
    radii = found["radii"]
    if radii is None:
        cells += [NONE, NONE]
    else:
        best, region = radii["best"], radii["region"]
        cells.append(f"{best['mean']:.3f}, {best['median']:.3f}")
        cells.append(f"{percent(100 * radii['known_by_region'])}, {region['mean']:.3f}")
    cells.append(f"{card.seconds:.0f}, {sum(found['seconds'].values()):.0f}")
    return f"| {row.scheme} | " + " | ".join(cells) + " |"


def in_the_box(found: dict) -> tuple[str, str]:
    """The robust error of the points that branch and bound has seen, and what it left open."""
    exact = found["exact"]
    if exact is None:
        return NONE, NONE
    error = interval(exact["lower_bound"], exact["upper_bound"])
    return f"{error} of {exact['points']}", f"{exact['open']}, {found['max_seconds']:g} s"


def interval(lower: float, upper: float) -> str:
    """Both bounds in percent, or one figure where they meet."""
    return " to ".join(dict.fromkeys(f"{100 * bound:.2f}" for bound in (lower, upper)))


def _machines(row: Row) -> str:
    assert row.found is not None
    assert row.card is not None
    words = [
        f"{name} {machine['date']} on {machine['processor']}"
        for name, machine in (("trained", row.card.machine), ("evaluated", row.found["machine"]))
    ]
    return f"{row.scheme}: {', '.join(words)}."


def differences(blocks: dict[str, list[Row]]) -> list[str]:
    """A line for each figure that is more than one point from the paper's."""
    lines = []
    for row in (row for rows in blocks.values() for row in rows if row.printed):
        assert row.printed is not None
        for cell, theirs, ours in zip(CELLS, row.printed, row.here(), strict=True):
            if ours is not None and abs(ours - float(theirs)) > LARGE:
                change = f"{ours - float(theirs):+.2f}"
                lines.append(f"- {row.name}, {cell}: {theirs} there, {ours:.2f} here ({change})")
    return ["\n".join(lines) or "None.", DIFFERENCES]


def short_table(blocks: dict[str, list[Row]]) -> str:
    """The rows that are evaluated, for the README: figures of the paper / here."""
    lines = ["", "| | TE | LB | UB | KW | in the box | open, after |", "| --- " * 7 + "|"]
    for block, rows in blocks.items():
        for row in rows:
            if row.found is None:
                continue
            theirs = row.printed or (NONE,) * 3
            pairs = zip(theirs, row.here(), strict=True)
            cells = [f"{printed} / {percent(ours)}" for printed, ours in pairs]
            cells += [percent(100 * row.found["kw"]), *in_the_box(row.found)]
            lines.append(f"| {title(block)}, {row.scheme} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


# ---- figures


def draw(blocks: dict[str, list[Row]]) -> dict[str, str]:
    """Draw the figures of the blocks; their files, and what they show in words."""
    images = {}
    for block, rows in blocks.items():
        found = [row for row in rows if row.found and row.found["radii"]]
        if found:
            names = ", ".join(row.scheme for row in found)
            file = f"table1-{block}-radii.png"
            save(draw_radii(found), IMAGES / file)
            images[file] = f"Histograms of the certified radii of {names}; {title(block)}"
        if len(found) > 1:
            file = f"table1-{block}-curves.png"
            save(draw_curves(title(block), found), IMAGES / file)
            images[file] = (
                f"Certified accuracy (solid) and accuracy under attack (dashed) over the radius, "
                f"{names}; {title(block)}"
            )
    return images


def save(figure: plt.Figure, path: Path) -> None:
    """Save and close a figure."""
    # Without the version of Matplotlib in it, the same figures give the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def draw_radii(rows: list[Row]) -> plt.Figure:
    """Histograms of the certified radii of all points that have been measured."""
    certificates = {}
    for row in rows:
        assert row.card is not None
        _, points = read_points(POINTS / f"{row.name}.csv.gz")
        measured = [point for point in points.values() if "region" in point]
        lower = certified_radii(measured, row.card.preset)
        upper = np.array([point["attack"] for point in measured])
        nowhere = np.full((len(lower), 1), np.nan)
        certificates[row.scheme] = rm.Certificates(
            lower, upper, lower == upper, nowhere, row.card.preset.p, "region, crown, bab"
        )
    return rm.plot.radii(certificates, eps=rm.presets[rows[0].name].eps)


def draw_curves(name: str, rows: list[Row]) -> plt.Figure:
    """Certified accuracy, and accuracy under attack, of the schemes of a block."""
    figure, ax = plt.subplots(figsize=(7, 4.4), layout="constrained")
    for row in rows:
        assert row.found is not None
        curve, color = row.found["radii"]["curve"], COLORS[row.name.split("-")[3]]
        clean = 100 * (1 - row.found["test_error"])
        radii = [0, *curve["radii"]]
        certified = [clean, *(100 * share for share in curve["certified_accuracy"])]
        attacked = [clean, *(100 * share for share in curve["attacked_accuracy"])]
        ax.plot(radii, certified, color=color, lw=1.6, marker="o", ms=3, label=row.scheme)
        ax.plot(radii, attacked, color=color, lw=1.2, ls="--")
        ax.fill_between(radii, certified, attacked, color=color, alpha=0.08)
    eps = rm.presets[rows[0].name].eps
    assert eps is not None
    ax.axvline(eps, color="black", lw=0.8, ls=":")
    ax.set(title=name, xlabel="radius", ylabel="test points, %", xlim=(0, None), ylim=(0, 100))
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, title="certified; dashed: not attacked")
    return figure
