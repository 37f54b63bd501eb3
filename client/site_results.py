"""What a site's report shows of its maps: held-out scans against measured CBV, and examples.

All of it is local: it names scans and shows patients.
"""

import csv
import re
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from iedn import progress
from iedn.errors import CohortError
from iedn.evaluation.results import summary_of
from iedn.evaluation.statistics import BlandAltman, Estimate, bland_altman, concordance
from iedn.inference import synthesize
from iedn.model import Network
from sites.config import SiteConfig
from sites.dataset import ScanDataset, as_sample
from sites.metrics_release import ScanRow
from sites.preprocessing import PreparedScan
from sites.reading import FloatArray

from .evaluation import scan_values
from .regions import lesion_rcbv

_ROUND_TABLE = re.compile(r"evaluation-validation-round-(\d+)\.csv")


@dataclass(frozen=True)
class Example:
    """A scan to look at, with its synthetic map (D, H, W)."""

    name: str
    scan: PreparedScan
    synthetic: FloatArray


@dataclass(frozen=True)
class LesionPair:
    """A lesion's mean rCBV in the synthetic and in the measured map, and whose it is."""

    patient_id: str
    synthetic: float
    measured: float


@dataclass(frozen=True)
class MeasuredResults:
    """Held-out scans against measured CBV.

    Attributes:
        rows: a row a scan.
        summary: mean and SD over scans.
        lesions: of the scans with a drawn lesion and a reference.
        agreement: synthetic against measured rCBV; None with fewer than two patients.
        concordance: Lin's, of the same; None likewise.
        examples: scans with their maps.
    """

    rows: tuple[ScanRow, ...]
    summary: dict[str, float]
    lesions: tuple[LesionPair, ...]
    agreement: BlandAltman | None
    concordance: Estimate | None
    examples: tuple[Example, ...]

    @property
    def num_patients(self) -> int:
        """Different patients."""
        return len({row.patient_id for row in self.rows})


def measure_held_out(
    config: SiteConfig, network: Network, dataset: ScanDataset, *, examples: int, flip_average: bool
) -> MeasuredResults:
    """Synthesise every held-out scan and hold it against its measured map.

    Args:
        config: the site.
        network: the model.
        dataset: held-out scans with measured CBV.
        examples: how many patients to keep a map of, the first scan of each.
        flip_average: see ``iedn.inference.synthesize``.

    Raises:
        CohortError: there is no held-out scan with measured CBV.
    """
    rows: list[ScanRow] = []
    lesions: list[LesionPair] = []
    kept: dict[str, Example] = {}
    for index, record in enumerate(dataset.records):
        scan = dataset.prepared(index)
        if scan.cbv is None:
            raise CohortError("a held-out scan has no measured CBV")
        device = torch.device(config.device)
        made = synthesize(network, as_sample(scan), flip_average=flip_average, device=device)
        synthetic = made.cbv[0].cpu().numpy()
        values = scan_values(scan, scan.cbv, synthetic)
        having = frozenset(scan.images)
        rows.append(ScanRow(record.patient_id, record.scan_id, having, values))
        if found := lesion_rcbv(scan, scan.cbv, synthetic):
            pair = LesionPair(record.patient_id, found.prediction.mean, found.truth.mean)
            lesions.append(pair)
        if record.patient_id not in kept and len(kept) < examples:
            kept[record.patient_id] = Example(record.key, scan, synthetic)
        progress.report(f"{config.name}: held-out scans", index + 1, len(dataset))
    if not rows:
        raise CohortError("no held-out scan with measured CBV to evaluate")
    enough = len({pair.patient_id for pair in lesions}) > 1
    columns = _columns(lesions)
    return MeasuredResults(
        rows=tuple(rows),
        summary=summary_of([row.values for row in rows]),
        lesions=tuple(lesions),
        agreement=bland_altman(*columns) if enough else None,
        concordance=concordance(*columns) if enough else None,
        examples=tuple(kept.values()),
    )


def validation_rounds(folder: Path) -> list[tuple[int, dict[str, float]]]:
    """Mean of each metric by round, from the tables that answering the coordinator has left."""
    found = []
    for path in folder.glob("evaluation-validation-round-*.csv"):
        match = _ROUND_TABLE.fullmatch(path.name)
        if match:
            with path.open(newline="", encoding="utf-8") as stream:
                rows = list(csv.DictReader(stream))
            found.append((int(match[1]), _means(rows)))
    return sorted(found, key=lambda entry: entry[0])


def _means(rows: list[dict[str, str]]) -> dict[str, float]:
    names = [name for name in (rows[0] if rows else {}) if name not in ("patient_id", "scan_id")]
    values = {name: [float(row[name]) for row in rows if row[name]] for name in names}
    return {name: fmean(known) for name, known in values.items() if known}


def _columns(lesions: list[LesionPair]) -> tuple[list[float], list[float], list[str]]:
    return (
        [pair.synthetic for pair in lesions],
        [pair.measured for pair in lesions],
        [pair.patient_id for pair in lesions],
    )
