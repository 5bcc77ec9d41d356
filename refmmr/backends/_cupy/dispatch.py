"""Arrays in, arrays of the same kind out: functions for one kind take both."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from refmmr._validate import is_device
from refmmr.backends._cupy.arrays import to_device, to_host
from refmmr.backends._cupy.network import device_network, host_network
from refmmr.reference.network import Network


def on_device(twin: Callable[..., Any]) -> Callable[..., Any]:
    """Let a twin that works on device arrays take arrays of both kinds.

    Arrays of the host are copied to the device, and the results back if neither the network nor
    the inputs were on the device.  On the device all floats have one dtype, the wider of the
    network's and the inputs'.

    Parameters
    ----------
    twin : callable
        Its first arguments are the network and the inputs X.
    """

    @functools.wraps(twin)
    def run(net: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
        weights = net.parameters[0][0]
        dtype = np.result_type(weights.dtype, X.dtype)
        put = functools.partial(_each, functools.partial(_put, dtype=dtype))
        kwargs = {name: put(value) for name, value in kwargs.items()}
        result = twin(device_network(net, dtype), put(X), *put(args), **kwargs)
        return result if is_device(weights) or is_device(X) else _each(to_host, result)

    return run


def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function that works on host arrays take arrays of both kinds.

    It runs what this backend has no twin of.  If any array or network is on the device, all are
    copied to the host and the results to the device.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not _on_device((*args, *kwargs.values())):
            return function(*args, **kwargs)
        kwargs = {name: _fetch(value) for name, value in kwargs.items()}
        return _each(to_device, function(*map(_fetch, args), **kwargs))

    return run


def _on_device(value: Any) -> bool:
    """Whether any array in nested tuples, lists and networks is on the device."""
    if isinstance(value, Network):
        value = value.parameters
    if isinstance(value, (tuple, list)):
        return any(map(_on_device, value))
    return is_device(value)


def _fetch(value: Any) -> Any:
    return host_network(value) if isinstance(value, Network) else _each(to_host, value)


def _put(array: Any, dtype: np.dtype) -> cupy.ndarray:
    array = to_device(array)
    return array.astype(dtype, copy=False) if array.dtype.kind == "f" else array


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """Change all arrays in nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        parts = [_each(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(value) if isinstance(value, np.ndarray) or is_device(value) else value
