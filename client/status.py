"""What ``iedn-client`` shows on a terminal, and ``iedn-client status`` of a client that runs.

One function makes the document; everything that is shown or printed is made from it.
"""

import math
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from iedn.errors import CohortError, LedgerError
from sites.config import SiteConfig
from sites.release_log import latest

from .board import SILENT_S, Content, is_alive
from .ledger_command import NONE_YET, places_of, standing
from .site_folder import RELEASES

SHOWN_RELEASES = 5

Document = dict[str, Any]
Found = TypeVar("Found")

_ASKED = {
    "capabilities": "saying what it could contribute",
    "mask-key": "making its key for the masks",
    "train": "training",
    "evaluate": "evaluating",
    "release": "keeping the released model",
}
_CLIENTS = {
    "running": "runs",
    "not running": "does not run",
    "gone": "has ended without a word, or was killed",
    "silent": "runs, and has written nothing for a while",
}


class SiteFiles:
    """What stands in a site's release log and ledger; read again only when a file has changed.

    Args:
        config: the site's.
    """

    def __init__(self, config: SiteConfig) -> None:
        log, places = config.folder / RELEASES, places_of(config)
        wal = places.ledger.with_name(f"{places.ledger.name}-wal")
        self._left = _Kept([log], lambda: _left(log))
        self._privacy = _Kept([places.ledger, wal, places.copy], lambda: _privacy(config))

    def left(self) -> Document:
        """What has left: how many times, and the last of it."""
        return self._left.get()

    def privacy(self) -> Document:
        """Where the privacy ledger stands."""
        return self._privacy.get()


class _Kept(Generic[Found]):
    """What was read from files, as long as they stay as they are."""

    def __init__(self, paths: list[Path], read: Callable[[], Found]) -> None:
        self._paths, self._read = paths, read
        self._seen: list[tuple[int, int] | None] | None = None
        self._found: Found

    def get(self) -> Found:
        seen = [_version(path) for path in self._paths]
        if seen != self._seen:
            self._found, self._seen = self._read(), seen
        return self._found


def status_document(
    config: SiteConfig, content: Content | None, files: SiteFiles, *, now: float | None = None
) -> Document:
    """Everything there is to show about a site's client.

    Args:
        config: the site's.
        content: of its board; None where no client runs.
        files: the site's.
        now: seconds since 1970.

    Returns:
        JSON values; times in UTC as ``2026-01-31T09:00:00Z``.
    """
    now = time.time() if now is None else now
    state = content or {}
    deadline, coordinator = state.get("deadline"), config.coordinator
    link = _link(config, state, now)
    return {
        "site": config.name,
        "role": config.role,
        "time": _utc(now),
        "client": _client(config, content, now),
        "pid": state.get("pid"),
        "started": _utc(state.get("started")),
        "written": _utc(state.get("time")),
        "state": state.get("state"),
        "doing": _doing(state, link),
        "since": _utc(state.get("since")),
        "until": _utc(state.get("until")),
        "run": state.get("run") or None,
        "round": state.get("round"),
        "task": state.get("task"),
        "deadline": _utc(deadline),
        "deadline_in_s": None if deadline is None else round(deadline - now),
        "link": {
            "coordinator": None if coordinator is None else coordinator.address,
            "state": link,
            "heard": _utc(state.get("heard")),
        },
        "left": files.left(),
        "privacy": files.privacy(),
    }


def renderable(document: Document) -> RenderableType:
    """The document as people read it; what is not known is left out."""
    now = document["time"]
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, words in _facts(document):
        facts.add_row(name, Text(words, style=_style(name, document)))
    left = document["left"]
    parts: list[RenderableType] = [
        Text(f"{document['site']} ({document['role']}), {_clock(now, '')}", style="bold"),
        facts,
    ]
    if left["error"]:
        parts.append(Text(left["error"], style="red"))
    elif left["count"]:
        parts += [_releases(document), Text(f"{left['count']} in all; `releases` lists them")]
    else:
        parts.append(Text("nothing has left this site"))
    return Group(*parts)


def line(document: Document) -> str:
    """The document in a line, for a terminal that is none."""
    deadline = document["deadline"]
    until = f"; deadline {_clock(deadline, document['time'])}" if deadline else ""
    return f"{document['site']}: {document['doing']}{until}"


def _facts(document: Document) -> list[tuple[str, str]]:
    now = document["time"]
    client = _CLIENTS[document["client"]]
    if document["client"] in ("gone", "silent"):
        client = f"{client}; last heard of {_clock(document['written'], now)}"
    found = [("client", client)]
    if document["doing"]:
        since = f" (since {_clock(document['since'], now)})"
        found.append(("now", f"{document['doing']}{since}"))
    if document["run"]:
        round_number = "" if document["round"] is None else f", round {document['round']}"
        found.append(("run", f"{document['run']}{round_number}"))
    if document["deadline"]:
        left = _left_text(document["deadline_in_s"])
        found.append(("deadline", f"{_clock(document['deadline'], now)}, {left}"))
    found += [("link", _link_text(document)), ("privacy", document["privacy"]["words"])]
    return found


def _style(name: str, document: Document) -> str:
    if name == "client" and document["client"] in ("gone", "silent"):
        return "red"
    if name == "link":
        return {"up": "green", "lost": "red"}.get(document["link"]["state"], "")
    return "yellow" if name == "now" and document["state"] == "pausing" else ""


def _releases(document: Document) -> Table:
    table = Table(title="What has left this site", title_justify="left", box=None)
    for name in ("time", "kind", "run", "round", "bytes"):
        is_text = name in ("time", "kind", "run")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True)
    for entry in document["left"]["latest"]:
        size = "" if entry["bytes"] is None else f"{entry['bytes']:,}"
        number = "" if entry["round"] is None else str(entry["round"])
        when = _clock(entry["time"], document["time"])
        table.add_row(when, entry["kind"], entry["run"] or "", number, size)
    return table


def _client(config: SiteConfig, content: Content | None, now: float) -> str:
    if content is None:
        return "not running"
    if not is_alive(config.folder, int(content["pid"])):
        return "gone"
    return "running" if now - content["time"] <= SILENT_S else "silent"


def _doing(state: Content, link: str | None) -> str | None:
    """What is done, in words."""
    task, of_round = state.get("task"), state.get("round")
    match state.get("state"):
        case "connecting":
            return "connecting to the coordinator"
        case "waiting":
            is_lost = link == "lost"
            return "waiting for " + ("the connection to " if is_lost else "") + "the coordinator"
        case "sending":
            return "sending the answer" + ("" if of_round is None else f" of round {of_round}")
        case "pausing":
            until = _clock(_utc(state["until"]), _utc(state["time"]))
            return f"no connection; trying again at {until}"
        case "working" if task is not None and (task["done"], task["total"]) == (0, 1):
            return str(task["name"])  # work that cannot be counted
        case "working" if task is not None:
            return f"{task['name']}: {task['done']} of {task['total']}"
        case "working":
            words = _ASKED.get(state["asked"], state["asked"])
            return words if of_round is None else f"{words}, round {of_round}"
    return None


def _link(config: SiteConfig, state: Content, now: float) -> str | None:
    """``up``, ``lost`` or ``not yet``; None where no client runs."""
    if not state or config.coordinator is None:
        return None
    heard = state.get("heard")
    if heard is None:
        return "not yet"
    # After twice this time the coordinator takes a silent site for offline, too.
    return "up" if now - heard <= 2 * config.coordinator.heartbeat_s else "lost"


def _link_text(document: Document) -> str:
    link, now = document["link"], document["time"]
    heard = f"last answer {_clock(link['heard'], now)}" if link["heard"] else ""
    words = {
        None: "",
        "up": f"up, {heard}",
        "lost": f"lost, {heard}; tried again every few seconds",
        "not yet": "not reached yet",
    }[link["state"]]
    return ", ".join(part for part in (link["coordinator"] or "no coordinator", words) if part)


def _left(log: Path) -> Document:
    try:
        entries = latest(log, SHOWN_RELEASES)
    except CohortError:
        words = "the release log cannot be read; `releases` says why"
        return {"count": None, "latest": [], "error": words}
    shown = [
        {
            "time": entry["time"],
            "kind": entry["kind"],
            "run": entry.get("message", {}).get("run"),
            "round": entry.get("message", {}).get("round"),
            "bytes": entry.get("bytes"),
        }
        for entry in reversed(entries)
    ]
    return {"count": entries[-1]["number"] if entries else 0, "latest": shown, "error": None}


def _privacy(config: SiteConfig) -> Document:
    facts: Document = {"tier": config.privacy.tier, "epsilon": None, "epsilon_max": None}
    facts |= {"left": None, "delta": None}
    try:
        found = standing(config)
    except (LedgerError, CohortError):
        return facts | {"words": "the ledger cannot be used; `ledger --verify` says why"}
    if found is None:
        noise = f"noise in updates: {config.privacy.tier}"
        return facts | {"words": f"{NONE_YET}; {noise}"}
    left = max(found.epsilon_max - found.epsilon, 0.0)
    rounded = math.floor(left * 100 + 1e-9) / 100
    facts |= {"epsilon": found.epsilon, "epsilon_max": found.epsilon_max, "left": left}
    return facts | {"delta": found.delta, "words": f"{found.text()}; {rounded:.2f} left"}


def _version(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _utc(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _clock(when: str | None, now: str | None) -> str:
    """A time of the document by this machine's clock; without the day if that is today's."""
    if not when:
        return "?"
    local = datetime.fromisoformat(when).astimezone()
    is_today = bool(now) and datetime.fromisoformat(str(now)).astimezone().date() == local.date()
    return local.strftime("%H:%M:%S" if is_today else "%Y-%m-%d %H:%M:%S")


def _left_text(seconds: int) -> str:
    if seconds < 0:
        return "over"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"in {hours} h {minutes} min"
    return f"in {minutes} min" if minutes >= 2 else f"in {60 * minutes + rest} s"
