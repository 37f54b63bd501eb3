"""Wilson's score interval of a proportion (Wilson 1927; Newcombe 1998, method 3)."""

import math

from .estimates import normal_quantile


def wilson_interval(successes: int, trials: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion.

    Raises:
        ValueError: no trial, or successes outside 0 to ``trials``.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes in {trials} trials; allowed is 0 to trials >= 1")
    return wilson_bounds(successes / trials, trials, level=level)


def wilson_bounds(share: float, trials: float, *, level: float) -> tuple[float, float]:
    """The same of a share, also for a number of trials that is not whole."""
    z = normal_quantile(level)
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)
