"""The switch: which implementation runs behind a public function.

A public function calls ``kernel(reference function)``.  A backend registers a faster twin with the
same signature through `implements`; where it has none, the reference runs.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_twins: dict[str, dict[str, Callable[..., Any]]] = {"numpy": {}}
_current: str | None = None


def available_backends() -> tuple[str, ...]:
    """Names that `set_backend` takes here."""
    return tuple(_twins)


def get_backend() -> str:
    """The backend in use: the last `set_backend`, else ``REFMMR_BACKEND``, else "numpy"."""
    return _current or _check(os.environ.get("REFMMR_BACKEND", "numpy"), "REFMMR_BACKEND")


def set_backend(name: str) -> None:
    """Choose the backend of all following calls, in the whole process.

    Parameters
    ----------
    name : str
        One of `available_backends()`; "numpy" is the readable reference itself.

    Raises
    ------
    ValueError
        For a backend that is not there.
    """
    global _current
    _current = _check(name, "backend")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Use a backend inside a ``with`` block, and the former one again after it."""
    global _current
    former = _current
    set_backend(name)
    try:
        yield
    finally:
        _current = former


def kernel(reference: Callable[P, R]) -> Callable[P, R]:
    """A function that runs the current backend's twin of `reference`, or `reference` itself."""
    name = _name(reference)

    @functools.wraps(reference)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        return _twins[get_backend()].get(name, reference)(*args, **kwargs)

    return dispatch


def implements(backend: str, reference: Callable[..., Any]) -> Callable[[Callable], Callable]:
    """Register the decorated function as a backend's twin of a reference function."""

    def register(twin: Callable) -> Callable:
        _twins.setdefault(backend, {})[_name(reference)] = twin
        return twin

    return register


def _name(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _check(name: str, argument: str) -> str:
    if not isinstance(name, str) or name not in _twins:
        raise ValueError(
            f"{argument}: expected one of the backends here, {', '.join(_twins)}, got {name!r}"
        )
    return name
