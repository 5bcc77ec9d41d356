"""The switch: which implementation of a kernel a public function runs.

A public function calls a kernel (`refmmr._kernels` lists them all).  A backend registers a faster
twin of the reference function, with the same signature, through `implements`.  Where a backend has
no twin, the twin of numba runs if numba is installed, else the reference.  Arrays on a device are
then copied to the host, and the results back to the device.
"""

from __future__ import annotations

import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np

from refmmr import backends
from refmmr.reference.network import Network

P = ParamSpec("P")
R = TypeVar("R")

SMALL_NETWORK = 2**18
"""Weights of a network, at most, whose reference runs on one thread of BLAS.

The threads of BLAS wait for each other in every product.  On networks up to this size they gain
nothing (measured with MMR on 64-100-10 to 784-256-64-10 and on LeNet), and on a busy machine they
take several times as long as one.
"""
SMALL_PRODUCT = 2**18
"""Multiplications of a product, at most, for which BLAS (OpenBLAS) uses one thread anyway."""

# Twins by backend and by name of the reference function; a backend is a key once it is loaded.
_twins: dict[str, dict[str, Callable[..., Any]]] = {"numpy": {}}
# The backend that `set_backend` chose for this process.
_process: str | None = None
_loading: set[str] = set()
_lock = threading.RLock()
_scope: ContextVar[str | None] = ContextVar("backend", default=None)


def available_backends() -> tuple[str, ...]:
    """Names of the backends whose packages are installed and whose device is present.

    Examples
    --------
    >>> import refmmr as rm
    >>> "numpy" in rm.available_backends()
    True
    """
    return tuple(name for name in _known() if name in _twins or backends.problem(name) is None)


def get_backend() -> str:
    """The backend in use.

    Chosen by the enclosing `use_backend`, else by the last `set_backend`, else by
    ``REFMMR_BACKEND``; otherwise "numpy".

    Examples
    --------
    >>> import refmmr as rm
    >>> with rm.use_backend("numpy"):
    ...     rm.get_backend()
    'numpy'
    """
    chosen = _scope.get() or _process
    return chosen or _ready(os.environ.get("REFMMR_BACKEND") or "numpy", "REFMMR_BACKEND")


def set_backend(name: str) -> None:
    """Choose the backend of all following calls, in all threads of this process.

    Processes that are started later do not inherit the choice: they follow ``REFMMR_BACKEND``.

    Parameters
    ----------
    name : {"numpy", "numba", "cupy"}
        "numpy" is the reference itself.

    Raises
    ------
    ValueError
        For an unknown name.
    ImportError
        When the backend's package is not installed; the message says how to install it.
    RuntimeError
        When the backend's device is missing.

    Examples
    --------
    >>> import refmmr as rm
    >>> rm.set_backend(rm.get_backend())
    """
    global _process
    _process = _ready(name, "backend")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use a backend inside a ``with`` block, in this thread alone; it raises as `set_backend`.

    Examples
    --------
    >>> import refmmr as rm
    >>> with rm.use_backend("numpy"):
    ...     rm.Network.mlp([2, 3, 2], rng=0)([[0.0, 1.0]]).shape
    (1, 2)
    """
    token = _scope.set(_ready(name, "backend"))
    try:
        yield
    finally:
        _scope.reset(token)


class Kernel(Generic[P, R]):
    """A reference function that runs the twin of the current backend, if it has one.

    Attributes
    ----------
    reference : callable
    twins : tuple of str
        The backends that have a twin.
    """

    def __init__(self, reference: Callable[P, R], twins: tuple[str, ...] = ()) -> None:
        functools.update_wrapper(self, reference)
        self.reference, self.twins, self.name = reference, twins, _name(reference)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the twin of the current backend, or its fallback."""
        backend = get_backend()
        twin = _twins[backend].get(self.name)
        if twin is None and backend == "numpy":
            with _blas_threads(args):
                return self.reference(*args, **kwargs)
        if twin is None:
            if os.environ.get("REFMMR_STRICT") == "1":
                raise NotImplementedError(f"REFMMR_STRICT: backend {backend} has no {self.name}")
            twin = backends.on_host(backend, self.fallback())
        return twin(*args, **kwargs)

    def fallback(self) -> Callable[P, R]:
        """The twin of numba, if there is one and numba can be imported; else the reference."""
        if "numba" in self.twins and ("numba" in _twins or backends.problem("numba") is None):
            with suppress(ImportError):
                _ready("numba", "backend")
                return _twins["numba"].get(self.name, self.reference)
        return self.reference

    def __reduce__(self) -> tuple[Any, ...]:
        return kernel, (self.reference, *self.twins)


def kernel(reference: Callable[P, R], *twins: str) -> Kernel[P, R]:
    """Make a dispatched function.

    Parameters
    ----------
    reference : callable
    *twins : str
        Names of the backends that have a twin of it.
    """
    return Kernel(reference, twins)


def implements(backend: str, reference: Callable[..., Any]) -> Callable[[Callable], Callable]:
    """Register the decorated function as a backend's twin of a reference function."""

    def register(twin: Callable) -> Callable:
        _twins.setdefault(backend, {})[_name(reference)] = twin
        return twin

    return register


def _blas_threads(args: tuple[Any, ...]) -> AbstractContextManager[None]:
    """One thread of BLAS for the reference on a small network, with arguments (net, X, ...)."""
    net, X = (*args, None, None)[:2]
    if not isinstance(net, Network) or not isinstance(X, np.ndarray):
        return nullcontext()
    weights = sum(W.size for W, _ in net.parameters)
    if weights > SMALL_NETWORK or weights * X.size <= SMALL_PRODUCT:
        return nullcontext()
    # It loads threadpoolctl, which a single point of a tiny network need not wait for.
    return importlib.import_module("refmmr.backends.threads").one_blas_thread()


def _known() -> list[str]:
    return list(dict.fromkeys([*_twins, *backends.MODULES]))


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _ready(name: str, argument: str) -> str:
    """Check a backend's name and load its twins; returns the name in lower case."""
    given, name = name, name.lower() if isinstance(name, str) else name
    if not isinstance(name, str) or name not in _known():
        raise ValueError(f"{argument}: expected one of {', '.join(_known())}, got {given!r}")
    if name in _twins and name not in _loading:
        return name
    with _lock:
        if name not in _twins:
            _loading.add(name)
            try:
                backends.load(name, argument)
                _twins.setdefault(name, {})
            except BaseException:
                _twins.pop(name, None)
                raise
            finally:
                _loading.discard(name)
    return name
