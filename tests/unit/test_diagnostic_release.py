"""Diagnostic releases: nothing about a few patients, alone or as a difference, and seen first."""

import itertools
import json
import stat

import numpy as np
import pytest

from iedn.config import PRESETS
from iedn.errors import PolicyError
from iedn.evaluation.statistics import site_areas
from iedn.protocol.messages import EvaluateRequest, PairedAreas
from sites.config import PolicyConfig
from sites.diagnostic_release import DiagnosticRelease
from sites.egress import RELEASED_SCANS, Egress
from sites.release_log import ReleaseLog, verify

PRESET = PRESETS["tiny"]
HASH = "c" * 64
REQUEST = EvaluateRequest(
    run="run-1",
    round=2,
    base_hash=HASH,
    grid=PRESET.grid,
    network=PRESET.network,
    split="test",
    evaluation="diagnostic",
)
DEPLOYED = PolicyConfig(releases=("diagnostic",), review=False)


def release(positive, negative, *, seed=0, names=("roi",), model_hash=HASH):
    """Made-up scores of scans; ``positive`` and ``negative`` are (patient, scan)."""
    rng = np.random.default_rng(seed)
    scans = [*sorted(positive), *sorted(negative)]
    labels = [True] * len(positive) + [False] * len(negative)
    seven = {}
    for name in names:
        scores = rng.normal(size=(2, len(scans))) + np.array(labels)
        found = site_areas(labels, scores[0], scores[1], patients=[p for p, _ in scans])
        seven[name] = PairedAreas(**vars(found))
    return DiagnosticRelease(seven, frozenset(positive), frozenset(negative), model_hash)


def scans(*numbers, visits=1):
    return {(f"sub-{n:04d}", f"ses-{v}") for n in numbers for v in range(visits)}


TWELVE = (scans(*range(12)), scans(*range(100, 112)))


@pytest.fixture
def log(tmp_path):
    return ReleaseLog(tmp_path / "releases.jsonl")


def test_seven_numbers_leave_and_are_logged_and_nothing_else(log):
    sent = release(*TWELVE)
    reply = Egress(DEPLOYED, log).diagnostic(REQUEST, sent)
    assert reply.paired_areas == sent.paired_areas
    assert (reply.metrics, reply.num_scans) == ({}, 20)
    (entry,) = verify(log.path)
    assert entry["message"] == json.loads(reply.model_dump_json())
    assert sorted(entry["message"]["paired_areas"]["roi"]) == [
        *("area_a", "area_b", "covariance", "num_negative", "num_positive"),
        *("variance_a", "variance_b"),
    ]
    assert "sub-" not in log.path.read_text()


def test_diagnostic_needs_the_sites_consent(log):
    with pytest.raises(PolicyError, match="does not allow 'diagnostic'"):
        Egress(PolicyConfig(review=False), log).diagnostic(REQUEST, release(*TWELVE))
    assert verify(log.path) == []


@pytest.mark.parametrize(
    ("positive", "message"),
    [
        (scans(*range(9)), "9 patients with recurrence"),
        (scans(*range(9), visits=3), "9 patients with recurrence"),
    ],
)
def test_a_small_class_does_not_leave(log, positive, message):
    with pytest.raises(PolicyError, match=message):
        Egress(DEPLOYED, log).diagnostic(REQUEST, release(positive, TWELVE[1]))
    assert verify(log.path) == []
    assert not (log.path.parent / RELEASED_SCANS).exists()


def changed(*, add=(), drop=()):
    return (TWELVE[0] | scans(*add)) - scans(*drop)


@pytest.mark.parametrize(
    ("positive", "leaves"),
    [
        (changed(), True),
        (changed(add=[20]), False),  # one patient more
        (changed(add=[20], drop=[0]), False),  # one exchanged for another: equal counts
        (changed(add=[20, 21, 22, 23]), False),
        (changed(add=[20, 21, 22, 23, 24]), True),
        (changed(add=[20, 21, 22], drop=[0, 1]), False),  # five changed, but the counts differ by 1
        (changed(add=[20, 21, 22], drop=[0, 1, 2]), True),  # six changed, equal counts
        (TWELVE[0] | {("sub-0000", "ses-9")}, False),  # one scan more of a known patient
    ],
)
def test_two_releases_do_not_tell_about_a_few(log, positive, leaves):
    egress = Egress(DEPLOYED, log)
    egress.diagnostic(REQUEST, release(*TWELVE))
    again = release(positive, TWELVE[1], seed=1)
    if leaves:
        assert egress.diagnostic(REQUEST, again).paired_areas == again.paired_areas
        return
    with pytest.raises(PolicyError, match="diagnostic release 1"):
        egress.diagnostic(REQUEST, again)
    assert len(verify(log.path)) == 1


def test_earlier_releases_are_remembered_over_a_restart_and_for_the_owner_only(log):
    Egress(DEPLOYED, log).diagnostic(REQUEST, release(*TWELVE))
    path = log.path.parent / RELEASED_SCANS
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text().splitlines()) == 1
    restarted = Egress(DEPLOYED, ReleaseLog(log.path))
    with pytest.raises(PolicyError, match="min_cell"):
        restarted.diagnostic(REQUEST, release(changed(add=[20]), TWELVE[1]))


@pytest.mark.parametrize("least", [2, 5, 7])
def test_no_released_number_is_a_small_cell_in_any_history(tmp_path, least):
    """Property: whatever is asked for in whatever order, what left holds no cell of 1 to t - 1."""
    policy = DEPLOYED.model_copy(
        update={"min_patients": 1, "min_class_patients": 1, "min_cell": least}
    )
    rng = np.random.default_rng(least)
    released = refused = 0
    for history in range(12):
        log = ReleaseLog(tmp_path / str(history) / "releases.jsonl")
        egress, gone = Egress(policy, log), []
        sets = [set(rng.choice(60, int(rng.integers(2, 30)), replace=False)) for _ in range(2)]
        for step in range(8):
            for members in sets:
                members ^= set(rng.choice(60, int(rng.integers(0, least + 2)), replace=False))
            positive = scans(*sets[0], visits=int(rng.integers(1, 3)))
            negative = scans(*(100 + n for n in sets[1]))
            if min(len(sets[0]), len(sets[1])) < 2:
                continue
            asked = release(positive, negative, seed=step)
            try:
                reply = egress.diagnostic(REQUEST, asked)
                gone.append((asked, reply))
                released += 1
            except PolicyError:
                refused += 1
        for asked, reply in gone:
            roi = reply.paired_areas["roi"]
            cells = [roi.num_positive, roi.num_negative, reply.num_scans]
            cells += [len({p for p, _ in found}) for found in asked.classes.values()]
            assert all(cell == 0 or cell >= least for cell in cells)
        for (one, first), (other, second) in itertools.combinations(gone, 2):
            a, b = first.paired_areas["roi"], second.paired_areas["roi"]
            cells = [a.num_positive - b.num_positive, a.num_negative - b.num_negative]
            cells.append(first.num_scans - second.num_scans)
            cells += [
                len({p for p, _ in one.classes[name] ^ other.classes[name]}) for name in one.classes
            ]
            assert all(cell == 0 or abs(cell) >= least for cell in cells)
    assert released > 10
    assert refused > 10


def test_nothing_leaves_before_somebody_approved_these_very_numbers(log):
    egress = Egress(DEPLOYED.model_copy(update={"review": True}), log)
    seen = release(*TWELVE)
    assert egress.preview(seen) == seen.paired_areas
    with pytest.raises(PolicyError, match="nobody at this site has approved"):
        egress.diagnostic(REQUEST, seen)
    egress.approve(seen)
    for other in (release(*TWELVE, seed=9), release(*TWELVE, model_hash="d" * 64)):
        with pytest.raises(PolicyError, match="approved"):
            egress.diagnostic(REQUEST, other)
    assert verify(log.path) == []
    assert egress.diagnostic(REQUEST, seen).paired_areas == seen.paired_areas


def test_what_would_not_leave_cannot_be_approved(log):
    egress = Egress(DEPLOYED.model_copy(update={"review": True}), log)
    small = release(scans(*range(9)), TWELVE[1])
    with pytest.raises(PolicyError, match="9 patients"):
        egress.approve(small)
    assert list(log.path.parent.iterdir()) == []


def test_comparisons_of_other_scans_are_a_programming_mistake(log):
    one, other = release(*TWELVE), release(scans(*range(13)), TWELVE[1])
    mixed = DiagnosticRelease(other.paired_areas, one.positive, one.negative, HASH)
    with pytest.raises(ValueError, match="other scans"):
        Egress(DEPLOYED, log).diagnostic(REQUEST, mixed)
    empty = DiagnosticRelease({}, one.positive, one.negative, HASH)
    with pytest.raises(PolicyError, match="nothing to send"):
        Egress(DEPLOYED, log).diagnostic(REQUEST, empty)


def test_readers_numbers_stay_unless_small_counts_may_leave(log):
    """Two calls: area (se + sp) / 2 and its variance are two equations for two unknown cells."""
    both = release(*TWELVE, names=("roi", "readers"))
    with pytest.raises(PolicyError, match="table of their calls"):
        Egress(DEPLOYED, log).diagnostic(REQUEST, both)
    opened = DEPLOYED.model_copy(update={"min_cell": 1})
    assert set(Egress(opened, log).diagnostic(REQUEST, both).paired_areas) == {"roi", "readers"}
