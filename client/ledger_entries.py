"""What stands in a privacy ledger, and what follows from all entries together.

``opened``     the first entry: epsilon_max and delta
``spent``      noise, sampling rate and steps, for which run, round and model
``answered``   numbers of ``spent`` entries whose answer was about to leave
``recorded``   the same, spent without this ledger's knowledge and added by hand
``raised``     a larger epsilon_max
``recovered``  ledger and second file were put together again

Each holds ``epsilon``, spent by it and all before; those written by hand hold their ``reason``.
After ``recovered``, everything before counts as answered.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from sites.egress import LedgerHead
from sites.hash_chain import Entry

from .accounting import PrivacyEvent

OPENED, SPENT, ANSWERED = "opened", "spent", "answered"
RECORDED, RAISED, RECOVERED = "recorded", "raised", "recovered"

_EVENT = tuple(field.name for field in fields(PrivacyEvent))


@dataclass(frozen=True)
class Limits:
    """What may be spent.

    Attributes:
        epsilon_max: over all runs.
        delta: probability with which epsilon may not hold; fixed when the ledger is opened.
    """

    epsilon_max: float
    delta: float


def head_of(entries: Sequence[Entry]) -> LedgerHead:
    """Where a ledger with these entries (at least one) stands.

    Notes of answers are left out: what was forgotten can be recorded again entry by entry.
    """
    counted = [entry for entry in entries if entry["kind"] != ANSWERED]
    return LedgerHead(len(counted), counted[-1]["hash"], counted[-1]["epsilon"])


def limits_of(entries: Sequence[Entry]) -> Limits:
    """What a ledger with these entries (at least one) allows."""
    latest = [e["epsilon_max"] for e in entries if e["kind"] in (OPENED, RAISED)]
    return Limits(latest[-1], entries[0]["delta"])


def events_of(entries: Sequence[Mapping[str, Any]]) -> list[PrivacyEvent]:
    """Everything that was done, in order."""
    done = [entry for entry in entries if entry["kind"] in (SPENT, RECORDED)]
    return [PrivacyEvent(**{name: entry[name] for name in _EVENT}) for entry in done]


def unanswered(entries: Sequence[Entry], facts: Mapping[str, Any]) -> list[Entry]:
    """The ``spent`` entries that say ``facts`` and that nothing came of: somebody was killed."""
    recovered = max((e["number"] for e in entries if e["kind"] == RECOVERED), default=0)
    done = {number for e in entries if e["kind"] == ANSWERED for number in e["entries"]}
    return [
        entry
        for entry in entries[recovered:]
        if entry["kind"] == SPENT
        and entry["number"] not in done
        and all(entry[name] == value for name, value in facts.items())
    ]
