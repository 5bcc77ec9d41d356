"""The backends: faster twins of reference functions, each in a package of its own.

A backend is imported when it is first used; `MODULES` lists the packages and what they need.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

Transfer = Callable[[Any], Any]


class Module(NamedTuple):
    """The package of a backend, and what it needs."""

    module: str  # importing it registers the twins
    package: str  # the package that must be installed
    extra: str  # pip install "refmmr[extra]"


MODULES = {
    "numba": Module("refmmr.backends._numba", "numba", "numba"),
    "cupy": Module("refmmr.backends._cupy", "cupy", "cupy"),
}


def problem(name: str) -> Exception | None:
    """Why a backend cannot run here; None if it can."""
    _, package, extra = MODULES[name]
    if importlib.util.find_spec(package) is None:
        return ImportError(
            f'{name} needs the package {package}, which is not installed: pip install "refmmr['
            f'{extra}]"'
        )
    if package == "cupy":
        # CuPy imports without a GPU and fails only at the first array.
        import cupy

        if not cupy.cuda.is_available():
            return RuntimeError(f"{name} needs a CUDA device and its driver: none was found")
    return None


def describe(name: str) -> str:
    """Version of the package of a backend that can run here, and its devices."""
    package = importlib.import_module(MODULES[name].package)
    if name != "cupy":
        return f"{name} {package.__version__}"
    runtime = package.cuda.runtime
    devices = [
        runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())
    ]
    return f"{name} {package.__version__}, CUDA {runtime.runtimeGetVersion()}, {devices}"


def transfer(name: str) -> tuple[Transfer, Transfer]:
    """Functions that move an array to the memory that a backend computes in, and back to NumPy."""
    if name != "cupy":
        return _same, _same
    arrays = importlib.import_module("refmmr.backends._cupy.arrays")
    return arrays.to_device, arrays.to_host


def on_host(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function on host arrays, for use where a backend has no twin of it.

    Under cupy it also takes arrays on the device: they are copied to the host, and the results
    back.
    """
    if name != "cupy":
        return function
    return importlib.import_module("refmmr.backends._cupy.dispatch").on_host(function)


def _same(array: Any) -> Any:
    return array


def load(name: str, argument: str) -> None:
    """Import a backend, which registers its twins.

    Raises
    ------
    ImportError
        When its package is not installed.
    RuntimeError
        When there is no device.
    """
    error = problem(name)
    if error is not None:
        raise type(error)(f"{argument}: {error}")
    module = MODULES[name].module
    try:
        importlib.import_module(module)
    except BaseException as failure:
        # The modules imported so far must register their twins again the next time.
        for loaded in [*sys.modules]:
            if loaded == module or loaded.startswith(f"{module}."):
                del sys.modules[loaded]
        if isinstance(failure, ImportError):
            raise ImportError(f"{argument}: {name} cannot be imported: {failure}") from failure
        raise
