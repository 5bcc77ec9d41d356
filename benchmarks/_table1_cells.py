"""The cells of the paper's table: what is printed there, what was found here, and by what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import _markdown
import _table1_paper as paper
from _table1_files import ZOO
from _table1_rows import Training, training

import refmmr as rm

NONE = "–"
CELLS = ("TE", "LB", "UB")
THEIRS = {
    "linf": {"LB": "PGD, MIP", "UB": "KW, MIP"},
    "l2": {"LB": "PGD", "UB": "KW"},
}
"""Methods of the paper's bounds; MIP: mixed-integer programs, 120 s a point."""


class Row(NamedTuple):
    """A cell of the paper's table: what is printed there, and the card of the network here."""

    name: str
    printed: tuple[str, str, str] | None
    card: rm.zoo.Card | None

    @property
    def scheme(self) -> str:
        """As the paper calls it, with the length of the training if it was shortened."""
        scheme = paper.SCHEMES[self.name.split("-")[3]]
        if self.card is None or "epochs" not in self.card.changes:
            return scheme
        return f"{scheme} ({self.card.changes['epochs']} epochs)"

    @property
    def norm(self) -> str:
        """linf or l2."""
        return self.name.split("-")[2]

    @property
    def found(self) -> dict | None:
        """The evaluation, if there is one."""
        return None if self.card is None else self.card.evaluation

    def here(self) -> tuple[float | None, float | None, float | None]:
        """TE, LB and UB as the paper measures them, in percent."""
        return figures(self.card)

    def sources(self) -> dict[str, str]:
        """The methods that gave LB and UB here."""
        if self.found is None:
            return {}
        if self.norm == "l2":
            return THEIRS["l2"]
        settled, tried = self.found["settled"], self.found["max_seconds"] > 0
        attacked = settled.get("bab_attacked", 0)
        lower = [name for name, n in (("PGD", settled["attack"]), ("bab", attacked)) if n]
        return {"LB": ", ".join(lower) or "errors", "UB": "CROWN, bab" if tried else "CROWN"}


def figures(card: rm.zoo.Card | None) -> tuple[float | None, float | None, float | None]:
    """TE, LB and UB of a network as the paper measures them, in percent.

    Those of MMR-Universal are for an attacker who may choose the norm.
    """
    if card is None:
        return None, None, None
    error = 100 * card.test_error
    if card.evaluation is None:
        return error, None, None
    names = ("pgd", "kw") if card.preset.p == 2 else ("lower_bound", "upper_bound")
    lower, upper = (100 * card.evaluation[name] for name in names)
    return error, lower, upper


def table() -> dict[str, list[Row]]:
    """The rows of each block, a data set with a network and a norm, in the paper's order."""
    printed, stored = paper.cells(), cards()
    blocks = {}
    for data in paper.DATA:
        for column in paper.COLUMNS:
            names = [f"{data}-{column}-{scheme}" for scheme in paper.SCHEMES]
            rows = [Row(name, printed.get(name), _card_of_row(name, stored)) for name in names]
            rows = [row for row in rows if row.printed or row.card]
            if rows:
                blocks[f"{data}-{column}"] = rows
    return blocks


def cards() -> dict[str, tuple[Training, rm.zoo.Card]]:
    """All cards of the zoo, those of repeated and changed trainings too."""
    names = sorted(path.stem for path in ZOO.glob("*.json"))
    return {name: (training(name), rm.zoo.card(name)) for name in names}


def _card_of_row(name: str, stored: dict[str, tuple[Training, rm.zoo.Card]]) -> rm.zoo.Card | None:
    """The row's own network, or else that of its longest shortened training."""
    if name in stored:
        return stored[name][1]
    shorter = [
        (one.changes["epochs"], card)
        for one, card in stored.values()
        if one.row == name and one.changes.keys() == {"epochs"} and one.seed == training(name).seed
    ]
    return max(shorter, key=lambda pair: pair[0])[1] if shorter else None


def title(block: str) -> str:
    """A block in words."""
    data, network, norm = block.split("-")
    eps = rm.presets[f"{block}-plain"].eps
    assert eps is not None
    in_255 = norm == "linf" and data not in ("mnist", "fmnist")
    radius = f"{255 * eps:.0f}/255" if in_255 else f"{eps:g}"
    name = "FC1" if network == "fc1" else "CNN"
    return f"{paper.DATA[data]}, {name}, {'l_inf' if norm == 'linf' else 'l_2'}, eps = {radius}"


def percent(value: float | None) -> str:
    """A figure in percent, or a dash."""
    return NONE if value is None else f"{value:.2f}"


def interval(lower: float, upper: float) -> str:
    """Both bounds in percent, or one figure where they meet."""
    return " to ".join(dict.fromkeys(f"{100 * bound:.2f}" for bound in (lower, upper)))


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(_markdown.table(head, rows))
