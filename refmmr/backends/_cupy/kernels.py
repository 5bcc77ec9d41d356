"""`kernels.cu`, compiled by NVRTC when it is first used, and how its kernels are run."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import cupy
import numpy as np

SOURCE = Path(__file__).with_name("kernels.cu")
THREADS = 128
"""Threads in a block.  They are independent of each other, so any multiple of 32 will do."""


@functools.cache
def _module(real: str) -> Any:
    return cupy.RawModule(code=SOURCE.read_text(encoding="utf-8"), options=(f"-DREAL={real}",))


@functools.cache
def _kernel(name: str, dtype: np.dtype) -> Any:
    return _module({"float32": "float", "float64": "double"}[dtype.name]).get_function(name)


def launch(name: str, dtype: np.dtype, threads: int, *args: Any) -> None:
    """Run a kernel, one thread for each number of the result.

    Parameters
    ----------
    name : str
    dtype : numpy.dtype
        What ``real`` stands for, float32 or float64.
    threads : int
        Size of the result.
    *args : cupy.ndarray, int or float
        Arrays must be contiguous.  Integers are passed as ``int``, other numbers as ``real``.
    """
    if threads == 0:
        return
    typed = [
        arg if isinstance(arg, cupy.ndarray) else np.int32(arg) if isinstance(arg, int)
        else dtype.type(arg)
        for arg in args
    ]  # fmt: skip
    blocks = -(-threads // THREADS)
    _kernel(name, dtype)((blocks,), (THREADS,), (np.int64(threads), *typed))
