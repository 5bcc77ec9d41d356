"""Networks to files and back: `save` and `load` choose one of the formats in `refmmr.interop`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from refmmr._files import as_path
from refmmr._validate import check_array, check_network
from refmmr.interop import formats
from refmmr.network import Network

__all__ = ["load", "save"]


def save(net: Network, path: str | os.PathLike[str]) -> None:
    """Write a network to a file, in the format that its ending names.

    The write is atomic: a temporary file is moved into place when it is complete, so an
    interruption leaves an existing file as it was.

    Parameters
    ----------
    net : Network
    path : path-like
        Ends in ``.npz`` (this library's own), ``.onnx`` or ``.safetensors`` (a state dict with the
        names that PyTorch's Sequential gives, see `refmmr.to_torch`).  `load` gives back the same
        weights from each, bit for bit.

    Raises
    ------
    ValueError, TypeError
        For another ending, an object that is not a network, or NaN or infinite weights.
    ImportError
        If the package for this format is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import refmmr as rm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     rm.save(rm.Network.mlp([2, 3, 2], rng=0), Path(folder) / "net.npz")
    ...     rm.load(Path(folder) / "net.npz").n_hidden
    3
    """
    check_network(net)
    for W, b in net.parameters:
        check_array("net", W)
        check_array("net", b)
    path = as_path(path)
    formats.writer(path)(net, path)


def load(
    path: str | os.PathLike[str],
    *,
    input_shape: Sequence[int] | None = None,
    stride: Any = None,
    padding: Any = None,
    flatten: str | None = None,
) -> Network:
    """Read a network from a file.

    Nothing in the file is executed: pickled objects are refused.  What is affine besides layers is
    folded into them, and what is piecewise linear besides ReLUs (max-pooling, LeakyReLU, skip
    connections) is written as ReLUs, exactly; any other operation is an error that names it.

    Parameters
    ----------
    path : path-like
        The ending, or if it is unknown the content, determines the format:

        ``.npz``
            What `save` wrote; or the arrays of a state dict, by PyTorch's names.
        ``.onnx``
            Affine and piecewise linear operators, see `refmmr.interop.onnx_files`.
        ``.safetensors``
            A state dict, see `refmmr.interop.state_dicts`.
        ``.mat``
            The networks of the paper's authors and of MIPVerify, see `refmmr.interop.matlab`.
    input_shape : tuple of int, optional
        ``(d,)`` or ``(channels, height, width)``, for files that do not contain it.
    stride, padding : optional
        As in `Conv2d`, for files of filters without them: one for all convolutions, or a list
        with one for each.
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
        If the file does not exist.
    ValueError
        For a file that is truncated, damaged, too large or of a newer version, for a model that is
        not a ReLU network of this library, and for an option whose value the file contains.
    ImportError
        If the package for this format is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy
    >>> import refmmr as rm
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "state.npz"
    ...     numpy.savez(path, **{"0.weight": numpy.eye(2), "0.bias": numpy.zeros(2)})
    ...     rm.load(path)
    Network((2,): Linear(2 -> 2))
    """
    path = as_path(path)
    given = {"input_shape": input_shape, "stride": stride, "padding": padding, "flatten": flatten}
    options = {name: value for name, value in given.items() if value is not None}
    net: Network = formats.reader(path, options)(path, **options)
    return net
