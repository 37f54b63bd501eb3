"""Which averages of image quality may leave, and of which scans they are.

Every number is an average over scans of at least ``policy.min_patients`` patients. With and without
ASL are released together or not at all: the whole minus one of them is the other. No number may
differ from an earlier one of its name by a few patients (see ``released_scans``); one that does is
held, and the others leave.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from iedn.evaluation.results import summary_of
from iedn.modalities import Modality
from iedn.protocol.messages import Split

from .config import PolicyConfig
from .released_scans import Scan, ScanSets, num_patients_of, small_difference

STRATA = ("with_asl", "without_asl")


@dataclass(frozen=True)
class ScanRow:
    """One held-out scan. Local: names it.

    Attributes:
        patient_id: whose scan.
        scan_id: which.
        modalities: that the scan has.
        values: metrics by name; one that is not defined for the scan is absent or not finite.
    """

    patient_id: str
    scan_id: str
    modalities: frozenset[Modality]
    values: Mapping[str, float]

    @property
    def scan(self) -> Scan:
        """Patient and scan."""
        return self.patient_id, self.scan_id


@dataclass(frozen=True)
class MetricsRelease:
    """What would leave of an evaluation against measured CBV.

    Attributes:
        metrics: ``<name>_mean`` and ``<name>_sd``; ``with_asl_`` and ``without_asl_`` before the
            name for the scans that have ASL, and those that have not.
        scans: behind each name.
        held: why a name is held back.
    """

    metrics: Mapping[str, float]
    scans: ScanSets
    held: Mapping[str, str]


def metrics_release(
    rows: Sequence[ScanRow], split: Split, earlier: Iterable[ScanSets], policy: PolicyConfig
) -> MetricsRelease:
    """Every average of ``rows`` that the policy lets leave.

    Args:
        rows: a row a scan.
        split: that the scans are of; releases of one are held against each other.
        earlier: scans of what has left.
        policy: the site's.
    """
    values = _by_name(rows, policy.metrics)
    behind = {name: frozenset(found) for name, found in values.items()}
    before = list(earlier)
    held = {
        name: why
        for name, scans in behind.items()
        if (why := _why_held(f"{split} {name}", scans, before, policy))
    }
    held |= _held_with_the_other(behind, held)
    free = {name: found for name, found in values.items() if name not in held}
    metrics: dict[str, float] = {}
    for name, found in free.items():
        metrics |= summary_of([{name: value} for value in found.values()])
    scans = {f"{split} {name}": behind[name] for name in free}
    return MetricsRelease(metrics, scans, held)


def _by_name(rows: Sequence[ScanRow], allowed: Collection[str]) -> dict[str, dict[Scan, float]]:
    """Finite values of every allowed metric: of all rows, of those with and those without ASL."""
    found: dict[str, dict[Scan, float]] = {}
    for row in rows:
        stratum = STRATA[Modality.ASL not in row.modalities]
        for name, value in row.values.items():
            if name in allowed and math.isfinite(value):
                for key in (name, f"{stratum}_{name}"):
                    found.setdefault(key, {})[row.scan] = value
    return dict(sorted(found.items()))


def _why_held(
    name: str, scans: frozenset[Scan], earlier: Sequence[ScanSets], policy: PolicyConfig
) -> str:
    patients = num_patients_of(scans)
    if patients < policy.min_patients:
        return f"{patients} patients; policy.min_patients demands {policy.min_patients}"
    for before in earlier:
        if name in before and (problem := small_difference(scans, before[name], policy.min_cell)):
            return f"with an earlier release, {problem}"
    return ""


def _held_with_the_other(behind: Iterable[str], held: Mapping[str, str]) -> dict[str, str]:
    """Strata whose other half is held: with the whole, one tells the other."""
    names = set(behind)
    found = {}
    for stratum, other in (STRATA, STRATA[::-1]):
        for name in names:
            whole = name.removeprefix(f"{stratum}_")
            if whole != name and whole in names and f"{other}_{whole}" in held:
                found[name] = f"the whole without it would tell {other}_{whole}, which is held"
    return found
