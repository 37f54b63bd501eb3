"""``iedn-client``: what a hospital types."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

from iedn import progress
from iedn.config import PRESETS
from iedn.console import new_app, run_command, showing_progress
from iedn.errors import CohortError, ConfigError, PolicyError
from sites.cohort import modality_counts, num_patients
from sites.config import SiteConfig, find_site, load_site_config
from sites.dataset import examine_cohort
from sites.discovery.layouts import LAYOUTS, discover
from sites.discovery.manifest import MANIFEST, describe
from sites.release_log import verify
from sites.report import cohort_report

from .check import as_json as report_json
from .check import renderables, write_overlays
from .diagnostic import SYNTHETIC
from .evaluate_command import (
    Against,
    CbvOptions,
    LabelOptions,
    evaluate_combinations,
    evaluate_labels,
    evaluate_split,
    prepared,
)
from .evaluation import NO_CBV
from .external import synthesize_cohort
from .model_file import load_model_file
from .session import RELEASES

app = new_app()

AsJson = Annotated[bool, typer.Option("--json", help="Results and progress as JSON.")]
ModelPath = Annotated[Path, typer.Option("--model", help="A released model file.")]
FlipAverage = Annotated[
    bool, typer.Option("--flip-average", help="Average with the left-right flipped input.")
]


@dataclass(frozen=True)
class _Site:
    config: SiteConfig


@app.callback()
def callback(
    context: typer.Context,
    site: Annotated[str, typer.Option(help="The site's name, or its site.toml.")],
) -> None:
    """Take part in a federation as a hospital; nothing leaves but what the policy allows."""
    context.obj = _Site(load_site_config(find_site(site)))


@app.command()
def check(
    context: typer.Context,
    preset: Annotated[str, typer.Option(help="Grid to check on: paper, demo or tiny.")] = "demo",
    overlays: Annotated[int, typer.Option(min=0, help="Scans to draw, into check/.")] = 12,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 on any error finding.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every scan, say what can be used, what cannot, and why."""
    config: SiteConfig = context.obj.config
    if preset not in PRESETS:
        raise ConfigError(f"no preset {preset!r}", where="--preset", allowed=", ".join(PRESETS))
    with showing_progress(as_json=as_json):
        reporter = progress.reporter("preparing scans")
        cohort = examine_cohort(config, PRESETS[preset].grid, progress=reporter)
        pictures = write_overlays(config, cohort, most=overlays)
    report = cohort_report(config, cohort)
    if as_json:
        print(json.dumps(report_json(report, pictures), indent=2))
    else:
        console = Console()
        for part in renderables(report, pictures):
            console.print(part, highlight=False, soft_wrap=isinstance(part, Text))
    if not report.usable or (strict and report.num_errors):
        raise typer.Exit(CohortError.exit_code)


@app.command()
def manifest(
    context: typer.Context,
    scan: Annotated[Path, typer.Option(help="Folder with the scans.")],
    out: Annotated[Path | None, typer.Option(help="Default: manifest.csv in the folder.")] = None,
    layout: Annotated[str, typer.Option(help="auto, folders or bids.")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace another manifest.")] = False,
    pseudonyms: Annotated[
        bool, typer.Option("--pseudonyms", help="Make up ids where a folder may be a name.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the scans in a folder and write the manifest that describes them."""
    config: SiteConfig = context.obj.config
    if layout not in LAYOUTS:
        raise ConfigError(f"no layout {layout!r}", where="--layout", allowed=", ".join(LAYOUTS))
    path = out or scan / MANIFEST
    found, outcome = describe(
        discover(scan, layout), scan, path, force=force, pseudonyms=pseudonyms
    )
    counts = modality_counts(found.scans)
    if as_json:
        findings = [{**vars(f), "path": str(f.path)} for f in found.findings]
        facts = {"manifest": str(path), "outcome": outcome, "scans": len(found.scans)}
        print(json.dumps(facts | {"by_modality": counts, "findings": findings}, indent=2))
        return
    for entry in found.findings:
        print(f"{entry.code} {entry.path}: {entry.problem}")
    having = ", ".join(f"{modality} {number}" for modality, number in counts.items())
    print(f"{num_patients(found.scans)} patients, {len(found.scans)} scans ({having})")
    print(f"{len(found.findings)} findings; {outcome}: {path}")
    if path.resolve() != config.manifest.resolve():
        print(f"this site reads {config.manifest}: set manifest in its site.toml")


@app.command()
def synthesize(
    context: typer.Context,
    model: ModelPath,
    out: Annotated[Path | None, typer.Option(help="Default: synthetic/ of the site.")] = None,
    flip_average: FlipAverage = False,
    as_json: AsJson = False,
) -> None:
    """Write the synthetic CBV map of every scan, with its sidecar and ROI values."""
    config: SiteConfig = context.obj.config
    file = load_model_file(model)
    cohort = prepared(config, file.grid, as_json=as_json)
    folder = out or config.folder / SYNTHETIC
    with showing_progress(as_json=as_json):
        rows = synthesize_cohort(
            file.network.to(torch.device(config.device)),
            cohort,
            folder,
            model_hash=file.model_hash,
            flip_average=flip_average,
            progress=progress.reporter("synthetic maps"),
        )
    if as_json:
        print(json.dumps({"folder": str(folder), "scans": len(rows)}))
        return
    print(f"{len(rows)} scans, research use only: {folder}")


@app.command()
def evaluate(
    context: typer.Context,
    model: ModelPath,
    against: Annotated[
        Against | None,
        typer.Option(help="cbv: measured maps; labels: outcomes. Default: by the site's role."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="validation or test; default test.")] = None,
    combinations: Annotated[
        str | None, typer.Option(help="Inputs to compare: paper, all, or some: ASL,T1WI+ASL,…")
    ] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="Folder of encoder-decoders, one a combination.")
    ] = None,
    readers: Annotated[
        Path | None, typer.Option(help="Reader study; default readers.csv of the site's folder.")
    ] = None,
    approve: Annotated[
        bool, typer.Option("--approve", help="Let the numbers shown leave when asked for.")
    ] = False,
    flip_average: FlipAverage = False,
    as_json: AsJson = False,
) -> None:
    """Measure what the maps are worth: against measured CBV, or against outcomes.

    Nothing leaves by this command. At an evaluating site it shows what would leave, and with
    --approve exactly those numbers may be sent when the coordinator asks for this model.
    """
    config: SiteConfig = context.obj.config
    kind = against or ("labels" if config.role == "evaluate" and not combinations else "cbv")
    if kind == "labels":
        print(evaluate_labels(config, model, LabelOptions(readers, approve, flip_average, as_json)))
        return
    if config.role == "evaluate":
        raise PolicyError(NO_CBV)
    part = split or "test"
    if part not in ("validation", "test"):
        raise ConfigError(f"no split {part!r}", where="--split", allowed="validation, test")
    options = CbvOptions(part, baselines, flip_average, as_json)
    if combinations is None:
        print(evaluate_split(config, model, options))
    else:
        print(evaluate_combinations(config, model, combinations, options))


@app.command()
def releases(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what has left this site, after checking that the log is whole."""
    config: SiteConfig = context.obj.config
    entries = verify(config.folder / RELEASES)
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    for entry in entries:
        size = f"{entry['bytes'] / 1e6:.1f} MB" if "bytes" in entry else ""
        print(f"{entry['number']:5} {entry['time']} {entry['kind']:20} {size}")
    kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(e["kind"] for e in entries).items())
    print(f"{len(entries)} releases, chain whole{': ' + kinds if kinds else ''}")


def main() -> None:
    """Entry point of ``iedn-client``."""
    run_command(app)
