"""The CUDA source, compiled by NVRTC when it is first used, and how its kernels are run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import cupy
import numpy as np

SOURCES = [Path(__file__).with_name(f"{name}.cu") for name in ("kernels", "attack", "objective")]
"""One module: what the first file defines is used by the others."""
REPEATS = 8
"""Samples that a thread of some kernels goes through; the same number stands in `kernels.cu`."""
THREADS = 128
"""Threads in a block.  They are independent of each other, so any multiple of 32 will do."""


@functools.cache
def _module(real: str) -> Any:
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES)
    return cupy.RawModule(code=code, options=(f"-DREAL={real}",))


@functools.cache
def _kernel(name: str, dtype: np.dtype) -> Any:
    return _module({"float32": "float", "float64": "double"}[dtype.name]).get_function(name)


def repeated(result: cupy.ndarray) -> int:
    """Threads of a kernel in which each does one entry of `REPEATS` samples, the first axis."""
    n = len(result)
    return -(-n // REPEATS) * (result.size // n) if n else 0


_int32 = functools.lru_cache(maxsize=4096)(np.int32)
"""Sizes come again and again, and a scalar of NumPy takes longer than it takes to find one."""


class Launch(NamedTuple):
    """A kernel with its arguments, which can be run again and again."""

    kernel: Any
    grid: tuple[int]
    block: tuple[int]
    args: tuple[Any, ...]

    def __call__(self) -> None:
        """Run the kernel on the current stream."""
        self.kernel(self.grid, self.block, self.args)


def prepared(name: str, dtype: np.dtype, threads: int, *args: Any) -> Launch:
    """A kernel with one thread for each number of the result, at least one.

    Parameters
    ----------
    name : str
    dtype : numpy.dtype
        What ``real`` stands for, float32 or float64.
    threads : int
    *args : cupy.ndarray, int or float
        Arrays must be contiguous.  Integers are passed as ``int``, other numbers as ``real``.
    """
    typed = [
        arg if isinstance(arg, cupy.ndarray)
        else _int32(arg) if isinstance(arg, (int, np.integer, np.bool_))
        else dtype.type(arg)
        for arg in args
    ]  # fmt: skip
    blocks = -(-threads // THREADS)
    return Launch(_kernel(name, dtype), (blocks,), (THREADS,), (np.int64(threads), *typed))


def launch(name: str, dtype: np.dtype, threads: int, *args: Any) -> None:
    """Run a kernel once, see `prepared`; nothing is done for an empty result."""
    if threads > 0:
        prepared(name, dtype, threads, *args)()
