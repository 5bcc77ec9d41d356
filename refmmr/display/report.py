"""The report of the demo: one HTML file that contains its pictures."""

from __future__ import annotations

import base64
import html as _html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid #8886; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 2rem 0; }
img { max-width: 100%; background: white; }
figcaption { font-size: .95rem; opacity: .85; }
.scroll { overflow-x: auto; }
/* On a phone a row becomes a card: nothing of the comparison is out of sight. */
@media (max-width: 56rem) {
  thead { position: absolute; clip-path: inset(50%); }
  tbody { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .8rem; }
  tr { display: block; border-top: 3px solid #8886; padding-top: .3rem; }
  td { display: flex; justify-content: space-between; gap: .6rem; padding: .2rem 0; }
  td { font-size: .85rem; }
  td::before { content: attr(data-name); text-align: left; opacity: .85; }
  td:first-child { font-weight: 700; font-size: 1rem; }
  td:first-child::before { content: none; }
}
"""

FIGURES = (
    (
        "regions.png",
        "Linear regions of the plain and of the MMR network in a plane through three test images",
        "The plane through three test images (white points). On every coloured line one hidden "
        "unit changes sign; the polygons between the lines are the linear regions, on each of "
        "which the network is affine. The thick black line is the decision boundary. MMR pushes "
        "both away from the data: the regions around the points are larger.",
    ),
    (
        "classes.png",
        "The same plane coloured by the predicted class",
        "The same plane, coloured by the class that the network predicts.",
    ),
    (
        "radii.png",
        "Histogram of certified radii for each training scheme",
        "Certified radii of the test set, by the linear region of each image (one gradient) and by "
        "CROWN: the class of an image does not change within its radius. Misclassified images have "
        "radius 0.",
    ),
    (
        "adversarial.png",
        "Test images with their minimal adversarial examples and the difference",
        "Minimal adversarial examples of the network trained {examples_of}. Every image nearer to "
        "the original is proved to have the same class.",
    ),
)


def html(report: Mapping[str, Any], folder: Path) -> str:
    """The report as a page.

    Parameters
    ----------
    report : mapping
        The content of ``results.json``.
    folder : Path
        The folder of the pictures.

    Returns
    -------
    str
        HTML that loads no other file.
    """
    sizes = "-".join(map(str, report["network"]))
    figures = "\n".join(
        _figure(folder / name, alt, text.format(**report))
        for name, alt, text in FIGURES
        if (folder / name).exists()
    )
    rows = {row["scheme"]: row for row in report["rows"]}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>refmmr demo</title>
<style>{STYLE}</style>
</head>
<body>
<h1>Provable robustness by large linear regions</h1>
<p>The same {sizes} ReLU network, trained four ways on scikit-learn's digits and certified on the
whole test set: distances in l<sub>{report["p"]}</sub> within the box [0, 1], robust error at
eps&nbsp;=&nbsp;{report["eps"]}. {_claim(rows["plain"], rows["mmr"])}</p>
<div class="scroll">{_table(report["rows"])}</div>
<p>Robust error: the share of images with an adversarial example within eps, found exactly by
branch and bound; a range where its time limit left images open. Not certified: images, the
misclassified ones included, that a method by itself cannot certify beyond eps. Minimal change in
the region: images classified right whose minimal adversarial perturbation lies in their own linear
region, so that one gradient finds it.</p>
{figures}
</body>
</html>
"""


def _claim(plain: Mapping[str, Any], mmr: Mapping[str, Any]) -> str:
    """What MMR gains, and what it costs."""
    return (
        f"With MMR, one gradient finds the minimal adversarial perturbation of "
        f"{_percent(mmr['exact_share'])} of the images (plain training: "
        f"{_percent(plain['exact_share'])}); the test error is {_percent(mmr['test_error'])} "
        f"instead of {_percent(plain['test_error'])}."
    )


COLUMNS = (
    "training",
    "test error",
    "robust error",
    "not certified by the region",
    "not certified by CROWN",
    "mean radius by the region",
    "mean radius by CROWN",
    "minimal change in the region",
    "training time",
)


def _table(rows: list[Mapping[str, Any]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in COLUMNS)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, rows))}</tbody></table>"


def _row(row: Mapping[str, Any]) -> str:
    bounds = (row["robust_error_lower_bound"], row["robust_error_upper_bound"])
    cells = [
        _html.escape(row["scheme"]),
        _percent(row["test_error"]),
        " to ".join(dict.fromkeys(map(_percent, bounds))),
        *map(_percent, row["not_certified"].values()),
        *(f"{radius:.3f}" for radius in row["mean_certified_radius"].values()),
        _percent(row["exact_share"]),
        f"{row['training_seconds']:.0f}&nbsp;s",
    ]
    named = zip(COLUMNS, cells, strict=True)
    return "<tr>" + "".join(f'<td data-name="{name}">{cell}</td>' for name, cell in named) + "</tr>"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}&nbsp;%"


def _figure(path: Path, alt: str, text: str) -> str:
    picture = base64.b64encode(path.read_bytes()).decode()
    source = f"data:image/png;base64,{picture}"
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{text}</figcaption></figure>'
