"""The reader study in a browser (Debian's Chromium): the command serves it, keys do the rest."""

import hashlib
import io
import json
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import TimeoutError as NotInTime
from playwright.sync_api import expect, sync_playwright

from tests.reading_room import make, tokens

pytestmark = [pytest.mark.system, pytest.mark.slow]

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
PATIENCE_MS = 300_000
FEW = ("T1_C",)
CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


class Served:
    """A site with one study, its page on a port of its own."""

    def __init__(self, folder, **design):
        self.folder = folder
        (folder / "site.toml").write_text('name = "site-a"\nmanifest = "manifest.csv"\n')
        self.study = folder / "readers" / "trial"
        make(self.study, structural=FEW, **design)
        self.tokens = tokens(self.study)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}/"

    def command(self, *words):
        program = [sys.executable, "-c", "from client.cli import main; main()"]
        return [*program, "--site", str(self.folder), "rate", *map(str, words)]

    def run(self, *words):
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def link(self, reader):
        return f"{self.base}#{self.tokens[reader]}"


@contextmanager
def serving(folder, **design):
    served = Served(folder, **design)
    with (folder / "page.log").open("wb") as log:
        process = subprocess.Popen(
            served.command("--port", served.port), stdout=log, stderr=log, cwd=folder
        )
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", served.port)) == 0:
                    break
            assert process.poll() is None, (folder / "page.log").read_text()
            time.sleep(0.1)
        yield served
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


class Seat:
    """One reader's browser; remembers every address that was asked for, and every error."""

    def __init__(self, browser, base, *, axe=False):
        self.context = browser.new_context(viewport={"width": 1100, "height": 700})
        self.asked, self.errors = [], []
        if axe:
            self.context.add_init_script(path=AXE)
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console", lambda m: self.errors.append(m.text) if "violates" in m.text else None
        )
        self.base = base

    def open(self, link):
        self.page.goto(link)
        return self

    def ready(self):
        """Maps drawn; without a graphics card and on a busy machine that takes minutes."""
        try:
            self.page.locator("#fields:not([disabled])").wait_for()
        except NotInTime as error:
            said = [self.page.locator(place).text_content() for place in ("#message", "#alert")]
            pytest.fail(f"not drawn: {said}, {self.errors}: {error}")

    def keys(self, *names):
        for name in names:
            self.page.keyboard.press(name)

    def says(self, place, text):
        expect(self.page.locator(place)).to_contain_text(text, timeout=PATIENCE_MS)

    def checked(self):
        return self.page.locator("#questions input:checked").count()

    def close(self):
        outside = [u for u in self.asked if not u.startswith((self.base, "data:", "blob:"))]
        assert outside == []
        assert self.errors == []
        self.context.close()


def picture(seat, number):
    """Pixels (rows, columns, 3) of the n-th map on the screen."""
    shot = seat.page.locator("#maps canvas").nth(number).screenshot()
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"), dtype=np.int64)


@needs_chromium
def test_two_readers_score_by_keys_reload_and_decide(browser, tmp_path):
    with serving(tmp_path, num_cases=2) as served:
        one, two = (Seat(browser, served.base) for _ in range(2))
        pressed_too_early(one, served.link("reader-1"))
        one.keys(*"333333", "Enter")
        one.says("#place", "1 of 2 scored")
        one.ready()
        one.keys("2", "2")
        assert one.checked() == 2
        one.page.reload()
        one.ready()
        one.says("#case-title", "Case 2 of 2")
        one.says("#place", "1 of 2 scored")
        assert one.checked() == 0, "what was not saved is not there"
        # The other reader is at it at the same time.
        two.open(served.link("reader-2")).ready()
        two.keys(*"333333", "Enter")
        one.keys(*"33333", "7", "Enter")
        one.says("#alert", "Still to be scored: Map B, Border and shape")
        one.keys("3", "Enter")
        two.says("#place", "1 of 2 scored")
        two.ready()
        two.keys(*"333332", "Enter")
        for seat in (one, two):
            seat.says("#finishing", "Every case of this session is scored")
            seat.ready()
            finish(seat)
        status = json.loads(served.run("status", "--json"))
        assert status["unfinished"] == ["1 divergent readings are not decided"]
        discuss(one, served)
        two.close()
        text = served.run("export")
        assert "| synthetic | Border and shape of the lesions | 2 |" in text
        rows = (served.study / "quality_scores.csv").read_text().splitlines()
        assert len(rows) == 1 + 6 * (2 * 2 + 1)
        one.close()


def pressed_too_early(seat, link):
    """The volumes are held back; a digit and Enter are refused in words, and nothing is scored."""
    held = []
    seat.page.route("**/volumes/*", lambda route: held.append(route))
    seat.open(link)
    seat.says("#message", "Drawing the maps")
    assert "#" not in seat.page.url, "the token does not stay in the address"
    seat.keys("2")
    seat.says("#alert", "Key 2 ignored: the maps are still being drawn")
    seat.keys("Enter")
    seat.says("#alert", "Enter ignored")
    while len(held) < 2 + len(FEW):
        seat.page.wait_for_timeout(100)
    for route in held:
        route.continue_()
    seat.page.unroute("**/volumes/*")
    seat.ready()
    assert seat.checked() == 0
    seat.says("#place", "0 of 2 scored")


def finish(seat):
    """Think again once, then end the session: by keys."""
    seat.page.locator("#finish").focus()
    seat.keys("Enter")
    expect(seat.page.locator("#confirm")).to_be_visible()
    seat.keys("Escape")
    expect(seat.page.locator("#confirm")).to_be_hidden()
    seat.keys("Enter")
    seat.page.locator("#confirm-yes").focus()
    seat.keys("Enter")
    seat.page.locator("#notice").wait_for()


def discuss(seat, served):
    seat.keys("Tab", "Tab")
    seat.page.locator("#again").focus()
    seat.keys("Enter")
    seat.says("#notice-title", "Both readers are needed")
    seat.page.locator("#partner-code").focus()
    seat.page.keyboard.type(served.link("reader-2"))
    seat.keys("Enter")
    seat.ready()
    seat.says("#readings", "≠ Map")
    seat.page.screenshot(path=served.folder / "discussion.png")
    seat.keys(*"333333", "Enter")
    seat.says("#finishing", "Every case")
    seat.ready()
    finish(seat)
    seat.says("#notice-text", "Everything is decided")


@needs_chromium
def test_maps_are_drawn_with_the_patients_left_on_the_right(browser, tmp_path):
    with serving(tmp_path, num_cases=1) as served:
        seat = Seat(browser, served.base).open(served.link("reader-1"))
        seat.ready()
        seat.keys("c")  # without the crosshair's own pixels
        maps = [picture(seat, number) for number in (0, 1)]
        for number, pixels in enumerate(maps):
            lit = pixels.sum(axis=2) > 60
            assert 0.2 < lit.mean() < 0.9, "the brain fills a good part, and not all"
            brightness = pixels.sum(axis=2)
            lesion = np.nonzero(brightness >= np.quantile(brightness, 0.98))[1]
            assert lesion.mean() > 0.55 * pixels.shape[1], "lesion: patient's left"
            sides = seat.page.locator("#maps figure").nth(number).locator(".side")
            assert sides.all_text_contents() == ["R", "L"]
            edges = [sides.nth(n).bounding_box()["x"] for n in (0, 1)]
            assert edges[0] < edges[1]
        # One window: tissue without lesion has the same colour in both maps.
        healthy = [np.median(pixels[150:-150, 120:160], axis=(0, 1)) for pixels in maps]
        assert np.abs(healthy[0] - healthy[1]).max() <= 12
        one_crosshair_in_both(seat)
        one_slice_in_both(seat, maps)
        seat.close()


def one_crosshair_in_both(seat):
    seat.keys("c")
    box = seat.page.locator("#maps canvas").nth(0).bounding_box()
    target = (0.3 * box["width"], 0.4 * box["height"])
    seat.page.mouse.click(box["x"] + target[0], box["y"] + target[1])
    for number in (0, 1):
        pixels = picture(seat, number)
        blue = (pixels[..., 2] > 150) & (pixels[..., 0] < pixels[..., 2] - 30)
        assert int(np.argmax(blue.sum(axis=0))) == pytest.approx(target[0], abs=6)
        assert int(np.argmax(blue.sum(axis=1))) == pytest.approx(target[1], abs=6)
    seat.keys("c")


def one_slice_in_both(seat, before):
    place = seat.page.locator("#slice")
    number = int(place.text_content().split()[1])
    seat.keys("ArrowUp", "ArrowUp")
    expect(place).to_have_text(f"slice {number + 2} of 12")
    moved = [picture(seat, n) for n in (0, 1)]
    for pixels, old in zip(moved, before, strict=True):
        lit = [(p.sum(axis=2) > 60).mean() for p in (pixels, old)]
        assert lit[0] < 0.99 * lit[1], "nearer to the top, the head is smaller"
    seat.page.locator("#maps canvas").nth(1).hover()
    seat.page.mouse.wheel(0, 100)
    expect(place).to_have_text(f"slice {number + 1} of 12")


@needs_chromium
def test_wrong_and_ended_sessions_are_said_and_a_new_one_goes_on(browser, tmp_path):
    with serving(tmp_path, num_cases=2, mode="similarity") as served:
        seat = Seat(browser, served.base)
        seat.open(served.base + "#not-a-token")
        seat.says("#notice-text", "personal link is not valid")
        seat.open(served.link("reader-1"))
        seat.ready()
        titles = seat.page.locator("#maps figcaption").all_text_contents()
        assert titles == ["Measured CBV", "Synthetic CBV"]
        seat.keys("1", "2", "3", "ArrowLeft", "Enter")
        seat.says("#place", "1 of 2 scored")
        seat.ready()
        seat.context.clear_cookies()
        seat.keys("3", "3", "3", "Enter")
        seat.says("#notice-text", "Your session has ended")
        seat.open(served.link("reader-1"))
        seat.ready()
        seat.says("#case-title", "Case 2 of 2")
        seat.page.locator("#previous").click()
        seat.ready()
        seat.says("#case-title", "Case 1 of 2")
        values = [b.get_attribute("value") for b in seat.page.locator(":checked").all()]
        assert values == ["1", "2", "2"], "the arrow changed the 3 to a 2"
        seat.close()


@needs_chromium
def test_a_diagnosis_study_waits_out_the_washout(browser, tmp_path):
    with serving(tmp_path, num_cases=1, kind="diagnosis", decision="adjudicator") as served:
        seat = Seat(browser, served.base).open(served.link("reader-1"))
        seat.ready()
        seat.keys("0")
        seat.says("#alert", "0 is not on the scale")
        seat.keys("4", "Enter")
        seat.says("#finishing", "Every case")
        seat.ready()
        seat.page.screenshot(path=tmp_path / "diagnosis.png")
        finish(seat)
        seat.says("#notice-text", "Washout: your second session opens on")
        seat.close()


@needs_chromium
def test_no_serious_violation_of_accessibility_and_focus_in_order(browser, tmp_path):
    assert hashlib.sha256(AXE.read_bytes()).hexdigest() == AXE_SHA256
    with serving(tmp_path, num_cases=2) as served:
        seat = Seat(browser, served.base, axe=True).open(served.link("reader-1"))
        seat.ready()
        assert serious(seat) == []
        seat.keys("3")
        assert serious(seat) == [], "with a chosen score"
        order = focus_order(seat)
        assert order == [
            *(f"{letter}.{c}" for letter in "AB" for c in ("distribution", "degree", "border")),
            "save",
            "next",
        ]
        seat.page.screenshot(path=tmp_path / "blind.png")
        seat.open(served.base + "#wrong")
        seat.says("#notice-text", "not valid")
        assert serious(seat) == [], "of a notice"
        seat.close()


def serious(seat):
    """Rules of WCAG 2 A and AA, and of good practice, that are broken seriously."""
    found = seat.page.evaluate("async () => (await axe.run()).violations")
    return [
        (rule["id"], node["target"], node["failureSummary"])
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def focus_order(seat):
    """Names of what Tab stops at, from the first question (scored) to the last button."""
    seat.page.locator("#questions input:checked").first.focus()
    names = []
    while len(names) < 20:
        name = seat.page.evaluate("document.activeElement.name || document.activeElement.id")
        names.append(name)
        if name == "next":
            break
        seat.keys("Tab")
    return names
