"""Table 3 of a site as text: for its own eyes, with what would leave at the end."""

from collections.abc import Mapping, Sequence

from iedn.evaluation.statistics import Comparison, Estimate
from iedn.protocol.messages import ComparisonName, PairedAreas
from sites.readers import Scenario

from .diagnostic_value import RELEASED, DiagnosticResult, describe
from .reader_results import ReaderResults

METHOD = (
    "Area under the ROC curve for recurrence, 95 % interval; p: DeLong's test on the same cases, "
    "with Obuchowski's covariance where a patient has several scans. ROI values: lesion mean / "
    "mean of its mirror image. Models: logistic regression, scores by cross-validation over "
    "patients."
)


def table3_markdown(result: DiagnosticResult) -> str:
    """The whole local table."""
    lines = [
        describe(result.flow),
        "",
        row(["score", "AUC (95 % interval)"]),
        row(["---"] * 2),
        *(row([name, estimate_text(area)]) for name, area in result.areas.items()),
        "",
        row(["comparison", "difference (95 % interval)", "p"]),
        row(["---"] * 3),
        *(row([f"{a} - {b}", *_difference(c)]) for (a, b), c in result.comparisons.items()),
        "",
        METHOD,
        f"Standard MRI: {', '.join(result.mri_inputs) or 'none that all cases have'}.",
        *(f"Not computed: {note}" for note in result.notes),
    ]
    if result.readers is not None:
        lines += ["", *_readers(result.readers)]
    return "\n".join(lines)


def would_leave(areas: Mapping[ComparisonName, PairedAreas], num_scans: int) -> str:
    """The numbers of a release, every one of them."""
    fields = list(PairedAreas.model_fields)
    lines = [row(["comparison", *fields]), row(["---"] * (len(fields) + 1))]
    for name, numbers in areas.items():
        of = " - ".join(RELEASED[name])
        lines.append(row([f"{name}: {of}", *(f"{v:.6g}" for v in vars(numbers).values())]))
    return "\n".join([*lines, "", f"and num_scans, rounded down: {num_scans}"])


def _readers(found: ReaderResults) -> list[str]:
    head = ["readers saw", "AUC", "sensitivity", "specificity", "disagreed", "ICC(2,1)", "kappa"]
    lines = [
        f"Reader study: {found.num_cases} cases, first readings by {' and '.join(found.readers)}, "
        f"a third reader where they differ. p of the areas: {p_text(found.p_value)}",
        "",
        row(head),
        row(["---"] * len(head)),
    ]
    scenarios: Sequence[Scenario] = list(found.scenarios)
    for name in scenarios:
        of = found.scenarios[name]
        values = [
            estimate_text(of.auc),
            estimate_text(of.sensitivity),
            estimate_text(of.specificity),
        ]
        agreement = [estimate_text(of.icc), estimate_text(of.kappa)]
        lines.append(row([name, *values, str(of.num_disagreed), *agreement]))
    return [*lines, "", "Wilson's intervals; agreement is that of the first readings."]


def estimate_text(found: Estimate | None) -> str:
    """Value and interval; a dash where it is not defined."""
    return "-" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _difference(found: Comparison) -> list[str]:
    return [
        f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f})",
        p_text(found.p_value),
    ]


def p_text(value: float | None) -> str:
    """A p-value to three digits."""
    if value is None:
        return "not defined"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"
