"""Each page of the reference says which tutorials, how-to pages and figures use what it describes.

Nobody keeps the list: it is read from their text while the site is built.
"""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import refmmr

HOME = Path(__file__).parents[2]
API = "reference/api/"
KINDS = {"tutorials": "Tutorials", "howto": "How-to", "gallery": "Gallery"}


def pages() -> dict[str, str]:
    """The text of each page that may use something, by its name in the documentation."""
    found = {f"tutorials/{path.stem}": path for path in sorted(HOME.glob("notebooks/*.md"))}
    found |= {f"howto/{path.stem}": path for path in sorted(HOME.glob("docs/howto/*.md"))}
    texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    scripts = sorted(HOME.glob("docs/gallery/*.py"))
    texts["gallery/index"] = "\n".join(path.read_text(encoding="utf-8") for path in scripts)
    return texts


def names_in(text: str) -> set[str]:
    """Full names of what a text uses: ``rm.certify`` is `refmmr.certify`.

    Modules that are imported by a name of their own count as well, and so do those that hold a name
    that is used.
    """
    roots = {"rm": "refmmr", "refmmr": "refmmr"}
    used = set()
    for module, names in re.findall(r"^from (refmmr[\w.]*) import ([\w, ]+)$", text, flags=re.M):
        for name in names.split(", "):
            roots[name] = f"{module}.{name}"
            used.add(roots[name])
    for root, full in roots.items():
        for rest in re.findall(rf"(?<![\w.]){root}((?:\.\w+)+)", text):
            used.add(full + rest)
    return {
        ".".join(parts[:end])
        for parts in (name.split(".") for name in used)
        for end in range(2, len(parts) + 1)
    }


def uses() -> dict[str, list[str]]:
    """For each full name the pages that use it, in their order."""
    found = defaultdict(list)
    for page, text in pages().items():
        for name in names_in(text):
            found[name].append(page)
    return found


def users_of(name: str, used: dict[str, list[str]]) -> list[str]:
    """The pages that use a name; of a class of results those that use the function, too."""
    own = inspect.getdoc(getattr(refmmr, name.removeprefix("refmmr."), None)) or ""
    made_by = re.search(r"Returned by `(\w+)`", own)
    more = used.get(f"refmmr.{made_by[1]}", []) if made_by else []
    return list(dict.fromkeys([*used.get(name, []), *more]))


def see_also(users: list[str]) -> str:
    """What is added to a page, in reStructuredText."""
    lines = ["", "", ".. seealso::", ""]
    for folder, kind in KINDS.items():
        links = [f":doc:`/{page}`" for page in users if page.startswith(folder)]
        if links:
            lines.append(f"   | **{kind}:** {' · '.join(links)}")
    return "\n".join([*lines, ""])


def add_users(app: Sphinx, docname: str, source: list[str]) -> None:
    """Extend a page of the reference as it is read."""
    if docname.startswith(API):
        users = users_of(docname.removeprefix(API).removesuffix("-class"), app.refmmr_uses)
        if users:
            source[0] = source[0].rstrip() + see_also(users)


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect it to Sphinx."""
    app.refmmr_uses = uses()
    app.connect("source-read", add_users)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
