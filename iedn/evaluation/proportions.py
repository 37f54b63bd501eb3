"""Proportions and their intervals: sensitivity and specificity at a threshold."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .auc import split_scores
from .estimates import Estimate, Floats, Integers, Patients, patient_numbers
from .wilson import wilson_bounds


@dataclass(frozen=True)
class OperatingPoint:
    """What a threshold gives.

    Attributes:
        threshold: rows with a score at or above it are called positive.
        sensitivity: share of the positive rows that are called positive.
        specificity: share of the negative rows that are not.
        num_positive: rows.
        num_negative: rows.
    """

    threshold: float
    sensitivity: Estimate
    specificity: Estimate
    num_positive: int
    num_negative: int


def operating_point(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float,
    *,
    patients: Patients | None = None,
    level: float = 0.95,
) -> OperatingPoint:
    """Sensitivity and specificity at a threshold, with Wilson's intervals.

    With ``patients`` the number of trials is the effective one, p (1 - p) / variance between
    patients (Korn and Graubard 1998), at most the number of rows; where a share is 0 or 1 it is the
    number of patients.

    Args:
        labels: (N,), 1 or True for positive.
        scores: (N,), higher means more positive; a reader's call is 0 or 1, with threshold 0.5.
        threshold: fixed beforehand; one chosen on the same rows makes both shares too good.
        patients: (N,), whose row it is; without it every row is a patient.
        level: of the intervals.

    Raises:
        ValueError: lengths differ, a label is not 0 or 1, or the threshold is not finite.
        StatisticsError: a class is empty, a score is not finite, or all rows are of one patient.
    """
    if not math.isfinite(threshold):
        raise ValueError(f"threshold {threshold}; allowed is a finite number")
    positive, negative = split_scores(labels, scores)
    numbers = patient_numbers(patients, positive.size + negative.size)
    is_positive = np.asarray(labels) == 1
    return OperatingPoint(
        threshold=threshold,
        sensitivity=_share(positive >= threshold, numbers[is_positive], level),
        specificity=_share(negative < threshold, numbers[~is_positive], level),
        num_positive=positive.size,
        num_negative=negative.size,
    )


def youden_threshold(labels: ArrayLike, scores: ArrayLike) -> float:
    """The score at which sensitivity + specificity is largest (the highest of several).

    To be chosen on other rows than those it is judged on.

    Raises:
        ValueError: lengths differ, or a label is not 0 or 1.
        StatisticsError: a class is empty, or a score is not finite.
    """
    positive, negative = (np.sort(part) for part in split_scores(labels, scores))
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    sensitivity = 1 - np.searchsorted(positive, thresholds) / positive.size
    specificity = np.searchsorted(negative, thresholds) / negative.size
    return float(thresholds[np.argmax(sensitivity + specificity)])


def _share(hits: NDArray[np.bool_], numbers: Integers, level: float) -> Estimate:
    share = float(hits.mean())
    trials = _effective_trials(hits.astype(np.float64), numbers)
    return Estimate(share, *wilson_bounds(share, trials, level=level))


def _effective_trials(hits: Floats, numbers: Integers) -> float:
    """Independent rows that would tell as much."""
    _, of_patient = np.unique(numbers, return_inverse=True)
    patients, share = int(of_patient.max()) + 1, float(hits.mean())
    if patients == hits.size:
        return float(hits.size)
    residuals = np.bincount(of_patient, hits - share)
    variance = float((residuals**2).sum()) / hits.size**2
    if patients == 1 or share in (0.0, 1.0) or variance == 0:
        return float(patients)
    variance *= patients / (patients - 1)
    return min(share * (1 - share) / variance, float(hits.size))
