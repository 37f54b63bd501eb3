"""Slow and broken links between a site and its coordinator: nothing is trained twice or lost.

The cases are those of ``benchmarks/links.py``, which prints their numbers.
"""

import pytest

pytestmark = [pytest.mark.system, pytest.mark.slow]

TINY_BYTES, LARGE_BYTES = 600_000, 36_000_000
OUTAGE_S = 100.0


def ends_well(found, *, rounds):
    """Each round trained once, its update taken once, and the undisturbed run's model."""
    assert found["trainings"] == rounds
    assert found["updates_accepted"] == len(rounds)
    assert found["model_hash"] == found["reference_hash"]


def phase(found, until):
    (only,) = [p for p in found["phases"] if p["until"] == until]
    return only


def test_small_model_over_4_mbit_per_s(links, tmp_path):
    found = links.tiny_at_4_mbit(tmp_path)
    ends_well(found, rounds=[1, 2])
    first, second = (phase(found, f"commit {number}") for number in (1, 2))
    for training in (first, second):
        assert training["bytes_from_the_site"] > TINY_BYTES
    assert first["bytes_to_the_site"] > TINY_BYTES
    assert first["seconds"] > 2 * TINY_BYTES * 8 / 4e6, "the link was as slow as it should be"
    # The site holds the model of round 1 since it has validated it.
    assert phase(found, "evaluation 1 validation")["bytes_to_the_site"] > TINY_BYTES
    assert second["bytes_to_the_site"] < TINY_BYTES / 2
    assert second["seconds"] > TINY_BYTES * 8 / 4e6


def test_model_of_37_mb_over_30_mbit_per_s(links, tmp_path):
    found = links.large_at_30_mbit(tmp_path)
    ends_well(found, rounds=[1])
    training = phase(found, "commit 1")
    assert training["bytes_from_the_site"] > LARGE_BYTES
    assert training["seconds"] > 2 * LARGE_BYTES * 8 / 30e6


def test_link_that_is_cut_in_the_middle_of_an_upload(links, tmp_path):
    found = links.cut_while_uploading(tmp_path, 20.0)
    assert found["accepted_during_the_outage"] == 0
    ends_well(found, rounds=[1])


@pytest.mark.parametrize("condition", ["cut", "silent"])
def test_outage_that_spans_training_and_upload(links, tmp_path, condition):
    found = links.outage_while_training(tmp_path, condition, OUTAGE_S)
    assert found["outage_s"] >= OUTAGE_S
    assert found["accepted_during_the_outage"] == 0, "the outage spans the whole phase"
    ends_well(found, rounds=[1, 2])
