"""Networks from and to ONNX files.

A model that can be read has one input, with a batch of any size or without one, and one output, the
logits.  Its operators are

Affine, and folded into layers
    Gemm, MatMul, Conv and ConvTranspose (of images and sequences, with groups and dilations),
    BatchNormalization, Add, Sub, Mul, Div, Sum, Mean and Neg with at most one factor that depends
    on the input, Where with a constant condition, AveragePool, GlobalAveragePool, ReduceMean,
    ReduceSum, Pad, Slice, Gather, Split, Concat, Expand, Resize and Upsample (nearest, by whole
    factors), Transpose, Reshape, Flatten, Squeeze, Unsqueeze, Identity, Cast, Dropout.
Piecewise linear, and written exactly as ReLUs
    Relu, LeakyRelu, PRelu, Clip, HardSigmoid, Abs, Max, Min, MaxPool, GlobalMaxPool, ReduceMax,
    ReduceMin; and skip connections, whose values are carried through the layers between.
Left out at the very end, with a warning
    Softmax, LogSoftmax, Sigmoid and ArgMax: the network gives the logits before them, which are
    largest for the same class.

An image with the channels as its last axis (NHWC) that goes to a convolution becomes the (channels,
height, width) of this library, unless all three are equal, which the shape would not show;
`read_model` tells the order.  A sequence (channels, length) that goes to a convolution is an image
of one row.

Everything else is refused by the name of the operator and of its node.  Weights may be float16,
bfloat16 (both become float32), float32 or float64; they may lie in a file in the model's folder.
Nothing in a file is executed, and the memory that it takes is a small multiple of its size, with
1 GiB of weights at most.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refmmr import _validate as check
from refmmr._files import write_atomically
from refmmr._optional import require
from refmmr._version import __version__
from refmmr.interop.onnx_reader import Model, read_graph
from refmmr.interop.onnx_tensors import MAX_BYTES, Tensors, check_fields, read_file
from refmmr.network import Conv2d, Linear, Network

__all__ = ["Model", "from_bytes", "read", "read_model", "write"]

OPSET, IR_VERSION = 17, 8
"""Versions of the files written: of 2022, which current runtimes read."""


def read(path: str | os.PathLike[str], input_shape: Sequence[int] | None = None) -> Network:
    """Read a network from an ONNX file.

    Parameters
    ----------
    path : path-like
    input_shape : tuple of int, optional
        ``(d,)`` or ``(channels, height, width)``, where the file leaves it open.

    Returns
    -------
    Network
        The same weights, bit for bit; in float64 where something was folded into them.

    Raises
    ------
    FileNotFoundError
        If the file, or a file with its weights, does not exist.
    ValueError
        For a damaged file, one of more than 1 GiB, or a model that is not a network of this
        library.
    ImportError
        Where the package onnx is missing.
    """
    return read_model(path, input_shape).network


def read_model(path: str | os.PathLike[str], input_shape: Sequence[int] | None = None) -> Model:
    """Read a network from an ONNX file, and how it differs from the file's model.

    Parameters
    ----------
    path : path-like
    input_shape : tuple of int, optional
        As in `read`.

    Returns
    -------
    Model
        With fields `network`; `input_order`, which gives for each entry of the model's flattened
        input its index in the network's, or None where they are the same; `left_out`, the operator
        at the end that the network does without, or None; and the model's own `input_shape`.

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        As in `read`.
    """
    path = Path(path)
    return model_from_bytes(read_file(path), str(path), input_shape, path.parent)


def from_bytes(
    content: bytes,
    source: str = "model",
    input_shape: Sequence[int] | None = None,
    folder: Path | None = None,
) -> Network:
    """Read a network from the content of an ONNX file.

    Parameters
    ----------
    content : bytes
    source : str
        Name of the model, for errors.
    input_shape : tuple of int, optional
        As in `read`.
    folder : Path, optional
        Folder of weights that are not in `content`; if not given, all have to be in it.

    Returns
    -------
    Network

    Raises
    ------
    ValueError, FileNotFoundError, ImportError
        As in `read`.
    """
    return model_from_bytes(content, source, input_shape, folder).network


def model_from_bytes(
    content: bytes,
    source: str = "model",
    input_shape: Sequence[int] | None = None,
    folder: Path | None = None,
) -> Model:
    """As `from_bytes`, with what `read_model` gives."""
    onnx = require("onnx", "load")
    shape = None
    if input_shape is not None:
        sizes = check.check_sequence("input_shape", input_shape, "integers")
        shape = tuple(check.check_count("input_shape", size, 1) for size in sizes)
    check_fields(content, onnx.ModelProto.DESCRIPTOR, source)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    # protobuf raises a class of its own, and this library does not import that package.
    except Exception as error:
        raise ValueError(f"{source}: expected an ONNX model, got damaged bytes") from error
    # Overflow is an error in the constructors of layers.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return read_graph(model, Tensors(source, folder), source, shape)


def write(net: Network, path: str | os.PathLike[str]) -> None:
    """Write a network to an ONNX file.

    The model has the input ``x`` of shape ``(n, *input_shape)``, with a batch of any size, and the
    output ``logits`` of shape ``(n, K)``.  Its weights are those of the network, bit for bit, in
    the same dtype; "same" padding is written as the pads of this input shape.

    Parameters
    ----------
    net : Network
    path : path-like

    Raises
    ------
    ValueError
        For a network of more than 1 GiB.
    ImportError
        Where the package onnx is missing.
    """
    content = _model(net).SerializeToString()
    if len(content) > MAX_BYTES:
        raise ValueError(f"net: expected at most {MAX_BYTES} bytes, got {len(content)}")
    write_atomically(Path(path), lambda file: file.write(content))


def _model(net: Network) -> Any:
    """The model of a network."""
    onnx = require("onnx", "save")
    from onnx import helper, numpy_helper

    nodes: list[Any] = []
    initializers: list[Any] = []
    name = "x"

    def add(kind: str, inputs: list[str], **attributes: Any) -> None:
        nonlocal name
        output = f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, [name, *inputs], [output], output, **attributes))
        name = output

    for i, layer in enumerate(net.layers):
        if not isinstance(layer, (Linear, Conv2d)):
            add("Flatten", [], axis=1)
            continue
        weights = [f"{i}.weight", f"{i}.bias"]
        initializers += map(numpy_helper.from_array, (layer.W, layer.b), weights)
        if isinstance(layer, Linear):
            add("Gemm", weights, transB=1)
        else:
            add("Conv", weights, **_geometry(layer, net.shapes[i]))
        if i != net.affine[-1]:
            add("Relu", [])
    if len(net.shapes[-1]) > 1:
        add("Flatten", [], axis=1)
    nodes[-1].output[0] = "logits"
    kind = helper.np_dtype_to_tensor_dtype(net.dtype)
    graph = helper.make_graph(
        nodes,
        "refmmr",
        [helper.make_tensor_value_info("x", kind, ["n", *net.input_shape])],
        [helper.make_tensor_value_info("logits", kind, ["n", net.n_classes])],
        initializers,
    )
    return helper.make_model(
        graph,
        opset_imports=[onnx.OperatorSetIdProto(domain="", version=OPSET)],
        ir_version=IR_VERSION,
        producer_name="refmmr",
        producer_version=__version__,
    )


def _geometry(layer: Conv2d, shape: tuple[int, ...]) -> dict[str, Any]:
    """Attributes of a Conv node for inputs of a shape."""
    (top, bottom), (left, right) = layer.pads(*shape[1:])
    return {
        "kernel_shape": layer.W.shape[2:],
        "strides": layer.stride,
        "pads": [top, left, bottom, right],
    }
