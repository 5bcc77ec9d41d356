"""The map of linear regions in the output of a notebook: a frame, within what each host allows."""

import json

import pytest

import refmmr as rm

# The page around an output: in VS Code's notebooks it has a policy; JupyterLab's says nothing about
# what an output may do.
HOSTS = {
    "jupyterlab": "default-src * 'unsafe-inline' 'unsafe-eval' data: blob:",
    "vscode": "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src https: http: data:; font-src https:; "
    "connect-src https:; child-src https: data:",
}
PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Notebook</title>
<meta http-equiv="Content-Security-Policy" content="{}">
</head><body style="margin: 0"><div style="height: 300px">In [1]:</div><div id="output"></div>
<div style="height: 900px"></div><script>
document.querySelector("#output").innerHTML = {};</script></body></html>"""


@pytest.fixture(scope="session")
def output():
    """The HTML of a cell's output."""
    net = rm.Network.mlp([2, 8, 8, 2], rng=0)
    cx = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]), progress=False)
    return cx.explore(points=[[0.5, 0.5], [-0.5, 0.1]], labels=[0, 1])._repr_html_()


def notebook(folder, host, output):
    text = json.dumps(output).replace("</", "<\\/")
    (folder / "notebook.html").write_text(PAGE.format(HOSTS[host], text), encoding="utf-8")
    return folder / "notebook.html"


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("view", ["light", "dark"])
def test_the_map_reacts(reader_in, tmp_path, output, host, view):
    reader = reader_in(view)
    page = reader.open(notebook(tmp_path, host, output))
    frame = page.frame_locator("iframe")
    stage = frame.locator("#overlay")
    box = stage.bounding_box()
    stage.hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
    assert frame.locator("#name").inner_text().startswith("Region ")
    stage.click(position={"x": box["width"] / 3, "y": box["height"] / 3})
    assert frame.locator("#name").inner_text().endswith("pinned")
    before = page.evaluate("scrollY")
    page.mouse.wheel(0, 150)
    page.wait_for_function(f"scrollY > {before}")
    paper = frame.locator("body").evaluate("(body) => getComputedStyle(body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (view == "light")
    assert reader.elsewhere() == []
    assert reader.errors == []


@pytest.mark.parametrize("width", [360, 640, 1100])
def test_the_map_fits_its_frame(reader, tmp_path, output, width):
    page = reader.open(notebook(tmp_path, "vscode", output))
    page.locator("iframe").evaluate(f"(frame) => {{ frame.style.width = '{width}px'; }}")
    body = page.frame_locator("iframe").locator("body")
    assert body.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    stage = page.frame_locator("iframe").locator("#overlay").bounding_box()
    assert stage["width"] > 0.5 * min(width, 640)
    assert stage["height"] > 200


def test_a_frame_has_no_way_out(reader, tmp_path, output):
    """It can neither touch the notebook around it nor send anything."""
    page = reader.open(notebook(tmp_path, "jupyterlab", output))
    inside = page.frames[1]
    blocked = inside.evaluate(
        """async () => {
            const touch = (act) => { try { act(); return false; } catch { return true; } };
            const sent = await fetch("https://example.invalid").then(() => true, () => false);
            return [touch(() => parent.document.body), touch(() => localStorage.length), !sent];
        }"""
    )
    assert blocked == [True, True, True]
    assert reader.elsewhere() == []


def test_says_what_to_do_where_frames_are_removed(output):
    """Viewers that do not trust a notebook drop the tag and keep its text."""
    text = output[output.index(">") + 1 : output.rindex("</iframe>")]
    assert "<" not in text
    assert "Trust this notebook" in text
    assert ".save(" in text
