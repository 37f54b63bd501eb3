"""Numbers of the benchmark of federated synthesis, from its finished units.

Sites count alike. Intervals draw seeds and, within them, patients of each site, with all their
scans. All seeds of a cohort test the same patients, so a drawn patient is drawn for all of them:
drawing patients anew for each seed would take five seeds for five times the patients.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from federated_units import ASL_SITES, Method
from numpy.typing import NDArray

from iedn.evaluation.statistics import Estimate

CurveMetric = Literal["psnr_db", "ssim_percent"]
CURVE = ("round", "psnr_db", "ssim_percent")
"""Columns of a record's curve."""

Record = Mapping[str, Any]
Floats = NDArray[np.float64]

RESAMPLES = 2000
OWN = "own inputs"
"""All six at sites that have ASL, the others' without."""
SHARE_OF_POOLED = 0.95


@dataclass(frozen=True)
class SiteValues:
    """A metric at one site: (seeds, scans), and whose scans."""

    values: Floats
    patients: NDArray[np.int64]

    def minus(self, other: "SiteValues") -> "SiteValues":
        return SiteValues(self.values - other.values, self.patients)

    @property
    def sums(self) -> tuple[Floats, Floats]:
        """Of each patient: sum over scans of every seed (seeds, patients), and scans."""
        counts = np.bincount(self.patients).astype(np.float64)
        return np.stack([np.bincount(self.patients, v) for v in self.values]), counts


Values = dict[str, SiteValues]
Statistic = Callable[[Floats], Floats]
"""Site means (..., sites) -> a number each."""


def mean_of_sites(means: Floats) -> Floats:
    return means.mean(axis=-1)


def worst_site(means: Floats) -> Floats:
    return means.min(axis=-1)


def spread_of_sites(means: Floats) -> Floats:
    return means.std(axis=-1, ddof=1)


class Results:
    """All records, by what was trained.

    Args:
        records: finished units.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self._records: dict[tuple[str, str, str], dict[int, Record]] = {}
        for record in records:
            unit = record["unit"]
            key = unit["lesions"], unit["asl"], unit["method"]
            self._records.setdefault(key, {})[unit["seed"]] = record

    def seeds(self, lesions: str, asl: str, *methods: Method) -> list[int]:
        """Those that all of the methods have."""
        found = [set(self._records.get((lesions, asl, m), {})) for m in methods]
        return sorted(set.intersection(*found))

    def records(self, lesions: str, asl: str, method: Method, seeds: Sequence[int]) -> list[Record]:
        return [self._records[lesions, asl, method][seed] for seed in seeds]

    def values(
        self, records: Sequence[Record], subset: str, metric: str, model: str = ""
    ) -> Values:
        """A metric on every held-out scan.

        Args:
            records: of one method, a seed each.
            subset: of inputs, or ``own inputs``.
            metric: of the rows.
            model: site whose local model it is; without it, each site's own (or the shared one).
        """
        tables = [_table(record, subset, metric, model) for record in records]
        result: Values = {}
        for site in sorted(tables[0]):
            keys = sorted(set.intersection(*(set(table[site]) for table in tables)))
            if keys:
                names = sorted({patient for patient, _ in keys})
                result[site] = SiteValues(
                    np.array([[table[site][key] for key in keys] for table in tables]),
                    np.array([names.index(patient) for patient, _ in keys]),
                )
        return result


def _table(
    record: Record, subset: str, metric: str, model: str
) -> dict[str, dict[tuple[str, str], float]]:
    sites = sorted({row["site"] for row in record["rows"]})
    with_asl = sites[: ASL_SITES[record["unit"]["asl"]]]
    found: dict[str, dict[tuple[str, str], float]] = {site: {} for site in sites}
    for row in record["rows"]:
        site = row["site"]
        own = "all six" if site in with_asl else "without ASL"
        wanted_model = model or ("shared" if row["model"] == "shared" else site)
        wanted_subset = own if subset == OWN else subset
        is_wanted = (row["model"], row["subset"]) == (wanted_model, wanted_subset)
        if is_wanted and row[metric] is not None:
            found[site][row["patient_id"], row["scan_id"]] = row[metric]
    return found


def site_means(values: Values) -> dict[str, float]:
    return {site: float(v.values.mean()) for site, v in values.items()}


def estimate(values: Values, statistic: Statistic = mean_of_sites, seed: int = 0) -> Estimate:
    """A number over sites with its 95 % percentile interval."""
    rng = np.random.default_rng(seed)
    num_seeds = next(iter(values.values())).values.shape[0]
    drawn_seeds = rng.integers(0, num_seeds, (RESAMPLES, num_seeds))
    drawn = np.stack([_drawn_mean(v, drawn_seeds, rng) for v in values.values()], axis=-1)
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    means = np.array(list(site_means(values).values()))
    return Estimate(float(statistic(means)), float(low), float(high))


def _drawn_mean(values: SiteValues, seeds: NDArray[np.int64], rng: np.random.Generator) -> Floats:
    """Mean over scans of every draw (draws,)."""
    sums, counts = values.sums
    patients = rng.integers(0, counts.size, (seeds.shape[0], counts.size))
    over_seeds = sums[seeds].mean(axis=1)
    chosen = np.take_along_axis(over_seeds, patients, axis=1)
    return np.asarray(chosen.sum(axis=1) / counts[patients].sum(axis=1))


def difference(a: Values, b: Values) -> Values:
    """a - b on the same scans and seeds."""
    return {site: a[site].minus(b[site]) for site in a}


def rounds_to_pooled(record: Record, pooled: Record, metric: CurveMetric) -> int | None:
    """First round that on the curve's scans reaches 95 % of the pooled model's last value."""
    column = CURVE.index(metric)
    goal = SHARE_OF_POOLED * pooled["curve"][-1][column]
    return next((point[0] for point in record["curve"] if point[column] >= goal), None)


def late_gain(record: Record) -> float:
    """PSNR that the last fifth of a curve added."""
    curve = record["curve"]
    start = curve[round(len(curve) * 0.8) - 1]
    return float(curve[-1][1] - start[1])


def best_single_site(
    results: Results, shared: Sequence[Record], local: Sequence[Record]
) -> dict[str, tuple[str, Estimate]]:
    """At each site: the best site's own model there, and PSNR of the shared one above it."""
    of_shared = results.values(shared, "all six", "psnr_db")
    of_models = {m: results.values(local, "all six", "psnr_db", m) for m in of_shared}
    found = {}
    for site in of_shared:
        best = max(of_models, key=lambda model: float(of_models[model][site].values.mean()))
        only = difference({site: of_shared[site]}, {site: of_models[best][site]})
        found[site] = best, estimate(only)
    return found


def cross_site(results: Results, local: Sequence[Record]) -> dict[str, dict[str, float]]:
    """PSNR of every site's own model at every site."""
    sites = sorted({row["site"] for row in local[0]["rows"]})
    return {m: site_means(results.values(local, "all six", "psnr_db", m)) for m in sites}
