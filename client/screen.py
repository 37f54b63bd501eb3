"""What a client that takes part shows while it does: a screen, plain lines, or JSON lines.

With a terminal the document of ``client.status`` is drawn again every second, below the log.
Without one, a line on stderr says what has begun, and how far it is now and then. With ``--json``
the documents go to stdout, one a line. Either way ``status.json`` is kept for ``iedn-client
status``.
"""

import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from rich.live import Live

from iedn.console import live_screen
from sites.config import SiteConfig

from .board import Board, Content, collecting, remove_status, write_status
from .site_folder import HEARD, NODE
from .status import Document, SiteFiles, line, renderable, status_document

_log = logging.getLogger(__name__)

LOOK_S = 1.0
WRITE_S = 10.0
"""The file is written this often even if nothing has changed: it shows that the client lives."""
PLAIN_S, JSON_S = 30.0, 5.0
"""Between two lines about one task."""

_PATIENCE_S = 5.0

Show = Callable[[Document], None]


@contextmanager
def shown(config: SiteConfig, *, as_json: bool) -> Iterator[None]:
    """Show what this client does while the block lasts, and keep its file."""
    board = Board(config.name, config.folder / NODE / HEARD)
    with collecting(board), _way(as_json=as_json) as show:
        keeper = _Keeper(config, board, show)
        keeper.start()
        try:
            yield
        finally:
            keeper.stop()
            remove_status(config.folder)


class Lines:
    """Says what is new: at once what has begun, and how far it is every so often.

    Args:
        say: takes what is new.
        interval_s: between two that differ only in how far a task is.
        clock: seconds.
    """

    def __init__(
        self, say: Show, interval_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._say, self._interval_s, self._clock = say, interval_s, clock
        self._last: tuple[object, ...] = ()
        self._doing: object = None
        self._said = 0.0

    def __call__(self, document: Document) -> None:
        """Say it if it is new."""
        task = document["task"] or {}
        link = document["link"]["state"]
        key = (document["state"], document["run"], document["round"], task.get("name"), link)
        is_end = bool(task) and task["done"] == task["total"]
        is_due = self._clock() - self._said >= self._interval_s or is_end
        if key == self._last and (document["doing"] == self._doing or not is_due):
            return
        self._last, self._doing, self._said = key, document["doing"], self._clock()
        self._say(document)


class _Keeper:
    """A thread that shows and writes what the board says."""

    def __init__(self, config: SiteConfig, board: Board, show: Show) -> None:
        self._config, self._board, self._show = config, board, show
        self._files = SiteFiles(config)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="screen", daemon=True)
        self._written: tuple[float, Content] | None = None
        self._is_failing = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ending.set()
        self._thread.join(_PATIENCE_S)

    def _run(self) -> None:
        while True:
            try:
                self._look()
                self._is_failing = False
            except Exception:  # a full disk must not stop the client, nor fill its log
                if not self._is_failing:
                    _log.exception("what this client does cannot be shown; going on without")
                self._is_failing = True
            if self._ending.wait(LOOK_S):
                return

    def _look(self) -> None:
        content = self._board.content()
        self._show(status_document(self._config, content, self._files))
        told = {key: value for key, value in content.items() if key not in ("time", "heard")}
        now = time.monotonic()
        if self._written is None or told != self._written[1] or now - self._written[0] >= WRITE_S:
            write_status(self._config.folder, content)
            self._written = (now, told)


def _way(*, as_json: bool) -> AbstractContextManager[Show]:
    if as_json:
        return nullcontext(Lines(_say_json, JSON_S))
    screen = live_screen()
    if screen is None:
        return nullcontext(Lines(_say_plain, PLAIN_S))
    return _redrawn(screen)


@contextmanager
def _redrawn(screen: Live) -> Iterator[Show]:
    with screen:
        yield lambda document: screen.update(renderable(document), refresh=True)


def _say_json(document: Document) -> None:
    sys.stdout.write(json.dumps(document, sort_keys=True) + "\n")
    sys.stdout.flush()


def _say_plain(document: Document) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line(document)}\n")
    sys.stderr.flush()
