"""Training that is paid for from the privacy ledger, killed wherever it can be.

The accountant counts steps, so that a round of two steps costs exactly 2.
"""

import json
import os
import signal
import warnings

import pytest
import tomli_w
import torch

from client.kept_reply import FILE
from client.ledger import COPY, LEDGER
from client.session import SiteSession
from client.spending import open_ledger
from client.training import answer_training
from iedn.config import PRESETS, TrainingConfig
from iedn.errors import LedgerError, PolicyError, RefusedError
from iedn.modalities import Modality
from iedn.model import build_network
from iedn.parameters import groups_for, state_by_group
from iedn.protocol.messages import TrainRequest
from server.config import FederationConfig, RoundsConfig, SiteEntry
from simulation.engine import run_in_process
from sites.config import load_site_config
from sites.release_log import verify
from tests.system.doomed import Point, arm

PRESET = PRESETS["tiny"]
SITE = """name = "{name}"
manifest = "manifest.csv"
cache = "../cache-{name}"
workers = 1
[policy]
min_patients = 1
min_group_sites = 1
[privacy]
tier = "reconstruction-guard"
epsilon = {epsilon_max}
noise_multiplier = 1.0
sample_rate = 0.25
[split]
train = 0.6
validation = 0.2
test = 0.2
"""
KEPT = "kept-reply.safetensors"


def count_steps(events, delta):
    return float(sum(event.steps for event in events))


@pytest.fixture(autouse=True)
def accountant(monkeypatch):
    monkeypatch.setattr("client.spending.epsilon_in_time", count_steps)


@pytest.fixture(scope="module")
def cohort(bad, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort") / "site"
    folder.mkdir()
    bad.Site(folder, patients=6).write()
    return folder


@pytest.fixture
def site_file(cohort, tmp_path):
    """A site of its own, on scans that are shared and prepared once."""
    text = SITE.format(name="site-a", epsilon_max=100.0)
    text = text.replace('"manifest.csv"', f'"{cohort / "manifest.csv"}"')
    path = tmp_path / "site.toml"
    path.write_text(text.replace("../cache-site-a", str(cohort.parent / "cache")))
    return path


MODEL = state_by_group(build_network(PRESET.network, 1))
GROUPS = {g: MODEL[g] for g in groups_for([Modality.T1WI, Modality.ASL])}


def request(number=1, **changes):
    fields = {
        "run": "run-1",
        "round": number,
        "base_hash": f"{number:064x}",
        "grid": PRESET.grid,
        "network": PRESET.network,
        "training": TrainingConfig(local_steps=2, batch_size=2, threads=1),
        "seed": 1,
        "group_sites": dict.fromkeys(GROUPS, 3),
    }
    return TrainRequest(**{**fields, **changes})


def answer(site_file, asked, groups=GROUPS):
    """As a process that was started for this request alone."""
    return answer_training(SiteSession(load_site_config(site_file)), asked, groups)


def ledger(site_file):
    return open_ledger(load_site_config(site_file))


def test_round_is_paid_once_and_its_repeat_is_free(site_file):
    reply, deltas = answer(site_file, request())
    again, same = answer(site_file, request())
    assert (reply.epsilon, reply.ledger_count) == (2.0, 2)
    assert reply.ledger_hash == ledger(site_file).head().hash
    assert again == reply
    assert all((deltas[g][n] == same[g][n]).all() for g in deltas for n in deltas[g])
    assert ledger(site_file).epsilon() == 2.0


def test_without_noise_there_is_no_ledger(site_file):
    site_file.write_text(site_file.read_text().replace("reconstruction-guard", "off"))
    session = SiteSession(load_site_config(site_file))
    reply, _ = answer_training(session, request(), GROUPS)
    assert (reply.epsilon, reply.ledger_count, reply.ledger_hash) == (None, None, None)
    assert not (site_file.parent / LEDGER).exists()


def test_what_can_be_refused_without_training_costs_nothing(site_file):
    ledger(site_file)
    with pytest.raises(RefusedError):
        answer(site_file, request(), {**GROUPS, "decoder": {}})
    text = site_file.read_text().replace("min_group_sites = 1", "min_group_sites = 4")
    site_file.write_text(text)
    with pytest.raises(PolicyError):
        answer(site_file, request())
    assert ledger(site_file).epsilon() == 0.0


def test_failure_is_an_answer_and_uses_the_reservation_up(site_file, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no")

    with monkeypatch.context() as patched:
        patched.setattr("client.private_training.train_privately", fail)
        with pytest.raises(RuntimeError):
            answer(site_file, request())
    assert answer(site_file, request())[0].epsilon == 4.0


def test_spent_budget_ends_training_with_code_7(site_file):
    site_file.write_text(site_file.read_text().replace("100.0", "5.0"))
    for number in (1, 2):
        answer(site_file, request(number))
    with pytest.raises(PolicyError, match="budget") as refused:
        answer(site_file, request(3))
    assert refused.value.exit_code == 7
    assert answer(site_file, request(2))[0].epsilon == 4.0, "what was paid for is still answered"


def _is_step_two(task, done, _total):
    return "training steps" in task and done == 2


def _is_kept(_self, target):
    return target.name == KEPT


COMMIT, LINE = "client.ledger_store:_commit", "client.ledger_copy:append_line"
POINTS = {
    "before-insert": Point("client.ledger_store:_insert"),
    "between-insert-and-commit": Point(COMMIT),
    "between-commit-and-copy": Point(COMMIT, when="after"),
    "before-copy-line": Point(LINE),
    "half-a-copy-line": Point(LINE, when="torn"),
    "after-copy-line": Point(LINE, when="after"),
    "before-training": Point("client.training:_train"),
    "mid-training": Point("iedn.progress:report", _is_step_two),
    "between-log-and-kept-reply": Point("client.training:keep_reply"),
    "while-reply-is-kept": Point("pathlib:Path.replace", _is_kept),
    "after-reply-is-kept": Point("client.training:keep_reply", when="after"),
    "before-the-answer-is-noted": Point("client.ledger:PrivacyLedger.answered"),
    "while-the-answer-is-noted": Point(COMMIT, count=2),
    "half-a-line-of-the-note": Point(LINE, count=2, when="torn"),
    "after-the-answer-is-noted": Point("client.ledger:PrivacyLedger.answered", when="after"),
}
UNPAID = ("before-insert", "between-insert-and-commit")


def killed(point, site_file, asked, marker):
    """Answer in a process that is killed at the point; True if it was."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            arm(point, marker)
            answer(site_file, asked)
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_killed_anywhere_it_is_paid_before_training_and_only_once(site_file, tmp_path):
    """A round for each point; after all of them the run has cost what it costs undisturbed."""
    ledger(site_file)
    for number, (name, point) in enumerate(POINTS.items(), start=1):
        asked = request(number)
        assert killed(point, site_file, asked, tmp_path / name), name
        after = ledger(site_file).epsilon()
        assert after == 2.0 * (number - (name in UNPAID)), name
        reply, _ = answer(site_file, asked)
        assert (reply.epsilon, reply.ledger_count) == (2.0 * number, number + 1), name
    assert ledger(site_file).epsilon() == 2.0 * len(POINTS)
    assert len(verify(tmp_path / COPY)) == 1 + 2 * len(POINTS)


@pytest.mark.parametrize("name", ["after-reply-is-kept", "while-the-answer-is-noted"])
def test_reply_that_was_kept_uses_the_reservation_up_when_it_leaves(site_file, tmp_path, name):
    ledger(site_file)
    assert killed(POINTS[name], site_file, request(), tmp_path / "marker")
    answer(site_file, request())  # from what was kept; it leaves now
    (tmp_path / FILE).unlink()
    assert answer(site_file, request())[0].epsilon == 4.0, "trained again: another release"


@pytest.mark.parametrize("name", ["before-insert", "between-insert-and-commit"])
def test_killed_while_the_ledger_is_made(site_file, tmp_path, name):
    assert killed(POINTS[name], site_file, request(), tmp_path / "marker")
    assert (tmp_path / LEDGER).exists()
    assert answer(site_file, request())[0].epsilon == 2.0


def test_full_disk_trains_nothing_and_is_never_forgotten(site_file, tmp_path, monkeypatch):
    answer(site_file, request(1))

    def full(*_):
        raise OSError(28, "No space left on device")

    for place in (COMMIT, LINE):
        with monkeypatch.context() as patched:
            patched.setattr(place.replace(":", "."), full)
            patched.setattr(
                "client.private_training.train_privately", lambda *_, **__: pytest.fail("trained")
            )
            with pytest.raises(LedgerError, match="No space left"):
                answer(site_file, request(2))
    assert answer(site_file, request(2))[0].epsilon == 4.0


def site_of(bad, folder, name, epsilon_max):
    bad.Site(folder, patients=6).write()
    (folder / "site.toml").write_text(SITE.format(name=name, epsilon_max=epsilon_max))


def test_federation_goes_on_without_a_site_whose_budget_is_spent(bad, tmp_path):
    site_of(bad, tmp_path / "sites" / "site-a", "site-a", 100.0)
    site_of(bad, tmp_path / "sites" / "site-b", "site-b", 3.0)
    config = FederationConfig(
        run="spending",
        seed=1,
        preset="tiny",
        training=TrainingConfig(local_steps=2, batch_size=2, threads=1),
        rounds=RoundsConfig(count=2, quorum=1, poll_interval_s=0.02),
        sites={"site-a": SiteEntry(), "site-b": SiteEntry()},
        simulation=True,
    )
    content = config.model_dump(mode="json", exclude_none=True)
    (tmp_path / "federation.toml").write_text(tomli_w.dumps(content))
    run_in_process(tmp_path, config, workers=1)
    events = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    rosters = [e["roster"] for e in events if e["event"] == "commit" and e["round"]]
    spent = [[r[s].get("epsilon") for s in ("site-a", "site-b")] for r in rosters]
    assert spent == [[2.0, 2.0], [4.0, None]]
    assert rosters[1]["site-b"]["status"] == "failed"
    assert "policy" in rosters[1]["site-b"]["reason"]
    assert [rosters[n]["site-a"]["ledger_count"] for n in (0, 1)] == [2, 3]
