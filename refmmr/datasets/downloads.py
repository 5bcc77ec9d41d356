"""The data sets on this computer, and downloads of those that are not."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from refmmr.datasets.files import inside
from refmmr.datasets.idx import IDX_FILES

__all__ = ["cache_folder", "download_file", "has_pooch", "locate"]


class Home(NamedTuple):
    """The address of a data set, and the MD5 sum of each of its files."""

    base: str
    files: Mapping[str, str]


# The addresses and sums are those of torchvision.datasets (MNIST, FashionMNIST, GTSRB); the sums of
# Fashion-MNIST are also in the README of its repository, that of CIFAR-10 on its home page.
HOMES = {
    # PyTorch's mirror: the original server of MNIST is often unavailable.
    "mnist": Home(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Home(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    # https://www.cs.toronto.edu/~kriz/cifar.html
    "cifar10": Home(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    # https://benchmark.ini.rub.de
    "gtsrb": Home(
        "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/",
        {
            "GTSRB-Training_fixed.zip": "513f3c79a4c5141765e10e952eaa2478",
            "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
            "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
        },
    ),
}
# In the folder of all data: this library's names first, then those that other libraries use.
PLACES = {
    "mnist": ("mnist", "MNIST/raw"),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw"),
    "cifar10": (
        "cifar10", "cifar-10-batches-bin", "cifar-10-batches-py",
        "cifar-10-binary.tar.gz", "cifar-10-python.tar.gz",
    ),
    "gtsrb": ("gtsrb", "GTSRB"),
}  # fmt: skip
_IDX = f"{', '.join(IDX_FILES.values())} (each may end in .gz)"
WANTED = {
    "mnist": f"mnist/ with {_IDX}",
    "fashion-mnist": f"fashion-mnist/ with {_IDX}",
    "cifar10": "cifar10/ with cifar-10-binary.tar.gz or the batches in it",
    "gtsrb": "gtsrb/ with GTSRB/Final_Training/Images, GTSRB/Final_Test/Images, GT-final_test.csv",
}
TIMEOUT = (5, 30)
"""Seconds to wait for a connection, and for the next bytes."""
MAX_DOWNLOAD_BYTES = 2**29
"""Bytes of a downloaded file; the largest, of GTSRB, has 187 MB."""
MAX_UNPACKED_BYTES = 2**31
"""Bytes of an archive once unpacked; those of GTSRB have less than 2**29."""
MAX_FILES = 10**5
"""Files of an archive; those of GTSRB have less than 40,000."""


class TooLargeError(Exception):
    """A download of more than `MAX_DOWNLOAD_BYTES`."""


def locate(
    name: str,
    data: str | os.PathLike[str] | None = None,
    download: bool = True,
    progress: bool | None = None,
) -> Path:
    """The path of a data set: in `data`, in ``REFMMR_DATA``, or in the cache, after a download.

    Parameters
    ----------
    name : {"mnist", "fashion-mnist", "cifar10", "gtsrb"}
    data : path-like, optional
        Folder of all data.  If given, it is the only place.
    download : bool
        Download what is not there.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    Path
        A folder, or an archive.

    Raises
    ------
    FileNotFoundError
        It says which files to put where.
    ValueError
        For a download with another checksum, or too large; nothing of it is kept.
    """
    if data is not None:
        found = _place(name, Path(data))
        if found is None:
            raise FileNotFoundError(f"{name}: expected {Path(data)} to hold {WANTED[name]}")
        return found
    folder = os.environ.get("REFMMR_DATA")
    found = _place(name, Path(folder)) if folder else None
    if found is not None:
        return found
    cache = cache_folder()
    if cache is not None and (cache / name).exists():
        return cache / name
    if not download:
        raise _missing(name, "or, for a download, download=True")
    if cache is None or not has_pooch():
        raise _missing(name, "or, for a download, pooch: pip install 'refmmr[interop]'")
    return _fetch(name, cache, progress)


def _place(name: str, folder: Path) -> Path | None:
    return next((folder / place for place in PLACES[name] if (folder / place).exists()), None)


def cache_folder() -> Path | None:
    """``REFMMR_CACHE``, or a folder where the system keeps caches."""
    folder = os.environ.get("REFMMR_CACHE")
    if folder:
        return Path(folder).expanduser()
    if not has_pooch():
        return None
    import pooch

    return Path(pooch.os_cache("refmmr"))


def has_pooch() -> bool:
    """Whether pooch is installed, which downloads need."""
    try:
        import pooch  # noqa: F401
    except ImportError:
        return False
    return True


def _missing(name: str, why: str) -> FileNotFoundError:
    folder = os.environ.get("REFMMR_DATA")
    return FileNotFoundError(
        f"{name}: expected the environment variable REFMMR_DATA to name a folder "
        f"that holds {WANTED[name]}, got {repr(folder) if folder else 'none'}; {why}"
    )


def _fetch(name: str, cache: Path, progress: bool | None) -> Path:
    """Download all files of a data set; its folder appears when it is complete.

    A file is kept only when it is complete, so another call resumes after an interruption.
    """
    import pooch

    home, partial = HOMES[name], cache / f"{name}.partial"

    def download(url: str, path: str, _: Any) -> None:
        download_file(url, path, progress)

    for file, md5 in home.files.items():
        url = home.base + file
        try:
            pooch.retrieve(url, f"md5:{md5}", fname=file, path=partial, downloader=download)
        except TooLargeError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ValueError(
                f"{name}: expected a file of at most {MAX_DOWNLOAD_BYTES} bytes at {url}, got "
                "more; nothing was kept"
            ) from error
        except ValueError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ValueError(
                f"{name}: expected a file with MD5 sum {md5} at {url}, got another one; "
                "nothing was kept"
            ) from error
        except OSError as error:
            raise _missing(name, f"the download of {url} to {cache} failed: {error}") from error
    try:
        archives = sorted(partial.glob("*.zip"))
        for archive in archives:
            unpack(archive, partial)
        for archive in archives:
            archive.unlink()
        partial.replace(cache / name)
    except ValueError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except OSError as error:
        # Another process may have been quicker.
        shutil.rmtree(partial, ignore_errors=True)
        if not (cache / name).exists():
            raise _missing(name, f"the download cannot be kept in {cache}: {error}") from error
    return cache / name


def download_file(url: str, path: str, progress: bool | None = None) -> None:
    """Download a file of at most `MAX_DOWNLOAD_BYTES`."""
    import requests
    from tqdm import tqdm

    with requests.get(url, stream=True, timeout=TIMEOUT) as response:
        response.raise_for_status()
        total = int(response.headers.get("content-length", 0)) or None
        disable = None if progress is None else not progress
        with (
            open(path, "wb") as file,
            tqdm(
                total=total, desc=url.rpartition("/")[2], unit="B", unit_scale=True, disable=disable
            ) as bar,
        ):
            for block in response.iter_content(2**16):
                if file.tell() + len(block) > MAX_DOWNLOAD_BYTES:
                    raise TooLargeError
                file.write(block)
                bar.update(len(block))


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip archive into a folder, if all of it stays there and is not too large.

    Raises
    ------
    ValueError
        For names that lead elsewhere, links, more than 2 GiB or 100,000 files, and damage.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = [info for info in content.infolist() if not info.is_dir()]
            if sum(info.file_size for info in members) > MAX_UNPACKED_BYTES:
                raise ValueError(f"expected at most {MAX_UNPACKED_BYTES} bytes, got more")
            if len(members) > MAX_FILES:
                raise ValueError(f"expected at most {MAX_FILES} files, got {len(members)}")
            targets = [inside(folder, info.filename, "names") for info in members]
            for info, target in zip(members, targets, strict=True):
                target.parent.mkdir(parents=True, exist_ok=True)
                # A link is written as the text that it holds.
                with content.open(info) as source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
    except OSError:
        raise
    # zipfile can raise nearly any exception for a damaged archive.
    except Exception as error:
        raise ValueError(f"{archive}: {error}") from error
