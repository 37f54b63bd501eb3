"""An external cohort: maps on disk, Table 3 for the site, seven numbers for the coordinator.

The maps, their sidecars and the values of each scan stay at the site.
"""

from collections import defaultdict
from pathlib import Path

import torch

from iedn import progress
from iedn.errors import CohortError
from iedn.model import Network
from iedn.protocol.messages import EvaluateReply, EvaluateRequest
from iedn.protocol.records import Groups
from sites.config import SiteConfig
from sites.dataset import PreparedCohort
from sites.readers import ReaderStudy, load_readers

from .diagnostic_value import DiagnosticResult, check_cohort, evaluate_rows
from .external import synthesize_cohort
from .session import SiteSession
from .synthesis import Synthesizer
from .training import network_from

SYNTHETIC = "synthetic"
READERS = "readers.csv"


def answer_diagnostic(
    session: SiteSession, request: EvaluateRequest, groups: Groups
) -> EvaluateReply:
    """Synthesise the cohort and answer with seven numbers a comparison.

    Raises:
        CohortError: the cohort or its reader study is not in order, or has one outcome only.
        PolicyError: the policy does not allow it, too few patients, or not yet approved.
    """
    result = evaluate_external(
        session.config,
        session.cohort(request.grid),
        network_from(groups, request.network),
        model_hash=request.base_hash,
        flip_average=request.flip_average,
    )
    return session.egress.diagnostic(request, result.release)


def evaluate_external(
    config: SiteConfig,
    cohort: PreparedCohort,
    network: Network,
    *,
    model_hash: str,
    flip_average: bool = False,
    readers: Path | None = None,
) -> DiagnosticResult:
    """Maps, values and Table 3 of an external cohort; all checks come before the first map.

    Args:
        config: the site.
        cohort: its scans.
        network: the released model.
        model_hash: of its tensors.
        flip_average: see ``iedn.inference.synthesize``.
        readers: the reader study; by default ``readers.csv`` of the site's folder, if there is one.

    Raises:
        CohortError: the cohort or its reader study is not in order, or has one outcome only.
        PolicyError: too few patients.
    """
    records = cohort.records
    check_cohort([(r.patient_id, r.label) for r in records], cohort.quarantined, config.policy)
    study = _study(config, cohort, readers)
    rows = synthesize_cohort(
        Synthesizer(network.to(torch.device(config.device)), model_hash, flip_average),
        cohort,
        config.folder / SYNTHETIC,
        progress=progress.reporter(f"{config.name}: synthetic maps"),
    )
    with progress.step(f"{config.name}: areas, models and readers"):
        return evaluate_rows(rows, study, model_hash=model_hash, policy=config.policy)


def _study(config: SiteConfig, cohort: PreparedCohort, readers: Path | None) -> ReaderStudy | None:
    path = readers or config.folder / READERS
    if readers is None and not path.exists():
        return None
    if not path.exists():
        raise CohortError(f"{path}: there is no such file")
    cases: dict[str, list[str]] = defaultdict(list)
    for record in cohort.records:
        if record.label is not None:
            cases[record.patient_id].append(record.key)
    return load_readers(path, cases)
