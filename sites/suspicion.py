"""Which scans somebody should look at first: the mask's volume and how each image lies on the T1.

The numbers are those that the check and the registration use, taken from what is used for
training: after any correction, on the preset's grid. They order scans and decide nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from iedn.modalities import Modality

from .checks import BRAIN_ML, mask_volume_ml
from .matching import Pair
from .preprocessing import PreparedScan
from .reading import Finding, FloatArray, Volume
from .registration import FIRST_LOOK_MM, LEAST_MOTION_MM, register

LOOK_AT = frozenset({"W106", "W206", "W208", "W212", "W220", "W221"})
"""Findings about a mask or a position: pictures tell whether they matter."""

_TYPICAL_ML = math.sqrt(BRAIN_ML[0] * BRAIN_ML[1])


@dataclass(frozen=True)
class Fit:
    """How an image lies on the T1.

    Attributes:
        step_mm: mean distance by which one step towards a better match moves the brain; None
            where too little is seen in common to say. It tells that something is off, not by how
            much.
        off_mm: that distance for the best match, searched for only where the step is not small;
            None where it was not, or not found.
        match: correlation ratio (0 to 1) as the images lie.
    """

    step_mm: float | None
    off_mm: float | None
    match: float

    def text(self) -> str:
        """In words."""
        if self.step_mm is None:
            return "cannot be judged"
        if self.step_mm < FIRST_LOOK_MM:
            return f"lies well, match {self.match:.2f}"
        off = "position not found" if self.off_mm is None else f"seems off by {self.off_mm:.1f} mm"
        return f"{off}, match {self.match:.2f}"


@dataclass(frozen=True)
class ScanNumbers:
    """What a scan is judged by.

    Attributes:
        mask_ml: volume of the brain mask on the grid.
        fits: of every image but the T1, by manifest column.
        findings: of the check, those in ``LOOK_AT``.
    """

    mask_ml: float
    fits: dict[str, Fit]
    findings: tuple[Finding, ...] = ()

    @property
    def suspicion(self) -> float:
        """The largest of all measures, each 1.0 at its limit, plus 1 for every finding.

        The mask's measure is |log(volume / 1327 ml)|, 1.0 at 800 and at 2200 ml alike; an image's
        is its step over the 0.5 mm from which registration looks closer, or its distance over the
        1.7 mm below which it corrects nothing; 1.0 where it cannot be judged.
        """
        mask = abs(math.log(self.mask_ml / _TYPICAL_ML)) / math.log(BRAIN_ML[1] / _TYPICAL_ML)
        measures = [mask, *(_measure(fit) for fit in self.fits.values())]
        return max(measures) + len(self.findings)

    @property
    def worst(self) -> tuple[str, Fit] | None:
        """The image that lies worst, with its column; None where there is only the T1."""
        return max(self.fits.items(), key=lambda item: _measure(item[1]), default=None)


def _measure(fit: Fit) -> float:
    if fit.step_mm is None:
        return 1.0
    return max(fit.step_mm / FIRST_LOOK_MM, (fit.off_mm or 0.0) / LEAST_MOTION_MM)


def scan_numbers(scan: PreparedScan, images: Mapping[str, FloatArray]) -> ScanNumbers:
    """Measure one scan.

    Args:
        scan: as it is used.
        images: all its images (D, H, W) on the grid by manifest column, the T1 among them.
    """
    mask = _placed(scan.brain_mask, scan)
    fixed = _placed(images[Modality.T1WI], scan)
    fits = {
        column: _fit(fixed, _placed(image, scan), mask)
        for column, image in images.items()
        if column != Modality.T1WI
    }
    found = tuple(f for f in scan.warnings if f.code in LOOK_AT)
    return ScanNumbers(mask_volume_ml(mask), fits, found)


def _fit(fixed: Volume, moving: Volume, mask: Volume) -> Fit:
    pair = Pair(fixed, moving, mask)
    step, match = pair.step(np.eye(4)), pair.compare(np.eye(4)).given
    if step is None:
        return Fit(None, None, match)
    step_mm = pair.displacement(step.motion)
    if step_mm < FIRST_LOOK_MM:
        return Fit(step_mm, None, match)
    motion = register(fixed, moving, mask)
    return Fit(step_mm, None if motion.reason == "search failed" else motion.displacement_mm, match)


def _placed(array: FloatArray, scan: PreparedScan) -> Volume:
    affine = scan.geometry.grid.affine
    return Volume(array, affine, affine)
