"""Save a complex of regions to an .npz file and load it; nothing in the file is executed.

The file holds the network, the domain and the arrays of `refmmr.reference.enumeration.Regions`,
under the names of `NAMES_ON_DISK` where these differ.  Fractions of exact complexes are text:
numerator and denominator in base 16, such as ``b"-1/2"``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from refmmr import _files
from refmmr.interop import npz_files
from refmmr.network import Network
from refmmr.reference.enumeration import WORD, Regions
from refmmr.regions.domains import AffineDomain, Box, Segment, Slice
from refmmr.regions.graph import check_complex

if TYPE_CHECKING:
    from refmmr.regions.complex import RegionComplex

__all__ = ["load_regions", "save_regions"]

FORMAT = "refmmr-regions"
VERSION = 1

NAMES_ON_DISK = {"vertex_starts": "corner_starts", "vertices": "corners", "hyperplanes": "walls"}
"""Fields of `Regions` that have other names in version 1 of the format."""

NET, DOMAIN = "net.", "domain."
"""Prefixes of the names of arrays that belong to the network and to the domain."""

LONGEST = 2**16
"""Largest number of digits of a fraction: Python takes minutes to read longer ones."""

Complex = TypeVar("Complex", bound="RegionComplex")


def save_regions(cx: RegionComplex, path: str | os.PathLike[str]) -> None:
    """Write a complex, with its network and its domain, to an .npz file.

    The write is atomic: a temporary file is moved into place when it is complete, so an
    interruption leaves an existing file as it was.

    Parameters
    ----------
    cx : RegionComplex
    path : path-like
        Must end in ``.npz``.

    Raises
    ------
    ValueError, TypeError
        For another ending, an object that is not a complex, or a complex that `load_regions` would
        refuse, such as one with values too large for float64.
    """
    path = _files.npz_path(path)
    check_complex(cx)
    try:
        _check_regions(cx.raw, cx.net, cx.dimension)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"cx: expected regions, got damaged ones ({error})") from error
    # The version of this file covers the network in it, too.
    network = npz_files.network_arrays(cx.net)
    del network["format"], network["version"]
    arrays: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    arrays |= {NET + name: array for name, array in network.items()}
    arrays |= _domain_arrays(cx.domain)
    fields = cx.raw._asdict()
    if cx.exact_points is not None:
        fields["points"] = _texts(cx.exact_points)
    arrays |= {NAMES_ON_DISK.get(name, name): array for name, array in fields.items()}
    _files.write_npz(path, arrays)


def load_regions(path: str | os.PathLike[str], cls: type[Complex]) -> Complex:
    """Read a complex that `save_regions` wrote.

    Nothing in the file is executed: pickled objects are refused.  The arrays are checked to form a
    complex: every number of a vertex, a unit or a facet is in range.  They are not checked to be
    the regions of the network; see `RegionComplex.verify`.

    Parameters
    ----------
    path : path-like
        An ``.npz`` file.
    cls : type
        `RegionComplex` or a subclass: the class of the result.

    Returns
    -------
    RegionComplex
        The same network, domain and regions, bit for bit.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        For a file that is truncated, not an .npz of regions, of a newer version, or whose arrays
        are not those of a complex.
    """
    path = _files.npz_path(path)
    arrays = _files.read_npz(path, FORMAT, VERSION)
    network = {name.removeprefix(NET): arrays[name] for name in arrays if name.startswith(NET)}
    net = npz_files.network_from_arrays(network, str(path))
    try:
        # Numbers of any size may overflow before they are refused.
        with np.errstate(all="ignore"):
            return cls(*_checked(net, arrays))
    # Arrays in a damaged file may raise exceptions of any kind.
    except Exception as error:
        raise ValueError(f"{path}: expected regions, got damaged ones ({error})") from error


def _checked(
    net: Network, arrays: Mapping[str, np.ndarray]
) -> tuple[Network, AffineDomain, Regions]:
    """The parts of a complex, checked."""
    if net.dtype != np.float64:
        raise ValueError(f"net: expected float64, got {net.dtype}")
    domain = _domain(arrays)
    if domain.input_shape != net.input_shape:
        raise ValueError(
            f"domain: expected inputs of shape {net.input_shape}, got {domain.input_shape}"
        )
    fields = {name: arrays[disk] for name, disk in NAMES_ON_DISK.items() if disk in arrays}
    regions = _regions({**arrays, **fields}, net, domain.dimension)
    _check_regions(regions, net, domain.dimension)
    return net, domain, regions


# ---- Domains.


def _domain_arrays(domain: AffineDomain) -> dict[str, Any]:
    """The kind and the numbers of a domain, as arrays by name."""
    arrays: dict[str, Any] = {"domain": type(domain).__name__}
    if isinstance(domain, (Box, Slice)):
        arrays[DOMAIN + "rectangle"] = np.stack(domain.rectangle)
    if isinstance(domain, (Segment, Slice)):
        arrays[DOMAIN + "origin"], arrays[DOMAIN + "directions"] = domain.origin, domain.directions
    if isinstance(domain, Slice):
        arrays[DOMAIN + "points"] = domain.points
    return arrays


def _domain(arrays: Mapping[str, np.ndarray]) -> AffineDomain:
    """The inverse of `_domain_arrays`."""
    kind = str(arrays.get("domain", "nothing"))
    if kind not in DOMAINS:
        raise ValueError(f"domain: expected one of {', '.join(DOMAINS)}, got {kind}")
    return DOMAINS[kind](arrays)


def _box(arrays: Mapping[str, np.ndarray]) -> Box:
    lo, hi = _rectangle(arrays, None)
    return Box(lo, hi)


def _segment(arrays: Mapping[str, np.ndarray]) -> Segment:
    # The constructor would compute the direction from a second point, and round.
    segment = Segment.__new__(Segment)
    segment.origin, segment.directions = _affine_map(arrays, 1)
    segment.rectangle = np.zeros(1), np.ones(1)
    if not segment.directions.any():
        raise ValueError(f"{DOMAIN}directions: expected a direction, got zeros")
    return segment


def _slice(arrays: Mapping[str, np.ndarray]) -> Slice:
    # The constructor would make the directions orthogonal again, and round.
    plane = Slice.__new__(Slice)
    plane.origin, plane.directions = _affine_map(arrays, 2)
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


def _affine_map(arrays: Mapping[str, np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """Origin and n directions of a domain."""
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
    # The number of words per vertex follows from the largest number of facets of a region.  Starts
    # that go down give a wrong one, but they are refused below.
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
    """Raise a ValueError that names the first field with a number out of range."""
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
    """Starts of rows of at least `least` entries each, from 0 to `total`."""
    inside = ((starts >= 0) & (starts <= total)).all()  # otherwise differences might overflow
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
    """Hyperplanes of a region rise; its vertices touch each of its facets, and no others."""
    rises = np.diff(regions.hyperplanes) > 0
    rises[regions.facet_starts[1:-1] - 1] = True
    if not rises.all():
        raise ValueError("hyperplanes: expected numbers that rise in each region, got others")
    touched = np.bitwise_or.reduceat(regions.touches, regions.vertex_starts[:-1])
    for word in range(touched.shape[1]):
        facets = np.clip(np.diff(regions.facet_starts) - word * WORD, 0, WORD)
        # A word shifted by all of its bits is 0.
        all_bits = np.uint64(2**WORD - 1) >> (WORD - facets).astype(np.uint64)
        wrong = np.flatnonzero(touched[:, word] != all_bits)
        if len(wrong):
            raise ValueError(f"touches: expected all facets of region {wrong[0]}, got other bits")


# ---- Arrays.


def _field(
    arrays: Mapping[str, np.ndarray], name: str, dtype: DTypeLike, shape: tuple[int | None, ...]
) -> np.ndarray:
    """An array of this dtype, in any byte order, and this shape; None stands for any length."""
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
    # A fraction too large for float64 raises OverflowError.
    if not np.isfinite(array.astype(np.float64, copy=False)).all():
        raise ValueError(f"{name}: expected finite numbers, got others")


def _flag(arrays: Mapping[str, np.ndarray], name: str) -> bool:
    return bool(_field(arrays, name, np.bool_, ()))


def _numbers(arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of float64, or of fractions if the file holds text."""
    if name not in arrays or arrays[name].dtype.kind != "S":
        return _field(arrays, name, np.float64, shape)
    texts = arrays[name]
    # Texts of length 0 take no bytes of the file: a small file could hold any number of them.
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
    """The inverse of `_fraction`, for an array."""
    texts = [f"{value.numerator:x}/{value.denominator:x}" for value in fractions.ravel().tolist()]
    longest = max(map(len, texts))
    if longest > LONGEST:
        raise ValueError(f"cx: expected fractions of at most {LONGEST} digits, got {longest}")
    return np.array(texts, dtype=bytes).reshape(fractions.shape)
