"""``iedn-server``: what the coordinator types."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from iedn.console import new_app, run_command, showing_progress
from iedn.errors import ConfigError

from .config import FederationConfig, load_federation
from .report import finished, validations, worst_site, write_report
from .run_folder import BEST, LOCK, RunFolder

app = new_app()

RunDir = Annotated[Path, typer.Argument(help="The run folder.", metavar="DIR")]


@app.callback()
def callback() -> None:
    """Coordinate a federation that synthesises CBV maps."""


@app.command()
def status(
    run_dir: RunDir,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say how far a run is, and who contributed to each round."""
    folder, config = _open(run_dir)
    events = folder.events()
    commits = [e for e in events if e["event"] == "commit" and e["round"] > 0]
    facts = {
        "run": config.run,
        "simulation": config.simulation,
        "rounds_committed": len({e["round"] for e in commits}),
        "rounds_planned": config.rounds.count,
        "finished": finished(events),
        "rosters": {e["round"]: e["roster"] for e in commits},
        "worst_site": {e["round"]: worst_site(e) for e in validations(events)},
    }
    if as_json:
        print(json.dumps(facts, indent=2, sort_keys=True))
        return
    table = Table(title=f"{config.run}: {len(commits)} of {config.rounds.count} rounds")
    table.add_column("round", justify="right")
    for site in sorted(config.sites):
        table.add_column(site)
    for commit in commits:
        roster = commit["roster"]
        cells = [roster.get(s, {}).get("status", "") for s in sorted(config.sites)]
        table.add_row(str(commit["round"]), *cells)
    Console().print(table)


@app.command()
def start(
    run_dir: RunDir,
    as_json: Annotated[bool, typer.Option("--json", help="Result and progress as JSON.")] = False,
) -> None:
    """Serve the sites and run the federation; the same command goes on after any stop."""
    from .start import start as start_run

    with showing_progress(as_json=as_json):
        result = start_run(run_dir)
    if as_json:
        print(json.dumps(vars(result), indent=2))
        return
    print(f"{result.rounds} rounds committed; model {result.model_hash}")
    print(f"best model: round {result.best_round}, in {run_dir / BEST}")


@app.command()
def report(run_dir: RunDir) -> None:
    """Write report.html and curves.png from the run's history."""
    folder, config = _open(run_dir)
    print(write_report(folder, config))


def _open(run_dir: Path) -> tuple[RunFolder, FederationConfig]:
    if not (run_dir / LOCK).is_file():
        raise ConfigError("is not a run folder (no federation.lock.json)", where=str(run_dir))
    config = load_federation(run_dir / "federation.toml")
    return RunFolder(run_dir, config), config


def main() -> None:
    """Entry point of ``iedn-server``."""
    run_command(app)
