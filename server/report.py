"""A run's report: one self-contained HTML page and a picture of the curves.

Everything comes from ``history.jsonl`` and the lock: aggregates and names of sites, nothing of a
patient. Numbers carry the number of scans behind them; the worst site is always named.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from iedn.evaluation.results import SHOWN_METRICS
from iedn.files import atomic_write_bytes
from iedn.html_page import drawing, page_environment, tidy
from iedn.modalities import Modality
from iedn.parameters import groups_for

from .config import FederationConfig
from .evaluation import over_sites
from .history import Event
from .report_figures import bias_limits, curves, forest, strata
from .run_folder import LOCK, RunFolder

COMPARISONS = {
    "roi": "ROI values",
    "models": "models with standard MRI",
    "readers": "readers with standard MRI",
}
REPORT, CURVES = "report.html", "curves.png"

SELECTION = {
    "mean-psnr": "highest mean validation PSNR, each site counted alike; the later of equal rounds",
    "worst-site-psnr": "highest validation PSNR at the worst site; the later of equal rounds",
    "last": "the last round",
}
"""How the best round is chosen, in words."""


def write_report(folder: RunFolder, config: FederationConfig) -> Path:
    """Write ``report.html`` and ``curves.png`` into the run folder, atomically."""
    events = folder.events()
    atomic_write_bytes(folder.path / CURVES, draw_curves(events, config))
    lock = json.loads((folder.path / LOCK).read_bytes())
    path = folder.path / REPORT
    atomic_write_bytes(path, render(events, config, lock).encode())
    return path


def draw_curves(events: list[Event], config: FederationConfig) -> bytes:
    """PNG of validation PSNR and SSIM a round, one line a site, the best round marked."""
    stream = io.BytesIO()
    made = _curves(events, config)
    tidy(made)
    made.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def render(events: list[Event], config: FederationConfig, lock: dict[str, Any]) -> str:
    """The page as HTML without any outside resource."""
    template = page_environment("server").get_template("report.html.j2")
    commits = [e for e in events if e["event"] == "commit" and e["round"] > 0]
    trainers = [s for s, entry in sorted(config.sites.items()) if entry.role == "train"]
    return template.render(
        config=config,
        preset=config.effective_preset,
        lock=lock,
        commits=commits,
        joined=joined(events),
        validation=validations(events),
        test=with_over_sites(_last(events, "test", "metrics")),
        external=_last(events, "test", "diagnostic"),
        finished=finished(events),
        incomplete=incomplete(events),
        sites=sorted(config.sites),
        trainers=trainers,
        accepted=accepted(commits, trainers),
        modalities=[str(m) for m in Modality],
        groups=groups_for(Modality),
        worst=worst_site,
        comparisons=COMPARISONS,
        metrics=SHOWN_METRICS,
        selection=SELECTION[config.rounds.selection],
        drawings=_drawings(events, config),
    )


def accepted(commits: list[Event], sites: list[str]) -> dict[str, int]:
    """Rounds that each site's update was part of."""
    return {
        site: sum(c["roster"].get(site, {}).get("status") == "accepted" for c in commits)
        for site in sites
    }


def with_over_sites(event: Event | None) -> Event | None:
    """An evaluation with what it is over sites, also of a history that did not keep that."""
    if event is None or "over_sites" in event:
        return event
    return {**event, "over_sites": over_sites(event["sites"])}


def _curves(events: list[Event], config: FederationConfig) -> Figure:
    rounds = [with_over_sites(e) or e for e in validations(events)]
    kind = "PHANTOM data" if config.simulation else "held-out validation patients"
    title = f"{config.run}: validation by site ({kind})"
    return curves(rounds, finished(events).get("best_round"), title)


def _drawings(events: list[Event], config: FederationConfig) -> dict[str, str]:
    """Every drawing that there are numbers for, by name."""
    made: dict[str, Figure | None] = {"curves": _curves(events, config)}
    if test := _last(events, "test", "metrics"):
        metrics = {site: result["metrics"] for site, result in test["sites"].items()}
        made["bias"] = bias_limits(metrics)
        made["strata"] = strata(metrics, "ssim_percent", "SSIM (%)")
    external = _last(events, "test", "diagnostic")
    if external and (lines := _area_lines(external)):
        made["forest"] = forest(lines)
    return {name: drawing(figure) for name, figure in made.items() if figure is not None}


def _area_lines(external: Event) -> list[tuple[str, Mapping[str, Any]]]:
    """Of each comparison every site, and all sites where there are several."""
    lines = []
    for name, found in external.get("stratified", {}).items():
        for site, result in external["sites"].items():
            if name in result.get("areas", {}):
                lines.append((f"{site}, {COMPARISONS[name]}", result["areas"][name]))
        if len(found["sites"]) > 1:
            lines.append((f"stratified, {COMPARISONS[name]}", found))
    return lines


def validations(events: list[Event]) -> list[Event]:
    """Validation results, one a round (the last one said)."""
    found = [e for e in events if e["event"] == "evaluation" and e["split"] == "validation"]
    return [e for _, e in sorted({e["round"]: e for e in found}.items())]


def finished(events: list[Event]) -> Event:
    """The ``finished`` line; empty if the run has not ended, or has gone on since."""
    for event in reversed(events):
        if event["event"] == "finished":
            return event
        if event["event"] in ("commit", "incomplete"):
            break
    return {}


def incomplete(events: list[Event]) -> Event:
    """Why the run stands still: its last line, if that says that sites are missing; or empty."""
    return events[-1] if events and events[-1]["event"] == "incomplete" else {}


def joined(events: list[Event]) -> Event | None:
    """The last declarations of all sites, with what became of each site's joining."""
    joins = [e for e in events if e["event"] == "join"]
    if not joins:
        return None
    roster: dict[str, Any] = {}
    for event in joins:  # a later line tells of the sites that were asked again, or of all
        roster |= event["roster"]
    return {**joins[-1], "roster": roster}


def worst_site(evaluation: Event) -> str:
    """Name of the site with the lowest mean PSNR; empty if there is none."""
    scored = {
        site: result["metrics"]["psnr_db_mean"]
        for site, result in evaluation["sites"].items()
        if "psnr_db_mean" in result["metrics"]
    }
    return min(scored, key=lambda site: scored[site]) if scored else ""


def _last(events: list[Event], split: str, kind: str) -> Event | None:
    found = [
        e
        for e in events
        if e["event"] == "evaluation" and (e["split"], e["evaluation"]) == (split, kind)
    ]
    return found[-1] if found else None
