"""Atomic writes of files, and a reader of .npz archives that does not trust their contents."""

from __future__ import annotations

import os
import stat
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

__all__ = [
    "as_path",
    "npz_path",
    "open_regular",
    "read_arrays",
    "read_npz",
    "read_regular",
    "write_atomically",
    "write_npz",
    "write_text",
]

BLOCK = 2**20
"""Bytes read at once: memory for an array is used only as its bytes are read."""

DEFLATE_RATIO = 1032
"""Largest ratio of deflate: a header that claims a larger size of the content is false."""


PICTURES = (".png", ".pdf", ".svg")
"""Endings of the files that figures are written to."""


def as_path(path: Any, *endings: str, argument: str = "path") -> Path:
    """An argument of a public function, checked to be a path with one of these endings, if any."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{argument}: expected a path, got {path!r}")
    path = Path(path)
    if endings and path.suffix not in endings:
        expected = " or ".join(endings)
        raise ValueError(f"{argument}: expected a file ending in {expected}, got {str(path)!r}")
    return path


def npz_path(path: str | os.PathLike[str]) -> Path:
    """The argument `path` of a public function, checked to end in .npz."""
    return as_path(path, ".npz")


def open_regular(path: Path) -> IO[bytes]:
    """Open a file for reading; a pipe or a device could block or never end, and is refused."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path}: expected a file, got a folder or device")
    return open(path, "rb")


def read_regular(path: Path) -> bytes:
    """All bytes of a file, see `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Fill a temporary file in the same folder, then move it into place.

    A process that is killed meanwhile leaves its temporary file, and the next write of the same
    path removes it.  The owner of such a file holds a lock on it, which ends with the process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    descriptor, temporary, lock = _locked_temporary(path)
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files that only their owner can read; set the usual permissions.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        # An interruption may come just after the move: then there is no temporary file.
        Path(temporary).unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def _affixes(path: Path) -> tuple[str, str]:
    """Beginning and end of the names of temporary files of a path."""
    return f".{path.name}.", ".refmmr-tmp"


def _locked_temporary(path: Path) -> tuple[int, str, int | None]:
    """A new temporary file: its descriptor, its name, and a descriptor that holds the lock."""
    prefix, suffix = _affixes(path)
    while True:
        descriptor, temporary = tempfile.mkstemp(suffix, prefix, path.parent)
        if not _lock(descriptor):
            return descriptor, temporary, None
        # Another process may have taken it for abandoned before it was locked.
        if os.path.exists(temporary):
            return descriptor, temporary, os.dup(descriptor)
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file unless another process has, or the system has no such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    """Remove temporary files of a path whose processes were killed."""
    prefix, suffix = _affixes(path)
    with os.scandir(path.parent) as entries:
        found = [e.path for e in entries if e.name.startswith(prefix) and e.name.endswith(suffix)]
    for temporary in found:
        try:
            descriptor = os.open(temporary, os.O_RDWR)
        except OSError:  # moved into place meanwhile, or somebody else's
            continue
        try:
            if _lock(descriptor):
                Path(temporary).unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda file: file.write(text.encode()))


def write_npz(path: Path, arrays: Mapping[str, Any], *, compress: bool = False) -> None:
    """Write an .npz file atomically, without pickles."""

    def write(file: IO[bytes]) -> None:
        archive = zipfile.ZipFile(
            file, "w", zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        )
        try:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, np.asanyarray(array), allow_pickle=False)
            archive.close()
        except BaseException:
            # Not closed: amid an array it would raise an error of its own instead of Ctrl-C.
            archive.fp = None
            raise

    write_atomically(path, write)


def read_npz(
    path: Path, format: str, version: int, max_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a file by `write_npz` whose header names this format and version.

    The header is two arrays, ``format`` and ``version``.  Without a largest size of all arrays,
    compressed ones are refused, so a file cannot unpack to more than its own size.
    """
    arrays = read_arrays(path, max_bytes)
    found = str(arrays.get("format", "no header"))
    if found != format:
        raise ValueError(f"{path}: expected format {format!r}, got {found!r}")
    number = arrays.get("version", np.zeros(0))
    if number.shape != () or number.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected a version number, got a damaged header")
    if number != version:
        raise ValueError(f"{path}: expected version {version} of {format}, got {number}")
    return arrays


def read_arrays(
    path: Path, max_bytes: int | None = None, key: Callable[[str], str | None] = str
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file from an untrusted source.

    Nothing is unpickled.  Sizes are checked before memory is allocated, and every array is read to
    its end, which verifies its checksum.

    Parameters
    ----------
    path : Path
    max_bytes : int, optional
        Largest size of all arrays together.  If not given, the size of the file, and arrays must
        be uncompressed.
    key : callable
        Maps the name of an array to its key in the result; None skips the array.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    OSError
        For a file that cannot be opened.
    ValueError
        For a damaged file, one with objects, or with larger arrays.
    """
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            start = file.read(16)
            raise ValueError(
                f"{path}: expected an .npz file, got something that is not a zip file, or the "
                f"beginning of one; it starts with {start!r}"
            )
        try:
            return _members(file, max_bytes, key)
        # zipfile and NumPy may raise exceptions of any kind on damaged bytes.
        except Exception as error:
            text = " ".join(str(error).split())
            message = f"{path}: expected an .npz file without objects, got {text}"
            raise ValueError(message) from error


def _members(
    file: IO[bytes], max_bytes: int | None, key: Callable[[str], str | None]
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    methods = {zipfile.ZIP_STORED}
    if max_bytes is None:
        max_bytes = os.fstat(file.fileno()).st_size
    else:
        methods.add(zipfile.ZIP_DEFLATED)
    left = max_bytes
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            name = key(info.filename.removesuffix(".npy"))
            if name is None:
                continue
            if name in arrays:
                raise ValueError(f"{name} twice")
            left -= info.file_size
            if left < 0:
                raise ValueError(f"arrays of more than {max_bytes} bytes")
            if info.file_size > DEFLATE_RATIO * (info.compress_size + 1):
                raise ValueError(f"{info.filename} with a false size")
            if info.compress_type not in methods:
                raise ValueError(f"{info.filename} compressed by method {info.compress_type}")
            with archive.open(info) as member:
                arrays[name] = _array(member, info)
    return arrays


def _array(member: IO[bytes], info: zipfile.ZipInfo) -> np.ndarray:
    """One array of real numbers, booleans or text."""
    version = npy.read_magic(member)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{info.filename} of version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(member)
    if dtype.hasobject or dtype.kind not in "biufUS":
        raise ValueError(f"{info.filename} of dtype {dtype}")
    if not all(size >= 0 for size in shape):
        raise ValueError(f"{info.filename} of shape {shape}")
    expected = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if expected != info.file_size - member.tell():
        raise ValueError(f"{info.filename} of {info.file_size} bytes for shape {shape}")
    content = np.empty(expected, np.uint8)
    for start in range(0, expected + 1, BLOCK):  # one more read verifies the checksum
        block = member.read(BLOCK)
        content[start : start + len(block)] = np.frombuffer(block, np.uint8)
    if member.read(1):
        raise ValueError(f"{info.filename} with bytes behind its end")
    if expected == 0:
        return np.empty(shape, dtype)
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")
