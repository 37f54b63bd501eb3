"""Identifiers that are fit for a manifest, and the key table behind made-up ones.

A folder may be called after a person. Such names are warned of, and replaced on request. The key
table is for its owner only (mode 0600) and is read again the next time, so that a patient keeps
the pseudonym: the split into training and test patients goes by it. The manifest's *paths* still
hold the folders' names; nothing of either leaves the site.
"""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from iedn.errors import CohortError
from iedn.files import atomic_write_bytes

from ..cohort import IDENTIFIER, ScanRecord
from .found import Discovery, PathFinding, in_order

KEY_TABLE = "pseudonyms.csv"
COLUMNS = ("patient_folder", "scan_folder", "patient_id", "scan_id")

# Letters that are too few for a name, and a number; words that say which scan it is.
_PATIENT = re.compile(r"(sub-)?[A-Za-z]{0,4}-?[0-9]+")
_SCAN = re.compile(
    r"[A-Za-z]{0,4}[-_]?[0-9]+"
    r"|(visit|scan|session|ses|baseline|followup|preop|postop|pre|post)[-_]?[A-Za-z]{0,2}[0-9]*"
)

Key = tuple[str, str]
"""Patient and scan, as folders or as identifiers."""


def check_identifiers(found: Discovery, root: Path) -> Discovery:
    """The scans as they are, without those whose identifiers a manifest cannot hold.

    E501 is a scan that is left out, W501 an identifier that may be a name.
    """
    scans, findings = [], list(found.findings)
    for record in found.scans:
        if IDENTIFIER.fullmatch(record.patient_id) and IDENTIFIER.fullmatch(record.scan_id):
            scans.append(record)
            continue
        problem = (
            "left out: patient and scan have 1 to 64 letters, digits, '.', '_', '-' as names; "
            "rename the folder or give --pseudonyms"
        )
        findings.append(PathFinding("E501", root / record.patient_id / record.scan_id, problem))
    problem = "looks like a name: the manifest would hold it; rename it or give --pseudonyms"
    suspicious = {root / r.patient_id for r in scans if not _PATIENT.fullmatch(r.patient_id)}
    suspicious |= {root / r.patient_id / r.scan_id for r in scans if not _SCAN.fullmatch(r.scan_id)}
    return in_order(scans, findings + [PathFinding("W501", p, problem) for p in suspicious])


def with_pseudonyms(found: Discovery, known: dict[Key, Key]) -> tuple[Discovery, dict[Key, Key]]:
    """The scans with identifiers made up where the folder's name may be a person's.

    Args:
        found: scans with the folders' names as identifiers.
        known: identifiers given before, by folders; they are kept.

    Returns:
        The scans, and the key table: ``known`` and what is new.
    """
    identifiers, scans = _Identifiers(found.scans, known), []
    for record in found.scans:
        patient, scan = identifiers.of((record.patient_id, record.scan_id))
        scans.append(replace(record, patient_id=patient, scan_id=scan))
    return in_order(scans, found.findings), identifiers.table


def read_key_table(path: Path) -> dict[Key, Key]:
    """Identifiers by folders; nothing where there is no table yet.

    Raises:
        CohortError: the table cannot be read; it is never guessed, since a patient must keep the
            pseudonym.
    """
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream, strict=True)
    except (OSError, ValueError, csv.Error) as error:
        raise CohortError(f"{path}: not a readable key table: {error}") from error
    if tuple(header) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        allowed = ", ".join(COLUMNS)
        raise CohortError(f"{path}: not a key table: every line has the cells {allowed}")
    return {(row[0], row[1]): (row[2], row[3]) for row in rows}


def write_key_table(path: Path, table: dict[Key, Key]) -> None:
    """Write the table so that only its owner can read it; nothing where it is empty."""
    if not table:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((*folders, *ids) for folders, ids in table.items())
    atomic_write_bytes(path, text.getvalue().encode(), mode=0o600)


class _Identifiers:
    """Gives every folder its identifier.

    A folder keeps its own name unless that may be a person's, or was given to another folder
    before.

    Attributes:
        table: identifiers by folders, of those scans of which one differs from its folder.
    """

    def __init__(self, scans: Iterable[ScanRecord], known: dict[Key, Key]) -> None:
        self.table = dict(known)
        self._patients = {folders[0]: ids[0] for folders, ids in known.items()}
        self._names: dict[str, set[str]] = {}
        for record in scans:
            self._names.setdefault(record.patient_id, set()).add(record.scan_id)

    def of(self, folders: Key) -> Key:
        """Patient and scan identifier of a folder."""
        if folders not in self.table:
            ids = self._patient(folders[0]), self._scan(folders)
            if ids == folders:
                return folders
            self.table[folders] = ids
        return self.table[folders]

    def _patient(self, folder: str) -> str:
        if folder not in self._patients:
            given = set(self._patients.values())
            plain = _PATIENT.fullmatch(folder) and folder not in given
            taken = given | set(self._names)
            self._patients[folder] = folder if plain else _next_free("sub-{:04d}", taken)
        return self._patients[folder]

    def _scan(self, folders: Key) -> str:
        patient, folder = folders
        given = {ids[1] for (owner, _), ids in self.table.items() if owner == patient}
        if _SCAN.fullmatch(folder) and folder not in given:
            return folder
        return _next_free("scan-{:02d}", given | self._names[patient])


def _next_free(pattern: str, taken: set[str]) -> str:
    number = 1
    while pattern.format(number) in taken:
        number += 1
    return pattern.format(number)
