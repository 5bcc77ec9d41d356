"""A complex of regions to a file and back: .npz, and nothing in it that could run.

The file holds the network, the domain and the arrays of `refmmr.reference.enumeration.Regions`, each
under its own name.  Fractions of exact complexes are text: numerator and denominator in base 16,
which takes numbers of any length, as ``b"-1/2"``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from refmmr import _files
from refmmr.interop import npz_files
from refmmr.network import Network
from refmmr.reference.enumeration import WORD, Regions
from refmmr.regions.complex import RegionComplex
from refmmr.regions.domains import AffineDomain, Box, Segment, Slice

__all__ = ["load_regions", "save_regions"]

FORMAT = "refmmr-regions"
VERSION = 1

NET, DOMAIN = "net.", "domain."
"""Before the names of the arrays of a part."""

LONGEST = 2**16
"""Digits of a fraction; more would take minutes to read."""


def save_regions(cx: RegionComplex, path: str | os.PathLike[str]) -> None:
    """Write a complex, with its network and its domain, to an .npz file.

    The file is written beside its place and moved there when it is complete, so what was there
    before survives an interruption.

    Parameters
    ----------
    cx : RegionComplex
    path : path-like
        Must end in ``.npz``.

    Raises
    ------
    ValueError, TypeError
        For another ending, something that is no complex, or one that `load_regions` would refuse,
        such as one with values that are too large for float64.
    """
    path = _files.npz_path(path)
    if not isinstance(cx, RegionComplex):
        raise TypeError(f"cx: expected a RegionComplex, got {type(cx).__name__}")
    try:
        _check_regions(cx.raw, cx.net, cx.dimension)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"cx: expected regions, got damaged ones ({error})") from error
    # The version of this file stands for the network in it too.
    network = npz_files.network_arrays(cx.net)
    del network["format"], network["version"]
    arrays: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    arrays |= {NET + name: array for name, array in network.items()}
    arrays |= _domain_arrays(cx.domain)
    fields = cx.raw._asdict()
    if cx.exact_points is not None:
        fields["points"] = _texts(cx.exact_points)
    _files.write_npz(path, {**arrays, **fields})


def load_regions(path: str | os.PathLike[str]) -> RegionComplex:
    """Read a complex that `save_regions` wrote.

    Nothing in the file is executed: pickled objects are refused.  What is in it is checked to be a
    complex, in which every number of a vertex, a unit or a facet means something; whether these
    are the regions of the network is not.

    Parameters
    ----------
    path : path-like
        An ``.npz`` file.

    Returns
    -------
    RegionComplex
        The same network, domain and regions, bit for bit.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        For a file that is truncated, not an .npz of regions, of a newer version, or that holds
        what no complex can be.
    """
    path = _files.npz_path(path)
    arrays = _files.read_npz(path, FORMAT, VERSION)
    network = {name.removeprefix(NET): arrays[name] for name in arrays if name.startswith(NET)}
    net = npz_files.network_from_arrays(network, str(path))
    try:
        # Numbers of any size may overflow on the way to being refused.
        with np.errstate(all="ignore"):
            return _complex(net, arrays)
    # As of a network: what is in the file can be of any kind, and fail in as many ways.
    except Exception as error:
        raise ValueError(f"{path}: expected regions, got damaged ones ({error})") from error


def _complex(net: Network, arrays: Mapping[str, np.ndarray]) -> RegionComplex:
    """The complex of some arrays, checked."""
    if net.dtype != np.float64:
        raise ValueError(f"net: expected float64, got {net.dtype}")
    domain = _domain(arrays)
    if domain.input_shape != net.input_shape:
        raise ValueError(
            f"domain: expected inputs of shape {net.input_shape}, got {domain.input_shape}"
        )
    regions = _regions(arrays, net, domain.dimension)
    _check_regions(regions, net, domain.dimension)
    return RegionComplex(net, domain, regions)


# ---- Domains.


def _domain_arrays(domain: AffineDomain) -> dict[str, Any]:
    """Everything that makes a domain, as arrays by name."""
    arrays: dict[str, Any] = {"domain": type(domain).__name__}
    if isinstance(domain, (Box, Slice)):
        arrays[DOMAIN + "rectangle"] = np.stack(domain.rectangle)
    if isinstance(domain, (Segment, Slice)):
        arrays[DOMAIN + "origin"], arrays[DOMAIN + "directions"] = domain.origin, domain.directions
    if isinstance(domain, Slice):
        arrays[DOMAIN + "points"] = domain.points
    return arrays


def _domain(arrays: Mapping[str, np.ndarray]) -> AffineDomain:
    """Undo `_domain_arrays`."""
    kind = str(arrays.get("domain", "nothing"))
    if kind not in DOMAINS:
        raise ValueError(f"domain: expected one of {', '.join(DOMAINS)}, got {kind}")
    return DOMAINS[kind](arrays)


def _box(arrays: Mapping[str, np.ndarray]) -> Box:
    lo, hi = _rectangle(arrays, None)
    return Box(lo, hi)


def _segment(arrays: Mapping[str, np.ndarray]) -> Segment:
    # Not by the constructor: it would take the direction from a second point, and round.
    segment = Segment.__new__(Segment)
    segment.origin, segment.directions = _place(arrays, 1)
    segment.rectangle = np.zeros(1), np.ones(1)
    if not segment.directions.any():
        raise ValueError(f"{DOMAIN}directions: expected a direction, got zeros")
    return segment


def _slice(arrays: Mapping[str, np.ndarray]) -> Slice:
    # Not by the constructor either: it would make the directions orthogonal anew.
    plane = Slice.__new__(Slice)
    plane.origin, plane.directions = _place(arrays, 2)
    plane.rectangle = _rectangle(arrays, 2)
    plane.points = _finite(arrays, DOMAIN + "points", (3, 2))
    u, v = plane.directions.reshape(2, -1)
    products = np.array([u @ u, u @ v, v @ v])
    if not (np.abs(products - [1, 0, 1]) < 1e-6).all():
        raise ValueError(
            f"{DOMAIN}directions: expected two of length 1, orthogonal, got products {products}"
        )
    return plane


DOMAINS: dict[str, Callable[[Mapping[str, np.ndarray]], AffineDomain]] = {
    "Box": _box,
    "Segment": _segment,
    "Slice": _slice,
}


def _place(arrays: Mapping[str, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Origin and n directions."""
    name = DOMAIN + "origin"
    shape = arrays[name].shape if name in arrays else ()
    return _finite(arrays, name, shape), _finite(arrays, DOMAIN + "directions", (n, *shape))


def _rectangle(arrays: Mapping[str, np.ndarray], n: int | None) -> tuple[np.ndarray, np.ndarray]:
    lo, hi = _finite(arrays, DOMAIN + "rectangle", (2, n))
    if len(lo) == 0 or not (lo < hi).all():
        raise ValueError(f"{DOMAIN}rectangle: expected lo < hi, got {lo} and {hi}")
    return lo, hi


# ---- Regions.


def _regions(arrays: Mapping[str, np.ndarray], net: Network, n: int) -> Regions:
    """The fields of `Regions`, each of its dtype, in shapes that fit together."""
    patterns = _field(arrays, "patterns", np.uint8, (None, -(-net.n_hidden // 8)))
    starts = (len(patterns) + 1,)
    facet_starts = _field(arrays, "facet_starts", np.int64, starts)
    vertices = _field(arrays, "vertices", np.int64, (None,))
    uncertain = _field(arrays, "uncertain", np.bool_, (None,))
    # Most facets of a cell; what they say about starts that go down does not matter, these fail.
    most = int(np.diff(facet_starts).max(initial=0))
    words = 0 if n == 2 else -(-most // WORD)
    return Regions(
        points=_numbers(arrays, "points", (len(uncertain), n)),
        uncertain=uncertain,
        vertex_starts=_field(arrays, "vertex_starts", np.int64, starts),
        vertices=vertices,
        touches=_field(arrays, "touches", np.uint64, (len(vertices), words)),
        facet_starts=facet_starts,
        hyperplanes=_field(arrays, "hyperplanes", np.int64, (None,)),
        patterns=patterns,
        maps=_field(arrays, "maps", np.float64, (len(patterns), n + 1, net.n_classes)),
        complete=_flag(arrays, "complete"),
    )


def _check_regions(regions: Regions, net: Network, n: int) -> None:
    """That all numbers mean something: of vertices, of facets and of units.

    Raises
    ------
    ValueError
        Says which field is wrong.
    """
    _check_finite("points", regions.points)
    _check_finite("maps", regions.maps)
    least = 3 if n == 2 else 1
    _check_starts("vertex_starts", regions.vertex_starts, len(regions.vertices), least)
    _check_starts("facet_starts", regions.facet_starts, len(regions.hyperplanes), least)
    _check_range("vertices", regions.vertices, 0, len(regions.points))
    _check_range("hyperplanes", regions.hyperplanes, -2 * n, net.n_hidden)
    if n == 2:
        if (regions.vertex_starts != regions.facet_starts).any():
            raise ValueError("facet_starts: expected as many edges as vertices of each polygon")
    else:
        _check_touches(regions)
    spare = net.n_hidden % 8
    if spare and (regions.patterns[:, -1] >> spare).any():
        raise ValueError(f"patterns: expected {net.n_hidden} bits, got more")


def _check_starts(name: str, starts: np.ndarray, total: int, least: int) -> None:
    """Starts of rows of so many entries at least, that go from 0 to all there are."""
    inside = ((starts >= 0) & (starts <= total)).all()  # or the differences might overflow
    if len(starts) < 2 or not inside or starts[0] != 0 or starts[-1] != total:
        raise ValueError(f"{name}: expected numbers from 0 to {total}, got {starts}")
    if (np.diff(starts) < least).any():
        i = int((np.diff(starts) < least).argmax())
        got = f"{starts[i]} to {starts[i + 1]}"
        raise ValueError(f"{name}: expected rows of {least} at least, got {got} for region {i}")


def _check_range(name: str, numbers: np.ndarray, low: int, stop: int) -> None:
    outside = numbers[(numbers < low) | (numbers >= stop)]
    if len(outside):
        raise ValueError(f"{name}: expected numbers from {low} to {stop - 1}, got {outside[0]}")


def _check_touches(regions: Regions) -> None:
    """Hyperplanes of a region rise; its vertices touch all of its facets, and no others."""
    rises = np.diff(regions.hyperplanes) > 0
    rises[regions.facet_starts[1:-1] - 1] = True
    if not rises.all():
        raise ValueError("hyperplanes: expected numbers that rise in each region, got others")
    touched = np.bitwise_or.reduceat(regions.touches, regions.vertex_starts[:-1])
    for word in range(touched.shape[1]):
        facets = np.clip(np.diff(regions.facet_starts) - word * WORD, 0, WORD)
        # Shifted by all its bits a word is 0.
        all_bits = np.uint64(2**WORD - 1) >> (WORD - facets).astype(np.uint64)
        wrong = np.flatnonzero(touched[:, word] != all_bits)
        if len(wrong):
            raise ValueError(f"touches: expected all facets of region {wrong[0]}, got other bits")


# ---- Arrays.


def _field(
    arrays: Mapping[str, np.ndarray], name: str, dtype: DTypeLike, shape: tuple[int | None, ...]
) -> np.ndarray:
    """An array of this dtype, in any order of bytes, and this shape; None is any length."""
    if name not in arrays:
        raise ValueError(f"{name}: expected an array, got none")
    array = arrays[name]
    fits = array.ndim == len(shape) and all(
        want in (None, size) for want, size in zip(shape, array.shape, strict=True)
    )
    if not fits or not np.can_cast(array.dtype, dtype, "equiv"):
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name}: expected {np.dtype(dtype)} of shape ({sizes}), "
            f"got {array.dtype} of shape {array.shape}"
        )
    if array.dtype == np.bool_ and (array.view(np.uint8) > 1).any():
        raise ValueError(f"{name}: expected bytes 0 and 1, got others")
    return array.astype(dtype, copy=False)


def _finite(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    """A float64 array without NaN and infinity."""
    array = _field(arrays, name, np.float64, shape)
    _check_finite(name, array)
    return array


def _check_finite(name: str, array: np.ndarray) -> None:
    # Fractions too: what does not fit into a float raises OverflowError.
    if not np.isfinite(array.astype(np.float64, copy=False)).all():
        raise ValueError(f"{name}: expected finite numbers, got others")


def _flag(arrays: Mapping[str, np.ndarray], name: str) -> bool:
    return bool(_field(arrays, name, np.bool_, ()))


def _numbers(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of float64, or of fractions if there is text."""
    if name not in arrays or arrays[name].dtype.kind != "S":
        return _field(arrays, name, np.float64, shape)
    texts = arrays[name]
    # Texts of length 0 take no bytes of the file, so there may be any number of them.
    if not 1 <= texts.dtype.itemsize <= 2 * LONGEST:
        raise ValueError(f"{name}: expected fractions of at most {LONGEST} digits, got others")
    texts = _field(arrays, name, texts.dtype, shape)
    numbers = np.empty(texts.size, dtype=object)
    numbers[:] = [_fraction(text) for text in texts.ravel().tolist()]
    return numbers.reshape(shape)


def _fraction(text: bytes) -> Fraction:
    numerator, denominator = text.split(b"/")
    return Fraction(int(numerator, 16), int(denominator, 16))


def _texts(fractions: np.ndarray) -> np.ndarray:
    """Undo `_fraction`, for an array."""
    texts = [f"{value.numerator:x}/{value.denominator:x}" for value in fractions.ravel().tolist()]
    longest = max(map(len, texts))
    if longest > LONGEST:
        raise ValueError(f"cx: expected fractions of at most {LONGEST} digits, got {longest}")
    return np.array(texts, dtype=bytes).reshape(fractions.shape)
