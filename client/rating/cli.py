"""``iedn-client rate``: makes a reader study, serves its page, exports its scores."""

import json
import secrets
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iedn.errors import ConfigError

if TYPE_CHECKING:
    from sites.config import SiteConfig

    from .study import Study

# What is slow to import is imported where it is used, so that `--help` answers at once.

app = typer.Typer(invoke_without_command=True, no_args_is_help=False, add_completion=False)

PORT = 8417
AsJson = Annotated[bool, typer.Option("--json", help="Results and progress as JSON.")]
StudyName = Annotated[
    str | None, typer.Option("--study", help="Name of the study; default: the only one.")
]
Port = Annotated[int, typer.Option(min=1024, max=65535, help="Port of the page, on 127.0.0.1.")]
IdleMinutes = Annotated[
    float, typer.Option(min=1.0, max=720.0, help="A session ends after so long without a request.")
]


@app.callback()
def rate(
    context: typer.Context,
    study: StudyName = None,
    port: Port = PORT,
    idle_minutes: IdleMinutes = 60.0,
) -> None:
    """Reader study: radiologists score synthetic maps. Without a command: serve its page.

    The page is on this machine only (127.0.0.1). Scores stay at the site.
    """
    if context.invoked_subcommand is not None:
        return
    from .serving import serve
    from .study import find_study, load_study

    folder = find_study(_site(context).folder, study)
    _print_study(load_study(folder), folder)
    text = f"page on http://127.0.0.1:{port}/ for readers with a personal link; Ctrl-C ends it"
    idle = timedelta(minutes=idle_minutes)
    serve(folder, port, idle=idle, announce=lambda: print(text, flush=True))


@app.command()
def init(
    context: typer.Context,
    model: Annotated[Path, typer.Option("--model", help="A released model file.")],
    kind: Annotated[
        Literal["quality", "diagnosis"],
        typer.Option(help="Score maps, or tell recurrence from treatment response."),
    ] = "quality",
    study: Annotated[
        str | None, typer.Option("--study", help="Name of the study; default: its kind.")
    ] = None,
    mode: Annotated[
        Literal["blind", "similarity"],
        typer.Option(help="Quality: hide which map is synthetic, or show both by name."),
    ] = "blind",
    decision: Annotated[
        Literal["discussion", "adjudicator"],
        typer.Option(help="Quality: who decides divergent scores."),
    ] = "discussion",
    split: Annotated[
        Literal["validation", "test", "all"], typer.Option(help="Quality: which scans.")
    ] = "test",
    cases: Annotated[
        int | None, typer.Option(min=1, help="Quality: as many cases at most, drawn by the seed.")
    ] = None,
    washout_days: Annotated[
        float, typer.Option(min=0.0, max=366.0, help="Diagnosis: between the two sessions.")
    ] = 28.0,
    window_max: Annotated[
        float, typer.Option(min=0.1, max=100.0, help="Top of the maps' window; brain mean is 1.")
    ] = 4.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of every random order; default: a new one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a study: choose the scans, synthesise their maps, write the volumes."""
    from .making import Choice, make
    from .study import STUDIES, design_of
    from .study import as_json as study_json

    if kind == "diagnosis" and cases is not None:
        raise ConfigError("goes with quality only", where="--cases", allowed="every labelled scan")
    design = design_of(
        name=study or kind,
        kind=kind,
        mode=mode,
        decision="adjudicator" if kind == "diagnosis" else decision,
        washout_days=washout_days,
        window_max=window_max,
        seed=secrets.randbits(32) if seed is None else seed,
    )
    folder = _site(context).folder / STUDIES / design.name
    made = make(_site(context), model, design, folder, Choice(split, cases, as_json))
    if as_json:
        print(study_json(made, folder))
        return
    _print_study(made, folder)
    print("next: iedn-client --site NAME rate add-reader reader-1")


@app.command(name="add-reader")
def add_reader(
    context: typer.Context,
    reader: Annotated[str, typer.Argument(help="A made-up name: reader-1.")],
    adjudicator: Annotated[
        bool, typer.Option("--adjudicator", help="Decides where the two readers differ.")
    ] = False,
    new_link: Annotated[
        bool, typer.Option("--new-link", help="Replace the link of a reader who is there.")
    ] = False,
    study: StudyName = None,
    port: Port = PORT,
    as_json: AsJson = False,
) -> None:
    """Add a reader, and show the personal link: once, for only its hash is kept."""
    from .enrolment import enrol
    from .study import find_study

    folder = find_study(_site(context).folder, study)
    role: Literal["reader", "adjudicator"] = "adjudicator" if adjudicator else "reader"
    token = enrol(folder, reader, role, renew=new_link, now=datetime.now(UTC))
    link = f"http://127.0.0.1:{port}/#{token}"
    if as_json:
        print(json.dumps({"reader": reader, "role": role, "link": link}, indent=2))
        return
    print(f"{reader} ({role}): {link}")
    print("whoever has this link scores as this reader; it is not shown again")


@app.command()
def status(context: typer.Context, study: StudyName = None, as_json: AsJson = False) -> None:
    """Show how far each reader is. No score is shown."""
    from .export import unfinished
    from .score_log import ScoreLog
    from .study import find_study, load_study
    from .worklist import progress_of

    folder = find_study(_site(context).folder, study)
    found, record = load_study(folder), ScoreLog(folder).record()
    now = datetime.now(UTC)
    lines = [progress_of(found, record, reader, now) for reader in record.readers.values()]
    left = unfinished(found, record)
    if as_json:
        print(json.dumps({"readers": [asdict(p) for p in lines], "unfinished": left}, indent=2))
        return
    _print_study(found, folder)
    for p in lines:
        where = f"{p.stage}, session {p.session}" if p.total else p.notice
        print(f"{p.reader} ({p.role}): {f'{p.done}/{p.total} ' if p.total else ''}{where}")
    for sentence in left:
        print(f"to do: {sentence}")
    if not left:
        print("finished: iedn-client --site NAME rate export")


@app.command()
def export(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option(help="Folder; default: the site's (diagnosis) or the study's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file with other content.")] = (
        False
    ),
    study: StudyName = None,
    as_json: AsJson = False,
) -> None:
    """Write a finished study's scores for the statistics, and print the readers' agreement."""
    from .export import export_scores, quality_page
    from .results import quality_results
    from .score_log import ScoreLog
    from .study import find_study, load_study

    site = _site(context)
    folder = find_study(site.folder, study)
    found, record = load_study(folder), ScoreLog(folder).record()
    target = out or (site.folder if found.design.kind == "diagnosis" else folder)
    path = export_scores(found, record, target, force=force)
    results = quality_results(found, record) if found.design.kind == "quality" else []
    if as_json:
        print(json.dumps({"file": str(path), "results": [asdict(r) for r in results]}, indent=2))
        return
    if results:
        print(quality_page(results))
    else:
        print("next: iedn-client --site NAME evaluate --model MODEL prints accuracy and agreement")
    print(f"scores (they name scans, and stay here): {path}")


def _site(context: typer.Context) -> "SiteConfig":
    config: SiteConfig = context.obj.config
    return config


def _print_study(study: "Study", folder: Path) -> None:
    design = study.design
    what = f"quality, {design.mode}" if design.kind == "quality" else "diagnosis"
    print(f"{design.name}: {what}, {len(study.cases)} cases, seed {design.seed} ({folder})")
