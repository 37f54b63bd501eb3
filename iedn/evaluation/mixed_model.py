"""The mean of rows with a random effect a patient, by restricted maximum likelihood.

One mean and one random intercept have a likelihood of one unknown, the intraclass correlation,
which is searched directly: a variance between patients of 0 is then an answer like any other, where
general fitters stop without convergence.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from .estimates import Floats, Integers

ROUNDING = 1e-12
LARGEST_CORRELATION = 1 - 1e-9
GRID = np.linspace(0.0, LARGEST_CORRELATION, 65)


@dataclass(frozen=True)
class RandomIntercept:
    """A fitted model y_ij = mean + patient_i + error_ij.

    Attributes:
        mean: over patients, each weighted by what its rows tell.
        error: standard error of the mean.
        correlation: of two rows of one patient, 0 to 1.
    """

    mean: float
    error: float
    correlation: float


def fit_random_intercept(values: Floats, numbers: Integers) -> RandomIntercept:
    """Fit by REML; where the rows of every patient are the same, patients' means are the rows.

    Args:
        values: (N,), not all the same.
        numbers: (N,) patients from 0, at least two.
    """
    counts = np.bincount(numbers).astype(np.float64)
    means = np.bincount(numbers, values) / counts
    within = float(((values - means[numbers]) ** 2).sum())
    if within <= ROUNDING * float(((values - values.mean()) ** 2).sum()):
        error = float(means.std(ddof=1) / np.sqrt(means.size))
        return RandomIntercept(float(means.mean()), error, 1.0)

    def parts(correlation: float) -> tuple[float, float, float]:
        """Mean, its variance, and -2 log restricted likelihood up to a constant."""
        ratio = correlation / (1 - correlation)
        weights = counts / (1 + counts * ratio)
        total = weights.sum()
        mean = weights @ means / total
        free = values.size - 1
        residual = (within + weights @ (means - mean) ** 2) / free
        criterion = free * np.log(residual) + np.log1p(counts * ratio).sum() + np.log(total)
        return float(mean), float(residual / total), float(criterion)

    coarse = int(np.argmin([parts(correlation)[2] for correlation in GRID]))
    bounds = (GRID[max(coarse - 1, 0)], GRID[min(coarse + 1, GRID.size - 1)])
    fine = minimize_scalar(
        lambda x: parts(x)[2], bounds=bounds, method="bounded", options={"xatol": 1e-10}
    )
    best = min((float(GRID[coarse]), float(fine.x)), key=lambda x: parts(x)[2])
    mean, variance, _ = parts(best)
    return RandomIntercept(mean, float(np.sqrt(variance)), best)
