"""A repeated request is answered with the same bytes; any other is not."""

import numpy as np

from client.kept_reply import FILE, Residuals, keep_reply, kept_reply, residual_before
from client.quantised_update import Quantiser
from iedn.config import PRESETS, TrainingConfig, TransferConfig
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


ENCODED = {"decoder": b"\x01\x02\x00", "encoder.ASL": b"\x03"}
BEFORE = {"decoder.w": np.array([0.5, -0.25], np.float32)}
AFTER = {"decoder.w": np.array([1e-9, 2.0], np.float32)}


def keep_encoded(folder, **changes):
    keep_reply(folder, request(**changes), REPLY, ENCODED, Residuals(BEFORE, AFTER))


def left(folder, request_, *, is_noised=False):
    return residual_before(folder, request_, is_noised=is_noised)


def same(residual, expected):
    return {n: v.tolist() for n, v in residual.items()} == {
        n: v.tolist() for n, v in expected.items()
    }


def test_quantised_repeat_gets_the_same_bytes(tmp_path):
    keep_encoded(tmp_path)
    assert kept_reply(tmp_path, request()) == (REPLY, ENCODED)


def test_next_round_starts_from_what_was_left_after_and_a_repeated_one_from_what_was_before(
    tmp_path,
):
    assert left(tmp_path, request()) == {}
    keep_encoded(tmp_path)
    assert same(left(tmp_path, request(round=3)), AFTER)
    assert same(left(tmp_path, request(round=7)), AFTER)  # rounds were missed
    assert same(left(tmp_path, request(group_sites={"decoder": 1})), BEFORE)


def test_run_that_started_over_and_another_run_start_from_nothing(tmp_path):
    keep_encoded(tmp_path)
    assert left(tmp_path, request(round=1)) == {}
    assert left(tmp_path, request(run="run-2", round=3)) == {}


def test_remainder_of_a_damaged_file_is_dropped(tmp_path):
    keep_encoded(tmp_path)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-3])
    assert left(tmp_path, request(round=3)) == {}


def test_noise_starts_from_nothing_that_was_left_without_it(tmp_path):
    """What leaves under a promise of noise must not hold what was trained without."""
    keep_encoded(tmp_path)
    assert left(tmp_path, request(round=3), is_noised=True) == {}
    assert left(tmp_path, request(group_sites={"decoder": 1}), is_noised=True) == {}
    paid = REPLY.model_copy(update={"ledger_count": 4, "ledger_hash": "a" * 64})
    keep_reply(tmp_path, request(), paid, ENCODED, Residuals(BEFORE, AFTER))
    assert same(left(tmp_path, request(round=3), is_noised=True), AFTER)
    assert same(left(tmp_path, request(round=3)), AFTER)


def test_masked_repeat_gets_the_same_integers(tmp_path):
    ring = {"decoder": {"decoder.w": np.array([2**64 - 1, 3], np.uint64)}}
    keep_reply(tmp_path, request(), REPLY, ring)
    reply, tensors = kept_reply(tmp_path, request())
    assert reply == REPLY
    assert tensors["decoder"]["decoder.w"].dtype == np.uint64
    assert tensors["decoder"]["decoder.w"].tolist() == [2**64 - 1, 3]


def test_group_that_is_held_back_leaves_no_remainder(tmp_path):
    deltas = {
        "decoder": {"decoder.w": np.array([1.0, 0.003], np.float32)},
        "encoder.ASL": {"encoders.ASL.w": np.array([1.0, 0.003], np.float32)},
    }
    before = {"encoders.ASL.w": np.array([0.0, 0.001], np.float32)}
    keep_reply(tmp_path, request(), REPLY, ENCODED, Residuals(after=before))
    int8 = request(round=3, transfer=TransferConfig(up="int8"))
    quantiser = Quantiser(tmp_path, int8, is_noised=False)
    kept = quantiser.residuals({"decoder": quantiser.changes(deltas)["decoder"]})
    assert same(kept.before, before)
    # 1.0 makes the scale 2^-6: 0.003 does not leave, and stays.
    expected = {"decoder.w": np.array([0.0, 0.003], np.float32), **before}
    assert same(kept.after, expected)
    plain = Quantiser(tmp_path, request(round=3), is_noised=False)
    assert plain.changes(deltas) is deltas
    assert plain.residuals(deltas) == Residuals()
