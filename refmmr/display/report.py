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
        "Certified radii of the test set: the class of an image does not change within its radius. "
        "Misclassified images have radius 0.",
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
    best = max(report["rows"], key=lambda row: row["mean_certified_radius"])
    plain = next(row for row in report["rows"] if row["scheme"] == "plain")
    times = best["mean_certified_radius"] / plain["mean_certified_radius"]
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
eps&nbsp;=&nbsp;{report["eps"]}. The mean certified radius of {_html.escape(best["scheme"])} is
{times:.1f} times that of plain training.</p>
<div class="scroll">{_table(report["rows"])}</div>
<p>Robust error: at least the share of images with a known adversarial example within eps, at most
that of images whose linear region does not certify eps. Exact: correctly classified images whose
minimal adversarial perturbation is known, because it lies in the linear region of the image.</p>
{figures}
</body>
</html>
"""


def _table(rows: list[Mapping[str, Any]]) -> str:
    names = (
        "training",
        "test error",
        "robust error, at least",
        "robust error, at most",
        "mean certified radius",
        "exact",
        "training time",
    )
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        f"<tr><td>{_html.escape(row['scheme'])}</td><td>{100 * row['test_error']:.1f}&nbsp;%</td>"
        f"<td>{100 * row['robust_error_lower_bound']:.1f}&nbsp;%</td>"
        f"<td>{100 * row['robust_error_upper_bound']:.1f}&nbsp;%</td>"
        f"<td>{row['mean_certified_radius']:.4f}</td><td>{100 * row['exact_share']:.1f}&nbsp;%</td>"
        f"<td>{row['training_seconds']:.0f}&nbsp;s</td></tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _figure(path: Path, alt: str, text: str) -> str:
    picture = base64.b64encode(path.read_bytes()).decode()
    source = f"data:image/png;base64,{picture}"
    return f'<figure><img src="{source}" alt="{alt}"><figcaption>{text}</figcaption></figure>'
