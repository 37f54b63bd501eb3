"""Writing records as a manifest, the counterpart of ``sites.cohort.load_manifest``."""

import csv
import io
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from iedn.errors import CohortError, ConfigError
from iedn.files import atomic_write_bytes

from ..cohort import OPTIONAL_COLUMNS, REQUIRED_COLUMNS, ScanRecord, load_manifest
from .found import Discovery
from .pseudonyms import (
    KEY_TABLE,
    check_identifiers,
    read_key_table,
    with_pseudonyms,
    write_key_table,
)

MANIFEST = "manifest.csv"

Outcome = Literal["written", "unchanged"]


def describe(
    found: Discovery, root: Path, path: Path, *, force: bool = False, pseudonyms: bool = False
) -> tuple[Discovery, Outcome]:
    """Write the manifest of the scans that were found, and with pseudonyms their key table.

    Args:
        found: scans with the folders' names as identifiers.
        root: where they were found.
        path: the manifest.
        force: replace another manifest.
        pseudonyms: make identifiers up where a folder's name may be a person's.

    Returns:
        The scans that are in the manifest with all findings, and whether it was written.

    Raises:
        ConfigError: the place is not fit, or another manifest is there.
        CohortError: there is no scan, or a file's name cannot stand in a manifest.
    """
    _check_place(path, root)
    path = path.parent.resolve() / path.name
    key_table = path.with_name(KEY_TABLE)
    known = read_key_table(key_table) if pseudonyms else {}
    found, table = with_pseudonyms(found, known) if pseudonyms else (found, known)
    found = check_identifiers(found, root.resolve())
    if not found.scans:
        raise CohortError(f"{root}: no scan to describe; {_reasons(found)}")
    content = manifest_text(found.scans, path).encode()
    unchanged = _is_there(path, content, force=force)
    if not unchanged:
        _check_readable_back(content, path, found.scans)
    # First the key: a manifest whose pseudonyms nobody can resolve would be of no use.
    if table != known:
        write_key_table(key_table, table)
    if not unchanged:
        atomic_write_bytes(path, content)
    return found, "unchanged" if unchanged else "written"


def manifest_text(scans: Iterable[ScanRecord], path: Path) -> str:
    """The manifest's text: all fixed columns, and those optional ones that some scan fills.

    Args:
        scans: rows, in this order; their files lie below the manifest's folder.
        path: where it is going to be; ``.tsv`` is separated by tabs.
    """
    rows = [_cells(record, path.parent) for record in scans]
    optional = [column for column in OPTIONAL_COLUMNS if any(row.get(column) for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(
        text,
        (*REQUIRED_COLUMNS, *optional),
        restval="",
        delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
        lineterminator="\n",
    )
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _cells(record: ScanRecord, folder: Path) -> dict[str, str]:
    """One row, without the columns that are empty."""
    plain: Mapping[str, object] = {
        "patient_id": record.patient_id,
        "scan_id": record.scan_id,
        "label": record.label,
        "split": record.split,
        "exclude_reason": record.exclude_reason,
        "age": record.age,
        "sex": record.sex,
        "disease": record.disease,
        "asl_kind": record.asl_kind,
        "asl_volume": record.asl_volume,
        "pld_s": record.pld_s,
    }
    paths = {c: p.relative_to(folder).as_posix() for c, p in record.files.items()}
    return {c: _text(value) for c, value in plain.items() if value not in (None, "")} | paths


def _text(value: object) -> str:
    """Numbers as they are read back, whole ones without a point."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _check_place(path: Path, root: Path) -> None:
    if path.suffix.lower() not in (".csv", ".tsv"):
        raise ConfigError("not a table", where=f"--out {path}", allowed="a name in .csv or .tsv")
    folder = path.parent.resolve()
    if not folder.is_dir() or not root.resolve().is_relative_to(folder):
        problem = "a manifest's paths stay inside its folder, and the scans are not below this one"
        allowed = f"a file in {root} or in a folder above it"
        raise ConfigError(problem, where=f"--out {path}", allowed=allowed)


def _is_there(path: Path, content: bytes, *, force: bool) -> bool:
    """Whether the very same file is there.

    Raises:
        ConfigError: another one is, and must not be replaced.
    """
    if not path.exists():
        return False
    if path.is_file() and path.read_bytes() == content:
        return True
    if not force:
        problem = "a different file is there; what was entered in it by hand would be lost"
        raise ConfigError(problem, where=str(path), allowed="--force, or another --out")
    return False


def _check_readable_back(content: bytes, path: Path, scans: tuple[ScanRecord, ...]) -> None:
    """Read the manifest as everything else will, before it takes its place.

    Raises:
        CohortError: the records are others: a file has a name that a table cannot hold.
    """
    trial = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    try:
        atomic_write_bytes(trial, content)
        cohort = load_manifest(trial)
    except CohortError as error:
        raise CohortError(str(error).replace(str(trial), str(path))) from error
    finally:
        trial.unlink(missing_ok=True)
    changed = [record.key for record in scans if record not in cohort.scans]
    if changed:
        problem = "a file or folder has spaces at an end or a line break in its name; rename it"
        raise CohortError(f"{path}: {changed[0]}: {problem}")


def _reasons(found: Discovery) -> str:
    first = [f"{f.code} {f.path}: {f.problem}" for f in found.findings[:5]]
    return "; ".join(first) or "expected PATIENT/SCAN/NAME.nii.gz, or a BIDS dataset"
