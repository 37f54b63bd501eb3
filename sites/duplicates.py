"""The same voxels twice in a site: between patients, within one, or an input that is the target.

Compared are digests that the preparation made of the decoded images (``checks.voxel_digest``),
so a start costs a dictionary. Masks are not compared: one mask may serve several scans.

Rule for two patients (E301): whose image it is cannot be told from the files. Keeping the first
would make the outcome depend on the order of the rows, and keeping either could train on a brain
that is tested on; so all scans concerned are left out until the manifest is corrected.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from iedn.modalities import TARGET

from .cohort import Quarantine, ScanRecord
from .reading import Finding

Place = tuple[ScanRecord, str]


@dataclass(frozen=True)
class Duplicates:
    """What the comparison found.

    Attributes:
        quarantined: scans that must not be used (E301, E303), one entry a scan.
        warnings: the same voxels twice within one patient (W301), by ``patient_id/scan_id``.
    """

    quarantined: tuple[Quarantine, ...]
    warnings: tuple[tuple[str, Finding], ...]

    @property
    def refused(self) -> frozenset[str]:
        """Keys of the scans that must not be used."""
        return frozenset(entry.scan for entry in self.quarantined)


def find_duplicates(scans: Iterable[tuple[ScanRecord, Mapping[str, str]]]) -> Duplicates:
    """Compare all images of a site.

    Args:
        scans: each with the digests of its images by manifest column.
    """
    places: dict[str, list[Place]] = defaultdict(list)
    for record, digests in scans:
        for column, digest in digests.items():
            places[digest].append((record, column))
    quarantined: dict[str, Quarantine] = {}
    warnings: list[tuple[str, Finding]] = []
    for group in places.values():
        for entry in _refused(group):
            quarantined.setdefault(entry.scan, entry)
        warnings += _repeated(group)
    return Duplicates(
        tuple(quarantined.values()),
        tuple((key, finding) for key, finding in warnings if key not in quarantined),
    )


def _refused(group: list[Place]) -> list[Quarantine]:
    """E301 for every scan of a group with several patients; E303 for an input equal to its CBV."""
    refused = []
    for record, column in group:
        others = [p for p in group if p[0].patient_id != record.patient_id]
        if others:
            other, where = others[0]
            problem = (
                f"the same voxels as {where} of {other.key}, another patient; all scans concerned "
                "are left out"
            )
            refused.append(Quarantine("E301", record.key, column, problem))
        elif column != TARGET and (record, TARGET) in group:
            problem = "the same voxels as the CBV map"
            refused.append(Quarantine("E303", record.key, column, problem))
    return refused


def _repeated(group: list[Place]) -> list[tuple[str, Finding]]:
    if len({record.patient_id for record, _ in group}) > 1:
        return []
    first, where = group[0]
    problem = f"the same voxels as {where} of {first.key}"
    return [(record.key, Finding("W301", problem, column)) for record, column in group[1:]]
