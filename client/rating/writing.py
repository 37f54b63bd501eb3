"""Writing a reader study: once, and never changed.

Volumes are uncompressed, all of one type and header, so that neither a file's name nor its size nor
its header tells a synthetic map from a measured one.
"""

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from iedn.errors import ConfigError
from iedn.files import atomic_write_bytes
from iedn.sample import BRAIN_MEAN
from sites.reading import Affine, FloatArray
from sites.synthetic import NOTICE, nifti_bytes

from .study import MAPS, STUDY_FILE, VOLUMES, Case, Design, Series, Study

_STRUCTURAL_PERCENTILE = 99.5


@dataclass(frozen=True)
class CaseImages:
    """One scan's images, all (D, H, W) on one grid and on the network's scale (brain mean 0.25).

    Attributes:
        key: ``patient_id/scan_id``.
        images: by series name.
        brain_mask: 0 or 1.
        affine: of the grid, to RAS millimetres.
    """

    key: str
    images: Mapping[str, FloatArray]
    brain_mask: FloatArray
    affine: Affine


def write_study(
    folder: Path,
    design: Design,
    cases: Iterable[CaseImages],
    *,
    model_hash: str,
    progress: Callable[[int], None] | None = None,
) -> Study:
    """Write a study; the last thing written is ``study.json``, so that half a study is none.

    Args:
        folder: of this study; must not hold one.
        design: what is asked.
        cases: the scans.
        model_hash: of the model that made the synthetic maps.
        progress: called with the number of cases written.

    Raises:
        ConfigError: there is a study already.
    """
    if (folder / STUDY_FILE).exists():
        raise ConfigError("there is a study already", where=str(folder), allowed="another --study")
    (folder / VOLUMES).mkdir(parents=True, exist_ok=True, mode=0o700)
    written = []
    for number, images in enumerate(cases):
        written.append(_write_case(folder / VOLUMES, number, images, design))
        if progress is not None:
            progress(number + 1)
    study = Study(
        design=design,
        model_hash=model_hash,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        research_use=NOTICE,
        secret=secrets.token_hex(16),
        cases=tuple(written),
    )
    content = study.model_dump_json(indent=1).encode() + b"\n"
    atomic_write_bytes(folder / STUDY_FILE, content, mode=0o600)
    return study


def _write_case(folder: Path, number: int, images: CaseImages, design: Design) -> Case:
    series = {}
    for name, array in images.images.items():
        values = np.asarray(array / BRAIN_MEAN, np.float32)
        content = nifti_bytes(values, images.affine)
        file = f"{secrets.token_hex(8)}.nii"
        atomic_write_bytes(folder / file, content, mode=0o600)
        most = design.window_max if name in MAPS else _brightest(values, images.brain_mask)
        digest = hashlib.sha256(content).hexdigest()
        series[name] = Series(file=file, window=(0.0, most), sha256=digest)
    areas = images.brain_mask.sum(axis=(1, 2))
    plane = int(np.argmax(areas))
    rows, columns = images.brain_mask.shape[1:]
    middle = np.array([(columns - 1) / 2, (rows - 1) / 2, plane, 1.0])
    x, y, z = (float(value) for value in (images.affine @ middle)[:3])
    return Case(number=number, key=images.key, start_mm=(x, y, z), series=series)


def _brightest(values: FloatArray, mask: FloatArray) -> float:
    return max(float(np.percentile(values[mask > 0.5], _STRUCTURAL_PERCENTILE)), 1e-3)
