"""For all tests and doctests: what is not read, and figures that are closed again."""

import importlib.util
import sys

import pytest

NEEDS = {"_numba": "numba", "_cupy": "cupy"}

collect_ignore_glob = [
    f"refmmr/backends/{backend}/*"
    for backend, package in NEEDS.items()
    if importlib.util.find_spec(package) is None
]


@pytest.fixture(autouse=True)
def _no_open_figures():
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
