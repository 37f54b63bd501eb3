"""Agreement of readers against published tables, oracles and hand computations."""

import math
import warnings

import numpy as np
import pandas as pd
import pingouin
import pytest
from statsmodels.stats.inter_rater import cohens_kappa

from iedn.errors import StatisticsError
from iedn.evaluation.statistics import cohen_kappa, icc_2_1, r_wg

# Shrout and Fleiss 1979, table 2: six targets, four judges
SHROUT_FLEISS = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]


def pingouin_icc(ratings):
    targets, raters = np.indices(np.shape(ratings))
    rows = pd.DataFrame(
        {"target": targets.ravel(), "rater": raters.ravel(), "score": np.ravel(ratings)}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pandas 3.1 about pingouin 0.7
        table = pingouin.intraclass_corr(rows, targets="target", raters="rater", ratings="score")
    return table.set_index("Type").loc["ICC(A,1)"]


def test_icc_as_published():
    estimate = icc_2_1(SHROUT_FLEISS)
    assert estimate.value == pytest.approx(0.29, abs=5e-3)
    assert estimate.value == pytest.approx(0.289764, abs=1e-6)
    assert (round(estimate.low, 2), round(estimate.high, 2)) == (0.02, 0.76)


@pytest.mark.parametrize(("shape", "seed"), [((6, 4), 0), ((30, 2), 1), ((12, 3), 2), ((40, 2), 3)])
def test_icc_equals_pingouins(shape, seed):
    rng = np.random.default_rng(seed)
    ratings = rng.normal(size=(shape[0], 1)) + rng.normal(size=(1, shape[1])) * 0.4
    ratings = ratings + rng.normal(size=shape) * 0.6
    expected = pingouin_icc(ratings)
    estimate = icc_2_1(ratings)
    assert estimate.value == pytest.approx(expected["ICC"], abs=1e-6)
    bounds = next(v for k, v in expected.items() if k.startswith("CI95"))
    assert [round(estimate.low, 2), round(estimate.high, 2)] == pytest.approx(
        list(bounds), abs=1e-9
    )


def test_icc_of_a_reader_who_rates_one_point_higher():
    # MSR = 2, MSC = 1.5, MSE = 0: 2 / (2 + 2 * 1.5 / 3)
    estimate = icc_2_1([[1, 2], [2, 3], [3, 4]])
    assert estimate.value == pytest.approx(2 / 3)
    assert 0 <= estimate.low < 2 / 3 < estimate.high <= 1


def test_icc_of_full_agreement_is_one():
    assert vars(icc_2_1([[1, 1], [2, 2], [4, 4]])) == {"value": 1.0, "low": 1.0, "high": 1.0}


def test_icc_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(300):
        ratings = rng.normal(size=(30, 1)) + rng.normal(size=(1, 4)) * 0.3
        estimate = icc_2_1(ratings + rng.normal(size=(30, 4)) * math.sqrt(0.91))
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.9 < hits / 300 < 0.99


def test_r_wg_by_hand():
    assert r_wg([[3, 2]]).value == pytest.approx(0.6)  # 1 - 0.5 / 1.25
    assert r_wg([[3, 1]]).value == pytest.approx(-0.6)  # 1 - 2 / 1.25
    assert r_wg([[3, 1]], truncate=True).value == 0.0
    assert r_wg([[3, 3, 0]], num_categories=7).value == pytest.approx(1 - 3 / 4)
    assert math.isnan(r_wg([[3, 2]]).low)


def test_r_wg_of_a_mean_of_089_over_208_maps():
    """57 disagreements by one point: (151 + 57 * 0.6) / 208."""
    ratings = [[3, 3]] * 151 + [[3, 2]] * 57
    estimate = r_wg(ratings)
    assert estimate.value == pytest.approx(0.8904, abs=5e-5)
    deviation = math.sqrt((151 * 57 / 208) * 0.4**2 / 207)
    half = 1.971490 * deviation / math.sqrt(208)  # t of 207 degrees of freedom
    assert (estimate.low, estimate.high) == (
        pytest.approx(estimate.value - half, abs=1e-6),
        pytest.approx(estimate.value + half, abs=1e-6),
    )


def test_kappa_of_fifty_proposals():
    """20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: (0.7 - 0.5) / (1 - 0.5)."""
    a = [1] * 25 + [0] * 25
    b = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    estimate = cohen_kappa(a, b)
    assert estimate.value == pytest.approx(0.4)
    words = ["recurrence" if v else "response" for v in b]
    named = cohen_kappa(["recurrence" if v else "response" for v in a], words)
    assert vars(named) == pytest.approx(vars(estimate))


def test_kappa_with_linear_weights_by_hand():
    # three categories; credit 1 on the diagonal, 1/2 one step off, 0 two steps off
    a, b = [0, 0, 1, 1, 2, 2, 2, 0], [0, 1, 1, 1, 2, 1, 2, 2]
    seen = (5 * 1 + 2 * 0.5) / 8
    rows, columns = (3 / 8, 2 / 8, 3 / 8), (1 / 8, 4 / 8, 3 / 8)
    chance = sum(rows[i] * columns[j] * (1 - abs(i - j) / 2) for i in range(3) for j in range(3))
    assert cohen_kappa(a, b, weights="linear").value == pytest.approx(
        (seen - chance) / (1 - chance)
    )


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
@pytest.mark.parametrize("seed", range(3))
def test_kappa_equals_statsmodels(weights, seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4, 90)
    b = np.clip(a + rng.integers(-1, 2, 90), 0, 3)
    counts = np.zeros((4, 4))
    np.add.at(counts, (a, b), 1)
    oracle = cohens_kappa(counts, wt=None if weights == "none" else weights)
    if weights == "quadratic":
        oracle = cohens_kappa(counts, weights=np.arange(4), wt="quadratic")
    estimate = cohen_kappa(a, b, weights=weights)
    assert estimate.value == pytest.approx(oracle["kappa"], abs=1e-6)
    assert estimate.low == pytest.approx(oracle["kappa_low"], abs=1e-6)
    assert estimate.high == pytest.approx(oracle["kappa_upp"], abs=1e-6)


def test_kappa_counts_steps_in_the_categories_that_are_given():
    a, b = [0, 3, 3, 0, 3], [0, 3, 1, 1, 3]
    given = cohen_kappa(a, b, weights="linear", categories=[0, 1, 2, 3])
    found = cohen_kappa(a, b, weights="linear")
    assert given.value != pytest.approx(found.value)
    with pytest.raises(StatisticsError, match="ratings 3 are no category; allowed are 0, 1, 2"):
        cohen_kappa(a, b, categories=[0, 1, 2])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: icc_2_1([[2, 2], [2, 2]]), "all ratings are the same"),
        (lambda: icc_2_1([[2, 3]]), "1 targets x 2 raters; at least 2"),
        (lambda: icc_2_1([[2], [3]]), "2 targets x 1 raters"),
        (lambda: icc_2_1([[2, math.nan], [3, 3]]), "1 of 4 values are not finite"),
        (lambda: icc_2_1([1, 2, 3]), "allowed is 2 dimension"),
        (lambda: r_wg([[0, 4]]), "from 0 to 4 do not fit a scale of 4 points"),
        (lambda: r_wg([[1], [2]]), "two raters"),
        (lambda: r_wg([[1, 2]], num_categories=1), "at least 2"),
        (lambda: cohen_kappa([1, 1, 1], [1, 1, 1]), "kappa is not defined"),
        (lambda: cohen_kappa([1, 2], [1]), "allowed is one"),
        (lambda: cohen_kappa([1.0, math.nan], [1.0, 2.0]), "not finite"),
        (lambda: cohen_kappa([1, 2], [1, 2], weights="cubic"), "allowed are none, linear"),
        (lambda: icc_2_1([[1, 2], [2, 3]], level=1.5), "level 1.5"),
    ],
)
def test_ratings_without_an_answer(call, words):
    with pytest.raises(ValueError, match=words):
        call()
