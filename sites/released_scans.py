"""Which scans the releases of a site were computed from, so that no two of them tell of a few.

The mean over n patients and that over n + 1 together give the one patient's value. What was
released is therefore remembered at the site, in a file that never leaves, and a release is held
against all before it.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from iedn.files import append_line

Scan = tuple[str, str]
"""Patient and scan."""
ScanSets = Mapping[str, frozenset[Scan]]
"""The scans behind each number, or kind of number, of a release."""


class ReleasedScans:
    """The scans of earlier releases. Local: names scans.

    Args:
        path: the file; made with the first entry, for its owner only.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def entries(self) -> list[ScanSets]:
        """An entry for every different release."""
        if not self._path.exists():
            return []
        return [
            {name: frozenset((p, s) for p, s in scans) for name, scans in json.loads(line).items()}
            for line in self._path.read_text().splitlines()
        ]

    def remember(self, release: ScanSets) -> None:
        """Write the scans of a release that is about to leave, unless they are there."""
        if dict(release) in self.entries():
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if not self._path.exists():
            self._path.touch(mode=0o600)
        content = {name: sorted(scans) for name, scans in release.items()}
        append_line(self._path, json.dumps(content))


def small_difference(now: frozenset[Scan], before: frozenset[Scan], least: int) -> str:
    """Why two releases together would tell about fewer than ``least``; empty if they do not.

    Args:
        now: scans of the release that would leave.
        before: scans of one that has left.
        least: patients or scans that they have to differ by, unless they do not differ.
    """
    changed = num_patients_of(now ^ before)
    counted = abs(len(now) - len(before))
    if not any(0 < n < least for n in (changed, counted)):
        return ""
    return (
        f"the scans differ in {changed} patients, and by {counted} in number; the two together "
        f"would tell about fewer than policy.min_cell = {least}. Wait for more patients, or "
        "evaluate the same scans again"
    )


def num_patients_of(scans: Iterable[Scan]) -> int:
    """Different patients."""
    return len({patient for patient, _ in scans})
