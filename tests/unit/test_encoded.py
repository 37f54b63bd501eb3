"""A model on its way to many sites is encoded once, and each site gets what it owns."""

import numpy as np

import server.encoded
from iedn.config import PRESETS
from iedn.protocol.messages import CapabilitiesRequest
from iedn.protocol.records import array_bytes, parse, parse_encoded, parse_groups, to_record
from server.downlink import LastStep, Offer
from server.encoded import EncodedModel

PRESET = PRESETS["tiny"]
MODEL = {
    "encoder.T1WI": {"a": np.arange(5, dtype=np.float32)},
    "encoder.ASL": {"b": np.ones((2, 3), np.float32)},
    "decoder": {"c": np.float32(0.5).reshape(())},
}
OLD, NEW = "a" * 64, "b" * 64


def message(run):
    return CapabilitiesRequest(run=run, grid=PRESET.grid, network=PRESET.network)


def test_a_record_is_the_one_that_would_be_made_alone():
    encoded = EncodedModel(Offer(MODEL, NEW))
    groups = ("encoder.ASL", "encoder.FLAIR", "decoder")
    for run in ("run-1", "run-2"):
        record = encoded.record(message(run), groups)
        alone = to_record(message(run), {g: MODEL[g] for g in ("encoder.ASL", "decoder")})
        assert record == alone
        assert list(record) == list(alone)
        assert parse(record, CapabilitiesRequest).run == run
        assert set(parse_groups(record)) == {"encoder.ASL", "decoder"}


def test_each_group_is_encoded_once_until_it_is_forgotten(monkeypatch):
    made = []

    def counted(message, groups=None):
        made.extend(groups or ())
        return to_record(message, groups)

    monkeypatch.setattr(server.encoded, "to_record", counted)
    encoded = EncodedModel(Offer(MODEL, NEW))
    records = [encoded.record(message(f"run-{n}"), ("encoder.T1WI", "decoder")) for n in range(50)]
    assert made == ["encoder.T1WI", "decoder"]
    assert len({id(record["decoder"]) for record in records}) == 1
    encoded.forget()
    encoded.record(message("run-1"), ("decoder",))
    assert made == ["encoder.T1WI", "decoder", "decoder"]


def test_whole_groups_and_quantised_steps_go_to_different_sites_at_a_time():
    step = LastStep(OLD, frozenset({"decoder"}), {"decoder": b"step"})
    encoded = EncodedModel(Offer(MODEL, NEW, step))
    groups = ("encoder.ASL", "decoder")
    for _ in range(2):
        assert set(parse_groups(encoded.record(message("new"), groups))) == set(groups)
        behind = encoded.record(message("behind"), groups, OLD)
        assert (parse_encoded(behind), parse_groups(behind)) == ({"decoder": b"step"}, {})
        assert array_bytes(encoded.record(message("up-to-date"), groups, NEW)) == 0
