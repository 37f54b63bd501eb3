"""A round of training with noise: the site's policy, its budget, then the steps.

The budget is spent before the first step and is never given back: whatever crashes afterwards, the
ledger counts too much rather than too little.
"""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import torch

from iedn.config import PrivacyDemand, TrainingConfig
from iedn.errors import ConfigError, PolicyError
from iedn.model import Network
from iedn.parameters import SHARED_GROUP, group_of
from iedn.protocol.messages import TrainRequest
from iedn.training import Progress, TrainingSummary
from sites.egress import PrivateWork
from sites.privacy import PrivacyConfig, check_demand

from .accounting import PrivacyEvent, noise_multiplier_for
from .privacy import NoisePlan, PatientScans, freeze, train_privately
from .session import SiteSession

_log = logging.getLogger(__name__)


class Ledger(Protocol):
    """What training needs of the site's budget."""

    def reserve(
        self, event: PrivacyEvent, *, run: str, round_number: int, base_hash: str
    ) -> object:
        """Spend, on disk, or raise ``PolicyError`` if that would exceed the budget."""

    def epsilon(self) -> float:
        """Spent over all events so far."""


def open_ledger(folder: Path, policy: PrivacyConfig) -> Ledger:
    """The budget of the site whose outputs go to ``folder``."""
    from .ledger import Ledger as SiteLedger  # type: ignore[import-not-found]

    ledger: Ledger = SiteLedger.open(folder, epsilon_max=policy.budget, delta=policy.delta)
    return ledger


def train_with_noise(
    session: SiteSession,
    request: TrainRequest,
    model: Network,
    settings: TrainingConfig,
    progress: Progress,
) -> tuple[TrainingSummary, PrivateWork]:
    """Spend the round's budget, and train ``model`` in place.

    Args:
        session: of the site.
        request: what the coordinator asked for.
        model: the groups that were sent.
        settings: of training, as this site runs them.
        progress: called after each step.

    Raises:
        PolicyError: the run asks for more privacy than the site's policy has, the policy lets no
            group out that would be trained, or the budget is spent.
        ConfigError: the policy's delta does not fit the number of patients.
    """
    config = session.config
    check_demand(config.privacy, request.privacy)
    plan = noise_plan(config.privacy, request.privacy, steps=settings.local_steps)
    trained, frozen = _divided(session, request, model)
    scans = _scans(session, request)
    _check_delta(config.privacy, len(scans.by_patient))
    ledger = open_ledger(config.folder, config.privacy)
    ledger.reserve(
        plan.event, run=request.run, round_number=request.round, base_hash=request.base_hash
    )
    freeze(model, trained, config.privacy.trained_part)
    device = torch.device(config.device)
    summary = train_privately(model, scans, (settings, plan), device=device, progress=progress)
    epsilon = ledger.epsilon()
    _log.info("%s: epsilon %.3f of %g is spent", config.name, epsilon, config.privacy.budget)
    return summary, PrivateWork(epsilon=epsilon, frozen=frozen)


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


def _divided(
    session: SiteSession, request: TrainRequest, model: Network
) -> tuple[frozenset[str], frozenset[str]]:
    """Groups to train, and groups to leave: what is not sent must not take part in clipping."""
    came = {group_of(name) for name, _ in model.named_parameters()}
    counts = session.counts(request.grid)
    trained = frozenset(session.egress.groups_to_send(request, counts, sorted(came)))
    if session.config.privacy.trained_part == "decoder":
        trained &= {SHARED_GROUP}
    if not trained:
        raise PolicyError("the policy holds back every group that would be trained with noise")
    return trained, frozenset(came - trained)


def _scans(session: SiteSession, request: TrainRequest) -> PatientScans:
    dataset = session.cohort(request.grid).train
    return PatientScans.grouped(dataset, [record.patient_id for record in dataset.records])


def _check_delta(policy: PrivacyConfig, patients: int) -> None:
    if policy.delta * patients >= 1:
        raise ConfigError(
            f"delta {policy.delta:g} would let one of {patients} patients be published in full",
            where="site.toml: privacy.delta",
            allowed=f"less than 1 / {patients} training patients",
        )
