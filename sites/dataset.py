"""A site's cohort as torch datasets, ready for the network.

``prepare_cohort`` is the whole way from ``site.toml`` to samples. One bad scan never stops it:
what cannot be used is put in quarantine with its code, and the rest goes on. Nothing here leaves
the site.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from iedn.config import GridConfig
from iedn.errors import CohortError
from iedn.modalities import TARGET, Modality
from iedn.sample import IednSample

from .cache import ScanCache
from .checks import file_findings
from .cohort import (
    Cohort,
    Quarantine,
    ScanRecord,
    load_manifest,
    modality_counts,
    split_by_patient,
)
from .config import SiteConfig
from .duplicates import find_duplicates
from .identifying import record_findings
from .preparation import Entry, Progress, ScanStore, prepare_all
from .preprocessing import PreparedScan, Shape
from .reading import Finding, FloatArray


class ScanDataset(Dataset[IednSample]):
    """Scans as samples, read from the cache when they are asked for.

    Args:
        entries: the scans.
        store: where their arrays come from.
    """

    def __init__(self, entries: Iterable[Entry], store: ScanStore) -> None:
        self._entries, self._store = tuple(entries), store

    @property
    def records(self) -> list[ScanRecord]:
        """The scans' records, with only those files that are used. Local."""
        return [entry.record for entry in self._entries]

    @property
    def keys(self) -> list[str]:
        """Name of every scan in the cache; tells its content."""
        return [entry.key for entry in self._entries]

    @property
    def shapes(self) -> list[Shape]:
        """(D, H, W) of every scan, without reading it."""
        return [entry.shape for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> IednSample:
        return as_sample(self.prepared(index))

    def prepared(self, index: int) -> PreparedScan:
        """The scan's arrays with their geometry and regions."""
        entry = self._entries[index]
        return self._store.load(entry.source, entry.key)


@dataclass(frozen=True)
class PreparedCohort:
    """A site's scans, ready for use.

    Attributes:
        train: scans to train on; empty at an evaluating site.
        validation: held-out scans; at an evaluating site, like ``test``, the whole cohort.
        test: held-out scans.
        all: every scan that could be prepared, with or without CBV.
        counts: scans with each modality among those to train on (at an evaluating site: among
            all); a modality that none has is absent.
        quarantined: scans and files that are not used, and why.
        warnings: findings about data that is used, by ``patient_id/scan_id``.
        problems: findings about the manifest.
        manifest: the scans as the manifest has them, with those it excludes.
    """

    train: ScanDataset
    validation: ScanDataset
    test: ScanDataset
    all: ScanDataset
    counts: dict[Modality, int]
    quarantined: tuple[Quarantine, ...]
    warnings: tuple[tuple[str, Finding], ...]
    problems: tuple[str, ...]
    manifest: Cohort

    @property
    def records(self) -> list[ScanRecord]:
        """Records of all scans that could be prepared. Local."""
        return self.all.records


def prepare_cohort(
    config: SiteConfig,
    grid: GridConfig,
    *,
    progress: Progress | None = None,
    workers: int = 1,
) -> PreparedCohort:
    """The scans of a site, of which at least one can be used; see ``examine_cohort``.

    Args:
        config: the site.
        grid: the preset's grid.
        progress: called with (done, total) after every scan.
        workers: scans prepared at a time.

    Raises:
        CohortError: the manifest is wrong, or there is no scan to train on (at an evaluating
            site: no scan); the message gives reasons.
    """
    cohort = examine_cohort(config, grid, progress=progress, workers=workers)
    if not cohort.counts:
        raise CohortError(_nothing_left(config, cohort.manifest, cohort.quarantined))
    return cohort


def examine_cohort(
    config: SiteConfig,
    grid: GridConfig,
    *,
    progress: Progress | None = None,
    workers: int = 1,
) -> PreparedCohort:
    """Read the manifest, prepare every scan that is not yet in the cache, and split.

    The result may be empty. At a training site the patients with a CBV map in the manifest are
    split; the same manifest and seed always give the same split.

    Args:
        config: the site.
        grid: the preset's grid.
        progress: called with (done, total) after every scan.
        workers: scans prepared at a time.

    Raises:
        CohortError: the manifest is wrong.
    """
    cohort = load_manifest(config.manifest)
    registration = config.preprocessing.registration
    store = ScanStore(ScanCache(config.cache), grid, registration=registration)
    outcomes = prepare_all(cohort.scans, store, progress, workers)
    found = [outcome.entry for outcome in outcomes if outcome.entry is not None]
    duplicates = find_duplicates((entry.record, entry.digests) for entry in found)
    entries = [entry for entry in found if entry.record.key not in duplicates.refused]
    quarantined = [q for outcome in outcomes for q in outcome.quarantined]
    quarantined += duplicates.quarantined
    if config.role == "train":
        quarantined += [_without_cbv(e.record) for e in entries if e.record.cbv is None]
    train, validation, test = _parts(config, cohort, entries)
    declared = train if config.role == "train" else entries
    return PreparedCohort(
        train=ScanDataset(train, store),
        validation=ScanDataset(validation, store),
        test=ScanDataset(test, store),
        all=ScanDataset(entries, store),
        counts=modality_counts(entry.record for entry in declared),
        quarantined=tuple(quarantined),
        warnings=(
            *(w for outcome in outcomes for w in outcome.warnings),
            *duplicates.warnings,
            *_start_findings(config, cohort),
        ),
        problems=cohort.problems,
        manifest=cohort,
    )


def as_sample(scan: PreparedScan) -> IednSample:
    """A prepared scan as the network takes it: float32 tensors (1, D, H, W)."""
    return IednSample(
        images={modality: _tensor(array) for modality, array in scan.images.items()},
        brain_mask=_tensor(scan.brain_mask),
        cbv=None if scan.cbv is None else _tensor(scan.cbv),
    )


def _start_findings(config: SiteConfig, cohort: Cohort) -> list[tuple[str, Finding]]:
    """What can be said at every start, without reading an image."""
    folder = config.manifest.parent
    return [
        (record.key, finding)
        for record in cohort.scans
        for finding in (*file_findings(record), *record_findings(record, folder))
    ]


def _parts(
    config: SiteConfig, cohort: Cohort, entries: list[Entry]
) -> tuple[list[Entry], list[Entry], list[Entry]]:
    """Training, validation and test scans.

    Divided by what the manifest says, not by what could be read: a file that breaks or is
    repaired must not move other patients between the splits.
    """
    if config.role == "evaluate":
        return [], entries, entries
    measured = tuple(record for record in cohort.scans if record.cbv is not None)
    split = split_by_patient(Cohort(measured), config.split, config.split.seed)
    usable = {e.record.key: e for e in entries if e.record.cbv is not None}
    train, validation, test = (
        [usable[record.key] for record in part if record.key in usable]
        for part in (split.train, split.validation, split.test)
    )
    return train, validation, test


def _without_cbv(record: ScanRecord) -> Quarantine:
    problem = "no usable measured CBV: kept for synthesis, not used for training or metrics"
    return Quarantine("E403", record.key, TARGET, problem)


def _nothing_left(config: SiteConfig, cohort: Cohort, quarantined: Sequence[Quarantine]) -> str:
    reasons = "; ".join(f"{q.code} {q.scan} {q.modality}: {q.problem}" for q in quarantined[:5])
    return (
        f"{config.manifest}: none of {len(cohort.scans)} scans can be used "
        f"{'for training ' if config.role == 'train' else ''}"
        f"({len(cohort.excluded)} more are excluded). {reasons}"
    )


def _tensor(array: FloatArray) -> Tensor:
    return torch.from_numpy(array).unsqueeze(0)
