"""Training with noise in a federation: real sites, real messages, real ledgers."""

import json

import numpy as np
import pytest
import tomli_w

from client.accounting import PrivacyEvent, epsilon_of
from client.kept_reply import FILE as KEPT
from client.privacy import SystemEntropy
from client.session import SiteSession
from client.spending import open_ledger
from client.training import answer_training
from iedn.config import PRESETS, PrivacyDemand, TrainingConfig
from iedn.errors import ConfigError, PolicyError
from iedn.model import build_network
from iedn.parameters import flatten, state_by_group
from iedn.protocol.messages import TrainRequest
from server.config import FederationConfig, RoundsConfig, SiteEntry
from simulation.engine import run_in_process
from sites.config import load_site_config

PRESET = PRESETS["tiny"]
SITE = {
    "manifest": "manifest.csv",
    "workers": 1,
    "policy": {"min_patients": 1, "min_group_sites": 1},
    "split": {"train": 0.6, "validation": 0.2, "test": 0.2},
}
NOISE = {"noise_multiplier": 2.0, "sample_rate": 0.5, "patients_per_step": 2, "delta": 0.01}
FORMAL = {"tier": "formal", **NOISE}
GUARD = {"tier": "reconstruction-guard", "clip": 0.5, **NOISE}


def write_site(bad, folder, name, privacy, patients=6):
    bad.Site(folder, patients=patients).write()
    content = {"name": name, **SITE, "privacy": privacy}
    (folder / "site.toml").write_text(tomli_w.dumps(content))


@pytest.fixture
def federation(bad, tmp_path):
    """Runs two rounds with sites of the given policies; gives the folder and its events."""

    def run(policies, rounds=2, **changes):
        for name, privacy in policies.items():
            write_site(bad, tmp_path / "sites" / name, name, privacy)
        config = FederationConfig(
            run="private",
            seed=1,
            preset="tiny",
            training=TrainingConfig(local_steps=2, batch_size=2, threads=1),
            rounds=RoundsConfig(count=rounds, quorum=1, poll_interval_s=0.02),
            sites={name: SiteEntry() for name in policies},
            simulation=True,
            **changes,
        )
        content = config.model_dump(mode="json", exclude_none=True)
        (tmp_path / "federation.toml").write_text(tomli_w.dumps(content))
        run_in_process(tmp_path, config, workers=1)
        lines = (tmp_path / "history.jsonl").read_text().splitlines()
        return tmp_path, [json.loads(line) for line in lines]

    return run


def test_federation_with_noise_comes_to_its_end_and_pays(federation):
    folder, events = federation({"site-a": FORMAL, "site-b": GUARD, "site-c": {}})
    commits = [e for e in events if e["event"] == "commit" and e["round"]]
    assert len(commits) == 2
    assert events[-1]["event"] == "finished"
    for commit in commits:
        roster = commit["roster"]
        assert {r["status"] for r in roster.values()} == {"accepted"}
        assert set(roster["site-a"]["weights"]) == {"decoder"}, "encoders stay as they came"
        assert len(roster["site-b"]["weights"]) > 1
    expected = epsilon_of([PrivacyEvent(2.0, 0.5, 4)], 0.01)
    for name in ("site-a", "site-b"):
        ledger = open_ledger(load_site_config(folder / "sites" / name / "site.toml"))
        assert ledger.epsilon() == pytest.approx(expected)
    assert not (folder / "sites" / "site-c" / "ledger.sqlite").exists()
    kinds = (folder / "sites" / "site-a" / "releases.jsonl").read_text().splitlines()
    replies = [json.loads(k)["message"] for k in kinds if json.loads(k)["kind"] == "train-reply"]
    assert [r["epsilon"] for r in replies] == sorted(r["epsilon"] for r in replies)
    assert replies[-1]["epsilon"] == pytest.approx(expected)


# --- one request --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cohort(bad, tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    write_site(bad, folder, "site-a", GUARD | {"epsilon": 1000.0})
    return folder


def session_with(folder, **changes):
    config = load_site_config(folder / "site.toml")
    privacy = config.privacy.model_copy(update=changes)
    return SiteSession(config.model_copy(update={"privacy": privacy}))


def request(groups, *, seed=1, number=1, **changes):
    fields = {
        "run": "run-1",
        "round": number,
        "base_hash": "c" * 64,
        "grid": PRESET.grid,
        "network": PRESET.network,
        "training": TrainingConfig(local_steps=1, threads=1),
        "seed": seed,
        "group_sites": dict.fromkeys(groups, 3),
    }
    return TrainRequest(**(fields | changes))


@pytest.fixture(scope="module")
def model(cohort):
    session = session_with(cohort)
    modalities = session.counts(PRESET.grid).scans_by_modality
    network = PRESET.network.model_copy(update={"modalities": tuple(modalities)})
    return state_by_group(build_network(network, seed=1))


def update_of(folder, model, **changes):
    (folder / KEPT).unlink(missing_ok=True)
    _, deltas = answer_training(session_with(folder), request(model, **changes), model)
    return flatten(deltas)


def is_same(first, second):
    return all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("seed", range(5))
def test_noise_does_not_come_from_the_server(cohort, model, monkeypatch, seed, seeded_entropy):
    """The same request twice gives other noise; if the run's seed gave it, it would not."""
    numbers = {"seed": seed, "number": 1 + seed}
    assert not is_same(update_of(cohort, model, **numbers), update_of(cohort, model, **numbers))
    for name in ("draw", "noise", "augmentation"):

        def planted(self, *arguments, name=name):
            return getattr(seeded_entropy(seed), name)(*arguments)

        monkeypatch.setattr(SystemEntropy, name, planted)
    assert is_same(update_of(cohort, model, **numbers), update_of(cohort, model, **numbers))


def test_repeated_request_is_answered_from_the_kept_reply_and_costs_nothing(cohort, model):
    session = session_with(cohort)
    first = answer_training(session, request(model, number=50), model)
    spent = open_ledger(session.config).epsilon()
    again = answer_training(session, request(model, number=50), model)
    assert first[0] == again[0]
    assert is_same(flatten(first[1]), flatten(again[1]))
    assert open_ledger(session.config).epsilon() == spent


def test_server_may_ask_for_more_noise_and_never_for_less(cohort, model):
    from client.private_training import plan_round

    session = session_with(cohort)
    for asked, expected in ((5.0, 5.0), (0.5, 2.0)):
        demand = PrivacyDemand(noise_multiplier=asked)
        made = plan_round(session, request(model, privacy=demand), list(model))
        assert made.event == PrivacyEvent(expected, 0.5, 1)


def test_run_that_asks_for_a_stronger_tier_is_refused_before_anything_is_spent(cohort, model):
    session = session_with(cohort)
    before = open_ledger(session.config).entries()
    asked = request(model, number=60, privacy=PrivacyDemand(tier="formal"))
    with pytest.raises(PolicyError, match="reconstruction-guard"):
        answer_training(session, asked, model)
    with pytest.raises(PolicyError, match="'off'"):
        answer_training(session_with(cohort, tier="off"), asked, model)
    assert open_ledger(session.config).entries() == before


def test_delta_that_would_give_a_patient_away_is_refused(cohort, model):
    with pytest.raises(ConfigError, match=r"privacy\.delta"):
        answer_training(session_with(cohort, delta=0.4), request(model, number=70), model)


@pytest.mark.parametrize("part", ["all", "decoder", "norms"])
def test_only_the_part_that_the_policy_names_moves(cohort, model, part):
    session = session_with(cohort, part=part)
    (cohort / KEPT).unlink(missing_ok=True)
    reply, deltas = answer_training(session, request(model, number=80), model)
    assert set(reply.weights) | set(reply.held_groups) == set(model)
    moved = {name for name, delta in flatten(deltas).items() if delta.any()}
    everything = set(flatten(model))
    expected = {
        "all": everything,
        "decoder": {n for n in everything if not n.startswith("encoders.")},
        "norms": {n for n in everything if ".norm." in n},
    }[part]
    assert moved == expected
