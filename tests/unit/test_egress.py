"""What leaves a site: allowed kinds, minimum counts, coarse numbers, logged first."""

import json
from dataclasses import replace

import numpy as np
import pytest

from iedn.config import PRESETS, TrainingConfig
from iedn.errors import CohortError, PolicyError, RefusedError, ScanError
from iedn.modalities import Modality
from iedn.parameters import state_hash
from iedn.protocol.checks import shapes_of
from iedn.protocol.encoding import Encoded
from iedn.protocol.messages import EvaluateRequest, TrainRequest
from sites.config import PolicyConfig
from sites.egress import Egress, TrainingCounts, coarsen
from sites.metrics_release import ScanRow
from sites.release_log import ReleaseLog, verify

PRESET = PRESETS["tiny"]
ROUND = {
    "run": "run-1",
    "round": 2,
    "base_hash": "c" * 64,
    "grid": PRESET.grid,
    "network": PRESET.network,
}
COUNTS = TrainingCounts(
    scans=23,
    patients=12,
    scans_by_modality={Modality.T1WI: 23, Modality.ASL: 4},
    patients_by_modality={Modality.T1WI: 12, Modality.ASL: 3},
)
OPEN = PolicyConfig(min_patients=1, min_group_sites=1, releases=("update", "metrics", "diagnostic"))


def request(sites=5, **shares):
    groups = {"encoder.T1WI": sites, "encoder.ASL": 1, "decoder": sites}
    percent = dict.fromkeys(groups, 40) | shares
    fields = {"group_sites": groups, "group_shares": percent}
    return TrainRequest(**ROUND, training=TrainingConfig(), seed=1, **fields)


def evaluation(kind="metrics"):
    return EvaluateRequest(**ROUND, split="test", evaluation=kind)


def deltas(value=1.0):
    names = ("encoder.T1WI", "encoder.ASL", "decoder")
    return {name: {f"{name}.w": np.full(4, value, np.float32)} for name in names}


@pytest.fixture
def log(tmp_path):
    return ReleaseLog(tmp_path / "releases.jsonl")


def send(policy, log, request_=None, deltas_=None):
    arrays = deltas_ or deltas()
    egress = Egress(policy, log)
    reply, checked = egress.checked_update(
        request_ or request(), arrays, COUNTS, shapes=shapes_of(arrays), duration_s=3.4
    )
    return reply, egress.update(reply, checked)


@pytest.mark.parametrize(
    ("count", "coarse"), [(0, 0), (1, 1), (4, 1), (5, 5), (9, 5), (10, 10), (744, 740)]
)
def test_counts_are_rounded_down_and_never_below_one(count, coarse):
    assert coarsen(count, 5) == coarse


def test_capabilities_declare_coarse_counts_and_nothing_else(log):
    message = Egress(OPEN, log).capabilities("train", COUNTS, "run-1")
    assert message.num_training_scans == 20
    assert message.scans_by_modality == {Modality.T1WI: 20, Modality.ASL: 1}


def test_evaluating_site_declares_no_counts(log):
    message = Egress(OPEN, log).capabilities("evaluate", COUNTS, "run-1")
    assert message.num_training_scans == 0
    assert set(message.scans_by_modality.values()) == {0}


def test_update_leaves_with_coarse_weights_and_is_logged_first(log):
    reply, sent = send(OPEN, log)
    assert reply.weights == {"encoder.T1WI": 20, "encoder.ASL": 1, "decoder": 20}
    assert set(sent) == set(deltas())
    (entry,) = verify(log.path)
    assert entry["kind"] == "train-reply"
    assert entry["bytes"] == 3 * 4 * 4


def test_log_has_bytes_and_hash_of_the_payloads_that_leave(log):
    arrays = deltas()
    changes = {g: Encoded(g.encode(), tensors, {}) for g, tensors in arrays.items()}
    egress = Egress(PolicyConfig(), log)
    reply, checked = egress.checked_update(
        request(), changes, COUNTS, shapes=shapes_of(arrays), duration_s=1.0
    )
    assert not log.path.exists()
    sent = egress.update(reply, checked)
    assert sent == {"encoder.T1WI": b"encoder.T1WI", "decoder": b"decoder"}  # ASL is held back
    Egress(PolicyConfig(), log).repeat(reply, sent)
    first, again = verify(log.path)
    assert first["bytes"] == again["bytes"] == len("encoder.T1WI") + len("decoder")
    bytes_by_group = {g: np.frombuffer(content, np.uint8) for g, content in sent.items()}
    assert first["encoded"] == again["encoded"] == state_hash(bytes_by_group)
    assert (again["repeat"], "tensors" in first) == (True, False)


def test_a_site_says_which_model_it_holds_once_it_was_told_the_hashes(log):
    egress = Egress(OPEN, log)
    scans = rows(20.0, 22.0)
    told = evaluation().model_copy(update={"group_hashes": {"decoder": "d" * 64}})
    assert egress.metrics(evaluation(), scans).holds is None
    assert egress.metrics(told, scans).holds == ROUND["base_hash"]
    assert egress.capabilities("train", COUNTS, "run-1", "e" * 64).holds == "e" * 64


def test_default_policy_holds_small_groups(log):
    reply, sent = send(PolicyConfig(), log)
    assert set(sent) == {"encoder.T1WI", "decoder"}  # ASL: 3 patients, 1 site
    assert reply.held_groups == ("encoder.ASL",)


def test_group_of_few_sites_is_held_unless_the_site_reveals_it(log):
    policy = PolicyConfig(min_patients=1, min_group_sites=3)
    assert send(policy, log)[0].held_groups == ("encoder.ASL",)
    revealing = policy.model_copy(update={"reveal_small_group": True})
    assert send(revealing, log)[0].held_groups == ()


def test_group_that_is_almost_one_sites_counts_as_one_sites(log):
    policy = PolicyConfig(min_patients=1, min_group_sites=2)
    asked = [request(**{"encoder.T1WI": percent}) for percent in (80, 81)]
    assert send(policy, log, asked[0])[0].held_groups == ("encoder.ASL",)
    assert send(policy, log, asked[1])[0].held_groups == ("encoder.ASL", "encoder.T1WI")
    alone = policy.model_copy(update={"min_group_sites": 1})
    assert send(alone, log, asked[1])[0].held_groups == ()
    strict = policy.model_copy(update={"max_group_share": 0.39})
    with pytest.raises(PolicyError, match="every group"):
        send(strict, log)


def test_group_of_unknown_shares_counts_as_one_sites(log):
    unknown = request().model_copy(update={"group_shares": {}})
    with pytest.raises(PolicyError, match="every group"):
        send(PolicyConfig(min_patients=1, min_group_sites=2), log, unknown)
    off = PolicyConfig(min_patients=1, min_group_sites=2, max_group_share=1.0)
    assert send(off, log, unknown)[0].held_groups == ("encoder.ASL",)


def test_declared_counts_are_rounded_as_the_policy_says(log):
    coarse = OPEN.model_copy(update={"count_step": 7})
    assert Egress(coarse, log).capabilities("train", COUNTS, "run-1").num_training_scans == 21
    assert send(coarse, log)[0].weights == {"encoder.T1WI": 21, "encoder.ASL": 1, "decoder": 21}


def test_only_metrics_that_the_policy_names_leave(log):
    policy = OPEN.model_copy(update={"metrics": ("mae",), "min_cell": 1})
    found = ({"psnr_db": 20.0, "mae": 0.5, "worst_scan": 3.0}, {"psnr_db": 22.0, "mae": 0.25})
    scans = [replace(row, values=v) for row, v in zip(rows(0.0, 0.0), found, strict=True)]
    reply = Egress(policy, log).metrics(evaluation(), scans)
    names = {"mae_mean", "mae_sd"}
    assert set(reply.metrics) == names | {f"without_asl_{name}" for name in names}
    assert reply.metrics["mae_mean"] == 0.375
    with pytest.raises(PolicyError, match="none of these"):
        Egress(policy, log).metrics(evaluation(), rows(20.0))


def test_if_everything_is_held_nothing_leaves(log):
    with pytest.raises(PolicyError, match="every group"):
        send(PolicyConfig(min_patients=1, min_group_sites=3), log, request(sites=2))
    assert verify(log.path) == []


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (PolicyConfig(releases=("metrics",)), "does not allow 'update'"),
        (PolicyConfig(min_patients=13), "12 patients"),
        (PolicyConfig(min_patients=1, min_group_sites=1, max_update_norm=0.1), "norm"),
    ],
)
def test_policy_refuses(log, policy, message):
    with pytest.raises(PolicyError, match=message):
        send(policy, log)
    assert verify(log.path) == []


def test_update_that_is_not_finite_never_leaves(log):
    with pytest.raises(RefusedError, match="not-finite"):
        send(OPEN, log, deltas_=deltas(np.nan))
    assert verify(log.path) == []


def rows(*values):
    return [
        ScanRow(f"sub-{n:04d}", "ses-1", frozenset({Modality.T1WI}), {"psnr_db": value})
        for n, value in enumerate(values)
    ]


def test_metrics_leave_as_mean_and_sd_only(log):
    policy = OPEN.model_copy(update={"min_cell": 1})
    reply = Egress(policy, log).metrics(evaluation(), rows(20.0, 22.0, float("inf")))
    expected = {"psnr_db_mean": 21.0, "psnr_db_sd": pytest.approx(2**0.5)}
    assert reply.metrics == expected | {f"without_asl_{k}": v for k, v in expected.items()}
    assert reply.num_scans == 1
    assert "20.0" not in log.path.read_text()


def test_metrics_from_too_few_patients_are_refused(log):
    with pytest.raises(PolicyError, match="demands 10"):
        Egress(PolicyConfig(), log).metrics(evaluation(), rows(*[20.0] * 9))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ScanError("E101", "truncated", scan="sub-0007/visit-1"), "E101"),
        (PolicyError("no"), "policy"),
        (CohortError("/hospital/path"), "CohortError"),
        (RuntimeError("sub-0007 in /hospital"), "internal"),
    ],
)
def test_failure_leaves_as_a_code(log, error, code):
    reply = Egress(OPEN, log).failure(error)
    assert reply.code == code
    sent = json.dumps(reply.model_dump())
    assert "sub-0007" not in sent
    assert "hospital" not in sent


def test_changed_log_is_found(log):
    for _ in range(3):
        send(OPEN, log)
    lines = log.path.read_text().splitlines()
    log.path.write_text("\n".join([lines[0], lines[2]]) + "\n")
    with pytest.raises(CohortError, match="line 2"):
        verify(log.path)
    log.path.write_text("\n".join(lines).replace('"bytes": 48', '"bytes": 47', 1) + "\n")
    with pytest.raises(CohortError, match="line 1"):
        ReleaseLog(log.path)


def test_log_goes_on_after_a_torn_line(log):
    send(OPEN, log)
    with log.path.open("a") as stream:
        stream.write('{"kind": "train-re')
    again = ReleaseLog(log.path)
    send(OPEN, again)
    assert [e["number"] for e in verify(log.path)] == [1, 2]


def test_a_site_played_by_two_processes_in_turn_has_one_chain(log):
    other = ReleaseLog(log.path)
    for writer in (log, other, other, log):
        send(OPEN, writer)
    assert [e["number"] for e in verify(log.path)] == [1, 2, 3, 4]


def test_log_that_was_changed_while_open_takes_nothing_more(log):
    send(OPEN, log)
    log.path.write_text(log.path.read_text().replace('"bytes": 48', '"bytes": 470', 1))
    with pytest.raises(CohortError, match="line 1"):
        send(OPEN, log)
