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
from sites.dataset import ScanDataset

from .session import SiteSession
from .training import network_from

Row = dict[str, float]

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
    _write_table(table, dataset, rows)
    patients = {record.patient_id for record in dataset.records}
    return session.egress.metrics(request, rows, len(patients))


def evaluate_scans(
    model: Network,
    dataset: ScanDataset,
    *,
    task: str,
    flip_average: bool = False,
    device: torch.device,
) -> list[Row]:
    """Metrics of every scan of a dataset, in its order.

    Raises:
        CohortError: the dataset is empty.
    """
    if len(dataset) == 0:
        raise CohortError("no held-out scan with measured CBV to evaluate")
    rows: list[Row] = []
    for index in range(len(dataset)):
        sample = dataset[index]
        made = synthesize(model, sample, flip_average=flip_average, device=device)
        if sample.cbv is None:
            raise CohortError("a held-out scan has no measured CBV")
        scan = evaluate_scan(
            sample.cbv[0].numpy(), made.cbv[0].cpu().numpy(), sample.brain_mask[0].numpy() > 0
        )
        rows.append({"psnr_db": scan.psnr_db, "ssim_percent": scan.ssim_percent, "mae": scan.mae})
        progress.report(task, index + 1, len(dataset))
    return rows


def _write_table(path: Path, dataset: ScanDataset, rows: Sequence[Row]) -> None:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["patient_id", "scan_id", *rows[0]], lineterminator="\n")
    writer.writeheader()
    for record, row in zip(dataset.records, rows, strict=True):
        writer.writerow({"patient_id": record.patient_id, "scan_id": record.scan_id, **row})
    atomic_write_bytes(path, stream.getvalue().encode())
