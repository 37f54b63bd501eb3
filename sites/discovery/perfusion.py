"""Taking an ASL image into a scan's record: only if it is known what its volumes are."""

import zlib
from dataclasses import replace
from pathlib import Path

import nibabel

from iedn.errors import ScanError
from iedn.modalities import Modality

from ..asl_context import asl_part, context_path
from ..cohort import ScanRecord
from .found import PathFinding


def with_asl(record: ScanRecord, asl: Path, *, needs_context: bool) -> ScanRecord:
    """The record with this ASL image.

    Args:
        record: a scan without ASL.
        asl: its ASL image.
        needs_context: whether a single volume, too, counts only if a table says what it is;
            otherwise it is taken for a perfusion map.

    Raises:
        ScanError: E102, no readable header; E201, the perfusion volume is not known.
    """
    images = {**record.images, Modality.ASL: asl}
    volumes = num_volumes(asl)
    if volumes == 1 and not needs_context and not context_path(asl).is_file():
        return replace(record, images=images)
    part = asl_part(asl, volumes)
    return replace(
        record, images=images, asl_kind=part.kind, asl_volume=part.volume, pld_s=part.pld_s
    )


def without_asl(asl: Path, error: ScanError) -> PathFinding:
    """The finding for an ASL image that was left out."""
    return PathFinding(error.code, asl, f"{error.problem}; the scan goes on without its ASL")


def num_volumes(path: Path) -> int:
    """Number of volumes that a NIfTI header announces.

    Raises:
        ScanError: E102, there is no readable header.
    """
    try:
        shape = nibabel.load(path).shape  # type: ignore[attr-defined]  # FileBasedImage lacks it
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise ScanError("E102", f"the header cannot be read: {error}") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ScanError("E102", f"the header cannot be read: {error}") from error
    number = 1
    for size in shape[3:]:
        number *= int(size)
    return number
