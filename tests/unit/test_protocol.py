"""Messages survive the wire; anything else is refused with a sentence."""

import gc
import json
import weakref

import numpy as np
import pytest
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from pydantic import ValidationError

from iedn.config import PRESETS, TrainingConfig
from iedn.errors import ProtocolError
from iedn.modalities import Modality
from iedn.protocol.checks import shapes_of
from iedn.protocol.messages import (
    MESSAGES,
    CapabilitiesRequest,
    EvaluateReply,
    EvaluateRequest,
    FailureReply,
    MaskKey,
    MaskKeyReply,
    MaskKeyRequest,
    ModelCard,
    PairedAreas,
    ReleaseReceipt,
    ReleaseRequest,
    SiteCapabilities,
    TrainReply,
    TrainRequest,
    safe_code,
)
from iedn.protocol.records import (
    array_bytes,
    check_size,
    parse,
    parse_encoded,
    parse_groups,
    to_record,
)

PRESET = PRESETS["tiny"]
ROUND = {"run": "r", "round": 1, "base_hash": "0" * 64}
MODEL = {"grid": PRESET.grid, "network": PRESET.network}
SEVEN = {
    "num_positive": 45,
    "num_negative": 51,
    "area_a": 0.87,
    "area_b": 0.76,
    "variance_a": 0.0013,
    "variance_b": 0.0019,
    "covariance": 0.0007,
}

CARD = ModelCard(
    run="r",
    round=1,
    model_hash="0" * 64,
    trained_on="patients",
    num_training_sites=3,
    group_sites={"decoder": 3},
    metrics={"test_psnr_db_mean": 27.5},
    code_version="0.1.0",
)

MASK_KEY = MaskKey(key="1" * 64, groups=("decoder", "encoder.ASL"), signature="30" * 70)

EXAMPLES = [
    CapabilitiesRequest(run="r", **MODEL),
    SiteCapabilities(
        role="train",
        num_training_scans=10,
        scans_by_modality={Modality.T1WI: 10, Modality.ASL: 5},
        code_version="0.1.0",
    ),
    TrainRequest(
        **ROUND, **MODEL, training=TrainingConfig(), seed=2**62, group_sites={"decoder": 3}
    ),
    TrainReply(**ROUND, weights={"decoder": 5}, held_groups=("encoder.ASL",), duration_s=3),
    MaskKeyRequest(**ROUND, **MODEL, training=TrainingConfig()),
    MaskKeyReply(**ROUND, mask_key=MASK_KEY),
    MaskKeyReply(**ROUND, mask_key=None),
    TrainRequest(
        **ROUND,
        **MODEL,
        training=TrainingConfig(),
        seed=1,
        group_sites={"decoder": 1},
        mask_keys={"site-a": MASK_KEY},
    ),
    TrainReply(**ROUND, weights={"decoder": 5}, duration_s=3, mask_roster="2" * 64),
    EvaluateRequest(**ROUND, **MODEL, split="test", evaluation="metrics"),
    EvaluateReply(
        **ROUND, split="test", evaluation="metrics", metrics={"psnr_db_mean": 27.5}, num_scans=5
    ),
    ReleaseRequest(**ROUND, **MODEL, card=CARD),
    ReleaseReceipt(**ROUND),
    EvaluateReply(
        **ROUND,
        split="test",
        evaluation="diagnostic",
        metrics={},
        paired_areas={"roi": PairedAreas(**SEVEN), "models": PairedAreas(**SEVEN)},
        num_scans=95,
    ),
    FailureReply(code="E205", incident="0123456789ab"),
]


def test_every_message_has_an_example():
    assert {type(m) for m in EXAMPLES} == set(MESSAGES)


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: m.kind)
def test_round_trip(message):
    assert parse(to_record(message), type(message)) == message


def test_tensors_round_trip_by_group():
    groups = {
        "encoder.ASL": {"encoders.ASL.w": np.arange(6, dtype=np.float32).reshape(1, 2, 3)},
        "decoder": {"decoder.b": np.full((), 2.5, np.float32)},
    }
    came = parse_groups(to_record(EXAMPLES[3], groups))
    assert set(came) == set(groups)
    assert (
        came["encoder.ASL"]["encoders.ASL.w"].tobytes()
        == groups["encoder.ASL"]["encoders.ASL.w"].tobytes()
    )
    assert came["decoder"]["decoder.b"].shape == ()


def test_a_parsed_record_is_gone_at_once_and_not_when_cycles_are_looked_for():
    reply = FailureReply(code="policy", incident="0" * 12)
    record = to_record(reply, {"decoder": {"kernel": np.ones((2, 2), np.float32)}})
    parse(record, FailureReply)
    parse_groups(record)
    watched = weakref.ref(record)
    gc.disable()
    try:
        del record
        assert watched() is None
    finally:
        gc.enable()


def tampered(**changes):
    record = to_record(EXAMPLES[3])
    fields = json.loads(str(record["message"]["json"])) | changes
    record["message"] = ConfigRecord({"kind": TrainReply.kind, "json": json.dumps(fields)})
    return record


def code_of(record, expected=TrainReply):
    with pytest.raises(ProtocolError) as caught:
        parse(record, expected)
    return caught.value.code


def test_unknown_field_is_refused():
    assert code_of(tampered(patient="sub-0007")) == "malformed"


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_protocol_version_is_refused_with_a_sentence(version):
    with pytest.raises(ProtocolError, match=r"speaks protocol .* this side 1"):
        parse(tampered(protocol_version=version), TrainReply)


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {"decoder": 0}},
        {"weights": {"decoder": 2**21}},
        {"weights": {"../decoder": 5}},
        {"base_hash": "abc"},
        {"round": -1},
        {"run": "a b"},
    ],
)
def test_values_out_of_bounds_are_refused(changes):
    assert code_of(tampered(**changes)) == "malformed"


def test_refusal_does_not_repeat_what_came():
    with pytest.raises(ProtocolError) as caught:
        parse(tampered(run="sub-0007 secret"), TrainReply)
    assert "secret" not in str(caught.value)


def test_wrong_kind_and_missing_message():
    assert code_of(to_record(EXAMPLES[5])) == "wrong-message"
    assert code_of(RecordDict()) == "malformed"
    not_json = RecordDict({"message": ConfigRecord({"kind": "train-reply", "json": "{"})})
    assert code_of(not_json) == "malformed"


def test_failure_reply_becomes_an_error_with_code_and_incident():
    with pytest.raises(ProtocolError, match=r"E205 \(incident 0123456789ab\)"):
        parse(to_record(EXAMPLES[-1]), TrainReply)


def test_non_finite_metric_cannot_be_built():
    with pytest.raises(ValidationError):
        EvaluateReply(
            **ROUND, split="test", evaluation="metrics", metrics={"psnr": float("nan")}, num_scans=1
        )


PACKED = np.frombuffer(safetensors.numpy.save({"w": np.zeros(3, np.float32)}), np.uint8)


def a_lie(content, dtype="uint8"):
    lie = Array(dtype=dtype, shape=(3,), stype="numpy.ndarray", data=content)
    return RecordDict({"decoder": ArrayRecord({"tensors": lie})})


def huge_header():
    size = f"({len(PACKED)},)".encode()
    content = Array(PACKED).data.replace(size, b"(3000000000000,)")
    return content.replace(b"            \n", b"\n", 1)


def promises_more_tensors():
    return Array(np.frombuffer(PACKED.tobytes().replace(b"[0,12]", b"[0,99]"), np.uint8)).data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        Array(PACKED).data[:-4],
        Array(PACKED[:-4]).data,
        huge_header(),
        promises_more_tensors(),
        Array(np.zeros(3, np.float32)).data,
    ],
)
def test_bytes_that_lie_about_themselves_are_refused_before_they_are_allocated(content):
    with pytest.raises(ProtocolError, match="does not decode"):
        parse_groups(a_lie(content))


def test_what_the_lies_are_made_from_is_accepted():
    assert list(parse_groups(a_lie(Array(PACKED).data))["decoder"]["w"]) == [0.0, 0.0, 0.0]


def test_a_second_array_in_a_group_is_refused():
    record = a_lie(Array(PACKED).data)
    record["decoder"]["more"] = Array(PACKED)
    with pytest.raises(ProtocolError, match="does not decode"):
        parse_groups(record)


def test_pickled_array_is_refused():
    import io

    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ProtocolError, match="does not decode"):
        parse_groups(a_lie(stream.getvalue(), dtype="object"))


@pytest.mark.parametrize(
    ("text", "code"),
    [("E205", "E205"), ("a/b c", "a-b-c"), ("***", "unknown"), ("x" * 90, "x" * 48)],
)
def test_safe_code(text, code):
    assert safe_code(text) == code


def test_reply_without_paired_areas_still_parses():
    """What an older client sends: the field came later, the version did not change."""
    old = next(m for m in EXAMPLES if isinstance(m, EvaluateReply) and not m.paired_areas)
    fields = old.model_dump(mode="json")
    del fields["paired_areas"]
    assert EvaluateReply.model_validate(fields) == old


@pytest.mark.parametrize(
    "paired",
    [
        {"roi": {**SEVEN, "area_a": 1.2}},
        {"roi": {**SEVEN, "num_positive": 0}},
        {"roi": {**SEVEN, "scores": [0.1]}},
        {"patients": SEVEN},
        {"roi": SEVEN, "models": {**SEVEN, "num_negative": 50}},
    ],
)
def test_areas_out_of_range_or_of_other_scans_are_refused(paired):
    with pytest.raises(ValidationError):
        EvaluateReply(
            **ROUND,
            split="test",
            evaluation="diagnostic",
            metrics={},
            paired_areas=paired,
            num_scans=95,
        )


def test_quantised_and_plain_groups_travel_side_by_side():
    plain = {"decoder.b": np.ones(3, np.float32)}
    record = to_record(EXAMPLES[3], {"decoder": plain, "encoder.ASL": b"payload"})
    assert parse_encoded(record) == {"encoder.ASL": b"payload"}
    assert set(parse_groups(record)) == {"decoder"}


def test_payload_of_several_megabytes_goes_through_flowers_chunks():
    payload = np.random.default_rng(1).bytes(12_000_000)
    record = to_record(EXAMPLES[3], {"decoder": payload})
    objects = get_all_nested_objects(record)
    chunks = [o for o in objects.values() if isinstance(o, ArrayChunk)]
    assert len(chunks) == 3  # of 5 MiB at most
    deflated = {key: item.deflate() for key, item in objects.items()}
    came = inflate_object_from_contents(record.object_id, deflated)
    assert parse_encoded(came) == {"decoder": payload}


def test_size_of_a_record_is_judged_before_it_is_decoded():
    groups = {"decoder": {"decoder.b": np.ones(1000, np.float32)}}
    record = to_record(EXAMPLES[3], groups)
    check_size(record, shapes_of(groups))
    assert 4000 < array_bytes(record) < 4400
    record["decoder"] = ArrayRecord({"tensors": Array("?", (1,), "?", bytes(10_000))})
    with pytest.raises(ProtocolError, match="wrong-size"):
        check_size(record, shapes_of(groups))


def test_overlong_message_is_refused():
    record = to_record(EXAMPLES[3])
    record["message"] = ConfigRecord({"kind": "train-reply", "json": " " * (2**23 + 1)})
    with pytest.raises(ProtocolError, match="longer than"):
        parse(record, TrainReply)
