"""The interactive page holds what it says, in one file that asks for nothing else."""

import base64
import json
import re

import numpy as np
import pytest

import refmmr as rm
from refmmr.regions import explore


@pytest.fixture(scope="module")
def cx():
    net = rm.Network.mlp([2, 9, 7, 3], rng=0)
    rng = np.random.default_rng(0)
    net = net.with_parameters([(W, rng.normal(size=b.shape)) for W, b in net.parameters])
    return rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]))


def content(html):
    return json.loads(
        re.search(r'type="application/json" id="payload">(.*?)</script>', html).group(1)
    )


def decoded(part):
    kinds = {"Float64Array": "<f8", "Uint32Array": "<u4", "Uint8Array": "u1"}
    return np.frombuffer(base64.b64decode(part["data"]), kinds[part["type"]])


def test_nothing_is_lost(cx):
    data = content(cx.explore().html)
    points, corners = decoded(data["points"]).reshape(-1, 2), decoded(data["corners"])
    ends = np.cumsum(decoded(data["sizes"]))
    for i, ring in enumerate(np.split(points[corners], ends[:-1])):
        np.testing.assert_array_equal(ring, cx.vertices[i])
    np.testing.assert_array_equal(decoded(data["areas"]), cx.areas)
    np.testing.assert_array_equal(decoded(data["winners"]), cx.classes)
    np.testing.assert_array_equal(decoded(data["V"]).reshape(-1, 3, 2), cx.affine_maps.V)
    np.testing.assert_array_equal(decoded(data["neighbours"]).reshape(-1, 2), cx.neighbours)
    patterns = np.unpackbits(decoded(data["patterns"]).reshape(len(cx), -1), axis=1, count=16)
    np.testing.assert_array_equal(patterns, cx.patterns)
    segments, _ = cx.bent_lines()
    bent = points[decoded(data["bentEnds"])].reshape(-1, 2, 2)
    np.testing.assert_array_equal(bent, segments)


def test_the_page_asks_for_nothing_else(cx):
    html = cx.explore().html
    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)[a-z]+\.[a-z]", html)
    assert not re.search(
        r"<(?:img|iframe|object)\b|\bfetch\(|XMLHttpRequest|@import|innerHTML", html
    )
    assert "default-src 'none'" in html


def test_data_cannot_end_its_element():
    assert (
        "</script"
        not in explore.page({"name": "</script><b>"})
        .split('id="payload">')[1]
        .split("</script>")[0]
    )


def test_notebooks_show_it_in_a_frame(cx):
    shown = cx.explore()._repr_html_()
    assert shown.startswith("<iframe")
    assert 'sandbox="allow-scripts"' in shown
    assert repr(cx.explore()).startswith("Explorer(")


def test_saved_atomically(cx, tmp_path, monkeypatch):
    path = tmp_path / "regions.html"
    explorer = cx.explore(path)
    assert path.read_text(encoding="utf-8") == explorer.html
    monkeypatch.setattr("os.replace", lambda *names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explorer.save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["regions.html"]


def test_errors(cx, tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file ending in \.html, got"):
        cx.explore(tmp_path / "regions.txt")
    with pytest.raises(TypeError, match="path: expected a path, got 3"):
        cx.explore().save(3)
    line = rm.enumerate_regions(cx.net, rm.Segment([0, 0], [1, 1]))
    with pytest.raises(ValueError, match="explore: expected a plane, got a domain of 1 dimensions"):
        line.explore()
