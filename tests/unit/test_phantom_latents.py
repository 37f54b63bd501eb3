"""What is drawn about patients before any image is made."""

import numpy as np
import pytest
from pydantic import ValidationError

from iedn.modalities import Modality
from simulation.phantom import PhantomCohort, SiteProtocol
from simulation.phantom.latents import (
    Outcome,
    PatientPlan,
    draw_visits,
    lognormal,
    plan_cohort,
    rim_values,
)
from simulation.phantom.tissue import NORMAL_WM_CBV


def many_rims(cohort: PhantomCohort, outcome: Outcome) -> dict[str, np.ndarray]:
    deviates = np.random.default_rng(5).standard_normal((4000, 6))
    rims = [rim_values(cohort, outcome, row) for row in deviates]
    return {
        "rcbv": np.array([rim.cbv / NORMAL_WM_CBV for rim, _ in rims]),
        "adc": np.array([rim.adc for rim, _ in rims]),
        "att_s": np.array([rim.att_s for rim, _ in rims]),
        "late": np.array([late for _, late in rims]),
    }


@pytest.mark.parametrize(
    ("lesions", "outcome", "mean", "sd"),
    [
        ("default", Outcome.RECURRENCE, 2.9, 1.1),
        ("default", Outcome.TREATMENT_RESPONSE, 1.3, 0.6),
        ("hard", Outcome.RECURRENCE, 2.38, 0.87),
        ("hard", Outcome.TREATMENT_RESPONSE, 1.57, 0.67),
    ],
)
def test_relative_cbv_has_the_presets_mean_and_sd(
    lesions: str, outcome: Outcome, mean: float, sd: float
) -> None:
    cohort = PhantomCohort.model_validate({"patients": 1, "lesions": lesions})
    rcbv = many_rims(cohort, outcome)["rcbv"]
    assert rcbv.mean() == pytest.approx(mean, rel=0.04)
    assert rcbv.std() == pytest.approx(sd, rel=0.08)


def test_late_arrival_is_commoner_in_recurrence_and_far_later() -> None:
    cohort = PhantomCohort(patients=1)
    recurrence, response = (many_rims(cohort, outcome) for outcome in Outcome)
    assert recurrence["late"].mean() == pytest.approx(0.25, abs=0.03)
    assert response["late"].mean() == pytest.approx(0.10, abs=0.03)
    assert recurrence["att_s"][recurrence["late"]].mean() == pytest.approx(2.9, abs=0.1)
    assert recurrence["att_s"][~recurrence["late"]].mean() == pytest.approx(1.5, abs=0.05)


@pytest.mark.parametrize("adc_gap", [0.0, 0.2])
def test_adc_gap_is_the_difference_of_the_means(adc_gap: float) -> None:
    cohort = PhantomCohort(patients=1, adc_gap=adc_gap)
    recurrence, response = (many_rims(cohort, o)["adc"].mean() for o in Outcome)
    assert response - recurrence == pytest.approx(adc_gap, abs=1e-3)


def test_lognormal_median_by_hand() -> None:
    # mean 3, sd sqrt(3): variance of the log is ln(4/3), so the median is 3 / sqrt(4/3).
    assert lognormal(0.0, 3.0, 3.0**0.5) == pytest.approx(3.0 / (4.0 / 3.0) ** 0.5)


def test_number_of_recurrences_is_exact_and_visits_are_within_bounds() -> None:
    cohort = PhantomCohort(patients=60, min_visits=1, max_visits=5, fraction_recurrence=0.25)
    plans = plan_cohort(cohort, seed=2)
    assert sum(p.outcomes[0] is Outcome.RECURRENCE for p in plans) == 15
    counts = [len(p.outcomes) for p in plans]
    assert set(counts) <= {1, 2, 3, 4, 5}
    assert counts.count(1) > counts.count(3) > counts.count(5)
    assert 1.6 < np.mean(counts) < 2.5


def test_outcome_of_a_later_visit_changes_as_often_as_asked() -> None:
    fixed, moving = (
        PhantomCohort(patients=20, min_visits=3, change_probability=p) for p in (0.0, 1.0)
    )
    assert all(len(set(p.outcomes)) == 1 for p in plan_cohort(fixed, 1))
    assert all(p.outcomes[0] is p.outcomes[1].other for p in plan_cohort(moving, 1))


def test_visits_of_a_patient_resemble_each_other_more_than_other_patients() -> None:
    cohort = PhantomCohort(patients=200)
    pairs = []
    for number in range(1, 201):
        plan = PatientPlan(number, (Outcome.RECURRENCE, Outcome.RECURRENCE))
        first, second = draw_visits(cohort, plan, 9, 15.0)
        pairs.append((np.log(first.rim.cbv), np.log(second.rim.cbv)))
        assert first.radius_mm == 15.0
        assert 8.0 <= second.radius_mm <= 24.0
    assert np.corrcoef(np.array(pairs).T)[0, 1] == pytest.approx(0.7, abs=0.12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"modalities": ["FLAIR", "ASL"]},
        {"missing_probability": {"T1WI": 0.1}},
        {"missing_probability": {"ASL": 1.5}},
        {"unknown_key": 1},
        {"dtype": "float64"},
    ],
)
def test_impossible_protocol_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SiteProtocol.model_validate(wrong)


def test_visits_must_be_in_order() -> None:
    with pytest.raises(ValidationError, match="min_visits 4"):
        PhantomCohort(patients=1, min_visits=4, max_visits=2)


def test_modalities_are_put_in_the_enums_order() -> None:
    protocol = SiteProtocol(modalities=(Modality.ASL, Modality.T1WI))
    assert protocol.modalities == (Modality.T1WI, Modality.ASL)
