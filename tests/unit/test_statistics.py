"""Intervals against oracles and hand computations."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from iedn.evaluation.statistics import auc_interval, delong_variance, placements, wilson_interval


def test_area_equals_scikit_learns_with_ties():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    scores = np.round(rng.normal(labels * 0.8, 1.0), 1)
    estimate = auc_interval(labels, scores)
    assert estimate.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert estimate.low < estimate.value < estimate.high


def test_delong_variance_by_hand():
    positive, negative = np.array([3.0, 2.0, 5.0]), np.array([1.0, 2.0, 4.0, 0.0])
    # shares of negatives below each positive, a tie is one half
    of_positive, of_negative = placements(positive, negative)
    np.testing.assert_allclose(of_positive, [3 / 4, 2.5 / 4, 1.0])
    np.testing.assert_allclose(of_negative, [1.0, 2.5 / 3, 1 / 3, 1.0])
    area = (0.75 + 0.625 + 1.0) / 3
    spread_10 = sum((v - area) ** 2 for v in (0.75, 0.625, 1.0)) / 2
    spread_01 = sum((v - area) ** 2 for v in (1.0, 2.5 / 3, 1 / 3, 1.0)) / 3
    assert delong_variance(positive, negative) == (
        pytest.approx(area),
        pytest.approx(spread_10 / 3 + spread_01 / 4),
    )


def test_interval_is_symmetric_on_the_logit_scale():
    labels, scores = [1, 1, 1, 0, 0, 0, 0], [3, 2, 5, 1, 2, 4, 0]
    estimate = auc_interval(labels, scores)
    area, variance = delong_variance(np.array([3.0, 2, 5]), np.array([1.0, 2, 4, 0]))
    half = 1.959964 * math.sqrt(variance) / (area * (1 - area))
    for bound, sign in ((estimate.low, -1), (estimate.high, 1)):
        expected = math.log(area / (1 - area)) + sign * half
        assert math.log(bound / (1 - bound)) == pytest.approx(expected, rel=1e-5)
    assert 0 < estimate.low < estimate.high < 1


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    truth = 0.5 * math.erfc(-1.0 / 2)  # Phi(d / sqrt 2) for d = 1
    labels = np.repeat([1, 0], 40)
    hits = 0
    for _ in range(400):
        estimate = auc_interval(labels, rng.normal(labels * 1.0, 1.0))
        hits += estimate.low <= truth <= estimate.high
    assert 0.91 < hits / 400 < 0.985


@pytest.mark.parametrize(("sign", "area"), [(1, 1.0), (-1, 0.0)])
def test_perfect_separation_still_has_a_width(sign, area):
    labels = [1] * 5 + [0] * 8
    estimate = auc_interval(labels, [sign * (20.0 * v + i) for i, v in enumerate(labels)])
    assert estimate.value == area
    low, high = wilson_interval(int(area * 5), 5)
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


def test_one_row_a_class_gives_a_wide_interval():
    estimate = auc_interval([1, 0, 0, 0, 0], [2.5, 1, 2, 3, 4])
    assert estimate.value == 0.5
    assert estimate.high - estimate.low > 0.8


def test_wilson_interval_known_values():
    # Newcombe 1998, table I, method 3
    assert wilson_interval(81, 263) == (
        pytest.approx(0.2553, abs=5e-5),
        pytest.approx(0.3662, abs=5e-5),
    )
    assert wilson_interval(15, 148) == (
        pytest.approx(0.0624, abs=5e-5),
        pytest.approx(0.1605, abs=5e-5),
    )
    assert wilson_interval(0, 20) == (0.0, pytest.approx(0.1611, abs=5e-5))
    assert wilson_interval(1, 29) == (
        pytest.approx(0.0061, abs=5e-5),
        pytest.approx(0.1718, abs=5e-5),
    )


def test_a_higher_level_is_wider():
    labels, scores = [1, 1, 1, 0, 0, 0, 0], [3, 2, 5, 1, 2, 4, 0]
    narrow, wide = auc_interval(labels, scores, level=0.8), auc_interval(labels, scores, level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([1, 1], [0.1, 0.2], "2 positive and 0 negative"),
        ([0, 0, 0], [0.1, 0.2, 0.3], "0 positive and 3 negative"),
        ([], [], "0 positive and 0 negative"),
        ([1, 0], [0.1], "allowed is one"),
        ([1, 2], [0.1, 0.2], "0 or 1"),
        ([1, 0], [0.1, float("nan")], "finite"),
    ],
)
def test_wrong_rows_are_refused(labels, scores, words):
    with pytest.raises(ValueError, match=words):
        auc_interval(labels, scores)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_wrong_counts_are_refused(successes, trials):
    with pytest.raises(ValueError, match="allowed"):
        wilson_interval(successes, trials)
