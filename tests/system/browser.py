"""Debian's Chromium, driven through the pages of this project."""

import hashlib
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import expect

AXE = Path(__file__).parent / "vendor" / "axe.min.js"
AXE_SHA256 = "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c"
FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
PATIENCE_MS = 300_000
CHROMIUM = shutil.which("chromium")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")


class Visitor:
    """One person's browser; remembers every address that was asked for, and every error."""

    def __init__(self, browser, base, *, axe=False, **context):
        context = {"viewport": {"width": 1100, "height": 700}} | context
        self.context = browser.new_context(**context)
        self.asked, self.errors = [], []
        if axe:
            assert hashlib.sha256(AXE.read_bytes()).hexdigest() == AXE_SHA256
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

    def keys(self, *names):
        for name in names:
            self.page.keyboard.press(name)

    def says(self, place, text):
        expect(self.page.locator(place)).to_contain_text(text, timeout=PATIENCE_MS)

    def close(self):
        outside = [u for u in self.asked if not u.startswith((self.base, "data:", "blob:"))]
        assert outside == []
        assert self.errors == []
        self.context.close()


def serious(visitor):
    """Rules of WCAG 2 A and AA, and of good practice, that are broken seriously."""
    found = visitor.page.evaluate("async () => (await axe.run()).violations")
    return [
        (rule["id"], node["target"], node["failureSummary"])
        for rule in found
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]
