"""The directive ``{playground} NAME``: networks to move, drawn by our own script from disk.

A page may have several.  Its script and its data are two classic files, since a browser loads no
ES module from ``file:``: `bundle` makes one script of the modules in ``docs/playground/js``, and
``docs/playground/networks.py`` trains the networks while the site is built.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import json
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HOME = Path(__file__).parents[1] / "playground"
MODULES = ("core", "picture", "pane", "state", "lines", "app", "nodes", "tree")
"""In this order: each imports only from those before it."""


class Playground(SphinxDirective):
    """The component: an empty box that the script fills.

    The options choose its pictures (``plain``, ``mmr``, ``lines``), what it shows besides the
    distances (``epochs``, ``hinge``, ``step``, ``hyperplanes``), and where the point starts.  With
    ``tree`` it is one of branch and bound instead.
    """

    required_arguments = 1
    option_spec: ClassVar[dict[str, Any]] = {
        "panes": directives.unchanged_required,
        "tree": directives.flag,
        "show": directives.unchanged,
        "x": directives.unchanged,
        "epoch": directives.nonnegative_int,
    }

    def run(self) -> list[nodes.Node]:
        """The box, for HTML alone."""
        data = "".join(
            f' data-{key}="{html.escape(str(value or ""))}"' for key, value in self.options.items()
        )
        box = (
            f'<div class="pg" id="play-{html.escape(self.arguments[0])}"{data}>'
            "<p>This figure answers to the hand: it needs JavaScript, but no network.</p></div>"
        )
        return [nodes.raw("", box, format="html")]


def bundle(folder: Path = HOME / "js") -> str:
    """One classic script of all modules.

    Each module becomes a function that returns what it exports; it is called once.
    """
    parts = []
    for name in MODULES:
        text = (folder / f"{name}.js").read_text(encoding="utf-8")
        text = re.sub(
            r'^import (\{[^}]*\}) from "\./(\w+)\.js";', r"const \1 = \2;", text, flags=re.M
        )
        exported = re.findall(r"^export (?:function|class|const) (\w+)", text, flags=re.M)
        text = re.sub(r"^export ", "", text, flags=re.M)
        if re.search(r"^(import|export)\b", text, flags=re.M):
            raise ValueError(f"{name}.js: an import or export that the bundle does not know")
        parts.append(
            f"const {name} = (() => {{\n{text}return {{ {', '.join(exported)} }};\n}})();\n"
        )
    return f'(() => {{\n"use strict";\n{"".join(parts)}{START}}})();\n'


START = """const shared = (window.refmmrPlayground ??= {});
Object.assign(shared, { core, state, lines, nodes });
if (shared.data) {
  shared.components = app.begin(shared.data);
  shared.trees = tree.begin(shared.data.tree);
}
"""
"""The end of the script: tests reach its modules by the same name as the data."""


def write(app: Sphinx) -> None:
    """Write script, data and style to the site, before the first page refers to them."""
    if app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static"
    target.mkdir(parents=True, exist_ok=True)
    (target / "playground.js").write_text(bundle(), encoding="utf-8")
    style = (HOME / "playground.css").read_text(encoding="utf-8")
    (target / "playground.css").write_text(style, encoding="utf-8")
    source = b"".join((HOME / f"{name}.py").read_bytes() for name in ("networks", "tree"))
    head = f"// {hashlib.sha256(source).hexdigest()}\n"
    path = target / "playground-data.js"
    # Training takes seconds: a site that is built on keeps the networks of the same source.
    if not path.exists() or not path.read_text(encoding="utf-8").startswith(head):
        data = module("networks").data() | {"tree": module("tree").data()}
        text = json.dumps(data, separators=(",", ":"), allow_nan=False)
        path.write_text(f"{head}window.refmmrPlayground = {{ data: {text} }};\n", encoding="utf-8")


def module(name: str) -> Any:
    """A module of ``docs/playground``."""
    spec = importlib.util.spec_from_file_location(f"playground_{name}", HOME / f"{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def add_files(
    app: Sphinx, pagename: str, template: str, page: dict[str, Any], doctree: Any
) -> None:
    """Pages without a playground load none of it."""
    if '<div class="pg" ' in page.get("body", ""):
        app.add_css_file("playground.css")
        app.add_js_file("playground-data.js", loading_method="defer")
        app.add_js_file("playground.js", loading_method="defer")


def setup(app: Sphinx) -> dict[str, Any]:
    """Connect it to Sphinx."""
    app.add_directive("playground", Playground)
    app.connect("builder-inited", write)
    app.connect("html-page-context", add_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
