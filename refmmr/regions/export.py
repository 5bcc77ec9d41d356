"""Export of the regions of a plane: the geometry as GeoJSON, a picture as SVG."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from refmmr import _files
from refmmr import _validate as check
from refmmr.display.colors import CLASS_COLORS
from refmmr.regions.graph import check_complex

if TYPE_CHECKING:
    from refmmr.regions.complex import RegionComplex

__all__ = ["geojson", "save_geojson", "save_svg", "svg"]

SHADES = ("#31446B", "#575D6D", "#7C7B78", "#A69D75", "#D3C164", "#FEE838")
"""Colours of the map cividis, for regions that must differ from their neighbours only."""

LIGHT, DARK = ("#FFFFFF", "#101010", 0.45), ("#16181D", "#F4F4F4", 0.6)
"""Colours of background and lines, and opacity of the regions, in light and in dark mode."""


# ---- GeoJSON.


def geojson(cx: RegionComplex) -> dict[str, Any]:
    """The regions of a plane and its decision boundary as GeoJSON (RFC 7946).

    Parameters
    ----------
    cx : RegionComplex
        Of a domain of two dimensions.

    Returns
    -------
    dict
        A FeatureCollection, for `json.dump`.  Coordinates are those of the plane, in full
        precision, not longitudes and latitudes as in RFC 7946.  A region is a Polygon, its ring
        counter-clockwise and closed, with the properties ``id`` (its number in `cx`), ``class``
        (at its centre), ``area``, ``pattern`` (a string of 0 and 1, with a bar between layers) and
        ``neighbours`` (numbers).  A piece of the decision boundary is a LineString with the
        property ``classes`` (the two that tie).

    Raises
    ------
    TypeError, ValueError
        For an object that is not a complex, or a domain of other dimensions.
    """
    _check_plane(cx)
    (left, bottom), (right, top) = cx.domain.rectangle
    return {
        "type": "FeatureCollection",
        "bbox": [float(side) for side in (left, bottom, right, top)],
        "features": [*_region_features(cx), *_boundary_features(cx)],
    }


def save_geojson(cx: RegionComplex, path: str | os.PathLike[str]) -> None:
    """Write what `geojson` gives to a file, atomically.

    Parameters
    ----------
    cx : RegionComplex
        Of a domain of two dimensions.
    path : path-like
        Must end in ``.geojson`` or ``.json``.

    Raises
    ------
    TypeError, ValueError
        As `geojson`, and for another ending.
    """
    path = _files.as_path(path, ".geojson", ".json")
    _files.write_text(path, json.dumps(geojson(cx), allow_nan=False) + "\n")


def _region_features(cx: RegionComplex) -> Iterator[dict[str, Any]]:
    points = cx.points.tolist()
    neighbours = _neighbours(cx)
    columns = zip(
        cx.vertex_numbers, cx.classes.tolist(), cx.areas.tolist(), _patterns(cx), strict=True
    )
    for i, (vertices, winner, area, pattern) in enumerate(columns):
        ring = [points[vertex] for vertex in vertices.tolist()]
        properties = {
            "id": i,
            "class": winner,
            "area": area,
            "pattern": pattern,
            "neighbours": neighbours[i],
        }
        yield _feature("Polygon", [[*ring, ring[0]]], properties) | {"id": i}


def _boundary_features(cx: RegionComplex) -> Iterator[dict[str, Any]]:
    segments, classes = cx.decision_boundary()
    for ends, pair in zip(segments.tolist(), classes.tolist(), strict=True):
        yield _feature("LineString", ends, {"classes": pair})


def _feature(kind: str, coordinates: list[Any], properties: dict[str, Any]) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def _patterns(cx: RegionComplex) -> list[str]:
    """Activation patterns as text, such as "0110|01" for two layers."""
    starts = [units.start for units in cx.net.unit_slices]
    letters = np.where(cx.patterns_of(slice(None)), b"1", b"0")
    letters = np.insert(letters, starts[1:], b"|", axis=1)
    return [row.tobytes().decode() for row in letters]


def _neighbours(cx: RegionComplex) -> list[list[int]]:
    """Numbers of the neighbours of each region, in ascending order."""
    found: list[set[int]] = [set() for _ in range(len(cx))]
    for i, j in cx.neighbours.tolist():
        found[i].add(j)
        found[j].add(i)
    return [sorted(numbers) for numbers in found]


# ---- SVG.


def svg(
    cx: RegionComplex,
    color: str = "class",
    *,
    boundary: bool = True,
    size: float = 720,
    title: str | None = None,
    class_names: Sequence[str] | None = None,
) -> str:
    """The regions of a plane as a self-contained SVG picture.

    Each region is a path of its own; browsers show its number, class and area under the pointer.
    Colours follow the setting of the screen, light or dark.

    Parameters
    ----------
    cx : RegionComplex
        Of a domain of two dimensions.
    color : {"class", "region", "none"}
        What the colour of a region shows: its class at the centre; a shade other than its
        neighbours'; nothing.
    boundary : bool
        Draw the decision boundary as a thick line.
    size : float
        Width or height in pixels, whichever is larger.  Coordinates in the picture are those of
        the plane.
    title : str, optional
        Title of the picture; if not given, the `repr` of the complex.
    class_names : sequence of str, optional
        One per class; if not given, their numbers.

    Returns
    -------
    str

    Raises
    ------
    TypeError, ValueError
        For an object that is not a complex, a domain of other dimensions, another `color`, or a
        number of names other than that of classes.

    Examples
    --------
    >>> import refmmr as rm
    >>> net = rm.Network.mlp([2, 4, 3], rng=0)
    >>> picture = svg(rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1])))
    >>> picture[:4], picture.count("<title>region ")
    ('<svg', 8)
    """
    _check_plane(cx)
    color = check.check_choice("color", color, ("class", "region", "none"))
    size = check.check_number("size", size)
    names = _class_names(cx, class_names)
    (left, bottom), (right, top) = (side.tolist() for side in cx.domain.rectangle)
    width, height = right - left, top - bottom
    pixel = max(width, height) / size
    fills = _fills(cx, color)
    frame = f'x="{left!r}" y="{-top!r}" width="{width!r}" height="{height!r}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="refmmr" role="img" '
        f'width="{width / pixel:.6g}" height="{height / pixel:.6g}" '
        f'viewBox="{left!r} {-top!r} {width!r} {height!r}">',
        f"<title>{_text(repr(cx) if title is None else title)}</title>",
        f"<style>\n{_style(color, pixel, len(cx))}</style>",
        f'<rect class="ground" {frame}/>',
        # In SVG the second coordinate points down.
        '<g transform="scale(1 -1)">',
        *_region_paths(cx, fills, names),
        *(_pieces_of_others(cx) if color == "class" else ()),
        f'<path class="facets" d="{_lines(cx.points[cx.facets.vertices.flat])}"/>',
    ]
    if boundary:
        parts.append(f'<path class="boundary" d="{_lines(cx.decision_boundary().segments)}"/>')
    return "\n".join([*parts, "</g>", "</svg>", ""])


def save_svg(cx: RegionComplex, path: str | os.PathLike[str], **options: Any) -> None:
    """Write what `svg` gives to a file, atomically.

    Parameters
    ----------
    cx : RegionComplex
        Of a domain of two dimensions.
    path : path-like
        Must end in ``.svg``.
    **options
        As for `svg`.

    Raises
    ------
    TypeError, ValueError
        As `svg`, and for another ending.
    """
    path = _files.as_path(path, ".svg")
    _files.write_text(path, svg(cx, **options))


def _region_paths(cx: RegionComplex, fills: list[int], names: list[str]) -> Iterator[str]:
    points = _places(cx.points)
    columns = zip(cx.vertex_numbers, fills, cx.classes.tolist(), cx.areas.tolist(), strict=True)
    for i, (vertices, fill, winner, area) in enumerate(columns):
        ring = _ring(points, vertices)
        text = f"region {i}, class {names[winner]}, area {area:.6g}"
        yield f'<path class="c{fill}" d="{ring}"><title>{text}</title></path>'


def _pieces_of_others(cx: RegionComplex) -> Iterator[str]:
    """Parts of regions of another class than at the centre, transparent to the pointer."""
    pieces, all_points = cx.class_pieces
    points = _places(all_points)
    rings: dict[int, list[str]] = {}
    for piece in pieces:
        if piece.winner != cx.classes[piece.region]:
            fill = piece.winner % len(CLASS_COLORS)
            rings.setdefault(fill, []).append(_ring(points, piece.cell.vertices))
    for fill, found in sorted(rings.items()):
        yield f'<path class="c{fill} part" d="{"".join(found)}"/>'


def _fills(cx: RegionComplex, color: str) -> list[int]:
    """Number of the colour of each region."""
    if color == "class":
        return (cx.classes % len(CLASS_COLORS)).tolist()
    return _shades(cx) if color == "region" else [0] * len(cx)


def _shades(cx: RegionComplex) -> list[int]:
    """A shade for each region, other than those of its neighbours if possible."""
    rng = np.random.default_rng(0)
    orders = rng.permuted(np.tile(np.arange(len(SHADES)), (len(cx), 1)), axis=1).tolist()
    shades: list[int] = []
    for order, neighbours in zip(orders, _neighbours(cx), strict=True):
        taken = {shades[j] for j in neighbours if j < len(shades)}
        shades.append(next((shade for shade in order if shade not in taken), order[0]))
    return shades


def _style(color: str, pixel: float, n_regions: int) -> str:
    """The style sheet: shapes, then colours for light screens and for dark ones."""
    thin = 0.6 if n_regions < 1000 else 0.25
    dark = "".join(f"  {rule}\n" for rule in _colors(color, *DARK))
    return (
        ".refmmr .facets, .refmmr .boundary, .refmmr .part { pointer-events: none }\n"
        f".refmmr .facets {{ fill: none; stroke-width: {thin * pixel:.6g}; stroke-opacity: 0.6 }}\n"
        f".refmmr .boundary {{ fill: none; stroke-width: {2.2 * pixel:.6g}; "
        "stroke-linecap: round }\n"
        + "".join(f"{rule}\n" for rule in _colors(color, *LIGHT))
        + f"@media (prefers-color-scheme: dark) {{\n{dark}}}\n"
    )


def _colors(color: str, ground: str, ink: str, strength: float) -> Iterator[str]:
    """Rules of the style sheet for colours."""
    yield f".refmmr .ground {{ fill: {ground} }}"
    yield f".refmmr .facets, .refmmr .boundary {{ stroke: {ink} }}"
    palette = {"class": CLASS_COLORS, "region": SHADES, "none": (ground,)}[color]
    for i, one in enumerate(palette):
        yield f".refmmr .c{i} {{ fill: {_mixed(one, ground, strength)} }}"


def _mixed(color: str, ground: str, strength: float) -> str:
    """The opaque colour of `color` at this opacity on the background."""
    pairs = zip(bytes.fromhex(color[1:]), bytes.fromhex(ground[1:]), strict=True)
    return "#" + bytes(round(strength * a + (1 - strength) * b) for a, b in pairs).hex()


def _places(points: np.ndarray) -> list[str]:
    """Points as text, in ten digits: a relative error far below a pixel."""
    return [f"{x:.10g} {y:.10g}" for x, y in points.tolist()]


def _ring(points: list[str], vertices: np.ndarray) -> str:
    return f"M{'L'.join([points[vertex] for vertex in vertices.tolist()])}Z"


def _lines(ends: np.ndarray) -> str:
    """Path data of segments, from points (..., 2), two for each."""
    places = _places(ends.reshape(-1, 2))
    return "".join(f"M{a}L{b}" for a, b in zip(places[::2], places[1::2], strict=True))


def _text(text: str) -> str:
    """Text as XML, which has no character references for most control characters."""
    return escape(re.sub("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text))


# ---- Arguments.


def _check_plane(cx: RegionComplex) -> None:
    check_complex(cx)
    cx.check_plane("cx")


def _class_names(cx: RegionComplex, names: Iterable[str] | None) -> list[str]:
    """The names of the classes as XML, or their numbers."""
    n = cx.net.n_classes
    if names is None:
        return [str(k) for k in range(n)]
    names = check.check_sequence("class_names", names, f"{n} names")
    if len(names) != n:
        raise ValueError(f"class_names: expected {n} names, got {len(names)}")
    return [_text(str(name)) for name in names]
