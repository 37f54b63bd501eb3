"""The site's append-only log of what left: ``releases.jsonl``, chained by hashes.

Each line holds the hash of the line before it, so that a changed, removed or inserted line is
found by ``verify``. A line is on disk before what it describes leaves.
"""

import threading
from pathlib import Path

from iedn.files import append_line, cut_torn_line

from .hash_chain import Entry, checked_chain, entry_after, line_of


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
        self._last: Entry | None = None
        self._size = 0
        self._read()

    def append(self, facts: Entry) -> Entry:
        """Write one entry, durably, and return it.

        Raises:
            CohortError: the log was changed by others, and its chain is broken.
        """
        with self._lock:
            if _size_of(self.path) != self._size:
                self._read()  # another process of a simulation has played the site meanwhile
            entry = entry_after(self._last, facts)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_line(self.path, line_of(entry))
            self._last, self._size = entry, _size_of(self.path)
            return entry

    def _read(self) -> None:
        cut_torn_line(self.path)  # half a line is of something that never left
        entries = verify(self.path)
        self._last = entries[-1] if entries else None
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
    return checked_chain(path.read_text().splitlines(), str(path))
