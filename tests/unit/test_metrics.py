"""Image metrics against their formulas, in the regions they are defined on."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import skimage
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from iedn.evaluation.metrics import (
    bias,
    bounding_box,
    evaluate_scan,
    mae,
    nrmse,
    psnr,
    psnr_band,
    ssim,
    window_for,
)


@pytest.fixture
def scan():
    rng = np.random.default_rng(0)
    mask = np.zeros((10, 14, 12), np.float32)
    mask[1:9, 2:11, 3:12] = 1
    mask[1, 2, 3] = 0
    truth = rng.random(mask.shape) * 0.5
    prediction = truth + rng.normal(0, 0.05, mask.shape)
    return truth, prediction, mask


def uniform_ssim(a, b, window, data_range=1.0):
    """Wang et al. 2004 with a uniform window, voxel by voxel, where the window fits."""
    views = [np.lib.stride_tricks.sliding_window_view(x, (window,) * 3) for x in (a, b)]
    x, y = (v.reshape(*v.shape[:3], -1) for v in views)
    mx, my = x.mean(-1), y.mean(-1)
    cov = (x * y).mean(-1) - mx * my
    vx, vy = (x * x).mean(-1) - mx**2, (y * y).mean(-1) - my**2
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return ((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean()


def test_ssim_is_the_formula_in_the_box_of_the_mask(scan):
    truth, prediction, mask = scan
    box = (slice(1, 9), slice(2, 11), slice(3, 12))
    assert bounding_box(mask) == box
    expected = uniform_ssim(truth[box], prediction[box], 7)
    assert ssim(truth, prediction, mask) == pytest.approx(expected, abs=1e-9)
    half = ssim(truth, prediction, mask, data_range=0.5, window=5)
    assert half == pytest.approx(uniform_ssim(truth[box], prediction[box], 5, 0.5), abs=1e-9)


def test_ssim_regions(scan):
    truth, prediction, mask = scan
    masked = [x * mask for x in (truth, prediction)]
    whole = structural_similarity(*masked, win_size=7, data_range=1.0, use_sample_covariance=False)
    assert ssim(truth, prediction, mask, region="volume") == pytest.approx(whole, abs=1e-12)
    box = bounding_box(mask)
    _, local = structural_similarity(
        truth[box],
        prediction[box],
        win_size=7,
        data_range=1.0,
        use_sample_covariance=False,
        full=True,
    )
    inside = local[mask[box] > 0].mean()
    assert ssim(truth, prediction, mask, region="mask") == pytest.approx(inside, abs=1e-12)
    assert ssim(truth, prediction, mask, region="volume") > ssim(truth, prediction, mask)


def test_errors_by_hand():
    mask = np.zeros((3, 3, 4))
    mask[0, 0, 0] = mask[2, 2, 2] = 1  # box 3 x 3 x 3
    truth = np.zeros((3, 3, 4))
    prediction = truth.copy()
    prediction[0, 0, 0] = 0.3
    prediction[1, 1, 1] = 0.6
    prediction[:, :, 3] = 9.0  # outside the box
    square = (0.09 + 0.36) / 27
    assert psnr(truth, prediction, mask) == pytest.approx(10 * math.log10(1 / square))
    assert psnr(truth, prediction, mask, data_range=2) == pytest.approx(10 * math.log10(4 / square))
    assert psnr(truth, prediction, mask, region="mask") == pytest.approx(10 * math.log10(2 / 0.09))
    assert psnr(truth, prediction, mask, region="volume") == pytest.approx(
        10 * math.log10(36 / 0.09)
    )
    assert mae(truth, prediction, mask) == pytest.approx(0.15)
    assert mae(truth, prediction, mask, region="box") == pytest.approx(0.9 / 27)
    assert nrmse(truth, prediction, mask) == pytest.approx(math.sqrt(square))


def test_identical_maps(scan):
    truth, _, mask = scan
    result = evaluate_scan(truth, truth, mask)
    assert (result.ssim_percent, result.psnr_db, result.mae) == (pytest.approx(100), math.inf, 0.0)
    assert result.window == 7


def test_a_scan_is_evaluated_with_the_window_that_fits(scan):
    truth, prediction, mask = scan
    thin = evaluate_scan(truth[1:6], prediction[1:6], mask[1:6])
    assert thin.window == 5
    assert thin.ssim_percent == pytest.approx(
        100 * ssim(truth[1:6], prediction[1:6], mask[1:6], window=5)
    )
    assert thin.psnr_db == pytest.approx(psnr(truth[1:6], prediction[1:6], mask[1:6]))
    assert thin.mae == pytest.approx(np.abs(truth - prediction)[1:6][mask[1:6] > 0].mean())


def test_float32_and_boolean_masks_are_taken(scan):
    truth, prediction, mask = scan
    single = evaluate_scan(truth.astype(np.float32), prediction.astype(np.float32), mask > 0)
    assert single.psnr_db == pytest.approx(evaluate_scan(truth, prediction, mask).psnr_db, abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "window"),
    [((19, 90, 80), 7), ((7, 8, 9), 7), ((6, 8, 9), 5), ((5, 9, 9), 5), ((3, 9, 9), 3)],
)
def test_window_for(shape, window):
    assert window_for(shape) == window


def test_wrong_input_is_refused(scan):
    truth, prediction, mask = scan
    with pytest.raises(ValueError, match=r"window 7 .* to 5"):
        ssim(truth[:6], prediction[:6], mask[:6])
    with pytest.raises(ValueError, match="odd"):
        ssim(truth, prediction, mask, window=4)
    with pytest.raises(ValueError, match="thinner than 3"):
        evaluate_scan(truth[:3], prediction[:3], mask[:3])
    with pytest.raises(ValueError, match="mask is empty"):
        psnr(truth, prediction, mask * 0)
    with pytest.raises(ValueError, match=r"one shape \(D, H, W\)"):
        mae(truth[None], prediction[None], mask[None])
    with pytest.raises(ValueError, match="not finite"):
        nrmse(truth, prediction * np.nan, mask)


def test_the_convention_stands_beside_the_numbers(scan):
    result = evaluate_scan(*scan)
    assert asdict(result.convention) == {
        "name": "paper",
        "region": "box",
        "error_region": "mask",
        "data_range": 1.0,
        "ssim_window": 7,
        "ssim_covariance": "population",
        "rescaled_to": None,
        "ssim_kernel": "uniform 3D",
        "software": f"scikit-image {skimage.__version__}",
    }
    reference = evaluate_scan(*scan, compat="reference-code").convention
    assert (reference.name, reference.region, reference.rescaled_to, reference.ssim_covariance) == (
        "reference-code",
        "volume",
        0.25,
        "sample",
    )


def test_reference_code_is_the_whole_array_after_rescaling(scan):
    truth, prediction, mask = scan
    found = prediction * mask
    found = found * (0.25 * mask.sum() / found.sum())
    wanted = truth * mask
    result = evaluate_scan(truth, prediction, mask, compat="reference-code")
    similarity = structural_similarity(wanted, found, data_range=1.0)  # scikit-image's own defaults
    assert result.ssim_percent == pytest.approx(100 * similarity, abs=1e-6)
    noise = peak_signal_noise_ratio(wanted, found, data_range=1.0)
    assert result.psnr_db == pytest.approx(noise, abs=1e-6)
    assert result.mae == pytest.approx(np.abs(wanted - found)[mask > 0].mean(), abs=1e-6)
    assert result.ssim_percent > evaluate_scan(truth, prediction, mask).ssim_percent


def test_rescaling_hides_an_error_of_scale(scan):
    truth, prediction, mask = scan
    honest = [evaluate_scan(truth, k * prediction, mask) for k in (1.0, 1.5)]
    blind = [
        evaluate_scan(truth, k * prediction, mask, compat="reference-code") for k in (1.0, 1.5)
    ]
    assert honest[1].psnr_db < honest[0].psnr_db - 3
    assert blind[1].psnr_db == pytest.approx(blind[0].psnr_db)
    assert blind[1].bias == pytest.approx(blind[0].bias)


def test_bias_by_hand():
    mask = np.zeros((3, 3, 4))
    mask[:, :, :2] = 1
    truth = np.ones_like(mask)
    prediction = truth.copy()
    prediction[:, :, 0] = 1.4
    prediction[:, :, 3] = 9.0  # outside the mask
    assert bias(truth, prediction, mask) == pytest.approx(0.2)
    assert bias(prediction, truth, mask) == pytest.approx(-0.2)
    result = evaluate_scan(truth, prediction, np.ones_like(mask))
    assert result.bias == pytest.approx((0.4 * 9 + 8.0 * 9) / 36)
    assert result.nrmse == pytest.approx(math.sqrt((0.16 * 9 + 64.0 * 9) / 36))


@pytest.mark.parametrize(
    ("value", "band"),
    [
        (math.inf, "very good"),
        (40.0, "very good"),
        (39.99, "good"),
        (30.0, "good"),
        (29.99, "bad"),
        (20.0, "bad"),
        (19.99, "very bad"),
        (-3.0, "very bad"),
    ],
)
def test_bands_of_the_paper(value, band):
    assert psnr_band(value) == band


def test_the_band_of_a_scan_is_that_of_its_psnr(scan):
    result = evaluate_scan(*scan)
    assert 20 < result.psnr_db < 30
    assert result.psnr_band == "bad"
    # the same map in a padded array: zeros that agree lift it
    padded = [np.pad(x, ((0, 0), (60, 60), (60, 60))) for x in scan]
    assert evaluate_scan(*padded, compat="reference-code").psnr_band == "very good"
    assert evaluate_scan(*padded).psnr_db == pytest.approx(result.psnr_db)


def test_what_the_reference_code_could_not_compute(scan):
    truth, prediction, mask = scan
    with pytest.raises(ValueError, match="window 7"):
        evaluate_scan(truth[:6], prediction[:6], mask[:6], compat="reference-code")
    with pytest.raises(ValueError, match="only a positive one is rescaled"):
        evaluate_scan(truth, -prediction, mask, compat="reference-code")
    with pytest.raises(ValueError, match="mask is empty"):
        evaluate_scan(truth, prediction, mask * 0, compat="reference-code")
    with pytest.raises(ValueError, match="allowed are paper, reference-code"):
        evaluate_scan(truth, prediction, mask, compat="torchmetrics")
