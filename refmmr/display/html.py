"""HTML by which notebooks show networks, certificates, complexes, trainings and evaluations.

It has no scripts, loads no files and sets no colours, so that it suits light and dark notebooks.
"""

from __future__ import annotations

import base64
import html as _html
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refmmr.reference.layers import Conv2d, Linear

if TYPE_CHECKING:
    from refmmr.certify import Certificates
    from refmmr.certify.evaluation.results import Result
    from refmmr.reference.network import Network
    from refmmr.regions import RegionComplex
    from refmmr.training import History

__all__ = ["certificates", "history", "network", "regions", "result", "table"]

MAX_REGIONS = 3000
"""Largest number of regions in a picture: more would make the file of the notebook large."""
PICTURE = 360
"""Width of a picture in pixels."""
BINS = 24
"""Number of bars of a histogram."""
ROWS = 10
"""Largest number of rows of a table."""


def network(net: Network) -> str:
    """A network, layer by layer."""
    rows: list[Sequence[Any]] = [("input", _shape(net.input_shape), "", "")]
    shape, last = net.input_shape, net.affine[-1]
    for i, layer in enumerate(net.layers):
        shape = layer.output_shape(shape)
        weights = hidden = relu = ""
        if isinstance(layer, (Linear, Conv2d)):
            weights = f"{layer.W.size + layer.b.size:,}"
            if i != last:
                hidden, relu = f"{math.prod(shape):,}", ", ReLU"
        rows.append((f"{layer!r}{relu}", _shape(shape), hidden, weights))
    total = sum(W.size + b.size for W, b in net.parameters)
    rows.append(("in all", "", f"{net.n_hidden:,}", f"{total:,}"))
    title = f"Network, {net.parameters[0][0].dtype}"
    return _block(title, table(("layer", "output", "hidden units", "weights"), rows))


def certificates(found: Certificates) -> str:
    """Certificates: a summary, a histogram of the radii, the first points."""
    n = len(found)
    facts: list[tuple[str, str]] = [
        ("mean certified radius", f"{found.lower.mean():.4g}"),
        ("median certified radius", f"{np.median(found.lower):.4g}"),
        ("minimal perturbation known", f"{100 * found.exact.mean():.1f} %"),
    ]
    if found.robust is not None and found.eps is not None:
        attacked = (found.upper <= found.eps).mean()
        facts = [
            ("robust at eps", f"{100 * found.robust.mean():.1f} %"),
            ("adversarial example within eps", f"{100 * attacked:.1f} %"),
        ]
    rows = [
        (i, f"{found.lower[i]:.6g}", _upper(found.upper[i]), "yes" if found.exact[i] else "no")
        for i in range(min(n, ROWS))
    ]
    title = f"Certificates of {n} points, l_{found.p}, {found.method}"
    parts = [table(("", ""), facts, head=False)]
    if found.robust is None and n > 1 and np.isfinite(found.lower).any():
        parts.append(_histogram(found.lower[np.isfinite(found.lower)], "certified radius"))
    parts.append(table(("point", "radius, at least", "at most", "exact"), rows))
    if n > ROWS:
        parts.append(f"<p>and {n - ROWS} more; <code>.to_frame()</code> has them all</p>")
    return _block(title, *parts)


def regions(cx: RegionComplex) -> str:
    """The linear regions of a domain: a summary, and in a plane a picture."""
    facts = [
        ("dimensions", f"{cx.dimension}"),
        ("regions", f"{len(cx):,}"),
        ("facets", f"{len(cx.facets.hyperplanes):,}"),
        ("vertices", f"{len(cx.points):,}"),
        ("smallest volume", f"{cx.volumes.min():.4g}"),
        ("median volume", f"{np.median(cx.volumes):.4g}"),
        ("largest volume", f"{cx.volumes.max():.4g}"),
        ("complete", "yes" if cx.complete else "no: stopped by its budget"),
    ]
    parts = [table(("", ""), facts, head=False)]
    if cx.dimension == 2 and len(cx) <= MAX_REGIONS:
        # In an image of its own, so that its style sheet has no effect on the notebook.
        picture = base64.b64encode(cx.to_svg(size=PICTURE).encode()).decode()
        text = f"{len(cx)} linear regions, coloured by the class that wins"
        parts.append(
            f'<img alt="{text}" width="{PICTURE}" src="data:image/svg+xml;base64,{picture}">'
        )
    return _block("Linear regions", *parts)


def history(found: History) -> str:
    """The last epochs of a training."""
    if not found.records:
        return _block("Training without an epoch")
    columns = list(found.records[-1])
    start = max(0, len(found) - ROWS)
    rows = [
        [_number(record.get(column, math.nan)) for column in columns]
        for record in found.records[start:]
    ]
    title = f"Training, {len(found)} epochs"
    if start:
        title += f", the last {ROWS}"
    return _block(title, table(columns, rows))


def result(found: Result) -> str:
    """An evaluation: its table, and the points that each method decided."""
    decides = found.decides
    names = ["settled by", "points", *(["robust", "attacked"] if decides else []), "seconds"]
    rows: list[list[Any]] = []
    for name, (points, robust, attacked, seconds) in found.settled.items():
        counts = [robust, attacked] if decides else []
        rows.append([name, points, *counts, f"{seconds:.2f}"])
    left = len(found) - sum(row.points for row in found.settled.values())
    rows.append(["undecided", left, *([""] * (len(names) - 2))])
    return _block(found.head(), table(("", ""), found.rows(), head=False), table(names, rows))


def table(names: Iterable[str], rows: Iterable[Sequence[Any]], head: bool = True) -> str:
    """A table; the first column, of text, is aligned left, the others, of numbers, right."""
    lines = ["<table>"]
    if head:
        cells = "".join(_cell("th", i, name) for i, name in enumerate(names))
        lines.append(f"<thead><tr>{cells}</tr></thead>")
    lines.append("<tbody>")
    for row in rows:
        cells = "".join(_cell("td", i, value) for i, value in enumerate(row))
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</tbody></table>"])


def _cell(kind: str, column: int, value: Any) -> str:
    side = "left" if column == 0 else "right"
    return (
        f'<{kind} style="text-align: {side}; padding: 2px 8px">{_html.escape(str(value))}</{kind}>'
    )


def _block(title: str, *parts: str) -> str:
    inside = "\n".join(parts)
    return (
        f'<div style="overflow-x: auto"><p><strong>{_html.escape(title)}</strong></p>\n'
        f"{inside}\n</div>"
    )


def _histogram(values: np.ndarray, name: str) -> str:
    """A histogram in the colour of the text."""
    counts, edges = np.histogram(values, BINS, (0.0, float(values.max()) or 1.0))
    width, height, margin = 320, 80, 18
    step, tallest = width / BINS, counts.max()
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - height * count / tallest:.1f}" '
        f'width="{step - 1:.1f}" height="{height * count / tallest:.1f}">'
        f"<title>{count} from {edges[i]:.4g} to {edges[i + 1]:.4g}</title></rect>"
        for i, count in enumerate(counts)
        if count
    )
    style = 'font-size="12" fill="currentColor"'
    return (
        f'<svg role="img" width="{width}" height="{height + margin}" '
        f'viewBox="0 0 {width} {height + margin}" fill="currentColor">'
        f'<title>Histogram: {name}</title><g opacity="0.7">{bars}</g>'
        f'<line x2="{width}" y1="{height}" y2="{height}" stroke="currentColor"/>'
        f'<text y="{height + 14}" {style}>0</text>'
        f'<text x="{width / 2}" y="{height + 14}" text-anchor="middle" {style}>{name}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end" {style}>{edges[-1]:.3g}</text>'
        "</svg>"
    )


def _upper(value: float) -> str:
    return f"{value:.6g}" if np.isfinite(value) else "none found"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
