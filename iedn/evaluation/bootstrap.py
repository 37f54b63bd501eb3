"""Intervals by drawing patients with replacement, all rows of a patient together."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from iedn.errors import StatisticsError

from .estimates import (
    Comparison,
    Estimate,
    Floats,
    Integers,
    Patients,
    checked_level,
    finite_rows,
    patient_numbers,
)

RESAMPLES = 2000


def patient_bootstrap(
    values: ArrayLike,
    patients: Patients,
    *,
    statistic: Callable[[NDArray[Any]], float] | None = None,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic over rows, with an interval that knows whose rows they are.

    Without ``statistic`` it is the mean over rows, by the symmetric bootstrap-t, which keeps its
    level with few patients. Any other statistic gets the percentile interval, which is somewhat
    narrow below about 30 patients. A drawn sample in which the statistic is not defined (one class
    only) is drawn again.

    Args:
        values: (N,) or (N, columns), e.g. label and score of a row.
        patients: (N,) whose row it is.
        statistic: of the drawn rows, an array as ``values``; raises ``StatisticsError`` where it is
            not defined.
        resamples: how many samples are drawn.
        level: of the interval.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: lengths or numbers are wrong.
        StatisticsError: one patient only, values that are not finite, or a statistic that is not
            defined on more than half of the samples.
    """
    rows = np.asarray(values)
    numbers = patient_numbers(patients, rows.shape[0])
    if resamples < 1:
        raise ValueError(f"{resamples} resamples; allowed is at least 1")
    checked_level(level)
    if statistic is not None:
        finite_rows(rows, "values", ndim=rows.ndim)
        return _percentile(rows, numbers, statistic, resamples, level=level, seed=seed)
    differences = finite_rows(rows, "values")
    if np.ptp(differences) == 0:
        return Estimate(*(float(differences[0]),) * 3)
    mean = bootstrap_t(differences, numbers, resamples=resamples, level=level, seed=seed)
    return Estimate(mean.difference, mean.low, mean.high)


def bootstrap_t(
    differences: Floats,
    numbers: Integers,
    *,
    resamples: int = RESAMPLES,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """The mean over rows against 0, by the symmetric bootstrap-t over patients.

    The mean is the ratio of the patients' sums and counts; its standard error is the linearised
    one, sqrt(G/(G - 1) sum (sum_i - mean count_i)^2) / N. The p-value is the share of samples
    whose |t| about the observed mean reaches the observed |t| about 0 (with the usual + 1).

    Args:
        differences: (N,), not all the same.
        numbers: (N,) patients from 0.
        resamples: how many samples are drawn.
        level: of the interval.
        seed: of the draws.
    """
    sums: Floats = np.bincount(numbers, differences).astype(np.float64)
    counts: Floats = np.bincount(numbers).astype(np.float64)
    mean, error = _mean_and_error(sums[None], counts[None])
    drawn = np.random.default_rng(seed).integers(0, sums.size, (resamples, sums.size))
    means, errors = _mean_and_error(sums[drawn], counts[drawn])
    distances = np.abs(means - mean[0])
    t = np.divide(distances, errors, out=np.where(distances > 0, np.inf, 0.0), where=errors > 0)
    observed = float(mean[0] / error[0])
    half = float(np.quantile(t, level, method="higher") * error[0])
    reached = int((t >= abs(observed)).sum())
    return Comparison(
        statistic=observed,
        p_value=(reached + 1) / (resamples + 1),
        difference=float(mean[0]),
        low=float(mean[0]) - half,
        high=float(mean[0]) + half,
        method="patient-bootstrap",
    )


def ratio_mean_error(values: Floats, numbers: Integers) -> float:
    """Linearised standard error of the mean over rows, between patients (see ``bootstrap_t``)."""
    sums: Floats = np.bincount(numbers, values).astype(np.float64)
    counts: Floats = np.bincount(numbers).astype(np.float64)
    return float(_mean_and_error(sums[None], counts[None])[1][0])


def _mean_and_error(sums: Floats, counts: Floats) -> tuple[Floats, Floats]:
    """Ratio mean and its standard error, of each row (samples, patients)."""
    patients, total = sums.shape[1], counts.sum(axis=1)
    means = sums.sum(axis=1) / total
    residual = ((sums - means[:, None] * counts) ** 2).sum(axis=1)
    return means, np.sqrt(patients / (patients - 1) * residual) / total


def _percentile(
    rows: NDArray[Any],
    numbers: Integers,
    statistic: Callable[[NDArray[Any]], float],
    resamples: int,
    *,
    level: float,
    seed: int,
) -> Estimate:
    rng = np.random.default_rng(seed)
    of_patient = [np.flatnonzero(numbers == patient) for patient in range(numbers.max() + 1)]
    found: list[float] = []
    undefined = 0
    while len(found) < resamples:
        drawn = rng.integers(0, len(of_patient), len(of_patient))
        try:
            found.append(float(statistic(rows[np.concatenate([of_patient[p] for p in drawn])])))
        except StatisticsError as error:
            undefined += 1
            if undefined > resamples:
                raise StatisticsError(
                    f"the statistic is not defined on {undefined} of {undefined + len(found)} "
                    f"samples of {len(of_patient)} patients ({error}); there are too few of them"
                ) from error
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(statistic(rows)), float(low), float(high))
