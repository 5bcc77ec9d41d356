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


# ---- certificates


LINE = rm.Network([rm.Linear([[1.0, 0, 0, 0], [0, 0, 0, 0]], [0.0, 0.5])], 4)
POINT = np.array([[0.9, 0.4, 0.2, 0.1]])


@pytest.mark.parametrize("attack", [None, 0.5])
def test_ladder_has_a_bar_a_method_and_a_diamond_an_example(attack):
    rungs = {m: rm.certify(LINE, POINT, [0], np.inf, method=m) for m in ("region", "ibp", "crown")}
    ax = rm.plot.ladder(rungs, attack=attack).axes[0]
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [
        "linear region",
        "intervals (IBP)",
        "CROWN",
        *["attack"] * (attack is not None),
    ]
    bars = [bar.get_width() for bar in ax.patches if getattr(bar, "get_width", lambda: 0)()]
    np.testing.assert_allclose(bars[:3], [c.lower[0] for c in rungs.values()])
    diamonds = [x for line in ax.lines if line.get_marker() == "D" for x in line.get_xdata()]
    np.testing.assert_allclose(diamonds, [rungs["region"].upper[0], *[attack] * bool(attack)])
    assert r"$l_\infty$" in ax.get_xlabel()
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "0.4, exact"


def test_ladder_shows_the_image_and_its_adversarial_example():
    rungs = {"region": rm.certify(LINE, POINT, [0], 2)}
    figure = rm.plot.ladder(rungs, x=POINT[0])
    images = [ax.images[0].get_array() for ax in figure.axes if ax.images]
    Z = rungs["region"].adversarial[0]
    np.testing.assert_array_equal(images[:3], np.reshape([POINT[0], Z, Z - POINT[0]], (3, 2, 2)))


def test_ladder_shows_the_nearest_example_of_all():
    rungs = {"region": rm.certify(LINE, POINT, [0], 2)}
    for attack, shown in ((0.1, 0.3), (0.9, rungs["region"].adversarial[0])):
        figure = rm.plot.ladder(rungs, x=POINT[0], attack=attack, adversarial=np.full(4, 0.3))
        images = [np.ravel(ax.images[0].get_array()) for ax in figure.axes if ax.images]
        np.testing.assert_array_equal(images[1], np.broadcast_to(shown, 4))


def test_ladder_of_a_point_that_nothing_can_change():
    net = rm.Network([rm.Linear([[1.0, 1], [0, 0]], [1.0, 0.0])], 2)
    figure = rm.plot.ladder({"region": rm.certify(net, [[0.5, 0.5]], [0], 2)}, x=[0.5, 0.5])
    assert figure.axes[0].texts[0].get_text() == "any distance"


def test_ladder_needs_one_norm():
    first, second = (rm.certify(LINE, POINT, [0], p) for p in (1, 2))
    with pytest.raises(ValueError, match=r"certificates: expected some, of one norm, got"):
        rm.plot.ladder({"a": first, "b": second})
    with pytest.raises(ValueError, match=r"certificates: expected some, of one norm, got"):
        rm.plot.ladder({})


def test_robustness_curve_starts_at_the_accuracy():
    X = np.random.default_rng(0).uniform(0, 1, (20, 4))
    curve = rm.robustness_curve(LINE, X, np.zeros(20, dtype=int), radii=[0.1, 0.2])
    ax = curve.plot()
    high, low = ax.lines
    np.testing.assert_allclose(low.get_ydata()[0], 100 * (1 - curve.test_error))
    np.testing.assert_allclose(low.get_ydata()[1:], 100 * curve.certified_accuracy)
    np.testing.assert_allclose(high.get_ydata()[1:], 100 * curve.attacked_accuracy)
    np.testing.assert_array_equal(low.get_xdata(), [0, 0.1, 0.2])
