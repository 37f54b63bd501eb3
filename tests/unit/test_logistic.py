"""Logistic models: scikit-learn's numbers, and no patient in their own training."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from iedn.errors import StatisticsError
from iedn.evaluation import logistic
from iedn.evaluation.logistic import cross_validated_scores, fit_logistic
from iedn.evaluation.statistics import auc_interval


def made_up(seed=0, patients=40, visits=1, effect=1.5):
    rng = np.random.default_rng(seed)
    outcome = np.arange(patients) % 2 == 0
    labels = np.repeat(outcome, visits)
    names = [f"sub-{n:04d}" for n in np.repeat(np.arange(patients), visits)]
    features = rng.normal(size=(labels.size, 3))
    features[:, 0] += effect * labels
    return features, labels, names


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_coefficients_are_those_of_scikit_learn(penalty):
    features, labels, _ = made_up()
    oracle = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=1000).fit(features, labels)
    expected = [*oracle.coef_[0], oracle.intercept_[0]]
    np.testing.assert_allclose(fit_logistic(features, labels, penalty=penalty), expected, atol=1e-6)


def test_separated_classes_have_a_solution():
    found = fit_logistic([[-1.0], [-2.0], [1.0], [2.0]], [0, 0, 1, 1])
    assert 0.5 < found[0] < 2
    assert found[1] == pytest.approx(0, abs=1e-9)


def test_a_score_comes_from_models_that_did_not_see_the_patient(monkeypatch):
    features, labels, names = made_up(patients=12, visits=3)
    features[:, 2] = [float(name.removeprefix("sub-")) for name in names]  # names the patient
    seen = []

    def spy(rows, truth, *, penalty):
        seen.append(len(rows))
        return np.array([0.0, 0.0, 1.0, 0.0])

    monkeypatch.setattr(logistic, "fit_logistic", spy)
    cross_validated_scores(features, labels, names, folds=3, repeats=1)
    # Of each outcome 6 patients with 3 scans: a third is held out, whole patients.
    assert seen == [24, 24, 24]


def test_scores_hold_what_the_features_tell_and_nothing_of_noise():
    features, labels, names = made_up(patients=60)
    scores = cross_validated_scores(features, labels, names)
    alone = auc_interval(labels, features[:, 0]).value
    assert auc_interval(labels, scores).value == pytest.approx(alone, abs=0.05)
    rng = np.random.default_rng(5)
    areas = [
        auc_interval(labels, cross_validated_scores(noise, labels, names, repeats=2)).value
        for noise in rng.normal(size=(12, 60, 3))
    ]
    assert 0.35 < np.mean(areas) < 0.55  # in training they would be well above one half


def test_the_same_rows_give_the_same_scores():
    features, labels, names = made_up()
    first = cross_validated_scores(features, labels, names)
    np.testing.assert_array_equal(first, cross_validated_scores(features, labels, names))


def test_too_few_patients_and_one_class_are_refused():
    features, labels, names = made_up(patients=8)
    with pytest.raises(StatisticsError, match="4 patients of the rarer outcome"):
        cross_validated_scores(features, labels, names)
    with pytest.raises(StatisticsError, match="both classes"):
        fit_logistic(features, np.ones(8))
