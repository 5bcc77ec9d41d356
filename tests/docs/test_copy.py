"""The button that copies code."""

from pathlib import Path

import pytest

STATIC = Path(__file__).parents[2] / "docs" / "_static"
PAGE = """<!doctype html><html lang="en"><head><title>Code</title>
<link rel="stylesheet" href="refmmr.css"></head><body><article><div class="highlight">
<pre>&gt;&gt;&gt; for i in range(2):
...     print(i)
...
0
1
</pre></div><div class="highlight"><pre>import refmmr as rm
rm.zoo.names()
</pre></div><div class="cell_output"><div class="highlight"><pre>['a']</pre></div></div></article>
<script src="refmmr.js"></script></body></html>"""


@pytest.fixture
def page(reader, tmp_path):
    for name in ("refmmr.js", "refmmr.css"):
        (tmp_path / name).write_text((STATIC / name).read_text(encoding="utf-8"))
    (tmp_path / "index.html").write_text(PAGE)
    yield reader.open(tmp_path / "index.html")
    assert reader.errors == []


def test_copies_what_one_would_type(page):
    page.evaluate("() => { navigator.clipboard.writeText = async (t) => { window.copied = t; }; }")
    buttons = page.get_by_role("button", name="Copy")
    assert buttons.count() == 2  # of an output nothing is copied
    buttons.nth(1).click()
    assert page.evaluate("copied") == "import refmmr as rm\nrm.zoo.names()"
    page.locator(".copy-code").first.click()
    assert page.evaluate("copied") == "for i in range(2):\n    print(i)\n"
    assert page.locator(".copy-code").first.inner_text() == "Copied"


def test_selects_where_the_clipboard_is_closed(page):
    page.evaluate("() => { navigator.clipboard.writeText = async () => { throw Error(); }; }")
    page.locator(".copy-code").nth(1).click()
    page.wait_for_function("document.querySelectorAll('.copy-code')[1].textContent === 'Selected'")
    assert "rm.zoo.names()" in page.evaluate("getSelection().toString()")


def test_is_seen_when_pointed_at_or_focused(page):
    button = page.locator(".copy-code").nth(1)
    opacity = "(button) => getComputedStyle(button).opacity"
    assert button.evaluate(opacity) == "0"
    page.locator("pre").nth(1).hover()
    assert button.evaluate(opacity) == "1"
    page.mouse.move(0, 0)
    page.locator("body").press("Tab")
    page.keyboard.press("Tab")
    assert button.evaluate(opacity) == "1"
