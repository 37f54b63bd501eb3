"""Per-scan rows -> aggregates; the only form in which results may leave a site."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

SHOWN_METRICS = (
    ("psnr_db", "PSNR (dB)", 2),
    ("ssim_percent", "SSIM (%)", 2),
    ("mae", "MAE", 4),
    ("bias", "bias", 4),
    ("nrmse", "nRMSE", 4),
    ("lesion_error", "lesion rCBV error", 3),
)
"""Of a scan against measured CBV: name, heading and digits, in the order of every report."""


def summary_of(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean and standard deviation (n - 1) of each metric over the scans with a finite value.

    Returns:
        ``<name>_mean``, and ``<name>_sd`` where there are at least two values.
    """
    summary: dict[str, float] = {}
    for name in sorted({name for row in rows for name in row}):
        values = [row[name] for row in rows if math.isfinite(row.get(name, math.nan))]
        if values:
            summary[f"{name}_mean"] = fmean(values)
        if len(values) > 1:
            summary[f"{name}_sd"] = stdev(values)
    return summary
