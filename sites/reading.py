"""Reading NIfTI volumes, strictly: what cannot be trusted is refused with a code.

nibabel parses, on bytes that were decompressed completely first, so that a cut-off or damaged
file is an error. SimpleITK never reads a hospital's file: it fills a truncated one with zeros
and takes ``A.nii`` when asked for ``A.nii.gz``. It only gets the in-memory image that
``to_sitk`` builds, for resampling in physical space.
"""

import gzip
import zlib
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK
from numpy.typing import NDArray
from scipy.linalg import polar

from iedn.errors import ScanError

FloatArray = NDArray[np.float32]
BoolArray = NDArray[np.bool_]
Affine = NDArray[np.float64]

SHEAR_WARNING = 1e-3
SHEAR_ERROR = 0.05
QFORM_WARNING_MM = 0.5
NON_FINITE_ERROR = 0.001
IMPLAUSIBLE_MM = 1e5
# Far below any scanner; a Gaussian as wide as the grid's voxels would span millions of these.
LEAST_VOXEL_MM = 0.01

# SimpleITK annotates only part of its calls; as Any it passes the strict checks.
_sitk: Any = SimpleITK
# What nibabel raises on a nonsensical header; the last for a voxel offset that is infinite.
_HEADER_ERRORS: tuple[type[Exception], ...] = (
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    ValueError,
    OSError,
    OverflowError,
)
_GZIP_MAGIC = b"\x1f\x8b"
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Finding:
    """Something about a scan's data that its owner should know. Local.

    Attributes:
        code: stable code: ``W...`` the data is used nevertheless, ``E...`` it is not.
        problem: what was found, and what to do if something can be done.
        modality: the manifest column concerned.
    """

    code: str
    problem: str
    modality: str = ""


@dataclass(frozen=True)
class Volume:
    """A 3D image and where it lies in the patient.

    Attributes:
        array: float32 (D, H, W) = (z, y, x): the file's axes in reverse order.
        affine: 4x4; maps ``(x, y, z, 1)``, an index into ``array[z, y, x]``, to millimetres in
            RAS (x to the right, y to the front, z to the top of the head). Its axes are made
            exactly perpendicular.
        file_affine: the same as it stands in the file.
        warnings: findings that do not prevent use.
    """

    array: FloatArray
    affine: Affine
    file_affine: Affine
    warnings: tuple[Finding, ...] = ()

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size in mm along D, H, W."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(z), float(y), float(x)


def read_volume(path: Path, *, index: int | tuple[int, ...] | None = None) -> Volume:
    """Read one 3D volume.

    Non-finite voxels are kept (see ``finite``), scaling (``scl_slope``) is applied.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        index: which volume (from 0) of a 4D file, needed only for one with several; of several
            indices, the mean.

    Raises:
        ScanError: E100 cannot be opened; E101 truncated or damaged; E102 not NIfTI; E104
            sheared; E105 no geometry; E201 several volumes and none named; E202 colour or
            complex; E205 all voxels equal.
    """
    content = _content(path)
    # Values that float32 cannot hold become infinite, and are then found by ``finite``.
    with np.errstate(over="ignore", invalid="ignore"):
        image = _parse(content, path.name)
        file_affine, warnings = _geometry(image)
        array = _third_dimension(_voxels(image, len(content)), index)
    finite_values = array[np.isfinite(array)]
    if finite_values.size == 0 or finite_values.min() == finite_values.max():
        raise ScanError("E205", "all voxels have the same value")
    affine, shear = _perpendicular(file_affine, array.shape)
    if shear > SHEAR_WARNING:
        problem = f"the axes are sheared by {shear:.4f}; made perpendicular"
        warnings = (*warnings, Finding("W104", problem))
    return Volume(array, affine, file_affine, warnings)


def read_mask(path: Path) -> Volume:
    """Read a mask as 0 and 1; what is above 0.5 is inside.

    Raises:
        ScanError: as for ``read_volume``; E205 also if the mask is empty.
    """
    volume = read_volume(path)
    inside = np.nan_to_num(volume.array) > 0.5
    if not inside.any():
        raise ScanError("E205", "the mask is empty")
    return replace(volume, array=inside.astype(np.float32))


def finite(volume: Volume, mask: Volume) -> Volume:
    """The volume with non-finite voxels set to 0.

    Raises:
        ScanError: E203, they fill more than 0.1 % of the mask.
    """
    bad = ~np.isfinite(volume.array)
    count = int(bad.sum())
    if not count:
        return volume
    voxel_mm3 = float(np.prod(volume.spacing))
    mask_mm3 = float(mask.array.sum() * np.prod(mask.spacing))
    inside = int(sample_nearest(mask, voxel_points(volume, bad)).sum())
    if inside * voxel_mm3 > NON_FINITE_ERROR * mask_mm3:
        problem = f"{inside} voxels inside the brain mask are NaN or infinite"
        raise ScanError("E203", problem)
    problem = f"{count} NaN or infinite voxels set to 0, {inside} of them in the brain mask"
    array = np.where(bad, np.float32(0.0), volume.array)
    return replace(volume, array=array, warnings=(*volume.warnings, Finding("W203", problem)))


def voxel_points(volume: Volume, selected: BoolArray) -> NDArray[np.float64]:
    """Positions in RAS millimetres, (N, 3), of the selected voxels."""
    indices = np.argwhere(selected)[:, ::-1].astype(np.float64)
    return indices @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def inside_view(volume: Volume, points: NDArray[np.float64]) -> BoolArray:
    """Which of the points (N, 3; RAS millimetres) lie in the volume's field of view."""
    indices = _continuous_index(volume, points)
    upper = np.array(volume.array.shape[::-1]) - 0.5
    # A millionth of a voxel keeps points on the very edge inside despite rounding.
    seen: BoolArray = np.all((indices > -0.5 - 1e-6) & (indices < upper + 1e-6), axis=1)
    return seen


def sample_nearest(volume: Volume, points: NDArray[np.float64]) -> FloatArray:
    """Nearest voxel's value at each point (N, 3; RAS millimetres); 0 outside the view."""
    indices = np.rint(_continuous_index(volume, points)).astype(np.int64)
    values = np.zeros(len(points), dtype=np.float32)
    seen = np.all((indices >= 0) & (indices < np.array(volume.array.shape[::-1])), axis=1)
    x, y, z = indices[seen].T
    values[seen] = volume.array[z, y, x]
    return values


def to_sitk(array: NDArray[Any], affine: Affine) -> Any:
    """A ``SimpleITK.Image`` of ``array`` (D, H, W) with perpendicular ``affine`` (RAS millimetres).

    ITK counts millimetres to the left, back and top (LPS), so the first two axes change sign.
    """
    lps = _RAS_TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = _sitk.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


def _content(path: Path) -> bytes:
    """The file's bytes, decompressed to the end so that the checksum is verified."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ScanError("E100", f"the file cannot be opened: {error.strerror}") from error
    if not content:
        raise ScanError("E102", "the file is empty")
    if not content.startswith(_GZIP_MAGIC):
        if path.suffix.lower() == ".gz":
            raise ScanError("E102", "named .gz but not compressed with gzip")
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ScanError("E101", f"truncated or damaged: {error}; export it again") from error


def _parse(content: bytes, name: str) -> Any:
    """A NIfTI-1 or NIfTI-2 image over the bytes; voxels are not decoded yet."""
    kinds: tuple[Any, ...] = (nibabel.Nifti1Image, nibabel.Nifti2Image)
    for kind in kinds:
        if kind.header_class.may_contain_header(content):
            try:
                return kind.from_bytes(content)
            except _HEADER_ERRORS as error:
                raise ScanError("E102", f"not a readable NIfTI header: {error}") from error
    ending = "".join(Path(name).suffixes[-2:])
    raise ScanError("E102", f"not a NIfTI file, though its name ends in {ending!r}")


def _voxels(image: Any, num_bytes: int) -> FloatArray:
    """All voxels, scaled; ``num_bytes`` is how long the file really is."""
    dtype = image.get_data_dtype()
    if dtype.fields is not None or dtype.kind == "c":
        problem = "colour or complex voxels; export the quantitative series instead"
        raise ScanError("E202", problem)
    if min(image.shape, default=0) < 1:
        raise ScanError("E102", f"the header announces the shape {image.shape}")
    announced = int(image.dataobj.offset) + prod(map(int, image.shape)) * dtype.itemsize
    if announced > num_bytes:
        problem = f"truncated: {announced} bytes announced, {num_bytes} there; export it again"
        raise ScanError("E101", problem)
    try:
        return np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise ScanError("E101", f"damaged: {error}; export it again") from error


def _third_dimension(data: FloatArray, index: int | tuple[int, ...] | None) -> FloatArray:
    """The wanted 3D volume, its axes reversed to (D, H, W)."""
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim == 4 and index is not None:
        wanted = [index] if isinstance(index, int) else list(index)
        if max(wanted) >= data.shape[3]:
            problem = f"asl_volume is {max(wanted)}, the file has volumes 0 to {data.shape[3] - 1}"
            raise ScanError("E201", problem)
        data = np.asarray(data[..., wanted].mean(axis=3, dtype=np.float64), dtype=np.float32)
    if data.ndim != 3:
        problem = (
            f"{data.ndim}-dimensional with shape {data.shape}; export one 3D map, or name the "
            "perfusion volume of a 4D ASL file in the manifest's column asl_volume"
        )
        raise ScanError("E201", problem)
    return np.ascontiguousarray(data.T)


def _geometry(image: Any) -> tuple[Affine, tuple[Finding, ...]]:
    """The file's affine, sform before qform; and what is odd about it."""
    sform, sform_code = image.get_sform(coded=True)
    qform, qform_code = _qform(image)
    if not sform_code and not qform_code:
        problem = "neither sform nor qform is set: where the image lies is unknown"
        raise ScanError("E105", problem)
    affine = np.asarray(sform if sform_code else qform, dtype=np.float64)
    if not _plausible(affine):
        raise ScanError("E105", "the affine is singular or far outside of any scanner")
    if not (sform_code and qform_code):
        return affine, ()
    distance = _corner_distance(affine, np.asarray(qform), image.shape[:3])
    if distance <= QFORM_WARNING_MM:
        return affine, ()
    degrees = _angle_degrees(affine, np.asarray(qform))
    problem = (
        f"sform and qform differ by up to {distance:.1f} mm, turned by {degrees:.1f} degrees; "
        "the sform is used"
    )
    return affine, (Finding("W106", problem),)


def _plausible(affine: Affine) -> bool:
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(
        np.abs(affine).max() < IMPLAUSIBLE_MM
        and spacing.min() >= LEAST_VOXEL_MM
        and abs(np.linalg.det(affine[:3, :3])) >= 1e-9
    )


def _qform(image: Any) -> tuple[Any, int]:
    try:
        qform, code = image.get_qform(coded=True)
    except (nibabel.spatialimages.HeaderDataError, ValueError) as error:
        if not image.header["sform_code"]:
            raise ScanError("E105", f"the qform cannot be read: {error}") from error
        return None, 0
    return qform, int(code)


def _corner_distance(first: Affine, second: Affine, shape: tuple[int, ...]) -> float:
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=float)
    corners[:, :3] *= np.array([*shape, 1, 1, 1][:3]) - 1
    return float(np.linalg.norm(corners @ (first - second).T, axis=1).max())


def _angle_degrees(first: Affine, second: Affine) -> float:
    """Largest angle between corresponding axes."""
    axes = [a[:3, :3] / np.linalg.norm(a[:3, :3], axis=0) for a in (first, second)]
    cosines = np.clip((axes[0] * axes[1]).sum(axis=0), -1.0, 1.0)
    return float(np.degrees(np.arccos(cosines)).max())


def _perpendicular(affine: Affine, shape: tuple[int, ...]) -> tuple[Affine, float]:
    """The nearest affine with perpendicular axes, about the image's centre; and the shear.

    The shear is the largest cosine between two axes. The rotation is the polar decomposition's.

    Raises:
        ScanError: E104, the shear is above 0.05.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > SHEAR_ERROR:
        problem = f"the axes are sheared by {shear:.3f}; export the series without tilt correction"
        raise ScanError("E104", problem)
    rotation, _ = polar(axes)
    straight = affine.copy()
    straight[:3, :3] = rotation * spacing
    centre = (np.array(shape[::-1]) - 1) / 2
    straight[:3, 3] += affine[:3, :3] @ centre - straight[:3, :3] @ centre
    return straight, shear


def _continuous_index(volume: Volume, points: NDArray[np.float64]) -> NDArray[np.float64]:
    inverse = np.asarray(np.linalg.inv(volume.affine), dtype=np.float64)
    indices: NDArray[np.float64] = points @ inverse[:3, :3].T + inverse[:3, 3]
    return indices
