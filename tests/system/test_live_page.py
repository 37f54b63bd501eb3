"""The coordinator's live page in a browser, beside a real run of three sites.

One site is killed and comes back; the coordinator is stopped and started again; the page's own
program goes and returns. At the end every number on the page is the one that status prints.
"""

import json
import re
import signal
import subprocess
import tomllib
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal

import httpx
import pytest
import tomli_w
from playwright.sync_api import expect

from iedn.modalities import Modality
from tests.deployment import BIN, TRAINERS, commits, deployment, environment, free_port, wait_until
from tests.system.browser import PATIENCE_MS, Visitor, needs_chromium, serious
from tests.system.scenarios import trainers_only

pytestmark = [pytest.mark.system, pytest.mark.slow]

LOST = TRAINERS[2]
LONG_S = 300.0
MANY = 1000


class Page:
    """``iedn-server page DIR`` on a port of its own."""

    def __init__(self, deployed):
        self.deployed, self.port = deployed, free_port()
        self.base = f"http://127.0.0.1:{self.port}/"

    def start(self):
        command = [
            str(BIN / "iedn-server"),
            "page",
            str(self.deployed.run),
            "--port",
            str(self.port),
        ]
        self.deployed._start("page", command)

    def wait(self):
        wait_until(lambda: answers(self.base), LONG_S, "the page is served")

    def stop(self):
        self.deployed.stop("page")


def answers(address):
    try:
        return httpx.get(f"{address}status.json", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def configure(deployed, **rounds):
    path = deployed.run / "federation.toml"
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    content["rounds"] |= rounds
    path.write_text(tomli_w.dumps(content), encoding="utf-8")


def start_server(deployed, *options):
    deployed._start("server", [str(BIN / "iedn-server"), "start", str(deployed.run), *options])


def rounds_with(deployed, site, status):
    """Committed rounds in whose roster a site has a status."""
    found = commits(deployed.run)
    return [c["round"] for c in found if c.get("roster", {}).get(site, {}).get("status") == status]


@pytest.fixture
def deployed(tmp_path):
    content = trainers_only(rounds=MANY)
    content["rounds"] |= {"quorum": 2}
    with deployment(tmp_path, content) as made:
        configure(made, deadline_s=60.0, offline_grace_s=2.0)
        yield made


@needs_chromium
def test_page_follows_a_run_in_which_a_site_is_killed_and_returns(browser, deployed, tmp_path):
    page = Page(deployed)
    page.start()
    page.wait()
    wide = {"viewport": {"width": 1300, "height": 900}}
    seat = Visitor(browser, page.base, axe=True, **wide).open(page.base)
    seat.says("#state", "Not started")
    seat.says("#rounds-empty", "No round has been committed yet")
    assert serious(seat) == [], "before the first round"
    port = free_port()
    start_server(deployed, "--page", "--page-port", str(port))
    seat.says("#state", "Running")
    for site in deployed.sites:
        deployed.start_site(site)
    wait_until(lambda: len(commits(deployed.run)) > 2, LONG_S, "two rounds are committed")
    assert httpx.get(f"http://127.0.0.1:{port}/status.json", trust_env=False).json()["run"]
    lose_and_regain(seat, deployed, tmp_path)
    stop_and_finish(seat, deployed)
    assert not answers(f"http://127.0.0.1:{port}/"), "the page beside the run has ended with it"
    assert serious(seat) == [], "of a finished run"
    by_keys_alone(seat)
    every_number_is_that_of_status(seat, deployed)
    seat.page.screenshot(path=tmp_path / "live-finished.png", full_page=True)
    page_goes_and_returns(seat, page, tmp_path)
    seat.close()
    in_the_dark_and_on_a_telephone(browser, page, tmp_path)


def lose_and_regain(seat, deployed, tmp_path):
    """SIGKILL, seen while the round waits and in the rosters; then the same command again."""
    row = f"#sites tr:has(th:text-is('{LOST}'))"
    deployed.kill(LOST)
    seat.says(row, "✗ missing")
    seat.says(row, "offline: no sign of life")
    seat.says("#here-more", LOST)
    seat.page.screenshot(path=tmp_path / "live-missing.png", full_page=True)
    assert serious(seat) == [], "with a missing site"
    wait_until(lambda: not_accepted(deployed), LONG_S, "a round is committed without it")
    number, status = not_accepted(deployed)
    roster = f"#rounds tr:has(th span:text-is('{number}'))"
    seat.says(roster, status)
    seat.says("#refusals", f"round {number}")
    deployed.start_site(LOST)
    back = commits(deployed.run)[-1]["round"]
    wait_until(
        lambda: rounds_with(deployed, LOST, "accepted")[-1] > back,
        LONG_S,
        "the site is in a round again",
    )
    number = rounds_with(deployed, LOST, "accepted")[-1]
    seat.says(f"#rounds tr:has(th span:text-is('{number}'))", "3 of 3")
    seat.says("#here-more", "none missing")
    expect(seat.page.locator(row)).not_to_contain_text("missing", timeout=PATIENCE_MS)
    seat.page.screenshot(path=tmp_path / "live-back.png", full_page=True)


def not_accepted(deployed):
    """The first round that lacks the site, and what became of it there."""
    for commit in commits(deployed.run):
        status = commit.get("roster", {}).get(LOST, {}).get("status", "accepted")
        if status != "accepted":
            return commit["round"], status
    return None


def stop_and_finish(seat, deployed):
    """Ctrl-C everywhere; the same commands, with one more round to do, end the run."""
    deployed.stop("server", *deployed.sites)
    seat.says("#state", "Stopped")
    seat.says("#note", "goes on from the last committed round")
    configure(deployed, count=int(commits(deployed.run)[-1]["round"]) + 1)
    start_server(deployed, "--page", "--page-port", "0")
    for site in deployed.sites:
        deployed.start_site(site)
    assert deployed.wait_for_end() == 0, deployed.log("server")
    seat.says("#state", "Finished")


def by_keys_alone(seat):
    """Tab reaches whatever can be scrolled, opened or pressed, in the order of the page."""
    seat.page.evaluate("document.activeElement.blur()")
    names = []
    while len(names) < 20:
        seat.keys("Tab")
        name = seat.page.evaluate(FOCUSED)
        if name == "BODY" or name in names:
            break
        names.append(name)
        if name == "The same as numbers":
            seat.keys("Enter")
            expect(seat.page.locator("#psnr_db-table")).to_be_visible()
        if name in ALL_SHOWN:
            seat.keys("Enter")
            assert seat.page.evaluate(FOCUSED) == ALL_SHOWN[name], "focus stays"
    assert names == [
        "Table of the sites",
        "The same as numbers",
        "Validation PSNR by round and site",
        "Validation SSIM by round and site",
        "Table of the rounds",
        *(["Show all rounds"] if "Show all rounds" in names else []),
        "Table of contributions",
        "Table of refusals and absences",
        *(["Show the whole log"] if "Show the whole log" in names else []),
        "status.json",
    ]


ALL_SHOWN = {
    "Show all rounds": "Show the last rounds only",
    "Show the whole log": "Show the last entries only",
}
FOCUSED = """() => {
  const found = document.activeElement;
  return found === document.body ? "BODY" : found.ariaLabel || found.textContent.trim();
}"""


def every_number_is_that_of_status(seat, deployed):
    """What stands on the page against what the command prints, formats worked out here."""
    status = json.loads(run_status(deployed))
    shown = seat.page.evaluate(
        "() => [...document.querySelectorAll('[data-path]')]"
        ".map((e) => [e.dataset.path, e.dataset.format, e.textContent])"
    )
    wrong = [(p, f, text) for p, f, text in shown if text != written(found_at(status, p), f)]
    assert wrong == []
    paths = {path for path, _, _ in shown}
    for number in range(status["rounds_committed"]):
        for name in ("round", "time", "seconds", "bytes", "accepted", "sites"):
            assert f"/rounds/{number}/{name}" in paths
    for site in TRAINERS:
        assert f"/curves/psnr_db/{site}/0/1" in paths
        assert f"/contributions/groups/decoder/by_site/{site}" in paths
    assert len(status["not_accepted"]) >= 1
    assert "/not_accepted/0/why" in paths
    stray = [text for text in seat.page.evaluate(STRAY) if text not in set(Modality)]
    assert stray == [], "a number that is not in the document"


STRAY = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode;
    const isKnown = text.parentElement.closest("[data-path], svg, .hidden, [hidden]");
    if (/[0-9]/.test(text.data) && !isKnown) found.push(text.data.trim());
  }
  return found;
}"""


def run_status(deployed):
    command = [str(BIN / "iedn-server"), "status", str(deployed.run), "--json"]
    done = subprocess.run(command, env=environment(), capture_output=True, check=True)
    return done.stdout


def found_at(document, path):
    for key in path.split("/")[1:]:
        if document is None:
            return None
        key = key.replace("~1", "/").replace("~0", "~")
        document = document[int(key)] if isinstance(document, list) else document.get(key)
    return document


def written(value, form):
    if value is None:
        return "\N{EN DASH}"
    if form == "bytes":
        return written_bytes(value)
    if form == "seconds":
        assert value < 60
        return f"{value:g} s"
    return {
        "text": str,
        "count": str,
        "length": lambda v: str(len(v)),
        "fixed2": lambda v: rounded(v, 2),
        "fixed3": lambda v: rounded(v, 3),
        "utc": lambda v: v[:10] + " " + v[11:19],
        "epoch": lambda v: datetime.fromtimestamp(v, UTC).strftime("%Y-%m-%d %H:%M:%S"),
    }[form](value)


def rounded(value, digits):
    """As a browser does: the exact value of the float, halves away from zero."""
    return str(Decimal(value).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def written_bytes(value):
    for power, unit in ((3, "GB"), (2, "MB"), (1, "kB")):
        if value >= 1000**power:
            return f"{rounded(value / 1000**power, 1)} {unit}"
    return f"{value} B"


def page_goes_and_returns(seat, page, tmp_path):
    """The page says since when its numbers are old, and goes on by itself."""
    page.stop()
    seat.says("#connection", "Not connected since")
    said = seat.page.locator("#connection").text_content()
    assert re.search(r"The numbers are those of \d\d:\d\d:\d\d\.", said)
    assert serious(seat) == [], "when not connected"
    seat.page.screenshot(path=tmp_path / "live-not-connected.png")
    page.start()
    seat.says("#connection", "Live")
    assert seat.page.locator("#connection").get_attribute("data-state") == "live"


def in_the_dark_and_on_a_telephone(browser, page, tmp_path):
    narrow = {"viewport": {"width": 390, "height": 800}, "color_scheme": "dark"}
    seat = Visitor(browser, page.base, axe=True, **narrow).open(page.base)
    seat.says("#state", "Finished")
    assert serious(seat) == [], "in the dark"
    width = seat.page.evaluate("document.documentElement.scrollWidth")
    assert width <= 390, "tables scroll, and not the page"
    seat.page.screenshot(path=tmp_path / "live-dark-narrow.png", full_page=True)
    seat.close()
    assert page.deployed.processes["page"].poll() is None
    page.deployed.processes["page"].send_signal(signal.SIGTERM)
    assert page.deployed.wait_for_end("page") == 143
