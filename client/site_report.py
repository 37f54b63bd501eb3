"""``iedn-client report``: one HTML page about a site, for its own eyes.

It names findings, shows patients and counts exactly; nothing of it leaves. What the coordinator
can say is in its own report.
"""

import json
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from iedn import __version__, progress
from iedn.config import PRESETS
from iedn.console import showing_progress
from iedn.evaluation.combination_table import METRICS as COMBINATION_METRICS
from iedn.evaluation.combination_table import table_rows
from iedn.evaluation.combinations import name_of
from iedn.evaluation.results import SHOWN_METRICS
from iedn.files import atomic_write_bytes
from iedn.html_page import drawing, page_environment, picture
from iedn.modalities import Modality
from sites.codes import CODES
from sites.config import SiteConfig
from sites.dataset import PreparedCohort, examine_cohort
from sites.release_log import verify
from sites.report import CohortReport, ReportedFinding, cohort_report

from .check import age_text, scans_per_patient_text
from .combination_page import HEADINGS
from .combinations import UnitFolder
from .diagnostic import evaluate_external
from .diagnostic_value import DiagnosticResult
from .evaluate_command import COMBINATIONS
from .model_file import ModelFile, load_model_file
from .report_figures import bland_altman_drawing, montage, roc_drawing, rounds_drawing
from .session import RELEASES
from .site_results import Example, MeasuredResults, measure_held_out, validation_rounds
from .synthesis import Synthesizer
from .table3_page import METHOD, estimate_text, p_text

REPORT = "report.html"
PHANTOM_RECORD = "phantom.json"


@dataclass(frozen=True)
class ReportOptions:
    """What a user asks for.

    Attributes:
        model: a model file; without one the report is about the cohort alone.
        examples: patients to show.
        flip_average: average with the left-right flipped input.
        as_json: progress as JSON.
    """

    model: Path | None
    examples: int
    flip_average: bool
    as_json: bool


@dataclass(frozen=True)
class ModelResults:
    """What the report says about a model's maps; one of the two is None.

    Attributes:
        file: the model.
        measured: at a site with measured CBV.
        diagnostic: at an evaluating site.
        examples: scans with their maps.
    """

    file: ModelFile
    measured: MeasuredResults | None
    diagnostic: DiagnosticResult | None
    examples: tuple[Example, ...]


def write_site_report(config: SiteConfig, options: ReportOptions) -> Path:
    """Write ``report.html`` into the site's folder, for its owner only.

    Raises:
        CohortError: the manifest is wrong, or there is nothing to evaluate the model on.
        PolicyError: fewer patients than the policy demands of a table of diagnostic value.
    """
    file = None if options.model is None else load_model_file(options.model)
    grid = PRESETS["demo"].grid if file is None else file.grid
    with showing_progress(as_json=options.as_json):
        reporter = progress.reporter("preparing scans")
        cohort = examine_cohort(config, grid, progress=reporter, workers=config.workers)
        results = None if file is None else _results(config, cohort, file, options)
    page = render(config, cohort_report(config, cohort), results, is_phantom=_is_phantom(config))
    path = config.folder / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, page.encode(), mode=0o600)
    return path


def render(
    config: SiteConfig, report: CohortReport, results: ModelResults | None, *, is_phantom: bool
) -> str:
    """The page as HTML without any outside resource."""
    releases = Counter(e["kind"] for e in verify(config.folder / RELEASES))
    template = page_environment("client").get_template("site_report.html.j2")
    return template.render(
        config=config,
        report=report,
        codes=CODES,
        findings=_by_code(report),
        modalities=[str(m) for m in Modality],
        results=results,
        is_phantom=is_phantom,
        metrics=SHOWN_METRICS,
        releases=dict(releases),
        combinations=_combinations(config),
        combination_headings=HEADINGS,
        combination_metrics=COMBINATION_METRICS,
        drawings=_drawings(config, results),
        examples=[(e.name, picture(montage(e))) for e in (results.examples if results else ())],
        method=METHOD,
        estimate=estimate_text,
        p_text=p_text,
        age=age_text,
        scans_per_patient=scans_per_patient_text,
        versions={
            "iedn": __version__,
            **{n: version(n) for n in ("torch", "numpy", "scikit-image", "SimpleITK")},
        },
    )


def _results(
    config: SiteConfig, cohort: PreparedCohort, file: ModelFile, options: ReportOptions
) -> ModelResults:
    if config.role == "train":
        measured = measure_held_out(
            config,
            file.network,
            cohort.test,
            examples=options.examples,
            flip_average=options.flip_average,
        )
        return ModelResults(file, measured, None, measured.examples)
    found = evaluate_external(
        config,
        cohort,
        file.network,
        model_hash=file.model_hash,
        flip_average=options.flip_average,
    )
    return ModelResults(file, None, found, _examples(cohort, file, options))


def _examples(
    cohort: PreparedCohort, file: ModelFile, options: ReportOptions
) -> tuple[Example, ...]:
    """The first scan of the first patients, with its map."""
    synthesizer = Synthesizer(file.network, file.model_hash, options.flip_average)
    kept: dict[str, Example] = {}
    for index, record in enumerate(cohort.records):
        if len(kept) == options.examples:
            break
        scan = cohort.all.prepared(index)
        if record.patient_id not in kept and synthesizer.inputs(scan):
            kept[record.patient_id] = Example(record.key, scan, synthesizer.cbv(scan))
    return tuple(kept.values())


def _drawings(config: SiteConfig, results: ModelResults | None) -> dict[str, str]:
    """Every drawing that there are numbers for, by name."""
    found: dict[str, str] = {}
    rounds = validation_rounds(config.folder)
    if rounds:
        found["rounds"] = drawing(rounds_drawing(rounds))
    if results is None:
        return found
    measured, diagnostic = results.measured, results.diagnostic
    if measured is not None and measured.agreement is not None:
        made = bland_altman_drawing(measured.lesions, measured.agreement)
        found["bland_altman"] = drawing(made)
    if diagnostic is not None:
        areas = {str(name): estimate_text(area) for name, area in diagnostic.areas.items()}
        curves = {str(name): points for name, points in diagnostic.curves.items()}
        found["roc"] = drawing(roc_drawing(curves, areas))
    return found


def _by_code(report: CohortReport) -> dict[str, list[ReportedFinding]]:
    """Findings of each code, gravest codes first."""
    found: dict[str, list[ReportedFinding]] = {}
    for finding in report.findings:
        found.setdefault(finding.code, []).append(finding)
    return found


def _combinations(config: SiteConfig) -> list[dict[str, Any]]:
    """Rows of the combinations table, if ``evaluate --combinations`` has left one."""
    scores = UnitFolder(config.folder / COMBINATIONS).all()
    return [
        {"network": row.architecture, "inputs": name_of(row.combination), "metrics": row.metrics}
        for row in table_rows(scores)
    ]


def _is_phantom(config: SiteConfig) -> bool:
    """Whether the cohort is one that ``iedn-simulate`` made."""
    record = config.manifest.parent / PHANTOM_RECORD
    return record.exists() and "cohort" in json.loads(record.read_bytes())
