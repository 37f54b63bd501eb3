"""The privacy ledger: spent before it is used, never overdrawn, never forgotten.

Most tests count steps: their accountant's epsilon is the number of steps, so that every budget
can be worked out by hand.
"""

import contextlib
import json
import os
import resource
import sqlite3
import stat
import threading
import time

import pytest

from client.accounting import PrivacyEvent
from client.ledger import COPY, LEDGER, Places, PrivacyLedger
from iedn.errors import CohortError, ConfigError, LedgerError, PolicyError
from sites.hash_chain import FIRST
from sites.release_log import verify

BASE = "b" * 64


def count_steps(events, delta):
    return float(sum(event.steps for event in events))


def event(steps=10, noise=1.0):
    return PrivacyEvent(noise_multiplier=noise, sample_rate=0.125, steps=steps)


def opened(folder, *, epsilon_max=100.0, delta=1e-3, accountant=count_steps, copy=None):
    return PrivacyLedger.open(
        folder, epsilon_max=epsilon_max, delta=delta, accountant=accountant, copy=copy
    )


def spend(ledger, number, steps=10, **changes):
    purpose = {"run": "run-1", "round_number": number, "base_hash": BASE, **changes}
    return ledger.reserve(event(steps), **purpose)


def answer(ledger, number, **changes):
    ledger.answered(**{"run": "run-1", "round_number": number, "base_hash": BASE, **changes})


def connected(folder):
    return sqlite3.connect(folder / LEDGER, isolation_level=None)


def rows(folder):
    connection = connected(folder)
    try:
        return [json.loads(line) for (line,) in connection.execute("SELECT entry FROM entries")]
    finally:
        connection.close()


def test_new_ledger_has_spent_nothing_and_is_its_owners_alone(tmp_path):
    head = opened(tmp_path).head()
    assert (head.count, head.epsilon) == (1, 0.0)
    assert stat.S_IMODE((tmp_path / LEDGER).stat().st_mode) == 0o600
    (first,) = rows(tmp_path)
    assert (first["kind"], first["epsilon_max"], first["delta"]) == ("opened", 100.0, 1e-3)
    assert first["previous"] == FIRST


def test_reserving_is_spending_and_counts_over_runs(tmp_path):
    ledger = opened(tmp_path)
    assert spend(ledger, 1).epsilon == 10.0
    spend(ledger, 2, steps=5)
    answer(ledger, 2)
    assert spend(opened(tmp_path), 1, run="run-2", steps=7).epsilon == 22.0
    assert opened(tmp_path).epsilon() == 22.0
    kinds = [row["kind"] for row in rows(tmp_path)]
    assert kinds == ["opened", "spent", "spent", "answered", "spent"]
    assert opened(tmp_path).head().count == 4


def test_entry_is_on_the_disk_and_in_both_files_before_reserve_returns(tmp_path, monkeypatch):
    """A commit in WAL mode reaches the disk only with ``synchronous`` FULL (2) or EXTRA (3)."""
    seen = []
    connect = sqlite3.connect

    def watched(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(seen.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", watched)
    ledger = opened(tmp_path)
    seen.clear()
    reservation = spend(ledger, 1)
    assert "PRAGMA synchronous = FULL" in seen
    assert seen.index("BEGIN IMMEDIATE") < seen.index("COMMIT")
    monkeypatch.undo()
    connection = connected(tmp_path)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert verify(tmp_path / COPY) == rows(tmp_path)
    assert rows(tmp_path)[-1]["number"] == reservation.number == 2


def test_what_would_exceed_the_budget_is_refused_without_a_number(tmp_path):
    ledger = opened(tmp_path, epsilon_max=25.0)
    spend(ledger, 1)
    spend(ledger, 2)
    with pytest.raises(PolicyError, match="budget") as refused:
        spend(ledger, 3)
    assert refused.value.exit_code == 7
    assert not any(character.isdigit() for character in str(refused.value))
    assert ledger.epsilon() == 20.0
    assert spend(ledger, 3, steps=5).epsilon == 25.0  # exactly the budget


def test_check_says_what_reserve_would_and_spends_nothing(tmp_path):
    ledger = opened(tmp_path, epsilon_max=25.0)
    purpose = {"run": "run-1", "round_number": 3, "base_hash": BASE}
    ledger.check(event(25), **purpose)
    assert ledger.epsilon() == 0.0
    spend(ledger, 3, steps=20)
    before = rows(tmp_path)
    ledger.check(event(20), **purpose)  # what was reserved and came to nothing serves again
    with pytest.raises(PolicyError, match="does not allow another round"):
        ledger.check(event(6), **purpose)
    answer(ledger, 3)
    with pytest.raises(PolicyError, match="does not allow another round"):
        ledger.check(event(20), **purpose)
    assert [row["kind"] for row in rows(tmp_path)[len(before) :]] == ["answered"]


def test_cost_that_is_not_a_number_is_refused(tmp_path):
    ledger = opened(tmp_path, accountant=lambda events, delta: float("nan"))
    with pytest.raises(PolicyError, match="budget"):
        spend(ledger, 1)


def test_repeat_spends_again_only_once_an_answer_has_left(tmp_path):
    ledger = opened(tmp_path)
    first = spend(ledger, 1)
    again = spend(opened(tmp_path), 1)  # killed while training: nothing had left
    assert (first.is_new, again.is_new) == (True, False)
    assert (again.number, again.epsilon) == (first.number, 10.0)
    answer(ledger, 2)
    assert not spend(ledger, 1).is_new
    answer(ledger, 1)
    assert spend(ledger, 1).epsilon == 20.0  # the kept reply is lost: another release


@pytest.mark.parametrize(
    "other", [{"run": "run-2"}, {"number": 2}, {"base_hash": "c" * 64}, {"steps": 11}], ids=str
)
def test_only_the_very_same_request_is_served_by_an_earlier_reservation(tmp_path, other):
    ledger = opened(tmp_path)
    spend(ledger, 1)
    number = other.pop("number", 1)
    assert spend(ledger, number, **other).is_new


def test_nothing_can_be_changed_or_removed(tmp_path):
    ledger = opened(tmp_path)
    spend(ledger, 1)
    answer(ledger, 1)
    connection = connected(tmp_path)
    for statement in (
        "UPDATE entries SET entry = '{}'",
        "DELETE FROM entries",
        "INSERT OR REPLACE INTO entries VALUES (2, '{}')",
        "INSERT INTO entries VALUES (7, '{}')",
    ):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            connection.execute(statement)
    connection.close()
    assert ledger.epsilon() == 10.0


@pytest.mark.parametrize("change", ["edit", "drop-last", "drop-middle"])
def test_tampering_around_the_triggers_is_noticed(tmp_path, change):
    ledger = opened(tmp_path)
    spend(ledger, 1)
    spend(ledger, 2)
    connection = connected(tmp_path)
    for trigger in ("no_update", "no_delete", "no_gap"):
        connection.execute(f"DROP TRIGGER {trigger}")
    statement = {
        "edit": "UPDATE entries SET entry = replace(entry, '\"steps\": 10', '\"steps\": 1')",
        "drop-last": "DELETE FROM entries WHERE number = 3",
        "drop-middle": "DELETE FROM entries WHERE number = 2",
    }[change]
    assert connection.execute(statement).rowcount > 0
    connection.close()
    with pytest.raises((CohortError, LedgerError)):
        spend(ledger, 3)


def test_limits_are_fixed_and_are_raised_only_with_a_reason(tmp_path):
    ledger = opened(tmp_path, epsilon_max=10.0)
    spend(ledger, 1)
    with pytest.raises(ConfigError, match="delta"):
        opened(tmp_path, epsilon_max=10.0, delta=1e-4)
    with pytest.raises(ConfigError, match=r"12 in site\.toml.*--raise-to"):
        opened(tmp_path, epsilon_max=12.0)
    with pytest.raises(PolicyError, match="reason"):
        ledger.raise_limit(12.0, " ")
    with pytest.raises(PolicyError, match="not more"):
        ledger.raise_limit(10.0, "wish")
    ledger.raise_limit(25.0, "board decision 4/26")
    assert rows(tmp_path)[-1]["reason"] == "board decision 4/26"
    with pytest.raises(PolicyError, match="budget"):
        spend(ledger, 2)  # site.toml still says 10
    assert spend(opened(tmp_path, epsilon_max=25.0), 2).epsilon == 20.0
    with pytest.raises(PolicyError, match="budget"):
        spend(opened(tmp_path, epsilon_max=15.0), 3)  # the site may want less at any time


def test_what_was_spent_elsewhere_is_recorded_even_beyond_the_budget(tmp_path):
    ledger = opened(tmp_path, epsilon_max=25.0)
    ledger.record(event(30), "pilot study of 2024")
    assert ledger.epsilon() == 30.0
    with pytest.raises(PolicyError, match="budget"):
        spend(ledger, 1)


def test_restored_older_ledger_is_noticed_and_recovered(tmp_path):
    ledger = opened(tmp_path)
    spend(ledger, 1)
    answer(ledger, 1)
    backup = (tmp_path / LEDGER).read_bytes()
    spend(ledger, 2)
    answer(ledger, 2)
    before = ledger.head()
    (tmp_path / LEDGER).write_bytes(backup)
    for call in (ledger.epsilon, lambda: spend(ledger, 3), lambda: opened(tmp_path)):
        with pytest.raises(LedgerError, match=r"has 5 entries and the ledger 3.*--recover"):
            call()
    with pytest.raises(PolicyError, match="reason"):
        ledger.recover("")
    ledger.recover("disk replaced, backup of Monday")
    assert before.hash in [row["hash"] for row in rows(tmp_path)]
    assert ledger.head().count == before.count + 1
    assert ledger.epsilon() == 20.0
    assert spend(ledger, 2).is_new


def test_answer_that_a_backup_has_forgotten_is_noticed(tmp_path):
    ledger = opened(tmp_path)
    spend(ledger, 1)
    backup = (tmp_path / LEDGER).read_bytes()
    answer(ledger, 1)
    head = ledger.head()
    answer(ledger, 1)
    assert ledger.head() == head, "a repeated answer is noted once"
    (tmp_path / LEDGER).write_bytes(backup)
    with pytest.raises(LedgerError, match="has 3 entries and the ledger 2"):
        spend(ledger, 1)


def test_after_recovery_nothing_counts_as_unanswered(tmp_path):
    ledger = opened(tmp_path)
    spend(ledger, 1)
    ledger.recover("to be sure")
    again = spend(ledger, 1)
    assert (again.is_new, again.epsilon) == (True, 20.0)


def test_ledger_that_is_gone_is_not_begun_anew(tmp_path):
    spend(opened(tmp_path), 1)
    (tmp_path / LEDGER).unlink()
    with pytest.raises(LedgerError, match="2 entries"):
        opened(tmp_path)
    PrivacyLedger(Places.of(tmp_path)).recover("deleted by mistake")
    assert opened(tmp_path).epsilon() == 10.0


def test_second_file_that_is_gone_stops_spending_until_it_is_made_again(tmp_path):
    elsewhere = tmp_path / "share" / "copy.jsonl"
    ledger = opened(tmp_path, copy=elsewhere)
    spend(ledger, 1)
    elsewhere.unlink()
    with pytest.raises(LedgerError, match="missing or empty"):
        spend(ledger, 2)
    ledger.recover("share was formatted")
    assert verify(elsewhere) == rows(tmp_path)
    assert spend(ledger, 2).epsilon == 20.0


def test_two_histories_are_not_mended_by_guessing(tmp_path):
    ledger = opened(tmp_path)
    backup = (tmp_path / LEDGER).read_bytes()
    spend(ledger, 1)
    copy = (tmp_path / COPY).read_bytes()
    (tmp_path / LEDGER).write_bytes(backup)
    (tmp_path / COPY).unlink()
    spend(ledger, 2)
    spend(ledger, 3)
    (tmp_path / COPY).write_bytes(copy)
    with pytest.raises(LedgerError, match="another ledger"):
        ledger.epsilon()
    with pytest.raises(LedgerError, match="from entry 2 on"):
        ledger.recover("do it anyway")


def test_copy_completes_what_a_killed_process_left_out(tmp_path):
    ledger = opened(tmp_path)
    spend(ledger, 1)
    whole = (tmp_path / COPY).read_bytes()
    for torn in (whole[:-30], whole[: whole.index(b"\n") + 1]):
        (tmp_path / COPY).write_bytes(torn)
        assert opened(tmp_path).epsilon() == 10.0
        assert (tmp_path / COPY).read_bytes() == whole


def test_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    ledger = opened(tmp_path)
    spend(ledger, 1)
    monkeypatch.setattr("sites.hash_chain.time.gmtime", lambda: (2001, 1, 1, 0, 0, 0, 0, 1, 0))
    assert spend(ledger, 2).epsilon == 20.0
    assert [row["number"] for row in rows(tmp_path)] == [1, 2, 3]
    assert rows(tmp_path)[-1]["time"].startswith("2001-01-01")
    assert opened(tmp_path).epsilon() == 20.0


@pytest.mark.parametrize("place", [LEDGER, COPY])
def test_nothing_is_reserved_where_it_cannot_be_written(tmp_path, monkeypatch, place):
    ledger = opened(tmp_path)
    spend(ledger, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    if place == COPY:
        monkeypatch.setattr("client.ledger_copy.append_line", full)
    else:
        monkeypatch.setattr("client.ledger_store._commit", full)
    with pytest.raises(LedgerError, match="No space left"):
        spend(ledger, 2)
    monkeypatch.undo()
    assert opened(tmp_path).epsilon() in (10.0, 20.0)
    assert spend(ledger, 2).epsilon == 20.0, "spent once, whether or not it was written before"


def in_a_process(work):
    """Its pid; the process ends with 0 if ``work`` returned."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_processes_that_race_never_overshoot(tmp_path):
    """While one computes, the others go on: every head is seen moving. 9 of 21 rounds fit."""

    def slowly(events, delta):
        time.sleep(0.003)
        return count_steps(events, delta)

    def work(run):
        ledger = opened(tmp_path, epsilon_max=95.0, accountant=slowly)
        for number in range(1, 8):
            with contextlib.suppress(PolicyError):
                spend(ledger, number, run=run)

    children = [in_a_process(lambda run=run: work(run)) for run in ("run-1", "run-2", "run-3")]
    assert [ended(child) for child in children] == [0, 0, 0]
    spent = [row["epsilon"] for row in rows(tmp_path)]
    assert spent == [10.0 * n for n in range(10)]
    assert verify(tmp_path / COPY) == rows(tmp_path)


def test_threads_of_one_process_may_share_it(tmp_path):
    ledger = opened(tmp_path)
    threads = [threading.Thread(target=spend, args=(ledger, n)) for n in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.epsilon() == 40.0


def test_file_that_may_not_grow_stops_spending(tmp_path):
    """The system refuses to write beyond the limit, as on a full disk."""
    ledger = opened(tmp_path)
    spend(ledger, 1)

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        with pytest.raises(LedgerError, match="cannot be used"):
            spend(ledger, 2)

    assert ended(in_a_process(work)) == 0
    assert ledger.epsilon() == 10.0
    assert spend(ledger, 2).epsilon == 20.0
