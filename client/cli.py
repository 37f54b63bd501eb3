"""``iedn-client``: what a hospital types."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from iedn import progress
from iedn.console import new_app, run_command, showing_progress
from iedn.errors import CohortError, ConfigError, PolicyError
from sites.config import SiteConfig, find_site, load_site_config

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from iedn.config import GridConfig
    from sites.dataset import PreparedCohort

# What needs torch or takes long to import is imported where it is used, so that `--help` and the
# commands around keys and connections answer at once.

app = new_app(invoke_without_command=True)

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
    """Take part in a federation as a hospital; nothing leaves but what the policy allows.

    Without a command: join, and answer the coordinator until interrupted.
    """
    path = find_site(site)
    context.obj = _Site(load_site_config(path))
    if context.invoked_subcommand is None:
        from .join import join

        join(context.obj.config, path)


@app.command()
def init(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Replace the key that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make this site's key, and show the public half for the coordinator."""
    from .identity import create_identity

    made = create_identity(context.obj.config, force=force)
    if as_json:
        print(json.dumps({k: str(v) for k, v in vars(made).items()}, indent=2))
        return
    print(made.public_line)
    print(f"fingerprint {made.fingerprint}")
    print(f"send {made.public_file} to the coordinator, and read the fingerprint out by telephone;")
    print(f"{made.key_file} stays here")


@app.command()
def check(
    context: typer.Context,
    preset: Annotated[str, typer.Option(help="Grid to check on: paper, demo or tiny.")] = "demo",
    overlays: Annotated[int, typer.Option(min=0, help="Scans to draw, into check/.")] = 12,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 4 on any error finding.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Leave the network out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look at the installation, the connection and every scan, and say what would leave."""
    from iedn.config import PRESETS
    from sites.dataset import examine_cohort
    from sites.report import cohort_report

    from .check import as_json as report_json
    from .check import renderables, write_overlays
    from .doctor import (
        environment_facts,
        exit_code_of,
        fact_lines,
        facts_as_json,
        leaving_lines,
        leaving_text,
    )

    config: SiteConfig = context.obj.config
    if preset not in PRESETS:
        raise ConfigError(f"no preset {preset!r}", where="--preset", allowed=", ".join(PRESETS))
    facts = environment_facts(config, offline=offline)
    if not as_json:
        _print_parts(fact_lines(facts))
    try:
        with showing_progress(as_json=as_json):
            reporter = progress.reporter("preparing scans")
            cohort = examine_cohort(config, PRESETS[preset].grid, progress=reporter)
            pictures = write_overlays(config, cohort, most=overlays)
    except CohortError as error:
        if as_json:
            print(json.dumps({"environment": facts_as_json(facts), "cohort": str(error)}, indent=2))
        raise
    report, leaves = cohort_report(config, cohort), leaving_lines(config, cohort)
    if as_json:
        extra = {"environment": facts_as_json(facts), "leaves": leaves}
        print(json.dumps(report_json(report, pictures) | extra, indent=2))
    else:
        _print_parts([*renderables(report, pictures), *leaving_text(leaves)])
    is_bad = not report.usable or (strict and report.num_errors > 0)
    if code := exit_code_of(facts) or (CohortError.exit_code if is_bad else 0):
        raise typer.Exit(code)


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
    from sites.cohort import modality_counts, num_patients
    from sites.discovery.layouts import LAYOUTS, discover
    from sites.discovery.manifest import MANIFEST, describe

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
    import torch

    from .diagnostic import SYNTHETIC
    from .external import diagnostic_summary, synthesize_cohort
    from .model_file import load_model_file

    config: SiteConfig = context.obj.config
    file = load_model_file(model)
    cohort = _prepared(config, file.grid, as_json=as_json)
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
    summary = diagnostic_summary(rows)
    if as_json:
        auc = summary.synthetic_cbv.auc
        print(json.dumps({"folder": str(folder), "scans": len(rows), "auc": auc and vars(auc)}))
        return
    print(f"{len(rows)} scans, research use only: {folder}")


@app.command()
def evaluate(
    context: typer.Context,
    model: ModelPath,
    split: Annotated[str, typer.Option(help="validation or test.")] = "test",
    flip_average: FlipAverage = False,
    as_json: AsJson = False,
) -> None:
    """Compare synthetic with measured CBV on held-out patients; nothing leaves."""
    import torch

    from iedn.evaluation.results import summary_of

    from .evaluation import evaluate_scans
    from .model_file import load_model_file

    config: SiteConfig = context.obj.config
    if config.role == "evaluate":
        raise PolicyError("an evaluating site has no measured CBV: SSIM and PSNR are refused")
    if split not in ("validation", "test"):
        raise ConfigError(f"no split {split!r}", where="--split", allowed="validation, test")
    file = load_model_file(model)
    cohort = _prepared(config, file.grid, as_json=as_json)
    dataset = cohort.validation if split == "validation" else cohort.test
    with showing_progress(as_json=as_json):
        rows = evaluate_scans(
            file.network,
            dataset,
            task="evaluating",
            flip_average=flip_average,
            device=torch.device(config.device),
        )
    summary = summary_of(rows)
    if as_json:
        print(json.dumps({"split": split, "scans": len(rows), **summary}, indent=2))
        return
    for name in ("psnr_db", "ssim_percent", "mae"):
        print(f"{name:14} {summary[f'{name}_mean']:.4f}  (mean of {len(rows)} {split} scans)")


@app.command()
def releases(context: typer.Context, as_json: AsJson = False) -> None:
    """Show what has left this site, after checking that the log is whole."""
    from sites.release_log import verify

    from .session import RELEASES

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


def _print_parts(parts: "Iterable[RenderableType]") -> None:
    console = Console()
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text))


def _prepared(config: SiteConfig, grid: "GridConfig", *, as_json: bool) -> "PreparedCohort":
    from sites.dataset import prepare_cohort

    with showing_progress(as_json=as_json):
        return prepare_cohort(config, grid, progress=progress.reporter("preparing scans"))


def main() -> None:
    """Entry point of ``iedn-client``."""
    run_command(app)
