"""The second file of a privacy ledger, best on another disk: by it a restored backup is noticed.

A ledger from a backup is whole, and has forgotten what was spent since. The copy has the same
entries, a line each; an entry is in it before anything is trained on its account.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from iedn.errors import LedgerError
from iedn.files import append_line, cut_torn_line, exclusively
from sites.hash_chain import Entry, line_of
from sites.release_log import verify


class LedgerCopy:
    """The second file.

    Args:
        path: where it is; made with the ledger's first entry.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def follow(self, read: Callable[[], list[Entry]]) -> list[Entry]:
        """Add what the copy does not have yet, durably, and return the ledger's entries.

        Args:
            read: gives all entries of the ledger. Called while the copy stands still, so that a
                copy with more entries than the ledger is never just a faster one.

        Raises:
            LedgerError: the copy cannot be written, or the ledger does not continue it.
            CohortError: the copy's chain is broken.
        """
        with self.held():
            known, entries = self.entries(), read()
            if reason := self.difference(entries, known):
                raise LedgerError(
                    f"{self.path}: this second file of the privacy ledger {reason}. Nothing is "
                    "spent until `iedn-client --site NAME ledger --recover --reason TEXT` was run"
                )
            self.extend(entries[len(known) :])
            return entries

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from the copy while the block lasts."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with exclusively(self.path.with_name(f".{self.path.name}.lock")):
                yield
        except OSError as error:
            raise LedgerError(
                f"{self.path}: the second file of the privacy ledger cannot be used: "
                f"{error.strerror}. Nothing is trained without it; mount its disk, or change "
                "ledger_copy in site.toml"
            ) from error

    def entries(self) -> list[Entry]:
        """All entries; none if there is no such file. Only while it is held."""
        cut_torn_line(self.path)  # the whole line is in the ledger
        return verify(self.path)

    def extend(self, entries: Sequence[Entry]) -> None:
        """Add entries, durably. Only while it is held."""
        for entry in entries:
            append_line(self.path, line_of(entry))

    @staticmethod
    def difference(entries: Sequence[Entry], known: Sequence[Entry]) -> str:
        """Why a ledger with ``entries`` does not continue a copy that has ``known``; or nothing."""
        if len(known) > len(entries):
            return f"has {len(known)} entries and the ledger {len(entries)}: an older one is back"
        if known and known[-1]["hash"] != entries[len(known) - 1]["hash"]:
            return "is of another ledger, or one of the two was changed"
        if not known and len(entries) > 1:
            return f"is missing or empty, and the ledger has {len(entries)} entries"
        return ""
