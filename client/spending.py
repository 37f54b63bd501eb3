"""Paying for a training before it begins: the only way from a request to the privacy ledger."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from iedn.protocol.messages import RoundRequest, TrainRequest
from sites.config import SiteConfig
from sites.egress import LedgerHead

from .accounting import PrivacyEvent
from .ledger import Places, PrivacyLedger
from .session import SiteSession
from .timed_accounting import epsilon_in_time


class _Purpose(TypedDict):
    run: str
    round_number: int
    base_hash: str


def open_ledger(config: SiteConfig) -> PrivacyLedger:
    """The site's ledger, with the budget of its policy; see ``PrivacyLedger.open``."""
    return PrivacyLedger.open(
        config.folder,
        epsilon_max=config.privacy.budget,
        delta=config.privacy.delta,
        copy=config.ledger_copy,
        accountant=epsilon_in_time,
    )


@contextmanager
def spend_before_training(
    session: SiteSession, request: TrainRequest, event: PrivacyEvent | None
) -> Iterator[LedgerHead | None]:
    """Spend for a request; train, and keep the reply, inside the block.

    At its end, whether it was reached or an error left it, an answer is about to leave, and the
    reservation is used up. A process that is stopped or killed inside leaves it open: nothing has
    left, and the same request is served by the same reservation.

    Args:
        session: the site's.
        request: what is to be answered.
        event: what the training will do; None where no noise is added and nothing is spent.

    Yields:
        Where the ledger stands; None without an event.

    Raises:
        PolicyError: it would exceed the budget.
        LedgerError: the ledger cannot be written or trusted.
    """
    if event is None:
        yield None
        return
    ledger = open_ledger(session.config)
    purpose = _purpose(request)
    ledger.reserve(event, **purpose)
    try:
        yield ledger.head()
    except Exception:
        ledger.answered(**purpose)  # a failure is an answer, too
        raise
    ledger.answered(**purpose)


def check_affordable(session: SiteSession, request: RoundRequest, event: PrivacyEvent) -> None:
    """Raise as ``spend_before_training`` would at its beginning; nothing is spent."""
    open_ledger(session.config).check(event, **_purpose(request))


def note_repeat(session: SiteSession, request: TrainRequest) -> None:
    """A kept reply is about to leave; it may have been kept just before the process was killed.

    Raises:
        LedgerError: the ledger cannot be written or trusted.
    """
    places = Places.of(session.config.folder, session.config.ledger_copy)
    if places.ledger.exists():
        PrivacyLedger(places).answered(**_purpose(request))


def _purpose(request: RoundRequest) -> _Purpose:
    return {"run": request.run, "round_number": request.round, "base_hash": request.base_hash}
