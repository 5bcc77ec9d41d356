"""CuPy for the tests: the real one on a GPU, and everywhere a stand-in that knows its rules."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

from refmmr import _backend, backends


def _load_standin():
    path = Path(__file__).with_name("standin.py")
    spec = importlib.util.spec_from_file_location("refmmr_tests_standin", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="session")
def standin(tmp_path_factory):
    """The stand-in's source, `standin.py`; skips without a C++ compiler to run kernels with."""
    loaded = _load_standin()
    if loaded.compiler() is None:
        pytest.skip("needs a C++ compiler (g++ or c++) to run CUDA kernels on the host")
    loaded.RawModule.folder = tmp_path_factory.mktemp("kernels")
    return loaded


def pytest_generate_tests(metafunc):
    """Run tests of `cupy` on the stand-in and on a GPU.

    Those that a module names in `FUSED` also run with fused products, as a GPU makes them.
    """
    if "cupy" in metafunc.fixturenames:
        fused = metafunc.function.__name__ in getattr(metafunc.module, "FUSED", ())
        kinds = ["stand-in", *(["fused stand-in"] if fused else []), "GPU"]
        metafunc.parametrize("cupy", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def cupy(request):
    """The module ``cupy``, with the backend loaded on it; all of it is gone afterwards."""
    if request.param != "GPU":
        standin = request.getfixturevalue("standin")
        standin.RawModule.fused = request.param == "fused stand-in"
        if standin.RawModule.fused and not standin.can_fuse():
            pytest.skip("needs a processor with fused products")
        made = standin.module()
        with pytest.MonkeyPatch.context() as patch:
            _forget()
            patch.setitem(sys.modules, "cupy", made)
            backends.load("cupy", "backend")
            yield made
            _forget()
    else:
        error = backends.problem("cupy")
        if error is not None:
            pytest.skip(str(error))
        backends.load("cupy", "backend")
        yield importlib.import_module("cupy")
        _forget()


def _forget():
    """Unload the backend and its twins, so that no other test meets them."""
    name = backends.MODULES["cupy"].module
    for loaded in [*sys.modules]:
        if loaded == name or loaded.startswith(f"{name}."):
            del sys.modules[loaded]
    parent, _, child = name.rpartition(".")
    vars(sys.modules[parent]).pop(child, None)
    _backend._twins.pop("cupy", None)
