"""CIFAR-10: its binary version and its version for Python, in a folder or a .tar.gz file."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path, PurePosixPath

import numpy as np

from refmmr.datasets.arrays import Halves
from refmmr.datasets.files import read_bounded
from refmmr.datasets.pickles import read_batch

__all__ = ["is_cifar", "read_cifar"]

# Binary first: its reader is the simpler one.
LAYOUTS: dict[str, tuple[str, ...]] = {
    ".bin": (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
    "": (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"),
}
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
"""Folders in the archives."""
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
PIXELS = 3 * 32 * 32
MAX_BATCH_BYTES = 2**26
"""Largest size of a batch in bytes; those of CIFAR-10 have 31 MB."""
MAX_ARCHIVE_BYTES = 2**28
"""Largest unpacked size of an archive in bytes; those of CIFAR-10 have 184 MB."""

Parse = Callable[[bytes, str], tuple[np.ndarray, np.ndarray]]


def read_cifar(path: Path) -> Halves:
    """Read CIFAR-10.

    Parameters
    ----------
    path : Path
        A folder with the six batches, in the binary version (``data_batch_1.bin``, ...,
        ``test_batch.bin``) or the one for Python (without ``.bin``), or with a folder of them as
        the archives unpack to, or with an archive; or an archive.

    Returns
    -------
    Halves
        Images (n, 3, 32, 32) of uint8, and the names of the ten classes.

    Raises
    ------
    FileNotFoundError
        Where batches are missing.
    ValueError
        For a file that is damaged, or a pickle with anything else than data.
    """
    found = _batches_of_folder(path) if path.is_dir() else _batches_of_archive(path)
    parse: Parse = _parse_binary if next(iter(found)).endswith(".bin") else _parse_pickle
    read = [parse(content(), f"{path}: {file}") for file, content in found.items()]
    images, labels = zip(*read, strict=True)
    return Halves(
        np.concatenate(images[:-1]), np.concatenate(labels[:-1]), images[-1], labels[-1], CLASSES
    )


def is_cifar(folder: Path) -> bool:
    """Whether a folder holds any file or folder of CIFAR-10, complete or not."""
    return any((folder / file).exists() for file in ARCHIVES) or any(
        (folder / inner / file).exists()
        for inner in ("", *FOLDERS)
        for files in LAYOUTS.values()
        for file in files
    )


def _batches_of_folder(folder: Path) -> dict[str, Callable[[], bytes]]:
    """A function for each batch that reads it."""
    for inner in ("", *FOLDERS):
        for files in LAYOUTS.values():
            paths = {file: folder / inner / file for file in files}
            if not any(path.exists() for path in paths.values()):
                continue
            missing = [str(path) for path in paths.values() if not path.exists()]
            if missing:
                raise FileNotFoundError(f"{folder}: expected {', '.join(missing)} too")
            return {file: _reading(path) for file, path in paths.items()}
    for file in ARCHIVES:
        if (folder / file).exists():
            return _batches_of_archive(folder / file)
    raise FileNotFoundError(_expected(folder))


def _reading(path: Path) -> Callable[[], bytes]:
    return lambda: read_bounded(path, MAX_BATCH_BYTES)


def _batches_of_archive(path: Path) -> dict[str, Callable[[], bytes]]:
    """The same from an archive, which is not unpacked to the disk."""
    content = memoryview(read_bounded(path, MAX_ARCHIVE_BYTES))
    try:
        with tarfile.open(fileobj=BytesIO(content), mode="r:") as archive:
            members = {
                PurePosixPath(info.name).name: (info.offset_data, info.offset_data + info.size)
                for info in archive
                if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not info.issparse()
            }
    # tarfile may raise exceptions of any kind on damaged headers.
    except Exception as error:
        raise ValueError(f"{path}: expected a .tar.gz archive, got {error}") from error
    for files in LAYOUTS.values():
        if set(files) <= set(members):
            return {file: _slicing(content, *members[file]) for file in files}
    raise ValueError(_expected(path))


def _slicing(content: memoryview, start: int, stop: int) -> Callable[[], bytes]:
    return lambda: bytes(content[start:stop])


def _expected(path: Path) -> str:
    return (
        f"{path}: expected the batches of CIFAR-10, data_batch_1.bin to data_batch_5.bin and "
        "test_batch.bin (the binary version) or the same without .bin (for Python)"
    )


def _parse_binary(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    if len(content) % (1 + PIXELS) or not content:
        raise ValueError(
            f"{source}: expected {1 + PIXELS} bytes an image, got {len(content)} in all"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32), _classes(records[:, 0], source)


def _parse_pickle(content: bytes, source: str) -> tuple[np.ndarray, np.ndarray]:
    data, labels = read_batch(content, source)
    if data.shape != (len(labels), PIXELS) or not labels:
        raise ValueError(
            f"{source}: expected images (n, {PIXELS}) with n labels, "
            f"got {data.shape} with {len(labels)}"
        )
    return data.reshape(-1, 3, 32, 32), _classes(np.array(labels), source)


def _classes(labels: np.ndarray, source: str) -> np.ndarray:
    outside = labels[(labels < 0) | (labels >= len(CLASSES))]
    if len(outside):
        raise ValueError(f"{source}: expected labels 0 to 9, got {outside[0]}")
    return labels.astype(np.intp)
