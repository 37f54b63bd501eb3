"""The mean of rows with a random effect a patient, by restricted maximum likelihood.

One mean and one random intercept have a likelihood of one unknown, the intraclass correlation,
which is searched directly: a variance between patients of 0 is then an answer like any other, where
general fitters stop without convergence.
"""

from dataclasses import dataclass

import numpy as np

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
    from scipy.optimize import minimize_scalar  # slow to import

    counts = np.bincount(numbers).astype(np.float64)
    means = np.bincount(numbers, values) / counts
    within = float(((values - means[numbers]) ** 2).sum())
    if within <= ROUNDING * float(((values - values.mean()) ** 2).sum()):
        error = float(means.std(ddof=1) / np.sqrt(means.size))
        return RandomIntercept(float(means.mean()), error, 1.0)

    def parts(correlation: Floats) -> tuple[Floats, Floats, Floats]:
        """Mean, its variance, and -2 log restricted likelihood up to a constant, (K,) each."""
        ratio = (correlation / (1 - correlation))[:, None]
        weights = counts / (1 + counts * ratio)
        total = weights.sum(axis=1)
        mean = weights @ means / total
        free = values.size - 1
        residual = (within + (weights * (means - mean[:, None]) ** 2).sum(axis=1)) / free
        logs = np.log1p(counts * ratio).sum(axis=1)
        return mean, residual / total, free * np.log(residual) + logs + np.log(total)

    coarse = int(np.argmin(parts(GRID)[2]))
    fine = minimize_scalar(
        lambda x: float(parts(np.array([x]))[2][0]),
        bounds=(GRID[max(coarse - 1, 0)], GRID[min(coarse + 1, GRID.size - 1)]),
        method="bounded",
        options={"xatol": 1e-10},
    )
    candidates = np.array([GRID[coarse], float(fine.x)])
    mean, variance, criterion = parts(candidates)
    best = int(np.argmin(criterion))
    return RandomIntercept(
        float(mean[best]), float(np.sqrt(variance[best])), float(candidates[best])
    )
