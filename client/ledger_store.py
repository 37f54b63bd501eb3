"""The privacy ledger's file: an SQLite table that is only ever added to.

An entry counts once it is committed, and a commit is on the disk before it returns. Accounting may
take seconds, and whoever holds the database meanwhile stops all others: so an entry is made
without the lock, and added only if it still follows the last one.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from iedn.errors import LedgerError
from iedn.files import exclusively, flush_folder
from sites.hash_chain import FIRST, Entry, checked_chain, line_of

BUSY_S = 30.0
"""How long to wait for another process that is writing; it takes milliseconds."""

_REFUSED = "BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only'); END"
_NEXT = "(SELECT coalesce(max(number), 0) + 1 FROM entries)"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries (number INTEGER PRIMARY KEY, entry TEXT NOT NULL)",
    f"CREATE TRIGGER IF NOT EXISTS no_gap BEFORE INSERT ON entries "
    f"WHEN NEW.number <> {_NEXT} {_REFUSED}",
    f"CREATE TRIGGER IF NOT EXISTS no_update BEFORE UPDATE ON entries {_REFUSED}",
    f"CREATE TRIGGER IF NOT EXISTS no_delete BEFORE DELETE ON entries {_REFUSED}",
)


class LedgerStore:
    """One ledger's database. Each call opens and closes it: between calls it is a single file.

    Args:
        path: the file; ``create`` makes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, entries: Sequence[Entry]) -> None:
        """Make the database with its first entries; one that is there already stays as it is.

        Raises:
            LedgerError: it cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with exclusively(self.path.with_suffix(".lock")), _explained(self.path):
            if not self.path.exists():
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                flush_folder(self.path.parent)
            with self._connected() as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                with _writing(connection):
                    for statement in _SCHEMA:
                        connection.execute(statement)
                    for entry in () if _lines(connection) else entries:
                        _insert(connection, entry)

    def entries(self) -> list[Entry]:
        """All entries; none if there is no ledger.

        Raises:
            LedgerError: it cannot be read.
            CohortError: the chain is broken.
        """
        if not self.path.exists() or self.path.stat().st_size == 0:
            return []
        with _explained(self.path), self._connected() as connection:
            # Without a table: the process that made the file was killed.
            has_table = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'")
            lines = _lines(connection) if has_table.fetchone() else []
        return checked_chain(lines, str(self.path))

    def append(self, *entries: Entry) -> bool:
        """Add entries that follow each other, all or none of them.

        Returns:
            Whether they were added; not if another entry has come since they were made.

        Raises:
            LedgerError: they cannot be written. They may count nevertheless.
        """
        with _explained(self.path), self._connected() as connection, _writing(connection):
            if entries[0]["previous"] != _last_hash(connection):
                return False
            for entry in entries:
                _insert(connection, entry)
        return True

    @contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        address = f"{self.path.absolute().as_uri()}?mode=rw"
        connection = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)
        with closing(connection):
            connection.execute("PRAGMA synchronous = FULL")
            yield connection


@contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    """A transaction that is on the disk when the block has ended, or has not happened."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        _commit(connection)
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _commit(connection: sqlite3.Connection) -> None:
    connection.execute("COMMIT")


def _insert(connection: sqlite3.Connection, entry: Entry) -> None:
    connection.execute("INSERT INTO entries VALUES (?, ?)", (entry["number"], line_of(entry)))


def _lines(connection: sqlite3.Connection) -> list[str]:
    return [line for (line,) in connection.execute("SELECT entry FROM entries ORDER BY number")]


def _last_hash(connection: sqlite3.Connection) -> str:
    last = connection.execute("SELECT entry FROM entries ORDER BY number DESC LIMIT 1").fetchone()
    return str(json.loads(last[0])["hash"]) if last else FIRST


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(
            f"{path}: the privacy ledger cannot be used: {error}. Nothing is trained without it; "
            "look at the disk's free space, the file's rights, and whether the disk is local"
        ) from error
