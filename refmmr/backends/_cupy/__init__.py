"""CuPy twins of the hot paths, for one CUDA device.

Matrix products are cuBLAS's; `kernels.cu` has the rest.  Arrays of the host are moved to the device
and back; arrays of the device stay there.
"""

import os
import warnings

from refmmr.backends._cupy import adam, distances, logits, mmr, objective, pgd
from refmmr.backends._cupy.arrays import to_device, to_host
from refmmr.backends._cupy.network import device_network, host_network

__all__ = [
    "adam",
    "device_network",
    "distances",
    "host_network",
    "logits",
    "mmr",
    "objective",
    "pgd",
    "to_device",
    "to_host",
]

if os.environ.get("CUPY_TF32", "0") not in ("", "0"):
    warnings.warn(
        "CUPY_TF32: matrix products in float32 keep 10 bits after the point, not 23; unset it",
        stacklevel=2,
    )
