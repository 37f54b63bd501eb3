"""Agreement of two ways to measure the same thing: limits of agreement, concordance correlation.

For a measured and a synthetic value a scan, such as the mean CBV ratio in a lesion. With several
scans a patient ``patients`` keeps the intervals honest.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iedn.errors import StatisticsError

from .bootstrap import patient_bootstrap, ratio_mean_error
from .estimates import (
    Estimate,
    Floats,
    Integers,
    Patients,
    normal_quantile,
    paired_rows,
    patient_numbers,
    t_quantile,
)

NORMAL_95 = normal_quantile(0.95)
PERFECT = 1 - 1e-12


@dataclass(frozen=True)
class BlandAltman:
    """Bias and the limits within which 95 % of differences a - b are expected.

    Attributes:
        bias: mean of a - b over rows.
        lower: limit, bias - 1.96 sd.
        upper: limit, bias + 1.96 sd.
        sd: of a single difference, of a row of any patient.
        num_rows: differences behind it.
        num_patients: patients behind it.
    """

    bias: Estimate
    lower: Estimate
    upper: Estimate
    sd: float
    num_rows: int
    num_patients: int


def bland_altman(
    a: ArrayLike, b: ArrayLike, patients: Patients | None = None, *, level: float = 0.95
) -> BlandAltman:
    """Bias and 95 % limits of agreement of a - b (Bland and Altman 1986, 1999).

    With several rows a patient the variance of a difference is the sum of those within and between
    patients, from a one-way analysis of variance (Bland and Altman 2007). Intervals: t with
    patients - 1 degrees of freedom; for the limits by the delta method, which with one row a
    patient is the authors' sqrt(1/n + 1.96^2 / (2 (n - 1))) sd.

    Args:
        a: (N,), e.g. synthetic.
        b: (N,), e.g. measured, on the same rows.
        patients: (N,), whose row it is; without it every row is a patient.
        level: of the intervals (the limits are always those of 95 %).

    Raises:
        ValueError: lengths differ.
        StatisticsError: values are not finite, or fewer than two rows or patients.
    """
    first, second = paired_rows(a, b, least=2)
    differences, numbers = first - second, patient_numbers(patients, first.size)
    num_patients = int(numbers.max()) + 1
    bias = float(differences.mean())
    variance, variance_of_it = _single_difference(differences, numbers)
    sd = math.sqrt(variance)
    quantile = t_quantile(level, num_patients - 1)
    of_bias = ratio_mean_error(differences, numbers)
    of_sd = math.sqrt(variance_of_it) / (2 * sd) if sd > 0 else 0.0
    of_limit = math.hypot(of_bias, NORMAL_95 * of_sd)
    return BlandAltman(
        bias=_around(bias, quantile * of_bias),
        lower=_around(bias - NORMAL_95 * sd, quantile * of_limit),
        upper=_around(bias + NORMAL_95 * sd, quantile * of_limit),
        sd=sd,
        num_rows=differences.size,
        num_patients=num_patients,
    )


def concordance(
    a: ArrayLike,
    b: ArrayLike,
    patients: Patients | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """Lin's (1989) concordance correlation coefficient, variances with divisor n as he defined it.

    2 cov / (var a + var b + (mean a - mean b)^2): 1 only where a and b are equal. Divisor n - 1, as
    some programs have it, gives a value that is slightly larger. Interval: Lin's on Fisher's z (as
    corrected in 2000); with ``patients`` the percentile bootstrap over patients.

    Raises:
        ValueError: lengths differ.
        StatisticsError: values are not finite, fewer than three rows, or no variation.
    """
    first, second = paired_rows(a, b, least=3)
    value = _concordance(first, second)
    if patients is None:
        low, high = _fisher_interval(first, second, value, normal_quantile(level))
        return Estimate(value, low, high)
    rows = np.stack([first, second], axis=1)
    return patient_bootstrap(rows, patients, statistic=_concordance_of, level=level, seed=seed)


def _around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def _single_difference(differences: Floats, numbers: Integers) -> tuple[float, float]:
    """Variance of a difference (within + between patients), and the variance of that estimate."""
    counts = np.bincount(numbers).astype(np.float64)
    total, patients = differences.size, counts.size
    means = np.bincount(numbers, differences) / counts
    of_patients = float((counts * (means - differences.mean()) ** 2).sum()) / (patients - 1)
    if patients == total:
        return of_patients, 2 * of_patients**2 / (patients - 1)
    within = float(((differences - means[numbers]) ** 2).sum()) / (total - patients)
    rows = (total - float((counts**2).sum()) / total) / (patients - 1)
    if of_patients <= within:
        variance = float(differences.var(ddof=1))
        return variance, 2 * variance**2 / (total - 1)
    first, second = of_patients / rows, (1 - 1 / rows) * within
    spread = 2 * (first**2 / (patients - 1) + second**2 / (total - patients))
    return first + second, spread


def _concordance(a: Floats, b: Floats) -> float:
    spread = float(a.var() + b.var())
    if spread == 0:
        raise StatisticsError(
            "neither a nor b varies between rows; concordance is not defined there"
        )
    covariance = float(((a - a.mean()) * (b - b.mean())).mean())
    return 2 * covariance / (spread + float(a.mean() - b.mean()) ** 2)


def _concordance_of(rows: NDArray[Any]) -> float:
    return _concordance(rows[:, 0], rows[:, 1])


def _fisher_interval(a: Floats, b: Floats, value: float, quantile: float) -> tuple[float, float]:
    """Lin 1989 with the correction of 2000; without width at 1, unknown (-1 to 1) at 0."""
    if abs(value) > PERFECT:
        return value, value
    deviations = float(a.std() * b.std())
    if deviations == 0 or value == 0:
        return -1.0, 1.0
    r = float(((a - a.mean()) * (b - b.mean())).mean()) / deviations
    shift = float(a.mean() - b.mean()) ** 2 / deviations
    open_ = 1 - value**2
    variance = (
        (1 - r**2) * value**2 / (open_ * r**2)
        + 2 * value**3 * (1 - value) * shift / (r * open_**2)
        - value**4 * shift**2 / (2 * r**2 * open_**2)
    ) / (a.size - 2)
    half = quantile * math.sqrt(max(variance, 0.0))
    return math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half)
