"""The regions of a plane, by the splitting of `refmmr.reference.regions`, compiled.

The cells are the reference's to the last bit, in its order, because the same float operations are
done.  What is saved is the rest:

- A layer's cells lie side by side in flat arrays (`Cells`), not in an object each.
- A cell is cut depth first.  Its pieces name their corners by number; a cut makes two new corners
  and copies no value of an old one.
- Only *open* units are followed into a piece.  A unit is settled once its sign can no longer change
  in any piece of the piece, rounding included; then no value of it is needed any more.

The network is asked for the values at the corners as the reference asks it, with the same batches,
since a matrix product may round differently in a batch of another size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit

from refmmr._backend import implements
from refmmr.backends import threads
from refmmr.reference import regions, rounding
from refmmr.reference.network import Network, flat

BATCH = 1024  # as in the reference
LEAST = 256  # cells that are worth a thread

# Without fastmath no product and sum are fused: each rounds as in NumPy.
_jit = njit(cache=True, nogil=True, error_model="numpy")


class Cells(NamedTuple):
    """n convex polygons with V corners in all, those of one after those of the other."""

    corners: np.ndarray  # (V, 2)
    walls: np.ndarray  # (V,) int: of the edge from each corner to the next
    sizes: np.ndarray  # (n,) int: how many corners each has
    parents: np.ndarray  # (n,) int: the cell of the layer before that each is a piece of
    patterns: np.ndarray  # (n, units) bool


class Corners(NamedTuple):
    """Corners of the pieces of one cell: a table with one row each."""

    points: np.ndarray  # (rows, 2)
    values: np.ndarray  # (rows, N_k): decided values; those of settled units are never read


class Units(NamedTuple):
    """The units of a layer on one cell."""

    errors: np.ndarray  # (N_k,): rounding error of the value
    low: np.ndarray  # (N_k,): least decided value at a corner
    high: np.ndarray  # (N_k,): largest
    active: np.ndarray  # (N_k,) bool: on the piece at hand


@implements("numba", regions.enumerate_plane)
def enumerate_plane(
    net: Network,
    corners: np.ndarray,
    embed: regions.Embedding,
    on_layer: Callable[[int, int], object] = lambda layer, cells: None,
) -> list[regions.Cell]:
    """As `refmmr.reference.regions.enumerate_plane`, which also takes what is not plain floats.

    Unless corners, inputs and weights are all float64, or all float32, the reference runs.  The
    arrays of the cells are views of a few large ones.
    """
    arrays = [corners, embed(corners[:1]), *(array for pair in net.parameters for array in pair)]
    if {array.dtype.char for array in arrays} not in ({"d"}, {"f"}):
        return regions.enumerate_plane(net, corners, embed, on_layer)
    cells = Cells(
        np.array(corners, order="C"),
        np.full(len(corners), regions.DOMAIN),
        np.array([len(corners)]),
        np.zeros(1, int),
        np.zeros((1, 0), bool),
    )
    first_unit = 0
    for k, shape in enumerate(net.unit_shapes):
        cells = _next_layer(net, cells, embed, k, first_unit)
        first_unit += int(np.prod(shape))
        on_layer(k + 1, len(cells.sizes))
    return _as_objects(cells)


def _next_layer(
    net: Network, cells: Cells, embed: regions.Embedding, layer: int, first_unit: int
) -> Cells:
    """Cut all cells along the zero lines of a layer's units."""
    rows, places = distinct(cells.corners)
    values, errors = _values_and_errors(net, cells.corners[rows], embed, layer)
    found: list[tuple[int, Cells]] = []

    def work(start: int, stop: int) -> None:
        run = split_cells(start, stop, *cells[:3], places, values, errors, first_unit)
        found.append((start, Cells(*run)))

    threads.spread(work, len(cells.sizes), least=LEAST)
    runs = [run for _, run in sorted(found, key=lambda pair: pair[0])]
    parts = zip(*runs, strict=True)
    made = runs[0] if len(runs) == 1 else Cells(*(np.concatenate(part) for part in parts))
    patterns = np.concatenate([cells.patterns[made.parents], made.patterns], axis=1)
    return made._replace(patterns=patterns)


def _values_and_errors(
    net: Network, points: np.ndarray, embed: regions.Embedding, layer: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pre-activations of a layer at points of the plane, and their errors, both (n, N_k).

    The bits of `rounding.value_errors`; but the layers behind are left out, and what does not
    depend on the points is computed once.
    """
    front = Network(net.layers[: net.affine[layer] + 1], net.input_shape)
    absolute, indicator = rounding.absolute(front), rounding.indicator(front)
    factor = rounding.rounding_factor(rounding.roundings(front)[layer])
    paths = flat([_all_active(indicator, np.ones((1, *net.input_shape)))])
    values = np.empty((len(points), paths.shape[1]), points.dtype)
    errors = np.empty_like(values)
    for start in range(0, len(points), BATCH):
        X = embed(points[start : start + BATCH])
        values[start : start + BATCH] = flat([front.forward(X).outputs[layer]])
        magnitudes = flat([_all_active(absolute, np.abs(X))])
        bound = factor * magnitudes + rounding.UNDERFLOW
        errors[start : start + BATCH] = np.where(paths > 0, bound, 0)
    return values, errors


def _all_active(net: Network, X: np.ndarray) -> np.ndarray:
    """The last layer's outputs where nothing is negative: a ReLU changes nothing."""
    for layer in net.layers:
        X = layer.apply(X)
    return X


def _as_objects(cells: Cells) -> list[regions.Cell]:
    ends = np.cumsum(cells.sizes).tolist()
    corners, walls = cells.corners, cells.walls
    return [
        regions.Cell(corners[start:end], walls[start:end], pattern)
        for start, end, pattern in zip([0, *ends], ends, cells.patterns, strict=False)
    ]


def distinct(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct corner is met first, and the place of each corner among those.

    Parameters
    ----------
    corners : ndarray, shape (V, 2)

    Returns
    -------
    rows : ndarray of int, shape (D,)
    places : ndarray of int, shape (V,)
        ``corners[rows[places]]`` equals `corners`.
    """
    # Adding 0 makes -0 to 0: they are equal, so they must have the same bits.
    bits = (corners + 0).view(f"u{corners.itemsize}").astype(np.uint64)
    return _distinct(corners, bits)


@_jit
def _distinct(corners, bits):
    """`distinct`, by a hash table with linear probing; bits (V, 2) are hashed."""
    size = 16
    while size < 2 * len(corners):
        size *= 2
    table = np.full(size, -1)
    rows, places = np.empty(len(corners), np.int64), np.empty(len(corners), np.int64)
    count = 0
    for i in range(len(corners)):
        slot = np.int64(_mixed(_mixed(bits[i, 0]) + bits[i, 1]) & np.uint64(size - 1))
        while table[slot] >= 0:
            found = corners[rows[table[slot]]]
            if found[0] == corners[i, 0] and found[1] == corners[i, 1]:
                break
            slot = (slot + 1) & (size - 1)
        if table[slot] < 0:
            table[slot] = count
            rows[count] = i
            count += 1
        places[i] = table[slot]
    return rows[:count].copy(), places


@_jit
def _mixed(bits):
    """A number that depends on all bits of another in all of its own (the end of MurmurHash3).

    Without it round coordinates, which differ in their highest bits only, would share few slots.
    """
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    bits = (bits ^ (bits >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return bits ^ (bits >> np.uint64(33))


@_jit
def split_cells(start, stop, corners, walls, sizes, places, values, errors, first_unit):
    """Cut the cells ``start, ..., stop - 1``.

    Parameters
    ----------
    start, stop : int
    corners, walls, sizes : ndarray, shapes (V, 2), (V,), (n,)
        Of all cells.
    places : ndarray, shape (V,)
        Rows of `values` and `errors` for each corner.
    values, errors : ndarray, shape (D, N_k)
    first_unit : int
        The number, as a wall, of the layer's first unit.

    Returns
    -------
    tuple, the fields of `Cells`
        The pieces, with the patterns of this layer alone.
    """
    n_units, kind = values.shape[1], values.dtype
    units = Units(
        np.empty(n_units, kind),
        np.empty(n_units, kind),
        np.empty(n_units, kind),
        np.empty(n_units, np.bool_),
    )
    table = Corners(np.empty((16, 2), corners.dtype), np.empty((16, n_units), kind))
    # Stacks: (corner, wall) of the pieces that wait, and the units that are open on them.
    ring, opened = np.empty((64, 2), np.int64), np.empty(2 * n_units + 1, np.int64)
    walk = np.empty((16, 2), np.int64)
    made = Cells(
        np.empty((64, 2), corners.dtype),
        np.empty(64, np.int64),
        np.empty(16, np.int64),
        np.empty(16, np.int64),
        np.empty((16, n_units), np.bool_),
    )
    n_cells = n_corners = 0
    end = sizes[:start].sum()
    for cell in range(start, stop):
        begin, end = end, end + sizes[cell]
        m, here = end - begin, places[begin:end]
        crossed = _survey(units, values, errors, here)
        n_open = _first_opened(units, opened) if crossed else 0
        table, ring = _room_for_corners(table, m), _room(ring, m)
        _load(table, ring, corners[begin:end], walls[begin:end])
        _load_values(table, units, opened[:n_open], values, here)
        # Of each piece: its runs of `ring` and `opened`, rows of the table used.
        pieces = [(0, m, 0, n_open, m)]
        while len(pieces) > 0:
            first, last, low, high, used = pieces.pop()
            piece = ring[first:last]
            high, unit = _settle(table, units, piece, opened, low, high)
            if unit < 0:
                made = _room_for_cells(made, n_cells + 1, n_corners + len(piece))
                _finish(made, n_cells, n_corners, table, units, piece, cell)
                n_cells, n_corners = n_cells + 1, n_corners + len(piece)
                continue
            # At most all edges are crossed, then there are as many new corners as old ones.
            table, walk = _room_for_corners(table, used + len(piece)), _room(walk, 2 * len(piece))
            n, used = _with_crossings(table, units, piece, opened[low:high], unit, used, walk)
            # Both sides take the place of the piece; the positive one comes first, so on top.
            ring = _room(ring, first + 2 * n)
            middle = _side(table, walk[:n], unit, -1, first_unit + unit, ring, first)
            last = _side(table, walk[:n], unit, 1, first_unit + unit, ring, middle)
            top = 2 * high - low
            opened = _room(opened, top)
            opened[high:top] = opened[low:high]
            pieces.append((first, middle, low, high, used))
            pieces.append((middle, last, high, top, used))
    return (
        made.corners[:n_corners],
        made.walls[:n_corners],
        made.sizes[:n_cells],
        made.parents[:n_cells],
        made.patterns[:n_cells],
    )


@_jit
def _finish(made, n_cells, n_corners, table, units, piece, cell):
    """Write a piece that nothing cuts any more."""
    for i in range(len(piece)):
        made.corners[n_corners + i] = table.points[piece[i, 0]]
        made.walls[n_corners + i] = piece[i, 1]
    made.sizes[n_cells], made.parents[n_cells] = len(piece), cell
    made.patterns[n_cells] = units.active


@_jit
def _survey(units, values, errors, here):
    """Fill in the units of a cell with corners in rows `here`, (m,); true if a line crosses it."""
    # Selections, not branches: the compiler turns them into vector instructions.
    error, low, high, active = units
    error[:] = errors[here[0]]
    for row in here[1:]:
        for j in range(len(error)):
            new, old = errors[row, j], error[j]
            # A NaN stays, as in NumPy's maximum.
            error[j] = new if (new > old) | (new != new) else old
    low[:], high[:] = np.inf, -np.inf
    for row in here:
        for j in range(len(error)):
            value = _decided(values[row, j], error[j])
            least, most = low[j], high[j]
            low[j] = value if value < least else least
            high[j] = value if value > most else most
    crossed = False
    for j in range(len(error)):
        active[j] = high[j] > 0
        crossed |= (low[j] < 0) & active[j]
    return crossed


@_jit
def _decided(value, error):
    return value if abs(value) > error else 0.0


@_jit
def _first_opened(units, opened):
    """List the units of a cell that are not settled; how many."""
    n_open, eps, cuts = 0, np.finfo(units.errors.dtype).eps, len(units.errors)
    for j in range(len(units.errors)):
        if not _settled(units.low[j], units.high[j], units.errors[j], eps, cuts):
            opened[n_open] = j
            n_open += 1
    return n_open


@_jit
def _settled(low, high, error, eps, cuts):
    """Whether it is certain that a unit is active, or is not, on all that is cut off a piece.

    Its values at the corners go from `low` to `high`.  A new value v_a + t (v_b - v_a), with t from
    0 to 1, lies between those of its edge's ends, except that its rounding may add eps times the
    larger.  No rounding changes its sign where v_a and v_b have one: the step is at most as long as
    v_a if it goes towards 0.  So a unit that is nowhere positive stays so.  One that is positive
    beyond its error stays so if there is room for the rounding of a cut by each unit, twice over.
    """
    return (high <= 0) | (low > error + 2 * eps * cuts * high)


@_jit
def _load(table, ring, corners, walls):
    """Start with a cell: its corners are the first rows of the table, in order."""
    for i in range(len(walls)):
        table.points[i] = corners[i]
        ring[i] = i, walls[i]


@_jit
def _load_values(table, units, opened, values, here):
    """Write the open units' decided values at the corners of a cell."""
    for i in range(len(here)):
        for j in opened:
            table.values[i, j] = _decided(values[here[i], j], units.errors[j])


@_jit
def _settle(table, units, ring, opened, begin, end):
    """Drop the open units that a piece settles from ``opened[begin:end]``, and set the active ones.

    Returns
    -------
    end : int
        Where the list now ends.
    unit : int
        The first unit whose line cuts the piece, or -1.
    """
    unit, kept = -1, begin
    eps, cuts = np.finfo(units.errors.dtype).eps, len(units.errors)
    for k in range(begin, end):
        j = opened[k]
        low = high = table.values[ring[0, 0], j]
        for i in range(1, len(ring)):
            value = table.values[ring[i, 0], j]
            low = value if value < low else low
            high = value if value > high else high
        units.active[j] = high > 0
        if not _settled(low, high, units.errors[j], eps, cuts):
            opened[kept] = j
            kept += 1
            if unit < 0 and low < 0 < high:
                unit = j
    return kept, unit


@_jit
def _with_crossings(table, units, ring, opened, unit, used, walk):
    """Write a piece's (corner, wall) to `walk`, with a new corner wherever an edge is crossed.

    Returns the length of the walk, and how many rows of the table are used now.
    """
    n = 0
    for i in range(len(ring)):
        here, there = ring[i, 0], ring[(i + 1) % len(ring), 0]
        walk[n] = ring[i]
        n += 1
        f, after = table.values[here, unit], table.values[there, unit]
        if f > 0 > after or f < 0 < after:
            _interpolate(table, units, opened, unit, here, there, used)
            walk[n] = used, ring[i, 1]
            n, used = n + 1, used + 1
    return n, used


@_jit
def _interpolate(table, units, opened, unit, a, b, new):
    """Make the corner between corners a and b where a unit is 0, in row `new`."""
    points, values = table.points, table.values
    # From a fixed end, so that both cells at this edge find the same point.
    axis = 0 if points[a, 0] != points[b, 0] else 1
    if not points[a, axis] < points[b, axis]:
        a, b = b, a
    t = values[a, unit] / (values[a, unit] - values[b, unit])
    for axis in range(2):
        points[new, axis] = points[a, axis] + t * (points[b, axis] - points[a, axis])
    for j in opened:
        value = values[a, j] + t * (values[b, j] - values[a, j])
        values[new, j] = _decided(value, units.errors[j])
    values[new, unit] = 0


@_jit
def _side(table, walk, unit, sign, wall, ring, end):
    """Append to ``ring[:end]`` the walk (m, 2) on one side of a unit's line; the new end."""
    for i in range(len(walk)):
        if table.values[walk[i, 0], unit] * sign >= 0:
            after = walk[(i + 1) % len(walk), 0]
            # The edge that closes the piece lies on the line.
            leaves = not table.values[after, unit] * sign >= 0
            ring[end] = walk[i, 0], wall if leaves else walk[i, 1]
            end += 1
    return end


@_jit
def _room(array, n):
    """The array, or a longer copy where it has less than n rows."""
    if n <= len(array):
        return array
    longer = np.empty((max(n, 2 * len(array)), *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer


@_jit
def _room_for_corners(table, n):
    return Corners(_room(table.points, n), _room(table.values, n))


@_jit
def _room_for_cells(made, n_cells, n_corners):
    return Cells(
        _room(made.corners, n_corners),
        _room(made.walls, n_corners),
        _room(made.sizes, n_cells),
        _room(made.parents, n_cells),
        _room(made.patterns, n_cells),
    )
