"""A round of training with noise, as the site's policy has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from iedn.config import PrivacyDemand, TrainablePart, TrainingConfig
from iedn.errors import ConfigError, PolicyError
from iedn.model import Network
from iedn.parameters import SHARED_GROUP
from iedn.protocol.messages import MaskKeyRequest, TrainRequest
from iedn.training import Progress, TrainingSummary
from sites.privacy import PrivacyConfig

from .accounting import PrivacyEvent, noise_multiplier_for
from .privacy import NoisePlan, PatientScans, freeze, train_privately
from .session import SiteSession


@dataclass(frozen=True)
class PrivateRound:
    """What a round will do, known before it is paid for.

    Attributes:
        plan: steps, draws and noise.
        groups: that are trained and sent; the others stay as they came.
        part: of these groups that is trained.
        scans: whose they are.
    """

    plan: NoisePlan
    groups: frozenset[str]
    part: TrainablePart
    scans: PatientScans

    @property
    def event(self) -> PrivacyEvent:
        """What the round costs."""
        return self.plan.event

    def train(
        self,
        model: Network,
        settings: TrainingConfig,
        *,
        device: torch.device,
        progress: Progress | None = None,
    ) -> TrainingSummary:
        """Train ``model`` in place; to be paid for first."""
        freeze(model, self.groups, self.part)
        both = (settings, self.plan)
        return train_privately(model, self.scans, both, device=device, progress=progress)


def plan_round(
    session: SiteSession, request: TrainRequest | MaskKeyRequest, sent: Sequence[str]
) -> PrivateRound:
    """What the site's policy makes of a request.

    Args:
        session: of the site, whose policy trains with noise.
        request: what the coordinator asked for.
        sent: groups that may leave. What is not sent must not take part in clipping.

    Raises:
        PolicyError: no group may leave that would be trained.
        ConfigError: the policy's delta does not fit the number of patients.
    """
    policy = session.config.privacy
    groups = frozenset(sent)
    if policy.trained_part == "decoder":
        groups &= {SHARED_GROUP}
    if not groups:
        raise PolicyError("the policy holds back every group that would be trained with noise")
    dataset = session.cohort(request.grid).train
    scans = PatientScans.grouped(dataset, [record.patient_id for record in dataset.records])
    _check_delta(policy, len(scans.by_patient))
    plan = noise_plan(policy, request.privacy, steps=request.training.local_steps)
    return PrivateRound(plan, groups, policy.trained_part, scans)


def noise_plan(policy: PrivacyConfig, demand: PrivacyDemand, *, steps: int) -> NoisePlan:
    """What a round does: the policy's numbers, and the larger one of the two noises.

    Args:
        policy: with noise.
        demand: of the run.
        steps: of a round.
    """
    noise = policy.noise_multiplier
    if noise is None:
        noise = _least_noise(
            policy.budget, policy.delta, policy.sample_rate, policy.planned_rounds * steps
        )
    return NoisePlan(
        clip=policy.clip,
        noise_multiplier=max(noise, demand.noise_multiplier),
        sample_rate=policy.sample_rate,
        patients_per_step=policy.patients_per_step,
        steps=steps,
    )


@lru_cache(maxsize=32)
def _least_noise(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    return noise_multiplier_for(epsilon, delta, sample_rate=sample_rate, steps=steps)


def _check_delta(policy: PrivacyConfig, patients: int) -> None:
    if policy.delta * patients >= 1:
        raise ConfigError(
            f"delta {policy.delta:g} would let one of {patients} patients be published in full",
            where="site.toml: privacy.delta",
            allowed=f"less than 1 / {patients} training patients",
        )
