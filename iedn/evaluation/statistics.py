"""Estimates with confidence intervals.

All intervals treat rows as independent. Scans of one patient are not: with several scans a patient
these intervals are too narrow.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


def auc_interval(labels: ArrayLike, scores: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Area under the ROC curve with DeLong's interval on the logit scale.

    The standard error is DeLong's (DeLong, DeLong, Clarke-Pearson 1988). The interval is symmetric
    in log(A / (1 - A)), so that it stays inside (0, 1). Where that standard error is 0 (an area of
    0 or 1, or all scores tied) or a class has one row, the interval is Wilson's for that share,
    with the size of the smaller class as number of trials. Rows count as independent: with
    several scans a patient the interval is too narrow; resample patients instead.

    Args:
        labels: (N,), 1 or True for positive.
        scores: (N,), higher means more positive; ties count one half.
        level: of the interval.

    Raises:
        ValueError: a class is empty, lengths differ, or a score is not finite.
    """
    positive, negative = split_scores(labels, scores)
    area, variance = delong_variance(positive, negative)
    smaller = min(positive.size, negative.size)
    if variance == 0 or smaller == 1:
        return Estimate(area, *_wilson(area, smaller, _quantile(level)))
    logit = math.log(area / (1 - area))
    half = _quantile(level) * math.sqrt(variance) / (area * (1 - area))
    return Estimate(area, _logistic(logit - half), _logistic(logit + half))


def split_scores(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of the positive and of the negative rows.

    Raises:
        ValueError: as of ``auc_interval``.
    """
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"labels {truth.shape} and scores {values.shape}; allowed is one (N,)")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(values).all():
        raise ValueError("scores must be finite")
    positive, negative = values[truth == 1], values[truth == 0]
    if not positive.size or not negative.size:
        raise ValueError(
            f"{positive.size} positive and {negative.size} negative rows; "
            "an AUC needs at least one of each"
        )
    return positive, negative


def delong_variance(
    positive: NDArray[np.float64], negative: NDArray[np.float64]
) -> tuple[float, float]:
    """The AUC and DeLong's variance of it, by ranks (Sun and Xu 2014).

    A class of one row has no spread of its own and adds nothing to the variance.
    """
    positives, negatives = placements(positive, negative)
    variance = _spread(positives) / positive.size + _spread(negatives) / negative.size
    return float(positives.mean()), variance


def placements(
    positive: NDArray[np.float64], negative: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For each positive the share of negatives below it, for each negative of positives above."""
    m, n = positive.size, negative.size
    ranks = rankdata(np.concatenate([positive, negative]))
    of_positive = (ranks[:m] - rankdata(positive)) / n
    of_negative = 1 - (ranks[m:] - rankdata(negative)) / m
    return of_positive, of_negative


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Raises:
        ValueError: no trial, or successes outside 0 to ``trials``.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials; allowed is 0 to trials >= 1")
    return _wilson(successes / trials, trials, _quantile(level))


def _wilson(share: float, trials: int, z: float) -> tuple[float, float]:
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _spread(values: NDArray[np.float64]) -> float:
    return float(values.var(ddof=1)) if values.size > 1 else 0.0


def _quantile(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level {level}; allowed is between 0 and 1")
    return float(norm.ppf((1 + level) / 2))


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))
