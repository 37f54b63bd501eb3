"""The one document of status and page: what it says of each state, and that it reads only news."""

import json
import os

import pytest

import server.cli
from iedn.errors import CheckpointError, ConfigError
from server.config import load_federation
from server.run_folder import RunFolder
from server.status import RunWatch, facts_of
from tests.told import commit, federation, snapshot, troubled, write_run

INCOMPLETE = {"event": "incomplete", "reason": "round 4: 1 of 2 needed sites", "roster": {}}
FINISHED = {"event": "finished", "best_round": 3, "rounds": 3}
WORKING = snapshot(site_a="working")


@pytest.mark.parametrize(
    ("events", "now", "ago_s", "state"),
    [
        ([], None, 0, "not started"),
        ([], {}, 0, "running"),
        (troubled(), WORKING, 0, "running"),
        (troubled(), WORKING, 60, "silent"),
        (troubled(), None, 0, "stopped"),
        ([*troubled(), INCOMPLETE], None, 0, "incomplete"),
        ([*troubled(), INCOMPLETE], WORKING, 60, "silent"),
        ([*troubled(), FINISHED], None, 0, "finished"),
        ([*troubled(), FINISHED], WORKING, 60, "finished"),
    ],
)
def test_state_of_a_run(tmp_path, events, now, ago_s, state):
    write_run(tmp_path, events, snapshot=now, heard_ago_s=ago_s)
    document = RunWatch(tmp_path).document()
    assert document["state"] == state
    assert (document["last_heard"] is None) == (now is None or state == "running")


def test_document_of_a_run_in_which_much_went_wrong(tmp_path):
    now = snapshot(site_a="working", site_b="replied", site_c="offline", site_d="offline")
    document = RunWatch(write_run(tmp_path, troubled(), snapshot=now)).document()
    assert (document["rounds_committed"], document["rounds_planned"]) == (3, 20)
    assert document["sites_here"] == ["site-a", "site-b", "site-x"]
    assert document["sites_missing"] == ["site-c", "site-d"]
    assert document["worst_site"] == {"1": "site-b", "2": "site-b", "3": "site-b"}
    assert document["curves"]["psnr_db"]["site-b"] == [[1, 19.5], [2, 20.0], [3, 20.5]]
    assert document["void"] == {"2": {"encoder.ASL": "site-b: norm"}}
    assert [r["bytes"] for r in document["rounds"]] == [8000, 6000, 5000]


def test_status_prints_what_the_page_is_sent(tmp_path, call):
    write_run(tmp_path, troubled())
    config = load_federation(tmp_path / "federation.toml")
    code, out, _ = call(server.cli.main, "status", tmp_path, "--json")
    assert code == 0
    assert json.loads(out) == RunWatch(tmp_path).document()
    folder = RunFolder(tmp_path, config)
    assert json.loads(json.dumps(facts_of(folder, config))) == RunWatch(tmp_path).document()


def test_nothing_is_read_again_or_made_again_that_has_not_changed(tmp_path, monkeypatch):
    watch = RunWatch(write_run(tmp_path, troubled(40)))
    first = watch.document()
    parsed = []
    loads = json.loads
    monkeypatch.setattr(json, "loads", lambda text: parsed.append(text) or loads(text))
    second = watch.document()
    assert all(second[name] is first[name] for name in ("rosters", "curves", "rounds"))
    assert sum(len(text) for text in parsed) < 2000, "the states of the sites, and no history"
    with (tmp_path / "history.jsonl").open("a") as stream:
        stream.write(json.dumps(commit(41, {"site-a": {"status": "late"}})) + "\n")
    assert watch.document()["rounds_committed"] == 41
    assert sum(isinstance(text, bytes) for text in parsed) == 1, "one new line, parsed once"


def test_watching_writes_nothing(tmp_path):
    write_run(tmp_path, troubled())
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    RunWatch(tmp_path).document()
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


def test_a_run_that_has_not_begun_has_a_document(tmp_path):
    write_run(tmp_path, [])
    (tmp_path / "history.jsonl").unlink()
    document = RunWatch(tmp_path).document()
    assert (document["state"], document["rounds"], document["curves"]["psnr_db"]) == (
        "not started",
        [],
        {},
    )


def test_configuration_is_read_again_when_it_has_changed(tmp_path):
    watch = RunWatch(write_run(tmp_path, troubled()))
    assert watch.document()["rounds_planned"] == 20
    write_run(tmp_path, troubled(), config=federation(rounds=30))
    os.utime(tmp_path / "federation.toml", (1e9, 1e9))
    assert watch.document()["rounds_planned"] == 30


def test_what_is_wrong_is_said(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        RunWatch(tmp_path).document()
    write_run(tmp_path, [])
    (tmp_path / "history.jsonl").write_text("nonsense\n")
    with pytest.raises(CheckpointError, match="damaged"):
        RunWatch(tmp_path).document()
