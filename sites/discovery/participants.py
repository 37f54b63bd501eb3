"""What tables beside the images say of patients: labels, age, sex, disease.

``labels.csv`` in the root of either layout has the columns patient_id, scan_id, label, with the
names of the folders. BIDS has ``participants.tsv`` and ``sub-X/sub-X_sessions.tsv``; a session's
own cell goes before the patient's. A cell that cannot be used is a finding and stays empty.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..cohort import LABELS, Label, ScanRecord
from .found import Discovery, PathFinding, in_order

LABELS_FILE = "labels.csv"
LABEL_COLUMNS = ("patient_id", "scan_id", "label")

_ABSENT = ("", "n/a")
_OLDEST = 130.0


@dataclass(frozen=True)
class Person:
    """What a table says of a patient, or of a patient in one session."""

    label: Label | None = None
    age: float | None = None
    sex: str = ""
    disease: str = ""


def read_people(
    root: Path, subjects: Iterable[Path]
) -> tuple[dict[tuple[str, str], Person], list[PathFinding]]:
    """Patients by (subject, session); with an empty session, what holds for all of them.

    Args:
        root: of the BIDS dataset.
        subjects: its ``sub-*`` folders.
    """
    people: dict[tuple[str, str], Person] = {}
    findings: list[PathFinding] = []
    path = root / "participants.tsv"
    for cells in _rows(path, "\t", ("participant_id",), findings):
        people[cells["participant_id"], ""] = _person(cells, Person(), path, findings)
    for subject in subjects:
        path = subject / f"{subject.name}_sessions.tsv"
        general = people.get((subject.name, ""), Person())
        for cells in _rows(path, "\t", ("session_id",), findings):
            key = subject.name, cells["session_id"]
            people[key] = _person(cells, general, path, findings)
    return people, findings


def with_labels(found: Discovery, root: Path) -> Discovery:
    """The scans with the labels of ``labels.csv``, if there is one."""
    path, findings = root / LABELS_FILE, list(found.findings)
    labels: dict[tuple[str, str], Label | None] = {}
    for cells in _rows(path, ",", LABEL_COLUMNS, findings):
        label = _label(cells["label"], path, findings)
        labels[cells["patient_id"], cells["scan_id"]] = label
    scans = [_with_label(record, labels) for record in found.scans]
    known = {(record.patient_id, record.scan_id) for record in found.scans}
    for patient, scan in sorted(set(labels) - known):
        problem = f"names {patient}/{scan}, which was not found; the line has no effect"
        findings.append(PathFinding("W404", path, problem))
    return in_order(scans, findings)


def _with_label(record: ScanRecord, labels: Mapping[tuple[str, str], Label | None]) -> ScanRecord:
    label = labels.get((record.patient_id, record.scan_id))
    return record if label is None else replace(record, label=label)


def _rows(
    path: Path, delimiter: str, needed: tuple[str, ...], findings: list[PathFinding]
) -> list[dict[str, str]]:
    """Cells of every row, stripped, absent ones empty; no rows where there is no usable table."""
    if not path.is_file():
        return []
    try:
        lines = path.read_text("utf-8-sig").splitlines()
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        findings.append(PathFinding("E401", path, f"not a readable table ({error}); not used"))
        return []
    header = [name.strip() for name in reader.fieldnames or ()]
    missing = [name for name in needed if name not in header]
    if missing:
        problem = f"has no column {', '.join(missing)} (found: {', '.join(header)}); not used"
        findings.append(PathFinding("E401", path, problem))
        return []
    return [
        {name.strip(): _cell(value) for name, value in row.items() if name is not None}
        for row in rows
    ]


def _cell(value: str | None) -> str:
    text = (value or "").strip()
    return "" if text.lower() in _ABSENT else text


def _person(
    cells: Mapping[str, str], general: Person, path: Path, findings: list[PathFinding]
) -> Person:
    return Person(
        label=_label(cells.get("label", ""), path, findings) or general.label,
        age=_age(cells.get("age", ""), general.age, path, findings),
        sex=cells.get("sex", "") or general.sex,
        disease=cells.get("disease", "") or general.disease,
    )


def _label(value: str, path: Path, findings: list[PathFinding]) -> Label | None:
    if not value:
        return None
    if value not in LABELS:
        problem = f"label {value!r} is left empty. Allowed: {', '.join(LABELS)}, or nothing"
        findings.append(PathFinding("E402", path, problem))
        return None
    return value


def _age(
    value: str, general: float | None, path: Path, findings: list[PathFinding]
) -> float | None:
    try:
        age = float(value) if value else general
    except ValueError:
        age = -1.0
    if age is not None and not 0.0 <= age <= _OLDEST:
        problem = f"age {value!r} is left empty. Allowed: years from 0 to {_OLDEST:g}, or nothing"
        findings.append(PathFinding("W405", path, problem))
        return None
    return age
