"""What the documentation knows of itself: who uses a name, where it is hosted, what Binder has."""

import inspect
import os
import re
from pathlib import Path

import refmmr as rm

HOME = Path(__file__).parents[2]


def test_users_are_those_whose_text_has_the_name(extension):
    used = extension("refmmr_uses").uses()
    for path in HOME.glob("notebooks/*.md"):
        text = path.read_text(encoding="utf-8")
        for name in rm.__all__:
            if inspect.ismodule(getattr(rm, name)):
                continue  # may be imported by its own name
            named = re.search(rf"(?<![\w.])rm\.{name}\b", text) is not None
            assert (f"tutorials/{path.stem}" in used.get(f"refmmr.{name}", [])) == named
    assert "gallery/index" in used["refmmr.enumerate_regions"]


def test_imports_and_parts_of_names_count(extension):
    found = extension("refmmr_uses").names_in(
        "from refmmr.reference import ascent, clipping\nimport refmmr as rm\n"
        "rm.datasets.load('moons'); ascent.root(b); other.rm.fit; program(1).fit"
    )
    book = "refmmr.reference"
    assert found == {
        book, f"{book}.ascent", f"{book}.ascent.root", f"{book}.clipping",
        "refmmr.datasets", "refmmr.datasets.load",
    }  # fmt: skip


def test_a_class_of_results_is_used_where_its_function_is(extension):
    uses = extension("refmmr_uses")
    used = {"refmmr.certify": ["tutorials/a"], "refmmr.Certificates": ["howto/b"]}
    assert uses.users_of("refmmr.Certificates", used) == ["howto/b", "tutorials/a"]
    assert uses.users_of("refmmr.Linear", used) == []


def test_pages_of_the_reference_link_their_users(site):
    page = (site / "reference" / "api" / "refmmr.certify.html").read_text(encoding="utf-8")
    for user in ("tutorials/07-bounds-to-exact-answers", "gallery/index"):
        assert f'href="../../{user}.html"' in page


def test_binder_has_the_packages_of_the_lock():
    (line,) = (HOME / "binder" / "requirements.txt").read_text().splitlines()
    assert (HOME / "binder" / line.removeprefix("-r ")).resolve() == HOME / "requirements.lock"
    version = (HOME / "binder" / "runtime.txt").read_text().strip().removeprefix("python-")
    assert f"Programming Language :: Python :: {version}" in (HOME / "pyproject.toml").read_text()
    assert os.access(HOME / "binder" / "postBuild", os.X_OK)


def test_the_badge_names_the_host_that_is_given(extension):
    badge = extension("refmmr_docs").badge("https://host.example/me/refmmr")
    assert "/git/https%3A%2F%2Fhost.example%2Fme%2Frefmmr/HEAD?labpath=notebooks/" in badge
