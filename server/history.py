"""The events of a run, one JSON object a line; each line is read and parsed once.

The file only grows, and a coordinator looks at all events several times a round. Another process
may be the one that writes: only complete lines are taken, and those that came since the last look.
"""

import json
from pathlib import Path
from typing import Any

from iedn.errors import CheckpointError
from iedn.files import complete_lines

Event = dict[str, Any]


class History:
    """What a ``history.jsonl`` holds.

    Args:
        path: the file; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._events: list[Event] = []
        self._length = 0

    def events(self) -> list[Event]:
        """The events of all complete lines so far; they are shared, and not to be changed.

        Raises:
            CheckpointError: a line is damaged.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._length:  # another file than the one that was read
            self._events, self._length = [], 0
        if size > self._length:
            self._read_on()
        return list(self._events)

    def _read_on(self) -> None:
        with self.path.open("rb") as stream:
            stream.seek(self._length)
            content = complete_lines(stream.read())
        try:
            self._events += [json.loads(line) for line in content.splitlines()]
        except ValueError as error:
            raise CheckpointError("the history is damaged", where=str(self.path)) from error
        self._length += len(content)
