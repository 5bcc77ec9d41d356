"""Certification methods: one bound a file, each a function from points to `Bounds`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

EXACT = 1e-6
"""Bounds that agree to this relative tolerance are called exact."""


class Bounds(NamedTuple):
    """Bounds on the minimal adversarial perturbation of each point: what every method returns."""

    lower: np.ndarray  # (n,), in real arithmetic
    upper: np.ndarray  # (n,), infinite where no adversarial example was found
    adversarial: np.ndarray  # (n, *input_shape), NaN where none was found
