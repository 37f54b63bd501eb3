"""What the search for scans gives: records, and findings for the person who searches."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from iedn.modalities import BRAIN_MASK, Modality

from ..cohort import ScanRecord

_NAMES_SHOWN = 8


@dataclass(frozen=True)
class PathFinding:
    """Something about the files that their owner should know. Local: names a path.

    Attributes:
        code: stable code: ``I...`` for the record, ``W...`` worth a look, ``E...`` left out.
        path: the file or folder concerned.
        problem: what was found and what to do.
    """

    code: str
    path: Path
    problem: str


@dataclass(frozen=True)
class Discovery:
    """Scans and findings.

    Attributes:
        scans: in the order of patient and scan.
        findings: in the order of code and path.
    """

    scans: tuple[ScanRecord, ...]
    findings: tuple[PathFinding, ...]


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI image; hidden files, such as ``._x.nii``, are not."""
    return path.name.lower().endswith((".nii", ".nii.gz")) and not path.name.startswith(".")


def visible_folders(folder: Path) -> list[Path]:
    """The folders in a folder, in order, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def visible_files(folder: Path) -> list[Path]:
    """The files in a folder, in order, without hidden ones."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def without_twins(files: Iterable[Path]) -> tuple[list[Path], list[PathFinding]]:
    """The images without ``X.nii`` where there is ``X.nii.gz``, and a W103 for each dropped.

    Which of two such files is the right one, software disagrees on.
    """
    images = [path for path in files if is_nifti(path)]
    packed = {path.with_suffix("") for path in images if path.suffix.lower() == ".gz"}
    twins = [path for path in images if path in packed]
    problem = "stands beside the same name with .gz, which is used; delete the wrong one"
    return (
        [path for path in images if path not in packed],
        [PathFinding("W103", path, problem) for path in twins],
    )


def missing_parts(record: ScanRecord, folder: Path) -> list[PathFinding]:
    """E210 for a scan without T1; W211 for one without brain mask."""
    if Modality.T1WI not in record.images:
        return [PathFinding("E210", folder, "no T1: the scan is left out; the T1 is its grid")]
    if record.brain_mask is None:
        problem = f"no {BRAIN_MASK}: add one; without it one is made, if deepbet is installed"
        return [PathFinding("W211", folder, problem)]
    return []


def unused_files(files: Iterable[Path], known: str) -> list[PathFinding]:
    """One W110 for all files that no rule takes, with each name once and its count."""
    paths = sorted(files)
    if not paths:
        return []
    names = Counter(path.name if is_nifti(path) else f"*{path.suffix}" for path in paths)
    shown = ", ".join(f"{name} ({count})" for name, count in names.most_common(_NAMES_SHOWN))
    more = len(names) - _NAMES_SHOWN
    rest = f" and {more} other names" if more > 0 else ""
    problem = f"{len(paths)} files are not used, this is the first: {shown}{rest}. Known: {known}"
    return [PathFinding("W110", paths[0], problem)]


def in_order(scans: Iterable[ScanRecord], findings: Iterable[PathFinding]) -> Discovery:
    """Scans by patient and scan, findings by code and path."""
    return Discovery(
        tuple(sorted(scans, key=lambda record: (record.patient_id, record.scan_id))),
        tuple(sorted(findings, key=lambda finding: (finding.code, finding.path))),
    )
