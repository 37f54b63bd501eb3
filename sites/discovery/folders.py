"""The layout ``<root>/<patient>/<scan>/<NAME>.nii.gz``: what an image is stands in its name.

Names are compared without regard to case. A leading lower-case ``r`` says that the image has been
aligned with the T1 already; such a copy is preferred, and said so. ``rCBV`` is therefore the
aligned CBV map; relative CBV is as good, since maps are scaled by their brain mean.
"""

from dataclasses import dataclass, field
from pathlib import Path

from iedn.errors import ScanError
from iedn.modalities import BRAIN_MASK, TARGET, Modality

from ..asl_context import companions, image_stem, sidecar_path
from ..cohort import ScanRecord
from .found import (
    Discovery,
    PathFinding,
    in_order,
    missing_parts,
    unused_files,
    visible_files,
    visible_folders,
    without_twins,
)
from .perfusion import with_asl, without_asl

LESION_MASK = "lesion_mask"
ALIASES = {
    Modality.T1WI: ("T1WI",),
    Modality.T2WI: ("T2WI",),
    Modality.FLAIR: ("T2_FLAIR", "T2WI_FLAIR", "FLAIR"),
    Modality.ADC: ("ADC",),
    Modality.T1_C: ("T1_C", "T1WI_C", "T1WI+C"),
    Modality.ASL: ("ASL", "TGSE"),
    TARGET: ("CBV",),
    BRAIN_MASK: ("brain_mask", "brainmask", "bmT1WI"),
    LESION_MASK: ("lesion_mask",),
}
"""Names of each manifest column's image, the preferred one first."""
KNOWN = ", ".join(alias for aliases in ALIASES.values() for alias in aliases)
OWN_FILES = frozenset(
    {"manifest.csv", "manifest.tsv", "labels.csv", "pseudonyms.csv", "phantom.json"}
)
"""Files in the root that are about the cohort."""

_COLUMN_OF = {
    alias.lower(): (str(column), rank)
    for column, aliases in ALIASES.items()
    for rank, alias in enumerate(aliases)
}


def discover_folders(root: Path) -> Discovery:
    """All scans below ``root``, and what is odd about the files there."""
    scans: list[ScanRecord] = []
    findings: list[PathFinding] = []
    used: set[Path] = set()
    for patient in visible_folders(root):
        for folder in visible_folders(patient):
            scan = _Scan(patient.name, folder)
            findings += scan.findings
            used |= scan.used
            scans += [scan.record] if scan.record is not None else []
    rest = [path for path in _all_files(root) if path not in used]
    return in_order(scans, findings + unused_files(rest, KNOWN))


def discover_one(folder: Path) -> Discovery:
    """The scan in one scan's folder, and what is odd about the files there."""
    scan = _Scan(folder.parent.name, folder)
    rest = [path for path in _files_below(folder) if path not in scan.used]
    records = [scan.record] if scan.record is not None else []
    return in_order(records, scan.findings + unused_files(rest, KNOWN))


def _all_files(root: Path) -> list[Path]:
    """Files below ``root`` except hidden ones and those about the cohort."""
    files = [p for p in visible_files(root) if p.name not in OWN_FILES]
    for folder in visible_folders(root):
        files += _files_below(folder)
    return files


def _files_below(folder: Path) -> list[Path]:
    # A linked folder may lead back here; it is entered as a patient or scan, not deeper.
    return [
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


@dataclass
class _Names:
    """Images of one scan by column, aligned copies apart."""

    plain: dict[str, list[Path]] = field(default_factory=dict)
    aligned: dict[str, list[Path]] = field(default_factory=dict)


class _Scan:
    """One scan's folder.

    Attributes:
        record: None where there is no image of a known name, or no T1.
        findings: about this folder.
        used: files that the record or a finding speaks of.
    """

    def __init__(self, patient: str, folder: Path) -> None:
        files = visible_files(folder)
        images, self.findings = without_twins(files)
        names = _sorted_by_name(images)
        chosen = {column: self._choice(column, names) for column in _columns(names)}
        self.used = {path for paths in _lists(names) for path in paths}
        self.used |= {finding.path for finding in self.findings}
        self.used |= {sidecar_path(path) for path in self.used if sidecar_path(path).is_file()}
        self.record = self._record(patient, folder, chosen) if chosen else None

    def _choice(self, column: str, names: _Names) -> Path:
        """The image to use: aligned before plain, then the preferred name."""
        aligned, plain = names.aligned.get(column, []), names.plain.get(column, [])
        best, *others = aligned or plain
        if aligned and plain:
            problem = f"the aligned copy is used for {column}, not {plain[0].name}"
            self.findings.append(PathFinding("I108", best, problem))
        if others:
            not_used = ", ".join(path.name for path in others)
            problem = f"used for {column}, not {not_used}; if that is wrong, rename the files"
            self.findings.append(PathFinding("W109", best, problem))
        return best

    def _record(self, patient: str, folder: Path, chosen: dict[str, Path]) -> ScanRecord | None:
        asl = chosen.pop(Modality.ASL, None)
        record = ScanRecord(
            patient_id=patient,
            scan_id=folder.name,
            images={m: chosen[m] for m in Modality if m in chosen},
            cbv=chosen.get(TARGET),
            brain_mask=chosen.get(BRAIN_MASK),
            lesion_mask=chosen.get(LESION_MASK),
        )
        self.findings += missing_parts(record, folder)
        if Modality.T1WI not in record.images:
            return None
        return record if asl is None else self._with_asl(record, asl)

    def _with_asl(self, record: ScanRecord, asl: Path) -> ScanRecord:
        """The record with its ASL, unless it is raw and nothing says what its volumes are."""
        self.used |= {path for path in companions(asl) if path.is_file()}
        try:
            return with_asl(record, asl, needs_context=False)
        except ScanError as error:
            self.findings.append(without_asl(asl, error))
            return record


def _sorted_by_name(images: list[Path]) -> _Names:
    """Images of known names; of one column, the preferred name first."""
    names = _Names()
    ranked = []
    for path in images:
        stem = image_stem(path)
        aligned = stem.startswith("r") and stem[1:].lower() in _COLUMN_OF
        known = _COLUMN_OF.get(stem[1:].lower() if aligned else stem.lower())
        if known is not None:
            column, rank = known
            ranked.append((rank, path, names.aligned if aligned else names.plain, column))
    for _, path, place, column in sorted(ranked, key=lambda entry: entry[:2]):
        place.setdefault(column, []).append(path)
    return names


def _columns(names: _Names) -> list[str]:
    return [str(c) for c in ALIASES if str(c) in names.plain or str(c) in names.aligned]


def _lists(names: _Names) -> list[list[Path]]:
    return [*names.plain.values(), *names.aligned.values()]
