"""Entries that are only ever added, each holding the hash of the one before.

A changed, removed or inserted entry no longer fits, and is found. What is not found is a chain
that ends early: its last entry has to be known elsewhere.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from typing import Any

from iedn.errors import CohortError

FIRST = "0" * 64
"""What the first entry holds for the hash of the one before."""

Entry = dict[str, Any]


def entry_after(last: Entry | None, facts: Mapping[str, Any]) -> Entry:
    """``facts`` with number, time (UTC), and the hashes that tie them to ``last``."""
    entry: Entry = {
        **facts,
        "number": last["number"] + 1 if last else 1,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "previous": last["hash"] if last else FIRST,
    }
    return {**entry, "hash": _hash_of(entry)}


def line_of(entry: Entry) -> str:
    """One line of JSON; ``checked_chain`` reads it."""
    return json.dumps(entry, sort_keys=True)


def checked_chain(lines: Iterable[str], where: str) -> list[Entry]:
    """All entries of a chain that is whole.

    Args:
        lines: as of ``line_of``, in order.
        where: what they were read from, for the error.

    Raises:
        CohortError: naming the first line that does not fit.
    """
    entries: list[Entry] = []
    previous = FIRST
    for number, line in enumerate(lines, start=1):
        entry = _parsed(line)
        stated = entry.pop("hash", None)
        if (entry.get("previous"), entry.get("number"), stated) != (
            previous,
            number,
            _hash_of(entry),
        ):
            raise CohortError(f"{where}: line {number} does not fit the chain; it was changed")
        entry["hash"] = previous = str(stated)
        entries.append(entry)
    return entries


def _parsed(line: str) -> Entry:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _hash_of(entry: Entry) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
