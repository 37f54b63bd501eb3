"""Every message between coordinator and site: its fields, their meaning and limits.

This is the whole list of what crosses the hospital wall besides tensors (which travel one array
record a group, see ``records``). Nothing here names a patient, a scan, a path or a host; per-scan
values have no field to travel in. Pydantic only: readable without torch or Flower.
"""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints, model_validator

from ..config import (
    FrozenModel,
    GridConfig,
    NetworkConfig,
    PrivacyDemand,
    TrainingConfig,
    TransferConfig,
)
from ..modalities import Modality

PROTOCOL_VERSION = 1

MISSING_BASE = "missing-base"
"""Code of a site that does not hold the model a request relies on; it is then sent in full."""

Role = Literal["train", "evaluate"]
Split = Literal["validation", "test"]
EvaluationKind = Literal["metrics", "diagnostic"]
TrainedOn = Literal["phantom (simulation)", "patients"]
ComparisonName = Literal["roi", "models", "readers"]

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
RunName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
GroupName = Annotated[str, StringConstraints(pattern=r"^(decoder|encoder\.[A-Za-z0-9_]{1,16})$")]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,47}$")]
Code = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]{1,48}$")]
Incident = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{12}$")]
Signature = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{2,256}$")]
Count = Annotated[int, Field(ge=0, le=2**20)]
Percent = Annotated[int, Field(ge=1, le=100)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z.+-]{1,32}$")]


class ProtocolMessage(FrozenModel):
    """Base of all messages; ``kind`` tells them apart on the wire."""

    kind: ClassVar[str] = ""
    protocol_version: int = Field(default=PROTOCOL_VERSION, ge=1)


class CapabilitiesRequest(ProtocolMessage):
    """Coordinator -> site: what can you contribute to this run?"""

    kind: ClassVar[str] = "capabilities-request"
    run: RunName
    grid: GridConfig
    network: NetworkConfig


class SiteCapabilities(ProtocolMessage):
    """Site -> coordinator: role, and declared (coarsened) numbers of training scans.

    Attributes:
        role: whether the site trains or only evaluates.
        num_training_scans: declared weight of the decoder; 0 for an evaluating site.
        scans_by_modality: declared weight of each encoder; a modality the site does not have is
            absent. For an evaluating site the modalities it can synthesise from.
        code_version: version of the installed package.
        holds: hash of the run's model that the site keeps, if it keeps one.
    """

    kind: ClassVar[str] = "site-capabilities"
    role: Role
    num_training_scans: Count
    scans_by_modality: dict[Modality, Count]
    code_version: Version
    holds: Digest | None = None


class RoundRequest(ProtocolMessage):
    """What every request of a round carries.

    Attributes:
        run: name of the run.
        round: number of the round, starting at 1 (0 is the initial model).
        base_hash: hash of the whole global model the request's tensors are taken from.
        grid: the run's grid.
        network: the run's network.
    """

    run: RunName
    round: int = Field(ge=0, le=1_000_000)
    base_hash: Digest
    grid: GridConfig
    network: NetworkConfig


class ModelRequest(RoundRequest):
    """A request for work on the groups of the model that a site needs.

    Attributes:
        group_hashes: hash of each group the site needs. A group that it holds with this hash does
            not travel; one that it holds from the round before may travel as a quantised delta.
            Empty: all groups travel, and the site need not keep them.
    """

    group_hashes: dict[GroupName, Digest] = Field(default_factory=dict)


class MaskKey(FrozenModel):
    """A site's key for the masks of one round, signed by the key that the site is known by.

    Attributes:
        key: X25519 public key, made for this round alone.
        groups: groups whose change the site means to send.
        signature: ECDSA (P-384, SHA-384) of run, round, base model, site, key and groups; see
            ``iedn.masking``.
    """

    key: Digest
    groups: tuple[GroupName, ...] = Field(min_length=1, max_length=16)
    signature: Signature


class MaskKeyRequest(RoundRequest):
    """Coordinator -> site: your key for the masks of this round?

    Attributes:
        training: local training settings, and
        privacy: the least privacy that will be asked for. A site that would refuse to train, or
            that has no privacy left to spend on it, gives no key, and voids no group.
    """

    kind: ClassVar[str] = "mask-key-request"
    training: TrainingConfig
    privacy: PrivacyDemand = PrivacyDemand()


class MaskKeyReply(ProtocolMessage):
    """Site -> coordinator: its key for the masks of one round, for the other sites.

    Attributes:
        mask_key: the key; None: the site has sent a masked update of this round before, and
            never sends another one.
    """

    kind: ClassVar[str] = "mask-key-reply"
    run: RunName
    round: int = Field(ge=1, le=1_000_000)
    base_hash: Digest
    mask_key: MaskKey | None


class TrainRequest(ModelRequest):
    """Coordinator -> site: train the groups of this message.

    Attributes:
        training: local training settings.
        seed: the run's seed; the site derives its own from (seed, round, site).
        group_sites: how many sites of this round own each group that was sent.
        group_shares: percent, rounded up, of the scans declared for each group that the site with
            most of them has. A group without counts as one site's.
        privacy: the least privacy that the run asks of a site.
        mask_keys: keys of all sites of this round, by site; the update has to be masked with
            them. None: it is sent as it is.
        transfer: how the update has to be encoded.
    """

    kind: ClassVar[str] = "train-request"
    training: TrainingConfig
    seed: int = Field(ge=0, lt=2**63)
    group_sites: dict[GroupName, Count]
    group_shares: dict[GroupName, Percent] = Field(default_factory=dict)
    privacy: PrivacyDemand = PrivacyDemand()
    mask_keys: dict[SiteName, MaskKey] | None = None
    transfer: TransferConfig = TransferConfig()

    @model_validator(mode="after")
    def _maskable(self) -> "TrainRequest":
        if self.mask_keys is not None:
            self.transfer.check_beside_secure_aggregation()
        return self


class TrainReply(ProtocolMessage):
    """Site -> coordinator: the update; its deltas travel as array records, one a group.

    Attributes:
        weights: declared weight of each group whose delta is sent.
        held_groups: groups the site's policy kept back.
        duration_s: seconds the training took, rounded to whole seconds.
        epsilon: privacy spent so far as the site reports it; None where DP is off.
        ledger_count: entries of the site's privacy ledger, and
        ledger_hash: hash of the last one. The coordinator remembers them: a site whose ledger was
            restored from a backup has forgotten what it spent.
        mask_roster: digest of the sites and keys that the tensors are masked for; None: they are
            not masked.
        holds: hash of the model that the site keeps, if it keeps one.
    """

    kind: ClassVar[str] = "train-reply"
    run: RunName
    round: int = Field(ge=1, le=1_000_000)
    base_hash: Digest
    weights: dict[GroupName, Annotated[int, Field(ge=1, le=2**20)]]
    held_groups: tuple[GroupName, ...] = ()
    duration_s: int = Field(ge=0)
    epsilon: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None
    ledger_count: Annotated[int, Field(ge=1, le=2**31)] | None = None
    ledger_hash: Digest | None = None
    mask_roster: Digest | None = None
    holds: Digest | None = None

    @model_validator(mode="after")
    def _whole_head(self) -> "TrainReply":
        if (self.ledger_count is None) != (self.ledger_hash is None):
            msg = "ledger_count and ledger_hash come together"
            raise ValueError(msg)
        return self


class EvaluateRequest(ModelRequest):
    """Coordinator -> site: evaluate the model of this message.

    Attributes:
        split: held-out part to use; the whole cohort at an evaluating site.
        evaluation: ``metrics`` against measured CBV, or ``diagnostic`` against labels.
        flip_average: average with the left-right flipped input.
    """

    kind: ClassVar[str] = "evaluate-request"
    split: Split
    evaluation: EvaluationKind
    flip_average: bool = False


class PairedAreas(FrozenModel):
    """Two areas under the ROC curve on the same scans: the seven numbers of a site.

    With them the coordinator computes the difference of areas, stratified by site, exactly. No
    score, rank or point of a curve is among them. They are not formally private.

    Attributes:
        num_positive: scans with recurrence.
        num_negative: scans with treatment response.
        area_a: of the score with the synthetic map.
        area_b: of the score with ASL.
        variance_a: DeLong's; Obuchowski's where a patient has several scans.
        variance_b: likewise.
        covariance: of the two areas.
    """

    num_positive: int = Field(ge=1, le=2**20)
    num_negative: int = Field(ge=1, le=2**20)
    area_a: float = Field(ge=0.0, le=1.0)
    area_b: float = Field(ge=0.0, le=1.0)
    variance_a: float = Field(ge=0.0, le=1.0)
    variance_b: float = Field(ge=0.0, le=1.0)
    covariance: float = Field(ge=-1.0, le=1.0)


class EvaluateReply(ProtocolMessage):
    """Site -> coordinator: aggregates over at least the policy's minimum of patients.

    Attributes:
        metrics: aggregate values by name, e.g. ``psnr_db_mean``; never a per-scan value.
        paired_areas: of ``diagnostic``: synthetic map against ASL, by what is compared: ROI ratios
            (``roi``), standard MRI with either (``models``), readers with either (``readers``).
            All are of the same scans.
        num_scans: scans behind the aggregates, coarsened like all declared counts.
        holds: hash of the model that the site keeps, if it keeps one.
    """

    kind: ClassVar[str] = "evaluate-reply"
    run: RunName
    round: int = Field(ge=0, le=1_000_000)
    base_hash: Digest
    split: Split
    evaluation: EvaluationKind
    metrics: dict[MetricName, Finite]
    paired_areas: dict[ComparisonName, PairedAreas] = Field(default_factory=dict)
    num_scans: Count
    holds: Digest | None = None

    @model_validator(mode="after")
    def _bounded(self) -> "EvaluateReply":
        if len(self.metrics) > 64:
            msg = f"at most 64 metrics, got {len(self.metrics)}"
            raise ValueError(msg)
        if len({(p.num_positive, p.num_negative) for p in self.paired_areas.values()}) > 1:
            msg = "paired areas of different numbers of scans"
            raise ValueError(msg)
        return self


class ModelCard(FrozenModel):
    """What a released model is, for whoever finds its file.

    Attributes:
        run: name of the run.
        round: round it was committed in.
        model_hash: SHA-256 of its tensors.
        trained_on: patients, or a phantom.
        num_training_sites: sites with an accepted update in this or an earlier round.
        group_sites: such sites by group; a group with 0 was never trained and must not be used.
        metrics: means over sites (each counts alike) and the worst site's, by split; number
            of sites and declared scans behind them.
        code_version: version of the coordinator's package.
        use: what it may be used for.
    """

    run: RunName
    round: int = Field(ge=0, le=1_000_000)
    model_hash: Digest
    trained_on: TrainedOn
    num_training_sites: Count
    group_sites: dict[GroupName, Count]
    metrics: dict[MetricName, Finite] = Field(max_length=64)
    code_version: Version
    use: Literal["research use only, not for diagnosis"] = "research use only, not for diagnosis"


class ReleaseRequest(RoundRequest):
    """Coordinator -> site: the whole model that comes with this message is yours to keep.

    Attributes:
        card: what the model is.
    """

    kind: ClassVar[str] = "release-request"
    card: ModelCard

    @model_validator(mode="after")
    def _of_this_model(self) -> "ReleaseRequest":
        card = self.card
        if (card.run, card.round, card.model_hash) != (self.run, self.round, self.base_hash):
            msg = "the card is of another model"
            raise ValueError(msg)
        return self


class ReleaseReceipt(ProtocolMessage):
    """Site -> coordinator: the model came whole and is kept."""

    kind: ClassVar[str] = "release-receipt"
    run: RunName
    round: int = Field(ge=0, le=1_000_000)
    base_hash: Digest


class FailureReply(ProtocolMessage):
    """Site -> coordinator: the task failed. The text stays in the site's own log.

    Attributes:
        code: stable word, e.g. ``policy`` or ``E205``.
        incident: random id under which the site's log holds the full story.
    """

    kind: ClassVar[str] = "failure-reply"
    code: Code
    incident: Incident


OUTGOING: tuple[type[ProtocolMessage], ...] = (
    SiteCapabilities,
    MaskKeyReply,
    TrainReply,
    EvaluateReply,
    ReleaseReceipt,
    FailureReply,
)
"""Messages that leave a site."""

MESSAGES: tuple[type[ProtocolMessage], ...] = (
    CapabilitiesRequest,
    MaskKeyRequest,
    TrainRequest,
    EvaluateRequest,
    ReleaseRequest,
    *OUTGOING,
)


def safe_code(text: str) -> str:
    """``text`` reduced to what a ``Code`` may hold; ``unknown`` if nothing is left."""
    return re.sub(r"[^A-Za-z0-9-]+", "-", text).strip("-")[:48] or "unknown"
