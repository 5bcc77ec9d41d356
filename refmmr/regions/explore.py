"""An interactive page of all linear regions of a plane: a single file that works offline.

`payload` collects the data, `page` puts it into the template ``explore.html``, whose script draws
it.  The content security policy of the page forbids to load anything else.
"""

from __future__ import annotations

import base64
import html as _html
import json
import os
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from refmmr import _files
from refmmr import _validate as check
from refmmr.regions.domains import Box

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

    from refmmr.regions.complex import RegionComplex

__all__ = ["Explorer", "explore"]

PLACEHOLDER = "{{payload}}"
"""The place of the data in the template."""

IFRAME = (
    '<iframe title="Linear regions, interactive" sandbox="allow-scripts" '
    'style="width: 100%; height: 640px; border: 0" srcdoc="{}">'
    "An interactive map of linear regions. Trust this notebook or run its cell to see it here, or "
    "write it to a file: explore(...).save(&quot;regions.html&quot;).</iframe>"
)
"""A page in a notebook, isolated from the styles and scripts of the notebook.

Viewers that remove frames, of notebooks that are not trusted, keep the text within."""


class Explorer:
    """An interactive page, shown by a notebook as the result of a cell.

    Attributes
    ----------
    html : str
        The whole page.
    """

    def __init__(self, html: str) -> None:
        self.html = html

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page to a file, atomically.

        Parameters
        ----------
        path : path-like
            An ``.html`` file.
        """
        _files.write_text(_files.as_path(path, ".html"), self.html)

    def _repr_html_(self) -> str:
        return IFRAME.format(_html.escape(self.html))

    def __repr__(self) -> str:
        return f"Explorer({len(self.html) / 1e6:.1f} MB of HTML)"


def explore(
    cx: RegionComplex,
    path: str | os.PathLike[str] | None = None,
    *,
    points: ArrayLike | None = None,
    labels: ArrayLike | None = None,
) -> Explorer:
    """Make an interactive page of all linear regions of a plane complex.

    It shows the regions, the bent hyperplanes of the hidden units and the decision boundary, and
    for the region under the pointer its activation pattern, affine map and neighbours.  Around the
    pointer lies the ball of radius min(d_B, d_D), in l_2 or, for a `Box`, also in l_1 and l_inf:
    no point of the rectangle within it has another class.  (The page computes it in floats;
    `certify` rounds down.)  Regions thinner than a pixel are marked by a dot.  Ctrl and the wheel,
    two fingers, or plus and minus zoom; the wheel alone scrolls the page around the map.

    Parameters
    ----------
    cx : RegionComplex
    path : path-like, optional
        An ``.html`` file to write the page to.
    points : array_like, shape (m, 2), optional
        Points to show, in the coordinates of the plane, such as `Slice.points` or test data.
    labels : array_like of int, shape (m,), optional
        Their classes: they colour the points, and those that the network gets wrong are squares.

    Returns
    -------
    Explorer

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network.mlp([2, 8, 2], rng=0)
    >>> cx = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]))
    >>> page = cx.explore(points=[[0.5, 0.5], [-0.5, 0.1]], labels=[0, 1])
    """
    explorer = Explorer(page(payload(cx, points, labels)))
    if path is not None:
        explorer.save(path)
    return explorer


def page(content: dict[str, Any]) -> str:
    """The template with the data in it."""
    template = resources.files("refmmr.regions").joinpath("explore.html").read_text("utf-8")
    before, after = template.split(PLACEHOLDER)
    # Without "<" nothing in the data can end the script element that contains it.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return before + data + after


def payload(
    cx: RegionComplex, points: ArrayLike | None = None, labels: ArrayLike | None = None
) -> dict[str, Any]:
    """The data of the page, ready for JSON.

    Vertices that vertices and segments share are stored once and referred to by number.
    """
    lo, hi = cx.domain.rectangle
    segments, units = cx.bent_lines()
    boundary = cx.decision_boundary()
    rings = np.concatenate([np.reshape(vertices, (-1, 2)) for vertices in cx.vertices])
    pool, (vertices, bent_ends, boundary_ends) = _pool(rings, segments, boundary.segments)
    data, classes = _checked(points, labels, cx.net.n_classes)
    in_box = isinstance(cx.domain, Box)
    return {
        "complete": bool(cx.complete),
        "rectangle": [float(bound) for bound in (*lo, *hi)],
        "layers": [int(np.prod(shape)) for shape in cx.net.unit_shapes],
        "regions": len(cx),
        "classes": int(cx.net.n_classes),
        # In a box the plane is the input space; in a slice only l_2 is the norm of that space.
        "box": in_box,
        "axes": ["input 1", "input 2"] if in_box else ["along", "across"],
        "data": encode(data, "<f8"),
        "labels": encode(classes, "<u4"),
        "points": encode(pool, "<f8"),
        "vertices": encode(vertices, "<u4"),
        "sizes": encode([len(vertices) for vertices in cx.vertices], "<u4"),
        "areas": encode(cx.areas, "<f8"),
        "winners": encode(cx.classes, "<u4"),
        "patterns": encode(np.packbits(cx.patterns, axis=1), "u1"),
        "V": encode(cx.affine_maps.V, "<f8"),
        "a": encode(cx.affine_maps.a, "<f8"),
        "neighbours": encode(cx.neighbours, "<u4"),
        "bentEnds": encode(bent_ends, "<u4"),
        "bentUnits": encode(units, "<u4"),
        "boundaryEnds": encode(boundary_ends, "<u4"),
    }


def _checked(
    points: ArrayLike | None, labels: ArrayLike | None, n_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Data points, (m, 2), and their classes, (m,) or (0,)."""
    if points is None:
        if labels is not None:
            raise ValueError("labels: expected points with them, got labels alone; give points=")
        points = np.zeros((0, 2))
    data = check.check_array("points", points, 2)
    check.check_shape("points", data, (len(data), 2))
    classes = np.zeros(0, int) if labels is None else np.asarray(labels)
    if labels is not None:
        classes = check.check_labels(labels, len(data), n_classes, "labels", device=False)
    return data, classes


ARRAY_TYPES = {"<f8": "Float64Array", "<u4": "Uint32Array", "u1": "Uint8Array"}
"""Typed arrays of JavaScript by dtype; they are little-endian on all processors in use."""


def encode(array: ArrayLike, dtype: DTypeLike) -> dict[str, str]:
    """An array as text, bit for bit: ``{"type": ..., "data": base64}``."""
    content = np.ascontiguousarray(array, dtype=dtype).tobytes()
    return {"type": ARRAY_TYPES[str(dtype)], "data": base64.b64encode(content).decode()}


def _pool(*arrays: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """Distinct points, (P, 2), and for each array the indices of its points."""
    pairs = [np.ascontiguousarray(array, dtype=np.float64).reshape(-1, 2) for array in arrays]
    # Compared bit by bit, so that the sign of a zero is kept.
    bits = np.concatenate(pairs).view(np.int64)
    distinct, places = np.unique(bits, axis=0, return_inverse=True)
    ends = np.cumsum([len(pair) for pair in pairs])[:-1]
    return distinct.view(np.float64), np.split(places.reshape(-1), ends)
