"""Trained networks of the paper's table: names, weights, and a card that says how each was made.

``rm.zoo.load("mnist-fc1-linf-mmr")`` is a network that was trained with the preset of that name.
Its files, ``NAME.npz`` with the weights and ``NAME.json`` with the card, are looked for in the
folder that ``REFMMR_ZOO`` names, in ``zoo/`` of a clone, and in the cache, after a download.  They
are not in the wheel.  ``rm.save(rm.zoo.load(name), "net.onnx")`` exports a network.

Plain training knows no norm: its networks in l_inf and in l_2 are one, and its weights are stored
once; one of the two cards names the other.  Trainings that repeat a preset with another seed, or
change one of its settings, have a name such as ``mnist-fc1-l2-mmr-seed1``: `names` leaves them out,
and of some there is a card alone.
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
    weights : str
        The name of the network whose file that is: its own, but for networks that are stored once
        under two names.
    changes : mapping
        Arguments of `refmmr.fit` that differ from those of the preset; empty for its own network.
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
    weights: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.weights:
            object.__setattr__(self, "weights", self.name)

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
            "preset": _in_words(self.preset._asdict()),
            "changes": _in_words(self.changes),
            "seed": self.seed,
            "commit": self.commit,
            "weights": f"{self.weights}.npz",
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
        said = (f"{key:<14}{value}" for key, value in rows.items() if value != "")
        return "\n".join([self.name, *said])


def _in_words(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


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
    there = set(_checksums()) if ADDRESS else set()
    return [
        name
        for name in presets
        if f"{name}.json" in there or any(_weights(folder, name) for folder in _folders())
    ]


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
        For a name that does not begin with one of `refmmr.presets`, and for weights with another
        SHA-256 sum than that on the card.

    See Also
    --------
    refmmr.save : export it, as ``.onnx`` or ``.safetensors``.

    Examples
    --------
    >>> import refmmr as rm
    >>> [rm.zoo.load(name).n_classes for name in rm.zoo.names() if "mnist-fc1" in name][:1]
    [10]
    """
    folder = _locate(name, with_weights=True)
    about = _read(folder, name)
    path, expected = folder / f"{about.weights}.npz", about.sha256
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
    return _read(_locate(name, with_weights=False), name)


# ---- files


def _folders() -> list[Path]:
    """Folders with networks on this computer, but for the cache."""
    folders = [Path(os.environ["REFMMR_ZOO"])] if os.environ.get("REFMMR_ZOO") else []
    if (CLONE / "pyproject.toml").exists():
        folders.append(CLONE / "zoo")
    return folders


def _locate(name: str, with_weights: bool) -> Path:
    """The folder with the card of a network, and with its weights if they are needed."""
    if not isinstance(name, str) or not _is_known(name):
        raise ValueError(
            "name: expected one of rm.presets, a data set, a network, a norm and a scheme as in "
            f"'mnist-cnn-linf-mmr+at', got {name!r}"
        )
    for folder in _folders():
        if _weights(folder, name) if with_weights else (folder / f"{name}.json").exists():
            return folder
    return _fetch(name, with_weights)


def _is_known(name: str) -> bool:
    """Whether a name is that of a preset, alone or with words such as -seed1 behind it."""
    return any(
        name.startswith(preset) and re.fullmatch(r"(-[a-z]+\d*)*", name[len(preset) :])
        for preset in presets
    )


def _weights(folder: Path, name: str) -> Path | None:
    """The file of weights for a card in a folder, if both are there."""
    card, path = folder / f"{name}.json", folder / f"{name}.npz"
    if not card.exists():
        return None
    if not path.exists():
        try:
            path = folder / f"{_read(folder, name).weights}.npz"
        except ValueError:
            return None
    return path if path.exists() else None


def _fetch(name: str, with_weights: bool) -> Path:
    """The cache, after a download of what is not in it yet."""
    if not ADDRESS:
        raise _missing(name, "there is no address to download them from yet")
    sums, cache = _checksums(), downloads.cache_folder()
    if f"{name}.json" not in sums:
        raise _missing(name, f"they are not at {ADDRESS}")
    if cache is None or not downloads.has_pooch():
        raise _missing(name, "a download needs pooch: pip install 'refmmr[interop]'")
    folder = cache / "zoo"
    _download(name, f"{name}.json", sums[f"{name}.json"], folder)
    if with_weights:
        file = f"{_read(folder, name).weights}.npz"
        if file not in sums:
            raise _missing(name, f"{file} is not at {ADDRESS}")
        _download(name, file, sums[file], folder)
    return folder


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
        f"benchmarks/table1.py train {name} makes both, and anywhere refmmr train --preset {name} "
        "--out net.npz makes such a network, for rm.load"
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
    if not _is_known(found.weights):
        raise ValueError(f"weights of {found.weights!r}")
    if not re.fullmatch("[0-9a-f]{64}", found.sha256):
        raise ValueError(f"the SHA-256 sum {found.sha256!r}")
    if found.evaluation is not None and not set(found.evaluation) >= MEASURED:
        raise ValueError(f"an evaluation of {', '.join(found.evaluation)}")
