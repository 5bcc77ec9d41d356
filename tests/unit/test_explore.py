"""The interactive page as a text: what is in it, and that it comes out again bit for bit."""

import base64
import html
import json
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import random_biases

import refmmr as rm
from refmmr.regions import explore as explorer
from refmmr.regions.explore import Explorer, explore

TYPES = {"Float64Array": "<f8", "Uint32Array": "<u4", "Uint8Array": "u1"}


@pytest.fixture(scope="module")
def cx():
    net = random_biases(2, 7, 6, 3)
    return rm.enumerate_regions(net, rm.Box([-2, -1], [2, 3]), progress=False)


@pytest.fixture(scope="module")
def text(cx):
    return explore(cx).html


def content(text):
    """The data of a page."""
    (data,) = re.findall(r'<script type="application/json" id="payload">(.*?)</script>', text, re.S)
    return json.loads(data)


def numbers(encoded):
    return np.frombuffer(base64.b64decode(encoded["data"]), TYPES[encoded["type"]])


def same_bits(found, expected):
    expected = np.asarray(expected, dtype=found.dtype)
    assert found.tobytes() == expected.tobytes()


def points(page, name):
    return numbers(page["points"]).reshape(-1, 2)[numbers(page[name])]


def grid(side, classes=10, units=64):
    """A complex of side x side squares, with random numbers for all else."""
    rng = np.random.default_rng(0)
    n = side * side
    x, y = np.meshgrid(*2 * [np.linspace(0, 1, side + 1)], indexing="ij")
    lattice = np.stack([x, y], axis=-1)
    vertices = [lattice[i : i + side, j : j + side] for i, j in ((0, 0), (1, 0), (1, 1), (0, 1))]
    squares = np.stack(vertices, axis=2).reshape(n, 4, 2)
    index = np.arange(n).reshape(side, side)
    pairs = [(index[1:], index[:-1]), (index[:, 1:], index[:, :-1])]
    edges = [squares[:, :2], squares[:, 1:3]]
    return SimpleNamespace(
        net=SimpleNamespace(unit_shapes=[(units,)], n_classes=classes, n_hidden=units),
        domain=rm.Box([0, 0], [1, 1]),
        patterns=rng.random((n, units)) < 0.5,
        vertices=list(squares),
        areas=np.full(n, 1 / n),
        bent_lines=lambda: (np.concatenate(edges), np.arange(2 * n) % units),
        decision_boundary=lambda: SimpleNamespace(segments=np.zeros((0, 2, 2))),
        affine_maps=SimpleNamespace(
            V=rng.normal(size=(n, classes, 2)), a=rng.normal(size=(n, classes))
        ),
        classes=np.zeros(n, int),
        complete=True,
        neighbours=np.concatenate([np.stack([a.ravel(), b.ravel()], 1) for a, b in pairs]),
    )


# ---- Nothing from elsewhere.


def test_names_no_address(text):
    found = re.findall(r"https?://[^\s\"'<>)]+", text)
    assert [address for address in found if not address.startswith("http://www.w3.org/")] == []
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", text) == []
    for word in (
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
        "WebSocket",
        "sendBeacon",
        "import(",
    ):
        assert word not in text


def test_forbids_requests(text):
    (policy,) = re.findall(r'content="(default-src[^"]*)"', text)
    assert policy == (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
    )


def test_inserts_no_markup(text):
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in text


# ---- The data.


def test_polygons_come_out_bit_for_bit(cx, text):
    page = content(text)
    same_bits(numbers(page["sizes"]), [len(vertices) for vertices in cx.vertices])
    same_bits(points(page, "vertices"), np.concatenate(cx.vertices))
    assert page["rectangle"] == [-2, -1, 2, 3]
    assert page["regions"] == len(cx) > 30


def test_segments_come_out_bit_for_bit(cx, text):
    page = content(text)
    segments, units = cx.bent_lines()
    same_bits(points(page, "bentEnds"), segments)
    same_bits(numbers(page["bentUnits"]), units)
    assert len(cx.decision_boundary().segments)
    same_bits(points(page, "boundaryEnds"), cx.decision_boundary().segments)


def test_facts_of_regions_come_out_bit_for_bit(cx, text):
    page = content(text)
    same_bits(numbers(page["areas"]), cx.areas)
    same_bits(numbers(page["winners"]), cx.classes)
    same_bits(numbers(page["V"]), cx.affine_maps.V)
    same_bits(numbers(page["a"]), cx.affine_maps.a)
    same_bits(numbers(page["neighbours"]), cx.neighbours)
    assert page["layers"] == [7, 6]
    assert page["classes"] == 3
    rows = numbers(page["patterns"]).reshape(len(cx), 2)
    assert (np.unpackbits(rows, axis=1, count=13) == cx.patterns).all()


def test_neighbouring_floats_and_signs_of_zero_stay():
    vertices = np.array([[-0.0, 0.0], [np.nextafter(1, 2), 5e-324], [1.0, 1.0], [0.0, -0.0]])
    pool, (places, none) = explorer._pool(vertices, np.zeros((0, 2, 2)))
    same_bits(pool[places], vertices)
    assert none.shape == (0,)


def test_shared_vertices_are_stored_once(cx, text):
    stored = numbers(content(text)["points"]).reshape(-1, 2)
    assert len(stored) == len(np.unique(stored, axis=0)) < sum(map(len, cx.vertices)) / 2


def test_data_cannot_end_its_element(text):
    nasty = {"x": "</script><script>alert(1)</script><!--", "y": "&lt; '\" {{payload}}"}
    made = explorer.page(nasty)
    assert content(made) == nasty
    assert made.count("<script") == text.count("<script") == 2
    assert made.count("</script") == text.count("</script") == 2
    assert "<!--" not in made.split('id="payload">')[1].split("</script>")[0]


def test_says_whether_all_regions_are_there(cx):
    assert explorer.payload(cx)["complete"] is True
    partial = SimpleNamespace(**{name: getattr(cx, name) for name in SHOWN}, complete=False)
    assert content(explorer.page(explorer.payload(Sized(partial, len(cx)))))["complete"] is False


def test_points_and_labels(cx):
    page = content(explore(cx, points=[[0.5, 1], [-1, 2]], labels=[2, 0]).html)
    same_bits(numbers(page["data"]), [0.5, 1, -1, 2])
    assert numbers(page["labels"]).tolist() == [2, 0]
    assert page["box"]
    assert len(numbers(content(explore(cx).html)["data"])) == 0


@pytest.mark.parametrize(
    ("points", "labels", "said"),
    [
        (None, [0], "labels: expected points with them"),
        ([[0, 0, 0]], None, r"points: .*\(1, 2\)"),
        ([[0, 0]], [0, 1], r"labels: expected shape \(1,\)"),
        ([[0, 0]], [3], "labels: expected classes 0 to 2, got 3"),
        ([[np.nan, 0]], None, "points"),
    ],
)
def test_bad_points_are_refused(cx, points, labels, said):
    with pytest.raises(ValueError, match=said):
        explore(cx, points=points, labels=labels)


def test_a_slice_has_its_own_axes():
    plane = rm.Slice([0.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0])
    cx = rm.enumerate_regions(random_biases(3, 5, 2), plane, progress=False)
    page = content(cx.explore(points=plane.points).html)
    assert not page["box"]
    assert page["axes"] == ["along", "across"]


SHOWN = (
    "net", "domain", "patterns", "vertices", "areas", "bent_lines", "decision_boundary",
    "affine_maps", "classes", "neighbours",
)  # fmt: skip


class Sized:
    """These attributes and nothing else; and a length."""

    def __init__(self, attributes, length):
        self.__dict__.update(vars(attributes))
        self.length = length

    def __len__(self):
        return self.length


@pytest.mark.parametrize("sizes", [(2, 3), (2, 3, 1)])
def test_small_networks(sizes):
    cx = rm.enumerate_regions(random_biases(*sizes), rm.Box([0, 0], [1, 1]), progress=False)
    page = content(explore(cx).html)
    assert page["regions"] == len(cx)
    assert page["layers"] == list(sizes[1:-1])


def test_size_of_ten_thousand_regions():
    made = explore(Sized(grid(100), 10_000))
    assert content(made.html)["regions"] == 10_000
    assert len(made.html) < 5e6


# ---- The object.


def test_notebooks_show_it_in_a_frame(cx, text):
    shown = explore(cx)._repr_html_()
    assert shown.startswith("<iframe ")
    assert 'sandbox="allow-scripts"' in shown
    (inside,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(inside) == text


def test_repr_is_short(cx):
    assert re.fullmatch(r"Explorer\(\d+\.\d MB of HTML\)", repr(explore(cx)))


def test_explore_writes(cx, text, tmp_path):
    path = tmp_path / "new" / "page.html"
    made = explore(cx, path)
    assert path.read_text("utf-8") == made.html == text
    Explorer("other").save(str(path))
    assert path.read_text("utf-8") == "other"


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    Explorer("old").save(path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Explorer("new").save(path)
    assert path.read_text("utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_paths_are_checked(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file ending in \.html"):
        Explorer("").save(tmp_path / "page.txt")
    with pytest.raises(TypeError, match="path: expected a path, got 3"):
        Explorer("").save(3)
