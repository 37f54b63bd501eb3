"""The cohort: the table of scans a hospital offers, read from its manifest.

The manifest is the contract between a hospital's folders and everything behind it: whatever
discovers scans writes a manifest, and only this module reads one. Reading it touches no image.
Nothing of it (identifiers, paths, ages) ever leaves the site.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal, cast

from iedn.errors import CohortError, ScanError
from iedn.modalities import BRAIN_MASK, TARGET, Modality

from .config import SplitConfig

Label = Literal["recurrence", "treatment_response"]
SplitName = Literal["train", "validation", "test"]

LABELS: tuple[Label, ...] = ("recurrence", "treatment_response")
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")
ASL_KINDS = ("cbf", "deltam")

REQUIRED_COLUMNS = (
    *("patient_id", "scan_id"),
    *(modality.value for modality in Modality),
    *(TARGET, BRAIN_MASK, "label", "split", "exclude_reason"),
)
OPTIONAL_COLUMNS = (
    *("age", "sex", "disease", "lesion_mask", "reader_roi"),
    *("asl_kind", "asl_volume", "pld_s"),
)
PATH_COLUMNS = (*(m.value for m in Modality), TARGET, BRAIN_MASK, "lesion_mask", "reader_roi")

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_PROBLEMS_SHOWN = 10


@dataclass(frozen=True)
class ScanRecord:
    """One scan: one time point of one patient.

    Attributes:
        patient_id: the hospital's pseudonym; splits and minimum counts go by it.
        scan_id: unique within the patient.
        images: file of each modality that was scanned; an absent one has no entry.
        cbv: measured CBV map.
        brain_mask: mask of the brain, 1 inside.
        lesion_mask: mask of the lesion.
        reader_roi: region that a reader drew.
        label: what became of the lesion; None where it is not known.
        split: the manifest's own choice; None leaves it to ``split_by_patient``.
        exclude_reason: why the scan is left out; empty where it is not.
        asl_kind: ``cbf``, a map; or ``deltam``, raw: ``sites.asl`` computes the map when reading.
        asl_volume: which volume (from 0) of a 4D ASL file is the perfusion map, or the only
            difference to use.
        pld_s: post-labelling delay of the ASL scan in seconds; goes before the sidecar's.
        age: in years.
    """

    patient_id: str
    scan_id: str
    images: Mapping[Modality, Path]
    cbv: Path | None = None
    brain_mask: Path | None = None
    lesion_mask: Path | None = None
    reader_roi: Path | None = None
    label: Label | None = None
    split: SplitName | None = None
    exclude_reason: str = ""
    asl_kind: str | None = None
    asl_volume: int | None = None
    pld_s: float | None = None
    age: float | None = None
    sex: str = ""
    disease: str = ""

    @property
    def key(self) -> str:
        """``patient_id/scan_id``: names the scan in local messages."""
        return f"{self.patient_id}/{self.scan_id}"

    @property
    def files(self) -> dict[str, Path]:
        """All files of the scan by manifest column, in the manifest's order."""
        files = {m.value: self.images[m] for m in Modality if m in self.images}
        others = {
            TARGET: self.cbv,
            BRAIN_MASK: self.brain_mask,
            "lesion_mask": self.lesion_mask,
            "reader_roi": self.reader_roi,
        }
        return files | {column: path for column, path in others.items() if path is not None}


@dataclass(frozen=True)
class Cohort:
    """All scans of a manifest.

    Attributes:
        scans: the scans to use.
        excluded: those with an ``exclude_reason``.
        problems: findings that do not stop the cohort, one sentence each; they name local
            files and stay at the site.
    """

    scans: tuple[ScanRecord, ...]
    excluded: tuple[ScanRecord, ...] = ()
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class CohortSplit:
    """The scans to train on, to choose the model by, and to test it on; no patient in two."""

    train: tuple[ScanRecord, ...]
    validation: tuple[ScanRecord, ...]
    test: tuple[ScanRecord, ...]


@dataclass(frozen=True)
class Quarantine:
    """Why a scan, or one modality of it, is not used. Local: names the scan.

    Attributes:
        code: stable code, e.g. ``E101``.
        scan: ``patient_id/scan_id``.
        modality: the manifest column concerned; empty when it is the scan as a whole.
        problem: what is wrong and what to do.
    """

    code: str
    scan: str
    modality: str
    problem: str


def load_manifest(path: Path | str) -> Cohort:
    """Read a manifest (``.csv``, or tab-separated ``.tsv``).

    Raises:
        CohortError: unreadable file, wrong columns, or wrong cells; the message gives the file,
            and for every wrong cell the line, column, value and what is allowed.
        ScanError: code E302, a patient whose scans the manifest puts into two splits.
    """
    path = Path(path)
    rows = _read_rows(path)
    wrong: list[str] = []
    records = [_Row(path, line, cells, wrong).record() for line, cells in rows]
    wrong += _duplicates(records, [line for line, _ in rows])
    if wrong:
        raise CohortError("\n".join(f"{path}: {entry}" for entry in _shortened(wrong)))
    scans = tuple(r for r in records if not r.exclude_reason)
    _refuse_split_patients(path, scans)
    excluded = tuple(r for r in records if r.exclude_reason)
    return Cohort(scans, excluded, tuple(_file_problems(scans)))


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Line number and cells of every row; the columns are checked here."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    try:
        text = path.read_text(encoding="utf-8-sig")
        reader = csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, cells) for cells in reader if any(c.strip() for c in cells)]
    except UnicodeDecodeError as error:
        raise CohortError(f"{path}: not UTF-8 text (byte {error.start}); save as UTF-8") from error
    except csv.Error as error:
        raise CohortError(f"{path}: not a readable table: {error}") from error
    except OSError as error:
        raise CohortError(f"{path}: cannot be read: {error.strerror}") from error
    if not lines:
        raise CohortError(f"{path}: empty; the first line must name the columns")
    header = [cell.strip() for cell in lines[0][1]]
    _check_header(path, lines[0][0], header)
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise CohortError(
                f"{path}: line {number} has {len(cells)} cells, the header {len(header)}"
            )
    return [
        (number, dict(zip(header, (c.strip() for c in cells), strict=True)))
        for number, cells in lines[1:]
    ]


def _check_header(path: Path, line: int, header: list[str]) -> None:
    place, allowed = f"{path}: line {line}", ", ".join(REQUIRED_COLUMNS + OPTIONAL_COLUMNS)
    for column in header:
        if column not in REQUIRED_COLUMNS + OPTIONAL_COLUMNS:
            raise CohortError(f"{place}: unknown column {column!r}. Allowed: {allowed}")
        if header.count(column) > 1:
            raise CohortError(f"{place}: column {column!r} appears twice")
    missing = [column for column in REQUIRED_COLUMNS if column not in header]
    if missing:
        raise CohortError(
            f"{place}: column {', '.join(missing)} is missing; its cells may be empty, "
            "the column must be there"
        )


class _Row:
    """One row on its way to a record; every wrong cell adds a line to ``wrong``."""

    def __init__(self, path: Path, line: int, cells: dict[str, str], wrong: list[str]) -> None:
        self._folder, self._line, self._cells, self._wrong = path.parent, line, cells, wrong

    def record(self) -> ScanRecord:
        images = {m: p for m in Modality if (p := self._path(m.value)) is not None}
        return ScanRecord(
            patient_id=self._identifier("patient_id"),
            scan_id=self._identifier("scan_id"),
            images=images,
            cbv=self._path(TARGET),
            brain_mask=self._path(BRAIN_MASK),
            lesion_mask=self._path("lesion_mask"),
            reader_roi=self._path("reader_roi"),
            label=cast("Label | None", self._choice("label", LABELS, code="E402 ")),
            split=cast("SplitName | None", self._choice("split", SPLITS)),
            exclude_reason=self._cells["exclude_reason"],
            asl_kind=self._choice("asl_kind", ASL_KINDS),
            asl_volume=self._volume(),
            pld_s=self._number("pld_s", most=10.0),
            age=self._number("age", most=130.0),
            sex=self._cells.get("sex", ""),
            disease=self._cells.get("disease", ""),
        )

    def _refuse(self, column: str, allowed: str, code: str = "") -> None:
        value = self._cells[column]
        self._wrong.append(
            f"{code}line {self._line}, column {column}: got {value!r}. Allowed: {allowed}"
        )

    def _identifier(self, column: str) -> str:
        value = self._cells[column]
        if not IDENTIFIER.fullmatch(value):
            self._refuse(column, "1 to 64 letters, digits, '.', '_', '-', e.g. sub-0007")
        return value

    def _path(self, column: str) -> Path | None:
        value = self._cells.get(column, "")
        if not value:
            return None
        if PurePosixPath(value).is_absolute() or PureWindowsPath(value).drive:
            self._refuse(column, "a path relative to the manifest, or nothing")
        elif not _can_be_a_path(value):
            self._refuse(column, "names of up to 255 bytes, a path of up to 1024, no control codes")
        elif _leaves_folder(value):
            self._refuse(column, "a path inside the manifest's folder, or nothing")
        return self._folder / value

    def _choice(self, column: str, allowed: tuple[str, ...], code: str = "") -> str | None:
        value = self._cells.get(column, "")
        if value and value not in allowed:
            self._refuse(column, f"{', '.join(allowed)}, or nothing", code)
        return value or None

    def _volume(self) -> int | None:
        value = self._cells.get("asl_volume", "")
        if value and not (value.isascii() and value.isdigit()):
            self._refuse("asl_volume", "a whole number from 0, or nothing")
            return None
        return int(value) if value else None

    def _number(self, column: str, most: float) -> float | None:
        value = self._cells.get(column, "")
        try:
            number = float(value) if value else None
        except ValueError:
            number = -1.0
        if number is not None and not 0.0 <= number <= most:
            self._refuse(column, f"a number from 0 to {most:g}, or nothing")
        return number


def _can_be_a_path(value: str) -> bool:
    """Whether the file system can be asked about it at all."""
    parts = [len(part.encode()) for part in re.split(r"[/\\]", value)]
    return value.isprintable() and max(parts) <= 255 and sum(parts) + len(parts) <= 1024


def _leaves_folder(value: str) -> bool:
    depth = 0
    for part in re.split(r"[/\\]", value):
        depth += {"..": -1, ".": 0, "": 0}.get(part, 1)
        if depth < 0:
            return True
    return False


def _shortened(wrong: list[str]) -> list[str]:
    more = len(wrong) - _MOST_PROBLEMS_SHOWN
    return wrong if more <= 0 else [*wrong[:_MOST_PROBLEMS_SHOWN], f"and {more} more wrong entries"]


def _duplicates(records: list[ScanRecord], lines: list[int]) -> list[str]:
    first: dict[str, int] = {}
    wrong = []
    for record, line in zip(records, lines, strict=True):
        if first.setdefault(record.key, line) != line:
            wrong.append(
                f"line {line}, columns patient_id, scan_id: {record.key!r} is already on line "
                f"{first[record.key]}. Allowed: every scan once"
            )
    return wrong


def _refuse_split_patients(path: Path, scans: Iterable[ScanRecord]) -> None:
    chosen: dict[str, str] = {}
    for record in scans:
        if record.split is None:
            continue
        other = chosen.setdefault(record.patient_id, record.split)
        if other != record.split:
            raise ScanError(
                "E302",
                f"{path}: column split puts this patient into both {other!r} and "
                f"{record.split!r}; all scans of a patient belong into one split",
                scan=record.patient_id,
                modality="split",
            )


def _file_problems(scans: Iterable[ScanRecord]) -> list[str]:
    problems, users = [], dict[Path, str]()
    for record in scans:
        for column, file in record.files.items():
            use = f"{record.key} {column}"
            if not exists(file):
                problems.append(f"E100 {use}: {file} does not exist")
            if users.setdefault(file, use) != use:
                problems.append(f"W301 {use}: {file} is also {users[file]}")
    return problems


def exists(path: Path) -> bool:
    """Whether there is a file; a path that the file system refuses to look at has none."""
    try:
        return path.is_file()
    except OSError:
        return False


def split_by_patient(cohort: Cohort, fractions: SplitConfig, seed: int) -> CohortSplit:
    """Divide the scans so that all scans of a patient are in one split.

    A split that the manifest gives is kept. The other patients are put in the order of
    SHA-256(seed, patient), each into the split with the largest fraction / (2 * patients + 1)
    (Sainte-Laguë's rule, which keeps proportions). With three patients or more no split whose
    fraction is above 0 stays empty, as long as there are patients left to divide.

    Args:
        cohort: the scans.
        fractions: of the patients, in train, validation and test.
        seed: another seed is another order.
    """
    chosen: dict[str, SplitName] = {}
    for record in cohort.scans:
        if record.split is not None:
            chosen[record.patient_id] = record.split
    patients = {record.patient_id for record in cohort.scans}
    for patient in sorted(patients - set(chosen), key=lambda p: _order(p, seed)):
        chosen[patient] = _neediest(chosen, fractions, len(patients))
    parts = {
        name: tuple(r for r in cohort.scans if chosen[r.patient_id] == name) for name in SPLITS
    }
    return CohortSplit(**parts)


def _order(patient: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{patient}".encode()).digest()


def _neediest(
    chosen: Mapping[str, SplitName], fractions: SplitConfig, num_patients: int
) -> SplitName:
    taken = list(chosen.values())
    share = {name: float(getattr(fractions, name)) for name in SPLITS}
    if num_patients >= len(SPLITS):
        for name in SPLITS:
            if share[name] > 0.0 and name not in taken:
                return name
    return max(SPLITS, key=lambda name: share[name] / (2 * taken.count(name) + 1))


def modality_counts(scans: Iterable[ScanRecord]) -> dict[Modality, int]:
    """Number of scans with each modality, in the enum's order; one that no scan has is absent."""
    counts = Counter(modality for record in scans for modality in record.images)
    return {m: counts[m] for m in Modality if counts[m]}


def num_patients(scans: Iterable[ScanRecord]) -> int:
    """Number of different patients among the scans."""
    return len({record.patient_id for record in scans})
