"""Checks of arguments.  Every message names the argument, what was expected and what was given."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from refmmr import backends
from refmmr._backend import get_backend

if TYPE_CHECKING:
    from refmmr.reference.network import Network

Box = tuple[np.ndarray, np.ndarray]

CONVERTERS = {
    "keras": "export it to ONNX and read the file with refmmr.load",
    "torch": "convert it with refmmr.from_torch",
    "sklearn": "convert it with refmmr.from_sklearn",
}
"""How to convert a model of another package.  Keras comes first: its models may inherit from
those of torch."""


def check_array(
    name: str, value: ArrayLike, ndim: int | None = None, device: bool = False
) -> np.ndarray:
    """A finite float32 or float64 array (other real numbers become float64, if it holds them).

    With `device` it may be on a CUDA device, and stays there.
    """
    refuse_masked(name, value)
    try:
        array = _array(name, value, device)
    except ValueError as error:
        raise ValueError(f"{name}: expected an array of numbers, got a ragged sequence") from error
    if array.dtype not in (np.float32, np.float64):
        if array.dtype.kind not in "biuf":
            raise TypeError(f"{name}: expected real numbers, got dtype {array.dtype}")
        array = _as_float64(name, array)
    if ndim is not None and array.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, got shape {array.shape}")
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        index = tuple(int(i) for i in bad)
        raise ValueError(f"{name}: expected finite numbers, got {array[index]} at index {index}")
    return array


def _array(name: str, value: Any, device: bool) -> np.ndarray:
    """An array; what is on a device stays there, if it may be there."""
    if not is_device(value):
        return np.asarray(value)
    if not device:
        raise TypeError(
            f"{name}: expected an array on the host, got one on a CUDA device; copy it, with .get()"
        )
    if get_backend() != "cupy":
        raise TypeError(
            f"{name}: expected an array on the host, got one on a CUDA device; choose the backend "
            'for it, refmmr.set_backend("cupy"), or copy it, with .get()'
        )
    put, _ = backends.transfer("cupy")
    return put(value)


def refuse_masked(name: str, value: Any) -> None:
    """Raise a ValueError for masked entries, which NumPy would replace by what lies below."""
    parts = value if isinstance(value, (list, tuple)) else [value]
    for part in parts:
        if isinstance(part, np.ma.MaskedArray) and (count := int(np.ma.count_masked(part))):
            raise ValueError(
                f"{name}: expected a number in every place, got a masked array with {count} of "
                f"{part.size} masked; leave these samples out, or fill them in, with .filled(...)"
            )


def _as_float64(name: str, array: np.ndarray) -> np.ndarray:
    """Real numbers of another dtype as float64; an error for one that would be rounded."""
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8:
        large = (array > 2**53) | (array < -(2**53))
        wrong = [i for i in np.argwhere(large).tolist() if int(float(array[*i])) != array[*i]]
    elif array.dtype.kind == "f" and array.dtype.itemsize > 8:
        with np.errstate(over="ignore"):
            rounded = array.astype(np.float64) != array
        wrong = np.argwhere(rounded & ~np.isnan(array)).tolist()
    else:
        wrong = []
    if wrong:
        index = tuple(wrong[0])
        raise ValueError(
            f"{name}: expected numbers that float64 holds, got {array[index]!s} of {array.dtype} "
            f"at index {index}, which would be rounded; pass {name}.astype(float) if that is meant"
        )
    return array.astype(np.float64)


def is_device(value: Any) -> bool:
    """Whether something is an array on a CUDA device, of whatever library."""
    return hasattr(value, "__cuda_array_interface__")


def on_host(value: Any) -> Any:
    """An array, copied to the host if it is on a device."""
    if not is_device(value):
        return value
    _, get = backends.transfer("cupy")
    return get(value)


def beside(like: np.ndarray, value: np.ndarray) -> np.ndarray:
    """An array of the host, copied to the device if `like` is there."""
    if not is_device(like):
        return value
    put, _ = backends.transfer("cupy")
    return put(value)


def check_shape(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of exactly this shape."""
    if array.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {array.shape}")
    return array


def check_network(net: Any) -> None:
    """A network, of this library; the error for another model names what converts it."""
    from refmmr.reference.network import Network

    if isinstance(net, Network):
        return
    hint = ""
    if isinstance(net, (str, os.PathLike)):
        hint = "; read the file with refmmr.load"
    packages = {base.__module__.partition(".")[0] for base in type(net).__mro__}
    for package, converter in CONVERTERS.items():
        if package in packages:
            hint = f"; {converter}"
            break
    raise TypeError(f"net: expected a Network, got {type(net).__name__}{hint}")


def check_inputs(net: Network, X: ArrayLike, name: str = "X", device: bool = True) -> np.ndarray:
    """A non-empty batch of inputs of the network, in the network's dtype or wider."""
    check_network(net)
    array = check_array(name, X, device=device)
    expected = "(n, " + ", ".join(str(size) for size in net.input_shape) + ")"
    if array.shape[1:] != net.input_shape:
        hint = ""
        if array.shape == net.input_shape:
            hint = f"; for a single input pass {name}[None]"
        raise ValueError(f"{name}: expected shape {expected}, got {array.shape}{hint}")
    if len(array) == 0:
        raise ValueError(f"{name}: expected at least one sample, got shape {array.shape}")
    return array


def check_input(net: Network, x: ArrayLike, name: str = "x") -> np.ndarray:
    """A single input of the network."""
    check_network(net)
    return check_shape(name, check_array(name, x), net.input_shape)


def check_labels(
    y: ArrayLike, n: int, n_classes: int, name: str = "y", device: bool = True
) -> np.ndarray:
    """Indices of classes, one for each of n samples; the error for others says how to convert."""
    refuse_masked(name, y)
    try:
        labels = _array(name, y, device)
    except ValueError as error:
        raise ValueError(f"{name}: expected {n} integers, got a ragged sequence") from error
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{name}: expected integer class indices, got dtype {labels.dtype}"
            f"{_label_hint(name, labels, n)}"
        )
    if labels.shape != (n,):
        raise ValueError(
            f"{name}: expected shape ({n},), one label a sample, got {labels.shape}"
            f"{_label_hint(name, labels, n)}"
        )
    outside = labels[(labels < 0) | (labels >= n_classes)]
    if len(outside):
        raise ValueError(f"{name}: expected classes 0 to {n_classes - 1}, got {outside[0]}")
    return labels.astype(np.intp)


def _label_hint(name: str, labels: np.ndarray, n: int) -> str:
    """What makes class indices of one-hot rows, of strings, and of floats that are integers."""
    kind, name = labels.dtype.kind, name.split()[-1]  # y of "validation y"
    if kind in "biuf" and labels.ndim == 2 and len(labels) == n and labels.shape[1] > 1:
        return f"; for one-hot rows pass {name}.argmax(axis=1)" if _is_one_hot(labels) else ""
    if kind in "USO" and labels.ndim == 1 and all(isinstance(label, str) for label in labels):
        return f"; classes, {name} = numpy.unique({name}, return_inverse=True) numbers them"
    if kind == "f" and np.isfinite(labels).all() and (labels == labels.round()).all():
        return f"; pass {name}.astype(int)"
    return ""


def _is_one_hot(labels: np.ndarray) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def check_p(p: Any) -> float:
    """One of the norms 1, 2, inf: a number, or a string such as "2", "inf", "l2" or "l_inf"."""
    number = norm_number(p)
    if number not in (1, 2, np.inf):
        raise ValueError(f"p: expected 1, 2 or inf, got {p!r}")
    return number if number == np.inf else int(number)


def norm_number(p: Any) -> float:
    """The number that names a norm, NaN for other values; a string may begin with l or l_."""
    try:
        return np.nan if isinstance(p, bool) else float(_without_l(p))
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _without_l(p: Any) -> Any:
    return re.sub("^l_?", "", p.lower()) if isinstance(p, str) else p


def check_box(box: Any, X: np.ndarray, name: str = "X", *, own: bool = False) -> Box | None:
    """None, or (lo, hi) as arrays of the shape of one input, with all of X inside.

    With `own` each point may have its own box: then the arrays have the shape of X.
    """
    if box is None:
        return None
    try:
        lo, hi = box
    except (TypeError, ValueError) as error:
        raise ValueError(f"box: expected None or a pair (lo, hi), got {box!r}") from error
    lo, hi = on_host(lo), on_host(hi)
    each = own and any(np.ndim(end) == X.ndim for end in (lo, hi))
    lo, hi = check_bounds(lo, hi, X.shape if each else X.shape[1:], "box", strict=False)
    lo, hi = beside(X, lo), beside(X, hi)
    outside = ((lo > X) | (hi < X)).reshape(len(X), -1).any(axis=1)
    if outside.any():
        i = int(outside.argmax())
        hint = "scale or clip the inputs, or pass box=None"
        # Values up to 255, far outside of [0, 1]: pixels that were not scaled.
        if lo.min() == 0 and hi.max() == 1 and X.min() >= 0 and 16 < X.max() <= 255:
            hint = "for pixels from 0 to 255, divide by 255, or pass box=(0, 255)"
        raise ValueError(
            f"{name}: expected points inside the box, got sample {i} with values from "
            f"{X[i].min():g} to {X[i].max():g} for a box from {lo.min():g} to {hi.max():g}; {hint}"
        )
    return lo, hi


def inward(box: Box | None, dtype: np.dtype) -> Box | None:
    """The box in another dtype, rounded inwards: it lies in the given box."""
    if box is None:
        return None
    lo, hi = (limit.astype(dtype) for limit in box)
    one = np.ones((), dtype)
    lo = np.where(lo < box[0], np.nextafter(lo, one * np.inf), lo)
    hi = np.where(hi > box[1], np.nextafter(hi, -one * np.inf), hi)
    return lo, hi


def check_bounds(
    lo: ArrayLike, hi: ArrayLike, shape: tuple[int, ...], name: str, *, strict: bool = True
) -> Box:
    """Two finite arrays with lo < hi everywhere (or lo <= hi), broadcast to a shape."""
    limits = []
    for limit, value in (("lo", lo), ("hi", hi)):
        array = check_array(f"{name} {limit}", value).astype(np.float64)
        try:
            limits.append(np.broadcast_to(array, shape))
        except ValueError as error:
            raise ValueError(
                f"{name}: expected {limit} of shape {shape} or a number, got shape {array.shape}"
            ) from error
    lower, upper = limits
    wrong = lower >= upper if strict else lower > upper
    if wrong.any():
        i = tuple(int(j) for j in np.argwhere(wrong)[0])
        at = f" at index {i}" if shape else ""
        order = "lo < hi" if strict else "lo <= hi"
        raise ValueError(f"{name}: expected {order}, got lo = {lower[i]:g}, hi = {upper[i]:g}{at}")
    return lower, upper


def check_scale(scale: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    """None, or positive numbers that broadcast to the shape of an input."""
    if scale is None:
        return None
    array = check_array("scale", scale).astype(np.float64)
    try:
        array = np.broadcast_to(array, shape)
    except ValueError as error:
        raise ValueError(
            f"scale: expected numbers of shape {shape}, one for each coordinate, got shape "
            f"{array.shape}"
        ) from error
    if not (array > 0).all():
        i = tuple(int(j) for j in np.argwhere(~(array > 0))[0])
        raise ValueError(
            f"scale: expected numbers > 0, got {array[i]:g} at index {i}; for a coordinate that "
            "may not change pass a box with lo = hi there"
        )
    return array


def check_count(name: str, value: Any, low: int, high: int | None = None, what: str = "") -> int:
    """An integer from low to high."""
    expected = (
        f"an integer of at least {low}" if high is None else f"an integer from {low} to {high}"
    )
    expected += what
    try:
        number = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name}: expected {expected}, got {value!r}") from error
    if isinstance(value, bool):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    if number < low or (high is not None and number > high):
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def check_number(name: str, value: Any) -> float:
    """A finite number above 0."""
    expected = "a finite number > 0"
    if isinstance(value, (bool, np.bool_, str)):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected {expected}, got {value!r}") from error
    except OverflowError as error:
        raise ValueError(f"{name}: expected {expected}, got an integer above any float") from error
    if not np.isfinite(number) or number <= 0:
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    if isinstance(value, (int, np.integer, np.longdouble)) and number != value:
        raise ValueError(
            f"{name}: expected a number that float64 holds, got {value!r}, which would be rounded"
        )
    return number


def check_flag(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_gammas(gamma: Any) -> tuple[Any, Any]:
    """The pair (gamma_B, gamma_D), from one number for both or a pair; not checked further."""
    is_pair = isinstance(gamma, (tuple, list)) or np.ndim(gamma) > 0
    pair = tuple(gamma) if is_pair else (gamma, gamma)
    if len(pair) != 2:
        raise ValueError(f"gamma: expected a number or (gamma_b, gamma_d), got {gamma!r}")
    return pair


def check_rng(rng: Any) -> np.random.Generator:
    """A random generator, from a seed, a generator or None."""
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise TypeError(f"rng: expected a seed, a numpy Generator or None, got {rng!r}") from error


def check_seed(rng: Any) -> tuple[int, bool]:
    """A seed, and whether `rng` gives it each time: a generator and None draw another one."""
    generator = check_rng(rng)
    if isinstance(rng, (int, np.integer)):
        return int(rng), True
    fresh = rng is None or isinstance(
        rng, (np.random.Generator, np.random.BitGenerator, np.random.RandomState)
    )
    return int(generator.integers(2**63)), not fresh


def check_sequence(name: str, value: Any, expected: str) -> list[Any]:
    """A sequence, as a list."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name}: expected {expected}, got {value!r}")
    return list(value)


def check_classes(net: Network) -> None:
    """A network of at least two classes."""
    if net.n_classes < 2:
        raise ValueError(f"net: expected at least two classes, got {net.n_classes}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """One of a few strings, in upper or lower case; returned as it is among the choices."""
    for choice in choices:
        if isinstance(value, str) and value.lower() == choice.lower():
            return choice
    raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")
