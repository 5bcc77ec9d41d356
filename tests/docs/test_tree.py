"""The tree of the playground: its nodes against the reference, and a reader's hands on it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from refmmr.reference import backward_bound, branch_and_bound

AXE = os.environ.get("REFMMR_AXE")
RADII = (0.38, 0.55, 0.85)
"""Proved without a split, with a few, and not robust: small trees of each kind."""
METHODS = ["ibp", "fast-lin", "crown", "alpha", "beta"]


@pytest.fixture(scope="session")
def tree(directive):
    return directive.module("tree")


@pytest.fixture(scope="session")
def grown(tree):
    """For each radius: the question and the nodes."""
    net = tree.network()
    questions = [tree.question(net, radius) for radius in RADII]
    return net, [(around, row, tree.grow(net, around, row)) for around, row in questions]


@pytest.fixture(scope="session")
def data(tree):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "RADII", RADII)
        return json.loads(json.dumps(tree.data(), allow_nan=False))


def test_nodes_are_those_of_the_reference(tree, grown):
    net, trees = grown
    for around, row, nodes in trees:
        hidden = backward_bound.layer_bounds(net, around.x, 2, around.radius, None, "crown")[:-1]
        done, point, visits = branch_and_bound.search(net, around, row, hidden, steps=tree.STEPS)
        assert done == all(node.outcome != "example" for node in nodes)
        assert done == (point is None)
        assert len(visits) == len(nodes) if done else len(visits) <= len(nodes)
        for node, visit in zip(nodes, visits, strict=False):
            assert (node.parent, node.unit, node.sign) == visit[:3]
            assert node.bounds["beta"] == visit.bound
    assert [len(nodes) > 1 for _, _, nodes in trees] == [False, True, True]


def test_bounds_and_half_spaces_hold(grown):
    """On points of the disc: those of a node keep its bounds, those of another class lie within."""
    net, trees = grown
    rng = np.random.default_rng(3)
    for around, row, nodes in trees:
        angle = rng.uniform(0, 2 * np.pi, 4000)
        size = around.radius * np.sqrt(rng.uniform(0, 1, 4000))
        Z = around.x + size[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
        margin, pattern = net(Z) @ row, net.activation_pattern(Z)
        for node in nodes:
            fixed = np.concatenate([part.ravel() for part in node.nodes.fixed])
            inside = np.where(fixed == 0, True, pattern == (fixed > 0)).all(axis=1)
            assert list(node.bounds) == METHODS
            for bound in node.bounds.values():
                assert bound <= margin[inside].min(initial=np.inf)
            for c, e in node.half_spaces.values():
                assert (Z[inside & (margin <= 0)] @ c + e <= 1e-12).all()
            if node.outcome == "example":
                assert node.margin <= 0
                assert np.linalg.norm(node.point - around.x) <= around.radius + 1e-12
                assert row @ net(node.point[None])[0] == node.margin
            if node.outcome == "split":
                assert node.bounds["beta"] <= 0
    # Splits and chosen slopes have raised the bounds.
    root = trees[1][2][0]
    assert root.bounds["ibp"] < root.bounds["crown"] < root.bounds["beta"] <= 0


def test_what_is_drawn_is_on_the_circle_and_the_line(tree):
    c, e = np.array([1.0, -2.0]), 0.3
    for offset in (e, e + 5, e - 5):
        chord, part = tree.chord(c, offset, 0.5), tree.segment(c, offset, 0.5)
        if offset == e:
            np.testing.assert_allclose(np.array(chord) @ c + e, 0, atol=1e-3)
            assert (np.array(part) @ c + e < 1e-3).all()
            np.testing.assert_allclose([part[0], part[-1]], chord)
        else:
            assert chord is None
        # The line misses the disc: nothing is left of it, or all.
        assert len(part) == (0 if offset > e else tree.ARC)
        for z in part:
            assert abs(np.linalg.norm(np.subtract(z, tree.CENTRE)) - 0.5) < 1e-3


# In the browser.


@pytest.fixture(scope="session")
def tree_page(directive, data, bare_page, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    (folder / "playground.js").write_text(directive.bundle(), encoding="utf-8")
    style = directive.HOME / "playground.css"
    (folder / "playground.css").write_text(style.read_text(encoding="utf-8"), encoding="utf-8")
    text = f"window.refmmrPlayground = {{ data: {json.dumps({'tree': data})} }};"
    (folder / "playground-data.js").write_text(text, encoding="utf-8")
    box = '<main><h1>Tree</h1><div class="pg" id="play-tree" data-tree=""></div></main>'
    (folder / "index.html").write_text(bare_page.format(box), encoding="utf-8")
    return folder / "index.html"


@pytest.fixture
def hands(reader, tree_page):
    page = reader.open(tree_page)
    yield page
    assert reader.errors == []
    assert reader.elsewhere() == []


def state(page):
    return page.evaluate("refmmrPlayground.trees[0].state")


def seen(page):
    return page.locator(".pg-node").evaluate_all("(all) => all.map((one) => one.ariaLabel)")


def press(page, radius):
    """Choose a radius and press the large button until it says that nothing is left to do."""
    page.get_by_role("radio", name=radius).check()
    go = page.locator(".pg-controls > button").first
    for _ in range(40):
        if go.is_disabled():
            return go.inner_text()
        go.click()
    return "never"


def test_the_button_goes_on_until_all_is_proved(hands, grown):
    assert press(hands, "0.38") == "Proved"
    assert seen(hands) == [seen(hands)[0]]
    assert press(hands, "0.55") == "Proved"
    nodes = grown[1][1][2]
    leaves = sum(node.outcome == "proved" for node in nodes)
    assert f"All {leaves} leaves are proved" in hands.locator(".pg-say").inner_text()
    assert sum("proved" in label for label in seen(hands)) == leaves
    assert len(seen(hands)) == len(nodes)


def test_the_button_finds_an_example(hands, grown):
    assert press(hands, "0.85") == "Example found"
    assert "not robust" in hands.locator(".pg-say").inner_text()
    shown = state(hands)["node"]
    assert grown[1][2][2][shown].outcome == "example"
    assert hands.locator(".pg-tree .pg-cross").get_attribute("d") != ""


def test_a_click_shows_and_another_one_splits(hands, data):
    root = hands.locator(".pg-node").first
    assert len(seen(hands)) == 1
    root.click()
    assert len(seen(hands)) == 3
    root.click()
    assert state(hands)["node"] == 0
    bounds = data["trees"][1]["nodes"][0]["bounds"]
    chart = hands.locator(".pg-chart").get_attribute("aria-label")
    for method, name in zip(METHODS, ("IBP", "Fast-Lin", "CROWN", "α-CROWN"), strict=False):
        assert f"{name} {bounds[method]:.2f}".replace("-0", "−0").replace(" -", " −") in chart
    hands.get_by_role("button", name="Undo").click()
    assert len(seen(hands)) == 1


def test_the_keyboard_opens_nodes_and_goes_through_them(hands):
    hands.locator(".pg-node").first.focus()
    hands.keyboard.press("Enter")
    first = state(hands)["node"]
    assert first in (1, 2)
    hands.keyboard.press("ArrowLeft" if first == 2 else "ArrowRight")
    assert state(hands)["node"] == 3 - first
    hands.keyboard.press("ArrowUp")
    assert state(hands)["node"] == 0
    hands.keyboard.press("ArrowDown")
    assert state(hands)["node"] == 1
    assert hands.evaluate("document.activeElement.ariaLabel").startswith("Node 1,")
    assert hands.evaluate("document.activeElement.ariaCurrent") == "true"


def test_the_address_keeps_the_tree_and_survives_nonsense(reader, tree_page):
    page = reader.open(tree_page)
    page.locator(".pg-node").first.click()
    link, there = page.url, state(page)
    page.goto("about:blank")
    page.goto(link)
    assert state(page) == there
    # A node whose parent is not split is not seen, and numbers may be none.
    for wrong in ("t=99&n=77&o=3.4.zz", "t=-1&n=&o=", "o=6"):
        page.evaluate(f"location.hash = 'play-tree?{wrong}'")
        page.wait_for_function("refmmrPlayground.trees[0].state.split.length === 0")
        assert state(page)["node"] == 0
    assert reader.errors == []


def test_places_of_nodes(hands):
    """Leaves stand side by side, parents above the middle of their children."""
    nodes = [{"parent": p, "outcome": o} for p, o in (
        (-1, "split"), (0, "split"), (0, "proved"), (1, "proved"), (1, "split"))]  # fmt: skip
    found = hands.evaluate(
        """(nodes) => {
            const { layout, tidySplit, progress } = refmmrPlayground.nodes;
            return [[...layout(nodes, [0, 1])], tidySplit(nodes, [4, 1]),
                tidySplit(nodes, [1, 0, 2]), progress(nodes, [0, 1])];
        }""",
        nodes,
    )
    places = [[0, [1.25, 0]], [1, [0.5, 1]], [2, [2, 1]], [3, [0, 2]], [4, [1, 2]]]
    assert sorted(found[0]) == places
    assert found[1:3] == [[], [0, 1]]
    assert found[3] == {"seen": [0, 1, 2, 3, 4], "open": [4], "examples": [], "proved": False}


@pytest.mark.parametrize("view", ["light", "dark", "phone"])
def test_the_tree_fits_and_is_accessible(reader_in, tree_page, view):
    reader = reader_in(view)
    page = reader.open(tree_page)
    press(page, "0.55")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert reader.errors == []
    if AXE:
        page.evaluate(Path(AXE).read_text(encoding="utf-8"))
        found = page.evaluate("axe.run(document).then(({ violations }) => violations)")
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []
