"""What ``check`` says of the privacy ledger before a site joins."""

import pytest

from client import ledger_facts as module
from client.accounting import PrivacyEvent
from client.ledger import COPY, LEDGER, PrivacyLedger
from client.ledger_facts import file_system_of, ledger_facts
from sites.config import SiteConfig
from sites.privacy import PrivacyConfig


def config(folder, **privacy):
    policy = PrivacyConfig(**{"tier": "formal", "epsilon": 8.0, **privacy})
    return SiteConfig(name="site-a", manifest=folder / "m.csv", folder=folder, privacy=policy)


def spend(folder, number):
    ledger = PrivacyLedger.open(
        folder, epsilon_max=8.0, delta=1e-3, accountant=lambda events, _: float(len(events))
    )
    event = PrivacyEvent(noise_multiplier=1.5, sample_rate=0.125, steps=3)
    ledger.reserve(event, run="glioma-cbv", round_number=number, base_hash="b" * 64)


def test_site_without_noise_has_no_line(tmp_path):
    assert ledger_facts(config(tmp_path, tier="off")) == []
    evaluator = config(tmp_path).model_copy(update={"role": "evaluate"})
    assert ledger_facts(evaluator) == []


def test_ledger_that_is_whole_and_copy_on_the_same_disk(tmp_path):
    new, *_ = ledger_facts(config(tmp_path))
    assert (new.status, new.found) == ("ok", "no privacy spent yet, of epsilon 8")
    spend(tmp_path, 1)
    state, disk = ledger_facts(config(tmp_path))
    assert state.status == "ok"
    assert state.found.startswith("epsilon 1.00 of 8 spent (delta 0.001), 2 entries")
    assert (disk.status, disk.action) == ("warning", "set ledger_copy to a file on another disk")
    # What was spent stays of interest when noise is switched off.
    assert ledger_facts(config(tmp_path, tier="off"))[0].found == state.found


def test_restored_ledger_fails_with_7(tmp_path):
    spend(tmp_path, 1)
    backup = (tmp_path / LEDGER).read_bytes()
    spend(tmp_path, 2)
    (tmp_path / LEDGER).write_bytes(backup)
    (fact,) = ledger_facts(config(tmp_path))
    assert (fact.status, fact.exit_code) == ("failed", 7)
    assert COPY in fact.found
    assert "privacy-ledger.md" in fact.action


@pytest.mark.parametrize(
    ("change", "action"),
    [({"epsilon": 9.0}, "ledger --raise-to"), ({"delta": 1e-4}, "privacy.delta to 0.001")],
)
def test_policy_that_the_ledger_would_refuse_fails_with_3(tmp_path, change, action):
    spend(tmp_path, 1)
    fact, *_ = ledger_facts(config(tmp_path, **change))
    assert (fact.status, fact.exit_code) == ("failed", 3)
    assert action in fact.action


def test_network_disk_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "file_system_of", lambda _: "nfs4")
    *_, fact = ledger_facts(config(tmp_path))
    assert (fact.status, fact.found) == ("failed", f"{tmp_path} is nfs4")


def test_file_system_is_that_of_the_nearest_mount(tmp_path, monkeypatch):
    table = tmp_path / "mounts"
    table.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path}/a\\040b nfs4 rw 0 0\n")
    monkeypatch.setattr(module, "_MOUNTS", table)
    (tmp_path / "a b" / "site").mkdir(parents=True)
    assert file_system_of(tmp_path / "a b" / "site") == "nfs4"
    assert file_system_of(tmp_path / "c") == "ext4"
    monkeypatch.setattr(module, "_MOUNTS", tmp_path / "none")
    assert file_system_of(tmp_path) == ""
