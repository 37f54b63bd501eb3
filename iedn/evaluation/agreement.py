"""Agreement of readers: ICC(2,1), within-group agreement r_wg, Cohen's kappa.

Ratings are (targets, raters): a target is what was rated, such as a map or a diagnosis. With
several targets of one patient the intervals are too narrow.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import fdtri

from iedn.errors import StatisticsError

from .estimates import Estimate, Floats, checked_level, finite_rows, normal_quantile, t_quantile

KappaWeights = Literal["none", "linear", "quadratic"]
ROUNDING = 1e-12


def icc_2_1(ratings: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Agreement of single ratings, two-way random effects (Shrout and Fleiss 1979, case 2).

    Raters count as a sample of all readers, so that a reader who rates higher throughout lowers it.
    Interval: Satterthwaite's F (McGraw and Wong 1996, ICC(A,1)).

    Args:
        ratings: (targets, raters), complete, at least 2 x 2.
        level: of the interval.

    Raises:
        ValueError: not two-dimensional.
        StatisticsError: fewer than two targets or raters, missing values, or all ratings the same.
    """
    table = _ratings(ratings, least_targets=2)
    n, k = table.shape
    between, raters, error = _mean_squares(table)
    value = (between - error) / (between + (k - 1) * error + k * (raters - error) / n)
    if error == 0 and raters == 0:
        return Estimate(1.0, 1.0, 1.0)
    freedom = _denominator_freedom(value, (n, k), raters, error)
    upper = (1 + checked_level(level)) / 2
    f_low = float(fdtri(n - 1, freedom, upper))
    f_high = float(fdtri(freedom, n - 1, upper))
    rest = k * raters + (k * n - k - n) * error
    low = n * (between - f_low * error) / (f_low * rest + n * between)
    high = n * (f_high * between - error) / (rest + n * f_high * between)
    return Estimate(value, low, high)


def r_wg(
    ratings: ArrayLike, num_categories: int = 4, *, truncate: bool = False, level: float = 0.95
) -> Estimate:
    """Mean within-group agreement over targets (James, Demaree and Wolf 1984).

    For each target 1 - s^2 / ((A^2 - 1) / 12): s^2 is the raters' variance (n - 1), and the divisor
    the variance of ratings spread evenly over A categories (1.25 for the four points 0 to 3). Two
    raters one point apart give 0.6, two points apart -0.6. The interval is that of a mean over
    targets (t); with one target it is not known and nan.

    Args:
        ratings: (targets, raters), at least two raters.
        num_categories: points of the scale, A.
        truncate: count a target below 0 as 0, as some authors do; it raises the mean.
        level: of the interval.

    Raises:
        ValueError: not two-dimensional, or fewer than two categories.
        StatisticsError: fewer than two raters, missing values, or ratings wider than the scale.
    """
    if num_categories < 2:
        raise ValueError(f"{num_categories} categories; a scale has at least 2")
    table = _ratings(ratings, least_targets=1)
    if np.ptp(table) > num_categories - 1:
        raise StatisticsError(
            f"ratings from {table.min():g} to {table.max():g} do not fit a scale of "
            f"{num_categories} points; correct the ratings or the number of categories"
        )
    agreement = 1 - table.var(axis=1, ddof=1) / ((num_categories**2 - 1) / 12)
    if truncate:
        agreement = np.maximum(agreement, 0.0)
    value, n = float(agreement.mean()), agreement.size
    checked_level(level)
    if n == 1:
        return Estimate(value, float("nan"), float("nan"))
    half = t_quantile(level, n - 1) * float(agreement.std(ddof=1)) / math.sqrt(n)
    return Estimate(value, value - half, min(1.0, value + half))


def cohen_kappa(
    ratings_a: ArrayLike,
    ratings_b: ArrayLike,
    *,
    weights: KappaWeights = "none",
    categories: ArrayLike | None = None,
    level: float = 0.95,
) -> Estimate:
    """Agreement of two readers beyond chance (Cohen 1960; weighted 1968).

    Interval: large-sample standard error of Fleiss, Cohen and Everitt (1969), cut at -1 and 1. It
    has no width where the readers never disagree: then report their number of targets beside it.

    Args:
        ratings_a: (N,) of the first reader, numbers or words.
        ratings_b: (N,) of the second, on the same targets.
        weights: how much a near miss counts as agreement, by steps in ``categories``.
        categories: all of them in order; without it those that occur, sorted.
        level: of the interval.

    Raises:
        ValueError: lengths or ``weights`` are wrong.
        StatisticsError: a rating is no category, or there is no variation to agree on.
    """
    shares = _cross_table(np.asarray(ratings_a), np.asarray(ratings_b), categories)
    credit = _credit(shares.shape[0], weights)
    rows, columns = shares.sum(axis=1), shares.sum(axis=0)
    seen, chance = float((credit * shares).sum()), float(rows @ credit @ columns)
    if chance > 1 - ROUNDING:
        raise StatisticsError(
            "both readers used one and the same category throughout; kappa is not defined there, "
            "report the proportion of agreement"
        )
    value = (seen - chance) / (1 - chance)
    marginal = (credit @ columns)[:, None] + (rows @ credit)[None, :]
    spread = (shares * (credit * (1 - chance) - marginal * (1 - seen)) ** 2).sum()
    spread -= (seen * chance - 2 * chance + seen) ** 2
    error = np.sqrt(max(float(spread), 0.0) / np.asarray(ratings_a).size) / (1 - chance) ** 2
    half = normal_quantile(level) * float(error)
    return Estimate(value, max(-1.0, value - half), min(1.0, value + half))


def _ratings(ratings: ArrayLike, *, least_targets: int) -> Floats:
    table = finite_rows(ratings, "ratings", ndim=2)
    if table.shape[0] < least_targets or table.shape[1] < 2:
        raise StatisticsError(
            f"{table.shape[0]} targets x {table.shape[1]} raters; at least {least_targets} "
            "target(s) and two raters are needed"
        )
    return table


def _mean_squares(table: Floats) -> tuple[float, float, float]:
    """Between targets, between raters, and residual; rounding errors are 0."""
    n, k = table.shape
    centred = table - table.mean()
    total = float((centred**2).sum())
    if total == 0:
        raise StatisticsError(
            "all ratings are the same; ICC is not defined there, report the proportion of agreement"
        )
    of_targets, of_raters = centred.mean(axis=1), centred.mean(axis=0)
    residual = centred - of_targets[:, None] - of_raters[None, :]
    squares = (
        k * float((of_targets**2).sum()),
        n * float((of_raters**2).sum()),
        float((residual**2).sum()),
    )
    between, raters, error = (s if s > ROUNDING * total else 0.0 for s in squares)
    return between / (n - 1), raters / (k - 1), error / ((n - 1) * (k - 1))


def _denominator_freedom(
    value: float, shape: tuple[int, int], raters: float, error: float
) -> float:
    """Satterthwaite's degrees of freedom of a MSC + b MSE (McGraw and Wong 1996, table 7)."""
    n, k = shape
    a = k * value
    b = n * (1 + (k - 1) * value) - k * value
    numerator = (a * raters + b * error) ** 2
    return numerator / ((a * raters) ** 2 / (k - 1) + (b * error) ** 2 / ((n - 1) * (k - 1)))


def _cross_table(
    a: NDArray[np.generic], b: NDArray[np.generic], categories: ArrayLike | None
) -> Floats:
    """Share of targets by category of the first (rows) and of the second reader."""
    if a.ndim != 1 or a.shape != b.shape or not a.size:
        raise ValueError(f"ratings {a.shape} and {b.shape}; allowed is one (N,), N >= 1")
    for values in (a, b):
        if np.issubdtype(values.dtype, np.number):
            finite_rows(values, "ratings")
    order = list(
        np.unique(np.concatenate([a, b])) if categories is None else np.asarray(categories)
    )
    place = {category: index for index, category in enumerate(order)}
    if unknown := sorted({str(v) for v in (*a, *b) if v not in place}):
        raise StatisticsError(
            f"ratings {', '.join(unknown)} are no category; "
            f"allowed are {', '.join(map(str, order))}"
        )
    counts: Floats = np.zeros((len(order), len(order)))
    np.add.at(counts, ([place[v] for v in a], [place[v] for v in b]), 1.0)
    return counts / a.size


def _credit(size: int, weights: KappaWeights) -> Floats:
    """1 on the diagonal, falling with the distance of the categories."""
    steps = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    if weights == "none":
        return np.eye(size)
    power = {"linear": 1, "quadratic": 2}.get(weights)
    if power is None:
        raise ValueError(f"weights {weights!r}; allowed are none, linear, quadratic")
    return np.asarray(1 - (steps / max(size - 1, 1)) ** power, np.float64)
