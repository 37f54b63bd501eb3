"""What the coordinator is doing now, for whoever looks: site by site, while it waits.

Like ``iedn.progress``, reports go to process-wide sinks; ``start`` keeps the last one in
``live.json``, from which ``iedn-server status`` and the live page tell what goes on. The file is
there as long as a coordinator is at work, and is touched every other second: one that is old was
left by a process that was killed.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from iedn.background import repeat_in_background
from iedn.files import atomic_write_bytes

LIVE = "live.json"

SiteState = Literal["offline", "waiting", "working", "replied", "missing"]
"""``waiting``: online, not asked yet; ``working``: asked; ``missing``: will not reply."""

SILENT_S = 15.0
"""A coordinator that is not heard of for so long is not at work any more."""

_WRITE_S = 1.0
_BEAT_S = 2.0


@dataclass(frozen=True)
class Snapshot:
    """An exchange as it stands.

    Attributes:
        label: what was asked, e.g. ``round 3``.
        elapsed_s: seconds since it was asked.
        deadline_s: seconds after which no reply counts.
        sites: the state of each site that was asked.
        reasons: why each missing site is missing.
        online: all sites that are, asked or not.
    """

    label: str
    elapsed_s: float
    deadline_s: float
    sites: dict[str, SiteState]
    reasons: dict[str, str] = field(default_factory=dict)
    online: tuple[str, ...] = ()


Sink = Callable[[Snapshot], None]

_sinks: list[Sink] = []


def is_watched() -> bool:
    """Whether anybody looks: a snapshot of a thousand sites takes a while to make."""
    return bool(_sinks)


def report(snapshot: Snapshot) -> None:
    """Show a snapshot to all sinks."""
    for sink in tuple(_sinks):
        sink(snapshot)


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """Keep the last snapshot in ``folder/live.json``; the file goes with the block."""
    path = folder / LIVE
    written = 0.0
    last: Snapshot | None = None

    def write(snapshot: Snapshot) -> None:
        nonlocal written, last
        is_new = last is None or (snapshot.sites, snapshot.online) != (last.sites, last.online)
        if not is_new and time.monotonic() - written < _WRITE_S:
            return
        written, last = time.monotonic(), snapshot
        content = {"time": time.time(), **asdict(snapshot)}
        atomic_write_bytes(path, json.dumps(content, sort_keys=True).encode(), durable=False)

    def beat() -> None:
        with suppress(FileNotFoundError):  # somebody has removed it; the next snapshot is a new one
            os.utime(path)

    path.write_bytes(b"{}")  # at work, and nobody has been asked yet
    end_beating = repeat_in_background(beat, _BEAT_S)
    _sinks.append(write)
    try:
        yield
    finally:
        _sinks.remove(write)
        end_beating()
        path.unlink(missing_ok=True)


def read(folder: Path) -> dict[str, object]:
    """The last snapshot of a coordinator that is running, with its ``time``; empty before it."""
    try:
        content = json.loads((folder / LIVE).read_bytes())
    except (OSError, ValueError):
        return {}
    return dict(content) if isinstance(content, dict) and content.get("sites") else {}


def last_heard(folder: Path) -> float | None:
    """When a coordinator was at work last (seconds since 1970); None if none has to end here."""
    try:
        return (folder / LIVE).stat().st_mtime
    except OSError:
        return None
