"""Networks from MATLAB files: those of the paper's authors, and those of MIPVerify.

Both have TensorFlow's layout: dense weights are ``(n_in, n_out)``, filters
``(height, width, n_in, n_out)``, and after the convolutions an image may be flattened pixel by
pixel, the channels of a pixel together ("NHWC").  Here dense weights are ``(n_out, n_in)``, filters
``(n_out, n_in, height, width)``, and images flatten channel by channel ("NCHW"), so the columns of
the first dense layer are permuted: the same network on the same images.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refmmr.interop import matlab_variables
from refmmr.interop.assembly import Assembly
from refmmr.interop.state_dicts import each_convolution, fitting_sides
from refmmr.network import Conv2d, Network

__all__ = ["read"]

FLATTENINGS = ("NCHW", "NHWC")


class _Named(NamedTuple):
    """A layer in a file: the names of its weights and biases."""

    weight: str
    bias: str


AUTHORS = {
    "U": [_Named("U", "bU"), _Named("W", "bW")],
    "weights_conv1": [
        _Named(f"weights_{name}", f"biases_{name}") for name in ("conv1", "conv2", "fc1", "fc2")
    ],
}
"""Layers in files of the authors' code, FC1 and CNN, by a variable that only one of them has."""

MIPVERIFY = re.compile(r"(conv\d+|fc\d+|logits|softmax)/weight")
EXPECTED = (
    "U, W, bU, bW or weights_conv1 ... biases_fc2, of the paper's authors, or conv1/weight ... "
    "fc1/weight ... logits/weight, of MIPVerify"
)


def read(
    path: Path,
    input_shape: Sequence[int] | None = None,
    stride: Any = 2,
    padding: Any = "same",
    flatten: str | None = None,
) -> Network:
    """Read a network from a .mat file.

    Parameters
    ----------
    path : Path
        A file of version 5 to 7; version 7.3 is HDF5 and refused.
    input_shape : tuple of int, optional
        ``(channels, height, width)``.  If not given: for a dense network ``(d,)``, with the inputs
        in the order of the file; for a convolutional one the largest square image that fits its
        first dense layer (28 for the authors' MNIST, 32 for their CIFAR-10).
    stride, padding : optional
        As in `refmmr.Conv2d`, a list with one for each convolution; the files do not store it.  All
        networks of the authors and of MIPVerify's examples have stride 2 and TensorFlow's "same".
    flatten : {"NCHW", "NHWC"}, optional
        Order in which the first dense layer reads an image.  If not given: NHWC in the files of the
        authors, NCHW in those of MIPVerify (its ``Flatten([1, 3, 2, 4])``, as for WK17a).  Files
        that the authors' code writes for MIPVerify (``*_mip.mat``) have the names of the latter
        and the order of the former (``Flatten([1, 4, 3, 2])``): pass ``flatten="NHWC"`` for them.

    Returns
    -------
    Network

    Raises
    ------
    ValueError
        For a damaged file, one of another version, more than 1 GiB, or other variables.

    References
    ----------
    Croce, Andriushchenko, Hein (2019), released code: models.py.
    Tjeng, Xiao, Tedrake (2019), MIPVerify.jl: import_example_nets.jl.
    """
    if flatten not in (None, *FLATTENINGS):
        raise ValueError(f"flatten: expected one of {', '.join(FLATTENINGS)}, got {flatten!r}")
    variables = matlab_variables.read(path)
    layers = _layers(list(variables), path)
    arrays = {}
    for name in (name for layer in layers for name in layer):
        value = variables.get(name, "no such variable")
        if isinstance(value, str):
            raise ValueError(f"{path}: expected real numbers in {name!r}, got {value}")
        arrays[name] = value
    authors = layers[0].weight in AUTHORS
    order = flatten or ("NHWC" if authors else "NCHW")
    return _assembled(layers, arrays, str(path), input_shape, (stride, padding), order)


def _layers(names: list[str], path: Path) -> list[_Named]:
    """The layers in a file, in order, by the names of its variables."""
    for mark, layers in AUTHORS.items():
        if mark in names:
            return layers
    found = [match[1] for name in names if (match := MIPVERIFY.fullmatch(name))]
    if not found:
        got = ", ".join(map(repr, names)) or "none"
        raise ValueError(f"{path}: expected variables {EXPECTED}, got {got}")

    def place(name: str) -> tuple[int, int]:
        kind = name.rstrip("0123456789")
        number = name[len(kind) :]
        return ("conv", "fc", "logits", "softmax").index(kind), int(number or 0)

    return [_Named(f"{name}/weight", f"{name}/bias") for name in sorted(found, key=place)]


def _assembled(
    layers: list[_Named],
    arrays: Mapping[str, np.ndarray],
    source: str,
    input_shape: Any,
    geometry: tuple[Any, Any],
    order: str,
) -> Network:
    weights = [_turned(arrays[layer.weight], layer.weight, source) for layer in layers]
    biases = [arrays[layer.bias].reshape(-1) for layer in layers]
    n_convolutions = sum(W.ndim == 4 for W in weights)
    if any(W.ndim == 4 for W in weights[n_convolutions:]) or n_convolutions == len(weights):
        raise ValueError(f"{source}: expected convolutions first and dense layers behind them")
    strides, paddings = (
        each_convolution(name, value, n_convolutions, source)
        for name, value in zip(("stride", "padding"), geometry, strict=True)
    )
    if not input_shape:
        filters = weights[:n_convolutions]
        convolutions = [
            Conv2d(np.zeros(W.shape), np.zeros(len(W)), *options)
            for W, *options in zip(filters, strides, paddings, strict=True)
        ]
        input_shape = _input_shape(convolutions, weights[n_convolutions], source)
    parts = Assembly(source, input_shape)
    for i, (W, b, layer) in enumerate(zip(weights, biases, layers, strict=True)):
        if i > 0:
            parts.relu(f"before {layer.weight}")
        if W.ndim == 4:
            parts.conv(W, b, layer.weight, strides[i], paddings[i])
            continue
        if i == n_convolutions and order == "NHWC":
            W = _channels_first(W, parts.shape, layer.weight, source)
        parts.flatten(f"before {layer.weight}")
        parts.linear(W, b, layer.weight)
    return parts.network()


def _turned(W: np.ndarray, name: str, source: str) -> np.ndarray:
    """Weights of TensorFlow's layout, with the axis of outputs first."""
    if W.ndim not in (2, 4) or 0 in W.shape:
        raise ValueError(f"{source}: {name}: expected 2 or 4 axes, got shape {W.shape}")
    return np.ascontiguousarray(W.T if W.ndim == 2 else W.transpose(3, 2, 0, 1))


def _channels_first(W: np.ndarray, shape: tuple[int, ...], name: str, source: str) -> np.ndarray:
    """The columns for an image of NHWC order, put in the order of NCHW."""
    if len(shape) == 1:
        return W
    channels, height, width = shape
    if W.shape[1] != channels * height * width:
        raise ValueError(
            f"{source}: {name}: expected {channels * height * width} inputs for images of shape "
            f"{shape}, got {W.shape[1]}"
        )
    columns = W.reshape(len(W), height, width, channels).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(columns.reshape(len(W), -1))


def _input_shape(convolutions: list[Conv2d], dense: np.ndarray, source: str) -> tuple[int, ...]:
    """The input shape that fits the weights."""
    if not convolutions:
        return (dense.shape[1],)
    fits = fitting_sides(convolutions, dense.shape[1])
    channels = convolutions[0].W.shape[1]
    if not fits:
        raise ValueError(
            f"input_shape: expected ({channels}, height, width) for {source}, got none, and no "
            "square image fits"
        )
    return channels, fits[-1], fits[-1]
