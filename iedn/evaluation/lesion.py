"""Relative CBV of a lesion: its error in a synthetic map, as a radiologist reads it.

rCBV is the lesion's CBV over that of normal-appearing white matter on the other side, so that the
scale of a map cancels. Mean and 95th percentile: the latter is the "hottest" part without a single
voxel's noise.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from skimage.filters import threshold_multiotsu

from iedn.errors import StatisticsError

from .metrics import Mask, Volume

Reference = Literal["white-matter-mask", "t1-white-matter"]
Bools = NDArray[np.bool_]

HIGH_PERCENTILE = 95.0
FEWEST_VOXELS = 20


@dataclass(frozen=True)
class RelativeCbv:
    """A lesion's CBV / mean CBV of the reference region.

    Attributes:
        mean: over the lesion.
        p95: 95th percentile in the lesion.
    """

    mean: float
    p95: float


@dataclass(frozen=True)
class LesionError:
    """rCBV of one lesion in both maps, and how the region to compare with was found.

    Attributes:
        truth: in the measured map.
        prediction: in the synthetic map.
        reference: kind of reference region.
        num_lesion: voxels.
        num_reference: voxels.
    """

    truth: RelativeCbv
    prediction: RelativeCbv
    reference: Reference
    num_lesion: int
    num_reference: int

    @property
    def mean_error(self) -> float:
        """Synthetic - measured, of the mean."""
        return self.prediction.mean - self.truth.mean

    @property
    def p95_error(self) -> float:
        """Synthetic - measured, of the 95th percentile."""
        return self.prediction.p95 - self.truth.p95


def lesion_error(
    truth: Volume,
    prediction: Volume,
    lesion: Mask,
    contralateral: Mask,
    *,
    reference: Reference,
) -> LesionError:
    """Error of a lesion's rCBV against contralateral white matter.

    Args:
        truth: measured CBV, (D, H, W).
        prediction: synthetic CBV, (D, H, W).
        lesion: (D, H, W), lesion where > 0.
        contralateral: (D, H, W), of ``contralateral_white_matter``.
        reference: where the white matter came from; kept in the result.

    Raises:
        ValueError: shapes differ, or a map is not finite.
        StatisticsError: a region has fewer than 20 voxels, or no positive CBV to divide by.
    """
    inside, beside = _mask(lesion), _mask(contralateral)
    shapes = {np.shape(truth), np.shape(prediction), inside.shape, beside.shape}
    if len(shapes) != 1:
        raise ValueError(f"maps and regions of shapes {sorted(shapes)}; allowed is one (D, H, W)")
    for name, region in (("lesion", inside), ("contralateral white matter", beside)):
        if region.sum() < FEWEST_VOXELS:
            raise StatisticsError(
                f"{name}: {int(region.sum())} voxels; rCBV needs at least {FEWEST_VOXELS}"
            )
    return LesionError(
        truth=_relative(truth, inside, beside, "measured"),
        prediction=_relative(prediction, inside, beside, "synthetic"),
        reference=reference,
        num_lesion=int(inside.sum()),
        num_reference=int(beside.sum()),
    )


def contralateral_white_matter(lesion: Mask, brain_mask: Mask, white_matter: Mask) -> Bools:
    """White matter of the hemisphere in which the smaller part of the lesion lies, without lesion.

    Hemispheres are parted at the column of the brain mask's centroid, along the last axis; a head
    that is turned or a midline that is shifted makes that approximate. A margin of one voxel around
    the midline is left out.

    Args:
        lesion: (D, H, W), all lesions of the scan.
        brain_mask: (D, H, W).
        white_matter: (D, H, W), e.g. of ``white_matter_of_t1``.

    Raises:
        ValueError: shapes differ.
        StatisticsError: the lesion or the brain mask is empty.
    """
    sick, brain, white = _mask(lesion), _mask(brain_mask), _mask(white_matter)
    if not sick.shape == brain.shape == white.shape:
        raise ValueError(
            f"lesion {sick.shape}, brain {brain.shape}, white matter {white.shape}; "
            "allowed is one shape (D, H, W)"
        )
    if not sick.any() or not brain.any():
        raise StatisticsError("the lesion or the brain mask is empty; there is no other side to it")
    columns = np.arange(brain.shape[2])
    midline = float(np.average(columns, weights=brain.sum(axis=(0, 1))))
    of_column = sick.sum(axis=(0, 1))
    left = of_column[columns < midline].sum() > of_column[columns > midline].sum()
    other = columns > midline + 1 if left else columns < midline - 1
    return np.asarray(white & brain & ~sick & other[None, None, :])


def white_matter_of_t1(t1: Volume, brain_mask: Mask) -> Bools:
    """The brightest of three tissue classes of a T1-weighted image before contrast (multi-Otsu).

    A stopgap where no segmentation is at hand: uneven coil sensitivity and lesions mislead it, and
    voxels shared with cortex stay in, so that rCBV comes out low, in both maps alike.

    Raises:
        ValueError: shapes differ, or the image is not finite.
        StatisticsError: there are no three intensities inside the brain.
    """
    brain, values = _mask(brain_mask), np.asarray(t1, np.float64)
    if brain.shape != values.shape or not np.isfinite(values).all():
        raise ValueError(
            f"T1 {values.shape} and brain mask {brain.shape}; allowed is one shape, finite values"
        )
    if np.unique(values[brain]).size < 3:
        raise StatisticsError("the T1 has fewer than three intensities in the brain: no tissues")
    thresholds = threshold_multiotsu(values[brain], classes=3)  # type: ignore[no-untyped-call]
    return np.asarray(brain & (values > thresholds[-1]))


def _mask(region: Mask) -> Bools:
    return np.asarray(np.asarray(region, np.float64) > 0)


def _relative(cbv: Volume, lesion: Bools, beside: Bools, name: str) -> RelativeCbv:
    values = np.asarray(cbv, np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"the {name} map holds values that are not finite")
    normal = float(values[beside].mean())
    if not normal > 0:
        raise StatisticsError(
            f"the {name} map's mean in the contralateral white matter is {normal:g}; "
            "rCBV needs a positive one"
        )
    return RelativeCbv(
        mean=float(values[lesion].mean()) / normal,
        p95=float(np.percentile(values[lesion], HIGH_PERCENTILE)) / normal,
    )
