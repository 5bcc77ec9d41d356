"""Networks from and for PyTorch: a live ``torch.nn.Sequential``, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike

from refmmr._optional import require
from refmmr._validate import check_array
from refmmr.interop.assembly import Assembly
from refmmr.interop.state_dicts import steps
from refmmr.network import Network

__all__ = ["from_torch", "to_torch"]

LEFT_OUT = ("Identity", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout")
"""Modules that do nothing once the training is over."""

MAX_POOL = (
    "; the maximum of units is no affine map with a ReLU, so its regions have other walls: "
    "a convolution with a stride can stand in its place"
)


def from_torch(
    module: Any, input_shape: Sequence[int] | None = None, *, normalize: Any = None
) -> Network:
    """The network of a live PyTorch ``Sequential``, see `refmmr.Network.from_torch`."""
    torch = require("torch", "from_torch", "torch")
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Sequential, got {type(module).__name__}")
    found = list(_walk(torch, module, ""))
    if input_shape is None:
        input_shape = _input_shape(found)
    reader = _Reader(Assembly("module", input_shape))
    if normalize is not None:
        reader.normalize(normalize)
    for where, part in found:
        reader.read(where, part)
    return reader.parts.network()


def _walk(torch: Any, module: Any, where: str) -> Iterator[tuple[str, Any]]:
    """All modules of nested Sequentials, in order, with their paths."""
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(
            f"module: {where or 'module'}: expected a module without hooks, got {_kind(module)} "
            "with some; what they compute cannot be read"
        )
    if type(module) is not torch.nn.Sequential:
        yield where or "module", module
        return
    for name, child in module.named_children():
        yield from _walk(torch, child, f"{where}.{name}" if where else name)


def _kind(module: Any) -> str:
    """Name of a module's class, in full where it is not PyTorch's own: it may do anything."""
    kind = type(module)
    if kind.__module__.startswith("torch.nn.modules."):
        return kind.__name__
    return f"{kind.__module__}.{kind.__qualname__}"


def _input_shape(found: list[tuple[str, Any]]) -> tuple[int]:
    for _, module in found:
        if _kind(module) == "Linear":
            return (module.in_features,)
        if _kind(module) not in (*LEFT_OUT, "BatchNorm1d"):
            break
    raise ValueError(
        "input_shape: expected (d,) or (channels, height, width), because the module does not "
        "begin with a Linear; got none"
    )


class _Reader:
    """Tells an assembly what the modules do, each by its class."""

    def __init__(self, parts: Assembly) -> None:
        self.parts = parts
        self.pads = ((0, 0), (0, 0))  # of a ZeroPad2d that waits for its convolution

    def normalize(self, pair: Any) -> None:
        """``(x - mean) / std`` on the inputs, before everything else."""
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
        """Add what a module does."""
        kind = _kind(module)
        if self.pads != ((0, 0), (0, 0)) and kind != "Conv2d":
            self._refuse(where, "Conv2d behind a ZeroPad2d", kind)
        if kind in LEFT_OUT:
            return
        read = getattr(self, f"_{kind.lower()}", None) if kind in READ else None
        if read is None:
            more = MAX_POOL if "MaxPool" in kind else ""
            self._refuse(where, ", ".join((*READ, *LEFT_OUT)), kind + more)
        read(where, module)

    def _linear(self, where: str, module: Any) -> None:
        W = _array(module.weight)
        self.parts.linear(W, _bias(module, W), where)

    def _conv2d(self, where: str, module: Any) -> None:
        if module.groups != 1 or module.padding_mode != "zeros":
            self._refuse(
                where, "groups=1 and padding_mode='zeros'",
                f"groups={module.groups}, padding_mode={module.padding_mode!r}",
            )  # fmt: skip
        if tuple(module.dilation) != (1, 1):
            self._refuse(where, "dilation=1", f"dilation={module.dilation}")
        W = _array(module.weight)
        pads = [
            (before + more[0], after + more[1])
            for (before, after), more in zip(self.pads, _pads(module), strict=True)
        ]
        self.pads = (0, 0), (0, 0)
        self.parts.conv(W, _bias(module, W), where, tuple(module.stride), pads)

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
        if module.running_mean is None:
            self._refuse(where, "running statistics", "track_running_stats=False")
        deviation = np.sqrt(_wide(module.running_var) + module.eps)
        factor = 1 / deviation if module.weight is None else _wide(module.weight) / deviation
        shift = -_wide(module.running_mean) * factor
        if module.bias is not None:
            shift = shift + _wide(module.bias)
        self.parts.scale(self._by_channel(where, factor), self._by_channel(where, shift), where)

    _batchnorm2d = _batchnorm1d

    def _refuse(self, where: str, expected: str, got: str) -> NoReturn:
        raise ValueError(f"module: {where}: expected {expected}, got {got}")


READ = ("Linear", "Conv2d", "ZeroPad2d", "ReLU", "Flatten", "BatchNorm1d", "BatchNorm2d")
"""Modules that are read, each by the method of its name."""


def _pads(module: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros around the image, ((top, bottom), (left, right)), of a convolution."""
    if module.padding == "valid":
        return (0, 0), (0, 0)
    if module.padding == "same":  # of stride 1: as large as the filter takes away
        down, across = (size - 1 for size in module.kernel_size)
        return (down // 2, down - down // 2), (across // 2, across - across // 2)
    down, across = module.padding
    return (down, down), (across, across)


def _bias(module: Any, W: np.ndarray) -> np.ndarray:
    return np.zeros(len(W), W.dtype) if module.bias is None else _array(module.bias)


def _array(tensor: Any) -> np.ndarray:
    """A copy in NumPy; what is narrower than float32 is widened, which changes no value."""
    tensor = tensor.detach().cpu()
    if tensor.dtype.itemsize < 4:
        tensor = tensor.float()
    array: np.ndarray = tensor.numpy().copy()
    return array


def _wide(tensor: Any) -> np.ndarray:
    return _array(tensor).astype(np.float64)


def to_torch(net: Network) -> Any:
    """A network as a ``torch.nn.Sequential``, see `refmmr.Network.to_torch`."""
    torch = require("torch", "to_torch", "torch")
    dtype = torch.from_numpy(np.zeros(0, net.dtype)).dtype
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
            if kind == "linear":
                module = torch.nn.Linear(n_in, n_out, dtype=dtype)
            else:
                (down, _), (across, _) = pads
                module = torch.nn.Conv2d(
                    n_in, n_out, tuple(kernel), layer.stride, (down, across), dtype=dtype
                )
            with torch.no_grad():
                module.weight.copy_(torch.from_numpy(layer.W.copy()))
                module.bias.copy_(torch.from_numpy(layer.b.copy()))
        modules.append(module)
    return torch.nn.Sequential(*modules)
