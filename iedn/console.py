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
from typing import NoReturn, TextIO

import click
import typer
from rich.console import Console, RenderableType
from rich.live import Live
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


def live_screen() -> Live | None:
    """A part of the terminal, on stderr, that is drawn again in place; None without a terminal.

    What is logged meanwhile is printed above it.
    """
    can_redraw = _errors.is_terminal and not _errors.is_dumb_terminal
    return Live(console=_errors, auto_refresh=False) if can_redraw else None


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
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    for name in ("iedn", "sites", "client", "server", "simulation"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at that moment: bars and screens stand in for it, above them."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _JsonLines:
    """One JSON object for every report."""

    def __call__(self, task: str, done: int, total: int) -> None:
        sys.stderr.write(json.dumps({"task": task, "done": done, "total": total}) + "\n")


class _PlainLines:
    """A line for a task's end, and one every few seconds before it, with the time left.

    Work that cannot be counted (0 of 1) has a line at its beginning, and one at its end if it took
    long.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}
        self._steps: dict[str, float] = {}

    def __call__(self, task: str, done: int, total: int) -> None:
        now = self._clock()
        if total == 1 and (done == 0 or task in self._steps):
            self._step(task, now, is_over=done == 1)
            return
        self._first.setdefault(task, (now, done))
        started = self._last.setdefault(task, now)
        if done < total and now - started < PLAIN_INTERVAL_S:
            return
        self._last[task] = now
        left = _time_left(*self._first[task], now=now, done=done, total=total)
        _say(f"{task}: {done}/{total}{left}")

    def _step(self, task: str, now: float, *, is_over: bool) -> None:
        if not is_over:
            self._steps[task] = now
            _say(f"{task} ...")
            return
        seconds = now - self._steps.pop(task)
        if seconds >= PLAIN_INTERVAL_S:
            _say(f"{task}: done in {seconds:.0f} s")


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
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
                # Work that cannot be counted: a bar that moves to and fro.
                ids[task] = bars.add_task(task, total=None if (done, total) == (0, 1) else total)
            if done:
                bars.update(ids[task], completed=done, total=total)
            if done >= total and ":" in task:
                bars.remove_task(ids.pop(task))

        yield sink
