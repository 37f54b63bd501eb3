"""``iedn-client``: what a hospital types."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from iedn import progress
from iedn.console import new_app, print_parts, run_command, showing_progress
from iedn.errors import CohortError, ConfigError, PolicyError
from sites.config import SiteConfig, find_site, load_site_config

from .ledger_cli import ledger
from .peers_cli import app as peers_app
from .rating.cli import app as rating_app

if TYPE_CHECKING:
    from .one_scan import OneMap

# What needs torch or takes long to import is imported where it is used, so that `--help` and the
# commands around keys and connections answer at once.

app = new_app(invoke_without_command=True)
app.add_typer(rating_app, name="rate")
app.add_typer(peers_app, name="peers")
app.command()(ledger)

Against = Literal["cbv", "labels"]

AsJson = Annotated[bool, typer.Option("--json", help="Results and progress as JSON.")]
ModelPath = Annotated[Path, typer.Option("--model", help="A released model file.")]
Image = Annotated[Path | None, typer.Option(help="One patient: this image.")]
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
        print_parts(fact_lines(facts))
    try:
        with showing_progress(as_json=as_json):
            reporter = progress.reporter("preparing scans")
            grid = PRESETS[preset].grid
            cohort = examine_cohort(config, grid, progress=reporter, workers=config.workers)
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
        print_parts([*renderables(report, pictures), *leaving_text(leaves)])
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
    t1: Annotated[Path | None, typer.Option(help="One patient: the T1, grid of the map.")] = None,
    t2: Image = None,
    flair: Image = None,
    adc: Image = None,
    t1c: Image = None,
    asl: Image = None,
    mask: Annotated[Path | None, typer.Option(help="One patient: the brain mask.")] = None,
    folder: Annotated[Path | None, typer.Option(help="One patient: the scan's folder.")] = None,
    patient: Annotated[
        str | None, typer.Option("--id", help="One patient: identifier in the map's path.")
    ] = None,
    picture: Annotated[
        bool, typer.Option("--picture", help="One patient: draw the mask on the images.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Default: synthetic/ of the site.")] = None,
    flip_average: FlipAverage = False,
    as_json: AsJson = False,
) -> None:
    """Write the synthetic CBV map of every scan, or of one patient whose files are named."""
    import torch

    from .check import write_picture
    from .diagnostic import SYNTHETIC
    from .evaluate_command import prepared
    from .external import synthesize_cohort
    from .model_file import load_model_file
    from .one_scan import OPTIONS, find_scan, synthesize_one
    from .synthesis import Synthesizer

    config: SiteConfig = context.obj.config
    file = load_model_file(model)
    network = file.network.to(torch.device(config.device))
    synthesizer = Synthesizer(network, file.model_hash, flip_average)
    target = out or config.folder / SYNTHETIC
    given = zip(OPTIONS, (t1, t2, flair, adc, t1c, asl), strict=True)
    images = {modality: path for modality, path in given if path is not None}
    if images or mask or folder or patient or picture:
        made = synthesize_one(
            synthesizer,
            find_scan(images, folder, mask),
            target,
            grid=file.grid,
            patient=patient,
            registration=config.preprocessing.registration,
        )
        _print_map(made, write_picture(made) if picture else None, as_json=as_json)
        return
    cohort = prepared(config, file.grid, as_json=as_json)
    with showing_progress(as_json=as_json):
        reporter = progress.reporter("synthetic maps")
        rows = synthesize_cohort(synthesizer, cohort, target, progress=reporter)
    if as_json:
        print(json.dumps({"folder": str(target), "scans": len(rows)}))
        return
    print(f"{len(rows)} scans, research use only: {target}")


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
    from .evaluate_command import (
        CbvOptions,
        LabelOptions,
        evaluate_combinations,
        evaluate_labels,
        evaluate_split,
    )
    from .evaluation import NO_CBV

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
def report(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Option(help="Its maps, too: a model file, e.g. best.safetensors.")
    ] = None,
    examples: Annotated[int, typer.Option(min=0, help="Patients to show maps of.")] = 4,
    flip_average: FlipAverage = False,
    as_json: AsJson = False,
) -> None:
    """Write report.html into the site's folder: cohort, maps, what has left. It stays here."""
    from .site_report import ReportOptions, write_site_report

    options = ReportOptions(model, examples, flip_average, as_json)
    path = write_site_report(context.obj.config, options)
    print(json.dumps({"report": str(path)}) if as_json else path)


@app.command()
def audit(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Option("--model", help="Try membership inference on this model file.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a round, to plan the noise.")] = 16,
    canaries: Annotated[int, typer.Option(min=20, help="Made-up patients.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """Try to refute what this site claims about its noise. The result stays here.

    Made-up patients go through the real optimiser, and somebody who sees the outcome guesses who
    was in. With --model, the same is tried with the losses of the site's own patients.
    """
    from .audit_command import audit_site

    config: SiteConfig = context.obj.config
    print(audit_site(config, model, steps=steps, canaries=canaries, as_json=as_json))


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


def _print_map(made: "OneMap", picture: Path | None, *, as_json: bool) -> None:
    from sites.codes import CODES
    from sites.synthetic import NOTICE

    content, findings = made.sidecar.content(), [vars(f) for f in made.findings]
    if as_json:
        places = {"map": str(made.path), "picture": picture and str(picture)}
        print(json.dumps({**places, **content, "findings": findings}, indent=2))
        return
    for finding in made.findings:
        action = CODES[finding.code].action
        print(f"{finding.code} {finding.modality}: {finding.problem} -> {action}")
    for name in ("used", "missing"):
        print(f"inputs {name}: {', '.join(content[f'inputs_{name}']) or 'none'}")
    print(f"{NOTICE}: {made.path}")
    if picture is not None:
        print(f"to look at (it shows a patient): {picture}")


def main() -> None:
    """Entry point of ``iedn-client``."""
    run_command(app)
