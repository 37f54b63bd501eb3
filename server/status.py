"""How far a run is: from its history and, if a coordinator is running, from what it does now."""

import time
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from . import live
from .config import FederationConfig
from .report import finished, incomplete, joined, validations, worst_site
from .run_folder import RunFolder

_ROWS, _WIDTH = 12, 64
_STALE_S = 60.0


def facts_of(folder: RunFolder, config: FederationConfig) -> dict[str, Any]:
    """Everything ``iedn-server status --json`` prints."""
    events = folder.events()
    commits = {e["round"]: e for e in events if e["event"] == "commit" and e["round"] > 0}
    return {
        "run": config.run,
        "simulation": config.simulation,
        "sites": sorted(config.sites),
        "rounds_committed": len(commits),
        "rounds_planned": config.rounds.count,
        "finished": finished(events),
        "incomplete": incomplete(events),
        "joined": (joined(events) or {}).get("roster", {}),
        "rosters": {number: e["roster"] for number, e in commits.items()},
        "void": {number: e["void"] for number, e in commits.items() if e.get("void")},
        "worst_site": {e["round"]: worst_site(e) for e in validations(events)},
        "now": live.read(folder.path),
    }


def tables(facts: dict[str, Any]) -> RenderableType:
    """The facts for a terminal: what each site does now, and the last rounds."""
    parts: list[RenderableType] = []
    if facts["now"]:
        parts.append(_now(facts["now"]))
    parts.append(_rounds(facts))
    for number, void in sorted(facts["void"].items())[-_ROWS:]:
        reasons = "; ".join(f"{group} ({why})" for group, why in void.items())
        parts.append(f"[yellow]round {number} left as they were:[/] {escape(reasons)}")
    if facts["incomplete"]:
        parts.append(f"[red]incomplete:[/] {facts['incomplete']['reason']}")
    return Group(*parts)


def _now(now: dict[str, Any]) -> Table:
    age = time.time() - now["time"]
    left = max(now["deadline_s"] - now["elapsed_s"] - age, 0.0)
    stale = f", not heard of for {age:.0f} s" if age > _STALE_S else ""
    title = f"{now['label']}: {now['elapsed_s'] + age:.0f} s, deadline in {left:.0f} s{stale}"
    table = Table("site", "now", title=title, min_width=_WIDTH)
    for site, state in sorted(now["sites"].items()):
        table.add_row(site, state)
    return table


def _rounds(facts: dict[str, Any]) -> Table:
    count = f"{facts['rounds_committed']} of {facts['rounds_planned']} rounds committed"
    end = ", finished" if facts["finished"] else ""
    table = Table(title=f"{facts['run']}: {count}{end}", min_width=_WIDTH)
    table.add_column("round", justify="right")
    for site in facts["sites"]:
        table.add_column(site)
    for number, roster in sorted(facts["rosters"].items())[-_ROWS:]:
        cells = [_cell(roster.get(site, {})) for site in facts["sites"]]
        table.add_row(str(number), *cells)
    return table


def _cell(entry: dict[str, Any]) -> str:
    code = entry.get("code", "")
    return " ".join(part for part in (entry.get("status", ""), code) if part)
