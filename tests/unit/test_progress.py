"""Progress of long work: on stderr only, plain without a terminal, JSON lines when asked for."""

import io
import json

import pytest
from rich.console import Console

import client.cli
from iedn import console, progress
from iedn.console import showing_progress


def plain_lines(capsys):
    return [line.split(" ", 1)[1] for line in capsys.readouterr().err.splitlines()]


def test_work_that_cannot_be_counted_has_a_line_at_its_beginning(capsys):
    times = iter([0.0, 1.0, 10.0, 17.0])
    end = progress.add_sink(console._PlainLines(clock=lambda: next(times)))
    with progress.step("a quick step"):
        pass
    with progress.step("a slow step"):
        pass
    end()
    # The slow one took 7 s, more than the 5 s between two lines; the quick one 1 s.
    assert plain_lines(capsys) == [
        "a quick step ...",
        "a slow step ...",
        "a slow step: done in 7 s",
    ]


def test_a_step_that_fails_is_not_said_to_be_done(capsys):
    with pytest.raises(OSError, match="full"), showing_progress(), progress.step("writing"):
        raise OSError("full")
    assert plain_lines(capsys) == ["writing ..."]


def test_one_of_one_is_counted_like_any_other_number(capsys):
    with showing_progress():
        progress.report("scans", 1, 1)
    assert plain_lines(capsys) == ["scans: 1/1"]


def test_terminal_gets_bars_and_counts(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(console, "_errors", terminal)
    with showing_progress():
        progress.report("scans", 3, 5)
        with progress.step("page and figures"):
            pass
    shown = screen.getvalue()
    assert "\x1b[" in shown
    for text in ("scans", "3/5", "page and figures", "1/1"):
        assert text in shown


@pytest.mark.parametrize(
    "words",
    [
        ("check", "--offline", "--preset", "tiny", "--overlays", "1"),
        ("manifest", "--scan", "."),
        ("ledger", "--verify"),
    ],
)
def test_commands_keep_progress_off_stdout_and_colours_off_pipes(
    bad, call, monkeypatch, tmp_path, words
):
    site = bad.Site(tmp_path, patients=1)
    site.write()
    monkeypatch.chdir(tmp_path)
    asked = ("--site", tmp_path, *words, *(("--force",) if words[0] == "manifest" else ()))
    code, out, error = call(client.cli.main, *asked)
    assert code == 0, error
    assert "\x1b" not in out + error
    assert error, "something is said of what goes on"
    code, out, error = call(client.cli.main, *asked, "--json")
    assert code == 0
    json.loads(out)
    reports = [json.loads(line) for line in error.splitlines()]
    assert reports
    assert all(set(report) == {"task", "done", "total"} for report in reports)
