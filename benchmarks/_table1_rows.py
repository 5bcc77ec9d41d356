"""Names of the trainings: rows of the paper's table, repeated ones, and those with one change.

``mnist-fc1-l2-mmr`` is a row, trained with its preset and seed 0.  Words behind it say what is
different: ``-fullfilter``, ``-nostart``, ``-epochs10``, ``-seed1``, in this order.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

import refmmr as rm

SEED = 0
BLOCKS = ("mnist-cnn-linf", "mnist-fc1-linf", "mnist-cnn-l2", "mnist-fc1-l2",
          "fmnist-cnn-linf", "fmnist-fc1-linf", "fmnist-cnn-l2", "fmnist-fc1-l2")  # fmt: skip
SCHEMES = ("mmr+at", "mmr", "at", "plain", "kw")
ROWS = [f"{block}-{scheme}" for block in BLOCKS for scheme in SCHEMES]
"""In an order that is useful wherever it stops; German signs and CIFAR-10 need a GPU."""
CHANGES: dict[str, dict[str, Any]] = {
    "fullfilter": {"border": "full-filter"},
    "nostart": {"random_start": False},
}
"""Words for one change of an argument of `refmmr.fit`, to compare with the row without it.

"fullfilter" is the authors' rule for border units of the first convolution, "nostart" an attack
that begins at the sample itself, which the authors' code does not do.
"""

UNIVERSAL = {"l1": (1, 1.0), "l2": (2, 0.3), "linf": (np.inf, 0.1)}
"""Norms and radii at which MMR-Universal is measured: the paper's in l_2 and l_inf, and in l_1 the
distance that its training aims at, on MNIST and on Fashion-MNIST."""


def measured_in(name: str, preset: rm.Preset) -> dict[str, rm.Preset]:
    """The evaluations of a network by the name of their points, each with a norm and a radius.

    A row of the paper's table has one, of its own name, MMR-Universal one for each of `UNIVERSAL`.
    """
    if preset.p is not None:
        return {name: preset}
    return {f"{name}-{n}": preset._replace(p=p, eps=eps) for n, (p, eps) in UNIVERSAL.items()}


class Training(NamedTuple):
    """A preset with a seed and what is changed."""

    row: str
    seed: int
    changes: dict[str, Any]

    @property
    def preset(self) -> rm.Preset:
        """The settings of its row."""
        return rm.presets[self.row]

    @property
    def name(self) -> str:
        """That of its files."""
        words = [word for word, change in CHANGES.items() if change.items() <= self.changes.items()]
        words += [f"epochs{self.changes['epochs']}"] if "epochs" in self.changes else []
        words += [f"seed{self.seed}"] if self.seed != SEED else []
        return "-".join([self.row, *words])

    def without(self, word: str) -> Training:
        """The training that one of `CHANGES` is compared with."""
        left = {k: v for k, v in self.changes.items() if k not in CHANGES[word]}
        return self._replace(changes=left)


def training(name: str, seed: int | None = None, epochs: int | None = None) -> Training:
    """The training of this name, or with another seed and number of epochs."""
    parts = re.fullmatch(
        r"(.*?)(-fullfilter)?(-nostart)?(?:-epochs([1-9]\d*))?(?:-seed(\d+))?", name
    )
    assert parts is not None  # the first group takes any name
    row, *words, said_epochs, said_seed = parts.groups()
    if row not in rm.presets:
        raise SystemExit(
            f"{name}: expected a row such as mnist-fc1-l2-mmr, and behind it none or some of "
            "-fullfilter, -nostart, -epochs10, -seed1, in this order"
        )
    changes = {k: v for word in words if word for k, v in CHANGES[word[1:]].items()}
    epochs = epochs or (int(said_epochs) if said_epochs else None)
    if epochs not in (None, rm.presets[row].epochs):
        changes["epochs"] = epochs
    found = Training(row, int(said_seed or SEED) if seed is None else seed, changes)
    _check(found)
    return found


def _check(found: Training) -> None:
    """Refuse a change that changes nothing."""
    preset = found.preset
    if "border" in found.changes and not (preset.network == "cnn" and "mmr" in preset.scheme):
        raise SystemExit(
            f"{found.name}: expected a CNN with MMR, such as mnist-cnn-linf-mmr: others have no "
            "units at the border of a convolution whose distances count"
        )
    if "random_start" in found.changes and preset.scheme not in ("at", "mmr+at"):
        raise SystemExit(f"{found.name}: expected a scheme with an attack, at or mmr+at")
