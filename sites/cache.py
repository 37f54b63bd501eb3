"""Prepared scans on disk, so that NIfTI files are decoded once.

A file's name is the SHA-256 of everything its content depends on: the bytes of the scan's
files, the grid, the settings and the version of the preprocessing. It tells nothing about the
patient, changes with any input, and need never be invalidated. The content is patient data: the
folder is for its owner only. The cache may be deleted at any time.
"""

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from iedn.config import GridConfig
from iedn.files import atomic_write_bytes
from iedn.modalities import BRAIN_MASK, TARGET, Modality

from .asl_context import companions
from .brain_mask import estimator
from .cohort import ScanRecord
from .config import RegistrationMode
from .preprocessing import PREPROCESSING_VERSION, Frame, Geometry, PreparedScan, Shape
from .reading import Finding, FloatArray


@dataclass(frozen=True)
class ScanSummary:
    """What a prepared scan has, without its arrays.

    Attributes:
        shape: (D, H, W).
        columns: manifest columns of the files that were used.
        warnings: as in ``PreparedScan``.
        refused: as in ``PreparedScan``.
        digests: as in ``PreparedScan``.
    """

    shape: Shape
    columns: frozenset[str]
    warnings: tuple[Finding, ...]
    refused: tuple[Finding, ...]
    digests: dict[str, str]


def summarise(scan: PreparedScan) -> ScanSummary:
    """The summary of a scan that is in memory."""
    return _summarised(_tensors(scan), _described(scan))


def cache_key(
    record: ScanRecord, grid: GridConfig, *, registration: RegistrationMode = "off"
) -> str:
    """SHA-256 (hex) over the content of the scan's files and the preprocessing's settings."""
    settings = {
        "version": PREPROCESSING_VERSION,
        "grid": grid.model_dump(),
        "registration": registration,
        "asl_volume": record.asl_volume,
        "files": {column: _file_digest(path) for column, path in record.files.items()},
    }
    return hashlib.sha256(
        json.dumps(settings | _raw_asl(record) | _made_mask(record), sort_keys=True).encode()
    ).hexdigest()


def _made_mask(record: ScanRecord) -> dict[str, str]:
    """What a mask that nobody gave would be made by."""
    return {} if record.brain_mask is not None else {"brain_mask": estimator()}


def _raw_asl(record: ScanRecord) -> dict[str, Any]:
    """What else the CBF computed from a raw ASL file depends on; nothing for a finished map."""
    path = record.images.get(Modality.ASL)
    if record.asl_kind != "deltam" or path is None:
        return {}
    return {"pld_s": record.pld_s, "asl": [_file_digest(file) for file in companions(path)]}


def _file_digest(path: Path) -> str:
    """SHA-256 of a file; a word for one that cannot be opened, which is judged when read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return "unreadable"


class ScanCache:
    """A folder of prepared scans.

    Args:
        folder: created, for its owner only, if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, key: str) -> Path:
        """Where the scan with this key is, or would be."""
        return self._folder / f"{key}.safetensors"

    def store(self, key: str, scan: PreparedScan) -> None:
        """Write a scan; an interrupted write leaves nothing under the key."""
        tensors = _tensors(scan)
        described = _described(scan) | {"crc32": _checksum(tensors)}
        # One entry only: safetensors writes several in random order.
        metadata = {"scan": json.dumps(described)}
        atomic_write_bytes(self.path(key), save(tensors, metadata=metadata))

    def load(self, key: str) -> PreparedScan | None:
        """The scan with this key; None if it is not there or damaged (by checksum).

        Its arrays are mapped, not copied: they take the operating system's file cache, which it
        takes back when it needs the memory. Writing to them does not change the file.
        """
        try:
            with safe_open(self.path(key), framework="numpy") as file:
                described = _description(file)
            tensors = _mapped(self.path(key))
            if described["crc32"] != _checksum(tensors):
                return None
            return _restored(tensors, described)
        except (OSError, RuntimeError, SafetensorError, KeyError, ValueError):
            return None

    def summary(self, key: str) -> ScanSummary | None:
        """What the file's header says, without reading the arrays; None as for ``load``.

        A file that is cut off is noticed here, one damaged inside only by ``load``.
        """
        try:
            with safe_open(self.path(key), framework="numpy") as file:
                return _summarised(file.keys(), _description(file))
        except (OSError, SafetensorError, KeyError, ValueError):
            return None


def _mapped(path: Path) -> dict[str, FloatArray]:
    """The arrays of a safetensors file: length of the header, header, float32 values."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(length))
    # Mapped by PyTorch, which needs no open descriptor: a process may have 1,024 of them.
    mapped = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
    content = mapped.numpy()[8 + length :]
    return {
        name: content[slice(*entry["data_offsets"])].view(np.float32).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _description(file: Any) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((file.metadata() or {})["scan"])
    return described


def _tensors(scan: PreparedScan) -> dict[str, FloatArray]:
    tensors = {f"image.{m}": array for m, array in scan.images.items()}
    tensors |= {f"region.{name}": array for name, array in scan.regions.items()}
    tensors[BRAIN_MASK] = scan.brain_mask
    if scan.cbv is not None:
        tensors[TARGET] = scan.cbv
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _summarised(names: Iterable[str], described: dict[str, Any]) -> ScanSummary:
    return ScanSummary(
        shape=_frame_restored(described["grid"]).shape,
        columns=frozenset(name.rpartition(".")[2] for name in names),
        warnings=_findings(described["warnings"]),
        refused=_findings(described["refused"]),
        digests=dict(described["digests"]),
    )


def _findings(described: Iterable[dict[str, str]]) -> tuple[Finding, ...]:
    return tuple(Finding(**finding) for finding in described)


def _checksum(tensors: dict[str, FloatArray]) -> int:
    """CRC-32 over the tensors in the order of their names: finds damage, not manipulation."""
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].data, zlib.crc32(name.encode(), crc))
    return crc


def _described(scan: PreparedScan) -> dict[str, Any]:
    geometry = scan.geometry
    return {
        "grid": _frame_described(geometry.grid),
        "patient": _frame_described(geometry.patient),
        "file_affine": geometry.file_affine.tolist(),
        "warnings": [asdict(finding) for finding in scan.warnings],
        "refused": [asdict(finding) for finding in scan.refused],
        "digests": scan.digests,
    }


def _frame_described(frame: Frame) -> dict[str, Any]:
    return {"shape": list(frame.shape), "affine": frame.affine.tolist()}


def _restored(tensors: dict[str, FloatArray], described: dict[str, Any]) -> PreparedScan:
    grid, patient = (_frame_restored(described[name]) for name in ("grid", "patient"))
    return PreparedScan(
        images={m: tensors[f"image.{m}"] for m in Modality if f"image.{m}" in tensors},
        brain_mask=tensors[BRAIN_MASK],
        geometry=Geometry(grid, patient, np.array(described["file_affine"])),
        cbv=tensors.get(TARGET),
        regions={
            name.removeprefix("region."): array
            for name, array in tensors.items()
            if name.startswith("region.")
        },
        warnings=_findings(described["warnings"]),
        refused=_findings(described["refused"]),
        digests=dict(described["digests"]),
    )


def _frame_restored(described: dict[str, Any]) -> Frame:
    depth, rows, columns = described["shape"]
    return Frame((depth, rows, columns), np.array(described["affine"]))
