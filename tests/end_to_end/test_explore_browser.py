"""The interactive page in a real browser: pointer, keys, colours; no error and no request."""

import base64
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

import refmmr as rm

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
        self.numbers, self.rest, self.session = itertools.count(1), b"", None
        self.events = []
        pages = [target for target in self.targets() if target["type"] == "page"]
        attached = self.ask("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.ask(f"{domain}.enable")

    def targets(self):
        return self.ask("Target.getTargets")["targetInfos"]

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        os.close(self.to)
        os.close(self.back)

    def ask(self, method, **parameters):
        """Send a command and wait for its answer; what else arrives are events."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
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

    def run(self, script):
        """The value of an expression, once what it promises is there."""
        answer = self.ask(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def frame(self):
        """Wait until what was asked for is drawn."""
        self.run("new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)))")

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

    def screenshot(self):
        return base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"])

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


def network(sizes, seed=0):
    rng = np.random.default_rng(seed)
    start = rm.Network.mlp(sizes, rng=seed)
    return start.with_parameters([(W, 0.3 * rng.normal(size=len(b))) for W, b in start.parameters])


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    cx = rm.enumerate_regions(network([2, 7, 5, 3]), rm.Box([-1, -1], [1, 1]))
    path = tmp_path_factory.mktemp("small") / "regions.html"
    cx.explore(path)
    return cx, path.as_uri()


@pytest.fixture
def page(browser, small):
    browser.open(small[1])
    yield browser
    assert (
        browser.heard("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled") == []
    )
    asked = browser.heard("Network.requestWillBeSent")
    assert {event["params"]["request"]["url"].split(":")[0] for event in asked} <= {"file", "data"}


def pixel(browser, z):
    """Where a point of the plane is in the window."""
    return browser.run(
        f"(([x, y], box) => [x + box.left, y + box.top])(toScreen({list(map(float, z))}), "
        "document.getElementById('overlay').getBoundingClientRect())"
    )


def largest(cx, count=5):
    return np.argsort(cx.areas)[::-1][:count].tolist()


def test_hover_tells_about_the_region_under_the_pointer(page, small):
    cx, _ = small
    for i in largest(cx):
        page.mouse("mouseMoved", pixel(page, cx.centers[i]))
        page.frame()
        assert page.text("name") == f"Region {i}"
        assert page.text("class").startswith(f"{cx.classes[i]} ")
        assert float(page.text("area").split(" ")[0]) == pytest.approx(cx.areas[i], rel=1e-3)
        assert page.text("corners") == str(len(cx.vertices[i]))
        active = cx.patterns[i]
        assert f"layer 1: {active[:7].sum()} of 7 active" in page.text("pattern")
        assert f"layer 2: {active[7:].sum()} of 5 active" in page.text("pattern")
        assert (
            page.text("neighbours-title") == f"Neighbours: {(cx.neighbours == i).any(axis=1).sum()}"
        )
        first = page.text("affine").split("\n")[0].replace("−", "-").split("\t")
        expected = [*cx.affine_maps.V[i, 0], cx.affine_maps.a[i, 0]]
        np.testing.assert_allclose(
            [float(text) for text in first[1:4]], expected, rtol=1e-3, atol=1e-9
        )


def test_click_pins_and_escape_lets_go(page, small):
    cx, _ = small
    i, j = largest(cx, 2)
    page.click(pixel(page, cx.centers[i]))
    assert page.text("name") == f"Region {i}, pinned"
    page.mouse("mouseMoved", pixel(page, cx.centers[j]))
    page.frame()
    assert page.text("name") == f"Region {i}, pinned"
    page.run("document.getElementById('overlay').focus()")
    page.press("Escape")
    page.mouse("mouseMoved", pixel(page, cx.centers[j]))
    page.frame()
    assert page.text("name") == f"Region {j}"


def drawn(page):
    """The pixels of the map, as text."""
    page.frame()
    return page.run("document.getElementById('map').toDataURL()")


def test_layers_and_colours_can_be_chosen(page):
    before = drawn(page)
    page.run("document.querySelectorAll('#layers input')[1].click()")
    without = drawn(page)
    assert without != before
    page.run("document.querySelectorAll('#layers input')[1].click()")
    assert drawn(page) == before
    pictures = {before, without}
    for i in range(1, 4):
        page.run(f"document.querySelectorAll('#controls input[type=radio]')[{i}].click()")
        pictures.add(drawn(page))
    page.run("document.getElementById('show-boundary').click()")
    pictures.add(drawn(page))
    assert len(pictures) == 6


def test_the_wheel_zooms_at_the_pointer(page, small):
    cx, _ = small
    z = cx.centers[largest(cx, 1)[0]]
    at = pixel(page, z)
    scale = page.run("view.scale")
    page.mouse("mouseWheel", at, deltaX=0, deltaY=-300)
    page.frame()
    assert page.run("view.scale") > 1.2 * scale
    np.testing.assert_allclose(pixel(page, z), at, atol=1)
    page.run("document.getElementById('fit').click()")
    page.frame()
    assert page.run("view.scale") == scale


def test_keys(page):
    page.run("document.getElementById('overlay').focus()")
    scale = page.run("view.scale")
    page.press("+")
    assert page.run("view.scale") > scale
    page.press("Enter")
    assert page.text("name").endswith(", pinned")


def test_dark_screens_get_a_dark_page(page):
    light = page.run("getComputedStyle(document.body).backgroundColor")
    page.scheme("dark")
    page.frame()
    assert page.run("getComputedStyle(document.body).backgroundColor") != light


def test_phone(browser, small):
    browser.open(small[1], width=390, height=800, phone=True)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("document.getElementById('map').getBoundingClientRect().width") > 300


def test_many_regions(browser, tmp_path):
    """Thin ones are marked, the find box goes to one, and drawing is quick enough to be used."""
    with rm.use_backend("numba" if "numba" in rm.available_backends() else "numpy"):
        cx = rm.enumerate_regions(network([2, 30, 30, 30, 3]), rm.Box([-1, -1], [1, 1]))
    assert len(cx) > 2000
    cx.explore(tmp_path / "many.html")
    browser.open((tmp_path / "many.html").as_uri())
    assert "narrower than a pixel" in browser.text("thin")
    thinnest = int(np.argmin(cx.areas))
    browser.run(f"goTo({thinnest})")
    browser.frame()
    assert browser.text("name").startswith(f"Region {thinnest}")
    assert browser.heard("Runtime.exceptionThrown") == []


def test_incomplete_complex_says_so(browser, tmp_path):
    cx = rm.enumerate_regions(network([2, 9, 9, 3]), rm.Box([-1, -1], [1, 1]), max_regions=20)
    cx.explore(tmp_path / "part.html")
    browser.open((tmp_path / "part.html").as_uri())
    assert browser.run("document.getElementById('incomplete').hidden") is False
