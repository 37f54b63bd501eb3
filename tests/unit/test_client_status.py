"""What a running client shows, on its screen and to ``iedn-client status``: one document."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

import client.cli
from client import activity, board, screen, status_cli
from client.activity import Activity
from client.board import Board, collecting, read_status, write_status
from client.ledger_command import ledger_parts
from client.spending import open_ledger
from client.status import SiteFiles, line, renderable, status_document
from iedn import progress
from iedn.files import only_process
from sites.config import load_site_config
from sites.release_log import ReleaseLog, latest

NOW = 1_900_000_000.0  # 2030-03-17T17:46:40Z
SITE = """
name = "site-x"
manifest = "sub-0007/manifest.csv"

[coordinator]
address = "coordinator.example:9092"
federations = ["glioma"]
"""
NO_PROCESS = 2**22 + 1  # above the largest process number there can be


@pytest.fixture
def config(tmp_path):
    (tmp_path / "site.toml").write_text(SITE)
    return load_site_config(tmp_path / "site.toml")


def content(**changed):
    """Of a client that is at step 12 of 64 of round 3, and has an hour left."""
    task = {"name": "training steps of round 3", "done": 12, "total": 64}
    known = {"asked": "train", "run": "glioma", "round": 3, "deadline": NOW + 3600, "until": None}
    times = {"started": NOW - 600, "time": NOW - 1, "since": NOW - 60, "heard": NOW - 2}
    return {"pid": os.getpid(), "state": "working", "task": task, **known, **times, **changed}


def document(config, found):
    return status_document(config, found, SiteFiles(config), now=NOW)


def text_of(shown):
    console = Console(width=100, force_terminal=False)
    with console.capture() as captured:
        console.print(renderable(shown))
    return captured.get()


def test_board_follows_what_is_reported(tmp_path):
    times = iter(range(100, 200))
    heard = tmp_path / "heard"
    found = Board("site-x", heard, clock=lambda: float(next(times)))
    with collecting(found):
        activity.report(Activity("connecting"))  # as it was: no new time
        activity.report(Activity("waiting"))  # at 101
        assert found.content()["state"] == "connecting", "the coordinator has not answered yet"
        heard.touch()
        os.utime(heard, (150, 150))
        assert found.content()["state"] == "waiting"
        asked = Activity("working", asked="train", run="glioma", round=3, deadline=999.0)
        activity.report(asked)
        progress.report("site-x: preparing scans", 2, 5)
        shown = found.content()
        assert (shown["state"], shown["run"], shown["round"]) == ("working", "glioma", 3)
        assert (shown["deadline"], shown["heard"]) == (999.0, 150.0)
        assert shown["task"] == {"name": "preparing scans", "done": 2, "total": 5}
        assert shown["since"] > 101
        activity.report(Activity("sending"))
        sending = found.content()
        assert (sending["state"], sending["round"], sending["task"]) == ("sending", 3, None)
    activity.report(Activity("waiting"))
    assert found.content()["state"] == "sending", "reports after the block do not count"


def test_document_by_hand(config):
    found = document(config, content())
    assert found["client"] == "running"
    assert found["doing"] == "training steps of round 3: 12 of 64"
    assert found["time"] == "2030-03-17T17:46:40Z"
    assert found["deadline"] == "2030-03-17T18:46:40Z"
    assert found["deadline_in_s"] == 3600
    assert found["link"]["state"] == "up"
    assert found["left"] == {"count": 0, "latest": [], "error": None}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("changed", "doing"),
    [
        ({"state": "connecting", "task": None}, "connecting to the coordinator"),
        ({"state": "waiting", "task": None}, "waiting for the coordinator"),
        ({"state": "sending", "task": None}, "sending the answer of round 3"),
        ({"task": None}, "training, round 3"),
        ({"task": None, "asked": "evaluate"}, "evaluating, round 3"),
        (
            {"task": None, "asked": "capabilities", "round": None},
            "saying what it could contribute",
        ),
    ],
)
def test_what_is_done_in_words(config, changed, doing):
    assert document(config, content(**changed))["doing"] == doing


def test_a_pause_says_until_when_by_this_machines_clock(config):
    until = NOW + 10
    found = document(config, content(state="pausing", task=None, until=until))
    clock = time.strftime("%H:%M:%S", time.localtime(until))
    assert found["doing"] == f"no connection; trying again at {clock}"


@pytest.mark.parametrize(
    # Signs of life come every 15 s; after 30 s the coordinator takes the site for offline.
    ("heard", "state"),
    [(None, "not yet"), (NOW - 30, "up"), (NOW - 31, "lost")],
)
def test_link(config, heard, state):
    found = document(config, content(heard=heard))
    assert found["link"]["state"] == state
    assert "coordinator.example:9092" in text_of(found)


def test_who_waits_without_a_link_waits_for_the_link(config):
    found = document(config, content(state="waiting", task=None, heard=NOW - 31))
    assert found["doing"] == "waiting for the connection to the coordinator"


def test_status_asks_the_node_itself_when_it_was_answered_last(config):
    write_status(config.folder, content(heard=NOW - 20))
    assert read_status(config.folder)["heard"] == NOW - 20
    heard = config.folder / "node" / "heard"
    heard.parent.mkdir()
    heard.touch()
    os.utime(heard, (NOW - 3, NOW - 3))
    assert read_status(config.folder)["heard"] == NOW - 3


def test_a_client_that_was_killed_or_hangs_is_told_from_one_that_runs(config):
    assert document(config, content())["client"] == "running"
    assert document(config, content(time=NOW - 31))["client"] == "silent"
    assert document(config, content(pid=NO_PROCESS))["client"] == "gone"
    assert document(config, None)["client"] == "not running"
    # In another container its number means nothing; the lock does.
    with only_process(config.folder / ".client") as is_ours:
        assert is_ours
        assert document(config, content(pid=NO_PROCESS))["client"] == "running"


def test_status_command_prints_the_same_and_says_by_its_exit_code_whether_a_client_runs(
    call, config, monkeypatch
):
    words = ("--site", config.folder, "status")
    code, out, _ = call(client.cli.main, *words)
    assert code == 1
    assert "does not run" in out
    now = time.time()
    write_status(config.folder, content(time=now, since=now, heard=now, deadline=None))
    code, out, _ = call(client.cli.main, *words)
    assert code == 0
    assert "training steps of round 3: 12 of 64" in out
    code, out, _ = call(client.cli.main, *words, "--json")
    assert code == 0
    assert json.loads(out)["state"] == "working"
    (config.folder / "status.json").write_text("{half")
    assert call(client.cli.main, *words)[0] == 1


def test_watching_draws_the_document_until_interrupted(call, config, monkeypatch):
    write_status(config.folder, content())
    looks = []

    def look_again(_seconds):
        looks.append(1)
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(status_cli, "time", SimpleNamespace(sleep=look_again))
    code, out, _ = call(client.cli.main, "--site", config.folder, "status", "--watch")
    assert code == 130
    assert "training steps of round 3: 12 of 64" in out
    assert len(looks) == 3


def test_what_left_is_shown_last_first(config):
    log = ReleaseLog(config.folder / "releases.jsonl")
    for number in range(1, 8):
        message = {"run": "glioma", "round": number}
        log.append({"kind": "train-reply", "message": message, "bytes": 1_000_000 + number})
    log.append({"kind": "failure-reply", "message": {"code": "policy"}})
    left = document(config, content())["left"]
    assert left["count"] == 8
    assert [entry["kind"] for entry in left["latest"][:2]] == ["failure-reply", "train-reply"]
    assert left["latest"][0]["bytes"] is None
    assert [entry["round"] for entry in left["latest"]] == [None, 7, 6, 5, 4]
    text = text_of(document(config, content()))
    assert "1,000,007" in text
    assert "8 in all" in text


def test_end_of_a_log_is_read_without_the_rest_and_a_torn_line_is_none(tmp_path):
    log = ReleaseLog(tmp_path / "releases.jsonl")
    for number in range(4):
        log.append({"kind": "x" * 40_000, "message": {"round": number}})
    with log.path.open("a") as stream:
        stream.write('{"kind": "torn')
    # Two lines of 40,000 bytes are more than the 65,536 that are read first.
    assert [entry["message"]["round"] for entry in latest(log.path, 2)] == [2, 3]
    assert len(latest(log.path, 9)) == 4
    assert latest(tmp_path / "none.jsonl", 3) == []


def test_a_log_that_cannot_be_read_is_said_and_does_not_stop_the_screen(config):
    (config.folder / "releases.jsonl").write_text("no entry\n")
    found = document(config, content())
    assert "releases" in found["left"]["error"]
    assert found["left"]["error"] in text_of(found)


def test_budget_is_in_the_words_of_the_ledger_command(tmp_path):
    privacy = '\n[privacy]\ntier = "formal"\nepsilon = 8.0\ndelta = 0.001\n'
    (tmp_path / "site.toml").write_text(SITE + privacy)
    config = load_site_config(tmp_path / "site.toml")
    files = SiteFiles(config)
    before = status_document(config, None, files, now=NOW)["privacy"]
    assert before["words"].startswith("no privacy has been spent: this site has no ledger yet")
    open_ledger(config)
    after = status_document(config, None, files, now=NOW)["privacy"]
    ledgers = [str(part) for part in ledger_parts(config, table=False)][-1]
    assert after["words"] == "epsilon 0.00 of 8 spent (delta 0.001) over all runs; 8.00 left"
    assert ledgers.startswith(after["words"].removesuffix("; 8.00 left"))
    assert (after["epsilon_max"], after["left"]) == (8.0, 8.0)


def test_lines_say_at_once_what_has_begun_and_how_far_it_is_now_and_then(config):
    clock, said = [0.0], []
    lines = screen.Lines(lambda found: said.append(line(found)), 30.0, clock=lambda: clock[0])
    for second, done in ((0, 1), (1, 2), (29, 30), (30, 31), (31, 32), (32, 64)):
        clock[0] = float(second)
        task = {"name": "training steps of round 3", "done": done, "total": 64}
        lines(document(config, content(task=task, deadline=None)))
    lines(document(config, content(state="waiting", task=None, deadline=None)))
    lines(document(config, content(state="waiting", task=None, deadline=None)))
    steps = "site-x: training steps of round 3"
    assert said == [
        f"{steps}: 1 of 64",
        f"{steps}: 31 of 64",
        f"{steps}: 64 of 64",
        "site-x: waiting for the coordinator",
    ]


def test_file_of_a_running_client_names_no_patient_and_no_path_and_goes_with_it(
    config, monkeypatch, capsys
):
    monkeypatch.setattr(screen, "LOOK_S", 0.02)
    with screen.shown(config, as_json=True):
        activity.report(Activity("working", asked="train", run="glioma", round=3))
        progress.report("site-x: preparing scans", 1, 2)
        deadline = time.monotonic() + 10
        while (read_status(config.folder) or {}).get("task") is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        path = config.folder / "status.json"
        assert path.stat().st_mode & 0o777 == 0o600
        text = path.read_text()
        assert "sub-0007" not in text
        assert "/" not in text
    assert not path.exists()
    out, _ = capsys.readouterr()
    documents = [json.loads(row) for row in out.splitlines()]
    assert documents[-1]["doing"] == "preparing scans: 1 of 2"
    assert str(config.folder) not in out


def test_a_failure_to_show_does_not_stop_the_client(config, monkeypatch, caplog):
    monkeypatch.setattr(screen, "LOOK_S", 0.02)
    monkeypatch.setattr(screen._log, "propagate", True)
    looks = []

    def full(*_):
        looks.append(1)
        raise OSError("no space left on device")

    monkeypatch.setattr(screen, "write_status", full)
    with screen.shown(config, as_json=True):
        while len(looks) < 3:
            time.sleep(0.02)
    assert caplog.text.count("cannot be shown") == 1, "said once, not every second"


CLIENT = """
import logging, sys, time
from pathlib import Path
from client import activity, screen
from client.activity import Activity
from iedn import console, progress
from sites.config import load_site_config

console._log_to_stderr()
screen.LOOK_S = 0.05
with screen.shown(load_site_config(Path(sys.argv[1])), as_json="--json" in sys.argv):
    activity.report(Activity("working", asked="train", run="glioma", round=3))
    progress.report("site-x: training steps of round 3", 12, 64)
    time.sleep(0.5)
    logging.getLogger("client.x").warning("a line of the log")
    time.sleep(0.3)
    activity.report(Activity("waiting"))
    time.sleep(0.3)
"""


def run_client(config, *words, **pipes):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm"}
    command = [sys.executable, "-c", CLIENT, str(config.folder / "site.toml"), *words]
    return subprocess.Popen(command, env=environment, **pipes)


def test_terminal_gets_a_screen_that_is_drawn_again_below_the_log(config):
    leader, follower = pty.openpty()
    process = run_client(config, stderr=follower, stdout=subprocess.PIPE)
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # how a pty says that the other side has closed it
            break
        seen += part
    assert process.wait(timeout=60) == 0
    assert process.stdout.read() == b"", "the screen is no result"
    process.stdout.close()
    text = seen.decode()
    assert "\x1b[" in text, "it is drawn in place"
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "training steps of round 3: 12 of 64" in plain
    assert "connecting to the coordinator" in plain
    assert plain.count("a line of the log") == 1
    assert "nothing has left this site" in plain


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_without_a_terminal_there_are_lines_without_colours(config, words):
    process = run_client(config, *words, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"\x1b" not in out + error
    if words:
        documents = [json.loads(row) for row in out.decode().splitlines()]
        assert "training steps of round 3: 12 of 64" in [d["doing"] for d in documents]
        assert "site-x" not in error.decode()
    else:
        assert out == b""
        rows = [row.split(" ", 1)[1] for row in error.decode().splitlines()]
        assert "site-x: training steps of round 3: 12 of 64" in rows
        assert "site-x: connecting to the coordinator" in rows


def test_board_is_no_longer_silent_than_its_file_is_old():
    assert screen.WRITE_S * 3 <= board.SILENT_S


def test_json_before_a_command_says_where_it_goes(call, config):
    code, _, error = call(client.cli.main, "--site", config.folder, "--json", "status")
    assert code == 2
    assert "behind the command" in error
