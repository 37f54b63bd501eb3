"""What a site's process keeps between messages: its configuration, its cohort, its way out."""

import logging
import threading
from collections import OrderedDict
from pathlib import Path

from iedn import progress
from iedn.config import GridConfig
from iedn.errors import PolicyError
from iedn.modalities import Modality
from sites.config import SiteConfig, load_site_config
from sites.dataset import PreparedCohort, ScanDataset, prepare_cohort
from sites.egress import Egress, TrainingCounts
from sites.release_log import ReleaseLog

_log = logging.getLogger(__name__)

RELEASES = "releases.jsonl"
MOST_SESSIONS = 32
"""Sites that one process keeps warm; a simulation may play more."""
CLIENT_LOCK = ".client"
"""Held, in the site's folder, by the client that answers for the site."""


class SiteSession:
    """One site's state in a process; cohorts stay warm between rounds.

    Args:
        config: the site's configuration.
    """

    def __init__(self, config: SiteConfig) -> None:
        self.config = config
        config.folder.mkdir(parents=True, exist_ok=True)
        self.egress = Egress(config.policy, ReleaseLog(config.folder / RELEASES))
        self._cohorts: dict[GridConfig, PreparedCohort] = {}

    def check_run(self, run: str) -> None:
        """Refuse to work for a run that this site has not agreed to.

        Raises:
            PolicyError: it is not in ``coordinator.federations``.
        """
        coordinator = self.config.coordinator
        if coordinator is not None and run not in coordinator.federations:
            allowed = ", ".join(coordinator.federations) or "none"
            raise PolicyError(f"coordinator.federations does not name {run!r}; only {allowed}")

    def cohort(self, grid: GridConfig) -> PreparedCohort:
        """The cohort on a grid; read and prepared at the first call, then kept."""
        if grid not in self._cohorts:
            self._cohorts[grid] = self._prepare(grid)
        return self._cohorts[grid]

    def counts(self, grid: GridConfig) -> TrainingCounts:
        """Exact counts of training scans (of all scans at an evaluating site)."""
        cohort = self.cohort(grid)
        dataset = cohort.train if self.config.role == "train" else cohort.all
        return count(dataset)

    def _prepare(self, grid: GridConfig) -> PreparedCohort:
        reporter = progress.reporter(f"{self.config.name}: preparing scans")
        config = self.config
        cohort = prepare_cohort(config, grid, progress=reporter, workers=config.workers)
        for entry in cohort.quarantined:
            _log.warning("%s: %s", self.config.name, entry)
        return cohort


def count(dataset: ScanDataset) -> TrainingCounts:
    """Scans and patients of a dataset, in all and by modality."""
    records = dataset.records
    by_modality = {m: [r for r in records if m in r.images] for m in Modality}
    present = {m: found for m, found in by_modality.items() if found}
    return TrainingCounts(
        scans=len(records),
        patients=len({r.patient_id for r in records}),
        scans_by_modality={m: len(found) for m, found in present.items()},
        patients_by_modality={m: len({r.patient_id for r in f}) for m, f in present.items()},
    )


class Sessions:
    """The sessions of a process, made on demand; of many sites only the latest stay.

    A hospital's process has one. A simulation plays any number of sites in one process: a site
    that has to go is made again from its files when it is asked again, like a process that was
    restarted. Whoever works with a session keeps it until the work is done.

    Args:
        most: sessions to keep.
    """

    def __init__(self, most: int = MOST_SESSIONS) -> None:
        self._most = most
        self._sessions: OrderedDict[Path, SiteSession] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    def of(self, site_file: Path) -> SiteSession:
        """The session of a site file; the one that was asked for the longest ago may go."""
        key = site_file.resolve()
        with self._lock:
            session = self._sessions.pop(key, None) or SiteSession(load_site_config(key))
            self._sessions[key] = session
            while len(self._sessions) > self._most:
                self._sessions.popitem(last=False)
            return session

    def forget(self) -> None:
        """Drop all sessions, as a restart of the process would."""
        with self._lock:
            self._sessions.clear()


_sessions = Sessions()


def session_for(site_file: Path) -> SiteSession:
    """The session of a site file in this process."""
    return _sessions.of(site_file)


def forget_sessions() -> None:
    """Drop all sessions, as a restart of the process would."""
    _sessions.forget()
