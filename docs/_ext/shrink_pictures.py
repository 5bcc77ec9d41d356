"""``python shrink_pictures.py NOTEBOOK...``: pictures in stored outputs get 256 colours.

Figures of two pixels for each of the page then take a third of the space, and look the same.
"""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import nbformat
from PIL import Image

COLOURS = 256
"""As many as a PNG with a palette can have: a byte a pixel."""


def main() -> None:
    """Rewrite the notebooks."""
    for path in map(Path, sys.argv[1:]):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                data = output.get("data", {})
                if "image/png" in data:
                    data["image/png"] = shrunk(data["image/png"])
        nbformat.write(notebook, path)


def shrunk(text: str) -> str:
    """A PNG in base64 with a palette instead of a colour for each pixel."""
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    # Figures have flat areas: noise that imitates missing colours would show in them.
    picture = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    file = io.BytesIO()
    picture.save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    main()
