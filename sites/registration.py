"""Rigid registration of a modality to the scan's T1, only where it is needed.

Files of one session nearly always agree in scanner coordinates, and registering them would only
add error. So one Gauss-Newton step asks first by how much the modality seems to be off; only if
that is much are more steps made, and their motion is used only if it is clearly larger than what
heads always move, given its own uncertainty, and the match gains by it. The motion goes into the
modality's affine, so that the one resampling that follows is the only interpolation.

What a good match is, and how steps are made, is in ``sites.matching``.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from .matching import Pair
from .reading import Affine, Finding, Volume

FIRST_LOOK_MM = 0.5
"""A first step that moves the brain by less on average ends the matter."""
LEAST_MOTION_MM = 1.7
"""Smaller motions are not corrected: heads move by so much between images that lie well."""
UNCERTAINTY_WEIGHT = 1.5
"""A motion must exceed ``LEAST_MOTION_MM`` by so many times its own uncertainty."""
LEAST_CONSISTENCY = 1.0
"""The gain of the match over its standard error, from slab to slab of the head."""
LARGEST_MOTION_MM = 15.0
"""Beyond this the search was seen to end far from the truth; such a motion is only reported."""

_STEPS = 15
_CONVERGED_MM = 0.03

Reason = Literal["clearly better", "not clearly better", "too far", "search failed"]


@dataclass(frozen=True)
class RigidMotion:
    """How a modality lies against the T1, and whether that is to be corrected.

    Attributes:
        matrix: 4x4, RAS millimetres; maps a point of the T1 to the same tissue's point in the
            modality's file. The identity if nothing was found.
        rotation_deg: angle of the rotation.
        displacement_mm: mean distance by which points of the brain move.
        uncertainty_mm: standard error of the brain's mean displacement, from leaving out slabs of
            the head in turn.
        fit_before: correlation ratio (0 to 1) as the files lie.
        fit_after: correlation ratio with the motion corrected.
        consistency: the gain of the match over its standard error, from slab to slab of the head.
        applied: whether to correct it.
        reason: why, or why not: ``clearly better`` is corrected; ``not clearly better`` means
            that the file lies as well as it can be judged; ``too far`` (15 mm or more) and
            ``search failed`` need somebody to look at the images.
    """

    matrix: Affine
    rotation_deg: float
    displacement_mm: float
    uncertainty_mm: float
    fit_before: float
    fit_after: float
    consistency: float
    applied: bool
    reason: Reason


def align(fixed: Volume, moving: Volume, mask: Volume) -> Volume:
    """The modality, with its affine corrected if it is clearly misaligned; else the same object.

    Args:
        fixed: the T1.
        moving: another image of the scan.
        mask: the brain.

    Returns:
        ``moving``, or a copy with another affine and a finding W221; or, where a motion was
        found that cannot be trusted, a copy with only the finding.
    """
    if not looks_misaligned(fixed, moving, mask):
        return moving
    motion = register(fixed, moving, mask)
    if motion.reason == "not clearly better":
        return moving
    finding = Finding("W221", _described(motion))
    affine = corrected(moving, motion) if motion.applied else moving.affine
    return replace(moving, affine=affine, warnings=(*moving.warnings, finding))


def looks_misaligned(fixed: Volume, moving: Volume, mask: Volume) -> bool:
    """Whether one step towards a better fit moves the brain by 1 mm or more on average.

    Also if too little of the brain is seen to say.
    """
    pair = Pair(fixed, moving, mask)
    step = pair.step(np.eye(4))
    return step is None or pair.displacement(step.motion) >= FIRST_LOOK_MM


def register(fixed: Volume, moving: Volume, mask: Volume) -> RigidMotion:
    """Search the rigid motion between two images and judge it.

    Args:
        fixed: the T1.
        moving: another image of the scan.
        mask: the brain.
    """
    given = Pair(fixed, moving, mask)
    found = _searched(given)
    if found is None:
        return _FAILED
    # The mask lay wrong on the moving image as given; once more from where it lies nearly right.
    rest = _searched(Pair(fixed, _placed(moving, found), mask))
    if rest is None:
        return _FAILED
    found = found @ rest
    return _judged(given, Pair(fixed, _placed(moving, found), mask), found)


def corrected(moving: Volume, motion: RigidMotion) -> Affine:
    """The affine of ``moving`` with the motion undone, so that its tissue lies on the T1's."""
    return _placed(moving, motion.matrix).affine


def _described(motion: RigidMotion) -> str:
    found = (
        f"{motion.displacement_mm:.1f} mm and {motion.rotation_deg:.1f} degrees, correlation "
        f"ratio {motion.fit_before:.3f} before, {motion.fit_after:.3f} after"
    )
    if motion.applied:
        return f"misaligned and moved to the T1 by {found}; look at the result"
    return (
        f"looks misaligned and is left as it is ({motion.reason}: {found}); "
        "compare it with the T1, align it, or leave it out"
    )


def _placed(moving: Volume, position: Affine) -> Volume:
    """The modality with its tissue moved from ``position`` onto the T1's."""
    affine = np.asarray(np.linalg.inv(position) @ moving.affine, dtype=np.float64)
    return replace(moving, affine=affine)


def _searched(pair: Pair) -> Affine | None:
    """Steps until they are small; None if too little is seen in common on the way."""
    position = np.eye(4)
    for _ in range(_STEPS):
        step = pair.step(position)
        if step is None:
            return None
        position = step.motion @ position
        if pair.displacement(step.motion) < _CONVERGED_MM:
            break
    return position


def _judged(given: Pair, placed: Pair, found: Affine) -> RigidMotion:
    """The motion with its effect.

    The mask, which both images are levelled with, favours the position it lies at. So the way
    to the found position and the way back from it are both judged, and the mean is taken.
    """
    way_back = np.asarray(np.linalg.inv(found), dtype=np.float64)
    there, back = given.compare(found), placed.compare(way_back)
    last = placed.step(np.eye(4))
    distance = given.displacement(found)
    uncertainty = np.inf if last is None else last.uncertainty_mm
    consistency = _consistency(there.gains - back.gains)
    reason: Reason = "clearly better"
    least = LEAST_MOTION_MM + UNCERTAINTY_WEIGHT * uncertainty
    if distance < least or consistency < LEAST_CONSISTENCY:
        reason = "not clearly better"
    elif distance >= LARGEST_MOTION_MM:
        reason = "too far"
    return RigidMotion(
        matrix=found,
        rotation_deg=float(np.rad2deg(Rotation.from_matrix(found[:3, :3]).magnitude())),
        displacement_mm=distance,
        uncertainty_mm=uncertainty,
        fit_before=there.given,
        fit_after=back.given,
        consistency=consistency,
        applied=reason == "clearly better",
        reason=reason,
    )


def _consistency(gains: NDArray[np.float64]) -> float:
    """Mean over standard error of the slabs that are seen; 0 for fewer than three."""
    seen = gains[gains != 0.0]
    if len(seen) < 3:
        return 0.0
    return float(seen.mean() / max(seen.std(ddof=1) / np.sqrt(len(seen)), 1e-12))


_FAILED = RigidMotion(
    matrix=np.eye(4),
    rotation_deg=0.0,
    displacement_mm=0.0,
    uncertainty_mm=np.inf,
    fit_before=0.0,
    fit_after=0.0,
    consistency=0.0,
    applied=False,
    reason="search failed",
)
