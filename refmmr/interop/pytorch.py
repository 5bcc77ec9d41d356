"""Networks from and to PyTorch: modules in memory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from refmmr import _validate as check
from refmmr._optional import require
from refmmr._validate import check_array, check_network
from refmmr.interop.chain import to_network
from refmmr.interop.graph import Graph
from refmmr.interop.state_dicts import steps
from refmmr.interop.torch_functions import read_graph
from refmmr.interop.torch_modules import needed_input_shape
from refmmr.interop.torch_tracing import traced
from refmmr.interop.values import Value
from refmmr.network import Network

__all__ = ["from_torch", "to_torch"]


def from_torch(
    module: Any, input_shape: Sequence[int] | None = None, *, normalize: Any = None
) -> Network:
    """The network of a PyTorch module.

    The module is read as in evaluation mode: dropout is the identity, and a batch normalisation
    uses its running statistics.  A normalisation of the images by the data loader is not part of
    the module; for torchvision's
    ``Normalize((0.1307,), (0.3081,))`` pass ``normalize=(0.1307, 0.3081)``.

    Parameters
    ----------
    module : torch.nn.Module
        A ``Sequential``, or a module whose ``forward`` torch.fx can trace.  Affine operations
        (Linear, Conv2d, ConvTranspose2d, BatchNorm, AvgPool2d, ZeroPad2d, sums, means, reshapes,
        slices) are folded into layers; piecewise linear ones (ReLU, LeakyReLU, PReLU, ReLU6,
        Hardtanh, MaxPool2d, clamp, abs, maximum, skip connections) are written as ReLUs, exactly;
        Dropout and Identity are left out, and so are a Softmax or Sigmoid at the very end.
    input_shape : tuple of int, optional
        Shape of one input; needed if the first layer with weights is not a Linear.
    normalize : (mean, std), optional
        The normalisation of the inputs before the module, ``(x - mean) / std``, numbers or one per
        channel; it is folded, so that radii are in units of the inputs before it.

    Returns
    -------
    Network
        The same weights, bit for bit, in the dtype of the module; float64 where a number that was
        folded had to be rounded.

    Warns
    -----
    UserWarning
        Where operations were written as ReLUs: how many units there are.

    Raises
    ------
    ValueError, TypeError
        For a module with other operations; the message names them.
    ImportError
        Where PyTorch is missing.

    See Also
    --------
    to_torch

    Examples
    --------
    >>> import refmmr as rm
    >>> from torch import nn  # doctest: +SKIP
    >>> rm.from_torch(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))  # doctest: +SKIP
    Network((2,): Linear(2 -> 3), ReLU, Linear(3 -> 2))
    """
    torch = require("torch", "from_torch", "torch")
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    nodes, modules = traced(torch, module)
    if input_shape is None:
        input_shape = needed_input_shape(nodes, modules)
    sizes = check.check_sequence("input_shape", input_shape, "integers")
    shape = tuple(check.check_count("input_shape", size, 1) for size in sizes)
    graph = Graph("module", (1, *shape), shape)
    start: Value = graph.input
    if normalize is not None:
        start = _normalized(graph, normalize)
    output, ended = read_graph(torch, nodes, modules, graph, start)
    if ended is not None:
        warnings.warn(
            f"module: {ended} is left out: the network gives the logits before it, which are "
            "largest for the same class",
            stacklevel=2,
        )
    return to_network(graph, output).network


def _normalized(graph: Graph, pair: Any) -> Value:
    """``(x - mean) / std`` of the input."""
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(f"normalize: expected a pair (mean, std), got {pair!r}")
    mean, std = (check_array("normalize", value).astype(np.float64) for value in pair)
    if len(graph.sample_shape) == 3:
        mean, std = (a[:, None, None] if a.ndim == 1 else a for a in (mean, std))
    if (std == 0).any():
        raise ValueError(f"normalize: expected std without zeros, got {pair[1]!r}")
    return graph.scale(graph.input, 1 / std, -mean / std, "normalize")


def to_torch(net: Network) -> Any:
    """The same network as a ``torch.nn.Sequential``, bit for bit, in the same dtype.

    Parameters
    ----------
    net : Network

    Returns
    -------
    torch.nn.Sequential

    Raises
    ------
    TypeError
        For an object that is not a network.
    ImportError
        Where PyTorch is missing.

    See Also
    --------
    from_torch

    Examples
    --------
    >>> import refmmr as rm
    >>> rm.to_torch(rm.Network.mlp([2, 3, 2], rng=0))  # doctest: +SKIP
    Sequential(
      (0): Linear(in_features=2, out_features=3, bias=True)
      (1): ReLU()
      (2): Linear(in_features=3, out_features=2, bias=True)
    )
    """
    check_network(net)
    torch = require("torch", "to_torch", "torch")
    dtype = torch.from_numpy(np.zeros(0, net.dtype)).dtype
    skip_init = torch.nn.utils.skip_init
    modules = []
    for kind, layer, pads in steps(net):
        if kind == "relu":
            module = torch.nn.ReLU()
        elif kind == "flatten":
            module = torch.nn.Flatten()
        elif kind == "pad":
            (top, bottom), (left, right) = pads
            module = torch.nn.ZeroPad2d((left, right, top, bottom))
        else:
            n_out, n_in, *kernel = layer.W.shape
            # Without initialisation, which would draw from the global random generator.
            if kind == "linear":
                module = skip_init(torch.nn.Linear, n_in, n_out, dtype=dtype)
            else:
                (down, _), (across, _) = pads
                module = skip_init(
                    torch.nn.Conv2d, n_in, n_out, tuple(kernel), layer.stride, (down, across),
                    dtype=dtype,
                )  # fmt: skip
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(layer.W.copy()))
                module.bias.copy_(torch.from_numpy(layer.b.copy()))
        modules.append(module)
    return torch.nn.Sequential(*modules)
