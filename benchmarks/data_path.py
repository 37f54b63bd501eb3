"""The way of a scan to the network: seconds to prepare one, and how long a GPU would wait.

Writes a phantom cohort to a temporary folder, prepares it (cold, then from the cache), and
feeds a model that only sleeps, as a GPU that computes while the CPU prepares the next batch.
Prints one JSON object.

    python benchmarks/data_path.py --scans 6 --rows 160 --step-ms 400
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from unittest import mock

import torch
from speed_work import machine

from iedn.batching import prefetched
from iedn.config import GridConfig, NetworkConfig, TrainingConfig
from iedn.model import build_network
from iedn.sample import IednBatch
from iedn.training import training_batches
from simulation.phantom import PhantomCohort, write_cohort
from simulation.phantom.config import SiteProtocol
from sites.cache import ScanCache
from sites.config import SiteConfig, SplitConfig
from sites.dataset import PreparedCohort, prepare_cohort

FIELD_OF_VIEW_MM = 220.0
SLICES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--steps", type=int, default=10, help="steps a round")
    parser.add_argument("--step-ms", type=float, default=400.0, help="of the sleeping model")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(_report(Path(folder), arguments), indent=1))


def _report(folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    rows, scans = arguments.rows, arguments.scans
    protocol = SiteProtocol(
        rows=rows,
        columns=rows,
        slices=SLICES,
        spacing_mm=FIELD_OF_VIEW_MM / rows,
        slice_spacing_mm=128.0 / SLICES,
    )
    cohort = PhantomCohort(protocol=protocol, patients=scans, max_visits=1)
    config = SiteConfig(
        name="bench",
        manifest=write_cohort(folder / "cohort", cohort, seed=1),
        folder=folder / "site",
        split=SplitConfig(train=1.0, validation=0.0, test=0.0),
    )
    grid = GridConfig(rows=rows, columns=rows, spacing_mm=FIELD_OF_VIEW_MM / rows)
    cold, _ = _timed_preparation(config, grid)
    warm, prepared = _timed_preparation(config, grid)
    step_s = arguments.step_ms / 1000
    first, reads_first = _round(prepared, arguments.steps, step_s, ahead=True)
    second, reads_second = _round(prepared, arguments.steps, step_s, ahead=True)
    without, _ = _round(prepared, arguments.steps, step_s, ahead=False)
    return {
        "machine": machine(),
        "work": f"{scans} phantom scans, {rows}x{rows}x{SLICES}, batch 2, a step of {step_s} s",
        "prepare_s_per_scan": round(cold / scans, 3),
        "start_with_cache_s_per_scan": round(warm / scans, 3),
        "idle_fraction_first_round": first,
        "idle_fraction_later_round": second,
        "idle_fraction_without_the_thread": without,
        "cache_reads_first_round": reads_first,
        "cache_reads_later_round": reads_second,
    }


def _timed_preparation(config: SiteConfig, grid: GridConfig) -> tuple[float, PreparedCohort]:
    started = time.perf_counter()
    prepared = prepare_cohort(config, grid)
    return time.perf_counter() - started, prepared


def _round(
    prepared: PreparedCohort, steps: int, step_s: float, *, ahead: bool
) -> tuple[float, int]:
    """Share of a round in which the sleeping model waits, and reads of the cache."""
    model = build_network(NetworkConfig(base_channels=2), seed=0)
    reads = mock.Mock(side_effect=ScanCache.load, autospec=True)
    with mock.patch.object(ScanCache, "load", lambda cache, key: _counted(reads, cache, key)):
        batches = islice(training_batches(model, prepared.train, TrainingConfig(), seed=0), steps)
        started = time.perf_counter()
        _sleep_through(prefetched(batches) if ahead else batches, step_s)
        wall = time.perf_counter() - started
    return round(1 - steps * step_s / wall, 4), reads.call_count


def _counted(reads: mock.Mock, cache: ScanCache, key: str) -> object:
    return reads(cache, key)


def _sleep_through(batches: Iterable[IednBatch], step_s: float) -> None:
    for _ in batches:
        time.sleep(step_s)


if __name__ == "__main__":
    main()
