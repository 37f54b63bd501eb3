"""What a site is sent, and the model that is committed, by hand."""

import numpy as np
import pytest

from iedn.config import TransferConfig
from iedn.parameters import state_hash
from iedn.protocol.encoding import apply_delta, decode
from iedn.protocol.messages import FailureReply, SiteCapabilities
from iedn.protocol.records import to_record
from server.aggregation import StreamingSum, Update, aggregate, apply_step
from server.config import FederationConfig, RoundsConfig, SiteEntry
from server.downlink import Holdings, LastStep, Offer, next_model
from server.federation import Federation
from server.optimizers import ServerOptimizerConfig
from server.outgoing import Outgoing

RNG = np.random.default_rng(11)
SHAPES = {"encoder.ASL": {"encoders.ASL.w": (40, 7)}, "decoder": {"decoder.w": (300,)}}
OLD, NEW = "a" * 64, "b" * 64


def groups(scale, dtype=np.float64):
    return {
        g: {n: np.asarray(RNG.normal(0.0, scale, shape), dtype) for n, shape in tensors.items()}
        for g, tensors in SHAPES.items()
    }


MODEL = groups(0.1, np.float32)
WHOLE = ("encoder.ASL", "decoder")


def committed_step(offer, step, moments, transfer):
    """The model after a step, with which the mean delta agrees: plain averaging, eta = 1."""
    means = ((g, n, x) for g, tensors in step.items() for n, x in tensors.items())
    return next_model(offer, means, moments, ServerOptimizerConfig(), transfer)


def offer(payloads=None, changed=("decoder",)):
    return Offer(MODEL, NEW, LastStep(OLD, frozenset(changed), payloads or {}))


@pytest.mark.parametrize("held", [None, "c" * 64])
def test_site_that_holds_nothing_of_use_is_sent_everything_it_owns(held):
    assert offer().to_send(WHOLE, held) == MODEL
    assert set(offer().to_send(("decoder",), held)) == {"decoder"}
    assert Offer(MODEL, NEW).to_send(WHOLE, OLD) == MODEL  # the step is not known


def test_site_that_holds_the_model_is_sent_nothing():
    assert offer().to_send(WHOLE, NEW) == {}


def test_site_that_holds_the_model_before_is_sent_what_has_changed():
    assert set(offer().to_send(WHOLE, OLD)) == {"decoder"}
    assert offer({"decoder": b"step"}).to_send(WHOLE, OLD) == {"decoder": b"step"}
    assert offer({"decoder": b"step"}).to_send(("encoder.ASL",), OLD) == {}


def test_site_that_lacks_what_it_was_thought_to_hold_is_asked_again_once():
    holdings = Holdings()
    lost = to_record(FailureReply(code="missing-base", incident="0" * 12))
    assert not holdings.must_send_all("site-a", lost)  # it was sent everything already
    holdings.note("site-a", OLD)
    assert not holdings.must_send_all(
        "site-a", to_record(FailureReply(code="E1", incident="0" * 12))
    )
    assert holdings.must_send_all("site-a", lost)
    assert holdings.of("site-a") is None
    assert not holdings.must_send_all("site-a", lost)


@pytest.mark.parametrize("hold", [True, False])
def test_hashes_are_announced_only_where_sites_keep_models(hold):
    sites = {"site-a": SiteEntry()}
    fields = {"run": "run-1", "preset": "tiny", "rounds": RoundsConfig(count=1, quorum=1)}
    transfer = TransferConfig(hold=hold)
    config = FederationConfig(**fields, seed=1, sites=sites, transfer=transfer)
    asl = SiteCapabilities(
        role="train", num_training_scans=5, scans_by_modality={"ASL": 5}, code_version="0"
    )
    federation = Federation(None, None, config, {"site-a": asl})
    model = {**MODEL, "encoder.T1WI": {}}
    expected = {g: state_hash(MODEL[g]) for g in WHOLE} if hold else {}
    assert Outgoing(federation, Offer(model, NEW)).hashes("site-a") == expected


def test_float32_commits_the_exact_step():
    step = groups(1e-3)
    model, moments, last = committed_step(
        Offer(MODEL, OLD), step, {"m": np.ones(1)}, TransferConfig()
    )
    for group, tensors in apply_step(MODEL, step).items():
        for name, value in tensors.items():
            assert model[group][name].tobytes() == value.tobytes()
    assert list(moments) == ["m"]
    assert (last.base_hash, last.changed, last.payloads) == (OLD, frozenset(SHAPES), {})


@pytest.mark.parametrize("down", ["fp16", "int8", "int4"])
def test_what_is_committed_is_what_a_site_decodes_and_the_rest_is_kept(down):
    transfer = TransferConfig(down=down)
    model, moments, total = MODEL, {}, {"decoder.w": np.zeros(300)}
    for _ in range(12):
        step = {"decoder": groups(1e-3)["decoder"]}
        before = model
        model, moments, last = committed_step(Offer(model, OLD), step, moments, transfer)
        assert model["encoder.ASL"] is before["encoder.ASL"]  # nobody trained it
        assert last.changed == {"decoder"}
        layout = {"decoder.w": (300,)}
        at_site = apply_delta(before["decoder"], decode(last.payloads["decoder"], layout, down))
        assert at_site["decoder.w"].tobytes() == model["decoder"]["decoder.w"].tobytes()
        total["decoder.w"] += step["decoder"]["decoder.w"]
    left = moments["residual/decoder/decoder.w"]
    moved = model["decoder"]["decoder.w"].astype(np.float64) - MODEL["decoder"]["decoder.w"]
    np.testing.assert_allclose(moved + left, total["decoder.w"], atol=12 * 2.0**-25)
    assert np.abs(left).max() < 2e-3


def test_sum_of_quantised_updates_does_not_depend_on_their_order():
    updates = []
    for site in range(5):
        deltas = {
            g: decode(p, SHAPES[g], "int4")
            for g, p in committed_step(
                Offer(MODEL, OLD), groups(1e-3), {}, TransferConfig(down="int4")
            )[2].payloads.items()
        }
        updates.append(Update(deltas, dict.fromkeys(deltas, 3 + site)))
    first = aggregate(MODEL, updates)
    for order in ([4, 2, 0, 1, 3], [3, 4, 1, 2, 0]):
        again = aggregate(MODEL, [updates[i] for i in order])
        for group in SHAPES:
            for name in SHAPES[group]:
                assert again[group][name].tobytes() == first[group][name].tobytes()


def test_sum_of_quantised_updates_is_exact():
    """One site of weight 3: the mean is the decoded value itself, to the last bit."""
    step = groups(1e-3)
    _, _, last = committed_step(Offer(MODEL, OLD), step, {}, TransferConfig(down="int8"))
    deltas = {g: decode(p, SHAPES[g], "int8") for g, p in last.payloads.items()}
    total = StreamingSum(SHAPES)
    total.add(Update(deltas, dict.fromkeys(deltas, 3)))
    for group, tensors in total.mean_deltas().items():
        for name, mean in tensors.items():
            assert np.array_equal(mean, deltas[group][name].astype(np.float64))
