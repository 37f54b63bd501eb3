"""A run that lacks a site says so, everywhere and at once, and never calls itself a success.

First a required site is lost for good in the middle of the run; then it comes back and another
one is lost, so that the quorum is not reached.
"""

import json
import tomllib
from pathlib import Path

import pytest
import tomli_w

from tests.deployment import TRAINERS, commits, deployment, run_command, wait_until
from tests.system.scenarios import trainers_only

pytestmark = pytest.mark.system

REQUIRED, OTHER, STEADY = TRAINERS
LONG_S = 1200.0
SUCCESS = ("best model", "rounds committed", "best.safetensors", "finished")


class Outcome:
    """How ``iedn-server start`` ended, and what the commands say of it then."""

    def __init__(self, deployed, code, output):
        self.code, self.output = code, output
        self.status = _command(deployed, "status", "--json")
        self.text = _command(deployed, "status")
        self.release = _command(deployed, "release")
        self.report = _command(deployed, "report")
        self.page = (deployed.run / "report.html").read_text(encoding="utf-8")
        lines = (deployed.run / "history.jsonl").read_text().splitlines()
        self.events = [json.loads(line) for line in lines]
        self.commits = len(commits(deployed.run))


def _command(deployed, name, *options):
    return run_command("iedn-server", name, str(deployed.run), *options, cwd=Path.cwd())


def _configure(deployed):
    path = deployed.run / "federation.toml"
    content = tomllib.loads(path.read_text(encoding="utf-8"))
    content["sites"][REQUIRED]["required"] = True
    content["rounds"] |= {"deadline_s": 60.0, "join_timeout_s": 100.0, "offline_grace_s": 5.0}
    path.write_text(tomli_w.dumps(content), encoding="utf-8")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    with deployment(tmp_path_factory.mktemp("honesty"), trainers_only(rounds=1000)) as deployed:
        _configure(deployed)
        deployed.start_all()
        wait_until(lambda: len(commits(deployed.run)) > 1, LONG_S, "a round is committed")
        deployed.kill(REQUIRED)
        code = deployed.wait_for_end(timeout_s=LONG_S)
        lost = Outcome(deployed, code, deployed.log("server"))
        deployed.start_site(REQUIRED)
        deployed.kill(OTHER)
        deployed.start_server()
        code = deployed.wait_for_end(timeout_s=LONG_S)
        output = deployed.log("server").removeprefix(lost.output)
        below = Outcome(deployed, code, output)
        yield {"required site lost": (lost, REQUIRED), "below quorum": (below, OTHER)}


@pytest.fixture(params=["required site lost", "below quorum"])
def outcome(request, outcomes):
    return outcomes[request.param]


def test_start_ends_as_incomplete_and_names_the_site(outcome):
    end, missing = outcome
    assert end.code == 1
    errors = [line for line in end.output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, end.output[-2000:]
    assert f"{missing}: " in errors[0]
    assert "of 3 needed sites" in end.output
    assert "start again with the same command" in end.output


def test_required_site_is_named_as_such(outcomes):
    lost, _ = outcomes["required site lost"]
    assert f"required but missing: {REQUIRED}" in lost.output


def test_history_ends_with_the_roster(outcome):
    end, missing = outcome
    last = end.events[-1]
    assert last["event"] == "incomplete"
    assert missing in last["reason"]
    assert last["roster"][missing]["status"] in ("late", "offline")
    assert last["roster"][STEADY]["status"] in ("accepted", "joined")


def test_status_says_incomplete(outcome):
    end, missing = outcome
    found = json.loads(end.status.stdout)
    assert end.status.returncode == 0
    assert not found["finished"]
    assert missing in found["incomplete"]["reason"]
    assert found["incomplete"]["roster"][missing]["status"] in ("late", "offline")
    assert found["rounds_committed"] < found["rounds_planned"] == 1000
    assert "incomplete: " in end.text.stdout
    assert missing in end.text.stdout


def test_nothing_says_success(outcome):
    end, _ = outcome
    for word in SUCCESS:
        assert word not in end.output
    assert "finished" not in {e["event"] for e in end.events}
    assert end.release.returncode != 0
    assert "received" not in end.release.stdout
    assert "Incomplete." in end.page
    assert "not finished" in end.page


def test_no_committed_round_lacks_a_site(outcome):
    end, _ = outcome
    rosters = [e["roster"] for e in end.events if e["event"] == "commit" and e["round"] > 0]
    assert rosters
    for roster in rosters:
        assert {s: e["status"] for s, e in roster.items()} == dict.fromkeys(TRAINERS, "accepted")


def test_nothing_was_committed_after_the_site_was_lost(outcomes):
    (lost, _), (below, _) = outcomes.values()
    assert lost.commits == below.commits
