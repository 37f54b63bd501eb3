"""Training with noise under secure aggregation: a masked round is paid for, once.

As in ``masked``, only training is played; with noise it moves every parameter that is trained by
other numbers each time. The accountant counts steps: a round of two steps costs exactly 2.
"""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import client.private_training
from client.ledger import COPY, LEDGER
from client.session import SiteSession, forget_sessions, session_for
from client.spending import open_ledger
from client.training import answer_training
from iedn.errors import RefusedError
from sites.config import SITE_FILE, load_site_config
from sites.release_log import verify
from tests.federation.masked import SITES, commits, events, federation, moved, play, run

NOISE = {"noise_multiplier": 2.0, "sample_rate": 0.5, "patients_per_step": 2, "delta": 0.01}
GUARD = {"tier": "reconstruction-guard", **NOISE}
FORMAL = {"tier": "formal", **NOISE}
TRAINING = {"local_steps": 2}
OWNED = {"decoder", "encoder.T1WI", "encoder.ASL"}
SAMPLES = SimpleNamespace(records=[SimpleNamespace(patient_id=f"sub-{n:04d}") for n in range(20)])


@pytest.fixture(autouse=True)
def played(monkeypatch):
    play(monkeypatch)

    def train_privately(model, scans, settings, *, device, progress):
        generator = torch.Generator()
        generator.seed()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 1e-3 * torch.randn(parameter.shape, generator=generator)
        return SimpleNamespace(mean_loss=0.5, seconds=1.2)

    def count_steps(events, delta):
        return float(sum(event.steps for event in events))

    monkeypatch.setattr(client.private_training, "train_privately", train_privately)
    monkeypatch.setattr("client.spending.epsilon_in_time", count_steps)
    monkeypatch.setattr(SiteSession, "cohort", lambda *_: SimpleNamespace(train=SAMPLES))


def spent(folder, site):
    return open_ledger(load_site_config(folder / "sites" / site / SITE_FILE)).epsilon()


def flat(groups):
    return np.concatenate([x.ravel() for g in sorted(groups) for _, x in sorted(groups[g].items())])


def keys_of(folder, number):
    (agreed,) = (e for e in events(folder) if e["event"] == "mask-keys" and e["round"] == number)
    return agreed


def test_masked_rounds_are_paid_for_and_open(tmp_path):
    folder = federation(
        tmp_path / "run", noise={"site-a": FORMAL, "site-b": GUARD}, training=TRAINING
    )
    run(folder)
    for number, commit in commits(folder).items():
        if number == 0:
            continue
        assert {entry["status"] for entry in commit["roster"].values()} == {"accepted"}
        assert commit["roster"]["site-b"]["epsilon"] == 2.0 * number
        assert commit["roster"]["site-b"]["ledger_count"] == 1 + number
        assert commit["roster"]["site-c"]["ledger_count"] is None
        # site-a sends its decoder only, and has signed for nothing else: its encoders void none
        assert keys_of(folder, number)["keys"]["site-a"]["groups"] == ["decoder"]
        assert set(commit["roster"]["site-a"]["weights"]) == {"decoder"}
        # two sites are left that train the encoder of ASL, and three is the least
        assert set(commit["void"]) == {"encoder.ASL"}
        assert moved(folder, number) == OWNED - {"encoder.ASL"}
    assert [spent(folder, site) for site in ("site-a", "site-b")] == [4.0, 4.0]
    assert events(folder)[-1]["event"] == "finished"


def test_shares_are_of_the_sites_that_signed(tmp_path):
    """Decoder: 20 + 35 + 10 + 60 scans; T1WI without site-a: 35 + 10 + 60."""
    asked = {}

    def tamper(site, request, groups):
        asked[site] = request
        return request, groups

    folder = federation(tmp_path / "run", noise={"site-a": FORMAL}, training=TRAINING, count=1)
    run(folder, tamper)
    assert asked["site-d"].group_sites == {"decoder": 4, "encoder.T1WI": 3}
    assert asked["site-d"].group_shares == {"decoder": 48, "encoder.T1WI": 58}
    assert keys_of(folder, 1)["owners"]["shares"]["encoder.T1WI"] == 58


@pytest.mark.parametrize(
    ("noise", "demand"),
    [({"site-d": GUARD | {"epsilon": 1.0}}, {}), (dict.fromkeys(SITES[:3], GUARD), GUARD["tier"])],
    ids=["budget spent", "tier too weak"],
)
def test_site_that_would_not_train_gives_no_key_and_voids_nothing(tmp_path, noise, demand):
    asked = {"privacy": {"tier": demand}} if demand else {}
    folder = federation(tmp_path / "run", noise=noise, training=TRAINING, count=1, **asked)
    run(folder)
    commit = commits(folder)[1]
    assert set(keys_of(folder, 1)["keys"]) == {"site-a", "site-b", "site-c"}
    assert commit["roster"]["site-d"]["reason"].split()[0] == "policy"
    assert commit["void"] == {}
    assert moved(folder, 1) == OWNED
    assert not (folder / "sites" / "site-d" / "mask-key.json").exists()


def asked_and_kept_away(folder):
    """What site-a is asked in a round in which it is away after it gave its key."""
    asked = {}

    def tamper(site, request, groups):
        asked.setdefault(site, (request, groups))
        return None if site == "site-a" else (request, groups)

    run(folder, tamper)
    return asked["site-a"]


POINTS = {
    "before it is kept": "client.masked_training.keep_reply",
    "kept, not logged": "sites.egress.Egress.masked_update",
    "logged, key not erased": "client.mask_key_file.MaskKeyFile.erase_private",
}


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_round_that_was_killed_and_repeated_is_paid_once(tmp_path, monkeypatch, point):
    folder = federation(tmp_path / "run", count=1, noise={"site-a": GUARD}, training=TRAINING)
    request, groups = asked_and_kept_away(folder)
    site_file = folder / "sites" / "site-a" / SITE_FILE
    assert spent(folder, "site-a") == 0.0, "a key costs nothing"
    with monkeypatch.context() as patch:
        patch.setattr(point, killed)
        with pytest.raises(KeyboardInterrupt):
            answer_training(session_for(site_file), request, groups)
    assert spent(folder, "site-a") == 2.0
    forget_sessions()
    reply, first = answer_training(session_for(site_file), request, groups)
    again, second = answer_training(session_for(site_file), request, groups)
    assert flat(first).dtype == np.uint64
    assert flat(first).tobytes() == flat(second).tobytes()
    assert reply == again
    assert reply.epsilon == 2.0
    assert spent(folder, "site-a") == 2.0
    forget_sessions()
    entries = verify(site_file.with_name("releases.jsonl"))
    left = {e["tensors"] for e in entries if e["kind"] == "train-reply"}
    assert len(left) == 1, "one update, whatever noise the killed process had drawn"


def killed(*_, **__):
    raise KeyboardInterrupt


def test_noised_updates_are_quantised_after_the_noise(tmp_path):
    """Paid once, sent as they were kept; what is left over is of the groups with noise alone."""
    folder = federation(
        tmp_path / "run",
        mode="off",
        noise={"site-a": FORMAL, "site-b": GUARD},
        training=TRAINING,
        transfer={"up": "int8", "down": "int8"},
    )
    asked = {}

    def tamper(site, request, groups):
        asked[site, request.round] = (request, groups)
        return request, groups

    run(folder, tamper)
    for number in (1, 2):
        roster = commits(folder)[number]["roster"]
        assert {entry["status"] for entry in roster.values()} == {"accepted"}
        assert set(roster["site-a"]["weights"]) == {"decoder"}
        assert roster["site-a"]["epsilon"] == roster["site-b"]["epsilon"] == 2.0 * number
    own = folder / "sites" / "site-a"
    kept = load_file(own / "kept-reply.safetensors")
    assert {n.split(".")[0] for n in kept} == {"encoded/decoder", "before/decoder", "after/decoder"}
    assert any(np.any(x) for n, x in kept.items() if n.startswith("after/"))
    reply, payloads = answer_training(session_for(own / SITE_FILE), *asked["site-a", 2])
    forget_sessions()
    assert payloads == {"decoder": kept["encoded/decoder"].tobytes()}
    assert spent(folder, "site-a") == reply.epsilon == 4.0
    sent, again = [e for e in verify(own / "releases.jsonl") if e["kind"] == "train-reply"][-2:]
    assert sent["encoded"] == again["encoded"]


def test_quantised_round_with_noise_that_was_killed_is_paid_once(tmp_path, monkeypatch):
    settings = {"mode": "off", "count": 1, "training": TRAINING, "transfer": {"up": "int4"}}
    folder = federation(tmp_path / "run", noise={"site-a": GUARD}, **settings)
    request, groups = asked_and_kept_away(folder)
    site_file = folder / "sites" / "site-a" / SITE_FILE
    with monkeypatch.context() as patch:
        patch.setattr("client.training.keep_reply", killed)
        with pytest.raises(KeyboardInterrupt):
            answer_training(session_for(site_file), request, groups)
    forget_sessions()
    first = answer_training(session_for(site_file), request, groups)
    again = answer_training(session_for(site_file), request, groups)
    forget_sessions()
    assert first == again
    assert all(isinstance(payload, bytes) for payload in first[1].values())
    assert spent(folder, "site-a") == 2.0


def test_request_with_other_keys_spends_nothing(tmp_path):
    folder = federation(tmp_path / "run", count=1, noise={"site-a": GUARD}, training=TRAINING)
    request, groups = asked_and_kept_away(folder)
    session = session_for(folder / "sites" / "site-a" / SITE_FILE)
    fewer = {s: key for s, key in request.mask_keys.items() if s != "site-a"}
    with pytest.raises(RefusedError, match="mask-roster"):
        answer_training(session, request.model_copy(update={"mask_keys": fewer}), groups)
    assert spent(folder, "site-a") == 0.0
    answer_training(session, request, groups)
    (folder / "sites" / "site-a" / "kept-reply.safetensors").unlink()
    with pytest.raises(RefusedError, match="mask-spent"):
        answer_training(session, request, groups)
    assert spent(folder, "site-a") == 2.0


def test_ledger_that_was_set_back_is_noticed_under_masks(tmp_path):
    folder = federation(tmp_path / "run", noise={"site-b": GUARD}, training=TRAINING)
    own = folder / "sites" / "site-b"

    def tamper(site, request, groups):
        if (site, request.round) == ("site-b", 2):
            for name in (LEDGER, COPY):
                (own / name).unlink()
        return request, groups

    run(folder, tamper)
    entry = commits(folder)[2]["roster"]["site-b"]
    assert (entry["status"], entry["code"]) == ("refused", "ledger-rolled-back")
    assert set(commits(folder)[2]["void"]) == OWNED
    assert json.loads((own / "mask-key.json").read_text())["round"] == 2
