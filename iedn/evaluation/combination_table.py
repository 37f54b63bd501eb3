"""The paper's Table 2: two networks over combinations of inputs, on the same scans.

Scores of scans come in, rows of a table go out; nothing here reads an image. Several scans of a
patient are not independent: intervals and p-values resample patients.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..config import Architecture
from ..errors import StatisticsError
from .combinations import Combination, name_of
from .statistics import holm, paired_comparison

Metric = Literal["ssim_percent", "psnr_db", "lesion_error"]

METRICS: tuple[Metric, ...] = ("ssim_percent", "psnr_db", "lesion_error")
ARCHITECTURES: tuple[Architecture, ...] = ("iedn", "encoder-decoder")


@dataclass(frozen=True)
class ScanScore:
    """One scan with one combination. Local: names the scan.

    Attributes:
        patient_id: whose scan.
        scan_id: which.
        ssim_percent: 3D, in the box around the brain.
        psnr_db: in the same box.
        lesion_error: absolute error of the lesion's mean rCBV (see ``iedn.evaluation.lesion``);
            None where no lesion was drawn or it has no reference.
    """

    patient_id: str
    scan_id: str
    ssim_percent: float
    psnr_db: float
    lesion_error: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Patient and scan."""
        return self.patient_id, self.scan_id


Scores = Mapping[tuple[Architecture, Combination], Sequence[ScanScore]]


@dataclass(frozen=True)
class Spread:
    """A metric over scans.

    Attributes:
        mean: over the scans with a value.
        sd: with n - 1; 0 for one scan.
        median: of the same scans.
        low_quartile: linear interpolation, like ``high_quartile``.
        high_quartile: see there.
        num_scans: with a finite value.
        num_patients: different ones among them.
    """

    mean: float
    sd: float
    median: float
    low_quartile: float
    high_quartile: float
    num_scans: int
    num_patients: int


@dataclass(frozen=True)
class TableRow:
    """One network with one combination.

    Attributes:
        architecture: the network.
        combination: its inputs.
        metrics: spread of every metric that any scan has.
    """

    architecture: Architecture
    combination: Combination
    metrics: Mapping[Metric, Spread]


def value_of(score: ScanScore, metric: Metric) -> float:
    """A scan's value; NaN where it has none."""
    value = getattr(score, metric)
    return math.nan if value is None else float(value)


def spread(scores: Sequence[ScanScore], metric: Metric) -> Spread | None:
    """Mean, standard deviation, median and quartiles; None if no scan has a finite value."""
    finite = [s for s in scores if math.isfinite(value_of(s, metric))]
    if not finite:
        return None
    values = np.array([value_of(s, metric) for s in finite])
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return Spread(
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)) if len(values) > 1 else 0.0,
        median=float(median),
        low_quartile=float(low),
        high_quartile=float(high),
        num_scans=len(finite),
        num_patients=len({s.patient_id for s in finite}),
    )


def table_rows(scores: Scores) -> list[TableRow]:
    """One row a network and combination, in the order of ``scores``."""
    rows = []
    for (architecture, combination), found in scores.items():
        spreads = {m: s for m in METRICS if (s := spread(found, m)) is not None}
        rows.append(TableRow(architecture, combination, spreads))
    return rows


def pairs(
    first: Sequence[ScanScore], second: Sequence[ScanScore], metric: Metric
) -> tuple[list[str], list[float], list[float]]:
    """Patients and values of the scans that both have a finite value for, paired by scan.

    Raises:
        ValueError: the two are not of the same scans.
    """
    others = {score.key: score for score in second}
    if {score.key for score in first} != set(others) or len(others) != len(second):
        raise ValueError("only scores of the same scans can be compared")
    patients, ours, theirs = [], [], []
    for score in first:
        one, other = value_of(score, metric), value_of(others[score.key], metric)
        if math.isfinite(one) and math.isfinite(other):
            patients.append(score.patient_id)
            ours.append(one)
            theirs.append(other)
    return patients, ours, theirs


def title(architecture: Architecture, combination: Combination) -> str:
    """A row's name in text."""
    network = "IEDN" if architecture == "iedn" else "3D encoder-decoder"
    return f"{network} {name_of(combination)}"


@dataclass(frozen=True)
class Difference:
    """Two rows of the table on the same scans.

    Attributes:
        combination: the first row's inputs.
        against: the second row's, where these differ; else the networks are compared.
        metric: what is compared.
        value: mean of first - second over scans.
        low: of the interval; None, like ``high`` and ``p_value``, where it is not defined.
        high: see there.
        p_value: patient bootstrap.
        p_holm: corrected for all combinations of this metric.
        p_paired_t: over scans, as in the paper; it takes scans of a patient as independent.
        note: why there is no interval.
    """

    combination: Combination
    against: Combination
    metric: Metric
    value: float
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    p_holm: float | None = None
    p_paired_t: float | None = None
    note: str = ""


def network_differences(scores: Scores, metric: Metric) -> list[Difference]:
    """IEDN - encoder-decoder for every combination that both have, with Holm's correction."""
    shared = [c for a, c in scores if a == "iedn" and ("encoder-decoder", c) in scores]
    found = [
        difference(scores["iedn", c], scores["encoder-decoder", c], metric, (c, c)) for c in shared
    ]
    return with_holm([d for d in found if d is not None])


def difference(
    first: Sequence[ScanScore],
    second: Sequence[ScanScore],
    metric: Metric,
    inputs: tuple[Combination, Combination],
) -> Difference | None:
    """First - second over the scans of both; None if no scan has the metric."""
    patients, ours, theirs = pairs(first, second, metric)
    if not ours:
        return None
    combination, against = inputs
    value = math.fsum(a - b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    plain = Difference(combination, against, metric, value)
    try:
        tested = paired_comparison(ours, theirs, patients, method="patient-bootstrap")
        as_paper = paired_comparison(ours, theirs, method="paired-t")
    except StatisticsError as error:
        return replace(plain, note=str(error))
    return replace(
        plain,
        low=tested.low,
        high=tested.high,
        p_value=tested.p_value,
        p_paired_t=as_paper.p_value,
    )


def with_holm(differences: Sequence[Difference]) -> list[Difference]:
    """The same with ``p_holm``, over those that have a p-value."""
    tested = [d.p_value for d in differences if d.p_value is not None]
    adjusted = iter(holm(tested).tolist() if tested else [])
    return [d if d.p_value is None else replace(d, p_holm=next(adjusted)) for d in differences]
