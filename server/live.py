"""What the coordinator is doing now, for whoever looks: site by site, while it waits.

Like ``iedn.progress``, reports go to process-wide sinks; ``start`` keeps the last one in
``live.json``, from which ``iedn-server status --watch`` draws its table.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from iedn.files import atomic_write_bytes

LIVE = "live.json"

SiteState = Literal["offline", "waiting", "working", "replied", "missing"]
"""``waiting``: online, not asked yet; ``working``: asked; ``missing``: will not reply."""

_WRITE_S = 1.0


@dataclass(frozen=True)
class Snapshot:
    """An exchange as it stands.

    Attributes:
        label: what was asked, e.g. ``round 3``.
        elapsed_s: seconds since it was asked.
        deadline_s: seconds after which no reply counts.
        sites: the state of each site that was asked.
    """

    label: str
    elapsed_s: float
    deadline_s: float
    sites: dict[str, SiteState]


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
    last: dict[str, SiteState] = {}

    def write(snapshot: Snapshot) -> None:
        nonlocal written, last
        if snapshot.sites == last and time.monotonic() - written < _WRITE_S:
            return
        written, last = time.monotonic(), snapshot.sites
        content = {"time": time.time(), **asdict(snapshot)}
        atomic_write_bytes(path, json.dumps(content, sort_keys=True).encode(), durable=False)

    _sinks.append(write)
    try:
        yield
    finally:
        _sinks.remove(write)
        path.unlink(missing_ok=True)


def read(folder: Path) -> dict[str, object]:
    """The last snapshot of a coordinator that is running, with its ``time``; or empty."""
    try:
        content = json.loads((folder / LIVE).read_bytes())
    except (OSError, ValueError):
        return {}
    return dict(content) if isinstance(content, dict) else {}
