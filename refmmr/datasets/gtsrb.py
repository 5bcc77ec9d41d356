"""GTSRB, the German traffic signs: folders of images with tables of their classes."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from refmmr.datasets.arrays import Halves
from refmmr.datasets.files import inside, read_bounded

__all__ = ["is_gtsrb", "read_gtsrb"]

SIZE = 32
N_CLASSES = 43
MAX_IMAGES = 100_000
"""Largest number of images of a half; GTSRB has 39,209 and 12,630."""
MAX_PIXELS = 2**22
"""Largest number of pixels of an image before it is resized; GTSRB has less than 2**16."""
MAX_TABLE_BYTES = 2**26
"""Largest size of a table in bytes; those of GTSRB have 2 MB."""

TRAINING = ("Final_Training/Images", "Training")
TEST = "Final_Test/Images"
# The table with the classes is in an archive of its own, which may be unpacked into any of these.
TRUTH = ("Final_Test/Images", "Final_Test", ".", "..")
TRUTH_FILES = ("GT-final_test.csv", "GT-final_test.test.csv")
RECTANGLE = ("Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2")


class Sign(NamedTuple):
    """An image file, its class, and the rectangle of the sign, without the last row and column."""

    path: Path
    label: int
    rectangle: tuple[int, int, int, int]
    where: str  # table and line, for errors


def is_gtsrb(folder: Path) -> bool:
    """Whether a folder holds any folder or table of GTSRB, complete or not."""
    return _kaggle(folder) or any(
        (root / part).is_dir() for root in _roots(folder) for part in (*TRAINING, TEST)
    )


def read_gtsrb(folder: Path, name: str, crop: bool = False, progress: bool | None = None) -> Halves:
    """Read GTSRB, each image resized to 32x32 pixels.

    Parameters
    ----------
    folder : Path
        With ``Final_Training/Images`` (or ``Training``), ``Final_Test/Images`` and
        ``GT-final_test.csv``, or a folder ``GTSRB`` that has them, as the archives of the
        benchmark unpack to; or with ``Train.csv`` and ``Test.csv``, as on Kaggle.
    name : str
        Name of the data set, for errors.
    crop : bool
        Only the sign; otherwise the whole image, which has a margin of a tenth around it.
    progress : bool, optional
        Show a progress bar; if not given, on a terminal only.

    Returns
    -------
    Halves
        Images (n, 3, 32, 32) of uint8.

    Raises
    ------
    FileNotFoundError
        Where a table or an image is missing.
    ValueError
        For damaged ones.
    """
    train, test = _signs(folder, name)
    disable = None if progress is None else not progress
    with tqdm(total=len(train) + len(test), desc=name, unit=" images", disable=disable) as bar:
        X_train, X_test = (_images(signs, crop, bar) for signs in (train, test))
    y_train, y_test = (np.array([s.label for s in signs], np.intp) for signs in (train, test))
    return Halves(X_train, y_train, X_test, y_test)


def _roots(folder: Path) -> tuple[Path, Path]:
    return folder, folder / "GTSRB"


def _kaggle(folder: Path) -> bool:
    return (folder / "Train.csv").exists() or (folder / "Test.csv").exists()


def _signs(folder: Path, name: str) -> tuple[list[Sign], list[Sign]]:
    if _kaggle(folder):
        train, test = (
            list(_rows(folder / f"{half}.csv", folder, "Path")) for half in ("Train", "Test")
        )
    else:
        train, test = _training_signs(folder, name), _test_signs(folder, name)
    for half, signs in (("training", train), ("test", test)):
        if not 0 < len(signs) <= MAX_IMAGES:
            raise ValueError(f"{name}: expected 1 to {MAX_IMAGES} {half} images, got {len(signs)}")
    return train, test


def _training_signs(folder: Path, name: str) -> list[Sign]:
    places = [root / part for root in _roots(folder) for part in TRAINING]
    images = next((place for place in places if place.is_dir()), None)
    if images is None:
        raise FileNotFoundError(
            f"{name}: expected the training images in {places[0]} or {places[-2]}, found neither"
        )
    tables = sorted(images.glob("*/GT-*.csv"))
    if not tables:
        raise FileNotFoundError(f"{name}: expected {images / '00000' / 'GT-00000.csv'}, ...")
    signs: list[Sign] = []
    for table in tables:
        signs.extend(_rows(table, table.parent, "Filename"))
        if len(signs) > MAX_IMAGES:
            break
    return signs


def _test_signs(folder: Path, name: str) -> list[Sign]:
    roots = [root for root in _roots(folder) if (root / TEST).is_dir()]
    if not roots:
        raise FileNotFoundError(f"{name}: expected the test images in {folder / 'GTSRB' / TEST}")
    # Nothing outside of the given folder is read.
    places = [roots[0] / part for part in TRUTH if part != ".." or roots[0] != folder]
    for table in (place / file for file in TRUTH_FILES for place in places):
        if table.exists() and "ClassId" in _header(table):
            return list(_rows(table, roots[0] / TEST, "Filename"))
    raise FileNotFoundError(
        f"{name}: expected {TRUTH_FILES[0]} with a column ClassId in {roots[0] / TEST} "
        f"or {folder} (it comes in GTSRB_Final_Test_GT.zip)"
    )


def _header(table: Path) -> list[str]:
    return next(_lines(table), [])


def _lines(table: Path) -> Iterator[list[str]]:
    """The cells of each line; those of the benchmark end in semicolons, others in commas."""
    try:
        text = read_bounded(table, MAX_TABLE_BYTES).decode("utf-8-sig")
        first = text.partition("\n")[0]
        yield from csv.reader(StringIO(text), delimiter=";" if ";" in first else ",")
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{table}: expected a table of text, got {error}") from error


def _rows(table: Path, folder: Path, column: str) -> Iterator[Sign]:
    if not table.exists():
        raise FileNotFoundError(f"{table}: expected a table of the images, found none")
    lines = _lines(table)
    header = [cell.strip() for cell in next(lines, [])]
    missing = [key for key in (column, "ClassId", *RECTANGLE) if key not in header]
    if missing:
        raise ValueError(f"{table}: expected columns {', '.join(missing)} too, got {header[:20]}")
    for number, cells in enumerate(lines, 2):
        if number > MAX_IMAGES + 2:
            raise ValueError(f"{table}: expected at most {MAX_IMAGES} images, got more")
        if cells:
            where = f"{table}: line {number}"
            yield _sign(dict(zip(header, cells, strict=False)), folder, column, where)


def _sign(row: dict[str, str], folder: Path, column: str, where: str) -> Sign:
    try:
        label = int(row["ClassId"])
        x1, y1, x2, y2 = (int(row[key]) for key in RECTANGLE)
        file = row[column]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{where}: expected {column}, ClassId and {', '.join(RECTANGLE)}, got {str(row)[:200]}"
        ) from error
    if not 0 <= label < N_CLASSES:
        raise ValueError(f"{where}: expected classes 0 to {N_CLASSES - 1}, got {label}")
    return Sign(inside(folder, file, where), label, (x1, y1, x2, y2), where)


def _images(signs: list[Sign], crop: bool, bar: tqdm) -> np.ndarray:
    images = np.empty((len(signs), 3, SIZE, SIZE), np.uint8)
    for image, sign in zip(images, signs, strict=True):
        image[:] = _image(sign, crop)
        bar.update()
    return images


def _image(sign: Sign, crop: bool) -> np.ndarray:
    """An image, (3, 32, 32)."""
    from PIL import Image

    if not sign.path.is_file():
        raise FileNotFoundError(f"{sign.where}: expected the image {sign.path}, found none")
    try:
        with Image.open(sign.path, formats=["PPM", "PNG"]) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width}x{height} pixels")
            whole = (0, 0, width, height)
            box = sign.rectangle if crop else whole
            if not (0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height):
                raise ValueError(f"the sign at {box} of {width}x{height} pixels")
            pixels = image.convert("RGB").crop(box)
            pixels = pixels.resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    # Pillow can raise nearly any exception for a damaged file.
    except Exception as error:
        raise ValueError(f"{sign.path}: expected a PPM or PNG image, got {error}") from error
    return np.asarray(pixels).transpose(2, 0, 1)
