"""What the documentation does beyond Sphinx: copies notebooks, marks docstrings up, mends links.

Docstrings are written to be read as text, in `help()`.  Two things in them mean something else in
reStructuredText: the star of ``(n, *input_shape)``, and the indented formulas of modules.
"""

from __future__ import annotations

import os
import re
import shutil
import types
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpydoc.xref
from sphinx.application import Sphinx

REPOSITORY = os.environ.get("REFMMR_REPOSITORY", "")
"""The address where the project is hosted: nothing else knows it, and without it nothing links
there."""


def copy_notebooks(source: Path, target: Path) -> None:
    """Copy the tutorials to where Sphinx finds them; only what has changed is written."""
    target.mkdir(exist_ok=True)
    for path in target.glob("*.md"):
        if not (source / path.name).exists():
            path.unlink()
    for path in sorted(source.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        notebook = f"notebooks/{path.stem}.ipynb"
        line = f"*{{download}}`Download this page as a Jupyter notebook <../../{notebook}>`*"
        if REPOSITORY:
            line += f" · *[Run it on Binder]({binder(REPOSITORY, notebook)})*"
        text = re.sub(r"^(# .*\n)", rf"\1\n{line}\n", text, count=1, flags=re.MULTILINE)
        text = re.sub(r"^<!-- playground: (\w+) -->$", question, text, flags=re.MULTILINE)
        copy = target / path.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")
    for picture in source.glob("images/*"):
        (target / "images").mkdir(exist_ok=True)
        shutil.copy2(picture, target / "images" / picture.name)


def binder(repository: str, notebook: str) -> str:
    """The address at which Binder opens a notebook of a public repository, whoever hosts it."""
    return f"https://mybinder.org/v2/git/{quote(repository, safe='')}/HEAD?labpath={notebook}"


def badge(repository: str) -> str:
    """Binder's badge for a README, in Markdown."""
    picture = "https://mybinder.org/badge_logo.svg"
    return f"[![Binder]({picture})]({binder(repository, 'notebooks/01-patchwork.ipynb')})"


def question(mark: re.Match[str]) -> str:
    """What a page has at a mark of its notebook: a figure to move, and a question about it."""
    folder = Path(__file__).parents[1] / "playground" / "questions"
    return (folder / f"{mark[1]}.md").read_text(encoding="utf-8").rstrip()


def mark_up(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Escape the stars of shapes, and make indented blocks of modules literal."""
    lines[:] = [without_stars(line) for line in lines]
    if what != "module":
        return
    out: list[str] = []
    literal = False
    for i, line in enumerate(lines):
        if line.startswith("    ") and not literal and (i == 0 or not lines[i - 1].strip()):
            before = next((text for text in reversed(lines[:i]) if text.strip()), "")
            if not before.startswith((" ", ">>>")) and not before.endswith("::"):
                out += ["::", ""]
            literal = True
        elif line.strip() and not line.startswith(" "):
            literal = False
        out.append(line)
    lines[:] = out


def without_stars(line: str) -> str:
    """The line with stars of shapes escaped, but for those in literals and in examples."""
    if line.lstrip().startswith((">>>", "...")):
        return line
    parts = re.split(r"(``.*?``)", line)
    star = r"(?<=[\s(\[,])(\*{1,2})(?=[\w ]+[,)\]])"
    return "".join(
        part if "``" in part else re.sub(star, lambda m: m[0].replace("*", r"\*"), part)
        for part in parts
    )


def plain_signature(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: Any, returns: Any
) -> tuple[str, ...] | None:
    """Aliases are called by their names, in unions too, and have no signatures themselves.

    The first answer of all listeners counts, and one that is no pair changes nothing.
    """
    if isinstance(value, types.GenericAlias | types.UnionType):
        return ("unchanged",)
    short = re.sub(r"TypeAliasForwardRef\('(\w+)'\)", r"\1", signature or "")
    return (short, returns or "") if short != (signature or "") else None


def mend_links_of_sources(
    app: Sphinx, pagename: str, template: str, page: dict[str, Any], doctree: Any
) -> None:
    """Source pages link back to the names under which things have a page.

    Viewcode keeps one module's name for all that a file defines, but `refmmr.Linear` and
    `refmmr.reference.layers.Conv2d` may come from the same file.
    """
    module = pagename.removeprefix("_modules/").replace("/", ".")
    entry = getattr(app.env, "_viewcode_modules", {}).get(module)
    if not pagename.startswith("_modules/") or not entry:
        return
    known = app.env.domains["py"].objects
    taken = entry[3]
    for name, docname in entry[2].items():
        for full in (f"{module}.{name}", f"{taken}.{name}", f"refmmr.{name}"):
            if full in known and known[full].docname == docname and not known[full].aliased:
                place = app.builder.get_relative_uri(pagename, docname)
                wrong, right = f'{place}#{taken}.{name}"', f'{place}#{full}"'
                page["body"] = page["body"].replace(wrong, right)
                break


def forget_builtins(app: Sphinx) -> list[Any]:
    """Names of types such as ``list[int]`` come from no file of ours."""
    getattr(app.env, "_viewcode_modules", {}).pop("builtins", None)
    return []


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect them to Sphinx."""
    # Types of parameters link to pages of this documentation; numpydoc's own links need a network.
    numpydoc.xref.DEFAULT_LINKS.clear()
    app.connect("autodoc-process-docstring", mark_up, priority=100)
    app.connect("autodoc-process-signature", plain_signature, priority=100)
    app.connect("html-collect-pages", forget_builtins, priority=100)
    app.connect("html-page-context", mend_links_of_sources)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
