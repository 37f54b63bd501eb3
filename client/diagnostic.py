"""An evaluate request at an external cohort: maps on disk, diagnostic value out.

The maps, their sidecars and the ROI values of each scan stay at the site.
"""

import torch

from iedn import progress
from iedn.protocol.messages import EvaluateReply, EvaluateRequest
from iedn.protocol.records import Groups

from .external import DiagnosticSummary, DiagnosticValue, diagnostic_summary, synthesize_cohort
from .session import SiteSession
from .synthesis import Synthesizer
from .training import network_from

SYNTHETIC = "synthetic"


def answer_diagnostic(
    session: SiteSession, request: EvaluateRequest, groups: Groups
) -> EvaluateReply:
    """Synthesise the cohort and answer with areas under the curve and class counts.

    Raises:
        PolicyError: the policy does not allow it, or too few patients.
    """
    network = network_from(groups, request.network).to(torch.device(session.config.device))
    rows = synthesize_cohort(
        Synthesizer(network, request.base_hash, request.flip_average),
        session.cohort(request.grid),
        session.config.folder / SYNTHETIC,
        progress=progress.reporter(f"{session.config.name}: synthetic maps"),
    )
    summary = diagnostic_summary(rows)
    values = _values("synthetic_cbv", summary.synthetic_cbv) | _values("asl", summary.asl)
    return session.egress.diagnostic(
        request,
        {**values, "num_automatic_roi": float(summary.num_automatic)},
        num_scans=len(rows),
        num_patients=_fewest_patients(summary),
    )


def _fewest_patients(summary: DiagnosticSummary) -> int:
    """Patients behind the smaller of the areas that would leave."""
    behind = [v.num_patients for v in (summary.synthetic_cbv, summary.asl) if v.auc is not None]
    return min(behind, default=0)


def _values(name: str, value: DiagnosticValue) -> dict[str, float]:
    counts = {
        f"{name}_num_recurrence": float(value.num_recurrence),
        f"{name}_num_treatment_response": float(value.num_treatment_response),
    }
    if value.auc is None:
        return counts
    return {
        **counts,
        f"{name}_auc": value.auc.value,
        f"{name}_auc_low": value.auc.low,
        f"{name}_auc_high": value.auc.high,
    }
