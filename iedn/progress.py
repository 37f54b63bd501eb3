"""Progress of long work, reported by the library and shown by whoever runs it.

A command line sets a sink; without one, reports are dropped. Like logging, this is process-wide:
threads that play several sites report into the same sink under different task names.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Sink = Callable[[str, int, int], None]

_sinks: list[Sink] = []


def report(task: str, done: int, total: int) -> None:
    """Say that ``done`` of ``total`` units of ``task`` are finished."""
    for sink in tuple(_sinks):
        sink(task, done, total)


def reporter(task: str) -> Callable[[int, int], None]:
    """A callback (done, total) that reports under one task's name."""
    return lambda done, total: report(task, done, total)


@contextmanager
def step(task: str) -> Iterator[None]:
    """Report that the block has begun, and when it has ended: work that cannot be counted."""
    report(task, 0, 1)
    yield
    report(task, 1, 1)


def add_sink(sink: Sink) -> Callable[[], None]:
    """Show all further reports to ``sink``; returns a function that ends this."""
    _sinks.append(sink)
    return lambda: _sinks.remove(sink)
