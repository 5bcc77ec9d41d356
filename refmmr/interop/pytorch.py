"""Networks from and to PyTorch: modules ``torch.nn.Sequential`` in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from refmmr._optional import require
from refmmr._validate import check_array, check_network
from refmmr.interop.assembly import Assembly
from refmmr.interop.state_dicts import steps
from refmmr.network import Network

__all__ = ["from_torch", "to_torch"]

LEFT_OUT = (
    "Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout",
    "FeatureAlphaDropout",
)  # fmt: skip
"""Modules that are the identity in evaluation."""

NO_PADS = ((0, 0), (0, 0))

MAX_POOL = (
    "; the maximum of units is no affine map with a ReLU, so its regions have other hyperplanes: "
    "a convolution with a stride can stand in its place"
)


def from_torch(
    module: Any, input_shape: Sequence[int] | None = None, *, normalize: Any = None
) -> Network:
    """The network of a PyTorch ``Sequential``.

    The module is read as in evaluation mode: dropout is the identity, and a batch normalisation
    uses its running statistics.  A normalisation of the images by the data loader is not part of
    the module; for torchvision's
    ``Normalize((0.1307,), (0.3081,))`` pass ``normalize=(0.1307, 0.3081)``.

    Parameters
    ----------
    module : torch.nn.Sequential
        Of Linear, Conv2d, ReLU, Flatten, BatchNorm (folded, with its running statistics), Dropout
        and Identity (left out), and Sequentials of these.
    input_shape : tuple of int, optional
        Needed if the first layer with weights is not a Linear.
    normalize : (mean, std), optional
        The normalisation of the inputs before the module, ``(x - mean) / std``, numbers or one per
        channel; it is folded, so that radii are in units of the inputs before it.

    Returns
    -------
    Network
        The same weights, bit for bit, in the dtype of the module; float64 where something was
        folded.

    Raises
    ------
    ValueError, TypeError
        For a module that is not a chain of these; the message names it.
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
        raise TypeError(f"module: expected a torch.nn.Sequential, got {type(module).__name__}")
    found = list(_walk(torch, module, ""))
    for where, part in found:
        _check_kind(where, part)
    if input_shape is None:
        input_shape = _input_shape(found)
    reader = _Reader(Assembly("module", input_shape))
    if normalize is not None:
        reader.normalize(normalize)
    for where, part in found:
        reader.read(where, part)
    return reader.network()


def _walk(torch: Any, module: Any, where: str) -> Iterator[tuple[str, Any]]:
    """All modules of nested Sequentials, in order, with their paths.

    A module that is used twice (such as one ReLU for all layers) is yielded twice.
    """
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(
            f"module: {where or 'module'}: expected a module without hooks, got {_kind(module)} "
            "with some; what they compute cannot be read"
        )
    if "forward" in vars(module):
        raise ValueError(
            f"module: {where or 'module'}: expected a module with the forward of its class, got "
            f"{_kind(module)} with another one"
        )
    if not _is_sequential(torch, type(module)):
        yield where or "module", module
        return
    # Not named_children(): it leaves out what it has seen before.
    for name, child in module._modules.items():
        if child is not None:
            yield from _walk(torch, child, f"{where}.{name}" if where else name)


def _is_sequential(torch: Any, kind: type) -> bool:
    """Whether a class runs its modules one after the other, as a Sequential does."""
    sequential = torch.nn.Sequential
    return issubclass(kind, sequential) and all(
        getattr(kind, name) is getattr(sequential, name)
        for name in ("forward", "__call__", "__iter__")
    )


def _check_kind(where: str, module: Any) -> None:
    """Refuse a module of a class that cannot be read."""
    kind = _kind(module)
    if kind in READ or kind in LEFT_OUT:
        return
    more = MAX_POOL if "MaxPool" in kind else ""
    if where == "module" and any(True for _ in module.children()):
        more = "; what its forward does cannot be read: pass its Sequential, or export it to ONNX"
    raise ValueError(f"module: {where}: expected {', '.join((*READ, *LEFT_OUT))}, got {kind}{more}")


def _kind(module: Any) -> str:
    """Name of a module's class; qualified, unless the class is one of PyTorch."""
    kind = type(module)
    if kind.__module__.startswith("torch.nn.modules."):
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def _input_shape(found: list[tuple[str, Any]]) -> tuple[int]:
    for _, module in found:
        if _kind(module) == "Linear":
            return (module.in_features,)
        if _kind(module) not in (*LEFT_OUT, "BatchNorm1d", "Flatten"):
            break
    raise ValueError(
        "input_shape: expected (d,) or (channels, height, width), because the first layer with "
        "weights is no Linear; got none"
    )


class _Reader:
    """Adds the modules to an assembly, each by the method for its class."""

    def __init__(self, parts: Assembly) -> None:
        self.parts = parts
        self.pads = NO_PADS  # of a ZeroPad2d whose convolution follows
        self.last = ""  # path of the last module that is not left out

    def normalize(self, pair: Any) -> None:
        """Put ``(x - mean) / std`` before all modules."""
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"normalize: expected a pair (mean, std), got {pair!r}")
        mean, std = (self._by_channel("normalize", value) for value in pair)
        if (std == 0).any():
            raise ValueError(f"normalize: expected std without zeros, got {pair[1]!r}")
        self.parts.scale(1 / std, -mean / std, "normalize")

    def _by_channel(self, where: str, value: ArrayLike) -> np.ndarray:
        array = check_array(where, value).astype(np.float64)
        if array.ndim == 1 and len(self.parts.shape) == 3:
            array = array[:, None, None]
        return array

    def read(self, where: str, module: Any) -> None:
        """Add a module."""
        kind = _kind(module)
        if self.pads != NO_PADS and kind != "Conv2d":
            self._refuse(where, "Conv2d behind a ZeroPad2d", kind)
        if kind not in LEFT_OUT:
            self.last = where
            getattr(self, f"_{kind.lower()}")(where, module)

    def network(self) -> Network:
        """The network of all modules read."""
        if self.pads != NO_PADS:
            self._refuse(self.last, "Conv2d behind a ZeroPad2d", "the end")
        return self.parts.network()

    def _linear(self, where: str, module: Any) -> None:
        W = _array(where, module.weight)
        self.parts.linear(W, _bias(where, module, W), where)

    def _conv2d(self, where: str, module: Any) -> None:
        if module.groups != 1 or module.padding_mode != "zeros":
            self._refuse(
                where, "groups=1 and padding_mode='zeros'",
                f"groups={module.groups}, padding_mode={module.padding_mode!r}",
            )  # fmt: skip
        if tuple(module.dilation) != (1, 1):
            self._refuse(where, "dilation=1", f"dilation={module.dilation}")
        W = _array(where, module.weight)
        pads = [
            (before + more[0], after + more[1])
            for (before, after), more in zip(self.pads, _pads(module), strict=True)
        ]
        self.pads = NO_PADS
        self.parts.conv(W, _bias(where, module, W), where, tuple(module.stride), pads)

    def _zeropad2d(self, where: str, module: Any) -> None:
        left, right, top, bottom = module.padding
        if min(module.padding) < 0:
            self._refuse(where, "padding of at least 0", f"padding={module.padding}")
        self.pads = (top, bottom), (left, right)

    def _relu(self, where: str, module: Any) -> None:
        self.parts.relu(where)

    def _flatten(self, where: str, module: Any) -> None:
        if module.start_dim != 1 or module.end_dim not in (-1, len(self.parts.shape)):
            given = f"start_dim={module.start_dim}, end_dim={module.end_dim}"
            self._refuse(where, "start_dim=1 and end_dim=-1", given)
        self.parts.flatten(where)

    def _batchnorm1d(self, where: str, module: Any) -> None:
        if len(self.parts.shape) != 1:
            self._refuse(where, "inputs of shape (features,)", str(self.parts.shape))
        self._normalisation(where, module)

    def _batchnorm2d(self, where: str, module: Any) -> None:
        if len(self.parts.shape) != 3:
            self._refuse(where, "inputs of shape (channels, height, width)", str(self.parts.shape))
        self._normalisation(where, module)

    def _normalisation(self, where: str, module: Any) -> None:
        if module.running_mean is None or module.running_var is None:
            self._refuse(where, "running statistics", "track_running_stats=False")
        mean, variance = _wide(where, module.running_mean), _wide(where, module.running_var)
        if mean.shape != self.parts.shape[:1]:
            self._refuse(where, f"{self.parts.shape[0]} features", str(len(mean)))
        if not (variance + module.eps > 0).all():
            self._refuse(where, "variances above 0", f"{(variance + module.eps).min()}")
        factor = 1 / np.sqrt(variance + module.eps)
        if module.weight is not None:
            factor = _wide(where, module.weight) * factor
        shift = -mean * factor
        if module.bias is not None:
            shift = shift + _wide(where, module.bias)
        self.parts.scale(self._by_channel(where, factor), self._by_channel(where, shift), where)

    def _refuse(self, where: str, expected: str, got: str) -> NoReturn:
        raise ValueError(f"module: {where}: expected {expected}, got {got}")


READ = ("Linear", "Conv2d", "ZeroPad2d", "ReLU", "Flatten", "BatchNorm1d", "BatchNorm2d")
"""Modules that are read, each by the method named after it."""


def _pads(module: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros around the image, ((top, bottom), (left, right)), of a convolution."""
    if module.padding == "valid":
        return (0, 0), (0, 0)
    if module.padding == "same":  # of stride 1: the output is as large as the image
        down, across = (size - 1 for size in module.kernel_size)
        return (down // 2, down - down // 2), (across // 2, across - across // 2)
    down, across = module.padding
    return (down, down), (across, across)


def _bias(where: str, module: Any, W: np.ndarray) -> np.ndarray:
    return np.zeros(len(W), W.dtype) if module.bias is None else _array(where, module.bias)


def _array(where: str, tensor: Any) -> np.ndarray:
    """A copy in NumPy; floats narrower than float32 are widened, which changes no value."""
    if tensor.is_meta:
        raise ValueError(f"module: {where}: expected weights, got none on the device meta")
    tensor = tensor.detach().cpu()
    if tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy().copy()
    return array


def _wide(where: str, tensor: Any) -> np.ndarray:
    return _array(where, tensor).astype(np.float64)


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
