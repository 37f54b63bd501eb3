"""Rigid registration of a modality to the scan's T1, only where it is needed.

Files of one session nearly always agree in scanner coordinates, and registering them would only
add error. So a cheap test asks first whether some displaced position is clearly better than the
given one; only then a motion is searched, and it is used only if it raises the mutual
information clearly. All judgements are made on mutual information of the T1 and the modality
around the brain; the motion goes into the modality's affine, so that the one resampling that
follows is the only interpolation.

The search maximises Mattes' mutual information (32 bins, every voxel around the brain) with
Powell's method, coarse to fine. Slices are thick, so an axis with large voxels is never shrunk.
Everything is deterministic: no sampling, one thread.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation, gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from .reading import (
    Affine,
    BoolArray,
    Finding,
    FloatArray,
    Volume,
    sample_nearest,
    to_sitk,
    voxel_points,
)

REGISTRATION_MARGIN = 1.05
"""A displaced position must have so many times the mutual information of the given one."""
MOST_OF_MI_BEFORE = 0.85
"""A motion is used if mutual information before / after is below this."""
LARGEST_MOTION_MM = 30.0

# SimpleITK annotates only part of its calls; as Any it passes the strict checks.
_sitk: Any = SimpleITK
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_TEST_VOXEL_MM = 5.5
_TEST_SMOOTHING_MM = 3.5
_TEST_POINTS = 12000
_TEST_BINS = 16
_STEPS_MM = (-8.0, -4.0, 4.0, 8.0)
_STEPS_DEG = (-8.0, -4.0, 4.0, 8.0)
_LEAST_POINTS = 500

_AROUND_BRAIN_MM = 5.5
_SEARCH_BINS = 32
# Voxel size to shrink to, and Powell's first step (mm; radians are scaled to match), a level.
_LEVELS = ((2.75, 2.0), (1.375, 0.5))
_RADIANS_SCALE = 3600.0

Points = NDArray[np.float64]
Reason = Literal["clearly better", "not clearly better", "too far", "search failed"]


@dataclass(frozen=True)
class RigidMotion:
    """How a modality lies against the T1, and whether that is to be corrected.

    Attributes:
        matrix: 4x4, RAS millimetres; maps a point of the T1 to the same tissue's point in the
            modality's file. The identity if nothing was found.
        rotation_deg: angle of the rotation.
        displacement_mm: mean distance by which points of the brain move.
        mi_before: mutual information (nats) as the files lie.
        mi_after: mutual information with the motion corrected.
        applied: whether to correct it.
        reason: why, or why not: ``clearly better`` is corrected; ``not clearly better`` means
            that the file lies as well as it can be judged; ``too far`` (30 mm or more) and
            ``search failed`` need somebody to look at the images.
    """

    matrix: Affine
    rotation_deg: float
    displacement_mm: float
    mi_before: float
    mi_after: float
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
    """Whether another position is clearly better than the given one.

    Compared are shifts of 4 and 8 mm along, and rotations of 4 and 8 degrees about, the three
    axes of ``fixed``, at voxels of about 5.5 mm. Shifts below 2 mm and rotations below 2
    degrees are nearer to the given position than to any of these, and are not seen.
    """
    judge = _Judge(fixed, moving, mask)
    given, *displaced = judge.information([np.eye(4), *judge.displacements()])
    return max(displaced) > REGISTRATION_MARGIN * given


def register(fixed: Volume, moving: Volume, mask: Volume) -> RigidMotion:
    """Search the rigid motion between two images and judge it.

    Args:
        fixed: the T1.
        moving: another image of the scan.
        mask: the brain.
    """
    judge = _Judge(fixed, moving, mask)
    try:
        matrix = _searched(fixed, moving, mask, start=judge.best_start())
    except RuntimeError:
        # ITK's only way to say that the images do not overlap or the measure is undefined.
        return _judged(judge, None)
    return _judged(judge, matrix)


def corrected(moving: Volume, motion: RigidMotion) -> Affine:
    """The affine of ``moving`` with the motion undone, so that its tissue lies on the T1's."""
    return np.asarray(np.linalg.inv(motion.matrix) @ moving.affine, dtype=np.float64)


def _described(motion: RigidMotion) -> str:
    found = (
        f"{motion.displacement_mm:.1f} mm and {motion.rotation_deg:.1f} degrees, mutual "
        f"information {motion.mi_before:.3f} before, {motion.mi_after:.3f} after"
    )
    if motion.applied:
        return f"misaligned and moved to the T1 by {found}; look at the result"
    return (
        f"looks misaligned and is left as it is ({motion.reason}: {found}); "
        "compare it with the T1, align it, or leave it out"
    )


class _Judge:
    """Mutual information of two images around the brain, at any relative position.

    Each position is judged on the same voxels: those that the moving image covers in all
    positions that are compared. Otherwise one that loses a dark border would seem better.
    """

    def __init__(self, fixed: Volume, moving: Volume, mask: Volume) -> None:
        coarse = _smooth(_shrunk(fixed, _TEST_VOXEL_MM))
        inside = _around_brain(coarse, mask)
        points = voxel_points(coarse, inside)
        stride = max(1, -(-len(points) // _TEST_POINTS))
        self.points: Points = points[::stride]
        self._fixed = coarse.array[inside][::stride]
        self._moving = _smooth(_shrunk(moving, _TEST_VOXEL_MM))
        self._axes = (fixed.affine[:3, :3] / np.linalg.norm(fixed.affine[:3, :3], axis=0)).T

    def displacements(self) -> list[Affine]:
        """The positions that ``looks_misaligned`` compares."""
        centre = self.points.mean(axis=0)
        still = np.eye(3)
        shifts = [_motion(still, centre, mm * axis) for axis in self._axes for mm in _STEPS_MM]
        turns = [np.deg2rad(deg) * axis for axis in self._axes for deg in _STEPS_DEG]
        return shifts + [
            _motion(Rotation.from_rotvec(turn).as_matrix(), centre, np.zeros(3)) for turn in turns
        ]

    def best_start(self) -> Affine:
        """The best position of those compared: Powell alone may end in a nearby small peak."""
        positions = [np.eye(4), *self.displacements()]
        return positions[int(np.argmax(self.information(positions)))]

    def information(self, matrices: list[Affine]) -> list[float]:
        """Mutual information at each position; all 0 where too little is seen in common."""
        values = np.array([self._sampled(matrix) for matrix in matrices])
        seen = np.isfinite(values).all(axis=0)
        if int(seen.sum()) < _LEAST_POINTS:
            return [0.0] * len(matrices)
        labels = _ranked(self._fixed[seen])
        return [_information(labels, _ranked(row[seen])) for row in values]

    def _sampled(self, matrix: Affine) -> FloatArray:
        index = np.linalg.inv(self._moving.affine) @ matrix
        where = self.points @ index[:3, :3].T + index[:3, 3]
        values = map_coordinates(self._moving.array, where.T[::-1], order=1, cval=np.nan)
        return np.asarray(values, dtype=np.float32)


def _judged(judge: _Judge, found: Affine | None) -> RigidMotion:
    """The motion with its effect; None stands for a search that failed."""
    matrix = np.eye(4) if found is None else found
    before, after = judge.information([np.eye(4), matrix])
    moved = judge.points @ matrix[:3, :3].T + matrix[:3, 3] - judge.points
    distance = float(np.linalg.norm(moved, axis=1).mean())
    reason: Reason = "clearly better"
    if found is None:
        reason = "search failed"
    elif before >= MOST_OF_MI_BEFORE * after:
        reason = "not clearly better"
    elif distance >= LARGEST_MOTION_MM:
        reason = "too far"
    return RigidMotion(
        matrix=matrix,
        rotation_deg=float(np.rad2deg(Rotation.from_matrix(matrix[:3, :3]).magnitude())),
        displacement_mm=distance,
        mi_before=before,
        mi_after=after,
        applied=reason == "clearly better",
        reason=reason,
    )


def _searched(fixed: Volume, moving: Volume, mask: Volume, *, start: Affine) -> Affine:
    """The motion that maximises Mattes' mutual information, as 4x4 in RAS millimetres."""
    transform = _turned_about(voxel_points(mask, mask.array > 0.5).mean(axis=0), start)
    for voxel_mm, step_mm in _LEVELS:
        target = _shrunk(fixed, voxel_mm)
        around = _around_brain(target, mask).astype(np.uint8)
        method = _search_method(step_mm)
        method.SetMetricFixedMask(to_sitk(around, target.affine))
        method.SetInitialTransform(transform, inPlace=True)
        source = _shrunk(moving, voxel_mm)
        method.Execute(to_sitk(target.array, target.affine), to_sitk(source.array, source.affine))
    rotation = np.array(transform.GetMatrix()).reshape(3, 3)
    lps = _motion(rotation, np.array(transform.GetCenter()), np.array(transform.GetTranslation()))
    return np.asarray(_RAS_TO_LPS @ lps @ _RAS_TO_LPS, dtype=np.float64)


def _turned_about(centre: Points, motion: Affine) -> Any:
    """The motion as ITK's rotation about ``centre`` and shift, in its LPS millimetres."""
    middle = (_RAS_TO_LPS @ np.append(centre, 1.0))[:3]
    lps = _RAS_TO_LPS @ motion @ _RAS_TO_LPS
    transform = _sitk.Euler3DTransform()
    transform.SetCenter(middle.tolist())
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation((lps[:3, :3] @ middle + lps[:3, 3] - middle).tolist())
    return transform


def _search_method(step_mm: float) -> Any:
    method = _sitk.ImageRegistrationMethod()
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(numberOfHistogramBins=_SEARCH_BINS)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(_sitk.sitkLinear)
    method.SetOptimizerAsPowell(
        numberOfIterations=6,
        maximumLineIterations=20,
        stepLength=step_mm,
        stepTolerance=0.01,
        valueTolerance=1e-5,
    )
    method.SetOptimizerScales([_RADIANS_SCALE] * 3 + [1.0] * 3)
    return method


def _shrunk(volume: Volume, voxel_mm: float) -> Volume:
    """Block means; along each axis by the largest whole factor that keeps within ``voxel_mm``."""
    factors = [max(1, int(voxel_mm / size + 1e-6)) for size in volume.spacing]
    counts = [size // k for size, k in zip(volume.array.shape, factors, strict=True)]
    blocks = [length for pair in zip(counts, factors, strict=True) for length in pair]
    whole = tuple(slice(0, n * k) for n, k in zip(counts, factors, strict=True))
    array = volume.array[whole].reshape(blocks).mean(axis=(1, 3, 5), dtype=np.float32)
    steps = np.array(factors[::-1], dtype=np.float64)
    # A block's middle lies (k - 1) / 2 voxels after its first voxel.
    block = np.diag([*steps, 1.0])
    block[:3, 3] = (steps - 1.0) / 2.0
    affine = volume.affine @ block
    return Volume(array, affine, affine)


def _smooth(volume: Volume) -> Volume:
    """Smoothed along the axes with small voxels, lest interpolation be taken for agreement.

    Values between voxels are means of noisy neighbours: without this a noisy image would fit
    better at half a voxel's shift.
    """
    sigmas = [
        _TEST_SMOOTHING_MM / size if size <= _TEST_VOXEL_MM else 0.0 for size in volume.spacing
    ]
    return replace(volume, array=gaussian_filter(volume.array, sigmas, mode="nearest"))


def _around_brain(volume: Volume, mask: Volume) -> BoolArray:
    """Voxels of ``volume`` in the brain or near it, where skull and scalp give edges."""
    everywhere = voxel_points(volume, np.ones(volume.array.shape, dtype=np.bool_))
    inside = sample_nearest(mask, everywhere).reshape(volume.array.shape) > 0.5
    reach = [round(_AROUND_BRAIN_MM / size) for size in volume.spacing]
    box = np.ones([2 * voxels + 1 for voxels in reach], dtype=np.bool_)
    return np.asarray(binary_dilation(inside, box), dtype=np.bool_)


def _motion(rotation: NDArray[np.float64], centre: Points, shift: Points) -> Affine:
    """The map of x to rotation (x - centre) + centre + shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre - rotation @ centre + shift
    return matrix


def _ranked(values: FloatArray) -> NDArray[np.intp]:
    """Each value's bin; bins hold about equally many values, whatever their scale."""
    edges = np.quantile(values, np.arange(1, _TEST_BINS) / _TEST_BINS)
    return np.searchsorted(edges, values)


def _information(first: NDArray[np.intp], second: NDArray[np.intp]) -> float:
    """Mutual information of two labellings in nats: sum p log(p / (p_first p_second))."""
    counts = np.bincount(first * _TEST_BINS + second, minlength=_TEST_BINS**2)
    joint = counts.reshape(_TEST_BINS, _TEST_BINS) / len(first)
    expected = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    filled = joint > 0.0
    return float((joint[filled] * np.log(joint[filled] / expected[filled])).sum())
