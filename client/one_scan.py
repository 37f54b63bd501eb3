"""The synthetic map of one patient, from files or from one scan's folder.

The scan passes the reading and the checks of a cohort: what a cohort leaves out with a code is
left out here, and stands in the map's sidecar. Measured CBV and lesion masks are not looked at.
Nothing of it leaves the site.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from iedn.config import GridConfig
from iedn.errors import CohortError, ConfigError, ScanError
from iedn.modalities import Modality
from sites.checks import file_findings
from sites.codes import severity
from sites.cohort import IDENTIFIER, ScanRecord
from sites.config import RegistrationMode
from sites.discovery.found import Discovery
from sites.discovery.layouts import discover_scan
from sites.discovery.perfusion import with_asl, without_asl
from sites.duplicates import find_duplicates
from sites.identifying import header_findings, reads_like_a_name, record_findings
from sites.preprocessing import PreparedScan, prepare_scan
from sites.reading import Finding
from sites.synthetic import Sidecar

from .synthesis import Synthesizer, write_map

ONLY_SCAN = "scan-1"
"""Scan id where no folder's name gives one."""
FILES = "files"
"""Stands for a patient until there is a name (see ``synthesize_one``)."""
OPTIONS = {
    Modality.T1WI: "--t1",
    Modality.T2WI: "--t2",
    Modality.FLAIR: "--flair",
    Modality.ADC: "--adc",
    Modality.T1_C: "--t1c",
    Modality.ASL: "--asl",
}
"""Option of the command for each modality's file."""


@dataclass(frozen=True)
class OneMap:
    """A map that was written.

    Attributes:
        path: the map; the sidecar is beside it.
        sidecar: its content.
        findings: about the scan, gravest first.
        record: the scan, under the identifiers of the map.
        scan: its arrays.
    """

    path: Path
    sidecar: Sidecar
    findings: tuple[Finding, ...]
    record: ScanRecord
    scan: PreparedScan


def find_scan(images: Mapping[Modality, Path], folder: Path | None, mask: Path | None) -> Discovery:
    """The one scan that the options name.

    Args:
        images: files by modality; empty if there is a folder.
        folder: a scan's folder, of either layout.
        mask: brain mask; goes before the folder's own.

    Returns:
        One record and findings. The record's identifiers are the folders' names, if there are.

    Raises:
        ConfigError: options that do not go together, or a file or folder that is not there.
        ScanError: E210, no T1 in the folder.
    """
    if folder is not None and images:
        raise ConfigError(
            "files and a folder at once",
            where=f"--folder and {', '.join(OPTIONS[m] for m in images)}",
            allowed="either; --mask goes with both",
        )
    named = {OPTIONS[modality]: path for modality, path in images.items()}
    for option, path in {**named, **({"--mask": mask} if mask else {})}.items():
        if not path.is_file():
            raise ConfigError("no such file", where=f"{option} {path}", allowed="a NIfTI file")
    found = discover_scan(folder) if folder is not None else _from_files(images)
    record = replace(found.scans[0], cbv=None, lesion_mask=None)
    if mask is not None:
        record = replace(record, brain_mask=mask)
        found = replace(found, findings=tuple(f for f in found.findings if f.code != "W211"))
    return replace(found, scans=(record,))


def synthesize_one(
    synthesizer: Synthesizer,
    found: Discovery,
    out: Path,
    *,
    grid: GridConfig,
    patient: str | None = None,
    registration: RegistrationMode = "off",
) -> OneMap:
    """Write the synthetic map of one scan.

    Args:
        synthesizer: the model.
        found: one scan (see ``find_scan``).
        out: folder of the maps.
        grid: the model's.
        patient: identifier in the map's path; None takes the patient folder's name unless it
            may be a person's, then a piece of the T1's hash.
        registration: as for a cohort.

    Raises:
        ConfigError: an identifier that cannot be a file name, or ``out`` cannot be written.
        ScanError: no T1 or no brain mask, or one of the two cannot be used.
        CohortError: the model cannot do with the modalities there are.
    """
    if patient is not None and not IDENTIFIER.fullmatch(patient):
        allowed = "1 to 64 letters, digits, '.', '_', '-', e.g. sub-0007"
        raise ConfigError("cannot be an identifier", where=f"--id {patient}", allowed=allowed)
    (record,) = found.scans
    scan = prepare_scan(record, grid, registration=registration)
    if not synthesizer.inputs(scan):
        wanted = ", ".join(synthesizer.network.config.modalities)
        raise CohortError(f"the model needs {wanted}; usable are {', '.join(scan.images)}")
    record = _named(record, patient, scan)
    findings = _findings(record, found, scan)
    sidecar = synthesizer.sidecar(scan, findings)
    cbv = synthesizer.cbv(scan)
    try:
        path = write_map(out, record, scan, cbv, sidecar)
    except OSError as error:
        problem = f"the map cannot be written there: {error.strerror}"
        raise ConfigError(problem, where=str(out), allowed="a folder of yours") from error
    return OneMap(path, sidecar, findings, record, scan)


def _from_files(images: Mapping[Modality, Path]) -> Discovery:
    """A record of the files that options name; without its ASL if that cannot be told."""
    if Modality.T1WI not in images:
        problem = "no T1: it is the grid of the map"
        raise ConfigError(problem, where=OPTIONS[Modality.T1WI], allowed="a NIfTI file")
    others: dict[Modality, Path] = {m: p for m, p in images.items() if m is not Modality.ASL}
    record = ScanRecord(patient_id=FILES, scan_id=ONLY_SCAN, images=others)
    asl = images.get(Modality.ASL)
    if asl is None:
        return Discovery((record,), ())
    try:
        return Discovery((with_asl(record, asl, needs_context=False),), ())
    except ScanError as error:
        return Discovery((record,), (without_asl(asl, error),))


def _findings(record: ScanRecord, found: Discovery, scan: PreparedScan) -> tuple[Finding, ...]:
    """Everything about the scan, each once, gravest first."""
    columns = {path: column for column, path in record.files.items()}
    searched = (Finding(f.code, f.problem, columns.get(f.path, "")) for f in found.findings)
    repeated = (f for _, f in find_duplicates([(record, scan.digests)]).warnings)
    unique = dict.fromkeys(
        (
            *scan.refused,
            *scan.warnings,
            *searched,
            *repeated,
            *file_findings(record),
            *header_findings(record),
            *record_findings(record, record.images[Modality.T1WI].parent),
        )
    )
    order = ("error", "warning", "info")
    return tuple(sorted(unique, key=lambda f: order.index(severity(f.code))))


def _named(record: ScanRecord, patient: str | None, scan: PreparedScan) -> ScanRecord:
    """The record under the names that its map gets; a folder's only if it is no person's."""
    own, scan_id = record.patient_id, record.scan_id
    if not (_is_plain(own) and any(character.isdigit() for character in own)):
        own = f"scan-{scan.digests[Modality.T1WI][:8]}"
    if not _is_plain(scan_id):
        scan_id = ONLY_SCAN
    return replace(record, patient_id=patient or own, scan_id=scan_id)


def _is_plain(name: str) -> bool:
    return bool(IDENTIFIER.fullmatch(name)) and not reads_like_a_name(name)
