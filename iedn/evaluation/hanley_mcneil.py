"""The z test of two areas after Hanley and McNeil (1982, 1983), often just called "Z test".

It assumes binormal scores and takes every row as independent; with several scans a patient use
``delong_test(..., patients=...)``. It needs little more than areas and counts, so that a published
table can be checked.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, owens_t

from iedn.errors import StatisticsError

from .auc import placements, refuse_constant, split_scores
from .estimates import Comparison, Floats, z_comparison

FEW_RATINGS = 10
PERFECT = 1 - 1e-12


def hanley_mcneil_test(
    labels: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike, *, level: float = 0.95
) -> Comparison:
    """Paired z test; difference = area of a - area of b.

    The correlation of the scores is taken in each class (Pearson's, or Kendall's tau where a score
    has at most ten levels, as for ratings), averaged, and converted by ``correlation_of_areas``.

    Args:
        labels: (N,), 1 or True for positive.
        scores_a: (N,), higher means more positive.
        scores_b: (N,), likewise.
        level: of the difference's interval.

    Raises:
        ValueError: lengths differ, or a label is not 0 or 1.
        StatisticsError: fewer than three rows of a class, scores that are not finite or all the
            same, or a difference without variance.
    """
    refuse_constant(scores_a, scores_b)
    a, b = split_scores(labels, scores_a), split_scores(labels, scores_b)
    num_positive, num_negative = a[0].size, a[1].size
    if min(num_positive, num_negative) < 3:
        raise StatisticsError(
            f"{num_positive} positive and {num_negative} negative rows; the correlation of the "
            "scores within a class needs at least three of each"
        )
    areas = [float(placements(*scores)[0].mean()) for scores in (a, b)]
    rating = (_rating_correlation(a[0], b[0]) + _rating_correlation(a[1], b[1])) / 2
    correlation = correlation_of_areas(rating, sum(areas) / 2)
    return hanley_mcneil_from_areas(
        (areas[0], areas[1]), (num_positive, num_negative), correlation, level=level
    )


def hanley_mcneil_from_areas(
    areas: tuple[float, float],
    counts: tuple[int, int],
    correlation: float,
    *,
    level: float = 0.95,
) -> Comparison:
    """The same from what a table prints.

    Args:
        areas: of a and of b.
        counts: positive and negative rows.
        correlation: of the two areas, between -1 and 1; 0 is the unpaired test.
        level: of the difference's interval.

    Raises:
        ValueError: an argument is out of range.
        StatisticsError: a difference without variance.
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"correlation {correlation}; allowed is -1 to 1")
    first, second = (hanley_mcneil_error(area, *counts) for area in areas)
    variance = first**2 + second**2 - 2 * correlation * first * second
    return z_comparison(areas[0] - areas[1], variance, "hanley-mcneil", level=level)


def hanley_mcneil_error(area: float, num_positive: int, num_negative: int) -> float:
    """Standard error of an area (Hanley and McNeil 1982, exponential approximation).

    Raises:
        ValueError: the area is outside 0 to 1, or a class is empty.
    """
    if not 0 <= area <= 1 or min(num_positive, num_negative) < 1:
        raise ValueError(
            f"area {area} of {num_positive} positive and {num_negative} negative rows; "
            "allowed is an area from 0 to 1 and at least one row of each class"
        )
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    squared = (
        area * (1 - area)
        + (num_positive - 1) * (q1 - area**2)
        + (num_negative - 1) * (q2 - area**2)
    ) / (num_positive * num_negative)
    return float(np.sqrt(max(squared, 0.0)))


def correlation_of_areas(rating_correlation: float, mean_area: float) -> float:
    """Correlation of two areas from that of the scores (the table of Hanley and McNeil 1983).

    Computed from the binormal model behind that table, instead of looked up: with scores of unit
    variance, separation d and correlation rho in both classes, an area's large-sample covariance
    is Phi2(d/sqrt 2, d/sqrt 2; rho/2) - A^2, and its variance that at rho = 1.

    Args:
        rating_correlation: mean of both classes, -1 to 1.
        mean_area: of both scores, 0 to 1.
    """
    if not 0 < mean_area < 1 or rating_correlation > PERFECT:
        return float(np.sign(rating_correlation))
    square = mean_area**2
    covariance = _both_below(mean_area, rating_correlation / 2) - square
    return covariance / (_both_below(mean_area, 0.5) - square)


def _both_below(share: float, correlation: float) -> float:
    """Two correlated normals, each below a point with this share: both (Owen 1956)."""
    slope = np.sqrt((1 - correlation) / (1 + correlation))
    return share - 2 * float(owens_t(ndtri(share), slope))


def _rating_correlation(a: Floats, b: Floats) -> float:
    """Within one class; 0 where a score is constant there."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    if min(np.unique(a).size, np.unique(b).size) > FEW_RATINGS:
        return float(np.corrcoef(a, b)[0, 1])
    from scipy.stats import kendalltau  # slow to import

    return float(kendalltau(a, b)[0])
