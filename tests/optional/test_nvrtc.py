"""NVRTC, NVIDIA's run-time compiler, takes the CUDA source: that needs its library but no GPU."""

import ctypes
import importlib.util
import re
from pathlib import Path

import pytest

from refmmr.backends import MODULES

FOLDER = Path(importlib.util.find_spec("refmmr").origin).parent / Path(
    *MODULES["cupy"].module.split(".")[1:]
)
# In the order of `kernels.SOURCES`, which cannot be imported without CuPy.
SOURCES = [FOLDER / f"{name}.cu" for name in ("kernels", "attack", "objective")]
ARCHITECTURES = (70, 80, 90)


def library():
    """NVRTC from one of NVIDIA's wheels, or None."""
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for found in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            if found.suffixes[-1] in (".12", ".13"):
                return ctypes.CDLL(str(found))
    return None


nvrtc = library()
if nvrtc is None:
    pytest.skip(
        "needs NVRTC: pip install nvidia-cuda-nvrtc-cu12 (or nvidia-cuda-nvrtc)",
        allow_module_level=True,
    )


def text(program, what):
    """What NVRTC has to say: its log ("ProgramLog") or the code that it made ("PTX")."""
    size = ctypes.c_size_t()
    check(getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    check(getattr(nvrtc, f"nvrtcGet{what}")(program, buffer))
    return buffer.value.decode()


def check(status):
    assert status == 0, f"NVRTC error {status}"


def supported():
    count = ctypes.c_int()
    check(nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    check(nvrtc.nvrtcGetSupportedArchs(found))
    # Where the oldest of ours is not supported any more, the oldest that is.
    return sorted({max(wanted, min(found)) for wanted in ARCHITECTURES})


def compiled(code, *options):
    program = ctypes.c_void_p()
    check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), code.encode(), b"kernels.cu", 0, None, None)
    )
    given = [option.encode() for option in options]
    status = nvrtc.nvrtcCompileProgram(program, len(given), (ctypes.c_char_p * len(given))(*given))
    log = text(program, "ProgramLog")
    ptx = text(program, "PTX") if status == 0 else None
    check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))
    return log, ptx


@pytest.mark.parametrize("real", ["float", "double"])
@pytest.mark.parametrize("architecture", supported())
def test_kernels_compile_without_a_word(architecture, real):
    assert sorted(SOURCES) == sorted(FOLDER.glob("*.cu"))
    code = "".join(path.read_text() for path in SOURCES)
    log, ptx = compiled(
        code,
        f"--gpu-architecture=compute_{architecture}",
        f"-DREAL={real}",
        "-std=c++17",
    )
    assert ptx is not None, log
    # It may say that the architecture is an old one; that is no fault of the code.
    assert [line for line in log.splitlines() if "deprecated" not in line] == []
    names = re.findall(r'extern "C" __global__ void (\w+)\(', code)
    assert names
    assert sorted(re.findall(r"\.visible \.entry (\w+)\(", ptx)) == sorted(names)


def test_nvrtc_sees_mistakes():
    log, ptx = compiled("__global__ void broken() { nothing(); }")
    assert ptx is None
    assert "nothing" in log
