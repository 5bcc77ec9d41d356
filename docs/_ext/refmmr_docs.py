"""What the documentation does beyond Sphinx: names, links to the book, generated tables, notebooks.

- Single backticks in docstrings name something: a link where it has a page, code where not.
- Links to files of the repository lead to their pages where they have some.
- Fields of named tuples and dataclasses are described by the comment beside them.
- Directives: ``tutorials``, ``public-names``, ``kernels``, ``bibtex``.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import shutil
import types
from pathlib import Path
from typing import Any, ClassVar

import numpydoc.xref
import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from numpy.typing import ArrayLike, DTypeLike
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole
from sphinx.util.typing import stringify_annotation

import refmmr
from refmmr import _backend
from refmmr.backends import support

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
MODULES = ("datasets", "plot", "testing")
"""Members of `refmmr.__all__` that are modules."""


# ---- The public names.


@functools.cache
def public_names() -> dict[str, Any]:
    """Everything public, by full name: `refmmr.__all__` and that of its public modules."""
    found = {f"refmmr.{name}": getattr(refmmr, name) for name in refmmr.__all__}
    for name in MODULES:
        module = getattr(refmmr, name)
        found |= {f"refmmr.{name}.{member}": getattr(module, member) for member in module.__all__}
    return found


def file_names() -> dict[str, str]:
    """Names of pages where two names differ in case alone, which some file systems ignore."""
    lower = [name.lower() for name in public_names()]
    return {
        name: f"{name}-class"
        for name, value in public_names().items()
        if lower.count(name.lower()) > 1 and inspect.isclass(value)
    }


@functools.cache
def canonical() -> dict[str, str]:
    """Where an object is defined, to the public name that has a page."""
    found = {}
    for name, value in public_names().items():
        if inspect.isclass(value) or inspect.isfunction(value):
            found.setdefault(f"{value.__module__}.{value.__qualname__}", name)
    return found


def aliases() -> dict[str, str]:
    """Words in the types of parameters that are links."""
    return {
        name.rpartition(".")[2]: name
        for name, value in public_names().items()
        if inspect.isclass(value)
    }


def references(value: Any) -> list[str]:
    """Functions and classes of the book that a public name runs or is made of."""
    if inspect.isclass(value):
        own = [value, *value.__mro__[1:]]
        return [_full_name(base) for base in own if _in_book(base)][:1]
    if not inspect.isfunction(value):
        return []
    found: list[str] = []
    seen: set[Any] = set()
    todo = [inspect.unwrap(value)]
    while todo:
        function = todo.pop(0)
        seen.add(function)
        for part in _named(function):
            if isinstance(part, _backend.Kernel):
                part = part.reference
            if _in_book(part):
                found.append(_full_name(part))
            elif getattr(part, "__module__", "") == function.__module__ and _is_private(part):
                inside = vars(part).values() if inspect.isclass(part) else [part]
                todo += [f for f in inside if inspect.isfunction(f) and f not in seen]
    return list(dict.fromkeys(found))


def _named(function: Any) -> list[Any]:
    """What the code of a function names among its module's globals, ``module.function`` too."""
    code, scope = function.__code__, function.__globals__
    values = [scope[name] for name in code.co_names if name in scope]
    books = [
        value
        for value in values
        if isinstance(value, types.ModuleType) and _is_book(value.__name__)
    ]
    members = [
        getattr(book, name) for book in books for name in code.co_names
        if inspect.isfunction(getattr(book, name, None)) and not name.startswith("_")
    ]  # fmt: skip
    return [*values, *members]


def _is_private(value: Any) -> bool:
    return getattr(value, "__name__", "").startswith("_")


def _is_book(name: str) -> bool:
    return name.startswith("refmmr.reference.")


def _in_book(value: Any) -> bool:
    return (inspect.isfunction(value) or inspect.isclass(value)) and _is_book(value.__module__)


def _full_name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def context(notes: Path) -> dict[str, Any]:
    """What the templates of pages know: references, and which names have a note."""
    return {
        "references": {name: references(value) for name, value in public_names().items()},
        "notes": {note.stem for note in notes.glob("*.rst")},
    }


# ---- Notebooks.


def copy_notebooks(source: Path, target: Path) -> None:
    """Copy the tutorials to where Sphinx finds them; only what has changed is touched."""
    target.mkdir(exist_ok=True)
    wanted = {}
    for path in sorted(source.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        if path.with_suffix(".ipynb").exists():
            line = (
                f"*{{download}}`Download this page as a Jupyter notebook "
                f"<../../notebooks/{path.stem}.ipynb>`*"
            )
            text = re.sub(r"^(# .*\n)", rf"\1\n{line}\n", text, count=1, flags=re.MULTILINE)
        wanted[path.name] = text
    for path in target.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = target / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for picture in source.glob("images/*"):
        (target / "images").mkdir(exist_ok=True)
        shutil.copy2(picture, target / "images" / picture.name)


class Tutorials(SphinxDirective):
    """All tutorials in their order: title and first paragraph."""

    def run(self) -> list[nodes.Node]:
        """Write a list with a link to each."""
        lines = []
        for path in sorted((ROOT / "docs" / "tutorials").glob("*.md")):
            self.env.note_dependency(str(path))
            body = re.sub(r"\A---\n.*?\n---\n", "", path.read_text(encoding="utf-8"), flags=re.S)
            blocks = [block.strip() for block in body.split("\n\n")]
            title = next(b for b in blocks if b.startswith("# ")).splitlines()[0][2:]
            after = blocks[next(i for i, b in enumerate(blocks) if b.startswith("# ")) + 1 :]
            first = next(
                (b for b in after if re.match(r"[\w*`\"'$(]", b) and "{download}" not in b), ""
            )
            words = " ".join(first.split())
            lines += [f"- **[{title}](/tutorials/{path.name})**", "", f"  {words}", ""]
        node = nodes.Element()
        self.state.nested_parse(StringList(lines, str(path) if lines else ""), 0, node)
        return node.children


# ---- Generated tables.


class PublicNames(SphinxDirective):
    """Every public name with its one-line summary, in the order of the alphabet."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        rows = []
        for name, value in sorted(public_names().items(), key=lambda item: item[0].lower()):
            rows.append((name, _kind(value), _summary(value)))
        lines = ["| name | | what it is |", "| --- | --- | --- |"]
        for name, kind, summary in rows:
            shown = name.replace("refmmr.", "rm.", 1)
            lines.append(f"| {{py:obj}}`{shown} <{name}>` | {kind} | {summary} |")
        node = nodes.Element()
        self.state.nested_parse(StringList(lines, "public-names"), 0, node)
        return node.children


def _kind(value: Any) -> str:
    if inspect.isclass(value):
        return "class"
    if isinstance(value, types.ModuleType):
        return "module"
    return "function" if callable(value) else "data"


def _summary(value: Any) -> str:
    if _kind(value) == "data":
        return {"tuple": "Names that are known.", "dict": "Files that are looked for."}.get(
            type(value).__name__, ""
        )
    return (inspect.getdoc(value) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


class Kernels(SphinxDirective):
    """Which kernel each backend has, each with a link to its reference."""

    def run(self) -> list[nodes.Node]:
        """Write the table."""
        for module in ("training", "certify", "regions", "attacks"):
            importlib.import_module(f"refmmr.{module}")
        heading, *rows = support.table()
        lines = ["| " + " | ".join(heading) + " |", "| --- " * len(heading) + "|"]
        for kernel, *marks in rows:
            name = f"`{kernel}`"
            if kernel.startswith("reference."):
                name = f"{{py:func}}`{kernel} <refmmr.{kernel}>`"
            lines.append("| " + " | ".join((name, *marks)) + " |")
        node = nodes.Element()
        self.state.nested_parse(StringList(lines, "kernels"), 0, node)
        return node.children


class BibTeX(SphinxDirective):
    """BibTeX entries made from CITATION.cff: the paper, then this software."""

    option_spec: ClassVar = {"only": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """Write a block of code."""
        path = ROOT / "CITATION.cff"
        self.env.note_dependency(str(path))
        text = bibtex(yaml.safe_load(path.read_text(encoding="utf-8")))[
            self.options.get("only", "paper")
        ]
        block = nodes.literal_block(text, text, language="bibtex")
        return [block]


def bibtex(cff: dict[str, Any]) -> dict[str, str]:
    """The entries "paper" and "software" for what CITATION.cff says."""
    paper = cff["references"][0]
    people = " and ".join(f"{a['family-names']}, {a['given-names']}" for a in paper["authors"])
    key = f"{paper['authors'][0]['family-names'].lower()}{paper['year']}provable"
    fields = {
        "author": people,
        "title": "{" + paper["title"] + "}",
        "booktitle": paper["conference"]["name"],
        "series": paper["collection-title"],
        "volume": str(paper["volume"]),
        "year": str(paper["year"]),
        "url": paper["url"],
    }
    software = {
        "author": "{" + cff["authors"][0]["name"] + "}",
        "title": "{" + cff["title"] + "}",
        "version": str(cff["version"]),
        "note": f"License: {cff['license']}",
    }
    return {
        "paper": _entry("inproceedings", key, fields),
        "software": _entry("software", "refmmr", software),
    }


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(map(len, fields))
    body = "\n".join(f"  {name:<{width}} = {{{value}}}," for name, value in fields.items())
    return f"@{kind}{{{key},\n{body}\n}}"


# ---- Links.


class NamedRole(SphinxRole):
    """A name in single backticks: a link where it has a page, code where it has none."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Leave the search for the page to the end of the build."""
        literal = nodes.literal(self.rawtext, self.text, classes=["xref", "py"])
        if not re.fullmatch(r"[\w.]+", self.text):
            return [nodes.literal(self.rawtext, self.text)], []
        node = addnodes.pending_xref(
            self.rawtext, literal, refdomain="py", reftype="obj", reftarget=self.text,
            refexplicit=False, refwarn=False, refdoc=self.env.docname, soft=True,
        )  # fmt: skip
        node["py:module"] = self.env.ref_context.get("py:module")
        node["py:class"] = self.env.ref_context.get("py:class")
        self.set_source_info(node)
        return [node], []


class NamesInModules(SphinxPostTransform):
    """A plain name means what its module means by it, not any object that ends in it."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        """Give names that are known there in full."""
        known = self.env.domains["py"].objects
        for node in self.document.findall(addnodes.pending_xref):
            if node.get("refdomain") != "py" or "." in node["reftarget"]:
                continue
            if node.get("py:module") and node["reftype"] in ("class", "obj"):
                name = _imported(node["py:module"], node["reftarget"])
                if name in known:
                    node["reftarget"] = name


def find_elsewhere(app: Sphinx, env: Any, node: nodes.Element, shown: nodes.Node) -> Any:
    """Resolve names by where they are defined, or as they are imported in the module around."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    domain = env.domains["py"]
    scopes = ["", "refmmr."]
    if node.get("py:module"):
        scopes.append(node["py:module"] + ".")
    for scope in scopes:
        name = canonical().get(scope + target)
        if name is None:
            name = _imported(scope.rstrip("."), target)
        if name in domain.objects:
            found = domain.objects[name]
            place = app.builder.get_relative_uri(node["refdoc"], found.docname)
            link = nodes.reference("", "", shown, internal=True, reftitle=name)
            link["refuri"] = f"{place}#{found.node_id}"
            return link
    return shown if node.get("soft") else None


def _imported(module: str, target: str) -> str | None:
    """The page of what a module means by a name; a name in `refmmr` first."""
    for scope in dict.fromkeys([module, "refmmr", ""]):
        try:
            before, _, rest = target.rpartition(".")
            full = not scope and before.startswith("refmmr.")
            owner, value = None, importlib.import_module(before if full else scope or "refmmr")
            for part in [rest] if full else target.split("."):
                owner, value = value, getattr(value, part)
        except (ImportError, AttributeError, ValueError):
            continue
        if isinstance(value, types.ModuleType):
            return value.__name__
        if isinstance(value, _backend.Kernel):
            value = value.reference
        if inspect.isclass(owner):
            here = f"{owner.__module__}.{owner.__qualname__}"
            return f"{canonical().get(here, here)}.{target.rpartition('.')[2]}"
        if hasattr(value, "__qualname__") and hasattr(value, "__module__"):
            here = f"{value.__module__}.{value.__qualname__}"
            return canonical().get(here, here)
    return None


def _to_page(node: nodes.Node) -> bool:
    """Whether a node is a link of MyST to another page."""
    return isinstance(node, addnodes.pending_xref) and node.get("refdomain") == "doc"


class RepositoryLinks(SphinxTransform):
    """Links to files of the repository lead to their pages where they have some."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        """Replace downloads."""
        found = (
            *self.document.findall(addnodes.download_reference),
            *self.document.findall(_to_page),
        )
        for node in found:
            target = node["reftarget"]
            book = re.fullmatch(r"(?:\.\./)*refmmr/reference/(\w+)\.py", target)
            results = re.search(r"benchmarks/results/(\w+)(?:\.md)?$", target)
            if book:
                kind = {"refdomain": "py", "reftype": "mod"}
                name = f"refmmr.reference.{book[1]}"
            elif results:
                kind = {"refdomain": "std", "reftype": "ref"}
                name = f"results-{results[1]}"
            else:
                continue
            link = addnodes.pending_xref(
                "", *node.children, reftarget=name, refexplicit=True, refwarn=True,
                refdoc=self.env.docname, **kind,
            )  # fmt: skip
            node.replace_self(link)


# ---- Docstrings.


def describe_fields(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Fields of named tuples and dataclasses say what the comment beside them says."""
    if any(line.strip() for line in lines) and "Alias for field number" not in "".join(lines):
        return
    owner, _, field = name.rpartition(".")
    comment = comments(owner).get(field)
    # Without a comment the class's own docstring tells of its fields.
    lines[:] = [without_stars(comment), ""] if comment else []


def mark_up(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are written to be read as text; say what is meant to reStructuredText.

    The star of ``(n, *input_shape)`` begins no emphasis, and an indented block in the docstring of
    a module is a formula, to be kept as it is.
    """
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
    """The line with stars of shapes escaped, but for those in literals."""
    parts = re.split(r"(``.*?``)", line)
    star = r"(?<=[\s(\[,])(\*{1,2})(?=[\w ]+[,)\]])"
    return "".join(p if "``" in p else re.sub(star, _escaped, p) for p in parts)


def _escaped(match: re.Match[str]) -> str:
    return "".join(f"\\{sign}" for sign in match[0])


@functools.cache
def long_types() -> dict[str, str]:
    """Types that NumPy writes out in full, and their names."""
    return {
        stringify_annotation(ArrayLike, mode): "ArrayLike" for mode in ("smart", "fully-qualified")
    } | {
        stringify_annotation(DTypeLike, mode): "DTypeLike" for mode in ("smart", "fully-qualified")
    }


def shorten(
    app: Sphinx,
    what: str,
    name: str,
    value: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str, ...] | None:
    """Signatures name NumPy's types, and names of types have no signature that could be changed."""
    if isinstance(value, types.GenericAlias | types.UnionType):
        # The first answer counts; one that is no pair changes nothing.
        return ("unchanged",)
    if not signature:
        return None
    short = signature
    for long, brief in long_types().items():
        short = short.replace(long, brief)
    return (short, returns or "") if short != signature else None


def skip(app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn adds to every estimator, and tell of it there."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


@functools.cache
def comments(owner: str) -> dict[str, str]:
    """Comments beside the fields of a class, by field."""
    module, _, name = owner.rpartition(".")
    try:
        source = inspect.getsource(getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError, OSError, TypeError):
        return {}
    found = re.findall(r"^    (\w+):[^#\n]*#\s*(.*)$", source, flags=re.MULTILINE)
    return {field: text[:1].upper() + text[1:].rstrip(".") + "." for field, text in found}


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
                wrong = f'{app.builder.get_relative_uri(pagename, docname)}#{taken}.{name}"'
                right = f'{app.builder.get_relative_uri(pagename, docname)}#{full}"'
                page["body"] = page["body"].replace(wrong, right)
                break


def plain_signatures(
    app: Sphinx, pagename: str, template: str, page: dict[str, Any], doctree: Any
) -> None:
    """Signatures of several lines are lines; Sphinx writes a list of descriptions without terms."""
    if "sig-param" not in (page.get("body") or ""):
        return
    body = re.sub(
        r"<dl>\s*(?=<dd>.{0,3}<em class=\"(?:sig-param|property)|<dd>.{0,3}<a )",
        SIGNATURE_OPEN,
        page["body"],
    )
    parts = body.split(SIGNATURE_OPEN)
    for i, part in enumerate(parts[1:], 1):
        inside, end, rest = part.partition("</dl>")
        inside = inside.replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
        parts[i] = inside + (end and "</span>") + rest
    page["body"] = SIGNATURE_OPEN.join(parts)


SIGNATURE_OPEN = '<span class="sig-lines">'


def forget_builtins(app: Sphinx) -> list[Any]:
    """Names of types such as ``list[int]`` come from no file of ours."""
    getattr(app.env, "_viewcode_modules", {}).pop("builtins", None)
    return []


def check_complete(app: Sphinx, env: Any) -> None:
    """Every public name has a page."""
    known = env.domains["py"].objects
    for name, value in public_names().items():
        if name not in known:
            logger.warning("%s (%s) is public and has no page", name, _kind(value))


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx."""
    app.add_role("named", NamedRole())
    app.add_directive("tutorials", Tutorials)
    app.add_directive("public-names", PublicNames)
    app.add_directive("kernels", Kernels)
    app.add_directive("bibtex", BibTeX)
    app.add_transform(RepositoryLinks)
    app.add_post_transform(NamesInModules)
    app.connect("missing-reference", find_elsewhere)
    # Types of parameters link to pages of this documentation; numpydoc's own links need a network.
    numpydoc.xref.DEFAULT_LINKS.clear()
    app.connect("autodoc-process-docstring", mark_up, priority=100)
    app.connect("autodoc-process-signature", shorten, priority=100)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", describe_fields, priority=600)
    app.connect("html-collect-pages", forget_builtins, priority=100)
    app.connect("html-page-context", plain_signatures)
    app.connect("html-page-context", mend_links_of_sources)
    app.connect("env-check-consistency", check_complete)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
