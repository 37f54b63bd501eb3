"""System tests go on where they stopped: what has passed with these very files is not run again.

``--progress FILE`` keeps a line a test: outcome, seconds, name. Any change of code or tests begins
the file anew; a run after which nothing is left to do renames it to ``FILE.done``.
"""

import hashlib
import json
from pathlib import Path

import pytest

from tests.documents import blocks_run_by

ROOT = Path(__file__).parents[2]
BEGUN_FIRST = ("test_live_page.py", "[suspended]")
"""Minutes long, by themselves: begun last, everything else would wait for them."""
SOURCES = ("iedn", "sites", "client", "server", "simulation", "tests", "benchmarks", "docs")


@pytest.fixture
def documented(request):
    """The blocks that the documents say this test runs, in their order."""
    test = f"{request.path.relative_to(ROOT)}::{request.function.__name__}"
    return [block.text for block in blocks_run_by(test) if block.mark == "run"]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    from tests.system.browser import CHROMIUM, FLAGS

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield made
        made.close()


def pytest_addoption(parser):
    parser.addoption("--progress", type=Path, help="go on where this file says a run stopped")


def pytest_configure(config):
    path = config.getoption("--progress")
    if path is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(path))


def pytest_collection_modifyitems(config, items):
    path = config.getoption("--progress")
    done = passed(path) if path else set()
    config.hook.pytest_deselected(items=[i for i in items if i.nodeid in done])
    items[:] = [i for i in items if i.nodeid not in done]
    items.sort(key=lambda item: not any(part in item.nodeid for part in BEGUN_FIRST))


def passed(path):
    """Tests whose last run passed, with the files as they are now."""
    first, *lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else [""]
    entries = map(json.loads, lines if first == digest() else [])
    last = {entry["test"]: entry["outcome"] for entry in entries}
    return {test for test, outcome in last.items() if outcome == "passed"}


def digest():
    """Of all files the system tests run."""
    found = hashlib.sha256()
    for path in sorted(p for folder in SOURCES for p in (ROOT / folder).rglob("*.*")):
        if path.suffix != ".pyc" and path.is_file():
            found.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return found.hexdigest()


class Progress:
    """Appends each test's outcome to the file."""

    def __init__(self, path):
        self.path, self.seconds = path, {}

    def pytest_sessionstart(self):
        if not passed(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(digest() + "\n", encoding="utf-8")

    def pytest_runtest_logreport(self, report):
        name = report.nodeid
        self.seconds[name] = self.seconds.get(name, 0.0) + report.duration
        if report.when == "call" or report.failed:
            seconds = round(self.seconds[name], 1)
            line = {"outcome": report.outcome, "seconds": seconds, "test": name}
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")

    def pytest_sessionfinish(self, exitstatus):
        if exitstatus == pytest.ExitCode.OK:
            self.path.replace(self.path.with_name(self.path.name + ".done"))
