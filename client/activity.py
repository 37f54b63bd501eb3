"""What this client does now, for whoever looks: the terminal, and ``iedn-client status``.

Like ``iedn.progress``, reports go to process-wide sinks; without one they are dropped. Nothing in
them names a patient, a scan or a path.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["connecting", "waiting", "working", "sending", "pausing"]
"""``pausing``: the connection is gone, and is tried again after a while."""


@dataclass(frozen=True)
class Activity:
    """What is done.

    Attributes:
        state: in a word.
        asked: what the coordinator has asked for, e.g. ``train``; empty if nothing.
        run: name of the run that is for.
        round: its round; None where the question is not of one.
        deadline: until when an answer counts, in seconds since 1970 by the coordinator's clock.
        until: when a pause ends, likewise, by this machine's.
    """

    state: State
    asked: str = ""
    run: str = ""
    round: int | None = None
    deadline: float | None = None
    until: float | None = None


Sink = Callable[[Activity], None]

_sinks: list[Sink] = []


def report(activity: Activity) -> None:
    """Say what is done from now on."""
    for sink in tuple(_sinks):
        sink(activity)


def add_sink(sink: Sink) -> Callable[[], None]:
    """Show all further reports to ``sink``; returns a function that ends this."""
    _sinks.append(sink)
    return lambda: _sinks.remove(sink)
