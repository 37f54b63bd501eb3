"""Paired tests of two areas: by hand, against oracles, and with several rows a patient."""

import math
from fractions import Fraction

import numpy as np
import pytest
from MLstatkit import Delong_test

from iedn.errors import StatisticsError
from iedn.evaluation.hanley_mcneil import correlation_of_areas, hanley_mcneil_error
from iedn.evaluation.statistics import (
    auc_covariance,
    auc_interval,
    delong_test,
    delong_variance,
    hanley_mcneil_from_areas,
    hanley_mcneil_test,
)

LABELS = [1, 1, 1, 0, 0, 0, 0]
SCORES_A = [3, 2, 5, 1, 2, 4, 0]
SCORES_B = [6, 5, 3, 4, 1, 2, 0]


def two_scores(rng, n=120, effects=(1.0, 0.5)):
    labels = rng.integers(0, 2, n)
    shared = rng.normal(size=n)
    return labels, *(np.round(e * labels + shared + rng.normal(size=n), 1) for e in effects)


def kernel_covariance(labels, scores, patients):
    """Obuchowski (1997), written from her formulas with loops over patients."""
    labels, patients = np.asarray(labels), np.asarray(patients)
    names = sorted(set(patients))
    components = []
    for score in np.asarray(scores, float):
        x, y = score[labels == 1], score[labels == 0]
        psi = (x[:, None] > y[None, :]) + 0.5 * (x[:, None] == y[None, :])
        v10, v01, area = psi.mean(axis=1), psi.mean(axis=0), psi.mean()
        of_x, of_y = patients[labels == 1], patients[labels == 0]
        e = [sum(v - area for v, p in zip(v10, of_x, strict=True) if p == name) for name in names]
        f = [sum(v - area for v, p in zip(v01, of_y, strict=True) if p == name) for name in names]
        components.append((e, f))
    m, n = int((labels == 1).sum()), int((labels == 0).sum())
    i10, i01 = len(set(patients[labels == 1])), len(set(patients[labels == 0]))
    total = len(names)
    matrix = np.zeros((len(scores),) * 2)
    for r, (e_r, f_r) in enumerate(components):
        for s, (e_s, f_s) in enumerate(components):
            s10 = i10 / ((i10 - 1) * m) * sum(a * b for a, b in zip(e_r, e_s, strict=True))
            s01 = i01 / ((i01 - 1) * n) * sum(a * b for a, b in zip(f_r, f_s, strict=True))
            s11 = total / (total - 1) * sum(a * b for a, b in zip(e_r, f_s, strict=True))
            s11_back = total / (total - 1) * sum(a * b for a, b in zip(f_r, e_s, strict=True))
            matrix[r, s] = s10 / m + s01 / n + (s11 + s11_back) / (m * n)
    return matrix


def test_delong_by_hand():
    """Placements as fractions; a tie counts one half."""
    a10 = [Fraction(3, 4), Fraction(5, 8), Fraction(1)]
    a01 = [Fraction(1), Fraction(5, 6), Fraction(1, 3), Fraction(1)]
    b10 = [Fraction(1), Fraction(1), Fraction(3, 4)]
    b01 = [Fraction(2, 3), Fraction(1), Fraction(1), Fraction(1)]
    area_a, area_b = sum(a10) / 3, sum(b10) / 3
    assert (area_a, area_b) == (Fraction(19, 24), Fraction(11, 12))
    d10 = [a - b - (area_a - area_b) for a, b in zip(a10, b10, strict=True)]
    d01 = [a - b - (area_a - area_b) for a, b in zip(a01, b01, strict=True)]
    variance = sum(d * d for d in d10) / 2 / 3 + sum(d * d for d in d01) / 3 / 4
    test = delong_test(LABELS, SCORES_A, SCORES_B)
    assert test.difference == pytest.approx(-1 / 8)
    z = -1 / 8 / math.sqrt(variance)
    assert test.statistic == pytest.approx(z)
    assert test.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    assert test.high == pytest.approx(-1 / 8 + 1.959964 * math.sqrt(variance), abs=1e-6)
    assert test.low == pytest.approx(-1 / 8 - 1.959964 * math.sqrt(variance), abs=1e-6)
    assert test.method == "delong"


@pytest.mark.parametrize("seed", range(5))
def test_delong_equals_mlstatkits(seed):
    labels, a, b = two_scores(np.random.default_rng(seed))
    z, p = Delong_test(labels, a, b, return_ci=False, return_auc=False)
    test = delong_test(labels, a, b)
    assert test.statistic == pytest.approx(-z, abs=1e-6)  # it subtracts the other way round
    assert test.p_value == pytest.approx(p, abs=1e-6)


def test_exchanging_the_scores_exchanges_the_sign():
    labels, a, b = two_scores(np.random.default_rng(1))
    forward, backward = delong_test(labels, a, b), delong_test(labels, b, a)
    assert forward.statistic == pytest.approx(-backward.statistic)
    assert (forward.low, forward.p_value) == (
        pytest.approx(-backward.high),
        pytest.approx(backward.p_value),
    )


def test_only_the_order_of_scores_counts():
    labels, a, b = two_scores(np.random.default_rng(2))
    assert delong_test(labels, np.exp(a), b**3).p_value == pytest.approx(
        delong_test(labels, a, b).p_value, abs=1e-12
    )
    same = delong_test(labels, a, 2 * a + 1)
    assert (same.statistic, same.p_value, same.difference) == (0.0, 1.0, 0.0)


@pytest.mark.parametrize("seed", range(3))
def test_covariance_of_clustered_rows_is_obuchowskis(seed):
    rng = np.random.default_rng(seed)
    labels, a, b = two_scores(rng, n=60)
    patients = rng.integers(0, 20, 60)
    areas, covariance = auc_covariance(labels, [a, b], patients=patients)
    np.testing.assert_allclose(covariance, kernel_covariance(labels, [a, b], patients), atol=1e-14)
    test = delong_test(labels, a, b, patients=[f"sub-{p:04d}" for p in patients])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert test.statistic == pytest.approx((areas[0] - areas[1]) / math.sqrt(variance))
    assert test.method == "delong-obuchowski"


def test_one_row_a_patient_is_plain_delong():
    labels, a, b = two_scores(np.random.default_rng(3))
    clustered = delong_test(labels, a, b, patients=np.arange(labels.size)[::-1])
    plain = delong_test(labels, a, b)
    assert clustered.statistic == pytest.approx(plain.statistic, abs=1e-10)
    _, covariance = auc_covariance(labels, [a])
    _, variance = delong_variance(a[labels == 1], a[labels == 0])
    assert covariance[0, 0] == pytest.approx(variance, abs=1e-15)


def test_rows_that_stand_twice_add_nothing():
    labels, a, b = two_scores(np.random.default_rng(4), n=50)
    twice = [np.concatenate([x, x]) for x in (labels, a, b)]
    patients = np.tile(np.arange(50), 2)
    once = delong_test(labels, a, b)
    assert delong_test(*twice, patients=patients).statistic == pytest.approx(once.statistic)
    assert abs(delong_test(*twice).statistic) > 1.3 * abs(once.statistic)
    interval = auc_interval(*twice[:2], patients=patients)
    alone = auc_interval(labels, a)
    assert (interval.low, interval.high) == (pytest.approx(alone.low), pytest.approx(alone.high))


def test_hanley_mcneil_error_as_published():
    # Hanley and McNeil 1982, p. 32: area 0.893, 51 abnormal and 58 normal images
    assert hanley_mcneil_error(0.893, 51, 58) == pytest.approx(0.032, abs=6e-4)
    # by hand: A = 1/2, one row each: A(1 - A) = 1/4
    assert hanley_mcneil_error(0.5, 1, 1) == pytest.approx(0.5)
    # A = 1/2, m = n = 2: Q1 = Q2 = 1/3, so (1/4 + 2 (1/3 - 1/4)) / 4
    assert hanley_mcneil_error(0.5, 2, 2) == pytest.approx(math.sqrt(5 / 48))


@pytest.mark.parametrize(
    ("rating", "area", "printed"),
    [
        (0.02, 0.7, 0.02),
        (0.30, 0.75, 0.27),
        (0.50, 0.7, 0.47),
        (0.50, 0.85, 0.43),
        (0.50, 0.925, 0.39),
        (0.60, 0.80, 0.55),
        (0.60, 0.975, 0.42),
        (0.80, 0.95, 0.70),
        (0.90, 0.70, 0.88),
        (0.90, 0.975, 0.82),
    ],
)
def test_correlation_of_areas_as_the_printed_table(rating, area, printed):
    # Hanley and McNeil 1983, table I
    assert correlation_of_areas(rating, area) == pytest.approx(printed, abs=0.02)


def test_correlation_of_areas_at_its_ends():
    assert correlation_of_areas(1.0, 0.8) == 1.0
    assert correlation_of_areas(0.0, 0.8) == pytest.approx(0.0, abs=1e-12)
    assert correlation_of_areas(-0.5, 0.8) < 0


@pytest.mark.parametrize(
    ("correlation", "z", "p"),
    [
        (0, 1.76, 0.079),
        (0.2, 1.96, 0.050),
        (0.3, 2.09, 0.037),
        (0.4, 2.24, 0.025),
        (0.5, 2.44, 0.015),
    ],
)
def test_table_three_of_the_paper(correlation, z, p):
    """Its areas .76 and .87 with 45 and 51 patients: p = .019 needs a correlation near .45."""
    test = hanley_mcneil_from_areas((0.87, 0.76), (45, 51), correlation)
    assert test.statistic == pytest.approx(z, abs=0.006)
    assert test.p_value == pytest.approx(p, abs=6e-4)


def test_hanley_mcneil_test_puts_its_parts_together():
    labels, a, b = two_scores(np.random.default_rng(5), n=80)
    a, b = a + np.linspace(0, 0.01, 80), b + np.linspace(0.01, 0, 80)  # no ties
    correlation = np.mean([np.corrcoef(a[labels == c], b[labels == c])[0, 1] for c in (0, 1)])
    areas = [delong_variance(s[labels == 1], s[labels == 0])[0] for s in (a, b)]
    counts = (int(labels.sum()), int((1 - labels).sum()))
    expected = hanley_mcneil_from_areas(
        (areas[0], areas[1]), counts, correlation_of_areas(correlation, sum(areas) / 2)
    )
    test = hanley_mcneil_test(labels, a, b)
    assert test.statistic == pytest.approx(expected.statistic)
    assert test.difference == pytest.approx(areas[0] - areas[1])


def test_hanley_mcneil_is_near_delong_on_binormal_scores():
    rng = np.random.default_rng(6)
    labels = np.repeat([1, 0], 300)
    shared = rng.normal(size=600)
    a, b = (d * labels + shared + rng.normal(size=600) for d in (1.8, 1.5))
    assert hanley_mcneil_test(labels, a, b).statistic == pytest.approx(
        delong_test(labels, a, b).statistic, rel=0.1
    )


def test_ratings_with_few_levels_use_kendalls_tau():
    labels = np.repeat([1, 0], 4)
    a, b = np.array([2, 3, 3, 1, 0, 1, 2, 0]), np.array([3, 3, 2, 1, 1, 0, 2, 1])
    test = hanley_mcneil_test(labels, a, b)
    concordant = {1: 0, 0: 0}
    tied_a, tied_b = {1: 0, 0: 0}, {1: 0, 0: 0}
    for c in (1, 0):
        x, y = a[labels == c], b[labels == c]
        for i in range(4):
            for j in range(i):
                concordant[c] += int(np.sign((x[i] - x[j]) * (y[i] - y[j])))
                tied_a[c] += int(x[i] == x[j])
                tied_b[c] += int(y[i] == y[j])
    taus = [concordant[c] / math.sqrt((6 - tied_a[c]) * (6 - tied_b[c])) for c in (1, 0)]
    areas = [delong_variance(s[labels == 1], s[labels == 0])[0] for s in (a, b)]
    correlation = correlation_of_areas(sum(taus) / 2, sum(areas) / 2)
    expected = hanley_mcneil_from_areas((areas[0], areas[1]), (4, 4), correlation)
    assert test.p_value == pytest.approx(expected.p_value)


@pytest.mark.parametrize("compare", [delong_test, hanley_mcneil_test])
@pytest.mark.parametrize(
    ("labels", "a", "b", "words"),
    [
        ([1] * 7, SCORES_A, SCORES_B, "7 positive and 0 negative"),
        (LABELS, [0.5] * 7, SCORES_B, r"scores_a: all 7 scores are 0.5"),
        (LABELS, SCORES_A, [0.5] * 7, r"scores_b: all 7 scores are 0.5"),
        (LABELS, SCORES_A, [*SCORES_B[:-1], float("nan")], "finite"),
        (LABELS, SCORES_A, SCORES_B[:-1], "allowed is one"),
        ([1, 0, 0, 0, 0, 0, 0], SCORES_A, SCORES_B, "at least (two|three)"),
        ([1, 2, 0, 0, 0, 0, 0], SCORES_A, SCORES_B, "0 or 1"),
    ],
)
def test_rows_that_cannot_be_compared(compare, labels, a, b, words):
    with pytest.raises(ValueError, match=words):
        compare(labels, a, b)


def test_patients_that_cannot_be_compared():
    with pytest.raises(StatisticsError, match="7 rows of one patient"):
        delong_test(LABELS, SCORES_A, SCORES_B, patients=["sub-0001"] * 7)
    with pytest.raises(StatisticsError, match="positive rows of 1 and negative rows of 2"):
        delong_test(LABELS, SCORES_A, SCORES_B, patients=[1, 1, 1, 2, 2, 3, 3])
    with pytest.raises(ValueError, match="one a row"):
        delong_test(LABELS, SCORES_A, SCORES_B, patients=[1, 2])


def test_a_difference_without_variance_is_said():
    with pytest.raises(StatisticsError, match="variance of 0"):
        delong_test([1, 1, 0, 0], [4, 3, 2, 1], [1, 2, 3, 4])


def test_one_patient_of_a_class_still_has_an_interval():
    estimate = auc_interval([1, 1, 0, 0, 0], [3, 4, 1, 2, 5], patients=[1, 1, 2, 3, 4])
    assert estimate.value == pytest.approx(4 / 6)
    assert estimate.high - estimate.low > 0.7
