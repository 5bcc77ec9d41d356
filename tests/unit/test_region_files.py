"""Complexes to files and back, bit for bit; damaged files end in one clear error."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refmmr as rm
from refmmr import _files
from refmmr.regions.export import geojson, save_geojson, save_svg, svg
from refmmr.regions.files import NAMES_ON_DISK, load_regions, save_regions

SVG = "{http://www.w3.org/2000/svg}"


def network(sizes, seed=0):
    net = rm.Network.mlp(sizes, rng=seed)
    rng = np.random.default_rng(seed)
    return net.with_parameters([(W, rng.normal(size=b.shape)) for W, b in net.parameters])


def complexes():
    rng = np.random.default_rng(0)
    conv = rm.Network.lenet_small((1, 6, 6), 3, rng=0)
    X = rng.uniform(0, 1, (3, 1, 6, 6))
    yield "line", conv, rm.Segment(*X[:2]), {}
    yield "interval", network([1, 5, 3]), rm.Box([-1], [2]), {}
    yield "plane", network([2, 9, 7, 3]), rm.Box([-1, -1], [1, 1]), {}
    yield "slice", conv, rm.Slice(*X), {}
    yield "space", network([3, 7, 5, 3]), rm.Box([-1] * 3, [1] * 3), {}
    yield "exact", network([2, 4, 3, 2]), rm.Box([-1, -1], [1, 1]), {"exact": True}
    yield "part", network([2, 9, 7, 3]), rm.Box([-1, -1], [1, 1]), {"max_regions": 9}
    yield "one", network([2, 3]), rm.Box([-1, -1], [1, 1]), {}


CASES = {name: case for name, *case in complexes()}


def made(name):
    net, domain, options = CASES[name]
    return rm.enumerate_regions(net, domain, **options)


@pytest.mark.parametrize("name", CASES)
def test_round_trip(name, tmp_path):
    cx = made(name)
    cx.save(tmp_path / "cx.npz")
    back = rm.RegionComplex.load(tmp_path / "cx.npz")
    assert repr(back) == repr(cx)
    for field, array in cx.raw._asdict().items():
        other = getattr(back.raw, field)
        np.testing.assert_array_equal(other, array, err_msg=field)
        assert np.asarray(other).dtype == np.asarray(array).dtype
    for array, other in zip(cx.domain.arrays(), back.domain.arrays(), strict=True):
        np.testing.assert_array_equal(other, array)
    for pair, others in zip(cx.net.parameters, back.net.parameters, strict=True):
        for array, other in zip(pair, others, strict=True):
            np.testing.assert_array_equal(other, array)
    np.testing.assert_array_equal(back.volumes, cx.volumes)
    assert back.complete == cx.complete
    assert (back.exact_points is None) == (cx.exact_points is None)
    if cx.exact_points is not None:
        assert (back.exact_points == cx.exact_points).all()
    assert back.verify().ok


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "cx.npz"
    save_regions(made("space"), path)
    return path


def test_names_on_disk_are_those_of_version_1(saved):
    names = set(_files.read_npz(saved, "refmmr-regions", 1))
    assert {name for name in names if not name.startswith(("net.", "domain"))} == {
        "format", "version", "points", "uncertain", "corner_starts", "corners", "touches",
        "facet_starts", "walls", "patterns", "maps", "complete",
    }  # fmt: skip


def tampered(path, tmp_path, **changes):
    arrays = {**_files.read_npz(path, "refmmr-regions", 1), **changes}
    _files.write_npz(tmp_path / "bad.npz", {k: v for k, v in arrays.items() if v is not None})
    return tmp_path / "bad.npz"


@pytest.mark.parametrize(
    ("field", "change", "message"),
    [
        ("points", lambda a: a[:, :2], "points: expected float64 of shape"),
        ("points", lambda a: a * np.nan, "points: expected finite numbers"),
        ("points", lambda a: a.astype(np.float32), "points: expected float64"),
        ("vertices", lambda a: a + 1, "vertices: expected numbers from 0"),
        ("vertices", lambda a: a - 1, "vertices: expected numbers from 0"),
        ("vertices", lambda a: a * 1.0, "vertices: expected int64"),
        ("vertex_starts", lambda a: a[::-1], "vertex_starts: expected numbers from 0"),
        ("vertex_starts", lambda a: a * 0, "vertex_starts: expected numbers from 0"),
        ("facet_starts", lambda a: np.append(a[:-1], a[-1] + 1), "facet_starts: expected numbers"),
        ("hyperplanes", lambda a: a + 1000, "hyperplanes: expected numbers from -6 to 11"),
        ("hyperplanes", lambda a: a[::-1], "hyperplanes: expected numbers that rise"),
        ("touches", lambda a: a * 0, "touches: expected all facets of region 0"),
        ("patterns", lambda a: a[:, :1], "patterns: expected uint8 of shape"),
        ("patterns", lambda a: a | 128, "patterns: expected 12 bits, got more"),
        ("maps", lambda a: a[:, :1], "maps: expected float64 of shape"),
        ("complete", lambda a: np.int64(7), "complete: expected bool"),
        ("domain", lambda a: "Ball", "domain: expected one of Box, Segment, Slice, got Ball"),
        ("domain.rectangle", lambda a: a[::-1], "rectangle: expected lo < hi"),
        ("domain.rectangle", lambda a: a[:, :2], "domain: expected inputs of shape"),
        ("net.layers", lambda a: "[]", "expected a network, got a damaged one"),
        ("points", lambda a: None, "points: expected an array, got none"),
    ],
)
def test_tampered_fields(field, change, message, saved, tmp_path):
    on_disk = NAMES_ON_DISK.get(field, field)
    array = _files.read_npz(saved, "refmmr-regions", 1)[on_disk]
    path = tampered(saved, tmp_path, **{on_disk: change(array)})
    with pytest.raises(ValueError, match=message) as caught:
        load_regions(path, rm.RegionComplex)
    assert str(path) in str(caught.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes(data, saved, tmp_path):
    content = bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    (tmp_path / "bad.npz").write_bytes(content[:end])
    # Nothing but a ValueError; a change within a number may go unnoticed.
    try:
        found = str(load_regions(tmp_path / "bad.npz", rm.RegionComplex))
    except ValueError as error:
        found = str(error)
    assert found.startswith("RegionComplex") or str(tmp_path / "bad.npz") in found


def test_objects_are_refused(saved, tmp_path):
    np.savez(tmp_path / "bad.npz", points=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"expected an \.npz file without objects"):
        load_regions(tmp_path / "bad.npz", rm.RegionComplex)


def test_errors(tmp_path):
    with pytest.raises(ValueError, match=r"path: expected a file ending in \.npz"):
        made("plane").save(tmp_path / "cx.zip")
    with pytest.raises(TypeError, match="cx: expected a RegionComplex, got int"):
        save_regions(3, tmp_path / "cx.npz")
    with pytest.raises(FileNotFoundError):
        load_regions(tmp_path / "none.npz", rm.RegionComplex)


# ---- GeoJSON and SVG.


@pytest.mark.parametrize("name", ["plane", "slice", "exact", "part", "one"])
def test_geojson(name):
    cx = made(name)
    data = json.loads(json.dumps(cx.to_geojson(), allow_nan=False))
    polygons = [f for f in data["features"] if f["geometry"]["type"] == "Polygon"]
    assert len(polygons) == len(cx)
    ends = np.cumsum([int(np.prod(shape)) for shape in cx.net.unit_shapes], dtype=int)
    beside: list[set[int]] = [set() for _ in polygons]
    for i, j in cx.neighbours.tolist():
        beside[i].add(j)
        beside[j].add(i)
    patterns = cx.patterns
    for i, feature in enumerate(polygons):
        (ring,) = feature["geometry"]["coordinates"]
        assert ring[0] == ring[-1]
        np.testing.assert_array_equal(ring[:-1], cx.vertices[i])
        properties = feature["properties"]
        assert (properties["id"], properties["class"]) == (i, cx.classes[i])
        assert properties["area"] == cx.areas[i]
        text = "".join("01"[bit] for bit in patterns[i].astype(int))
        assert properties["pattern"].replace("|", "") == text
        assert [len(part) for part in properties["pattern"].split("|")] == np.diff(
            [0, *ends]
        ).tolist() or not len(ends)
        assert properties["neighbours"] == sorted(beside[i])
    lines = [f for f in data["features"] if f["geometry"]["type"] == "LineString"]
    segments, classes = cx.decision_boundary()
    assert len(lines) == len(segments)
    assert [f["properties"]["classes"] for f in lines] == classes.tolist()


@pytest.mark.parametrize("color", ["class", "region", "none"])
def test_svg(color):
    cx = made("plane")
    root = ElementTree.fromstring(cx.to_svg(color, title="a < b & c"))
    assert root.find(f"{SVG}title").text == "a < b & c"
    regions = [path for path in root.iter(f"{SVG}path") if path.find(f"{SVG}title") is not None]
    assert len(regions) == len(cx)
    for i, path in enumerate(regions):
        assert path.find(f"{SVG}title").text.startswith(f"region {i}, class {cx.classes[i]}, area ")
        numbers = path.get("d").strip("MZ").replace("L", " ").split()
        vertices = np.array([float(number) for number in numbers]).reshape(-1, 2)
        np.testing.assert_allclose(vertices, cx.vertices[i], rtol=1e-9, atol=1e-9)


def test_svg_names_of_classes():
    names = ["<a>", "b & c", "d"]
    root = ElementTree.fromstring(made("plane").to_svg(class_names=names))
    titles = [title.text for title in root.iter(f"{SVG}title")][1:]
    assert {title.split(", ")[1].removeprefix("class ") for title in titles} <= set(names)
    with pytest.raises(ValueError, match="class_names: expected 3 names, got 1"):
        made("plane").to_svg(class_names=["a"])


def test_neighbours_have_other_shades():
    cx = made("plane")
    root = ElementTree.fromstring(cx.to_svg("region"))
    shades = [path.get("class") for path in root.iter(f"{SVG}path") if len(path)]
    assert len(shades) == len(cx)
    assert all(shades[i] != shades[j] for i, j in cx.neighbours.tolist())


def test_pictures_and_maps_to_files(tmp_path):
    cx = made("plane")
    save_svg(cx, tmp_path / "cx.svg", color="region")
    assert (tmp_path / "cx.svg").read_text() == svg(cx, "region")
    save_geojson(cx, tmp_path / "cx.geojson")
    assert json.loads((tmp_path / "cx.geojson").read_text()) == geojson(cx)
    with pytest.raises(ValueError, match=r"path: expected a file ending in \.svg"):
        save_svg(cx, tmp_path / "cx.png")
    with pytest.raises(ValueError, match=r"ending in \.geojson or \.json"):
        save_geojson(cx, tmp_path / "cx.txt")


@pytest.mark.parametrize("export", [svg, geojson])
def test_planes_only(export):
    with pytest.raises(ValueError, match="cx: expected a plane, got a domain of 3 dimensions"):
        export(made("space"))
    with pytest.raises(TypeError, match="cx: expected a RegionComplex, got str"):
        export("regions")
