"""What the synthetic maps of an external cohort are worth: Table 3, computed at the site.

Cases are scans with a known outcome, a region that a human drew, and both an ASL and a synthetic
value: every number is of the same scans. Beside the raw values stand models of standard MRI alone,
with ASL, and with synthetic CBV, whose scores come from cross-validation over patients: the paper
asks what a perfusion map adds to standard MRI, not what it is worth alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from iedn.errors import CohortError, PolicyError, StatisticsError
from iedn.evaluation.logistic import cross_validated_scores
from iedn.evaluation.statistics import (
    Comparison,
    Estimate,
    RocPoint,
    auc_interval,
    delong_test,
    roc_curve,
    site_areas,
)
from iedn.modalities import Modality
from iedn.protocol.messages import ComparisonName, PairedAreas
from sites.cohort import LABELS, Quarantine
from sites.config import PolicyConfig
from sites.diagnostic_release import DiagnosticRelease
from sites.readers import ReaderStudy

from .external import RoiRow
from .reader_results import ReaderResults, reader_results

ScoreName = Literal[
    "synthetic CBV",
    "ASL",
    "measured CBV",
    "standard MRI",
    "standard MRI + ASL",
    "standard MRI + synthetic CBV",
    "readers, MRI+ASL",
    "readers, MRI+sCBV",
]

RELEASED: dict[ComparisonName, tuple[ScoreName, ScoreName]] = {
    "roi": ("synthetic CBV", "ASL"),
    "models": ("standard MRI + synthetic CBV", "standard MRI + ASL"),
    "readers": ("readers, MRI+sCBV", "readers, MRI+ASL"),
}
"""Pairs of scores whose seven numbers may leave: with the synthetic map, with ASL."""
LOCAL: tuple[tuple[ScoreName, ScoreName], ...] = (
    ("standard MRI + ASL", "standard MRI"),
    ("standard MRI + synthetic CBV", "standard MRI"),
    ("measured CBV", "synthetic CBV"),
)
STANDARD_MRI = tuple(m for m in Modality if m is not Modality.ASL)
SMALLEST_RATIO = 1e-3


@dataclass(frozen=True)
class Flow:
    """How many scans became cases; the numbers sum up.

    Attributes:
        num_scans: that could be read.
        num_patients: different ones.
        unlabelled: without a known outcome.
        automatic: with an outcome, but no region that a human drew (a hot spot is as often a vein).
        without_value: with both, but no ASL, no map, or no reference on the other side.
        cases: of each outcome.
        case_patients: patients of each outcome.
    """

    num_scans: int
    num_patients: int
    unlabelled: int
    automatic: int
    without_value: int
    cases: Mapping[str, int]
    case_patients: Mapping[str, int]


@dataclass(frozen=True)
class DiagnosticResult:
    """Table 3 of one site. Local, but for the seven numbers of ``release``.

    Attributes:
        flow: how many scans.
        mri_inputs: images that all cases have, which the models of standard MRI use.
        areas: under the ROC curve, by score; recurrence is the positive class.
        comparisons: differences of areas, by the two scores.
        readers: the reader study, if there is one.
        release: what would leave.
        notes: what could not be computed, and why.
        curves: of each score, points (1 - specificity, sensitivity) of the ROC curve.
    """

    flow: Flow
    mri_inputs: tuple[Modality, ...]
    areas: Mapping[ScoreName, Estimate]
    comparisons: Mapping[tuple[ScoreName, ScoreName], Comparison]
    readers: ReaderResults | None
    release: DiagnosticRelease
    notes: tuple[str, ...] = field(default=())
    curves: Mapping[ScoreName, tuple[RocPoint, ...]] = field(default_factory=dict)


def check_cohort(
    outcomes: Sequence[tuple[str, str | None]],
    quarantined: Sequence[Quarantine],
    policy: PolicyConfig,
) -> None:
    """Stop before any work where a table could not be made or would mean nothing.

    Args:
        outcomes: patient and label of every scan.
        quarantined: what the cohort's checks refused.
        policy: its smallest numbers hold for local tables too.

    Raises:
        CohortError: copies of a scan under another patient, no labels, or one outcome only.
        PolicyError: too few patients.
    """
    copies = [q for q in quarantined if q.code == "E301"]
    if copies:
        named = "; ".join(f"{q.code} {q.scan}: {q.problem}" for q in copies[:5])
        raise CohortError(f"the cohort holds copies; sort them out first. {named}")
    patients = {name: {p for p, label in outcomes if label == name} for name in LABELS}
    counts = ", ".join(f"{len(found)} with {name}" for name, found in patients.items())
    if not all(patients.values()):
        raise CohortError(
            f"patients: {counts}. Allowed: both outcomes; an area under the ROC curve compares them"
        )
    everybody = len({patient for patient, _ in outcomes})
    if everybody < policy.min_patients or any(
        len(found) < policy.min_class_patients for found in patients.values()
    ):
        raise PolicyError(
            f"{everybody} patients: {counts}. policy.min_patients demands {policy.min_patients}, "
            f"policy.min_class_patients {policy.min_class_patients} of each outcome; nothing was "
            "computed"
        )


def evaluate_rows(
    rows: Sequence[RoiRow], study: ReaderStudy | None, *, model_hash: str, policy: PolicyConfig
) -> DiagnosticResult:
    """All of Table 3 from the rows of a cohort.

    Args:
        rows: of ``synthesize_cohort``, every scan.
        study: of the same labelled scans.
        model_hash: of the model that made the maps.
        policy: what may leave; readers' numbers tell the table of their calls, and stay where
            small counts must.

    Raises:
        CohortError: no case is left, or of one outcome only; the message says where they went.
    """
    cases = cases_of(rows)
    flow = _flow(rows, cases)
    if not all(flow.cases.values()):
        raise CohortError(f"no comparison is possible with these cases: {describe(flow)}")
    labels = np.array([row.label == "recurrence" for row in cases])
    patients = [row.patient_id for row in cases]
    inputs = tuple(m for m in STANDARD_MRI if all(m in row.images for row in cases))
    notes: list[str] = []
    scores = _scores(cases, inputs, labels, notes) | _reader_scores(cases, study)
    areas = {name: auc_interval(labels, s, patients=patients) for name, s in scores.items()}
    comparisons: dict[tuple[ScoreName, ScoreName], Comparison] = {}
    sent: dict[ComparisonName, PairedAreas] = {}
    for pair in (*RELEASED.values(), *LOCAL):
        if not set(pair) <= set(scores):
            continue
        first, second = scores[pair[0]], scores[pair[1]]
        try:
            comparisons[pair] = delong_test(labels, first, second, patients=patients)
        except StatisticsError as error:
            notes.append(f"{pair[0]} against {pair[1]}: {error}")
    for name, pair in RELEASED.items():
        if set(pair) <= set(scores) and (name != "readers" or policy.min_cell == 1):
            seven = _seven(labels, scores[pair[0]], scores[pair[1]], patients, notes)
            sent |= {} if seven is None else {name: seven}
    return DiagnosticResult(
        flow=flow,
        mri_inputs=inputs,
        areas=areas,
        comparisons=comparisons,
        readers=None if study is None else reader_results(study, _labels_by_case(rows)),
        release=DiagnosticRelease(
            sent,
            frozenset((r.patient_id, r.scan_id) for r in cases if r.label == LABELS[0]),
            frozenset((r.patient_id, r.scan_id) for r in cases if r.label == LABELS[1]),
            model_hash,
        ),
        notes=tuple(notes),
        curves={name: roc_curve(labels, s) for name, s in scores.items()},
    )


def cases_of(rows: Sequence[RoiRow]) -> list[RoiRow]:
    """Rows with an outcome, a region that a human drew, and both values."""
    return [
        row
        for row in rows
        if row.label is not None
        and row.roi != "automatic"
        and row.asl is not None
        and row.synthetic_cbv is not None
    ]


def describe(flow: Flow) -> str:
    """The flow in one sentence."""
    cases = ", ".join(
        f"{n} {name} ({flow.case_patients[name]} patients)" for name, n in flow.cases.items()
    )
    return (
        f"{flow.num_scans} scans of {flow.num_patients} patients: {flow.unlabelled} without an "
        f"outcome, {flow.automatic} without a drawn region, {flow.without_value} without ASL, map "
        f"or reference; cases: {cases}"
    )


def _flow(rows: Sequence[RoiRow], cases: Sequence[RoiRow]) -> Flow:
    labelled = [row for row in rows if row.label is not None]
    automatic = sum(row.roi == "automatic" for row in labelled)
    return Flow(
        num_scans=len(rows),
        num_patients=len({row.patient_id for row in rows}),
        unlabelled=len(rows) - len(labelled),
        automatic=automatic,
        without_value=len(labelled) - automatic - len(cases),
        cases={name: sum(row.label == name for row in cases) for name in LABELS},
        case_patients={
            name: len({row.patient_id for row in cases if row.label == name}) for name in LABELS
        },
    )


def _scores(
    cases: Sequence[RoiRow],
    inputs: Sequence[Modality],
    labels: NDArray[np.bool_],
    notes: list[str],
) -> dict[ScoreName, list[float]]:
    asl = [_known(row.asl) for row in cases]
    synthetic = [_known(row.synthetic_cbv) for row in cases]
    scores: dict[ScoreName, list[float]] = {"synthetic CBV": synthetic, "ASL": asl}
    if all(row.measured_cbv is not None for row in cases):
        scores["measured CBV"] = [_known(row.measured_cbv) for row in cases]
    patients = [row.patient_id for row in cases]
    mri = [[row.images[m] for m in inputs] for row in cases]
    designs: dict[ScoreName, list[list[float]]] = {
        "standard MRI": mri,
        "standard MRI + ASL": [[*r, a] for r, a in zip(mri, asl, strict=True)],
        "standard MRI + synthetic CBV": [[*r, s] for r, s in zip(mri, synthetic, strict=True)],
    }
    if not inputs:
        notes.append("models of standard MRI: no image is there for all cases")
        return scores
    try:
        for name, design in designs.items():
            features = np.log(np.maximum(np.array(design), SMALLEST_RATIO))
            scores[name] = cross_validated_scores(features, labels, patients).tolist()
    except StatisticsError as error:
        notes.append(f"models of standard MRI: {error}")
    return scores


def _reader_scores(
    cases: Sequence[RoiRow], study: ReaderStudy | None
) -> dict[ScoreName, list[float]]:
    if study is None:
        return {}
    of_asl, of_map = (
        {judged.case: judged.value for judged in study.judged[scenario]}
        for scenario in ("MRI+ASL", "MRI+sCBV")
    )
    return {
        "readers, MRI+ASL": [of_asl[row.key] for row in cases],
        "readers, MRI+sCBV": [of_map[row.key] for row in cases],
    }


def _seven(
    labels: NDArray[np.bool_],
    first: Sequence[float],
    second: Sequence[float],
    patients: Sequence[str],
    notes: list[str],
) -> PairedAreas | None:
    try:
        found = site_areas(labels, first, second, patients=patients)
    except StatisticsError as error:
        notes.append(f"seven numbers: {error}")
        return None
    return PairedAreas(**vars(found))


def _labels_by_case(rows: Sequence[RoiRow]) -> dict[str, bool]:
    return {row.key: row.label == "recurrence" for row in rows if row.label is not None}


def _known(value: float | None) -> float:
    return math.nan if value is None else value
