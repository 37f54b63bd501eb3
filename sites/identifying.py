"""What in a cohort's names and headers may identify a patient: warned about, never copied.

A finding names the field, the key or the column, never its content. Nothing that is looked at
here is carried into a cache, a synthetic map or a message; the warnings are for the hospital,
whose folders may be copied by other means. Names are judged by rule, so a name that looks like a
pseudonym passes, and an innocent word may be warned about.
"""

import gzip
import json
import os.path
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel

from .checks import sidecar_of
from .cohort import ScanRecord, exists
from .reading import Finding

HEADER_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")
SIDECAR_KEYS = re.compile(
    r"Patient(Name|ID|BirthDate|Sex|Weight)|AccessionNumber|Institution.*|StationName"
    r"|DeviceSerialNumber|(Acquisition|Content|Study|Series)(Date|Time|DateTime)"
    r"|.*InstanceUID|StudyID|ReferringPhysicianName|ImageComments|ProtocolName"
)
OLDEST_YEARS = 89.0

_MOST_HEADER_BYTES = 2**20
# nibabel annotates only part of its calls; as Any they pass the strict checks.
_HEADER_SIZES: dict[int, Any] = {348: nibabel.Nifti1Header, 540: nibabel.Nifti2Header}
_KNOWN_WORD = re.compile(
    r"patient|subject|control|visit|session|baseline|followup|study|series|group|"
    r"phantom|train|validation|derivatives|brain|brainmask|lesion|reader|flair|"
    r"space|native|aligned|preproc|manifest|images|nifti|cerebral|volume",
    re.IGNORECASE,
)
_LONGEST_ABBREVIATION = 4
_DATE = re.compile(r"(?<!\d)(19|20)\d\d[-_.]?(0[1-9]|1[0-2])[-_.]?(0[1-9]|[12]\d|3[01])(?!\d)")


def reads_like_a_name(text: str) -> bool:
    """Whether an identifier or path component may be a person's name or a date.

    Accepted are words of up to four letters, and common words of studies; e.g. ``sub-0007``.
    """
    words = re.findall(r"[^\W\d_]+", text)
    long_words = (w for w in words if len(w) > _LONGEST_ABBREVIATION)
    return bool(_DATE.search(text)) or not all(map(_KNOWN_WORD.fullmatch, long_words))


def record_findings(record: ScanRecord, folder: Path) -> tuple[Finding, ...]:
    """Findings about a scan's identifiers, age, file names and sidecars; reads no image.

    Args:
        record: the scan.
        folder: the manifest's folder, which is the hospital's own business.
    """
    findings = [
        Finding("W501", "reads like a name or a date; use a pseudonym such as sub-0007", column)
        for column in ("patient_id", "scan_id")
        if _bad_identifier(column, getattr(record, column))
    ]
    if record.age is not None and record.age > OLDEST_YEARS:
        findings.append(Finding("W507", "above 89 years", "age"))
    own = {record.patient_id, record.scan_id}
    for column, path in record.files.items():
        parts = Path(os.path.relpath(path, folder)).parts
        # What only repeats the identifiers has been said of them.
        if any(reads_like_a_name(_stem(part)) for part in parts if part not in own):
            problem = "a file or folder name reads like a name or a date"
            findings.append(Finding("W506", problem, column))
        findings += _sidecar_findings(column, sidecar_of(path))
    return tuple(findings)


def header_findings(record: ScanRecord) -> tuple[Finding, ...]:
    """Findings about the headers of a scan's files; opens every file, decodes no voxel.

    A file that cannot be read gives none: reading it properly says what is wrong with it.
    """
    findings = []
    for column, path in record.files.items():
        findings += [Finding(f.code, f.problem, column) for f in file_header_findings(path)]
    return tuple(findings)


def file_header_findings(path: Path) -> list[Finding]:
    """W502 free text, W503 extensions, W504 a file name in the gzip header."""
    try:
        with path.open("rb") as file:
            start = file.read(_MOST_HEADER_BYTES)
        block = start
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(path) as file:
                block = file.read(_MOST_HEADER_BYTES)
    except (OSError, EOFError, zlib.error):
        return []
    findings = _text_findings(block)
    if _other_gzip_name(start, path):
        findings.append(Finding("W504", "the gzip header holds another file name"))
    return findings


def _bad_identifier(column: str, value: str) -> bool:
    if reads_like_a_name(value):
        return True
    return column == "patient_id" and not any(character.isdigit() for character in value)


def _stem(part: str) -> str:
    for suffix in (".nii.gz", ".nii"):
        part = part.removesuffix(suffix)
    return part


def _sidecar_findings(column: str, path: Path) -> list[Finding]:
    if not exists(path):
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return [Finding("W401", "the JSON sidecar cannot be read", column)]
    keys = sorted(_matching_keys(content))
    if not keys:
        return []
    return [Finding("W505", f"the sidecar has {', '.join(keys)}", column)]


def _matching_keys(content: object) -> set[str]:
    if not isinstance(content, dict):
        return set()
    found = {key for key, value in content.items() if SIDECAR_KEYS.fullmatch(key) and value}
    return found.union(*(_matching_keys(value) for value in content.values()))


def _text_findings(block: bytes) -> list[Finding]:
    header = _header(block)
    if header is None:
        return []
    filled = [
        name
        for name in HEADER_FIELDS
        if name in header.keys() and bytes(header[name].tobytes()).strip(b"\x00 ")  # noqa: SIM118
    ]
    findings = []
    if filled:
        findings.append(Finding("W502", f"free text in {', '.join(filled)}"))
    size = int(header["sizeof_hdr"])
    if block[size : size + 1] not in (b"", b"\x00") and float(header["vox_offset"]) > size + 4:
        findings.append(Finding("W503", "the header has an extension"))
    return findings


def _header(block: bytes) -> Any | None:
    for order in "<>":
        size = struct.unpack(f"{order}i", block[:4])[0] if len(block) >= 4 else 0
        if size in _HEADER_SIZES and len(block) >= size:
            return _HEADER_SIZES[size](block[:size], endianness=order, check=False)
    return None


def _other_gzip_name(start: bytes, path: Path) -> bool:
    """Whether the gzip header's FNAME (RFC 1952, flag bit 3) differs from the file's own name."""
    if not start.startswith(b"\x1f\x8b") or len(start) < 10 or not start[3] & 0x08:
        return False
    place = 10
    if start[3] & 0x04:
        place += 2 + int.from_bytes(start[10:12], "little")
    name = start[place:].split(b"\x00", 1)[0]
    return name.decode("latin-1") != path.name.removesuffix(".gz")
