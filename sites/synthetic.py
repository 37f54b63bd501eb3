"""Synthetic maps on the site's disk: each a clean NIfTI file with a sidecar that says what it is.

The header is new: nothing of the hospital's files (descriptions, extensions, original names) is
carried over, and the gzip stream holds neither a name nor a time. An earlier map is removed, then
the sidecar written, then the map: there is never a map without its own sidecar.
"""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from iedn import __version__
from iedn.files import atomic_write_bytes
from iedn.modalities import Modality
from iedn.sample import BRAIN_MEAN

from .asl_context import sidecar_path
from .cohort import ScanRecord
from .reading import Affine, FloatArray

NOTICE = "SYNTHETIC CBV MAP - research use only, not for diagnosis"
UNITS = "relative CBV, brain mean = 1.0 (network output / 0.25)"

# nibabel annotates only part of its calls; as Any it passes the strict checks.
_nibabel: Any = nibabel
# NIfTI's code for "aligned to another image", here the patient's T1.
_ALIGNED = 2


@dataclass(frozen=True)
class Sidecar:
    """What has to be known about a synthetic map.

    Attributes:
        model_hash: SHA-256 of the model's tensors.
        inputs_used: modalities the map was made from.
        inputs_missing: modalities the model could have used, but the scan does not have.
        qc_flags: codes of findings about the inputs, e.g. ``W204 ADC``.
    """

    model_hash: str
    inputs_used: tuple[Modality, ...]
    inputs_missing: tuple[Modality, ...] = ()
    qc_flags: tuple[str, ...] = ()

    def content(self) -> dict[str, Any]:
        """The sidecar as JSON values."""
        return {
            "notice": NOTICE,
            "units": UNITS,
            "model_hash": self.model_hash,
            "inputs_used": [modality.value for modality in self.inputs_used],
            "inputs_missing": [modality.value for modality in self.inputs_missing],
            "qc_flags": list(self.qc_flags),
            "software": f"iedn {__version__}",
        }


def map_path(folder: Path, record: ScanRecord) -> Path:
    """Where a scan's synthetic map is: one folder a patient."""
    return folder / record.patient_id / f"{record.scan_id}_synthetic-cbv.nii.gz"


def write_synthetic(
    folder: Path, record: ScanRecord, cbv_map: FloatArray, affine: Affine, sidecar: Sidecar
) -> Path:
    """Write one map and its sidecar; an existing one is replaced.

    Args:
        folder: the site's folder for synthetic maps.
        record: the scan.
        cbv_map: (D, H, W) on the patient's own grid, on the network's scale (brain mean 0.25);
            written divided by 0.25, so that the brain mean is about 1.
        affine: the patient's T1's, as it stands in the file.
        sidecar: what the map was made by and from.

    Returns:
        Path of the ``.nii.gz`` file; the sidecar is beside it with suffix ``.json``.
    """
    path = map_path(folder, record)
    content = nifti_bytes(np.asarray(cbv_map / BRAIN_MEAN, np.float32), affine)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.unlink(missing_ok=True)
    atomic_write_bytes(
        sidecar_path(path), (json.dumps(sidecar.content(), indent=2) + "\n").encode()
    )
    atomic_write_bytes(path, gzip.compress(content, compresslevel=6, mtime=0))
    return path


def nifti_bytes(array: FloatArray, affine: Affine) -> bytes:
    """An uncompressed NIfTI file of an array (D, H, W) with a new, empty header."""
    image = _nibabel.Nifti1Image(array.T, affine)
    image.set_sform(affine, code=_ALIGNED)
    image.set_qform(affine, code=_ALIGNED)
    image.header.set_xyzt_units("mm")
    content: bytes = image.to_bytes()
    return content
