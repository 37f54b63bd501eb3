"""How well the optional brain mask agrees with a reference mask. Prints one JSON object.

Phantom scans of the scenario five-sites, whose masks are known; and, where Debian's package
mricron-data is installed, its one real head (ch2, Colin27) against its own ch2bet, at 1 mm and in
slabs of 6 mm. A phantom's head is no patient's, and one healthy head is no study.

    python benchmarks/brain_mask.py --scans 3 --pictures overlays
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import nibabel
import numpy as np
import torch

from iedn.config import PRESETS
from iedn.modalities import Modality
from simulation.phantom import write_cohort
from simulation.scenario import load_scenario
from sites.brain_mask import estimate_brain_mask
from sites.cohort import ScanRecord, load_manifest
from sites.overlay import write_overlay
from sites.preprocessing import prepare_scan
from sites.reading import Volume, read_mask, read_volume

TEMPLATES = Path("/usr/share/mricron/templates")
SLAB = 6
FIRST_SEED = 41
PACKAGES = ("deepbet", "torch", "numpy", "nibabel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scans", type=int, default=3, help="phantom scans a site")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of the masks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [_measured(*head) for head in _heads(Path(folder), arguments)]
    print(json.dumps({"versions": {p: version(p) for p in PACKAGES}, "heads": rows}, indent=1))


def _heads(folder: Path, arguments: argparse.Namespace) -> Iterator[tuple[str, Volume, Volume]]:
    """Name, T1 and reference mask of every head."""
    sites = load_scenario("five-sites").sites
    for seed, (name, site) in enumerate(sites.items(), start=FIRST_SEED):
        if site.phantom is None:
            continue
        fewer = {"patients": arguments.scans, "max_visits": 1}
        counts = {"num_scans": None, "num_recurrence": None}
        cohort = site.phantom.model_copy(update=fewer | counts)
        for record in load_manifest(write_cohort(folder / name, cohort, seed=seed)).scans:
            if arguments.pictures is not None:
                _draw(arguments.pictures, replace(record, patient_id=f"{name}-{record.patient_id}"))
            yield name, read_volume(record.images[Modality.T1WI]), read_mask(record.brain_mask)
    if (TEMPLATES / "ch2.nii.gz").is_file():
        head = read_volume(TEMPLATES / "ch2.nii.gz")
        brain = read_mask(TEMPLATES / "ch2bet.nii.gz")
        yield "real head, 1 mm", head, brain
        thick, slabs = _in_slabs(head), _in_slabs(brain)
        slabs = replace(slabs, array=(slabs.array > 0.5).astype(np.float32))
        if arguments.pictures is not None:
            _draw(arguments.pictures, _as_record(folder, thick))
        yield f"real head, slabs of {SLAB} mm", thick, slabs


def _measured(name: str, t1: Volume, reference: Volume) -> dict[str, object]:
    start = time.process_time()
    mask = estimate_brain_mask(t1)
    seconds = time.process_time() - start
    both = float((mask.array * reference.array).sum())
    dice = 2.0 * both / float(mask.array.sum() + reference.array.sum())
    voxel_ml = float(np.prod(t1.spacing)) / 1000.0
    return {
        "head": name,
        "dice": round(dice, 3),
        "mask_ml": round(float(mask.array.sum()) * voxel_ml),
        "reference_ml": round(float(reference.array.sum()) * voxel_ml),
        "missed": round(1.0 - both / float(reference.array.sum()), 3),
        "cpu_s": round(seconds, 1),
    }


def _in_slabs(volume: Volume) -> Volume:
    """Means of ``SLAB`` slices, as thick slices see the head."""
    depth = volume.array.shape[0] // SLAB * SLAB
    slabs = volume.array[:depth].reshape(-1, SLAB, *volume.array.shape[1:]).mean(axis=1)
    to_first = np.diag([1.0, 1.0, SLAB, 1.0])
    to_first[2, 3] = (SLAB - 1) / 2
    affine = volume.affine @ to_first
    return Volume(np.asarray(slabs, dtype=np.float32), affine, affine)


def _as_record(folder: Path, t1: Volume) -> ScanRecord:
    path = folder / "head.nii.gz"
    nibabel.save(nibabel.Nifti1Image(t1.array.T, t1.affine), path)
    return ScanRecord("real-head", "slabs", {Modality.T1WI: path})


def _draw(folder: Path, record: ScanRecord) -> None:
    record = replace(record, brain_mask=None)
    path = folder / f"{record.patient_id}-{record.scan_id}.png"
    write_overlay(path, record, prepare_scan(record, PRESETS["demo"].grid))


if __name__ == "__main__":
    main()
