"""What this site's patients have been exposed to, over all runs: a budget that is never overdrawn.

An entry says what was done (noise, sampling rate, steps). What it cost is computed from all entries
together, since the same patients are in all runs. Reserving is spending: the entry is on the disk,
and in a second file, before the first step of training, and nothing is ever given back.

A process that is killed between reserving and answering has let nothing out. When the same request
comes again, the same reservation serves, and the run costs what it would have cost undisturbed.
Once an answer is about to leave, the reservation is used up: to train again would be another
release, and is another expense.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from iedn.errors import ConfigError, LedgerError, PolicyError
from sites.egress import LedgerHead
from sites.hash_chain import Entry, entry_after

from .accounting import PrivacyEvent
from .ledger_copy import LedgerCopy
from .ledger_entries import (
    ANSWERED,
    OPENED,
    RAISED,
    RECORDED,
    RECOVERED,
    SPENT,
    Limits,
    events_of,
    head_of,
    limits_of,
    unanswered,
)
from .ledger_store import LedgerStore
from .timed_accounting import epsilon_in_time

LEDGER, COPY = "ledger.sqlite", "ledger-copy.jsonl"

Accountant = Callable[[Sequence[PrivacyEvent], float], float]
"""Epsilon of events at a delta."""

Compose = Callable[[list[Entry]], Mapping[str, Any]]
"""From all entries, what the next one says."""


@dataclass(frozen=True)
class Reservation:
    """An expense that has been made.

    Attributes:
        number: of its entry.
        epsilon: spent by this and all earlier entries.
        is_new: whether this call made it, and not an earlier one that nothing came of.
    """

    number: int
    epsilon: float
    is_new: bool


@dataclass(frozen=True)
class Places:
    """Where a site's ledger is.

    Attributes:
        ledger: the database; on a local disk.
        copy: the second file; better on another disk.
    """

    ledger: Path
    copy: Path

    @classmethod
    def of(cls, folder: Path, copy: Path | None = None) -> "Places":
        """In a site's folder; the copy too, unless it has a place of its own."""
        return cls(folder / LEDGER, copy or folder / COPY)


class PrivacyLedger:
    """A site's ledger. Safe to use from several processes.

    Args:
        places: where it is.
        epsilon_max: what the site's policy allows; the ledger itself may allow less.
        accountant: computes epsilon.
    """

    def __init__(
        self,
        places: Places,
        epsilon_max: float = float("inf"),
        accountant: Accountant = epsilon_in_time,
    ) -> None:
        self._store, self._copy = LedgerStore(places.ledger), LedgerCopy(places.copy)
        self._epsilon_max, self._accountant = epsilon_max, accountant

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        epsilon_max: float,
        delta: float,
        copy: Path | None = None,
        accountant: Accountant = epsilon_in_time,
    ) -> "PrivacyLedger":
        """The ledger of a site; made if there is none.

        Args:
            folder: the site's folder.
            epsilon_max: what may be spent over all runs.
            delta: at which epsilon is computed.
            copy: the second file; by default in the same folder.
            accountant: computes epsilon.

        Raises:
            ConfigError: it was opened with a smaller ``epsilon_max`` or another ``delta``.
            LedgerError: it cannot be used or trusted.
            CohortError: a chain is broken.
        """
        ledger = cls(Places.of(folder, copy), epsilon_max, accountant)
        ledger._create(Limits(epsilon_max, delta))
        _check_limits(limits_of(ledger.entries()), Limits(epsilon_max, delta), folder / LEDGER)
        return ledger

    def reserve(
        self, event: PrivacyEvent, *, run: str, round_number: int, base_hash: str
    ) -> Reservation:
        """Spend, before anything is trained; durable when it returns.

        Args:
            event: what will be done.
            run: for which run ...
            round_number: ... and round ...
            base_hash: ... starting from which model.

        Raises:
            PolicyError: it would exceed the budget; nothing is spent.
            LedgerError: the ledger cannot be written or trusted; it may be spent nevertheless.
            CohortError: a chain is broken.
        """
        facts = _spending(event, run, round_number, base_hash)
        if before := unanswered(self.entries(), facts):
            return Reservation(before[0]["number"], before[0]["epsilon"], is_new=False)
        entry = self._append(lambda entries: facts | self._affordable(entries, event))
        return Reservation(entry["number"], entry["epsilon"], is_new=True)

    def check(self, event: PrivacyEvent, *, run: str, round_number: int, base_hash: str) -> None:
        """Raise as ``reserve`` would, with the same arguments; nothing is spent."""
        entries = self.entries()
        if not unanswered(entries, _spending(event, run, round_number, base_hash)):
            self._affordable(entries, event)

    def answered(self, *, run: str, round_number: int, base_hash: str) -> None:
        """Note that an answer is about to leave: it uses up what was reserved for it.

        Args:
            run: as in ``reserve``, ...
            round_number: ... also of an answer ...
            base_hash: ... that was kept before.

        Raises:
            LedgerError: it cannot be written; then nothing may leave.
            CohortError: a chain is broken.
        """
        purpose = _purpose(run, round_number, base_hash)

        def compose(entries: list[Entry]) -> Mapping[str, Any]:
            numbers = [entry["number"] for entry in unanswered(entries, purpose)]
            return {"kind": ANSWERED, "entries": numbers, "epsilon": head_of(entries).epsilon}

        if unanswered(self.entries(), purpose):
            self._append(compose)

    def head(self) -> LedgerHead:
        """Where the ledger stands; raises as ``entries``."""
        return head_of(self.entries())

    def epsilon(self) -> float:
        """Spent by all entries; raises as ``entries``."""
        return self.head().epsilon

    def entries(self) -> list[Entry]:
        """All entries, oldest first.

        Raises:
            LedgerError: the ledger cannot be used or trusted.
            CohortError: a chain is broken.
        """
        return self._copy.follow(self._store.entries)

    def raise_limit(self, epsilon_max: float, reason: str) -> Entry:
        """Allow more, for a reason that stays in the ledger.

        Raises:
            PolicyError: it is not more than what is allowed, or no reason is given.
            LedgerError: the ledger cannot be written or trusted.
            CohortError: a chain is broken.
        """

        def compose(entries: list[Entry]) -> Mapping[str, Any]:
            allowed = limits_of(entries).epsilon_max
            if not epsilon_max > allowed:
                raise PolicyError(f"epsilon_max is {allowed:g}; {epsilon_max:g} is not more")
            return _by_hand(RAISED, reason, entries) | {"epsilon_max": epsilon_max}

        return self._append(compose)

    def record(self, event: PrivacyEvent, reason: str) -> Entry:
        """Count what was spent without this ledger's knowledge, even beyond the budget.

        Raises:
            PolicyError: no reason is given.
            LedgerError: the ledger cannot be written or trusted.
            CohortError: a chain is broken.
        """

        def compose(entries: list[Entry]) -> Mapping[str, Any]:
            facts = _by_hand(RECORDED, reason, entries) | asdict(event)
            return facts | {"epsilon": self._cost(entries, event)}

        return self._append(compose)

    def recover(self, reason: str) -> Entry:
        """Put ledger and second file together again, after one of them was lost or restored.

        Whichever has more entries completes the other. What was reserved counts as answered.

        Raises:
            PolicyError: no reason is given.
            LedgerError: they differ in an entry, or cannot be written.
            CohortError: a chain is broken.
        """
        _check_reason(reason)
        with self._copy.held():
            entries, known = self._store.entries(), self._copy.entries()
            longer, shorter = sorted((entries, known), key=len, reverse=True)
            if not longer:
                raise LedgerError(f"{self._store.path}: there is no privacy ledger, and no copy")
            if longer[: len(shorter)] != shorter:
                part = next(a["number"] for a, b in zip(longer, shorter, strict=False) if a != b)
                raise LedgerError(
                    f"{self._store.path} and {self._copy.path} differ from entry {part} on; keep "
                    "the one whose last hash the coordinator has seen, move the other away, "
                    "recover, and add what only the other knows with --record"
                )
            self._store.create(longer)
            if missing := longer[len(entries) :]:
                self._store.append(*missing)
            self._copy.extend(longer[len(known) :])
        return self._append(lambda entries: _by_hand(RECOVERED, reason, entries))

    def _create(self, limits: Limits) -> None:
        with self._copy.held():
            if self._store.entries():
                return
            if known := self._copy.entries():
                raise LedgerError(
                    f"{self._store.path}: there is no privacy ledger, but {self._copy.path} has "
                    f"{len(known)} entries of one. Put it back from a backup; in any case run "
                    "`iedn-client --site NAME ledger --recover --reason TEXT`"
                )
            facts = {"kind": OPENED, "epsilon": 0.0, **asdict(limits)}
            self._store.create([entry_after(None, facts)])

    def _append(self, compose: Compose) -> Entry:
        """Add an entry, worked out without a lock, and again if another one has come first."""
        while True:
            entries = self.entries()
            entry = entry_after(entries[-1], compose(entries))
            if self._store.append(entry):
                self.entries()  # the copy follows before anything is done on the entry's account
                return entry

    def _affordable(self, entries: list[Entry], event: PrivacyEvent) -> dict[str, Any]:
        epsilon = self._cost(entries, event)
        if not epsilon <= min(self._epsilon_max, limits_of(entries).epsilon_max):
            raise PolicyError(
                "the privacy budget does not allow another round; "
                "`iedn-client --site NAME ledger` shows what it was spent on"
            )
        return {"epsilon": epsilon}

    def _cost(self, entries: list[Entry], event: PrivacyEvent) -> float:
        """Epsilon of all entries and one more event."""
        return self._accountant([*events_of(entries), event], limits_of(entries).delta)


def _spending(event: PrivacyEvent, run: str, round_number: int, base_hash: str) -> dict[str, Any]:
    return {"kind": SPENT, **_purpose(run, round_number, base_hash), **asdict(event)}


def _purpose(run: str, round_number: int, base_hash: str) -> dict[str, Any]:
    return {"run": run, "round": round_number, "base_hash": base_hash}


def _by_hand(kind: str, reason: str, entries: list[Entry]) -> dict[str, Any]:
    _check_reason(reason)
    return {"kind": kind, "reason": reason, "epsilon": head_of(entries).epsilon}


def _check_reason(reason: str) -> None:
    if not reason.strip():
        raise PolicyError("a reason is needed (--reason TEXT); it stays in the ledger")


def _check_limits(opened: Limits, wanted: Limits, path: Path) -> None:
    if wanted.delta != opened.delta:
        problem = f"privacy.delta is {wanted.delta:g} in site.toml; this ledger has another"
        raise ConfigError(problem, where=str(path), allowed=f"{opened.delta:g}, for ever")
    if wanted.epsilon_max > opened.epsilon_max:
        problem = f"privacy.epsilon is {wanted.epsilon_max:g} in site.toml; this ledger allows less"
        allowed = (
            f"at most {opened.epsilon_max:g}; to allow more, run "
            "`iedn-client --site NAME ledger --raise-to EPSILON --reason TEXT`"
        )
        raise ConfigError(problem, where=str(path), allowed=allowed)
