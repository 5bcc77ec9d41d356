"""Figures hold what they say they hold."""

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PolyCollection

import refmmr as rm


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def cx():
    return rm.enumerate_regions(rm.Network.mlp([2, 8, 3], rng=1), rm.Box([-1, -1], [1, 2]))


def collections(ax, kind):
    return [item for item in ax.collections if isinstance(item, kind)]


@pytest.mark.parametrize("color", ["region", "class", "none"])
def test_regions_draws_each_region_once(cx, color):
    ax = cx.plot(color)
    outlines = collections(ax, PolyCollection)[-1]
    assert len(outlines.get_paths()) == len(cx)
    assert ax.get_xlim() == (-1, 1)
    assert ax.get_ylim() == (-1, 2)
    assert ax.get_xlabel() == "input 1"


def test_class_colours_are_named_in_the_legend(cx):
    ax = cx.plot("class", boundary=False)
    winners = {winner for winner, _ in cx.class_polygons()}
    assert {text.get_text() for text in ax.legend().get_texts()} == {f"class {w}" for w in winners}


def test_bent_lines_have_one_colour_a_unit_and_the_boundary_on_top(cx):
    ax = rm.plot.bent_lines(cx, points=[[0, 0]], labels=["origin"])
    lines, boundary = collections(ax, LineCollection)
    segments, units = cx.bent_lines()
    assert len(lines.get_segments()) == len(segments)
    colors = lines.get_colors()
    for unit in np.unique(units):
        assert len(np.unique(colors[units == unit], axis=0)) == 1
    assert len(np.unique(colors, axis=0)) == len(np.unique(units))
    assert len(boundary.get_segments()) == len(cx.decision_boundary().segments)
    assert [text.get_text() for text in ax.texts] == ["origin"]


def test_unknown_colour_is_an_error(cx):
    with pytest.raises(ValueError, match="color: expected one of 'region', 'class', 'none', got"):
        cx.plot("rainbow")


def test_histogram_counts_every_point(cx):
    X = np.random.default_rng(0).uniform(0, 1, (40, 2))
    certificates = rm.certify(cx.net, X, None, p=2)
    figure = rm.plot.radii({"one": certificates, "two": certificates}, eps=0.1)
    assert len(figure.axes) == 2
    for ax in figure.axes:
        assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(100)
    share = 100 * (certificates.lower > 0.1).mean()
    assert f"{share:.0f}% beyond eps" in figure.axes[0].texts[0].get_text()


def test_adversarial_examples_shows_image_example_and_difference():
    net = rm.Network.mlp([4, 2], rng=0)
    X = np.random.default_rng(0).uniform(0.2, 0.8, (3, 4))
    certificates = rm.certify(net, X, None, p=2, box=None)
    Z = certificates.adversarial
    figure = rm.plot.adversarial_examples(X, net.predict(X), certificates, net.predict(Z), (2, 2))
    images = [np.ravel(ax.images[0].get_array()) for ax in figure.axes if ax.images]
    np.testing.assert_array_equal(images, np.concatenate([X, Z, Z - X]))


def test_save_writes_a_png(cx, tmp_path):
    rm.plot.save(cx.plot(), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
