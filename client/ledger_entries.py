"""What stands in a privacy ledger, and what follows from all entries together.

``opened``     the first entry: epsilon_max and delta
``spent``      noise, sampling rate and steps, for which run, round and model
``recorded``   the same, spent without this ledger's knowledge and added by hand
``raised``     a larger epsilon_max
``recovered``  ledger and second file were put together again

Each holds ``epsilon``, spent by it and all before; those written by hand hold their ``reason``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from sites.egress import LedgerHead
from sites.hash_chain import Entry

from .accounting import PrivacyEvent

OPENED, SPENT, RECORDED, RAISED, RECOVERED = "opened", "spent", "recorded", "raised", "recovered"

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
    """Where a ledger with these entries (at least one) stands."""
    last = entries[-1]
    return LedgerHead(last["number"], last["hash"], last["epsilon"])


def limits_of(entries: Sequence[Entry]) -> Limits:
    """What a ledger with these entries (at least one) allows."""
    latest = [e["epsilon_max"] for e in entries if e["kind"] in (OPENED, RAISED)]
    return Limits(latest[-1], entries[0]["delta"])


def events_of(entries: Sequence[Mapping[str, Any]]) -> list[PrivacyEvent]:
    """Everything that was done, in order."""
    done = [entry for entry in entries if entry["kind"] in (SPENT, RECORDED)]
    return [PrivacyEvent(**{name: entry[name] for name in _EVENT}) for entry in done]


def purpose_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a ``spent`` entry is for, and what was to be done: all that a repeat has in common."""
    return {name: entry[name] for name in ("kind", "run", "round", "base_hash", *_EVENT)}


def spent(event: PrivacyEvent, *, run: str, round_number: int, base_hash: str) -> dict[str, Any]:
    """The facts of a ``spent`` entry."""
    purpose = {"run": run, "round": round_number, "base_hash": base_hash}
    return {"kind": SPENT, **purpose, **asdict(event)}
