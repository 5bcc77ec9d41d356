"""Networks in .npz files, in the format of this library or as state dicts.

Files of this library have a header (`refmmr._files.read_npz`), an array ``layers``, the layers in
JSON, ``input_shape``, and ``W0``, ``b0``, ... by the position of a layer in the network.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refmmr._files import read_arrays, read_npz, write_npz
from refmmr.interop.state_dicts import from_state_dict
from refmmr.network import Conv2d, Flatten, Linear, Network
from refmmr.reference.layers import Layer

__all__ = ["VERSION", "network_arrays", "network_from_arrays", "read", "write"]

FORMAT = "refmmr-network"
VERSION = 1

MAX_BYTES = 2**30
"""Bytes of all arrays of a file that this library did not write."""


def read(path: Path, **options: Any) -> Network:
    """Read a network of this library's format, or a state dict that `numpy.savez` wrote.

    Parameters
    ----------
    path : Path
    **options
        For a state dict, see `refmmr.interop.state_dicts.from_state_dict`.

    Returns
    -------
    Network

    Raises
    ------
    ValueError
        For a damaged file, objects in it, more than 1 GiB of arrays, or no network.
    """
    if _is_foreign(path):
        return from_state_dict(read_arrays(path, MAX_BYTES), str(path), **options)
    if options:
        raise ValueError(f"{next(iter(options))}: expected none for {path}, which contains it")
    return network_from_arrays(read_npz(path, FORMAT, VERSION), str(path))


def write(net: Network, path: Path) -> None:
    """Write a network in this library's format."""
    write_npz(path, network_arrays(net))


def network_arrays(net: Network) -> dict[str, Any]:
    """Weights, layers and input shape of a network, as arrays by name."""
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "input_shape": np.array(net.input_shape, dtype=np.int64),
        "layers": json.dumps([_describe(layer) for layer in net.layers]),
    }
    for i, (W, b) in zip(net.affine, net.parameters, strict=True):
        arrays[f"W{i}"], arrays[f"b{i}"] = W, b
    return arrays


def network_from_arrays(arrays: Mapping[str, np.ndarray], source: str) -> Network:
    """The inverse of `network_arrays`; `source` names the file in errors."""
    try:
        described = json.loads(str(arrays["layers"]))
        layers = [_rebuild(i, options, arrays) for i, options in enumerate(described)]
        return Network(layers, [int(size) for size in arrays["input_shape"]])
    # A damaged description can raise any exception here.
    except Exception as error:
        raise ValueError(f"{source}: expected a network, got a damaged one ({error})") from error


def _describe(layer: Layer) -> dict[str, Any]:
    if isinstance(layer, Conv2d):
        return {"type": "Conv2d", "stride": layer.stride, "padding": layer.padding}
    return {"type": "Linear" if isinstance(layer, Linear) else "Flatten"}


def _rebuild(i: int, options: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> Layer:
    if options["type"] == "Flatten":
        return Flatten()
    W, b = arrays[f"W{i}"], arrays[f"b{i}"]
    if options["type"] == "Linear":
        return Linear(W, b)
    if options["type"] == "Conv2d":
        return Conv2d(W, b, options["stride"], options["padding"])
    raise ValueError(f"unknown layer type {options['type']!r}")


def _is_foreign(path: Path) -> bool:
    """Whether this is an archive without the header of this library."""
    try:
        with zipfile.ZipFile(path) as archive:
            return "format.npy" not in archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error):
        return False  # damaged: `read_npz` raises the error
