"""What the maps are worth with each combination of inputs, scan by scan, on held-out patients.

A unit is one network with one combination. Each is a file of its own, written when it is
complete, so that the same command goes on after any stop. Units name scans: they stay local.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from iedn.batching import restrict
from iedn.config import Architecture
from iedn.evaluation.combination_table import ScanScore
from iedn.evaluation.combinations import Combination, name_of
from iedn.evaluation.metrics import evaluate_scan
from iedn.files import atomic_write_bytes
from iedn.inference import synthesize
from iedn.modalities import in_order
from iedn.model import Network
from sites.dataset import ScanDataset, as_sample

from .regions import lesion_rcbv_error

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Unit:
    """One network with one combination of inputs.

    Attributes:
        architecture: which of the two networks.
        combination: the inputs it gets.
        identity: hash of what the result depends on; another one is computed again.
    """

    architecture: Architecture
    combination: Combination
    identity: str

    @property
    def name(self) -> str:
        """Of its file, without ending."""
        return f"{self.architecture}--{name_of(self.combination)}"


class UnitFolder:
    """Results of units on disk, a file each.

    Args:
        folder: is made with the first result.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, unit: Unit) -> list[ScanScore] | None:
        """The unit's scores; None if they are not there or are of something else."""
        path = self._path(unit)
        if not path.exists():
            return None
        content = json.loads(path.read_bytes())
        if content["identity"] != unit.identity:
            return None
        return [ScanScore(**row) for row in content["scores"]]

    def all(self) -> dict[tuple[Architecture, Combination], list[ScanScore]]:
        """Scores of every unit there is, whatever they depend on."""
        found: dict[tuple[Architecture, Combination], list[ScanScore]] = {}
        for path in sorted(self._folder.glob("*--*.json")):
            content = json.loads(path.read_bytes())
            combination = in_order(content["combination"])
            rows = [ScanScore(**row) for row in content["scores"]]
            found[content["architecture"], combination] = rows
        return found

    def store(self, unit: Unit, scores: Sequence[ScanScore], seconds: float) -> None:
        """Write a unit's scores, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        content = {
            "identity": unit.identity,
            "architecture": unit.architecture,
            "combination": list(unit.combination),
            "seconds": round(seconds, 1),
            "scores": [asdict(score) for score in scores],
        }
        atomic_write_bytes(self._path(unit), json.dumps(content, indent=1).encode() + b"\n")

    def _path(self, unit: Unit) -> Path:
        return self._folder / f"{unit.name}.json"


def identity_of(*parts: str) -> str:
    """Hash of everything a unit's result depends on."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def scored_scans(dataset: ScanDataset, combinations: Iterable[Combination]) -> list[int]:
    """Numbers of the scans that have measured CBV and every modality of every combination.

    All combinations are compared on the same scans, so that a difference is the inputs' and not
    the patients'.

    """
    needed = {modality for combination in combinations for modality in combination}
    return [
        number
        for number, record in enumerate(dataset.records)
        if record.cbv is not None and needed <= set(record.images)
    ]


def score_combination(
    model: Network,
    dataset: ScanDataset,
    numbers: Sequence[int],
    combination: Combination,
    *,
    flip_average: bool = False,
    device: torch.device = CPU,
) -> list[ScanScore]:
    """Scores of a network that gets only these inputs, in the order of ``numbers``.

    Raises:
        ValueError: a scan lacks an input or measured CBV.
    """
    scores = []
    for number in numbers:
        scan, record = dataset.prepared(number), dataset.records[number]
        sample = as_sample(scan)
        if scan.cbv is None or not set(combination) <= set(scan.images):
            raise ValueError(f"scan {number} lacks measured CBV or an input")
        inputs = restrict(sample, combination)
        made = synthesize(model, inputs, flip_average=flip_average, device=device)
        synthetic = made.cbv[0].numpy()
        metrics = evaluate_scan(scan.cbv, synthetic, scan.brain_mask > 0)
        scores.append(
            ScanScore(
                patient_id=record.patient_id,
                scan_id=record.scan_id,
                ssim_percent=metrics.ssim_percent,
                psnr_db=metrics.psnr_db,
                lesion_error=lesion_rcbv_error(scan, scan.cbv, synthetic),
            )
        )
    return scores
