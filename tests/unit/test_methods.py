"""Limits of agreement and concordance."""

import math

import numpy as np
import pytest

from iedn.errors import StatisticsError
from iedn.evaluation.statistics import bland_altman, concordance

# Bland and Altman 1986, table 1: first readings of peak flow by the Wright and the mini meter
WRIGHT = [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427]
MINI = [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451]


def test_limits_of_peak_flow_as_published():
    result = bland_altman(WRIGHT, MINI)
    assert result.bias.value == pytest.approx(-2.1, abs=0.05)
    assert result.sd == pytest.approx(38.8, abs=0.05)
    # the authors take t = 2.12 and round the limits' factor of 1.96 to 2
    assert result.bias.low == pytest.approx(-22.0, abs=0.1)
    assert result.bias.high == pytest.approx(17.8, abs=0.1)
    assert result.lower.value == pytest.approx(-2.1 - 1.96 * 38.8, abs=0.2)
    assert result.upper.value == pytest.approx(-2.1 + 1.96 * 38.8, abs=0.2)
    half = 2.119905 * result.sd * math.sqrt(1 / 17 + 1.959964**2 / 32)
    assert result.upper.high - result.upper.value == pytest.approx(half, rel=1e-6)
    assert (result.num_rows, result.num_patients) == (17, 17)


def test_limits_with_equally_many_rows_a_patient():
    """Variances by the textbook: MSW within, (MSB - MSW) / k between."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(15, 1)) * 2 + rng.normal(size=(15, 3)) + 1
    patients = np.repeat([f"sub-{i:04d}" for i in range(15)], 3)
    result = bland_altman(table.ravel(), np.zeros(45), patients)
    within = table.var(axis=1, ddof=1).mean()
    between = table.mean(axis=1).var(ddof=1) - within / 3
    assert result.sd == pytest.approx(math.sqrt(within + between))
    error = table.mean(axis=1).std(ddof=1) / math.sqrt(15)
    assert result.bias.high - result.bias.value == pytest.approx(2.144787 * error, rel=1e-6)
    assert (result.num_rows, result.num_patients) == (45, 15)
    assert result.bias.high > bland_altman(table.ravel(), np.zeros(45)).bias.high


def test_limits_without_variation_between_patients_are_the_plain_ones():
    values = np.array([1.0, -1.0, 2.0, -2.0, 0.5, -0.5])
    result = bland_altman(values, np.zeros(6), [1, 1, 2, 2, 3, 3])
    assert result.sd == pytest.approx(values.std(ddof=1))


@pytest.mark.parametrize("rows", [1, 3])
def test_limits_cover_as_often_as_they_say(rows):
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(25), rows)
    truth = -1.959964 * math.sqrt(2)
    hits = 0
    for _ in range(400):
        values = rng.normal(size=25)[patients] + rng.normal(size=patients.size)
        lower = bland_altman(values, np.zeros(values.size), patients).lower
        hits += lower.low <= truth <= lower.high
    assert 0.915 < hits / 400 < 0.985


def test_equal_values_agree_without_width():
    result = bland_altman([1, 2, 3], [1, 2, 3])
    assert (result.bias.low, result.lower.value, result.sd) == (0.0, 0.0, 0.0)


def test_concordance_by_hand():
    # variances 2/3, covariance 2/3, means 1 apart: 4/3 / (4/3 + 1)
    assert concordance([1, 2, 3], [2, 3, 4]).value == pytest.approx(4 / 7)
    # variances 2/3 and 8/3, covariance 4/3, means 2 apart: 8/3 / (10/3 + 4)
    assert concordance([1, 2, 3], [2, 4, 6]).value == pytest.approx(4 / 11)
    assert concordance([1, 2, 3], [3, 2, 1]).value == pytest.approx(-1.0)
    assert vars(concordance([1, 2, 4], [1, 2, 4])) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_concordance_is_below_correlation_and_divisor_n():
    rng = np.random.default_rng(2)
    a = rng.normal(size=40)
    b = 0.8 * a + 0.3 + rng.normal(size=40) * 0.4
    estimate = concordance(a, b)
    cov = np.cov(a, b)
    with_n_minus_1 = 2 * cov[0, 1] / (cov[0, 0] + cov[1, 1] + (a.mean() - b.mean()) ** 2)
    assert estimate.value < with_n_minus_1 < np.corrcoef(a, b)[0, 1]
    assert estimate.low < estimate.value < estimate.high < 1


def test_concordance_covers_as_often_as_it_says():
    rng = np.random.default_rng(3)
    truth = 2 * 0.8 / (1 + 1 + 0.3**2)
    hits = 0
    for _ in range(400):
        a = rng.normal(size=60)
        b = 0.8 * a + 0.6 * rng.normal(size=60) + 0.3
        estimate = concordance(a, b)
        hits += estimate.low <= truth <= estimate.high
    assert 0.92 < hits / 400 < 0.98


def test_patients_widen_the_interval_of_concordance():
    rng = np.random.default_rng(4)
    a = rng.normal(size=20)
    b = 0.8 * a + 0.6 * rng.normal(size=20)
    patients = np.tile(np.arange(20), 4)
    rows, clustered = np.tile(a, 4), np.tile(b, 4)
    together = concordance(rows, clustered, patients)
    apart = concordance(rows, clustered)
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low > 1.5 * (apart.high - apart.low)
    assert concordance(rows, clustered, patients) == together


def test_rows_without_an_answer():
    with pytest.raises(StatisticsError, match="neither a nor b varies"):
        concordance([1, 1, 1], [1, 1, 1])
    with pytest.raises(StatisticsError, match="at least 3"):
        concordance([1, 2], [1, 2])
    with pytest.raises(StatisticsError, match="b: 1 of 3 values are not finite"):
        bland_altman([1, 2, 3], [1, 2, math.nan])
    with pytest.raises(StatisticsError, match="one patient"):
        bland_altman([1, 2, 3], [1, 2, 4], [7, 7, 7])
    with pytest.raises(ValueError, match="rows are paired"):
        concordance([1, 2, 3], [1, 2])
