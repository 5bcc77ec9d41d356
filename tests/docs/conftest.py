"""The built site, and a browser that reads it from disk."""

import importlib
import os
import shutil
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
VIEWS = {
    "light": {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}},
    "phone": {
        "color_scheme": "light",
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 2,
        "is_mobile": True,
        "has_touch": True,
    },
}

BARE_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Playground</title>
<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="playground.css">
<style>:root {{ color-scheme: light dark; --color-background-secondary: Canvas;
  --color-foreground-primary: CanvasText; --color-background-border: gray }}</style>
<script defer src="playground-data.js"></script><script defer src="playground.js"></script>
</head><body>{}</body></html>"""


def built():
    """The folder of the built site, or None."""
    folder = os.environ.get("REFMMR_DOCS_HTML")
    return Path(folder).resolve() if folder else None


def pages():
    """Names of all pages, relative to the site."""
    site = built()
    return [] if site is None else sorted(str(p.relative_to(site)) for p in site.rglob("*.html"))


def pytest_generate_tests(metafunc):
    """Each page is a test: `page_name` for all pages, `text_name` for those that are no source."""
    for argument, wanted in (("page_name", ""), ("text_name", "_modules")):
        if argument in metafunc.fixturenames:
            names = [name for name in pages() if not wanted or not name.startswith(wanted)]
            metafunc.parametrize(argument, names)


@pytest.fixture(scope="session")
def site():
    folder = built()
    if folder is None:
        pytest.skip("REFMMR_DOCS_HTML does not name the folder of the built documentation")
    return folder


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium or Chrome")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


class Reader:
    """A page of the browser that notes what goes wrong."""

    def __init__(self, context):
        self.page = context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(f"failed: {request.url}"))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def _said(self, message):
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def open(self, path, query=""):
        """Read a page from disk, formulas too."""
        self.errors.clear()
        self.requests.clear()
        self.page.goto(path.as_uri() + query, wait_until="load")
        self.page.evaluate("window.MathJax ? MathJax.startup.promise : null")
        return self.page

    def elsewhere(self):
        """Requests to anything but this disk."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]


@pytest.fixture(scope="session")
def contexts(chromium):
    return {name: chromium.new_context(**options) for name, options in VIEWS.items()}


@pytest.fixture
def reader_in(contexts):
    """A function that opens a page in a view: "light", "dark" or "phone"."""
    readers = []

    def make(view):
        readers.append(Reader(contexts[view]))
        return readers[-1]

    yield make
    for made in readers:
        made.page.close()


@pytest.fixture
def reader(reader_in):
    """Light, on a large screen."""
    return reader_in("light")


@pytest.fixture(scope="session")
def extension():
    """A function that imports an extension of the documentation."""
    pytest.importorskip("sphinx")

    def load(name):
        sys.path.insert(0, str(DOCS / "_ext"))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(str(DOCS / "_ext"))

    return load


@pytest.fixture(scope="session")
def directive(extension):
    return extension("refmmr_playground")


@pytest.fixture(scope="session")
def bare_page():
    """A page with the playground's script beside it; its body is to be filled in."""
    return BARE_PAGE
