"""A run's report: one self-contained HTML page and a picture of the curves.

Everything comes from ``history.jsonl`` and the lock: aggregates and names of sites, nothing of a
patient. Numbers carry the number of scans behind them; the worst site is always named.
"""

import base64
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from iedn.files import atomic_write_bytes
from iedn.modalities import Modality
from iedn.parameters import groups_for

from .config import FederationConfig
from .history import Event
from .run_folder import LOCK, RunFolder

COMPARISONS = {
    "roi": "ROI values",
    "models": "models with standard MRI",
    "readers": "readers with standard MRI",
}
REPORT, CURVES = "report.html", "curves.png"

_MARKERS = "osD^vPX*"
_MOST_IN_LEGEND = 24
_CURVES = (("psnr_db_mean", "PSNR (dB)"), ("ssim_percent_mean", "SSIM (%)"))


def write_report(folder: RunFolder, config: FederationConfig) -> Path:
    """Write ``report.html`` and ``curves.png`` into the run folder, atomically."""
    events = folder.events()
    picture = draw_curves(events, config)
    atomic_write_bytes(folder.path / CURVES, picture)
    lock = json.loads((folder.path / LOCK).read_bytes())
    page = render(events, config, lock, picture)
    path = folder.path / REPORT
    atomic_write_bytes(path, page.encode())
    return path


def draw_curves(events: list[Event], config: FederationConfig) -> bytes:
    """PNG of validation PSNR and SSIM a round, one line a site, the best round marked."""
    rounds = validations(events)
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    best = finished(events).get("best_round")
    for axes, (metric, label) in zip(figure.subplots(1, 2), _CURVES, strict=True):
        for number, site in enumerate(sorted({s for e in rounds for s in e["sites"]})):
            points = [
                (e["round"], e["sites"][site]["metrics"][metric])
                for e in rounds
                if metric in e["sites"].get(site, {}).get("metrics", {})
            ]
            marker = _MARKERS[number % len(_MARKERS)]
            axes.plot(*zip(*points, strict=True), marker=marker, markersize=4, label=site)
        if best is not None:
            axes.axvline(best, color="0.6", linestyle=":", label="best round")
        axes.set(xlabel="round", ylabel=label)
        axes.grid(visible=True, alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(config.sites) <= _MOST_IN_LEGEND:
        figure.axes[0].legend(fontsize=8)
    kind = "PHANTOM data" if config.simulation else "held-out validation patients"
    figure.suptitle(f"{config.run}: validation by site ({kind})", fontsize=11)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def render(
    events: list[Event], config: FederationConfig, lock: dict[str, Any], picture: bytes
) -> str:
    """The page as HTML without any outside resource."""
    loader = PackageLoader("server", "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("report.html.j2")
    commits = [e for e in events if e["event"] == "commit" and e["round"] > 0]
    return template.render(
        config=config,
        lock=lock,
        curves=base64.b64encode(picture).decode(),
        commits=commits,
        joined=joined(events),
        validation=validations(events),
        test=_last(events, "test", "metrics"),
        external=_last(events, "test", "diagnostic"),
        finished=finished(events),
        incomplete=incomplete(events),
        sites=sorted(config.sites),
        modalities=[str(m) for m in Modality],
        groups=groups_for(Modality),
        worst=worst_site,
        comparisons=COMPARISONS,
    )


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
