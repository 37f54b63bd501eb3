"""What the three command lines share: progress on stderr, and errors as one sentence.

Results go to stdout; progress, logs and errors to stderr. With a terminal, bars; without one, a
plain line every few seconds; with ``--json``, one JSON object a line.
"""

import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import click
import typer
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from . import progress
from .errors import IednError

EXIT_USAGE, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 130, 143
PLAIN_INTERVAL_S = 5.0

_errors = Console(stderr=True, highlight=False)


@contextmanager
def showing_progress(*, as_json: bool = False) -> Iterator[None]:
    """Show all progress reported inside the block on stderr."""
    if as_json:
        end = progress.add_sink(_JsonLines())
    elif _errors.is_terminal:
        with _bars() as sink:
            end = progress.add_sink(sink)
            try:
                yield
            finally:
                end()
        return
    else:
        end = progress.add_sink(_PlainLines())
    try:
        yield
    finally:
        end()


def print_parts(parts: Iterable[RenderableType]) -> None:
    """Print to stdout; lines of text are not wrapped."""
    console = Console()
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, Text))


def new_app(*, invoke_without_command: bool = False) -> typer.Typer:
    """A typer application whose tracebacks never show values: they may be a patient's."""
    return typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        invoke_without_command=invoke_without_command,
    )


def run_command(app: typer.Typer) -> NoReturn:
    """Run a typer application; errors end with one sentence and the documented exit code.

    SIGTERM, which services and containers are stopped with, cleans up as Ctrl-C does.
    """
    _log_to_stderr()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(standalone_mode=False)
        if code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this code, without a word
            _errors.print("interrupted", style="red")
    except click.exceptions.Abort:
        code = EXIT_INTERRUPTED
    except click.ClickException as error:
        error.show()
        code = EXIT_USAGE
    except KeyboardInterrupt:
        _errors.print("interrupted", style="red")
        code = EXIT_INTERRUPTED
    except IednError as error:
        _errors.print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _terminate(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # who asks twice does not want to wait
    raise SystemExit(EXIT_TERMINATED)


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    for name in ("iedn", "sites", "client", "server", "simulation"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


class _JsonLines:
    """One JSON object for every report."""

    def __call__(self, task: str, done: int, total: int) -> None:
        sys.stderr.write(json.dumps({"task": task, "done": done, "total": total}) + "\n")


class _PlainLines:
    """A line for a task's end, and one every few seconds before it, with the time left."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def __call__(self, task: str, done: int, total: int) -> None:
        now = self._clock()
        self._first.setdefault(task, (now, done))
        started = self._last.setdefault(task, now)
        if done < total and now - started < PLAIN_INTERVAL_S:
            return
        self._last[task] = now
        left = _time_left(*self._first[task], now=now, done=done, total=total)
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {task}: {done}/{total}{left}\n")
        sys.stderr.flush()


def _time_left(started: float, before: int, *, now: float, done: int, total: int) -> str:
    """``, about 3 min left`` at the pace since the first report; nothing at the end."""
    if not before < done < total:
        return ""
    seconds = (now - started) * (total - done) / (done - before)
    return f", about {seconds / 60:.0f} min left" if seconds >= 90 else f", {seconds:.0f} s left"


@contextmanager
def _bars() -> Iterator[progress.Sink]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_errors, transient=False) as bars:
        ids: dict[str, TaskID] = {}

        def sink(task: str, done: int, total: int) -> None:
            if task not in ids:
                ids[task] = bars.add_task(task, total=total)
            bars.update(ids[task], completed=done, total=total)
            if done >= total and ":" in task:
                bars.remove_task(ids.pop(task))

        yield sink
