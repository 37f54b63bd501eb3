"""How far a run is: from its history and, if a coordinator is running, from what it does now.

One function makes the document that ``status --json`` prints and the live page shows: the two
cannot differ.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from . import live, standing
from .config import FederationConfig, load_federation
from .history import Event, History
from .run_folder import HISTORY
from .site_states import HERE, Past, pasts_of, site_states
from .standing import finished, incomplete, joined, validations, worst_site

Document = dict[str, Any]
RunState = Literal["running", "finished", "silent", "incomplete", "stopped", "not started"]
"""``silent``: a coordinator was at work and has not ended well, but is not heard of any more."""

_FEDERATION = "federation.toml"
_ROWS, _WIDTH = 12, 64
_STALE_S = 60.0


class Looked(Protocol):
    """A run folder, to whoever looks at it."""

    @property
    def path(self) -> Path:
        """The folder."""
        ...

    def events(self) -> list[Event]:
        """All complete lines of the history."""
        ...


@dataclass(frozen=True)
class _Told:
    """What so many events of a run tell; made again only when there are more."""

    num_events: int
    config: FederationConfig
    document: Document
    pasts: Mapping[str, Past]

    def is_of(self, events: list[Event], config: FederationConfig) -> bool:
        return self.num_events == len(events) and self.config is config


class RunWatch:
    """Looks at a run folder again and again; writes nothing, and reads only what is new.

    Args:
        path: the folder; the run need not have been started.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._history = History(path / HISTORY)
        self._config: tuple[float, FederationConfig] | None = None
        self._told: _Told | None = None

    def events(self) -> list[Event]:
        """All complete lines of the history.

        Raises:
            CheckpointError: a line is damaged.
        """
        return self._history.events()

    def config(self) -> FederationConfig:
        """The configuration, read again when its file has changed.

        Raises:
            ConfigError: the file is missing or wrong.
        """
        path = self.path / _FEDERATION
        changed = path.stat().st_mtime if path.exists() else 0.0
        if self._config is None or self._config[0] != changed:
            self._config = (changed, load_federation(path))
        return self._config[1]

    def document(self) -> Document:
        """What ``facts_of`` says, as it comes out of JSON; parts without news are the same objects.

        Raises:
            ConfigError: the configuration is missing or wrong.
            CheckpointError: a line of the history is damaged.
        """
        config, events = self.config(), self.events()
        if self._told is None or not self._told.is_of(events, config):
            document = _plain(_told_by_history(events, config))
            self._told = _Told(len(events), config, document, pasts_of(config, events))
        now = _told_by_now(self.path, events, config, self._told.pasts)
        return self._told.document | _plain(now)


def facts_of(folder: Looked, config: FederationConfig) -> Document:
    """Everything ``iedn-server status --json`` prints."""
    events = folder.events()
    now = _told_by_now(folder.path, events, config, pasts_of(config, events))
    return _told_by_history(events, config) | now


def _told_by_history(events: list[Event], config: FederationConfig) -> Document:
    commits = standing.rounds(events)
    return {
        "run": config.run,
        "simulation": config.simulation,
        "secure_aggregation": config.secure_aggregation,
        "sites": sorted(config.sites),
        "quorum": config.rounds.quorum,
        "rounds_committed": len(commits),
        "rounds_planned": config.rounds.count,
        "finished": finished(events),
        "incomplete": incomplete(events),
        "joined": (joined(events) or {}).get("roster", {}),
        "rosters": {e["round"]: e["roster"] for e in commits},
        "void": {e["round"]: e["void"] for e in commits if e.get("void")},
        "rounds": [standing.costs(e) for e in commits],
        "worst_site": {e["round"]: worst_site(e) for e in validations(events)},
        "worst_now": standing.worst_now(events),
        "curves": standing.curves(events),
        "contributions": standing.group_contributions(commits),
        "privacy_demanded": config.privacy.model_dump(),
        "privacy_reported": standing.privacy_reported(events),
        "not_accepted": standing.not_accepted(events),
    }


def _told_by_now(
    path: Path, events: list[Event], config: FederationConfig, pasts: Mapping[str, Past]
) -> Document:
    now, heard = live.read(path), live.last_heard(path)
    state = _run_state(events, heard)
    sites = site_states(config, pasts, now, is_running=state == "running")
    here = [site for site, facts in sites.items() if facts["state"] in HERE]
    return {
        "state": state,
        "last_heard": None if heard is None or state == "running" else int(heard),
        "now": now,
        "site_states": sites,
        "sites_here": here,
        "sites_missing": [site for site in sites if site not in here],
    }


def _run_state(events: list[Event], heard: float | None) -> RunState:
    if heard is not None and time.time() - heard < live.SILENT_S:
        return "running"
    if finished(events):
        return "finished"
    if heard is not None:
        return "silent"
    if incomplete(events):
        return "incomplete"
    return "stopped" if events else "not started"


def _plain(document: Document) -> Document:
    """As it comes out of JSON: every key is a text."""
    plain: Document = json.loads(json.dumps(document))
    return plain


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
