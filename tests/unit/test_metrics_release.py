"""Released image quality: by ASL, never of a few patients, alone or as a difference of two."""

import math
from itertools import combinations

import numpy as np
import pytest

from iedn.config import PRESETS
from iedn.errors import PolicyError
from iedn.modalities import Modality
from iedn.protocol.messages import EvaluateRequest
from sites.config import PolicyConfig
from sites.egress import RELEASED_METRICS, Egress
from sites.metrics_release import ScanRow, metrics_release
from sites.release_log import ReleaseLog, verify
from sites.released_scans import ReleasedScans

PRESET = PRESETS["tiny"]
REQUEST = EvaluateRequest(
    run="run-1",
    round=2,
    base_hash="c" * 64,
    grid=PRESET.grid,
    network=PRESET.network,
    split="validation",
    evaluation="metrics",
)
POLICY = PolicyConfig(min_patients=10, min_cell=5)
STRUCTURAL, WITH_ASL = frozenset({Modality.T1WI}), frozenset({Modality.T1WI, Modality.ASL})


def row(number, value, *, asl=False, lesion=None, scan="ses-1"):
    values = {"psnr_db": value} if lesion is None else {"psnr_db": value, "lesion_error": lesion}
    return ScanRow(f"sub-{number:04d}", scan, WITH_ASL if asl else STRUCTURAL, values)


def cohort(with_asl, without):
    """Values 30 with ASL, 20 without."""
    return [row(n, 30.0, asl=True) for n in range(with_asl)] + [
        row(100 + n, 20.0) for n in range(without)
    ]


def test_means_with_and_without_asl():
    metrics = metrics_release(cohort(10, 30), "test", [], POLICY).metrics
    assert metrics["psnr_db_mean"] == 22.5
    assert metrics["with_asl_psnr_db_mean"] == 30.0
    assert metrics["without_asl_psnr_db_mean"] == 20.0
    assert metrics["with_asl_psnr_db_sd"] == 0.0


@pytest.mark.parametrize(("with_asl", "without"), [(9, 30), (30, 9)])
def test_a_small_stratum_takes_the_other_with_it(with_asl, without):
    """40 (or so) minus one stratum is the other: either both leave or none."""
    release = metrics_release(cohort(with_asl, without), "test", [], POLICY)
    assert set(release.metrics) == {"psnr_db_mean", "psnr_db_sd"}
    assert set(release.held) == {"with_asl_psnr_db", "without_asl_psnr_db"}
    assert "9 patients" in " ".join(release.held.values())


def test_one_stratum_only_is_the_whole():
    metrics = metrics_release(cohort(12, 0), "test", [], POLICY).metrics
    assert metrics["with_asl_psnr_db_mean"] == metrics["psnr_db_mean"] == 30.0
    assert not any(name.startswith("without_asl") for name in metrics)


def test_a_metric_that_few_patients_have_is_held_and_the_others_leave():
    few = [row(n, 20.0, lesion=0.5 if n < 9 else None) for n in range(20)]
    release = metrics_release(few, "test", [], POLICY)
    assert "psnr_db_mean" in release.metrics
    assert not any("lesion" in name for name in release.metrics)
    assert "9 patients" in release.held["lesion_error"]


def test_scans_of_few_patients_do_not_make_many():
    many = [row(n, 20.0, scan=f"ses-{visit}") for n in range(9) for visit in range(5)]
    assert metrics_release(many, "test", [], POLICY).metrics == {}


def test_values_that_are_not_finite_do_not_count():
    rows = [row(n, math.inf if n < 3 else 20.0) for n in range(12)]
    assert metrics_release(rows, "test", [], POLICY).metrics == {}


@pytest.mark.parametrize(("more", "leaves"), [(0, True), (1, False), (4, False), (5, True)])
def test_two_releases_do_not_tell_about_a_few(tmp_path, more, leaves):
    log = ReleaseLog(tmp_path / "releases.jsonl")
    egress = Egress(POLICY, log)
    first = egress.metrics(REQUEST, cohort(0, 12))
    assert first.metrics["psnr_db_mean"] == 20.0
    restarted = Egress(POLICY, ReleaseLog(log.path))
    if leaves:
        assert restarted.metrics(REQUEST, cohort(0, 12 + more)).metrics
        return
    with pytest.raises(PolicyError, match=f"differ in {more} patients"):
        restarted.metrics(REQUEST, cohort(0, 12 + more))
    assert len(verify(log.path)) == 1
    assert "sub-" not in log.path.read_text()


def test_another_split_is_another_set_of_patients(tmp_path):
    egress = Egress(POLICY, ReleaseLog(tmp_path / "releases.jsonl"))
    egress.metrics(REQUEST, cohort(0, 12))
    assert egress.metrics(REQUEST.model_copy(update={"split": "test"}), cohort(0, 13)).metrics


@pytest.mark.parametrize("least", [2, 5])
def test_no_released_mean_is_of_a_few_in_any_history(tmp_path, least):
    """Property: no number is of 1 to t - 1 patients, as it stands or as a difference of two."""
    policy = PolicyConfig(min_patients=least, min_cell=least)
    rng = np.random.default_rng(least)
    numbers_left = numbers_held = 0
    for history in range(10):
        log = ReleaseLog(tmp_path / str(history) / "releases.jsonl")
        egress = Egress(policy, log)
        members, asl = set(rng.choice(40, 20, replace=False)), set(rng.choice(40, 20))
        for _ in range(8):
            members ^= set(rng.choice(40, int(rng.integers(0, least + 2)), replace=False))
            asl ^= set(rng.choice(40, int(rng.integers(0, least + 1)), replace=False))
            rows = [row(n, float(n), asl=n in asl, lesion=1.0) for n in sorted(members)]
            try:
                sent = egress.metrics(REQUEST, rows).metrics
            except PolicyError:
                sent = {}
            numbers_left += len(sent)
            numbers_held += len(sent) == 0
        released = ReleasedScans(log.path.with_name(RELEASED_METRICS)).entries()
        _assert_no_small_cell(released, least)
    assert numbers_left > 100
    assert numbers_held > 5


def _assert_no_small_cell(released, least):
    """Over all pairs of sets of one name, and over the whole and its strata of one release."""
    for name in {name for entry in released for name in entry}:
        sets = [entry[name] for entry in released if name in entry]
        assert all(len({p for p, _ in scans}) >= least for scans in sets)
        for a, b in combinations(sets, 2):
            assert len({p for p, _ in a ^ b}) not in range(1, least)
            assert abs(len(a) - len(b)) not in range(1, least)
    for entry in released:
        whole = entry.get("validation psnr_db", frozenset())
        for stratum in ("with_asl", "without_asl"):
            part = entry.get(f"validation {stratum}_psnr_db")
            if part is not None:
                assert len(whole - part) not in range(1, least)
