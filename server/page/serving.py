"""Serving the page: on its own, and beside a run that it can never harm."""

import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from iedn.config import FrozenModel
from iedn.errors import ConfigError
from iedn.loopback import address_of, listening_socket, serve_on
from iedn.process import start_module, stop_child
from server.status import RunWatch

from .app import create_app

_log = logging.getLogger(__name__)

PAGE_LOG = "page.log"
ENDING_S = 1
"""For the streams of the pages that are open; they never end by themselves."""


class PageSettings(FrozenModel):
    """What the page's own process is told on its standard input.

    Attributes:
        folder: the run's.
        descriptor: of the socket that it inherits.
    """

    folder: Path
    descriptor: int


def serve(folder: Path, port: int, *, announce: Callable[[str], None]) -> None:
    """Serve a run's page until interrupted; it reads the folder and writes nothing.

    Args:
        folder: the run's, whether it runs now, has ended or has not begun.
        port: on 127.0.0.1; 0 is any free one.
        announce: called with the address once the port is this page's.

    Raises:
        ConfigError: the folder holds no run, or the port is taken.
    """
    watch = RunWatch(folder)
    watch.config()
    with listening_socket(port) as listener:
        announce(address_of(listener))
        serve_on(listener, create_app(watch.document, listener.getsockname()[1]), ending_s=ENDING_S)


@contextmanager
def page_beside(folder: Path, port: int) -> Iterator[None]:
    """Serve the page in a process of its own, as long as the block lasts.

    Whatever is wrong with the page is logged, and the block goes on without it.
    """
    ending = threading.Event()
    child = _started(folder, port)
    if child is not None:
        threading.Thread(target=_watch, args=(child, ending, folder), daemon=True).start()
    try:
        yield
    finally:
        ending.set()
        if child is not None:
            stop_child(child)


def _started(folder: Path, port: int) -> subprocess.Popen[bytes] | None:
    try:
        with listening_socket(port, "--page-port") as listener:
            settings = PageSettings(folder=folder.absolute(), descriptor=listener.fileno())
            child = start_module(
                "server.page.process",
                settings.model_dump_json().encode(),
                environment=os.environ,
                log=folder / PAGE_LOG,
                inherited=(listener.fileno(),),
            )
            _log.info("live page on %s", address_of(listener))
            return child
    except (ConfigError, OSError) as error:
        _log.warning("no live page: %s; the run goes on", error)
        return None


def _watch(child: subprocess.Popen[bytes], ending: threading.Event, folder: Path) -> None:
    code = child.wait()
    if not ending.is_set():
        again = f"`iedn-server page {folder}` serves it again"
        _log.warning(
            "the live page has ended (code %s, %s); the run goes on; %s",
            code,
            folder / PAGE_LOG,
            again,
        )
