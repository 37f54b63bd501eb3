"""What is drawn about a cohort before any image: visits, outcomes, lesion perfusion.

Marginal distributions of the rim: rCBV lognormal, ADC, transit times and leakage normal. Draws of
one patient's visits are correlated (a tumour does not become another one in three months) by a
Gaussian copula, which leaves the marginals as they are.

The ``default`` rCBV means and sds were tuned so that the area under the ROC curve of true CBV and
of single-delay ASL come out near the paper's; ``hard`` uses 2.38 +- 0.87 against 1.57 +- 0.67.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from .config import LesionPreset, PhantomCohort
from .lesion import LARGEST_RADIUS_MM, SMALLEST_RADIUS_MM
from .streams import Draw, stream
from .tissue import NORMAL_WM_CBV, RimValues

VISIT_DECAY = 0.57
"""Weight of n + 1 visits relative to n: about two scans a patient between 1 and 5."""
PATIENT_SHARE = 0.7
"""Share of a latent's variance that a patient's visits have in common."""
MEAN_ADC, ADC_SD = 1.20, 0.18


class Outcome(StrEnum):
    """What the lesion turned out to be; the spelling of the manifest's ``label``."""

    RECURRENCE = "recurrence"
    TREATMENT_RESPONSE = "treatment_response"

    @property
    def other(self) -> "Outcome":
        """The other outcome."""
        return Outcome.TREATMENT_RESPONSE if self is Outcome.RECURRENCE else Outcome.RECURRENCE


RCBV: dict[LesionPreset, dict[Outcome, tuple[float, float]]] = {
    "default": {Outcome.RECURRENCE: (2.9, 1.1), Outcome.TREATMENT_RESPONSE: (1.3, 0.6)},
    "hard": {Outcome.RECURRENCE: (2.38, 0.87), Outcome.TREATMENT_RESPONSE: (1.57, 0.67)},
}
"""Mean and sd of relative CBV, in units of normal white matter (2.2 ml/100 g)."""
LATE_PROBABILITY = {Outcome.RECURRENCE: 0.25, Outcome.TREATMENT_RESPONSE: 0.10}


@dataclass(frozen=True)
class PatientPlan:
    """A patient before any image is made.

    Attributes:
        number: 1, 2, ...; the patient's id is ``sub-0001``.
        outcomes: one a visit.
    """

    number: int
    outcomes: tuple[Outcome, ...]


@dataclass(frozen=True)
class VisitLatents:
    """What is drawn for one visit's lesion.

    Attributes:
        outcome: the label.
        rim: perfusion, diffusion and leakage of the enhancing rim.
        radius_mm: the tumour's radius.
        late: blood arrives too late for a single-delay ASL.
    """

    outcome: Outcome
    rim: RimValues
    radius_mm: float
    late: bool


def plan_cohort(cohort: PhantomCohort, seed: int) -> tuple[PatientPlan, ...]:
    """Number of visits and outcomes of every patient.

    The number of patients that start as recurrence is exact (rounded), their order random. Exact
    numbers of scans are reached by changing as few visits of the random plan as possible.
    """
    rng, corrections = stream(seed, Draw.COHORT), stream(seed, Draw.EXACT_COUNTS)
    visits = np.arange(cohort.min_visits, cohort.max_visits + 1)
    weights = VISIT_DECAY ** visits.astype(np.float64)
    counts = rng.choice(visits, size=cohort.patients, p=weights / weights.sum())
    if cohort.num_scans is not None:
        counts = _with_total(counts, cohort, cohort.num_scans, corrections)
    num_recurrence = round(cohort.fraction_recurrence * cohort.patients)
    starts = rng.permutation(cohort.patients) < num_recurrence
    outcomes = [
        _outcomes(cohort, rng, int(count), recurrence=bool(start))
        for count, start in zip(counts, starts, strict=True)
    ]
    if cohort.num_recurrence is not None:
        outcomes = _with_recurrences(outcomes, cohort.num_recurrence, corrections)
    return tuple(PatientPlan(number, made) for number, made in enumerate(outcomes, start=1))


def _with_total(
    counts: NDArray[np.int64], cohort: PhantomCohort, total: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Visits a patient that sum to ``total``: one more or fewer for patients drawn at random."""
    counts = counts.copy()
    while missing := total - int(counts.sum()):
        has_room = counts < cohort.max_visits if missing > 0 else counts > cohort.min_visits
        counts[rng.choice(np.flatnonzero(has_room))] += np.sign(missing)
    return counts


def _with_recurrences(
    outcomes: list[tuple[Outcome, ...]], wanted: int, rng: np.random.Generator
) -> list[tuple[Outcome, ...]]:
    """Exactly ``wanted`` recurrences: last visits of patients drawn at random change first."""
    excess = sum(made.count(Outcome.RECURRENCE) for made in outcomes) - wanted
    too_many = Outcome.RECURRENCE if excess > 0 else Outcome.TREATMENT_RESPONSE
    order = rng.permutation(len(outcomes))
    candidates = sorted(
        (len(made) - visit, int(order[patient]), patient, visit)
        for patient, made in enumerate(outcomes)
        for visit, outcome in enumerate(made)
        if outcome is too_many
    )
    changed = [list(made) for made in outcomes]
    for _, _, patient, visit in candidates[: abs(excess)]:
        changed[patient][visit] = too_many.other
    return [tuple(made) for made in changed]


def _outcomes(
    cohort: PhantomCohort, rng: np.random.Generator, count: int, *, recurrence: bool
) -> tuple[Outcome, ...]:
    outcomes = [Outcome.RECURRENCE if recurrence else Outcome.TREATMENT_RESPONSE]
    for change in rng.random(count - 1) < cohort.change_probability:
        outcomes.append(outcomes[-1].other if change else outcomes[-1])
    return tuple(outcomes)


def lognormal(standard: float, mean: float, sd: float) -> float:
    """The lognormal value of given mean and sd at a standard normal deviate."""
    variance = np.log1p((sd / mean) ** 2)
    return float(np.exp(np.log(mean) - variance / 2.0 + np.sqrt(variance) * standard))


def rim_values(
    cohort: PhantomCohort, outcome: Outcome, deviates: NDArray[np.float64]
) -> tuple[RimValues, bool]:
    """Rim of one scan from six standard normal deviates, and whether blood arrives late."""
    perfusion, diffusion, lateness, arrival, transit, leak = (float(d) for d in deviates)
    sign = -0.5 if outcome is Outcome.RECURRENCE else 0.5
    late = bool(ndtr(lateness) < LATE_PROBABILITY[outcome])
    mean_att_s, att_sd_s = (2.9, 0.35) if late else (1.5, 0.2)
    rim = RimValues(
        cbv=NORMAL_WM_CBV * lognormal(perfusion, *RCBV[cohort.lesions][outcome]),
        adc=max(MEAN_ADC + sign * cohort.adc_gap + ADC_SD * diffusion, 0.5),
        att_s=max(mean_att_s + att_sd_s * arrival, 0.5),
        mtt_s=max(6.0 + transit, 3.0),
        leakage_mm=max(0.14 + 0.035 * leak, 0.03),
    )
    return rim, late


def draw_visits(
    cohort: PhantomCohort, plan: PatientPlan, seed: int, radius_mm: float
) -> tuple[VisitLatents, ...]:
    """Lesion latents of all visits of a patient.

    Args:
        cohort: preset and ADC gap.
        plan: outcomes of the visits.
        seed: the cohort's seed.
        radius_mm: radius at the first visit; it changes by exp(N(0.05, 0.15)) a visit.
    """
    common = stream(seed, Draw.LATENTS, plan.number).standard_normal(6)
    latents: list[VisitLatents] = []
    for visit, outcome in enumerate(plan.outcomes, start=1):
        rng = stream(seed, Draw.LATENTS, plan.number, visit)
        own = rng.standard_normal(6)
        deviates = np.sqrt(PATIENT_SHARE) * common + np.sqrt(1.0 - PATIENT_SHARE) * own
        rim, late = rim_values(cohort, outcome, deviates)
        growth = float(np.exp(rng.normal(0.05, 0.15)))
        if visit > 1:
            radius_mm = float(np.clip(radius_mm * growth, SMALLEST_RADIUS_MM, LARGEST_RADIUS_MM))
        latents.append(VisitLatents(outcome, rim, radius_mm, late))
    return tuple(latents)
