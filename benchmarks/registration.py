"""How well misaligned modalities are found and moved back, and how often aligned ones are touched.

Runs on phantom scans, which are written to a temporary folder, or kept in one that is given.
Prints one JSON object. The limits in ``sites.registration`` were chosen on cohorts of seed 101.

    python benchmarks/registration.py --scans 3 --aligned 17 --rows 64
"""

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from iedn.modalities import TARGET, Modality
from simulation.phantom import PhantomCohort, write_cohort
from simulation.phantom.config import SiteProtocol
from sites.cohort import ScanRecord, load_manifest
from sites.reading import Volume, read_mask, read_volume, voxel_points
from sites.registration import align, looks_misaligned

FIELD_OF_VIEW_MM = 220.0
CASES = (("mm", 2.0), ("mm", 4.0), ("mm", 8.0), ("deg", 3.0), ("deg", 8.0))
SEED = 11
WORSE_MM = 0.5
USUAL = {"snr": 30.0, "bias_sd": 0.1}
HARD = {"snr": 18.0, "bias_sd": 0.25, "field": "1.5T", "oblique_deg": 15.0}
PROTOCOLS = {"usual": USUAL, "hard": HARD}


@dataclass(frozen=True)
class Outcome:
    modality: str
    case: str
    imposed_mm: float
    residual_mm: float
    flagged: bool
    applied: bool
    first_look_cpu_s: float
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scans", type=int, default=3, help="scans that are misaligned")
    parser.add_argument("--aligned", type=int, default=17, help="aligned scans of each protocol")
    parser.add_argument("--protocol", choices=PROTOCOLS, help="only this one; default: both")
    parser.add_argument("--rows", type=int, default=64, help="in-plane grid; 160 has 19 slices")
    parser.add_argument("--cohorts", type=Path, help="folder that keeps the scans for next time")
    arguments = parser.parse_args()
    slices = 16 if arguments.rows < 100 else 19
    grid = {
        "rows": arguments.rows,
        "columns": arguments.rows,
        "slices": slices,
        "spacing_mm": FIELD_OF_VIEW_MM / arguments.rows,
        "slice_spacing_mm": 128.0 / slices,
    }
    with tempfile.TemporaryDirectory() as temporary:
        kept = arguments.cohorts or Path(temporary)
        names = [arguments.protocol] if arguments.protocol else list(PROTOCOLS)
        counts = (arguments.scans, arguments.aligned)
        print(json.dumps(_report(grid, names, counts, kept), indent=1))


def _report(
    grid: dict[str, float], names: list[str], counts: tuple[int, int], kept: Path
) -> dict[str, object]:
    scans, aligned = counts
    still = grid | {"jitter_mm": 0.0}
    moved = {
        name: [o for s in _scans(still | protocol, scans, kept) for o in _misaligned(*s)]
        for name, protocol in PROTOCOLS.items()
        if name in names
    }
    both = [o for outcomes in moved.values() for o in outcomes]
    report: dict[str, object] = {
        "grid": f"{grid['rows']}x{grid['columns']}x{grid['slices']}, {grid['spacing_mm']} mm",
        "seed": SEED,
        "scans_of_each_protocol": scans,
        "misaligned": _summary(both),
        "by_protocol": {name: _summary(outcomes) for name, outcomes in moved.items()},
        "by_case": _grouped(both, "case"),
        "by_modality": _grouped(both, "modality"),
    }
    for name in names:
        lying = [o for s in _scans(grid | PROTOCOLS[name], aligned, kept) for o in _aligned(*s)]
        report[f"aligned_{name}"] = _untouched(lying, aligned)
    return report


def _grouped(outcomes: list[Outcome], field: str) -> dict[str, object]:
    names = sorted({getattr(o, field) for o in outcomes})
    return {name: _summary([o for o in outcomes if getattr(o, field) == name]) for name in names}


def _scans(
    protocol: dict[str, object], count: int, kept: Path
) -> Iterator[tuple[int, ScanRecord, Volume, Volume]]:
    """Number, record, T1 and brain mask of freshly made phantom scans."""
    if not count:
        return
    cohort = PhantomCohort(protocol=SiteProtocol(**protocol), patients=count, max_visits=1)
    digest = hashlib.sha256(f"{SEED} {cohort.model_dump_json()}".encode()).hexdigest()
    folder = kept / f"cohort-{digest[:16]}"
    manifest = folder / "manifest.csv"
    if not manifest.exists():
        write_cohort(folder, cohort, seed=SEED)
    for number, record in enumerate(load_manifest(manifest).scans):
        t1 = read_volume(record.images[Modality.T1WI])
        yield number, record, t1, read_mask(record.files["brain_mask"])


def _modalities(record: ScanRecord) -> Iterator[tuple[str, Volume]]:
    """Five images and the CBV map."""
    for column, path in record.files.items():
        if column == TARGET or (column in list(Modality) and column != Modality.T1WI):
            yield str(column), read_volume(path)


def _misaligned(number: int, record: ScanRecord, t1: Volume, mask: Volume) -> Iterator[Outcome]:
    rng = np.random.default_rng([SEED, number])
    brain = voxel_points(mask, mask.array > 0.5)
    for name, volume in _modalities(record):
        for unit, size in CASES:
            motion = _random_motion(rng, brain.mean(axis=0), unit, size)
            moved = replace(volume, affine=motion @ volume.affine)
            yield _outcome((name, f"{size:g} {unit}"), volume, moved, (t1, mask, brain))


def _aligned(_: int, record: ScanRecord, t1: Volume, mask: Volume) -> Iterator[Outcome]:
    brain = voxel_points(mask, mask.array > 0.5)
    for name, volume in _modalities(record):
        yield _outcome((name, "aligned"), volume, volume, (t1, mask, brain))


def _outcome(
    label: tuple[str, str],
    truth: Volume,
    given: Volume,
    scan: tuple[Volume, Volume, np.ndarray],
) -> Outcome:
    t1, mask, brain = scan
    start = time.process_time()
    flagged = looks_misaligned(t1, given, mask)
    looked = time.process_time()
    result = align(t1, given, mask)
    cpu_s = time.process_time() - looked
    applied = bool((result.affine != given.affine).any())
    return Outcome(
        *label,
        imposed_mm=_distance(truth, given, brain),
        residual_mm=_distance(truth, result, brain),
        flagged=flagged,
        applied=applied,
        first_look_cpu_s=looked - start,
        cpu_s=cpu_s,
    )


def _random_motion(rng: np.random.Generator, centre: np.ndarray, unit: str, size: float):
    """A shift in, or a rotation about the brain's centre around, a random 3D direction."""
    direction = rng.standard_normal(3)
    direction /= np.linalg.norm(direction)
    matrix = np.eye(4)
    if unit == "mm":
        matrix[:3, 3] = size * direction
    else:
        matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad(size) * direction).as_matrix()
        matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    return matrix


def _distance(truth: Volume, other: Volume, brain: np.ndarray) -> float:
    """Mean distance in mm, over the brain, between where two affines put the same tissue."""
    change = other.affine @ np.linalg.inv(truth.affine)
    return float(
        np.linalg.norm(brain @ (change[:3, :3] - np.eye(3)).T + change[:3, 3], axis=1).mean()
    )


def _summary(outcomes: list[Outcome]) -> dict[str, object]:
    if not outcomes:
        return {"cases": 0}
    residual = np.array([o.residual_mm for o in outcomes])
    change = np.array([o.residual_mm - o.imposed_mm for o in outcomes])
    return {
        "cases": len(outcomes),
        "flagged": sum(o.flagged for o in outcomes),
        "moved": sum(o.applied for o in outcomes),
        "imposed_median_mm": round(float(np.median([o.imposed_mm for o in outcomes])), 2),
        "residual_median_mm": round(float(np.median(residual)), 2),
        "residual_p90_mm": round(float(np.percentile(residual, 90)), 2),
        "residual_worst_mm": round(float(residual.max()), 2),
        "made_worse": int((change > WORSE_MM).sum()),
        "largest_increase_mm": round(max(0.0, float(change.max())), 2),
        "cpu_s_per_modality": round(float(np.mean([o.cpu_s for o in outcomes])), 2),
    }


def _untouched(outcomes: list[Outcome], scans: int) -> dict[str, object]:
    if not outcomes:
        return {"volumes": 0}
    touched = [o for o in outcomes if o.applied]
    return {
        "volumes": len(outcomes),
        "flagged": sum(o.flagged for o in outcomes),
        "untouched_fraction": round(1.0 - len(touched) / len(outcomes), 4),
        "touched": [f"{o.modality} by {o.residual_mm:.1f} mm" for o in touched],
        "first_look_cpu_s_per_volume": round(
            float(np.mean([o.first_look_cpu_s for o in outcomes])), 3
        ),
        "cpu_s_per_scan": round(sum(o.cpu_s for o in outcomes) / scans, 2),
    }


if __name__ == "__main__":
    main()
