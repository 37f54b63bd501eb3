"""The document of a run as it changes, for however many pages are open."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from iedn.errors import IednError
from server.status import Document

_log = logging.getLogger(__name__)

LOOK_S = 1.0
PROBLEM = "The run's files cannot be read; what iedn-server status prints on this machine says why."


@dataclass(frozen=True)
class Look:
    """What a look at the run has found.

    Attributes:
        number: another number is another document.
        document: empty if the files could not be read at any time.
        problem: why the document is an older one, as a sentence; empty if it is not.
    """

    number: int
    document: Document
    problem: str = ""

    def changes_since(self, before: "Look") -> Document:
        """The fields of the document that are not what they were."""
        old = before.document
        return {k: v for k, v in self.document.items() if k not in old or old[k] != v}


class Feed:
    """Looks no more than once a second, whoever asks.

    Args:
        look: gives the document; what it raises is said on the page, and logged once.
        clock: seconds, for the tests.
    """

    def __init__(
        self, look: Callable[[], Document], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look, self._clock = look, clock
        self._lock = threading.Lock()
        self._last = Look(0, {})
        self._looked = float("-inf")

    def latest(self) -> Look:
        """The run as it is now, or was less than a second ago."""
        with self._lock:
            if self._clock() - self._looked >= LOOK_S:
                self._last = self._next()
                self._looked = self._clock()
            return self._last

    def _next(self) -> Look:
        last = self._last
        try:
            document, problem = self._look(), ""
        except (IednError, OSError) as error:
            document, problem = last.document, PROBLEM
            if not last.problem:  # names files: for the terminal, not for the page
                _log.error("the page shows older numbers: %s", error)
        if document == last.document and problem == last.problem and last.number:
            return last
        return Look(last.number + 1, document, problem)
