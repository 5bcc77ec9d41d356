"""No link of the site is broken, no anchor is missing, and nothing is taken from elsewhere."""

import functools
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

REFERENCES = {
    "a": "href", "link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src",
    "object": "data",
}  # fmt: skip
# Links are for readers; these are fetched by the browser itself.
FETCHED = {"script", "img", "iframe", "source", "object"}


class Content(HTMLParser):
    """Anchors, and references as (tag, address)."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.references, self.images = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "img":
            self.images.append(attributes)
        rel = attributes.get("rel") or ""
        address = attributes.get(REFERENCES.get(tag))
        if address:
            loaded = tag in FETCHED or (tag == "link" and rel in ("stylesheet", "icon", "preload"))
            self.references.append((address, loaded))


@functools.cache
def content(path):
    return Content(path.read_text(encoding="utf-8"))


def test_links_and_anchors(site, page_name):
    broken = []
    for address, loaded in content(site / page_name).references:
        parts = urlsplit(address)
        if parts.scheme == "data":
            continue
        if parts.scheme or parts.netloc:
            if loaded:
                broken.append(f"from elsewhere: {address}")
            continue
        place = site / page_name
        target = (place.parent / unquote(parts.path)).resolve() if parts.path else place
        if not target.is_file():
            broken.append(f"no file: {address}")
        elif target.suffix == ".html" and unquote(parts.fragment) not in {
            "",
            *content(target).anchors,
        }:
            broken.append(f"no anchor: {address}")
    assert broken == []


def test_images_have_alternative_texts(site, text_name):
    without = [
        image.get("src", "")[:80]
        for image in content(site / text_name).images
        if "sidebar-logo" not in (image.get("class") or "") and not (image.get("alt") or "").strip()
    ]
    # A file's name, which Sphinx writes where there is none, says nothing.
    named = [
        image["alt"]
        for image in content(site / text_name).images
        if (image.get("alt") or "").endswith((".png", ".svg", ".jpg"))
    ]
    assert without == []
    assert named == []


@pytest.mark.parametrize("folder", ["learn", "howto", "method", "benchmarks", "changelog"])
def test_main_pages_are_there(site, folder):
    assert (site / f"{folder}.html").is_file()
