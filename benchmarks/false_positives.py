"""How often each test finds a difference where there is none, with several scans a patient.

Simulated differences of two equal methods, correlated within patients, and simulated scores of two
equally good maps. Prints one JSON object: share of simulations with p < 0.05, by test.

    python benchmarks/false_positives.py --simulations 2000
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy

from iedn.evaluation.statistics import delong_test, paired_comparisons

ALPHA = 0.05
SEED = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--patients", type=int, default=30)
    parser.add_argument("--scans", type=int, default=97, help="over all patients")
    parser.add_argument("--correlation", type=float, default=0.5, help="within a patient")
    arguments = parser.parse_args()
    start = time.process_time()
    patients = scans_by_patient(arguments.patients, arguments.scans)
    correlation, simulations = arguments.correlation, arguments.simulations
    report = {
        "simulations": simulations,
        "patients": arguments.patients,
        "scans": arguments.scans,
        "correlation_within_patients": correlation,
        "monte_carlo_se": round(math.sqrt(ALPHA * (1 - ALPHA) / simulations), 4),
        "mean_difference": rates(mean_tests, simulations, patients, correlation),
        "mean_difference_one_scan_a_patient": rates(
            mean_tests, simulations, np.arange(arguments.patients), correlation
        ),
        "difference_of_areas": rates(area_tests, simulations, patients, correlation),
        "cpu_s": round(time.process_time() - start, 1),
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }
    print(json.dumps(report, indent=1))


def scans_by_patient(patients: int, scans: int) -> np.ndarray[Any, Any]:
    """Each patient at least one scan, the others drawn: whose scan each is, (scans,)."""
    rng = np.random.default_rng(SEED)
    return np.sort(
        np.concatenate([np.arange(patients), rng.integers(0, patients, scans - patients)])
    )


def rates(
    tests: Callable[..., dict[str, float]],
    simulations: int,
    patients: np.ndarray[Any, Any],
    correlation: float,
) -> dict[str, float]:
    """Share of simulations with p < 0.05."""
    found: dict[str, int] = {}
    for seed in range(simulations):
        rng = np.random.default_rng([SEED, seed])
        for name, p_value in tests(rng, patients, correlation).items():
            found[name] = found.get(name, 0) + (p_value < ALPHA)
    return {name: round(count / simulations, 4) for name, count in found.items()}


def mean_tests(
    rng: np.random.Generator, patients: np.ndarray[Any, Any], correlation: float
) -> dict[str, float]:
    differences = correlated(rng, patients, correlation)
    tests = paired_comparisons(differences, np.zeros(patients.size), patients)
    return {name: test.p_value for name, test in tests.items()}


def area_tests(
    rng: np.random.Generator, patients: np.ndarray[Any, Any], correlation: float
) -> dict[str, float]:
    """Label a patient, two scores a scan that share half of their noise; both areas are equal."""
    labels = (patients % 2 == 0).astype(np.int64)
    shared, a, b = (correlated(rng, patients, correlation) for _ in range(3))
    scores = [labels + (shared + own) / math.sqrt(2) for own in (a, b)]
    return {
        "delong": delong_test(labels, *scores).p_value,
        "delong-obuchowski": delong_test(labels, *scores, patients=patients).p_value,
    }


def correlated(
    rng: np.random.Generator, patients: np.ndarray[Any, Any], correlation: float
) -> np.ndarray[Any, Any]:
    """Standard normal values, correlated within patients."""
    of_patients = rng.normal(size=int(patients.max()) + 1)[patients]
    of_scans = rng.normal(size=patients.size)
    return math.sqrt(correlation) * of_patients + math.sqrt(1 - correlation) * of_scans


if __name__ == "__main__":
    main()
