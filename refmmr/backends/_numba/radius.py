"""Bounds of margins as a function of the radius: the twin of `refmmr.reference.radius`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refmmr._backend import implements
from refmmr.backends._numba.backward_bound import Bounds, Points
from refmmr.reference import radius as reference
from refmmr.reference.network import Network


@implements("numba", reference.margin_function)
def margin_function(
    net: Network,
    X: np.ndarray,
    y: np.ndarray,
    p: float,
    box: tuple[np.ndarray, np.ndarray] | None,
    method: str,
) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Twin of `refmmr.reference.radius.margin_function`."""
    points = Points(net, X, p, box, method)
    return lambda eps, rows: Bounds(points, eps, rows).margins(y[rows])
