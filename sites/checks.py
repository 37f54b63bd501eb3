"""Is a file what its column says? Plausible volumes, units and signs; findings with codes.

Two kinds: checks of decoded voxels, made once while a scan is prepared and kept in the cache;
and checks that look at names only (``file_findings``), made at every start. Bands are of the
median inside the brain.
"""

import hashlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from iedn.errors import ScanError
from iedn.modalities import TARGET, Modality

from .cohort import ScanRecord, exists
from .reading import Affine, Finding, FloatArray, Volume

MOST_NEGATIVE = 0.05
BRAIN_ML = (800.0, 2200.0)
OBLIQUE_DEGREES = 1.0
# Lowest and highest plausible median, and the unit that this means.
UNIT_BANDS: dict[str, tuple[tuple[float, float, str], ...]] = {
    Modality.ADC: (
        (0.0003, 0.003, "mm2/s"),
        (0.3, 3.0, "1e-3 mm2/s"),
        (300.0, 3000.0, "1e-6 mm2/s"),
    ),
    Modality.ASL: ((10.0, 120.0, "ml/100g/min"),),
    TARGET: ((1.0, 8.0, "ml/100g"),),
}
# nibabel annotates only part of its calls; as Any it passes the strict checks.
_orientations: Any = nibabel.orientations


def voxel_digest(array: FloatArray) -> str:
    """SHA-256 (hex) of a volume's shape and voxels: the same image has the same, whatever file."""
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def orientation_findings(file_affine: Affine) -> tuple[Finding, ...]:
    """I107 for an image that is not stored as RAS along the scanner's axes.

    Args:
        file_affine: as it stands in the file.
    """
    codes = "".join(code or "?" for code in _orientations.aff2axcodes(file_affine))
    axes = file_affine[:3, :3] / np.linalg.norm(file_affine[:3, :3], axis=0)
    closest = np.clip(np.abs(axes).max(axis=0), 0.0, 1.0)
    degrees = float(np.degrees(np.arccos(closest)).max())
    if codes == "RAS" and degrees <= OBLIQUE_DEGREES:
        return ()
    oblique = f", oblique by {degrees:.1f} degrees" if degrees > OBLIQUE_DEGREES else ""
    return (Finding("I107", f"stored as {codes}{oblique}; resampled in physical space"),)


def mask_volume_ml(mask: Volume) -> float:
    """Volume of a mask of 0 and 1."""
    return float(mask.array.sum(dtype=np.float64) * np.prod(mask.spacing)) / 1000.0


def mask_findings(mask: Volume) -> tuple[Finding, ...]:
    """W206 for a mask that is too small or too large for a brain."""
    volume_ml = mask_volume_ml(mask)
    low, high = BRAIN_ML
    if low <= volume_ml <= high:
        return ()
    problem = f"the brain mask holds {volume_ml:.0f} ml; {low:.0f} to {high:.0f} is expected"
    return (Finding("W206", problem),)


def value_findings(column: str, values: FloatArray, *, asl_kind: str | None) -> tuple[Finding, ...]:
    """W207 for a quantitative map in no known unit.

    Args:
        column: the manifest column.
        values: the map inside the brain mask (N,), as the file gives it.
        asl_kind: of the scan; a difference image has no unit.

    Raises:
        ScanError: E204, negative in more than 5 % of the mask.
    """
    bands = UNIT_BANDS.get(column)
    if bands is None or values.size == 0:
        return ()
    negative = float((values < 0.0).mean())
    if negative > MOST_NEGATIVE:
        problem = f"negative in {negative:.1%} of the brain mask; at most {MOST_NEGATIVE:.0%}"
        raise ScanError("E204", problem)
    if column == Modality.ASL and asl_kind == "deltam":
        return ()
    median = float(np.median(values))
    if any(low <= median <= high for low, high, _ in bands):
        return ()
    allowed = ", ".join(f"{low:g} to {high:g} ({unit})" for low, high, unit in bands)
    problem = f"brain median {median:.4g}; expected {allowed}; used as a relative map"
    return (Finding("W207", problem),)


def file_findings(record: ScanRecord) -> tuple[Finding, ...]:
    """W103, a twin with and without compression; I401, a difference ASL without a sidecar."""
    findings = []
    for column, path in record.files.items():
        twin = _twin(path)
        if twin is not None and exists(twin):
            kind = "an uncompressed" if twin.suffix == ".nii" else "a compressed"
            problem = f"{kind} file of the same name lies beside it; the one named is used"
            findings.append(Finding("W103", problem, column))
    asl = record.images.get(Modality.ASL)
    if asl is not None and record.asl_kind == "deltam" and not exists(sidecar_of(asl)):
        problem = "asl_kind is deltam and there is no JSON sidecar; used as a relative map"
        findings.append(Finding("I401", problem, Modality.ASL.value))
    return tuple(findings)


def sidecar_of(path: Path) -> Path:
    """Where the JSON sidecar of a NIfTI file lies, if there is one."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")


def _twin(path: Path) -> Path | None:
    if path.name.endswith(".nii.gz"):
        return path.with_name(path.name.removesuffix(".gz"))
    return path.with_name(f"{path.name}.gz") if path.name.endswith(".nii") else None
