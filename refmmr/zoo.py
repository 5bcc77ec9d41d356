"""Trained networks of the paper's table: names, weights, and a card that says how each was made.

``rm.zoo.load("mnist-fc1-linf-mmr")`` is a network that was trained with the preset of that name.
Its files, ``NAME.npz`` with the weights and ``NAME.json`` with the card, are looked for in the
folder that ``REFMMR_ZOO`` names, in ``zoo/`` of a clone, and in the cache, after a download.  They
are not in the wheel.  ``rm.save(rm.zoo.load(name), "net.onnx")`` exports a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refmmr import _files, io
from refmmr._presets import Preset, presets
from refmmr.datasets import downloads
from refmmr.network import Network

__all__ = ["Card", "card", "load", "names"]

ADDRESS: str | None = None
"""Address of a folder with the files, ending in a slash; None: there is none yet."""
CHECKSUMS = Path(__file__).with_name("zoo_checksums.txt")
"""The SHA-256 sum of each file that can be downloaded: a line with its name and its sum."""
CLONE = Path(__file__).parents[1]
"""The folder of a clone; that of all packages where the library is installed."""
MEASURED = {"lower_bound", "upper_bound", "points"}
"""What each evaluation has."""


@dataclass(frozen=True)
class Card:
    """How a network of the zoo was made, and what was measured.

    Attributes
    ----------
    name : str
    preset : Preset
        The settings of its training, as they were then.
    seed : int
        Of its initial weights, batches and attacks.
    commit : str
        Of this library when it was trained; a plus for files that differed from it.
    test_error : float
        Share of all test points that are misclassified (TE).
    sha256 : str
        Of the file of weights.
    licence : str
    seconds : float
        What the training took.
    machine : mapping
        What it ran on.
    history : list of mapping
        One for each epoch.
    evaluation : mapping or None
        What ``benchmarks/table1.py evaluate`` found; None before.

    Examples
    --------
    >>> import refmmr as rm
    >>> cards = [rm.zoo.card(name) for name in rm.zoo.names()]
    >>> all(card.preset.scheme in card.name for card in cards)
    True
    """

    name: str
    preset: Preset
    seed: int
    commit: str
    test_error: float
    sha256: str
    licence: str
    seconds: float
    machine: Mapping[str, Any] = field(repr=False)
    history: list[Mapping[str, Any]] = field(repr=False)
    evaluation: Mapping[str, Any] | None = field(repr=False, default=None)

    @property
    def lower_bound(self) -> float | None:
        """Share of the evaluated points with an adversarial example within the preset's eps."""
        return None if self.evaluation is None else float(self.evaluation["lower_bound"])

    @property
    def upper_bound(self) -> float | None:
        """Share of the evaluated points without a proof of robustness at the preset's eps."""
        return None if self.evaluation is None else float(self.evaluation["upper_bound"])

    def __str__(self) -> str:
        rows = {
            "preset": ", ".join(f"{k} {v}" for k, v in self.preset._asdict().items()),
            "seed": self.seed,
            "commit": self.commit,
            "sha256": self.sha256,
            "licence": self.licence,
            "training": f"{self.seconds:.0f} s",
            "test error": f"{100 * self.test_error:.2f} %",
        }
        if self.evaluation is not None:
            bounds = self.evaluation["lower_bound"], self.evaluation["upper_bound"]
            rows["robust error"] = (
                f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f} %, "
                f"{self.evaluation['points']} points"
            )
        return "\n".join([self.name, *(f"{key:<14}{value}" for key, value in rows.items())])


def names() -> list[str]:
    """Names of the networks that `load` finds on this computer, or can download.

    Returns
    -------
    list of str
        Names of `refmmr.presets`, in their order.

    Examples
    --------
    >>> import refmmr as rm
    >>> set(rm.zoo.names()) <= set(rm.presets)
    True
    """
    found = {path.stem for folder in _folders() for path in folder.glob("*.json")}
    if ADDRESS:
        found |= {Path(file).stem for file in _checksums()}
    return [name for name in presets if name in found]


def load(name: str) -> Network:
    """A trained network.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    Network
        In float32, as it was trained.

    Raises
    ------
    FileNotFoundError
        Where the files are neither here nor to be had: it says which to put where.
    ValueError
        For a name that is not one of `refmmr.presets`, and for weights with another SHA-256 sum
        than that on the card.

    See Also
    --------
    refmmr.save : export it, as ``.onnx`` or ``.safetensors``.

    Examples
    --------
    >>> import refmmr as rm
    >>> [rm.zoo.load(name).n_classes for name in rm.zoo.names() if "mnist-fc1" in name][:1]
    [10]
    """
    folder = _locate(name)
    path = folder / f"{name}.npz"
    expected = _read(folder, name).sha256
    found = hashlib.sha256(_files.read_regular(path)).hexdigest()
    if found != expected:
        raise ValueError(
            f"{name}: expected weights with the SHA-256 sum {expected} of its card, got {found} in "
            f"{path}; fetch both files again"
        )
    return io.load(path)


def card(name: str) -> Card:
    """How a network was made: preset, seed, commit, checksum, licence, and its errors.

    Parameters
    ----------
    name : str
        One of `names`.

    Returns
    -------
    Card
        ``print(card)`` shows it as text.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load`, and for a damaged card.

    Examples
    --------
    >>> import refmmr as rm
    >>> {rm.zoo.card(name).licence for name in rm.zoo.names()} <= {"MIT"}
    True
    """
    return _read(_locate(name), name)


# ---- files


def _folders() -> list[Path]:
    """Folders with networks on this computer, but for the cache."""
    folders = [Path(os.environ["REFMMR_ZOO"])] if os.environ.get("REFMMR_ZOO") else []
    if (CLONE / "pyproject.toml").exists():
        folders.append(CLONE / "zoo")
    return folders


def _locate(name: str) -> Path:
    """The folder with both files of a network."""
    if not isinstance(name, str) or name not in presets:
        raise ValueError(
            "name: expected one of rm.presets, a data set, a network, a norm and a scheme as in "
            f"'mnist-cnn-linf-mmr+at', got {name!r}"
        )
    files = (f"{name}.json", f"{name}.npz")
    for folder in _folders():
        if all((folder / file).exists() for file in files):
            return folder
    if not ADDRESS:
        raise _missing(name, "there is no address to download them from yet")
    sums, cache = _checksums(), downloads.cache_folder()
    if not sums.keys() >= {*files}:
        raise _missing(name, f"they are not at {ADDRESS}")
    if cache is None or not downloads.has_pooch():
        raise _missing(name, "a download needs pooch: pip install 'refmmr[interop]'")
    for file in files:
        _download(name, file, sums[file], cache / "zoo")
    return cache / "zoo"


def _download(name: str, file: str, sha256: str, folder: Path) -> None:
    """Fetch a file, unless it is there with this checksum."""
    import pooch

    url = f"{ADDRESS}{file}"

    def fetch(url: str, path: str, _: Any) -> None:
        downloads.download_file(url, path)

    try:
        pooch.retrieve(url, f"sha256:{sha256}", fname=file, path=folder, downloader=fetch)
    except (ValueError, downloads.TooLargeError) as error:
        raise ValueError(
            f"{name}: expected a file with SHA-256 sum {sha256} at {url}, got another one; nothing "
            "was kept"
        ) from error
    except OSError as error:
        raise _missing(name, f"the download of {url} failed: {error}") from error


def _missing(name: str, why: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name}: expected the files {name}.npz and {name}.json in the folder that the environment "
        f"variable REFMMR_ZOO names, or in zoo/ of a clone; {why}; in a clone "
        f"benchmarks/table1.py train {name} makes both"
    )


def _checksums() -> dict[str, str]:
    """The SHA-256 sum of each file at `ADDRESS`."""
    lines = CHECKSUMS.read_text(encoding="utf-8").splitlines()
    return {file: sha256 for file, _, sha256 in (line.partition(" ") for line in lines)}


def _read(folder: Path, name: str) -> Card:
    """A card; a damaged one is a ValueError."""
    path = folder / f"{name}.json"
    try:
        entries = json.loads(_files.read_regular(path))
        known = {key: entries[key] for key in Card.__dataclass_fields__ if key in entries}
        found = Card(**known | {"preset": _preset(entries["preset"])})
        _check(found, name)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected the card of {name}, got {error}") from error
    return found


def _preset(settings: Any) -> Preset:
    """A preset from JSON, which knows neither tuples nor infinity."""
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()
    }
    values["p"] = None if values["p"] == "None" else float(values["p"])
    return Preset(**values)


def _check(found: Card, name: str) -> None:
    """Raise a ValueError for the card of another network, or one without what all have."""
    if found.name != name:
        raise ValueError(f"that of {found.name!r}")
    if not re.fullmatch("[0-9a-f]{64}", found.sha256):
        raise ValueError(f"the SHA-256 sum {found.sha256!r}")
    if found.evaluation is not None and not set(found.evaluation) >= MEASURED:
        raise ValueError(f"an evaluation of {', '.join(found.evaluation)}")
