"""A running client's board: what it does, put together from its reports, for a file and a screen.

The file, ``status.json`` in the site's folder, is for others on this machine that ask. It names
no patient, no scan and no path.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from iedn import progress
from iedn.files import atomic_write_bytes, only_process

from . import activity
from .activity import Activity
from .site_folder import CLIENT_LOCK, HEARD, NODE, STATUS

SILENT_S = 30.0
"""A client writes its file at least three times as often."""

Content = dict[str, Any]


class Board:
    """What one client does, as JSON values.

    Args:
        name: the site's; taken away from the names of tasks.
        heard: the node's file, ``site_folder.HEARD``.
        clock: seconds since 1970.
    """

    def __init__(self, name: str, heard: Path, clock: Callable[[], float] = time.time) -> None:
        self._prefix, self._heard, self._clock = f"{name}: ", heard, clock
        self._lock = threading.Lock()
        self._started = self._since = self._node_since = clock()
        self._activity = Activity("connecting")
        self._task: tuple[str, int, int] | None = None

    def take(self, done_now: Activity) -> None:
        """Another activity has begun."""
        with self._lock:
            if done_now.state == "sending":  # the answer to what was asked
                done_now = replace(self._activity, state="sending")
            if done_now == self._activity:
                return
            self._activity, self._since, self._task = done_now, self._clock(), None
            if done_now.state == "connecting":
                self._node_since = self._since

    def progress(self, task: str, done: int, total: int) -> None:
        """So far is the task that belongs to the activity."""
        with self._lock:
            self._task = (task.removeprefix(self._prefix), done, total)

    def content(self) -> Content:
        """All of it."""
        heard = _touched(self._heard)
        with self._lock:
            now, task = self._activity, self._task
            state = now.state
            if state == "waiting" and (heard is None or heard < self._node_since):
                state = "connecting"  # the node is up, and has not reached the coordinator yet
            return {
                "pid": os.getpid(),
                "started": self._started,
                "time": self._clock(),
                "state": state,
                "since": self._since,
                "asked": now.asked,
                "run": now.run,
                "round": now.round,
                "task": None if task is None else _task_as_json(*task),
                "deadline": now.deadline,
                "until": now.until,
                "heard": heard,
            }


def _task_as_json(name: str, done: int, total: int) -> Content:
    return {"name": name, "done": done, "total": total}


@contextmanager
def collecting(board: Board) -> Iterator[None]:
    """Let a board follow all reports made inside the block."""
    ends = [activity.add_sink(board.take), progress.add_sink(board.progress)]
    try:
        yield
    finally:
        for end in ends:
            end()


def write_status(folder: Path, content: Content) -> None:
    """Replace a site's ``status.json``; for its owner only."""
    written = json.dumps(content, sort_keys=True).encode()
    atomic_write_bytes(folder / STATUS, written, mode=0o600, durable=False)


def remove_status(folder: Path) -> None:
    """The client ends."""
    (folder / STATUS).unlink(missing_ok=True)


def read_status(folder: Path) -> Content | None:
    """What a client has written last; None where none runs, or nothing can be read."""
    try:
        content = json.loads((folder / STATUS).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict):
        return None
    # Its node may have heard from the coordinator since.
    return content | {"heard": _touched(folder / NODE / HEARD) or content.get("heard")}


def _touched(path: Path) -> float | None:
    """When a file was touched last; None where it is not there."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None


def is_alive(folder: Path, pid: int) -> bool:
    """Whether the client that has written the file, or another one of this site, runs."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True  # another user's
    except ProcessLookupError:
        # Seen from another container, the process has another number; its lock is the same.
        lock = folder / CLIENT_LOCK
        if not lock.exists():
            return False
        with only_process(lock) as is_free:
            return not is_free
    return True
