"""The area under the ROC curve: interval, and paired tests of two areas.

Covariances are DeLong's (DeLong, DeLong, Clarke-Pearson 1988) by sorting, or, with ``patients``,
Obuchowski's (1997) for several rows a patient. One row a patient gives the same.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from iedn.errors import StatisticsError

from .estimates import (
    Comparison,
    Estimate,
    Floats,
    Integers,
    Patients,
    normal_quantile,
    patient_numbers,
    z_comparison,
)
from .wilson import wilson_bounds

ROUNDING = 1e-12

RocPoint = tuple[float, float]
"""1 - specificity and sensitivity."""


def auc_interval(
    labels: ArrayLike, scores: ArrayLike, *, patients: Patients | None = None, level: float = 0.95
) -> Estimate:
    """Area under the ROC curve with an interval on the logit scale.

    The interval is symmetric in log(A / (1 - A)), so that it stays inside (0, 1). Where the
    standard error is 0 (an area of 0 or 1, or all scores tied) or a class has one patient, the
    interval is Wilson's for that share, with the patients of the smaller class as number of trials.

    Args:
        labels: (N,), 1 or True for positive.
        scores: (N,), higher means more positive; ties count one half.
        patients: (N,), whose row it is; needed where a patient has several rows, since the interval
            is too narrow otherwise. Without it every row is a patient.
        level: of the interval.

    Raises:
        ValueError: lengths differ, or a label is not 0 or 1.
        StatisticsError: a class is empty, or a score is not finite.
    """
    positive, negative = split_scores(labels, scores)
    numbers = patient_numbers(patients, positive.size + negative.size)
    smaller = min(_patients_by_class(np.asarray(labels) == 1, numbers))
    if smaller == 1:
        area = float(placements(positive, negative)[0].mean())
        return Estimate(area, *wilson_bounds(area, smaller, level=level))
    areas, covariance = auc_covariance(labels, [scores], patients=patients)
    return interval_of_area(float(areas[0]), float(covariance[0, 0]), smaller, level=level)


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[RocPoint, ...]:
    """Corners of the empirical ROC curve from (0, 0) to (1, 1), one a different score.

    Tied scores are one step, so that the trapezoids below it are the area with ties counted half.

    Raises:
        ValueError: lengths differ, or a label is not 0 or 1.
        StatisticsError: a class is empty, or a score is not finite.
    """
    positive, negative = split_scores(labels, scores)
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    corners = [
        (float((negative >= threshold).mean()), float((positive >= threshold).mean()))
        for threshold in thresholds
    ]
    return ((0.0, 0.0), *corners)


def interval_of_area(area: float, variance: float, smaller_class: int, *, level: float) -> Estimate:
    """Interval on the logit scale; without variance Wilson's, of the smaller class."""
    if variance <= 0 or not 0 < area < 1:
        return Estimate(area, *wilson_bounds(area, smaller_class, level=level))
    logit = math.log(area / (1 - area))
    half = normal_quantile(level) * math.sqrt(variance) / (area * (1 - area))
    return Estimate(area, _logistic(logit - half), _logistic(logit + half))


def delong_test(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    patients: Patients | None = None,
    level: float = 0.95,
) -> Comparison:
    """DeLong's test of two areas on the same rows; difference = area of a - area of b.

    Args:
        labels: (N,), 1 or True for positive.
        scores_a: (N,), higher means more positive.
        scores_b: (N,), likewise.
        patients: (N,), whose row it is; with it the covariance is Obuchowski's (1997).
        level: of the difference's interval.

    Raises:
        ValueError: lengths differ, or a label is not 0 or 1.
        StatisticsError: fewer than two patients of a class, scores that are not finite or all the
            same, or a difference without variance.
    """
    refuse_constant(scores_a, scores_b)
    areas, covariance = auc_covariance(labels, [scores_a, scores_b], patients=patients)
    return difference_of_areas(
        areas, covariance, "delong" if patients is None else "delong-obuchowski", level=level
    )


def difference_of_areas(
    areas: Floats, covariance: Floats, method: str, *, level: float
) -> Comparison:
    """First minus second area, tested with their (2, 2) covariance."""
    scale = float(covariance[0, 0] + covariance[1, 1])
    variance = scale - 2 * float(covariance[0, 1])
    rounded = variance if variance > ROUNDING * scale else 0.0
    return z_comparison(float(areas[0] - areas[1]), rounded, method, level=level)


def auc_covariance(
    labels: ArrayLike, scores: Sequence[ArrayLike], *, patients: Patients | None = None
) -> tuple[Floats, Floats]:
    """Areas (K,) of K scores on the same rows, and the (K, K) covariance of the areas.

    With e_i the sum over a patient's positives of (placement - A), f_i the same over negatives,
    m positives of I10 patients and n negatives of I01, I patients in all:
    I10/(I10 - 1) sum e e' / m^2 + I01/(I01 - 1) sum f f' / n^2 + I/(I - 1) sum (e f' + f e') / mn.

    Raises:
        ValueError: lengths differ, or a label is not 0 or 1.
        StatisticsError: fewer than two patients of a class, or scores that are not finite.
    """
    placed = [placements(*split_scores(labels, values)) for values in scores]
    is_positive = np.asarray(labels) == 1
    numbers = patient_numbers(patients, is_positive.size)
    with_positive, with_negative = _patients_by_class(is_positive, numbers)
    if min(with_positive, with_negative) < 2:
        raise StatisticsError(
            f"positive rows of {with_positive} and negative rows of {with_negative} patient(s); "
            "a variance needs at least two patients of each class"
        )
    of_positive = np.stack([positive for positive, _ in placed])
    of_negative = np.stack([negative for _, negative in placed])
    areas: Floats = of_positive.mean(axis=1)
    e = _patient_sums(of_positive - areas[:, None], numbers[is_positive], numbers)
    f = _patient_sums(of_negative - areas[:, None], numbers[~is_positive], numbers)
    m, n = of_positive.shape[1], of_negative.shape[1]
    cross = e @ f.T / (m * n)
    covariance = (
        _correction(with_positive) * (e @ e.T) / m**2
        + _correction(with_negative) * (f @ f.T) / n**2
        + _correction(int(numbers.max()) + 1) * (cross + cross.T)
    )
    return areas, covariance


def split_scores(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Scores of the positive and of the negative rows.

    Raises:
        ValueError: lengths differ, or a label is not 0 or 1.
        StatisticsError: a class is empty, or a score is not finite.
    """
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"labels {truth.shape} and scores {values.shape}; allowed is one (N,)")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(values).all():
        raise StatisticsError("scores must be finite; leave other rows out and report how many")
    positive, negative = values[truth == 1], values[truth == 0]
    if not positive.size or not negative.size:
        raise StatisticsError(
            f"{positive.size} positive and {negative.size} negative rows; "
            "an AUC needs at least one of each"
        )
    return positive, negative


def delong_variance(positive: Floats, negative: Floats) -> tuple[float, float]:
    """The AUC and DeLong's variance of it.

    A class of one row has no spread of its own and adds nothing to the variance.
    """
    positives, negatives = placements(positive, negative)
    variance = _spread(positives) / positive.size + _spread(negatives) / negative.size
    return float(positives.mean()), variance


def placements(positive: Floats, negative: Floats) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative of positives above."""
    return _share_below(positive, negative), 1 - _share_below(negative, positive)


def refuse_constant(scores_a: ArrayLike, scores_b: ArrayLike) -> None:
    """Scores that are all the same cannot be compared.

    Raises:
        StatisticsError: one of the two is constant.
    """
    for name, scores in (("scores_a", scores_a), ("scores_b", scores_b)):
        values = np.asarray(scores, np.float64)
        if values.size and (values == values.flat[0]).all():
            raise StatisticsError(
                f"{name}: all {values.size} scores are {values.flat[0]:g}; "
                "a comparison needs scores that differ between rows"
            )


def _patients_by_class(is_positive: np.ndarray, numbers: Integers) -> tuple[int, int]:
    """How many patients have positive rows, and how many have negative ones."""
    return np.unique(numbers[is_positive]).size, np.unique(numbers[~is_positive]).size


def _patient_sums(values: Floats, of_rows: Integers, numbers: Integers) -> Floats:
    """Rows (K, rows) summed by patient, (K, patients)."""
    sums: Floats = np.zeros((values.shape[0], int(numbers.max()) + 1))
    np.add.at(sums.T, of_rows, values.T)
    return sums


def _correction(count: int) -> float:
    return count / (count - 1)


def _share_below(values: Floats, others: Floats) -> Floats:
    """For each value the share of the others below it, a tie counting one half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return below / (2 * others.size)


def _spread(values: Floats) -> float:
    return float(values.var(ddof=1)) if values.size > 1 else 0.0


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
