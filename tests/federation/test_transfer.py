"""Quantised and held models over the real round loop: only bytes depend on what a site holds.

Sites are players whose update follows from the model they hold, so that one wrong bit would show;
they keep models, replies and remainders with the real client's code.
"""

import numpy as np
import pytest
import zstandard
from flwr.app import Message
from pydantic import ValidationError

from client.held_model import FILE as HELD
from client.held_model import held_hash, received_groups
from client.kept_reply import FILE as KEPT
from client.kept_reply import keep_reply, kept_reply
from client.quantised_update import Quantiser
from iedn.config import TransferConfig
from iedn.errors import ConfigError
from iedn.protocol.encoding import encode
from iedn.protocol.messages import (
    CapabilitiesRequest,
    EvaluateRequest,
    SiteCapabilities,
    TrainReply,
    TrainRequest,
)
from iedn.protocol.records import parse, to_record
from server.config import load_federation
from server.federation import QuorumError
from server.run_folder import RunFolder
from simulation.scenario import ScenarioConfig, load_scenario
from tests.federation.test_round_loop import (
    SCANS,
    Player,
    commits,
    evaluated,
    events,
    federation,
    run,
)

INT8 = {"up": "int8", "down": "int8"}
ROUNDS = 4


class Keeper(Player):
    """Keeps what a real site keeps, in a folder a site."""

    def __init__(self, folder, faults=None):
        super().__init__({}, faults)
        self.folder = folder

    def of(self, site):
        path = self.folder / site
        path.mkdir(parents=True, exist_ok=True)
        return path

    def join(self, site, record):
        holds = held_hash(self.of(site), parse(record, CapabilitiesRequest).run)
        declared = parse(super().join(site, record), SiteCapabilities)
        return to_record(declared.model_copy(update={"holds": holds}))

    def train(self, site, record):
        request = parse(record, TrainRequest)
        groups = received_groups(self.of(site), request, record)
        kept = kept_reply(self.of(site), request)
        if kept is not None:
            return to_record(*kept)
        self.trained.append((site, request.round))
        fault = self.faults.get((site, request.round))
        deltas = {
            g: {n: np.asarray(np.sin(9 * x + SCANS[site]) * 1e-2, np.float32) for n, x in t.items()}
            for g, t in groups.items()
        }
        quantiser = Quantiser(self.of(site), request, is_noised=False)
        changes = quantiser.changes(deltas)
        fields = {
            "run": request.run,
            "round": request.round,
            "base_hash": request.base_hash,
            "weights": dict.fromkeys(deltas, SCANS[site]),
            "duration_s": 1,
            "holds": request.base_hash if request.group_hashes else None,
        }
        sent = {g: getattr(c, "payload", c) for g, c in changes.items()}
        if fault is not None:
            return fault(fields, deltas, sent)
        reply = TrainReply(**fields)
        keep_reply(self.of(site), request, reply, sent, quantiser.residuals(changes))
        return to_record(reply, sent)

    def evaluate(self, site, record):
        request = parse(record, EvaluateRequest)
        received_groups(self.of(site), request, record)
        holds = request.base_hash if request.group_hashes else None
        metrics = {"psnr_db_mean": 20.0 + request.round}
        return evaluated(request, metrics=metrics, num_scans=5, holds=holds)

    def __call__(self, message, context):

        from sites.failure import failure_of

        try:
            return super().__call__(message, context)
        except Exception as error:
            return Message(to_record(failure_of(error)), reply_to=message)


def run_with(folder, transfer, *, count=ROUNDS, quorum=2, player=None, offline=()):
    rounds = {
        "count": count,
        "quorum": quorum,
        "poll_interval_s": 0.01,
        "deadline_s": 60.0,
        "join_timeout_s": 3.0 if offline else 60.0,
        "offline_grace_s": 0.1,
    }
    made = federation(folder, rounds=rounds, transfer=transfer)
    return commits(run(made, player or Keeper(folder / "sites"), offline=offline))


def outcome(found, number=ROUNDS):
    return found[number]["model_hash"], found[number]["state_hash"]


def down(found, site):
    return [found[n]["roster"][site]["bytes_down"] for n in sorted(found) if n]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run with eight bits both ways."""
    folder = tmp_path_factory.mktemp("whole")
    return run_with(folder / "run", INT8)


def test_held_models_do_not_travel_and_change_nothing(tmp_path):
    plain = run_with(tmp_path / "plain", {"hold": False})
    held = run_with(tmp_path / "held", {})
    assert outcome(held) == outcome(plain)
    assert len(set(down(plain, "site-a"))) == 1
    # The first round brings the initial model; later ones find what validation has brought.
    assert down(held, "site-a") == [down(plain, "site-a")[0], 0, 0, 0]
    evaluations = [e for e in events(tmp_path / "held") if e["event"] == "evaluation"]
    assert evaluations[-1]["bytes_down"] == {"site-a": 0, "site-b": 0}  # the last model, tested


@pytest.mark.parametrize(
    "transfer",
    [
        {"up": "bf16", "down": "fp16"},
        {"up": "int4", "down": "int4"},
        {**INT8, "entropy_coding": False},
        {"up": "int8"},
    ],
    ids=str,
)
def test_every_setting_runs_and_is_smaller(tmp_path, transfer):
    found = run_with(tmp_path / "run", transfer)
    plain = 4 * 14792  # the encoder of one modality alone, in float32
    for site in SCANS:
        assert found[ROUNDS]["roster"][site]["bytes"] < 3 * plain
    assert held_hash(tmp_path / "run" / "sites" / "site-b", "test-run") == outcome(found)[0]


def test_entropy_coding_changes_bytes_and_nothing_else(tmp_path, whole):
    plain = run_with(tmp_path / "run", {**INT8, "entropy_coding": False})
    assert outcome(plain) == outcome(whole)
    for site in SCANS:
        coded, codes = (f[2]["roster"][site]["bytes"] for f in (whole, plain))
        assert coded < codes


def test_restarted_coordinator_reaches_the_same_model(tmp_path, whole):
    folder = tmp_path / "run"
    run_with(folder, INT8, count=2)
    found = run_with(folder, INT8)
    assert outcome(found) == outcome(whole)
    assert outcome(found)[1] is not None  # what quantising has left over is in the commit


def test_coordinator_killed_before_the_commit_gets_the_same_bytes_again(
    tmp_path, whole, monkeypatch
):
    folder = tmp_path / "run"
    commit = RunFolder.commit

    def killed(self, number, *rest, **known):
        if number == 3:
            raise KeyboardInterrupt
        return commit(self, number, *rest, **known)

    monkeypatch.setattr(RunFolder, "commit", killed)
    with pytest.raises(KeyboardInterrupt):
        run_with(folder, INT8)
    monkeypatch.setattr(RunFolder, "commit", commit)
    player = Keeper(folder / "sites")
    found = run_with(folder, INT8, player=player)
    assert outcome(found) == outcome(whole)
    assert {r for _, r in player.trained} == {4}  # round 3 was answered from the kept replies


def test_site_killed_before_its_reply_was_kept_trains_to_the_same_bits(tmp_path, whole):
    """Its remainder is still that of the round before."""
    folder = tmp_path / "run"

    def killed(fields, deltas, sent):
        raise OSError("no power")

    with pytest.raises(QuorumError, match="round 3"):
        run_with(folder, INT8, player=Keeper(folder / "sites", {("site-a", 3): killed}))
    assert outcome(run_with(folder, INT8)) == outcome(whole)


def test_round_that_is_asked_in_other_words_rolls_the_remainder_back(tmp_path, whole, monkeypatch):
    """Round 3 is answered while a site is away, is not committed, and is asked again with both."""
    folder = tmp_path / "run"
    run_with(folder, INT8, count=2, quorum=1)
    away = Keeper(folder / "sites")
    monkeypatch.setattr(RunFolder, "commit", _interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_with(folder, INT8, player=away, offline=["site-b"], quorum=1)
    monkeypatch.undo()
    assert away.trained == [("site-a", 3)]
    player = Keeper(folder / "sites")
    found = run_with(folder, INT8, player=player, quorum=1)
    assert ("site-a", 3) in player.trained  # other words: one site more owns the decoder
    assert outcome(found) == outcome(whole)


def _interrupted(*_, **__):
    raise KeyboardInterrupt


def test_site_that_lost_its_model_is_sent_all_of_it_in_the_same_round(tmp_path, whole):
    folder = tmp_path / "run"
    lost = []

    class Careless(Keeper):
        def train(self, site, record):
            if (site, parse(record, TrainRequest).round) == ("site-b", 3) and not lost:
                lost.append(site)
                (self.of(site) / HELD).unlink()
            return super().train(site, record)

    found = run_with(folder, INT8, player=Careless(folder / "sites"))
    assert lost == ["site-b"]
    assert outcome(found) == outcome(whole)
    assert down(found, "site-a") == down(whole, "site-a")
    assert down(found, "site-b")[2] == down(found, "site-b")[0] > 4 * 14792
    assert {e["status"] for e in found[3]["roster"].values()} == {"accepted"}


def test_site_that_missed_a_round_catches_up(tmp_path):
    folder = tmp_path / "run"
    run_with(folder, INT8, count=1, quorum=1)
    run_with(folder, INT8, count=2, offline=["site-b"], quorum=1)
    found = run_with(folder, INT8, quorum=1)
    assert "site-b" not in found[2]["roster"]
    assert found[3]["roster"]["site-b"]["bytes_down"] == found[1]["roster"]["site-b"]["bytes_down"]
    assert found[4]["roster"]["site-b"]["bytes_down"] == 0
    held = {held_hash(folder / "sites" / s, "test-run") for s in SCANS}
    assert held == {found[ROUNDS]["model_hash"]}


def test_site_that_lost_its_remainder_goes_on(tmp_path, whole):
    folder = tmp_path / "run"
    run_with(folder, INT8, count=2)
    (folder / "sites" / "site-a" / KEPT).unlink()
    found = run_with(folder, INT8)
    assert found[ROUNDS]["roster"]["site-a"]["status"] == "accepted"
    assert outcome(found)[0] != outcome(whole)[0]


def in_other_ways(make):
    """A reply whose groups are sent as ``make(deltas, payloads)`` says."""

    def fault(fields, deltas, sent):
        return to_record(TrainReply(**fields), make(deltas, sent))

    return fault


def of_encoding(encoding):
    def make(deltas, sent):
        return {g: encode(t, {}, encoding, entropy_coding=True).payload for g, t in deltas.items()}

    return make


def foreign(deltas, sent):
    return {**sent, "encoder.ASL": sent["decoder"]}


HOSTILE = {
    "float32": (lambda deltas, sent: deltas, "wrong-encoding"),
    "another encoding": (of_encoding("int4"), "wrong-encoding"),
    "one group less": (lambda deltas, sent: {"decoder": sent["decoder"]}, "wrong-group"),
    "a foreign group": (foreign, "wrong-group"),
    "another group's payload": (
        lambda deltas, sent: {**sent, "decoder": sent["encoder.T1WI"]},
        "wrong-key",
    ),
    "torn": (lambda deltas, sent: {**sent, "decoder": sent["decoder"][:-9]}, "malformed"),
    "a bomb": (
        lambda deltas, sent: {**sent, "decoder": sent["decoder"][:13] + BOMB},
        "wrong-size",
    ),
    "too many bytes": (
        lambda deltas, sent: {**sent, "decoder": sent["decoder"] + bytes(10**7)},
        "wrong-size",
    ),
}


def _bomb():
    compressor = zstandard.ZstdCompressor(level=1).compressobj(size=2**28)
    chunks = [compressor.compress(bytes(2**20)) for _ in range(2**8)]
    return b"".join([*chunks, compressor.flush()])


BOMB = _bomb()


@pytest.mark.parametrize(("make", "code"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_payload_is_refused_and_named(tmp_path, make, code):
    folder = tmp_path / "run"
    player = Keeper(folder / "sites", {("site-b", 1): in_other_ways(make)})
    found = run_with(folder, INT8, count=2, player=player, quorum=1)
    roster = found[1]["roster"]
    assert (roster["site-b"]["status"], roster["site-b"]["code"]) == ("refused", code)
    assert roster["site-a"]["status"] == "accepted"
    assert found[2]["roster"]["site-b"]["status"] == "accepted"


def test_oversized_float32_reply_is_refused_before_it_is_decoded(tmp_path):
    def padded(fields, deltas, sent):
        deltas["decoder"]["decoder.padding"] = np.zeros(10**6, np.float32)
        return to_record(TrainReply(**fields), deltas)

    folder = tmp_path / "run"
    player = Keeper(folder / "sites", {("site-b", 1): padded})
    found = run_with(folder, {}, count=1, player=player, quorum=1)
    assert found[1]["roster"]["site-b"]["code"] == "wrong-size"


@pytest.mark.parametrize(
    ("transfer", "said"),
    [
        ({"up": "int2"}, r"transfer\.up.*'fp32', 'fp16', 'bf16', 'int8' or 'int4'"),
        ({"down": "bf16"}, r"transfer\.down.*'fp32', 'fp16', 'int8' or 'int4'"),
        ({"compress": True}, r"transfer\.compress"),
        ({"down": "int8", "hold": False}, "it needs hold = true, or down = 'fp32'"),
        ({"entropy_coding": "much"}, r"transfer\.entropy_coding"),
    ],
    ids=str,
)
def test_wrong_setting_is_explained(tmp_path, transfer, said):
    path = federation(tmp_path / "run", transfer=transfer) / "federation.toml"
    with pytest.raises(ConfigError, match=said):
        load_federation(path)


def test_quantised_uplink_and_secure_aggregation_exclude_each_other(tmp_path):
    said = r"transfer\.up = 'int8' cannot be used with secure aggregation.*transfer\.up = 'fp32'"
    changes = {"secure_aggregation": "on", "transfer": {"up": "int8"}}
    path = federation(tmp_path / "run", **changes) / "federation.toml"
    with pytest.raises(ConfigError, match=said):
        load_federation(path)
    fields = load_scenario("smoke").model_dump() | changes
    with pytest.raises(ValidationError, match=said):
        ScenarioConfig.model_validate(fields)
    allowed = ScenarioConfig.model_validate(fields | {"transfer": {"down": "int8"}})
    assert allowed.federation().transfer == TransferConfig(down="int8")
