"""The only way out of a hospital: everything that leaves is built here, and logged first.

Default deny: a kind of release the policy does not name is refused, as is anything computed from
fewer patients than it demands. Per-scan values have no way through. Declared counts are rounded
down (``policy.count_step``), so that two releases cannot be subtracted to find one patient.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from iedn import __version__
from iedn.errors import PolicyError
from iedn.masking import MaskRound, RingGroups, roster_digest
from iedn.modalities import Modality
from iedn.parameters import SHARED_GROUP
from iedn.protocol.checks import MAX_ABS_DELTA, Shapes, check_tensors, update_norm
from iedn.protocol.messages import (
    ComparisonName,
    EvaluateReply,
    EvaluateRequest,
    FailureReply,
    MaskKey,
    MaskKeyReply,
    MaskKeyRequest,
    ModelRequest,
    PairedAreas,
    ProtocolMessage,
    ReleaseReceipt,
    ReleaseRequest,
    Role,
    SiteCapabilities,
    TrainReply,
    TrainRequest,
)
from iedn.protocol.records import Sendable

from .changes import Changes, decoded, facts_of, leaving
from .config import PolicyConfig, ReleaseKind
from .diagnostic_release import Approvals, DiagnosticRelease, check_small_counts
from .failure import failure_of
from .masked_rounds import MaskedRounds
from .metrics_release import ScanRow, metrics_release
from .release_log import ReleaseLog
from .released_scans import ReleasedScans, num_patients_of

_log = logging.getLogger(__name__)

RELEASED_SCANS, APPROVALS = "released-scans.jsonl", "approved-releases.txt"
RELEASED_METRICS = "released-metric-scans.jsonl"


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


@dataclass(frozen=True)
class LedgerHead:
    """Where a site's privacy ledger stands. Nothing in it depends on a patient's images.

    Attributes:
        count: entries, without those that only note an answer.
        hash: of the last one.
        epsilon: spent by all of them.
    """

    count: int
    hash: str
    epsilon: float


def coarsen(count: int, step: int) -> int:
    """``count`` rounded down to a multiple of ``step``, but never below 1; 0 stays 0."""
    return 0 if count == 0 else max(1, count - count % step)


class Egress:
    """One site's way out.

    Args:
        policy: what may leave.
        log: where each release is written before it leaves; the scans behind released metrics and
            diagnostic releases, and the approvals, are files beside it.

    Attributes:
        masked_rounds: rounds of which nothing more may leave.
    """

    def __init__(self, policy: PolicyConfig, log: ReleaseLog) -> None:
        self._policy = policy
        self._log = log
        self._released_scans = ReleasedScans(log.path.with_name(RELEASED_SCANS))
        self._released_metrics = ReleasedScans(log.path.with_name(RELEASED_METRICS))
        self._approvals = Approvals(log.path.with_name(APPROVALS))
        self.masked_rounds = MaskedRounds(log)

    def capabilities(
        self, role: Role, counts: TrainingCounts, run: str, holds: str | None = None
    ) -> SiteCapabilities:
        """What the site declares when it joins a run: coarsened counts, and the model it holds."""
        is_trainer = role == "train"
        message = SiteCapabilities(
            role=role,
            num_training_scans=self._coarse(counts.scans) if is_trainer else 0,
            scans_by_modality={
                m: self._coarse(n) if is_trainer else 0
                for m, n in counts.scans_by_modality.items()
                if n > 0
            },
            code_version=__version__,
            holds=holds,
        )
        self._record(message, {"run": run})
        return message

    def check_update(
        self, request: TrainRequest, groups: Iterable[str], counts: TrainingCounts
    ) -> tuple[str, ...]:
        """The groups whose change may leave; asked before training, and again after it.

        Raises:
            PolicyError: updates are not allowed, or no group may leave.
        """
        self._allow("update", counts.patients)
        sent = tuple(g for g in groups if not self._is_held(g, request, counts))
        if not sent:
            raise PolicyError("the policy holds every group back: too few patients or sites")
        return sent

    def checked_update(
        self,
        request: TrainRequest,
        changes: Changes,
        counts: TrainingCounts,
        *,
        shapes: Shapes,
        duration_s: float,
        ledger: LedgerHead | None = None,
    ) -> tuple[TrainReply, Changes]:
        """The update that may leave, by ``update`` or under masks; nothing is written yet.

        Groups the policy holds back are taken out. What is quantised is judged by what the
        coordinator will read.

        Args:
            request: what it answers.
            changes: of each group that was trained.
            counts: of the scans behind it.
            shapes: of the tensors of all groups that came; those not sent are named as held.
            duration_s: of the training.
            ledger: after this training was paid for; None where no privacy is spent.

        Raises:
            PolicyError: updates are not allowed, too few patients, or the norm is too large.
            RefusedError: an array is not what the protocol demands, e.g. not finite.
        """
        sent = {g: changes[g] for g in self.check_update(request, changes, counts)}
        deltas = decoded(sent)
        check_tensors(deltas, {g: shapes[g] for g in sent}, max_abs=MAX_ABS_DELTA)
        self._check_norm(update_norm(deltas))
        reply = TrainReply(
            run=request.run,
            round=request.round,
            base_hash=request.base_hash,
            weights={g: self._coarse(self._scans_behind(g, counts)) for g in sent},
            held_groups=tuple(sorted(set(shapes) - set(sent))),
            duration_s=round(duration_s),
            epsilon=None if ledger is None else ledger.epsilon,
            ledger_count=None if ledger is None else ledger.count,
            ledger_hash=None if ledger is None else ledger.hash,
            mask_roster=_mask_roster(request),
            holds=_held(request),
        )
        return reply, sent

    def update(self, reply: TrainReply, checked: Changes) -> Sendable:
        """Log a checked update, which leaves now: its tensors, or what they were quantised to."""
        sent = leaving(checked)
        self._record(reply, facts_of(sent))
        return sent

    def repeat(self, reply: TrainReply, sent: Sendable) -> None:
        """Log that an update which left before leaves again, unchanged."""
        self._record(reply, {**facts_of(sent), "repeat": True})
        self.masked_rounds.remember(reply)

    def masked_update(self, reply: TrainReply, tensors: RingGroups) -> None:
        """Log the masked form of a checked update, which leaves now.

        Raises:
            RefusedError: ``mask-spent``: another one of this round has left before.
        """
        self.masked_rounds.check_unspent(reply.run, reply.round)
        self._record(reply, facts_of(tensors))
        self.masked_rounds.remember(reply)

    def check_mode(self, request: TrainRequest) -> None:
        """Refuse to be asked for an update as it is, if the policy demands masks.

        Raises:
            PolicyError: it does.
        """
        if request.mask_keys is None and self._policy.require_secure_aggregation:
            raise PolicyError(
                "asked for an update that is not masked; policy.require_secure_aggregation forbids"
            )

    def mask_groups(self, groups: Sequence[str], counts: TrainingCounts) -> tuple[str, ...]:
        """The groups of a masked round that this site will send, as far as its patients decide.

        Raises:
            PolicyError: none.
        """
        self._allow("update", counts.patients)
        offered = (g for g in groups if counts.patients_behind(g) >= self._policy.min_patients)
        return tuple(sorted(offered))

    def mask_key(self, request: MaskKeyRequest, mask_key: MaskKey | None) -> MaskKeyReply:
        """This site's signed key for the masks of a round; None says that the round is spent."""
        reply = MaskKeyReply(
            run=request.run,
            round=request.round,
            base_hash=request.base_hash,
            mask_key=mask_key,
        )
        self._record(reply, {})
        return reply

    def metrics(self, request: EvaluateRequest, rows: Sequence[ScanRow]) -> EvaluateReply:
        """Mean and standard deviation (n - 1) of those per-scan metrics that the policy names.

        Also by whether there is ASL.

        Raises:
            PolicyError: metrics are not allowed, or all are held: not named by the policy, too
                few patients, or too close to an earlier release.
        """
        self._allow("metrics", num_patients_of(row.scan for row in rows))
        if not any(name in self._policy.metrics for row in rows for name in row.values):
            raise PolicyError("policy.metrics allows none of these measures of image quality")
        release = metrics_release(
            rows, request.split, self._released_metrics.entries(), self._policy
        )
        for name, why in release.held.items():
            _log.info("%s of the %s scans is held back: %s", name, request.split, why)
        if not release.metrics:
            reasons = "; ".join(dict.fromkeys(release.held.values())) or "no value is finite"
            raise PolicyError(f"no metric of the {request.split} scans may leave: {reasons}")
        self._released_metrics.remember(release.scans)
        return self._evaluation(request, release.metrics, len(rows))

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
        self._released_scans.remember(release.classes)
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
            num_scans=coarsen(num_scans, self._policy.release_step),
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
        share = request.group_shares.get(group, 100)
        is_dominated = share > self._policy.max_group_percent
        owners = request.group_sites.get(group, 0)
        sites = min(owners, 1) if is_dominated else owners
        return sites < self._policy.min_group_sites and not self._policy.reveal_small_group

    def _coarse(self, count: int) -> int:
        return coarsen(count, self._policy.count_step)

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


def _mask_roster(request: TrainRequest) -> str | None:
    if request.mask_keys is None:
        return None
    return roster_digest(MaskRound.of(request), request.mask_keys)


def _held(request: ModelRequest) -> str | None:
    """A site that was told the hashes of its groups has kept them."""
    return request.base_hash if request.group_hashes else None
