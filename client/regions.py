"""Where a scan is measured: the lesion's region and its mirror image in the other hemisphere.

The mirror plane is the column of the brain mask's centroid, so that a ratio is approximate: a
tilted or asymmetric head is not corrected. Every value says so in its flags.
"""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

from iedn.errors import StatisticsError
from iedn.evaluation.lesion import (
    LesionError,
    contralateral_white_matter,
    lesion_error,
    white_matter_of_t1,
)
from iedn.modalities import Modality
from sites.preprocessing import Frame, PreparedScan
from sites.reading import BoolArray, FloatArray

_log = logging.getLogger(__name__)

RoiSource = Literal["lesion_mask", "reader_roi", "automatic"]

HOT_SPOT_RADIUS_MM = 5.0
HOT_SPOT_SMOOTHING_MM = 4.0
HOT_SPOT_DEPTH_MM = 10.0

AUTOMATIC = "automatic-roi"
APPROXIMATE_MIRROR = "approximate-mirror"
SMALL_MIRROR = "small-contralateral"
EMPTY_MIRROR = "empty-contralateral"


@dataclass(frozen=True)
class Region:
    """A region of interest and its reference.

    Attributes:
        source: who drew it; ``automatic`` is nobody.
        inside: (D, H, W), inside the brain.
        other: (D, H, W), its mirror image without lesion; may be empty.
    """

    source: RoiSource
    inside: BoolArray
    other: BoolArray

    @property
    def flags(self) -> tuple[str, ...]:
        """What to know about values of this region."""
        automatic = (AUTOMATIC,) if self.source == "automatic" else ()
        if not self.other.any():
            return (*automatic, EMPTY_MIRROR)
        is_small = 2 * int(self.other.sum()) < int(self.inside.sum())
        return (*automatic, APPROXIMATE_MIRROR, *((SMALL_MIRROR,) if is_small else ()))

    def ratio(self, array: FloatArray) -> float | None:
        """Mean inside / mean in the reference; None without a positive denominator."""
        if not self.other.any():
            return None
        reference = float(array[self.other].mean(dtype=np.float64))
        return (
            float(array[self.inside].mean(dtype=np.float64)) / reference if reference > 0 else None
        )


def find_region(scan: PreparedScan, cbv: FloatArray | None = None) -> Region | None:
    """The best region there is: the lesion mask, else the reader's ROI, else a hot spot.

    Args:
        scan: its arrays.
        cbv: map (D, H, W) to look for a hot spot in; None looks for none.
    """
    brain: BoolArray = scan.brain_mask > 0.5
    drawn = _drawn(scan, brain)
    if drawn is None and cbv is not None:
        spot = hot_spot(cbv, brain, scan.geometry.grid)
        drawn = None if spot is None else ("automatic", spot)
    if drawn is None:
        return None
    source, inside = drawn
    lesion = inside | (scan.regions.get("lesion_mask", np.zeros_like(scan.brain_mask)) > 0.5)
    other = (mirrored(inside.astype(np.float32), brain) > 0.5) & brain & ~lesion
    return Region(source, inside, other)


def _drawn(scan: PreparedScan, brain: BoolArray) -> tuple[RoiSource, BoolArray] | None:
    given: tuple[RoiSource, ...] = ("lesion_mask", "reader_roi")
    for source in given:
        if source in scan.regions:
            inside: BoolArray = (scan.regions[source] > 0.5) & brain
            if inside.any():
                return source, inside
    return None


def mirrored(array: FloatArray, brain: BoolArray) -> FloatArray:
    """The array (D, H, W) reflected along W about the brain mask's centroid; 0 from outside."""
    columns = np.arange(brain.shape[2])
    twice_centre = round(2 * float(np.average(columns, weights=brain.sum(axis=(0, 1)))))
    origin = twice_centre - columns
    known = (origin >= 0) & (origin < columns.size)
    result = np.zeros_like(array)
    result[..., known] = array[..., origin[known]]
    return result


def hot_spot(cbv: FloatArray, brain: BoolArray, grid: Frame) -> BoolArray | None:
    """A disc in one slice where the smoothed map exceeds its mirror image most.

    The difference to the other side leaves out what is bright on both, such as the sagittal
    sinus; 10 mm from the brain's edge leave out the veins on its surface. None if the map is
    nowhere brighter than its mirror image.
    """
    sigma = [0.0, *(HOT_SPOT_SMOOTHING_MM / spacing for spacing in grid.spacing[1:])]
    smooth = np.asarray(gaussian_filter(np.where(brain, cbv, 0.0), sigma), dtype=np.float32)
    deep = np.stack([distance_transform_edt(b, sampling=grid.spacing[1:]) for b in brain])
    paired = (deep >= HOT_SPOT_DEPTH_MM) & (mirrored(brain.astype(np.float32), brain) > 0.5)
    excess = np.where(paired, smooth - mirrored(smooth, brain), -np.inf)
    if not excess.max() > 0.0:
        return None
    slice_, row, column = np.unravel_index(int(np.argmax(excess)), excess.shape)
    rows, columns = np.ogrid[: brain.shape[1], : brain.shape[2]]
    squared_mm2 = ((rows - row) * grid.spacing[1]) ** 2 + (
        (columns - column) * grid.spacing[2]
    ) ** 2
    spot = np.zeros_like(brain)
    spot[slice_] = squared_mm2 <= HOT_SPOT_RADIUS_MM**2
    return spot & brain


def lesion_rcbv(scan: PreparedScan, cbv: FloatArray, synthetic: FloatArray) -> LesionError | None:
    """The drawn lesion's rCBV in both maps; None without a drawn lesion or a reference.

    Args:
        scan: its regions and T1WI.
        cbv: measured, (D, H, W).
        synthetic: (D, H, W).
    """
    region, t1 = find_region(scan), scan.images.get(Modality.T1WI)
    if region is None or t1 is None:
        return None
    try:
        white = white_matter_of_t1(t1, scan.brain_mask)
        beside = contralateral_white_matter(region.inside, scan.brain_mask, white)
        return lesion_error(cbv, synthetic, region.inside, beside, reference="t1-white-matter")
    except StatisticsError as error:
        _log.debug("no lesion rCBV of a scan: %s", error)
        return None


def lesion_rcbv_error(scan: PreparedScan, cbv: FloatArray, synthetic: FloatArray) -> float | None:
    """Absolute error of the lesion's mean rCBV; None as of ``lesion_rcbv``."""
    found = lesion_rcbv(scan, cbv, synthetic)
    return None if found is None else abs(found.mean_error)
