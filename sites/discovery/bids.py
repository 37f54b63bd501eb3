"""A subset of BIDS: raw ``anat``, ``dwi``, ``perf``; CBV and masks from ``derivatives``.

    sub-X/[ses-Y/]anat/*_T1w, *_T2w, *_FLAIR, *_ce-*_T1w (contrast);  dwi/*_ADC;  perf/*_asl
    derivatives/**/perf/*_cbv, **/*_desc-brain_mask, **/*_label-lesion_mask (or desc-lesion)

There is no BIDS suffix for a CBV map from a contrast bolus, so that a validator complains of
``_cbv``. Derivatives in a template's space (``space-MNI...``) are not the patient's and not used.
Entities are read from the file name; sidecars are looked for beside the image only.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from iedn.errors import ScanError
from iedn.modalities import BRAIN_MASK, TARGET, Modality

from ..asl_context import m0_path
from ..cohort import ScanRecord
from .folders import LESION_MASK
from .found import (
    Discovery,
    PathFinding,
    in_order,
    is_nifti,
    missing_parts,
    unused_files,
    visible_files,
    visible_folders,
    without_twins,
)
from .participants import Person, read_people
from .perfusion import with_asl, without_asl

ONLY_SESSION = "scan-1"
"""Scan id where there are no session folders."""
KNOWN = (
    "anat/*_T1w, *_T2w, *_FLAIR, *_ce-*_T1w, dwi/*_ADC, perf/*_asl, and below derivatives/ "
    "perf/*_cbv, *_desc-brain_mask, *_label-lesion_mask"
)

_NAME = re.compile(
    r"(?P<subject>sub-[A-Za-z0-9]+)(_(?P<session>ses-[A-Za-z0-9]+))?"
    r"(?P<entities>(_[A-Za-z]+-[A-Za-z0-9+]+)*)_(?P<suffix>[A-Za-z0-9]+)(?i:\.nii(\.gz)?)"
)
_RAW = {
    ("anat", "T1w"): Modality.T1WI,
    ("anat", "T2w"): Modality.T2WI,
    ("anat", "FLAIR"): Modality.FLAIR,
    ("dwi", "ADC"): Modality.ADC,
    ("perf", "asl"): Modality.ASL,
}
_PATIENT_SPACES = ("", "T1w", "orig", "individual", "native", "scanner")

Place = tuple[str, str]
"""Subject and session folder; the session is empty where there is none."""


@dataclass(frozen=True)
class _Image:
    """A file and what its name says.

    Attributes:
        place: subject and session.
        column: manifest column, empty where the file is of no use.
        num_entities: how special it is: plain images are preferred.
    """

    path: Path
    place: Place
    column: str
    num_entities: int


def discover_bids(root: Path) -> Discovery:
    """All scans of the dataset at ``root``, and what is odd about the files there."""
    subjects = _subjects(root)
    images, findings = _images(root, (*subjects, root / "derivatives"))
    findings += [_misplaced(image) for image in images if _is_misplaced(image, root)]
    by_place = _by_place(image for image in images if not _is_misplaced(image, root))
    people, wrong = read_people(root, subjects)
    scans = []
    for place, columns in by_place.items():
        scan = _Scan(root, place, columns)
        findings += scan.findings
        if scan.record is not None:
            person = people.get(place) or people.get((place[0], ""))
            scans.append(_described(scan.record, person))
    return in_order(scans, findings + wrong + unused_files(_rest(root, images), KNOWN))


def discover_session(folder: Path) -> Discovery:
    """The scan of one session, or of a subject without sessions, with its derivatives.

    Args:
        folder: ``sub-X/ses-Y``, or ``sub-X``, of a dataset.
    """
    place = (folder.name, "")
    if folder.name.startswith("ses-"):
        place = (folder.parent.name, folder.name)
    root = folder.parents[1] if place[1] else folder.parent
    images, findings = _images(root, (folder, root / "derivatives"))
    own = _by_place(image for image in images if not _is_misplaced(image, root)).get(place, {})
    scan = _Scan(root, place, own)
    about = [f for f in findings if _read_name(f.path, root).place == place]
    return in_order([scan.record] if scan.record is not None else [], about + scan.findings)


def _images(root: Path, tops: Iterable[Path]) -> tuple[list[_Image], list[PathFinding]]:
    """All images below some folders of the dataset, and a W103 for each twin."""
    files = [path for top in tops for path in top.rglob("*")]
    paths, findings = without_twins(path for path in files if path.is_file())
    return [_read_name(path, root) for path in paths], findings


def _by_place(images: Iterable[_Image]) -> dict[Place, dict[str, list[_Image]]]:
    """Images that have a column, by scan and column."""
    found: dict[Place, dict[str, list[_Image]]] = {}
    for image in images:
        if image.column:
            found.setdefault(image.place, {}).setdefault(image.column, []).append(image)
    return found


def _rest(root: Path, images: list[_Image]) -> set[Path]:
    """Images without a column that do not calibrate an ASL image, and those in the root."""
    stray = {path for path in visible_files(root) if is_nifti(path)}
    calibrations = {m0_path(image.path) for image in images if image.column == Modality.ASL}
    return stray | {image.path for image in images if not image.column} - calibrations


def is_bids(root: Path) -> bool:
    """Whether the folder looks like a BIDS dataset."""
    if (root / "dataset_description.json").is_file():
        return True
    patterns = ("anat", "ses-*/anat")
    return any(any(subject.glob(p)) for subject in _subjects(root) for p in patterns)


def _subjects(root: Path) -> list[Path]:
    return [folder for folder in visible_folders(root) if folder.name.startswith("sub-")]


def _read_name(path: Path, root: Path) -> _Image:
    match = _NAME.fullmatch(path.name)
    if match is None:
        return _Image(path, ("", ""), "", 0)
    entities = dict(entity.split("-", 1) for entity in match["entities"].split("_")[1:])
    derived = path.relative_to(root).parts[0] == "derivatives"
    column = (_derived_column if derived else _raw_column)(path, match["suffix"], entities)
    place = (match["subject"], match["session"] or "")
    return _Image(path, place, column, len(entities))


def _is_misplaced(image: _Image, root: Path) -> bool:
    """Whether a folder above the file is that of another subject or session."""
    above = image.path.relative_to(root).parts[:-1]
    other = any(part.startswith(("sub-", "ses-")) and part not in image.place for part in above)
    return bool(image.column) and other


def _misplaced(image: _Image) -> PathFinding:
    problem = "its name and its folder are of different patients or sessions: not used"
    return PathFinding("E212", image.path, problem)


def _raw_column(path: Path, suffix: str, entities: dict[str, str]) -> str:
    column = _RAW.get((path.parent.name, suffix))
    if column is None or entities.get("part", "mag") != "mag":
        return ""
    if "ce" in entities:
        return Modality.T1_C if column is Modality.T1WI else ""
    return column


def _derived_column(path: Path, suffix: str, entities: dict[str, str]) -> str:
    if entities.get("space", "") not in _PATIENT_SPACES:
        return ""
    if suffix == "cbv" and path.parent.name == "perf":
        return TARGET
    if suffix != "mask":
        return ""
    if entities.get("desc") == "brain":
        return BRAIN_MASK
    return LESION_MASK if "lesion" in (entities.get("label"), entities.get("desc")) else ""


class _Scan:
    """One session of one subject.

    Attributes:
        record: None where there is no T1.
        findings: about its files.
    """

    def __init__(self, root: Path, place: Place, columns: dict[str, list[_Image]]) -> None:
        self.findings: list[PathFinding] = []
        chosen = {column: self._choice(column, images) for column, images in columns.items()}
        asl = chosen.pop(Modality.ASL, None)
        record = ScanRecord(
            patient_id=place[0],
            scan_id=place[1] or ONLY_SESSION,
            images={m: chosen[m] for m in Modality if m in chosen},
            cbv=chosen.get(TARGET),
            brain_mask=chosen.get(BRAIN_MASK),
            lesion_mask=chosen.get(LESION_MASK),
        )
        self.findings += self._missing(record, root / place[0] / place[1])
        if asl is not None:
            record = self._with_asl(record, asl)
        self.record = record if Modality.T1WI in record.images else None

    def _missing(self, record: ScanRecord, folder: Path) -> list[PathFinding]:
        if record.images:
            return missing_parts(record, folder)
        problem = "there are only derivatives; in a dataset with sessions their names need one too"
        return [PathFinding("E210", folder, problem)]

    def _choice(self, column: str, images: list[_Image]) -> Path:
        """The plainest name; a mask of the anatomy before one of another image."""

        def rank(image: _Image) -> tuple[bool, int, Path]:
            elsewhere = column == BRAIN_MASK and image.path.parent.name != "anat"
            return elsewhere, image.num_entities, image.path

        best, *others = sorted(images, key=rank)
        if others:
            not_used = ", ".join(image.path.name for image in others)
            problem = f"used for {column}, not {not_used}; if that is wrong, move it away"
            self.findings.append(PathFinding("W109", best.path, problem))
        return best.path

    def _with_asl(self, record: ScanRecord, asl: Path) -> ScanRecord:
        try:
            return with_asl(record, asl, needs_context=True)
        except ScanError as error:
            self.findings.append(without_asl(asl, error))
            return record


def _described(record: ScanRecord, person: Person | None) -> ScanRecord:
    if person is None:
        return record
    return replace(
        record, label=person.label, age=person.age, sex=person.sex, disease=person.disease
    )
