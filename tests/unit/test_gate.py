"""Every way in which an update can be wrong is refused, with its code."""

from dataclasses import replace

import numpy as np
import pytest

from iedn.config import PRESETS, TrainingConfig
from iedn.errors import RefusedError
from iedn.modalities import Modality
from iedn.protocol.messages import SiteCapabilities, TrainReply, TrainRequest
from server.gate import Expectation, GateConfig, SeenLedger, admit

BASE = "a" * 64


def request(**changes):
    preset = PRESETS["tiny"]
    fields = {
        "run": "run-1",
        "round": 3,
        "base_hash": BASE,
        "grid": preset.grid,
        "network": preset.network,
        "training": TrainingConfig(),
        "seed": 1,
        "group_sites": {"encoder.T1WI": 2, "decoder": 2},
    }
    return TrainRequest(**{**fields, **changes})


def expectation(norm_bound=100.0):
    capabilities = SiteCapabilities(
        role="train",
        num_training_scans=20,
        scans_by_modality={Modality.T1WI: 15},
        code_version="0.1.0",
    )
    shapes = {"encoder.T1WI": {"e": (2,)}, "decoder": {"d": (1, 2)}}
    return Expectation(request(), capabilities, shapes, norm_bound)


def reply(**changes):
    fields = {
        "run": "run-1",
        "round": 3,
        "base_hash": BASE,
        "weights": {"encoder.T1WI": 15, "decoder": 20},
        "duration_s": 1,
    }
    return TrainReply(**{**fields, **changes})


def deltas(encoder=(3.0, 0.0), decoder=((0.0, 4.0),)):
    return {
        "encoder.T1WI": {"e": np.array(encoder, np.float32)},
        "decoder": {"d": np.array(decoder, np.float32)},
    }


def code_of(reply_, deltas_, **kwargs):
    with pytest.raises(RefusedError) as caught:
        admit(reply_, deltas_, expectation(**kwargs))
    return caught.value.code


def test_good_update_passes_and_its_norm_is_euclidean():
    assert admit(reply(), deltas(), expectation()) == 5.0


def test_held_group_may_be_left_out_but_must_be_named():
    held = reply(weights={"decoder": 20}, held_groups=("encoder.T1WI",))
    only_decoder = {"decoder": deltas()["decoder"]}
    assert admit(held, only_decoder, expectation()) == 4.0
    assert code_of(reply(weights={"decoder": 20}), only_decoder) == "wrong-group"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value):
    assert code_of(reply(), deltas(encoder=(value, 0.0))) == "not-finite"


def test_element_beyond_the_fixed_point_range():
    assert code_of(reply(), deltas(encoder=(1025.0, 0.0)), norm_bound=1e9) == "too-large"


def test_norm():
    assert code_of(reply(), deltas(), norm_bound=4.9) == "norm"


def test_shape():
    assert code_of(reply(), deltas(encoder=(1.0, 2.0, 3.0))) == "wrong-shape"


def test_dtype():
    wrong = deltas()
    wrong["decoder"]["d"] = wrong["decoder"]["d"].astype(np.float64)
    assert code_of(reply(), wrong) == "wrong-dtype"


def test_key():
    wrong = deltas()
    wrong["decoder"]["other"] = wrong["decoder"].pop("d")
    assert code_of(reply(), wrong) == "wrong-key"


def test_foreign_group():
    wrong = deltas() | {"encoder.ASL": {"x": np.zeros(1, np.float32)}}
    weights = {"encoder.T1WI": 15, "decoder": 20, "encoder.ASL": 5}
    assert code_of(reply(weights=weights), wrong) == "wrong-group"


@pytest.mark.parametrize(
    "weights", [{"encoder.T1WI": 16, "decoder": 20}, {"encoder.T1WI": 15, "decoder": 1000}]
)
def test_weight_must_be_the_declared_one(weights):
    assert code_of(reply(weights=weights), deltas()) == "wrong-weight"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"run": "run-2"}, "wrong-run"),
        ({"round": 2}, "wrong-round"),
        ({"base_hash": "b" * 64}, "wrong-base"),
    ],
)
def test_stale_or_foreign_reply(change, code):
    assert code_of(reply(**change), deltas()) == code


def test_norm_bound_rests_on_committed_rounds():
    config = GateConfig(max_update_norm=50.0, norm_factor=3.0, norm_history=2)
    assert config.norm_bound([]) == 50.0
    assert config.norm_bound([[100.0], [1.0, 2.0], [3.0]]) == 6.0  # 3 * median(1, 2, 3)
    assert config.norm_bound([[40.0]]) == 50.0


def test_ledger_that_grows_passes_and_one_that_has_forgotten_is_refused():
    seen = replace(expectation(), ledger=SeenLedger(7, "1" * 64))

    def came(count, digest):
        return reply(ledger_count=count, ledger_hash=digest, epsilon=1.0)

    for good in (came(7, "1" * 64), came(8, "2" * 64), reply()):
        assert admit(good, deltas(), seen) == 5.0
    for bad in (came(6, "1" * 64), came(7, "2" * 64)):
        with pytest.raises(RefusedError, match="7 up to 1111") as caught:
            admit(bad, deltas(), seen)
        assert caught.value.code == "ledger-rolled-back"
    assert admit(came(1, "3" * 64), deltas(), expectation()) == 5.0, "the first is as good as any"


def test_head_of_a_ledger_is_whole():
    with pytest.raises(ValueError, match="come together"):
        reply(ledger_count=7)
