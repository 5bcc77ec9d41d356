"""Networks from and to .safetensors files: state dicts, with or without refmmr's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from refmmr._files import read_regular, write_atomically
from refmmr._optional import require
from refmmr.interop.npz_files import VERSION, network_arrays, network_from_arrays
from refmmr.interop.state_dicts import from_state_dict, steps
from refmmr.network import Network

__all__ = ["read", "write"]

DTYPES = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64}
"""Types of tensors that are read, besides BF16, which NumPy does not have."""


def read(path: Path, **options: Any) -> Network:
    """Read a network from a .safetensors file.

    Parameters
    ----------
    path : Path
    **options
        For files that `write` did not write, see `refmmr.interop.state_dicts.from_state_dict`.

    Returns
    -------
    Network

    Raises
    ------
    ValueError
        For a damaged file, tensors of other kinds, or no network.
    ImportError
        Where the package safetensors is missing.
    """
    safetensors = require("safetensors", "load")
    content = read_regular(path)
    try:
        tensors = safetensors.deserialize(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a safetensors file, got {error}") from error
    arrays = {name: _array(name, tensor, path) for name, tensor in tensors}
    about = _metadata(content)
    if about.get("refmmr") is None:
        # The order of the tensors is by dtype and name, not by their place in the network.
        return from_state_dict(arrays, str(path), **options, ordered=False)
    if options:
        raise ValueError(f"{next(iter(options))}: expected none for {path}, which contains it")
    return _own(arrays, about, path)


def write(net: Network, path: Path) -> None:
    """Write a network to a .safetensors file.

    The names are those of the ``Sequential`` that `refmmr.to_torch` makes, whose
    ``load_state_dict`` takes them; layers and input shape are in the file's metadata.

    Parameters
    ----------
    net : Network
    path : Path

    Raises
    ------
    ImportError
        Where the package safetensors is missing.
    """
    numpy = require("safetensors.numpy", "save")
    arrays = {}
    for i, (kind, layer, _) in enumerate(steps(net)):
        if kind in ("linear", "conv"):
            arrays[f"{i}.weight"] = np.ascontiguousarray(layer.W)
            arrays[f"{i}.bias"] = np.ascontiguousarray(layer.b)
    own = network_arrays(net)
    about = {
        "refmmr": str(VERSION),
        "layers": own["layers"],
        "input_shape": json.dumps(list(net.input_shape)),
    }
    content = numpy.save(arrays, metadata=about)
    write_atomically(path, lambda file: file.write(content))


def _array(name: str, tensor: dict[str, Any], path: Path) -> np.ndarray:
    kind, shape, data = tensor["dtype"], tensor["shape"], tensor["data"]
    if kind == "BF16":
        # The upper half of a float32.
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view("f4").reshape(shape)
    if kind not in DTYPES:
        raise ValueError(
            f"{path}: {name}: expected a tensor of BF16, {', '.join(DTYPES)}, got {kind}"
        )
    return np.frombuffer(data, DTYPES[kind]).reshape(shape)


def _metadata(content: bytes) -> dict[str, str]:
    """The metadata of a file that safetensors has validated."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return header.get("__metadata__") or {}


def _own(arrays: dict[str, np.ndarray], about: dict[str, str], path: Path) -> Network:
    """A network that `write` wrote: its tensors in the order of their numbers."""
    if about["refmmr"] != str(VERSION):
        raise ValueError(
            f"{path}: expected version {VERSION} of a network, got {about['refmmr']!r}"
        )
    try:
        layers = json.loads(about["layers"])
        weighted = [i for i, options in enumerate(layers) if options["type"] != "Flatten"]
        numbers = sorted({int(name.split(".")[0]) for name in arrays})
        named = {
            f"{short}{i}": arrays[f"{number}.{long}"]
            for i, number in zip(weighted, numbers, strict=True)
            for short, long in (("W", "weight"), ("b", "bias"))
        }
        shape = np.array(json.loads(about["input_shape"]), dtype=np.int64)
    # Damaged metadata can raise any exception here.
    except Exception as error:
        raise ValueError(f"{path}: expected a network, got a damaged one ({error!r})") from error
    named |= {"layers": np.array(about["layers"]), "input_shape": shape}
    return network_from_arrays(named, str(path))
