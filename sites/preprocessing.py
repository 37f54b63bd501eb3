"""One scan's files -> arrays on the preset's grid, all in the frame of its T1.

The grid keeps the T1's own slices and in-plane directions. Its axes are turned to (D, H, W) =
(bottom to top, front to back, right to left) by the closest anatomical direction, so that the
orientation in which a file happens to be stored makes no difference. Everything else is
resampled onto this grid in physical space, where its header places it; one that is clearly
misaligned is registered to the T1 first (``sites.registration``).

Intensities become x / (4 * mean inside the brain mask), negatives set to 0 before the mean.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from scipy.ndimage import gaussian_filter1d

from iedn.config import GridConfig
from iedn.errors import ScanError
from iedn.modalities import BRAIN_MASK, TARGET, Modality
from iedn.sample import BRAIN_MEAN

from .asl import read_raw_asl
from .brain_mask import estimate_brain_mask
from .checks import mask_findings, orientation_findings, value_findings, voxel_digest
from .cohort import ScanRecord
from .config import RegistrationMode
from .reading import (
    Affine,
    BoolArray,
    Finding,
    FloatArray,
    Volume,
    finite,
    inside_view,
    read_mask,
    read_volume,
    to_sitk,
    voxel_points,
)
from .registration import align

PREPROCESSING_VERSION = 5

LEAST_OVERLAP = 0.8
FULL_OVERLAP = 0.99
# Neither library annotates all its calls; as Any they pass the strict checks.
_sitk: Any = SimpleITK
_orientations: Any = nibabel.orientations
# A Gaussian's full width at half maximum in standard deviations.
_FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))
_CANONICAL = _orientations.axcodes2ornt(("L", "P", "S"))

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """Voxels in space: how many, and where.

    Attributes:
        shape: (D, H, W).
        affine: 4x4, index (x, y, z) along (W, H, D) to RAS millimetres, perpendicular axes.
    """

    shape: Shape
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along D, H, W."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)


@dataclass(frozen=True)
class Geometry:
    """Where a prepared scan lies, and the way back to the patient's own T1.

    Attributes:
        grid: the preset's grid.
        patient: the T1 file's own voxels, in the file's axis order reversed to (D, H, W).
        file_affine: the T1 file's affine as it stands in the file; for writing.
    """

    grid: Frame
    patient: Frame
    file_affine: Affine


@dataclass(frozen=True)
class PreparedScan:
    """A scan's arrays, all float32 of one shape (D, H, W).

    Attributes:
        images: brain mean 0.25, >= 0; a modality that is absent or refused has no entry.
        brain_mask: 0 or 1.
        geometry: where the arrays lie.
        cbv: scaled like the images, 0 outside the brain; None where there is none.
        regions: ``lesion_mask`` and ``reader_roi``, 0 or 1, where given.
        warnings: findings about data that was used.
        refused: findings about files that could not be used; the scan goes on without them.
        digests: SHA-256 of the decoded voxels of each image and of CBV, by manifest column.
    """

    images: dict[Modality, FloatArray]
    brain_mask: FloatArray
    geometry: Geometry
    cbv: FloatArray | None = None
    regions: dict[str, FloatArray] = field(default_factory=dict)
    warnings: tuple[Finding, ...] = ()
    refused: tuple[Finding, ...] = ()
    digests: dict[str, str] = field(default_factory=dict)


def prepare_scan(
    record: ScanRecord, grid: GridConfig, *, registration: RegistrationMode = "off"
) -> PreparedScan:
    """Read a scan's files and bring them onto the grid.

    Args:
        record: the scan.
        grid: the preset's grid.
        registration: whether clearly misaligned files are moved to the T1 (finding W221).

    Raises:
        ScanError: E210 or E211, no T1, or no brain mask and none that could be made; or the code
            of what is wrong with one of these two. Any other file that cannot be used is left
            out and listed.
    """
    mask = _brain_mask(record)
    with _place(record, Modality.T1WI):
        t1 = finite(read_volume(_t1_path(record)), mask)
    with _place(record, BRAIN_MASK):
        _overlap(t1, mask)
    preparation = _Preparation(record, _geometry(t1, mask, grid), mask)
    return preparation.run(t1, registration)


def to_patient_grid(array: FloatArray, geometry: Geometry) -> FloatArray:
    """Bring a map (D, H, W) from the grid onto the voxels of the patient's own T1 file.

    Linear in physical space; 0 where the grid does not reach. The result goes with
    ``geometry.file_affine``.
    """
    affine = geometry.grid.affine
    return resample(Volume(array, affine, affine), geometry.patient)


def resample(volume: Volume, frame: Frame, *, nearest: bool = False) -> FloatArray:
    """The volume at the voxels of ``frame``; 0 outside the volume's field of view.

    Linear, after an in-plane Gaussian where the frame is coarser than the volume (see
    ``antialiased``); or the nearest voxel, unsmoothed, for masks.
    """
    array = volume.array if nearest else antialiased(volume, frame)
    x, y, z = (frame.shape[axis] for axis in (2, 1, 0))
    target = to_sitk(np.zeros((1, 1, 1), dtype=np.float32), frame.affine)
    resampler = _sitk.ResampleImageFilter()
    resampler.SetSize([x, y, z])
    resampler.SetOutputSpacing(target.GetSpacing())
    resampler.SetOutputOrigin(target.GetOrigin())
    resampler.SetOutputDirection(target.GetDirection())
    resampler.SetInterpolator(_sitk.sitkNearestNeighbor if nearest else _sitk.sitkLinear)
    resampler.SetDefaultPixelValue(0.0)
    resampler.SetNumberOfThreads(1)
    result = resampler.Execute(to_sitk(array, volume.affine))
    return np.asarray(_sitk.GetArrayFromImage(result), dtype=np.float32)


def antialiased(volume: Volume, frame: Frame) -> FloatArray:
    """The volume smoothed in-plane for sampling at the coarser voxels of ``frame``.

    Along each in-plane axis of the frame, the volume's closest axis is smoothed with
    sigma_mm = sqrt(max(0, coarse^2 - fine^2)) / 2.355: a Gaussian profile as wide (at half
    maximum) as the fine voxel becomes one as wide as the coarse voxel. Across slices nothing is
    smoothed.
    """
    fine = np.linalg.norm(volume.affine[:3, :3], axis=0)
    coarse = np.linalg.norm(frame.affine[:3, :3], axis=0)
    cosines = np.abs((volume.affine[:3, :3] / fine).T @ (frame.affine[:3, :3] / coarse))
    array = volume.array
    for in_plane in (0, 1):
        closest = int(np.argmax(cosines[:, in_plane]))
        sigma_mm = np.sqrt(max(0.0, coarse[in_plane] ** 2 - fine[closest] ** 2)) / _FWHM
        if sigma_mm > 0.01 * fine[closest]:
            sigma = float(sigma_mm / fine[closest])
            array = gaussian_filter1d(array, sigma, axis=2 - closest, mode="nearest")
    return np.asarray(array, dtype=np.float32)


class _Preparation:
    """Collects one scan's arrays and findings."""

    def __init__(self, record: ScanRecord, geometry: Geometry, mask: Volume) -> None:
        self._record, self._geometry, self._mask = record, geometry, mask
        self._brain = resample(mask, geometry.grid, nearest=True)
        self._inside: BoolArray = self._brain > 0.5
        self._warnings: list[Finding] = []
        self._refused: list[Finding] = []
        self._digests: dict[str, str] = {}
        self._reference: Volume | None = None

    def run(self, t1: Volume, registration: RegistrationMode) -> PreparedScan:
        self._reference = t1 if registration == "auto" else None
        self._warn(BRAIN_MASK, (*self._mask.warnings, *mask_findings(self._mask)))
        self._warn_cut_brain()
        with _place(self._record, Modality.T1WI):
            images = {Modality.T1WI: self._scaled(Modality.T1WI, t1)}
        for modality, path in self._record.images.items():
            if modality is not Modality.T1WI and (array := self._image(modality, path)) is not None:
                images[modality] = array
        cbv = self._target()
        regions = {"lesion_mask": self._record.lesion_mask, "reader_roi": self._record.reader_roi}
        found = {name: self._region(name, path) for name, path in regions.items() if path}
        return PreparedScan(
            images=images,
            brain_mask=self._brain,
            geometry=self._geometry,
            cbv=cbv,
            regions={name: array for name, array in found.items() if array is not None},
            warnings=tuple(self._warnings),
            refused=tuple(self._refused),
            digests=self._digests,
        )

    def _warn(self, column: str, findings: tuple[Finding, ...]) -> None:
        self._warnings += [replace(finding, modality=str(column)) for finding in findings]

    def _warn_cut_brain(self) -> None:
        if not self._inside.any():
            with _place(self._record, BRAIN_MASK):
                raise ScanError("E205", "the brain mask is empty on the grid")
        points = voxel_points(self._mask, self._mask.array > 0.5)
        grid = self._geometry.grid
        whole = Volume(np.empty(grid.shape, dtype=np.float32), grid.affine, grid.affine)
        outside = 1.0 - float(inside_view(whole, points).mean())
        if outside > 1.0 - FULL_OVERLAP:
            problem = f"{outside:.1%} of the brain mask lies outside the grid and is cut off"
            self._warn(BRAIN_MASK, (Finding("W208", problem),))

    def _image(self, column: str, path: Path) -> FloatArray | None:
        """An optional image, scaled; None if it is refused."""
        try:
            volume = finite(self._volume(column, path), self._mask)
            overlap = _overlap(volume, self._mask)
            if self._reference is not None:
                volume = align(self._reference, volume, self._mask)
                overlap = _overlap(volume, self._mask)
            self._warn_overlap(column, overlap)
            return self._scaled(column, volume)
        except ScanError as error:
            self._refused.append(Finding(error.code, error.problem, str(column)))
            return None

    def _volume(self, column: str, path: Path) -> Volume:
        record = self._record
        if column != Modality.ASL:
            return read_volume(path)
        if record.asl_kind == "deltam":
            return read_raw_asl(path, index=record.asl_volume, pld_s=record.pld_s)
        return read_volume(path, index=record.asl_volume)

    def _target(self) -> FloatArray | None:
        """Measured CBV inside the brain: outside it is noise, scalp and sinus, not a map."""
        if self._record.cbv is None:
            return None
        array = self._image(TARGET, self._record.cbv)
        return None if array is None else np.asarray(array * self._brain, dtype=np.float32)

    def _region(self, column: str, path: Path) -> FloatArray | None:
        try:
            region = resample(read_mask(path), self._geometry.grid, nearest=True)
            if not region.any():
                problem = "the region is outside the grid, or too small for it"
                raise ScanError("E205", problem)
        except ScanError as error:
            self._refused.append(Finding(error.code, error.problem, str(column)))
            return None
        return region

    def _warn_overlap(self, column: str, overlap: float) -> None:
        if overlap < FULL_OVERLAP:
            problem = f"covers only {overlap:.1%} of the brain mask; 0 elsewhere"
            self._warn(column, (Finding("W220", problem),))

    def _scaled(self, column: str, volume: Volume) -> FloatArray:
        """On the grid, negatives 0, brain mean 0.25."""
        array = resample(volume, self._geometry.grid)
        inside = array[self._inside]
        negative = int((inside < 0.0).sum())
        array = np.maximum(array, np.float32(0.0))
        mean = float(array[self._inside].mean(dtype=np.float64))
        if mean <= 0.0:
            raise ScanError("E205", "nothing above 0 inside the brain mask; treated as absent")
        found = value_findings(column, inside, asl_kind=self._record.asl_kind)
        oriented = orientation_findings(volume.file_affine)
        self._warn(column, (*volume.warnings, *oriented, *found))
        if negative:
            share = negative / int(self._inside.sum())
            problem = f"{negative} negative voxels in the brain mask ({share:.1%}) set to 0"
            self._warn(column, (Finding("W204", problem),))
        self._digests[str(column)] = voxel_digest(volume.array)
        return np.asarray(array * np.float32(BRAIN_MEAN / mean), dtype=np.float32)


def _t1_path(record: ScanRecord) -> Path:
    path = record.images.get(Modality.T1WI)
    if path is None:
        problem = "missing; the T1 defines the grid"
        raise ScanError("E210", problem, scan=record.key, modality=Modality.T1WI)
    return path


def _brain_mask(record: ScanRecord) -> Volume:
    """The mask as given, else made from the T1."""
    t1_path = _t1_path(record)
    if record.brain_mask is not None:
        with _place(record, BRAIN_MASK):
            return read_mask(record.brain_mask)
    with _place(record, Modality.T1WI):
        t1 = read_volume(t1_path)
    with _place(record, BRAIN_MASK):
        return estimate_brain_mask(t1)


@contextmanager
def _place(record: ScanRecord, column: str) -> Iterator[None]:
    """An error from the block gets the scan and column it belongs to."""
    try:
        yield
    except ScanError as error:
        raise ScanError(error.code, error.problem, scan=record.key, modality=column) from error


def _overlap(volume: Volume, mask: Volume) -> float:
    """Fraction of the brain mask in the volume's field of view.

    Raises:
        ScanError: E220, below 80 %.
    """
    overlap = float(inside_view(volume, voxel_points(mask, mask.array > 0.5)).mean())
    if overlap < LEAST_OVERLAP:
        problem = f"only {overlap:.1%} of the brain mask lies in the field of view"
        raise ScanError("E220", problem)
    return overlap


def _geometry(t1: Volume, mask: Volume, grid: GridConfig) -> Geometry:
    patient = Frame(_shape(t1.array.shape), t1.affine)
    return Geometry(_grid_frame(patient, mask, grid), patient, t1.file_affine)


def _grid_frame(patient: Frame, mask: Volume, grid: GridConfig) -> Frame:
    """The preset's grid on the T1's slices, in-plane centred on the brain mask.

    The first row and column are put on a whole T1 voxel: a T1 that already has the grid's
    spacing is then copied, not interpolated.
    """
    turned = _turned(patient)
    centroid = voxel_points(mask, mask.array > 0.5).mean(axis=0)
    centre = np.linalg.solve(turned.affine, np.append(centroid, 1.0))
    steps = np.array([grid.spacing_mm / turned.spacing[axis] for axis in (2, 1)])
    first = centre[:2] - steps * (np.array([grid.columns, grid.rows]) - 1) / 2
    step = np.diag([*steps, 1.0, 1.0])
    # A little more than a half makes ties fall on one side whatever the rounding before.
    step[:2, 3] = np.floor(first + 0.5 + 1e-6)
    return Frame((turned.shape[0], grid.rows, grid.columns), turned.affine @ step)


def _turned(frame: Frame) -> Frame:
    """The same voxels with axes closest to (top, back, left) along (D, H, W)."""
    orientation = _orientations.io_orientation(frame.affine)
    turn = _orientations.ornt_transform(orientation, _CANONICAL)
    old = frame.shape[::-1]
    affine = frame.affine @ _orientations.inv_ornt_aff(turn, old)
    new = [0, 0, 0]
    for axis, (place, _) in enumerate(turn):
        new[int(place)] = old[axis]
    return Frame(_shape(new[::-1]), np.asarray(affine, dtype=np.float64))


def _shape(sizes: tuple[int, ...] | list[int]) -> Shape:
    depth, rows, columns = (int(size) for size in sizes)
    if prod((depth, rows, columns)) == 0:
        msg = f"a volume without voxels: {sizes}"
        raise ValueError(msg)
    return depth, rows, columns
