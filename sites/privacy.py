"""A site's policy on training with noise: ``[privacy]`` of ``site.toml``.

The site decides, and the coordinator may only ask for more. What the numbers mean, what they
cost, and which to choose, is in ``docs/explanation/privacy.md``.
"""

from dataclasses import dataclass
from typing import Self, get_args

from pydantic import Field, model_validator

from iedn.config import FrozenModel, PrivacyDemand, PrivacyTier, TrainablePart
from iedn.errors import PolicyError

LARGEST_FORMAL_EPSILON = 10.0


@dataclass(frozen=True)
class TierDefaults:
    """What a tier means where ``site.toml`` does not say.

    Attributes:
        epsilon: budget of the site, over all runs.
        part: what is trained.
        promise: what the tier promises, and what it does not.
    """

    epsilon: float
    part: TrainablePart
    promise: str


TIERS: dict[PrivacyTier, TierDefaults] = {
    "off": TierDefaults(
        epsilon=0.0,
        part="all",
        promise="updates are exact: whoever sees one may learn about single patients from it",
    ),
    "reconstruction-guard": TierDefaults(
        epsilon=200.0,
        part="all",
        promise="noise against rebuilding images from an update; no guarantee against finding out "
        "whether a patient took part",
    ),
    "formal": TierDefaults(
        epsilon=8.0,
        part="decoder",
        promise="with or without any one patient, all their scans included, the updates have "
        "nearly the same distribution",
    ),
}


class PrivacyConfig(FrozenModel):
    """Noise in training, per patient.

    Attributes:
        tier: ``off``; ``reconstruction-guard``, whose epsilon is large; ``formal``, at most 10.
        epsilon: budget of this site over all runs, for ever; 200 or 8 by tier.
        delta: of the budget; smaller than 1 / number of training patients. Fixed with the first
            training; see ``client.ledger``.
        clip: C, the largest norm of one patient's gradient.
        noise_multiplier: sigma; absent: the least with which ``planned_rounds`` rounds of the
            coordinator's steps stay within ``epsilon``.
        planned_rounds: rounds that the budget has to last for.
        sample_rate: probability that a patient is drawn at a step.
        patients_per_step: divisor of the noisy sum; about ``sample_rate`` times the patients. A
            constant that is written here, not counted.
        part: what is trained and sent: ``all``, ``decoder`` (encoders stay as they came), or
            ``norms`` (scales and shifts only); ``all`` or ``decoder`` by tier.
    """

    tier: PrivacyTier = "off"
    epsilon: float | None = Field(default=None, gt=0.0, le=1e6)
    delta: float = Field(default=1e-3, gt=0.0, lt=0.5)
    clip: float = Field(default=1.0, gt=0.0, le=1e6)
    noise_multiplier: float | None = Field(default=None, ge=0.1, le=1000.0)
    planned_rounds: int = Field(default=25, ge=1, le=100_000)
    sample_rate: float = Field(default=0.125, gt=0.0, le=1.0)
    patients_per_step: int = Field(default=16, ge=1, le=100_000)
    part: TrainablePart | None = None

    @model_validator(mode="after")
    def _formal_is_small(self) -> Self:
        if self.tier == "formal" and self.budget > LARGEST_FORMAL_EPSILON:
            msg = (
                f"epsilon up to {LARGEST_FORMAL_EPSILON:g} with tier 'formal'; "
                f"{self.budget:g} is 'reconstruction-guard'"
            )
            raise ValueError(msg)
        return self

    @property
    def is_on(self) -> bool:
        """Whether this site trains with noise."""
        return self.tier != "off"

    @property
    def budget(self) -> float:
        """Epsilon over all runs."""
        return TIERS[self.tier].epsilon if self.epsilon is None else self.epsilon

    @property
    def trained_part(self) -> TrainablePart:
        """What is trained and sent."""
        return TIERS[self.tier].part if self.part is None else self.part

    @property
    def promise(self) -> str:
        """What the tier promises, in plain words."""
        return TIERS[self.tier].promise


def check_demand(policy: PrivacyConfig, demand: PrivacyDemand) -> None:
    """Refuse a run that wants a stronger tier than this site has.

    More noise than the site's own is simply added; see ``client.private_training``.

    Raises:
        PolicyError: the site's tier is weaker.
    """
    tiers: tuple[PrivacyTier, ...] = get_args(PrivacyTier)
    if tiers.index(policy.tier) < tiers.index(demand.tier):
        raise PolicyError(
            f"the run asks for privacy.tier {demand.tier!r}, this site has {policy.tier!r}; "
            "change [privacy] in site.toml to take part"
        )
