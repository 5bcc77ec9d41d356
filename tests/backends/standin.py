"""A stand-in for CuPy where there is no GPU: the same rules, NumPy's arithmetic.

Its array hides a NumPy array and refuses what CuPy's refuses: to become a NumPy array unasked, to
be mixed with one, functions and arguments that CuPy does not have.  It is stricter than CuPy where
CuPy would silently go wrong or slowly right: indices must be on the device and in range, no place
may be written twice by one assignment, and a kernel must be given contiguous arrays of exactly the
types that it declares.

Kernels really run: the CUDA source is compiled for the host by g++ behind `SHIM` and its threads
are called one after the other, in a scrambled order, on copies of the arrays between guards that
no thread may write to, and whose NaNs would be seen by whoever read them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.machinery
import re
import shutil
import subprocess
import types
from pathlib import Path

import numpy as np

_UFUNCS = """
    abs absolute add divide equal exp frexp greater greater_equal isfinite ldexp less less_equal log
    invert logical_and logical_not logical_or bitwise_and bitwise_or matmul maximum minimum multiply
    negative nextafter not_equal power sign sqrt subtract true_divide floor_divide remainder
"""
UFUNCS = _UFUNCS.split()

FUNCTIONS = {
    "arange": "start stop step dtype",
    "argsort": "a axis kind",
    "argwhere": "a",
    "ascontiguousarray": "a dtype",
    "broadcast_arrays": "*args",
    "broadcast_to": "array shape",
    "clip": "a a_min a_max out",
    "concatenate": "tup axis out dtype casting",
    "cumsum": "a axis dtype out",
    "empty": "shape dtype order",
    "empty_like": "prototype dtype order subok shape",
    "expand_dims": "a axis",
    "eye": "N M k dtype order",
    "flip": "a axis",
    "full": "shape fill_value dtype order",
    "moveaxis": "a source destination",
    "ones": "shape dtype order",
    "put_along_axis": "arr indices values axis",
    "repeat": "a repeats axis",
    "result_type": "*arrays_and_dtypes",
    "sort": "a axis kind",
    "squeeze": "a axis",
    "take_along_axis": "a indices axis",
    "where": "condition x y",
    "zeros": "shape dtype order",
    "zeros_like": "a dtype order subok shape",
}
"""What the backend may call, with CuPy's parameters."""

_METHODS = """
    all any argmax argsort astype clip copy cumsum max mean min nonzero ravel reshape round squeeze
    sum swapaxes transpose
"""
METHODS = _METHODS.split()

ATTRIBUTES = ["T", "dtype", "itemsize", "nbytes", "ndim", "shape", "size", "strides"]

transfers: list[int] = []
"""Sizes of the arrays that were copied to the host."""

capturing: list[tuple] = []
"""The launches so far of the stream that captures now, below the stream itself."""


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):  # noqa: N801
    """An array "on the device"."""

    def __init__(self, array):
        self._array = array

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    @property
    def __cuda_array_interface__(self):
        return {"shape": self.shape, "typestr": self.dtype.str, "version": 3}

    def __getattr__(self, name):
        if name in ATTRIBUTES:
            return _wrap(getattr(self._array, name))
        if name in METHODS:
            return functools.partial(_method, self, name)
        raise AttributeError(f"cupy.ndarray has no {name}, or the stand-in does not know it")

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        if method != "__call__" or ufunc.__name__ not in UFUNCS:
            return NotImplemented
        if set(kwargs) - {"out", "dtype", "casting"}:
            raise TypeError(f"cupy.{ufunc.__name__} takes no {', '.join(kwargs)}")
        return _call(ufunc, *inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        if function.__name__ not in FUNCTIONS:
            raise TypeError(f"the stand-in does not know cupy.{function.__name__}")
        return _function(function.__name__)(*args, **kwargs)

    def __getitem__(self, key):
        return _wrap(self._array[_index(key)])

    def __setitem__(self, key, value):
        _not_captured("assignment")
        key = _index(key)
        if any(
            isinstance(part, np.ndarray) for part in (key if isinstance(key, tuple) else (key,))
        ):
            times = np.zeros(self.shape, int)
            np.add.at(times, key, 1)
            assert times.max(initial=0) <= 1, "the outcome of this assignment is undefined in CuPy"
        self._array[key] = _unwrap(value)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def get(self):
        transfers.append(self.size)
        return self._array.copy()

    def item(self):
        return self.get().item()

    def tolist(self):
        return self.get().tolist()

    def __bool__(self):
        return bool(self.get())

    def __int__(self):
        return int(self.get())

    def __float__(self):
        return float(self.get())

    def __format__(self, spec):
        return format(self.get(), spec)

    def __repr__(self):
        return repr(self.get())


def _unwrap(value):
    """The NumPy arrays behind device arrays; host arrays are refused."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}: a host array among device arrays")
    if isinstance(value, (tuple, list)):
        return type(value)(_unwrap(part) for part in value)
    return value


def _wrap(value):
    """CuPy has no scalars of its own: they are arrays without axes."""
    if isinstance(value, ndarray):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return ndarray(np.asarray(value))
    if isinstance(value, (tuple, list)):
        return type(value)(_wrap(part) for part in value)
    return value


def _call(function, *args, **kwargs):
    _not_captured(function.__name__)
    out = kwargs.get("out")
    with np.errstate(all="ignore"):  # as a GPU does
        result = function(*_unwrap(args), **{k: _unwrap(v) for k, v in kwargs.items()})
    if out is not None:
        return out[0] if isinstance(out, tuple) else out
    return next((a for a in args if isinstance(a, ndarray) and a._array is result), _wrap(result))


def _method(array, name, *args, **kwargs):
    result = _call(getattr(array._array, name), *args, **kwargs)
    # What need not be changed is returned as it is: `a.astype(a.dtype, copy=False) is a`.
    return array if isinstance(result, ndarray) and result._array is array._array else result


def _index(key):
    parts = key if isinstance(key, tuple) else (key,)
    if any(isinstance(part, (np.ndarray, list)) for part in parts):
        raise TypeError("an index on the host: CuPy would copy it to the device each time")
    return _unwrap(key)


@functools.cache
def _function(name):
    allowed = FUNCTIONS[name].split()

    def function(*args, **kwargs):
        most = len(args) if allowed[0].startswith("*") else len(allowed)
        if len(args) > most or set(kwargs) - set(allowed):
            raise TypeError(f"cupy.{name} takes {', '.join(allowed)}")
        if name in ("argsort", "sort"):
            kwargs["kind"] = "stable"
        result = _call(getattr(np, name), *args, **kwargs)
        if name in ("empty", "empty_like"):  # whatever was there before
            result._array.fill(np.nan if result.dtype.kind == "f" else 77)
        return result

    function.__name__ = name
    return function


def asarray(a, dtype=None):
    return a if isinstance(a, ndarray) and dtype in (None, a.dtype) else array(a, dtype)


def array(a, dtype=None):
    return ndarray(np.array(a._array if isinstance(a, ndarray) else a, dtype, order="K"))


def asnumpy(a):
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


# ---------------------------------------------------------------------------------------- kernels

SHIM = """
#define __global__
#define __device__ static
struct Dim { unsigned x; };
static Dim blockIdx, blockDim, threadIdx;
extern "C" double sqrt(double) noexcept;
extern "C" float sqrtf(float) noexcept;
static float sqrt(float x) { return sqrtf(x); }
extern "C" double exp(double) noexcept;
extern "C" float expf(float) noexcept;
static float exp(float x) { return expf(x); }
extern "C" double log(double) noexcept;
extern "C" float logf(float) noexcept;
static float log(float x) { return logf(x); }
static double __dadd_rn(double a, double b) { return a + b; }
static double __dsub_rn(double a, double b) { return a - b; }
static double __dmul_rn(double a, double b) { return a * b; }
static double __ddiv_rn(double a, double b) { return a / b; }
"""

RUN = """
extern "C" void run_%(name)s(unsigned blocks, unsigned threads, void **args) {
    long long total = (long long)blocks * threads, step = total %% 7919 ? 7919 : 1;
    blockDim.x = threads;
    for (long long k = 0, t = 0; k < total; k++, t = (t + step) %% total) {
        blockIdx.x = t / threads;
        threadIdx.x = t %% threads;
        %(name)s(%(args)s);
    }
}
"""

TYPES = {"i64": np.int64, "int": np.int32, "bool": np.bool_, "double": np.float64}
GUARD = 64
"""Elements around the copy of an array that a kernel works on."""


class RawModule:
    """CUDA source, compiled for the host."""

    folder: Path  # where libraries are kept
    fused = False  # whether products are fused with sums, as a GPU does

    def __init__(self, code, *, options=()):
        (option,) = options
        name, self.real = option.split("=")
        assert name == "-DREAL"
        self.real = {"float": np.float32, "double": np.float64}[self.real]
        self.kernels = declared(code)
        runs = [
            RUN % {"name": name, "args": ", ".join(_cast(i, kind) for i, (kind, _) in enumerate(p))}
            for name, p in self.kernels.items()
        ]
        contract = ["-mfma", "-ffp-contract=fast"] if self.fused else ["-ffp-contract=off"]
        source = "".join([SHIM, code, *runs])
        self.compiled = ctypes.CDLL(str(_compiled(source, [option, *contract])))

    def get_function(self, name):
        return functools.partial(self._launch, name)

    def _launch(self, name, grid, block, args):
        if capturing:
            capturing.append((self, name, grid, block, args))
            return
        assert len(grid) == len(block) == 1
        parameters = self.kernels[name]
        assert len(args) == len(parameters), f"{name}: {len(args)} arguments"
        copies = [_Guarded(name, *pair, self.real) for pair in zip(parameters, args, strict=True)]
        pointers = (ctypes.c_void_p * len(args))(*(copy.address for copy in copies))
        getattr(self.compiled, f"run_{name}")(ctypes.c_uint(*grid), ctypes.c_uint(*block), pointers)
        for copy in copies:
            copy.back()


class OutOfMemoryError(MemoryError):
    """What an allocation raises when the device is full."""


class MemoryPool:
    """The memory that is kept for later arrays; here none is."""

    freed = 0

    def free_all_blocks(self):
        MemoryPool.freed += 1

    def total_bytes(self):
        return 0


class Stream:
    """A stream; all work is done at once, except what it captures."""

    ptr = 0

    def __init__(self, *, non_blocking=False):
        self.non_blocking = non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert not capturing, "a stream was left that still captures"

    def synchronize(self):
        """All work is done already."""

    def begin_capture(self):
        assert self.non_blocking, "only a stream of its own can capture"
        capturing.append(self)

    def end_capture(self):
        assert capturing[0] is self
        launches = capturing[1:]
        capturing.clear()
        return Graph(launches)


class Graph:
    """Captured launches."""

    def __init__(self, launches):
        self.launches = launches

    def launch(self, stream=None):
        for module, name, grid, block, args in self.launches:
            module._launch(name, grid, block, args)


def _not_captured(what):
    """Only kernels can be captured: whatever needs memory, or a library, cannot."""
    if capturing:
        raise RuntimeError(f"{what}: operation not permitted when stream is capturing")


def declared(code):
    """Names and parameters, each a pair (C type, parameter), of the kernels in a source."""
    found = re.findall(r'extern "C" __global__ void (\w+)\(([^)]*)\)', code)
    pairs = {
        name: [re.fullmatch(r"(.*?)(\w+)", p.strip(), re.S).groups() for p in text.split(",")]
        for name, text in found
    }
    return {
        name: [(kind.replace("__restrict__", "").strip(), p) for kind, p in parts]
        for name, parts in pairs.items()
    }


def _cast(i, kind):
    """Argument i of a kernel, from the array of pointers to all of them."""
    return f"*({kind} *)args[{i}]"


def can_fuse():
    """Whether this processor has fused products."""
    info = Path("/proc/cpuinfo")
    return info.exists() and " fma " in info.read_text()


def _compiled(source, options):
    digest = hashlib.sha256("".join([source, *options]).encode()).hexdigest()
    path = RawModule.folder / f"{digest}.so"
    if not path.exists():
        text = path.with_suffix(".cpp")
        text.write_text(source)
        command = [compiler(), "-std=c++17", "-O1", "-Wall", "-Werror", *options]
        command += ["-Wno-unused-function", "-shared", "-fPIC", "-o", str(path), str(text)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return path


def compiler():
    """A C++ compiler, or None."""
    return shutil.which("g++") or shutil.which("c++")


class _Guarded:
    """An argument of a kernel as its address; arrays are copied in between guards."""

    def __init__(self, kernel, parameter, value, real):
        kind, name = parameter
        what = f"{kernel}: {name}"
        dtype = np.dtype(
            {**TYPES, "real": real}[kind.removeprefix("const ").removesuffix("*").strip()]
        )
        self.array = None
        if not kind.endswith("*"):
            assert isinstance(value, np.generic), f"{what}: a scalar without a type, {value!r}"
            assert value.dtype == dtype, f"{what}: expected {dtype}, got {value.dtype}"
            self.memory = np.array([value])
            self.address = self.memory.ctypes.data
            return
        assert isinstance(value, ndarray), f"{what}: expected a device array, got {value!r}"
        assert value.dtype == dtype, f"{what}: expected {dtype}, got {value.dtype}"
        assert value._array.flags.c_contiguous, f"{what}: not contiguous"
        self.what, self.changes = what, not kind.startswith("const")
        self.array = value._array
        guard = np.full(GUARD, np.nan if dtype.kind == "f" else 2**60 % 2**31, dtype)
        self.memory = np.concatenate([guard, self.array.ravel(), guard])
        self.before = self.memory.copy()
        self.pointer = ctypes.c_void_p(self.memory.ctypes.data + GUARD * dtype.itemsize)
        self.address = ctypes.addressof(self.pointer)

    def back(self):
        if self.array is None:
            return
        inside = slice(GUARD, len(self.memory) - GUARD)
        now, before = self.memory.copy(), self.before.copy()
        if self.changes:
            self.array[...] = self.memory[inside].reshape(self.array.shape)
            now[inside] = before[inside] = 0
        assert now.tobytes() == before.tobytes(), f"{self.what}: written where it must not be"


def module():
    """The module that is to be found as ``cupy``."""
    made = types.ModuleType("cupy")
    made.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    made.cuda = types.SimpleNamespace(
        is_available=lambda: True,
        Stream=Stream,
        get_current_stream=Stream,
        memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=types.SimpleNamespace(
            getDeviceProperties=lambda device: {"name": b"stand-in"},
            runtimeGetVersion=lambda: 12000,
        ),
        set_allocator=lambda allocator: None,
    )
    made.__version__ = "0"
    made.get_default_memory_pool = MemoryPool
    made.inf = np.inf
    for name in UFUNCS:
        setattr(made, name, functools.partial(_call, getattr(np, name)))
    for name in FUNCTIONS:
        setattr(made, name, _function(name))
    for thing in (ndarray, RawModule, array, asarray, asnumpy):
        setattr(made, thing.__name__, thing)
    return made
