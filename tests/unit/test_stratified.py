"""Seven numbers a site give what the joined rows with strata give."""

import math

import numpy as np
import pytest

from iedn.errors import StatisticsError
from iedn.evaluation.statistics import (
    SiteAreas,
    auc_interval,
    delong_test,
    site_areas,
    stratified_areas,
    stratified_difference,
)

OFFSETS = (0.0, 2.0, -1.0, 4.0)


def cohorts(seed=0, sizes=(31, 24, 40, 16)):
    """Labels, two scores and patients of sites whose scanners differ by an offset."""
    rng = np.random.default_rng(seed)
    for size, offset in zip(sizes, OFFSETS, strict=True):
        labels = np.arange(size) % 2
        shared = rng.normal(size=size)
        a, b = (
            offset + np.round(e * labels + shared + rng.normal(size=size), 1) for e in (1.2, 0.6)
        )
        yield labels, a, b, rng.integers(0, size // 2, size)


def joint(rows, score):
    """Stratified areas from all rows at once: pairs of one stratum only, by the kernel.

    Returns the area and, a row, its influence on it, (N,).
    """
    labels, scores = (np.concatenate([r[i] for r in rows]) for i in (0, score))
    strata = np.concatenate([np.full(r[0].size, i) for i, r in enumerate(rows)])
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    x, y = scores[positive][:, None], scores[negative][None, :]
    psi = (x > y) + 0.5 * (x == y)
    allowed = strata[positive][:, None] == strata[negative][None, :]
    return psi, allowed, strata[positive], strata[negative]


def joint_covariance(rows):
    """Areas and covariance over joined rows with strata, without passing by single sites' areas."""
    pieces = [joint(rows, score) for score in (1, 2)]
    total = pieces[0][1].sum()
    areas = [(psi * allowed).sum() / total for psi, allowed, _, _ in pieces]
    covariance = np.zeros((2, 2))
    for r, (psi_r, allowed, of_x, of_y) in enumerate(pieces):
        for s, (psi_s, _, _, _) in enumerate(pieces):
            for axis, strata in ((1, of_x), (0, of_y)):
                # sum over the other class within the stratum, centred within the stratum
                sums = [(psi * allowed).sum(axis=axis) for psi in (psi_r, psi_s)]
                for stratum in np.unique(strata):
                    first, second = (v[strata == stratum] for v in sums)
                    n = first.size
                    product = ((first - first.mean()) * (second - second.mean())).sum()
                    covariance[r, s] += n / (n - 1) * product / total**2
    return areas, covariance


@pytest.mark.parametrize("seed", range(4))
def test_seven_numbers_equal_the_joined_rows(seed):
    rows = list(cohorts(seed))
    sites = [site_areas(*r[:3]) for r in rows]
    areas, covariance = joint_covariance(rows)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    z = (areas[0] - areas[1]) / math.sqrt(variance)
    test = stratified_difference(sites)
    assert test.difference == pytest.approx(areas[0] - areas[1], abs=1e-10)
    assert test.statistic == pytest.approx(z, abs=1e-10)
    assert test.p_value == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=1e-10)
    for estimate, area in zip(stratified_areas(sites), areas, strict=True):
        assert estimate.value == pytest.approx(area, abs=1e-10)
        assert 0 < estimate.low < area < estimate.high < 1


def test_one_site_is_delongs_test():
    labels, a, b, patients = next(cohorts())
    for names in (None, patients):
        site = site_areas(labels, a, b, patients=names)
        alone = delong_test(labels, a, b, patients=names)
        test = stratified_difference([site])
        assert (test.statistic, test.low) == (
            pytest.approx(alone.statistic, abs=1e-12),
            pytest.approx(alone.low, abs=1e-12),
        )
        expected = auc_interval(labels, a, patients=names)
        assert stratified_areas([site])[0].high == pytest.approx(expected.high, abs=1e-12)


def test_two_sites_by_hand():
    first = SiteAreas(2, 3, 0.8, 0.6, 0.02, 0.03, 0.01)
    second = SiteAreas(4, 3, 0.5, 0.5, 0.01, 0.01, 0.0)
    test = stratified_difference([first, second])  # weights 6 / 18 and 12 / 18
    assert test.difference == pytest.approx(0.2 / 3)
    variance = (0.02 + 0.03 - 0.02) / 9 + 0.02 * 4 / 9
    assert test.statistic == pytest.approx(0.2 / 3 / math.sqrt(variance))
    assert stratified_areas([first, second])[0].value == pytest.approx(0.6)


def test_offsets_between_scanners_do_not_matter():
    rows = list(cohorts(seed=5))
    sites = [site_areas(*r[:3]) for r in rows]
    level = [site_areas(r[0], r[1] - o, r[2] - o) for r, o in zip(rows, OFFSETS, strict=True)]
    assert stratified_difference(sites).p_value == pytest.approx(
        stratified_difference(level).p_value, abs=1e-10
    )
    pooled = auc_interval(*(np.concatenate([r[i] for r in rows]) for i in (0, 1))).value
    assert pooled < stratified_areas(sites)[0].value - 0.05


def test_order_of_sites_does_not_matter():
    sites = [site_areas(*r[:3]) for r in cohorts(seed=6)]
    assert stratified_difference(sites[::-1]).statistic == pytest.approx(
        stratified_difference(sites).statistic, abs=1e-12
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_positive": 0},
        {"area_a": 1.2},
        {"area_b": math.nan},
        {"variance_a": -0.01},
        {"covariance": 0.04},
        {"covariance": math.inf},
    ],
)
def test_numbers_that_cannot_be_are_refused(wrong):
    numbers = {
        "num_positive": 10,
        "num_negative": 12,
        "area_a": 0.8,
        "area_b": 0.7,
        "variance_a": 0.01,
        "variance_b": 0.02,
        "covariance": 0.005,
    }
    SiteAreas(**numbers)
    with pytest.raises(StatisticsError, match="seven numbers"):
        SiteAreas(**{**numbers, **wrong})


def test_no_site_is_no_answer():
    with pytest.raises(StatisticsError, match="no site sent areas"):
        stratified_difference([])
    with pytest.raises(StatisticsError, match="positive rows of 1"):
        site_areas([1, 0, 0, 0], [3, 1, 2, 4], [1, 2, 3, 4])
