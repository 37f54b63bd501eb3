"""The report on a site's cohort: who is in it, what is left out and why, every finding.

Numbers only, as a frozen record; showing and writing it is the client's. All of it is local:
it names scans, and small counts are not rounded.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from .codes import CODES, Severity, severity
from .cohort import LABELS, ScanRecord, modality_counts, num_patients
from .config import Role, SiteConfig
from .dataset import PreparedCohort

NO_CBV = "E403"
PHANTOM_RECORD = "phantom.json"

_PROBLEM = re.compile(r"([EWI]\d{3}) (\S+) (\S+): (.*)", re.DOTALL)
_ORDER: dict[Severity, int] = {"error": 0, "warning": 1, "info": 2}


@dataclass(frozen=True)
class ReportedFinding:
    """One finding with everything its owner needs.

    Attributes:
        code: as in ``codes.CODES``.
        severity: ``error``, ``warning`` or ``info``.
        scan: ``patient_id/scan_id``.
        column: manifest column; empty when it is the scan as a whole.
        problem: what was found.
        action: what to do.
    """

    code: str
    severity: Severity
    scan: str
    column: str
    problem: str
    action: str


@dataclass(frozen=True)
class Part:
    """A part of the cohort.

    Attributes:
        patients: different patients.
        scans: scans.
        by_modality: scans with each modality that any has.
    """

    patients: int
    scans: int
    by_modality: dict[str, int]


@dataclass(frozen=True)
class Flow:
    """From the manifest to the scans that are used (the paper's Figure 2).

    ``listed = sum(excluded) + sum(quarantined) + usable``; at a training site
    ``usable = without_cbv + train + validation + test``.

    Attributes:
        listed: rows of the manifest.
        excluded: scans that the manifest leaves out, by its own reason.
        quarantined: scans that cannot be used, by the code that decides.
        usable: scans that can be used.
        without_cbv: those of them that have no usable measured CBV.
        files_refused: files left out of usable scans, by code.
    """

    listed: int
    excluded: dict[str, int]
    quarantined: dict[str, int]
    usable: int
    without_cbv: int
    files_refused: dict[str, int]


@dataclass(frozen=True)
class Characteristics:
    """Who is in a part of the cohort (the paper's Table 1); of patients unless said otherwise.

    A patient's age, sex and disease are those of the patient's first row that gives them.

    Attributes:
        patients: different patients.
        scans: scans.
        scans_per_patient: smallest, mean and largest number; None without a patient.
        age_known: patients whose age is known.
        age_mean: in years; None where no age is known.
        age_sd: sample standard deviation; None for fewer than two ages.
        sex: patients by sex, ``unknown`` where empty.
        disease: patients by disease, likewise.
        label: scans by label, likewise.
    """

    patients: int
    scans: int
    scans_per_patient: tuple[int, float, int] | None
    age_known: int
    age_mean: float | None
    age_sd: float | None
    sex: dict[str, int]
    disease: dict[str, int]
    label: dict[str, int]


@dataclass(frozen=True)
class CohortReport:
    """Everything ``iedn-client check`` says about a cohort.

    Attributes:
        site: the site's name.
        role: ``train`` or ``evaluate``.
        parts: ``train``, ``validation``, ``test`` (training site) and ``all usable``.
        flow: from the manifest to the used scans.
        characteristics: of the same parts.
        findings: gravest first, then by code, in the manifest's order.
    """

    site: str
    role: Role
    parts: dict[str, Part]
    flow: Flow
    characteristics: dict[str, Characteristics]
    findings: tuple[ReportedFinding, ...]

    @property
    def usable(self) -> bool:
        """Whether the site can take part: a scan to train on, or (evaluating) any scan."""
        return self.parts["train" if self.role == "train" else "all usable"].scans > 0

    @property
    def num_errors(self) -> int:
        """Findings that leave something out."""
        return sum(finding.severity == "error" for finding in self.findings)


def cohort_report(config: SiteConfig, cohort: PreparedCohort) -> CohortReport:
    """The report on a cohort that has been examined."""
    parts = _parts(config, cohort)
    return CohortReport(
        site=config.name,
        role=config.role,
        parts={name: _part(records) for name, records in parts.items()},
        flow=_flow(cohort),
        characteristics={name: characteristics(records) for name, records in parts.items()},
        findings=_findings(cohort),
    )


def is_phantom(manifest: Path) -> bool:
    """Whether a cohort is one that ``iedn-simulate`` made, by the record beside its manifest."""
    record = manifest.parent / PHANTOM_RECORD
    return record.exists() and "cohort" in json.loads(record.read_bytes())


def characteristics(records: Sequence[ScanRecord]) -> Characteristics:
    """Table 1 of some scans."""
    counts = Counter(record.patient_id for record in records).values()
    ages = [float(age) for age in _of_patients(records, "age") if age is not None]
    return Characteristics(
        patients=len(counts),
        scans=len(records),
        scans_per_patient=(min(counts), fmean(counts), max(counts)) if counts else None,
        age_known=len(ages),
        age_mean=fmean(ages) if ages else None,
        age_sd=stdev(ages) if len(ages) > 1 else None,
        sex=_counted(_of_patients(records, "sex")),
        disease=_counted(_of_patients(records, "disease")),
        label=_counted([record.label for record in records], first=LABELS),
    )


def _parts(config: SiteConfig, cohort: PreparedCohort) -> dict[str, list[ScanRecord]]:
    if config.role == "evaluate":
        return {"all usable": cohort.records}
    return {
        "train": cohort.train.records,
        "validation": cohort.validation.records,
        "test": cohort.test.records,
        "all usable": cohort.records,
    }


def _part(records: Sequence[ScanRecord]) -> Part:
    counts = {str(m): n for m, n in modality_counts(records).items()}
    return Part(num_patients(records), len(records), counts)


def _flow(cohort: PreparedCohort) -> Flow:
    manifest, used = cohort.manifest, {record.key for record in cohort.records}
    # A scan with a bad file may be left out for another reason: the last is what decided.
    deciding = {q.scan: q.code for q in cohort.quarantined if q.code != NO_CBV}
    lost = [record.key for record in manifest.scans if record.key not in used]
    refused = [q.code for q in cohort.quarantined if q.scan in used and q.code != NO_CBV]
    return Flow(
        listed=len(manifest.scans) + len(manifest.excluded),
        excluded=_counted([record.exclude_reason for record in manifest.excluded]),
        quarantined=_counted([deciding[key] for key in lost]),
        usable=len(used),
        without_cbv=sum(record.cbv is None for record in cohort.records),
        files_refused=_counted(refused),
    )


def _of_patients(records: Iterable[ScanRecord], field: str) -> list[float | str | None]:
    """One value a patient: the first that is given."""
    values: dict[str, float | str | None] = {}
    for record in records:
        value = getattr(record, field)
        if values.get(record.patient_id) in (None, ""):
            values[record.patient_id] = value
    return list(values.values())


def _counted(values: Iterable[object], first: Sequence[str] = ()) -> dict[str, int]:
    """How often each value comes, those of ``first`` before the others; empty is ``unknown``."""
    counts = Counter(str(value) if value else "unknown" for value in values)
    others = sorted(set(counts) - set(first) - {"unknown"})
    return {name: counts[name] for name in (*first, *others, "unknown") if counts[name]}


def _findings(cohort: PreparedCohort) -> tuple[ReportedFinding, ...]:
    found = [_reported(q.code, q.scan, q.modality, q.problem) for q in cohort.quarantined]
    found += [_reported(f.code, key, f.modality, f.problem) for key, f in cohort.warnings]
    said = {(finding.code, finding.scan, finding.column) for finding in found}
    for problem in cohort.problems:
        match = _PROBLEM.fullmatch(problem)
        if match and match.groups()[:3] not in said:
            found.append(_reported(*match.groups()))
    return tuple(sorted(found, key=lambda f: (_ORDER[f.severity], f.code)))


def _reported(code: str, scan: str, column: str, problem: str) -> ReportedFinding:
    return ReportedFinding(code, severity(code), scan, column, problem, CODES[code].action)
