"""The stand-in for CuPy knows nothing that the real one does not have; that needs no GPU."""

import importlib.util
import inspect
from pathlib import Path

import numpy as np
import pytest

cupy = pytest.importorskip("cupy", reason="needs CuPy: pip install cupy-cuda12x")

path = Path(__file__).parents[1] / "backends" / "standin.py"
spec = importlib.util.spec_from_file_location("refmmr_tests_standin", path)
standin = importlib.util.module_from_spec(spec)
spec.loader.exec_module(standin)


@pytest.mark.parametrize("name", standin.FUNCTIONS)
def test_functions_take_the_same_arguments(name):
    parameters = inspect.signature(getattr(cupy, name)).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*"}
    assert [stars.get(p.kind, "") + p.name for p in parameters] == standin.FUNCTIONS[name].split()


@pytest.mark.parametrize("name", standin.UFUNCS)
def test_ufuncs(name):
    # matmul is one with a signature, of another class.
    assert isinstance(getattr(cupy, name), (cupy.ufunc, type(cupy.matmul)))
    assert isinstance(getattr(np, name), np.ufunc)


@pytest.mark.parametrize("name", [*standin.METHODS, *standin.ATTRIBUTES])
def test_arrays(name):
    assert hasattr(cupy.ndarray, name)


def test_the_rest_is_there():
    for name in ("RawModule", "array", "asarray", "asnumpy", "inf"):
        assert hasattr(cupy, name)
    for name in ("begin_capture", "end_capture"):
        assert hasattr(cupy.cuda.Stream, name)
    assert cupy.cuda.Stream.null.ptr == 0
    assert hasattr(cupy.cuda.Graph, "launch")
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert hasattr(cupy.get_default_memory_pool(), "free_all_blocks")
    assert callable(cupy.cuda.get_current_stream)
    assert not cupy.cuda.is_available() or cupy.cuda.runtime.getDeviceCount() > 0


@pytest.mark.parametrize(
    "name", [name for name in vars(standin.ndarray) if name.startswith("__") and name != "__dict__"]
)
def test_arrays_have_the_same_special_methods(name):
    if name not in ("__getattr__", "__module__", "__weakref__", "__annotations__"):
        assert hasattr(cupy.ndarray, name)
