"""Replies as an attacker would make them: each is refused and named, and the run goes on.

The real ServerApp and round loop with the players of ``test_round_loop``, which holds the faults
that a careless site makes; these are the ones that only malice makes.
"""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, RecordDict

from iedn.protocol.messages import TrainReply
from iedn.protocol.records import to_record
from server.app import app as server_app
from simulation.grid import LocalGrid
from tests.federation.test_round_loop import SCANS, Player, commits, events, federation, moved, run

STEPS = {"site-a": 0.5, "site-b": 0.25}


def one_tensor(deltas):
    return next(iter(deltas["decoder"].values()))


def infinite(fields, deltas):
    one_tensor(deltas).flat[-1] = -np.inf


def scaled(fields, deltas):
    for tensor in deltas["decoder"].values():
        tensor *= 1e8


def just_below_the_range(fields, deltas):
    for tensor in deltas["decoder"].values():
        tensor[...] = 1000.0


def integers(fields, deltas):
    name = next(iter(deltas["decoder"]))
    deltas["decoder"][name] = deltas["decoder"][name].astype(np.int64)


def missing_key(fields, deltas):
    deltas["decoder"].popitem()


def missing_group(fields, deltas):
    del deltas["decoder"]


def foreign_group(fields, deltas):
    deltas["encoder.ASL"] = {"encoders.ASL.w": np.zeros(1, np.float32)}


def declared_foreign_group(fields, deltas):
    foreign_group(fields, deltas)
    fields["weights"] = {**fields["weights"], "encoder.ASL": 300}


def other_run(fields, deltas):
    fields["run"] = "another-run"


def rewritten(change):
    """A reply whose JSON was changed on the way, past every check of the site."""

    def fault(fields, deltas):
        record = to_record(TrainReply(**fields), deltas)
        message = record["message"]
        text = change(json.loads(str(message["json"])))
        record["message"] = ConfigRecord({"kind": message["kind"], "json": text})
        return record

    return fault


def weighing(weight):
    def change(content):
        return json.dumps({**content, "weights": {**content["weights"], "decoder": weight}})

    return rewritten(change)


def more_fields(content):
    return json.dumps({**content, "path": "/hospital"})


def nested(content):
    return "[" * 100_000


FAULTS = {
    "Inf": (infinite, "not-finite"),
    "1e8 scale": (scaled, "too-large"),
    "large norm": (just_below_the_range, "norm"),
    "int64": (integers, "wrong-dtype"),
    "missing key": (missing_key, "wrong-key"),
    "missing group": (missing_group, "wrong-group"),
    "foreign group": (foreign_group, "wrong-group"),
    "foreign group with a weight": (declared_foreign_group, "wrong-group"),
    "another run": (other_run, "wrong-run"),
    "weight 1e12": (weighing(10**12), "malformed"),
    "weight -10": (weighing(-10), "malformed"),
    "weight NaN": (weighing(float("nan")), "malformed"),
    "weight 2^20": (weighing(2**20), "wrong-weight"),
    "one more field": (rewritten(more_fields), "malformed"),
    "nested JSON": (rewritten(nested), "malformed"),
}


@pytest.mark.parametrize(("fault", "code"), FAULTS.values(), ids=FAULTS)
def test_refused_and_named_while_the_round_goes_on(tmp_path, fault, code):
    folder = federation(tmp_path / "run", count=2)
    found = run(folder, Player(STEPS, {("site-b", 1): fault}))
    roster = commits(found)[1]["roster"]
    assert (roster["site-b"]["status"], roster["site-b"]["code"]) == ("refused", code)
    np.testing.assert_allclose(moved(folder, 1)["decoder"], 0.5, atol=2e-7)
    assert commits(found)[2]["roster"]["site-b"]["status"] == "accepted"
    assert found[-1]["event"] == "finished"


def test_replayed_reply_of_an_earlier_round(tmp_path):
    kept = []

    def keep(fields, deltas):
        kept.append(to_record(TrainReply(**fields), deltas))

    faults = {("site-b", 1): keep, ("site-b", 2): lambda fields, deltas: kept[0]}
    found = run(federation(tmp_path / "run", count=3), Player(STEPS, faults))
    rosters = {n: c["roster"]["site-b"] for n, c in commits(found).items() if n}
    assert rosters[2]["code"] == "wrong-round"
    assert {rosters[1]["status"], rosters[3]["status"]} == {"accepted"}
    assert found[-1]["event"] == "finished"


class Wire(LocalGrid):
    """A grid whose replies are changed between Flower's decoding and the round loop."""

    change = staticmethod(lambda replies: replies)

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        is_target = replies and replies[0].metadata.message_type == "train"
        is_target = is_target and self._names[replies[0].metadata.src_node_id] == "site-b"
        return self.change(replies) if is_target else replies


def run_over(folder, change):
    config = {"run-dir": str(folder), "registry": "names"}
    grid = Wire(Player(STEPS), {s: {"site": s} for s in SCANS}, config)
    grid.change = change
    try:
        server_app(grid, Context(1, 1, {}, RecordDict(), config))
    finally:
        grid.close()
    return events(folder)


def test_two_replies_to_one_question_count_once(tmp_path):
    folder = federation(tmp_path / "run", count=1)
    found = run_over(folder, lambda replies: replies * 2)
    np.testing.assert_allclose(
        moved(folder, 1)["decoder"], (100 * 0.5 + 300 * 0.25) / 400, atol=2e-7
    )
    assert commits(found)[1]["contributions"]["decoder"] == {"sites": 2, "scans": 400}


def undecodable(replies):
    raise TypeError("Flower met bytes that are no message")


def of_another_type(replies):
    replies[0].__dict__["_content"] = ConfigRecord()
    return replies


@pytest.mark.parametrize("change", [undecodable, of_another_type])
def test_reply_that_is_no_message_is_its_sites_fault_alone(tmp_path, change):
    found = run_over(federation(tmp_path / "run", count=1), change)
    roster = commits(found)[1]["roster"]
    assert (roster["site-b"]["status"], roster["site-b"]["code"]) == ("refused", "malformed")
    assert roster["site-a"]["status"] == "accepted"
    assert found[-1]["event"] == "finished"
