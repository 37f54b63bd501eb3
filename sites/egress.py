"""The only way out of a hospital: everything that leaves is built here, and logged first.

Default deny: a kind of release the policy does not name is refused, as is anything computed from
fewer patients than it demands. Per-scan values have no way through. Declared counts are rounded
down to multiples of 5, so that two releases cannot be subtracted to find one patient.
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from iedn import __version__
from iedn.errors import IednError, PolicyError, ProtocolError, RefusedError, ScanError
from iedn.evaluation.results import summary_of
from iedn.modalities import Modality
from iedn.parameters import SHARED_GROUP, state_hash
from iedn.protocol.checks import MAX_ABS_DELTA, Shapes, check_tensors, update_norm
from iedn.protocol.messages import (
    ComparisonName,
    EvaluateReply,
    EvaluateRequest,
    FailureReply,
    ModelRequest,
    PairedAreas,
    ProtocolMessage,
    ReleaseReceipt,
    ReleaseRequest,
    Role,
    SiteCapabilities,
    TrainReply,
    TrainRequest,
    safe_code,
)
from iedn.protocol.records import Sendable

from .config import PolicyConfig, ReleaseKind
from .diagnostic_release import Approvals, DiagnosticRelease, ReleasedScans, check_small_counts
from .release_log import ReleaseLog

_log = logging.getLogger(__name__)

COARSE_STEP = 5
RELEASED_SCANS, APPROVALS = "released-scans.jsonl", "approved-releases.txt"

Deltas = dict[str, dict[str, NDArray[np.float32]]]


@dataclass(frozen=True)
class TrainingCounts:
    """How many scans and patients the site trains with, exactly; this never leaves.

    Attributes:
        scans: all training scans.
        patients: all training patients.
        scans_by_modality: training scans that have the modality.
        patients_by_modality: patients with such a scan.
    """

    scans: int
    patients: int
    scans_by_modality: Mapping[Modality, int]
    patients_by_modality: Mapping[Modality, int]

    def patients_behind(self, group: str) -> int:
        """Patients whose scans train a group."""
        if group == SHARED_GROUP:
            return self.patients
        return self.patients_by_modality.get(Modality(group.removeprefix("encoder.")), 0)


def coarsen(count: int, step: int = COARSE_STEP) -> int:
    """``count`` rounded down to a multiple of ``step``, but never below 1; 0 stays 0."""
    return 0 if count == 0 else max(1, count - count % step)


class Egress:
    """One site's way out.

    Args:
        policy: what may leave.
        log: where each release is written before it leaves; the scans behind diagnostic releases
            and the approvals are files beside it.
    """

    def __init__(self, policy: PolicyConfig, log: ReleaseLog) -> None:
        self._policy = policy
        self._log = log
        self._released_scans = ReleasedScans(log.path.with_name(RELEASED_SCANS))
        self._approvals = Approvals(log.path.with_name(APPROVALS))

    def capabilities(
        self, role: Role, counts: TrainingCounts, run: str, holds: str | None = None
    ) -> SiteCapabilities:
        """What the site declares when it joins a run: coarsened counts, and the model it holds."""
        is_trainer = role == "train"
        message = SiteCapabilities(
            role=role,
            num_training_scans=coarsen(counts.scans) if is_trainer else 0,
            scans_by_modality={
                m: coarsen(n) if is_trainer else 0
                for m, n in counts.scans_by_modality.items()
                if n > 0
            },
            code_version=__version__,
            holds=holds,
        )
        self._record(message, {"run": run})
        return message

    def update(
        self,
        request: TrainRequest,
        deltas: Deltas,
        counts: TrainingCounts,
        *,
        shapes: Shapes,
        duration_s: float,
        payloads: Mapping[str, bytes] | None = None,
    ) -> tuple[TrainReply, Sendable]:
        """The update that may leave: groups the policy holds back are taken out.

        Args:
            request: what was asked.
            deltas: by group and name, as the coordinator will read them.
            counts: of the training data.
            shapes: that the protocol demands.
            duration_s: seconds the training took.
            payloads: quantised groups; where given, they leave in the place of ``deltas``.

        Raises:
            PolicyError: updates are not allowed, too few patients, or the norm is too large.
            RefusedError: an array is not what the protocol demands, e.g. not finite.
        """
        self._allow("update", counts.patients)
        sent = {g: t for g, t in deltas.items() if not self._is_held(g, request, counts)}
        if not sent:
            raise PolicyError("the policy holds every group back: too few patients or sites")
        check_tensors(sent, {g: shapes[g] for g in sent}, max_abs=MAX_ABS_DELTA)
        self._check_norm(update_norm(sent))
        reply = TrainReply(
            run=request.run,
            round=request.round,
            base_hash=request.base_hash,
            weights={g: coarsen(self._scans_behind(g, counts)) for g in sent},
            held_groups=tuple(sorted(set(deltas) - set(sent))),
            duration_s=round(duration_s),
            holds=_held(request),
        )
        leaving: Sendable = sent if payloads is None else {g: payloads[g] for g in sent}
        self._record(reply, _facts_of(leaving))
        return reply, leaving

    def repeat(self, reply: TrainReply, sent: Sendable) -> None:
        """Log that an update which left before leaves again, unchanged."""
        self._record(reply, {**_facts_of(sent), "repeat": True})

    def metrics(
        self, request: EvaluateRequest, rows: Sequence[Mapping[str, float]], num_patients: int
    ) -> EvaluateReply:
        """Mean and standard deviation (n - 1) of per-scan metrics.

        Raises:
            PolicyError: metrics are not allowed, or too few patients.
        """
        self._allow("metrics", num_patients)
        return self._evaluation(request, summary_of(rows), len(rows))

    def diagnostic(self, request: EvaluateRequest, release: DiagnosticRelease) -> EvaluateReply:
        """Diagnostic value of an external cohort: seven numbers a comparison.

        Raises:
            PolicyError: not allowed, too few patients, too close to an earlier release, or not
                yet approved at the site.
        """
        fields = self.preview(release)
        if self._policy.review and not self._approvals.has(release):
            raise PolicyError(
                "nobody at this site has approved these numbers (policy.review); look at them "
                "with `iedn-client --site NAME evaluate --model FILE`, then add --approve"
            )
        self._released_scans.remember(release)
        return self._evaluation(request, {}, release.num_scans, fields)

    def preview(self, release: DiagnosticRelease) -> dict[ComparisonName, PairedAreas]:
        """What would leave, after every check but the approval; nothing is written.

        Raises:
            PolicyError: it would not leave.
        """
        patients = {patient for patient, _ in release.positive | release.negative}
        self._allow("diagnostic", len(patients))
        check_small_counts(release, self._released_scans.entries(), self._policy)
        return dict(release.paired_areas)

    def approve(self, release: DiagnosticRelease) -> None:
        """Let exactly these numbers leave when the coordinator asks for this model.

        Raises:
            PolicyError: they would not leave for another reason.
        """
        self.preview(release)
        self._approvals.approve(release)

    def receipt(self, request: ReleaseRequest) -> ReleaseReceipt:
        """That a released model was kept; repeats only what the coordinator sent."""
        reply = ReleaseReceipt(run=request.run, round=request.round, base_hash=request.base_hash)
        self._record(reply, {})
        return reply

    def failure(self, error: Exception) -> FailureReply:
        """What the coordinator learns of an error here; see ``failure_of``."""
        reply = failure_of(error)
        self._record(reply, {})
        return reply

    def _evaluation(
        self,
        request: EvaluateRequest,
        metrics: Mapping[str, float],
        num_scans: int,
        paired_areas: Mapping[ComparisonName, PairedAreas] | None = None,
    ) -> EvaluateReply:
        reply = EvaluateReply(
            run=request.run,
            round=request.round,
            base_hash=request.base_hash,
            split=request.split,
            evaluation=request.evaluation,
            metrics=dict(metrics),
            paired_areas=dict(paired_areas or {}),
            num_scans=coarsen(num_scans, max(COARSE_STEP, self._policy.min_cell)),
            holds=_held(request),
        )
        self._record(reply, {})
        return reply

    def _allow(self, kind: ReleaseKind, num_patients: int) -> None:
        if kind not in self._policy.releases:
            allowed = ", ".join(self._policy.releases) or "nothing"
            msg = f"policy.releases does not allow {kind!r}; it allows {allowed}"
            raise PolicyError(msg)
        if num_patients < self._policy.min_patients:
            msg = (
                f"{kind} from {num_patients} patients; "
                f"policy.min_patients demands {self._policy.min_patients}"
            )
            raise PolicyError(msg)

    def _is_held(self, group: str, request: TrainRequest, counts: TrainingCounts) -> bool:
        if counts.patients_behind(group) < self._policy.min_patients:
            return True
        few_sites = request.group_sites.get(group, 0) < self._policy.min_group_sites
        return few_sites and not self._policy.reveal_small_group

    def _check_norm(self, norm: float) -> None:
        bound = self._policy.max_update_norm
        if bound is not None and norm > bound:
            msg = f"the update's norm {norm:.4g} exceeds policy.max_update_norm {bound:.4g}"
            raise PolicyError(msg)

    @staticmethod
    def _scans_behind(group: str, counts: TrainingCounts) -> int:
        if group == SHARED_GROUP:
            return counts.scans
        return counts.scans_by_modality[Modality(group.removeprefix("encoder."))]

    def _record(self, message: ProtocolMessage, facts: Mapping[str, object]) -> None:
        self._log.append(
            {"kind": message.kind, "message": message.model_dump(mode="json"), **facts}
        )


def failure_of(error: Exception) -> FailureReply:
    """A code and an incident id; the text stays in the site's own log."""
    reply = FailureReply(code=_code_of(error), incident=secrets.token_hex(6))
    _log.error("incident %s (%s): %s", reply.incident, reply.code, error, exc_info=error)
    return reply


def _held(request: ModelRequest) -> str | None:
    """A site that was told the hashes of its groups has kept them."""
    return request.base_hash if request.group_hashes else None


def _facts_of(leaving: Sendable) -> dict[str, object]:
    """Hash and bytes of what really leaves: tensors, or their quantised payloads."""
    arrays: dict[str, NDArray[np.generic]] = {}
    for group, content in leaving.items():
        if isinstance(content, bytes):
            arrays[group] = np.frombuffer(content, np.uint8)
        else:
            arrays.update(content)
    kind = "encoded" if any(isinstance(c, bytes) for c in leaving.values()) else "tensors"
    return {kind: state_hash(arrays), "bytes": sum(a.nbytes for a in arrays.values())}


def _code_of(error: Exception) -> str:
    if isinstance(error, ScanError | ProtocolError | RefusedError):
        return safe_code(error.code)
    if isinstance(error, PolicyError):
        return "policy"
    return safe_code(type(error).__name__) if isinstance(error, IednError) else "internal"
