"""The records that statistics return, and the checks of rows they share.

A row is one scan (or one reading of it); several rows may belong to one patient.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from iedn.errors import StatisticsError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Patients = Sequence[str] | Sequence[int] | NDArray[np.generic]


@dataclass(frozen=True)
class Estimate:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A two-sided test of a against b.

    Attributes:
        statistic: z or t; positive where a is larger.
        p_value: two-sided.
        difference: a - b.
        low: of the difference's confidence interval.
        high: of the difference's confidence interval.
        method: what was computed, e.g. ``delong``.
    """

    statistic: float
    p_value: float
    difference: float
    low: float
    high: float
    method: str


def z_comparison(difference: float, variance: float, method: str, *, level: float) -> Comparison:
    """A difference with a known variance against the normal distribution.

    No difference without any variance (one score is a monotone function of the other) is z = 0.

    Raises:
        StatisticsError: there is a difference, but no variance to hold it against.
    """
    if variance <= 0:
        if difference != 0:
            raise StatisticsError(
                f"the difference {difference:.6g} has an estimated variance of 0, as where classes "
                "are separated without error; report both values with their intervals instead"
            )
        return Comparison(0.0, 1.0, 0.0, 0.0, 0.0, method)
    error = math.sqrt(variance)
    half = normal_quantile(level) * error
    z = difference / error
    p_value = float(2 * ndtr(-abs(z)))
    return Comparison(z, p_value, difference, difference - half, difference + half, method)


def normal_quantile(level: float) -> float:
    """Of a two-sided interval: 1.96 for 0.95.

    Raises:
        ValueError: ``level`` is not between 0 and 1.
    """
    return float(ndtri((1 + checked_level(level)) / 2))


def t_quantile(level: float, freedom: float) -> float:
    """Of a two-sided interval with Student's t.

    Raises:
        ValueError: ``level`` is not between 0 and 1.
    """
    return float(stdtrit(freedom, (1 + checked_level(level)) / 2))


def t_p_value(statistic: float, freedom: float) -> float:
    """Two-sided."""
    return float(2 * stdtr(freedom, -abs(statistic)))


def checked_level(level: float) -> float:
    """``level`` if it is one.

    Raises:
        ValueError: it is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}; allowed is between 0 and 1")
    return level


def finite_rows(values: ArrayLike, name: str, *, ndim: int = 1) -> Floats:
    """The values as float64.

    Raises:
        ValueError: wrong number of dimensions.
        StatisticsError: some are not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != ndim:
        raise ValueError(f"{name} has shape {array.shape}; allowed is {ndim} dimension(s)")
    wrong = int(array.size - np.isfinite(array).sum())
    if wrong:
        raise StatisticsError(
            f"{name}: {wrong} of {array.size} values are not finite; values must be finite, "
            "so leave such rows out and report how many"
        )
    return array


def paired_rows(a: ArrayLike, b: ArrayLike, *, least: int) -> tuple[Floats, Floats]:
    """Two finite columns of one length.

    Raises:
        ValueError: lengths differ.
        StatisticsError: values are not finite, or fewer than ``least`` rows.
    """
    first, second = finite_rows(a, "a"), finite_rows(b, "b")
    if first.size != second.size:
        raise ValueError(f"a has {first.size} rows and b {second.size}; rows are paired")
    if first.size < least:
        raise StatisticsError(f"{first.size} rows; at least {least} are needed")
    return first, second


def patient_numbers(patients: Patients | None, num_rows: int) -> Integers:
    """Each row's patient as a number from 0; without ``patients`` every row is its own.

    Raises:
        ValueError: not one patient a row.
        StatisticsError: all rows are of one patient.
    """
    if patients is None:
        return np.arange(num_rows)
    names = np.asarray(patients)
    if names.shape != (num_rows,):
        raise ValueError(f"patients {names.shape} for {num_rows} rows; allowed is one a row")
    _, numbers = np.unique(names, return_inverse=True)
    if numbers.max(initial=0) == 0:
        raise StatisticsError(
            f"{num_rows} rows of one patient; how patients differ cannot be known from it, "
            "at least two patients are needed"
        )
    return np.asarray(numbers, np.int64)
