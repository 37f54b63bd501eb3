"""From a site's cohort and a model to a reader study.

Measured and synthetic CBV go the same way: on the model's grid, cut at the same brain mask, brain
mean 1. Nothing is resampled after that, so that neither is smoother than the other by handling.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from iedn import progress
from iedn.errors import CohortError
from iedn.modalities import TARGET, Modality
from sites.cohort import ScanRecord
from sites.dataset import PreparedCohort, ScanDataset
from sites.preprocessing import PreparedScan

from ..synthesis import Synthesizer
from .order import draw
from .study import SYNTHETIC, Design, Study
from .writing import CaseImages, write_study

Split = Literal["validation", "test", "all"]
_MOST_NAMED = 5


def make_study(
    cohort: PreparedCohort,
    synthesizer: Synthesizer,
    design: Design,
    folder: Path,
    *,
    split: Split = "test",
    most: int | None = None,
) -> Study:
    """Write the study of a cohort.

    Args:
        cohort: the site's scans, on the model's grid.
        synthesizer: the model.
        design: what is asked.
        folder: of the study.
        split: of a quality study: which scans; those the model was trained on flatter it.
        most: as many cases at most, chosen by the seed.

    Raises:
        CohortError: no scan can be shown; or, of a diagnosis study, a labelled one cannot.
    """
    dataset = cohort.all if split == "all" or design.kind == "diagnosis" else cohort.test
    if split == "validation" and design.kind == "quality":
        dataset = cohort.validation
    chosen = _chosen(dataset, synthesizer, design)
    if most is not None:
        keys = {n: dataset.records[n].key for n in chosen}
        kept = sorted(chosen, key=lambda n: draw(design.seed, "cases", "", keys[n]))[:most]
        chosen = sorted(kept)
    return write_study(
        folder,
        design,
        _cases(dataset, chosen, synthesizer, design),
        model_hash=synthesizer.model_hash,
        progress=lambda done: progress.report("volumes for readers", done, len(chosen)),
    )


def _chosen(dataset: ScanDataset, synthesizer: Synthesizer, design: Design) -> list[int]:
    """Places of the scans to show."""
    records = dataset.records
    if design.kind == "diagnosis":
        labelled = [n for n, record in enumerate(records) if record.label is not None]
        lacking = [records[n].key for n in labelled if Modality.ASL not in records[n].images]
        if lacking:
            raise CohortError(
                f"{len(lacking)} labelled scans have no usable ASL ({_some(lacking)}): readers "
                "could not judge them under MRI+ASL; give them an exclude_reason in the manifest"
            )
        found = labelled
    else:
        found = [n for n, record in enumerate(records) if record.cbv is not None]
    if not found:
        wanted = "an outcome" if design.kind == "diagnosis" else "measured CBV"
        raise CohortError(f"none of {len(records)} scans has {wanted}: nothing to show to readers")
    lacking = [records[n].key for n in found if not _can_be_made(records[n], synthesizer)]
    if lacking:
        raise CohortError(
            f"the model cannot do with the images of {len(lacking)} scans ({_some(lacking)})"
        )
    return found


def _can_be_made(record: ScanRecord, synthesizer: Synthesizer) -> bool:
    network = synthesizer.network
    wanted, found = set(network.config.modalities), set(record.images)
    return bool(wanted & found) if network.accepts_missing else wanted <= found


def _cases(
    dataset: ScanDataset, chosen: list[int], synthesizer: Synthesizer, design: Design
) -> Iterator[CaseImages]:
    for place in chosen:
        scan = dataset.prepared(place)
        images = {str(modality): image for modality, image in scan.images.items()}
        images[SYNTHETIC] = synthesizer.cbv(scan) * (scan.brain_mask > 0)
        if design.kind == "quality":
            # The ASL map would tell the readers nothing about the two CBV maps.
            images.pop(Modality.ASL.value, None)
            images[TARGET] = _measured(scan)
        yield CaseImages(
            dataset.records[place].key, images, scan.brain_mask, scan.geometry.grid.affine
        )


def _measured(scan: PreparedScan) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    if scan.cbv is None:
        msg = "a scan without measured CBV was chosen"
        raise AssertionError(msg)
    return np.asarray(scan.cbv * (scan.brain_mask > 0), np.float32)


def _some(keys: list[str]) -> str:
    more = len(keys) - _MOST_NAMED
    return ", ".join(keys[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
