"""Networks to files and back.

This library's own are .npz files with a versioned header, and nothing in them that could run.
Those of other libraries are read and written in `refmmr.interop`.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from refmmr._validate import check_array, check_network
from refmmr.interop import formats
from refmmr.network import Conv2d, Flatten, Linear, Network
from refmmr.reference.layers import Layer

__all__ = ["load", "save"]

FORMAT = "refmmr-network"
VERSION = 1


def save(net: Network, path: str | os.PathLike[str]) -> None:
    """Write a network to a file; the ending says which kind.

    The file is written beside its place and moved there when it is complete, so what was there
    before survives an interruption.

    Parameters
    ----------
    net : Network
    path : path-like
        Ends in ``.npz`` (this library's own), ``.onnx`` or ``.safetensors`` (a state dict with the
        names that PyTorch's Sequential gives, see `Network.to_torch`).  `load` gives back the same
        weights from each, bit for bit.

    Raises
    ------
    ValueError, TypeError
        For another ending, something that is no network, or NaN or infinite weights.
    ImportError
        Where the package for this kind of file is missing.
    """
    check_network(net)
    for W, b in net.parameters:
        check_array("net", W)
        check_array("net", b)
    path = _path(path)
    formats.writer(path)(net, path)


def load(
    path: str | os.PathLike[str],
    *,
    input_shape: Sequence[int] | None = None,
    stride: Any = None,
    padding: Any = None,
    flatten: str | None = None,
) -> Network:
    """Read a network.

    Nothing in the file is executed: pickled objects are refused.  What a file cannot mean here (a
    max-pool, a branch) is refused by its name.

    Parameters
    ----------
    path : path-like
        The ending, or where it says nothing the content, tells the kind of the file:

        ``.npz``
            What `save` wrote; or the arrays of a state dict, by PyTorch's names.
        ``.onnx``
            A chain of Gemm, MatMul, Add, Conv, Relu, Flatten and the like, see
            `refmmr.interop.onnx_files`.
        ``.safetensors``
            A state dict, see `refmmr.interop.state_dicts`.
        ``.mat``
            The networks of the paper's authors and of MIPVerify, see `refmmr.interop.matlab`.
    input_shape : tuple of int, optional
        ``(d,)`` or ``(channels, height, width)``, for files that do not tell.
    stride, padding : optional
        As in `Conv2d`, for files that hold filters but not their geometry: one for all convolutions
        or a list with one for each.
    flatten : {"NCHW", "NHWC"}, optional
        For ``.mat``: the order in which the first dense layer reads the image before it.

    Returns
    -------
    Network
        In the dtype of the file, bit for bit; where something had to be folded into a layer (batch
        normalisation, normalised inputs) in float64.

    Raises
    ------
    FileNotFoundError
        Where there is no such file.
    ValueError
        For a file that is truncated, damaged or too large, of a newer version, or that holds what
        is no ReLU network of this library; also for an option that the file answers itself.
    ImportError
        Where the package for this kind of file is missing.
    """
    path = _path(path)
    given = {"input_shape": input_shape, "stride": stride, "padding": padding, "flatten": flatten}
    options = {name: value for name, value in given.items() if value is not None}
    net: Network = formats.reader(path, options)(path, **options)
    return net


def read_own(path: Path) -> Network:
    """Read an .npz file that `write_own` wrote."""
    return network_from_arrays(read_npz(path, FORMAT, VERSION), str(path))


def write_own(net: Network, path: Path) -> None:
    """Write a network to this library's .npz file."""
    write_npz(path, network_arrays(net))


def network_arrays(net: Network) -> dict[str, Any]:
    """Everything that makes a network, as arrays by name."""
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
    """Undo `network_arrays`; `source` names the file in errors."""
    try:
        described = json.loads(str(arrays["layers"]))
        layers = [_rebuild(i, options, arrays) for i, options in enumerate(described)]
        return Network(layers, [int(size) for size in arrays["input_shape"]])
    # What is in the file can be of any kind, and fail in as many ways.
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


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file atomically, uncompressed and without pickles."""

    def write(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)

    write_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Fill a temporary file in the same folder, then move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files only their owner can read; give them the usual rights.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        # An interruption may come just after the move.
        Path(temporary).unlink(missing_ok=True)
        raise


def read_npz(path: Path, format: str, version: int) -> dict[str, np.ndarray]:
    """All arrays of an .npz file with the right header; never unpickles.

    Every member is read to its end, which checks its sum, and must be stored uncompressed, as
    `write_npz` stores it: a file cannot unpack to more than its own size.
    """
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            arrays = {_member_name(info): _array(archive.read(info)) for info in archive.filelist}
    # Damaged bytes can make zipfile and NumPy raise nearly anything; all of it means one thing.
    except Exception as error:
        raise ValueError(f"{path}: expected an .npz file without objects, got {error}") from error
    found = str(arrays.get("format", "no header"))
    if found != format:
        raise ValueError(f"{path}: expected format {format!r}, got {found!r}")
    number = arrays.get("version", np.zeros(0))
    if number.shape != () or number.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected a version number, got a damaged header")
    if number != version:
        raise ValueError(f"{path}: expected version {version} of {format}, got {number}")
    return arrays


def _member_name(info: zipfile.ZipInfo) -> str:
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("a compressed one")
    return info.filename.removesuffix(".npy")


def _array(content: bytes) -> np.ndarray:
    stream = BytesIO(content)
    array = np.lib.format.read_array(stream, allow_pickle=False)
    if stream.read(1):
        raise ValueError("bytes behind the end of an array")
    return array


def npz_path(path: str | os.PathLike[str]) -> Path:
    """A path that ends in .npz."""
    path = _path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: expected a file ending in .npz, got {str(path)!r}")
    return path


def _path(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path: expected a path, got {path!r}")
    return Path(path)
