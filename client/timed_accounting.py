"""Epsilon within a time: where the sharper bound takes too long, the other one is used.

Both are upper bounds; a round should not wait for the difference.
"""

import logging
import threading
from collections.abc import Sequence

from .accounting import PrivacyEvent, epsilon_of, renyi_epsilon_of

PATIENCE_S = 30.0

_log = logging.getLogger(__name__)


def epsilon_in_time(
    events: Sequence[PrivacyEvent], delta: float, *, patience_s: float = PATIENCE_S
) -> float:
    """Epsilon of all events: the smaller of both bounds, or Renyi's if that is all there is.

    Args:
        events: what was done.
        delta: as in ``epsilon_of``.
        patience_s: after this time, or an error, Renyi's bound alone is taken.
    """
    found: list[float] = []

    def compute() -> None:
        try:
            found.append(epsilon_of(events, delta))
        except Exception:
            _log.exception("epsilon could not be computed; Renyi's bound is used")

    thread = threading.Thread(target=compute, name="accounting", daemon=True)
    thread.start()
    thread.join(patience_s)
    if thread.is_alive():
        _log.warning("epsilon is not there after %.0f s; Renyi's bound is used", patience_s)
    return found[0] if found else renyi_epsilon_of(events, delta)
