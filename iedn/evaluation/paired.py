"""Paired comparison of two methods on the same scans, several scans a patient.

Three ways, side by side: the paired t-test over scans, as in the paper, which takes scans of one
patient as independent and is too sure of itself; a mixed model with a random effect a patient; and
a bootstrap that draws patients. ``docs/explanation/statistics.md`` says which to use when.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from iedn.errors import StatisticsError

from .bootstrap import bootstrap_t
from .estimates import (
    Comparison,
    Floats,
    Integers,
    Patients,
    checked_level,
    finite_rows,
    paired_rows,
    patient_numbers,
    t_p_value,
    t_quantile,
)
from .mixed_model import fit_random_intercept

Method = Literal["mixed-model", "patient-bootstrap", "paired-t"]
METHODS: tuple[Method, ...] = get_args(Method)
ROUNDING = 1e-12


def paired_comparison(
    a: ArrayLike,
    b: ArrayLike,
    patients: Patients | None = None,
    *,
    method: Method = "mixed-model",
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Test and interval of the mean difference a - b over scans.

    Args:
        a: (N,) a metric of the first method, one value a scan.
        b: (N,) of the second, on the same scans.
        patients: (N,) whose scan it is; without it every scan is a patient.
        method: ``mixed-model`` is REML with a random intercept a patient, t with patients - 1
            degrees of freedom (with one scan a patient it is the paired t-test);
            ``patient-bootstrap`` is the bootstrap-t over patients; ``paired-t`` takes every scan
            as a patient.
        level: of the interval.
        seed: of the bootstrap.

    Returns:
        ``difference`` is the mean over scans, of the mixed model the estimated mean over patients.

    Raises:
        ValueError: lengths or ``method`` are wrong.
        StatisticsError: values are not finite, fewer than two rows or patients, or differences that
            are all the same but not 0.
    """
    first, second = paired_rows(a, b, least=2)
    checked_level(level)
    if method not in METHODS:
        raise ValueError(f"method {method!r}; allowed are {', '.join(METHODS)}")
    numbers = patient_numbers(patients, first.size)
    differences = first - second
    rounding = ROUNDING * float(np.abs(first).max())
    if np.ptp(differences) <= rounding:
        return _without_spread(float(differences.mean()), rounding, method)
    if method == "patient-bootstrap":
        return bootstrap_t(differences, numbers, level=level, seed=seed)
    if method == "paired-t" or numbers.max() + 1 == numbers.size:
        return _paired_t(differences, method, level)
    return _mixed_model(differences, numbers, level)


def paired_comparisons(
    a: ArrayLike,
    b: ArrayLike,
    patients: Patients | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> dict[Method, Comparison]:
    """``paired_comparison`` by every method, for a table that shows them side by side."""
    return {
        method: paired_comparison(a, b, patients, method=method, level=level, seed=seed)
        for method in METHODS
    }


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Holm's (1979) adjusted p-values, in the order given; controls the family-wise error.

    Args:
        p_values: (M,) all tests of the family, also those that showed nothing.

    Raises:
        StatisticsError: a value is not between 0 and 1.
    """
    values = finite_rows(p_values, "p_values")
    if ((values < 0) | (values > 1)).any():
        raise StatisticsError(
            f"p-values from {values.min():g} to {values.max():g}; allowed is 0 to 1"
        )
    order = np.argsort(values, kind="stable")
    factors = np.arange(values.size, 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * values[order]), 1.0)
    return adjusted


def _without_spread(difference: float, rounding: float, method: str) -> Comparison:
    """All differences are one number: no test, unless that number is 0."""
    if abs(difference) > rounding:
        raise StatisticsError(
            f"all differences are {difference:.6g}; without any spread there is nothing to test "
            "against, check that the rows are different scans"
        )
    return Comparison(0.0, 1.0, 0.0, 0.0, 0.0, method)


def _paired_t(differences: Floats, method: str, level: float) -> Comparison:
    error = float(differences.std(ddof=1)) / math.sqrt(differences.size)
    return _t_comparison(float(differences.mean()), error, differences.size - 1, method, level)


def _mixed_model(differences: Floats, numbers: Integers, level: float) -> Comparison:
    fitted = fit_random_intercept(differences, numbers)
    return _t_comparison(fitted.mean, fitted.error, int(numbers.max()), "mixed-model", level)


def _t_comparison(mean: float, error: float, freedom: int, method: str, level: float) -> Comparison:
    half = t_quantile(level, freedom) * error
    statistic = mean / error
    p_value = t_p_value(statistic, freedom)
    return Comparison(statistic, p_value, mean, mean - half, mean + half, method)
