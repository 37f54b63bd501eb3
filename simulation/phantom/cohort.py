"""Writing a cohort: all patients, the manifest, and the record that lets a folder be reused.

A folder appears complete or not at all: it is written under another name and renamed. The record
``phantom.json`` holds configuration, seed, generator version and the size of every file; a folder
whose record fits is not made again.
"""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path

from iedn.errors import ConfigError
from iedn.modalities import BRAIN_MASK, TARGET, Modality

from .config import PhantomCohort
from .latents import PatientPlan, plan_cohort
from .scanning import LESION_MASK, write_patient
from .template import template_folder

GENERATOR_VERSION = 1
"""Raised whenever the same configuration and seed would give other voxels."""
MANIFEST, RECORD = "manifest.csv", "phantom.json"
COLUMNS = (
    "patient_id",
    "scan_id",
    *Modality,
    TARGET,
    BRAIN_MASK,
    "label",
    "split",
    "exclude_reason",
    LESION_MASK,
)
COLUMNS_WHERE_USED = ("asl_kind", "pld_s")
"""Left out of a manifest in which no scan has them."""
Rows = list[dict[str, str]]
Progress = Callable[[int, int], None]


def write_cohort(
    folder: Path,
    cohort: PhantomCohort,
    *,
    seed: int,
    workers: int = 1,
    progress: Progress | None = None,
    pool: Executor | None = None,
) -> Path:
    """Make a cohort of phantom patients on disk, or find it already made.

    Args:
        folder: must not exist, be empty, or hold this very cohort.
        cohort: who comes and how they are scanned.
        seed: from 0; with ``cohort`` it decides every voxel, whatever ``workers`` is.
        workers: processes; patients are spread over them. More than one starts fresh interpreters,
            so a script that calls this needs the usual ``if __name__ == "__main__"``.
        progress: called with (scans done, scans in all) after each patient.
        pool: processes that are shared by several cohorts (see :func:`phantom_pool`); it takes
            the place of ``workers``, stays open, and changes no voxel.

    Returns:
        Path of ``manifest.csv``; its paths are relative to ``folder``.

    Raises:
        ConfigError: the folder holds something else or is damaged, or nilearn is missing.
    """
    if seed < 0 or workers < 1:
        msg = f"seed {seed} and workers {workers} are out of range"
        raise ConfigError(msg, allowed="seed from 0, workers from 1")
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _check_reusable(folder, cohort, seed)
        return folder / MANIFEST
    template_folder()
    try:
        with _complete_or_nothing(folder) as partial:
            with nullcontext(pool) if pool is not None else phantom_pool(workers) as executor:
                rows = _write_patients(partial, cohort, seed, executor, progress)
            _write_manifest(partial / MANIFEST, rows)
            _write_record(partial, cohort, seed)
    except OSError:
        # Another process may have finished the same cohort first; anything else goes on up.
        if not (folder / RECORD).exists():
            raise
        _check_reusable(folder, cohort, seed)
    return folder / MANIFEST


@contextmanager
def phantom_pool(workers: int) -> Iterator[Executor | None]:
    """Processes for :func:`write_cohort`; None where one process does all.

    A process is started by the first patient handed to it: a pool that finds every cohort made
    costs nothing.
    """
    if workers == 1:
        yield None
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        yield pool


def fingerprint(cohort: PhantomCohort, seed: int) -> str:
    """SHA-256 of configuration, seed and generator version."""
    identity = {
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "cohort": cohort.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@contextmanager
def _complete_or_nothing(folder: Path) -> Iterator[Path]:
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_patients(
    folder: Path, cohort: PhantomCohort, seed: int, pool: Executor | None, progress: Progress | None
) -> Rows:
    plans = plan_cohort(cohort, seed)
    total = sum(len(plan.outcomes) for plan in plans)
    rows: Rows = []
    for made in _made_patients(folder, cohort, plans, seed, pool):
        rows.extend(made)
        if progress is not None:
            progress(len(rows), total)
    return sorted(rows, key=lambda row: (row["patient_id"], row["scan_id"]))


def _made_patients(
    folder: Path,
    cohort: PhantomCohort,
    plans: tuple[PatientPlan, ...],
    seed: int,
    pool: Executor | None,
) -> Iterator[Rows]:
    if pool is None:
        yield from (_write_one(folder, cohort, plan, seed) for plan in plans)
        return
    futures = [pool.submit(_write_one, folder, cohort, plan, seed) for plan in plans]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        # Nobody may still write into a folder that is about to be renamed or deleted.
        wait([future for future in futures if not future.cancel()])


def _write_one(folder: Path, cohort: PhantomCohort, plan: PatientPlan, seed: int) -> Rows:
    # Here, because it comes with nilearn, whose absence has been reported by now.
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # has no stubs

    # One thread a process: sums in another order would make other voxels.
    with threadpool_limits(limits=1):
        return write_patient(folder, cohort, plan, seed)


def _write_manifest(path: Path, rows: Rows) -> None:
    used = tuple(c for c in COLUMNS_WHERE_USED if any(c in row for row in rows))
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, (*COLUMNS, *used), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _sizes(folder: Path) -> dict[str, int]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != RECORD)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def _write_record(folder: Path, cohort: PhantomCohort, seed: int) -> None:
    record = {
        "what": "simulated phantom cohort, no patients",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "hash": fingerprint(cohort, seed),
        "cohort": cohort.model_dump(mode="json"),
        "files": _sizes(folder),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _check_reusable(folder: Path, cohort: PhantomCohort, seed: int) -> None:
    where = str(folder)
    allowed = "a folder that does not exist, is empty, or holds this very cohort"
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        found, files = record["hash"], dict(record["files"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        msg = f"the folder is in use and has no readable {RECORD}"
        raise ConfigError(msg, where=where, allowed=allowed) from error
    if found != fingerprint(cohort, seed):
        msg = "the folder holds a phantom cohort of another configuration, seed or version"
        raise ConfigError(msg, where=where, allowed=allowed)
    present = _sizes(folder)
    damaged = sorted(name for name, size in files.items() if present.get(name) != size)
    if damaged:
        msg = f"{len(damaged)} files are missing or changed, first {damaged[0]}; delete the folder"
        raise ConfigError(msg, where=where, allowed=allowed)
