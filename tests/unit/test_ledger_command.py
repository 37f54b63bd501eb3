"""``iedn-client ledger``: what it shows, checks, plans and writes.

Epsilon is the number of steps here, so that plans can be worked out by hand.
"""

import json
import sqlite3

import pytest

import client.cli
from client.accounting import PrivacyEvent
from client.ledger import COPY, LEDGER, PrivacyLedger
from client.ledger_command import up

SITE = """name = "site-a"
manifest = "m.csv"
[privacy]
tier = "formal"
epsilon = 8.0
delta = 0.001
"""
PLAN = ("--rounds", 5, "--steps", 2, "--noise", 1.5, "--patients", 120, "--batch", 15)


def count_steps(events, delta):
    return float(sum(event.steps for event in events))


@pytest.fixture
def run(call, tmp_path, monkeypatch):
    monkeypatch.setattr("client.ledger_command.epsilon_in_time", count_steps)
    (tmp_path / "site.toml").write_text(SITE)

    def ledger(*words):
        return call(client.cli.main, "--site", tmp_path, "ledger", *words)

    return ledger


@pytest.fixture
def spent(tmp_path):
    """A ledger with one round of 3 steps."""
    ledger = PrivacyLedger.open(tmp_path, epsilon_max=8.0, delta=1e-3, accountant=count_steps)
    event = PrivacyEvent(noise_multiplier=1.5, sample_rate=0.125, steps=3)
    ledger.reserve(event, run="glioma-cbv", round_number=1, base_hash="b" * 64)
    return ledger


def test_site_without_a_ledger_says_so_and_makes_none(run, tmp_path):
    for words in ((), ("--verify",)):
        code, out, _ = run(*words)
        assert code == 0
        assert "no privacy has been spent" in out
    assert json.loads(run("--json")[1])["entries"] == []
    assert not (tmp_path / LEDGER).exists()


def test_without_a_terminal_each_entry_is_a_line(run, spent):
    code, out, _ = run()
    assert code == 0
    opened, round_1, total = out.splitlines()
    assert "opened: epsilon_max 8" in opened
    assert round_1.split("  ")[2:] == ["glioma-cbv round 1", "1.5", "0.125", "3", "3.00"]
    assert total.startswith("epsilon 3.00 of 8 spent (delta 0.001) over all runs; count 2")


def test_with_a_terminal_it_is_a_table(run, spent, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    out = run()[1]
    assert "Privacy spent" in out
    for cell in ("glioma-cbv", "round 1", "1.5", "0.125", "3.00"):
        assert cell in out


def test_json_has_everything(run, spent):
    found = json.loads(run("--json")[1])
    assert (found["count"], found["epsilon"], found["epsilon_max"]) == (2, 3.0, 8.0)
    assert found["hash"] == spent.head().hash == found["entries"][-1]["hash"]
    assert found["entries"][1]["noise_multiplier"] == 1.5


def test_verify_names_what_it_has_checked(run, spent, tmp_path):
    code, out, _ = run("--verify")
    assert code == 0
    assert "2 entries, chain whole" in out
    assert f"{COPY}: in step" in out
    assert "computed again from all entries: 3.00" in out
    assert spent.head().hash in out


def test_verify_finds_an_epsilon_that_is_too_small(run, spent, monkeypatch):
    monkeypatch.setattr(
        "client.ledger_command.epsilon_in_time", lambda events, delta: 3.2 if events else 0.0
    )
    code, _, error = run("--verify")
    assert code == 7
    assert "its entries cost 3.2" in error


def test_ledger_that_was_changed_is_4_and_one_that_was_restored_is_7(run, spent, tmp_path):
    backup = (tmp_path / LEDGER).read_bytes()
    event = PrivacyEvent(noise_multiplier=1.5, sample_rate=0.125, steps=3)
    spent.reserve(event, run="glioma-cbv", round_number=2, base_hash="c" * 64)
    (tmp_path / LEDGER).write_bytes(backup)
    code, _, error = run("--verify")
    assert code == 7
    assert "--recover" in error
    connection = sqlite3.connect(tmp_path / LEDGER, isolation_level=None)
    connection.execute("DROP TRIGGER no_update")
    connection.execute("UPDATE entries SET entry = replace(entry, '\"steps\": 3', '\"steps\": 1')")
    connection.close()
    code, _, error = run("--verify")
    assert code == 4
    assert "line 2 does not fit the chain" in error.replace("\n", "")


def test_plan_says_what_a_run_costs_on_top_of_what_was_spent(run, spent):
    """5 rounds of 2 steps: 10; with the 3 spent, 13 of 8. Two rounds fit: 3 + 4 = 7."""
    code, out, _ = run("--plan", *PLAN)
    assert code == 0
    assert "by itself      epsilon 10.00" in out
    assert "spent so far   epsilon 3.00" in out
    assert "together       epsilon 13.00 of 8: NOT affordable" in out
    assert "the budget allows 2 of the 5 rounds" in out
    found = json.loads(run("--plan", "--json", *PLAN)[1])
    assert (found["alone"], found["after"], found["affordable_rounds"]) == (10.0, 13.0, 2)


def test_plan_without_a_ledger_takes_the_policy(run):
    words = ("--rounds", 4, "--steps", 2, "--noise", 1.5, "--patients", 1200, "--batch", 15)
    out = run("--plan", *words)[1]
    assert "together       epsilon 8.00 of 8: affordable" in out
    assert "too large" in out  # 0.001 is more than 1 / 1200


@pytest.mark.parametrize("missing", range(0, len(PLAN), 2), ids=lambda n: PLAN[n])
def test_plan_that_is_not_complete_is_3(run, missing):
    words = PLAN[:missing] + PLAN[missing + 2 :]
    code, _, error = run("--plan", *words)
    assert code == 3
    assert "batch <= patients" in error.replace("\n", "")


def test_what_is_written_by_hand_needs_a_reason(run, spent):
    for words in (("--record", *PLAN), ("--raise-to", 12), ("--recover",)):
        code, _, error = run(*words)
        assert code == 7
        assert "reason" in error
    assert spent.head().count == 2


def test_limit_is_raised_and_unknown_expenses_are_recorded(run, spent):
    assert run("--raise-to", 40, "--reason", "board 4/26")[0] == 0
    code, out, _ = run("--record", *PLAN, "--reason", "pilot study")
    assert code == 0
    assert "recorded: pilot study" in out
    assert "raised: epsilon_max 40: board 4/26" in run()[1]
    assert spent.epsilon() == 13.0


def test_writing_to_no_ledger_is_3(run):
    for words in (("--raise-to", 40), ("--record", *PLAN), ("--recover",)):
        code, _, error = run(*words, "--reason", "why not")
        assert code == 3
        assert "no privacy ledger yet" in error.replace("\n", "")


def test_two_things_at_once_are_3(run, spent):
    code, _, error = run("--plan", "--verify", *PLAN)
    assert code == 3
    assert "one of them" in error


@pytest.mark.parametrize(
    ("epsilon", "shown"), [(0.0, "0.00"), (4.5301, "4.54"), (4.53, "4.53"), (7.999, "8.00")]
)
def test_epsilon_is_shown_rounded_up(epsilon, shown):
    assert up(epsilon) == shown
