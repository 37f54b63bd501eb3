"""A repeated request is answered with the same bytes; any other is not."""

import numpy as np

from client.kept_reply import FILE, keep_reply, kept_reply
from iedn.config import PRESETS, TrainingConfig
from iedn.protocol.messages import TrainReply, TrainRequest

PRESET = PRESETS["tiny"]


def request(**changes):
    fields = {
        "run": "run-1",
        "round": 2,
        "base_hash": "c" * 64,
        "grid": PRESET.grid,
        "network": PRESET.network,
        "training": TrainingConfig(),
        "seed": 1,
        "group_sites": {"decoder": 2},
    }
    return TrainRequest(**{**fields, **changes})


REPLY = TrainReply(run="run-1", round=2, base_hash="c" * 64, weights={"decoder": 5}, duration_s=1)
DELTAS = {"decoder": {"decoder.w": np.array([0.25, -1e-30], np.float32)}}


def test_repeat_gets_the_same_bytes(tmp_path):
    keep_reply(tmp_path, request(), REPLY, DELTAS)
    reply, deltas = kept_reply(tmp_path, request())
    assert reply == REPLY
    assert deltas["decoder"]["decoder.w"].tobytes() == DELTAS["decoder"]["decoder.w"].tobytes()


def test_any_other_request_is_trained_anew(tmp_path):
    assert kept_reply(tmp_path, request()) is None
    keep_reply(tmp_path, request(), REPLY, DELTAS)
    others = [
        request(run="run-2"),
        request(round=3),
        request(base_hash="d" * 64),
        request(seed=2),
        request(training=TrainingConfig(local_steps=21)),
    ]
    assert [kept_reply(tmp_path, other) for other in others] == [None] * len(others)


def test_damaged_file_counts_as_none(tmp_path):
    keep_reply(tmp_path, request(), REPLY, DELTAS)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-3])
    assert kept_reply(tmp_path, request()) is None
