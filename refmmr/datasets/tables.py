"""Data in one file: arrays in an .npz file, or a .csv table."""

from __future__ import annotations

import csv
from array import array
from pathlib import Path
from typing import IO, Any

import numpy as np

from refmmr._files import read_arrays
from refmmr.datasets.arrays import Halves, classified

__all__ = ["read_csv", "read_npz"]

MAX_NPZ_BYTES = 2**31
"""Largest size of all arrays of an .npz file in bytes: CIFAR-10 in float32 has 0.7 GB."""


def read_npz(path: Path, box: Any, **options: Any) -> Halves:
    """Read ``X`` and ``y``, or ``X_train``, ``y_train``, ``X_test`` and ``y_test``.

    Images of uint8 are divided by 255 where the box is [0, 1].  Other arrays of the file are not
    read; nothing is unpickled.

    Parameters
    ----------
    path : Path
    box, **options
        As for `from_arrays`.

    Returns
    -------
    Halves

    Raises
    ------
    ValueError
        For a file that is damaged, unpacks to more than 2 GiB, or has arrays that do not fit.
    """
    arrays = read_arrays(path, MAX_NPZ_BYTES, _key)
    halves = {key: arrays[key] for key in ("x_test", "y_test") if key in arrays}
    keys = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    if not set(keys) <= set(arrays) or len(halves) == 1:
        raise ValueError(
            f"{path}: expected arrays X and y, or X_train, y_train, X_test and y_test, "
            f"got {', '.join(sorted(arrays)) or 'none of them'}"
        )
    X, y, X_test, y_test = (arrays.get(key) for key in (*keys, "x_test", "y_test"))
    return _checked(path, X, y, X_test, y_test, box=box, pixels=True, **options)


def _key(name: str) -> str | None:
    """The key of an array that is read, None for others."""
    key = name.lower()
    return key if key in ("x", "y", "x_train", "y_train", "x_test", "y_test") else None


def read_csv(path: Path, target: str | None, box: Any, **options: Any) -> Halves:
    """Read a table of numbers with a header, one column of which holds the labels.

    Parameters
    ----------
    path : Path
        Cells are separated by commas, semicolons or tabs: the one most frequent in the header.
    target : str, optional
        Name of the column of the labels, which may be text; the last column if not given.
    box, **options
        As for `from_arrays`.

    Returns
    -------
    Halves

    Raises
    ------
    ValueError
        For cells that are missing or not numbers; the message names the line.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            X, y = _cells(path, file, target)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected a table of text, got {error}") from error
    return _checked(path, X, y, box=box, **options)


def _checked(path: Path, *arrays: Any, **options: Any) -> Halves:
    try:
        return classified(*arrays, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _cells(path: Path, file: IO[str], target: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Features (n, d) and labels (n,) of the rows."""
    first = file.readline()
    delimiter = max(",;\t", key=first.count)
    header = [cell.strip() for cell in next(csv.reader([first], delimiter=delimiter), [])]
    column = _column(path, header, target)
    values, labels = array("d"), []
    known: dict[str, str] = {}  # every label is kept once
    lines = csv.reader(file, delimiter=delimiter)
    for cells in lines:
        if not cells:
            continue
        where = f"{path}: line {lines.line_num + 1}"
        if len(cells) != len(header):
            raise ValueError(f"{where}: expected {len(header)} cells, got {len(cells)}")
        label = cells.pop(column).strip()
        if not label:
            raise ValueError(f"{where}: expected a label, got none")
        labels.append(known.setdefault(label, label))
        values.extend(_numbers(cells, header[:column] + header[column + 1 :], where))
    if not labels:
        raise ValueError(f"{path}: expected rows below the header, got none")
    X = np.frombuffer(values, np.float64).reshape(len(labels), -1)
    return X, _typed(labels, known)


def _column(path: Path, header: list[str], target: str | None) -> int:
    """The number of the column of the labels."""
    if len(header) < 2 or any(_is_number(cell) for cell in header):
        raise ValueError(
            f"{path}: expected a first line with the names of two or more columns, "
            f"got {str(header)[:200]}"
        )
    if target is None:
        return len(header) - 1
    if header.count(target) != 1:
        raise ValueError(
            f"{path}: expected one column {target!r} for the labels, got {str(header)[:200]}"
        )
    return header.index(target)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(cells: list[str], names: list[str], where: str) -> list[float]:
    numbers = []
    for cell, name in zip(cells, names, strict=True):
        try:
            number = float(cell)
        except ValueError:
            number = np.nan
        if not np.isfinite(number):
            raise ValueError(
                f"{where}: expected a finite number in column {name!r}, got {cell[:50]!r}"
            )
        numbers.append(number)
    return numbers


def _typed(labels: list[str], known: dict[str, str]) -> np.ndarray:
    """Labels as integers if all of them are, so that 10 comes after 9."""
    try:
        numbers = {label: int(label) for label in known}
    except ValueError:
        return np.array(labels, dtype=object)
    return np.array([numbers[label] for label in labels])
