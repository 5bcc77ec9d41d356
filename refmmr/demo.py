"""The demo: train a small network four ways on digits, certify, draw, write a report.

The robust error is the exact one where branch and bound ends; beside it stands what the
linear region of each point certifies by itself, at the price of one gradient, and what CROWN does.
The settings were chosen on a validation split of the training set (``benchmarks/tune_digits.py``);
the test set is used here only.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refmmr import _files, datasets, io
from refmmr._backend import get_backend
from refmmr.certify import Certificates, RobustError, certify, robust_error
from refmmr.network import Network
from refmmr.regions import RegionComplex, Slice, enumerate_regions
from refmmr.training import fit

SIZES = (64, 64, 10)
SCHEMES = ("plain", "at", "mmr", "mmr+at")
SEED = 0
P, EPS = 2, 0.3
TRAINING: dict[str, Any] = {
    "p": P,
    "eps": EPS,
    "epochs": 100,
    "batch_size": 64,
    "lr": 2e-3,
    "pgd_steps": 10,
    "rng": SEED,
}
REGULARIZER: dict[str, dict[str, float]] = {
    "mmr": {"lam": 4.0, "gamma": 0.6},
    "mmr+at": {"lam": 0.5, "gamma": 0.8},
}
BOUNDS = {"region": "the linear region", "crown": "CROWN"}
"""Methods whose radii are compared, and their names in figures."""
MARGIN = 1.0
"""Margin of the plane around its three points, as a share of their largest extent."""
SHOWN = 8
"""Number of minimal adversarial examples in the figure."""


@dataclass(frozen=True)
class Trained:
    """A trained network and its evaluation: one row of the table."""

    scheme: str
    net: Network
    result: RobustError
    certificates: Mapping[str, Certificates]
    seconds: float

    @property
    def exact_share(self) -> float:
        """Share of points, classified right, whose minimal perturbation lies in their region."""
        region = self.certificates["region"]
        return float((region.exact & ~self.result.misclassified).mean())

    def not_certified(self, method: str) -> float:
        """Share of points that a method by itself does not certify beyond eps."""
        return float((self.certificates[method].lower <= EPS).mean())

    def mean_radius(self, method: str) -> float:
        """Mean certified radius of a method; 0 for misclassified points."""
        return float(self.certificates[method].lower.mean())

    def figures(self) -> dict[str, Any]:
        """The numbers of the row."""
        return {
            "scheme": self.scheme,
            "test_error": self.result.test_error,
            "robust_error_lower_bound": self.result.lower_bound,
            "robust_error_upper_bound": self.result.upper_bound,
            "not_certified": {method: self.not_certified(method) for method in BOUNDS},
            "mean_certified_radius": {method: self.mean_radius(method) for method in BOUNDS},
            "exact_share": self.exact_share,
            "training_seconds": round(self.seconds, 2),
        }


def run(
    out: Path, say: Callable[[str], object] = print, epochs: int | None = None
) -> list[Trained]:
    """Run the demo and write networks, figures and report into a folder.

    Parameters
    ----------
    out : Path
        The folder; created if it does not exist.
    say : callable
        Called with each line of progress.
    epochs : int, optional
        Length of each training, instead of 100 epochs.

    Returns
    -------
    list of Trained
        Plain, at, mmr, mmr+at.

    Raises
    ------
    KeyboardInterrupt
        If Ctrl-C stops a training; the networks trained before are saved.
    """
    data = datasets.load("digits")
    say(
        f"digits: {len(data.X_train)} training and {len(data.X_test)} test images of 8x8 pixels; "
        f"network {'-'.join(map(str, SIZES))}; l_{P}, eps = {EPS}"
    )
    rows = []
    for scheme in SCHEMES:
        row = _train(scheme, data, epochs)
        io.save(row.net, out / f"{scheme}.npz")
        rows.append(row)
    say("\n" + table(rows) + "\n")
    complexes, plane = _slices(rows, data)
    for name, cx in complexes.items():
        say(f"linear regions in the plane through three digits, {name}: {len(cx)}")
    report = {
        "dataset": data.name,
        "network": list(SIZES),
        "p": P,
        "eps": EPS,
        "training": {**TRAINING, "epochs": epochs or TRAINING["epochs"]},
        "regularizer": REGULARIZER,
        "backend": get_backend(),
        "rows": [row.figures() for row in rows],
        "examples_of": examples_of(rows).scheme,
        "regions_in_the_plane": {name: len(cx) for name, cx in complexes.items()},
    }
    _files.write_text(out / "results.json", json.dumps(report, indent=1) + "\n")
    _draw(out, rows, data, complexes, plane)
    from refmmr.display import report as page

    _files.write_text(out / "report.html", page.html(report, out))
    say(f"networks, results.json, figures and report.html are in {out}")
    return rows


def examples_of(rows: list[Trained]) -> Trained:
    """The network with the most known minimal adversarial examples, whose examples are shown."""
    return max(rows, key=lambda row: row.exact_share)


def table(rows: list[Trained]) -> str:
    """The comparison as text."""
    head = (
        f"{'training':<9}{'test':>7}{'robust':>16}{'not certified by':>19}"
        f"{'mean radius by':>18}{'minimal change':>17}"
    )
    below = (
        f"{'':<9}{'error':>7}{'error':>16}{'region':>10}{'CROWN':>9}"
        f"{'region':>10}{'CROWN':>8}{'in the region':>17}"
    )
    lines = [head, below, "-" * len(head)]
    for row in rows:
        shares = "".join(
            f"{100 * row.not_certified(method):>{width}.1f} %"
            for method, width in (("region", 8), ("crown", 7))
        )
        lines.append(
            f"{row.scheme:<9}{100 * row.result.test_error:>5.1f} %"
            f"{interval(row.result.lower_bound, row.result.upper_bound):>16}{shares}"
            f"{row.mean_radius('region'):>10.3f}{row.mean_radius('crown'):>8.3f}"
            f"{100 * row.exact_share:>15.1f} %"
        )
    return "\n".join(lines)


def interval(low: float, high: float) -> str:
    """A share in percent, or the two bounds of one that is not known exactly."""
    bounds = dict.fromkeys(f"{100 * share:.1f}" for share in (low, high))
    return " - ".join(bounds) + " %"


def _train(scheme: str, data: datasets.Dataset, epochs: int | None) -> Trained:
    start = time.perf_counter()
    settings = {**TRAINING, **REGULARIZER.get(scheme, {})}
    settings["epochs"] = epochs or settings["epochs"]
    net, history = fit(Network.mlp(SIZES, rng=SEED), data.X_train, data.y_train, scheme, **settings)
    if history.interrupted:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - start
    points = data.X_test, data.y_test
    result = robust_error(net, *points, P, eps=EPS)
    certificates = {method: certify(net, *points, P, method=method) for method in BOUNDS}
    return Trained(scheme, net, result, certificates, seconds)


def _slices(
    rows: list[Trained], data: datasets.Dataset
) -> tuple[Mapping[str, RegionComplex], Slice]:
    """The regions in the plane through a 3, a 5 and an 8 that all networks classify correctly."""
    right = ~np.any([row.result.misclassified for row in rows], axis=0)
    chosen = [np.flatnonzero(right & (data.y_test == digit))[0] for digit in (3, 5, 8)]
    x0, x1, x2 = data.X_test[chosen]
    # Large enough to show the hyperplanes that MMR has pushed away from the points.
    points = Slice(x0, x1, x2).points
    low, high = points.min(axis=0), points.max(axis=0)
    margin = MARGIN * (high - low).max()
    low, high = low - margin, high + margin
    plane = Slice(x0, x1, x2, (low[0], high[0], low[1], high[1]))
    nets = {row.scheme: row.net for row in rows}
    return {name: enumerate_regions(nets[name], plane) for name in ("plain", "mmr")}, plane


def _draw(
    out: Path,
    rows: list[Trained],
    data: datasets.Dataset,
    complexes: Mapping[str, RegionComplex],
    plane: Slice,
) -> None:
    from matplotlib import pyplot as plt

    from refmmr.display import figures

    names = ("a 3", "a 5", "an 8")
    figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for ax, (name, cx) in zip(axes, complexes.items(), strict=True):
        figures.bent_lines(cx, ax, points=plane.points, labels=names)
        ax.set_title(f"trained {name}, number of linear regions in this plane: {len(cx)}")
        ax.legend(loc="lower left", fontsize=9, framealpha=0.9)
    figures.save(figure, out / "regions.png")

    figure, axes = plt.subplots(1, 2, figsize=(12, 6), layout="constrained")
    for ax, (name, cx) in zip(axes, complexes.items(), strict=True):
        figures.regions(cx, "class", ax, points=plane.points, labels=names)
        ax.set_title(f"trained {name}: predicted class")
        ax.legend(loc="lower right", fontsize=8)
    figures.save(figure, out / "classes.png")

    certificates = {
        f"{row.scheme}, by {name}": row.certificates[method]
        for method, name in BOUNDS.items()
        for row in rows
    }
    figures.save(figures.radii(certificates, EPS), out / "radii.png")

    row = examples_of(rows)
    c = row.certificates["region"]
    shown = np.flatnonzero(c.exact & (c.lower > 0) & np.isfinite(c.upper))[:SHOWN]
    (out / "adversarial.png").unlink(missing_ok=True)
    if len(shown) == 0:
        return
    picked = type(c)(
        c.lower[shown], c.upper[shown], c.exact[shown], c.adversarial[shown], c.p, c.method
    )
    predictions = row.net.predict(picked.adversarial)
    figure = figures.adversarial_examples(
        data.X_test[shown], data.y_test[shown], picked, predictions, (8, 8)
    )
    figures.save(figure, out / "adversarial.png")
