"""``iedn-client check``: the cohort report as tables and JSON, and the operator's pictures."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from iedn import progress
from iedn.modalities import Modality
from sites.codes import CODES, severity
from sites.config import SiteConfig
from sites.dataset import PreparedCohort
from sites.report import Characteristics, CohortReport, Flow, ReportedFinding

from .one_scan import OneMap

CHECK = "check"
"""Folder of the pictures, in the site's folder."""

_STYLES = {"error": "red", "warning": "yellow", "info": "dim"}
_MOST_SHOWN = 12


def write_overlays(config: SiteConfig, cohort: PreparedCohort, *, most: int) -> list[Path]:
    """Draw up to ``most`` scans, those with most warnings first; pictures of an earlier check go.

    Returns:
        The pictures, ``check/PATIENT/SCAN.png`` in the site's folder.
    """
    # Slow to import, and of no use to the other commands.
    from sites.overlay import write_overlay

    folder = config.folder / CHECK
    for old in folder.glob("*/*.png") if most else ():
        old.unlink()
    warned = Counter(k for k, finding in cohort.warnings if severity(finding.code) == "warning")
    records = cohort.records
    order = sorted(range(len(records)), key=lambda n: -warned[records[n].key])[:most]
    task, written = f"{config.name}: overlays", []
    for done, index in enumerate(order, start=1):
        record = records[index]
        path = folder / record.patient_id / f"{record.scan_id}.png"
        write_overlay(path, record, cohort.all.prepared(index))
        written.append(path)
        progress.report(task, done, len(order))
    return written


def write_picture(made: OneMap) -> Path:
    """Draw the brain mask on the images that a map was made from; a PNG beside the map."""
    from sites.overlay import write_overlay

    path = made.path.with_name(f"{made.record.scan_id}_inputs.png")
    write_overlay(path, made.record, made.scan)
    return path


def as_json(report: CohortReport, overlays: list[Path]) -> dict[str, Any]:
    """The whole report as JSON values."""
    return {
        **asdict(report),
        "usable": report.usable,
        "errors": report.num_errors,
        "overlays": [str(path) for path in overlays],
    }


def renderables(report: CohortReport, overlays: list[Path]) -> Iterator[RenderableType]:
    """The report as the operator reads it, in order."""
    yield _modality_table(report)
    yield _flow_table(report)
    yield _characteristics_table(report)
    yield from _findings(report)
    if overlays:
        folder = overlays[0].parents[1]
        yield Text(f"{len(overlays)} pictures to look at (they show patients): {folder}")


def _modality_table(report: CohortReport) -> Table:
    table = Table(title=f"{report.site}: scans by modality")
    for column in ("part", "patients", "scans", *Modality):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, part in report.parts.items():
        cells = [str(part.by_modality.get(m, 0)) for m in Modality]
        table.add_row(name, str(part.patients), str(part.scans), *cells)
    return table


def _flow_table(report: CohortReport) -> Table:
    table = Table(title="From the manifest to the scans used", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for words, count in _flow_rows(report.flow, report):
        table.add_row(Text(words), str(count))
    return table


def _flow_rows(flow: Flow, report: CohortReport) -> Iterator[tuple[str, int]]:
    yield "scans in the manifest", flow.listed
    yield "- excluded by the manifest", sum(flow.excluded.values())
    for reason, count in flow.excluded.items():
        yield f"    {reason}", count
    yield "- quarantined", sum(flow.quarantined.values())
    for code, count in flow.quarantined.items():
        yield f"    {code} {CODES[code].meaning}", count
    yield "= usable", flow.usable
    if report.role == "train":
        yield "- without usable measured CBV (synthesis only)", flow.without_cbv
        for name in ("train", "validation", "test"):
            yield f"= {name}", report.parts[name].scans
    if flow.files_refused:
        yield "files left out of usable scans", sum(flow.files_refused.values())
        for code, count in flow.files_refused.items():
            yield f"    {code} {CODES[code].meaning}", count


def _characteristics_table(report: CohortReport) -> Table:
    table = Table(title="Characteristics (of patients; labels of scans)")
    table.add_column("")
    for name in report.characteristics:
        table.add_column(name, justify="right")
    columns = list(report.characteristics.values())
    table.add_row("patients", *(str(c.patients) for c in columns))
    table.add_row("scans", *(str(c.scans) for c in columns))
    table.add_row("scans per patient", *map(scans_per_patient_text, columns))
    table.add_row("age in years", *map(age_text, columns))
    for field in ("sex", "disease", "label"):
        counts: list[dict[str, int]] = [getattr(c, field) for c in columns]
        for value in dict.fromkeys(v for count in counts for v in count):
            table.add_row(Text(f"{field}: {value}"), *(str(c.get(value, 0)) for c in counts))
    return table


def scans_per_patient_text(part: Characteristics) -> str:
    """Mean, smallest and largest number."""
    if part.scans_per_patient is None:
        return "-"
    fewest, mean, most = part.scans_per_patient
    return f"{mean:.1f} ({fewest} to {most})"


def age_text(part: Characteristics) -> str:
    """Mean and standard deviation in years, and of how many patients."""
    if part.age_mean is None:
        return "unknown"
    spread = "" if part.age_sd is None else f" ± {part.age_sd:.1f}"
    return f"{part.age_mean:.1f}{spread} (n={part.age_known})"


def _findings(report: CohortReport) -> Iterator[RenderableType]:
    counts = Counter(finding.code for finding in report.findings)
    shown: Counter[str] = Counter()
    for finding in report.findings:
        shown[finding.code] += 1
        if finding.severity == "info" and shown[finding.code] > 1:
            continue
        if shown[finding.code] <= _MOST_SHOWN:
            yield _line(finding)
        if shown[finding.code] == (1 if finding.severity == "info" else _MOST_SHOWN):
            more = counts[finding.code] - shown[finding.code]
            if more:
                yield Text(f"  and {more} more {finding.code}; --json lists all", style="dim")
    severities = Counter(finding.severity for finding in report.findings)
    yield Text(
        f"{severities['error']} errors (left out), {severities['warning']} warnings (used; look), "
        f"{severities['info']} notes"
    )


def _line(finding: ReportedFinding) -> Text:
    place = " ".join(part for part in (finding.scan, finding.column) if part)
    line = Text(f"{finding.code} {finding.severity}", style=_STYLES[finding.severity])
    line.append(f" {place}: {finding.problem}", style="default")
    return line if finding.action == "Nothing." else line.append(f" -> {finding.action}", "dim")
