"""The playground: its mathematics against the reference, and a reader's hands on it."""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import random_biases

import refmmr as rm

DOCS = Path(__file__).parents[2] / "docs"
AXE = os.environ.get("REFMMR_AXE")
SCRIPT_LIMIT = 300_000
"""Bytes of script and data that a page of the playground may load."""
NORMS = [1, 2, np.inf]
BOXES = """
<main><h1>Playground</h1>
<div class="pg" id="play-training" data-panes="plain mmr" data-show="epochs hinge hyperplanes"
     data-x="0.2572,0.7964"></div>
<div class="pg" id="play-lines" data-panes="lines"></div>
<div class="pg" id="play-step" data-panes="plain" data-show="hinge step"></div></main>
"""


@pytest.fixture(scope="session")
def page_file(site, bare_page, tmp_path_factory):
    """A page of three components, with script, style and networks of the built site."""
    folder = tmp_path_factory.mktemp("playground")
    for name in ("playground.js", "playground-data.js", "playground.css"):
        shutil.copy(site / "_static" / name, folder)
    (folder / "index.html").write_text(bare_page.format(BOXES))
    return folder / "index.html"


@pytest.fixture(scope="session")
def core(chromium, directive):
    """A function that evaluates an expression in the modules `core`, `state` and `lines`."""
    page = chromium.new_page()
    page.add_script_tag(content=directive.bundle())

    def run(expression, **values):
        names = ", ".join(["core", "state", "lines"])
        text = f"({{{', '.join(values)}}}) => {{ const {{ {names} }} = window.refmmrPlayground; "
        text += f"const plain = (v) => ArrayBuffer.isView(v) ? [...v] : v; return {expression}; }}"
        return page.evaluate(text, values)

    yield run
    page.close()


def network(sizes):
    net = random_biases(*sizes)
    layers = [{"rows": W.tolist(), "b": b.tolist()} for W, b in net.parameters]
    return net, layers


NET = "({ layers: layers.map(({ rows, b }) => core.layer(rows, b)) })"


def norm_of(p):
    return "inf" if p == np.inf else p


P = "(p === 'inf' ? Infinity : p)"


@pytest.mark.parametrize("p", NORMS)
@pytest.mark.parametrize("sizes", [[2, 7, 2], [2, 6, 5, 3]])
def test_distances_mmr_and_gradient_are_the_reference(core, p, sizes):
    net, layers = network(sizes)
    X = np.random.default_rng(5).normal(size=(20, 2))
    y = net.predict(X)
    found = core(
        f"""X.map((x, i) => {{
            const net = {NET}, around = core.hyperplanes(net, x, y[i], {P});
            const big = (d) => d.map(({{ distance }}) => Number.isFinite(distance)
                ? distance : distance > 0 ? 1e300 : -1e300);
            const value = core.mmr(around, 0.4, 0.7, 4);
            const proved = core.certify(net, x, around, {P}, y[i]);
            return {{ boundary: big(around.boundary), decision: big(around.decision),
                value: value.value, term: value.boundary.value, predicted: core.predict(net, x),
                gradient: core.mmrGradient(net, x, y[i], {P}, 0.4, 0.7, 4)
                    .map(({{ dW, db }}) => [plain(dW), plain(db)]),
                lower: proved.lower, exact: proved.exact, adversarial: proved.adversarial,
                f: around.region.f.map(plain), V: around.region.maps.map(({{ V }}) => plain(V)),
                a: around.region.maps.map(({{ a }}) => plain(a)) }};
        }})""",
        layers=layers, X=X.tolist(), y=y.tolist(), p=norm_of(p),
    )  # fmt: skip
    close = {"rtol": 1e-9, "atol": 1e-9}
    d = rm.distances(net, X, y, p=p)
    assert [at["predicted"] for at in found] == y.tolist()
    np.testing.assert_allclose([at["boundary"] for at in found], d.boundary, **close)
    decision = np.where(np.isinf(d.decision), 1e300, d.decision)
    np.testing.assert_allclose([at["decision"] for at in found], decision, **close)
    options = {"p": p, "gamma_b": 0.4, "gamma_d": 0.7, "k_b": 4, "k_d": sizes[-1]}
    value = rm.mmr(net, X, y, **options)
    np.testing.assert_allclose([at["value"] for at in found], value.value, **close)
    np.testing.assert_allclose([at["term"] for at in found], value.boundary_term, **close)
    assert (value.value > 0).any()
    proved = rm.certify(net, X, y, p=p, box=None, progress=False)
    np.testing.assert_allclose([at["lower"] for at in found], proved.lower, **close)
    assert [at["exact"] for at in found] == proved.exact.tolist()
    for i, at in enumerate(found):
        _, gradients = rm.mmr_gradient(net, X[i : i + 1], y[i : i + 1], **options)
        for (dW, db), (dW_js, db_js) in zip(gradients, at["gradient"], strict=True):
            np.testing.assert_allclose(dW_js, dW.ravel(), **close)
            np.testing.assert_allclose(db_js, db, **close)
        region = rm.linear_region(net, X[i])
        for k, (V, a) in enumerate(zip(region.V, region.a, strict=True)):
            np.testing.assert_allclose(at["V"][k], V.ravel(), **close)
            np.testing.assert_allclose(at["a"][k], a, **close)
        if at["exact"]:
            logits = np.sort(net(np.array([at["adversarial"]]))[0])
            assert logits[-1] - logits[-2] < 1e-9
            gap = np.abs(np.array(at["adversarial"]) - X[i])
            assert np.isclose(np.linalg.norm(gap, p), at["lower"])


@pytest.mark.parametrize("sizes", [[2, 9, 3], [2, 8, 8, 2]])
def test_regions_are_those_of_the_enumeration(core, sizes):
    net, layers = network(sizes)
    found = core(
        f"""(() => {{
            const net = {NET}, regions = core.enumerate(net, [-1, -1, 2, 1.5]);
            return regions.map((region) => [region.pattern.join(""), core.area(region.polygon),
                core.classPieces(region).map((piece) => [piece.class, core.area(piece.polygon)]),
                core.area(core.regionPolygon(core.linearRegion(net, middle(region)),
                    [-1, -1, 2, 1.5]))]);
            function middle({{ polygon: {{ points }} }}) {{
                return [0, 1].map((j) =>
                    points.reduce((sum, z) => sum + z[j], 0) / points.length);
            }}
        }})()""",
        layers=layers,
    )
    cx = rm.enumerate_regions(net, rm.Box([-1, -1], [2, 1.5]), progress=False)
    names = ["".join(map(str, pattern.astype(int))) for pattern in cx.patterns]
    areas = {name: area for name, area, _, _ in found}
    # Slivers may be counted on one side alone.
    thick = {name: area for name, area in zip(names, cx.areas, strict=True) if area > 1e-12}
    assert set(thick) <= set(areas)
    assert len(found) <= len(cx) + 2
    for name, area in thick.items():
        assert abs(areas[name] - area) < 1e-9
    assert abs(sum(areas.values()) - 7.5) < 1e-9
    shares = np.zeros(sizes[-1])
    for _, area, pieces, own in found:
        assert abs(sum(part for _, part in pieces) - area) < 1e-9
        assert abs(own - area) < 1e-9 or area < 1e-9
        for label, part in pieces:
            shares[label] += part
    wanted = np.zeros(sizes[-1])
    for label, polygon in cx.class_polygons():
        x, y = np.asarray(polygon).T
        wanted[label] += abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2
    np.testing.assert_allclose(shares, wanted, atol=1e-8)


def test_weights_arrive_bit_for_bit(core, directive):
    net = rm.Network.mlp([2, 4, 3, 2], rng=2).astype("float32")
    text = directive.module("networks").encode(net)
    found = core(
        "core.decode(text, [2, 4, 3, 2]).layers.map(({ W, b }) => [plain(W), plain(b)])", text=text
    )
    for (W, b), (W_js, b_js) in zip(net.parameters, found, strict=True):
        assert W.ravel().tolist() == W_js
        assert b.tolist() == b_js


def test_lines_are_the_units_of_a_network(core):
    x, y, t, s, v = unit = [0.3, 0.6, 0.7, 2.5, -1.5]
    f = core("core.forward(lines.network([unit], 0.5), [0.9, 0.8]).map(plain)", unit=unit)
    hidden = s * (np.cos(t) * (0.9 - x) + np.sin(t) * (0.8 - y))
    assert hidden > 0
    np.testing.assert_allclose(f[0], [hidden])
    np.testing.assert_allclose(f[1][1] - f[1][0], v * hidden + 0.5)


def test_a_link_keeps_the_state_and_survives_nonsense(core):
    given = {
        "p": 1, "x": [0.25, 0.5], "gamma": 0.2, "lam": 1, "kB": 3, "epoch": 4,
        "steps": [[0.1, 0.2]], "units": [[0, 0, 1, 2, 3]], "selected": 0, "c": 0.5,
    }  # fmt: skip
    text = core("state.write('play-a', given)", given=given)
    empty = {**given, "p": 2, "x": [0, 0], "gamma": 0.1, "epoch": 0, "steps": [], "kB": 1}
    assert core("state.read('play-a', '#' + text, empty)", text=text, empty=empty) == given
    assert core("state.read('play-b', '#' + text, empty)", text=text, empty=empty) is None
    for hash_ in ("#play-a?p=3&x=a,b&g=&e=NaN&w=1,2", "#play-a?", "#play-a?x=1,2,3;4&&=&s=;"):
        assert core("state.read('play-a', hash, empty)", hash=hash_, empty=empty) == empty
    assert core("state.read('play-a', '#section', empty)", empty=empty) is None


# In the browser.


def number(page, row, column=0, box="play-training"):
    """A number of the table."""
    cells = page.locator(f"#{box} .pg-table tr", has_text=row).first.locator("td")
    return float(re.search(r"[\d.]+", cells.nth(column).inner_text())[0])


def frame(page):
    page.evaluate("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")


def state(page, index=0):
    text = f"refmmrPlayground.components[{index}].state"
    return page.evaluate(f"({{ ...{text}, p: String({text}.p) }})")


@pytest.fixture
def hands(reader, page_file):
    page = reader.open(page_file)
    yield page
    assert reader.errors == []
    assert reader.elsewhere() == []


def test_drag_the_point(hands):
    stage = hands.locator("#play-training .pg-stage").first
    box = stage.bounding_box()
    handle = hands.locator("#play-training .pg-point").first.bounding_box()
    before = number(hands, "proved")
    hands.mouse.move(handle["x"] + 22, handle["y"] + 22)
    hands.mouse.down()
    hands.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.75 * box["height"], steps=6)
    frame(hands)
    assert state(hands)["x"] == pytest.approx([0.5, 0.2], abs=0.01)
    hands.mouse.move(box["x"] - 400, box["y"] + 0.75 * box["height"])
    hands.mouse.up()
    frame(hands)
    # Outside the picture it stays at the edge, and after the release nothing moves it.
    assert state(hands)["x"] == pytest.approx([-0.1, 0.2], abs=0.01)
    hands.mouse.move(box["x"] + 10, box["y"] + 10)
    frame(hands)
    assert state(hands)["x"][0] == pytest.approx(-0.1)
    assert number(hands, "proved") != before
    # Both pictures show one point.
    places = hands.locator("#play-training .pg-point").evaluate_all(
        "(all) => all.map((h) => h.style.left)"
    )
    assert places[0] == places[1]


def test_the_table_has_the_numbers_of_the_library(hands):
    """After the last epoch, at the first point."""
    x = np.array([[0.2572, 0.7964]])
    net = trained(hands, "mmr")
    proved = rm.certify(net, x, net.predict(x), p=2, box=None, progress=False)
    assert number(hands, "proved", 1) == pytest.approx(proved.lower[0], abs=6e-4)
    cx = rm.enumerate_regions(net, rm.Box([-0.1, -0.1], [1.1, 1.1]), progress=False)
    assert number(hands, "regions in", 1) == pytest.approx(len(cx), abs=2)


def trained(page, name):
    layers = page.evaluate(
        f"refmmrPlayground.components[0]._net('{name}').layers"
        ".map(({ n, m, W, b }) => [n, m, [...W], [...b]])"
    )
    return rm.Network([rm.Linear(np.reshape(W, (n, m)), b) for n, m, W, b in layers], 2)


def test_slide_through_the_epochs(hands):
    slider = hands.get_by_label("Epoch")
    last = number(hands, "regions in")
    slider.focus()
    hands.keyboard.press("Home")
    frame(hands)
    assert state(hands)["epoch"] == 0
    assert number(hands, "regions in") != last
    # Both trainings start from the same weights.
    assert number(hands, "regions in", 0) == number(hands, "regions in", 1)
    assert hands.locator("#play-training .pg-title").first.inner_text().endswith("epoch 0")
    hands.get_by_role("button", name="Play").click()
    hands.wait_for_function("refmmrPlayground.components[0].state.epoch >= 2")
    hands.get_by_role("button", name="Stop").click()


def test_gamma_lambda_and_the_norm(hands):
    box = hands.locator("#play-training")
    before = number(hands, "MMR here")
    box.get_by_label("γ").fill("0.3")
    frame(hands)
    assert number(hands, "MMR here") > before
    box.get_by_label("λ").fill("0")
    frame(hands)
    assert number(hands, "λ MMR") == 0
    radius = number(hands, "proved", 1)
    box.get_by_role("radio", name="l∞").check()
    frame(hands)
    assert number(hands, "proved", 1) < radius
    assert state(hands)["p"] == "Infinity"


def test_the_keyboard_moves_everything(hands):
    hands.locator("#play-training .pg-point").first.focus()
    x = state(hands)["x"]
    hands.keyboard.press("ArrowRight")
    hands.keyboard.press("Shift+ArrowUp")
    frame(hands)
    assert state(hands)["x"] == pytest.approx([x[0] + 0.006, x[1] + 0.06], abs=2e-4)
    hands.wait_for_function("document.querySelector('.pg-spoken').textContent.includes('radius')")
    hands.get_by_label("Turn the line").focus()
    before = state(hands, 1)["units"][0]
    hands.keyboard.press("ArrowLeft")
    hands.get_by_label("Move the line").focus()
    hands.keyboard.press("ArrowDown")
    frame(hands)
    after = state(hands, 1)["units"][0]
    assert after[2] != before[2]
    assert after[1] == pytest.approx(before[1] - 0.006, abs=2e-4)


def test_lines_are_added_dragged_and_removed(hands):
    box = hands.locator("#play-lines")
    before = number(hands, "regions in", box="play-lines")
    box.get_by_role("button", name="Add a line").click()
    frame(hands)
    assert len(state(hands, 1)["units"]) == 7
    assert number(hands, "regions in", box="play-lines") > before
    mover = box.get_by_label("Move the line")
    mover.scroll_into_view_if_needed()
    at = mover.bounding_box()
    hands.mouse.move(at["x"] + 22, at["y"] + 22)
    hands.mouse.down()
    hands.mouse.move(at["x"] + 102, at["y"] + 22, steps=4)
    hands.mouse.up()
    frame(hands)
    assert state(hands, 1)["units"][6][0] > 0.6
    for _ in range(7):
        box.get_by_role("button", name="Remove it").click(force=True)
    frame(hands)
    assert len(state(hands, 1)["units"]) == 1
    box.get_by_role("button", name="Start again").click()
    frame(hands)
    assert number(hands, "regions in", box="play-lines") == before


def test_a_step_of_descent_lowers_the_regularizer(hands):
    box = hands.locator("#play-step")
    before = number(hands, "MMR here", box="play-step")
    for _ in range(3):
        box.get_by_role("button", name="One step").click()
    frame(hands)
    assert number(hands, "MMR here", box="play-step") < before
    for _ in range(3):
        box.get_by_role("button", name="Undo").click()
    frame(hands)
    assert number(hands, "MMR here", box="play-step") == before


def test_the_address_keeps_the_state(reader, page_file):
    page = reader.open(page_file)
    page.locator("#play-training .pg-point").first.focus()
    page.keyboard.press("Shift+ArrowLeft")
    page.locator("#play-training").get_by_role("radio", name="l₁").check()
    page.wait_for_function("location.hash.includes('p=1')")
    link, there = page.url, state(page)
    assert (
        page.locator("#play-training .pg-foot a").get_attribute("href") == link[link.index("#") :]
    )
    reader.open(page_file)
    page.goto("about:blank")
    page.goto(link)
    assert state(page) == there
    page.evaluate("location.hash = 'play-training?x=0.5,0.25&p=inf'")
    page.wait_for_function("refmmrPlayground.components[0].state.x[1] === 0.25")
    assert reader.errors == []


def test_a_finger_moves_the_point_and_scrolls_the_page(reader_in, page_file):
    reader = reader_in("phone")
    page = reader.open(page_file)
    stage = page.locator("#play-training .pg-stage").first
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    frame(page)
    assert state(page)["x"] == pytest.approx([0.2, 0.5], abs=0.01)
    touch = page.context.new_cdp_session(page)

    def drag(start, end):
        for kind, (x, y) in (("Start", start), *(("Move", at(start, end, s)) for s in range(1, 9))):
            points = [{"x": x, "y": y}]
            touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        frame(page)

    def at(start, end, s):
        return [a + (b - a) * s / 8 for a, b in zip(start, end, strict=True)]

    center = (box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    top = page.evaluate("scrollY")
    drag(center, (center[0] + 0.5 * box["width"], center[1] - 60))
    assert page.evaluate("scrollY") == top
    assert state(page)["x"][0] == pytest.approx(0.8, abs=0.02)
    x = state(page)["x"]
    drag(center, (center[0], center[1] - 120))
    page.wait_for_function(f"scrollY > {top} + 40")
    assert state(page)["x"] == x
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert reader.errors == []


@pytest.mark.parametrize("view", ["light", "dark", "phone"])
@pytest.mark.skipif(not AXE, reason="REFMMR_AXE does not name axe.min.js")
def test_playground_is_accessible(reader_in, page_file, view):
    page = reader_in(view).open(page_file)
    page.evaluate(Path(AXE).read_text(encoding="utf-8"))
    found = page.evaluate("axe.run(document).then(({ violations }) => violations)")
    assert [(one["id"], one["nodes"][0]["html"][:200]) for one in found] == []


def test_a_drag_keeps_sixty_frames_a_second(hands):
    """The work of a frame over more than 500 regions a picture, the median of 120 frames."""
    hands.get_by_label("Epoch").fill("1")
    frame(hands)
    assert number(hands, "regions in") > 500
    times = hands.evaluate(
        """() => {
            const one = refmmrPlayground.components[0];
            return Array.from({ length: 120 }, (_, i) => {
                one.state = { ...one.state, x: [0.5 + 0.4 * Math.cos(i), 0.5 + 0.4 * Math.sin(i)] };
                const start = performance.now();
                one.draw();
                document.body.offsetHeight;
                return performance.now() - start;
            });
        }"""
    )
    assert np.median(times) < 1000 / 60


def test_script_and_data_are_small(page_file):
    size = sum(
        (page_file.parent / name).stat().st_size for name in ("playground.js", "playground-data.js")
    )
    assert size < SCRIPT_LIMIT


def test_all_questions_have_their_page():
    """Each mark of a notebook names a question, and each question has a figure."""
    text = "".join(path.read_text() for path in (DOCS.parent / "notebooks").glob("*.md"))
    marks = re.findall(r"^<!-- playground: (\w+) -->$", text, flags=re.MULTILINE)
    questions = {path.stem: path.read_text() for path in DOCS.glob("playground/questions/*.md")}
    assert sorted(marks) == sorted(questions)
    assert all("```{playground} " in question for question in questions.values())
