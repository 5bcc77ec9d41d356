"""From the host to the device, and back."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np


def to_device(array: Any) -> cupy.ndarray:
    """An array on the device; one that is there already is returned as it is."""
    return cupy.asarray(array)


def to_host(array: Any) -> np.ndarray:
    """An array on the host; one that is there already is returned as it is."""
    return cupy.asnumpy(array)
