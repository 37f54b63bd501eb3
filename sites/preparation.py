"""From a scan's files to its entry in the cache: once a scan, for many scans at a time.

One bad scan never stops the others: its outcome is a code. What has been prepared is in the cache
at once, so that an interrupted start goes on where it ended, whoever interrupted it.
"""

from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from iedn.config import GridConfig
from iedn.errors import ScanError
from iedn.modalities import TARGET

from .cache import ScanCache, ScanSummary, cache_key, summarise
from .cohort import Quarantine, ScanRecord
from .config import RegistrationMode
from .identifying import header_findings
from .parallel import map_in_processes
from .preprocessing import PreparedScan, Shape, prepare_scan
from .reading import Finding

KEEP_BYTES = 2**30
FEWEST_FOR_PROCESSES = 8
"""Scans that are worth the seconds in which processes start."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Entry:
    """A scan that can be used.

    Attributes:
        record: the scan with only those files that could be used.
        source: the scan as the manifest has it.
        key: its name in the cache.
        shape: (D, H, W).
        digests: SHA-256 of its images' voxels by manifest column.
    """

    record: ScanRecord
    source: ScanRecord
    key: str
    shape: Shape
    digests: dict[str, str]


class ScanStore:
    """Prepared scans from the cache, each read once and then mapped; rebuilds what is damaged.

    A scan whose file cannot be mapped is kept in memory, of those the latest.

    Args:
        cache: where they are.
        grid: the preset's grid, for rebuilding.
        keep_bytes: how much to keep in memory of what cannot be mapped; 0 keeps nothing.
        registration: whether clearly misaligned files are moved to the T1.
    """

    def __init__(
        self,
        cache: ScanCache,
        grid: GridConfig,
        *,
        keep_bytes: int = KEEP_BYTES,
        registration: RegistrationMode = "off",
    ) -> None:
        self._cache, self._grid, self._keep_bytes = cache, grid, keep_bytes
        self._registration = registration
        self._mapped: dict[str, PreparedScan] = {}
        self._kept: OrderedDict[str, PreparedScan] = OrderedDict()
        self._bytes = 0

    def key(self, record: ScanRecord) -> str:
        """The scan's name in the cache; depends on its files, the grid and the settings."""
        return cache_key(record, self._grid, registration=self._registration)

    def summary(self, record: ScanRecord, key: str) -> ScanSummary:
        """What the scan has; it is prepared if the cache does not have it.

        Raises:
            ScanError: the scan cannot be prepared.
        """
        return self.kept_summary(key) or summarise(self._build(record, key))

    def kept_summary(self, key: str) -> ScanSummary | None:
        """What the scan has; None if the cache does not have it."""
        return self._cache.summary(key)

    def load(self, record: ScanRecord, key: str) -> PreparedScan:
        """The scan's arrays.

        Raises:
            ScanError: the scan had to be prepared again and its files are not there any more.
        """
        if key in self._mapped:
            return self._mapped[key]
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        scan = self._cache.load(key)
        if scan is None:
            built = self._build(record, key)
            scan = self._cache.load(key)
            if scan is None:
                return self._keep(key, built)
        self._mapped[key] = scan
        return scan

    def _build(self, record: ScanRecord, key: str) -> PreparedScan:
        scan = prepare_scan(record, self._grid, registration=self._registration)
        scan = replace(scan, warnings=(*scan.warnings, *header_findings(record)))
        self._cache.store(key, scan)
        return scan

    def _keep(self, key: str, scan: PreparedScan) -> PreparedScan:
        self._kept[key] = scan
        self._bytes += _num_bytes(scan)
        while self._bytes > self._keep_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= _num_bytes(dropped)
        return scan


@dataclass(frozen=True)
class Outcome:
    """What became of one scan of the manifest.

    Attributes:
        entry: None if it cannot be used.
        quarantined: the scan or files of it that are not used, and why.
        warnings: findings about what is used, by ``patient_id/scan_id``.
    """

    entry: Entry | None
    quarantined: tuple[Quarantine, ...]
    warnings: tuple[tuple[str, Finding], ...] = ()


def prepare_all(
    scans: Sequence[ScanRecord], store: ScanStore, progress: Progress | None, workers: int
) -> list[Outcome]:
    """One outcome a scan, in the order of ``scans`` whatever the order of completion.

    Args:
        scans: of a manifest.
        store: where they are kept.
        progress: called with (done, total) after every scan.
        workers: scans at a time; more than one are processes, if enough is to be done.
    """
    outcomes: dict[int, Outcome] = {}
    # Closed at once when the progress is interrupted, not whenever it is collected.
    with closing(_as_finished(scans, store, workers)) as finished:
        for index, outcome in finished:
            outcomes[index] = outcome
            if progress is not None:
                progress(len(outcomes), len(scans))
    return [outcomes[index] for index in range(len(scans))]


def _as_finished(
    scans: Sequence[ScanRecord], store: ScanStore, workers: int
) -> Generator[tuple[int, Outcome]]:
    """Outcomes by index: first what the cache has, then the rest, in processes if it is much."""
    missing = list(range(len(scans)))
    if workers > 1:
        missing = []
        for index, outcome in _in_threads(partial(_from_cache, store=store), scans, workers):
            if outcome is None:
                missing.append(index)
            else:
                yield index, outcome
    rest, work = [scans[index] for index in missing], partial(_prepare_one, store=store)
    if workers > 1 and len(rest) >= FEWEST_FOR_PROCESSES:
        done = map_in_processes(work, rest, workers=min(workers, len(rest)))
    else:
        done = _in_threads(work, rest, workers)
    with closing(done):
        for number, outcome in done:
            yield missing[number], _ended(rest[number]) if outcome is None else outcome


def _in_threads(
    work: Callable[[ScanRecord], Outcome | None], scans: Sequence[ScanRecord], workers: int
) -> Generator[tuple[int, Outcome | None]]:
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield from enumerate(pool.map(work, scans))
    finally:
        # An interrupt ends after the scans in hand, not after all of them.
        pool.shutdown(cancel_futures=True)


def _from_cache(record: ScanRecord, *, store: ScanStore) -> Outcome | None:
    key = store.key(record)
    summary = store.kept_summary(key)
    return None if summary is None else _outcome(record, key, summary)


def _prepare_one(record: ScanRecord, *, store: ScanStore) -> Outcome:
    try:
        key = store.key(record)
        summary = store.summary(record, key)
    except ScanError as error:
        return Outcome(None, (Quarantine(error.code, record.key, error.modality, error.problem),))
    return _outcome(record, key, summary)


def _outcome(record: ScanRecord, key: str, summary: ScanSummary) -> Outcome:
    entry = Entry(_reduced(record, summary.columns), record, key, summary.shape, summary.digests)
    refused = (Quarantine(f.code, record.key, f.modality, f.problem) for f in summary.refused)
    return Outcome(entry, tuple(refused), tuple((record.key, f) for f in summary.warnings))


def _ended(record: ScanRecord) -> Outcome:
    problem = "preparing it ended the process twice: out of memory, or a library crashed"
    return Outcome(None, (Quarantine("E111", record.key, "", problem),))


def _reduced(record: ScanRecord, columns: frozenset[str]) -> ScanRecord:
    """The record without the files that could not be used."""
    return replace(
        record,
        images={m: path for m, path in record.images.items() if m in columns},
        cbv=record.cbv if TARGET in columns else None,
        lesion_mask=record.lesion_mask if "lesion_mask" in columns else None,
        reader_roi=record.reader_roi if "reader_roi" in columns else None,
    )


def _num_bytes(scan: PreparedScan) -> int:
    arrays = [*scan.images.values(), *scan.regions.values(), scan.brain_mask]
    return sum(a.nbytes for a in arrays) + (0 if scan.cbv is None else scan.cbv.nbytes)
