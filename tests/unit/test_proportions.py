"""Sensitivity and specificity at a threshold."""

import math

import numpy as np
import pytest

from iedn.errors import StatisticsError
from iedn.evaluation.statistics import operating_point, wilson_interval, youden_threshold


def test_counts_by_hand():
    labels = [1, 1, 1, 1, 0, 0, 0, 0, 0]
    scores = [2.0, 1.5, 1.0, 0.2, 1.0, 0.9, 0.1, 0.0, 0.3]
    point = operating_point(labels, scores, 1.0)
    assert (point.sensitivity.value, point.specificity.value) == (0.75, 0.8)
    assert (point.sensitivity.low, point.sensitivity.high) == pytest.approx(wilson_interval(3, 4))
    assert (point.specificity.low, point.specificity.high) == pytest.approx(wilson_interval(4, 5))
    assert (point.num_positive, point.num_negative, point.threshold) == (4, 5, 1.0)


def test_readers_calls_with_published_intervals():
    # Newcombe 1998, table I: 81 of 263 and 15 of 148
    labels = [1] * 263 + [0] * 148
    calls = [1] * 81 + [0] * 182 + [0] * 15 + [1] * 133
    point = operating_point(labels, calls, 0.5)
    assert (round(point.sensitivity.low, 4), round(point.sensitivity.high, 4)) == (0.2553, 0.3662)
    assert (round(point.specificity.low, 4), round(point.specificity.high, 4)) == (0.0624, 0.1605)


def test_rows_that_stand_twice_add_nothing():
    labels = np.array([1] * 40 + [0] * 30)
    calls = np.array([1] * 31 + [0] * 9 + [0] * 20 + [1] * 10)
    once = operating_point(labels, calls, 0.5)
    twice = operating_point(
        np.tile(labels, 2), np.tile(calls, 2), 0.5, patients=np.tile(np.arange(70), 2)
    )
    naive = operating_point(np.tile(labels, 2), np.tile(calls, 2), 0.5)
    # effective trials: share (1 - share) / (variance of patients' means) = patients - 1
    z = 1.959963984540054
    expected = (31 / 40 + z * z / 78) / (1 + z * z / 39)
    middle = (twice.sensitivity.low + twice.sensitivity.high) / 2
    assert middle == pytest.approx(expected)
    width = [p.sensitivity.high - p.sensitivity.low for p in (once, twice, naive)]
    assert width[1] == pytest.approx(width[0], rel=0.02)
    assert width[2] < 0.75 * width[0]


def test_without_errors_the_number_of_patients_counts():
    point = operating_point(
        [1] * 6 + [0] * 4, [1] * 6 + [0] * 4, 0.5, patients=[1, 1, 1, 2, 2, 2, 3, 3, 4, 4]
    )
    assert (point.sensitivity.low, point.sensitivity.high) == pytest.approx(wilson_interval(2, 2))
    assert (point.specificity.low, point.specificity.high) == pytest.approx(wilson_interval(2, 2))


def test_youdens_threshold_by_hand():
    labels, scores = [1, 1, 1, 0, 0, 0], [5.0, 4.0, 2.0, 3.0, 1.0, 0.0]
    # at 4: 2/3 + 1, at 2: 1 + 2/3; the higher threshold of equal ones
    assert youden_threshold(labels, scores) == 4.0
    assert youden_threshold([1, 0, 0], [2.0, 1.0, 0.0]) == 2.0


def test_wrong_rows_are_refused():
    with pytest.raises(StatisticsError, match="2 positive and 0 negative"):
        operating_point([1, 1], [1, 2], 1.0)
    with pytest.raises(StatisticsError, match="finite"):
        operating_point([1, 0], [math.nan, 2], 1.0)
    with pytest.raises(ValueError, match="threshold nan"):
        operating_point([1, 0], [1, 2], math.nan)
    with pytest.raises(StatisticsError, match="one patient"):
        operating_point([1, 0], [1, 2], 1.0, patients=["sub-0001", "sub-0001"])
