"""Image metrics between a measured and a synthetic map.

Numbers depend more on the convention than on the model, so it is fixed here and recorded with every
result (``Convention``). Default: inside the bounding box of the ground-truth brain mask, data range
1.0 (intensities are scaled so that the brain mean is 0.25), no rescaling of the prediction. SSIM is
scikit-image's with a uniform 3D window and population covariance. ``region="volume"`` is the whole
array with both maps set to 0 outside the brain, as in the paper's published code; it flatters.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

Region = Literal["box", "volume", "mask"]
Compat = Literal["paper", "reference-code"]
Band = Literal["very good", "good", "bad", "very bad"]
Volume = NDArray[np.floating]
Mask = NDArray[np.number] | NDArray[np.bool_]

DATA_RANGE = 1.0
BRAIN_MEAN = 0.25
LARGEST_WINDOW = 7
SMALLEST_WINDOW = 3


@dataclass(frozen=True)
class Convention:
    """How metrics were computed; to be kept beside the numbers.

    Attributes:
        name: ``paper`` or ``reference-code``; only numbers of one convention are comparable.
        region: of SSIM, PSNR and nRMSE.
        error_region: of mean absolute error and bias.
        data_range: of the intensities; fixed, never taken from an image.
        ssim_window: side of the window in voxels.
        ssim_kernel: its weights.
        ssim_covariance: divisor n (population) or n - 1 (sample).
        rescaled_to: brain mean that the prediction was scaled to, which hides an error of scale;
            None for not rescaled.
        software: that computed SSIM.
    """

    name: Compat
    region: Region
    error_region: Region
    data_range: float
    ssim_window: int
    ssim_covariance: Literal["population", "sample"]
    rescaled_to: float | None
    ssim_kernel: str = "uniform 3D"
    software: str = f"scikit-image {version('scikit-image')}"


@dataclass(frozen=True)
class ScanMetrics:
    """Metrics of one scan.

    Attributes:
        ssim_percent: 100 is identical.
        psnr_db: infinite for identical maps.
        mae: mean absolute error inside the brain mask, brain mean 0.25.
        bias: mean of prediction - truth inside the brain mask.
        nrmse: root mean square error / data range.
        convention: how they were computed.
    """

    ssim_percent: float
    psnr_db: float
    mae: float
    bias: float
    nrmse: float
    convention: Convention

    @property
    def window(self) -> int:
        """Side of the SSIM window in voxels."""
        return self.convention.ssim_window

    @property
    def psnr_band(self) -> Band:
        """The paper's word for the PSNR."""
        return psnr_band(self.psnr_db)


def evaluate_scan(
    truth: Volume, prediction: Volume, brain_mask: Mask, *, compat: Compat = "paper"
) -> ScanMetrics:
    """The metrics of the paper's Table 2 for one scan.

    ``compat="reference-code"`` follows the code published with the paper instead of its text: the
    whole array, sample covariance, a window of 7, and the prediction scaled to a brain mean of 0.25
    first, so that a wrong scale costs nothing. For comparison with numbers of that code only.

    Args:
        truth: measured CBV, (D, H, W).
        prediction: synthetic CBV, (D, H, W).
        brain_mask: ground truth, (D, H, W), brain where > 0.
        compat: the convention.

    Raises:
        ValueError: shapes differ, values are not finite, the mask is empty, the brain is thinner
            than three voxels (reference code: the array thinner than seven), or the prediction
            cannot be rescaled since its brain mean is not positive.
    """
    if compat == "paper":
        window = window_for(np.shape(brain_mask[bounding_box(brain_mask)]))
        convention = Convention("paper", "box", "mask", DATA_RANGE, window, "population", None)
    elif compat == "reference-code":
        prediction = _rescaled(prediction, brain_mask)
        convention = Convention(
            compat, "volume", "mask", DATA_RANGE, LARGEST_WINDOW, "sample", BRAIN_MEAN
        )
    else:
        raise ValueError(f"compat {compat!r}; allowed are paper, reference-code")
    maps = (truth, prediction, brain_mask)
    return ScanMetrics(
        ssim_percent=100.0 * _similarity(maps, convention),
        psnr_db=psnr(*maps, region=convention.region),
        mae=mae(*maps),
        bias=bias(*maps),
        nrmse=nrmse(*maps, region=convention.region),
        convention=convention,
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
    convention = Convention("paper", region, "mask", data_range, window, "population", None)
    return _similarity((truth, prediction, brain_mask), convention)


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


def psnr_band(psnr_db: float) -> Band:
    """The paper's quality bands: from 40 dB very good, 30 good, 20 bad, below very bad.

    The paper leaves out 40 dB itself; here it is very good. Only for the paper's region: a padded
    volume lifts the same map by a band or two.
    """
    if psnr_db >= 40:
        return "very good"
    if psnr_db >= 30:
        return "good"
    return "bad" if psnr_db >= 20 else "very bad"


def mae(truth: Volume, prediction: Volume, brain_mask: Mask, *, region: Region = "mask") -> float:
    """Mean absolute error, inside the brain mask unless told otherwise."""
    wanted, found, inside = _in_region(truth, prediction, brain_mask, region)
    return float(np.abs(wanted - found)[inside].mean())


def bias(truth: Volume, prediction: Volume, brain_mask: Mask, *, region: Region = "mask") -> float:
    """Mean of prediction - truth, inside the brain mask unless told otherwise."""
    wanted, found, inside = _in_region(truth, prediction, brain_mask, region)
    return float((found - wanted)[inside].mean())


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


def _similarity(maps: tuple[Volume, Volume, Mask], convention: Convention) -> float:
    wanted, found, inside = _in_region(*maps, convention.region)
    window = convention.ssim_window
    if window % 2 == 0 or window < SMALLEST_WINDOW or window > min(wanted.shape):
        raise ValueError(
            f"SSIM window {window} for a region of shape {wanted.shape}; allowed is an odd "
            f"number from {SMALLEST_WINDOW} to {min(wanted.shape)} (see window_for)"
        )
    mean, local = structural_similarity(  # type: ignore[no-untyped-call]  # scikit-image has none
        wanted,
        found,
        win_size=window,
        data_range=convention.data_range,
        use_sample_covariance=convention.ssim_covariance == "sample",
        full=True,
    )
    return float(local[inside].mean() if convention.region == "mask" else mean)


def _rescaled(prediction: Volume, brain_mask: Mask) -> Volume:
    """Scaled so that the mean inside the brain is 0.25."""
    brain = np.asarray(brain_mask, np.float64) > 0
    values = np.asarray(prediction, np.float64)
    if values.shape != brain.shape or not brain.any():
        return values  # refused where the metrics are computed
    mean = float(values[brain].mean())
    if not mean > 0:
        raise ValueError(
            f"the prediction's brain mean is {mean:g}; only a positive one is rescaled"
        )
    return values * (BRAIN_MEAN / mean)


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
