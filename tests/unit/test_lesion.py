"""A lesion's rCBV error in both maps, on a head of 6 x 8 x 12 voxels."""

import numpy as np
import pytest

from iedn.errors import StatisticsError
from iedn.evaluation.lesion import contralateral_white_matter, lesion_error, white_matter_of_t1

SHAPE = (6, 8, 12)


@pytest.fixture
def head():
    """Brain in columns 1 to 10 (midline 5.5), white matter in rows 2 to 5, lesion on the left."""
    brain = np.zeros(SHAPE)
    brain[:, 1:7, 1:11] = 1
    white = np.zeros(SHAPE)
    white[:, 2:6, 2:10] = 1
    lesion = np.zeros(SHAPE)
    lesion[1:3, 2:6, 2:5] = 1
    return brain, white, lesion


def test_the_other_side(head):
    brain, white, lesion = head
    beside = contralateral_white_matter(lesion, brain, white)
    expected = np.zeros(SHAPE, bool)
    expected[:, 2:6, 7:10] = True  # columns above 6.5
    np.testing.assert_array_equal(beside, expected)
    flipped = contralateral_white_matter(lesion[:, :, ::-1], brain, white)
    np.testing.assert_array_equal(flipped, expected[:, :, ::-1])


def test_a_lesion_on_both_sides_is_left_out(head):
    brain, white, lesion = head
    lesion[5, 2, 8] = 1
    beside = contralateral_white_matter(lesion, brain, white)
    assert not beside[5, 2, 8]
    assert beside.sum() == 6 * 4 * 3 - 1


def test_error_of_mean_and_p95_by_hand(head):
    brain, white, lesion = head
    beside = contralateral_white_matter(lesion, brain, white)
    truth, prediction = np.full(SHAPE, 0.2), np.full(SHAPE, 0.1)
    inside = lesion > 0
    truth[inside] = np.linspace(0.4, 0.8, 24)
    prediction[inside] = 0.35
    result = lesion_error(truth, prediction, lesion, beside, reference="white-matter-mask")
    assert result.truth.mean == pytest.approx(3.0)
    # 95th percentile of 24 equal steps from 2 to 4
    assert result.truth.p95 == pytest.approx(2 + 0.95 * 2)
    assert (result.prediction.mean, result.prediction.p95) == (
        pytest.approx(3.5),
        pytest.approx(3.5),
    )
    assert result.mean_error == pytest.approx(0.5)
    assert result.p95_error == pytest.approx(-0.4)
    assert (result.num_lesion, result.num_reference) == (24, 72)
    assert result.reference == "white-matter-mask"


def test_the_scale_of_a_map_cancels(head):
    brain, white, lesion = head
    beside = contralateral_white_matter(lesion, brain, white)
    truth = np.random.default_rng(0).random(SHAPE) + 0.1
    once = lesion_error(truth, truth, lesion, beside, reference="white-matter-mask")
    scaled = lesion_error(truth, 7 * truth, lesion, beside, reference="white-matter-mask")
    assert scaled.mean_error == pytest.approx(0.0, abs=1e-12)
    assert scaled.p95_error == pytest.approx(once.p95_error, abs=1e-12)


def test_white_matter_is_the_brightest_of_a_t1(head):
    brain, white, _ = head
    rng = np.random.default_rng(1)
    t1 = 300 * brain + 200 * white + rng.normal(0, 10, SHAPE) + 5000 * (1 - brain)
    t1[:, 1, :] -= 200 * brain[:, 1, :]
    found = white_matter_of_t1(t1, brain)
    assert (found != (white > 0)).mean() < 0.01
    assert not found[brain == 0].any()


def test_regions_without_an_answer(head):
    brain, white, lesion = head
    beside = contralateral_white_matter(lesion, brain, white)
    truth = np.full(SHAPE, 0.2)

    def error(prediction=truth, lesion=lesion, beside=beside):
        return lesion_error(truth, prediction, lesion, beside, reference="t1-white-matter")

    few = lesion * 0
    few[0, 0, :5] = 1
    with pytest.raises(StatisticsError, match="lesion: 5 voxels; rCBV needs at least 20"):
        error(lesion=few)
    with pytest.raises(StatisticsError, match="contralateral white matter: 0 voxels"):
        error(beside=beside & False)
    with pytest.raises(StatisticsError, match=r"synthetic map's mean .* is 0"):
        error(prediction=0 * truth)
    with pytest.raises(ValueError, match="synthetic map holds values that are not finite"):
        error(prediction=np.nan * truth)
    with pytest.raises(ValueError, match="allowed is one"):
        error(prediction=truth[1:])
    with pytest.raises(StatisticsError, match="no other side"):
        contralateral_white_matter(lesion * 0, brain, white)
    with pytest.raises(ValueError, match="allowed is one shape"):
        contralateral_white_matter(lesion, brain, white[1:])
    with pytest.raises(StatisticsError, match="three intensities"):
        white_matter_of_t1(brain, brain)
    with pytest.raises(ValueError, match="finite values"):
        white_matter_of_t1(brain * np.nan, brain)
