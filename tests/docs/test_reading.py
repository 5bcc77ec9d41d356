"""The site as a reader meets it: in a browser, from disk, in the light, in the dark, on a phone."""

import os
from pathlib import Path

import pytest

FORMULAS = """() => [...document.querySelectorAll('article span.math, article div.math')]
    .filter((math) => !math.querySelector('mjx-container svg :is(path, rect, use)'))
    .map((math) => math.textContent.slice(0, 80))"""
BLANK = """() => [...document.querySelectorAll('article img')]
    .filter((image) => image.checkVisibility() && !image.naturalWidth)
    .map((image) => image.src.slice(0, 80))"""
OVERFLOW = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    const boxed = (element) => {
        for (let box = element.parentElement; box; box = box.parentElement)
            if (box !== document.body && box !== document.documentElement
                && getComputedStyle(box).overflowX !== 'visible') return true;
        return false;
    };
    return [...document.querySelectorAll('body *')]
        .filter((element) => element.getBoundingClientRect().right > width + 1 && !boxed(element))
        .map((element) => element.tagName + ' ' + element.textContent.slice(0, 60)).slice(0, 8)
        .concat(`page is ${document.documentElement.scrollWidth} wide`);
}"""
# Of code, tables and formulas: those that are wider than their box, and the widest line of each.
WIDE = """(scrolling) => {
    document.querySelectorAll('article details').forEach((folded) => { folded.open = true; });
    const wide = [...document.querySelectorAll(
        'article div.highlight pre, article table, article .cell_output .output')]
        .filter((box) => box.scrollWidth > box.clientWidth + 1
            || box.getBoundingClientRect().right > innerWidth)
        .filter((box) => !(scrolling && box.closest(
            'pre, .table-wrapper, .cell_output .output') && scrolls(box)));
    const formulas = [...document.querySelectorAll('article mjx-container[display] > svg')]
        .filter((svg) => svg.getBoundingClientRect().width
            > svg.closest('div.math, .cell_output, p, dd, article').clientWidth + 1);
    function scrolls(box) {
        const own = box.closest('pre, .table-wrapper, .cell_output .output');
        return ['auto', 'scroll'].includes(getComputedStyle(own).overflowX)
            && own.getBoundingClientRect().right <= innerWidth;
    }
    return [...wide, ...formulas].map((box) => box.tagName + ': ' + box.textContent.split('\\n')
        .reduce((a, b) => (a.length < b.length ? b : a), '').slice(0, 120));
}"""
NARROW = """() => [...document.querySelectorAll('article table:not(.indextable)')]
    .filter((table) => (table.rows[0].cells.length <= 3 || table.classList.contains('entries'))
        && table.scrollWidth > (table.closest('.table-wrapper') ?? table.parentElement).clientWidth)
    .map((table) => table.textContent.replace(/\\s+/g, ' ').slice(0, 80))"""
AXE = os.environ.get("REFMMR_AXE")
EXPLORER = "iframe[title='Linear regions, interactive']"


def test_pages_load_from_disk(site, page_name, reader):
    page = reader.open(site / page_name)
    assert reader.elsewhere() == []
    assert reader.errors == []
    assert page.evaluate(FORMULAS) == []
    # Figures further down load when they are near.
    page.evaluate(
        "Promise.all([...document.images].filter((image) => image.checkVisibility())"
        ".map((image) => { image.loading = 'eager'; return image.decode().catch(() => null); }))"
    )
    assert page.evaluate(BLANK) == []


def test_a_phone_scrolls_one_way(site, text_name, reader_in):
    page = reader_in("phone").open(site / text_name)
    assert page.evaluate(OVERFLOW) == []
    # Wide code and tables scroll in a box of their own; formulas fit.
    assert page.evaluate(WIDE, True) == []


def test_tables_of_words_fit_a_phone(site, text_name, reader_in):
    """Tables of up to three columns and those shown as cards do not scroll sideways."""
    page = reader_in("phone").open(site / text_name)
    assert page.evaluate(NARROW) == []


def test_a_phone_opens_figures(site, reader_in, reader):
    """Labels are small there: a figure is a link to itself, by its alternative text."""
    opened = "article figure a:has(> img)"
    for name in ("method/1-regions.html", "gallery/index.html"):
        links = reader_in("phone").open(site / name).locator(opened)
        assert links.count() >= 2
        assert links.first.evaluate("(link) => link.href === link.firstElementChild.src")
        assert reader.open(site / name).locator(opened).count() == 0


def test_nothing_is_cut(site, text_name, reader):
    """On a screen of 1280 pixels code, tables, outputs and formulas fit the column."""
    page = reader.open(site / text_name)
    assert page.evaluate(WIDE, False) == []


@pytest.mark.skipif(not AXE, reason="REFMMR_AXE does not name axe.min.js")
def test_accessible(site, text_name, reader):
    page = reader.open(site / text_name)
    page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    serious = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        # Colours change in the course of a fraction of a second.
        page.wait_for_timeout(300)
        violations = page.evaluate(
            "axe.run(document, { resultTypes: ['violations'], iframes: false })"
            ".then((found) => found.violations)"
        )
        serious += [
            f"{scheme}, {found['id']}: {node['html'][:120]} ({node['failureSummary'][:200]})"
            for found in violations
            if found["impact"] in ("serious", "critical")
            for node in found["nodes"][:4]
        ]
    assert serious == []


@pytest.mark.parametrize(
    ("words", "wanted"),
    [("decision boundary", "decision boundary"), ("linear_region", "linear_region")],
)
def test_search_finds(site, reader, words, wanted):
    page = reader.open(site / "search.html", "?q=" + words.replace(" ", "+"))
    page.wait_for_selector("#search-results li a", timeout=20_000)
    page.wait_for_function(
        "!document.querySelector('#search-progress')?.textContent.match(/Searching/)"
    )
    assert reader.elsewhere() == []
    assert reader.errors == []
    first = page.locator("#search-results li a").first
    first.click()
    page.wait_for_load_state("load")
    assert wanted in page.locator("article").inner_text().lower()


def explorers():
    folder = os.environ.get("REFMMR_DOCS_HTML")
    if not folder:
        return []
    found = sorted(Path(folder).resolve().rglob("*.html"))
    return [
        path.name
        for path in found
        if '<iframe title="Linear regions, interactive"' in path.read_text()
    ]


@pytest.mark.parametrize("name", explorers())
def test_the_explorer_reacts(site, reader, name):
    (path,) = site.rglob(name)
    page = reader.open(path)
    outer = page.locator(EXPLORER).first
    outer.scroll_into_view_if_needed()
    frame = page.frame_locator(EXPLORER).first
    stage = frame.locator("#overlay")
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
    assert frame.locator("#name").inner_text().startswith("Region ")
    stage.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    assert frame.locator("#name").inner_text().endswith("pinned")
    stage.hover(position={"x": box["width"] / 3, "y": box["height"] / 3})
    assert frame.locator("#name").inner_text().endswith("pinned")
    # The wheel on the map scrolls the page around it.
    before = page.evaluate("scrollY")
    page.mouse.wheel(0, -150)
    page.wait_for_function(f"scrollY < {before}")
    assert reader.errors == []
