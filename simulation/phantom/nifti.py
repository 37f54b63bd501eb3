"""Writing a volume: a fresh header, and bytes that depend on the voxels alone."""

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from .acquisition import ScanGrid

# nibabel annotates only part of its calls; as Any it passes the strict checks.
_Image: Any = nibabel.Nifti1Image

COMPRESSION = 1
"""Noise hardly compresses; higher levels cost time and save little."""


def write_volume(
    path: Path,
    volume: NDArray[np.generic],
    grid: ScanGrid,
    dtype: type[np.generic],
    *,
    repetition_s: float | None = None,
) -> None:
    """Write ``volume`` (x, y, z) or (x, y, z, time) as gzipped NIfTI-1 in mm.

    Args:
        path: ``*.nii.gz``; its folder is made.
        volume: voxel values. For int16 whole numbers that fit are stored as they are, anything
            else with the NIfTI slope.
        grid: affine, stored as both qform and sform with code 1 (scanner).
        dtype: type on disk.
        repetition_s: seconds from one volume of a series to the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = volume.astype(dtype) if _fits(volume, dtype) else volume
    image = _Image(stored, grid.affine)
    image.set_data_dtype(dtype)
    if repetition_s is None:
        image.header.set_xyzt_units("mm")
    else:
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = repetition_s
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    path.write_bytes(gzip.compress(image.to_bytes(), COMPRESSION, mtime=0))


def _fits(volume: NDArray[np.generic], dtype: type[np.generic]) -> bool:
    """Whether every voxel is stored exactly, so that no slope is needed."""
    values = np.asarray(volume, dtype=np.float64)
    if np.issubdtype(dtype, np.floating):
        return True
    limit = 2.0 ** (8 * np.dtype(dtype).itemsize - 1) - 1.0
    return bool(np.all(values == np.rint(values)) and np.abs(values).max() <= limit)
