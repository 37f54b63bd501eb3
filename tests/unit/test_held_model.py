"""What a site makes of a request's record and of the model it holds."""

import numpy as np
import pytest

from client.held_model import FILE, held_hash, received_groups
from iedn.config import PRESETS
from iedn.errors import ProtocolError
from iedn.parameters import state_hash
from iedn.protocol.encoding import encode
from iedn.protocol.messages import EvaluateRequest
from iedn.protocol.records import to_record

PRESET = PRESETS["tiny"]
OLD, NEW = "a" * 64, "b" * 64


def model(value):
    return {
        "encoder.ASL": {"encoders.ASL.w": np.full(3, value, np.float32)},
        "decoder": {"decoder.w": np.full((2, 2), -value, np.float32)},
    }


def record(groups, model_hash, *, send=None, run="run-1", announce=True):
    request = EvaluateRequest(
        run=run,
        round=1,
        base_hash=model_hash,
        grid=PRESET.grid,
        network=PRESET.network,
        split="validation",
        evaluation="metrics",
        group_hashes={g: state_hash(t) for g, t in groups.items()} if announce else {},
    )
    return request, to_record(request, groups if send is None else send)


def same(came, groups):
    assert set(came) == set(groups)
    for group, tensors in groups.items():
        assert state_hash(came[group]) == state_hash(tensors)


@pytest.fixture
def holding(tmp_path):
    """A site's folder that holds the old model."""
    received_groups(tmp_path, *record(model(1.0), OLD))
    return tmp_path


def test_whole_model_is_kept_and_need_not_come_again(holding):
    assert held_hash(holding, "run-1") == OLD
    written = (holding / FILE).stat().st_mtime_ns
    same(received_groups(holding, *record(model(1.0), OLD, send={})), model(1.0))
    assert (holding / FILE).stat().st_mtime_ns == written


def test_only_the_changed_group_comes(holding):
    after = {**model(1.0), "decoder": model(5.0)["decoder"]}
    same(received_groups(holding, *record(after, NEW, send={"decoder": after["decoder"]})), after)
    assert held_hash(holding, "run-1") == NEW
    same(received_groups(holding, *record(after, NEW, send={})), after)


def test_quantised_change_is_added_to_what_is_held(holding):
    step = {"decoder.w": np.full((2, 2), 0.25)}
    payload = encode(step, {}, "int8", entropy_coding=True).payload
    after = {**model(1.0), "decoder": {"decoder.w": np.full((2, 2), -0.75, np.float32)}}
    same(received_groups(holding, *record(after, NEW, send={"decoder": payload})), after)


def code_of(folder, *sent):
    with pytest.raises(ProtocolError) as error:
        received_groups(folder, *sent)
    return error.value.code


def test_without_the_model_before_everything_is_asked_for(tmp_path, holding):
    (holding / FILE).unlink()
    assert held_hash(holding, "run-1") is None
    assert code_of(holding, *record(model(1.0), OLD, send={})) == "missing-base"


def test_damaged_file_counts_as_none(holding):
    path = holding / FILE
    path.write_bytes(path.read_bytes()[:-3])
    assert code_of(holding, *record(model(1.0), OLD, send={})) == "missing-base"


def test_held_bits_are_compared_before_they_are_used(holding):
    path = holding / FILE
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert held_hash(holding, "run-1") == OLD  # the file still says so
    assert code_of(holding, *record(model(1.0), OLD, send={})) == "missing-base"


def test_model_of_another_run_is_not_used(holding):
    assert held_hash(holding, "run-2") is None
    assert code_of(holding, *record(model(1.0), OLD, send={}, run="run-2")) == "missing-base"


def test_change_of_another_base_is_noticed(holding):
    step = {"decoder.w": np.full((2, 2), 0.25)}
    payload = encode(step, {}, "int8", entropy_coding=True).payload
    sent = record(model(3.0), NEW, send={"decoder": payload})
    assert code_of(holding, *sent) == "missing-base"
    assert held_hash(holding, "run-1") == OLD


def test_whole_group_that_is_not_the_announced_one_is_refused(tmp_path):
    sent = {**model(1.0), "decoder": model(2.0)["decoder"]}
    assert code_of(tmp_path, *record(model(1.0), OLD, send=sent)) == "wrong-base"
    assert held_hash(tmp_path, "run-1") is None


def test_group_that_was_not_announced_is_refused(holding):
    foreign = {"encoder.ADC": {"encoders.ADC.w": np.zeros(1, np.float32)}}
    assert code_of(holding, *record(model(1.0), OLD, send=foreign)) == "wrong-group"
    payload = encode({"decoder.w": np.zeros((2, 2))}, {}, "int8", entropy_coding=True).payload
    bare = record(model(1.0), OLD, send={"decoder": payload}, announce=False)
    assert code_of(holding, *bare) == "wrong-group"


def test_damaged_change_is_refused(holding):
    sent = record(model(3.0), NEW, send={"decoder": b"IQ1 and then nothing"})
    assert code_of(holding, *sent) in ("malformed", "wrong-encoding", "wrong-key")


def test_without_hashes_nothing_is_kept(tmp_path):
    same(received_groups(tmp_path, *record(model(1.0), OLD, announce=False)), model(1.0))
    assert not (tmp_path / FILE).exists()
