"""The combinations table as Markdown, for a site's own eyes and for the phantom's results."""

from collections.abc import Mapping

from iedn.config import Architecture
from iedn.evaluation.combination_table import (
    ARCHITECTURES,
    METRICS,
    Difference,
    Metric,
    Scores,
    Spread,
    network_differences,
    spread,
)
from iedn.evaluation.combinations import Combination, name_of

from .table3_page import p_text, row

HEADINGS: dict[Metric, str] = {
    "ssim_percent": "SSIM (%)",
    "psnr_db": "PSNR (dB)",
    "lesion_error": "lesion rCBV error",
}
DIGITS: dict[Metric, int] = {"ssim_percent": 2, "psnr_db": 2, "lesion_error": 3}
NOTE = (
    "Mean ± SD (n - 1), median [quartiles] over the same held-out scans. Difference: IEDN - "
    "encoder-decoder, mean over scans, with 95 % interval and p from resampling patients; p Holm "
    "is corrected for all combinations of the metric. Paired t: as in the paper, over scans, which "
    "takes scans of one patient as independent. SSIM and PSNR in the box around the brain, 3D "
    "uniform window of 7 (less where the box is thinner), population covariance, data range 1.0 "
    "with the brain mean at 0.25. Lesion rCBV: lesion mean / "
    "mean of white matter on the other side (brightest of three classes of T1); absolute error "
    "against the measured map."
)


def markdown_table(scores: Scores) -> str:
    """One table a metric: every combination, both networks, their difference."""
    tables = [_of_metric(scores, metric) for metric in METRICS]
    return "\n\n".join([*(table for table in tables if table), NOTE])


def _of_metric(scores: Scores, metric: Metric) -> str:
    spreads = {key: s for key, found in scores.items() if (s := spread(found, metric))}
    if not spreads:
        return ""
    differences = {d.combination: d for d in network_differences(scores, metric)}
    both = any(architecture == "encoder-decoder" for architecture, _ in scores)
    names = ["IEDN", "3D encoder-decoder", "difference", "p", "p Holm", "paired t"]
    header = ["inputs", *(names if both else names[:1]), "scans (patients)"]
    lines = [f"### {HEADINGS[metric]}", "", row(header), row(["---"] * len(header))]
    for combination in dict.fromkeys(c for _, c in scores):
        cells = [_spread(spreads.get((a, combination)), metric) for a in ARCHITECTURES]
        found = differences.get(combination)
        others = [cells[1], *_difference(found, metric)] if both else []
        lines.append(row([name_of(combination), cells[0], *others, _count(spreads, combination)]))
    return "\n".join(lines)


def _spread(found: Spread | None, metric: Metric) -> str:
    if found is None:
        return "-"
    d = DIGITS[metric]
    return (
        f"{found.mean:.{d}f} ± {found.sd:.{d}f}, "
        f"{found.median:.{d}f} [{found.low_quartile:.{d}f}, {found.high_quartile:.{d}f}]"
    )


def _difference(found: Difference | None, metric: Metric) -> list[str]:
    if found is None:
        return ["-"] * 4
    d = DIGITS[metric]
    value = f"{found.value:+.{d}f}"
    if found.low is not None and found.high is not None:
        value += f" ({found.low:+.{d}f} to {found.high:+.{d}f})"
    return [
        value,
        *(_p(p) for p in (found.p_value, found.p_holm, found.p_paired_t)),
    ]


def _count(
    spreads: Mapping[tuple[Architecture, Combination], Spread], combination: Combination
) -> str:
    found = next(s for (_, c), s in spreads.items() if c == combination)
    return f"{found.num_scans} ({found.num_patients})"


def _p(value: float | None) -> str:
    return "-" if value is None else p_text(value)
