"""Image metrics between a measured and a synthetic map.

Numbers depend more on the convention than on the model, so it is fixed here and recorded with every
result. Default: inside the bounding box of the ground-truth brain mask, data range 1.0 (intensities
are scaled so that the brain mean is 0.25), no rescaling of the prediction. SSIM is scikit-image's
with a uniform 3D window and population covariance. ``region="volume"`` is the whole array with both
maps set to 0 outside the brain, as in the code published with the paper; it flatters.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

Region = Literal["box", "volume", "mask"]
Volume = NDArray[np.floating]
Mask = NDArray[np.number] | NDArray[np.bool_]

DATA_RANGE = 1.0
LARGEST_WINDOW = 7
SMALLEST_WINDOW = 3


@dataclass(frozen=True)
class ScanMetrics:
    """Metrics of one scan, in the box around the brain.

    Attributes:
        ssim_percent: 100 is identical.
        psnr_db: infinite for identical maps.
        mae: mean absolute error inside the brain mask, brain mean 0.25.
        window: side of the SSIM window in voxels.
    """

    ssim_percent: float
    psnr_db: float
    mae: float
    window: int


def evaluate_scan(truth: Volume, prediction: Volume, brain_mask: Mask) -> ScanMetrics:
    """The metrics of the paper's Table 2 for one scan.

    Args:
        truth: measured CBV, (D, H, W).
        prediction: synthetic CBV, (D, H, W).
        brain_mask: ground truth, (D, H, W), brain where > 0.

    Raises:
        ValueError: shapes differ, values are not finite, the mask is empty, or the brain is
            thinner than three voxels.
    """
    box = bounding_box(brain_mask)
    window = window_for(np.shape(brain_mask[box]))
    similarity = ssim(truth, prediction, brain_mask, window=window)
    return ScanMetrics(
        ssim_percent=100.0 * similarity,
        psnr_db=psnr(truth, prediction, brain_mask),
        mae=mae(truth, prediction, brain_mask),
        window=window,
    )


def ssim(
    truth: Volume,
    prediction: Volume,
    brain_mask: Mask,
    *,
    region: Region = "box",
    data_range: float = DATA_RANGE,
    window: int = LARGEST_WINDOW,
) -> float:
    """Mean structural similarity in [-1, 1]; 1 is identical.

    Args:
        truth: (D, H, W).
        prediction: (D, H, W).
        brain_mask: ground truth, (D, H, W).
        region: where to average; ``mask`` averages the map over brain voxels.
        data_range: of the intensities, for the stabilising constants.
        window: odd side of the uniform window, at most the smallest side of the region's box.

    Raises:
        ValueError: as of ``evaluate_scan``, or the window does not fit.
    """
    wanted, found, inside = _in_region(truth, prediction, brain_mask, region)
    if window % 2 == 0 or window < SMALLEST_WINDOW or window > min(wanted.shape):
        raise ValueError(
            f"SSIM window {window} for a region of shape {wanted.shape}; allowed is an odd "
            f"number from {SMALLEST_WINDOW} to {min(wanted.shape)} (see window_for)"
        )
    mean, local = structural_similarity(  # type: ignore[no-untyped-call]  # scikit-image has none
        wanted,
        found,
        win_size=window,
        data_range=data_range,
        use_sample_covariance=False,
        full=True,
    )
    return float(local[inside].mean() if region == "mask" else mean)


def psnr(
    truth: Volume,
    prediction: Volume,
    brain_mask: Mask,
    *,
    region: Region = "box",
    data_range: float = DATA_RANGE,
) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(range^2 / MSE); infinite for identical maps."""
    error = _mean_square(truth, prediction, brain_mask, region)
    return float("inf") if error == 0 else float(10 * np.log10(data_range**2 / error))


def mae(truth: Volume, prediction: Volume, brain_mask: Mask, *, region: Region = "mask") -> float:
    """Mean absolute error, inside the brain mask unless told otherwise."""
    wanted, found, inside = _in_region(truth, prediction, brain_mask, region)
    return float(np.abs(wanted - found)[inside].mean())


def nrmse(
    truth: Volume,
    prediction: Volume,
    brain_mask: Mask,
    *,
    region: Region = "box",
    data_range: float = DATA_RANGE,
) -> float:
    """Root mean square error divided by the fixed ``data_range``."""
    return float(np.sqrt(_mean_square(truth, prediction, brain_mask, region))) / data_range


def window_for(box_shape: tuple[int, ...]) -> int:
    """Largest odd SSIM window that fits, at most 7; to be recorded with the result.

    Raises:
        ValueError: a side is below 3 voxels.
    """
    smallest = min(box_shape)
    if smallest < SMALLEST_WINDOW:
        raise ValueError(
            f"the brain's box {box_shape} is thinner than {SMALLEST_WINDOW} voxels; "
            "SSIM is not defined there"
        )
    return min(LARGEST_WINDOW, smallest - 1 + smallest % 2)


def bounding_box(brain_mask: Mask) -> tuple[slice, ...]:
    """Smallest box around all voxels > 0.

    Raises:
        ValueError: there is none.
    """
    where = np.argwhere(np.asarray(brain_mask, np.float64) > 0)
    if where.size == 0:
        raise ValueError("the brain mask is empty")
    ends = zip(where.min(axis=0), where.max(axis=0), strict=True)
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)


def _mean_square(truth: Volume, prediction: Volume, brain_mask: Mask, region: Region) -> float:
    wanted, found, inside = _in_region(truth, prediction, brain_mask, region)
    return float(((wanted - found)[inside] ** 2).mean())


def _in_region(
    truth: Volume, prediction: Volume, brain_mask: Mask, region: Region
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Both maps cropped to the region, and which of their voxels count."""
    wanted, found = np.asarray(truth, np.float64), np.asarray(prediction, np.float64)
    brain: NDArray[np.bool_] = np.asarray(brain_mask, np.float64) > 0
    if not wanted.shape == found.shape == brain.shape or wanted.ndim != 3:
        raise ValueError(
            f"truth {wanted.shape}, prediction {found.shape} and mask {brain.shape}; "
            "allowed is one shape (D, H, W)"
        )
    box = bounding_box(brain)
    if not (np.isfinite(wanted).all() and np.isfinite(found).all()):
        raise ValueError("a map holds values that are not finite")
    if region == "volume":
        return wanted * brain, found * brain, np.ones_like(brain)
    counted = brain[box] if region == "mask" else np.ones_like(brain[box])
    return wanted[box], found[box], counted
