"""Arrays in, arrays of the same kind out: how twins take both kinds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from refmmr._validate import is_device
from refmmr.backends._cupy.arrays import to_device, to_host
from refmmr.backends._cupy.network import device_network


def on_device(twin: Callable[..., Any]) -> Callable[..., Any]:
    """Let a twin that works on device arrays take arrays of both kinds.

    Arrays of the host are moved to the device, and the results back if neither the network nor the
    inputs were on the device.  There all floats have one dtype, the wider of the network's and the
    inputs'.

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


def _put(array: Any, dtype: np.dtype) -> cupy.ndarray:
    array = to_device(array)
    return array.astype(dtype, copy=False) if array.dtype.kind == "f" else array


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """Change all arrays in nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        parts = [_each(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return change(value) if isinstance(value, np.ndarray) or is_device(value) else value
