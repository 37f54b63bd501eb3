"""An evaluate request at a site: held-out scans against measured CBV.

Per-scan rows are written to a local table; only aggregates go to the gate.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import torch

from iedn import progress
from iedn.errors import CohortError, PolicyError
from iedn.evaluation.metrics import evaluate_scan
from iedn.files import atomic_write_bytes
from iedn.inference import synthesize
from iedn.model import Network
from iedn.protocol.messages import EvaluateReply, EvaluateRequest
from iedn.protocol.records import Groups
from sites.dataset import ScanDataset, as_sample
from sites.metrics_release import ScanRow
from sites.preprocessing import PreparedScan
from sites.reading import FloatArray

from .regions import lesion_rcbv_error
from .session import SiteSession
from .training import network_from

METRICS = ("psnr_db", "ssim_percent", "mae", "bias", "nrmse")
NO_CBV = "an evaluating site has no measured CBV: SSIM and PSNR are refused"


def answer_metrics(session: SiteSession, request: EvaluateRequest, groups: Groups) -> EvaluateReply:
    """Mean image quality on a held-out split.

    Raises:
        CohortError: the split holds no scan with measured CBV.
        PolicyError: the policy does not allow it, or the site has no measured CBV.
    """
    if session.config.role == "evaluate":
        raise PolicyError(NO_CBV)
    cohort = session.cohort(request.grid)
    dataset = cohort.validation if request.split == "validation" else cohort.test
    task = f"{session.config.name}: evaluating round {request.round}"
    rows = evaluate_scans(
        network_from(groups, request.network),
        dataset,
        task=task,
        flip_average=request.flip_average,
        device=torch.device(session.config.device),
    )
    table = session.config.folder / f"evaluation-{request.split}-round-{request.round:04d}.csv"
    _write_table(table, rows)
    return session.egress.metrics(request, rows)


def evaluate_scans(
    model: Network,
    dataset: ScanDataset,
    *,
    task: str,
    flip_average: bool = False,
    device: torch.device,
) -> list[ScanRow]:
    """Metrics of every scan of a dataset, in its order; ``lesion_error`` where one was drawn.

    Raises:
        CohortError: the dataset is empty.
    """
    if len(dataset) == 0:
        raise CohortError("no held-out scan with measured CBV to evaluate")
    rows: list[ScanRow] = []
    for index, record in enumerate(dataset.records):
        scan = dataset.prepared(index)
        if scan.cbv is None:
            raise CohortError("a held-out scan has no measured CBV")
        sample = as_sample(scan)
        made = synthesize(model, sample, flip_average=flip_average, device=device)
        rows.append(
            ScanRow(
                patient_id=record.patient_id,
                scan_id=record.scan_id,
                modalities=frozenset(sample.images),
                values=scan_values(scan, scan.cbv, made.cbv[0].cpu().numpy()),
            )
        )
        progress.report(task, index + 1, len(dataset))
    return rows


def scan_values(scan: PreparedScan, cbv: FloatArray, synthetic: FloatArray) -> dict[str, float]:
    """Metrics of one scan by name; ``lesion_error`` only where a lesion was drawn."""
    found = evaluate_scan(cbv, synthetic, scan.brain_mask > 0)
    values = {name: float(getattr(found, name)) for name in METRICS}
    error = lesion_rcbv_error(scan, cbv, synthetic)
    return values if error is None else values | {"lesion_error": error}


def _write_table(path: Path, rows: Sequence[ScanRow]) -> None:
    stream = io.StringIO()
    columns = ["patient_id", "scan_id", *METRICS, "lesion_error"]
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({"patient_id": row.patient_id, "scan_id": row.scan_id, **row.values})
    atomic_write_bytes(path, stream.getvalue().encode())
