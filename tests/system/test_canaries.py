"""Unique strings planted at the sites are found nowhere outside them.

A proxy between site and coordinator sees TLS, and a proxy that ends TLS would need the sites to
trust another authority. So the tap is one step further in: in every process of a site, Python's
TLS sockets write down what they are handed before they encrypt it (``wiretap/sitecustomize.py``).
Nothing of the product or of Flower comes after that point, so these are all the bytes that cross
the wall, headers included; a line for every connection shows that there is no other way out. On
the coordinator's side every file of its folder is searched (SuperLink's database and log, history,
report, models), and what the server printed.

Canaries are looked for as they are, in other encodings, and as unsalted digests, which whoever
knows a hospital's numbers could turn back. A last federation lets two of them through on purpose:
one in a field, one in the bytes of a tensor. Both are found.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest
import tomli_w

from tests.deployment import EVALUATOR, Deployment, deployment, scenario
from tests.system.canaries import forms_of, found, new_canary, plant

pytestmark = pytest.mark.system

HERE = Path(__file__).parent
CARELESS = HERE / "careless_client.py"
LONG_S = 1200.0
WHOLE, FAILS_LATER, FAILS_AT_ONCE = "site-a", "site-b", "site-c"


def _content() -> dict[str, object]:
    made = scenario(rounds=1)
    made["rounds"] = {"count": 1, "quorum": 2, "poll_interval_s": 0.2}
    return made


def _alone() -> dict[str, object]:
    """One site with the cohort that it has among all."""
    made = _content()
    sites = made["sites"]
    assert isinstance(sites, dict)
    rounds = {"count": 1, "quorum": 1, "poll_interval_s": 0.2}
    return made | {"sites": {WHOLE: sites[WHOLE]}, "cohort_seed": 32, "rounds": rounds}


class Tapped:
    """A deployment whose sites are tapped and hold canaries.

    Args:
        deployed: provisioned, nothing started.
        folder: for what the taps write.
    """

    def __init__(self, deployed: Deployment, folder: Path) -> None:
        self.deployed, self.folder = deployed, folder
        self.canaries: dict[str, str] = {}

    def plant(self, site: str) -> None:
        """Give a site a cohort full of canaries, and a cache of its own."""
        path = self.deployed.kit(site) / "site.toml"
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        manifest, planted = plant(Path(content["manifest"]), self.folder / "hospitals" / site)
        content |= {"manifest": str(manifest), "cache": str(manifest.parent / "cache")}
        path.write_text(tomli_w.dumps(content), encoding="utf-8")
        self.canaries |= {f"{place} of {site}": canary for place, canary in planted.items()}

    def start(self, site: str, mode: str, canary: str) -> None:
        """Start a site's client with the tap; what it calls its user is a canary too."""
        tap = self.folder / f"tap-{site}"
        tap.mkdir()
        user = new_canary()
        self.canaries |= {f"{mode} at {site}": canary, f"user of {site}": user}
        self.deployed.start_site(
            site,
            sys.executable,
            str(CARELESS),
            mode,
            canary,
            IEDN_TEST_TAP=str(tap),
            PYTHONPATH=f"{HERE / 'wiretap'}:{HERE.parent.parent}",
            USER=user,
            LOGNAME=user,
        )

    def sent(self, site: str) -> bytes:
        """Everything that the site's processes handed to TLS."""
        return b"".join(p.read_bytes() for p in sorted(self._tap(site).glob("*.sent")))

    def ports(self, site: str) -> set[int]:
        """Ports that the site's processes connected to; fails on any other host."""
        lines = "".join(p.read_text() for p in sorted(self._tap(site).glob("*.peers")))
        peers = re.findall(r"^\('(127\.0\.0\.1|::1|localhost)', (\d+)", lines, re.MULTILINE)
        assert len(peers) == len(lines.splitlines()), lines
        return {int(port) for _, port in peers}

    def outside(self) -> dict[str, bytes]:
        """Everything outside the sites: files of the coordinator and what the server printed."""
        run = self.deployed.run
        files = [p for p in sorted(run.rglob("*")) if p.is_file() and run / "kits" not in p.parents]
        held = {str(p.relative_to(run)): p.read_bytes() for p in files}
        return held | {"server's output": self.deployed.log("server").encode()}

    def _tap(self, site: str) -> Path:
        return self.folder / f"tap-{site}"


@pytest.fixture(scope="module")
def tapped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("canaries")
    with deployment(folder, _content()) as deployed:
        made = Tapped(deployed, folder)
        for site in (WHOLE, FAILS_LATER, EVALUATOR):
            made.plant(site)
        deployed.start_server()
        made.start(WHOLE, "warn", new_canary())
        made.start(EVALUATOR, "warn", new_canary())
        made.start(FAILS_LATER, "fail-to-evaluate", new_canary())
        made.start(FAILS_AT_ONCE, "fail-to-join", new_canary())
        made.code = deployed.wait_for_end(timeout_s=LONG_S)
        deployed.stop_all()
        yield made


def test_run_ends_well_and_names_what_failed_by_code_only(tapped):
    assert tapped.code == 0, tapped.deployed.log("server")
    lines = (tapped.deployed.run / "history.jsonl").read_text().splitlines()
    with_rosters = [e for e in map(json.loads, lines) if "roster" in e]
    rosters = {(e["event"], site): e["roster"] for e in with_rosters for site in e["roster"]}
    for event, site in (("join", FAILS_AT_ONCE), ("evaluation", FAILS_LATER)):
        entry = rosters[event, site][site]
        assert entry["status"] == "failed"
        assert re.fullmatch(r"internal \(incident [0-9a-f]{12}\)", entry["reason"])


def test_canaries_were_where_they_could_leak_from(tapped):
    """The paths were read, the exceptions raised, the warnings given: the sites' logs say so."""
    for site in (WHOLE, FAILS_LATER, EVALUATOR):
        log = tapped.deployed.log(site)
        assert tapped.canaries[f"truncated of {site}"] in log, "the scan that fails is named"
    for mode, site in (
        ("warn", WHOLE),
        ("warn", EVALUATOR),
        ("fail-to-evaluate", FAILS_LATER),
        ("fail-to-join", FAILS_AT_ONCE),
    ):
        assert tapped.canaries[f"{mode} at {site}"] in tapped.deployed.log(site)


def test_nothing_that_crosses_the_wall_holds_a_canary(tapped):
    sent = {site: tapped.sent(site) for site in tapped.deployed.sites}
    for site in (WHOLE, FAILS_LATER):
        for known in (b"/v1/fleet/push-messages", b"site-capabilities", b"train-reply"):
            assert known in sent[site], "the tap hears everything"
    assert b"failure-reply" in sent[FAILS_AT_ONCE]
    assert b"evaluate-reply" in sent[EVALUATOR]
    assert found(tapped.canaries, sent) == []


def test_nothing_the_coordinator_holds_has_a_canary(tapped):
    outside = tapped.outside()
    assert {"superlink/superlink.db", "superlink/superlink.log", "history.jsonl"} <= set(outside)
    assert {"report.html", "best.safetensors", "federation.lock.json"} <= set(outside)
    assert b"fleet" in outside["superlink/superlink.log"].lower()
    assert found(tapped.canaries, outside) == []


def test_sites_talk_to_nobody_but_the_coordinator(tapped):
    for site in tapped.deployed.sites:
        content = tomllib.loads((tapped.deployed.kit(site) / "site.toml").read_text())
        own = content["coordinator"]["node_port"]
        assert tapped.ports(site) - {own} == {tapped.deployed.port}


@pytest.fixture(scope="module")
def leaking(tmp_path_factory):
    folder = tmp_path_factory.mktemp("leaking")
    with deployment(folder, _alone()) as deployed:
        made = Tapped(deployed, folder)
        made.field, made.tensor = new_canary(), new_canary()
        deployed.start_server()
        made.start(WHOLE, "leak", made.field + made.tensor)
        deployed.wait_for_end(timeout_s=LONG_S)
        deployed.stop_all()
        yield made


@pytest.mark.parametrize("place", ["field", "tensor"])
def test_canary_that_is_let_through_on_purpose_is_found(leaking, place):
    canary = {place: getattr(leaking, place)}
    assert found(canary, {"wall": leaking.sent(WHOLE)}) == [f"{place} (plain) in wall"]
    if place == "field":
        assert f"{place} (plain) in history.jsonl" in found(canary, leaking.outside())


@pytest.mark.parametrize("form", forms_of(new_canary()))
def test_every_form_of_a_canary_is_found(form):
    canary = new_canary()
    around = b"\0\1before " + forms_of(canary)[form] + b" after\xff"
    assert found({"patient": canary}, {"reply": around}) == [f"patient ({form}) in reply"]
    assert found({"patient": new_canary()}, {"reply": around}) == []
