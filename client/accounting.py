"""What training with noise has cost: epsilon of a list of events.

An event is what matters for the bound and nothing else: how much noise, how often a patient is
drawn, how many steps. Two accountants bound the same composition from above, Renyi divergences
and numerically convolved privacy losses (Gopi et al. 2021); the smaller bound counts, and where
the second cannot be computed the first one alone. Adding or removing one patient is what the
bound is about; the sampling is Poisson.
"""

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_log = logging.getLogger(__name__)

_ORDERS = [1 + x / 100 for x in range(1, 10)]
_ORDERS += [1 + x / 10 for x in range(1, 100)]
_ORDERS += [float(x) for x in (*range(11, 64), *range(64, 256, 16), 256, 384, 512, 1024)]
_RELATIVE_MESH = 0.003
_FINEST_MESH = 0.01
_WIDEST_PRV = 60.0
"""Above this epsilon the grid of privacy losses would take gigabytes; the other bound is used."""

_NOISE_STEP = 0.005
_LARGEST_NOISE = 1e4


@dataclass(frozen=True)
class PrivacyEvent:
    """So many steps of one kind.

    Attributes:
        noise_multiplier: sigma, standard deviation of the noise in units of the clipping norm.
        sample_rate: q, probability that a patient is drawn at a step, in (0, 1].
        steps: how many such steps.

    Raises:
        ValueError: a value outside of its range.
    """

    noise_multiplier: float
    sample_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (0 < self.noise_multiplier < math.inf and 0 < self.sample_rate <= 1):
            raise ValueError(f"{self}: noise_multiplier > 0 and 0 < sample_rate <= 1 are needed")
        if self.steps < 1:
            raise ValueError(f"{self}: at least one step is needed")


def epsilon_of(events: Sequence[PrivacyEvent], delta: float) -> float:
    """Epsilon at ``delta`` of all events together: the smaller of two upper bounds.

    Args:
        events: in any order; none cost nothing.
        delta: in (0, 1), smaller than 1 / number of patients to mean anything.
    """
    renyi = renyi_epsilon_of(events, delta)
    if not 0 < renyi <= _WIDEST_PRV:
        return renyi
    return min(renyi, _convolved_bound(_merged(events), delta, near=renyi))


def renyi_epsilon_of(events: Sequence[PrivacyEvent], delta: float) -> float:
    """The bound that is there in an instant, and up to a fifth larger; see ``epsilon_of``."""
    if not 0 < delta < 1:
        raise ValueError(f"delta is {delta}; it must lie between 0 and 1")
    history = _merged(events)
    return _renyi_bound(history, delta) if history else 0.0


def noise_multiplier_for(epsilon: float, delta: float, *, sample_rate: float, steps: int) -> float:
    """The smallest noise multiplier, in steps of 0.005, with which ``steps`` steps cost epsilon.

    Raises:
        ValueError: no noise below 10000 is enough.
    """

    def fits(number: int) -> bool:
        event = PrivacyEvent(number * _NOISE_STEP, sample_rate, steps)
        if renyi_epsilon_of([event], delta) <= epsilon:  # the cheaper of the two
            return True
        return epsilon_of([event], delta) <= epsilon

    low, high = 0, int(1 / _NOISE_STEP)
    while not fits(high):
        low, high = high, 2 * high
        if high * _NOISE_STEP > _LARGEST_NOISE:
            raise ValueError(f"no noise gives epsilon {epsilon} in {steps} steps")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high * _NOISE_STEP


def _merged(events: Sequence[PrivacyEvent]) -> list[tuple[float, float, int]]:
    """Steps by noise and rate, in one order: the same events give the same number."""
    steps: Counter[tuple[float, float]] = Counter()
    for event in events:
        steps[event.noise_multiplier, event.sample_rate] += event.steps
    return [(noise, rate, count) for (noise, rate), count in sorted(steps.items())]


def _renyi_bound(history: list[tuple[float, float, int]], delta: float) -> float:
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = history
    return float(_quietly(lambda: accountant.get_epsilon(delta, alphas=_ORDERS)))


def _convolved_bound(
    history: list[tuple[float, float, int]], delta: float, *, near: float
) -> float:
    """The second bound; infinite where it cannot be computed."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = history
    mesh = max(_FINEST_MESH, _RELATIVE_MESH * near)
    try:
        bound = _quietly(lambda: accountant.get_epsilon(delta, eps_error=mesh))
    except (ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        _log.info("privacy losses could not be convolved (%s); Renyi's bound is used", error)
        return math.inf
    return float(bound) if math.isfinite(bound) else math.inf


def _quietly(compute: Callable[[], float]) -> float:
    """Without the accountants' warnings: that no better order was tried, that log(0) was met."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compute()
