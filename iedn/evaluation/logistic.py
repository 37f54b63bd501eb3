"""Several values combined into one score, without judging a patient by a model that saw it.

Logistic regression with a ridge penalty, fitted by Newton's method; a dozen lines of NumPy, so that
a hospital needs no further package. Scores come from cross-validation over patients.
"""

import hashlib

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import StatisticsError
from .estimates import Floats, Patients, finite_rows

PENALTY = 1.0
MOST_STEPS, TOLERANCE = 100, 1e-10


def fit_logistic(features: ArrayLike, labels: ArrayLike, *, penalty: float = PENALTY) -> Floats:
    """Coefficients (K + 1,), the intercept last, which is not penalised.

    Minimises sum log(1 + exp(-y x w)) + penalty / 2 * |w|^2, y in {-1, 1}.

    Args:
        features: (N, K), best standardised.
        labels: (N,), 1 or True for positive.
        penalty: above 0, so that separated classes have a solution.

    Raises:
        StatisticsError: values are not finite, or a class is empty.
    """
    design = np.column_stack([finite_rows(features, "features", ndim=2), np.ones(len(labels))])  # type: ignore[arg-type]
    truth = np.asarray(labels, np.float64)
    if truth.min() == truth.max():
        raise StatisticsError("a model needs scans of both classes")
    ridge = np.diag([*[penalty] * (design.shape[1] - 1), 0.0])
    weights: Floats = np.zeros(design.shape[1])
    for _ in range(MOST_STEPS):
        chance = 1 / (1 + np.exp(-np.clip(design @ weights, -500, 500)))
        gradient = design.T @ (chance - truth) + ridge @ weights
        curvature = (design * (chance * (1 - chance))[:, None]).T @ design + ridge
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < TOLERANCE:
            break
    return weights


def cross_validated_scores(
    features: ArrayLike,
    labels: ArrayLike,
    patients: Patients,
    *,
    folds: int = 5,
    repeats: int = 10,
    penalty: float = PENALTY,
) -> Floats:
    """Log-odds (N,) of every row by models that did not see its patient.

    Patients are divided into folds, those with a positive row and the others apart, in an order
    that their number decides; features are standardised on the training rows; the log-odds are
    means over ``repeats`` divisions. The same rows give the same scores.

    Args:
        features: (N, K).
        labels: (N,), 1 or True for positive.
        patients: (N,) whose row it is.
        folds: of each division.
        repeats: divisions.
        penalty: see ``fit_logistic``.

    Raises:
        StatisticsError: a class has fewer patients than folds, or values are not finite.
    """
    table = finite_rows(features, "features", ndim=2)
    truth = np.asarray(labels).astype(bool)
    names = np.array([str(p) for p in patients])
    positive = set(names[truth].tolist())
    others = set(names.tolist()) - positive
    smaller = min(len(positive), len(others))
    if smaller < folds:
        raise StatisticsError(
            f"{smaller} patients of the rarer outcome; {folds}-fold cross-validation needs "
            f"at least {folds} of each"
        )
    total: Floats = np.zeros(truth.size)
    for repeat in range(repeats):
        fold_of = _folds(positive, folds, repeat) | _folds(others, folds, repeat)
        fold = np.array([fold_of[name] for name in names.tolist()])
        for held in range(folds):
            total[fold == held] += _scores(table, truth, fold == held, penalty)
    return total / repeats


def _scores(
    table: Floats, truth: NDArray[np.bool_], held: NDArray[np.bool_], penalty: float
) -> Floats:
    seen = table[~held]
    centre, scale = seen.mean(axis=0), seen.std(axis=0)
    scale[scale == 0] = 1.0
    weights = fit_logistic((seen - centre) / scale, truth[~held], penalty=penalty)
    result: Floats = (table[held] - centre) / scale @ weights[:-1] + weights[-1]
    return result


def _folds(patients: set[str], folds: int, repeat: int) -> dict[str, int]:
    order = sorted(patients, key=lambda p: hashlib.sha256(f"{repeat}:{p}".encode()).digest())
    return {patient: position % folds for position, patient in enumerate(order)}
