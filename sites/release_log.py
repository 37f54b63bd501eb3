"""The site's append-only log of what left: ``releases.jsonl``, chained by hashes.

Each line holds the hash of the line before it, so that a changed, removed or inserted line is
found by ``verify``. A line is on disk before what it describes leaves.
"""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from iedn.errors import CohortError
from iedn.files import append_line, cut_torn_line

FIRST = "0" * 64

Entry = dict[str, Any]


class ReleaseLog:
    """An open release log.

    Args:
        path: the file; made with the first entry.

    Raises:
        CohortError: the chain is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._head, self._count, self._size = FIRST, 0, 0
        self._read()

    def append(self, facts: Entry) -> Entry:
        """Write one entry, durably, and return it.

        Raises:
            CohortError: the log was changed by others, and its chain is broken.
        """
        with self._lock:
            if _size_of(self.path) != self._size:
                self._read()  # another process of a simulation has played the site meanwhile
            entry: Entry = {
                **facts,
                "number": self._count + 1,
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "previous": self._head,
            }
            entry["hash"] = _hash_of(entry)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, json.dumps(entry, sort_keys=True))
            self._head, self._count = entry["hash"], self._count + 1
            self._size = _size_of(self.path)
            return entry

    def _read(self) -> None:
        cut_torn_line(self.path)  # half a line is of something that never left
        entries = verify(self.path)
        self._head = str(entries[-1]["hash"]) if entries else FIRST
        self._count = len(entries)
        self._size = _size_of(self.path)


def _size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def verify(path: Path) -> list[Entry]:
    """All entries of a log whose chain is whole.

    Raises:
        CohortError: naming the first line that does not fit.
    """
    if not path.exists():
        return []
    entries: list[Entry] = []
    previous = FIRST
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        entry = _parsed(line)
        stated = entry.pop("hash", None)
        if (entry.get("previous"), entry.get("number"), stated) != (
            previous,
            number,
            _hash_of(entry),
        ):
            problem = f"{path}: line {number} does not fit the chain; the log was changed"
            raise CohortError(problem)
        entry["hash"] = previous = str(stated)
        entries.append(entry)
    return entries


def _parsed(line: str) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _hash_of(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
