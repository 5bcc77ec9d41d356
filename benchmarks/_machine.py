"""What a figure was measured on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from importlib.util import find_spec

import numpy as np
from threadpoolctl import threadpool_info

from refmmr.backends.threads import get_threads


def machine() -> dict[str, object]:
    """Processor, cores, date and versions, as they go beside every figure."""
    blas = threadpool_info()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "blas_threads": max((pool["num_threads"] for pool in blas), default=1),
        "threads": get_threads(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "refmmr": version("refmmr"),
        **{name: version(name) for name in ("numba", "torch") if find_spec(name)},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
