"""The real ServerApp, round loop and messages, with sites that misbehave on purpose.

Sites are played by a small client that answers with hand-made deltas, so that every number of the
next model can be worked out by hand.
"""

import json

import numpy as np
import pytest
import tomli_w
from flwr.app import Context, Message, RecordDict

from iedn.checkpoint import load_checkpoint
from iedn.errors import ConfigError
from iedn.modalities import Modality
from iedn.parameters import group_of
from iedn.protocol.messages import (
    CapabilitiesRequest,
    EvaluateReply,
    EvaluateRequest,
    FailureReply,
    PairedAreas,
    SiteCapabilities,
    TrainReply,
    TrainRequest,
)
from iedn.protocol.records import parse, parse_groups, to_record
from server.app import app as server_app
from server.federation import QuorumError
from simulation.grid import LocalGrid

SCANS = {"site-a": 100, "site-b": 300}
MODALITIES = {"site-a": (Modality.T1WI, Modality.ASL), "site-b": (Modality.T1WI,)}


SEVEN = PairedAreas(
    num_positive=10,
    num_negative=12,
    area_a=0.8,
    area_b=0.7,
    variance_a=0.01,
    variance_b=0.02,
    covariance=0.005,
)


def evaluated(request, **results):
    """A reply to an evaluate request."""
    asked = {"run", "round", "base_hash", "split", "evaluation"}
    return to_record(EvaluateReply(**request.model_dump(include=asked), **results))


class Player:
    """Answers for all sites: every element of a delta is the site's ``step``."""

    def __init__(self, steps, faults=None):
        self.steps, self.faults = steps, faults or {}
        self.trained = []

    def __call__(self, message, context):
        site = str(context.node_config["site"])
        handler = {"query": self.join, "train": self.train, "evaluate": self.evaluate}
        return Message(
            handler[message.metadata.message_type](site, message.content), reply_to=message
        )

    def join(self, site, record):
        parse(record, CapabilitiesRequest)
        return to_record(
            SiteCapabilities(
                role="train",
                num_training_scans=SCANS[site],
                scans_by_modality=dict.fromkeys(MODALITIES[site], SCANS[site]),
                code_version="0.1.0",
            )
        )

    def train(self, site, record):
        request = parse(record, TrainRequest)
        self.trained.append((site, request.round))
        deltas = {
            g: {n: np.full_like(x, self.steps[site]) for n, x in t.items()}
            for g, t in parse_groups(record).items()
        }
        fields = {
            "run": request.run,
            "round": request.round,
            "base_hash": request.base_hash,
            "weights": dict.fromkeys(deltas, SCANS[site]),
            "duration_s": 1,
        }
        fault = self.faults.get((site, request.round))
        if fault is not None:
            answer = fault(fields, deltas)
            if answer is not None:
                return answer
        return to_record(TrainReply(**fields), deltas)

    def evaluate(self, site, record):
        request = parse(record, EvaluateRequest)
        metrics = {"psnr_db_mean": 20.0 + request.round, "ssim_percent_mean": 80.0}
        return evaluated(request, metrics=metrics, num_scans=5)


def federation(tmp_path, *, count=2, quorum=1, sites=None, **changes):
    content = {
        "run": "test-run",
        "seed": 1,
        "preset": "tiny",
        "simulation": True,
        "rounds": {
            "count": count,
            "quorum": quorum,
            "poll_interval_s": 0.01,
            "deadline_s": 5.0,
            "join_timeout_s": 1.0,
            "offline_grace_s": 0.1,
        },
        "sites": sites or {"site-a": {}, "site-b": {}},
        **changes,
    }
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "federation.toml").write_bytes(tomli_w.dumps(content).encode())
    return tmp_path


def run(folder, player, *, offline=()):
    config = {"run-dir": str(folder), "registry": "names"}
    grid = LocalGrid(player, {s: {"site": s} for s in SCANS}, config)
    grid.offline |= set(offline)
    try:
        server_app(grid, Context(1, 1, {}, RecordDict(), config))
    finally:
        grid.close()
    return events(folder)


def events(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def commits(found):
    return {e["round"]: e for e in found if e["event"] == "commit"}


def moved(folder, number):
    """Mean change of each group between two committed rounds."""
    before = load_checkpoint(folder / f"round-{number - 1:04d}.safetensors").tensors
    after = load_checkpoint(folder / f"round-{number:04d}.safetensors").tensors
    change = {}
    for name in before:
        change.setdefault(group_of(name), []).append(
            (after[name].astype(float) - before[name]).ravel()
        )
    return {g: np.concatenate(c) for g, c in change.items()}


def test_each_group_moves_by_the_average_of_its_owners(tmp_path):
    folder = federation(tmp_path / "run")
    found = run(folder, Player({"site-a": 0.5, "site-b": -0.25}))
    change = moved(folder, 1)
    np.testing.assert_allclose(change["encoder.ASL"], 0.5, atol=2e-7)  # only site-a owns it
    average = (100 * 0.5 + 300 * -0.25) / 400
    np.testing.assert_allclose(change["decoder"], average, atol=2e-7)
    np.testing.assert_allclose(change["encoder.T1WI"], average, atol=2e-7)
    assert not change["encoder.ADC"].any(), "a group nobody trains stays as it is"
    contributions = commits(found)[1]["contributions"]
    assert contributions["encoder.ASL"] == {"sites": 1, "scans": 100}
    assert contributions["encoder.ADC"] == {"sites": 0, "scans": 0}
    assert found[-1]["event"] == "finished"
    assert (folder / "report.html").read_text().count("Phantom results") == 1


def test_plain_fedavg_dilutes_the_rare_encoder(tmp_path):
    folder = federation(tmp_path / "run", count=1, aggregation={"method": "fedavg"})
    run(folder, Player({"site-a": 1.0, "site-b": 0.0}))
    np.testing.assert_allclose(moved(folder, 1)["encoder.ASL"], 0.25, atol=2e-7)


def spoil_nan(fields, deltas):
    next(iter(deltas["decoder"].values())).flat[0] = np.nan


def spoil_shape(fields, deltas):
    name = next(iter(deltas["decoder"]))
    deltas["decoder"][name] = deltas["decoder"][name][None]


def spoil_dtype(fields, deltas):
    name = next(iter(deltas["decoder"]))
    deltas["decoder"][name] = deltas["decoder"][name].astype(np.float64)


def spoil_key(fields, deltas):
    deltas["decoder"]["decoder.intruder"] = np.zeros(1, np.float32)


def spoil_weight(fields, deltas):
    fields["weights"] = dict.fromkeys(deltas, 100_000)


def spoil_round(fields, deltas):
    fields["round"] += 1


def spoil_base(fields, deltas):
    fields["base_hash"] = "f" * 64


def fail(fields, deltas):
    return to_record(FailureReply(code="E205", incident="0123456789ab"))


def nonsense(fields, deltas):
    return RecordDict()


FAULTS = [
    (spoil_nan, "refused", "not-finite"),
    (spoil_shape, "refused", "wrong-shape"),
    (spoil_dtype, "refused", "wrong-dtype"),
    (spoil_key, "refused", "wrong-key"),
    (spoil_weight, "refused", "wrong-weight"),
    (spoil_round, "refused", "wrong-round"),
    (spoil_base, "refused", "wrong-base"),
    (fail, "failed", "failure"),
    (nonsense, "refused", "malformed"),
]


@pytest.mark.parametrize(
    ("fault", "status", "code"), FAULTS, ids=lambda f: getattr(f, "__name__", f)
)
def test_a_bad_reply_is_named_and_the_round_goes_on_without_it(tmp_path, fault, status, code):
    folder = federation(tmp_path / "run")
    player = Player({"site-a": 0.5, "site-b": 0.25}, {("site-b", 1): fault})
    found = run(folder, player)
    roster = commits(found)[1]["roster"]
    assert (roster["site-b"]["status"], roster["site-b"]["code"]) == (status, code)
    assert roster["site-a"]["status"] == "accepted"
    np.testing.assert_allclose(moved(folder, 1)["decoder"], 0.5, atol=2e-7)
    assert commits(found)[2]["roster"]["site-b"]["status"] == "accepted"


def test_a_client_that_raises_is_named(tmp_path):
    def explode(fields, deltas):
        raise RuntimeError("/hospital/sub-0007")

    folder = federation(tmp_path / "run", count=1)
    found = run(folder, Player({"site-a": 0.5, "site-b": 0.25}, {("site-b", 1): explode}))
    assert commits(found)[1]["roster"]["site-b"]["status"].startswith("transport-")
    assert "sub-0007" not in (folder / "history.jsonl").read_text()


def test_below_quorum_nothing_is_committed_and_the_reason_is_said(tmp_path):
    folder = federation(tmp_path / "run", quorum=2)
    player = Player({"site-a": 0.5, "site-b": 0.25}, {("site-b", 2): spoil_nan})
    with pytest.raises(QuorumError, match=r"round 2: 1 of 2 needed sites.*site-b: not-finite"):
        run(folder, player)
    assert set(commits(events(folder))) == {0, 1}
    player.faults.clear()
    assert set(commits(run(folder, player))) == {0, 1, 2}


def test_required_site_is_never_done_without(tmp_path):
    sites = {"site-a": {}, "site-b": {"required": True}}
    folder = federation(tmp_path / "run", sites=sites)
    with pytest.raises(QuorumError, match="required but missing: site-b"):
        run(folder, Player({"site-a": 0.5, "site-b": 0.25}), offline=["site-b"])


def test_offline_site_is_in_the_join_roster(tmp_path):
    folder = federation(tmp_path / "run", count=1)
    found = run(folder, Player({"site-a": 0.5, "site-b": 0.25}), offline=["site-b"])
    join = next(e for e in found if e["event"] == "join")
    assert join["roster"] == {"site-a": {"status": "joined"}, "site-b": {"status": "offline"}}


def test_resumed_run_reaches_the_same_model(tmp_path):
    steps = {"site-a": 0.01, "site-b": -0.02}
    optimizer = {"optimizer": {"name": "fedadam", "eta": 0.1}}
    whole = run(federation(tmp_path / "whole", count=4, aggregation=optimizer), Player(steps))
    folder = federation(tmp_path / "cut", count=2, aggregation=optimizer)
    run(folder, Player(steps))
    with (folder / "history.jsonl").open("a") as stream:
        stream.write('{"event": "commit", "round": 3, "torn')  # killed while writing
    federation(folder, count=4, aggregation=optimizer)
    player = Player(steps)
    resumed = run(folder, player)
    assert {r for _, r in player.trained} == {3, 4}
    assert commits(resumed)[4]["model_hash"] == commits(whole)[4]["model_hash"]
    assert commits(resumed)[4]["state_hash"] == commits(whole)[4]["state_hash"] is not None


def test_finished_run_started_again_does_nothing_new(tmp_path):
    folder = federation(tmp_path / "run")
    run(folder, Player({"site-a": 0.5, "site-b": 0.25}))
    player = Player({"site-a": 0.5, "site-b": 0.25})
    found = run(folder, player)
    assert player.trained == []
    assert len([e for e in found if e["event"] == "evaluation"]) == 3  # 2 validations, 1 test


class External(Player):
    """``site-b`` only evaluates; it refuses its numbers until somebody there has approved them."""

    approved = False

    def join(self, site, record):
        if site == "site-a":
            return super().join(site, record)
        known = dict.fromkeys(MODALITIES[site], 0)
        return to_record(
            SiteCapabilities(
                role="evaluate", num_training_scans=0, scans_by_modality=known, code_version="0.1.0"
            )
        )

    def evaluate(self, site, record):
        if site == "site-a":
            return super().evaluate(site, record)
        request = parse(record, EvaluateRequest)
        assert request.evaluation == "diagnostic"
        if not self.approved:
            return to_record(FailureReply(code="policy", incident="0123456789ab"))
        return evaluated(request, metrics={}, paired_areas={"roi": SEVEN}, num_scans=20)


def test_external_site_that_approves_later_is_asked_again_and_then_no_more(tmp_path):
    sites = {"site-a": {}, "site-b": {"role": "evaluate"}}
    folder = federation(tmp_path / "run", count=1, sites=sites)
    player = External({"site-a": 0.5})

    def diagnostics():
        found = run(folder, player)
        return [e for e in found if e.get("evaluation") == "diagnostic"]

    (refused,) = diagnostics()
    assert refused["roster"]["site-b"]["status"] != "accepted"
    assert "policy" in str(refused["roster"]["site-b"])
    assert refused["stratified"] == {}
    player.approved = True
    _, answered = diagnostics()
    assert answered["roster"]["site-b"]["status"] == "accepted"
    assert answered["sites"]["site-b"]["paired_areas"]["roi"] == SEVEN.model_dump()
    roi = answered["stratified"]["roi"]
    # One site: z = 0.1 / sqrt(0.01 + 0.02 - 2 * 0.005).
    assert roi["difference"] == pytest.approx(0.1)
    assert roi["statistic"] == pytest.approx(0.1 / 0.02**0.5)
    assert len(diagnostics()) == 2


def test_best_model_may_be_the_last_round(tmp_path):
    folder = federation(tmp_path / "run", count=3)
    found = run(folder, Player({"site-a": 0.1, "site-b": 0.1}))  # PSNR rises with every round
    assert found[-1]["best_round"] == 3
    best = load_checkpoint(folder / "best.safetensors")
    assert best.metadata["round"] == "3"


def test_folder_of_another_configuration_is_refused(tmp_path):
    folder = federation(tmp_path / "run", count=1)
    run(folder, Player({"site-a": 0.1, "site-b": 0.1}))
    federation(folder, count=1, training={"learning_rate": 0.5})
    with pytest.raises(ConfigError, match=r"training\.learning_rate \(0.001 there, 0.5 here\)"):
        run(folder, Player({"site-a": 0.1, "site-b": 0.1}))


def test_old_round_files_are_removed_and_the_best_kept(tmp_path):
    rounds = {"count": 4, "quorum": 1, "keep": 2, "poll_interval_s": 0.01}
    folder = federation(tmp_path / "run", rounds=rounds)
    run(folder, Player({"site-a": 0.1, "site-b": 0.1}))
    kept = sorted(p.name for p in folder.glob("round-*.safetensors"))
    assert kept == ["round-0003.safetensors", "round-0004.safetensors"]
    assert (folder / "best.safetensors").exists()


class Late(Player):
    """A player whose second site comes online while the first round is under way."""

    def __call__(self, message, context):
        if message.metadata.message_type == "train":
            self.grid.offline.discard("site-b")
        return super().__call__(message, context)


def test_site_that_was_away_at_the_start_joins_the_next_round(tmp_path):
    folder = federation(tmp_path / "run", count=2)
    player = Late({"site-a": 0.5, "site-b": 0.25})
    config = {"run-dir": str(folder), "registry": "names"}
    player.grid = LocalGrid(player, {s: {"site": s} for s in SCANS}, config)
    player.grid.offline.add("site-b")
    try:
        server_app(player.grid, Context(1, 1, {}, RecordDict(), config))
    finally:
        player.grid.close()
    rosters = {number: c.get("roster") for number, c in commits(events(folder)).items()}
    assert "site-b" not in rosters[1]
    assert rosters[2]["site-b"]["status"] == "accepted"


def test_run_without_quorum_ends_as_incomplete_and_says_who_is_missing(tmp_path):
    folder = federation(tmp_path / "run", quorum=2)
    with pytest.raises(QuorumError):
        run(folder, Player({"site-a": 0.5, "site-b": 0.25}), offline=["site-b"])
    last = events(folder)[-1]
    assert last["event"] == "incomplete"
    assert last["roster"]["site-b"] == {"status": "offline"}


def with_ledger(count, digest):
    def answer(fields, deltas):
        fields |= {"ledger_count": count, "ledger_hash": digest * 64, "epsilon": 1.0}

    return answer


def test_site_whose_privacy_ledger_was_restored_is_named_also_after_a_restart(tmp_path):
    steps = {"site-a": 0.5, "site-b": 0.25}
    heads = {("site-b", 1): with_ledger(2, "1"), ("site-b", 2): with_ledger(3, "2")}
    folder = federation(tmp_path / "run", count=2)
    found = run(folder, Player(steps, heads))
    assert commits(found)[2]["roster"]["site-b"]["ledger_count"] == 3
    federation(folder, count=4)
    later = {("site-b", 3): with_ledger(2, "1"), ("site-b", 4): with_ledger(4, "4")}
    found = run(folder, Player(steps, later))
    refused = commits(found)[3]["roster"]["site-b"]
    assert (refused["status"], refused["code"]) == ("refused", "ledger-rolled-back")
    assert commits(found)[3]["contributions"]["decoder"]["sites"] == 1
    assert commits(found)[4]["roster"]["site-b"]["status"] == "accepted"


def test_sites_are_told_how_much_of_a_group_its_largest_site_has(tmp_path):
    """Of 400 scans site-b has 300; ASL is site-a's alone."""
    asked = {}

    class Watching(Player):
        def train(self, site, record):
            asked[site] = parse(record, TrainRequest)
            return super().train(site, record)

    run(federation(tmp_path / "run", count=1), Watching({"site-a": 0.5, "site-b": 0.25}))
    shares = {"encoder.T1WI": 75, "decoder": 75}
    assert asked["site-b"].group_shares == shares
    assert asked["site-a"].group_shares == {**shares, "encoder.ASL": 100}
