"""Table 3 of a site: which scans are cases, what is compared, what stops, what would leave."""

from dataclasses import replace

import numpy as np
import pytest

from client.diagnostic_value import cases_of, check_cohort, describe, evaluate_rows
from client.external import RoiRow
from client.table3_page import table3_markdown, would_leave
from iedn.errors import CohortError, PolicyError
from iedn.evaluation.statistics import auc_interval, delong_test, site_areas
from iedn.modalities import Modality
from sites.cohort import Quarantine
from sites.config import PolicyConfig
from sites.readers import Judged, ReaderStudy, Reading

HASH = "ab" * 32
STRICT, OPEN = PolicyConfig(), PolicyConfig(min_patients=1, min_class_patients=1, min_cell=1)


def row(number, label, synthetic, asl, **others):
    images = {Modality.T1WI: 1.0 + 0.01 * number, Modality.ADC: 1.1}
    if asl is not None:
        images[Modality.ASL] = asl
    given = {"roi": "lesion_mask", "images": images, **others}
    return RoiRow(f"sub-{number:04d}", "ses-01", label, synthetic_cbv=synthetic, **given)


def cohort(size=30, seed=1):
    rng = np.random.default_rng(seed)
    labels = ["recurrence" if n % 2 else "treatment_response" for n in range(size)]
    return [
        row(n, label, 1.5 + (label == "recurrence") + rng.normal(0, 0.5), 1 + rng.random())
        for n, label in enumerate(labels)
    ]


def test_cases_have_everything_and_the_flow_sums_up():
    rows = [
        *cohort(),
        row(50, None, 2.0, 1.0),
        row(51, "recurrence", 2.0, 1.0, roi="automatic"),
        row(52, "recurrence", 2.0, None),
        row(53, "treatment_response", None, 1.0),
    ]
    assert cases_of(rows) == rows[:30]
    flow = evaluate_rows(rows, None, model_hash=HASH, policy=STRICT).flow
    assert (flow.num_scans, flow.unlabelled, flow.automatic, flow.without_value) == (34, 1, 1, 2)
    assert flow.cases == {"recurrence": 15, "treatment_response": 15}
    sorted_out = flow.unlabelled + flow.automatic + flow.without_value
    assert sorted_out + sum(flow.cases.values()) == flow.num_scans
    assert "15 recurrence (15 patients)" in describe(flow)


def test_areas_and_tests_are_of_the_cases():
    rows = cohort()
    result = evaluate_rows(rows, None, model_hash=HASH, policy=STRICT)
    labels = [r.label == "recurrence" for r in rows]
    synthetic, asl = [r.synthetic_cbv for r in rows], [r.asl for r in rows]
    assert result.areas["ASL"] == auc_interval(labels, asl)
    found = result.comparisons["synthetic CBV", "ASL"]
    expected = delong_test(labels, synthetic, asl)
    assert (found.difference, found.p_value) == pytest.approx(
        (expected.difference, expected.p_value)
    )
    assert result.mri_inputs == (Modality.T1WI, Modality.ADC)
    assert {"standard MRI", "standard MRI + ASL", "standard MRI + synthetic CBV"} <= set(
        result.areas
    )
    assert "measured CBV" not in result.areas
    # Synthetic CBV tells the outcomes apart, T1WI and ADC do not.
    assert result.areas["standard MRI + synthetic CBV"].value > 0.75
    assert result.areas["standard MRI"].value < 0.7


def test_what_would_leave_is_the_seven_numbers_of_the_cases():
    rows = cohort()
    release = evaluate_rows(rows, None, model_hash=HASH, policy=STRICT).release
    labels = [r.label == "recurrence" for r in rows]
    expected = site_areas(labels, [r.synthetic_cbv for r in rows], [r.asl for r in rows])
    assert set(release.paired_areas) == {"roi", "models"}
    assert release.paired_areas["roi"].model_dump() == pytest.approx(vars(expected))
    assert (len(release.positive), len(release.negative)) == (15, 15)
    page = would_leave(release.paired_areas, 30)
    assert "sub-" not in page
    assert f"{expected.area_a:.6g}" in page


def test_measured_cbv_and_several_scans_of_a_patient():
    rows = cohort()
    rows = [replace(r, measured_cbv=r.synthetic_cbv + 0.1) for r in rows]
    again = [replace(r, scan_id="ses-02") for r in rows]
    result = evaluate_rows([*rows, *again], None, model_hash=HASH, policy=STRICT)
    once = evaluate_rows(rows, None, model_hash=HASH, policy=STRICT)
    assert result.areas["measured CBV"].value == result.areas["synthetic CBV"].value
    # The same scans twice: as many patients, and nearly the same uncertainty.
    found, single = result.release.paired_areas["roi"], once.release.paired_areas["roi"]
    assert (found.num_positive, found.area_a) == (30, single.area_a)
    assert found.variance_a == pytest.approx(single.variance_a, rel=0.01)


def study_of(rows, confidence):
    def judged(scenario, r):
        score = confidence(r) if scenario == "MRI+sCBV" else 2
        call = "recurrence" if score >= 3 else "treatment_response"
        readings = [Reading(r.key, f"reader-{n}", scenario, "initial", call, score) for n in (1, 2)]
        return Judged(r.key, (readings[0], readings[1]), None)

    scenarios = ("MRI+ASL", "MRI+sCBV")
    return ReaderStudy(
        ("reader-1", "reader-2"), {s: tuple(judged(s, r) for r in rows) for s in scenarios}
    )


def test_readers_join_table_and_release():
    rows = cohort()
    study = study_of(rows, lambda r: 4 if r.synthetic_cbv > 2 else 1)
    result = evaluate_rows(rows, study, model_hash=HASH, policy=STRICT)
    assert result.areas["readers, MRI+ASL"].value == 0.5  # the same score for all
    called = [r.synthetic_cbv > 2 for r in rows]
    labels = [r.label == "recurrence" for r in rows]
    found = result.readers.scenarios["MRI+sCBV"]
    hits = sum(c and label for c, label in zip(called, labels, strict=True))
    assert found.sensitivity.value == hits / 15
    page = table3_markdown(result)
    assert "Reader study: 30 cases" in page
    assert any("readers" in note for note in result.notes)  # one score for all has no test
    # Areas and variances of a score with few levels tell its table: they stay.
    assert "readers" not in result.release.paired_areas
    opened = evaluate_rows(rows, study, model_hash=HASH, policy=OPEN)
    assert "readers" in opened.release.paired_areas


def test_nothing_is_computed_without_both_outcomes_among_the_cases():
    rows = [row(n, "recurrence", 2.0, 1.0) for n in range(20)]
    with pytest.raises(CohortError, match=r"20 recurrence .*0 treatment_response"):
        evaluate_rows(rows, None, model_hash=HASH, policy=STRICT)


def outcomes(recurrence, response):
    first = [(f"sub-{n:04d}", "recurrence") for n in range(recurrence)]
    return first + [(f"sub-{n:04d}", "treatment_response") for n in range(100, 100 + response)]


def test_a_cohort_in_order_goes_on():
    check_cohort(outcomes(10, 10), [], STRICT)
    check_cohort([*outcomes(1, 1), ("sub-0500", None)], [], OPEN)


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (outcomes(3, 3), PolicyError, "6 patients: 3 with recurrence.*demands 10"),
        (outcomes(30, 9), PolicyError, "9 with treatment_response"),
        (outcomes(40, 0), CohortError, "0 with treatment_response.*both outcomes"),
        ([("sub-0001", None)] * 20, CohortError, "0 with recurrence"),
    ],
)
def test_too_few_or_one_outcome_stop_before_any_map(found, error, message):
    with pytest.raises(error, match=message):
        check_cohort(found, [], STRICT)


def test_copies_under_two_patients_stop():
    copy = Quarantine("E301", "sub-0002/ses-01", "T1WI", "the same voxels as sub-0001/ses-01")
    with pytest.raises(CohortError, match="E301 sub-0002/ses-01"):
        check_cohort(outcomes(10, 10), [copy], STRICT)
