"""The interactive page in a real browser: pointer, keys, colours; no error and no request."""

import base64
import io
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import random_biases
from matplotlib import image

import refmmr as rm
from refmmr.regions import explore as explorer
from refmmr.regions.explore import explore, payload

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium or Chrome")

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip
# Chromium listens at file descriptor 3 and answers at 4.
LAUNCH = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(pipe), fcntl.F_DUPFD, 10) for pipe in sys.argv[1:3]]
for pipe, place in zip(pipes, (3, 4)):
    os.dup2(pipe, place)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """Chromium and one page of it, over the DevTools protocol: JSON messages that end in a NUL."""

    def __init__(self, profile):
        listens, self.to = os.pipe()
        self.back, answers = os.pipe()
        chromium = [CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", LAUNCH, str(listens), str(answers), *chromium],
            pass_fds=(listens, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(listens)
        os.close(answers)
        self.numbers, self.rest, self.events = itertools.count(1), b"", []
        self.session = None
        self.session = self.attach("page")

    def attach(self, kind):
        """Listen to the first target of a kind; its session."""
        targets = self.ask("Target.getTargets")["targetInfos"]
        found = next(target["targetId"] for target in targets if target["type"] == kind)
        attached = self.ask("Target.attachToTarget", targetId=found, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable", attached)
        return attached

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.back)

    def ask(self, method, session=None, **parameters):
        """Send a command and wait for its answer; what else arrives are events."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if session or self.session:
            message["sessionId"] = session or self.session
        content = json.dumps(message).encode() + b"\0"
        while content:
            content = content[os.write(self.to, content) :]
        for answer in self.messages():
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def messages(self, seconds=60):
        until = time.monotonic() + seconds
        while True:
            while b"\0" not in self.rest:
                ready, _, _ = select.select([self.back], [], [], until - time.monotonic())
                assert ready, "the browser does not answer"
                self.rest += os.read(self.back, 2**20) or pytest.fail("the browser has ended")
            message, self.rest = self.rest.split(b"\0", 1)
            yield json.loads(message)

    def run(self, script, session=None):
        """The value of an expression, once what it promises is there."""
        answer = self.ask(
            "Runtime.evaluate",
            session,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def frame(self):
        """Wait until what was asked for is drawn, and the canvases keep their places.

        What a drawing says below the map can make the map smaller, and then it is drawn again:
        of three frames, one is for the drawing, one to see its new size, one to draw it in that.
        """
        self.run(
            """new Promise((go) => {
              const places = () => JSON.stringify([...document.querySelectorAll("canvas")].map(
                (canvas) => [canvas.width, canvas.height, canvas.getBoundingClientRect()]));
              const after = (frames, task) =>
                requestAnimationFrame(() => frames > 1 ? after(frames - 1, task) : task());
              const look = (before) => after(3, () => places() === before ? go() : look(places()));
              look(places());
            })"""
        )

    def open(self, url, width=1200, height=800, scheme="light", phone=False):
        self.events.clear()
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.ask("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.scheme(scheme)
        self.ask("Page.navigate", url=url)
        self.run(
            "new Promise((go) => document.readyState === 'complete' ? go() : "
            "addEventListener('load', () => go()))"
        )
        self.frame()

    def scheme(self, name):
        feature = {"name": "prefers-color-scheme", "value": name}
        self.ask("Emulation.setEmulatedMedia", features=[feature])

    def picture(self):
        """What the window shows: (height, width, 3) uint8."""
        png = base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])
        return np.rint(255 * image.imread(io.BytesIO(png))[:, :, :3]).astype(np.uint8)

    def mouse(self, kind, at, **more):
        self.ask("Input.dispatchMouseEvent", type=kind, x=at[0], y=at[1], **more)

    def click(self, at):
        self.mouse("mouseMoved", at)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, at, button="left", clickCount=1)
        self.frame()

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key)
        self.frame()

    def text(self, name):
        return self.run(f"document.getElementById({json.dumps(name)}).innerText")

    def heard(self, *methods):
        return [event for event in self.events if event.get("method") in methods]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def cx():
    return rm.enumerate_regions(random_biases(2, 7, 6, 3), rm.Box([-2, -2], [2, 2]), progress=False)


@pytest.fixture(scope="module")
def url(cx, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "regions.html"
    explore(cx, path)
    return path.as_uri()


@pytest.fixture
def page(browser, url):
    """The page, just opened; afterwards it must have been silent."""
    browser.open(url)
    yield browser
    assert_silent(browser, url)


def assert_silent(browser, url):
    methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
    assert browser.heard(*methods) == []
    requests = browser.heard("Network.requestWillBeSent", "Network.webSocketCreated")
    asked = [event["params"].get("request", event["params"])["url"] for event in requests]
    assert [address for address in asked if not address.startswith("data:")] == [url]


def pixel(browser, z):
    """Where a point of the plane is in the window."""
    return browser.run(
        f"(() => {{ const [x, y] = toScreen({list(map(float, z))}); "
        "const stage = $('overlay').getBoundingClientRect(); "
        "return [stage.left + x, stage.top + y]; })()"
    )


def point(browser, place):
    """The point of the plane at a place in the window."""
    x, y = place
    return np.array(
        browser.run(
            "(() => { const stage = $('overlay').getBoundingClientRect(); "
            f"return toPlane([{x} - stage.left, {y} - stage.top]); }})()"
        )
    )


def centre(cx, i):
    return cx.vertices[i].mean(axis=0)


def at(browser, z):
    """Where a point of the plane is in a picture: row and column."""
    x, y = pixel(browser, z)
    return int(y), int(x)


def hover(browser, place):
    browser.mouse("mouseMoved", place)
    browser.frame()


def seen(browser, name):
    return browser.run(f"$({json.dumps(name)}).checkVisibility()")


def large(cx):
    """Regions from the largest on."""
    return np.argsort(-cx.areas).tolist()


# ---- What is under the pointer.


def test_hover_tells_about_the_region(page, cx):
    assert not seen(page, "region")
    for i in large(cx)[:8]:
        hover(page, pixel(page, centre(cx, i)))
        assert page.text("name") == f"Region {i}"
        assert page.text("class") == f"{cx.classes[i]} (at its centre)"
        assert page.text("vertices") == str(len(cx.vertices[i]))
        assert float(page.text("area").split()[0]) == pytest.approx(cx.areas[i], rel=1e-3)
        first, second = cx.patterns[i][:7].sum(), cx.patterns[i][7:].sum()
        assert page.text("pattern").split("\n") == [
            f"layer 1: {first} of 7 active",
            f"layer 2: {second} of 6 active",
        ]


def test_squares_are_the_pattern(page, cx):
    i = large(cx)[0]
    hover(page, pixel(page, centre(cx, i)))
    places = page.run(
        "[...document.querySelectorAll('#pattern canvas')].flatMap((canvas, k) => {"
        "const { left, top } = canvas.getBoundingClientRect(); "
        "return Array.from({ length: LAYERS[k] }, (_, i) => [left + 11 * i + 5, top + 5]); })"
    )
    picture = page.picture()
    colours = np.array([picture[int(y), int(x)] for x, y in places])
    on = colours[cx.patterns[i].argmax()]
    assert len(np.unique(colours, axis=0)) == 2
    assert ((colours == on).all(axis=1) == cx.patterns[i]).all()


def test_hover_tells_the_affine_map(page, cx):
    i = large(cx)[0]
    hover(page, pixel(page, centre(cx, i)))
    rows = page.text("affine").replace("\u2212", "-").split("\n")
    found = np.array([row.split() for row in rows], dtype=float)
    V, a = cx.affine_maps.V[i], cx.affine_maps.a[i]
    assert found[:, 0].tolist() == [0, 1, 2]
    np.testing.assert_allclose(found[:, 1:4], np.c_[V, a], rtol=1e-3)
    z = [float(x) for x in page.text("where").replace("\u2212", "-")[8:-1].split(", ")]
    np.testing.assert_allclose(found[:, 4], V @ z + a, atol=2e-3)
    np.testing.assert_allclose(found[:, 4], cx.net(np.array([z]))[0], atol=2e-3)


def test_neighbours_and_what_switches(page, cx):
    i = large(cx)[0]
    page.click(pixel(page, centre(cx, i)))
    beside = sorted(cx.neighbours[(cx.neighbours == i).any(axis=1)].sum(axis=1) - i)
    named = page.run("[...$('neighbours').querySelectorAll('button')].map((b) => +b.textContent)")
    assert named == beside
    j = beside[0]
    (unit,) = np.flatnonzero(cx.patterns[i] != cx.patterns[j])
    turns = "on" if cx.patterns[j][unit] else "off"
    layer, number = (1, unit) if unit < 7 else (2, unit - 7)
    said = f"layer {layer}, unit {number} turns {turns}"
    assert said in page.run("$('neighbours').firstChild.textContent")
    page.run("$('neighbours').querySelector('button').click()")
    assert page.text("name") == f"Region {j}, pinned"


def test_every_region_is_found_at_its_centre(page, cx):
    centres = [centre(cx, i).tolist() for i in range(len(cx))]
    assert page.run(f"{json.dumps(centres)}.map(regionAt)") == list(range(len(cx)))
    assert page.run("[[-2.01, 0], [0, 9], [NaN, 0]].map(regionAt)") == [-1, -1, -1]


def test_random_points_are_in_the_right_region(page, cx):
    Z = np.random.default_rng(0).uniform(-2, 2, (500, 2))
    assert page.run(f"{json.dumps(Z.tolist())}.map(regionAt)") == cx.region_of(Z).tolist()


# ---- The ball around the pointer.


@pytest.mark.parametrize("p", [1, 2, np.inf])
def test_distances_are_those_of_the_network(page, cx, p):
    norm = "Infinity" if p == np.inf else p
    for i in large(cx)[:6]:
        z = centre(cx, i)
        c = int(cx.net.predict(z[None])[0])
        script = f"Object.values(distancesAt({i}, {z.tolist()}, {norm})).slice(0, 3)"
        boundary, decision, radius = (np.inf if v is None else v for v in page.run(script))
        d = rm.distances(cx.net, z[None], [c], p=p)
        # Hyperplanes beyond the rectangle bound no region of it.
        assert boundary >= d.boundary.min() * (1 - 1e-9)
        if boundary < np.min(2 - np.abs(z)):
            assert boundary == pytest.approx(d.boundary.min(), rel=1e-9)
        assert decision == pytest.approx(d.decision.min(), rel=1e-9)
        assert radius == min(boundary, decision)


def test_no_point_of_the_ball_has_another_class(page, cx):
    rng = np.random.default_rng(1)
    for z in rng.uniform(-2, 2, (20, 2)):
        radius = page.run(f"distancesAt(regionAt({z.tolist()}), {z.tolist()}, 2).radius")
        steps = rng.normal(size=(500, 2))
        steps *= radius * np.sqrt(rng.random((500, 1))) / np.linalg.norm(steps, axis=1)[:, None]
        around = np.clip(z + steps, -2, 2)
        assert (cx.net.predict(around) == cx.net.predict(z[None])).all()


def test_the_ball_is_drawn_and_told(page, cx):
    place = pixel(page, centre(cx, large(cx)[0]))
    hover(page, place)
    with_ball = page.picture()
    assert float(page.text("radius").split(",")[0]) > 0
    page.run("document.querySelector('[name=ball][value=\"0\"]').click()")
    page.frame()
    assert not seen(page, "ball")
    assert (page.picture() != with_ball).any()


def test_data_points_are_drawn(browser, cx, tmp_path):
    Z = np.array([[0.5, 0.5], [-1.0, 0.3]])
    right = cx.net.predict(Z)
    for name, labels in (("none", None), ("right", right), ("wrong", (right + 1) % 3)):
        explore(cx, tmp_path / f"{name}.html", points=Z, labels=labels)
    pictures = []
    for name in ("none", "right", "wrong"):
        browser.open((tmp_path / f"{name}.html").as_uri())
        assert seen(browser, "data-key")
        pictures.append(browser.run("$('map').toDataURL()"))
        assert browser.run("[0, 1].map(isWrong)") == 2 * [name == "wrong"] or name == "none"
    assert len(set(pictures)) == 3


# ---- Pinning.


def test_click_pins_and_again_lets_go(page, cx):
    i, j = large(cx)[:2]
    page.click(pixel(page, centre(cx, i)))
    hover(page, pixel(page, centre(cx, j)))
    assert page.text("name") == f"Region {i}, pinned"
    assert page.run("$('pin').getAttribute('aria-pressed')") == "true"
    assert f"Region {i}, class {cx.classes[i]}" in page.run("$('spoken').textContent")
    page.click(pixel(page, centre(cx, i)))
    assert page.text("name") == f"Region {i}"
    hover(page, pixel(page, centre(cx, j)))
    assert page.text("name") == f"Region {j}"


def test_the_region_is_outlined(page, cx):
    i = large(cx)[0]
    before = page.picture()
    hover(page, pixel(page, centre(cx, i)))
    changed = (page.picture() != before).any(axis=2)
    inside = [0.9 * vertex + 0.1 * centre(cx, i) for vertex in cx.vertices[i]]
    beyond = [2 * vertex - z for vertex, z in zip(cx.vertices[i], inside, strict=True)]
    assert all(changed[at(page, z)] for z in inside)
    lo, hi = cx.domain.rectangle
    within = [z for z in beyond if ((lo < z) & (z < hi)).all()]
    assert within
    assert not any(changed[at(page, z)] for z in within)


def test_regions_are_found_by_number(page, cx):
    page.run("$('number').value = '3'; $('controls').requestSubmit()")
    assert page.text("name") == "Region 3, pinned"
    page.run("$('number').value = '99999'; $('controls').requestSubmit()")
    assert page.text("name") == "Region 3, pinned"


# ---- Moving.


def test_ctrl_and_the_wheel_zoom_where_the_pointer_is(page):
    # Wheels come at whole pixels.
    place = np.rint(pixel(page, [0.7, -0.4])).tolist()
    z, scale = point(page, place), page.run("view.scale")
    page.mouse("mouseWheel", place, deltaX=0, deltaY=-240)
    page.frame()
    assert page.run("view.scale") == scale
    assert seen(page, "wheel-hint")
    page.mouse("mouseWheel", place, deltaX=0, deltaY=-240, modifiers=2)
    page.frame()
    assert page.run("view.scale") > 1.3 * scale
    np.testing.assert_allclose(point(page, place), z, atol=1e-9)


def test_dragging_moves_and_does_not_pin(page):
    x, y = pixel(page, [0.1, 0.1])
    page.mouse("mousePressed", (x, y), button="left", clickCount=1)
    for step in (10, 50, 80):
        page.mouse("mouseMoved", (x + step, y - step), button="left", buttons=1)
    page.mouse("mouseReleased", (x + 80, y - 80), button="left", clickCount=1)
    np.testing.assert_allclose(point(page, (x + 80, y - 80)), [0.1, 0.1], atol=1e-9)
    assert not page.run("chosen.pinned")


def test_keys_move_zoom_and_pin(page, cx):
    page.run("$('overlay').focus()")
    page.press("ArrowRight")
    page.press("+")
    here = page.run("[view.x, view.y]")
    assert here[0] > 0 == here[1]
    (i,) = cx.region_of([here])
    assert page.text("name") == f"Region {i}"
    page.press("Enter")
    assert page.text("name") == f"Region {i}, pinned"
    page.press("Escape")
    assert page.text("name") == f"Region {i}"
    page.press("0")
    assert page.run("view.fitted")


def test_the_axes_have_numbers(page):
    assert page.run("[[1.5, 0.5], [-0.25, 0.05], [0, 1]].map(([v, s]) => tickText(v, s))") == [
        "1.5", "\u22120.25", "0",
    ]  # fmt: skip


def test_every_control_can_be_reached_by_tab(page):
    names = set()
    for _ in range(30):
        page.ask("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9)
        names.add(page.run("document.activeElement.id || document.activeElement.name"))
    assert names >= {"overlay", "zoom-in", "zoom-out", "fit", "colour", "layer", "show-boundary"}
    unnamed = page.run(
        "[...document.querySelectorAll('button, input, canvas:not([aria-hidden])')].filter((e) => "
        "e.checkVisibility() && !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).length"
    )
    assert unnamed == 0


def test_fingers_tap_and_pinch(browser, url, cx):
    browser.open(url, 390, 844, phone=True)
    i = large(cx)[0]
    x, y = pixel(browser, centre(cx, i))
    browser.ask("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
    browser.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.frame()
    assert browser.text("name") == f"Region {i}, pinned"
    x, y = pixel(browser, [0, 0])
    scale = browser.run("view.scale")
    for kind, apart in (("touchStart", 20), ("touchMove", 30), ("touchMove", 60)):
        two = [{"x": x - apart, "y": y, "id": 0}, {"x": x + apart, "y": y, "id": 1}]
        browser.ask("Input.dispatchTouchEvent", type=kind, touchPoints=two)
    browser.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    browser.frame()
    assert browser.run("view.scale") == pytest.approx(3 * scale, rel=0.05)
    np.testing.assert_allclose(point(browser, (x, y)), [0, 0], atol=0.05)
    assert_silent(browser, url)


# ---- What is drawn.


def test_colours_of_classes_are_the_predictions(page, cx):
    page.run("document.querySelector('[value=class]').click()")
    page.run("document.querySelectorAll('[name=layer]:checked').forEach((box) => box.click())")
    page.frame()
    Z = np.random.default_rng(0).uniform(-2, 2, (400, 2))
    colours = page.run("classColours().map((colour) => colour.match(/\\d+/g).map(Number))")
    picture = page.picture()
    drawn = np.array([picture[at(page, z)] for z in Z])
    matches = (drawn[:, None] == np.array(colours)).all(axis=2)
    # Other colours are lines.
    plain = matches.any(axis=1)
    assert plain.mean() > 0.7
    agree = matches.argmax(axis=1) == cx.net.predict(Z)
    # A pixel beside the boundary can have its centre on the other side.
    assert agree[plain].mean() > 0.99
    assert matches.any(axis=0).all()


def test_switches_change_the_map(page):
    chosen = ["[value=class]", "[value=area]", "[value=active]"]
    pictures = {page.run("$('map').toDataURL()")}
    for box in (*chosen, "[name=layer]", "#show-boundary"):
        page.run(f"document.querySelector('{box}').click()")
        page.frame()
        pictures.add(page.run("$('map').toDataURL()"))
    assert len(pictures) == 6
    assert "active units" in page.text("key")
    page.run("document.querySelector('[value=area]').click()")
    assert "log scale" in page.text("key")


def test_thin_regions_are_counted_and_marked(browser, tmp_path):
    # Two lines a millionth apart, and one across: two slivers among six regions.
    lines = rm.Linear([[1, 0], [1, 0], [0, 1]], [0, -1e-6, 0])
    net = rm.Network([lines, rm.Linear([[1, 1, 1], [1, -1, 0]], [0, 0])], 2)
    cx = rm.enumerate_regions(net, rm.Box([-1, -1], [1, 1]), progress=False)
    explore(cx, tmp_path / "thin.html")
    url = (tmp_path / "thin.html").as_uri()
    browser.open(url)
    assert browser.text("thin") == "2 regions thinner than a pixel: zoom in"
    i = int(cx.areas.argmin())
    x, y = pixel(browser, centre(cx, i))
    mark = browser.picture()[int(y), int(x)].tolist()
    assert mark == [int("c2185b"[k : k + 2], 16) for k in (0, 2, 4)]
    # The pointer need not hit it: two pixels beside it are near enough, twenty are not.
    hover(browser, (x + 20, y))
    assert browser.text("name") != f"Region {i}"
    hover(browser, (x + 2, y))
    assert browser.text("name") == f"Region {i}"
    browser.run("$('show').click()")
    browser.run("lookAt(view.x, view.y, 1e8)")
    browser.frame()
    assert not seen(browser, "thin")
    sliver, beside = centre(cx, i), centre(cx, i) + np.array([2e-6, 0])
    picture = browser.picture()
    assert pixel(browser, beside)[0] - pixel(browser, sliver)[0] > 100
    assert (picture[at(browser, sliver)] != picture[at(browser, beside)]).any()
    browser.run("$('show-slivers').click(); fit()")
    browser.frame()
    assert not seen(browser, "thin")
    assert_silent(browser, url)


def shade(browser, region):
    """The colour of a region, as drawn where colours are told by region."""
    colour = browser.run(f"SHADES.light[shades[{region}]]")
    return [int(colour[k : k + 2], 16) for k in (1, 3, 5)]


def test_deep_zoom_shows_regions_where_they_are(page, cx):
    vertices = np.concatenate(cx.vertices)
    inner = vertices[(np.abs(vertices) < 1).all(axis=1)]
    apart = [np.sort(np.hypot(*(vertices - z).T)) for z in inner]
    # The one that is farthest from the other vertices; around it only its own regions.
    best = np.argmax([distances[distances > 1e-9][0] for distances in apart])
    z, room = inner[best], apart[best][apart[best] > 1e-9][0]
    angles = np.arange(24) * np.pi / 12
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    page.run(f"lookAt({z[0]}, {z[1]}, 1e12)")
    page.frame()
    picture = page.picture()
    drawn = np.array([picture[at(page, z + 2e-10 * step)] for step in around])
    regions = cx.region_of(z + room / 10 * around)
    expected = np.array([shade(page, region) for region in regions])
    assert len(set(regions)) >= 3
    # The others are on lines.
    assert (drawn == expected).all(axis=1).mean() > 0.75


def test_a_map_slow_to_draw_is_moved_first(page, cx):
    i = large(cx)[0]
    x, y = centre(cx, i)
    page.frame()  # what was asked for before is drawn
    # Without the timer that draws it anew a moment later.
    page.run(f"drawn.took = 99; lookAt({x}, {y}, 1.5 * view.scale); clearTimeout(drawn.later)")
    page.frame()
    assert "scale(1.5)" in page.run("$('map').style.transform")
    assert page.picture()[at(page, [x, y])].tolist() == shade(page, i)
    page.run("drawView()")
    page.run(
        "new Promise((go) => { const wait = () => $('map').style.transform "
        "? setTimeout(wait, 10) : go(); setTimeout(wait, 10); })"
    )
    page.frame()
    assert page.picture()[at(page, [x, y])].tolist() == shade(page, i)


def test_dark_and_light(page):
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(ground), page.run("$('map').toDataURL()")
    page.scheme("dark")
    page.frame()
    dark = page.run(ground), page.run("$('map').toDataURL()")
    assert light[0] == "rgb(255, 255, 255)" != dark[0]
    assert light[1] != dark[1]


@pytest.mark.parametrize(
    ("width", "height"),
    [(320, 800), (350, 640), (390, 800), (640, 640), (740, 640), (1200, 640), (1200, 800)],
)
def test_fits_the_window(browser, url, width, height):
    browser.open(url, width, height, phone=width < 500)
    browser.run("goTo(0)")
    browser.frame()
    root = "document.documentElement"
    assert browser.run(f"[{root}.scrollWidth, {root}.scrollHeight]") == [width, height]
    assert browser.run("Math.min(view.width, view.height)") > 200
    # The map and what the panel says of the region are seen together.
    assert browser.run("$('class').getBoundingClientRect().bottom") < height
    assert_silent(browser, url)


def test_words_below_and_the_map_do_not_take_turns(page):
    """A line that is there on a high map only, as that of thin regions may be."""
    heights = page.run(
        """(async () => {
            const stage = $("stage"), line = document.createElement("div");
            line.style.cssText = "width: 100%; height: 40px";
            const limit = stage.clientHeight - 20, seen = [];
            $("legend").append(line);
            new ResizeObserver(() => { line.hidden = stage.clientHeight < limit; }).observe(stage);
            for (let i = 0; i < 10; i++) {
                await new Promise(requestAnimationFrame);
                seen.push(stage.clientHeight);
            }
            return seen.slice(4);
        })()"""
    )
    assert len(set(heights)) == 1


def test_complete_is_not_worth_a_word(page, cx):
    assert not seen(page, "incomplete")
    assert page.text("summary") == f"{len(cx)} linear regions"


def test_says_when_regions_are_missing(browser, cx, tmp_path):
    partial = payload(cx) | {"complete": False}
    (tmp_path / "partial.html").write_text(explorer.page(partial), "utf-8")
    browser.open((tmp_path / "partial.html").as_uri())
    assert seen(browser, "incomplete")
    assert "stopped before it had found all regions" in browser.text("incomplete")
    assert browser.text("summary") == f"{len(cx)} linear regions so far"


def test_shows_in_a_notebooks_frame(browser, cx, tmp_path):
    outside = tmp_path / "notebook.html"
    outside.write_text("<!doctype html>" + explore(cx)._repr_html_(), "utf-8")
    browser.open(outside.as_uri())
    frame = browser.attach("iframe")
    for _ in range(100):
        if browser.run("document.readyState === 'complete'", frame):
            break
        time.sleep(0.05)
    assert browser.run("$('summary').innerText", frame) == f"{len(cx)} linear regions"
    assert browser.run("view.width > 200 && view.height > 200", frame)
    assert browser.heard("Runtime.exceptionThrown", "Log.entryAdded") == []
