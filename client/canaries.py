"""An audit of the noise: made-up patients that would give themselves away if it were too little.

Every canary is a patient whose whole gradient lies along a parameter of its own, the worst case
there is. A coin decides for each whether it is in the cohort; then the very optimiser, sampling and
noise of training run, and the parameters tell who was in, as far as the noise lets them. Three
verdicts follow:

- a lower bound of epsilon from correct guesses (Steinke, Nasr, Jagielski: Privacy auditing with one
  (1) training run, 2023), which must not exceed what the accountant claims;
- mu, the distance of canaries that were in from those that were not in standard deviations, which
  must not exceed q sqrt(T) / sigma;
- the standard deviation of canaries that were not in, which must be sigma C sqrt(T): less is less
  noise, more is noise that repeats itself from step to step.

An audit that finds nothing proves nothing: it is a lower bound. One that finds something proves it.
"""

import math
import random
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Generator, Tensor, nn

from .accounting import epsilon_of
from .privacy import SYSTEM_ENTROPY, Entropy, NoisePlan, PatientOptimizer, private_steps

CANARIES = 1000
AUDIT_DELTA = 1e-5
SIGNIFICANCE = 0.05
_SHARES_GUESSED = (0.04, 0.1, 0.25, 0.5, 1.0)
_STANDARD_ERRORS = 4.0
_MOST_SCANS = 5
_LOUDNESS = 10.0
"""Norm of a canary's gradient in units of C: it must be clipped."""
_FEWEST_STEPS, _MOST_STEPS = 10, 400


@dataclass(frozen=True)
class CanaryAudit:
    """What the canaries gave away.

    Attributes:
        canaries: made-up patients, about half of them in.
        steps: of training.
        claimed_epsilon: of these steps, by the accountant, at ``AUDIT_DELTA``.
        least_epsilon: lower bound at 95 %, from guesses.
        expected_mu: distance by the claimed noise, in standard deviations.
        measured_mu: by the canaries.
        mu_margin: four standard errors.
        noise_ratio: measured standard deviation over the claimed one.
        noise_margin: four standard errors.
    """

    canaries: int
    steps: int
    claimed_epsilon: float
    least_epsilon: float
    expected_mu: float
    measured_mu: float
    mu_margin: float
    noise_ratio: float
    noise_margin: float

    @property
    def violations(self) -> tuple[str, ...]:
        """Which of the three claims are refuted."""
        found = {
            "epsilon": self.least_epsilon > self.claimed_epsilon,
            "mu": self.measured_mu > self.expected_mu + self.mu_margin,
            "noise": abs(self.noise_ratio - 1) > self.noise_margin,
        }
        return tuple(name for name, is_refuted in found.items() if is_refuted)


def audit_noise(
    plan: NoisePlan, *, canaries: int = CANARIES, entropy: Entropy = SYSTEM_ENTROPY
) -> CanaryAudit:
    """Audit the optimiser, the sampling and the noise of ``plan``; the steps are chosen here.

    Args:
        plan: of the site.
        canaries: at least 20; with m of them the bound cannot exceed about log(m).
        entropy: another one than the operating system's is for tests only.
    """
    if canaries < 2 * len(_SHARES_GUESSED) * 2:
        raise ValueError(f"{canaries} canaries; at least 20 are needed")
    plan = replace(plan, steps=steps_for(plan))
    coins = random.SystemRandom()
    is_in = np.array([coins.random() < 0.5 for _ in range(canaries)])
    scores = _scores(plan, is_in, entropy)
    return _verdict(plan, is_in, scores)


def steps_for(plan: NoisePlan) -> int:
    """So many that a canary that is in stands out by one standard deviation, if 400 are enough."""
    wanted = math.ceil((plan.noise_multiplier / plan.sample_rate) ** 2)
    return min(max(wanted, _FEWEST_STEPS), _MOST_STEPS)


def least_epsilon(scores: NDArray[np.float64], is_in: NDArray[np.bool_], delta: float) -> float:
    """Lower bound at 95 % from guessing the highest scores in and the lowest ones out.

    Several numbers of guesses are tried, and the significance divided among them.
    """
    order = np.argsort(scores)
    best = 0.0
    for share in _SHARES_GUESSED:
        half = max(1, int(share * scores.size / 2))
        correct = int((~is_in[order[:half]]).sum() + is_in[order[-half:]].sum())
        significance = SIGNIFICANCE / len(_SHARES_GUESSED)
        bound = epsilon_bound(
            scores.size, 2 * half, correct, delta=delta, significance=significance
        )
        best = max(best, bound)
    return best


def epsilon_bound(
    canaries: int, guesses: int, correct: int, *, delta: float, significance: float
) -> float:
    """The largest epsilon that so many correct guesses refute; 0 if none."""
    low, high = 0.0, 1.0
    while p_value(canaries, guesses, correct, epsilon=high, delta=delta) < significance:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low + high) / 2
        is_refuted = p_value(canaries, guesses, correct, epsilon=middle, delta=delta) < significance
        low, high = (middle, high) if is_refuted else (low, middle)
    return low


def p_value(canaries: int, guesses: int, correct: int, *, epsilon: float, delta: float) -> float:
    """How likely so many correct guesses are at most, if training is (epsilon, delta)-private.

    Theorem 5.2 of Steinke et al.: under (epsilon, 0) the number correct is at most binomial with
    e^eps / (1 + e^eps); delta adds 2 m delta max_i P[v - i <= X < v] / i.
    """
    accuracy = 1 / (1 + math.exp(-epsilon))
    pure = float(binom.sf(correct - 1, guesses, accuracy))
    below = binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy)
    if below.size == 0:
        return 1.0
    slope = float((np.cumsum(below) / np.arange(1, below.size + 1)).max())
    return min(1.0, pure + 2 * canaries * delta * slope)


def _scores(plan: NoisePlan, is_in: NDArray[np.bool_], entropy: Entropy) -> NDArray[np.float64]:
    """How far each canary's parameter moved, in units of C; (canaries,)."""
    weights = nn.Parameter(torch.zeros(is_in.size))
    optimizer = PatientOptimizer(torch.optim.SGD([weights], lr=1.0), plan, entropy=entropy)
    patients = [[int(i)] * (1 + int(i) % _MOST_SCANS) for i in np.flatnonzero(is_in)]

    def loss(canary: int, _: Generator) -> Tensor:
        return -_LOUDNESS * plan.clip * weights[canary]

    for _ in private_steps(optimizer, patients, loss, plan, entropy):
        pass
    moved = weights.detach().double().numpy() * plan.patients_per_step / plan.clip
    return np.asarray(moved, dtype=np.float64)


def _verdict(plan: NoisePlan, is_in: NDArray[np.bool_], scores: NDArray[np.float64]) -> CanaryAudit:
    inside, outside = scores[is_in], scores[~is_in]
    claimed_spread = plan.noise_multiplier * math.sqrt(plan.steps)
    spread = float(outside.std(ddof=1))
    mu = plan.sample_rate * math.sqrt(plan.steps) / plan.noise_multiplier
    extra = plan.sample_rate * (1 - plan.sample_rate) / plan.noise_multiplier**2
    variance = 1 / outside.size + (1 + extra) / inside.size + mu**2 / (2 * outside.size)
    return CanaryAudit(
        canaries=int(is_in.size),
        steps=plan.steps,
        claimed_epsilon=epsilon_of([plan.event], AUDIT_DELTA),
        least_epsilon=least_epsilon(scores, is_in, AUDIT_DELTA),
        expected_mu=mu,
        measured_mu=float(inside.mean() - outside.mean()) / spread,
        mu_margin=_STANDARD_ERRORS * math.sqrt(variance),
        noise_ratio=spread / claimed_spread,
        noise_margin=_STANDARD_ERRORS / math.sqrt(2 * outside.size),
    )
