"""What may leave of an external cohort, and what two releases together would tell.

A count of one patient can leave openly or as the difference of two releases: see
``released_scans``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from iedn.errors import PolicyError
from iedn.files import append_line
from iedn.protocol.messages import ComparisonName, PairedAreas

from .config import PolicyConfig
from .released_scans import Scan, num_patients_of, small_difference


@dataclass(frozen=True)
class DiagnosticRelease:
    """What a site would send, and what it was computed from; the scans themselves stay.

    Attributes:
        paired_areas: the seven numbers of each comparison.
        positive: (patient, scan) with recurrence.
        negative: (patient, scan) with treatment response.
        model_hash: of the evaluated model.
    """

    paired_areas: Mapping[ComparisonName, PairedAreas]
    positive: frozenset[Scan]
    negative: frozenset[Scan]
    model_hash: str

    @property
    def num_scans(self) -> int:
        """Behind every number."""
        return len(self.positive) + len(self.negative)

    @property
    def classes(self) -> dict[str, frozenset[Scan]]:
        """The scans of each outcome."""
        return {"recurrence": self.positive, "treatment_response": self.negative}

    def digest(self) -> str:
        """SHA-256 of exactly what would leave."""
        numbers = {name: areas.model_dump() for name, areas in sorted(self.paired_areas.items())}
        text = json.dumps({"model": self.model_hash, "paired_areas": numbers}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def check_small_counts(
    release: DiagnosticRelease,
    earlier: Sequence[Mapping[str, frozenset[Scan]]],
    policy: PolicyConfig,
) -> None:
    """Refuse a release that tells, alone or with an earlier one, about a few patients.

    Raises:
        PolicyError: a class is too small, or differs from an earlier release by too few patients.
    """
    _check_what_it_is_of(release)
    if "readers" in release.paired_areas and policy.min_cell > 1:
        raise PolicyError(
            "readers' numbers would tell the table of their calls: confidence has few levels, so "
            "that areas and variances can be solved for it; they leave only with "
            "policy.min_cell = 1"
        )
    least = max(policy.min_class_patients, policy.min_cell)
    for name, scans in release.classes.items():
        patients = num_patients_of(scans)
        if patients < least:
            raise PolicyError(
                f"{patients} patients with {name} that all numbers are of; "
                f"policy.min_class_patients and policy.min_cell demand {least}"
            )
        for number, before in enumerate(earlier, start=1):
            problem = small_difference(scans, before[name], policy.min_cell)
            if problem:
                raise PolicyError(f"{name}: with diagnostic release {number}, {problem}")


def _check_what_it_is_of(release: DiagnosticRelease) -> None:
    counts = (len(release.positive), len(release.negative))
    for areas in release.paired_areas.values():
        if (areas.num_positive, areas.num_negative) != counts:
            raise ValueError("paired areas of other scans than the release says")
    if not release.paired_areas:
        raise PolicyError("there is nothing to send: no two scores of the same scans")


class Approvals:
    """Releases that somebody at the site has looked at and approved, by digest.

    Args:
        path: the file; made with the first approval.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def approve(self, release: DiagnosticRelease) -> None:
        """Approve these very numbers of this very model."""
        if not self.has(release):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self._path, release.digest())

    def has(self, release: DiagnosticRelease) -> bool:
        """Whether they were approved."""
        return self._path.exists() and release.digest() in self._path.read_text().split()
