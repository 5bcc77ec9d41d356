"""What pytest does not read: backends whose package is not installed."""

import importlib.util

NEEDS = {"_numba": "numba", "_cupy": "cupy"}

collect_ignore_glob = [
    f"refmmr/backends/{backend}/*"
    for backend, package in NEEDS.items()
    if importlib.util.find_spec(package) is None
]
