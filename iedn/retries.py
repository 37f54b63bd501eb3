"""When a call to a Flower process on this machine is tried again, and when not.

Flower's own rule is made for processes that serve one task: a call that is refused interrupts the
whole process, or raises what is no ``Exception``; and once the other side is back, up to 20 s pass
before it is asked again. Here a refusal is an error like any other, and pauses stay short.
"""

from collections.abc import Callable, Generator
from typing import Protocol

import httpx

LONGEST_PAUSE_S = 3.0

_PASSING = frozenset(
    {
        httpx.codes.BAD_GATEWAY,
        httpx.codes.SERVICE_UNAVAILABLE,
        httpx.codes.GATEWAY_TIMEOUT,
    }
)


class Retrier(Protocol):
    """The part of Flower's ``RetryInvoker`` that decides."""

    should_giveup: Callable[[Exception], bool] | None
    wait_gen_factory: Callable[[], Generator[float, None, None]]


def retry_calmly(retrier: Retrier, is_over: Callable[[], bool]) -> None:
    """Make a retrier try again while the other side is away, and raise what it refuses.

    Args:
        retrier: changed in place.
        is_over: once this is true, a call that fails is not tried again.
    """

    def give_up(error: Exception) -> bool:
        return is_over() or not _is_passing(error)

    retrier.should_giveup = give_up
    retrier.wait_gen_factory = pauses


def pauses() -> Generator[float, None, None]:
    """Seconds between tries: doubling up to ``LONGEST_PAUSE_S``; Flower draws from 0 to each."""
    pause = 0.5
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_S)


def _is_passing(error: Exception) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code in _PASSING
    return isinstance(error, httpx.TransportError)
