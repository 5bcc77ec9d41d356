"""Rows that mix inputs and outputs, ``<D, z> + <C, f(z)>``, as rows of more outputs.

Bounds of ``<D, z>`` and of ``<C, f(z)>`` apart lose what ties the two together.  So a dense network
carries ``<D, z>`` to its outputs: it is raised to be at least 0 in the first layer, so that ReLUs
leave it as it is, and lowered again in the last.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from refmmr.certify._clauses import Rows, rounded
from refmmr.network import Flatten, Linear, Network
from refmmr.reference.rounding import SMALLEST_NORMAL, rounding_factor

SLACK = 1e-6
"""Added to what is carried, relative to its size: the signs of units are known up to rounding."""


def carry_inputs(
    net: Network, rows: Rows, box: tuple[np.ndarray, np.ndarray], f_size: np.ndarray
) -> tuple[Network, Rows, np.ndarray]:
    """The same rows of a network that gives ``<D, z>`` as outputs, too.

    Parameters
    ----------
    net : Network
        With float64 weights.
    rows : Rows
    box : (lo, hi), each (d,)
    f_size : ndarray, shape (K,)
        Bounds of the absolute outputs on the box.

    Returns
    -------
    Network
        With an output more for each row that has a D.  The one given, where none has, or where the
        network has convolutions.
    Rows
        With D = 0 then.
    ndarray
        Bounds of the absolute outputs.
    """
    mixed = np.flatnonzero(rows.D.any(axis=1))
    if not len(mixed) or not all(isinstance(layer, (Flatten, Linear)) for layer in net.layers):
        return net, rows, f_size
    D = rows.D[mixed]
    lowest, largest = zip(*(_ends(row, *box) for row in D), strict=True)
    raised = np.array([rounded(max(-low, Fraction(0)), up=True) for low in lowest])
    raised = raised * (1 + SLACK) + SLACK
    if not np.isfinite(raised).all():
        return net, rows, f_size
    longer = _with_carriers(net, D, raised)
    one = np.zeros((len(rows.C), len(mixed)))
    one[mixed, np.arange(len(mixed))] = 1
    size = np.maximum(np.abs(box[0]), np.abs(box[1]))
    # A sum of d products, with its own roundings.
    terms = 2 * len(size) + 8
    error = (rows.D_error @ size + SMALLEST_NORMAL) * (1 + rounding_factor(terms))
    carried = rows._replace(
        C=np.hstack([rows.C, one]),
        C_error=np.hstack([rows.C_error, np.zeros_like(one)]),
        D=np.zeros_like(rows.D),
        D_error=np.zeros_like(rows.D),
        bound_error=np.nextafter(rows.bound_error + error, np.inf),
    )
    return longer, carried, np.append(f_size, [rounded(size, up=True) for size in largest])


def _ends(row, lo, hi):
    """The smallest value of ``<row, z>`` on a box, and a bound of the absolute one; exactly."""
    low = high = Fraction(0)
    for j in np.flatnonzero(row).tolist():
        ends = [Fraction(row[j]) * Fraction(end) for end in (lo[j], hi[j])]
        low, high = low + min(ends), high + max(ends)
    return low, max(abs(low), abs(high))


def _with_carriers(net, D, raised):
    """The network with the outputs ``D z`` behind its own."""
    layers, m = list(net.layers), len(D)
    for i in net.affine:
        layer = net.layers[i]
        # The first layer reads inputs, the others also what the one before carries.
        unit = D if i == net.affine[0] else np.hstack([np.zeros((m, layer.W.shape[1])), np.eye(m)])
        own = np.pad(layer.W, ((0, 0), (0, unit.shape[1] - layer.W.shape[1])))
        shift = raised * (i == net.affine[0]) - raised * (i == net.affine[-1])
        layers[i] = Linear(np.vstack([own, unit]), np.append(layer.b, shift))
    return Network(layers, net.input_shape)
