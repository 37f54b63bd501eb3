"""Paired comparisons: published data, closed forms, and several scans a patient."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel
from statsmodels.regression.mixed_linear_model import MixedLM
from statsmodels.stats.multitest import multipletests

from iedn.errors import StatisticsError
from iedn.evaluation.mixed_model import fit_random_intercept
from iedn.evaluation.statistics import (
    auc_interval,
    holm,
    paired_comparison,
    paired_comparisons,
    patient_bootstrap,
)

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "false_positives.py"

# Cushny and Peebles 1905, the sleep data of Student 1908
SLEEP_A = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_B = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


def clustered(rng, patients=20, most=5, between=1.0):
    counts = rng.integers(1, most + 1, patients)
    names = np.repeat(np.arange(patients), counts)
    return names, between * rng.normal(size=patients)[names] + rng.normal(size=names.size)


def test_paired_t_of_the_sleep_data():
    test = paired_comparison(SLEEP_A, SLEEP_B, method="paired-t")
    assert test.statistic == pytest.approx(-4.0621, abs=5e-5)
    assert test.p_value == pytest.approx(0.002833, abs=5e-7)
    assert (test.difference, test.low, test.high) == (
        pytest.approx(-1.58),
        pytest.approx(-2.4598858, abs=1e-6),
        pytest.approx(-0.7001142, abs=1e-6),
    )


def test_paired_t_equals_scipys():
    a, b = np.random.default_rng(0).normal(size=(2, 40))
    test, oracle = paired_comparison(a, b, method="paired-t"), ttest_rel(a, b)
    assert (test.statistic, test.p_value) == (
        pytest.approx(oracle.statistic, abs=1e-10),
        pytest.approx(oracle.pvalue, abs=1e-10),
    )


def test_mixed_model_of_equal_groups_is_the_test_of_patient_means():
    """With equally many scans a patient the REML answer is closed: a t-test of patient means."""
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(12), 3)
    a = rng.normal(size=12)[patients] + rng.normal(size=36)
    test = paired_comparison(a + 0.4, np.zeros(36), patients)
    means = (a + 0.4).reshape(12, 3).mean(axis=1)
    t = means.mean() / (means.std(ddof=1) / math.sqrt(12))
    assert test.difference == pytest.approx(means.mean(), abs=1e-8)
    assert test.statistic == pytest.approx(t, rel=1e-5)
    assert test.method == "mixed-model"


@pytest.mark.parametrize("seed", range(4))
def test_mixed_model_of_unequal_groups_equals_statsmodels(seed):
    patients, differences = clustered(np.random.default_rng(seed))
    model = MixedLM(differences, np.ones((differences.size, 1)), groups=patients)
    oracle = model.fit(reml=True, method="bfgs", gtol=1e-9)
    test = paired_comparison(differences, np.zeros(differences.size), patients)
    assert test.difference == pytest.approx(float(oracle.fe_params[0]), abs=1e-6)
    # its standard error is from the joint Hessian; ours, as usual, at the variances found
    ratio = float(oracle.cov_re[0, 0]) / oracle.scale
    counts = np.bincount(patients)
    error = math.sqrt(oracle.scale / (counts / (1 + counts * ratio)).sum())
    assert test.statistic == pytest.approx(float(oracle.fe_params[0]) / error, abs=1e-6)
    assert error == pytest.approx(float(oracle.bse_fe[0]), rel=0.03)
    assert test.high - test.low == pytest.approx(2 * 2.093024 * error, rel=1e-5)  # t of 19


def test_mixed_model_without_variation_between_patients_is_the_plain_mean():
    """Patients' means nearly equal: the variance between them is 0, and rows are independent."""
    rng = np.random.default_rng(9)
    patients = np.repeat(np.arange(10), [1, 2] * 5)
    values = rng.normal(size=15)
    values -= (np.bincount(patients, values) / np.bincount(patients))[patients]
    values += 0.3
    fitted = fit_random_intercept(values, patients)
    assert fitted.correlation == 0.0
    assert fitted.mean == pytest.approx(0.3)
    assert fitted.error == pytest.approx(values.std(ddof=1) / math.sqrt(15))


def test_mixed_model_of_scans_that_repeat_is_the_test_of_patients():
    means = np.array([0.3, -0.2, 0.8, 0.5])
    patients = np.repeat(np.arange(4), [1, 4, 2, 3])
    fitted = fit_random_intercept(means[patients], patients)
    assert fitted.correlation == 1.0
    assert fitted.mean == pytest.approx(means.mean(), abs=1e-6)
    assert fitted.error == pytest.approx(means.std(ddof=1) / 2, rel=1e-5)


def test_one_scan_a_patient_makes_the_mixed_model_the_paired_t_test():
    mixed = paired_comparison(SLEEP_A, SLEEP_B, [f"sub-{i:04d}" for i in range(10)])
    assert mixed.p_value == paired_comparison(SLEEP_A, SLEEP_B, method="paired-t").p_value


def test_scale_and_order_do_not_matter():
    patients, a = clustered(np.random.default_rng(5))
    b = np.zeros(a.size)
    order = np.random.default_rng(6).permutation(a.size)
    for method, scaled in paired_comparisons(1e-4 * a[order], b, patients[order]).items():
        plain = paired_comparison(a, b, patients, method=method)
        assert scaled.statistic == pytest.approx(plain.statistic, rel=1e-4)
        assert scaled.high == pytest.approx(1e-4 * plain.high, rel=1e-3)


def test_bootstrap_t_by_the_formula():
    """Every draw once more, patient by patient."""
    patients = np.array([0, 0, 1, 2, 2, 2, 3, 4])
    values = np.array([1.0, 2.0, 0.5, 3.0, 2.5, 1.0, -1.0, 0.5])
    test = paired_comparison(values, np.zeros(8), patients, method="patient-bootstrap", seed=3)
    groups = [values[patients == p] for p in range(5)]

    def mean_and_error(chosen):
        rows = np.concatenate(chosen)
        residuals = [(g - rows.mean()).sum() for g in chosen]
        return rows.mean(), math.sqrt(5 / 4 * sum(r * r for r in residuals)) / rows.size

    mean, error = mean_and_error(groups)
    drawn = np.random.default_rng(3).integers(0, 5, (2000, 5))
    distances = []
    for draw in drawn:
        m, e = mean_and_error([groups[i] for i in draw])
        distances.append(abs(m - mean) / e if e > 1e-12 else math.inf * (abs(m - mean) > 1e-12))
    distances = np.nan_to_num(distances, nan=0.0, posinf=math.inf)
    assert test.statistic == pytest.approx(mean / error)
    assert test.p_value == pytest.approx(((distances >= mean / error).sum() + 1) / 2001, abs=1e-3)
    half = sorted(distances)[math.ceil(0.95 * 1999)] * error
    assert test.high - mean == pytest.approx(half, rel=1e-6)


def test_bootstrap_interval_and_p_value_say_the_same():
    for seed in range(20):
        patients, values = clustered(np.random.default_rng(seed))
        test = paired_comparison(
            values + 0.5, np.zeros(values.size), patients, method="patient-bootstrap"
        )
        if abs(test.p_value - 0.05) > 0.002:
            assert (test.p_value < 0.05) == (not test.low <= 0 <= test.high)


def test_patient_bootstrap_of_a_mean():
    patients, values = clustered(np.random.default_rng(7))
    estimate = patient_bootstrap(values, patients)
    test = paired_comparison(values, np.zeros(values.size), patients, method="patient-bootstrap")
    assert vars(estimate) == {
        "value": pytest.approx(values.mean()),
        "low": test.low,
        "high": test.high,
    }
    assert estimate == patient_bootstrap(values, patients)
    assert estimate != patient_bootstrap(values, patients, seed=1)
    assert patient_bootstrap([2.0, 2.0, 2.0], [1, 1, 2]).high == 2.0


def test_patients_widen_the_interval():
    rng = np.random.default_rng(8)
    patients = np.repeat(np.arange(30), 4)
    values = rng.normal(size=30)[patients] + 0.1 * rng.normal(size=120)
    together = patient_bootstrap(values, patients)
    apart = patient_bootstrap(values, np.arange(120))
    ratio = (together.high - together.low) / (apart.high - apart.low)
    assert 1.7 < ratio < 2.3  # four nearly equal scans a patient: sqrt(4)


def test_patient_bootstrap_of_an_area():
    rng = np.random.default_rng(10)
    labels = np.tile([1, 0], 60)
    rows = np.stack([labels, labels + rng.normal(size=120)], axis=1)
    estimate = patient_bootstrap(
        rows,
        np.arange(120),
        statistic=lambda r: auc_interval(r[:, 0], r[:, 1]).value,
        resamples=300,
    )
    delong = auc_interval(rows[:, 0], rows[:, 1])
    assert estimate.value == delong.value
    assert estimate.low == pytest.approx(delong.low, abs=0.03)
    assert estimate.high == pytest.approx(delong.high, abs=0.03)


def test_samples_without_a_class_are_drawn_again_but_not_for_ever():
    def area(rows):
        return auc_interval(rows[:, 0], rows[:, 1]).value

    few = np.array([[1, 2.0], [0, 1.0], [0, 3.0]])
    assert 0 <= patient_bootstrap(few, [1, 2, 3], statistic=area, resamples=50).low <= 1

    def never(rows):
        raise StatisticsError("no such rows")

    with pytest.raises(StatisticsError, match=r"not defined on 51 of 51 samples of 3 patients"):
        patient_bootstrap(few, [1, 2, 3], statistic=never, resamples=50)


def test_false_positives_with_several_scans_a_patient():
    """The first 250 simulations of the benchmark; its standard error is 0.014 at 0.05."""
    spec = importlib.util.spec_from_file_location("false_positives", SCRIPT)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    patients = benchmark.scans_by_patient(30, 97)
    assert (patients.size, np.unique(patients).size) == (97, 30)
    found = benchmark.rates(benchmark.mean_tests, 250, patients, 0.5)
    assert found["paired-t"] > 0.14
    assert 0.02 < found["mixed-model"] < 0.085
    assert 0.02 < found["patient-bootstrap"] < 0.085


def test_holm_by_hand():
    # Holm 1979: smallest times 4, next times 3, and so on, never falling
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9]), [1.0, 1.0])
    np.testing.assert_allclose(holm([0.02]), [0.02])


def test_holm_equals_statsmodels():
    p_values = np.random.default_rng(11).random(17) ** 3
    np.testing.assert_allclose(
        holm(p_values), multipletests(p_values, method="holm")[1], atol=1e-12
    )


@pytest.mark.parametrize("method", ["mixed-model", "patient-bootstrap", "paired-t"])
@pytest.mark.parametrize(
    ("a", "b", "patients", "words"),
    [
        ([1, 2, 3], [0, 0, 0], ["sub-0001"] * 3, "3 rows of one patient"),
        ([1, 2, math.inf], [0, 0, 0], None, "a: 1 of 3 values are not finite"),
        ([1, 2, 3], [0, math.nan, 0], None, "b: 1 of 3 values are not finite"),
        ([1, 2, 3], [0, 0], None, "a has 3 rows and b 2"),
        ([1], [0], None, "at least 2 are needed"),
        ([1, 2, 3], [0, 1, 2], None, "all differences are 1"),
        ([1, 2, 3], [0, 0, 0], [1, 2], "one a row"),
    ],
)
def test_rows_that_cannot_be_compared(method, a, b, patients, words):
    with pytest.raises(ValueError, match=words):
        paired_comparison(a, b, patients, method=method)


def test_equal_rows_do_not_differ():
    for test in paired_comparisons([0.3, 0.2, 0.1], [0.3, 0.2, 0.1], [1, 1, 2]).values():
        assert (test.statistic, test.p_value, test.difference) == (0.0, 1.0, 0.0)


def test_other_wrong_arguments():
    with pytest.raises(ValueError, match="allowed are mixed-model, patient-bootstrap, paired-t"):
        paired_comparison(SLEEP_A, SLEEP_B, method="anova")
    with pytest.raises(ValueError, match="level 0"):
        patient_bootstrap([1, 2, 3], [1, 2, 3], level=0)
    with pytest.raises(ValueError, match="0 resamples"):
        patient_bootstrap([1, 2, 3], [1, 2, 3], resamples=0)
    with pytest.raises(StatisticsError, match="allowed is 0 to 1"):
        holm([0.2, 1.2])
