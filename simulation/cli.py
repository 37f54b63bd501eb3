"""``iedn-simulate``: what a researcher types. One machine plays all parts."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from iedn import progress
from iedn.console import new_app, run_command, showing_progress

from .prepare import Layout, is_finished, prepare_run, write_phantoms
from .scenario import load_scenario, shipped_scenarios
from .split import Rule, split_manifest

if TYPE_CHECKING:
    from .cross_site import Matrix
    from .results import RunSummary

# What needs torch and flwr is imported where it is used: the processes that generate phantoms
# start from this module, and `--help` answers at once.

app = new_app()

Engine = Literal["inprocess", "flower"]
DEFAULT_WORKERS = os.cpu_count() or 1
_MOST_ROWS = 40

AsJson = Annotated[bool, typer.Option("--json", help="Results and progress as JSON.")]
Workers = Annotated[int, typer.Option(min=1, help="Sites or phantoms worked on at a time.")]
TablePreset = Annotated[
    str, typer.Option(help="default or hard lesions, or a scenario (shipped, or a TOML file).")
]
ResultsFolder = Annotated[
    Path | None, typer.Option(help="Folder that also gets the table, e.g. docs/results.")
]
CohortsFolder = Annotated[
    Path | None, typer.Option(help="Phantom cohorts, shared by runs; default OUT/../cohorts.")
]
ScenarioName = Annotated[str, typer.Argument(help="A shipped scenario, or a TOML file.")]


@app.callback()
def callback() -> None:
    """Simulate a federation that synthesises CBV maps, on one machine."""


@app.command()
def run(
    scenario: ScenarioName,
    out: Annotated[Path | None, typer.Option(help="Run folder; default runs/SCENARIO.")] = None,
    engine: Annotated[Engine, typer.Option(help="This process, or Flower on Ray.")] = "inprocess",
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the scenario's seed.")] = None,
    cohorts: CohortsFolder = None,
    workers: Workers = DEFAULT_WORKERS,
    cross_site: Annotated[
        bool, typer.Option("--cross-site", help="Each site's own model at each site, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a scenario from phantom to report; the same command goes on after any stop."""
    from .cross_site import write_cross_site
    from .engine import run_in_process, run_on_flower
    from .montage import write_montage
    from .results import summarise, summary_fields

    config = load_scenario(scenario)
    folder = out or Path("runs") / config.name
    if is_finished(folder):
        print(f"{folder} holds a finished run; delete it to train again", file=sys.stderr)
    started = time.monotonic()
    with showing_progress(as_json=as_json):
        federation = prepare_run(
            config, folder, cohorts=cohorts or folder.parent / "cohorts", seed=seed, workers=workers
        )
        prepared = time.monotonic()
        if engine == "inprocess":
            run_in_process(folder, federation, workers=workers)
        else:
            run_on_flower(folder, federation)
        trained = time.monotonic()
        summary = summarise(folder, federation)
        with progress.step("montage"):
            montage = write_montage(folder, federation)
        matrix = write_cross_site(folder, federation) if cross_site else {}
    if as_json:
        fields = summary_fields(summary) | ({"cross_site_psnr_db": matrix} if matrix else {})
        print(json.dumps(fields, indent=2, sort_keys=True))
        return
    _print_summary(summary)
    if matrix:
        _print_matrix(matrix)
    print(f"report   {folder / 'report.html'}\nmontage  {montage}\nmodel    {summary.model_hash}")
    print(f"phantoms {prepared - started:.0f} s, federation {trained - prepared:.0f} s")


@app.command()
def table2(
    preset: TablePreset = "default",
    out: Annotated[Path | None, typer.Option(help="Default: runs/table2-PRESET.")] = None,
    combinations: Annotated[
        str, typer.Option(help="paper, all, or some: ASL,T1WI+ASL,…")
    ] = "paper",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Of every model; default: the scenario's.")
    ] = None,
    results: ResultsFolder = None,
    cohorts: CohortsFolder = None,
    workers: Workers = DEFAULT_WORKERS,
    as_json: AsJson = False,
) -> None:
    """The paper's Table 2 on a phantom; the same command goes on after any stop."""
    from .table2 import TableRequest, make_table2
    from .table2_page import as_json as table_json
    from .table2_page import markdown, write_table2

    config = load_scenario(_tables(preset))
    folder = out or Path("runs") / f"table2-{Path(preset).stem}"
    phantoms = cohorts or folder.parent / "cohorts"
    request = TableRequest(preset, combinations, steps, phantoms, workers)
    with showing_progress(as_json=as_json):
        scores, facts = make_table2(config, folder, request)
    for place in (folder, *(() if results is None else (results,))):
        written = write_table2(place, scores, facts)
    if as_json:
        print(json.dumps(table_json(scores, facts), indent=2))
        return
    print(markdown(scores, facts))
    print("\n".join(str(path) for path in written))


@app.command()
def table3(
    model: Annotated[Path, typer.Option(help="A released model file, e.g. best.safetensors.")],
    preset: TablePreset = "default",
    out: Annotated[Path | None, typer.Option(help="Default: runs/table3-PRESET.")] = None,
    results: ResultsFolder = None,
    cohorts: CohortsFolder = None,
    workers: Workers = DEFAULT_WORKERS,
    as_json: AsJson = False,
) -> None:
    """The paper's Table 3 on phantom external cohorts, with a released model."""
    from .table3 import as_json as table_json
    from .table3 import make_table3, markdown, write_table3

    config = load_scenario(_tables(preset))
    name = Path(preset).stem
    folder = out or Path("runs") / f"table3-{name}"
    with showing_progress(as_json=as_json):
        table = make_table3(
            config, model, folder, cohorts=cohorts or folder.parent / "cohorts", workers=workers
        )
    for place in (folder, *(() if results is None else (results,))):
        written = write_table3(place, table, name)
    if as_json:
        print(json.dumps(table_json(table), indent=2))
        return
    print(markdown(table, name))
    print("\n".join(str(path) for path in written))


@app.command()
def scenarios(as_json: AsJson = False) -> None:
    """List the scenarios that come with the package."""
    found = {name: load_scenario(name).description for name in shipped_scenarios()}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    for name, description in found.items():
        print(f"{name:14} {description}")


@app.command()
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write; one folder a site in it.")],
    scenario: Annotated[str, typer.Option(help="Whose sites to write.")] = "demo",
    layout: Annotated[
        Layout, typer.Option(help="bids: once more as a BIDS dataset, OUT/SITE/bids.")
    ] = "manifest",
    workers: Workers = DEFAULT_WORKERS,
    as_json: AsJson = False,
) -> None:
    """Write the phantom cohorts of a scenario: NIfTI files and manifest.csv."""
    config = load_scenario(scenario)
    with showing_progress(as_json=as_json):
        manifests = write_phantoms(config, out, workers=workers, layout=layout)
    for name, manifest in manifests.items():
        print(f"{name}\t{manifest}")


@app.command()
def split(
    manifest: Annotated[Path, typer.Argument(help="Any manifest.csv.")],
    out: Annotated[Path, typer.Option(help="Scenario file to write.")],
    by: Annotated[Rule, typer.Option(help="How scans are dealt to virtual sites.")] = "patient",
    sites: Annotated[int, typer.Option(min=2, max=1000, help="Number of virtual sites.")] = 3,
    alpha: Annotated[float, typer.Option(min=0.01, help="Dirichlet concentration.")] = 0.5,
    asl_only_at: Annotated[
        int | None, typer.Option(min=1, help="Keep ASL at this site only (1, 2, …).")
    ] = None,
    preset: Annotated[str, typer.Option(help="Grid and network of the scenario.")] = "demo",
    seed: Annotated[int, typer.Option(min=0)] = 1,
) -> None:
    """Deal one cohort to virtual sites: a manifest each, and a scenario that uses them."""
    written = split_manifest(
        manifest,
        out,
        rule=by,
        num_sites=sites,
        options={"alpha": alpha, "asl_only_at": asl_only_at, "preset": preset, "seed": seed},
    )
    for path in written:
        print(path)


def _tables(preset: str) -> str:
    """The scenario of a preset of ``table2`` and ``table3``."""
    return f"tables-{preset}" if preset in ("default", "hard") else preset


def _print_summary(summary: "RunSummary") -> None:
    title = f"{summary.run}: held-out test scans of a PHANTOM, PSNR (dB) and SSIM (%)"
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    names = list(summary.sites[0].baselines) if summary.sites else []
    for column in ("site (scans)", *names, "federated", "over best"):
        justify: Literal["left", "right"] = "left" if column.startswith("site") else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    for site in summary.sites[:_MOST_ROWS]:
        qualities = [*site.baselines.values(), site.federated]
        cells = [f"{q.psnr_db:.2f} {q.ssim_percent:.1f}" for q in qualities]
        margin = f"{site.margin_db:+.2f} {site.margin_ssim:+.1f}"
        table.add_row(f"{site.site} ({site.num_scans})", *cells, margin)
    console = Console()
    console.print(table)
    if len(summary.sites) > _MOST_ROWS:
        print(f"and {len(summary.sites) - _MOST_ROWS} more sites, in summary.json")
    for name, areas in summary.external.items():
        for comparison, found in areas.items():
            print(_external_line(f"{name}, {comparison}", found))
    for comparison, found in summary.stratified.items():
        if len(found["sites"]) > 1:
            print(_external_line(f"all external sites, stratified, {comparison}", found))


def _print_matrix(matrix: "Matrix") -> None:
    title = (
        "PSNR (dB) on held-out scans of a PHANTOM: a row is a model, a column where it is tested"
    )
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    table.add_column("model of")
    sites = list(next(iter(matrix.values())))
    for site in sites:
        table.add_column(site, justify="right", no_wrap=True)
    for name, means in matrix.items():
        table.add_row(name, *(f"{means[site]:.2f}" for site in sites))
    Console().print(table)


def _external_line(name: str, found: dict[str, Any]) -> str:
    parts = [
        f"AUC {title} {found[key]['value']:.3f} ({found[key]['low']:.3f}-{found[key]['high']:.3f})"
        for key, title in (("synthetic_cbv", "synthetic CBV"), ("asl", "ASL"))
    ]
    if "p_value" in found:
        parts.append(f"p {found['p_value']:.3f}")
    recurrence, response = found["num_recurrence"], found["num_treatment_response"]
    counts = f"{recurrence} recurrence, {response} treatment response"
    return f"{name} (PHANTOM): {', '.join(parts)}; {counts}"


def main() -> None:
    """Entry point of ``iedn-simulate``."""
    run_command(app)
