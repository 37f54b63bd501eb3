"""Writing a volume: a fresh header, and bytes that depend on the voxels alone."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray

from .acquisition import ScanGrid

COMPRESSION = 1
"""Noise hardly compresses; higher levels cost time and save little."""


def write_volume(
    path: Path, volume: NDArray[np.generic], grid: ScanGrid, dtype: type[np.generic]
) -> None:
    """Write ``volume`` (x, y, z) as gzipped NIfTI-1 in mm.

    Args:
        path: ``*.nii.gz``; its folder is made.
        volume: voxel values. For int16 whole numbers that fit are stored as they are, anything
            else with the NIfTI slope.
        grid: affine, stored as both qform and sform with code 1 (scanner).
        dtype: type on disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = volume.astype(dtype) if _fits(volume, dtype) else volume
    image = nibabel.Nifti1Image(stored, grid.affine)
    image.set_data_dtype(dtype)
    image.header.set_xyzt_units("mm")
    image.set_qform(grid.affine, code=1)
    image.set_sform(grid.affine, code=1)
    path.write_bytes(gzip.compress(image.to_bytes(), COMPRESSION, mtime=0))


def _fits(volume: NDArray[np.generic], dtype: type[np.generic]) -> bool:
    if not np.issubdtype(dtype, np.integer):
        return True
    limits = np.iinfo(dtype)
    whole = bool(np.all(volume == np.rint(volume)))
    return whole and bool(volume.min() >= limits.min and volume.max() <= limits.max)
